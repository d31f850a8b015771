//! `emporix-gateway sessions`: asks a running gateway's admin listener for sessions, and to end them.
//! Waits until the gateway has done it; the token comes from a file or the environment and never from an argument.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use emporix_gateway::config::{Secret, TenantId};
use humantime_serde::re::humantime::format_rfc3339_seconds;
use serde_json::{Map, Value};

use super::admin::{Listener, Question};
use super::{FAULTY, Failure, UNAVAILABLE, plain};

/// Where the token stands when no file is named: the variable that overrides the key in the gateway's own configuration.
const TOKEN_VARIABLE: &str = "EMPORIX_GATEWAY__ADMIN__TOKEN";

/// A whole tenant may take this long. The gateway goes on when nobody waits any more.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(3_600);
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

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
    #[arg(long, value_parser = tenant)]
    tenant: String,
    /// The customer number.
    #[arg(long, value_name = "ID", value_parser = customer)]
    customer: String,
    #[command(flatten)]
    gateway: RunningGateway,
}

/// Which sessions end.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(super) struct Revoke {
    /// The tenant.
    #[arg(long, required_unless_present = "session", value_parser = tenant)]
    tenant: Option<String>,
    /// All sessions of this customer number.
    #[arg(long, value_name = "ID", group = "which", value_parser = customer)]
    customer: Option<String>,
    /// The session of this label, as `list` and the logs show it.
    #[arg(long, value_name = "LABEL", group = "which", value_parser = label)]
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
    #[command(flatten)]
    listener: Listener,
    /// A file with the admin token; by default EMPORIX_GATEWAY__ADMIN__TOKEN of the environment.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Shows the answer as the gateway gave it, for programs.
    #[arg(long)]
    json: bool,
}

/// Does it, and returns what is to be shown.
pub(super) fn run(command: &Sessions, environment: HashMap<String, String>) -> Result<String, Failure> {
    match command {
        Sessions::List(list) => {
            let gateway = &list.gateway;
            let mut question = gateway.question(environment, "/admin/sessions", LIST_TIMEOUT)?;
            question.url.query_pairs_mut().append_pair("tenant", &list.tenant).append_pair("customer", &list.customer);
            gateway.show(question, table)
        }
        Sessions::Revoke(revoke) => {
            let gateway = &revoke.gateway;
            let question = gateway.question(environment, "/admin/sessions/revoke", REVOKE_TIMEOUT)?;
            gateway.show(Question { body: Some(Value::Object(revoke.wish())), ..question }, ended)
        }
    }
}

fn tenant(text: &str) -> Result<String, &'static str> {
    let fits = TenantId::parse(text).is_some();
    fits.then(|| text.to_owned()).ok_or("expected 3 to 16 lowercase letters and digits, letter first")
}

fn customer(text: &str) -> Result<String, &'static str> {
    (1..=256).contains(&text.len()).then(|| text.to_owned()).ok_or("expected a customer number")
}

fn label(text: &str) -> Result<String, &'static str> {
    let fits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    fits.then(|| text.to_owned()).ok_or("expected 16 hexadecimal digits, as `list` and the logs show them")
}

impl Revoke {
    fn wish(&self) -> Map<String, Value> {
        let named = [("tenant", &self.tenant), ("customer", &self.customer), ("session", &self.session)];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?.into())));
        named.chain(self.all.then(|| ("all".to_owned(), true.into()))).collect()
    }
}

impl RunningGateway {
    /// A question about `path`, with the operator's token.
    fn question(
        &self,
        environment: HashMap<String, String>,
        path: &str,
        timeout: Duration,
    ) -> Result<Question, Failure> {
        let from_environment = environment.get(TOKEN_VARIABLE).map(Secret::new);
        let configured = self.listener.configured(environment)?;
        let token = match &self.token_file {
            Some(file) => Some(read_token(file)?),
            None => from_environment.or_else(|| configured.as_ref()?.token.clone()),
        };
        let token =
            token.ok_or_else(|| (FAULTY, format!("no admin token: name --token-file or set {TOKEN_VARIABLE}")))?;
        let url = self.listener.url(configured.as_ref(), path)?;
        Ok(Question { url, token: Some(token), body: None, timeout })
    }

    /// Asks. An answer of success is shown by `show`, or as it came.
    fn show(&self, question: Question, show: impl FnOnce(&Value) -> Option<String>) -> Result<String, Failure> {
        let (status, text) = question.ask()?;
        let answer: Value = serde_json::from_slice(&text).unwrap_or_default();
        if status != 200 {
            return Err((UNAVAILABLE, refused(status, &answer)));
        }
        let shown =
            show(&answer).ok_or_else(|| (UNAVAILABLE, "the answer is none of an admin listener's".to_owned()))?;
        Ok(if self.json { answer.to_string() } else { shown })
    }
}

fn read_token(file: &PathBuf) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| (FAULTY, format!("--token-file: cannot read {}: {error}", file.display())))?;
    Ok(Secret::new(text.trim_end()))
}

fn refused(status: u16, answer: &Value) -> String {
    let code = plain(answer["code"].as_str().unwrap_or("no problem document"));
    // Where a token is configured an admin listener knows the paths; a storefronts' listener takes them for a tenant's.
    let message = match &*code {
        "unknown_route" => "it has no admin.token, or this is not its admin listener".to_owned(),
        "unknown_tenant" => "it serves no such tenant, or this is not its admin listener".to_owned(),
        _ => plain(answer["message"].as_str().unwrap_or("Is this an admin listener?")),
    };
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
