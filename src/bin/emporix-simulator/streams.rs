//! Long-lived answers: server-sent events and a WebSocket echo.
//! Events are written past the HTTP library, chunk by chunk, so each leaves the moment it is due.

use std::{future::pending, io, time::Duration};

use axum::{
    extract::{
        ConnectInfo, Query, Request,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};

use crate::{
    caller::{Caller, Params},
    commerce::drain,
    wire::Wire,
};

/// The time between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);
/// How many events are sent if the query does not say.
const DEFAULT_EVENTS: u64 = 5;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    connection: close\r\ntransfer-encoding: chunked\r\n\r\n";
const END: &str = "0\r\n\r\n";

/// `/ai-service/{tenant}/agentic/chat-stream`: counts to `events`; with `events=0` says one word and falls silent.
pub(crate) async fn events(
    _caller: Caller,
    ConnectInfo(wire): ConnectInfo<Wire>,
    Query(params): Params,
    request: Request,
) -> Response {
    drain(request.into_body()).await;
    let count = params.get("events").and_then(|count| count.parse().ok()).unwrap_or(DEFAULT_EVENTS);
    // A client that left early is not an error.
    let _client_gone = tell(&wire, count).await;
    wire.cut()
}

async fn tell(wire: &Wire, count: u64) -> io::Result<()> {
    wire.send(HEAD.as_bytes()).await?;
    for number in 1..=count.max(1) {
        let event = format!("data: {{\"n\":{number}}}\n\n");
        wire.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        if count == 0 {
            pending::<()>().await;
        }
        tokio::time::sleep(EVENT_INTERVAL).await;
    }
    wire.send(END.as_bytes()).await
}

/// `/ai-service/{tenant}/agentic/socket`: says back what it hears.
pub(crate) async fn socket(_caller: Caller, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(echo)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}
