//! Sentinel and Cluster, as real servers: the store's contract holds on both, and a failover loses nothing that was
//! acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use emporix_gateway::clock::Timestamp;
use emporix_gateway::config::{RedisSection, RedisTopology, Secret, SentinelSection};
use emporix_gateway::session::Session;
use emporix_gateway::store::redis::RedisStore;
use emporix_gateway::store::{CustomerName, Saved, SessionStore, StoreError};
use emporix_gateway::telemetry::Metrics;

use crate::fleet::{Cluster, PASSWORD, SENTINEL_PASSWORD, USER, Watched};
use crate::steps::{JOHN, who};
use crate::store_contract::{holds_the_contract, measured, session, tended};
use crate::world::{Answer, Builder, Certificate, World, eventually, metric};

/// Longer than a command is tried again over a slot that settles at once.
const ON_THE_MOVE: Duration = Duration::from_millis(150);

const HOUR: Duration = Duration::from_secs(3_600);

fn section(topology: RedisTopology, nodes: Vec<String>) -> RedisSection {
    let sentinel = SentinelSection { service: "shop".into(), ..SentinelSection::default() };
    let password = Some(Secret::new(PASSWORD.to_owned()));
    RedisSection { topology, nodes, sentinel, username: Some(USER.into()), password, ..RedisSection::default() }
}

/// Writes sessions until told to stop: those that were acknowledged, and the longest wait for any answer.
fn write_on(
    store: Arc<RedisStore>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
) -> tokio::task::JoinHandle<(Vec<Session>, Duration)> {
    tokio::spawn(async move {
        let (mut acknowledged, mut longest) = (Vec::new(), Duration::ZERO);
        while !stop.load(Ordering::SeqCst) {
            let (session, asked) = (session(), Instant::now());
            match store.save(&session, HOUR).await {
                Ok(Saved::Stored(1)) => {
                    acknowledged.push(session);
                    written.fetch_add(1, Ordering::SeqCst);
                }
                Ok(other) => panic!("{other:?}"),
                Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(other) => panic!("{other}"),
            }
            longest = longest.max(asked.elapsed());
        }
        (acknowledged, longest)
    })
}

/// Lets four writers write while `disturb` happens, and says which acknowledged sessions are gone afterwards.
async fn lost_during(store: &Arc<RedisStore>, disturb: impl Future<Output = ()>) -> (usize, usize) {
    eventually("the store answers", async || store.ping().await.is_ok()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..4).map(|_| write_on(store.clone(), stop.clone(), written.clone())).collect();
    eventually("they write", async || written.load(Ordering::SeqCst) > 100).await;
    disturb.await;
    let before = written.load(Ordering::SeqCst);
    eventually("they write again", async || written.load(Ordering::SeqCst) > before + 100).await;
    stop.store(true, Ordering::SeqCst);
    let (mut written, mut lost) = (0, 0);
    for writer in writers {
        let (acknowledged, longest) = writer.await.unwrap();
        assert!(longest < Duration::from_secs(2), "an answer took {longest:?}");
        written += acknowledged.len();
        for session in acknowledged {
            let mut found = None;
            eventually("the store can tell", async || {
                found = store.load(&session.key).await.ok();
                found.is_some()
            })
            .await;
            lost += usize::from(found.flatten().is_none());
        }
    }
    (written, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_the_contract_holds_and_a_failover_loses_nothing_acknowledged() {
    let mut redis = Watched::start().await;
    let store = tended(&section(RedisTopology::Sentinel, redis.nodes.clone()));
    holds_the_contract(&*store).await;
    redis.kill_a_sentinel();
    let (written, lost) = lost_during(&store, redis.fail_over()).await;
    assert!(lost == 0, "{lost} of {written} lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_the_contract_holds_through_moved_slots_and_a_failover() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut redis = Cluster::start().await;
    let section =
        RedisSection { ca_file: Some(redis.certificate().into()), ..section(RedisTopology::Cluster, redis.nodes()) };
    let store = tended(&section);
    holds_the_contract(&*store).await;
    let slots_move = async {
        let moved = redis.move_slots().await;
        assert!(!moved.contains("ERR"), "{moved}");
    };
    let (written, lost) = lost_during(&store, slots_move).await;
    assert!(lost == 0, "{lost} of {written} lost while slots moved");
    let (written, lost) = lost_during(&store, redis.fail_over()).await;
    assert!(lost == 0, "{lost} of {written} lost by the failover");
    eventually("invalidations are heard again", async || store.hears_invalidations()).await;
}

/// Another authority is tried, and refused where Redis' certificate does not stand on it, whether or not a line stands.
async fn another_authority_is_taken(section: &RedisSection, break_lines: impl Fn(&str)) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        std::fs::write(folder.path().join(name), text).unwrap();
        Some(folder.path().join(name).into())
    };
    let other = || std::fs::read_to_string(&Certificate::new().write(folder.path())[0]).unwrap();
    let own = std::fs::read_to_string(section.ca_file.as_ref().unwrap().path()).unwrap();
    let with = |ca_file| RedisSection { ca_file, ..section.clone() };
    let wrong = [file("wrong.pem", other()), file("as-wrong.pem", other())].map(with);
    let both = with(file("both.pem", other() + &own));

    let store = tended(&wrong[0]);
    assert!(store.ping().await.is_err());
    for wrong in &wrong {
        assert!(store.take(wrong).await.is_err(), "it is refused, though no line stands");
    }
    assert_eq!(store.take(section).await, Ok(()));
    eventually("the store answers", async || store.ping().await.is_ok()).await;
    let session = session();
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Stored(1)));
    assert!(store.take(&wrong[0]).await.is_err());
    assert!(finds(&store, &session).await, "what is refused changes nothing");
    assert_eq!(store.take(&both).await, Ok(()));
    break_lines(&format!("CLIENT KILL USER {USER}"));
    eventually("it is found", async || finds(&store, &session).await).await;
}

/// Another password is tried, and taken in the place of the old one, which then no line needs.
async fn another_password_is_taken(section: &RedisSection, tell: impl Fn(&str), break_lines: impl Fn(&str)) {
    let (store, sessions) = (tended(section), (0..40).map(|_| session()).collect::<Vec<_>>());
    let with = |password: &str| RedisSection { password: Some(Secret::new(password)), ..section.clone() };
    let finds_all = async || {
        for session in &sessions {
            if !finds(&store, session).await {
                return false;
            }
        }
        true
    };
    eventually("the store answers", async || store.ping().await.is_ok()).await;
    for session in &sessions {
        assert_eq!(store.save(session, HOUR).await, Ok(Saved::Stored(1)));
    }
    assert!(store.take(&with("guessed")).await.is_err());
    assert!(finds_all().await, "what is refused changes nothing");
    tell(&format!("ACL SETUSER {USER} >another"));
    assert_eq!(store.take(&with("another")).await, Ok(()));
    tell(&format!("ACL SETUSER {USER} <{PASSWORD}"));
    break_lines(&format!("CLIENT KILL USER {USER}"));
    eventually("all are found", finds_all).await;
    eventually("others are heard", async || store.hears_invalidations()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_another_password_takes_the_old_ones_place() {
    let redis = Watched::start().await;
    let tell = |command: &str| redis.tell_all(command);
    another_password_is_taken(&section(RedisTopology::Sentinel, redis.nodes.clone()), tell, tell).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_another_authority_and_password_take_the_old_ones_place_on_lines_that_mend_themselves_too() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let redis = Cluster::start().await;
    let section =
        RedisSection { ca_file: Some(redis.certificate().into()), ..section(RedisTopology::Cluster, redis.nodes()) };
    let tell = |command: &str| redis.tell_all(command);
    another_authority_is_taken(&section, |command| redis.tell_a_primary(command)).await;
    another_password_is_taken(&section, tell, |command| redis.tell_a_primary(command)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_change_and_an_end_wait_for_a_slot_that_is_on_the_move() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let redis = Cluster::start().await;
    let section = RedisSection {
        ca_file: Some(redis.certificate().into()),
        response_timeout: Duration::from_secs(2),
        ..section(RedisTopology::Cluster, redis.nodes())
    };
    let store = tended(&section);
    let born = session();
    eventually("the store answers", async || store.ping().await.is_ok()).await;
    assert_eq!(store.save(&born, HOUR).await, Ok(Saved::Stored(1)));
    let changed = Session { revision: 1, ..born };

    let settle = redis.unsettle(&format!("eg:{{{}}}:session", changed.key.to_text()));
    let saved = tokio::spawn({
        let (store, changed) = (store.clone(), changed.clone());
        async move { store.save(&changed, HOUR).await }
    });
    tokio::time::sleep(ON_THE_MOVE).await;
    assert!(!saved.is_finished(), "a tombstone that is not there may be elsewhere: {:?}", saved.await);
    settle();
    assert_eq!(saved.await.unwrap(), Ok(Saved::Stored(2)));

    let settle = redis.unsettle(&format!("eg:{{{}}}:session", changed.key.to_text()));
    let removed = tokio::spawn({
        let (store, key) = (store.clone(), changed.key);
        async move { store.remove(&key, HOUR).await }
    });
    tokio::time::sleep(ON_THE_MOVE).await;
    settle();
    assert_eq!(removed.await.unwrap(), Ok(()));
    assert_eq!(store.was_ended(&changed.key).await, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_that_lost_a_primary_the_others_serve_on_and_nobody_is_taken_to_hear() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut redis = Cluster::start().await;
    // Longer than by default: an answer that is late on a busy machine says nothing of the cluster.
    let (ca_file, response_timeout) = (Some(redis.certificate().into()), Duration::from_millis(800));
    let section = RedisSection { ca_file, response_timeout, ..section(RedisTopology::Cluster, redis.nodes()) };
    let store = tended(&section);
    eventually("it hears", async || store.hears_invalidations()).await;
    let sessions: Vec<Session> = (0..40).map(|_| session()).collect();
    for session in &sessions {
        assert_eq!(store.save(session, HOUR).await, Ok(Saved::Stored(1)));
    }
    let gone = redis.freeze_a_primary();
    let (away, there): (Vec<_>, Vec<_>) = sessions.iter().partition(|it| gone.contains(&*it.key.to_text()));
    assert!(!away.is_empty() && !there.is_empty());
    serves_on(&store, &there).await;
    assert!(!store.hears_invalidations(), "what that primary would say is not heard");
    assert!(store.load(&away[0].key).await.is_err(), "away is not absent");
    let started_meanwhile = tended(&section);
    eventually("it serves too", async || finds(&started_meanwhile, there[0]).await).await;

    redis.kill_a_primary();
    serves_on(&store, &there).await;
    assert!(store.load(&away[0].key).await.is_err(), "away is not absent");
}

/// Asks for `sessions`, longer than beats may be missed: they are all found once the lines are mended.
async fn serves_on(store: &RedisStore, sessions: &[&Session]) {
    const MENDED_AFTER: Duration = Duration::from_secs(4);
    let lost_at = Instant::now();
    while lost_at.elapsed() < Duration::from_secs(7) {
        for session in sessions {
            let found = finds(store, session).await;
            assert!(found || lost_at.elapsed() < MENDED_AFTER, "not after {:?}", lost_at.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the session is found. An answer comes within two seconds in any case.
async fn finds(store: &RedisStore, session: &Session) -> bool {
    let asked = Instant::now();
    let found = store.load(&session.key).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    matches!(found, Ok(Some(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_a_session_is_and_since_when_none_is_outlives_the_primary() {
    let redis = Watched::start().await;
    let metrics = Arc::new(Metrics::new().unwrap());
    let store = measured(&section(RedisTopology::Sentinel, redis.nodes.clone()), metrics.clone());
    let acknowledged = || {
        metric(
            &String::from_utf8(metrics.render()).unwrap(),
            r#"gateway_store_replication_total{outcome="acknowledged"}"#,
        )
    };
    eventually("writes wait for the replica", async || {
        let _ = store.save(&session(), HOUR).await;
        acknowledged() > 0.0
    })
    .await;
    let (before, session) = (acknowledged(), session());
    let customer = CustomerName::of(session.tenant, "13869000");
    store.index(&customer, &session.key, HOUR).await.unwrap();
    assert_eq!(acknowledged(), before + 1.0);
    store.raise_epoch(&customer, Timestamp::from_seconds(1), HOUR).await.unwrap();
    assert_eq!(acknowledged(), before + 2.0);
}

fn two_gateways(topology: &str, nodes: &[String]) -> Builder {
    const UNTHROTTLED: &str = r#"{"burst": 1000, "per_minute": 1000}"#;
    World::builder()
        .set("LIMITS__SIGN_IN_PER_ACCOUNT", UNTHROTTLED)
        .set("STORE__KIND", "redis")
        .set("STORE__REDIS__TOPOLOGY", topology)
        .set("STORE__REDIS__NODES", serde_json::to_string(nodes).unwrap())
        .set("STORE__REDIS__USERNAME", USER)
        .set("STORE__REDIS__PASSWORD", PASSWORD)
        .set("STORE__SEAL__ACTIVE", "test")
        .set("STORE__SEAL__KEYS", r#"[{"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#)
        .replicas(2)
}

async fn two_gateways_under_sentinel(redis: &Watched) -> World {
    two_gateways("sentinel", &redis.nodes).set("STORE__REDIS__SENTINEL__SERVICE", "shop").start().await
}

fn replication(world: &World, outcome: &str) -> f64 {
    world.gateway().metric(&format!(r#"gateway_store_replication_total{{outcome="{outcome}"}}"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_still_is_counted_and_holds_nobody_up() {
    let redis = Watched::start().await;
    let world = two_gateways_under_sentinel(&redis).await;
    eventually("writes wait for the replica", async || {
        world.visitor().await;
        replication(&world, "acknowledged") > 0.0
    })
    .await;
    redis.freeze_the_replica();
    let asked = Instant::now();
    let late = replication(&world, "late");
    eventually("the replica is found to be late", async || {
        world.visitor().await;
        replication(&world, "late") > late
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(1), "one wait, and none after it: {:?}", asked.elapsed());
    let asked = Instant::now();
    for _ in 0..20 {
        world.visitor().await;
    }
    assert!(asked.elapsed() < Duration::from_secs(2), "nobody waits for it any more: {:?}", asked.elapsed());
    redis.thaw_the_replica();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_writes_after_a_failover_do_not_go_to_dead_lines() {
    let mut redis = Watched::start().await;
    let world = two_gateways_under_sentinel(&redis).await;
    eventually("writes wait for the replica", async || {
        world.visitor().await;
        replication(&world, "acknowledged") > 0.0
    })
    .await;
    redis.fail_over().await;
    let anonymous = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
    eventually("visitors are served again", async || world.ask(anonymous).send().await.status == 200).await;
    for _ in 0..12 {
        assert_eq!(world.ask(anonymous).send().await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_logs_nobody_out() {
    let mut redis = Watched::start().await;
    let world = two_gateways_under_sentinel(&redis).await;
    let (customer, gone) = (world.customer().await, world.customer().await);
    let logout = format!("GET /customer/acme/logout?accessToken={}", gone.tokens.access);
    assert_eq!(world.ask(&logout).bearer(&gone.tokens.access).send().await.status, 204);
    redis.fail_over().await;
    for replica in [0, 1] {
        eventually("it heals", async || {
            let answer = me(&world, replica, &customer.tokens.access).await;
            assert!([200, 503].contains(&answer.status), "{}: {}", answer.status, answer.text);
            assert_eq!(answer.cookies(), Vec::<String>::new());
            answer.status == 200
        })
        .await;
        assert_eq!(me(&world, replica, &gone.tokens.access).await.status, 401, "a logout outlives the primary");
    }
}

async fn me(world: &World, replica: usize, handle: &str) -> Answer {
    world.ask_replica(replica, "GET /customer/acme/me").bearer(handle).send().await
}

/// Signs in, asks, refreshes and logs out through the first gateway, and looks at the second: what a customer does goes
/// through as over a single Redis.
async fn a_visit_goes_through(world: &World) {
    let customer = world.customer().await;
    let handle = &customer.tokens.access;
    for replica in [0, 1] {
        assert_eq!(who(&me(world, replica, handle).await), JOHN);
    }
    world.simulator.expire("customer_access").await;
    assert_eq!(who(&me(world, 1, handle).await), JOHN, "renewed there");
    assert_eq!(who(&me(world, 0, handle).await), JOHN);
    let refreshed = world.refresh(&customer.tokens.refresh, "").await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text);
    assert_eq!(world.log_out(handle).await.status, 204);
    for replica in [0, 1] {
        eventually("it is over", async || me(world, replica, handle).await.text.contains("session_ended")).await;
    }
    let elsewhere = [world.customer().await, world.customer().await].map(|customer| customer.tokens.access);
    let all = world.ask("POST /_gateway/logout-all").bearer(&elsewhere[0]).send().await;
    assert_eq!(all.status, 204, "{}", all.text);
    for handle in &elsewhere {
        eventually("all are over", async || me(world, 1, handle).await.text.contains("session_ended")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visit_over_a_cluster_is_like_any_other_and_a_lost_primary_logs_nobody_out() {
    let mut redis = Cluster::start().await;
    let certificate = redis.certificate().display().to_string();
    let world = two_gateways("cluster", &redis.nodes()).set("STORE__REDIS__CA_FILE", certificate).start().await;
    a_visit_goes_through(&world).await;
    let mut customers = Vec::new();
    for _ in 0..9 {
        customers.push(world.customer().await.tokens.access);
    }
    redis.fail_over().await;
    for (number, handle) in customers.iter().enumerate() {
        eventually("it heals", async || {
            let answer = me(&world, number % 2, handle).await;
            assert!([200, 503].contains(&answer.status), "{}: {}", answer.status, answer.text);
            answer.status == 200
        })
        .await;
    }
    for handle in &customers {
        eventually("each can log out", async || {
            // One that is not confirmed is refused from now on where it was asked for, and confirmed later.
            let answer = world.log_out(handle).await;
            assert!([204, 401, 503].contains(&answer.status), "{}", answer.text);
            me(&world, 1, handle).await.text.contains("session_ended")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_over_tls_and_with_a_user_of_its_own_the_contract_holds_through_a_failover() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut redis = Watched::start_over_tls().await;
    let by = |password: &str| {
        let password = Some(Secret::new(password.to_owned()));
        let sentinel = SentinelSection { service: "shop".into(), username: Some(USER.into()), password };
        let section = section(RedisTopology::Sentinel, redis.nodes.clone());
        RedisSection { sentinel, ca_file: Some(redis.certificate().into()), ..section }
    };
    let store = tended(&by(SENTINEL_PASSWORD));
    for refused in [by(PASSWORD), RedisSection { ca_file: None, ..by(SENTINEL_PASSWORD) }] {
        let refused = tended(&refused);
        assert!(matches!(refused.load(&session().key).await, Err(StoreError::Unavailable(_))));
    }
    holds_the_contract(&*store).await;
    another_authority_is_taken(&by(SENTINEL_PASSWORD), |command| redis.tell_all(command)).await;
    let (written, lost) = lost_during(&store, redis.fail_over()).await;
    assert!(lost == 0, "{lost} of {written} lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_made_a_replica_is_left_for_its_successor() {
    let redis = Watched::start().await;
    let world = two_gateways_under_sentinel(&redis).await;
    let (customer, gone) = (world.customer().await, world.customer().await);
    assert_eq!(world.log_out(&gone.tokens.access).await.status, 204);
    redis.switch_over().await;
    for replica in [0, 1] {
        eventually("it heals", async || {
            let answer = me(&world, replica, &customer.tokens.access).await;
            assert!([200, 503].contains(&answer.status), "{}: {}", answer.status, answer.text);
            answer.status == 200
        })
        .await;
        assert_eq!(me(&world, replica, &gone.tokens.access).await.code(), "session_ended");
    }
    let anonymous = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
    for replica in [0, 1] {
        eventually("visitors are taken", async || world.ask_replica(replica, anonymous).send().await.status == 200)
            .await;
    }
    a_visit_goes_through(&world).await;
    let newcomer = world.customer().await;
    assert_eq!(who(&me(&world, 1, &newcomer.tokens.access).await), JOHN);
    assert!(redis.keys_of_the_second().contains(":tombstone"));
}
