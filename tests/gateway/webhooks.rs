//! Emporix' webhook events: they end the sessions of customers who may not go on, and nothing else.
//! Nobody without the tenant's secret ends anything, and what a failing store left undone a redelivery does.

use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use emporix_gateway::clock::Clock;
use humantime_serde::re::humantime::format_rfc3339_millis;
use serde_json::{Value, json};

use crate::steps::{JANE, JOHN, john};
use crate::world::{Answer, Builder, World, eventually};

const ROUTE: &str = "POST /_gateway/webhooks/emporix/acme";
const SECRET: &str = "the-webhooks-secret-key";
const MAIL_TOKEN: &str = "mail-token-4711-canary";
const RESET: &str = "POST /customer/acme/password/reset/update";
const CONFIRM: &str = "POST /customer/acme/me/accounts/internal/email/change/confirm";

fn builder() -> Builder {
    World::builder().set("TENANTS__ACME__WEBHOOK__SECRET", SECRET)
}

/// An event, and what it is signed with and over.
#[derive(Clone)]
struct Delivery {
    body: String,
    signature: String,
    published: String,
    event_type: Option<String>,
}

impl World {
    /// An event as Emporix publishes it now: signed over its members in order and without whitespace.
    fn event(&self, kind: &str, payload: &Value) -> Delivery {
        let event = json!({"type": kind, "payload": payload});
        Delivery { body: format!("{event:#}"), ..self.signed(SECRET, &event.to_string()) }
    }

    fn signed(&self, secret: &str, text: &str) -> Delivery {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Delivery {
            body: text.to_owned(),
            signature: STANDARD.encode(hmac::sign(&key, text.as_bytes())),
            published: self.time(0),
            event_type: None,
        }
    }

    /// The instant `seconds` from now.
    fn time(&self, seconds: i64) -> String {
        let millis = self.clock.now().millis().checked_add_signed(seconds * 1_000).unwrap();
        format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
    }

    async fn deliver(&self, replica: usize, delivery: &Delivery) -> Answer {
        let mut ask = self
            .ask_replica(replica, ROUTE)
            .header("content-type", "application/json")
            .header("emporix-event-signature", &delivery.signature)
            .header("emporix-event-publish-time", &delivery.published);
        if let Some(event_type) = &delivery.event_type {
            ask = ask.header("emporix-event-type", event_type);
        }
        ask.body(delivery.body.clone()).send().await
    }

    async fn delivered(&self, kind: &str, payload: Value) {
        let answer = self.deliver(0, &self.event(kind, &payload)).await;
        assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{kind} {payload}");
    }

    /// A handle of a customer who signed in.
    async fn signed_in(&self, email: &str) -> String {
        let visitor = self.visitor().await;
        let answer = self.login(&visitor.access, email).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    async fn rights_at(&self, replica: usize, handle: &str) -> String {
        crate::steps::who(&self.ask_replica(replica, "GET /customer/acme/me").bearer(handle).send().await)
    }

    async fn ends(&self, handle: &str) {
        for replica in 0..self.replicas.len() {
            eventually("the session is over", async || {
                // Until a replica hears of it, Emporix itself may refuse the revoked token.
                let answer = self.ask_replica(replica, "GET /customer/acme/me").bearer(handle).send().await;
                answer.status == 401 && answer.text.contains("session_ended")
            })
            .await;
        }
    }

    async fn lives(&self, handle: &str, whose: &str) {
        for replica in 0..self.replicas.len() {
            assert_eq!(self.rights_at(replica, handle).await, whose);
        }
    }

    /// What the storefront sends when somebody follows the link of a mail.
    async fn follow_mail(&self, line: &str, body: &Value) -> u16 {
        let visitor = self.visitor().await;
        self.ask(line).bearer(&visitor.access).json(body).send().await.status
    }

    async fn reset_with(&self, token: &str) {
        assert_eq!(self.follow_mail(RESET, &json!({"token": token, "password": "password456"})).await, 204);
    }

    /// Waits until the gateway has looked for the customer of a token, and found none.
    async fn nobody_was_named(&self, lookups: f64) {
        eventually("the token was looked up", async || self.notes_asked() > lookups).await;
    }

    fn refused_deliveries(&self) -> f64 {
        self.gateway().metric(r#"gateway_webhooks_total{event="other",outcome="refused"}"#)
    }

    fn notes_asked(&self) -> f64 {
        self.gateway().metric(r#"gateway_store_operations_total{operation="note",outcome="success"}"#)
    }

    fn events(&self, event: &str, outcome: &str) -> f64 {
        let series = format!(r#"gateway_webhooks_total{{event="{event}",outcome="{outcome}"}}"#);
        self.replicas.iter().map(|replica| replica.metric(&series)).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_shuts_a_customer_out_ends_every_session_on_every_replica() {
    let world = builder().redis().replicas(2).start().await;
    let jane = world.signed_in("jane.roe@example.com").await;
    for (kind, payload) in [
        ("customer.deleted", json!({"customerNumber": JOHN, "tenant": "acme", "email": "john.doe@example.com"})),
        ("customer.updated", json!({"customerNumber": JOHN, "active": false, "onHold": false})),
        ("customer.updated", json!({"customerNumber": JOHN, "active": "true", "onHold": "true"})),
        ("customer.email-change", json!({"customerId": JOHN, "token": "x", "newEmail": "new@example.com"})),
    ] {
        world.simulator.forget_calls().await;
        let [phone, laptop] = [world.customer().await, world.customer().await];
        for handle in [&phone.tokens.access, &laptop.tokens.access] {
            world.lives(handle, JOHN).await;
        }
        world.delivered(kind, payload).await;
        for handle in [&phone.tokens.access, &laptop.tokens.access, &phone.visitor.access] {
            assert_eq!(world.rights_at(0, handle).await, "session_ended", "{kind}: at once where it was delivered");
            world.ends(handle).await;
        }
        eventually("Emporix is told", async || world.simulator.calls("logout").await == 2).await;
    }
    world.lives(&jane, JANE).await;
    assert_eq!(world.events("customer.updated", "revoked"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_payload_is_taken_with_its_type_in_a_header_and_signed_as_it_came() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let as_it_came = format!("{{ \"type\": \"B2B\", \"customerNumber\": \"{JOHN}\", \"n\": 10.00 }}");
    let bare = Delivery { event_type: Some("customer.deleted".into()), ..world.signed(SECRET, &as_it_came) };
    assert_eq!(world.deliver(0, &Delivery { event_type: None, ..bare.clone() }).await.code(), "bad_request");
    world.lives(&john, JOHN).await;
    assert_eq!(world.deliver(0, &bare).await.status, 204);
    world.ends(&john).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_signature_of_the_tenants_secret_nothing_is_believed() {
    let world = builder().set("TENANTS__GLOBEX__WEBHOOK__SECRET", "globex-has-its-own").start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let good = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    let over = |secret: &str, text: &str| world.signed(secret, text).signature;
    let compact = serde_json::from_str::<Value>(&good.body).unwrap().to_string();
    let bytes = STANDARD.decode(&good.signature).unwrap();
    for (what, signature) in [
        ("none", String::new()),
        ("no base64", "!!!".into()),
        ("half of it", STANDARD.encode(&bytes[..16])),
        ("all but a byte", STANDARD.encode(&bytes[..31])),
        ("a byte too many", STANDARD.encode([&bytes[..], &[0]].concat())),
        ("in hex", bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        ("another secret's", over("another", &compact)),
        ("an empty secret's", over("\0", &compact)),
        ("another tenant's", over("globex-has-its-own", &compact)),
        ("of another customer", over(SECRET, &compact.replace(JOHN, JANE))),
        ("of another type", over(SECRET, &compact.replace("deleted", "created"))),
    ] {
        let refused = world.deliver(0, &Delivery { signature, ..good.clone() }).await;
        assert_eq!((refused.status, refused.code().as_str()), (401, "signature_invalid"), "{what}");
    }
    let before = world.refused_deliveries();
    let unsigned = world.ask(ROUTE).json(&json!({"type": "customer.deleted"})).send().await;
    assert_eq!(unsigned.code(), "signature_invalid");
    assert_eq!(world.refused_deliveries(), before + 1.0);
    let twice = world.ask(ROUTE).header("content-type", "application/json").body(good.body.clone());
    let twice = twice.header("emporix-event-signature", &good.signature);
    let twice = twice.header("emporix-event-signature", &good.signature);
    assert_eq!(twice.header("emporix-event-publish-time", &good.published).send().await.code(), "signature_invalid");
    let theirs = world.signed(SECRET, &json!({"customerNumber": JOHN, "tenant": "globex"}).to_string());
    let theirs = Delivery { event_type: Some("customer.deleted".into()), ..theirs };
    let refused = world.deliver(0, &theirs).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "tenant_mismatch"));
    world.lives(&john, JOHN).await;
    assert!(world.events("other", "refused") > 10.0);
    assert_eq!(world.deliver(0, &good).await.status, 204, "and the very one that was tampered with");
    world.ends(&john).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_has_to_be_of_this_time() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let good = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    for (published, status, code) in [
        (world.time(-302), 401, "delivery_stale"),
        (world.time(-86_400), 401, "delivery_stale"),
        (world.time(65), 401, "delivery_stale"),
        ("2199-01-01T00:00:00Z".into(), 401, "delivery_stale"),
        (String::new(), 400, "bad_request"),
        ("yesterday".into(), 400, "bad_request"),
        ("1700000000".into(), 400, "bad_request"),
        ("2026-11-22T12:00:00+02:00".into(), 400, "bad_request"),
        ("9999999999999-01-01T00:00:00Z".into(), 400, "bad_request"),
    ] {
        let refused = world.deliver(0, &Delivery { published: published.clone(), ..good.clone() }).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{published}");
    }
    world.lives(&john, JOHN).await;
    for published in [world.time(-290), world.time(50)] {
        assert_eq!(world.deliver(0, &Delivery { published, ..good.clone() }).await.status, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_comes_again_does_nothing_on_any_replica() {
    let world = builder().redis().replicas(2).start().await;
    let first = world.signed_in("john.doe@example.com").await;
    let event = world.event("customer.updated", &json!({"customerNumber": JOHN, "active": false}));
    assert_eq!(world.deliver(0, &event).await.status, 204);
    world.ends(&first).await;
    let again = world.signed_in("john.doe@example.com").await;
    for replica in [0, 1, 1, 0] {
        assert_eq!(world.deliver(replica, &event).await.status, 204);
    }
    let spelled = Delivery { body: event.body.replace('\n', " "), ..event.clone() };
    assert_eq!(world.deliver(1, &spelled).await.status, 204, "the same in another spelling");
    assert_eq!(world.events("customer.updated", "repeated"), 5.0);
    world.lives(&again, JOHN).await;
    world.clock.advance(Duration::from_secs(301));
    assert_eq!(world.deliver(0, &event).await.code(), "delivery_stale");
    world.lives(&again, JOHN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_delivery_ends_nothing_again_whatever_time_and_form_it_is_given() {
    let world = builder().redis().replicas(2).start().await;
    let first = world.signed_in("john.doe@example.com").await;
    let stolen = world.event("customer.updated", &json!({"customerNumber": JOHN, "active": false}));
    assert_eq!(world.deliver(0, &stolen).await.status, 204);
    world.ends(&first).await;
    world.clock.advance(Duration::from_secs(3_600));
    let again = world.signed_in("john.doe@example.com").await;
    let compact = serde_json::from_str::<Value>(&stolen.body).unwrap().to_string();
    for body in [stolen.body.clone(), compact, format!(" {}", stolen.body)] {
        let replayed = Delivery { body, published: world.time(0), ..stolen.clone() };
        assert_eq!(world.deliver(1, &replayed).await.status, 204);
        world.lives(&again, JOHN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_refused_and_what_is_none_of_ours_ignored() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let deep = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for body in ["", "{", "null", "[]", "\"x\"", "{\"payload\":{}}", "{\"type\":\"customer.deleted\"}", "\u{0}"] {
        let refused = world.deliver(0, &world.signed(SECRET, body)).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "bad_request"), "{body}");
    }
    for depth in [65, 200, 10_000] {
        assert_eq!(world.deliver(0, &world.signed("another", &deep(depth))).await.code(), "signature_invalid");
        assert_eq!(world.deliver(0, &world.signed(SECRET, &deep(depth))).await.code(), "bad_request");
    }
    let large = world.signed(SECRET, &format!("{{\"type\":\"{}\"}}", "x".repeat(70_000)));
    let refused = world.deliver(0, &large).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "body_too_large"));
    let good = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    let text = world.ask(ROUTE).header("emporix-event-signature", &good.signature).body(good.body);
    assert_eq!(text.header("content-type", "text/plain").send().await.code(), "unsupported_media_type");
    world.lives(&john, JOHN).await;
    for kind in ["customer.logged.in", "product.updated", "customer.opt-in"] {
        world.delivered(kind, json!({"customerId": JOHN, "customerNumber": JOHN, "active": false})).await;
    }
    assert_eq!(world.events("other", "ignored"), 3.0);
    world.lives(&john, JOHN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_a_secret_takes_no_events() {
    let world = builder().start().await;
    let event = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    for (line, status, code) in [
        ("POST /_gateway/webhooks/emporix/globex", 404, "unknown_route"),
        ("POST /_gateway/webhooks/emporix/nobody", 404, "unknown_tenant"),
        ("GET /_gateway/webhooks/emporix/acme", 405, "method_not_allowed"),
    ] {
        let ask = world.ask(line).header("content-type", "application/json");
        let ask = ask.header("emporix-event-signature", &event.signature);
        let ask = ask.header("emporix-event-publish-time", &event.published);
        let refused = ask.header("origin", "https://shop.example.com").body(event.body.clone()).send().await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_and_origins_mean_nothing_to_a_delivery() {
    let world = builder().start().await;
    let browser = world.browser();
    browser.login().await;
    let event = world.event("customer.deleted", &json!({"customerNumber": JANE}));
    let ask = world.ask(ROUTE).header("content-type", "application/json").header("sec-fetch-site", "cross-site");
    let ask = ask.header("origin", "https://shop.example.com");
    let ask = ask.header("cookie", "__Host-emporix-session=eg_k_nonsense");
    let ask = ask.header("emporix-event-signature", &event.signature);
    let taken = ask.header("emporix-event-publish-time", &event.published).body(event.body.clone()).send().await;
    assert_eq!((taken.status, taken.cookies().len()), (204, 0), "{}", taken.text);
    assert_eq!(taken.header("access-control-allow-origin"), "");
    let unsigned = world.ask(ROUTE).header("origin", "https://shop.example.com").json(&json!({})).send().await;
    assert_eq!((unsigned.status, unsigned.header("access-control-allow-origin").as_str()), (401, ""));
    assert_eq!(browser.send("GET /customer/acme/me", |ask| ask).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_outage_left_undone_the_next_delivery_does() {
    let world = builder().redis().replicas(2).start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let event = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    world.redis().kill();
    let refused = world.deliver(0, &event).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "store_unavailable"));
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(world.events("customer.deleted", "failed"), 1.0);
    world.redis().restart().await;
    eventually("it is taken", async || world.deliver(0, &event).await.status == 204).await;
    world.ends(&john).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_done_the_next_delivery_does() {
    let world = builder().redis().replicas(2).start().await;
    let john = world.signed_in("john.doe@example.com").await;
    world.lives(&john, JOHN).await;
    let event = world.event("customer.deleted", &json!({"customerNumber": JOHN}));
    // The epoch can be raised and the sessions found, but none of them ended.
    world.redis().command("ACL SETUSER default resetkeys ~eg:customer:* ~eg:note:* %R~*");
    eventually("it is refused half-way", async || {
        let epochs = world.redis().keys().iter().any(|key| key.ends_with(":epoch"));
        world.deliver(0, &event).await.status == 503 && epochs
    })
    .await;
    assert_eq!(world.rights_at(0, &john).await, "session_ended", "it is refused here already");
    let stands = |world: &World| world.redis().keys().iter().any(|key| key.ends_with(":session"));
    assert!(stands(&world), "and the others cannot know yet");
    world.redis().command("ACL SETUSER default allkeys");
    eventually("it is taken", async || world.deliver(0, &event).await.status == 204).await;
    world.ends(&john).await;
    assert!(!stands(&world), "the record is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_is_asked_for_ends_nothing_and_one_that_is_done_ends_every_session() {
    let world = builder().redis().replicas(2).start().await;
    let sessions = [world.signed_in("John.Doe@example.com").await, world.signed_in("john.doe@example.com").await];
    let jane = world.signed_in("jane.roe@example.com").await;
    let asked = json!({"email": "JOHN.doe@example.com", "token": MAIL_TOKEN, "site": "main"});
    world.delivered("customer.password-reset", asked).await;
    for handle in &sessions {
        world.lives(handle, JOHN).await;
    }

    let lookups = world.notes_asked();
    world.reset_with("mail-token-of-another-mail").await;
    world.nobody_was_named(lookups).await;
    let refused = world.follow_mail(RESET, &json!({"token": MAIL_TOKEN})).await;
    assert_eq!(refused, 400, "Emporix refuses it");
    for handle in &sessions {
        world.lives(handle, JOHN).await;
    }

    world.reset_with(MAIL_TOKEN).await;
    for handle in &sessions {
        world.ends(handle).await;
    }
    world.lives(&jane, JANE).await;
    let anew = world.signed_in("john.doe@example.com").await;
    world.lives(&anew, JOHN).await;
    let secrets = [MAIL_TOKEN, "john.doe@example.com", "John.Doe@example.com", SECRET].map(str::to_owned);
    assert_eq!(world.leaks_inside(&secrets), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_is_done_before_its_event_came_ends_when_it_comes_what_was_signed_in_before() {
    let world = builder().redis().replicas(2).start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let jane = world.signed_in("jane.roe@example.com").await;
    world.reset_with(MAIL_TOKEN).await;
    let noted = |world: &World| world.redis().keys().iter().any(|key| key.contains(":used-token:"));
    eventually("it is noted that the token was used", async || noted(&world)).await;
    world.lives(&john, JOHN).await;
    let anew = world.signed_in("john.doe@example.com").await;
    let asked = |token: &str| json!({"email": "john.doe@example.com", "token": token});
    world.delivered("customer.password-reset", asked("mail-token-of-another-mail")).await;
    world.lives(&john, JOHN).await;
    assert_eq!(world.events("customer.password-reset", "revoked"), 0.0);

    world.delivered("customer.password-reset", asked(MAIL_TOKEN)).await;
    world.ends(&john).await;
    world.lives(&anew, JOHN).await;
    world.lives(&jane, JANE).await;
    assert_eq!(world.events("customer.password-reset", "revoked"), 1.0);
    assert_eq!(world.leaks_inside(&[MAIL_TOKEN.to_owned()]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_emporix_refuses_is_none_that_an_event_ends_sessions_for() {
    let world = builder().redis().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    assert_eq!(world.follow_mail(RESET, &json!({"token": MAIL_TOKEN})).await, 400);
    world.delivered("customer.password-reset", json!({"email": "john.doe@example.com", "token": MAIL_TOKEN})).await;
    assert_eq!(world.events("customer.password-reset", "noted"), 1.0);
    world.lives(&john, JOHN).await;
    assert!(!world.redis().keys().iter().any(|key| key.contains(":used-token:")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_token_is_remembered_for_a_day() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    // Looked for, noted, and looked for again.
    let before = world.notes_asked();
    world.reset_with(MAIL_TOKEN).await;
    eventually("it is noted", async || world.notes_asked() == before + 3.0).await;
    world.clock.advance(Duration::from_secs(24 * 3600));
    world.delivered("customer.password-reset", json!({"email": "john.doe@example.com", "token": MAIL_TOKEN})).await;
    assert_eq!(world.events("customer.password-reset", "noted"), 1.0);
    world.lives(&john, JOHN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailed_token_names_its_customer_for_a_day() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    world.delivered("customer.password-reset", json!({"email": "john.doe@example.com", "token": MAIL_TOKEN})).await;
    world.clock.advance(Duration::from_secs(24 * 3600));
    let lookups = world.notes_asked();
    world.reset_with(MAIL_TOKEN).await;
    world.nobody_was_named(lookups).await;
    world.lives(&john, JOHN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_address_names_nobody() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    world.delivered("customer.password-reset", json!({"email": "who@example.com", "token": MAIL_TOKEN})).await;
    assert_eq!(world.events("customer.password-reset", "ignored"), 1.0);
    let lookups = world.notes_asked();
    world.reset_with(MAIL_TOKEN).await;
    world.nobody_was_named(lookups).await;
    world.lives(&john, JOHN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_change_of_address_ends_every_session_however_it_is_sent() {
    let world = builder().start().await;
    for chunked in [false, true] {
        let john = world.signed_in("john.doe@example.com").await;
        world.delivered("customer.email-change-request", json!({"customerId": JOHN, "token": MAIL_TOKEN})).await;
        world.lives(&john, JOHN).await;
        let body = json!({"token": MAIL_TOKEN});
        if chunked {
            let (visitor, body) = (world.visitor().await, body.to_string());
            let path = CONFIRM.strip_prefix("POST ").unwrap();
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                visitor.access,
                body.len()
            );
            assert!(world.raw(request.as_bytes()).await.starts_with("HTTP/1.1 204"));
        } else {
            assert_eq!(world.follow_mail(CONFIRM, &body).await, 204);
        }
        world.ends(&john).await;
    }
    assert_eq!(world.follow_mail(CONFIRM, &json!({"token": "x".repeat(70_000)})).await, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_during_an_outage_ends_the_sessions_when_it_is_over() {
    let world = builder().redis().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    world.delivered("customer.password-reset", json!({"email": "john.doe@example.com", "token": MAIL_TOKEN})).await;
    let visitor = world.visitor().await;
    world.redis().kill();
    let body = json!({"token": MAIL_TOKEN, "password": "password456"});
    assert_eq!(world.ask(RESET).bearer(&visitor.access).json(&body).send().await.status, 204, "a hot visitor");
    world.redis().restart().await;
    world.ends(&john).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_tells_the_address_of_customers_who_never_signed_in_with_it() {
    let world = builder().start().await;
    let visitor = world.visitor().await;
    let social = "POST /customer/acme/socialLogin?code=valid-code-1&redirect_uri=https%3A%2F%2Fshop.example.com";
    let signed_in = world.ask(social).bearer(&visitor.access).send().await;
    let john = signed_in.json()["access_token"].as_str().unwrap_or_else(|| panic!("{}", signed_in.text)).to_owned();
    world.delivered("customer.created", json!({"customerNumber": JOHN, "contactEmail": "john@example.org"})).await;
    world.delivered("customer.password-reset", json!({"email": "john@example.org", "token": MAIL_TOKEN})).await;
    world.lives(&john, JOHN).await;
    world.reset_with(MAIL_TOKEN).await;
    world.ends(&john).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_takes_anothers_address_over_by_a_profile() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let jane = world.signed_in("jane.roe@example.com").await;
    world.delivered("customer.updated", json!({"customerNumber": JANE, "contactEmail": "john.doe@example.com"})).await;
    world.delivered("customer.password-reset", json!({"email": "john.doe@example.com", "token": MAIL_TOKEN})).await;
    world.reset_with(MAIL_TOKEN).await;
    world.ends(&john).await;
    world.lives(&jane, JANE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_webhook_no_address_is_noted_and_a_reset_is_just_forwarded() {
    let world = World::builder().redis().start().await;
    let body = john();
    let visitor = world.visitor().await;
    let signed_in = world.ask("POST /customer/acme/login").bearer(&visitor.access).json(&body).send().await;
    assert_eq!(signed_in.status, 200);
    world.reset_with(MAIL_TOKEN).await;
    assert!(world.redis().keys().iter().all(|key| !key.starts_with("eg:note:")));
    assert_eq!(world.notes_asked(), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_simulators_lever_delivers_an_event_that_is_believed() {
    let world = builder().start().await;
    let john = world.signed_in("john.doe@example.com").await;
    let url = format!("http://{}/_gateway/webhooks/emporix/acme", world.gateway().public);
    let payload = json!({"tenant": "acme", "customerNumber": JOHN, "email": "john.doe@example.com"});
    assert_eq!(world.simulator.deliver("customer.deleted", payload.clone(), "another", &url).await, 401);
    world.lives(&john, JOHN).await;
    assert_eq!(world.simulator.deliver("customer.deleted", payload, SECRET, &url).await, 204);
    world.ends(&john).await;
}
