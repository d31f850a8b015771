//! A shop's traffic over three replicas while Redis dies and comes back and Emporix' token endpoints stall.
//! No session is lost, no cookie is cleared, every refusal is one that an outage allows, and no refresh token is
//! redeemed twice.
//!
//! `FAULTS_SECONDS=120 cargo test --test gateway -- load::` is the full size. What is kept out on purpose: an answer that
//! is lost after Emporix has redeemed, for a spent single-use token ends the customer's half whatever the gateway does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::figures;
use crate::process::ProcessReplica;
use crate::steps::{ANONYMOUS_LOGIN, john};
use crate::world::{Answer, Ask, Tokens, World};

const REPLICAS: usize = 3;
const SHOPPERS: usize = 200;
const ME: &str = "GET /customer/acme/me";
const UNTHROTTLED: &str = r#"{"burst": 1000000, "per_minute": 1000000}"#;

/// Seconds that access lives. Renewal is due for the longer part of it, so that who meets a lost request has time left.
const ACCESS_LIFE: u64 = 8;
const RENEWAL_MARGIN: &str = "0.6";

/// How long a stall lasts, and how long Redis is away.
const STALL: Duration = Duration::from_millis(2_500);
const REDIS_AWAY: Duration = Duration::from_secs(1);
/// Until whatever renewal a fault left unsettled is settled: that happens when access is over.
const SETTLING: Duration = Duration::from_secs(ACCESS_LIFE);

/// The refusals that the failure table names.
const NAMED: [(u16, &str); 6] = [
    (429, "rate_limited"),
    (502, "upstream_failed"),
    (503, "identity_unavailable"),
    (503, "logout_unconfirmed"),
    (503, "store_unavailable"),
    (504, "upstream_timeout"),
];

/// A customer who signed in and goes on shopping.
struct Shopper {
    credential: Credential,
    visits: usize,
}

#[derive(Clone)]
enum Credential {
    Handles(Tokens),
    Cookie(String),
}

impl Credential {
    fn of(answer: &Answer) -> Self {
        match answer.cookies().first() {
            Some(cookie) => Self::Cookie(cookie.split(';').next().unwrap().to_owned()),
            None => Self::Handles(Tokens::of(answer)),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Cookie(_) => "a browser",
            Self::Handles(tokens) if tokens.access.starts_with("eg_a_") => "a visitor",
            Self::Handles(_) => "a customer",
        }
    }

    fn shown<'w>(&self, ask: Ask<'w>) -> Ask<'w> {
        match self {
            Self::Handles(tokens) => ask.bearer(&tokens.access),
            Self::Cookie(cookie) => ask.header("cookie", cookie).header("sec-fetch-site", "same-origin"),
        }
    }
}

/// The traffic, and what became of it.
struct Load {
    world: World,
    replicas: Vec<ProcessReplica>,
    turn: AtomicUsize,
    requests: AtomicU64,
    faults: AtomicU64,
    over: AtomicBool,
    /// Whether Emporix has asked for a pause by now.
    limited: AtomicBool,
    refusals: Mutex<BTreeMap<String, u64>>,
    /// What must not be.
    wrongs: Mutex<Vec<String>>,
    /// Who signed in or visited on the way.
    newcomers: Mutex<Vec<Credential>>,
}

impl Load {
    async fn start() -> Self {
        let builder = World::builder()
            .redis()
            .set("LIMITS__SIGN_IN_PER_ACCOUNT", UNTHROTTLED)
            .set("LIMITS__SIGN_IN_PER_ADDRESS", UNTHROTTLED)
            .set("LIMITS__VISITORS_PER_ADDRESS", UNTHROTTLED)
            .set("REFRESH__MARGIN", RENEWAL_MARGIN)
            // A lease outlasts every absence of Redis, so that nobody is overtaken while Emporix answers.
            .set("REFRESH__LEASE", "5s")
            .set("IDENTITY__TIMEOUT", "6s")
            // A busy machine is no fault of Redis: it is away when it is killed.
            .set("STORE__REDIS__RESPONSE_TIMEOUT", "2s");
        let world = builder.start().await;
        world.simulator.set(json!({"customer_access_ttl": ACCESS_LIFE, "anonymous_access_ttl": ACCESS_LIFE})).await;
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(ProcessReplica::start(&world, &[]).await);
        }
        Self {
            world,
            replicas,
            turn: AtomicUsize::default(),
            requests: AtomicU64::default(),
            faults: AtomicU64::default(),
            over: AtomicBool::default(),
            limited: AtomicBool::default(),
            refusals: Mutex::default(),
            wrongs: Mutex::default(),
            newcomers: Mutex::default(),
        }
    }

    /// The next replica's turn.
    fn anywhere(&self) -> SocketAddr {
        self.replicas[self.turn.fetch_add(1, Ordering::Relaxed) % REPLICAS].public
    }

    fn ask(&self, line: &str) -> Ask<'_> {
        self.world.ask_at(self.anywhere(), line)
    }

    /// Waits for a task's next step. False when the load is over.
    async fn goes_on(&self, pace: &mut Interval) -> bool {
        pace.tick().await;
        !self.over.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        self.wrongs.lock().unwrap().push(what);
    }

    /// Sends a request and judges its answer. Returns it when it is a success.
    async fn succeeds(&self, what: &str, ask: Ask<'_>) -> Option<Answer> {
        let answer = self.judged(what, ask).await?;
        (answer.status < 300).then_some(answer)
    }

    async fn judged(&self, what: &str, ask: Ask<'_>) -> Option<Answer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match ask.try_send().await {
            Err(error) => {
                self.wrong(format!("{what}: no answer: {error:?}"));
                None
            }
            Ok(answer) => {
                if answer.cookies().iter().any(|cookie| cookie.contains("Max-Age=0")) {
                    self.wrong(format!("{what}: the cookie is cleared: {} {}", answer.status, answer.text));
                }
                if answer.status >= 300 {
                    self.judge_refusal(what, &answer);
                }
                Some(answer)
            }
        }
    }

    fn judge_refusal(&self, what: &str, answer: &Answer) {
        let code =
            serde_json::from_str::<Value>(&answer.text).ok().and_then(|body| Some(body["code"].as_str()?.to_owned()));
        let code = code.unwrap_or_default();
        let waits = ![429, 503].contains(&answer.status) || answer.header("retry-after").parse::<u64>().is_ok();
        let fits = match code.as_str() {
            "rate_limited" => self.limited.load(Ordering::Relaxed),
            "logout_unconfirmed" => what == "logout",
            "store_unavailable" => what != "guest",
            _ => true,
        };
        if !(NAMED.contains(&(answer.status, code.as_str())) && waits && fits && answer.cookies().is_empty()) {
            self.wrong(format!("{what}: {} {:?} {}", answer.status, answer.headers, answer.text));
        }
        *self.refusals.lock().unwrap().entry(code).or_default() += 1;
    }

    /// Signs John in anywhere, in either transport.
    async fn sign_in(&self, in_a_browser: bool) -> Option<Credential> {
        let ask = self.ask("POST /customer/acme/login").json(&john());
        let ask = if in_a_browser { ask.header("sec-fetch-site", "same-origin") } else { ask };
        self.succeeds("login", ask).await.map(|answer| Credential::of(&answer))
    }

    /// What one shopper does next: looks at the profile, and with handles sometimes asks for a refresh.
    async fn go_on(&self, shopper: &mut Shopper) {
        shopper.visits += 1;
        match &shopper.credential {
            Credential::Handles(tokens) if shopper.visits.is_multiple_of(5) => {
                let line = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", tokens.refresh);
                if let Some(answer) = self.succeeds("refresh", self.ask(&line)).await {
                    shopper.credential = Credential::of(&answer);
                }
            }
            // A page asks for more than one thing at once, and each may meet another replica.
            credential => {
                let look = || self.succeeds("profile", credential.shown(self.ask(ME)));
                tokio::join!(look(), look(), look());
            }
        }
    }
}

/// A task's pace, so many steps a second.
fn paced(per_second: u64) -> Interval {
    let mut pace = interval(Duration::from_micros(1_000_000 / per_second));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

async fn shop(load: Arc<Load>, mut shoppers: Vec<Shopper>) -> Vec<Shopper> {
    let (mut pace, mut next) = (paced(10), 0);
    while load.goes_on(&mut pace).await {
        load.go_on(&mut shoppers[next]).await;
        next = (next + 1) % shoppers.len();
    }
    shoppers
}

async fn look_around(load: Arc<Load>) {
    let mut pace = paced(20);
    while load.goes_on(&mut pace).await {
        load.succeeds("guest", load.ask("GET /product/acme/products")).await;
    }
}

async fn visit(load: Arc<Load>) {
    let mut pace = paced(4);
    while load.goes_on(&mut pace).await {
        if let Some(answer) = load.succeeds("anonymous login", load.ask(ANONYMOUS_LOGIN)).await {
            load.newcomers.lock().unwrap().push(Credential::of(&answer));
        }
    }
}

async fn come_in(load: Arc<Load>) {
    let (mut pace, mut in_a_browser) = (paced(3), false);
    while load.goes_on(&mut pace).await {
        in_a_browser = !in_a_browser;
        if let Some(credential) = load.sign_in(in_a_browser).await {
            load.newcomers.lock().unwrap().push(credential);
        }
    }
}

/// Logs out sessions that are set apart for it, one after the other. Returns those whose end was promised.
async fn leave(load: Arc<Load>, mut staying: Vec<Credential>) -> Vec<Credential> {
    let (mut pace, mut left) = (paced(2), Vec::new());
    while load.goes_on(&mut pace).await {
        let Some(credential) = staying.pop() else { break };
        match load.logs_out(&credential).await {
            true => left.push(credential),
            false => staying.push(credential),
        }
    }
    left
}

impl Load {
    /// Whether the session is over by the gateway's word, confirmed or not.
    async fn logs_out(&self, credential: &Credential) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = credential.shown(self.ask("POST /_gateway/logout")).send().await;
        if answer.status >= 300 {
            self.judge_refusal("logout", &answer);
        }
        answer.status == 204 || (answer.status == 503 && answer.code() == "logout_unconfirmed")
    }

    /// Lets what has to befall befall, for as long as the load lasts.
    async fn befall(&self) {
        let until = Instant::now() + Duration::from_secs(figures::seconds());
        loop {
            self.stall_while_redis_dies(json!({"mode": "delay", "delay_ms": 1_000})).await;
            self.stall_while_redis_dies(json!({"mode": "status", "status": 503})).await;
            self.stall_while_redis_dies(json!({"mode": "late_answer", "delay_ms": 800})).await;
            // What Redis or a lost request leaves unsettled is sent once more, and only once: no second fault may meet it.
            sleep(SETTLING).await;
            self.lose_requests().await;
            self.ask_for_a_pause().await;
            if Instant::now() >= until {
                return;
            }
            sleep(SETTLING).await;
        }
    }

    async fn stall_while_redis_dies(&self, how: Value) {
        for operation in ["refresh", "login", "anonymous_login", "anonymous_refresh"] {
            let mut fault = how.clone();
            fault["operation"] = operation.into();
            self.inject(fault).await;
        }
        sleep((STALL - REDIS_AWAY) / 2).await;
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.world.redis().kill();
        sleep(REDIS_AWAY).await;
        self.world.redis().restart().await;
        sleep((STALL - REDIS_AWAY) / 2).await;
        self.world.simulator.heal().await;
    }

    /// Connections that break before Emporix has read the request: the gateway cannot tell that from a lost answer.
    /// One at a time: whose access is over already tries again at once, on another replica, and must not lose that too.
    async fn lose_requests(&self) {
        for _ in 0..4 {
            self.inject(json!({"operation": "refresh", "mode": "reset", "times": 1})).await;
            self.inject(json!({"operation": "api", "mode": "reset", "times": 4})).await;
            sleep(Duration::from_millis(500)).await;
        }
        self.world.simulator.heal().await;
    }

    async fn ask_for_a_pause(&self) {
        self.limited.store(true, Ordering::Relaxed);
        let headers = json!({"retry-after": "1"});
        self.inject(json!({"operation": "refresh", "mode": "status", "status": 429, "headers": headers})).await;
        sleep(Duration::from_secs(1)).await;
        self.world.simulator.heal().await;
    }

    async fn inject(&self, fault: Value) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.world.simulator.fault(fault).await;
    }

    /// Whether a session serves once all faults are over. A 401 is the end of it.
    async fn lives(&self, credential: &Credential) -> bool {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            let answer = credential.shown(self.ask(ME)).send().await;
            match answer.status {
                200 => return true,
                401 => {
                    self.wrong(format!("{} is lost: {}", credential.kind(), answer.text));
                    return false;
                }
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
        false
    }

    /// Whether every replica comes to refuse a session, and none forgets it.
    async fn is_refused_everywhere(&self, credential: &Credential) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let mut refusing = 0;
            for replica in &self.replicas {
                let answer = credential.shown(self.world.ask_at(replica.public, ME)).send().await;
                refusing += usize::from(answer.status == 401 && answer.code() == "session_ended");
            }
            if refusing == REPLICAS || Instant::now() > until {
                return refusing == REPLICAS;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn sum(&self, series: &str) -> f64 {
        self.replicas.iter().map(|replica| replica.metric(series)).sum()
    }

    fn refreshes(&self, outcome: &str) -> f64 {
        self.sum(&format!(r#"gateway_refreshes_total{{half="customer",outcome="{outcome}"}}"#))
    }
}

/// Signs in `count` customers, every second one in a browser where wanted.
async fn signed_in(load: &Arc<Load>, count: usize, browsers: bool) -> Vec<Credential> {
    let mut arriving = JoinSet::new();
    for door in 0..8 {
        let load = load.clone();
        arriving.spawn(async move {
            let mut arrived = Vec::new();
            for number in (door..count).step_by(8) {
                arrived.push(load.sign_in(browsers && number / 8 % 2 == 1).await.unwrap_or_else(|| {
                    panic!(
                        "nothing is broken yet: {:?} {:?}",
                        load.wrongs.lock().unwrap(),
                        load.refusals.lock().unwrap()
                    )
                }));
            }
            arrived
        });
    }
    arriving.join_all().await.concat()
}

/// How many of these do not live. All are asked, for nobody may be lost.
async fn lost(load: &Arc<Load>, credentials: Vec<Credential>) -> usize {
    let mut asking = JoinSet::new();
    for some in credentials.chunks(credentials.len().div_ceil(8).max(1)) {
        let (load, some) = (load.clone(), some.to_vec());
        asking.spawn(async move {
            let mut lost = 0;
            for credential in &some {
                lost += usize::from(!load.lives(credential).await);
            }
            lost
        });
    }
    asking.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_lost_while_redis_dies_and_the_token_endpoints_stall() {
    let load = Arc::new(Load::start().await);
    let shoppers = signed_in(&load, SHOPPERS, true).await;
    let leaving = signed_in(&load, 2 * figures::seconds() as usize + 20, true).await;

    let mut traffic = JoinSet::new();
    for some in shoppers.chunks(SHOPPERS / 10) {
        let some = some.iter().map(|credential| Shopper { credential: credential.clone(), visits: 0 }).collect();
        traffic.spawn(shop(load.clone(), some));
    }
    let mut strangers = JoinSet::new();
    strangers.spawn(look_around(load.clone()));
    strangers.spawn(visit(load.clone()));
    strangers.spawn(come_in(load.clone()));
    let leaving = tokio::spawn(leave(load.clone(), leaving));
    load.befall().await;
    load.over.store(true, Ordering::Relaxed);
    let shoppers = traffic.join_all().await.into_iter().flatten().map(|shopper| shopper.credential);
    strangers.join_all().await;
    let left = leaving.await.unwrap();

    // Every customer's tokens are renewed once more: who serves now has not lost the last one.
    load.world.simulator.expire("customer_access").await;
    let newcomers = std::mem::take(&mut *load.newcomers.lock().unwrap());
    let alive: Vec<Credential> = shoppers.chain(newcomers).collect();
    let sessions = alive.len();
    let lost = lost(&load, alive).await;
    let mut undead = 0;
    for credential in &left {
        undead += usize::from(!load.is_refused_everywhere(credential).await);
    }

    let redeems = load.world.simulator.redeems().await;
    let most = redeems.iter().copied().max().unwrap_or_default();
    let (faults, requests) = (load.faults.load(Ordering::Relaxed), load.requests.load(Ordering::Relaxed));
    figures::record("replicas", REPLICAS);
    figures::record("faults", faults);
    figures::record("requests", requests);
    figures::record("sessions_lost", lost);
    figures::record("redeems_per_generation", most);
    let refusals = load.refusals.lock().unwrap().clone();
    println!("{sessions} sessions, {} left, {} generations, refused {refusals:?}", left.len(), redeems.len());
    for outcome in ["renewed", "recovered", "followed", "superseded", "unknown", "unavailable", "rejected", "lost"] {
        println!("{outcome}: {}", load.refreshes(outcome));
    }

    let wrongs = load.wrongs.lock().unwrap().clone();
    assert!(wrongs.is_empty(), "{} of {requests}: {:#?}", wrongs.len(), &wrongs[..wrongs.len().min(20)]);
    assert_eq!((lost, undead), (0, 0), "of {sessions} sessions, and of {} that left", left.len());
    assert_eq!(most, 1, "no refresh token is redeemed twice");
    assert_eq!((load.refreshes("lost"), load.refreshes("rejected")), (0.0, 0.0));
    for replica in &load.replicas {
        assert!(!replica.logged().contains("panicked"), "a replica panicked");
    }
    // The faults were felt, or nothing is proved.
    for code in ["store_unavailable", "identity_unavailable"] {
        assert!(refusals.contains_key(code), "{code}: {refusals:?}");
    }
    assert!(load.refreshes("recovered") >= 1.0, "a lost request was sent once more");
    assert!(redeems.len() >= 2 * SHOPPERS && left.len() >= 10, "{} redeems, {} left", redeems.len(), left.len());
}
