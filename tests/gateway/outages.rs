//! What breaks around the gateway, and what clients see of it: "cannot know" is never "does not exist".
//! Every outage heals without a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::world::{Answer, Customer, Redis, SlowPath, World, eventually};

const ME: &str = "GET /customer/acme/me";

async fn me(world: &World, replica: usize, handle: &str) -> Answer {
    world.ask_replica(replica, ME).bearer(handle).send().await
}

/// Sends a request and holds it to the bound of an outage: an answer within a second.
async fn promptly(answer: impl Future<Output = Answer>) -> Answer {
    let asked = Instant::now();
    let answer = answer.await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}: {}", asked.elapsed(), answer.text);
    answer
}

fn cannot_know(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"), "{}", answer.text);
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    assert_eq!(answer.cookies(), Vec::<String>::new(), "a 503 never touches the cookie");
}

fn is_over(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (401, "session_ended"), "{}", answer.text);
}

async fn logout(world: &World, replica: usize, customer: &Customer) -> Answer {
    let handle = &customer.tokens.access;
    let line = format!("GET /customer/acme/logout?accessToken={handle}");
    world.ask_replica(replica, &line).bearer(handle).send().await
}

/// The records among these keys.
fn records(redis_keys: &[String]) -> Vec<String> {
    redis_keys.iter().filter(|key| key.ends_with(":session")).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_hot_sessions_are_served_for_a_grace_and_cold_ones_cannot_be_known() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = world.customer().await;
    let browser = world.browser();
    browser.login().await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    world.redis().kill();

    world.clock.advance(Duration::from_secs(40));
    let hot = promptly(me(&world, 0, &customer.tokens.access)).await;
    assert_eq!(hot.status, 200, "served within the grace: {}", hot.text);
    cannot_know(&promptly(me(&world, 1, &customer.tokens.access)).await);
    let guest = promptly(world.ask_replica(1, "GET /product/acme/products").send()).await;
    assert_eq!(guest.status, 200, "guest routes need no store");

    world.clock.advance(Duration::from_secs(25));
    cannot_know(&promptly(me(&world, 0, &customer.tokens.access)).await);
    cannot_know(&promptly(browser.send(ME, |ask| ask)).await);
    assert!(browser.cookie.lock().unwrap().is_some());

    world.redis().restart().await;
    for replica in [0, 1] {
        eventually("it heals", async || me(&world, replica, &customer.tokens.access).await.status == 200).await;
    }
    assert_eq!(browser.send(ME, |ask| ask).await.status, 200, "the browser is still signed in");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_nobody_signs_in_and_emporix_is_not_called() {
    let world = World::builder().redis().start().await;
    let visitor = world.visitor().await;
    world.redis().kill();
    world.simulator.forget_calls().await;
    cannot_know(&promptly(world.login(&visitor.access, "john.doe@example.com")).await);
    let body = json!({"email": "john.doe@example.com", "password": "password123"});
    cannot_know(&promptly(world.ask("POST /customer/acme/login").json(&body).send()).await);
    cannot_know(&promptly(world.browser().login()).await);
    let anonymous = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
    cannot_know(&promptly(world.ask(anonymous).send()).await);
    for operation in ["login", "anonymous_login"] {
        assert_eq!(world.simulator.calls(operation).await, 0, "{operation}");
    }
    world.redis().restart().await;
    eventually("it heals", async || world.login(&visitor.access, "john.doe@example.com").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_without_redis_is_refused_here_at_once_and_everywhere_when_redis_is_back() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = world.customer().await;
    let browser = world.browser();
    browser.login().await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    world.redis().kill();

    let unconfirmed = promptly(logout(&world, 0, &customer)).await;
    assert_eq!((unconfirmed.status, unconfirmed.code().as_str()), (503, "logout_unconfirmed"));
    assert!(!unconfirmed.header("retry-after").is_empty());
    is_over(&promptly(me(&world, 0, &customer.tokens.access)).await);
    let cookie = browser.cookie.lock().unwrap().clone();
    let own = promptly(browser.send("POST /_gateway/logout", |ask| ask)).await;
    assert_eq!((own.status, own.cookies().len()), (503, 0), "the cookie stays: {}", own.text);
    assert_eq!(*browser.cookie.lock().unwrap(), cookie);
    eventually("Emporix was told", async || world.simulator.calls("logout").await == 2).await;

    world.redis().restart().await;
    eventually("the sessions are gone", async || records(&world.redis().keys()).is_empty()).await;
    is_over(&me(&world, 0, &customer.tokens.access).await);
    is_over(&me(&world, 1, &customer.tokens.access).await);
    is_over(&browser.send(ME, |ask| ask).await);
    assert!(browser.cookie.lock().unwrap().is_none(), "now it is known to be gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_means_that_sessions_do_not_exist() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = world.customer().await;
    let browser = world.browser();
    browser.login().await;
    world.redis().command("FLUSHALL");
    world.clock.advance(Duration::from_secs(31));
    for replica in [0, 1] {
        is_over(&me(&world, replica, &customer.tokens.access).await);
    }
    let gone = browser.send(ME, |ask| ask).await;
    is_over(&gone);
    assert!(gone.cookies()[0].contains("Max-Age=0"), "the cookie is expired: {:?}", gone.cookies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_is_no_missing_session() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = world.customer().await;
    for key in records(&world.redis().keys()) {
        for garbage in ["garbage", "00000001garbage-that-is-longer-than-any-head-of-a-record"] {
            world.redis().command(&format!("SET {key} {garbage} EX 600"));
            cannot_know(&me(&world, 1, &customer.tokens.access).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_opens_under_its_own_key_only() {
    let world = World::builder().redis().replicas(2).start().await;
    let mallory = world.customer().await;
    let [own] = &records(&world.redis().keys())[..] else { panic!("one session is stored") };
    let john = world.customer().await;
    let keys = records(&world.redis().keys());
    let johns = keys.iter().find(|key| *key != own).unwrap();
    assert!(world.redis().command(&format!("COPY {johns} {own} REPLACE")).starts_with(":1"));
    cannot_know(&me(&world, 1, &mallory.tokens.access).await);
    assert_eq!(me(&world, 1, &john.tokens.access).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_in_redis_survive_a_restart_of_the_gateway_and_a_change_of_the_sealing_key() {
    const BOTH: &str = r#"[{"id": "next", "secret": "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="},
        {"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#;
    let mut world = World::builder().redis().start().await;
    let customer = world.customer().await;
    world.gateway().stop();
    tokio::task::block_in_place(|| world.replicas[0].join());

    let same = world.add_replica(&[]).await;
    assert_eq!(me(&world, same, &customer.tokens.access).await.status, 200);
    let rotated = world.add_replica(&[("STORE__SEAL__ACTIVE", "next"), ("STORE__SEAL__KEYS", BOTH)]).await;
    assert_eq!(me(&world, rotated, &customer.tokens.access).await.status, 200, "the old key still opens");
    let line = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", customer.tokens.refresh);
    let written = world.ask_replica(rotated, &line).bearer(&customer.visitor.access).send().await;
    assert_eq!(written.status, 200, "{}", written.text);
    assert_eq!(me(&world, rotated, &customer.tokens.access).await.status, 200);
    world.clock.advance(Duration::from_secs(61));
    cannot_know(&me(&world, same, &customer.tokens.access).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_on_one_replica_empties_the_others_cache() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = world.customer().await;
    assert_eq!(me(&world, 1, &customer.tokens.access).await.status, 200);
    assert_eq!(logout(&world, 0, &customer).await.status, 204);
    is_over(&me(&world, 0, &customer.tokens.access).await);
    eventually("the other replica hears of it", async || me(&world, 1, &customer.tokens.access).await.status == 401)
        .await;
    is_over(&me(&world, 1, &customer.visitor.access).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_there_and_says_nothing_is_as_good_as_away_and_heals_by_itself() {
    let redis = Redis::start().await;
    let path = SlowPath::start(redis.port).await;
    let world = World::builder()
        .set("STORE__KIND", "redis")
        .set("STORE__REDIS__URL", format!("redis://127.0.0.1:{}", path.port))
        .set("STORE__SEAL__ACTIVE", "test")
        .set("STORE__SEAL__KEYS", r#"[{"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#)
        .replicas(2)
        .start()
        .await;
    let customer = world.customer().await;
    path.hold();
    world.simulator.forget_calls().await;
    assert_eq!(promptly(me(&world, 0, &customer.tokens.access)).await.status, 200, "hot");
    cannot_know(&promptly(me(&world, 1, &customer.tokens.access)).await);
    cannot_know(&promptly(world.login(&customer.visitor.access, "john.doe@example.com")).await);
    cannot_know(&promptly(world.ask("GET /customerlogin/auth/anonymous/login?tenant=acme").send()).await);
    assert_eq!(world.simulator.calls("login").await + world.simulator.calls("anonymous_login").await, 0);
    path.let_go();
    eventually("the cold replica knows again", async || me(&world, 1, &customer.tokens.access).await.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_and_goes_takes_no_grace_from_hot_sessions() {
    let world = World::builder().redis().start().await;
    let customer = world.customer().await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    let hits = || world.gateway().metric(r#"gateway_breaker_events_total{dependency="store",event="closed"}"#);
    world.redis().kill();
    cannot_know(&me_cold(&world).await);
    let before = hits();
    world.redis().restart().await;
    eventually("it is back", async || hits() > before).await;
    world.redis().kill();
    for _ in 0..10 {
        let hot = promptly(me(&world, 0, &customer.tokens.access)).await;
        assert_eq!(hot.status, 200, "still within its grace: {}", hot.text);
    }
    world.redis().restart().await;
}

/// How often Redis did `command` since it was started.
fn done(world: &World, command: &str) -> u32 {
    let told = world.redis().command("INFO commandstats");
    let calls = told.split_once(&format!("cmdstat_{command}:calls=")).and_then(|(_, rest)| rest.split_once(','));
    calls.map_or(0, |(calls, _)| calls.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_returns_under_load_meets_one_newcomer_a_replica_and_one_question_a_session() {
    const REPLICAS: usize = 3;
    const SESSIONS: usize = 8;
    const CLIENTS: usize = 120;
    let unthrottled = r#"{"burst": 100000, "per_minute": 100000}"#;
    let builder = World::builder().redis().replicas(REPLICAS);
    let world = builder.set("LIMITS__SIGN_IN_PER_ACCOUNT", unthrottled).start().await;
    let mut handles = Vec::new();
    for _ in 0..SESSIONS {
        handles.push(world.customer().await.tokens.access);
    }
    world.clock.advance(Duration::from_secs(61));
    world.redis().kill();
    for replica in 0..REPLICAS {
        eventually("nothing is known", async || me(&world, replica, &handles[0]).await.status == 503).await;
    }
    let world = Arc::new(world);
    let served: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (world, handle) = (world.clone(), handles[client % SESSIONS].clone());
            tokio::spawn(async move {
                let mut asked = 1;
                while me(&world, client % REPLICAS, &handle).await.status != 200 {
                    asked += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                asked
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.redis().restart().await;
    let mut asked = 0;
    for client in served {
        asked += client.await.unwrap();
    }
    assert!(asked > 2 * CLIENTS, "nobody was there to stampede: {asked}");
    assert_eq!(done(&world, "subscribe"), 3, "one newcomer a replica");
    let questions = usize::try_from(done(&world, "get")).unwrap();
    // Each replica asks once; and once more for what it looked up before it was sure to hear of changes.
    assert!(questions <= 2 * REPLICAS * SESSIONS, "{questions} questions on {SESSIONS} sessions");
}

/// A request that needs the store.
async fn me_cold(world: &World) -> Answer {
    let mut answer = world.login("eg_a_none", "john.doe@example.com").await;
    let anonymous = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
    while answer.status != 503 {
        answer = world.ask(anonymous).send().await;
    }
    answer
}
