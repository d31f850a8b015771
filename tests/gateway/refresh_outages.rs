//! Renewal when Emporix' token endpoints fail, lose answers, refuse, or meet a logout: no token is spent twice,
//! and only a refusal ends the customer's half.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{Answer, Builder, Customer, World, eventually};

const ME: &str = "GET /customer/acme/me";

async fn me(world: &World, replica: usize, handle: &str) -> Answer {
    world.ask_replica(replica, ME).bearer(handle).send().await
}

/// A customer whose access lives 600 seconds, renewal being due for the last 180.
async fn short_lived(world: &World) -> Customer {
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    let customer = world.customer().await;
    world.simulator.forget_calls().await;
    customer
}

async fn becomes_due(world: &World) {
    world.clock.advance(Duration::from_secs(500));
}

async fn expires(world: &World) {
    world.clock.advance(Duration::from_secs(700));
}

async fn logout(world: &World, customer: &Customer) -> Answer {
    let handle = &customer.tokens.access;
    world.ask(&format!("GET /customer/acme/logout?accessToken={handle}")).bearer(handle).send().await
}

fn refreshes(world: &World, outcome: &str) -> f64 {
    world.gateway().metric(&format!(r#"gateway_refreshes_total{{half="customer",outcome="{outcome}"}}"#))
}

fn outage(mode: &str) -> Value {
    match mode.parse::<u16>() {
        Ok(status) => json!({"operation": "refresh", "mode": "status", "status": status}),
        Err(_) => json!({"operation": "refresh", "mode": mode}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoints_are_down_a_session_is_served_as_long_as_its_token_lives() {
    let world = World::new().await;
    let customer = short_lived(&world).await;
    for operation in ["refresh", "anonymous_refresh", "anonymous_login", "login", "logout"] {
        world.simulator.fault(json!({"operation": operation, "mode": "status", "status": 503})).await;
    }
    becomes_due(&world).await;
    for _ in 0..3 {
        assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    }
    expires(&world).await;
    let cut_off = me(&world, 0, &customer.tokens.access).await;
    assert_eq!((cut_off.status, cut_off.code().as_str()), (503, "identity_unavailable"), "no logout: {}", cut_off.text);
    assert!(!cut_off.header("retry-after").is_empty());
    let login = world.login(&customer.visitor.access, "john.doe@example.com").await;
    assert_eq!(login.status, 503, "{}", login.text);
    world.simulator.heal().await;
    eventually("it heals", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_emporix_calls_expired_and_that_cannot_be_renewed_now_is_no_logout() {
    let world = World::new().await;
    let customer = world.customer().await;
    for (status, expected) in [(503, (503, "identity_unavailable")), (429, (429, "rate_limited"))] {
        world.simulator.fault(json!({"operation": "refresh", "mode": "status", "status": status})).await;
        world.simulator.expire("customer_access").await;
        let answer = me(&world, 0, &customer.tokens.access).await;
        assert_eq!((answer.status, answer.code().as_str()), expected, "{}", answer.text);
        assert!(!answer.header("retry-after").is_empty());
        world.simulator.heal().await;
        world.clock.advance(Duration::from_secs(10));
        eventually("it heals", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
    }
    let guest = async || world.ask("GET /product/acme/products").send().await;
    assert_eq!(guest().await.status, 200);
    world.simulator.expire("anonymous_access").await;
    world.simulator.fault(json!({"operation": "anonymous_login", "mode": "status", "status": 503})).await;
    assert_eq!(guest().await.code(), "identity_unavailable", "and a guest is told the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_pause_as_emporix_asks_for_it_within_reason() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for (asked, told) in [
        ("7", "7"),
        ("0", "1"),
        ("1000000000000000000", "3600"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "3600"),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "1"),
        ("-1", "5"),
        ("soon", "5"),
    ] {
        let limited = json!({"operation": "login", "mode": "status", "status": 429, "headers": {"retry-after": asked}});
        world.simulator.heal().await;
        world.simulator.fault(limited).await;
        let answer = world.login(&visitor.access, "john.doe@example.com").await;
        assert_eq!((answer.status, answer.header("retry-after").as_str()), (429, told), "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_while_the_token_endpoints_are_down_is_a_logout_and_emporix_is_told_later() {
    let world = World::new().await;
    let customer = short_lived(&world).await;
    world.simulator.fault(json!({"operation": "logout", "mode": "status", "status": 503, "times": 2})).await;
    assert_eq!(logout(&world, &customer).await.status, 204);
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 401);
    eventually("Emporix is told in the end", async || world.simulator.calls("logout").await == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_whose_answer_was_lost_is_not_sent_again_while_access_lives() {
    for mode in ["late_reset", "half_body", "gzip", "garbage", "oversized"] {
        let world = World::new().await;
        let customer = short_lived(&world).await;
        world.simulator.fault(json!({"operation": "refresh", "mode": mode, "times": 1})).await;
        becomes_due(&world).await;
        eventually("a second leader has found the unsettled refresh", async || {
            assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200, "it is kept alive");
            refreshes(&world, "unavailable") >= 1.0
        })
        .await;
        assert_eq!(world.simulator.calls("refresh").await, 1, "{mode}: the token may be spent");
        assert!(refreshes(&world, "unknown") >= 1.0, "{mode}");

        expires(&world).await;
        eventually("the one recovery has been refused", async || {
            me(&world, 0, &customer.tokens.access).await.status == 401
        })
        .await;
        assert_eq!(world.simulator.calls("refresh").await, 2, "{mode}: one recovery and no more");
        assert_eq!(me(&world, 0, &customer.visitor.access).await.status, 200, "{mode}: the visitor's half stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_token_that_was_not_spent_recovers_once_access_is_over() {
    let world = World::new().await;
    world.simulator.set(json!({"refresh_single_use": false})).await;
    let customer = short_lived(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "late_reset", "times": 1})).await;
    becomes_due(&world).await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    eventually("the answer is lost", async || refreshes(&world, "unknown") >= 1.0).await;
    expires(&world).await;
    eventually("the recovery renews", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
    assert_eq!(world.simulator.calls("refresh").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_ends_the_customers_half_and_leaves_the_visitors() {
    for store_is_redis in [false, true] {
        let builder = if store_is_redis { World::builder().redis() } else { World::builder() };
        let world = builder.start().await;
        let customer = short_lived(&world).await;
        world.simulator.expire("customer_refresh").await;
        expires(&world).await;
        let over = me(&world, 0, &customer.tokens.access).await;
        assert_eq!((over.status, over.code().as_str()), (401, "session_ended"), "{}", over.text);
        let line = "GET /customer/acme/me/addresses";
        assert_eq!(world.ask(line).bearer(&customer.tokens.access).send().await.status, 401);
        let guest = me(&world, 0, &customer.visitor.access).await;
        assert_eq!((guest.status, guest.json()["customerNumber"].as_str()), (200, Some("00000000")));
        let route = world.ask(line).bearer(&customer.visitor.access).send().await;
        assert_eq!((route.status, route.code().as_str()), (401, "customer_required"));
        assert_eq!(world.simulator.calls("refresh").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_whose_refresh_is_refused_is_a_visitor_again() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    let browser = world.browser();
    browser.login().await;
    world.simulator.expire("customer_refresh").await;
    expires(&world).await;
    let view = browser.send(ME, |ask| ask.bearer("cookie.customer")).await;
    assert_eq!(view.status, 401, "{}", view.text);
    let guest = browser.send(ME, |ask| ask).await;
    assert_eq!((guest.status, guest.json()["customerNumber"].as_str()), (200, Some("00000000")), "{}", guest.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_refresh_keeps_the_session_whatever_the_answer_looks_like() {
    let world = World::new().await;
    let customer = short_lived(&world).await;
    for mode in ["500", "403", "404", "408", "429", "html"] {
        world.simulator.fault(outage(mode)).await;
        world.clock.advance(Duration::from_secs(700));
        let answer = me(&world, 0, &customer.tokens.access).await;
        assert!([503, 429].contains(&answer.status), "{mode}: {} {}", answer.status, answer.text);
        assert!(!answer.header("retry-after").is_empty(), "{mode}: {}", answer.text);
        world.simulator.heal().await;
        eventually(&format!("it heals after {mode}"), async || {
            let answer = me(&world, 0, &customer.tokens.access).await;
            assert_ne!(answer.status, 401, "{mode}: {}", answer.text);
            answer.status == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_on_an_expired_session_are_one_refresh_over_two_replicas() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = short_lived(&world).await;
    for replica in [0, 1] {
        assert_eq!(me(&world, replica, &customer.tokens.access).await.status, 200);
    }
    expires(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 200})).await;
    let (world, handle) = (Arc::new(world), customer.tokens.access);
    let ask = |number: usize| {
        let (world, handle) = (world.clone(), handle.clone());
        tokio::spawn(async move { me(&world, number % 2, &handle).await })
    };
    let asked: Vec<_> = (0..100).map(ask).collect();
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, answer.json()["customerNumber"].as_str()), (200, Some("13869000")));
    }
    assert_eq!(world.simulator.calls("refresh").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_endpoints_that_return_meet_what_piled_up_piece_by_piece() {
    const SESSIONS: usize = 250;
    const ANSWERS_AFTER: Duration = Duration::from_millis(700);
    /// As many as there may be at once, and again when those are answered; one round more for a slow machine.
    const MOST_IN_THREE_ROUNDS: u64 = 3 * 64;
    let unthrottled = r#"{"burst": 100000, "per_minute": 100000}"#;
    let limits = ["SIGN_IN_PER_ACCOUNT", "SIGN_IN_PER_ADDRESS", "VISITORS_PER_ADDRESS"];
    let unlimited = |builder: Builder, limit: &&str| builder.set(&format!("LIMITS__{limit}"), unthrottled);
    let world = limits.iter().fold(World::builder(), unlimited).start().await;
    let mut handles = Vec::new();
    for _ in 0..SESSIONS {
        handles.push(short_lived(&world).await.tokens.access);
    }
    world.simulator.fault(outage("503")).await;
    expires(&world).await;
    let world = Arc::new(world);
    let served: Vec<_> = handles
        .into_iter()
        .map(|handle| {
            let world = world.clone();
            tokio::spawn(async move {
                while me(&world, 0, &handle).await.status != 200 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    eventually("the breaker opens", async || {
        world.gateway().metric(r#"gateway_breakers_open{dependency="refresh"}"#) >= 1.0
    })
    .await;
    world.simulator.heal().await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 700})).await;
    world.simulator.forget_calls().await;
    eventually("one call goes ahead", async || world.simulator.calls("refresh").await > 0).await;
    tokio::time::sleep(ANSWERS_AFTER.mul_f32(1.5)).await;
    let calls = world.simulator.calls("refresh").await;
    assert!(calls <= MOST_IN_THREE_ROUNDS, "{calls} calls");
    for client in served {
        client.await.unwrap();
    }
    assert_eq!(world.simulator.redeems().await.into_iter().max(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_finds_no_turn_is_refused_in_time_and_its_token_is_sent_later() {
    /// Calls that are made for a tenant at a time.
    const AT_ONCE: u64 = 64;
    /// Longer than a call waits for its turn.
    const TAKEN_FOR: Duration = Duration::from_secs(5);
    let builder = World::builder().set("LIMITS__VISITORS_PER_ADDRESS", r#"{"burst": 1000, "per_minute": 1000}"#);
    let world = builder.set("IDENTITY__TIMEOUT", "10s").start().await;
    let customer = short_lived(&world).await;
    expires(&world).await;
    let delay = u64::try_from(TAKEN_FOR.as_millis()).unwrap();
    world.simulator.fault(json!({"operation": "anonymous_login", "mode": "delay", "delay_ms": delay})).await;
    let world = Arc::new(world);
    let visitors: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.visitor().await })
        })
        .collect();
    eventually("all turns are taken", async || world.simulator.calls("anonymous_login").await == AT_ONCE).await;
    let asked = Instant::now();
    let refused = me(&world, 0, &customer.tokens.access).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "identity_unavailable"), "{}", refused.text);
    assert!(refused.header("retry-after").parse::<u32>().is_ok());
    assert!(asked.elapsed() < TAKEN_FOR, "{:?}", asked.elapsed());
    let unmade = r#"gateway_emporix_calls_total{operation="refresh",outcome="unavailable"}"#;
    assert_eq!((world.gateway().metric(unmade), refreshes(&world, "unavailable")), (1.0, 1.0));
    assert_eq!(world.simulator.calls("refresh").await, 0);

    for visitor in visitors {
        assert!(!visitor.await.unwrap().access.is_empty(), "who had a turn is served");
    }
    eventually("it is renewed", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
    assert_eq!(world.simulator.redeems().await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_that_meets_a_refresh_stays_a_logout() {
    let world = World::builder().redis().replicas(2).start().await;
    let customer = short_lived(&world).await;
    expires(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 600, "times": 1})).await;
    let racing = me(&world, 1, &customer.tokens.access);
    let ending = async {
        eventually("the refresh is under way", async || world.simulator.calls("refresh").await == 1).await;
        logout(&world, &customer).await
    };
    let (raced, ended) = tokio::join!(racing, ending);
    assert_eq!(ended.status, 204, "{}", ended.text);
    assert_eq!(raced.status, 401, "{}", raced.text);
    for replica in [0, 1] {
        for handle in [&customer.tokens.access, &customer.visitor.access] {
            assert_eq!(me(&world, replica, handle).await.status, 401, "replica {replica}");
        }
    }
    let records = world.redis().keys().into_iter().filter(|key| key.ends_with(":session"));
    assert_eq!(records.count(), 0, "nothing brought it back");
    eventually("what the refresh brought is revoked upstream as well", async || {
        world.simulator.calls("logout").await == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_does_not_waste_the_refresh() {
    let world = World::new().await;
    let customer = short_lived(&world).await;
    expires(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 500, "times": 1})).await;
    let impatient = tokio::time::timeout(Duration::from_millis(250), me(&world, 0, &customer.tokens.access)).await;
    assert!(impatient.is_err(), "it hung up before the answer");
    eventually("the refresh is kept", async || refreshes(&world, "renewed") >= 1.0).await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 200);
    assert_eq!(world.simulator.calls("refresh").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_whose_customer_is_lost_goes_on_as_the_visitor_it_was() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 600, "anonymous_refresh_ttl": 864_000})).await;
    let browser = world.browser();
    assert_eq!(browser.login().await.status, 200);
    expires(&world).await;
    world.simulator.expire("customer_refresh").await;
    let lost = browser.send(ME, |ask| ask.bearer("cookie.customer")).await;
    assert_eq!((lost.status, lost.cookies().len()), (401, 0), "{}", lost.text);
    world.clock.advance(Duration::from_secs(3_600));
    let visitor = browser.send(ME, |ask| ask).await;
    assert_eq!((visitor.status, visitor.json()["customerNumber"].as_str()), (200, Some("00000000")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_refusals_over_many_sessions_ends_nobody_beyond_the_first() {
    let limits = World::builder().set("LIMITS__SIGN_IN_PER_ACCOUNT", r#"{"burst": 100, "per_minute": 100}"#);
    let world = limits.set("LIMITS__SIGN_IN_PER_ADDRESS", r#"{"burst": 100, "per_minute": 100}"#).start().await;
    let mut customers = Vec::new();
    for _ in 0..30 {
        customers.push(short_lived(&world).await);
    }
    world.simulator.fault(json!({"operation": "refresh", "mode": "status", "status": 400})).await;
    expires(&world).await;
    let mut spared = Vec::new();
    for customer in &customers {
        let answer = me(&world, 0, &customer.tokens.access).await;
        if answer.status == 503 {
            spared.push(customer);
        }
    }
    assert_eq!(spared.len(), 10, "the first twenty are taken at Emporix' word");
    world.simulator.heal().await;
    for customer in spared {
        eventually("the session is renewed", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_refused_anonymous_refreshes_leaves_visitors_their_carts() {
    let limits = World::builder().set("LIMITS__VISITORS_PER_ADDRESS", r#"{"burst": 100, "per_minute": 100}"#);
    let world = limits.start().await;
    world.simulator.set(json!({"anonymous_access_ttl": 600})).await;
    let mut visitors = Vec::new();
    for _ in 0..30 {
        visitors.push(world.visitor().await);
    }
    world.simulator.fault(json!({"operation": "anonymous_refresh", "mode": "status", "status": 400})).await;
    expires(&world).await;
    let mut spared = Vec::new();
    for visitor in &visitors {
        if me(&world, 0, &visitor.access).await.status == 503 {
            spared.push(visitor);
        }
    }
    assert_eq!(spared.len(), 10, "the first twenty are taken at Emporix' word");
    world.simulator.heal().await;
    for visitor in spared {
        eventually("the visit is renewed", async || me(&world, 0, &visitor.access).await.status == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_calls_every_token_over_logs_nobody_out() {
    let world = World::new().await;
    let customer = world.customer().await;
    world.clock.advance(Duration::from_secs(10));
    let fault =
        json!({"fault": {"faultstring": "x", "detail": {"errorcode": "keymanagement.service.access_token_expired"}}});
    world.simulator.fault(json!({"operation": "api", "mode": "status", "status": 401, "body": fault})).await;
    let products = async || world.ask("GET /product/acme/products").send().await;
    for _ in 0..40 {
        for answer in [me(&world, 0, &customer.tokens.access).await, products().await] {
            assert_eq!((answer.status, answer.code().as_str()), (503, "identity_unavailable"), "{}", answer.text);
        }
    }
    let (redeems, minted) = (world.simulator.calls("refresh").await, world.simulator.calls("anonymous_login").await);
    assert!((1..=4).contains(&redeems) && (2..=12).contains(&minted), "{redeems} redeems, {minted} guest tokens");
    world.simulator.heal().await;
    assert_eq!((me(&world, 0, &customer.tokens.access).await.status, products().await.status), (200, 200), "it heals");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_token_is_served_while_it_lives_whatever_befalls_the_endpoint_that_issues_it() {
    let world = World::new().await;
    let products = "GET /product/acme/products";
    assert_eq!(world.ask(products).send().await.status, 200);
    world.simulator.fault(json!({"operation": "anonymous_login", "mode": "status", "status": 500})).await;
    world.clock.advance(Duration::from_secs(3_400));
    for _ in 0..3 {
        assert_eq!(world.ask(products).send().await.status, 200);
    }
    world.clock.advance(Duration::from_secs(600));
    assert_eq!(world.ask(products).send().await.code(), "identity_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_emporix_cannot_serve_is_none_and_logs_nobody_out() {
    let world = World::new().await;
    let customer = short_lived(&world).await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "reset", "times": 1})).await;
    expires(&world).await;
    assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 503, "the answer is lost");
    world.simulator.fault(json!({"operation": "refresh", "mode": "status", "status": 503})).await;
    eventually("recoveries are tried and not served", async || {
        assert_eq!(me(&world, 0, &customer.tokens.access).await.status, 503);
        world.simulator.calls("refresh").await >= 3
    })
    .await;
    world.simulator.heal().await;
    eventually("the recovery renews", async || me(&world, 0, &customer.tokens.access).await.status == 200).await;
}
