//! A TCP proxy that listens in: what a program says to who stands behind it, byte for byte.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// It, and what it heard.
pub struct Tap {
    pub port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap = Self { port: listener.local_addr().unwrap().port(), heard: Arc::default() };
        let heard = tap.heard.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                tokio::spawn(pass(client, server, heard.clone()));
            }
        });
        tap
    }

    /// The heads that came since the last call, without their ends.
    pub fn heads(&self) -> Vec<Vec<u8>> {
        let mut rest = std::mem::take(&mut *self.heard.lock().unwrap());
        let mut heads = Vec::new();
        while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let next = rest.split_off(end + 4);
            rest.truncate(end);
            heads.push(std::mem::replace(&mut rest, next));
        }
        assert!(rest.is_empty(), "bodies are not listened to");
        heads
    }
}

async fn pass(client: TcpStream, server: TcpStream, heard: Arc<Mutex<Vec<u8>>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut piece = [0; 16_384];
    while let Ok(length @ 1..) = from_client.read(&mut piece).await {
        heard.lock().unwrap().extend_from_slice(&piece[..length]);
        if to_server.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// The target in a head's first line.
pub fn target(head: &[u8]) -> &[u8] {
    let line = head.split(|byte| *byte == b'\r').next().unwrap();
    let start = line.iter().position(|byte| *byte == b' ').unwrap() + 1;
    let end = line.iter().rposition(|byte| *byte == b' ').unwrap();
    &line[start..end]
}

/// A field of a head.
pub fn field<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find_map(|line| {
        let (known, value) = line.split_at_checked(name.len() + 1)?;
        known.eq_ignore_ascii_case(format!("{name}:").as_bytes()).then(|| value.trim_ascii())
    })
}
