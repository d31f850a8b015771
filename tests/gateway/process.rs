//! A gateway as it is run: the program, in a process of its own, that can be killed, stopped and continued.
//! It ends with its value, and what it logged is searched for secrets then.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use emporix_gateway::config::ENVIRONMENT_PREFIX;

use crate::world::{World, canaries, configuration, eventually, free_port, metric, plain_get, scan};

/// Lines of a log that a failed test shows.
const MOST_SHOWN: usize = 2_000;

const CONFIG: &str = "gateway.yaml";

/// A gateway in a process of its own, beside the others of a world.
pub struct ProcessReplica {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    simulator: SocketAddr,
    process: Child,
    folder: tempfile::TempDir,
}

impl ProcessReplica {
    /// Starts one over the world's store, with some keys set otherwise, spelled as in the environment.
    pub async fn start(world: &World, changes: &[(&str, &str)]) -> Self {
        let replica = Self::begin(world, changes).await;
        let ready = async || plain_get(replica.admin, "/readyz").starts_with("HTTP/1.1 200");
        eventually("the gateway is ready", ready).await;
        replica
    }

    /// The same, ready or not: it listens.
    pub async fn begin(world: &World, changes: &[(&str, &str)]) -> Self {
        let [public, admin] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let replica = Self::spawn(world, changes, public, admin, &[]);
        let listens = async || [public, admin].iter().all(|address| TcpStream::connect(address).is_ok());
        eventually("the gateway listens", listens).await;
        replica
    }

    /// Starts another one that waits for this one's listeners.
    pub fn successor(&self, world: &World, changes: &[(&str, &str)]) -> Self {
        Self::spawn(world, changes, self.public, self.admin, &["--upgrade"])
    }

    fn spawn(
        world: &World,
        changes: &[(&str, &str)],
        public: SocketAddr,
        admin: SocketAddr,
        arguments: &[&str],
    ) -> Self {
        let (simulator, folder) = (world.simulator.address, tempfile::tempdir().unwrap());
        let log = File::create(folder.path().join("log")).unwrap();
        std::fs::write(folder.path().join(CONFIG), debugging(simulator, public, admin)).unwrap();
        let changes = changes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let environment = world.overrides.iter().cloned().chain(changes);
        let process = Command::new(env!("CARGO_BIN_EXE_emporix-gateway"))
            .args(["serve", "--config"])
            .arg(folder.path().join(CONFIG))
            .args(arguments)
            .envs(environment.map(|(key, value)| (format!("{ENVIRONMENT_PREFIX}{key}"), value)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { public, admin, simulator, process, folder }
    }

    /// Writes its configuration anew: the one it was started with, changed.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let text = change(debugging(self.simulator, self.public, self.admin));
        std::fs::write(self.folder.path().join(CONFIG), text).unwrap();
    }

    /// Has it read its configuration again.
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    /// Has it hand its listeners over.
    pub fn quit(&self) {
        self.signal("QUIT");
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Tells it to end at once.
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    /// Whether it has ended, and well.
    pub fn has_ended(&mut self) -> bool {
        self.exit_code() == Some(0)
    }

    /// What it ended with, once it has.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.process.try_wait().unwrap()?.code()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&self) {
        self.signal("KILL");
    }

    /// Stops it where it stands: it lives, and does nothing.
    pub fn stop(&self) {
        self.signal("STOP");
        // A signal is sent before it is obeyed by every thread.
        while !self.threads_stand_still() {
            std::thread::yield_now();
        }
    }

    fn threads_stand_still(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let mut stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success(), "SIG{name} is sent");
    }

    /// The value of one series of its metrics.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&plain_get(self.admin, "/metrics"), series)
    }

    /// What it logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// The configuration of a gateway that logs all it can.
fn debugging(simulator: SocketAddr, public: SocketAddr, admin: SocketAddr) -> String {
    configuration(simulator, public, admin).replace("log: {access: true}", "log: {access: true, level: debug}")
}

impl Drop for ProcessReplica {
    fn drop(&mut self) {
        let mut leaks = Vec::new();
        let canaries = canaries(self.simulator);
        if let Ok(None) = self.process.try_wait() {
            self.go_on();
            scan("its metrics", plain_get(self.admin, "/metrics").as_bytes(), &canaries, &mut leaks);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        scan("its log", self.logged().as_bytes(), &canaries, &mut leaks);
        if std::thread::panicking() {
            let log = self.logged();
            let tail = log.lines().count().saturating_sub(MOST_SHOWN);
            log.lines().skip(tail).for_each(|line| println!("{line}"));
        } else {
            assert!(leaks.is_empty(), "{leaks:#?}");
        }
    }
}
