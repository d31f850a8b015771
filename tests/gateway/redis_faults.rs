//! Every way in which a real Redis can be ill: nobody is logged out but by absence, every answer comes within a second,
//! nothing panics, and it heals by itself. And how sealing keys are changed under living sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::sick_redis::{ADMIN_TOKEN, COLD, HOT, Illness, Sick, watch_for_panics};
use crate::steps::{ANONYMOUS_LOGIN, john};
use crate::world::{Answer, Customer, World, eventually, logged};

const ME: &str = "GET /customer/acme/me";
const LOADS_FAILED: &str = r#"gateway_store_operations_total{operation="load",outcome="failed"}"#;
const SAVES_FAILED: &str = r#"gateway_store_operations_total{operation="save",outcome="failed"}"#;

async fn me(world: &World, replica: usize, handle: &str) -> Answer {
    world.ask_replica(replica, ME).bearer(handle).send().await
}

/// What clients may see while the store is ill: an answer, or that it cannot be known; within a second.
async fn bearable(what: &str, answer: impl Future<Output = Answer>) -> Answer {
    let asked = Instant::now();
    let answer = answer.await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{what}: {:?}", asked.elapsed());
    if answer.status != 200 {
        assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"), "{what}: {}", answer.text);
        assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{what}");
    }
    assert_eq!(answer.cookies(), Vec::<String>::new(), "{what}: the cookie is touched");
    answer
}

/// Requests of every kind at once, thrice.
async fn barrage(world: &World, customers: &[Customer]) {
    for _ in 0..3 {
        for customer in customers {
            let handle = &customer.tokens.access;
            let refresh = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", customer.tokens.refresh);
            let login = world.ask_replica(HOT, "POST /customer/acme/login").bearer(&customer.visitor.access);
            tokio::join!(
                bearable("hot", me(world, HOT, handle)),
                bearable("cold", me(world, COLD, handle)),
                bearable("refresh", world.ask_replica(HOT, &refresh).send()),
                bearable("login", login.json(&john()).send()),
                bearable("anonymous login", world.ask_replica(COLD, ANONYMOUS_LOGIN).send()),
            );
        }
        world.clock.advance(Duration::from_secs(40));
    }
}

async fn nobody_is_logged_out_by(illness: Illness, counted: &str) {
    let panics = watch_for_panics();
    let sick = Sick::start().await;
    let world = &sick.world;
    let customers = [world.customer().await, world.customer().await];
    for customer in &customers {
        assert_eq!(me(world, HOT, &customer.tokens.access).await.status, 200);
    }
    sick.fall(illness).await;
    barrage(world, &customers).await;
    let failed: f64 = [HOT, COLD].iter().map(|replica| world.replicas[*replica].metric(counted)).sum();
    assert!(failed >= 1.0, "{illness:?} is not counted");
    sick.recover(illness).await;
    if illness.ends() {
        for (replica, customer) in
            [HOT, COLD].into_iter().flat_map(|replica| customers.iter().map(move |c| (replica, c)))
        {
            eventually("it heals", async || {
                let answer = me(world, replica, &customer.tokens.access).await;
                assert_ne!(answer.status, 401, "{}", answer.text);
                answer.status == 200
            })
            .await;
        }
    }
    panics.none_since();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_became_a_replica_logs_nobody_out() {
    nobody_is_logged_out_by(Illness::ReadOnly, SAVES_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_loading_logs_nobody_out() {
    nobody_is_logged_out_by(Illness::Loading, LOADS_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_logs_nobody_out() {
    nobody_is_logged_out_by(Illness::Full, SAVES_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_password_changed_logs_nobody_out() {
    nobody_is_logged_out_by(Illness::Locked, LOADS_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_far_too_late_logs_nobody_out() {
    nobody_is_logged_out_by(Illness::Silent, LOADS_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_cut_off_log_nobody_out() {
    nobody_is_logged_out_by(Illness::Truncated, LOADS_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_format_to_come_log_nobody_out() {
    nobody_is_logged_out_by(Illness::FutureFormat, LOADS_FAILED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_loads_sessions_in_memory_are_served_for_their_grace() {
    let sick = Sick::start().await;
    let customer = sick.world.customer().await;
    assert_eq!(me(&sick.world, HOT, &customer.tokens.access).await.status, 200);
    sick.fall(Illness::Loading).await;
    sick.world.clock.advance(Duration::from_secs(40));
    assert_eq!(me(&sick.world, HOT, &customer.tokens.access).await.status, 200);
    assert_eq!(me(&sick.world, COLD, &customer.tokens.access).await.code(), "store_unavailable");
    sick.recover(Illness::Loading).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_takes_logouts() {
    let sick = Sick::start().await;
    let customer = sick.world.customer().await;
    sick.fall(Illness::Full).await;
    let line = format!("GET /customer/acme/logout?accessToken={}", customer.tokens.access);
    let out = sick.world.ask_replica(HOT, &line).bearer(&customer.tokens.access).send().await;
    assert_eq!(out.status, 204, "{}", out.text);
    sick.recover(Illness::Full).await;
    for replica in [HOT, COLD] {
        assert_eq!(me(&sick.world, replica, &customer.tokens.access).await.code(), "session_ended");
    }
    let kept = sick.world.redis().keys();
    assert!(kept.iter().any(|key| key.ends_with(":tombstone")), "no save brings it back: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_session_does_not_exist_and_its_cookie_is_expired() {
    let sick = Sick::start().await;
    let browser = sick.world.browser();
    browser.login().await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    sick.fall(Illness::Evicted).await;
    let ask = sick.world.ask_replica(COLD, ME).header("sec-fetch-site", "same-origin").header("cookie", &cookie);
    let gone = ask.send().await;
    assert_eq!((gone.status, gone.code().as_str()), (401, "session_ended"), "{}", gone.text);
    assert!(gone.cookies()[0].contains("Max-Age=0"), "{:?}", gone.cookies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_died_without_a_word_is_given_up_for_a_new_one() {
    let panics = watch_for_panics();
    let mut world = World::builder().redis().start().await;
    let customer = world.customer().await;
    let road = Road::to(world.redis().port).await;
    let url = format!("redis://127.0.0.1:{}", road.port);
    let behind = world.add_replica(&[("STORE__REDIS__URL", &url)]).await;
    eventually("it is up", async || world.ask_admin(behind, "GET /readyz").send().await.status == 200).await;
    road.bury_lines();
    let asked = Instant::now();
    eventually("a new line serves", async || {
        bearable("meanwhile", me(&world, behind, &customer.tokens.access)).await.status == 200
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    panics.none_since();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_whose_records_are_damaged_can_be_ended_so_that_their_customers_sign_in_again() {
    let sick = Sick::start().await;
    let world = &sick.world;
    let browser = world.browser();
    browser.login().await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    sick.fall(Illness::Truncated).await;
    let ask = || world.ask_replica(COLD, ME).header("sec-fetch-site", "same-origin").header("cookie", &cookie);
    assert_eq!(ask().send().await.code(), "store_unavailable");
    let all = json!({"tenant": "acme", "all": true});
    let revoked = world.ask_admin(COLD, "POST /admin/sessions/revoke").bearer(ADMIN_TOKEN).json(&all).send().await;
    assert_eq!((revoked.status, revoked.json()["ended"].as_u64()), (200, Some(1)), "{}", revoked.text);
    let gone = ask().send().await;
    assert_eq!((gone.status, gone.cookies().len()), (401, 1), "{}", gone.text);
}

/// How often the gateways began to listen to Redis: once for each line that a keeper opened.
fn lines_opened(sick: &Sick) -> u32 {
    let told = sick.command("INFO commandstats");
    let calls = told.split_once("cmdstat_subscribe:calls=").and_then(|(_, rest)| rest.split_once(','));
    calls.map_or(0, |(calls, _)| calls.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_writes_is_not_connected_to_for_each_of_them() {
    const ILL_FOR: Duration = Duration::from_secs(3);
    let sick = Sick::start().await;
    sick.fall(Illness::ReadOnly).await;
    let (before, until) = (lines_opened(&sick), Instant::now() + ILL_FOR);
    let mut refused = 0;
    while Instant::now() < until {
        let write = sick.world.ask_replica(HOT, ANONYMOUS_LOGIN).send().await;
        refused += u32::from(write.status == 503);
    }
    let opened = lines_opened(&sick) - before;
    // A line is kept for half a second at least, and the first one was old.
    assert!((1..=7).contains(&opened) && refused > 3 * opened, "{opened} lines for {refused} refused writes");
    sick.recover(Illness::ReadOnly).await;
    eventually("it writes again", async || sick.world.ask_replica(HOT, ANONYMOUS_LOGIN).send().await.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_changed_under_a_gateway_logs_nobody_out_and_is_named() {
    const CHANGED: &str = "ACL SETUSER gateway on >first-password ~eg:* &eg:* +@all";
    let mut world = World::builder().redis().start().await;
    world.redis().command(CHANGED);
    let port = world.redis().port;
    let url = format!("redis://gateway:first-password@127.0.0.1:{port}");
    let locked = world.add_replica(&[("STORE__REDIS__URL", &url)]).await;
    let (hot, cold) = (world.customer().await, world.customer().await);
    eventually("it is up", async || me(&world, locked, &hot.tokens.access).await.status == 200).await;

    world.redis().command("ACL SETUSER gateway resetpass >second-password");
    world.redis().command("CLIENT KILL USER gateway");
    let breaker = |event: &str| {
        world.replicas[locked].metric(&format!(r#"gateway_breaker_events_total{{dependency="store",event="{event}"}}"#))
    };
    eventually("its breaker opens", async || breaker("opened") >= 1.0).await;
    assert_eq!(bearable("hot", me(&world, locked, &hot.tokens.access)).await.status, 200, "for its grace");
    assert_eq!(bearable("cold", me(&world, locked, &cold.tokens.access)).await.code(), "store_unavailable");
    assert!(logged().contains("(WRONGPASS)"), "whoever looks finds out why");
    assert!(!logged().contains("first-password"), "and not with what");

    world.redis().command("ACL SETUSER gateway resetpass >first-password");
    for customer in [&hot, &cold] {
        eventually("it heals", async || {
            let answer = me(&world, locked, &customer.tokens.access).await;
            assert_ne!(answer.status, 401, "{}", answer.text);
            answer.status == 200
        })
        .await;
    }
}

/// A road to a server whose present connections can be buried: they stay open, and nothing passes any more.
struct Road {
    port: u16,
    burial: Arc<Notify>,
}

impl Road {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let road = Self { port: listener.local_addr().unwrap().port(), burial: Arc::default() };
        let burial = road.burial.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let burial = burial.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = burial.notified() => std::future::pending().await,
                    }
                });
            }
        });
        road
    }

    fn bury_lines(&self) {
        self.burial.notify_waiters();
    }
}

/// The ids of the lines over which threads read: those that subscribed to nothing and last said GET.
fn reading_lines(world: &World) -> Vec<String> {
    let clients = world.redis().command("CLIENT LIST");
    let readers = clients.lines().filter(|client| client.contains(" sub=0 ") && client.contains(" cmd=get "));
    readers.filter_map(|client| client.split(' ').next()?.strip_prefix("id=")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_line_that_breaks_costs_no_request() {
    let world = World::builder().redis().replicas(1 + COLD).start().await;
    let john = world.customer().await;
    let read_again = async |replica: usize| {
        world.clock.advance(Duration::from_secs(31));
        me(&world, replica, &john.tokens.access).await.status
    };
    for _ in 0..3 {
        eventually("threads read over lines of their own", async || {
            assert_eq!((read_again(HOT).await, read_again(COLD).await), (200, 200));
            reading_lines(&world).len() >= 2
        })
        .await;
        for line in reading_lines(&world) {
            world.redis().command(&format!("CLIENT KILL ID {line}"));
        }
        for _ in 0..5 {
            assert_eq!((read_again(HOT).await, read_again(COLD).await), (200, 200));
        }
    }
    for replica in [HOT, COLD] {
        assert_eq!(world.replicas[replica].metric(LOADS_FAILED), 0.0);
    }
}

const BOTH: &str = r#"[{"id": "next", "secret": "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="},
    {"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#;
const NEW_ALONE: &str = r#"[{"id": "next", "secret": "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="}]"#;

/// How many records are sealed under the key of this id.
fn sealed_under(world: &World, id: &str) -> usize {
    let redis = world.redis();
    let records = redis.keys().into_iter().filter(|key| key.ends_with(":session"));
    // The id stands behind the revision (8 bytes), the format and its own length.
    records.filter(|key| redis.command(&format!("GETRANGE {key} 10 13")).contains(id)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn sealing_keys_are_changed_one_replica_after_the_other_and_no_session_is_lost() {
    let mut world = World::builder().redis().set("STORE__SEAL__ACTIVE", "test").start().await;
    let mut customers = Vec::new();
    for _ in 0..5 {
        customers.push(world.customer().await);
    }
    assert_eq!((sealed_under(&world, "test"), sealed_under(&world, "next")), (5, 0));

    let knows_both = world.add_replica(&[("STORE__SEAL__KEYS", BOTH)]).await;
    let seals_anew = world.add_replica(&[("STORE__SEAL__KEYS", BOTH), ("STORE__SEAL__ACTIVE", "next")]).await;
    let (unused, used) = customers.split_last().unwrap();
    for customer in used {
        assert_eq!(me(&world, seals_anew, &customer.tokens.access).await.status, 200, "the old key still opens");
    }
    assert_eq!((sealed_under(&world, "next"), sealed_under(&world, "test")), (4, 1), "sealed anew when they were read");
    for key in world.redis().keys() {
        assert!(!world.redis().command(&format!("PTTL {key}")).starts_with(":-"), "{key} has no end");
    }
    for customer in &customers {
        assert_eq!(me(&world, knows_both, &customer.tokens.access).await.status, 200, "the new key opens beside it");
    }
    assert_eq!(sealed_under(&world, "test"), 5, "a replica seals with the key that is active for it");
    world.clock.advance(Duration::from_secs(31));
    for customer in used {
        assert_eq!(me(&world, seals_anew, &customer.tokens.access).await.status, 200);
    }

    let forgot_the_old = world.add_replica(&[("STORE__SEAL__KEYS", NEW_ALONE), ("STORE__SEAL__ACTIVE", "next")]).await;
    for customer in used {
        assert_eq!(me(&world, forgot_the_old, &customer.tokens.access).await.status, 200, "it was sealed anew");
    }
    let locked_in = me(&world, forgot_the_old, &unused.tokens.access).await;
    assert_eq!((locked_in.status, locked_in.code().as_str()), (503, "store_unavailable"), "{}", locked_in.text);
    assert_eq!(me(&world, seals_anew, &unused.tokens.access).await.status, 200, "nothing is lost");
    assert_eq!(me(&world, forgot_the_old, &unused.tokens.access).await.status, 200, "now it is sealed anew as well");
}
