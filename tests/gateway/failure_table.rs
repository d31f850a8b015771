//! What clients see when something around the gateway fails: every failure is brought about, every answer observed.
//! The page that operators read, `docs/FAILURES.md`, is what was observed, to the letter.
//!
//! `WRITE_FAILURES=1 cargo test --test gateway -- failure_table::` writes the page anew.

mod api;
mod redis;
mod token_endpoints;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::world::{Answer, Ask, World, eventually, metric};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/FAILURES.md");

const HEAD: &str = "\
# What happens when something fails

For whoever is woken at night. Find what failed, read what clients get meanwhile, and how it ends. **No restart of the
gateway is needed once the cause is gone,** and no failure logs anybody out: a client is told that its session is over (401
`session_ended`) when the session does not exist. The one exception is a refresh whose answer was lost after Emporix had
spent the token: that customer signs in again.

This page is written by `tests/gateway/failure_table.rs`, which brings every failure about and notes what it observes.

How to read the tables: *Retry-After* in seconds; a dash: none. *Set-Cookie* as a browser gets it; a dash: the cookie
stays as it is. *What moves* are series of `/metrics`. \"Hot\" is a session that the replica holds in memory, \"cold\" one that
it has to ask the store for. A 200 is the answer of the API.

";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_on_failures_says_what_is_observed() {
    let (redis, token_endpoints, api) = tokio::join!(redis::chapter(), token_endpoints::chapter(), api::chapter());
    let observed = [HEAD, &redis, &token_endpoints, &api].concat();
    if is_to_be_written() {
        std::fs::write(PAGE, &observed).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    for (number, (said, seen)) in page.lines().zip(observed.lines()).enumerate() {
        assert_eq!(said, seen, "line {} of docs/FAILURES.md says otherwise than what happens", number + 1);
    }
    assert_eq!(page.lines().count(), observed.lines().count(), "docs/FAILURES.md is of another length");
}

#[expect(clippy::disallowed_methods, reason = "a wish of whoever runs the test, not configuration")]
fn is_to_be_written() -> bool {
    std::env::var("WRITE_FAILURES").is_ok_and(|wish| wish == "1")
}

/// Observes all failures, `at_once` at a time, each on a thread of its own.
async fn observe_all<F: Send + 'static, O: Future<Output = During>>(
    at_once: usize,
    failures: impl IntoIterator<Item = F>,
    observe: impl Fn(F) -> O + Copy + Send + 'static,
) -> Vec<During> {
    let turns = Arc::new(Semaphore::new(at_once));
    let observed = failures.into_iter().map(|failure| {
        let turns = turns.clone();
        tokio::task::spawn_blocking(move || {
            Handle::current().block_on(async move {
                let _turn = turns.acquire().await.unwrap();
                observe(failure).await
            })
        })
    });
    let mut all = Vec::new();
    for during in observed.collect::<Vec<_>>() {
        all.push(during.await.unwrap());
    }
    all
}

/// What was observed of one request.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    asked: &'static str,
    answer: String,
    retry_after: String,
    cookie: &'static str,
    moved: String,
}

/// The observations during one failure.
struct During {
    failure: &'static str,
    seen: Vec<Seen>,
}

impl During {
    fn new(failure: &'static str) -> Self {
        Self { failure, seen: Vec::new() }
    }

    /// Sends a request and notes what came of it, and which of the `watched` series of `replica` moved.
    async fn note(
        &mut self,
        asked: &'static str,
        (world, replica): (&World, usize),
        watched: &[&str],
        within: Duration,
        ask: Ask<'_>,
    ) -> Answer {
        let (before, started) = (world.replicas[replica].metrics(), Instant::now());
        let answer = ask.send().await;
        let took = started.elapsed();
        assert!(took < within, "{}, {asked}: {took:?}", self.failure);
        self.hold_to_its_word(asked, &answer);
        let moved = moved(world, replica, &before, watched).await;
        self.seen.push(Seen {
            asked,
            answer: said(&answer),
            retry_after: or_dash(answer.header("retry-after")),
            cookie: cookie_of(&answer),
            moved: or_dash(moved),
        });
        answer
    }

    /// What holds of every answer: a refusal of the gateway's own for a while says for how long, and only absence ends
    /// a session.
    fn hold_to_its_word(&self, asked: &str, answer: &Answer) {
        let is_problem = answer.header("content-type") == "application/problem+json";
        if is_problem && [429, 503].contains(&answer.status) {
            let retry_after = answer.header("retry-after").parse::<u32>();
            assert!(retry_after.is_ok(), "{}, {asked}: no Retry-After: {}", self.failure, answer.text);
        }
        if answer.status >= 500 {
            assert_eq!(answer.cookies(), Vec::<String>::new(), "{}, {asked}: the cookie is touched", self.failure);
        }
    }
}

/// Which of the `watched` series moved. That a request ended is counted behind its answer, and in one of them.
async fn moved(world: &World, replica: usize, before: &str, watched: &[&str]) -> String {
    let moved = || {
        let now = world.replicas[replica].metrics();
        let moved = watched.iter().filter(|series| metric(&now, series) > metric(before, series));
        moved.map(|series| format!("`{series}`")).collect::<Vec<_>>().join(", ")
    };
    if watched.iter().any(|series| series.starts_with("gateway_requests_total")) {
        eventually("the request is counted", async || !moved().is_empty()).await;
    }
    moved()
}

fn said(answer: &Answer) -> String {
    match answer.header("content-type").as_str() {
        "application/problem+json" => format!("{} `{}`", answer.status, answer.code()),
        "text/plain" if answer.status >= 400 => format!("{} \"{}\"", answer.status, answer.text.trim()),
        _ => answer.status.to_string(),
    }
}

fn cookie_of(answer: &Answer) -> &'static str {
    match &answer.cookies()[..] {
        [] => "–",
        [only] if only.contains("Max-Age=0") => "expired",
        [_] => "set",
        more => panic!("{more:?}"),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "–".to_owned() } else { text }
}

/// One table of all failures: for each kind of request its answers, and during which failures it gets them.
fn table(all: &[During]) -> String {
    let seen = || all.iter().flat_map(|during| during.seen.iter().map(move |seen| (during.failure, seen)));
    let row = |cells: [&str; 6]| format!("| {} |\n", cells.join(" | "));
    let mut text = row(["request", "failure", "answer", "Retry-After", "Set-Cookie", "what moves"]) + &row(["---"; 6]);
    let mut order: Vec<&str> = Vec::new();
    for (_, Seen { asked, .. }) in seen() {
        if !order.contains(asked) {
            order.push(asked);
        }
    }
    for asked in order {
        let outcomes = outcomes(seen().filter(|(_, seen)| seen.asked == asked));
        for (number, (seen, failures)) in outcomes.iter().enumerate() {
            let asked = if number == 0 { asked } else { "" };
            let failures = if failures.len() == all.len() { "any".to_owned() } else { failures.join(", ") };
            text += &row([asked, &failures, &seen.answer, &seen.retry_after, seen.cookie, &seen.moved]);
        }
    }
    text
}

/// What was seen, each with the failures during which it was.
fn outcomes<'a>(seen: impl Iterator<Item = (&'static str, &'a Seen)>) -> Vec<(&'a Seen, Vec<&'static str>)> {
    let mut outcomes: Vec<(&Seen, Vec<&str>)> = Vec::new();
    for (failure, seen) in seen {
        match outcomes.iter_mut().find(|(first, _)| *first == seen) {
            Some((_, failures)) => failures.push(failure),
            None => outcomes.push((seen, vec![failure])),
        }
    }
    outcomes
}

/// A browser of the storefront's own origin that can talk to any replica.
struct Shopper {
    cookie: String,
}

impl Shopper {
    /// A visitor, at replica 0.
    async fn visitor(world: &World) -> Self {
        let ask = world.ask("GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront");
        Self::of(&ask.header("sec-fetch-site", "same-origin").send().await)
    }

    /// A customer who signed in, at replica 0.
    async fn customer(world: &World) -> Self {
        let visitor = Self::visitor(world).await;
        Self::of(&visitor.ask(world, 0, "POST /customer/acme/login").json(&crate::steps::john()).send().await)
    }

    fn of(answer: &Answer) -> Self {
        assert_eq!((answer.status, answer.cookies().len()), (200, 1), "{}", answer.text);
        Self { cookie: answer.cookies()[0].split(';').next().unwrap().to_owned() }
    }

    fn ask<'w>(&self, world: &'w World, replica: usize, line: &str) -> Ask<'w> {
        world.ask_replica(replica, line).header("sec-fetch-site", "same-origin").header("cookie", &self.cookie)
    }

    /// Uses the session at `replica`, which then has it in memory.
    async fn warm(&self, world: &World, replica: usize) {
        let answer = self.ask(world, replica, ME).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}

const ME: &str = "GET /customer/acme/me";
const PRODUCTS: &str = "GET /product/acme/products";
const ANONYMOUS_LOGIN: &str = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
const LOGIN: &str = "POST /customer/acme/login";
const REFRESH: &str = "GET /customer/acme/refreshauthtoken?refreshToken=cookie.customer-refresh";
const LOGOUT: &str = "POST /_gateway/logout";
const OWN: &str = "GET /_gateway/session";
const READY: &str = "GET /readyz";

fn refs(series: &[String]) -> Vec<&str> {
    series.iter().map(String::as_str).collect()
}
