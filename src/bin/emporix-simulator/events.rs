//! The lever that delivers a webhook event as Emporix does: signed over its canonical form, stamped with its time.
//! It tells what was answered; nothing is delivered again.

use std::{
    sync::LazyLock,
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use humantime_serde::re::humantime::format_rfc3339_millis;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::simulator::now;

static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
    let bounded = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    bounded.build().expect("a client without files or proxies can be built")
});

/// What `POST /_simulator/events` takes.
#[derive(Deserialize)]
pub(crate) struct Event {
    /// Such as `customer.deleted`.
    #[serde(rename = "type")]
    kind: String,
    payload: Value,
    /// The secret key of the webhook.
    secret: String,
    /// Where to deliver.
    url: String,
}

/// `POST /_simulator/events`
pub(crate) async fn deliver(Json(Event { kind, payload, secret, url }): Json<Event>) -> Response {
    // Members of a `Value` are sorted, and it is written without whitespace.
    let body = json!({"type": kind, "payload": payload}).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&key, body.as_bytes()));
    let published = format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(now())).to_string();
    let delivery = CLIENT
        .post(url)
        .header("content-type", "application/json")
        .header("emporix-event-signature", signature)
        .header("emporix-event-publish-time", published)
        .body(body);
    match delivery.send().await {
        Ok(answer) => Json(json!({"answered": answer.status().as_u16()})).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
