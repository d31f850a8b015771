//! A Redis that answers nonsense: wrong types, lengths that are lies, broken lines, errors that quote secrets.
//! Clients see that it cannot be known, within a second; nothing panics, swells or is said on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::sick_redis::watch_for_panics;
use crate::steps::ANONYMOUS_LOGIN;
use crate::world::{Answer, World, eventually, logged};

const ME: &str = "GET /customer/acme/me";

/// What no client and no log may see.
const SECRETS: [&str; 2] = ["canary-in-the-detail", "CANARYINTHECODE"];

/// Nonsense in the place of an answer, and whether the connection is closed after it.
const NONSENSE: [(&[u8], bool); 29] = [
    (b":42\r\n", false),
    (b"+OK\r\n", false),
    (b"+stored-or-so\r\n", false),
    (b"+\xff\xfe\r\n", false),
    (b"$0\r\n\r\n", false),
    (b"$4\r\n\xff\xfe\xfd\xfc\r\n", false),
    (b"#t\r\n", false),
    (b",1.5\r\n", false),
    (b",nan\r\n", false),
    (b"(3492890328409238509324850943850943825024385\r\n", false),
    (b"*0\r\n", false),
    (b"*2\r\n:1\r\n$3\r\nabc\r\n", false),
    (b"%1\r\n+a\r\n:1\r\n", false),
    (b"~1\r\n:1\r\n", false),
    (b">2\r\n+unheard\r\n:1\r\n", false),
    (b"=15\r\ntxt:Some string\r\n", false),
    (b"=1\r\nx\r\n", false),
    (b"!5\r\nERR x\r\n", false),
    (b"-\r\n", false),
    (b"-ERR canary-in-the-detail\r\n", false),
    (b"-CANARYINTHECODE canary-in-the-detail\r\n", false),
    (b"-WRONGTYPE canary-in-the-detail\r\n", false),
    (b"-MOVED 1 canary-in-the-detail:1\r\n", false),
    (b"*1000000000\r\n", false),
    (b"%1000000000\r\n", false),
    (b"$99999999999999999999\r\n", false),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", false),
    (b"$100\r\nonly so much", true),
    (b"", true),
];

async fn timed(answer: impl Future<Output = Answer>, what: &str) -> Answer {
    let asked = Instant::now();
    let answer = answer.await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{what}: {:?}", asked.elapsed());
    answer
}

/// That `answer` says no more than that the store cannot tell.
fn says_nothing(answer: &Answer, what: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"), "{what}: {}", answer.text);
    assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{what}");
    assert_eq!(answer.cookies(), Vec::<String>::new(), "{what}: the cookie is touched");
    for secret in SECRETS {
        assert!(!answer.text.contains(secret), "{what}: {}", answer.text);
    }
}

/// A gateway behind a Redis that lies, and the handle of a customer of its store.
async fn lied_to() -> (World, Liar, usize, String) {
    let mut world = World::builder().redis().start().await;
    let handle = world.customer().await.tokens.access;
    let liar = Liar::before(world.redis().port).await;
    let url = format!("redis://127.0.0.1:{}", liar.port);
    let behind = world.add_replica(&[("STORE__REDIS__URL", &url)]).await;
    is_up(&world, behind).await;
    (world, liar, behind, handle)
}

async fn is_up(world: &World, replica: usize) {
    eventually("it is up", async || world.ask_admin(replica, "GET /readyz").send().await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_the_place_of_a_record_is_no_missing_session() {
    let panics = watch_for_panics();
    let (world, liar, behind, handle) = lied_to().await;
    for (nonsense, closes) in NONSENSE {
        let what = String::from_utf8_lossy(nonsense);
        liar.lie("GET", nonsense, closes);
        for _ in 0..2 {
            let answer = world.ask_replica(behind, ME).bearer(&handle).send();
            says_nothing(&timed(answer, &what).await, &what);
        }
    }
    liar.tell_the_truth();
    heals(&world, behind, &handle).await;
    panics.none_since();
    no_secret_is_logged();
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_in_answer_to_a_write_is_no_end_of_the_session() {
    let panics = watch_for_panics();
    let (world, liar, behind, handle) = lied_to().await;
    let customer = world.customer().await;
    let refresh = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", customer.tokens.refresh);
    for (nonsense, closes) in NONSENSE {
        let what = String::from_utf8_lossy(nonsense);
        liar.lie("EVALSHA", nonsense, closes);
        let anonymous = world.ask_replica(behind, ANONYMOUS_LOGIN).send();
        says_nothing(&timed(anonymous, &what).await, &what);
        let refresh = world.ask_replica(behind, &refresh).bearer(&customer.tokens.access).send();
        says_nothing(&timed(refresh, &what).await, &what);
    }
    liar.tell_the_truth();
    heals(&world, behind, &handle).await;
    panics.none_since();
    no_secret_is_logged();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_an_end_are_given_up() {
    let panics = watch_for_panics();
    let (world, liar, behind, handle) = lied_to().await;
    let before = resident_bytes();
    let nested = b"*1\r\n".repeat(100_000);
    let dripping = [&b"$1000000000\r\n"[..], &[b'x'; 100_000]].concat();
    for endless in [nested, dripping] {
        liar.lie("GET", &endless, false);
        for _ in 0..8 {
            let answer = world.ask_replica(behind, ME).bearer(&handle).send();
            says_nothing(&timed(answer, "an endless answer").await, "an endless answer");
        }
    }
    // Other tests of this process take memory as well; the lengths that are announced are far beyond theirs.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 400_000_000, "{grown} bytes for announcements alone");
    liar.tell_the_truth();
    heals(&world, behind, &handle).await;
    panics.none_since();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_greets_with_nonsense_is_away() {
    let panics = watch_for_panics();
    let (world, liar, behind, handle) = lied_to().await;
    for greeting in ["HELLO", "SUBSCRIBE", "PUBLISH"] {
        for (nonsense, closes) in
            [(&b"*1000000000\r\n"[..], false), (b"-ERR canary-in-the-detail\r\n", false), (b"", true)]
        {
            liar.lie(greeting, nonsense, closes);
            liar.hang_up();
            eventually("it is known to be away", async || {
                let answer = world.ask_replica(behind, ME).bearer(&handle).send();
                let answer = timed(answer, greeting).await;
                assert_ne!(answer.status, 401, "{}", answer.text);
                world.ask_admin(behind, "GET /readyz").send().await.status == 503
            })
            .await;
            liar.tell_the_truth();
            is_up(&world, behind).await;
        }
    }
    heals(&world, behind, &handle).await;
    panics.none_since();
}

/// The memory that this process holds.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

async fn heals(world: &World, replica: usize, handle: &str) {
    eventually("it heals", async || {
        let answer = world.ask_replica(replica, ME).bearer(handle).send().await;
        assert_ne!(answer.status, 401, "{}", answer.text);
        answer.status == 200
    })
    .await;
}

fn no_secret_is_logged() {
    let log = logged();
    for secret in SECRETS {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
}

/// Answers one command with nonsense, and lets a real Redis answer everything else.
struct Liar {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
    hang_up: Arc<tokio::sync::Notify>,
}

#[derive(Clone)]
struct Lie {
    command: &'static str,
    answer: Vec<u8>,
    closes: bool,
}

impl Liar {
    async fn before(redis: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let liar = Self { port: listener.local_addr().unwrap().port(), lie: Arc::default(), hang_up: Arc::default() };
        let (lie, hang_up) = (liar.lie.clone(), liar.hang_up.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (lie, hang_up) = (lie.clone(), hang_up.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        // A connection that is gone has heard enough.
                        _ = talk(client, redis, &lie) => {}
                        () = hang_up.notified() => {}
                    }
                });
            }
        });
        liar
    }

    fn lie(&self, command: &'static str, answer: &[u8], closes: bool) {
        *self.lie.lock().unwrap() = Some(Lie { command, answer: answer.to_vec(), closes });
    }

    fn tell_the_truth(&self) {
        *self.lie.lock().unwrap() = None;
    }

    /// Closes all connections.
    fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }
}

async fn talk(client: TcpStream, redis: u16, lie: &Mutex<Option<Lie>>) -> std::io::Result<()> {
    let (from_client, to_client) = client.into_split();
    let (mut from_redis, mut to_redis) = TcpStream::connect(("127.0.0.1", redis)).await?.into_split();
    let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
    let back = to_client.clone();
    let truth = tokio::spawn(async move {
        let mut piece = [0; 16_384];
        while let Ok(length @ 1..) = from_redis.read(&mut piece).await {
            if back.lock().await.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    });
    let _truth = AbortOnDrop(truth);
    let mut from_client = BufReader::new(from_client);
    loop {
        let (name, command) = read_command(&mut from_client).await?;
        let lie = lie.lock().unwrap().clone().filter(|lie| lie.command == name);
        match lie {
            None => to_redis.write_all(&command).await?,
            Some(Lie { answer, closes, .. }) => {
                to_client.lock().await.write_all(&answer).await?;
                if closes {
                    return Ok(());
                }
            }
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One command as it came, and its name.
async fn read_command(client: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<(String, Vec<u8>)> {
    let mut command = Vec::new();
    let parts = read_number(client, &mut command).await?;
    let mut name = String::new();
    for part in 0..parts {
        let length = read_number(client, &mut command).await?;
        let start = command.len();
        command.resize(start + length + 2, 0);
        client.read_exact(&mut command[start..]).await?;
        if part == 0 {
            name = String::from_utf8_lossy(&command[start..start + length]).to_uppercase();
        }
    }
    Ok((name, command))
}

/// The number of a line such as `*3` or `$5`, which is added to `command`.
async fn read_number(client: &mut (impl AsyncBufReadExt + Unpin), command: &mut Vec<u8>) -> std::io::Result<usize> {
    let start = command.len();
    if client.read_until(b'\n', command).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let line = String::from_utf8_lossy(&command[start..]);
    Ok(line.trim()[1..].parse().unwrap())
}
