//! The door every simulated call passes: it is counted, written down as received, and perhaps sabotaged.
//! Uploads and streams are written down without their body, which only their handler reads.

use axum::{
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::{caller::Sim, faults, operation::Operation, simulator::World, wire::Wire};

/// How many requests are remembered.
const REMEMBERED: usize = 1000;
/// How much of a body is remembered.
const BODY_SHOWN: usize = 4096;
/// The largest body that is buffered at all.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// A request as it arrived.
#[derive(Clone, Serialize)]
pub(crate) struct Received {
    operation: Operation,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    /// The client's port: requests over one connection share it.
    port: Option<u16>,
}

/// Counts and records the request, then lets a fault act or the request pass.
pub(crate) async fn receive(
    State(simulator): Sim,
    ConnectInfo(wire): ConnectInfo<Wire>,
    request: Request,
    next: Next,
) -> Response {
    let operation = Operation::of(request.method(), request.uri().path());
    let fault = {
        let mut world = simulator.world();
        *world.calls.entry(operation).or_default() += 1;
        faults::take(&mut world.faults, operation)
    };
    let received = Received { port: wire.port(), ..Received::of(operation, &request) };
    let Ok((request, body)) = buffered(request).await else {
        simulator.world().remember(received);
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    simulator.world().remember(Received { body: shown(&body), ..received });
    match fault {
        Some(fault) => fault.act(&wire, request, next).await,
        None => next.run(request).await,
    }
}

impl Received {
    fn of(operation: Operation, request: &Request) -> Self {
        Self {
            operation,
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: listed(request.headers()),
            body: String::new(),
            port: None,
        }
    }
}

impl World {
    fn remember(&mut self, received: Received) {
        self.requests.push_back(received);
        if self.requests.len() > REMEMBERED {
            self.requests.pop_front();
        }
    }
}

async fn buffered(request: Request) -> Result<(Request, Bytes), axum::Error> {
    if streams(request.uri().path()) {
        return Ok((request, Bytes::new()));
    }
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT).await?;
    Ok((Request::from_parts(parts, Body::from(body.clone())), body))
}

fn streams(path: &str) -> bool {
    path.starts_with("/media/") || path.ends_with("/agentic/chat-stream") || path.ends_with("/agentic/socket")
}

fn listed(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// The start of the body, cut between characters.
fn shown(body: &[u8]) -> String {
    let head = &body[..body.len().min(BODY_SHOWN)];
    match str::from_utf8(head) {
        Err(cut) if cut.error_len().is_none() => String::from_utf8_lossy(&head[..cut.valid_up_to()]).into_owned(),
        _ => String::from_utf8_lossy(head).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_body_is_cut_between_characters() {
        let body = format!("a{}", "é".repeat(BODY_SHOWN));

        let shown = shown(body.as_bytes());

        assert_eq!(shown.len(), BODY_SHOWN - 1);
        assert!(body.starts_with(&shown));
    }
}
