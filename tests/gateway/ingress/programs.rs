//! The programs, each run with the example that is shipped for it: nothing is changed but addresses.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::world::{eventually, free_port, plain_get};

/// A proxy that asks for verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
    Caddy,
    Traefik,
    Envoy,
}

impl Program {
    /// Its example: the files, the program, and its arguments in the folder of the files.
    fn example(self) -> (&'static [&'static str], &'static str, &'static [&'static str]) {
        match self {
            Self::Nginx => {
                (&["nginx.conf"], "nginx", &["-p", ".", "-c", "nginx.conf", "-g", "daemon off; pid nginx.pid;"])
            }
            Self::Haproxy => (&["haproxy.cfg", "haproxy-verdict.lua"], "haproxy", &["-db", "-f", "haproxy.cfg"]),
            Self::Caddy => (&["Caddyfile"], "caddy", &["run", "--config", "Caddyfile", "--adapter", "caddyfile"]),
            Self::Traefik => (&["traefik.yaml", "traefik-routes.yaml"], "traefik", &["--configFile=traefik.yaml"]),
            Self::Envoy => {
                (&["envoy.yaml"], "envoy", &["-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id"])
            }
        }
    }
}

/// What a program stands before: a gateway's two listeners and the API, by their ports.
#[derive(Clone, Copy)]
pub struct Behind {
    pub public: u16,
    pub verdicts: u16,
    pub api: u16,
}

/// One of them, running.
pub struct Ingress {
    process: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Ingress {
    /// Starts `program` between the ports of `behind`.
    pub async fn start(program: Program, behind: Behind) -> Self {
        Self::start_edited(program, behind, str::to_owned).await
    }

    /// The same with less patience: what the example gives a verdict is a second, what it gives the gateway are two.
    pub async fn start_hurried(program: Program, behind: Behind) -> Self {
        let hurried = |text: &str| text.replace("15s", "1s").replace("15000", "1000").replace("60s", "2s");
        Self::start_edited(program, behind, hurried).await
    }

    async fn start_edited(program: Program, behind: Behind, edited: impl Fn(&str) -> String) -> Self {
        let Behind { public, verdicts, api } = behind;
        let (files, name, arguments) = program.example();
        let (folder, own) = (TempDir::new().unwrap(), free_port());
        for file in files {
            let text = std::fs::read_to_string(shipped().join(file)).unwrap();
            std::fs::write(
                folder.path().join(file),
                moved(&edited(&text), [(8000, own), (8080, public), (8081, verdicts), (8090, api)]),
            )
            .unwrap();
        }
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(installed(name))
            .args(arguments)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} (`make proxies` installs it): {error}"));
        let address = SocketAddr::from(([127, 0, 0, 1], own));
        let mut ingress = Self { process, address, folder };
        // Some listen before they have read where to.
        eventually(&format!("{name} listens"), async || {
            let log = || std::fs::read_to_string(ingress.folder.path().join("log")).unwrap_or_default();
            assert!(ingress.process.try_wait().unwrap().is_none(), "{name} has ended: {}", log());
            TcpStream::connect(address).is_ok() && plain_get(address, "/_gateway/session").contains(" 401 ")
        })
        .await;
        ingress
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        // Asked, not killed: nginx has to take its workers along.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ingress")
}

/// A program of Debian's packages, or of those that the Makefile takes from PyPI.
fn installed(name: &str) -> PathBuf {
    let from_pypi = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin").join(name);
    if from_pypi.exists() { from_pypi } else { PathBuf::from(name) }
}

/// The text with its ports changed.
fn moved(text: &str, ports: [(u16, u16); 4]) -> String {
    ports.iter().fold(text.to_owned(), |text, (from, to)| {
        text.replace(&format!(":{from}"), &format!(":{to}"))
            .replace(&format!("port_value: {from}}}"), &format!("port_value: {to}}}"))
    })
}
