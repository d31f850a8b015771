//! No secret in a log line, a metric, an error body or Redis: one wide story with everything that could go wrong,
//! logged at debug level, and then a scan for each secret that went through it.

use serde_json::{Value, json};

use crate::world::{Customer, World, eventually};

const PASSWORD: &str = "password123";

/// What only its holder may know of a handle; what stands before it names the session and is no secret.
fn secret_part(handle: &str) -> String {
    let (_, encoded) = handle.rsplit_once('_').filter(|(kind, _)| kind.len() <= 5).unwrap_or(("", handle));
    encoded[encoded.len().saturating_sub(40)..].to_owned()
}

/// Requests that no client should make, with what looks like secrets in every place.
fn malformed(canary: &str, customer: &Customer) -> Vec<String> {
    let handle = &customer.tokens.access;
    let lines = [
        format!("GET /customer/acme/logout?accessToken={canary}"),
        format!("GET /customer/acme/refreshauthtoken?refreshToken={canary}&refreshToken={handle}"),
        format!("GET /product/acme/{canary}/../x?token={canary}"),
        format!("GET /product/acme/%2e%2e/{canary}"),
        format!("GET /product/acme/products?q={handle}"),
        format!("GET /product/acme/{handle}"),
        format!("GET //{canary}@x/{canary}"),
        format!("GET http://{canary}.example.com/{canary}"),
        format!("GET /customer/{canary}/login"),
        format!("{canary} /customer/acme/login"),
        format!("GET /customer/acme/signup/optin/{canary}"),
        format!("POST /customer/acme/socialLogin?code={canary}&code_verifier={canary}"),
        format!("POST /customer/acme/exchangeauthtoken?subjectAccessToken={canary}"),
        format!("GET /customerlogin/auth/anonymous/refresh?refresh_token={canary}"),
        format!("GET /{canary}\u{e9}"),
    ];
    let mut requests = Vec::new();
    for line in lines {
        for headers in [
            String::new(),
            format!("Authorization: Bearer {canary}\r\n"),
            format!("Authorization: {canary}\r\nAuthorization: Bearer {handle}\r\n"),
            format!("Cookie: __Host-emporix-session={canary}; __Host-emporix-session=eg_k_{canary}\r\n"),
            format!("saas-token: {canary}\r\nX-{canary}: {canary}\r\n"),
        ] {
            let head = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
            requests.push(head);
        }
    }
    requests.push(format!("{canary}\r\n\r\n"));
    requests.push(format!("GET / HTTP/1.1\r\n{canary}\r\n\r\n"));
    requests.push(format!("GET /{canary} HTTP/9.9\r\nHost: x\r\n\r\n"));
    requests.push(format!(
        "POST /customer/acme/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: 60\r\n\r\n{{\"email\": \"x\", \"password\": \"{PASSWORD}\", {canary}"
    ));
    requests
}

async fn sign_in_badly(world: &World, access: &str) {
    for body in [
        json!({"email": "john.doe@example.com", "password": format!("{PASSWORD}-wrong")}),
        json!({"email": PASSWORD, "password": PASSWORD}),
        json!({"email": 7, "password": [PASSWORD]}),
        json!([PASSWORD]),
    ] {
        let answer = world.ask("POST /customer/acme/login").bearer(access).json(&body).send().await;
        assert!(answer.status >= 400, "{}", answer.text);
        assert!(!answer.text.contains(PASSWORD), "{}", answer.text);
    }
    let text = format!("{{\"email\": \"x@example.com\", \"password\": \"{PASSWORD}\"");
    let cut = world.ask("POST /customer/acme/login").bearer(access).header("content-type", "application/json");
    let cut = cut.body(text).send().await;
    assert!(cut.status >= 400 && !cut.text.contains(PASSWORD), "{}", cut.text);
}

/// Answers of token endpoints with real tokens in them that are no answers.
async fn upstream_garbage(world: &World, canary: &str) {
    for (mode, status) in [("garbage", 502), ("half_body", 502), ("gzip", 502), ("oversized", 502)] {
        for operation in ["login", "anonymous_login"] {
            let visitor = world.visitor().await;
            world.simulator.fault(json!({"operation": operation, "mode": mode, "times": 1})).await;
            let answer = match operation {
                "login" => world.login(&visitor.access, "john.doe@example.com").await,
                _ => world.ask("GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront").send().await,
            };
            assert_eq!(answer.status, status, "{operation} {mode}: {}", answer.text);
            world.simulator.heal().await;
        }
    }
    let telling: [(u16, Value); 3] = [
        (400, json!({"message": format!("refreshToken={canary}"), "details": [canary], "accessToken": canary})),
        (401, json!({"fault": {"faultstring": canary, "detail": {"errorcode": canary}}})),
        (500, json!({"message": canary, "stack": canary})),
    ];
    for (status, body) in telling {
        let visitor = world.visitor().await;
        let fault = json!({"operation": "login", "mode": "status", "status": status, "body": body, "times": 2});
        world.simulator.fault(fault).await;
        assert!(world.login(&visitor.access, "john.doe@example.com").await.status >= 400);
        world.simulator.heal().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_the_gateway_however_wide_the_story() {
    let world = World::builder()
        .redis()
        .replicas(2)
        .set("LIMITS__SIGN_IN_PER_ADDRESS", r#"{"burst": 100000, "per_minute": 100000}"#)
        .set("LIMITS__SIGN_IN_PER_ACCOUNT", r#"{"burst": 100000, "per_minute": 100000}"#)
        .set("LIMITS__VISITORS_PER_ADDRESS", r#"{"burst": 100000, "per_minute": 100000}"#)
        .start()
        .await;
    let canary = "canaryQ7w2eR9tY4uI0pAsDfGh";
    let browser = world.browser();
    browser.login().await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    browser.send("GET /cart/acme/carts", |ask| ask).await;
    let customer = world.customer().await;
    let handles = [
        &customer.visitor.access,
        &customer.visitor.refresh,
        &customer.tokens.access,
        &customer.tokens.refresh,
        &customer.saas,
        &cookie,
    ];
    let mut secrets: Vec<String> = handles.map(|handle| secret_part(handle)).to_vec();
    secrets.extend([PASSWORD.to_owned(), canary.to_owned()]);
    assert!(secrets.iter().all(|secret| secret.len() >= 8), "{secrets:?}");

    for replica in [0, 1] {
        let order = world.ask_replica(replica, "POST /checkout/acme/checkouts/order").bearer(&customer.tokens.access);
        order.header("saas-token", &customer.saas).json(&json!({"cartId": canary})).send().await;
        let foreign = world.ask_replica(replica, "GET /customer/acme/me").bearer(canary).send().await;
        assert_eq!(foreign.status, 401);
        assert!(!foreign.text.contains(canary));
    }
    sign_in_badly(&world, &customer.visitor.access).await;
    for request in malformed(canary, &customer) {
        let answer = world.raw(request.as_bytes()).await;
        assert!(!answer.contains(&secret_part(&customer.tokens.access)), "{request}\n{answer}");
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 2"), "{request}\n{answer}");
    }
    upstream_garbage(&world, canary).await;

    let target = format!("GET /customer/acme/refreshauthtoken?refreshToken={}", customer.tokens.refresh);
    let refreshed = world.ask(&target).bearer(&customer.visitor.access).send().await;
    let access = refreshed.json()["access_token"].as_str().unwrap().to_owned();
    secrets.push(secret_part(&access));
    world.ask("GET /customer/acme/me").bearer(&access).header("cookie", &cookie).send().await;
    let logout = world.ask(&format!("GET /customer/acme/logout?accessToken={access}")).bearer(&access).send().await;
    assert_eq!(logout.status, 204, "{}", logout.text);
    browser.send("POST /_gateway/logout-all", |ask| ask).await;
    eventually("Emporix was told", async || world.simulator.calls("logout").await >= 2).await;

    let upstreams = world.simulator.tokens().await;
    assert!(upstreams.len() > 10, "the story was wide");
    assert_eq!(world.leaks(&upstreams), Vec::<String>::new());
    let logged = crate::world::logged();
    let telling: Vec<&str> = logged.lines().filter(|line| line.contains(canary)).take(5).collect();
    assert!(telling.is_empty(), "{telling:#?}");
    assert_eq!(world.leaks_inside(&secrets), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scan_finds_what_is_planted() {
    let world = World::builder().redis().start().await;
    let planted = |sink: &str| vec![format!("planted-canary-in-{sink}")];
    for sink in ["log", "redis", "response"] {
        assert_eq!(world.leaks(&planted(sink)), Vec::<String>::new(), "before");
    }
    tracing::info!("{}", planted("log")[0]);
    world.redis().command(&format!("SET planted {}", planted("redis")[0]));
    world.simulator.fault(json!({"operation": "api", "mode": "status", "body": planted("response"), "times": 1})).await;
    world.ask("GET /product/acme/products").send().await;
    assert_eq!(world.leaks(&planted("log")), ["the log holds planted-canary-in-log"]);
    assert_eq!(world.leaks(&planted("redis")), ["Redis holds planted-canary-in-redis"]);
    assert_eq!(world.leaks(&planted("response")), ["a response holds planted-canary-in-response"]);
    assert_eq!(world.leaks_inside(&planted("response")), Vec::<String>::new());
    let shown = vec!["gateway_build_info".to_owned()];
    assert_eq!(world.leaks_inside(&shown), ["the metrics holds gateway_build_info"]);
    assert_eq!(secret_part(&format!("eg_cr_{}", "x".repeat(64))).len(), 40);
}
