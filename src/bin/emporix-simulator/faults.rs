//! Misbehaviour on demand: errors, delays, broken bodies and connections that die too early.
//! A fault names the operation it hits and how often; calls are counted before it acts.

use std::{collections::BTreeMap, future::pending, time::Duration};

use axum::{
    body::to_bytes,
    extract::Request,
    middleware::Next,
    response::{Html, IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};

use crate::{gzip, operation::Operation, wire::Wire};

/// How long a `delay` without `delay_ms` lasts.
const DEFAULT_DELAY_MS: u64 = 1000;
/// The size of an `oversized` answer.
const OVERSIZED: usize = 4 * 1024 * 1024;

/// A misbehaviour, as tests ask for it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    #[serde(deserialize_with = "one_or_any")]
    operation: Option<Operation>,
    mode: Mode,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    delay_ms: Option<u64>,
    #[serde(default)]
    times: Option<u32>,
    #[serde(default)]
    body: Option<Value>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Answers with `status`, `headers` and `body` without processing.
    Status,
    /// Processes the request late.
    Delay,
    /// Processes the request at once and answers late.
    LateAnswer,
    /// Never answers.
    Hang,
    /// Answers 200 with a web page without processing.
    Html,
    /// Processes the request and answers compressed, asked for or not.
    Gzip,
    /// Processes the request, announces more bytes than it sends, and closes.
    HalfBody,
    /// Processes the request and answers JSON that cannot be parsed, with the real tokens in it.
    Garbage,
    /// Processes the request and pads its answer to 4 MiB.
    Oversized,
    /// Closes the connection without processing.
    Reset,
    /// Processes the request and closes the connection without answering.
    LateReset,
    /// Answers a 401 that is not Emporix' fault shape, without processing.
    UnauthorizedPlain,
}

/// The fault that hits this call, used up by one.
pub(crate) fn take(faults: &mut Vec<Fault>, operation: Operation) -> Option<Fault> {
    faults.retain(|fault| fault.times != Some(0));
    let hit = faults.iter_mut().find(|fault| fault.operation.is_none_or(|only| only == operation))?;
    hit.times = hit.times.map(|times| times - 1);
    Some(hit.clone())
}

impl Fault {
    /// Answers in place of the handlers, or spoils their answer.
    pub(crate) async fn act(self, wire: &Wire, request: Request, next: Next) -> Response {
        if self.mode != Mode::LateAnswer {
            tokio::time::sleep(self.delay()).await;
        }
        match self.mode {
            Mode::Delay => next.run(request).await,
            Mode::LateAnswer => {
                let answer = next.run(request).await;
                tokio::time::sleep(self.delay()).await;
                answer
            }
            Mode::Hang => pending().await,
            Mode::Status => self.answer(),
            Mode::Html => Html("<!doctype html><title>Emporix</title><h1>Down for maintenance</h1>").into_response(),
            Mode::UnauthorizedPlain => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
            Mode::Reset => wire.cut(),
            Mode::LateReset => {
                next.run(request).await;
                wire.cut()
            }
            Mode::HalfBody => send_half(wire, next.run(request).await).await,
            Mode::Gzip => compressed(&body_of(next.run(request).await).await),
            Mode::Garbage => broken(&body_of(next.run(request).await).await),
            Mode::Oversized => padded(&body_of(next.run(request).await).await),
        }
    }

    fn delay(&self) -> Duration {
        let default = if matches!(self.mode, Mode::Delay | Mode::LateAnswer) { DEFAULT_DELAY_MS } else { 0 };
        Duration::from_millis(self.delay_ms.unwrap_or(default))
    }

    fn answer(self) -> Response {
        let status = self.status.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let default = || json!({"code": status.as_u16(), "message": "Simulated fault"});
        let headers: HeaderMap = self.headers.iter().filter_map(parsed_header).collect();
        (status, headers, axum::Json(self.body.unwrap_or_else(default))).into_response()
    }
}

fn parsed_header((name, value): (&String, &String)) -> Option<(HeaderName, HeaderValue)> {
    Some((name.parse().ok()?, value.parse().ok()?))
}

async fn send_half(wire: &Wire, response: Response) -> Response {
    let (status, body) = (response.status(), body_of(response).await);
    let announced = body.len().max(2);
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {announced}\r\n\r\n");
    let sent = [head.as_bytes(), &body[..body.len() / 2]].concat();
    // A client that is gone already has seen even less.
    let _client_gone = wire.send(&sent).await;
    wire.cut()
}

fn compressed(body: &[u8]) -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")], gzip::stored(body))
        .into_response()
}

fn broken(body: &[u8]) -> Response {
    let whole = String::from_utf8_lossy(body);
    let open = whole.trim_end_matches('}');
    ([(header::CONTENT_TYPE, "application/json")], format!("{open},\"truncated\":{{,")).into_response()
}

fn padded(body: &[u8]) -> Response {
    let mut content: Value = serde_json::from_slice(body).unwrap_or_default();
    if !content.is_object() {
        content = json!({});
    }
    content["padding"] = "x".repeat(OVERSIZED).into();
    axum::Json(content).into_response()
}

async fn body_of(response: Response) -> Bytes {
    to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default()
}

fn one_or_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Operation>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "*" => Ok(None),
        name => serde_json::from_value(name.into()).map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(value: Value) -> Fault {
        serde_json::from_value(value).expect("a fault")
    }

    #[test]
    fn a_fault_hits_only_its_operation_and_only_so_often() {
        let mut faults = vec![fault(json!({"operation": "refresh", "mode": "reset", "times": 2}))];

        assert!(take(&mut faults, Operation::Login).is_none());
        assert!(take(&mut faults, Operation::Refresh).is_some());
        assert!(take(&mut faults, Operation::Refresh).is_some());
        assert!(take(&mut faults, Operation::Refresh).is_none());
    }

    #[test]
    fn a_fault_for_all_operations_lasts_until_cleared() {
        let mut faults = vec![fault(json!({"operation": "*", "mode": "hang", "times": null}))];

        assert!((0..9).all(|_| take(&mut faults, Operation::Api).is_some()));
    }
}
