//! `emporix-gateway sessions`: asks a running gateway's admin listener for sessions, and to end them.
//! Waits until the gateway has done it; the token comes from a file or the environment and never from an argument.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use emporix_gateway::config::{self, Secret};
use humantime_serde::re::humantime::format_rfc3339_seconds;
use reqwest::{Method, Url, redirect};
use serde_json::{Map, Value};

use super::{FAULTY, UNAVAILABLE};

/// Where the token stands when no file is named: the variable that overrides the key in the gateway's own configuration.
const TOKEN_VARIABLE: &str = "EMPORIX_GATEWAY__ADMIN__TOKEN";

/// Where an admin listener is unless something else is said.
const DEFAULT_ADMIN: &str = "http://127.0.0.1:9090";

/// A whole tenant may take this long. The gateway goes on when nobody waits any more.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(3_600);
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done with sessions.
#[derive(Subcommand)]
pub(super) enum Sessions {
    /// Lists the live sessions of a customer.
    List(List),
    /// Ends sessions on every replica: a customer's, one, or all of a tenant.
    Revoke(Revoke),
}

/// Whose sessions are listed.
#[derive(Args)]
pub(super) struct List {
    /// The tenant.
    #[arg(long)]
    tenant: String,
    /// The customer number.
    #[arg(long, value_name = "ID")]
    customer: String,
    #[command(flatten)]
    gateway: RunningGateway,
}

/// Which sessions end.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(super) struct Revoke {
    /// The tenant.
    #[arg(long, required_unless_present = "session")]
    tenant: Option<String>,
    /// All sessions of this customer number.
    #[arg(long, value_name = "ID", group = "which")]
    customer: Option<String>,
    /// The session of this label, as `list` and the logs show it.
    #[arg(long, value_name = "LABEL", group = "which")]
    session: Option<String>,
    /// All sessions of the tenant, visitors' too.
    #[arg(long, group = "which")]
    all: bool,
    #[command(flatten)]
    gateway: RunningGateway,
}

/// The gateway that is asked, and how the answer is shown.
#[derive(Args)]
struct RunningGateway {
    /// Its admin listener; by default the one of --config, or http://127.0.0.1:9090.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Its configuration: tells address and token.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file with the admin token; by default EMPORIX_GATEWAY__ADMIN__TOKEN of the environment.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Shows the answer as the gateway gave it, for programs.
    #[arg(long)]
    json: bool,
}

/// The largest answer that is read: 1,000 sessions are far less.
const MOST_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// A failure: exit code and message.
type Failure = (u8, String);

/// Does it, and returns what is to be shown.
pub(super) fn run(command: &Sessions, environment: HashMap<String, String>) -> Result<String, Failure> {
    match command {
        Sessions::List(list) => {
            let mut call = Call::new(&list.gateway, environment, Method::GET, "/admin/sessions")?;
            call.url.query_pairs_mut().append_pair("tenant", &list.tenant).append_pair("customer", &list.customer);
            call.send(String::new(), list.gateway.json, table)
        }
        Sessions::Revoke(revoke) => {
            let call = Call::new(&revoke.gateway, environment, Method::POST, "/admin/sessions/revoke")?;
            call.send(Value::Object(revoke.wish()).to_string(), revoke.gateway.json, ended)
        }
    }
}

impl Revoke {
    fn wish(&self) -> Map<String, Value> {
        let named = [("tenant", &self.tenant), ("customer", &self.customer), ("session", &self.session)];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?.into())));
        named.chain(self.all.then(|| ("all".to_owned(), true.into()))).collect()
    }
}

/// One call of the operators' API.
struct Call {
    method: Method,
    url: Url,
    token: Secret,
}

impl Call {
    fn new(
        gateway: &RunningGateway,
        environment: HashMap<String, String>,
        method: Method,
        path: &str,
    ) -> Result<Self, Failure> {
        let from_environment = environment.get(TOKEN_VARIABLE).map(Secret::new);
        let configured = gateway
            .config
            .as_ref()
            .map(|file| config::load(file, environment.into_iter()).map_err(|faults| (FAULTY, faults.to_string())))
            .transpose()?
            .map(|config| config.admin);
        let token = match &gateway.token_file {
            Some(file) => Some(read_token(file)?),
            None => from_environment.or_else(|| configured.as_ref()?.token.clone()),
        };
        let token =
            token.ok_or_else(|| (FAULTY, format!("no admin token: name --token-file or set {TOKEN_VARIABLE}")))?;
        let listener = configured.map(|admin| format!("http://{}", reachable(admin.listen)));
        let base = gateway.admin.clone().or(listener).unwrap_or_else(|| DEFAULT_ADMIN.to_owned());
        let url = Url::parse(&base).and_then(|base| base.join(path));
        let url =
            url.map_err(|error| (FAULTY, format!("--admin: {error}: expected an address such as {DEFAULT_ADMIN}")))?;
        Ok(Self { method, url, token })
    }

    /// Makes the call. An answer of success is shown by `show`, or as it came.
    fn send(self, body: String, raw: bool, show: impl FnOnce(&Value) -> Option<String>) -> Result<String, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| (UNAVAILABLE, error.to_string()))?;
        let (status, text) = runtime.block_on(self.exchange(body)).map_err(|error| {
            let kind = if error.is_builder() { FAULTY } else { UNAVAILABLE };
            (kind, format!("the gateway cannot be asked: {}", causes(&error.without_url())))
        })?;
        let answer: Value = serde_json::from_slice(&text).unwrap_or_default();
        if status != 200 {
            return Err((UNAVAILABLE, refused(status, &answer)));
        }
        let shown =
            show(&answer).ok_or_else(|| (UNAVAILABLE, "the answer is none of an admin listener's".to_owned()))?;
        Ok(if raw { answer.to_string() } else { shown })
    }

    async fn exchange(self, body: String) -> reqwest::Result<(u16, Vec<u8>)> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(if self.method == Method::GET { LIST_TIMEOUT } else { REVOKE_TIMEOUT })
            .build()?;
        let request = client.request(self.method, self.url).bearer_auth(self.token.expose());
        let mut answer = request.header("content-type", "application/json").body(body).send().await?;
        let (status, mut text) = (answer.status().as_u16(), Vec::new());
        while let Some(piece) = answer.chunk().await? {
            text.extend_from_slice(&piece);
            if text.len() > MOST_ANSWER_BYTES {
                // Cut off, it is no JSON and so no answer.
                break;
            }
        }
        Ok((status, text))
    }
}

fn read_token(file: &PathBuf) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| (FAULTY, format!("--token-file: cannot read {}: {error}", file.display())))?;
    Ok(Secret::new(text.trim_end()))
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

/// The error and what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Text of an answer as a terminal may show it: what could move its cursor or turn its lines around is left out.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn refused(status: u16, answer: &Value) -> String {
    let code = plain(answer["code"].as_str().unwrap_or("no problem document"));
    let message = plain(answer["message"].as_str().unwrap_or("Is this an admin listener?"));
    format!("the gateway answered {status} ({code}): {message}")
}

/// One line for each session; nothing when the answer lists none.
fn table(answer: &Value) -> Option<String> {
    let sessions = answer["sessions"].as_array()?;
    let mut shown = format!(
        "{:<16}  {:<9}  {:<20}  {:<20}  {:<20}  LEGAL ENTITY",
        "SESSION", "TRANSPORT", "SIGNED IN", "LAST SEEN", "EXPIRES"
    );
    for session in sessions {
        let text = |key: &str| plain(session[key].as_str().unwrap_or_default());
        let time = |key: &str| instant(session[key].as_u64().unwrap_or_default());
        let entity = if session["hasLegalEntity"] == true { "yes" } else { "no" };
        // Writing to a text does not fail.
        let _ = write!(
            shown,
            "\n{:<16}  {:<9}  {:<20}  {:<20}  {:<20}  {entity}",
            text("session"),
            text("transport"),
            time("signedInAt"),
            time("lastSeenAt"),
            time("expiresAt"),
        );
    }
    if answer["truncated"] == true {
        shown.push_str("\nThere may be more: only the newest sessions of a customer are remembered.");
    }
    Some(shown)
}

fn instant(seconds: u64) -> impl std::fmt::Display {
    /// The end of the year 9999: the last instant that can be written.
    const LAST: u64 = 253_402_300_799;
    format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds.min(LAST)))
}

/// How many ended; nothing when the answer does not say.
fn ended(answer: &Value) -> Option<String> {
    let (ended, left) = (answer["ended"].as_u64()?, answer["tokensLeftToExpire"].as_u64()?);
    let mut shown = format!("ended: {ended}");
    if left > 0 {
        let _ = write!(shown, "\ntokens that Emporix was not told of and that expire by themselves: {left}");
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_of_somebody_else_is_none() {
        for answer in [Value::Null, json!({}), json!({"sessions": "x"}), json!({"ended": "many"}), json!([])] {
            assert_eq!((table(&answer), ended(&answer)), (None, None), "{answer}");
        }
        assert_eq!(ended(&json!({"ended": 2, "tokensLeftToExpire": 0})).as_deref(), Some("ended: 2"));
    }

    #[test]
    fn no_answer_commands_the_terminal() {
        let hostile = "\u{1b}[31mEVIL\u{1b}]0;pwn\u{7}\u{9b}31m\u{202e}\nFORGED";
        let listed = table(&json!({"sessions": [{"session": hostile, "transport": hostile}]})).unwrap();
        let said = refused(401, &json!({"code": hostile, "message": hostile}));
        assert!(listed.lines().count() == 2 && said.lines().count() == 1);
        assert!(listed.chars().chain(said.chars()).all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()));
    }
}
