//! Redis in company: a primary with a replica under three Sentinels, and a cluster of three primaries with replicas.
//! Real servers, every one with an ACL user and a password; the cluster speaks TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::world::{Certificate, eventually, free_port};

pub const USER: &str = "gateway";
pub const PASSWORD: &str = "hush-hush";

/// What the gateway's Redis user may do; replication and Sentinel use the default user.
const RIGHTS: [&str; 7] = ["--user", USER, "on", ">hush-hush", "~eg:*", "&eg:*", "+@all"];

/// The password of this user at the Sentinels.
pub const SENTINEL_PASSWORD: &str = "watch-and-hush";

/// What it may do there, as deploy/README.md says.
const SENTINEL_RIGHTS: &str =
    "user gateway on >watch-and-hush -@all +auth +hello +ping +role +sentinel|masters +sentinel|slaves\n";

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn spawn(port: u16, arguments: &[&str]) -> Self {
        let process =
            Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn().expect("redis-server is there");
        Self { process, port }
    }

    /// The answer to an inline command of the default user, over plain TCP.
    fn command(&self, text: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        stream.write_all(format!("{text}\r\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    fn answers(&self, text: &str, expected: &str) -> bool {
        self.command(text).is_some_and(|answer| answer.contains(expected))
    }

    /// Its name in a cluster.
    fn id(&self) -> String {
        self.command("CLUSTER MYID").unwrap().lines().nth(1).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn signal(server: &Server, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), server.process.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// A primary, its replica, and three Sentinels that watch them.
pub struct Watched {
    servers: Vec<Server>,
    sentinels: Vec<Server>,
    /// The Sentinels' addresses.
    pub nodes: Vec<String>,
    folder: tempfile::TempDir,
}

impl Watched {
    /// Over plain TCP; the Sentinels ask nobody who he is.
    pub async fn start() -> Self {
        Self::start_over(None).await
    }

    /// Over TLS; the Sentinels know a user of their own.
    pub async fn start_over_tls() -> Self {
        Self::start_over(Some(Certificate::new())).await
    }

    async fn start_over(certificate: Option<Certificate>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = certificate.as_ref().map(|certificate| certificate.write(folder.path()));
        let tls = |port: u16| {
            let [certificate, key] = files.as_ref()?;
            Some(format!(
                "tls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {certificate}\n\
                 tls-auth-clients no\ntls-replication yes\n"
            ))
        };
        let spawn = |port: u16, text: &str, more: &[&str]| {
            let directory = folder.path().join(port.to_string());
            std::fs::create_dir(&directory).unwrap();
            let (file, directory) = (directory.join("redis.conf"), directory.display().to_string());
            std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\ndir {directory}\n{text}")).unwrap();
            Server::spawn(port, &[&[file.to_str().unwrap()], more].concat())
        };
        // What others are told to come to: over TLS that is another port than the test's own.
        let ports = || [free_port(), free_port()];
        let reached_at = |[plain, encrypted]: [u16; 2]| if certificate.is_some() { encrypted } else { plain };
        let server = |[plain, encrypted]: [u16; 2], role: &str| {
            let tls = tls(encrypted).unwrap_or_default();
            spawn(plain, &format!("save \"\"\nrepl-diskless-sync-delay 0\n{tls}{role}"), &RIGHTS)
        };
        let [first, second] = [ports(), ports()];
        let primary = reached_at(first);
        let servers = vec![server(first, ""), server(second, &format!("replicaof 127.0.0.1 {primary}\n"))];
        eventually("the replica follows", async || servers[0].answers("INFO replication", "state=online")).await;
        let (mut sentinels, mut nodes) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let both = ports();
            let (port, scheme) = (reached_at(both), if certificate.is_some() { "rediss" } else { "redis" });
            let own = tls(both[1]).map(|tls| format!("{tls}{SENTINEL_RIGHTS}")).unwrap_or_default();
            let text = format!(
                "{own}sentinel monitor shop 127.0.0.1 {primary} 2\n\
                 sentinel down-after-milliseconds shop 700\nsentinel failover-timeout shop 3000\n"
            );
            sentinels.push(spawn(both[0], &text, &["--sentinel"]));
            nodes.push(format!("{scheme}://127.0.0.1:{port}"));
        }
        for sentinel in &sentinels {
            eventually("the Sentinels know each other", async || {
                sentinel.answers("SENTINEL MASTER shop", "num-other-sentinels\r\n$1\r\n2")
                    && sentinel.answers("SENTINEL MASTER shop", "num-slaves\r\n$1\r\n1")
            })
            .await;
        }
        Self { servers, sentinels, nodes, folder }
    }

    /// Tells primary and replica.
    pub fn tell_all(&self, command: &str) {
        self.servers.iter().for_each(|server| drop(server.command(command)));
    }

    /// The certificate that all of them show, over TLS.
    pub fn certificate(&self) -> std::path::PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Lets the replica take the primary's place, and waits until the old primary follows it.
    pub async fn switch_over(&self) {
        assert!(self.sentinels[0].answers("SENTINEL FAILOVER shop", "OK"));
        eventually("the replica is promoted", async || self.servers[1].answers("ROLE", "master")).await;
        eventually("the old primary is its replica", async || self.servers[0].answers("ROLE", "connected")).await;
    }

    /// The keys that the server holds which was the replica at first.
    pub fn keys_of_the_second(&self) -> String {
        self.servers[1].command("KEYS *").unwrap()
    }

    /// Kills the primary that was started first, and waits for the other one to take its place.
    pub async fn fail_over(&mut self) {
        drop(self.servers.remove(0));
        eventually("the replica is promoted", async || self.servers[0].answers("ROLE", "master")).await;
    }

    /// Stops the replica, as a machine that hangs does.
    pub fn freeze_the_replica(&self) {
        signal(&self.servers[1], "STOP");
    }

    /// Lets it go on.
    pub fn thaw_the_replica(&self) {
        signal(&self.servers[1], "CONT");
    }

    /// Kills one Sentinel.
    pub fn kill_a_sentinel(&mut self) {
        drop(self.sentinels.remove(0));
    }
}

/// Three primaries, each with a replica, over TLS.
pub struct Cluster {
    servers: Vec<Server>,
    tls_ports: Vec<u16>,
    folder: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = Certificate::new().write(folder.path());
        let (mut servers, mut tls_ports) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let (port, tls_port, bus) = (free_port(), free_port(), free_port());
            let directory = folder.path().join(port.to_string());
            std::fs::create_dir(&directory).unwrap();
            let texts = [port, tls_port, bus].map(|port| port.to_string());
            let directory = directory.display().to_string();
            let mut arguments = vec!["--port", &texts[0], "--tls-port", &texts[1], "--cluster-port", &texts[2]];
            arguments.extend(["--bind", "127.0.0.1", "--save", "", "--dir", &directory]);
            arguments.extend(["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--tls-cluster", "yes"]);
            arguments.extend(["--tls-replication", "yes", "--tls-auth-clients", "no"]);
            arguments.extend([
                "--tls-cert-file",
                &certificate,
                "--tls-key-file",
                &key,
                "--tls-ca-cert-file",
                &certificate,
            ]);
            arguments.extend(["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"]);
            arguments.extend(RIGHTS);
            servers.push(Server::spawn(port, &arguments));
            tls_ports.push(tls_port);
        }
        for server in &servers {
            eventually("a node answers", async || server.answers("PING", "PONG")).await;
        }
        let cluster = Self { servers, tls_ports, folder };
        let mut create = vec!["--cluster".to_owned(), "create".to_owned()];
        create.extend(cluster.tls_ports.iter().map(|port| format!("127.0.0.1:{port}")));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        let created = cluster.cli(&create).await;
        for server in &cluster.servers {
            eventually(&format!("the cluster stands: {created}"), async || {
                server.answers("CLUSTER INFO", "cluster_state:ok")
                    && server.answers("CLUSTER INFO", "cluster_known_nodes:6")
            })
            .await;
        }
        eventually("every primary has its replica", async || {
            cluster.servers[..3].iter().all(|primary| primary.answers("INFO replication", "state=online"))
        })
        .await;
        cluster
    }

    /// Runs `redis-cli` against the cluster.
    async fn cli(&self, arguments: &[String]) -> String {
        // It would wait for ever for nodes of which one could not have its port.
        let mut command = Command::new("timeout");
        command.args(["60", "redis-cli", "--tls", "--cacert"]).arg(self.certificate()).args(arguments);
        let printed = tokio::task::spawn_blocking(move || command.output().expect("redis-cli is there")).await.unwrap();
        String::from_utf8_lossy(&printed.stdout).into_owned()
    }

    /// Moves every slot of the first primary to the second, with the keys in them: its clients are told MOVED and ASK.
    pub async fn move_slots(&self) -> String {
        let (from, to) = (self.servers[0].id(), self.servers[1].id());
        let arguments = [
            "--cluster",
            "reshard",
            &format!("127.0.0.1:{}", self.tls_ports[0]),
            "--cluster-from",
            &from,
            "--cluster-to",
            &to,
            "--cluster-slots",
            "3000",
            "--cluster-yes",
        ];
        self.cli(&arguments.map(str::to_owned)).await
    }

    /// Lets the slot of `key`, which is there, be on the move to another primary, and none of its keys move. Returns how
    /// to let it stay.
    pub fn unsettle<'c>(&'c self, key: &str) -> impl FnOnce() + use<'c> {
        let slot = self.servers[0].command(&format!("CLUSTER KEYSLOT {key}")).unwrap();
        let slot = slot.trim().trim_start_matches(':').to_owned();
        let holds = |server: &&Server| !server.answers(&format!("CLUSTER COUNTKEYSINSLOT {slot}"), ":0");
        let from = self.servers[..3].iter().find(holds).unwrap();
        let to = self.servers[..3].iter().find(|server| server.port != from.port).unwrap();
        assert!(to.answers(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", from.id()), "OK"));
        assert!(from.answers(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", to.id()), "OK"));
        move || {
            for server in [from, to] {
                assert!(server.answers(&format!("CLUSTER SETSLOT {slot} STABLE"), "OK"));
            }
        }
    }

    /// Stops the third primary, in whose place nobody steps for a minute. Returns the keys that are away with it.
    pub fn freeze_a_primary(&self) -> String {
        for server in &self.servers {
            assert!(server.answers("CONFIG SET cluster-node-timeout 60000", "OK"));
        }
        let away = self.servers[2].command("KEYS *").unwrap();
        signal(&self.servers[2], "STOP");
        away
    }

    /// Kills the third primary.
    pub fn kill_a_primary(&mut self) {
        drop(self.servers.remove(2));
    }

    /// Tells every node.
    pub fn tell_all(&self, command: &str) {
        self.servers.iter().for_each(|server| drop(server.command(command)));
    }

    /// Tells the third primary.
    pub fn tell_a_primary(&self, command: &str) {
        self.servers[2].command(command);
    }

    /// Two of the nodes' addresses.
    pub fn nodes(&self) -> Vec<String> {
        self.tls_ports[..2].iter().map(|port| format!("rediss://127.0.0.1:{port}")).collect()
    }

    /// The certificate that the nodes show.
    pub fn certificate(&self) -> std::path::PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Kills the third primary, and waits for its replica to take its place.
    pub async fn fail_over(&mut self) {
        self.kill_a_primary();
        eventually("the cluster stands again", async || {
            self.servers.iter().all(|server| server.answers("CLUSTER INFO", "cluster_state:ok"))
                && self.servers.iter().filter(|server| server.answers("ROLE", "master")).count() == 3
        })
        .await;
    }
}
