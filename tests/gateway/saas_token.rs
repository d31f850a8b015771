//! The JWT of a login: verified before it is believed, shown to nobody, accepted only where a tenant says so.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::steps::{GUEST, JOHN, john, who};
use crate::world::{Builder, Tokens, World};

fn unsigned(header: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(header), part(&json!({"sub": JOHN, "exp": 4_000_000_000_u64})))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_a_saas_token_that_cannot_be_believed_fails_and_leaves_nothing() {
    let world = World::builder().redis().start().await;
    let visitor = world.visitor().await;
    let keys = world.redis.as_ref().unwrap().keys();
    let forged = format!("{}bm9pc2U", unsigned(&json!({"alg": "HS256", "typ": "JWT"})));
    for token in ["garbage", "a.b.c", &unsigned(&json!({"alg": "none"})), &forged] {
        world.simulator.set(json!({"saas_token_override": token})).await;
        let answer = world.login(&visitor.access, "john.doe@example.com").await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "identity_unreadable"), "{token}");
        assert!(!answer.text.contains(token) && !answer.text.contains("eg_"));
        assert_eq!(world.rights(&visitor.access).await, GUEST);
    }
    assert_eq!(world.redis.as_ref().unwrap().keys(), keys);
    world.simulator.set(json!({"saas_token_override": null})).await;
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_an_unsigned_token_is_refused_all_the_same() {
    let world = World::builder().set("TENANTS__GLOBEX__SAAS_TOKEN__MODE", "structure").start().await;
    let login = async || world.ask("POST /customer/globex/login").json(&john()).send().await;
    assert_eq!(login().await.status, 200);
    world.simulator.set(json!({"saas_token_override": unsigned(&json!({"alg": "none"}))})).await;
    assert_eq!(login().await.code(), "identity_unreadable");
}

async fn exposing() -> World {
    exposing_over(World::builder()).await
}

async fn exposing_over(builder: Builder) -> World {
    let builder =
        builder.set("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "true").set("TENANTS__ACME__SAAS_TOKEN__EXPOSE", "true");
    let mut world = builder.start().await;
    world.saas_is_exposed = true;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_present_the_exact_jwt_of_its_login() {
    let world = exposing().await;
    let login = world.ask("POST /customer/acme/login").json(&john()).send().await;
    let jwt = login.json()["saas_token"].as_str().unwrap().to_owned();
    assert!(jwt.starts_with("eyJ") && login.json()["saasToken"] == jwt.as_str());
    let handle = Tokens::of(&login).access;
    assert_eq!(world.rights(&jwt).await, JOHN);

    let mut changed = jwt.clone();
    changed.insert(jwt.rfind('.').unwrap() + 1, 'x');
    assert_eq!(world.rights(&changed).await, "session_ended");
    let elsewhere = world.ask("GET /customer/globex/me").bearer(&jwt).send().await;
    assert_eq!(elsewhere.status, 401);

    assert_eq!(world.log_out(&jwt).await.status, 204);
    assert_eq!(world.rights(&jwt).await, "session_ended");
    assert_eq!(world.rights(&handle).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_jwt_opens_nothing_while_the_handle_still_does() {
    let world = exposing().await;
    let login = world.ask("POST /customer/acme/login").json(&john()).send().await;
    let jwt = login.json()["saas_token"].as_str().unwrap().to_owned();
    assert_eq!(world.rights(&jwt).await, JOHN);
    world.clock.advance(std::time::Duration::from_secs(14_500));
    assert_eq!(world.rights(&jwt).await, "session_ended");
    assert_eq!(world.rights(&Tokens::of(&login).access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwt_is_shown_to_no_browser_and_never_beside_a_cookie() {
    let world = exposing().await;
    let (name, value) = ("origin", "https://shop.example.com");
    let cross = world.ask("POST /customer/acme/login").header(name, value).json(&john()).send().await;
    assert!(cross.json()["saas_token"].as_str().unwrap().starts_with("eg_s_"), "{}", cross.text);
    let browser = world.browser();
    assert_eq!(browser.login().await.json()["saas_token"], "cookie.saas");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_is_refused_where_the_tenant_does_not_accept_it() {
    let mut world = World::builder().set("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "false").start().await;
    world.saas_is_exposed = true;
    let _john = world.customer().await;
    let jwt = world.simulator.tokens().await.into_iter().find(|token| token.starts_with("eyJ")).unwrap();
    assert_eq!(world.rights(&jwt).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_well_signed_jwt_that_no_login_answered_opens_nothing_whoever_its_subject_is() {
    let world = exposing().await;
    let login = world.ask("POST /customer/acme/login").json(&john()).send().await;
    assert_eq!(login.status, 200);
    let key = jsonwebtoken::EncodingKey::from_secret(b"simulator-passphrase");
    for subject in [JOHN, "C0033", "another"] {
        let claims = json!({"sub": subject, "exp": 4_000_000_000_u64});
        let jwt = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        assert_eq!(world.rights(&jwt).await, "session_ended", "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_logins_that_answer_one_jwt_disable_it_as_a_credential() {
    let world = exposing().await;
    let key = jsonwebtoken::EncodingKey::from_secret(b"simulator-passphrase");
    let claims = json!({"sub": JOHN, "exp": 4_000_000_000_u64});
    let jwt = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    world.simulator.set(json!({"saas_token_override": jwt})).await;
    let login = async || Tokens::of(&world.ask("POST /customer/acme/login").json(&john()).send().await).access;
    let first = login().await;
    let second = login().await;
    assert_eq!(world.rights(&jwt).await, "session_ended", "it would name one of two sessions");
    for handle in [first, second] {
        assert_eq!(world.rights(&handle).await, JOHN);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_has_not_heard_of_the_login_asks_the_store_once_before_it_refuses_a_jwt() {
    let world = exposing_over(World::builder().redis().replicas(2)).await;
    let visitor = world.visitor().await;
    let record = world.redis().keys().into_iter().find(|key| key.ends_with(":session")).unwrap();
    let copy =
        |from: &str, to: &str| assert!(world.redis().command(&format!("COPY {from} {to} REPLACE")).contains(":1"));
    copy(&record, "eg:before");
    let jwt = async || world.login(&visitor.access, "john.doe@example.com").await.json()["saas_token"].clone();
    let [first, second] = [jwt().await, jwt().await].map(|jwt| jwt.as_str().unwrap().to_owned());
    // The other replica reads what stood there before, and no word of the logins reaches it any more.
    copy(&record, "eg:after");
    copy("eg:before", &record);
    let at_the_other =
        async |bearer: &str| who(&world.ask_replica(1, "GET /customer/acme/me").bearer(bearer).send().await);
    assert_eq!(at_the_other(&visitor.access).await, GUEST);
    copy("eg:after", &record);
    assert_eq!(at_the_other(&second).await, JOHN);

    let loads = || world.replicas[1].metric(r#"gateway_store_operations_total{operation="load",outcome="success"}"#);
    assert_eq!(at_the_other(&first).await, "session_ended", "the second login replaced it");
    let asked = loads();
    for _ in 0..5 {
        assert_eq!(at_the_other(&first).await, "session_ended");
    }
    assert_eq!(loads(), asked, "what was refused once costs the store nothing");
}
