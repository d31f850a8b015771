//! The load: keep-alive connections that send requests and read whole answers.
//! Anything but a 200 is an error of the measurement, and ends it.

use std::cell::{Cell, RefCell};
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One request as it goes over the wire.
pub(crate) type Request = Vec<u8>;

/// A request for `path` with these header lines.
pub(crate) fn request(path: &str, headers: &[(String, String)]) -> Request {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n{lines}\r\n").into_bytes()
}

/// A login of the simulator's customer, with the visitor's token.
pub(crate) fn login(visitor: &str) -> Request {
    const WHO: &str = r#"{"email":"john.doe@example.com","password":"password123"}"#;
    let head = format!("POST /customer/acme/login HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {visitor}\r\n");
    format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{WHO}", WHO.len()).into_bytes()
}

/// A connection that is kept.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
    exchanges: usize,
}

impl Connection {
    /// Connects to `address`.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream, buffer: vec![0; 4096], exchanges: 0 })
    }

    /// The text member `name` of the JSON that was answered last.
    pub(crate) fn member(&self, name: &str) -> Option<String> {
        let end = memchr::memmem::find(&self.buffer, b"\r\n\r\n")? + 4;
        let length = whole_length(&self.buffer).ok()??;
        let body: serde_json::Value = serde_json::from_slice(self.buffer.get(end..length)?).ok()?;
        Some(body.get(name)?.as_str()?.to_owned())
    }

    /// Sends `request` and reads the answer to its end. Only a 200 will do.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<()> {
        // The gateway closes a connection after 10,000 requests.
        const MOST_EXCHANGES: usize = 9_000;
        self.exchanges += 1;
        if self.exchanges.is_multiple_of(MOST_EXCHANGES) {
            self.stream = TcpStream::connect(self.address).await?;
            self.stream.set_nodelay(true)?;
        }
        self.stream.write_all(request).await?;
        let (mut filled, mut whole) = (0, None);
        while whole.is_none_or(|whole| filled < whole) {
            if filled == self.buffer.len() {
                self.buffer.resize(2 * filled, 0);
            }
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                return Err(Error::other("the connection was closed"));
            }
            filled += read;
            if whole.is_none() {
                whole = whole_length(&self.buffer[..filled])?;
            }
        }
        if self.buffer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        let answer: String = String::from_utf8_lossy(&self.buffer[..filled]).chars().take(300).collect();
        Err(Error::other(format!("not a 200: {answer}")))
    }
}

/// The length of an answer with its body, once its head is there.
fn whole_length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Ok(None) };
    let is_length = |line: &&[u8]| line.get(..15).is_some_and(|name| name.eq_ignore_ascii_case(b"content-length:"));
    let line = answer[..end].split(|byte| *byte == b'\n').find(is_length);
    let digits = line.and_then(|line| std::str::from_utf8(&line[15..]).ok()).map(str::trim);
    let length: Option<usize> = digits.and_then(|digits| digits.parse().ok());
    length.map(|length| Some(end + 4 + length)).ok_or_else(|| Error::other("an answer without a length"))
}

/// Sends `count` requests over `connections` connections, each as soon as the one before is answered; request `i` is
/// `requests[i % requests.len()]`. Returns each answer's time.
pub(crate) async fn saturate(
    address: SocketAddr,
    requests: &[Request],
    connections: usize,
    count: usize,
) -> Result<Vec<Duration>> {
    let next = Rc::new(Cell::new(0));
    let workers = (0..connections).map(|_| {
        let next = next.clone();
        async move {
            let mut connection = Connection::open(address).await?;
            let mut times = Vec::with_capacity(count / connections + 1);
            loop {
                let index = next.replace(next.get() + 1);
                if index >= count {
                    return Ok::<_, Error>(times);
                }
                let sent = Instant::now();
                connection.exchange(&requests[index % requests.len()]).await?;
                times.push(sent.elapsed());
            }
        }
    });
    Ok(try_join_all(workers).await?.concat())
}

/// Sends `rate` requests a second for `seconds`, whether those before are answered or not, and returns each answer's
/// time from when its request was due: what waits for a free connection waits in the figure.
pub(crate) async fn open_loop(
    address: SocketAddr,
    request: &Request,
    rate: u32,
    seconds: u32,
) -> Result<Vec<Duration>> {
    const CONNECTIONS: usize = 32;
    let opened = try_join_all((0..CONNECTIONS).map(|_| Connection::open(address))).await?;
    let idle = Rc::new(RefCell::new(opened));
    let times = Rc::new(RefCell::new(Vec::new()));
    let failed = Rc::new(Cell::new(None));
    let period = Duration::from_secs(1) / rate;
    let (timer, begun) = (ticking(period)?, Instant::now());
    let (mut due, total) = (0, rate * seconds);
    let mut waiting = std::collections::VecDeque::new();
    while due < total || !waiting.is_empty() || idle.borrow().len() < CONNECTIONS {
        if due < total {
            let mut ticks = [0; 8];
            let mut ready = timer.readable().await?;
            if ready.try_io(|timer| rustix::io::read(timer, &mut ticks).map_err(Into::into)).is_err() {
                continue;
            }
            let until = u32::try_from(u64::from_ne_bytes(ticks)).unwrap_or(total).min(total - due);
            waiting.extend((1..=until).map(|tick| begun + (due + tick) * period));
            due += until;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while !waiting.is_empty() {
            let Some(mut connection) = idle.borrow_mut().pop() else { break };
            let Some(at) = waiting.pop_front() else { break };
            let (idle, times, failed, request) = (idle.clone(), times.clone(), failed.clone(), request.clone());
            tokio::task::spawn_local(async move {
                match connection.exchange(&request).await {
                    Ok(()) => times.borrow_mut().push(at.elapsed()),
                    Err(error) => failed.set(Some(error)),
                }
                idle.borrow_mut().push(connection);
            });
        }
    }
    match failed.take() {
        Some(error) => Err(error),
        None => Ok(times.take()),
    }
}

/// A timer of the kernel: those of the runtime tick in whole milliseconds.
#[expect(deprecated, reason = "its successor is unsafe to call; a descriptor that is owned is not closed under it")]
fn ticking(period: Duration) -> Result<AsyncFd<std::os::fd::OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    let period = Timespec { tv_sec: 0, tv_nsec: period.as_nanos().try_into().map_err(Error::other)? };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: period, it_value: period })?;
    AsyncFd::new(timer)
}

/// Connections that said one request and idle.
pub(crate) async fn hold(address: SocketAddr, request: &Request, connections: usize) -> Result<Vec<Connection>> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut connection = Connection::open(address).await?;
        connection.exchange(request).await?;
        connection.buffer = Vec::new();
        held.push(connection);
    }
    Ok(held)
}
