//! Wraps bytes as gzip without compressing them: stored blocks, a checksum and a length.
//! Any decoder accepts the result, and no compression library is needed.

/// The largest stored block deflate allows.
const BLOCK: usize = 65_535;

/// `content` as a gzip member.
pub(crate) fn stored(content: &[u8]) -> Vec<u8> {
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    for block in content.chunks(BLOCK) {
        let length = block.len() as u16; // chunks() keeps it within BLOCK
        member.push(0);
        member.extend(length.to_le_bytes());
        member.extend((!length).to_le_bytes());
        member.extend(block);
    }
    member.extend([1, 0, 0, 0xff, 0xff]);
    member.extend(checksum(content).to_le_bytes());
    member.extend((content.len() as u32).to_le_bytes());
    member
}

fn checksum(content: &[u8]) -> u32 {
    let step = |crc: u32, _| {
        if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
    };
    !content.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_well_known_one() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    }
}
