//! A world to test in: a simulator, a gateway in this process, a clock that can be moved, a Redis if wanted.
//! Every token the simulator ever issued is a canary: when a world ends, none may stand in a response, a log line, a
//! metric or a Redis dump.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use emporix_gateway::app::App;
use emporix_gateway::clock::ShiftedClock;
use emporix_gateway::config::{self, LogFormat, LogLevel, LogSection};
use emporix_gateway::telemetry;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// Everything the gateways of this process logged, at debug level.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn start_logging() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let section = LogSection { format: LogFormat::Json, level: LogLevel::Debug, access: true };
        telemetry::start_logging(&section, || LogWriter).unwrap();
    });
}

/// What was logged so far by every gateway of this process.
pub fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().unwrap()).into_owned()
}

/// A port nobody uses: below the range from which the system takes ports for outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Spread: test runs that start together have neighbouring process ids.
    let start = 15_000 + u16::try_from(u64::from(std::process::id()) * 7_919 % 12_000).unwrap();
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 5_000;
        // Asked by connecting: a listener opened to ask could be inherited by a process that starts meanwhile.
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(15), "it did not come to pass that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The simulator, as a process of its own.
pub struct Simulator {
    process: Child,
    pub address: SocketAddr,
    client: reqwest::Client,
}

impl Simulator {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_emporix-simulator"))
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("http://").unwrap().1.parse().unwrap();
        Self { process, address, client: client() }
    }

    async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.client.request(method, format!("http://{}/_simulator/{path}", self.address));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default()
    }

    /// How often `operation` was called.
    pub async fn calls(&self, operation: &str) -> u64 {
        self.admin(Method::GET, "calls", None).await[operation].as_u64().unwrap()
    }

    /// How often each refresh token of a customer was presented to be redeemed.
    pub async fn redeems(&self) -> Vec<u64> {
        serde_json::from_value(self.admin(Method::GET, "redeems", None).await).unwrap()
    }

    /// Forgets the calls and requests counted so far.
    pub async fn forget_calls(&self) {
        self.admin(Method::DELETE, "calls", None).await;
    }

    /// The requests as they came, newest last.
    pub async fn requests(&self) -> Vec<Value> {
        self.admin(Method::GET, "requests", None).await.as_array().unwrap().clone()
    }

    /// The newest API request.
    pub async fn last_api_request(&self) -> Received {
        let requests = self.requests().await;
        Received(requests.iter().rev().find(|request| request["operation"] == "api").expect("an API request").clone())
    }

    /// Every secret ever issued.
    pub async fn tokens(&self) -> Vec<String> {
        let tokens = self.admin(Method::GET, "tokens", None).await;
        tokens.as_array().unwrap().iter().map(|token| token.as_str().unwrap().to_owned()).collect()
    }

    /// Treats every present token of `kind` as expired.
    pub async fn expire(&self, kind: &str) {
        self.admin(Method::POST, "expire", Some(json!({"kind": kind}))).await;
    }

    /// Lets `operation` fail: `{"operation", "mode", "status", "delay_ms", "times", "body", "headers"}`.
    pub async fn fault(&self, fault: Value) {
        self.admin(Method::POST, "faults", Some(fault)).await;
    }

    /// Ends all faults.
    pub async fn heal(&self) {
        self.admin(Method::DELETE, "faults", None).await;
    }

    /// Changes settings.
    pub async fn set(&self, settings: Value) {
        self.admin(Method::PATCH, "settings", Some(settings)).await;
    }

    /// Delivers a signed event to `url`, and returns the status that was answered.
    pub async fn deliver(&self, kind: &str, payload: Value, secret: &str, url: &str) -> u64 {
        let event = json!({"type": kind, "payload": payload, "secret": secret, "url": url});
        self.admin(Method::POST, "events", Some(event)).await["answered"].as_u64().unwrap()
    }
}

/// Every secret that the simulator at `address` ever issued, asked without a runtime.
pub fn canaries(address: SocketAddr) -> Vec<String> {
    let answer = plain_get(address, "/_simulator/tokens");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    serde_json::from_str(&body).unwrap_or_default()
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request as the simulator received it.
#[derive(Debug)]
pub struct Received(pub Value);

impl Received {
    /// The method and target.
    pub fn line(&self) -> String {
        format!("{} {}", self.0["method"].as_str().unwrap(), self.0["target"].as_str().unwrap())
    }

    /// Every value of the header `name`.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let headers = self.0["headers"].as_array().unwrap().iter();
        let named = headers.filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
        named.map(|header| header[1].as_str().unwrap().to_owned()).collect()
    }
}

/// A certificate for localhost and its key.
pub struct Certificate(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    pub fn new() -> Self {
        Self(rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap())
    }

    /// One that ends when `year` begins.
    pub fn until(year: i32) -> Self {
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        Self(rcgen::CertifiedKey { cert: parameters.self_signed(&signing_key).unwrap(), signing_key })
    }

    /// Writes both into `folder` and returns their paths.
    pub fn write(&self, folder: &std::path::Path) -> [String; 2] {
        let files = [("certificate.pem", self.0.cert.pem()), ("key.pem", self.0.signing_key.serialize_pem())];
        files.map(|(name, pem)| {
            let file = folder.join(name);
            std::fs::write(&file, pem).unwrap();
            file.display().to_string()
        })
    }
}

/// A real Redis of the test's own.
pub struct Redis {
    process: Mutex<Child>,
    pub port: u16,
    tls_port: u16,
    folder: tempfile::TempDir,
}

impl Redis {
    pub async fn start() -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let redis = Self { process: Mutex::new(Self::spawn(port, &folder, &[])), port, tls_port: 0, folder };
        redis.wait().await;
        redis
    }

    fn spawn(port: u16, folder: &tempfile::TempDir, more: &[&str]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""])
            // Each write is in the system's hands before it is acknowledged: a crash of Redis alone loses none.
            .args(["--appendfsync", "no", "--dir", folder.path().to_str().unwrap()])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed")
    }

    /// One that speaks TLS beside plain text, and knows one user beside the default one.
    pub async fn start_with_tls(user: &str, password: &str) -> Self {
        let (port, tls_port, folder) = (free_port(), free_port(), tempfile::tempdir().unwrap());
        let [certificate, key] = Certificate::new().write(folder.path());
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", folder.path().to_str().unwrap(), "--tls-port", &tls_port.to_string()])
            .args(["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &certificate])
            .args([
                "--tls-auth-clients",
                "no",
                "--user",
                user,
                "on",
                &format!(">{password}"),
                "~eg:*",
                "&eg:*",
                "+@all",
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let redis = Self { process: Mutex::new(process), port, tls_port, folder };
        redis.wait().await;
        redis
    }

    /// Its TLS address.
    pub fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.tls_port)
    }

    /// The certificate that its TLS shows.
    pub fn certificate(&self) -> std::path::PathBuf {
        self.folder.path().join("certificate.pem")
    }

    async fn wait(&self) {
        let port = self.port;
        eventually("Redis answers", async || command(port, "PING").is_some_and(|answer| answer.starts_with("+PONG")))
            .await;
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Starts it again, with what it had stored.
    pub async fn restart(&self) {
        self.spawn_again(&[]);
        self.wait().await;
    }

    /// Starts it again with further arguments, and does not wait for it.
    pub fn spawn_again(&self, more: &[&str]) {
        *self.process.lock().unwrap() = Self::spawn(self.port, &self.folder, more);
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The raw answer to an inline command.
    pub fn command(&self, text: &str) -> String {
        command(self.port, text).expect("Redis answers")
    }

    /// The keys it holds.
    pub fn keys(&self) -> Vec<String> {
        self.command("KEYS *")
            .lines()
            .filter(|line| line.starts_with("eg:"))
            .map(|line| line.trim().to_owned())
            .collect()
    }

    /// Everything it ever wrote: the append-only files hold each value as it was sent.
    fn dump(&self) -> Vec<u8> {
        let mut dump = Vec::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => dump.extend(std::fs::read(path).unwrap_or_default()),
                }
            }
        }
        dump
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The raw answer of the Redis at `port` to an inline command; none when nobody is there.
pub fn command(port: u16, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
    stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut piece = [0; 65536];
    while let Ok(length) = stream.read(&mut piece) {
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..length]);
        if !text.starts_with("KEYS") && answer.ends_with(b"\r\n") {
            break;
        }
    }
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// The raw answer to a GET, asked without a runtime.
pub fn plain_get(address: SocketAddr, path: &str) -> String {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    String::from_utf8_lossy(&exchange().unwrap_or_default()).into_owned()
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).http1_only().build().unwrap()
}

/// A TCP proxy before a server: it can hold what passes back, as a slow network does.
pub struct SlowPath {
    pub port: u16,
    held: Arc<Held>,
}

#[derive(Default)]
struct Held {
    holding: AtomicBool,
    /// What a client says that lets the holding begin.
    trigger: Mutex<Option<Vec<u8>>>,
}

impl Held {
    fn hear(&self, said: &[u8]) {
        let mut trigger = self.trigger.lock().unwrap();
        if trigger.as_ref().is_some_and(|trigger| said.windows(trigger.len()).any(|window| window == trigger)) {
            *trigger = None;
            self.holding.store(true, Ordering::SeqCst);
        }
    }
}

impl SlowPath {
    pub async fn start(server: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let held = Arc::new(Held::default());
        let path = Self { port, held: held.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = tokio::net::TcpStream::connect(("127.0.0.1", server)).await else { continue };
                tokio::spawn(pass(client, server, held.clone()));
            }
        });
        path
    }

    /// Nothing comes back any more once a client has said `trigger`.
    pub fn hold_from(&self, trigger: &str) {
        *self.held.trigger.lock().unwrap() = Some(trigger.as_bytes().to_vec());
    }

    /// Whether something is held.
    pub fn is_holding(&self) -> bool {
        self.held.holding.load(Ordering::SeqCst)
    }

    /// From now on nothing comes back; connections stay open.
    pub fn hold(&self) {
        self.held.holding.store(true, Ordering::SeqCst);
    }

    /// Lets everything through again.
    pub fn let_go(&self) {
        self.held.holding.store(false, Ordering::SeqCst);
    }
}

async fn pass(client: tokio::net::TcpStream, server: tokio::net::TcpStream, held: Arc<Held>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn({
        let held = held.clone();
        async move {
            let mut piece = [0; 16_384];
            while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                held.hear(&piece[..length]);
                if to_server.write_all(&piece[..length]).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut piece = [0; 16_384];
    while let Ok(length @ 1..) = from_server.read(&mut piece).await {
        while held.holding.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if to_client.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// The configuration of every gateway under test.
pub fn configuration(simulator: SocketAddr, public: SocketAddr, admin: SocketAddr) -> String {
    // Shared schedulers: Pingora remembers the others by thread, and a thread of a gateway that was stopped may live
    // again in the next one.
    format!(
        "listen: {{public: '{public}', threads: 1, work_stealing: true, drain_timeout: 3s}}\n\
         admin: {{listen: '{admin}'}}\n\
         upstream: {{base_url: 'http://{simulator}'}}\n\
         identity: {{timeout: 2s}}\n\
         log: {{access: true}}\n\
         tenants:\n  acme:\n    client_id: storefront\n    origins: ['https://shop.example.com']\n    \
         saas_token: {{mode: hs256, secret: simulator-passphrase}}\n  \
         globex:\n    client_id: storefront\n    hosts: [globex.example.com]\n"
    )
}

/// A gateway that runs in this process.
pub struct Replica {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Replica {
    fn start(simulator: SocketAddr, overrides: &[(String, String)], clock: Arc<ShiftedClock>) -> Self {
        let [public, admin] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let text = configuration(simulator, public, admin);
        let environment =
            overrides.iter().map(|(key, value)| (format!("{}{key}", config::ENVIRONMENT_PREFIX), value.clone()));
        let config = config::parse("test.yaml", &text, environment).unwrap_or_else(|faults| panic!("{faults}"));
        let (started, starting) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let app = App::new(&config, clock).unwrap_or_else(|error| panic!("{error}"));
            started.send(app.stopper()).unwrap();
            app.run().unwrap_or_else(|error| panic!("{error}"));
        });
        let stop = starting.recv_timeout(Duration::from_secs(20)).expect("the gateway is built");
        Self { public, admin, stop, thread: Some(thread) }
    }

    async fn wait(&self) {
        let (public, admin) = (self.public, self.admin);
        eventually("the gateway listens", async || {
            [public, admin].iter().all(|address| TcpStream::connect(address).is_ok())
        })
        .await;
    }

    /// Tells it to stop, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Waits until it has stopped.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Its metrics, as Prometheus would read them.
    pub fn metrics(&self) -> String {
        plain_get(self.admin, "/metrics")
    }

    /// The value of one series, such as `gateway_auth_total{decision="session"}`.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&self.metrics(), series)
    }
}

/// The value of one series among `metrics`.
pub fn metric(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// How to make a world.
#[derive(Default)]
pub struct Builder {
    overrides: Vec<(String, String)>,
    redis: bool,
    replicas: usize,
}

impl Builder {
    /// Sets a configuration key, spelled as in the environment: `TENANTS__ACME__TRANSPORT`.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.overrides.push((key.to_owned(), value.into()));
        self
    }

    /// Keeps sessions in a real Redis.
    pub fn redis(mut self) -> Self {
        self.redis = true;
        self
    }

    /// Runs several gateways over one store.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    pub async fn start(mut self) -> World {
        start_logging();
        let simulator = Simulator::start();
        let redis = if self.redis { Some(Redis::start().await) } else { None };
        if let Some(redis) = &redis {
            self = self
                .set("STORE__KIND", "redis")
                .set("STORE__REDIS__URL", redis.url())
                .set("STORE__SEAL__ACTIVE", "test")
                .set(
                    "STORE__SEAL__KEYS",
                    r#"[{"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#,
                );
        }
        let clock = Arc::new(ShiftedClock::default());
        let start = |_| Replica::start(simulator.address, &self.overrides, clock.clone());
        let replicas: Vec<Replica> = (0..self.replicas.max(1)).map(start).collect();
        for replica in &replicas {
            replica.wait().await;
        }
        World {
            simulator,
            redis,
            replicas,
            clock,
            overrides: self.overrides,
            client: client(),
            seen: Mutex::default(),
            saas_is_exposed: false,
        }
    }
}

/// A simulator, gateways over one store, and a client.
pub struct World {
    pub simulator: Simulator,
    pub redis: Option<Redis>,
    pub replicas: Vec<Replica>,
    pub clock: Arc<ShiftedClock>,
    /// What the gateways are configured with, beside the addresses.
    pub overrides: Vec<(String, String)>,
    client: reqwest::Client,
    seen: Mutex<Vec<String>>,
    /// Set where a tenant exposes the JWT on purpose.
    pub saas_is_exposed: bool,
}

impl World {
    /// A gateway on the memory store.
    pub async fn new() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The (first) gateway.
    pub fn gateway(&self) -> &Replica {
        &self.replicas[0]
    }

    /// Starts a further gateway over the same store, with some keys set otherwise. Returns its number.
    pub async fn add_replica(&mut self, changes: &[(&str, &str)]) -> usize {
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let overrides: Vec<_> = self.overrides.iter().cloned().chain(changes).collect();
        let replica = Replica::start(self.simulator.address, &overrides, self.clock.clone());
        replica.wait().await;
        self.replicas.push(replica);
        self.replicas.len() - 1
    }

    /// The Redis of this world.
    pub fn redis(&self) -> &Redis {
        self.redis.as_ref().unwrap()
    }

    /// Begins a request of the first gateway: `"GET /cart/acme/carts"`.
    pub fn ask(&self, line: &str) -> Ask<'_> {
        self.ask_replica(0, line)
    }

    /// Begins a request of one gateway.
    pub fn ask_replica(&self, replica: usize, line: &str) -> Ask<'_> {
        self.ask_at(self.replicas[replica].public, line)
    }

    /// Begins a request of the gateway at `address`.
    pub fn ask_at(&self, address: SocketAddr, line: &str) -> Ask<'_> {
        let (method, target) = line.split_once(' ').unwrap();
        let url = format!("http://{address}{target}");
        Ask { world: self, request: self.client.request(method.parse().unwrap(), url) }
    }

    /// The same, from the address `source` of this machine.
    pub fn ask_from(&self, source: [u8; 4], address: SocketAddr, line: &str) -> Ask<'_> {
        let (method, target) = line.split_once(' ').unwrap();
        let client =
            reqwest::Client::builder().no_proxy().local_address(std::net::IpAddr::from(source)).build().unwrap();
        Ask { world: self, request: client.request(method.parse().unwrap(), format!("http://{address}{target}")) }
    }

    /// Begins a request of one gateway's admin listener.
    pub fn ask_admin(&self, replica: usize, line: &str) -> Ask<'_> {
        let (method, target) = line.split_once(' ').unwrap();
        let url = format!("http://{}{target}", self.replicas[replica].admin);
        Ask { world: self, request: self.client.request(method.parse().unwrap(), url) }
    }

    /// Sends raw bytes to the first gateway and returns everything that comes back until it closes or falls silent.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        self.raw_at(self.gateway().public, bytes).await
    }

    /// The same, sent to `address`.
    pub async fn raw_at(&self, address: SocketAddr, bytes: &[u8]) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(700), stream.read(&mut piece)).await {
            if length == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..length]);
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        self.seen.lock().unwrap().push(text.clone());
        text
    }

    /// The answer of an anonymous login in handle transport.
    pub async fn visitor(&self) -> Tokens {
        Tokens::of(&self.ask("GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront").send().await)
    }

    /// A customer signed in with the visitor's handle, in handle transport.
    pub async fn customer(&self) -> Customer {
        let visitor = self.visitor().await;
        let answer = self.login(&visitor.access, "john.doe@example.com").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        Customer {
            visitor,
            tokens: Tokens::of(&answer),
            saas: answer.json()["saas_token"].as_str().unwrap().to_owned(),
        }
    }

    /// Signs in with `password123`.
    pub async fn login(&self, access: &str, email: &str) -> Answer {
        let body = json!({"email": email, "password": "password123"});
        self.ask("POST /customer/acme/login").bearer(access).json(&body).send().await
    }

    /// A browser on the storefront's own origin, with its cookie jar.
    pub fn browser(&self) -> Browser<'_> {
        Browser { world: self, cookie: Mutex::default() }
    }

    /// Where one of `canaries` can be read.
    pub fn leaks(&self, canaries: &[String]) -> Vec<String> {
        let mut leaks = self.leaks_inside(canaries);
        if !self.saas_is_exposed {
            scan("a response", self.seen.lock().unwrap().concat().as_bytes(), canaries, &mut leaks);
        }
        leaks
    }

    /// The same, but for responses: what clients hold may stand there and nowhere else.
    pub fn leaks_inside(&self, canaries: &[String]) -> Vec<String> {
        let mut leaks = Vec::new();
        scan("the log", &LOG.lock().unwrap(), canaries, &mut leaks);
        for replica in &self.replicas {
            scan("the metrics", replica.metrics().as_bytes(), canaries, &mut leaks);
        }
        if let Some(redis) = &self.redis {
            scan("Redis", &redis.dump(), canaries, &mut leaks);
        }
        leaks
    }
}

/// Adds to `leaks` where one of `canaries` stands in `text`: one pass, however many they are.
pub fn scan(sink: &str, text: &[u8], canaries: &[String], leaks: &mut Vec<String>) {
    let tail = |bytes: &[u8]| bytes.last_chunk().copied().map(u64::from_be_bytes);
    let mut by_tail: HashMap<u64, Vec<&String>> = HashMap::new();
    // Most places in the text end like no canary at all, which is seen without hashing.
    let mut endings = vec![false; 1 << 16];
    for canary in canaries {
        if let Some(tail) = tail(canary.as_bytes()) {
            endings[usize::from(tail as u16)] = true;
            by_tail.entry(tail).or_default().push(canary);
        }
    }
    let mut found = BTreeSet::<&String>::new();
    let mut last = 0_u64;
    for (place, byte) in text.iter().enumerate() {
        last = last << 8 | u64::from(*byte);
        if endings[usize::from(last as u16)] {
            let ending = by_tail.get(&last).into_iter().flatten();
            found.extend(ending.copied().filter(|canary| text[..=place].ends_with(canary.as_bytes())));
        }
    }
    leaks.extend(found.into_iter().map(|canary| format!("{sink} holds {canary}")));
}

#[test]
fn a_leak_is_found_wherever_it_stands() {
    let canaries = ["canary-1", "canary-22", "short"].map(str::to_owned);
    for (text, expected) in [
        ("canary-1", 1),
        ("xxcanary-22", 1),
        ("canary-22 canary-1 canary-1", 2),
        ("short", 0),
        ("canary-2", 0),
        ("anary-22", 0),
    ] {
        let mut leaks = Vec::new();
        scan("it", text.as_bytes(), &canaries, &mut leaks);
        assert_eq!(leaks.len(), expected, "{text}: {leaks:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let canaries = canaries(self.simulator.address);
        let leaks = self.leaks(&canaries);
        for replica in &mut self.replicas {
            replica.stop();
        }
        if !std::thread::panicking() {
            assert!(leaks.is_empty(), "{leaks:#?}");
        }
    }
}

/// A request being made.
pub struct Ask<'w> {
    world: &'w World,
    request: reqwest::RequestBuilder,
}

impl Ask<'_> {
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.request = self.request.header(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn body(mut self, body: impl Into<reqwest::Body>) -> Self {
        self.request = self.request.body(body);
        self
    }

    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap()
    }

    pub async fn try_send(self) -> reqwest::Result<Answer> {
        let answer = self.request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = String::from_utf8_lossy(&answer.bytes().await?).into_owned();
        self.world.seen.lock().unwrap().push(format!("{headers:?}\n{text}\n"));
        Ok(Answer { status: status.as_u16(), headers, text })
    }

    /// The response with its body still to come.
    pub async fn stream(self) -> reqwest::Response {
        let answer = self.request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// The stable code of a problem.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        self.json()["code"].as_str().unwrap().to_owned()
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
    }

    /// The cookies that are set.
    pub fn cookies(&self) -> Vec<String> {
        self.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

/// What a token answer gave.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
    pub session_id: String,
}

impl Tokens {
    pub fn of(answer: &Answer) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text);
        let body = answer.json();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let session_id = if body["sessionId"].is_null() { text("session_id") } else { text("sessionId") };
        Self { access: text("access_token"), refresh: text("refresh_token"), session_id }
    }
}

/// A customer in handle transport.
#[derive(Debug)]
pub struct Customer {
    pub visitor: Tokens,
    pub tokens: Tokens,
    pub saas: String,
}

/// A browser: says where its requests come from, and keeps our cookie.
pub struct Browser<'w> {
    world: &'w World,
    pub cookie: Mutex<Option<String>>,
}

impl Browser<'_> {
    /// Sends a request as a page of the storefront's own origin would.
    pub async fn send(&self, line: &str, shape: impl FnOnce(Ask<'_>) -> Ask<'_>) -> Answer {
        let mut ask = shape(self.world.ask(line).header("sec-fetch-site", "same-origin"));
        let cookie = self.cookie.lock().unwrap().clone();
        if let Some(cookie) = cookie {
            ask = ask.header("cookie", &cookie);
        }
        let answer = ask.send().await;
        for set in answer.cookies() {
            let pair = set.split(';').next().unwrap().to_owned();
            *self.cookie.lock().unwrap() = if pair.ends_with('=') { None } else { Some(pair) };
        }
        answer
    }

    /// Signs John in.
    pub async fn login(&self) -> Answer {
        let body = json!({"email": "john.doe@example.com", "password": "password123"});
        self.send("POST /customer/acme/login", |ask| ask.json(&body)).await
    }
}
