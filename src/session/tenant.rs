//! The name of an Emporix tenant.
//! Once parsed it is bounded and safe in a path, a log line and a Redis key.

use std::fmt;
use std::hash::{Hash, Hasher};

use minicbor::{Decode, Decoder, Encode, Encoder};

/// A tenant's name: `^[a-z][a-z0-9]{2,15}$`, filled up with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantId([u8; TenantId::LONGEST]);

impl TenantId {
    const LONGEST: usize = 16;

    /// Parses a tenant name; anything but 3 to 16 lowercase letters and digits, letter first, is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let well_formed = (3..=Self::LONGEST).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        well_formed.then(|| {
            let mut name = [0; Self::LONGEST];
            name[..bytes.len()].copy_from_slice(bytes);
            Self(name)
        })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::LONGEST);
        // Letters and digits, as parsed: always text.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl std::borrow::Borrow<str> for TenantId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// As its text hashes: tables of tenants are searched by text.
impl Hash for TenantId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<C> Encode<C> for TenantId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(self.as_str())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for TenantId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::parse(d.str()?).ok_or_else(|| minicbor::decode::Error::message("not a tenant name"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_tenant_is_found_by_its_text() {
        let known = HashMap::from([(TenantId::parse("acme").unwrap(), 1)]);
        assert_eq!(known.get("acme"), Some(&1));
        assert_eq!(known.get("acm"), None);
    }

    #[test]
    fn only_names_of_the_emporix_pattern_parse() {
        for good in ["acme", "a12", "abcdefghijklmnop"] {
            assert_eq!(TenantId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "ab", "Acme", "1acme", "ac-me", "abcdefghijklmnopq", "acme/", "acmé"] {
            assert!(TenantId::parse(bad).is_none(), "{bad}");
        }
    }
}
