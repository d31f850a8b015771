//! Where one request ends and the next begins, whatever a client says: nothing is lost, nothing is taken twice.

use serde_json::json;

use crate::world::{Received, World};

async fn last(world: &World) -> Received {
    world.simulator.last_api_request().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_offers_another_protocol_keeps_its_body() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let two = format!(
        "POST /coupon/acme/one HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {0}\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 11\r\n\r\nhello world\
         GET /coupon/acme/two HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {0}\r\nConnection: close\r\n\r\n",
        visitor.access
    );
    let answers = world.raw(two.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    let requests = world.simulator.requests().await;
    let sent = requests.iter().find(|request| request["target"] == "/coupon/acme/one").unwrap();
    assert_eq!(sent["body"], "hello world");
    assert!(Received(sent.clone()).headers("upgrade").is_empty());
    assert_eq!(last(&world).await.line(), "GET /coupon/acme/two");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_told_to_continue_is_told_of_errors_too() {
    let world = World::new().await;
    let body = json!({"email": "john.doe@example.com", "password": "wrong-password"}).to_string();
    let login = format!(
        "POST /customer/acme/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = world.raw(login.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 100"), "{answer}");
    assert!(answer.contains("HTTP/1.1 401") && answer.contains(r#""code":"refused""#), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_a_coding_that_would_be_lost_is_refused() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let request = format!(
        "POST /coupon/acme/one HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: gzip, chunked\r\n\
         Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        visitor.access
    );
    let answer = world.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(world.simulator.requests().await.iter().all(|request| request["target"] != "/coupon/acme/one"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_another_reader_could_take_for_something_else_are_refused() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.forget_calls().await;
    let bearer = format!("Authorization: Bearer {}", visitor.access);
    for head in [
        format!("POST /coupon/acme/one HTTP/1.1\r\nHost: x\r\n{bearer}\r\nContent-Length: 2, 2\r\n\r\n{{}}"),
        format!("GET /coupon/acme/one HTTP/1.1\r\nHost: x\r\nX-A: b\nX-C: d\r\n{bearer}\r\n\r\n"),
        format!("GET /coupon/acme/one HTTP/1.1\nHost: x\n{bearer}\n\n"),
        format!("GET /coupon/acme/one HTTP/1.1\r\n{bearer}\r\n\r\n"),
        format!("GET /coupon/acme/..;/..;/oauth/token HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n"),
    ] {
        let answer = world.raw(head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("problem+json"), "{head}\n{answer}");
    }
    let invented = format!("STEAL /coupon/acme/one HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n");
    assert!(world.raw(invented.as_bytes()).await.starts_with("HTTP/1.1 405"));
    assert!(world.simulator.requests().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_said_to_be_so() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for (headers, body) in [
        ("Transfer-Encoding: chunked", "ZZ\r\nabc\r\n"),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked", "+2\r\n{}\r\n"),
    ] {
        let request = format!(
            "POST /coupon/acme/one HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{headers}\r\n\r\n{body}",
            visitor.access
        );
        let answer = world.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bad_request"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_takes_a_handle_upstream_nor_a_token_down() {
    let world = World::new().await;
    let customer = world.customer().await;
    let handle = &customer.tokens.access;
    let answer = world
        .ask("GET /coupon/acme/one")
        .bearer(handle)
        .header("x-access-token", handle)
        .header("referer", &format!("http://shop/?t={handle}"))
        .header("cookie", &format!("theme=dark; x={handle}"))
        .header("x-http-method-override", "DELETE")
        .send()
        .await;
    assert_eq!(answer.status, 200);
    let arrived = last(&world).await;
    assert!(!arrived.0.to_string().contains("eg_"), "{arrived:?}");
    assert_eq!(arrived.headers("cookie"), ["theme=dark"]);
    assert!(arrived.headers("x-http-method-override").is_empty());
    let token = arrived.headers("authorization").remove(0);
    let echo = json!({"authorization": token, "saas-token": "x"});
    world.simulator.fault(json!({"operation": "api", "mode": "status", "status": 200, "headers": echo})).await;
    let answer = world.ask("GET /coupon/acme/two").bearer(handle).send().await;
    assert!(answer.headers.get("authorization").is_none() && answer.headers.get("saas-token").is_none());
    let body = json!({"message": format!("the token {token} is bad"), "status": 400});
    world.simulator.fault(json!({"operation": "login", "mode": "status", "status": 400, "body": body})).await;
    let refused = world.login(&customer.visitor.access, "john.doe@example.com").await;
    assert_eq!((refused.status, refused.json()["message"].as_str()), (400, Some("The request was refused.")));
}
