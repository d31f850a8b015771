//! API requests: which session may ask for what, and what happens when its tokens are over.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::steps::real_customer_token;
use crate::world::{Answer, Customer, World, eventually};

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

async fn cart(world: &World, access: &str) -> String {
    let answer = world.ask("POST /cart/acme/carts").bearer(access).json(&json!({"siteCode": "main"})).send().await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()["cartId"].as_str().unwrap().to_owned()
}

async fn order(world: &World, access: &str, cart: &str) -> Answer {
    world.ask("POST /checkout/acme/checkouts/order").bearer(access).json(&json!({"cartId": cart})).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_tenant_serves_no_other() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let ask = |line: &str| world.ask(line).bearer(&visitor.access);
    for answer in [
        ask("GET /cart/globex/carts").send().await,
        ask("GET /cart/acme/carts").header("Emporix-Tenant", "globex").send().await,
        ask("GET /brand/brands").header("emporix-tenant", "globex").send().await,
        ask("GET /brand/brands").header("host", "globex.example.com").send().await,
        ask("GET /product/globex/products").send().await,
    ] {
        assert_eq!(refused(&answer), (403, "tenant_mismatch".to_owned()));
    }
    for answer in [
        ask("GET /cart/initech/carts").send().await,
        ask("GET /cart/acme/carts").header("Emporix-Tenant", "initech").send().await,
        world.ask("GET /brand/brands").send().await,
    ] {
        assert_eq!(refused(&answer), (404, "unknown_tenant".to_owned()));
    }
    assert_eq!(world.simulator.calls("api").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_without_a_tenant_take_it_from_the_session_the_host_or_the_header() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let own = world.ask("GET /labels").bearer(&visitor.access).send().await;
    assert_eq!((own.status, &own.json()["sessionId"]), (200, &json!(visitor.session_id)));
    let minted_for = async || {
        let requests = world.simulator.requests().await;
        let minted = requests.iter().rev().find(|request| request["operation"] == "anonymous_login").unwrap();
        minted["target"].as_str().unwrap().to_owned()
    };
    for host in ["globex.example.com", "GLOBEX.example.com:8443"] {
        let by_host = world.ask("GET /brand/brands/7").header("host", host).send().await;
        assert_eq!(by_host.status, 200, "{}", by_host.text);
        assert!(minted_for().await.contains("tenant=globex"));
    }
    let by_header = world.ask("GET /brand/brands").header("Emporix-Tenant", "acme").send().await;
    assert_eq!(by_header.status, 200, "{}", by_header.text);
    assert!(minted_for().await.contains("tenant=acme"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_name_its_own_visit_and_no_other() {
    let world = World::new().await;
    let (mine, theirs) = (world.visitor().await, world.visitor().await);
    let spellings = ["sessionId", "session-id", "session_id", "SESSIONID", "session%49d", "session%2Did"];
    for name in spellings {
        let line = |id: &str| format!("GET /cart/acme/carts?siteCode=main&create=true&{name}={id}");
        let other = world.ask(&line(&theirs.session_id)).bearer(&mine.access).send().await;
        assert_eq!(refused(&other), (403, "visit_mismatch".to_owned()), "{name}");
        let both = format!("{}&{name}={}", line(&mine.session_id), theirs.session_id);
        assert_eq!(world.ask(&both).bearer(&mine.access).send().await.status, 403, "{name}");
        let own = world.ask(&line(&mine.session_id)).bearer(&mine.access).send().await;
        assert_eq!(own.status, 200, "{name}: {}", own.text);
    }
    for name in ["session-id", "SessionId", "session_id", "session.id"] {
        let ask = |id: &str| world.ask("GET /coupon/acme/c").bearer(&mine.access).header(name, id).send();
        assert_eq!(refused(&ask(&theirs.session_id).await), (403, "visit_mismatch".to_owned()), "{name}");
        assert_eq!(ask(&mine.session_id).await.status, 200, "{name}");
    }
    let served = world.simulator.requests().await;
    assert!(!format!("{served:?}").contains(&format!("={}", theirs.session_id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_asks_for_a_new_sign_in_rather_than_fail_at_emporix() {
    let world = World::new().await;
    let customer = world.customer().await;
    let own = cart(&world, &customer.tokens.access).await;
    world.clock.advance(Duration::from_secs(4 * 3600 + 60));
    world.simulator.forget_calls().await;
    let answer = order(&world, &customer.tokens.access, &own).await;
    assert_eq!(refused(&answer), (401, "reauthentication_required".to_owned()));
    assert!(answer.json()["fault"].is_null(), "renewing the access token would not help");
    assert_eq!(world.simulator.calls("api").await, 0);
    let read = world.ask("GET /cart/acme/carts").bearer(&customer.tokens.access).send().await;
    assert_eq!(read.status, 200, "elsewhere the saas-token is simply left out");
    assert!(world.simulator.last_api_request().await.headers("saas-token").is_empty());

    let visitor = world.visitor().await;
    let guests = cart(&world, &visitor.access).await;
    assert_eq!(order(&world, &visitor.access, &guests).await.status, 201, "guests check out without one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_emporix_calls_expired_is_renewed_and_the_request_repeated_unseen() {
    let world = World::new().await;
    let customer = world.customer().await;
    let me = async |access: &str| world.ask("GET /customer/acme/me").bearer(access).send().await;
    world.simulator.expire("customer_access").await;
    assert_eq!(me(&customer.tokens.access).await.json()["customerNumber"], "13869000");
    assert_eq!(world.simulator.calls("refresh").await, 1);
    world.simulator.expire("customer_access").await;
    cart(&world, &customer.tokens.access).await;
    assert_eq!(world.simulator.calls("refresh").await, 2);
    let posts: Vec<Value> = world.simulator.requests().await;
    let bodies: Vec<&Value> = posts
        .iter()
        .filter(|request| request["target"] == "/cart/acme/carts")
        .map(|request| &request["body"])
        .collect();
    assert_eq!(bodies, [&json!({"siteCode": "main"}).to_string(), &json!({"siteCode": "main"}).to_string()]);

    world.simulator.expire("anonymous_access").await;
    let guest = me(&customer.visitor.access).await;
    assert_eq!((guest.status, &guest.json()["customerNumber"]), (200, &json!("00000000")));
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_shared_guest_token_is_replaced_unseen() {
    let world = World::new().await;
    let products = async || world.ask("GET /product/acme/products").send().await.status;
    assert_eq!(products().await, 200);
    world.simulator.expire("anonymous_access").await;
    assert_eq!(products().await, 200);
    assert_eq!(world.simulator.calls("anonymous_login").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_to_hold_is_sent_once_and_its_401_passes() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.expire("anonymous_access").await;
    let ask = || world.ask("POST /coupon/acme/c").bearer(&visitor.access).body(vec![b'x'; 100_000]).send();
    let answer = ask().await;
    assert_eq!((answer.status, answer.json()["fault"].is_object()), (401, true), "{}", answer.text);
    assert_eq!(world.simulator.calls("api").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_401_passes_untouched_and_renews_nothing() {
    let world = World::new().await;
    let customer = world.customer().await;
    let own = cart(&world, &customer.tokens.access).await;
    assert_eq!(order(&world, &customer.tokens.access, &own).await.status, 201);
    let closed = order(&world, &customer.tokens.access, &own).await;
    assert_eq!((closed.status, &closed.json()["message"]), (401, &json!("Cart is closed")));
    world.simulator.fault(json!({"operation": "api", "mode": "unauthorized_plain", "times": 1})).await;
    let plain = world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
    assert_eq!((plain.status, plain.text.as_str()), (401, "Unauthorized"));
    let other = json!({"fault": {"faultstring": "Invalid ApiKey", "detail": {"errorcode": "oauth.v2.InvalidApiKey"}}});
    let long =
        json!({"fault": {"detail": {"errorcode": "oauth.v2.InvalidAccessToken"}}, "padding": "x".repeat(20_000)});
    for body in [other, long] {
        let fault = json!({"operation": "api", "mode": "status", "status": 401, "body": body, "times": 1});
        world.simulator.fault(fault).await;
        let answer = world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
        assert_eq!((answer.status, answer.json()), (401, body));
    }
    assert_eq!(world.simulator.calls("refresh").await, 0);
    assert_eq!(world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_can_be_renewed_the_401_of_emporix_passes() {
    let world = World::new().await;
    let customer = world.customer().await;
    world.simulator.expire("customer_access").await;
    world.simulator.expire("customer_refresh").await;
    let answer = world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
    assert_eq!((answer.status, answer.json()["fault"].is_object()), (401, true), "{}", answer.text);
    assert_eq!(world.simulator.calls("refresh").await, 1);
    let guest = world.ask("GET /customer/acme/me").bearer(&customer.visitor.access).send().await;
    assert_eq!(guest.status, 200, "the visitor's half stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_cannot_be_reached_is_a_502_and_a_slow_one_a_504() {
    let world = World::builder().set("UPSTREAM__READ_TIMEOUT", "500ms").start().await;
    let visitor = world.visitor().await;
    for line in ["GET /coupon/acme/c", "POST /coupon/acme/c"] {
        for (mode, expected) in [
            (json!({"mode": "reset"}), (502, "upstream_failed")),
            (json!({"mode": "late_reset"}), (502, "upstream_failed")),
            (json!({"mode": "delay", "delay_ms": 5000}), (504, "upstream_timeout")),
            (json!({"mode": "hang"}), (504, "upstream_timeout")),
        ] {
            let mut fault = mode;
            fault["operation"] = "api".into();
            world.simulator.heal().await;
            world.simulator.fault(fault.clone()).await;
            let answer = world.ask(line).bearer(&visitor.access).send().await;
            assert_eq!(refused(&answer), (expected.0, expected.1.to_owned()), "{line} {fault}");
        }
    }
    world.simulator.heal().await;
    assert_eq!(world.ask("GET /coupon/acme/c").bearer(&visitor.access).send().await.status, 200, "no restart needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_whether_or_not_it_says_its_length() {
    let world = World::builder().set("LIMITS__API_BODY_BYTES", "1000").start().await;
    let visitor = world.visitor().await;
    let answer = world.ask("POST /coupon/acme/c").bearer(&visitor.access).body(vec![b'x'; 1001]).send().await;
    assert_eq!(refused(&answer), (413, "body_too_large".to_owned()));
    assert_eq!(world.simulator.calls("api").await, 0);
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001));
    let head = "POST /coupon/acme/c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer ";
    let answer = world.raw(format!("{head}{}\r\n\r\n{chunk}", visitor.access).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let fits = world.ask("POST /coupon/acme/c").bearer(&visitor.access).body(vec![b'x'; 1000]).send().await;
    assert_eq!(fits.status, 200, "{}", fits.text);
}

async fn is_signed_in(world: &World, customer: &Customer) -> bool {
    world.ask("GET /customer/acme/validateauthtoken").bearer(&customer.tokens.access).send().await.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_customers_other_sessions_and_not_this_one() {
    let world = World::new().await;
    let (here, there) = (world.customer().await, world.customer().await);
    let visitor = world.visitor().await;
    let janes = world.login(&visitor.access, "jane.roe@example.com").await.json()["access_token"].clone();
    let change = async |current: &str| {
        let body = json!({"currentPassword": current, "newPassword": "password456"});
        world.ask("POST /customer/acme/password/change").bearer(&here.tokens.access).json(&body).send().await.status
    };
    assert_eq!(change("wrong").await, 400);
    assert!(is_signed_in(&world, &there).await, "nothing was changed");
    assert_eq!(change("password123").await, 204);
    eventually("the other session has ended", async || !is_signed_in(&world, &there).await).await;
    assert!(is_signed_in(&world, &here).await);
    let jane = world.ask("GET /customer/acme/me").bearer(janes.as_str().unwrap()).send().await;
    assert_eq!(jane.json()["customerNumber"], "C0033");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_be_looked_at_and_ended_at_the_gateways_own_endpoints() {
    let world = World::new().await;
    let customer = world.customer().await;
    let view = world.ask("GET /_gateway/session").bearer(&customer.tokens.access).send().await;
    let known = view.json();
    assert_eq!((&known["kind"], &known["tenant"]), (&json!("customer"), &json!("acme")));
    assert_eq!((&known["customerId"], &known["sessionId"]), (&json!("13869000"), &json!(customer.tokens.session_id)));
    assert!(known["expiresAt"].is_u64() && known["saasTokenExpiresAt"].is_u64());
    assert_eq!(view.header("cache-control"), "no-store");
    assert!(!view.text.contains("eg_") && !view.text.contains("eyJ"), "no token and no handle: {}", view.text);
    let visitors = world.ask("GET /_gateway/session").bearer(&customer.visitor.access).send().await.json();
    assert_eq!((&visitors["kind"], &visitors["customerId"]), (&json!("anonymous"), &Value::Null));
    assert_eq!(refused(&world.ask("GET /_gateway/session").send().await), (401, "session_required".to_owned()));

    let by_visitor = world.ask("POST /_gateway/logout").bearer(&customer.visitor.access).send().await;
    assert_eq!(refused(&by_visitor), (401, "customer_required".to_owned()));
    assert_eq!(world.ask("POST /_gateway/logout").bearer(&customer.tokens.access).send().await.status, 204);
    let over = world.ask("GET /_gateway/session").bearer(&customer.tokens.access).send().await;
    assert_eq!(refused(&over), (401, "session_ended".to_owned()));
    eventually("Emporix was told", async || world.simulator.calls("logout").await == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_everywhere_ends_every_session_of_the_customer() {
    let world = World::new().await;
    let (here, there) = (world.customer().await, world.customer().await);
    let browser = world.browser();
    browser.login().await;
    let answer = browser.send("POST /_gateway/logout-all", |ask| ask).await;
    assert_eq!((answer.status, answer.cookies().len()), (204, 1));
    assert!(answer.cookies()[0].contains("Max-Age=0"));
    for customer in [&here, &there] {
        let answer = world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
        assert_eq!(refused(&answer), (401, "session_ended".to_owned()));
    }
    eventually("Emporix was told of all", async || world.simulator.calls("logout").await == 3).await;
    assert!(is_signed_in(&world, &world.customer().await).await, "signing in again works");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_that_the_gateway_did_not_issue_is_refused() {
    let world = World::new().await;
    let foreign = real_customer_token(&world).await;
    for line in ["GET /customer/acme/me", "GET /product/acme/products", "GET /_gateway/session"] {
        let answer = world.ask(line).header("emporix-tenant", "acme").bearer(&foreign).send().await;
        assert_eq!(refused(&answer), (401, "session_ended".to_owned()), "{line}");
    }
    assert!(world.simulator.requests().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_that_moves_over_has_its_customers_bearers_adopted_until_a_date() {
    let adopt = World::builder().set("TENANTS__ACME__FOREIGN_BEARER__MODE", "adopt");
    let world = adopt.set("TENANTS__ACME__FOREIGN_BEARER__UNTIL", "2099-01-01T00:00:00Z").start().await;
    let foreign = real_customer_token(&world).await;
    let me = || world.ask("GET /customer/acme/me").bearer(&foreign).send();
    for _ in 0..3 {
        assert_eq!(me().await.json()["customerNumber"], "13869000");
    }
    assert_eq!(world.simulator.calls("validate").await, 1, "validated once");
    let unknown = world.ask("GET /customer/acme/me").bearer("never-issued-never-issued-28").send().await;
    assert_eq!(refused(&unknown), (401, "session_ended".to_owned()));
    world.clock.advance(Duration::from_secs(75 * 365 * 86_400));
    assert_eq!(refused(&me().await), (401, "session_ended".to_owned()), "the date has passed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_is_adopted_for_the_life_that_emporix_tells_as_a_number_or_as_text() {
    for life in [json!(600), json!("600"), json!("600.5")] {
        let adopt = World::builder().set("TENANTS__ACME__FOREIGN_BEARER__MODE", "adopt");
        let world = adopt.set("TENANTS__ACME__FOREIGN_BEARER__UNTIL", "2099-01-01T00:00:00Z").start().await;
        let foreign = real_customer_token(&world).await;
        let validity = json!({"operation": "validate", "mode": "status", "status": 200, "body": {"expires_in": life}});
        world.simulator.fault(validity).await;
        let me = || world.ask("GET /customer/acme/me").bearer(&foreign).send();
        assert_eq!(me().await.status, 200, "{life}");
        world.clock.advance(Duration::from_secs(550));
        assert_eq!(me().await.status, 200, "{life}");
        world.clock.advance(Duration::from_secs(60));
        assert_eq!(refused(&me().await), (401, "session_ended".to_owned()), "{life}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_bearer_is_nothing_on_token_routes() {
    let adopt = World::builder().set("TENANTS__ACME__FOREIGN_BEARER__MODE", "adopt");
    let world = adopt.set("TENANTS__ACME__FOREIGN_BEARER__UNTIL", "2099-01-01T00:00:00Z").start().await;
    let foreign = real_customer_token(&world).await;
    let body = json!({"email": "john.doe@example.com", "password": "password123"});
    for line in [
        "POST /customer/acme/login".to_owned(),
        "GET /customer/acme/refreshauthtoken".to_owned(),
        "GET /customer/acme/logout".to_owned(),
        format!("GET /customer/acme/logout?accessToken={foreign}"),
        "GET /customerlogin/auth/anonymous/refresh?tenant=acme&client_id=storefront".to_owned(),
        "POST /customer/acme/socialLogin?code=valid-code".to_owned(),
        "POST /customer/acme/exchangeauthtoken?subjectAccessToken=subject".to_owned(),
        "GET /customer/acme/signup/optin/optin-1".to_owned(),
    ] {
        let answer = world.ask(&line).bearer(&foreign).json(&body).send().await;
        assert_eq!(refused(&answer), (401, "session_ended".to_owned()), "{line}");
    }
    let login = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
    let anonymous = world.ask(login).bearer(&foreign).send().await;
    assert_eq!(anonymous.status, 200, "ignored, as every dead credential is here: {}", anonymous.text);
    assert_eq!(world.simulator.calls("validate").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_load_of_parallel_requests_adopts_its_bearer_once() {
    let adopt = World::builder().set("TENANTS__ACME__FOREIGN_BEARER__MODE", "adopt");
    let world = adopt.set("TENANTS__ACME__FOREIGN_BEARER__UNTIL", "2099-01-01T00:00:00Z").start().await;
    let token = real_customer_token(&world).await;
    let world = Arc::new(world);
    let mut page = JoinSet::new();
    for _ in 0..20 {
        let (world, token) = (world.clone(), token.clone());
        page.spawn(async move { world.ask("GET /customer/acme/me").bearer(&token).send().await.status });
    }
    assert!(page.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(world.simulator.calls("validate").await, 1);
    world.clock.advance(Duration::from_secs(40));
    assert_eq!(world.ask("GET /customer/acme/me").bearer(&token).send().await.status, 200);
    assert_eq!(world.simulator.calls("validate").await, 1);
    for _ in 0..3 {
        assert_eq!(world.ask("GET /customer/acme/me").bearer("tpYgJPZqddEQ2zwfzNtx79noBP65").send().await.status, 401);
    }
    assert_eq!(world.simulator.calls("validate").await, 2, "what Emporix does not know is not asked again at once");
}
