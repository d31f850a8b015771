//! The API behind every proxy of a comparison: 1 KiB of JSON to every request that bears both tokens, as cheap as can be.

use std::io::{Error, Result};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves on `port` until it is stopped.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A connection that breaks ends; the proxies open others.
        tokio::task::spawn_local(async move { answer_all(stream).await.ok() });
    }
}

async fn answer_all(mut stream: TcpStream) -> Result<()> {
    let body = format!("{{\"items\": \"{}\"}}", "0123456789abcdef".repeat(64));
    let body = &body[..1024];
    let granted =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let refused = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
    let (mut buffer, mut filled) = (vec![0; 64 * 1024], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(Error::other("closed"));
        }
        filled += read;
        while let Some(end) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") {
            let answer = if bears_tokens(&buffer[..end]) { granted.as_str() } else { refused };
            stream.write_all(answer.as_bytes()).await?;
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
        }
    }
}

/// Whether both tokens are there: a proxy that forgets one does less than the others.
fn bears_tokens(head: &[u8]) -> bool {
    let has = |name: &[u8]| {
        head.split(|byte| *byte == b'\n')
            .any(|line| line.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name)))
    };
    has(b"authorization: Bearer ") && has(b"saas-token: eyJ")
}
