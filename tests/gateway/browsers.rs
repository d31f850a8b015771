//! What browsers may be made to do by other sites, and how often anyone may do what attackers repeat.

use std::time::Duration;

use serde_json::json;

use crate::world::{Answer, Ask, World};

const SHOP: &str = "https://shop.example.com";
const ANONYMOUS_LOGIN: &str = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";

/// Signs that the storefront itself made a request.
const PROOFS: [(&str, &str); 3] = [("sec-fetch-site", "same-origin"), ("origin", SHOP), ("x-emporix-gateway", "1")];

/// Signs that somebody else did, or none at all.
const DOUBTS: [(&str, &str); 6] = [
    ("sec-fetch-site", "cross-site"),
    ("sec-fetch-site", "same-site"),
    ("origin", "https://evil.example.com"),
    ("origin", "null"),
    ("x-emporix-gateway", "0"),
    ("accept", "*/*"),
];

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn assert_unproven(answer: &Answer, what: &str) {
    assert_eq!(refused(answer), (403, "proof_required".to_owned()), "{what}");
    assert!(answer.cookies().is_empty(), "a refusal never sets a cookie: {what}");
}

/// The cookie of a customer's browser.
async fn signed_in(world: &World) -> String {
    let browser = world.browser();
    assert_eq!(browser.login().await.status, 200);
    browser.cookie.into_inner().unwrap().unwrap()
}

fn sign_in<'w>(ask: Ask<'w>, email: &str) -> Ask<'w> {
    ask.json(&json!({"email": email, "password": "password123"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rides_on_the_cookie_and_changes_something_needs_proof() {
    let world = World::new().await;
    let cookie = signed_in(&world).await;
    world.simulator.forget_calls().await;
    let lines = [
        ANONYMOUS_LOGIN,
        "GET /customerlogin/auth/anonymous/refresh?tenant=acme&client_id=storefront",
        "POST /customer/acme/login",
        "POST /customer/acme/socialLogin?code=valid-code",
        "POST /customer/acme/exchangeauthtoken?subjectAccessToken=subject",
        "GET /customer/acme/signup/optin/optin-1",
        "GET /customer/acme/refreshauthtoken?refreshToken=cookie.customer-refresh",
        "GET /customer/acme/logout?accessToken=cookie.customer",
        "POST /cart/acme/carts",
        "DELETE /cart/acme/carts/1",
        "PUT /customer/acme/me",
        "POST /_gateway/logout",
        "POST /_gateway/logout-all",
    ];
    for line in lines {
        for (name, value) in DOUBTS {
            let answer = sign_in(world.ask(line), "john.doe@example.com").header("cookie", &cookie);
            assert_unproven(&answer.header(name, value).send().await, &format!("{line} {name}: {value}"));
        }
    }
    assert!(world.simulator.requests().await.is_empty(), "Emporix hears nothing of it");
    for (name, value) in DOUBTS {
        let read = world.ask("GET /customer/acme/me").header("cookie", &cookie).header(name, value).send().await;
        assert_eq!(read.json()["customerNumber"], "13869000", "reading is no danger: {name}: {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_proof_is_enough() {
    let world = World::new().await;
    for (name, value) in PROOFS {
        let cookie = signed_in(&world).await;
        let ask = |line: &str| world.ask(line).header("cookie", &cookie).header(name, value);
        let cart = ask("GET /cart/acme/carts?create=true").send().await;
        assert_eq!(cart.status, 200, "{name}: {}", cart.text);
        assert_eq!(ask(ANONYMOUS_LOGIN).send().await.json()["access_token"], "cookie.anonymous", "{name}");
        assert_eq!(ask("PUT /customer/acme/me").json(&json!({})).send().await.status, 200, "{name}");
        let refresh = ask("GET /customer/acme/refreshauthtoken?refreshToken=cookie.customer-refresh").send().await;
        assert_eq!(refresh.json()["access_token"], "cookie.customer", "{name}: {}", refresh.text);
        assert_eq!(ask("GET /customer/acme/logout?accessToken=cookie.customer").send().await.status, 204, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_site_can_give_a_browser_a_session() {
    let cookies = World::builder().set("TENANTS__ACME__TRANSPORT", "cookie");
    let world = cookies.start().await;
    for line in [
        ANONYMOUS_LOGIN,
        "POST /customer/acme/login",
        "GET /customer/acme/signup/optin/optin-1",
        "GET /cart/acme/carts?create=true",
    ] {
        for (name, value) in DOUBTS {
            let answer = sign_in(world.ask(line), "john.doe@example.com").header(name, value).send().await;
            assert_unproven(&answer, &format!("{line} {name}: {value}"));
        }
    }
    assert!(world.simulator.requests().await.is_empty());
    for (name, value) in PROOFS {
        let visitor = world.ask("GET /cart/acme/carts?create=true").header(name, value).send().await;
        assert_eq!((visitor.status, visitor.cookies().len()), (200, 1), "{name}: {}", visitor.text);
        let login = sign_in(world.ask("POST /customer/acme/login"), "john.doe@example.com").header(name, value);
        let login = login.send().await;
        assert_eq!((login.status, login.cookies().len()), (200, 1), "{name}: {}", login.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_and_a_browsers_own_sign_need_proof_too() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let placeholder = world.ask("POST /cart/acme/carts").bearer("cookie.anonymous").json(&json!({})).send().await;
    assert_unproven(&placeholder, "a placeholder");
    let ask = |site: &str| world.ask("POST /cart/acme/carts").bearer(&visitor.access).header("sec-fetch-site", site);
    assert_unproven(&ask("cross-site").json(&json!({})).send().await, "a handle from a browser");
    assert_eq!(ask("cross-site").header("origin", SHOP).json(&json!({})).send().await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_handle_or_the_jwt_need_no_proof() {
    let jwt = World::builder().set("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "true");
    let mut world = jwt.set("TENANTS__ACME__SAAS_TOKEN__EXPOSE", "true").start().await;
    world.saas_is_exposed = true;
    let customer = world.customer().await;
    for credential in [&customer.tokens.access, &customer.saas] {
        let put = world.ask("PUT /customer/acme/me").bearer(credential).json(&json!({})).send().await;
        assert_eq!(put.status, 200, "{}", put.text);
    }
    let logout = format!("GET /customer/acme/logout?accessToken={}", customer.tokens.access);
    assert_eq!(world.ask(&logout).send().await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_of_the_shop_is_answered_before_anything_is_looked_up() {
    let world = World::builder().redis().start().await;
    let preflight = |line: &str, origin: &str| {
        let ask = world.ask(line).header("origin", origin).header("access-control-request-method", "POST");
        ask.header("access-control-request-headers", "authorization").header("sec-fetch-site", "cross-site").send()
    };
    for line in ["/cart/acme/carts", "/customer/acme/login", "/customer/acme/me", "/product/acme/products"] {
        let answer = preflight(&format!("OPTIONS {line}"), SHOP).await;
        assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{line}");
        assert_eq!(answer.header("access-control-allow-origin"), SHOP);
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        assert_eq!(answer.header("vary"), "Origin");
        let allowed = answer.header("access-control-allow-headers");
        let allowed: Vec<&str> = allowed.split(", ").collect();
        for name in [
            "authorization",
            "content-type",
            "accept-language",
            "content-language",
            "emporix-tenant",
            "saas-token",
            "session-id",
            "x-version",
            "x-total-count",
            "x-emporix-gateway",
        ] {
            assert!(allowed.contains(&name), "{name}");
        }
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            assert!(answer.header("access-control-allow-methods").contains(method));
        }
    }
    for origin in ["https://evil.example.com", "https://shop.example.com.evil.test", "http://shop.example.com", "null"]
    {
        let answer = preflight("OPTIONS /cart/acme/carts", origin).await;
        let names: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
        assert!(!names.iter().any(|name| name.starts_with("access-control-")), "{origin}: {names:?}");
    }
    let globex = preflight("OPTIONS /cart/globex/carts", SHOP).await;
    assert_eq!(globex.header("access-control-allow-origin"), "", "another tenant's list");
    assert!(world.simulator.requests().await.is_empty());
    assert!(world.redis.as_ref().unwrap().keys().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_the_shop_may_read_answers_and_errors_alike() {
    let world = World::builder().set("LIMITS__API_BODY_BYTES", "1000").start().await;
    let visitor = world.visitor().await;
    let ask = |line: &str| world.ask(line).header("origin", SHOP).bearer(&visitor.access);
    let mut answers = vec![
        ask("GET /product/acme/products").send().await,
        ask("GET /customer/acme/unknown").send().await,
        ask("GET /quote/acme/quotes").send().await,
        ask("GET /cart/acme/carts?sessionId=another").send().await,
        ask("POST /coupon/acme/c").body(vec![b'x'; 2000]).send().await,
        sign_in(ask("POST /customer/acme/login"), "nobody@example.com").send().await,
        world.ask("GET /customer/acme/me").header("origin", SHOP).bearer("eg_c_dead").send().await,
        world.ask("GET /cart/acme/carts").header("origin", SHOP).send().await,
    ];
    world.simulator.fault(json!({"operation": "api", "mode": "reset"})).await;
    answers.push(ask("GET /coupon/acme/c").send().await);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses[0], 200);
    assert!(statuses[1..].iter().all(|status| *status >= 400), "{statuses:?}");
    for answer in &answers {
        assert_eq!(answer.header("access-control-allow-origin"), SHOP, "{} {}", answer.status, answer.text);
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        let exposed = answer.header("access-control-expose-headers");
        for name in ["x-total-count", "x-next-cursor", "x-prev-cursor", "location", "retry-after"] {
            assert!(exposed.contains(name), "{name}");
        }
    }
    world.simulator.heal().await;
    let evil = world.ask("GET /product/acme/products").header("origin", "https://evil.example.com").send().await;
    assert_eq!((evil.status, evil.header("access-control-allow-origin")), (200, String::new()));
    assert!(evil.headers.get_all("vary").iter().any(|value| value == "Origin"), "caches keep the two apart");
}

/// What the limit says: 429, and when to come again.
fn assert_limited(answer: &Answer) -> u64 {
    assert_eq!(refused(answer), (429, "rate_limited".to_owned()));
    answer.header("retry-after").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_ins_of_one_account_are_limited_and_recover() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let attempt = |email: &'static str| {
        let body = json!({"email": email, "password": "wrong-password"});
        world.ask("POST /customer/acme/login").bearer(&visitor.access).json(&body).send()
    };
    for number in 0..10 {
        let email = if number % 2 == 0 { "john.doe@example.com" } else { " John.DOE@example.com" };
        assert!([400, 401].contains(&attempt(email).await.status), "{number}");
    }
    let called = world.simulator.calls("login").await;
    let seconds = assert_limited(&attempt("john.doe@example.com").await);
    assert!((1..=12).contains(&seconds), "five a minute: {seconds}");
    assert_eq!(world.simulator.calls("login").await, called, "Emporix is spared");
    assert_eq!(world.login(&visitor.access, "jane.roe@example.com").await.status, 200, "others sign in");
    world.clock.advance(Duration::from_secs(12));
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200, "it recovers");
    assert_limited(&attempt("john.doe@example.com").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_ins_from_one_address_are_limited_behind_a_trusted_proxy_by_client() {
    let world = World::builder()
        .set("LIMITS__SIGN_IN_PER_ADDRESS__BURST", "3")
        .set("LIMITS__SIGN_IN_PER_ADDRESS__PER_MINUTE", "1")
        .set("LISTEN__TRUSTED_PROXIES", r#"["127.0.0.1/32"]"#)
        .start()
        .await;
    let visitor = world.visitor().await;
    let attempt = |client: &'static str, line: &'static str, number: u32| {
        let ask = world.ask(line).bearer(&visitor.access).header("x-forwarded-for", client);
        ask.json(&json!({"email": format!("u{number}@example.com"), "password": "password123"})).send()
    };
    for (number, line) in
        ["POST /customer/acme/login", "POST /customer/acme/signup", "POST /customer/acme/password/reset"]
            .iter()
            .enumerate()
    {
        let answer = attempt("203.0.113.7", line, u32::try_from(number).unwrap()).await;
        assert_ne!(answer.status, 429, "{line}");
    }
    // What a client writes before its own address counts for nothing.
    for client in ["203.0.113.7", "198.51.100.1, 203.0.113.7"] {
        assert_limited(&attempt(client, "POST /customer/acme/login", 9).await);
    }
    assert_ne!(attempt("203.0.113.8", "POST /customer/acme/login", 9).await.status, 429);
    world.clock.advance(Duration::from_secs(60));
    assert_ne!(attempt("203.0.113.7", "POST /customer/acme/login", 10).await.status, 429, "it recovers");
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_minted_for_one_address_are_limited_and_a_visit_that_lives_is_free() {
    let world = World::builder()
        .set("LIMITS__VISITORS_PER_ADDRESS__BURST", "3")
        .set("LIMITS__VISITORS_PER_ADDRESS__PER_MINUTE", "1")
        .start()
        .await;
    let visitor = world.visitor().await;
    world.visitor().await;
    let browser = world.browser();
    assert_eq!(browser.send("GET /cart/acme/carts?create=true", |ask| ask).await.status, 200);
    assert_limited(&world.ask(ANONYMOUS_LOGIN).send().await);
    let on_demand = world.browser().send("GET /cart/acme/carts?create=true", |ask| ask).await;
    assert_limited(&on_demand);
    assert!(on_demand.cookies().is_empty());
    assert_eq!(world.simulator.calls("anonymous_login").await, 3);
    for _ in 0..5 {
        assert_eq!(world.ask(ANONYMOUS_LOGIN).bearer(&visitor.access).send().await.status, 200);
        assert_eq!(browser.send("GET /cart/acme/carts", |ask| ask).await.status, 200);
    }
    world.clock.advance(Duration::from_secs(60));
    world.visitor().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_credential_does_not_evade_the_limit_on_visitors() {
    let world = World::builder()
        .set("LIMITS__VISITORS_PER_ADDRESS__BURST", "2")
        .set("LIMITS__VISITORS_PER_ADDRESS__PER_MINUTE", "1")
        .start()
        .await;
    let dead = format!("eg_a_{}", "A".repeat(64));
    let mut minted = 0;
    for _ in 0..5 {
        minted += u32::from(world.ask(ANONYMOUS_LOGIN).bearer(&dead).send().await.status == 200);
    }
    assert_eq!(minted, 2, "a dead credential is as good as none, also when minting is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_ups_and_resets_are_counted_by_the_email_they_name() {
    let world = World::builder()
        .set("LIMITS__SIGN_IN_PER_ACCOUNT__BURST", "2")
        .set("LIMITS__SIGN_IN_PER_ACCOUNT__PER_MINUTE", "1")
        .start()
        .await;
    let visitor = world.visitor().await;
    for (line, first, second) in [
        ("POST /customer/acme/signup", "a@example.com", "b@example.com"),
        ("POST /customer/acme/password/reset", "c@example.com", "d@example.com"),
        ("POST /customer/acme/signup/optin/refresh_token", "e@example.com", "f@example.com"),
    ] {
        let ask = |email: &'static str| {
            world.ask(line).bearer(&visitor.access).json(&json!({"email": email, "password": "password123"})).send()
        };
        assert_ne!(ask(first).await.status, 429, "{line}");
        assert_ne!(ask(first).await.status, 429, "{line}");
        assert_limited(&ask(first).await);
        assert_ne!(ask(second).await.status, 429, "{line}");
        world.clock.advance(Duration::from_secs(60));
        assert_ne!(ask(first).await.status, 429, "{line}");
    }
}
