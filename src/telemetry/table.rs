//! Every metric of the gateway, in one table. What it says of a metric is its help in `/metrics` and in docs/METRICS.md.

use std::time::Duration;

use prometheus::proto::MetricFamily;
use prometheus::{Encoder, IntGauge, Opts, Registry, TextEncoder};

use super::labels::{
    BreakerEvent, CacheOutcome, CallOutcome, Certified, Decision, Dependency, Dialect, EmporixCall, Flow, Half,
    Limited, LoginOutcome, Outcome, RefreshOutcome, Reloaded, Replication, RevocationPath, RouteClass, Saved,
    SessionEvent, SpanOutcome, StoreOperation, StoreOutcome, Verdict, WebhookEvent, WebhookOutcome,
};
use super::openmetrics::openmetrics;
use super::process::Process;
use super::strangers::FailedHandshakes;
use super::tally::{CounterGrid, Counters, Gauges, Kind, Timers};
use super::trace::Context;

macro_rules! table {
    ($(#[doc = $help:literal] $field:ident: $kind:ty = $name:literal $([$($label:literal),+])?;)+) => {
        /// Every metric of the gateway.
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind),+
        }

        impl Metrics {
            /// Declares every metric.
            ///
            /// # Errors
            /// When two metrics bear one name: a fault of this table.
            pub fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                register_build_info(&registry)?;
                registry.register(Box::new(Process::new()?))?;
                Ok(Self {
                    $($field: Kind::register(&registry, ($name, $help.trim_ascii_start()), &[$($($label),+)?])?,)+
                    registry,
                })
            }
        }
    };
}

table! {
    /// Requests that ended.
    requests: CounterGrid<RouteClass, Outcome> = "gateway_requests_total" ["route", "outcome"];
    /// Duration of requests; of a stream, until it began.
    request_seconds: Timers<RouteClass> = "gateway_request_seconds" ["route"];
    /// Time until the API's response head.
    upstream_seconds: Timers<RouteClass> = "gateway_upstream_seconds" ["route"];
    /// Verdicts on other proxies' requests.
    verdicts: CounterGrid<Dialect, Verdict> = "gateway_verdicts_total" ["dialect", "verdict"];
    /// Duration of verdicts.
    verdict_seconds: Timers<Dialect> = "gateway_verdict_seconds" ["dialect"];
    /// What authentication decided.
    auth: Counters<Decision> = "gateway_auth_total" ["decision"];
    /// Sign-ins.
    logins: CounterGrid<Flow, LoginOutcome> = "gateway_logins_total" ["flow", "outcome"];
    /// Token refreshes.
    refreshes: CounterGrid<Half, RefreshOutcome> = "gateway_refreshes_total" ["half", "outcome"];
    /// Store operations.
    store: CounterGrid<StoreOperation, StoreOutcome> = "gateway_store_operations_total" ["operation", "outcome"];
    /// Duration of store operations.
    store_seconds: Timers<StoreOperation> = "gateway_store_seconds" ["operation"];
    /// Hot-cache lookups.
    hot_cache: Counters<CacheOutcome> = "gateway_hot_cache_total" ["outcome"];
    /// What happened to sessions.
    sessions: Counters<SessionEvent> = "gateway_sessions_total" ["event"];
    /// Calls of Emporix' token endpoints.
    emporix_calls: CounterGrid<EmporixCall, CallOutcome> = "gateway_emporix_calls_total" ["operation", "outcome"];
    /// Duration of calls of Emporix' token endpoints.
    emporix_seconds: Timers<EmporixCall> = "gateway_emporix_seconds" ["operation"];
    /// Token calls that were not needed.
    emporix_saved: Counters<Saved> = "gateway_emporix_calls_saved_total" ["reason"];
    /// What the breakers in front of Redis and Emporix' token endpoints did.
    breakers: CounterGrid<Dependency, BreakerEvent> = "gateway_breaker_events_total" ["dependency", "event"];
    /// Breakers that hold calls back at this moment.
    breakers_open: Gauges<Dependency> = "gateway_breakers_open" ["dependency"];
    /// Writes that waited for a replica of Redis.
    replication: Counters<Replication> = "gateway_store_replication_total" ["outcome"];
    /// From the end of a session elsewhere, by the clock there, until it is refused here; 0 where that clock is ahead.
    revocation_seconds: Timers<RevocationPath> = "gateway_revocation_seconds" ["path"];
    /// Configurations that were read again.
    reloads: Counters<Reloaded> = "gateway_config_reloads_total" ["outcome"];
    /// 1 while the newest configuration could not be used and an older one holds.
    configuration_refused: IntGauge = "gateway_config_refused";
    /// When the certificate that a listener shows ends, in seconds since 1970; 0 where it has none.
    certificate_expires: Gauges<Certified> = "gateway_certificate_expires_timestamp_seconds" ["listener"];
    /// TLS and HTTP/2 handshakes that failed: of scanners, of health checks, of who refuses the certificate.
    handshakes_failed: FailedHandshakes = "gateway_handshakes_failed_total";
    /// Requests refused for their rate.
    rate_limited: Counters<Limited> = "gateway_rate_limited_total" ["limit"];
    /// Events that Emporix delivered.
    webhooks: CounterGrid<WebhookEvent, WebhookOutcome> = "gateway_webhooks_total" ["event", "outcome"];
    /// Spans that ended, by whether the collector took them; dropped: too many were waiting.
    spans: Counters<SpanOutcome> = "gateway_spans_total" ["outcome"];
    /// 1 while the process lets its last requests end and takes no more.
    draining: IntGauge = "gateway_draining";
    /// 1 while the session store answers.
    store_reachable: IntGauge = "gateway_store_reachable";
    /// 1 while the ends of sessions on other replicas are heard.
    hears_invalidations: IntGauge = "gateway_hears_invalidations";
    /// Event streams and WebSockets that are open.
    open_streams: IntGauge = "gateway_open_streams";
    /// Sessions in the hot cache.
    hot_cache_sessions: IntGauge = "gateway_hot_cache_sessions";
    /// Estimated memory of the hot cache.
    hot_cache_bytes: IntGauge = "gateway_hot_cache_bytes";
}

impl Metrics {
    /// Counts a request that ended at a place in a trace, where it is traced.
    pub fn finished(&self, place: Option<&Context>, route: RouteClass, outcome: Outcome, served_in: Duration) {
        self.requests.count(route, outcome);
        self.request_seconds.record_at(place, route, served_in);
    }

    /// Every family of series, as it stands now.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.families(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        text
    }

    /// All metrics in OpenMetrics' text format: the same, and exemplars beside the durations that have some.
    #[must_use]
    pub fn render_openmetrics(&self) -> Vec<u8> {
        let exemplars = self.request_seconds.exemplars().chain(self.emporix_seconds.exemplars()).collect();
        openmetrics(&String::from_utf8_lossy(&self.render()), &exemplars).into_bytes()
    }
}

fn register_build_info(registry: &Registry) -> prometheus::Result<()> {
    let build = Opts::new("gateway_build_info", "1, labelled with the build.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_from_the_start() {
        let metrics = Metrics::new().unwrap();
        metrics.requests.count(RouteClass::Login, Outcome::ClientError);
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains(r#"gateway_requests_total{outcome="client_error",route="login"} 1"#), "{text}");
        assert!(text.contains("gateway_build_info{version="));
        assert!(text.contains("gateway_refreshes_total"));
    }
}
