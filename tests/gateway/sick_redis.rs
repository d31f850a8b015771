//! A Redis that can be made ill: what each illness is, how it begins and how it ends.
//! Replica 0 talks to Redis directly, to set things up; the others reach it over a path that can fall silent.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, Once};
use std::time::Duration;

use crate::world::{SlowPath, World, command, eventually};

/// The replica whose hot cache is warmed.
pub const HOT: usize = 1;
/// The replica that has seen no session yet.
pub const COLD: usize = 2;

/// What opens the operators' API of every replica.
pub const ADMIN_TOKEN: &str = "operators-only-0123456789";

/// What Redis can suffer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Illness {
    Gone,
    Silent,
    Loading,
    Locked,
    ReadOnly,
    Full,
    Truncated,
    FutureFormat,
    UnknownKey,
    Flushed,
    Evicted,
}

impl Illness {
    /// Whether Redis answers nothing that could be used: then the breaker opens.
    pub fn is_away(self) -> bool {
        matches!(self, Self::Gone | Self::Silent | Self::Loading | Self::Locked)
    }

    /// Whether it ends without anybody's help to the sessions.
    pub fn ends(self) -> bool {
        self.is_away() || matches!(self, Self::ReadOnly | Self::Full)
    }
}

/// Panics outside the tests themselves, of any thread of this process.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Sees panics from now on.
pub struct PanicWatch(usize);

/// Begins to watch for panics.
pub fn watch_for_panics() -> PanicWatch {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let at = panic.location().map_or("", |location| location.file());
            if !at.starts_with("tests/") {
                PANICS.lock().unwrap().push(panic.to_string());
            }
            before(panic);
        }));
    });
    PanicWatch(PANICS.lock().unwrap().len())
}

impl PanicWatch {
    /// Fails if the gateway, or anything in it, panicked meanwhile.
    pub fn none_since(&self) {
        let panics = PANICS.lock().unwrap()[self.0..].to_vec();
        assert!(panics.is_empty(), "{panics:#?}");
    }
}

/// Gateways over a Redis that can fall ill.
pub struct Sick {
    pub world: World,
    path: SlowPath,
    /// A connection that was let in before Redis was locked.
    console: Mutex<TcpStream>,
}

impl Sick {
    pub async fn start() -> Self {
        // Patient, so that a busy machine is not taken for an illness.
        let builder = World::builder().redis().set("STORE__REDIS__RESPONSE_TIMEOUT", "600ms");
        let mut world = builder.set("ADMIN__TOKEN", ADMIN_TOKEN).start().await;
        is_ready(&world, 0).await;
        let path = SlowPath::start(world.redis().port).await;
        let url = format!("redis://127.0.0.1:{}", path.port);
        for expected in [HOT, COLD] {
            assert_eq!(world.add_replica(&[("STORE__REDIS__URL", &url)]).await, expected);
            is_ready(&world, expected).await;
        }
        let console = console(world.redis().port);
        Self { world, path, console }
    }

    /// Says `text` on the console.
    pub fn command(&self, text: &str) -> String {
        let mut console = self.console.lock().unwrap();
        console.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let (mut answer, mut piece) = (Vec::new(), [0; 65_536]);
        while !answer.ends_with(b"\r\n") {
            let length = console.read(&mut piece).unwrap();
            assert_ne!(length, 0, "the console is closed");
            answer.extend_from_slice(&piece[..length]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// How often this happened to the breaker of `replica`.
    pub fn breaker(&self, replica: usize, event: &str) -> f64 {
        let series = format!(r#"gateway_breaker_events_total{{dependency="store",event="{event}"}}"#);
        self.world.replicas[replica].metric(&series)
    }

    /// Lets Redis fall ill, and waits until that shows.
    pub async fn fall(&self, illness: Illness) {
        let redis = self.world.redis();
        match illness {
            Illness::Gone => redis.kill(),
            Illness::Silent => self.path.hold(),
            Illness::Loading => self.load_slowly().await,
            Illness::Locked => {
                self.agree("CONFIG SET requirepass another-password");
                self.command("CLIENT KILL TYPE normal");
                self.command("CLIENT KILL TYPE pubsub");
            }
            Illness::ReadOnly => self.agree("REPLICAOF 127.0.0.1 1"),
            Illness::Full => self.agree("CONFIG SET maxmemory 1"),
            Illness::Truncated => self.rewrite_records("v:sub(1, 60)"),
            Illness::FutureFormat => self.rewrite_records("v:sub(1, 8) .. string.char(99) .. v:sub(10)"),
            Illness::UnknownKey => self.rewrite_records("v:sub(1, 10) .. 'lost' .. v:sub(15)"),
            Illness::Flushed => self.agree("FLUSHALL"),
            Illness::Evicted => {
                self.agree("CONFIG SET maxmemory-policy allkeys-random");
                self.agree("CONFIG SET maxmemory 1");
                eventually("everything is evicted", async || redis.keys().is_empty()).await;
                self.agree("CONFIG SET maxmemory 0");
            }
        }
        if illness.is_away() {
            for replica in [HOT, COLD] {
                eventually("its breaker opens", async || self.breaker(replica, "opened") >= 1.0).await;
            }
        }
    }

    /// Ends the illness, where it is one that ends.
    pub async fn recover(&self, illness: Illness) {
        let redis = self.world.redis();
        match illness {
            Illness::Gone => redis.restart().await,
            Illness::Silent => self.path.let_go(),
            Illness::Loading => {
                let hurry = || command(redis.port, "CONFIG SET key-load-delay 0");
                eventually("it loads faster", async || hurry().is_some_and(|answer| answer.starts_with("+OK"))).await;
            }
            Illness::Locked => self.agree("CONFIG SET requirepass \"\""),
            Illness::ReadOnly => self.agree("REPLICAOF NO ONE"),
            Illness::Full => self.agree("CONFIG SET maxmemory 0"),
            Illness::Truncated | Illness::FutureFormat | Illness::UnknownKey | Illness::Flushed | Illness::Evicted => {}
        }
    }

    fn agree(&self, text: &str) {
        assert!(self.command(text).starts_with("+OK"), "{text}");
    }

    /// Starts it anew with so much to load, so slowly, that it does not end by itself.
    async fn load_slowly(&self) {
        let redis = self.world.redis();
        self.command("EVAL \"for i = 1, 400 do redis.call('SET', 'fill:' .. i, string.rep('x', 1100)) end\" 0");
        // While it loads, it answers once for each kilobyte that it has read.
        self.agree("CONFIG SET rdbcompression no");
        self.command("BGREWRITEAOF");
        eventually("the file is rewritten", async || {
            let told = self.command("INFO persistence");
            told.contains("aof_rewrite_in_progress:0") && told.contains("aof_rewrite_scheduled:0")
        })
        .await;
        redis.kill();
        redis.spawn_again(&["--key-load-delay", "40000", "--loading-process-events-interval-bytes", "1024"]);
        let is_loading = || command(redis.port, "PING").is_some_and(|answer| answer.starts_with("-LOADING"));
        eventually("it is loading", async || is_loading()).await;
        eventually("the gateways have tried to listen to it", async || {
            let told = command(redis.port, "INFO commandstats").unwrap_or_default();
            let calls = told.split_once("cmdstat_subscribe:calls=").and_then(|(_, rest)| rest.split_once(','));
            calls.is_some_and(|(calls, _)| calls.parse::<u32>().unwrap() >= 3)
        })
        .await;
    }

    /// Replaces each record `v` by the value of `expression`.
    fn rewrite_records(&self, expression: &str) {
        let rewritten = self.command(&format!(
            "EVAL \"local n = 0 for _, k in ipairs(redis.call('KEYS', 'eg:*:session')) do \
             local v = redis.call('GET', k) redis.call('SET', k, {expression}, 'KEEPTTL') n = n + 1 end return n\" 0"
        ));
        assert!(rewritten.starts_with(':') && !rewritten.starts_with(":0"), "{rewritten}");
    }
}

async fn is_ready(world: &World, replica: usize) {
    eventually("it is ready", async || world.ask_admin(replica, "GET /readyz").send().await.status == 200).await;
}

fn console(port: u16) -> Mutex<TcpStream> {
    let console = TcpStream::connect(("127.0.0.1", port)).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    Mutex::new(console)
}
