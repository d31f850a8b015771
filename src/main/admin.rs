//! How an errand asks the admin listener of a gateway that runs: where it is, and one bounded question.
//! No proxy of the environment is used, no redirect followed, and a failure is one line.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use emporix_gateway::config::{self, AdminSection, Secret};
use reqwest::{Client, Response, Url, redirect};
use serde_json::Value;

use super::{FAULTY, Failure, UNAVAILABLE};

/// Where an admin listener is unless something else is said.
const DEFAULT: &str = "http://127.0.0.1:9090";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read: 1,000 sessions are far less.
const MOST_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The listener that is asked.
#[derive(Args)]
pub(super) struct Listener {
    /// The gateway's admin listener; by default the one of --config, or http://127.0.0.1:9090.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The gateway's configuration: tells what is not said otherwise.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Listener {
    /// What the configuration says of it, where one is named.
    pub(super) fn configured(&self, environment: HashMap<String, String>) -> Result<Option<AdminSection>, Failure> {
        let Some(file) = &self.config else { return Ok(None) };
        let config = config::load(file, environment.into_iter());
        config.map(|config| Some(config.admin)).map_err(|faults| (FAULTY, faults.to_string()))
    }

    /// The address of `path` on it.
    pub(super) fn url(&self, configured: Option<&AdminSection>, path: &str) -> Result<Url, Failure> {
        let listens = configured.map(|admin| format!("http://{}", reachable(admin.listen)));
        let base = self.admin.clone().or(listens).unwrap_or_else(|| DEFAULT.to_owned());
        Url::parse(&base)
            .and_then(|base| base.join(path))
            .map_err(|error| (FAULTY, format!("--admin: {error}: expected an address such as {DEFAULT}")))
    }
}

/// Where a listener on every address is reached from this machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

/// One question: a GET, or with a body a POST.
pub(super) struct Question {
    pub(super) url: Url,
    pub(super) token: Option<Secret>,
    pub(super) body: Option<Value>,
    pub(super) timeout: Duration,
}

impl Question {
    /// Status and body of the answer.
    pub(super) fn ask(self) -> Result<(u16, Vec<u8>), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| (UNAVAILABLE, error.to_string()))?;
        runtime.block_on(self.exchange()).map_err(|error| {
            let kind = if error.is_builder() { FAULTY } else { UNAVAILABLE };
            (kind, format!("the gateway cannot be asked: {}", causes(&error.without_url())))
        })
    }

    async fn exchange(self) -> reqwest::Result<(u16, Vec<u8>)> {
        let client = client(self.timeout)?;
        let mut request = match self.body {
            Some(body) => client.post(self.url).header("content-type", "application/json").body(body.to_string()),
            None => client.get(self.url),
        };
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), bounded(answer).await?))
    }
}

/// What errands call with.
pub(super) fn client(timeout: Duration) -> reqwest::Result<Client> {
    let client = Client::builder().no_proxy().redirect(redirect::Policy::none());
    client.connect_timeout(CONNECT_TIMEOUT).timeout(timeout).build()
}

/// The body of an answer. Of one that does not end it is cut off: that is no JSON, and so no answer.
pub(super) async fn bounded(mut answer: Response) -> reqwest::Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        text.extend_from_slice(&piece);
        if text.len() > MOST_ANSWER_BYTES {
            break;
        }
    }
    Ok(text)
}

/// The error and what caused it, in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
