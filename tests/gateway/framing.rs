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
