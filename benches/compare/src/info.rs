//! What Redis says of itself.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The number behind `field` in a section of `INFO`; none where Redis does not name it.
pub(crate) async fn number(redis: SocketAddr, section: &str, field: &str) -> Result<Option<f64>> {
    let mut redis = TcpStream::connect(redis).await?;
    redis.write_all(format!("INFO {section}\r\nQUIT\r\n").as_bytes()).await?;
    let mut text = String::new();
    redis.read_to_string(&mut text).await?;
    let digits = |value: &str| value.chars().take_while(char::is_ascii_digit).collect::<String>();
    Ok(text.lines().find_map(|line| digits(line.strip_prefix(field)?).parse().ok()))
}

/// Memory that Redis takes for what it keeps, in bytes.
pub(crate) async fn memory(redis: SocketAddr) -> Result<f64> {
    let used = number(redis, "memory", "used_memory:").await?;
    used.ok_or_else(|| Error::other("Redis does not say what it takes"))
}

/// A connection to Redis that reads a value of a record's size.
pub(crate) struct Probe {
    redis: TcpStream,
    piece: Vec<u8>,
}

impl Probe {
    /// Connects, and stores what is read.
    pub(crate) async fn open(redis: SocketAddr) -> Result<Self> {
        let redis = TcpStream::connect(redis).await?;
        redis.set_nodelay(true)?;
        let mut probe = Self { redis, piece: vec![0; 4096] };
        probe.ask(format!("SET probe {}\r\n", "x".repeat(900)).as_bytes()).await?;
        Ok(probe)
    }

    /// What one GET takes.
    pub(crate) async fn get(&mut self) -> Result<Duration> {
        self.ask(b"GET probe\r\n").await
    }

    async fn ask(&mut self, command: &[u8]) -> Result<Duration> {
        let sent = Instant::now();
        self.redis.write_all(command).await?;
        match self.redis.read(&mut self.piece).await? {
            0 => Err(Error::other("Redis closed the connection")),
            _ => Ok(sent.elapsed()),
        }
    }
}
