//! The public listener behind TLS: HTTP/2 and HTTP/1.1 by ALPN, with the same promises.

use std::process::Command;

use serde_json::{Value, json};

use crate::world::{Certificate, World};

/// Runs curl against the gateway's TLS listener; what it prints, head and body.
async fn curl(world: &World, more: &[&str], target: &str) -> String {
    let url = format!("https://localhost:{}{target}", world.gateway().public.port());
    let mut command = Command::new("curl");
    command.args(["-skS", "-i", "--max-time", "10", "--resolve"]);
    command.arg(format!("localhost:{}:127.0.0.1", world.gateway().public.port())).args(more).arg(url);
    let printed = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let errors = String::from_utf8_lossy(&printed.stderr).into_owned();
    String::from_utf8_lossy(&printed.stdout).into_owned() + &errors
}

async fn world(folder: &tempfile::TempDir) -> World {
    let [certificate, key] = Certificate::new().write(folder.path());
    let tls = World::builder().set("LISTEN__TLS__CERTIFICATE_FILE", certificate);
    tls.set("LISTEN__TLS__KEY_FILE", key).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_and_http_1_1_are_both_spoken_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(&folder).await;
    for (option, line) in [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200")] {
        let products = curl(&world, &[option], "/product/acme/products").await;
        assert!(products.starts_with(line) && products.contains("Espresso Cup"), "{products}");
    }
    let arrived = world.simulator.last_api_request().await;
    assert_eq!(arrived.headers("x-forwarded-proto"), ["https"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_over_http_2_signs_in_with_its_cookie_split_over_fields() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(&folder).await;
    let own = ["--http2", "-H", "sec-fetch-site: same-origin"];
    let anonymous = curl(&world, &own, "/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront").await;
    let cookie_of = |answer: &str| {
        let line = answer.lines().find(|line| line.starts_with("set-cookie: ")).expect("a cookie").to_owned();
        line["set-cookie: ".len()..].split(';').next().unwrap().to_owned()
    };
    let visitor = cookie_of(&anonymous);
    let cookies = [format!("cookie: theme=dark; {visitor}"), "cookie: lang=de".to_owned()];
    let login = [&own[..], &["-H", &cookies[0], "-H", &cookies[1], "-H", "content-type: application/json"]].concat();
    let body = r#"{"email":"john.doe@example.com","password":"password123"}"#;
    let login = curl(&world, &[&login[..], &["-d", body]].concat(), "/customer/acme/login").await;
    assert!(login.starts_with("HTTP/2 200") && login.contains("cookie.customer"), "{login}");
    let customer = format!("cookie: theme=dark; {}; lang=de", cookie_of(&login));
    let me = curl(&world, &[&own[..], &["-H", &customer]].concat(), "/customer/acme/me").await;
    let me: Value = serde_json::from_str(me.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(me["customerNumber"], "13869000");
    let arrived = world.simulator.last_api_request().await;
    assert_eq!(arrived.headers("cookie"), ["theme=dark; lang=de"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_over_http_2_arrives_complete_and_an_oversized_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(&folder).await;
    let visitor =
        curl(&world, &["--http2"], "/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront").await;
    let visitor: Value = serde_json::from_str(visitor.split_once("\r\n\r\n").unwrap().1).unwrap();
    let bearer = format!("authorization: Bearer {}", visitor["access_token"].as_str().unwrap());
    let file = folder.path().join("upload");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let body = format!("@{}", file.display());
    let upload = ["--http2", "-H", &bearer, "-H", "content-type: application/octet-stream", "--data-binary", &body];
    let answer = curl(&world, &upload, "/media/acme/assets").await;
    assert!(answer.contains(r#""received":3000000"#), "{answer}");
    world.simulator.fault(json!({"operation": "api", "mode": "status", "status": 413, "times": 1})).await;
    let answer = curl(&world, &upload, "/media/acme/assets").await;
    assert!(answer.starts_with("HTTP/2 413"), "the API's own, before it has read the upload: {answer}");
    let login = ["--http2", "-H", &bearer, "-H", "content-type: application/json", "--data-binary", &body];
    let answer = curl(&world, &login, "/customer/acme/login").await;
    assert!(answer.starts_with("HTTP/2 413") && answer.contains("body_too_large"), "{answer}");
}
