//! API requests: whose token leaves, what else may leave, and what comes back.

use serde_json::json;

use crate::world::{Answer, Received, World};

/// The one upstream token that a request carried; it was issued by Emporix, and no client ever saw it.
async fn bearer_of(world: &World, request: &Received) -> String {
    let sent = request.headers("authorization");
    assert_eq!(sent.len(), 1, "exactly one Authorization: {sent:?}");
    let token = sent[0].strip_prefix("Bearer ").unwrap().to_owned();
    assert!(world.simulator.tokens().await.contains(&token), "a token of Emporix's own");
    token
}

/// The status line's code of a raw answer.
fn raw_status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("nothing")
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_leaves_with_exactly_one_token_and_it_is_the_right_one() {
    let world = World::new().await;
    let customer = world.customer().await;
    let guest = world.ask("GET /coupon/acme/coupons").bearer(&customer.visitor.access).send().await;
    assert_eq!(
        (&guest.json()["as"], &guest.json()["sessionId"]),
        (&json!("anonymous"), &json!(customer.visitor.session_id))
    );
    let of_guest = bearer_of(&world, &world.simulator.last_api_request().await).await;
    let signed_in = world.ask("GET /coupon/acme/coupons").bearer(&customer.tokens.access).send().await;
    assert_eq!(signed_in.json()["as"], "customer");
    let of_customer = bearer_of(&world, &world.simulator.last_api_request().await).await;
    assert_ne!(of_guest, of_customer);
    let other = world.visitor().await;
    world.ask("GET /coupon/acme/coupons").bearer(&other.access).send().await;
    assert_ne!(bearer_of(&world, &world.simulator.last_api_request().await).await, of_guest, "nobody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_saas_token_goes_along_on_its_prefixes_and_only_for_customers() {
    let world = World::new().await;
    let customer = world.customer().await;
    let saas_of = async |line: &str, access: &str| {
        let answer = world.ask(line).bearer(access).header("saas-token", "undefined").json(&json!({})).send().await;
        assert!(answer.status != 401 || line.contains("checkout"), "{line}: {}", answer.text);
        world.simulator.last_api_request().await.headers("saas-token")
    };
    for line in [
        "POST /cart/acme/carts",
        "POST /checkout/acme/checkouts/order",
        "POST /return/acme/returns",
        "GET /order-v2/acme/orders",
        "PATCH /session-context/acme/me/context",
        "POST /approval/acme/approvals",
    ] {
        let sent = saas_of(line, &customer.tokens.access).await;
        assert_eq!(sent.len(), 1, "{line}");
        assert!(sent[0].starts_with("eyJ") && world.simulator.tokens().await.contains(&sent[0]), "{line}");
    }
    for line in ["GET /coupon/acme/coupons", "GET /product/acme/products", "GET /customer/acme/me", "GET /quote/acme/q"]
    {
        assert!(saas_of(line, &customer.tokens.access).await.is_empty(), "{line}");
    }
    for line in ["POST /cart/acme/carts", "POST /checkout/acme/checkouts/order"] {
        assert!(saas_of(line, &customer.visitor.access).await.is_empty(), "{line}: never for guests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_in_the_gateways_place_never_arrives() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let mut ask = world.ask("GET /coupon/acme/coupons").bearer(&visitor.access);
    let names = [
        "Legal-Entity-Id",
        "legalEntityId",
        "legal_entity_id",
        "legal.entity.id",
        "saas-token",
        "saas_token",
        "saas.token",
        "emporix_tenant",
        "x_forwarded_for",
        "X-Forwarded-Port",
        "X-Real-Ip",
        "Forwarded",
        "X-Emporix-Gateway",
        "Proxy-Authorization",
        "Keep-Alive",
        "TE",
    ];
    for name in names {
        ask = ask.header(name, "forged");
    }
    let answer = ask.header("session_id", &visitor.session_id).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let arrived = world.simulator.last_api_request().await;
    for name in names.into_iter().chain(["session_id"]) {
        assert!(arrived.headers(name).is_empty(), "{name} arrived: {arrived:?}");
    }
    assert!(!format!("{arrived:?}").contains("forged"));
    assert_eq!(arrived.headers("authorization").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_cookie_never_arrives_and_the_others_do() {
    let world = World::new().await;
    let browser = world.browser();
    browser.send("POST /cart/acme/carts", |ask| ask.json(&json!({}))).await;
    let ours = browser.cookie.lock().unwrap().clone().unwrap();
    let both = format!("a=1; {ours}; b=\"2\"");
    let answer = world.ask("GET /cart/acme/carts").header("cookie", &both).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let arrived = world.simulator.last_api_request().await;
    assert_eq!(arrived.headers("cookie").join("; "), "a=1; b=\"2\"");
    world.ask("GET /cart/acme/carts").header("cookie", &ours).send().await;
    assert!(world.simulator.last_api_request().await.headers("cookie").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_and_nominated_headers_end_here() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let answer = world
        .raw(
            format!(
                "GET /coupon/acme/coupons HTTP/1.1\r\nHost: shop.test:81\r\nAuthorization: Bearer {}\r\n\
                 Connection: close, X-Private, Authorization\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: close\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\
                 X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n\r\n",
                visitor.access
            )
            .as_bytes(),
        )
        .await;
    assert_eq!(raw_status(&answer), "200", "{answer}");
    let arrived = world.simulator.last_api_request().await;
    for name in ["x-private", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"] {
        assert!(arrived.headers(name).is_empty(), "{name}");
    }
    assert_eq!(arrived.headers("x-kept"), ["1"]);
    assert_eq!(arrived.headers("authorization").len(), 1, "ours is not the client's to nominate");
    assert_eq!(arrived.headers("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(arrived.headers("x-forwarded-proto"), ["http"]);
    assert_eq!(arrived.headers("x-forwarded-host"), ["shop.test:81"]);
    assert_eq!(arrived.headers("host"), [world.simulator.address.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_could_have_a_body_says_that_it_has_none() {
    let world = World::new().await;
    let customer = world.customer().await;
    for (line, said) in [("POST /coupon/acme/coupons", &["0"][..]), ("GET /coupon/acme/coupons", &[])] {
        world.ask(line).bearer(&customer.tokens.access).send().await;
        assert_eq!(world.simulator.last_api_request().await.headers("content-length"), said, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_is_forwarded_byte_for_byte() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for target in [
        "/coupon/acme/a:b;c=d/@e/caf%C3%A9/a%20b/!$&'()*+,=~-._",
        "/coupon/acme/trailing/",
        "/coupon/acme/lower%c3%a9UPPER%C3%A9",
        "/coupon/acme/x?q=../%2e%2e//%2f&empty&=&u=https://a//b&q=again?&p=+%20",
        "/coupon/acme/x?",
    ] {
        let bearer = &visitor.access;
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nConnection: close\r\n\r\n");
        let answer = world.raw(head.as_bytes()).await;
        assert_eq!(raw_status(&answer), "200", "{target}: {answer}");
        assert_eq!(world.simulator.last_api_request().await.line(), format!("GET {target}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_headers_of_the_emporix_api_pass_untouched() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let fields = [
        ("Accept-Language", "de;q=0.9, *"),
        ("Content-Language", "*"),
        ("X-Version", "v2"),
        ("X-Total-Count", "true"),
        ("EMPORIX-tenant", "acme"),
        ("session-id", &visitor.session_id),
        ("If-Match", "\"1\""),
        ("X-My_Own.Header", "mine"),
    ];
    let mut ask = world.ask("GET /coupon/acme/coupons").bearer(&visitor.access);
    for (name, value) in fields {
        ask = ask.header(name, value);
    }
    assert_eq!(ask.send().await.status, 200);
    let arrived = world.simulator.last_api_request().await;
    for (name, value) in fields {
        assert_eq!(arrived.headers(name), [value], "{name}");
    }
    let list = world.ask("GET /product/acme/products").bearer(&visitor.access).send().await;
    assert_eq!(list.header("x-total-count"), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_without_a_session_is_read_with_one_shared_guest_token() {
    let world = World::new().await;
    let ask = || world.ask("GET /product/acme/products").send();
    let answers = tokio::join!(ask(), ask(), ask(), ask());
    for answer in [answers.0, answers.1, answers.2, answers.3, ask().await] {
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(answer.cookies().is_empty(), "a guest's read makes no session");
    }
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
    for answer in [
        world.ask("POST /product/acme/products").json(&json!({})).send().await,
        world.ask("GET /product/acme/products?sessionId=6d4d4d5e").send().await,
        world.ask("GET /product/acme/products?session%5Fid=6d4d4d5e").send().await,
        world.ask("GET /product/acme/products").header("session-id", "6d4d4d5e").send().await,
    ] {
        assert_eq!(refused(&answer), (401, "session_required".to_owned()));
        assert!(answer.json()["fault"].is_null(), "nothing here has expired");
    }
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
    assert_eq!(world.simulator.calls("api").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_client_without_a_session_is_told_that_it_needs_one() {
    let world = World::new().await;
    for line in
        ["GET /cart/acme/carts", "POST /cart/acme/carts", "GET /some-new-service/acme/x", "GET /customer/acme/me"]
    {
        let answer = world.ask(line).send().await;
        assert_eq!(refused(&answer), (401, "session_required".to_owned()), "{line}");
        assert!(answer.cookies().is_empty());
    }
    assert_eq!(world.simulator.calls("anonymous_login").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_of_the_storefront_gets_its_session_on_the_way() {
    let world = World::new().await;
    let browser = world.browser();
    let created = browser.send("POST /cart/acme/carts", |ask| ask.json(&json!({"siteCode": "main"}))).await;
    assert_eq!(created.status, 201, "{}", created.text);
    assert!(created.cookies()[0].starts_with("__Host-emporix-session=eg_k_"));
    let found = browser.send("GET /cart/acme/carts", |ask| ask).await;
    assert_eq!(found.json()["id"], created.json()["cartId"], "the cart is still there");
    assert!(found.cookies().is_empty(), "and so is the cookie");
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cookie_is_refused_and_expired_and_never_replaced_by_a_guests() {
    let world = World::new().await;
    let browser = world.browser();
    browser.login().await;
    let dead = browser.cookie.lock().unwrap().clone().unwrap();
    assert_eq!(browser.send("POST /_gateway/logout", |ask| ask).await.status, 204);
    let minted = world.simulator.calls("anonymous_login").await;
    for cookie in [dead.as_str(), "__Host-emporix-session=old", "__Host-emporix-session="] {
        let same_origin = |line| world.ask(line).header("sec-fetch-site", "same-origin").header("cookie", cookie);
        for line in ["GET /cart/acme/carts", "GET /product/acme/products", "GET /_gateway/session"] {
            let answer = same_origin(line).send().await;
            assert_eq!(refused(&answer), (401, "session_ended".to_owned()), "{line} {cookie}");
            assert_eq!(answer.json()["fault"]["detail"]["errorcode"], "keymanagement.service.access_token_expired");
            let cookies = answer.cookies();
            assert!(cookies.len() == 1 && cookies[0].starts_with("__Host-emporix-session=; Max-Age=0"), "{cookies:?}");
        }
    }
    assert_eq!(world.simulator.calls("anonymous_login").await, minted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_is_told_where_only_customers_go() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for line in ["GET /quote/acme/quotes", "GET /customer/acme/me/addresses", "GET /order-v2/acme/orders"] {
        let answer = world.ask(line).bearer(&visitor.access).send().await;
        assert_eq!(refused(&answer), (401, "customer_required".to_owned()), "{line}");
    }
    assert_eq!(world.simulator.calls("api").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn signup_and_resets_leave_with_the_anonymous_token_also_when_logged_in() {
    let world = World::new().await;
    let customer = world.customer().await;
    for (line, body, expected) in [
        ("POST /customer/acme/signup", json!({"email": "new@example.com", "password": "password123"}), 201),
        ("POST /customer/acme/signup/optin/refresh_token", json!({"email": "new@example.com"}), 202),
        ("POST /customer/acme/password/reset/", json!({"email": "john.doe@example.com"}), 204),
        ("POST /customer/acme/password/reset/update", json!({"token": "t", "password": "password123"}), 204),
    ] {
        for (access, email) in
            [(&customer.tokens.access, "one@example.com"), (&customer.visitor.access, "two@example.com")]
        {
            let mut body = body.clone();
            if line.ends_with("signup") {
                body["email"] = email.into();
            }
            let answer = world.ask(line).bearer(access).json(&body).send().await;
            assert_eq!(answer.status, expected, "{line}: {}", answer.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_read_two_ways_are_refused_before_anything_is_asked() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for target in [
        "/cart/acme/../x",
        "/cart/acme/./x",
        "/cart/acme/%2e%2e/x",
        "/cart//acme",
        "//cart/acme",
        "/cart/acme/a%2fb",
        "/cart/acme/a%5Cb",
        "/cart/acme/%63arts",
        "/cart/acme/%00",
        "/cart/acme/%zz",
        "/cart/acme/caf\u{e9}",
        "/cart/acme/a\\b",
        "cart/acme/carts",
        "*",
        "http://x/cart/acme/carts",
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", visitor.access);
        let answer = world.raw(head.as_bytes()).await;
        assert_eq!(raw_status(&answer), "400", "{target}: {answer}");
    }
    assert_eq!(world.simulator.calls("api").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_or_placeholder_in_the_target_of_an_api_route_is_refused() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let handle = &visitor.access;
    for target in [
        format!("/cart/acme/carts?token={handle}"),
        format!("/cart/acme/carts?{handle}"),
        format!("/cart/acme/carts?refreshToken={}", visitor.refresh.replace('_', "%5F")),
        format!("/cart/acme/carts/{handle}"),
        "/cart/acme/carts?accessToken=cookie.customer".to_owned(),
        "/cart/acme/carts/cookie.anonymous".to_owned(),
        format!("/_gateway/session?token={handle}"),
    ] {
        let answer = world.ask(&format!("GET {target}")).bearer(handle).send().await;
        assert_eq!(refused(&answer), (400, "bad_target".to_owned()), "{target}");
    }
    assert_eq!(world.simulator.calls("api").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_cannot_set_our_cookie_nor_share_what_a_session_received() {
    const PER_CREDENTIAL: &str = "Authorization, Cookie, saas-token, Emporix-Tenant";
    let world = World::new().await;
    let visitor = world.visitor().await;
    let answers = async |headers: serde_json::Value, line: &str, bearer: bool| {
        world.simulator.heal().await;
        world.simulator.fault(json!({"operation": "api", "mode": "status", "status": 200, "headers": headers})).await;
        let ask = world.ask(line);
        if bearer { ask.bearer(&visitor.access).send().await } else { ask.send().await }
    };
    let ours = json!({"set-cookie": "__Host-Emporix-Session =evil; Path=/", "access-control-allow-origin": "*"});
    let answer = answers(ours, "GET /coupon/acme/c", true).await;
    assert!(answer.cookies().is_empty(), "{:?}", answer.headers);
    assert_eq!(answer.header("access-control-allow-origin"), "");
    assert_eq!(answer.header("cache-control"), "no-store", "upstream said nothing");
    let other = answers(json!({"set-cookie": "theirs=1; Path=/"}), "GET /coupon/acme/c", true).await;
    assert_eq!(other.cookies(), ["theirs=1; Path=/"]);
    let public = json!({"cache-control": "public, max-age=60"});
    let private = answers(public.clone(), "GET /product/acme/products", true).await;
    assert_eq!(private.header("cache-control"), "private, max-age=60");
    assert_eq!(private.header("vary"), PER_CREDENTIAL, "it is nothing for whoever signs in or out");
    let shared = answers(public, "GET /product/acme/products", false).await;
    assert_eq!(shared.header("cache-control"), "public, max-age=60", "a shared token is nobody's secret");
    assert_eq!(shared.header("vary"), PER_CREDENTIAL);
    let varied = answers(json!({"vary": "Accept-Language"}), "GET /product/acme/products", false).await;
    let vary: Vec<_> = varied.headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["Accept-Language", PER_CREDENTIAL], "beside what upstream says");
}
