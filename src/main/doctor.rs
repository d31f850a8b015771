//! `emporix-gateway doctor`: asks a live tenant what Emporix' documentation leaves open, and says which switch the answer
//! wants. It signs a test customer in and out, makes one wrong sign-in, provokes no limit, and tells no token. A 429, a 5xx
//! or silence is no answer: no advice is drawn from it.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use emporix_gateway::clock::{Clock, SystemClock};
use emporix_gateway::config::{self, Config, RefreshAuthorizer, Secret, span_text};

use super::probe::{Answer, Probe, Word};
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

/// What no probe can find out without harm, or in the time of one; and what to do where it matters.
const NOT_ASKED: [&str; 5] = [
    "whether a change of password or e-mail address ends tokens: it would change the customer. The gateway ends the \
     customer's other sessions itself, and all of them by webhook events",
    "at which rate Emporix answers 429: it would have to be provoked. The gateway waits as long as a 429 says",
    "what social login and token exchange answer: they need an identity provider. Sign in through the gateway by each",
    "the unit of session_idle_time: it takes an idle session. Where Emporix ends idle customers, set \
     session.customer_idle below that",
    "whether a logout ends the saas_token: only an order would tell. The gateway forgets it, and it dies by its own end",
];

const REFRESH: &str = "Whose token authorises a refresh?";
const OLD_ACCESS: &str = "Does the old access token die on refresh?";
const TWICE: &str = "Does a refresh token work twice?";
const WINDOW: &str = "Does the refresh token's window slide?";
const SAAS: &str = "How long does a saas_token live?";
const LOGOUT: &str = "What does a logout end?";
const CONTEXT: &str = "Does a logout end the session context?";

/// Asks. Returns what is to be shown, and beside it the failure when not all could be asked.
pub(super) fn run(
    errand: &Doctor,
    environment: HashMap<String, String>,
) -> Result<(String, Result<(), Failure>), Failure> {
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
struct Report {
    text: String,
    /// Questions that Emporix left without an answer, or without a part of it.
    open: usize,
}

impl Report {
    fn add(&mut self, question: &str, seen: &str, switch: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.text, "{question}\n  seen    {seen}\n  switch  {switch}");
    }

    /// Adds what was seen, some of which may be missing: then no switch is advised that would hang on it.
    fn add_if_whole(&mut self, question: &str, words: &[Word], seen: &str, switch: &str) {
        if words.contains(&Word::Nothing) {
            self.open += 1;
            self.add(question, seen, "no advice: ask again later");
        } else {
            self.add(question, seen, switch);
        }
    }

    /// Adds questions that could not be asked.
    fn unasked(&mut self, questions: &[&str], why: &str) {
        for question in questions {
            self.add_if_whole(question, &[Word::Nothing], &could_not(why), "");
        }
    }

    fn shown(mut self) -> (String, Result<(), Failure>) {
        let _ = write!(self.text, "not asked");
        for question in NOT_ASKED {
            let _ = write!(self.text, "\n  {question}");
        }
        let asked = match self.open {
            0 => Ok(()),
            1 => Err((UNAVAILABLE, "1 question could not be asked, or not as a whole".to_owned())),
            open => Err((UNAVAILABLE, format!("{open} questions could not be asked, or not as a whole"))),
        };
        (self.text, asked)
    }
}

fn could_not(why: &str) -> String {
    format!("could not be asked ({why})")
}

const NONE: &str = "none: the gateway takes either";

async fn examine(
    config: &Config,
    probe: &Probe,
    customer: Option<(&str, Secret)>,
    report: &mut Report,
) -> Result<(), Failure> {
    let visitor = probe.anonymous_login().await;
    let shape = visitor.shape();
    let guest = visitor.token("access_token").filter(|_| visitor.word() == Word::Yes);
    let guest = guest.ok_or_else(|| (UNAVAILABLE, failed("anonymous login", &visitor)))?;
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

fn failed(what: &str, answer: &Answer) -> String {
    let how = if answer.word() == Word::Nothing { "could not be asked" } else { "was refused" };
    format!("{what} {how}: {}", answer.shape())
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
        Some(Self { access: access?, refresh: refresh? }).filter(|_| answer.word() == Word::Yes)
    }
}

impl Examined<'_> {
    async fn customer(&mut self, report: &mut Report) -> Result<(), Failure> {
        let wrong = self.probe.login(self.email, "emporix-gateway doctor", &self.guest).await;
        let about = if wrong.body["fault"].is_object() { "the shape of a token's end" } else { "no token's end" };
        let word = wrong.word_of_refusal();
        let seen = match word {
            Word::Nothing => could_not(&wrong.told()),
            _ => format!("{}; {about}", wrong.shape()),
        };
        report.add_if_whole("What does a wrong password answer?", &[word], &seen, "none: it is passed on");
        let signed_in = self.sign_in().await;
        let (login, _) = signed_in.map_err(|answer| (UNAVAILABLE, failed("the test customer's sign-in", &answer)))?;
        report.add("What does a login answer?", &login.shape(), NONE);
        let form = if login.body["expires_in"].is_string() { "text" } else { "number" };
        report.add("Is expires_in a number or a text?", form, NONE);
        let camel = if login.body["accessToken"].is_string() { "still sent" } else { "no longer sent" };
        report.add("Are camelCase fields sent?", camel, NONE);
        let (word, authorizer) = self.authorizer(report).await;
        if word == Word::No {
            return Ok(());
        }
        let authorizer = Some(authorizer).filter(|_| word == Word::Yes);
        self.refresh(authorizer, &login, report).await;
        self.logout(authorizer, report).await;
        Ok(())
    }

    /// Signs in; the answer where that is no success.
    async fn sign_in(&mut self) -> Result<(Answer, Tokens), Answer> {
        let answer = self.probe.login(self.email, self.password.expose(), &self.guest).await;
        let Some(tokens) = Tokens::of(&answer) else { return Err(answer) };
        self.signed_in.push(tokens.access.clone());
        Ok((answer, tokens))
    }

    async fn redeem(&mut self, tokens: &Tokens, authorizer: RefreshAuthorizer) -> Answer {
        let bearer = match authorizer {
            RefreshAuthorizer::Anonymous => &self.guest,
            RefreshAuthorizer::Customer => &tokens.access,
        };
        let answer = self.probe.get("refreshauthtoken", &[("refreshToken", tokens.refresh.expose())], bearer).await;
        self.signed_in.extend(answer.token("access_token"));
        answer
    }

    /// Which authorizer a refresh accepts: each is tried with tokens of its own, for a refused try may spend them. The word
    /// that was heard of both, and whose token to go on with where that is a yes.
    async fn authorizer(&mut self, report: &mut Report) -> (Word, RefreshAuthorizer) {
        let (mut seen, mut words) = (Vec::new(), Vec::new());
        let (configured, other) = match self.config.identity.refresh_authorizer {
            RefreshAuthorizer::Anonymous => (RefreshAuthorizer::Anonymous, RefreshAuthorizer::Customer),
            RefreshAuthorizer::Customer => (RefreshAuthorizer::Customer, RefreshAuthorizer::Anonymous),
        };
        for authorizer in [configured, other] {
            let (told, word) = match self.sign_in().await {
                Ok((_, tokens)) => {
                    let answer = self.redeem(&tokens, authorizer).await;
                    (answer.told(), answer.word())
                }
                Err(answer) => (of_sign_in(&answer), Word::Nothing),
            };
            let told = if word == Word::Nothing { could_not(&told) } else { told };
            seen.push(format!("{}: {told}", name(authorizer)));
            words.push(word);
        }
        let switch = match words[..] {
            [Word::Yes, _] => format!("identity.refresh_authorizer: {} (as it is)", name(configured)),
            [_, Word::Yes] => {
                format!("identity.refresh_authorizer: {} (CHANGE IT: every refresh is refused now)", name(other))
            }
            _ => "none fits: no customer's session outlives its access token".to_owned(),
        };
        // What works as it is, works whatever the other would have said.
        let decides = if words[0] == Word::Yes { &words[..1] } else { &words[..] };
        report.open += usize::from(decides.len() < words.len() && words.contains(&Word::Nothing));
        report.add_if_whole(REFRESH, decides, &seen.join(", "), &switch);
        match words[..] {
            [Word::Yes, _] => (Word::Yes, configured),
            [_, Word::Yes] => (Word::Yes, other),
            [Word::No, Word::No] => (Word::No, configured),
            _ => (Word::Nothing, configured),
        }
    }

    async fn refresh(&mut self, authorizer: Option<RefreshAuthorizer>, login: &Answer, report: &mut Report) {
        let renewed = match authorizer {
            Some(authorizer) => self.renewed(authorizer, report).await,
            None => Err("no refresh was answered".to_owned()),
        };
        let window = |answer: &Answer| answer.seconds("refresh_token_expires_in");
        match &renewed {
            Err(why) => report.unasked(&[OLD_ACCESS, TWICE, WINDOW], why),
            Ok(renewed) => {
                let seen = match (window(login), window(renewed)) {
                    (Some(before), Some(after)) if after < before => format!("it is fixed: {before} s, then {after} s"),
                    (Some(before), Some(after)) => format!("it slides: {before} s, then {after} s"),
                    _ => "it is not told".to_owned(),
                };
                report.add(WINDOW, &seen, "none: every answer's own word is taken");
            }
        }
        let life = login.saas_seconds(SystemClock.now().seconds());
        let life = life.map_or_else(|| "its life is not told".to_owned(), |life| format!("it lives {life} s"));
        let brings = match &renewed {
            Ok(renewed) if renewed.token("saas_token").is_some() => "a refresh brings one".to_owned(),
            Ok(_) => "a refresh brings none".to_owned(),
            Err(why) => format!("whether a refresh brings one {}", could_not(why)),
        };
        let switch = "routes: saas_token: when_valid goes on without, required asks for a new sign-in then";
        report.add(SAAS, &format!("{life}; {brings}"), switch);
    }

    /// A refresh's answer, and what became of the tokens that it replaced; or why there is none.
    async fn renewed(&mut self, authorizer: RefreshAuthorizer, report: &mut Report) -> Result<Answer, String> {
        let (_, first) = self.sign_in().await.map_err(|answer| of_sign_in(&answer))?;
        let renewed = self.redeem(&first, authorizer).await;
        let access = renewed.token("access_token").filter(|_| renewed.word() == Word::Yes);
        let access = access.ok_or_else(|| format!("the refresh answered {}", renewed.told()))?;
        let old = self.probe.get("validateauthtoken", &[], &first.access).await;
        let switch = "none: a request that meets its end is repeated with the new one";
        report.add_if_whole(OLD_ACCESS, &[old.word()], &fate("it", &old), switch);
        // The old access token may be dead: what authorises now is the new one.
        let again = self.redeem(&Tokens { access, refresh: first.refresh }, authorizer).await;
        let (seen, switch) = match again.word() {
            Word::Yes => (format!("it works twice: {}", again.told()), "none: the gateway sends each once".to_owned()),
            Word::No => (format!("single use: {}", again.told()), self.lease()),
            Word::Nothing => (could_not(&again.told()), String::new()),
        };
        report.add_if_whole(TWICE, &[again.word()], &seen, &switch);
        Ok(renewed)
    }

    /// What becomes of `refresh.lease` where refresh tokens are of single use.
    fn lease(&self) -> String {
        let (lease, timeout) = (self.config.refresh.lease, self.config.identity.timeout);
        let longer = Duration::from_secs((timeout.mul_f32(1.5).as_secs()).max(timeout.as_secs() + 1));
        let [have, bound, enough] = [lease, timeout, longer].map(span_text);
        if lease > timeout {
            format!("refresh.lease: {have} (as it is: it outlasts identity.timeout, {bound}; raise both together)")
        } else {
            format!(
                "refresh.lease: {enough} (CHANGE IT: {have} does not outlast identity.timeout, {bound}, so two replicas \
                 may send one token)"
            )
        }
    }

    async fn logout(&mut self, authorizer: Option<RefreshAuthorizer>, report: &mut Report) {
        let tokens = match self.sign_in().await {
            Ok((_, tokens)) => tokens,
            Err(answer) => return report.unasked(&[LOGOUT, CONTEXT], &of_sign_in(&answer)),
        };
        let context = self.probe.context(&tokens.access).await;
        let left = self.probe.get("logout", &[("accessToken", tokens.access.expose())], &tokens.access).await;
        if left.word() == Word::Nothing {
            return report.unasked(&[LOGOUT, CONTEXT], &format!("the logout answered {}", left.told()));
        }
        let access = self.probe.get("validateauthtoken", &[], &tokens.access).await;
        // A customer's own token may be dead by now: another sign-in's authorises as well.
        let refresh = match (authorizer, self.sign_in().await) {
            (None, _) => Err("no refresh was answered".to_owned()),
            (_, Err(answer)) => Err(of_sign_in(&answer)),
            (Some(authorizer), Ok((_, other))) => {
                Ok(self.redeem(&Tokens { access: other.access, refresh: tokens.refresh }, authorizer).await)
            }
        };
        let refresh_word = refresh.as_ref().map_or(Word::Nothing, Answer::word);
        let refresh =
            refresh.map_or_else(|why| format!("refresh token {}", could_not(&why)), |it| fate("refresh token", &it));
        let seen = format!("{}; {}, {refresh}", left.told(), fate("access token", &access));
        let switch = "none: the gateway forgets both before it asks";
        report.add_if_whole(LOGOUT, &[access.word(), refresh_word], &seen, switch);
        self.context_after(&context, report).await;
    }

    /// What the visitor, whose visit it was, sees of the customer's context.
    async fn context_after(&self, before: &Answer, report: &mut Report) {
        let after = self.probe.context(&self.guest).await;
        let seen = |answer: &Answer| {
            let whose = if answer.body["customerId"].is_null() { "nobody's" } else { "a customer's" };
            match answer.word_of_existence() {
                Word::Yes => format!("{} ({whose})", answer.told()),
                Word::No => answer.told(),
                Word::Nothing => could_not(&answer.told()),
            }
        };
        let words = [before, &after].map(Answer::word_of_existence);
        let seen = format!("the customer's before: {}; the visitor's after: {}", seen(before), seen(&after));
        report.add_if_whole(CONTEXT, &words, &seen, "none: the gateway gives the visit up with the session");
    }

    /// Logs out what was signed in. Some of it is dead already; what cannot be logged out expires.
    async fn leave(&mut self) {
        for access in std::mem::take(&mut self.signed_in) {
            self.probe.get("logout", &[("accessToken", access.expose())], &access).await;
        }
    }
}

const fn name(authorizer: RefreshAuthorizer) -> &'static str {
    match authorizer {
        RefreshAuthorizer::Anonymous => "anonymous",
        RefreshAuthorizer::Customer => "customer",
    }
}

fn of_sign_in(answer: &Answer) -> String {
    format!("the sign-in answered {}", answer.told())
}

/// What became of a token, by the answer to a call with it.
fn fate(token: &str, answer: &Answer) -> String {
    match answer.word() {
        Word::Yes => format!("{token} lives on ({})", answer.told()),
        Word::No => format!("{token} dies ({})", answer.told()),
        Word::Nothing => format!("{token} {}", could_not(&answer.told())),
    }
}
