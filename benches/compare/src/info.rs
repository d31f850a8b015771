//! What Redis says of itself.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::statistics::{median, microseconds};

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

/// What one GET of a record's size takes at the median, in microseconds.
pub(crate) async fn get_time(redis: SocketAddr) -> Result<f64> {
    let mut redis = TcpStream::connect(redis).await?;
    redis.set_nodelay(true)?;
    let mut piece = vec![0; 64 * 1024];
    redis.write_all(format!("SET probe {}\r\n", "x".repeat(900)).as_bytes()).await?;
    let _ = redis.read(&mut piece).await?;
    let mut times = Vec::new();
    for _ in 0..1_000 {
        let sent = Instant::now();
        redis.write_all(b"GET probe\r\n").await?;
        let _ = redis.read(&mut piece).await?;
        times.push(sent.elapsed());
    }
    Ok(median(&microseconds(&times)))
}
