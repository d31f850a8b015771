//! What the gateway tells its operators: metrics, declared in one table, and log lines.
//! Every label is an enum, so the number of series is known when the program is compiled.

mod tally;

use std::io;

use prometheus::{Encoder, IntGauge, Opts, Registry, TextEncoder};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

pub use tally::{Census, CounterGrid, Counters, Timers};

use crate::config::{LogFormat, LogLevel, LogSection};

/// The values of one label.
pub trait Label: Copy + 'static {
    /// Every value, in order of [`Label::index`].
    const ALL: &'static [Self];
    /// The value as Prometheus shows it.
    fn text(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($value:ident = $text:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the text of each value says what it is")]
        pub enum $name { $($value),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];
            fn text(self) -> &'static str {
                match self { $(Self::$value => $text),+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// The kind of route a request took.
    RouteClass {
        Guest = "guest", Visitor = "visitor", Customer = "customer", AnonymousLogin = "anonymous_login",
        AnonymousRefresh = "anonymous_refresh", Login = "login", Refresh = "refresh", Logout = "logout",
        Own = "own", Preflight = "preflight", Service = "service", None = "none",
    }
    /// How a request ended.
    Outcome { Success = "success", ClientError = "client_error", ServerError = "server_error", Aborted = "aborted" }
    /// What authentication decided.
    Decision {
        Session = "session", SharedGuest = "shared_guest", Missing = "missing", Dead = "dead",
        Forbidden = "forbidden", Unknowable = "unknowable", Service = "service", Stranger = "stranger",
    }
    /// The ways to sign in.
    Flow { Password = "password", Social = "social", Exchange = "exchange", OptIn = "opt_in" }
    /// How a sign-in ended.
    LoginOutcome { Success = "success", Refused = "refused", Failed = "failed" }
    /// Which half of a session.
    Half { Anonymous = "anonymous", Customer = "customer" }
    /// How a refresh ended.
    RefreshOutcome {
        Renewed = "renewed", Recovered = "recovered", Joined = "joined", Followed = "followed",
        Superseded = "superseded", Rejected = "rejected", Unavailable = "unavailable", Unknown = "unknown",
        Lost = "lost",
    }
    /// What was asked of the store.
    StoreOperation {
        Load = "load", Save = "save", Remove = "remove", Lease = "lease", Index = "index", Walk = "walk", Note = "note",
    }
    /// How it answered.
    StoreOutcome { Success = "success", Conflict = "conflict", Failed = "failed" }
    /// What the hot cache did for a request.
    CacheOutcome { Hit = "hit", Miss = "miss", Revalidated = "revalidated", Grace = "grace" }
    /// What happened to a session.
    SessionEvent {
        VisitorBorn = "visitor_born", CustomerSignedIn = "customer_signed_in", CustomerAdopted = "customer_adopted",
        LoggedOut = "logged_out", RevokedElsewhere = "revoked_elsewhere", CustomerLost = "customer_lost",
        RefreshReused = "refresh_reused", RevokedByOperator = "revoked_by_operator",
    }
    /// A call of Emporix' token endpoints.
    EmporixCall {
        AnonymousLogin = "anonymous_login", AnonymousRefresh = "anonymous_refresh", Login = "login",
        SocialLogin = "social_login", Exchange = "exchange", OptIn = "opt_in", Refresh = "refresh", Revoke = "revoke",
        Introspect = "introspect", Service = "service",
    }
    /// How it ended.
    CallOutcome { Success = "success", Refused = "refused", Unavailable = "unavailable", Unknown = "unknown" }
    /// Why a call of Emporix was not needed.
    Saved {
        AnonymousReused = "anonymous_reused", RefreshNotDue = "refresh_not_due", RefreshJoined = "refresh_joined",
        GuestShared = "guest_shared",
    }
    /// What a breaker stands in front of.
    Dependency {
        Store = "store", AnonymousLogin = "anonymous_login", AnonymousRefresh = "anonymous_refresh", Login = "login",
        SocialLogin = "social_login", Exchange = "exchange", OptIn = "opt_in", Refresh = "refresh", Revoke = "revoke", Introspect = "introspect",
        Service = "service",
    }
    /// What a breaker did.
    BreakerEvent { Opened = "opened", Closed = "closed", Refused = "refused" }
    /// Whether a replica of Redis had a write in time.
    Replication { Acknowledged = "acknowledged", Late = "late" }
    /// How a replica came to know that a session ended elsewhere.
    RevocationPath { Message = "message", Revalidation = "revalidation" }
    /// Whose way of asking for a verdict.
    Dialect { Nginx = "nginx", Traefik = "traefik", Envoy = "envoy", Haproxy = "haproxy" }
    /// What a proxy was told.
    Verdict { Pass = "pass", Refused = "refused", Unknowable = "unknowable" }
    /// What became of a configuration that was read again.
    Reloaded { Applied = "applied", Refused = "refused" }
    /// Which rate was exceeded.
    Limited { Address = "address", Account = "account", Visitors = "visitors" }
    /// An event that Emporix delivered; `other` where it names none of these, or is not believed.
    WebhookEvent {
        Created = "customer.created", Updated = "customer.updated", Deleted = "customer.deleted",
        PasswordReset = "customer.password-reset", EmailChange = "customer.email-change",
        EmailChangeRequest = "customer.email-change-request", Other = "other",
    }
    /// What became of it.
    WebhookOutcome {
        Revoked = "revoked", Noted = "noted", Ignored = "ignored", Repeated = "repeated", Refused = "refused",
        Failed = "failed",
    }
}

impl EmporixCall {
    /// Whether it signs somebody in.
    #[must_use]
    pub const fn signs_in(self) -> bool {
        matches!(self, Self::Login | Self::SocialLogin | Self::Exchange | Self::OptIn)
    }
}

/// Every metric of the gateway.
pub struct Metrics {
    registry: Registry,
    /// Requests that ended.
    pub requests: CounterGrid<RouteClass, Outcome>,
    /// Their duration.
    pub request_seconds: Timers<RouteClass>,
    /// Time until the API's response head.
    pub upstream_seconds: Timers<RouteClass>,
    /// Verdicts on other proxies' requests.
    pub verdicts: CounterGrid<Dialect, Verdict>,
    /// Their duration.
    pub verdict_seconds: Timers<Dialect>,
    /// What authentication decided.
    pub auth: Counters<Decision>,
    /// Sign-ins.
    pub logins: CounterGrid<Flow, LoginOutcome>,
    /// Refreshes.
    pub refreshes: CounterGrid<Half, RefreshOutcome>,
    /// Store operations.
    pub store: CounterGrid<StoreOperation, StoreOutcome>,
    /// Their duration.
    pub store_seconds: Timers<StoreOperation>,
    /// Hot-cache lookups.
    pub hot_cache: Counters<CacheOutcome>,
    /// What happened to sessions.
    pub sessions: Counters<SessionEvent>,
    /// Calls of Emporix' token endpoints.
    pub emporix_calls: CounterGrid<EmporixCall, CallOutcome>,
    /// Their duration.
    pub emporix_seconds: Timers<EmporixCall>,
    /// Calls that were not needed.
    pub emporix_saved: Counters<Saved>,
    /// What the breakers did.
    pub breakers: CounterGrid<Dependency, BreakerEvent>,
    /// Writes that waited for a replica of Redis.
    pub replication: Counters<Replication>,
    /// From the end of a session elsewhere until it is refused here.
    pub revocation_seconds: Timers<RevocationPath>,
    /// Configurations that were read again.
    pub reloads: Counters<Reloaded>,
    /// Whether the newest one could not be used.
    pub configuration_refused: IntGauge,
    /// Requests refused for their rate.
    pub rate_limited: Counters<Limited>,
    /// Events that Emporix delivered.
    pub webhooks: CounterGrid<WebhookEvent, WebhookOutcome>,
    /// Event streams and WebSockets that are open.
    pub open_streams: IntGauge,
    /// Sessions in the hot cache.
    pub hot_cache_sessions: IntGauge,
    /// Their estimated memory.
    pub hot_cache_bytes: IntGauge,
}

impl Metrics {
    /// Declares every metric.
    ///
    /// # Errors
    /// When two metrics bear one name: a fault of this table.
    pub fn new() -> prometheus::Result<Self> {
        let r = Registry::new();
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            r.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        register_build_info(&r)?;
        Ok(Self {
            requests: CounterGrid::register(
                &r,
                "gateway_requests_total",
                "Requests that ended.",
                ["route", "outcome"],
            )?,
            request_seconds: Timers::register(&r, "gateway_request_seconds", "Duration of requests.", "route")?,
            upstream_seconds: Timers::register(
                &r,
                "gateway_upstream_seconds",
                "Time until the API's response head.",
                "route",
            )?,
            verdicts: CounterGrid::register(
                &r,
                "gateway_verdicts_total",
                "Verdicts on other proxies' requests.",
                ["dialect", "verdict"],
            )?,
            verdict_seconds: Timers::register(&r, "gateway_verdict_seconds", "Duration of verdicts.", "dialect")?,
            auth: Counters::register(&r, "gateway_auth_total", "What authentication decided.", "decision")?,
            logins: CounterGrid::register(&r, "gateway_logins_total", "Sign-ins.", ["flow", "outcome"])?,
            refreshes: CounterGrid::register(&r, "gateway_refreshes_total", "Token refreshes.", ["half", "outcome"])?,
            store: CounterGrid::register(
                &r,
                "gateway_store_operations_total",
                "Store operations.",
                ["operation", "outcome"],
            )?,
            store_seconds: Timers::register(&r, "gateway_store_seconds", "Duration of store operations.", "operation")?,
            hot_cache: Counters::register(&r, "gateway_hot_cache_total", "Hot-cache lookups.", "outcome")?,
            sessions: Counters::register(&r, "gateway_sessions_total", "What happened to sessions.", "event")?,
            emporix_calls: CounterGrid::register(
                &r,
                "gateway_emporix_calls_total",
                "Calls of Emporix' token endpoints.",
                ["operation", "outcome"],
            )?,
            emporix_seconds: Timers::register(&r, "gateway_emporix_seconds", "Duration of those calls.", "operation")?,
            emporix_saved: Counters::register(
                &r,
                "gateway_emporix_calls_saved_total",
                "Token calls that were not needed.",
                "reason",
            )?,
            breakers: CounterGrid::register(
                &r,
                "gateway_breaker_events_total",
                "What the breakers in front of Redis and Emporix' token endpoints did.",
                ["dependency", "event"],
            )?,
            replication: Counters::register(
                &r,
                "gateway_store_replication_total",
                "Writes that waited for a replica of Redis.",
                "outcome",
            )?,
            revocation_seconds: Timers::register(
                &r,
                "gateway_revocation_seconds",
                "From the end of a session elsewhere until it is refused here.",
                "path",
            )?,
            reloads: Counters::register(
                &r,
                "gateway_config_reloads_total",
                "Configurations that were read again.",
                "outcome",
            )?,
            configuration_refused: gauge(
                "gateway_config_refused",
                "1 while the newest configuration could not be used and an older one holds.",
            )?,
            rate_limited: Counters::register(
                &r,
                "gateway_rate_limited_total",
                "Requests refused for their rate.",
                "limit",
            )?,
            webhooks: CounterGrid::register(
                &r,
                "gateway_webhooks_total",
                "Events that Emporix delivered.",
                ["event", "outcome"],
            )?,
            open_streams: gauge("gateway_open_streams", "Event streams and WebSockets that are open.")?,
            hot_cache_sessions: gauge("gateway_hot_cache_sessions", "Sessions in the hot cache.")?,
            hot_cache_bytes: gauge("gateway_hot_cache_bytes", "Their estimated memory.")?,
            registry: r,
        })
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        text
    }
}

fn register_build_info(registry: &Registry) -> prometheus::Result<()> {
    let build = Opts::new("gateway_build_info", "1, labelled with the build.")
        .const_label("version", env!("CARGO_PKG_VERSION"));
    let build = IntGauge::with_opts(build)?;
    build.set(1);
    registry.register(Box::new(build))
}

/// What changes the level of a log that was started.
pub struct LogLevels(reload::Handle<EnvFilter, Registered>);

type Registered = tracing_subscriber::Registry;

impl LogLevels {
    /// Logs at `level` from now on.
    pub fn set(&self, level: LogLevel) {
        // The log lives as long as the process.
        let _ = filter(level).map(|filter| self.0.reload(filter));
    }
}

/// Libraries that may log a URL or a header are held at levels that do not.
fn filter(level: LogLevel) -> io::Result<EnvFilter> {
    const SILENCED: &str = "pingora_core=error,h2=off,hyper=off,hyper_util=off,reqwest=off,rustls=error,redis=error";
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    EnvFilter::try_new(format!("{level},{SILENCED}")).map_err(io::Error::other)
}

/// Starts logging to `writer`.
///
/// # Errors
/// When the process logs already.
pub fn start_logging<W>(section: &LogSection, writer: W) -> io::Result<LogLevels>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, levels) = reload::Layer::new(filter(section.level)?);
    let layer = match section.format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(io::Error::other)?;
    Ok(LogLevels(levels))
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
