//! Customer refresh: when Emporix is asked, what the answer holds, and how refresh handles rotate.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::steps::{ANONYMOUS_LOGIN, CUSTOMER_DUE, JOHN, assert_dead, visiting, who};
use crate::world::{Customer, Tokens, World, eventually};

const REUSED: &str = r#"gateway_sessions_total{event="refresh_reused"}"#;

async fn order(world: &World, john: &Customer, access: &str) -> u16 {
    let cart = world.ask("POST /cart/acme/carts").bearer(access).json(&json!({"siteCode": "main"})).send().await;
    let cart = cart.json()["cartId"].as_str().unwrap().to_owned();
    let order = world.ask("POST /checkout/acme/checkouts/order").bearer(access).header("saas-token", &john.saas);
    order.json(&json!({"cartId": cart})).send().await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_is_not_due_asks_nobody() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.forget_calls().await;
    let answer = world.refresh(&john.tokens.refresh, "").await;
    let renewed = Tokens::of(&answer);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(world.simulator.requests().await.is_empty());
    assert_eq!(renewed.session_id, john.visitor.session_id);
    for handle in [&john.tokens.access, &renewed.access] {
        assert_eq!(world.rights(handle).await, JOHN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_due_refresh_asks_once_and_the_saas_token_outlives_it_unseen() {
    let world = World::new().await;
    world.simulator.set(json!({"saas_ttl": 200_000})).await;
    let john = world.customer().await;
    world.clock.advance(CUSTOMER_DUE);
    let line = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", john.tokens.refresh);
    let answer = world.ask(&line).bearer(&john.visitor.access).send().await;
    let renewed = Tokens::of(&answer);
    assert_eq!(world.simulator.calls("refresh").await, 1);
    for name in ["saas_token", "saasToken"] {
        assert!(answer.json().get(name).is_none(), "{}", answer.text);
    }
    assert_eq!(answer.json()["access_token"], answer.json()["accessToken"]);
    assert_eq!(order(&world, &john, &renewed.access).await, 201);
    let again = world.refresh(&renewed.refresh, "").await;
    assert_eq!((again.status, world.simulator.calls("refresh").await), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_refresh_leaves_its_cookie_alone() {
    let world = World::new().await;
    let browser = visiting(&world).await;
    browser.login().await;
    world.clock.advance(CUSTOMER_DUE);
    let line = "GET /customer/acme/refreshauthtoken?refreshToken=cookie.customer-refresh";
    let answer = browser.send(line, |ask| ask.bearer("cookie.anonymous")).await;
    assert_eq!((answer.status, answer.cookies().len()), (200, 0), "{}", answer.text);
    assert_eq!(answer.json()["refresh_token"], "cookie.customer-refresh");
    assert_eq!(world.simulator.calls("refresh").await, 1);
    assert_eq!(who(&browser.send("GET /customer/acme/me", |ask| ask).await), JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_authorised_by_the_visitors_anonymous_token() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.expire("anonymous_access").await;
    let switched = world.refresh(&john.tokens.refresh, "&legalEntityId=LE1").await;
    assert_eq!(switched.status, 200, "{}", switched.text);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 1);
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
    assert_eq!(world.rights(&Tokens::of(&switched).access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_handle_of_another_session_is_ignored_beside_a_refresh_handle() {
    let world = World::new().await;
    let (john, other) = (world.customer().await, world.visitor().await);
    let line = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", john.tokens.refresh);
    let renewed = Tokens::of(&world.ask(&line).bearer(&other.access).send().await);
    assert_eq!(renewed.session_id, john.visitor.session_id);
    assert_eq!(world.rights(&renewed.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legal_entity_is_redeemed_remembered_and_cleared() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 3_600})).await;
    let john = world.customer().await;
    let mut tokens = Tokens::of(&world.refresh(&john.tokens.refresh, "&legalEntityId=LE1").await);
    assert!(world.only("refresh").await.line().contains("legalEntityId=LE1"));
    tokens = Tokens::of(&world.refresh(&tokens.refresh, "&legalEntityId=LE1").await);
    assert_eq!(world.simulator.calls("refresh").await, 1, "the same entity is no switch");

    world.clock.advance(Duration::from_secs(3_700));
    assert_eq!(world.rights(&tokens.access).await, JOHN);
    let automatic = world.received("refresh").await.pop().unwrap().line();
    assert_eq!(world.simulator.calls("refresh").await, 2);
    assert!(automatic.contains("legalEntityId=LE1"), "{automatic}");

    assert_eq!(world.refresh(&tokens.refresh, "").await.status, 200);
    let cleared = world.received("refresh").await.pop().unwrap().line();
    assert_eq!(world.simulator.calls("refresh").await, 3);
    assert!(!cleared.contains("legalEntityId"), "{cleared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_refresh_handle_works_for_a_short_grace_and_its_reuse_is_noted() {
    let world = World::new().await;
    let john = world.customer().await;
    let renewed = Tokens::of(&world.refresh(&john.tokens.refresh, "").await);
    assert_ne!(renewed.refresh, john.tokens.refresh);
    world.clock.advance(Duration::from_secs(20));
    assert_eq!(world.refresh(&john.tokens.refresh, "").await.status, 200);
    assert_eq!(world.gateway().metric(REUSED), 0.0);
    world.clock.advance(Duration::from_secs(11));
    assert_dead(&world.refresh(&john.tokens.refresh, "").await);
    assert_eq!(world.gateway().metric(REUSED), 1.0);
    assert_eq!(world.rights(&renewed.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reuse_of_a_refresh_handle_ends_the_session_where_so_configured() {
    let world = World::builder().set("REFRESH__REUSE", "end_session").start().await;
    let john = world.customer().await;
    let renewed = Tokens::of(&world.refresh(&john.tokens.refresh, "").await);
    world.clock.advance(Duration::from_secs(31));
    assert_dead(&world.refresh(&john.tokens.refresh, "").await);
    eventually("the session ends", async || world.rights(&renewed.access).await == "session_ended").await;
    assert_eq!(world.rights(&john.visitor.access).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_emporix_rejects_ends_the_customer_and_not_the_visitor() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 3_600})).await;
    let john = world.customer().await;
    world.simulator.expire("customer_refresh").await;
    world.clock.advance(Duration::from_secs(3_700));
    assert_dead(&world.refresh(&john.tokens.refresh, "").await);
    assert_eq!(world.rights(&john.tokens.access).await, "session_ended");
    assert_eq!(world.rights(&john.visitor.access).await, crate::steps::GUEST);
    let visit = Tokens::of(&world.ask(ANONYMOUS_LOGIN).bearer(&john.visitor.access).send().await);
    assert_eq!(visit.session_id, john.visitor.session_id);
}

async fn a_thousand_at_once(world: World, access: String) {
    let world = Arc::new(world);
    let mut requests = JoinSet::new();
    for _ in 0..1_000 {
        let (world, access) = (world.clone(), access.clone());
        requests.spawn(async move { world.rights(&access).await });
    }
    for rights in requests.join_all().await {
        assert_eq!(rights, JOHN);
    }
    assert_eq!(world.simulator.calls("refresh").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_on_an_expired_session_make_one_refresh() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_access_ttl": 3_600})).await;
    let john = world.customer().await;
    world.clock.advance(Duration::from_secs(3_700));
    a_thousand_at_once(world, john.tokens.access).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_that_upstream_calls_expired_make_one_refresh() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.expire("customer_access").await;
    // Long enough for all of them to wait for it, and not all of them may repeat at once.
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 500})).await;
    a_thousand_at_once(world, john.tokens.access).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_that_is_called_over_when_it_comes_is_used_and_not_renewed_for_each_request() {
    for life in [json!(0), json!(-1), json!("-1"), json!(1e18)] {
        let world = World::new().await;
        world.simulator.set(json!({"customer_access_ttl": 600})).await;
        let john = world.customer().await;
        world.clock.advance(Duration::from_secs(700));
        world.simulator.set(json!({"raw_expires_in": life})).await;
        for _ in 0..50 {
            assert_eq!(world.rights(&john.tokens.access).await, JOHN, "{life}");
        }
        let redeems = world.simulator.calls("refresh").await;
        assert!((1..=3).contains(&redeems), "{life}: {redeems} redeems for 50 requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_whose_refresh_token_is_over_when_it_comes_is_served_while_access_lives() {
    let world = World::new().await;
    world.simulator.set(json!({"customer_refresh_ttl": 0, "customer_access_ttl": 600})).await;
    let john = world.customer().await;
    let answer = world.refresh(&john.tokens.refresh, "").await;
    let life = answer.json()["expires_in"].as_u64().unwrap();
    assert!((590..=600).contains(&life), "{}", answer.text);
    world.clock.advance(Duration::from_secs(550));
    assert_eq!(world.rights(&john.tokens.access).await, JOHN);
    world.clock.advance(Duration::from_secs(60));
    assert_dead(&world.refresh(&Tokens::of(&answer).refresh, "").await);
    assert_eq!(world.rights(&john.tokens.access).await, "session_ended");
    assert_eq!(world.simulator.calls("refresh").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_that_refresh_with_one_handle_both_keep_what_they_got() {
    let world = World::new().await;
    let customer = world.customer().await;
    let tabs = [(); 2].map(|()| world.refresh(&customer.tokens.refresh, ""));
    let mut handles = Vec::new();
    for tab in tabs {
        handles.push(Tokens::of(&tab.await).refresh);
    }
    world.clock.advance(Duration::from_secs(60));
    for handle in handles {
        assert_eq!(world.refresh(&handle, "").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_waits_while_another_customer_signs_in_gets_nothing_of_theirs() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 600})).await;
    let waiting = world.refresh(&john.tokens.refresh, "&legalEntityId=entity-1");
    let jane = async {
        eventually("the refresh is under way", async || world.simulator.calls("refresh").await == 1).await;
        world.login(&john.visitor.access, "jane.roe@example.com").await
    };
    let (waited, jane) = tokio::join!(waiting, jane);
    assert_eq!(jane.status, 200, "{}", jane.text);
    assert_eq!((waited.status, waited.code()), (401, "session_ended".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_switches_its_legal_entity_once_at_a_time() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.fault(json!({"operation": "refresh", "mode": "delay", "delay_ms": 600})).await;
    let switch = async |entity: &str| world.refresh(&john.tokens.refresh, &format!("&legalEntityId={entity}")).await;
    let others = async {
        eventually("a switch is under way", async || world.simulator.calls("refresh").await == 1).await;
        for entity in ["LE2", "LE3", "LE4"] {
            let other = switch(entity).await;
            assert_eq!((other.status, other.code().as_str()), (429, "rate_limited"), "{}", other.text);
            assert_eq!(other.header("retry-after"), "1");
        }
    };
    let (first, same, ()) = tokio::join!(switch("LE1"), switch("LE1"), others);
    assert_eq!((first.status, same.status), (200, 200), "{} {}", first.text, same.text);
    assert_eq!(world.simulator.calls("refresh").await, 1);
    assert_eq!(switch("LE2").await.status, 200, "then it is the next one's turn");
    assert_eq!(world.rights(&john.tokens.access).await, JOHN);
}
