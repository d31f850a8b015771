//! The programs of a comparison: started on loopback, ended with the value that stands for them.

use std::fs;
use std::io::{Error, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use emporix_gateway::config::{self, Config};
use tempfile::TempDir;

use crate::meter::Counting;
use crate::mint::{self, Minted, PASSPHRASE, Part};
use crate::peers::Certificate;

/// A program that listens.
pub(crate) struct Program {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

impl Program {
    /// Starts `command` and waits until something listens at `port`.
    pub(crate) fn start(mut command: Command, port: u16, folder: TempDir) -> Result<Self> {
        let log = fs::File::create(folder.path().join("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.map_err(|error| Error::other(format!("{}: {error}", command.get_program().display())))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut program = Self { child, address, folder };
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > until || program.child.try_wait()?.is_some() {
                let log = fs::read_to_string(program.folder.path().join("log")).unwrap_or_default();
                return Err(Error::other(format!("{} does not listen: {log}", command.get_program().display())));
            }
            pause();
        }
        Ok(program)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps what it writes.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            pause();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for another process: there is nothing to await.
#[expect(clippy::disallowed_methods, reason = "other processes begin and end in their own time")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

/// Keeps the cores awake: work that gives way to all other work. A virtual core that slept takes longer to come back than
/// anything that is measured here.
pub(crate) struct Awake(Vec<Child>);

impl Awake {
    /// One for each core.
    pub(crate) fn keep() -> Result<Self> {
        let idles = || Command::new("chrt").args(["--idle", "0", "sh", "-c", "while :; do :; done"]).spawn();
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self((0..cores).map(|_| idles()).collect::<Result<_>>()?))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that is free now.
pub(crate) fn free_port() -> Result<u16> {
    // Below those that the system gives to connections: one of these would be taken again before a program listens.
    const FIRST: u16 = 10_000;
    const MOST: u16 = 5_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(MOST)) as u16;
    let ports = (0..MOST).map(|_| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % MOST) % MOST);
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().ok_or_else(|| Error::other("no port is free"))
}

/// What every comparison stands on: the API, and a Redis that keeps nothing.
pub(crate) struct Stage {
    pub(crate) api: Program,
    pub(crate) redis: Program,
    /// Where the programs lie that are measured.
    programs: PathBuf,
    /// The one core that they run on, where it matters.
    pub(crate) core: Option<usize>,
}

/// How a gateway is set up, beside what every comparison needs.
#[derive(Default)]
pub(crate) struct Setting<'s> {
    /// Proxy threads; 0 means one.
    pub(crate) threads: usize,
    /// Certificate of its listener.
    pub(crate) tls: Option<&'s Certificate>,
    /// Whether a session is served for an hour before it is read again.
    pub(crate) always_fresh: bool,
    /// What stands behind it; where nothing is named, the stage's API.
    pub(crate) upstream: Option<SocketAddr>,
    /// YAML of further sections.
    pub(crate) further: String,
}

impl Stage {
    /// Starts the API and Redis.
    pub(crate) fn set(programs: PathBuf) -> Result<Self> {
        let (port, api) = (free_port()?, TempDir::new()?);
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["api", &port.to_string()]);
        let api = Program::start(command, port, api)?;
        let (port, folder) = (free_port()?, TempDir::new()?);
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.current_dir(folder.path());
        Ok(Self { api, redis: Program::start(command, port, folder)?, programs, core: None })
    }

    /// The stock Pingora proxy.
    pub(crate) fn floor(&self, threads: usize, counting: Option<Counting>) -> Result<Program> {
        let (port, folder) = (free_port()?, TempDir::new()?);
        let mut command = self.command("floor", counting, folder.path());
        command.args([port.to_string(), self.api.address.to_string(), threads.to_string()]);
        Program::start(command, port, folder)
    }

    /// Emporix, as the simulator plays it.
    pub(crate) fn simulator(&self) -> Result<Program> {
        let (port, folder) = (free_port()?, TempDir::new()?);
        let mut command = self.command("emporix-simulator", None, folder.path());
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        Program::start(command, port, folder)
    }

    /// A gateway.
    pub(crate) fn gateway(&self, setting: &Setting<'_>, counting: Option<Counting>) -> Result<Program> {
        let (port, folder) = (free_port()?, TempDir::new()?);
        let file = folder.path().join("gateway.yaml");
        fs::write(&file, self.configuration(port, setting)?)?;
        let mut command = self.command("emporix-gateway", counting, folder.path());
        command.args(["serve", "--config"]).arg(file);
        Program::start(command, port, folder)
    }

    /// Puts sessions where every gateway of this stage finds them.
    pub(crate) async fn save(&self, sessions: &[Minted]) -> Result<()> {
        self.save_parts(sessions, &[Part::Record, Part::Alias]).await
    }

    /// Puts these parts of sessions there.
    pub(crate) async fn save_parts(&self, sessions: &[Minted], parts: &[Part]) -> Result<()> {
        let text = self.configuration(free_port()?, &Setting::default())?;
        let config: Config = config::parse("bench.yaml", &text, std::iter::empty())
            .map_err(|faults| Error::other(faults.to_string()))?;
        mint::save(&config, sessions, parts).await
    }

    fn configuration(&self, port: u16, setting: &Setting<'_>) -> Result<String> {
        let (admin, threads) = (free_port()?, setting.threads.max(1));
        let tls = setting.tls.map_or(String::new(), |tls| {
            let (chain, key) = (tls.chain.display(), tls.key.display());
            format!(", tls: {{certificate_file: '{chain}', key_file: '{key}'}}")
        });
        Ok(format!(
            "listen: {{public: '127.0.0.1:{port}', threads: {threads}{tls}}}\n\
             upstream: {{base_url: 'http://{api}'}}\n\
             admin: {{listen: '127.0.0.1:{admin}'}}\n\
             cookie: {{insecure_loopback: true}}\n\
             tenants: {{acme: {{client_id: storefront, saas_token: {{mode: hs256, secret: {PASSPHRASE}, accept: true}}}}}}\n\
             store:\n  kind: redis\n  redis: {{url: 'redis://{redis}', response_timeout: 5s}}\n\
             \x20 seal: {{active: a, keys: [{{id: a, secret: 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='}}]}}\n\
             hot_cache: {{max_bytes: 4294967296{fresh}}}\n{further}",
            fresh = if setting.always_fresh { ", revalidate_after: 1h, hot_grace: 1h" } else { "" },
            api = setting.upstream.unwrap_or(self.api.address),
            redis = self.redis.address,
            further = setting.further
        ))
    }

    /// A program to be measured, in callgrind where that is how its instructions are counted.
    fn command(&self, name: &str, counting: Option<Counting>, folder: &Path) -> Command {
        let program = self.programs.join(name);
        if let Some(core) = self.core {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            return command;
        }
        if counting != Some(Counting::Callgrind) {
            return Command::new(program);
        }
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "-q"]);
        command.arg(format!("--callgrind-out-file={}/callgrind.out", folder.display())).arg(program);
        // A copy of a block is one instruction to the processor and thousands to callgrind: copy in loops.
        command.env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1073741824");
        command
    }
}
