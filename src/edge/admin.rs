//! The operators' listener: liveness, readiness, start-up, metrics.
//! Nothing of it answers on the public listener, and it shows no session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::respond::Answer;
use crate::broker::Broker;
use crate::error::GatewayError;
use crate::telemetry::Metrics;

/// The admin listener's application.
#[derive(Clone)]
pub struct Admin {
    broker: Arc<Broker>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
}

impl Admin {
    /// An admin listener; `draining` makes it say that no more requests should come.
    #[must_use]
    pub const fn new(broker: Arc<Broker>, metrics: Arc<Metrics>, draining: Arc<AtomicBool>) -> Self {
        Self { broker, metrics, draining }
    }

    async fn answer(&self, method: &str, path: &str) -> Answer {
        match (method, path) {
            ("GET" | "HEAD", "/livez" | "/startupz" | "/healthz") => said(200, "ok"),
            ("GET" | "HEAD", "/readyz") => match (self.draining.load(Ordering::Acquire), self.broker.ready().await) {
                (true, _) => said(503, "draining"),
                (false, Err(_)) => said(503, "the session store does not answer"),
                (false, Ok(())) => said(200, "ok"),
            },
            ("GET" | "HEAD", "/metrics") => {
                self.broker.report_size();
                Answer::text(200, "text/plain; version=0.0.4", self.metrics.render())
            }
            ("GET" | "HEAD", _) => Answer::problem(&GatewayError::UnknownRoute),
            _ => Answer::problem(&GatewayError::MethodNotAllowed),
        }
    }
}

fn said(status: u16, word: &str) -> Answer {
    Answer::text(status, "text/plain", format!("{word}\n").into_bytes())
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
        if !matches!(tokio::time::timeout(HEAD_TIMEOUT, http.read_request()).await, Ok(Ok(true))) {
            return None;
        }
        http.set_keepalive(Some(60));
        http.set_total_drain_timeout(Some(Duration::from_secs(2)));
        let head = http.req_header();
        let answer = self.answer(head.method.as_str(), head.uri.path()).await;
        answer.write(&mut http).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&http);
        let stream = http.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}
