//! Logout: who may, what dies, and that Emporix is told however long it takes.

use emporix_gateway::session::SessionKey;
use emporix_gateway::store::MOST_PER_CUSTOMER;
use serde_json::json;

use crate::steps::{ANONYMOUS_LOGIN, GUEST, JANE, JOHN, assert_dead, visiting};
use crate::world::{Tokens, World, eventually};

/// The name of the one customer's index in Redis.
fn index(world: &World) -> String {
    let keys = world.redis().keys();
    keys.into_iter().find(|key| key.starts_with("eg:customer:") && !key.ends_with(":epoch")).unwrap()
}

fn indexed(world: &World, index: &str) -> String {
    world.redis().command(&format!("ZCARD {index}")).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_kills_the_whole_family() {
    let world = World::new().await;
    let john = world.customer().await;
    let line = format!("GET /customer/acme/logout?accessToken={}", john.tokens.access);
    assert_eq!(world.ask(&line).bearer(&john.visitor.access).send().await.status, 204);
    for handle in [&john.tokens.access, &john.visitor.access] {
        assert_dead(&world.ask("GET /customer/acme/me").bearer(handle).send().await);
    }
    assert_dead(&world.refresh(&john.tokens.refresh, "").await);
    let line = format!("GET /customerlogin/auth/anonymous/refresh?tenant=acme&refresh_token={}", john.visitor.refresh);
    assert_dead(&world.ask(&line).send().await);
    assert_dead(&world.log_out(&john.tokens.access).await);
    eventually("upstream is told", async || world.simulator.calls("logout").await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_needs_the_customer_and_not_the_parameter() {
    let world = World::new().await;
    let john = world.customer().await;
    let guest = world.log_out(&john.visitor.access).await;
    assert_eq!((guest.status, guest.code().as_str()), (401, "customer_required"));
    let nobody = world.ask("GET /customer/acme/logout").send().await;
    assert_eq!((nobody.status, nobody.code().as_str()), (401, "session_required"));
    assert_eq!(world.rights(&john.tokens.access).await, JOHN);
    assert_eq!(world.log_out(&john.tokens.access).await.status, 204);
    assert_eq!(world.rights(&john.tokens.access).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_logout_takes_its_cookie_and_a_guest_may_not() {
    let world = World::new().await;
    let browser = visiting(&world).await;
    assert_eq!(browser.send("GET /customer/acme/logout", |ask| ask).await.status, 401);
    assert!(browser.cookie.lock().unwrap().is_some());
    assert_eq!(browser.login().await.status, 200);
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    let logout = browser.send("GET /customer/acme/logout", |ask| ask).await;
    assert_eq!(logout.status, 204);
    assert!(browser.cookie.lock().unwrap().is_none());
    let dead = world.ask("GET /customer/acme/me").header("cookie", &cookie).send().await;
    assert_dead(&dead);
    assert!(dead.cookies()[0].contains("Max-Age=0"));
    let anew = browser.send(ANONYMOUS_LOGIN, |ask| ask.header("cookie", &cookie)).await;
    assert_eq!((anew.status, anew.cookies().len()), (200, 1), "{}", anew.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn logout_succeeds_while_emporix_fails_and_the_revocation_is_retried() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.fault(json!({"operation": "logout", "mode": "status", "status": 500, "times": 1})).await;
    world.simulator.fault(json!({"operation": "logout", "mode": "reset", "times": 1})).await;
    assert_eq!(world.log_out(&john.tokens.access).await.status, 204);
    assert_eq!(world.rights(&john.tokens.access).await, "session_ended");
    eventually("the revocation is repeated", async || world.simulator.calls("logout").await == 3).await;
    let sent = world.received("logout").await;
    let bearer = sent[0].headers("authorization");
    assert!(sent.iter().all(|request| request.headers("authorization") == bearer));
    assert!(sent[0].line().ends_with(bearer[0].strip_prefix("Bearer ").unwrap()), "it revokes the token itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_and_the_access_token_parameter_of_one_session_agree() {
    let world = World::new().await;
    let john = world.customer().await;
    let line = format!("GET /customer/acme/logout?accessToken={}", john.tokens.access);
    assert_eq!(world.ask(&line).bearer(&john.tokens.access).send().await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_emporix_asks_for_is_no_attempt_at_telling_it() {
    let world = World::builder().set("IDENTITY__REVOKE_ATTEMPTS", "1").start().await;
    let limited =
        json!({"operation": "logout", "mode": "status", "status": 429, "headers": {"retry-after": "1"}, "times": 1});
    world.simulator.fault(limited).await;
    for _ in 0..2 {
        let customer = world.customer().await;
        let line = format!("GET /customer/acme/logout?accessToken={}", customer.tokens.access);
        assert_eq!(world.ask(&line).bearer(&customer.tokens.access).send().await.status, 204);
    }
    eventually("both are told in the end", async || world.simulator.calls("logout").await == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_and_out_fills_no_index_with_sessions_that_have_ended() {
    let world = World::builder().redis().start().await;
    let stays = world.customer().await;
    let index = index(&world);
    for how in ["/customer/acme/logout", "/_gateway/logout"] {
        let (line, leaves) =
            (format!("{} {how}", if how.starts_with("/_") { "POST" } else { "GET" }), world.customer());
        let leaves = leaves.await.tokens.access;
        assert_eq!(indexed(&world, &index), ":2");
        assert_eq!(world.ask(&line).bearer(&leaves).send().await.status, 204);
        eventually("it leaves the index", async || indexed(&world, &index) == ":1").await;
    }
    world.customer().await;
    assert_eq!(world.ask("POST /_gateway/logout-all").bearer(&stays.tokens.access).send().await.status, 204);
    eventually("all have left", async || indexed(&world, &index) == ":0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_index_has_no_room_for_ends_if_it_is_still_that_customers() {
    let world = World::builder().redis().start().await;
    let handed_over = world.customer().await;
    let index = index(&world);
    let jane = Tokens::of(&world.login(&handed_over.visitor.access, "jane.roe@example.com").await).access;
    let johns = world.customer().await;
    let later =
        (1..MOST_PER_CUSTOMER - 1).map(|_| format!(" 9999999999999 {}", SessionKey::random().unwrap().to_text()));
    world.redis().command(&format!("ZADD {index}{}", later.collect::<String>()));
    assert_eq!(indexed(&world, &index), format!(":{MOST_PER_CUSTOMER}"));

    for _ in 0..2 {
        assert_eq!(world.rights(&johns.tokens.access).await, JOHN);
        world.customer().await;
    }
    eventually("the older one ends", async || world.rights(&johns.tokens.access).await == "session_ended").await;
    eventually("Emporix is told of it", async || world.simulator.calls("logout").await == 2).await;
    assert_eq!(world.rights(&jane).await, JANE);
    assert_eq!(world.rights(&handed_over.visitor.access).await, GUEST);
}
