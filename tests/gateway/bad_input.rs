//! What is malformed, too large, or nonsense from Emporix: a clean problem, and nothing half made.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::steps::{ANONYMOUS_LOGIN, GUEST, JOHN, john};
use crate::world::{Answer, Tokens, World};

fn problem(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.json()["status"], answer.status, "{}", answer.text);
    assert!(answer.cookies().is_empty());
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_body_that_is_none_is_refused_before_emporix_is_asked() {
    let world = World::new().await;
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"text\"",
        "{\"email\": \"john.doe@example.com\"}",
        "{\"password\": \"password123\"}",
        "{\"email\": 7, \"password\": []}",
        "{\"email\": \"\", \"password\": \"\"}",
        "email=john.doe%40example.com&password=password123",
    ] {
        let ask = world.ask("POST /customer/acme/login").header("content-type", "application/json");
        let answer = ask.body(body).send().await;
        assert_eq!(problem(&answer), (400, "bad_request".to_owned()), "{body}");
    }
    assert!(world.simulator.requests().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_takes_json_only() {
    let world = World::new().await;
    for content_type in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let mut ask = world.ask("POST /customer/acme/login").body(john().to_string());
        if !content_type.is_empty() {
            ask = ask.header("content-type", content_type);
        }
        assert_eq!(problem(&ask.send().await), (415, "unsupported_media_type".to_owned()), "{content_type}");
    }
    let ask = world.ask("POST /customer/acme/login").header("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(ask.body(john().to_string()).send().await.status, 200);
}

/// Sends `head`, then ten megabytes as one chunk or as they are, and returns what comes back meanwhile.
async fn flood(world: &World, framing: &str) -> String {
    let stream = tokio::net::TcpStream::connect(world.gateway().public).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let head =
        format!("POST /customer/acme/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n");
    let chunked = framing.contains("chunked");
    let writer = tokio::spawn(async move {
        let size = if chunked { "a00000\r\n" } else { "" };
        // The gateway may close at any moment: it has seen enough.
        let _ = write.write_all(format!("{head}{size}").as_bytes()).await;
        let _ = write.write_all(&vec![b' '; 10 * 1024 * 1024]).await;
        write
    });
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length) = read.read(&mut piece).await {
        answer.extend_from_slice(&piece[..length]);
        if length == 0 || answer.ends_with(b"}") {
            break;
        }
    }
    writer.abort();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_of_login_are_too_many_however_they_are_framed() {
    let world = World::new().await;
    for framing in ["Content-Length: 10485760", "Transfer-Encoding: chunked"] {
        let answer = flood(&world, framing).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{framing}: {answer}");
        assert!(answer.contains("\"code\":\"body_too_large\""), "{framing}: {answer}");
    }
    assert!(world.simulator.requests().await.is_empty());
    assert_eq!(world.ask(ANONYMOUS_LOGIN).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_tenant_is_not_found() {
    let world = World::new().await;
    for line in [
        "GET /customerlogin/auth/anonymous/login?tenant=initech",
        "GET /customerlogin/auth/anonymous/refresh?tenant=ACME&refresh_token=x",
        "POST /customer/initech/login",
        "GET /customer/initech/logout",
        "GET /customer/initech/refreshauthtoken?refreshToken=x",
        "GET /cart/initech/carts",
    ] {
        assert_eq!(problem(&world.ask(line).send().await), (404, "unknown_tenant".to_owned()), "{line}");
    }
    let missing = world.ask("GET /customerlogin/auth/anonymous/login?client_id=storefront").send().await;
    assert_eq!(problem(&missing), (400, "bad_request".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_doubled_and_malformed_parameters_are_refused() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.forget_calls().await;
    for line in [
        "GET /customerlogin/auth/anonymous/login?tenant=acme&currency=EUR&currency=USD",
        "GET /customerlogin/auth/anonymous/login?tenant=acme&currency=E%0AUR",
        "POST /customer/acme/socialLogin",
        "POST /customer/acme/socialLogin?code=",
        "POST /customer/acme/exchangeauthtoken?config=site_PL",
    ] {
        let answer = world.ask(line).bearer(&visitor.access).send().await;
        assert_eq!(problem(&answer), (400, "bad_request".to_owned()), "{line}");
    }
    assert!(world.simulator.requests().await.is_empty());
}

/// A world on Redis whose gateway bears many sign-ins to one account.
async fn patient() -> World {
    World::builder().redis().set("LIMITS__SIGN_IN_PER_ACCOUNT", r#"{"burst": 50, "per_minute": 50}"#).start().await
}

/// Each misbehaviour of a token endpoint, and the problem it becomes.
fn misbehaviours() -> Vec<(Value, u16, &'static str)> {
    let mode = |mode: &str| json!({"mode": mode, "times": 1});
    let status = |status: u16| json!({"mode": "status", "status": status, "times": 1});
    vec![
        (mode("html"), 502, "identity_unreadable"),
        (mode("gzip"), 502, "identity_unreadable"),
        (mode("half_body"), 502, "identity_unreadable"),
        (mode("garbage"), 502, "identity_unreadable"),
        (mode("oversized"), 502, "identity_unreadable"),
        (json!({"mode": "status", "status": 200, "body": {}, "times": 1}), 502, "identity_unreadable"),
        (status(500), 503, "identity_unavailable"),
        (status(503), 503, "identity_unavailable"),
        (mode("reset"), 503, "identity_unavailable"),
        (mode("late_reset"), 503, "identity_unavailable"),
        (mode("hang"), 503, "identity_unavailable"),
    ]
}

async fn misbehave(world: &World, operation: &str, mut fault: Value) {
    fault["operation"] = operation.into();
    world.simulator.fault(fault).await;
}

fn assert_no_token(answer: &Answer, fault: &Value) {
    assert!(!answer.text.contains("eg_") && answer.json().get("access_token").is_none(), "{fault}: {}", answer.text);
    assert_eq!(answer.status == 503, !answer.header("retry-after").is_empty(), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_login_answers_upstream_no_session_is_left_half_made() {
    let world = patient().await;
    let visitor = world.visitor().await;
    let keys = world.redis.as_ref().unwrap().keys();
    for (fault, status, code) in misbehaviours() {
        misbehave(&world, "login", fault.clone()).await;
        let answer = world.login(&visitor.access, "john.doe@example.com").await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{fault}");
        assert_no_token(&answer, &fault);
        assert_eq!(world.rights(&visitor.access).await, GUEST, "{fault}");
    }
    assert_eq!(world.redis.as_ref().unwrap().keys(), keys);
    let john = Tokens::of(&world.login(&visitor.access, "john.doe@example.com").await);
    assert_eq!(john.session_id, visitor.session_id);
    assert_eq!(world.rights(&john.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_anonymous_login_answers_upstream_nothing_is_stored() {
    let world = patient().await;
    for (fault, status, code) in misbehaviours() {
        for line in [ANONYMOUS_LOGIN, "POST /customer/acme/login"] {
            misbehave(&world, "anonymous_login", fault.clone()).await;
            // So many outages in a row open a breaker; each call is its next probe.
            world.clock.advance(Duration::from_secs(5));
            let answer = world.ask(line).json(&john()).send().await;
            assert_eq!(problem(&answer), (status, code.to_owned()), "{line} {fault}");
            assert_no_token(&answer, &fault);
        }
    }
    assert_eq!(world.redis.as_ref().unwrap().keys(), Vec::<String>::new());
    assert_eq!(world.simulator.calls("login").await, 0);
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(world.rights(&world.visitor().await.access).await, GUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn emporix_rate_limit_is_passed_on_with_its_time() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for operation in ["login", "anonymous_login"] {
        let limit = json!({"mode": "status", "status": 429, "headers": {"retry-after": "7"}, "times": 1});
        misbehave(&world, operation, limit).await;
        let answer = match operation {
            "login" => world.login(&visitor.access, "john.doe@example.com").await,
            _ => world.ask(ANONYMOUS_LOGIN).send().await,
        };
        assert_eq!(problem(&answer), (429, "rate_limited".to_owned()), "{operation}");
        assert_eq!(answer.header("retry-after"), "7", "{operation}");
    }
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_reads_two_ways_is_a_problem_and_the_gateway_stays_up() {
    let world = World::new().await;
    let big = format!("GET /cart/acme/carts HTTP/1.1\r\nHost: x\r\nX-Big: {}\r\n\r\n", "x".repeat(40_000));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    for (head, status) in [
        ("NONSENSE\r\n\r\n".to_owned(), 400),
        ("GET /cart/acme/carts HTTP/1.1\r\nHost x\r\n\r\n".to_owned(), 400),
        ("GET /cart\0/acme/carts HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400),
        ("GET /cart/acme/carts HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n".to_owned(), 400),
        (big, 431),
        (get("http://evil.example/cart/acme/carts"), 400),
        (get("/cart/acme/../../oauth/token"), 400),
        (get("/cart/acme/%2e%2e/carts"), 400),
        (get("/cart/acme%2Fcarts"), 400),
        (get("/cart//acme/carts"), 400),
        (get("/cart/acme/carts%00"), 400),
        (get("*"), 400),
        ("CONNECT shop.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 400),
        ("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
    ] {
        let shown = &head[..head.len().min(60)];
        let answer = world.raw(head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{shown:?}: {answer}");
        assert!(serde_json::from_str::<Value>(body).unwrap()["code"].is_string(), "{shown:?}: {answer}");
    }
    assert!(world.simulator.requests().await.is_empty());
    assert_eq!(world.rights(&world.visitor().await.access).await, GUEST);
}
