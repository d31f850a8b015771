//! Renewal over several replicas, of which some crash or stand still: one leads, the others wait for what it brings,
//! and a refresh token is sent once more at most, by who finds that nobody lived to tell what became of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::process::ProcessReplica;
use crate::steps::{GUEST, JANE, JOHN, who};
use crate::world::{Answer, Builder, Customer, SlowPath, Tokens, World, eventually};

fn over_redis() -> Builder {
    World::builder().redis().set("REFRESH__LEASE", "1s").set("IDENTITY__TIMEOUT", "20s")
}

async fn me(world: &World, at: SocketAddr, handle: &str) -> Answer {
    try_me(world, at, handle).await.unwrap()
}

async fn try_me(world: &World, at: SocketAddr, handle: &str) -> reqwest::Result<Answer> {
    world.ask_at(at, "GET /customer/acme/me").bearer(handle).try_send().await
}

/// A customer whose access is over, by Emporix' word and not by the clock: no process need wait for it.
async fn expired(world: &World) -> Customer {
    let customer = world.customer().await;
    expire(world).await;
    customer
}

async fn expire(world: &World) {
    world.simulator.expire("customer_access").await;
    world.simulator.forget_calls().await;
}

/// Lets Emporix redeem the next refresh token at once, and say so a second later.
async fn answer_late(world: &World) {
    world.simulator.fault(json!({"operation": "refresh", "mode": "late_answer", "delay_ms": 1_000, "times": 1})).await;
}

/// Waits until Emporix has issued more tokens than `before`.
async fn issued_since(world: &World, before: usize) {
    eventually("Emporix has redeemed the token", async || world.simulator.tokens().await.len() > before).await;
}

async fn redeems(world: &World) -> u64 {
    world.simulator.calls("refresh").await
}

fn series(outcome: &str) -> String {
    format!(r#"gateway_refreshes_total{{half="customer",outcome="{outcome}"}}"#)
}

fn has_key(world: &World, part: &str) -> bool {
    world.redis().keys().iter().any(|key| key.contains(part))
}

/// The Bearer of the newest API request.
async fn bearer(world: &World) -> Vec<String> {
    world.simulator.last_api_request().await.headers("authorization")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_on_an_expired_session_are_one_redeem_over_three_replicas() {
    // They share a machine, where a Redis that answers late says nothing of Redis.
    let world = World::builder().redis().set("STORE__REDIS__RESPONSE_TIMEOUT", "5s").replicas(3).start().await;
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    let handle = world.customer().await.tokens.access;
    let addresses: Vec<SocketAddr> = world.replicas.iter().map(|replica| replica.public).collect();
    for at in &addresses {
        assert_eq!(who(&me(&world, *at, &handle).await), JOHN, "the session is hot");
    }
    world.clock.advance(Duration::from_secs(700));
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 300})).await;
    let world = Arc::new(world);
    let mut requests = JoinSet::new();
    for number in 0..1_000 {
        let (world, handle, at) = (world.clone(), handle.clone(), addresses[number % 3]);
        requests.spawn(async move { who(&me(&world, at, &handle).await) });
    }
    let answers = requests.join_all().await;
    let mut others = answers.iter().filter(|who| *who != JOHN);
    assert_eq!(others.next(), None, "and {} more", others.count());
    assert_eq!(redeems(&world).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redeem_that_outlasts_the_leases_term_is_still_the_only_one() {
    let world = over_redis().replicas(2).start().await;
    let customer = expired(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 2_500})).await;
    let ask = |replica: usize| me(&world, world.replicas[replica].public, &customer.tokens.access);
    let (one, other) = tokio::join!(ask(0), ask(1));
    assert_eq!((who(&one), who(&other)), (JOHN.to_owned(), JOHN.to_owned()));
    assert_eq!(redeems(&world).await, 1);
}

/// A leader redeems, and is killed before it can save what it got. Returns what another replica makes of it.
async fn after_a_crash(world: &World) -> (Customer, Answer) {
    let leader = ProcessReplica::start(world, &[]).await;
    let customer = expired(world).await;
    answer_late(world).await;
    let before = world.simulator.tokens().await.len();
    let crash = async {
        issued_since(world, before).await;
        leader.kill();
    };
    let (cut_off, ()) = tokio::join!(try_me(world, leader.public, &customer.tokens.access), crash);
    assert!(cut_off.is_err(), "{cut_off:?}");
    assert!(has_key(world, ":intent:c"), "it was written ahead");
    let found = me(world, world.gateway().public, &customer.tokens.access).await;
    (customer, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_with_a_spent_token_costs_the_customers_half_and_no_more() {
    let world = over_redis().start().await;
    let (customer, found) = after_a_crash(&world).await;
    assert_eq!(found.status, 401, "{}", found.text);
    for _ in 0..5 {
        let over = me(&world, world.gateway().public, &customer.tokens.access).await;
        assert_eq!((over.status, over.code().as_str()), (401, "session_ended"), "{}", over.text);
    }
    assert_eq!(world.rights(&customer.visitor.access).await, GUEST);
    assert_eq!(redeems(&world).await, 2, "one recovery, and no more");
    assert_eq!(world.gateway().metric(&series("lost")), 1.0);
    assert_eq!(world.gateway().metric(&series("rejected")), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_with_a_token_that_can_be_used_again_costs_nothing() {
    let world = over_redis().start().await;
    world.simulator.set(json!({"refresh_single_use": false})).await;
    let (customer, found) = after_a_crash(&world).await;
    assert_eq!(who(&found), JOHN);
    for _ in 0..5 {
        assert_eq!(world.rights(&customer.tokens.access).await, JOHN);
    }
    assert_eq!(redeems(&world).await, 2);
    assert_eq!(world.gateway().metric(&series("recovered")), 1.0);
    assert_eq!(world.gateway().metric(&series("renewed")), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_before_it_sent_finds_its_lease_lost_and_sends_nothing() {
    let world = over_redis().start().await;
    world.simulator.set(json!({"anonymous_access_ttl": 3})).await;
    let leader = ProcessReplica::start(&world, &[]).await;
    let customer = expired(&world).await;
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    let hold = json!({"operation": "anonymous_refresh", "mode": "late_answer", "delay_ms": 1_000, "times": 1});
    world.simulator.fault(hold).await;
    let overtaking = async {
        eventually("it asks for its authorizer", async || world.simulator.calls("anonymous_refresh").await == 1).await;
        leader.stop();
        assert_eq!(world.rights(&customer.tokens.access).await, JOHN, "another replica takes over");
        assert_eq!(redeems(&world).await, 1);
        leader.go_on();
    };
    let (resumed, ()) = tokio::join!(me(&world, leader.public, &customer.tokens.access), overtaking);
    assert_eq!(who(&resumed), JOHN, "it follows who overtook it");
    assert_eq!(redeems(&world).await, 1);
    assert_eq!(leader.metric(&series("followed")), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_with_the_stores_yes_unread_asks_again_before_it_sends() {
    let world = over_redis().start().await;
    let path = SlowPath::start(world.redis().port).await;
    let url = format!("redis://127.0.0.1:{}", path.port);
    let slow = [("STORE__REDIS__URL", url.as_str()), ("STORE__REDIS__RESPONSE_TIMEOUT", "20s")];
    let leader = ProcessReplica::start(&world, &slow).await;
    let customer = expired(&world).await;
    assert_eq!(world.rights(&customer.tokens.access).await, JOHN, "and Redis knows the scripts");
    expire(&world).await;
    let declare = redis::Script::new(include_str!("../../src/store/scripts/declare.lua"));
    path.hold_from(declare.get_hash());
    let overtaking = async {
        eventually("Redis has said yes", async || path.is_holding() && has_key(&world, ":intent:c")).await;
        leader.stop();
        path.let_go();
        assert_eq!(world.rights(&customer.tokens.access).await, JOHN, "another replica takes over");
        assert_eq!(redeems(&world).await, 1);
        leader.go_on();
    };
    let (resumed, ()) = tokio::join!(me(&world, leader.public, &customer.tokens.access), overtaking);
    assert_eq!(who(&resumed), JOHN, "it follows who overtook it");
    assert_eq!(redeems(&world).await, 1);
}

/// A leader redeems and stands still; `meanwhile` happens when its lease has run out, and it goes on. Returns what its
/// client then gets.
async fn stands_still_over_its_answer(
    world: &World,
    leader: &ProcessReplica,
    customer: &Customer,
    meanwhile: impl Future<Output = ()>,
) -> Answer {
    answer_late(world).await;
    let before = world.simulator.tokens().await.len();
    let still = async {
        issued_since(world, before).await;
        leader.stop();
        eventually("its lease runs out", async || !has_key(world, ":lease:c")).await;
        meanwhile.await;
        leader.go_on();
    };
    tokio::join!(me(world, leader.public, &customer.tokens.access), still).0
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_under_a_lost_lease_is_kept_if_nobody_advanced_the_session() {
    let world = over_redis().start().await;
    // It stands still for longer than a token call may last, too.
    let changes = [("REFRESH__LEASE", "3s"), ("IDENTITY__TIMEOUT", "2s")];
    let leader = ProcessReplica::start(&world, &changes).await;
    let customer = expired(&world).await;
    let resumed = stands_still_over_its_answer(&world, &leader, &customer, async {}).await;
    assert_eq!(who(&resumed), JOHN);
    assert_eq!(world.rights(&customer.tokens.access).await, JOHN);
    assert_eq!((redeems(&world).await, leader.metric(&series("renewed"))), (1, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_another_sign_in_is_discarded_and_revoked() {
    let world = over_redis().start().await;
    let leader = ProcessReplica::start(&world, &[]).await;
    let customer = expired(&world).await;
    let (jane, signed_in) = tokio::sync::oneshot::channel();
    let sign_in = async {
        let answer = world.login(&customer.visitor.access, "jane.roe@example.com").await;
        jane.send(Tokens::of(&answer).access).unwrap();
    };
    let resumed = stands_still_over_its_answer(&world, &leader, &customer, sign_in).await;
    assert_eq!(resumed.status, 401, "John is out: {}", resumed.text);
    let jane = signed_in.await.unwrap();
    for at in [leader.public, world.gateway().public] {
        assert_eq!(who(&me(&world, at, &jane).await), JANE);
    }
    assert_eq!((redeems(&world).await, leader.metric(&series("superseded"))), (1, 1.0));
    eventually("John's old and new tokens are revoked", async || world.simulator.calls("logout").await == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_after_a_recovery_is_discarded() {
    let world = over_redis().start().await;
    world.simulator.set(json!({"refresh_single_use": false})).await;
    let leader = ProcessReplica::start(&world, &[]).await;
    let customer = expired(&world).await;
    let (token, recovered) = tokio::sync::oneshot::channel();
    let recovery = async {
        assert_eq!(world.rights(&customer.tokens.access).await, JOHN);
        token.send(bearer(&world).await).unwrap();
    };
    let resumed = stands_still_over_its_answer(&world, &leader, &customer, recovery).await;
    assert_eq!(who(&resumed), JOHN);
    let recovered = recovered.await.unwrap();
    assert_eq!(bearer(&world).await, recovered, "the leader uses what the recovery brought");
    assert_eq!(who(&me(&world, world.gateway().public, &customer.tokens.access).await), JOHN);
    assert_eq!(bearer(&world).await, recovered);
    assert_eq!((redeems(&world).await, leader.metric(&series("superseded"))), (2, 1.0));
    assert_eq!(world.simulator.calls("logout").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_connection_breaks_is_sent_once_over_new_connections_and_used_ones() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    for (mode, over_a_used_one) in
        ["reset", "late_reset", "half_body"].into_iter().flat_map(|mode| [(mode, false), (mode, true)])
    {
        let customer = world.customer().await;
        if !over_a_used_one {
            world.simulator.fault(json!({"operation": "anonymous_login", "mode": "reset", "times": 1})).await;
            let line = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
            assert_eq!(world.ask(line).send().await.status, 503, "its connection breaks");
        }
        let used: Vec<_> =
            world.simulator.requests().await.into_iter().map(|request| request["port"].clone()).collect();
        world.simulator.forget_calls().await;
        world.simulator.fault(json!({"operation": "refresh", "mode": mode})).await;
        world.clock.advance(Duration::from_secs(700));
        let cut_off = me(&world, world.gateway().public, &customer.tokens.access).await;
        assert_eq!((cut_off.status, cut_off.code().as_str()), (503, "identity_unavailable"), "{mode}");
        let sent = world.only("refresh").await;
        assert_eq!(used.contains(&sent.0["port"]), over_a_used_one, "{mode}");
        world.simulator.heal().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_that_meets_a_refresh_and_its_follower_is_a_logout_on_every_replica() {
    let world = over_redis().replicas(3).start().await;
    let customer = expired(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 600, "times": 1})).await;
    let [first, leader, follower] = [0, 1, 2].map(|number: usize| world.replicas[number].public);
    let ending = async {
        eventually("the refresh is under way", async || redeems(&world).await == 1).await;
        let following = me(&world, follower, &customer.tokens.access);
        let (followed, ended) = tokio::join!(following, world.log_out(&customer.tokens.access));
        assert_eq!(ended.status, 204, "{}", ended.text);
        followed
    };
    let (led, followed) = tokio::join!(me(&world, leader, &customer.tokens.access), ending);
    assert_eq!((led.status, followed.status), (401, 401), "{} {}", led.text, followed.text);
    for at in [first, leader, follower] {
        for handle in [&customer.tokens.access, &customer.visitor.access] {
            assert_eq!(me(&world, at, handle).await.status, 401);
        }
    }
    assert!(!has_key(&world, ":session"), "nothing brought it back");
    assert_eq!(redeems(&world).await, 1);
}
