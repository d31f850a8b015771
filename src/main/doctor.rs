//! `emporix-gateway doctor`: asks a live tenant what Emporix' documentation leaves open, and says which switch the answer
//! wants. It signs a test customer in and out, makes one wrong sign-in, provokes no limit, and tells no token.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use emporix_gateway::clock::{Clock, SystemClock};
use emporix_gateway::config::{self, Config, RefreshAuthorizer, Secret};

use super::probe::{Answer, Probe};
use super::{FAULTY, Failure, UNAVAILABLE};

/// Which tenant is asked, and as whom.
#[derive(Args)]
pub(super) struct Doctor {
    /// The YAML file: names the upstream, and the tenant's client_id.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The tenant.
    #[arg(long)]
    tenant: String,
    /// A test customer; without, only a visitor's questions are asked.
    #[arg(long, requires = "password_file")]
    email: Option<String>,
    /// A file with the test customer's password.
    #[arg(long, value_name = "FILE", requires = "email")]
    password_file: Option<PathBuf>,
}

/// What no probe can find out without harm, or in the time of one.
const NOT_ASKED: [&str; 5] = [
    "whether a change of password or e-mail address ends tokens: it would change the customer",
    "at which rate Emporix answers 429: it would have to be provoked",
    "what social login and token exchange answer: they need an identity provider",
    "the unit of session_idle_time: it takes an idle session",
    "whether a logout ends the saas_token and the session context: nothing tells",
];

/// Asks, and returns what is to be shown.
pub(super) fn run(errand: &Doctor, environment: HashMap<String, String>) -> Result<String, Failure> {
    let config = config::load(&errand.config, environment.into_iter());
    let config = config.map_err(|faults| (FAULTY, faults.to_string()))?;
    let unknown = || (FAULTY, format!("--tenant: {} has no such tenant", errand.config.display()));
    let section = config.tenants.iter().find(|(id, _)| id.as_str() == errand.tenant).ok_or_else(unknown)?.1;
    let customer = match (&errand.email, &errand.password_file) {
        (Some(email), Some(file)) => Some((email.as_str(), read_password(file)?)),
        _ => None,
    };
    let probe = Probe::new(&config, &errand.tenant, section)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (UNAVAILABLE, error.to_string()))?;
    let mut report = Report::default();
    runtime.block_on(examine(&config, &probe, customer, &mut report))?;
    Ok(report.shown())
}

fn read_password(file: &PathBuf) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| (FAULTY, format!("--password-file: cannot read {}: {error}", file.display())))?;
    Ok(Secret::new(text.trim_end()))
}

/// What was seen, question by question, and the switch that it asks for.
#[derive(Default)]
struct Report(String);

impl Report {
    fn add(&mut self, question: &str, seen: &str, switch: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.0, "{question}\n  seen    {seen}\n  switch  {switch}");
    }

    fn shown(mut self) -> String {
        let _ = write!(self.0, "not asked");
        for question in NOT_ASKED {
            let _ = write!(self.0, "\n  {question}");
        }
        self.0
    }
}

const NONE: &str = "none: the gateway takes either";

async fn examine(
    config: &Config,
    probe: &Probe,
    customer: Option<(&str, Secret)>,
    report: &mut Report,
) -> Result<(), Failure> {
    let visitor = probe.anonymous_login().await?;
    let shape = visitor.shape();
    let guest = visitor.token("access_token").filter(|_| visitor.is_success());
    let guest = guest.ok_or_else(|| (UNAVAILABLE, format!("anonymous login was refused: {shape}")))?;
    report.add("What does anonymous login answer?", &shape, NONE);
    if let Some((email, password)) = &customer {
        let mut visit = Examined { config, probe, guest, email, password, signed_in: Vec::new() };
        let examined = visit.customer(report).await;
        visit.leave().await;
        examined?;
    }
    let names = probe.rate_headers();
    let seen = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    report.add("Which headers speak of rates?", &seen, "none: a 429 with Retry-After pauses its kind of call");
    Ok(())
}

/// A test customer under examination.
struct Examined<'e> {
    config: &'e Config,
    probe: &'e Probe,
    guest: Secret,
    email: &'e str,
    password: &'e Secret,
    /// Access tokens that are to be logged out.
    signed_in: Vec<Secret>,
}

/// A customer's tokens.
struct Tokens {
    access: Secret,
    refresh: Secret,
}

impl Tokens {
    fn of(answer: &Answer) -> Option<Self> {
        let [access, refresh] = ["access_token", "refresh_token"].map(|name| answer.token(name));
        Some(Self { access: access?, refresh: refresh? }).filter(|_| answer.is_success())
    }
}

impl Examined<'_> {
    async fn customer(&mut self, report: &mut Report) -> Result<(), Failure> {
        let wrong = self.probe.login(self.email, "emporix-gateway doctor", &self.guest).await?;
        let about = if wrong.body["fault"].is_object() { "the shape of a token's end" } else { "no token's end" };
        report.add(
            "What does a wrong password answer?",
            &format!("{}; {about}", wrong.shape()),
            "none: it is passed on",
        );
        let (login, _) = self.sign_in().await?;
        report.add("What does a login answer?", &login.shape(), NONE);
        let form = if login.body["expires_in"].is_string() { "text" } else { "number" };
        report.add("Is expires_in a number or a text?", form, NONE);
        let camel = if login.body["accessToken"].is_string() { "still sent" } else { "no longer sent" };
        report.add("Are camelCase fields sent?", camel, NONE);
        let Some(authorizer) = self.authorizer(report).await? else { return Ok(()) };
        self.refresh(authorizer, &login, report).await?;
        self.logout(authorizer, report).await
    }

    async fn sign_in(&mut self) -> Result<(Answer, Tokens), Failure> {
        let answer = self.probe.login(self.email, self.password.expose(), &self.guest).await?;
        let refused = || (UNAVAILABLE, format!("the test customer cannot sign in: {}", answer.shape()));
        let tokens = Tokens::of(&answer).ok_or_else(refused)?;
        self.signed_in.push(tokens.access.clone());
        Ok((answer, tokens))
    }

    async fn redeem(&mut self, tokens: &Tokens, authorizer: RefreshAuthorizer) -> Result<Answer, Failure> {
        let bearer = match authorizer {
            RefreshAuthorizer::Anonymous => &self.guest,
            RefreshAuthorizer::Customer => &tokens.access,
        };
        let answer = self.probe.get("refreshauthtoken", &[("refreshToken", tokens.refresh.expose())], bearer).await?;
        self.signed_in.extend(answer.token("access_token"));
        Ok(answer)
    }

    /// Which authorizer a refresh accepts: each is tried with tokens of its own, for a refused try may spend them.
    async fn authorizer(&mut self, report: &mut Report) -> Result<Option<RefreshAuthorizer>, Failure> {
        let mut accepted = Vec::new();
        let mut seen = Vec::new();
        for (authorizer, name) in
            [(RefreshAuthorizer::Anonymous, "anonymous"), (RefreshAuthorizer::Customer, "customer")]
        {
            let (_, tokens) = self.sign_in().await?;
            let answer = self.redeem(&tokens, authorizer).await?;
            seen.push(format!("{name}: {}", answer.status));
            accepted.extend(answer.is_success().then_some((authorizer, name)));
        }
        let configured = self.config.identity.refresh_authorizer;
        let fits = accepted.iter().find(|(authorizer, _)| *authorizer == configured);
        let switch = match (fits, accepted.first()) {
            (Some((_, name)), _) => format!("identity.refresh_authorizer: {name} (as it is)"),
            (None, Some((_, name))) => {
                format!("identity.refresh_authorizer: {name} (CHANGE IT: every refresh is refused now)")
            }
            (None, None) => "none fits: no customer's session outlives its access token".to_owned(),
        };
        report.add("Whose token authorises a refresh?", &seen.join(", "), &switch);
        Ok(fits.or_else(|| accepted.first()).map(|(authorizer, _)| *authorizer))
    }

    async fn refresh(
        &mut self,
        authorizer: RefreshAuthorizer,
        login: &Answer,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let (_, first) = self.sign_in().await?;
        let renewed = self.redeem(&first, authorizer).await?;
        let old = self.probe.get("validateauthtoken", &[], &first.access).await?;
        let fate = if old.is_success() { "it lives on" } else { "it dies" };
        report.add(
            "Does the old access token die on refresh?",
            &format!("{fate}: {}", old.status),
            "none: a request that meets its end is repeated with the new one",
        );
        // The old access token may be dead: what authorises now is the new one.
        let access = renewed.token("access_token").unwrap_or_else(|| first.access.clone());
        let again = self.redeem(&Tokens { access, refresh: first.refresh }, authorizer).await?;
        let (use_seen, switch) = if again.is_success() {
            ("it works twice", "none: the gateway sends each once".to_owned())
        } else if self.config.refresh.lease < self.config.identity.timeout {
            ("single use", "refresh.lease: longer than identity.timeout, so that no two replicas send one".to_owned())
        } else {
            ("single use", "none: refresh.lease outlasts identity.timeout".to_owned())
        };
        report.add("Does a refresh token work twice?", &format!("{use_seen}: {}", again.status), &switch);
        let window = |answer: &Answer| answer.seconds("refresh_token_expires_in");
        let seen = match (window(login), window(&renewed)) {
            (Some(before), Some(after)) if after < before => format!("it is fixed: {before} s, then {after} s"),
            (Some(before), Some(after)) => format!("it slides: {before} s, then {after} s"),
            _ => "it is not told".to_owned(),
        };
        report.add("Does the refresh token's window slide?", &seen, "none: every answer's own word is taken");
        let brings =
            if renewed.token("saas_token").is_some() { "a refresh brings one" } else { "a refresh brings none" };
        let life = login.saas_seconds(SystemClock.now().seconds());
        let life = life.map_or_else(|| "its life is not told".to_owned(), |life| format!("it lives {life} s"));
        report.add(
            "How long does a saas_token live?",
            &format!("{life}; {brings}"),
            "routes: saas_token: when_valid goes on without, required asks for a new sign-in then",
        );
        Ok(())
    }

    async fn logout(&mut self, authorizer: RefreshAuthorizer, report: &mut Report) -> Result<(), Failure> {
        let (_, tokens) = self.sign_in().await?;
        let left = self.probe.get("logout", &[("accessToken", tokens.access.expose())], &tokens.access).await?;
        let access = self.probe.get("validateauthtoken", &[], &tokens.access).await?;
        // A customer's own token may be dead by now: another sign-in's authorises as well.
        let bearer = Tokens { access: self.sign_in().await?.1.access, refresh: tokens.refresh };
        let refresh = self.redeem(&bearer, authorizer).await?;
        let fate = |answer: &Answer| if answer.is_success() { "lives on" } else { "dies" };
        let seen = format!(
            "{}; access token {} ({}), refresh token {} ({})",
            left.status,
            fate(&access),
            access.status,
            fate(&refresh),
            refresh.status
        );
        report.add("What does a logout end?", &seen, "none: the gateway forgets both before it asks");
        Ok(())
    }

    /// Logs out what was signed in. Some of it is dead already; what cannot be logged out expires.
    async fn leave(&mut self) {
        for access in std::mem::take(&mut self.signed_in) {
            let _ = self.probe.get("logout", &[("accessToken", access.expose())], &access).await;
        }
    }
}
