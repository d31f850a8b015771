//! The operators' listener: liveness, readiness, start-up, metrics, and sessions to those who hold the admin token.
//! Nothing of it answers on the public listener.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::header::{ACCEPT, HeaderMap};
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::listener::{kept, takes_own_head};
use super::operator::Sessions;
use super::respond::Answer;
use crate::broker::Broker;
use crate::config::Secret;
use crate::error::GatewayError;
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin listener's application.
#[derive(Clone)]
pub struct Admin {
    broker: Arc<Broker>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
    sessions: Arc<ArcSwapOption<Sessions>>,
}

impl Admin {
    /// An admin listener; `draining` makes it say that no more requests should come. It tells of sessions only to who
    /// holds `token`.
    #[must_use]
    pub fn new(broker: Arc<Broker>, metrics: Arc<Metrics>, draining: Arc<AtomicBool>, token: Option<&Secret>) -> Self {
        let admin = Self { broker, metrics, draining, sessions: Arc::default() };
        admin.take_token(token);
        admin
    }

    /// Opens to another token from now on, or to none.
    pub fn take_token(&self, token: Option<&Secret>) {
        self.sessions.store(token.map(|token| Arc::new(Sessions::new(self.broker.clone(), token))));
    }

    async fn answer(&self, http: &mut ServerSession) -> Answer {
        const MOST_HEAD_BYTES: usize = 32 * 1024;
        let head = http.req_header();
        let size: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > MOST_HEAD_BYTES {
            return Answer::problem(&GatewayError::HeadTooLarge);
        }
        if head.uri.path().starts_with("/admin/") {
            return match self.sessions.load_full() {
                Some(sessions) => sessions.answer(http).await,
                None => Answer::problem(&GatewayError::UnknownRoute),
            };
        }
        match (head.method.as_str(), head.uri.path()) {
            ("GET" | "HEAD", "/livez" | "/startupz" | "/healthz") => said(200, "ok"),
            ("GET" | "HEAD", "/readyz") => match (self.draining.load(Ordering::Acquire), self.broker.ready().await) {
                (true, _) => said(503, "draining"),
                (false, Err(_)) => said(503, "the session store does not answer"),
                (false, Ok(())) => said(200, "ok"),
            },
            ("GET" | "HEAD", "/metrics") => {
                self.metrics.draining.set(self.draining.load(Ordering::Acquire).into());
                self.broker.report().await;
                if prefers_openmetrics(&http.req_header().headers) {
                    Answer::text(200, OPENMETRICS, self.metrics.render_openmetrics())
                } else {
                    Answer::text(200, "text/plain; version=0.0.4", self.metrics.render())
                }
            }
            ("GET" | "HEAD", _) => Answer::problem(&GatewayError::UnknownRoute),
            _ => Answer::problem(&GatewayError::MethodNotAllowed),
        }
    }
}

/// Whether OpenMetrics is asked for by name, and liked at least as well as Prometheus' own text.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let (mut openmetrics, mut plain) = (0.0_f32, 0.0_f32);
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: HashMap<&str, &str> = parts.filter_map(|parameter| parameter.split_once('=')).collect();
        let quality = parameters.get("q").map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
        let speaks_ours = parameters.get("version").is_none_or(|version| *version == "1.0.0");
        match media.to_ascii_lowercase().as_str() {
            "application/openmetrics-text" if speaks_ours => openmetrics = openmetrics.max(quality),
            "text/plain" => plain = plain.max(quality),
            _ => {}
        }
    }
    openmetrics > 0.0 && openmetrics >= plain
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
        if !takes_own_head(&mut http).await {
            return None;
        }
        http.set_keepalive(Some(60));
        let answer = self.answer(&mut http).await;
        answer.write(&mut http).await.ok()?;
        kept(http).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_who_names_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, true),
            ("Application/OpenMetrics-Text", true),
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", true),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.2", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=much", false),
            ("application/openmetrics-text;version=0.0.1", false),
            ("*/*", false),
            ("text/plain", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(prefers_openmetrics(&headers), expected, "{accept}");
        }
        assert!(!prefers_openmetrics(&HeaderMap::new()));
    }
}
