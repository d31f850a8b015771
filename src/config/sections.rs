//! The configuration's shape: one struct per section of the YAML file, with its defaults.
//! The doc comment of a field is its manual; `config/gateway.yaml` shows every key and a test holds the two together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::NamedFile;
use super::routes::RouteRule;
use super::secret::Secret;
use super::service::{InternalSection, ServiceName, ServiceSection};
use super::span::{self, Span};
use super::store::{HotCacheSection, StoreSection};
use super::traces::TracesSection;
use super::version::Version;
use super::webhook::WebhookSection;
use crate::session::TenantId;

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The shape of this file: 1, the one there is.
    pub version: Version,
    /// Addresses to listen on.
    pub listen: ListenSection,
    /// The Emporix API.
    pub upstream: UpstreamSection,
    /// How token calls are made.
    pub identity: IdentitySection,
    /// The tenants that are served, by name.
    pub tenants: BTreeMap<TenantId, TenantSection>,
    /// The browser's cookie.
    pub cookie: CookieSection,
    /// The gateway's own caps on a session's life.
    pub session: SessionSection,
    /// When and how tokens are renewed.
    pub refresh: RefreshSection,
    /// Where sessions live.
    pub store: StoreSection,
    /// Sessions kept in memory, ready to inject.
    pub hot_cache: HotCacheSection,
    /// Sizes and rates.
    pub limits: LimitsSection,
    /// Rules put before the shipped route table.
    pub routes: Vec<RouteRule>,
    /// What is logged, and how.
    pub log: LogSection,
    /// The operators' listener.
    pub admin: AdminSection,
    /// Which requests are traced.
    pub traces: TracesSection,
    /// Verdicts for other proxies.
    pub forward_auth: ForwardAuthSection,
    /// The listener for back-office callers.
    pub internal: InternalSection,
    /// The files that secrets were read from.
    #[serde(skip)]
    pub secret_files: Vec<PathBuf>,
}

impl Config {
    /// The addresses that are listened on, by key.
    pub fn listeners(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        let listeners = [
            ("listen.public", Some(self.listen.public)),
            ("admin.listen", Some(self.admin.listen)),
            ("forward_auth.listen", self.forward_auth.listen),
            ("internal.listen", self.internal.listen),
        ];
        listeners.into_iter().filter_map(|(key, address)| Some((key, address?)))
    }
}

/// Addresses to listen on.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSection {
    /// The storefronts' address.
    pub public: SocketAddr,
    /// Certificate and key of the public address; plain HTTP without.
    pub tls: Option<TlsSection>,
    /// Where a gateway that is started with `--upgrade` takes the listeners over; a socket in a folder of its own.
    pub upgrade_socket: Option<PathBuf>,
    /// Proxy threads.
    #[schemars(range(min = 1))]
    pub threads: usize,
    /// Whether the threads share one scheduler. Without, a connection stays on its thread: less CPU per request.
    pub work_stealing: bool,
    /// Peers whose `X-Forwarded-For` names the client.
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// How long SIGTERM waits for requests in flight.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub drain_timeout: Duration,
}

impl Default for ListenSection {
    fn default() -> Self {
        Self {
            public: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            upgrade_socket: None,
            threads: 2,
            work_stealing: false,
            trusted_proxies: Vec::new(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Certificate and key of a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsSection {
    /// PEM file with the certificate chain.
    pub certificate_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities whose certificates clients have to show; none are asked for without.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
}

/// The Emporix API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSection {
    /// Scheme, host and port of the API; no path.
    pub base_url: String,
    /// Bound on connecting, TLS included.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub connect_timeout: Duration,
    /// Bound on each wait for the API's next bytes, until a response has begun and between its parts.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub read_timeout: Duration,
    /// Bound on each wait for the API to take bytes.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub write_timeout: Duration,
    /// Bound on the silence of a WebSocket or an event stream.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub stream_idle_timeout: Duration,
    /// How long an idle connection is kept.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub keepalive_timeout: Duration,
    /// Idle connections kept.
    pub keepalive_connections: usize,
    /// How often the host name is resolved again.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub resolve_every: Duration,
}

impl Default for UpstreamSection {
    fn default() -> Self {
        Self {
            base_url: "https://api.emporix.io".to_owned(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            stream_idle_timeout: Duration::from_secs(600),
            keepalive_timeout: Duration::from_secs(55),
            keepalive_connections: 512,
            resolve_every: Duration::from_secs(30),
        }
    }
}

/// How token calls are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentitySection {
    /// Bound on one token call, connecting included.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub timeout: Duration,
    /// Which of the session's tokens authorises a customer's refresh.
    pub refresh_authorizer: RefreshAuthorizer,
    /// Attempts at telling Emporix of a logout.
    pub revoke_attempts: u32,
}

impl Default for IdentitySection {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), refresh_authorizer: RefreshAuthorizer::Anonymous, revoke_attempts: 4 }
    }
}

/// Which of the session's tokens authorises a customer's refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshAuthorizer {
    /// The visitor's anonymous token, as the tutorial says.
    Anonymous,
    /// The customer's own access token.
    Customer,
}

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSection {
    /// The public storefront key of the tenant.
    pub client_id: String,
    /// How credentials travel.
    pub transport: TransportMode,
    /// Origins, exactly as browsers send them, that may call the gateway across origins.
    pub origins: Vec<String>,
    /// Host names that stand for this tenant on paths that name none.
    pub hosts: Vec<String>,
    /// The site of shared guest tokens and of visitors minted on demand.
    pub site: SiteSection,
    /// How the tenant's `saas_token` is checked and used.
    pub saas_token: SaasTokenSection,
    /// What happens to Bearer tokens that this gateway did not issue.
    pub foreign_bearer: ForeignBearerSection,
    /// Emporix' events about the tenant's customers.
    pub webhook: WebhookSection,
    /// Client credentials whose tokens back-office callers use, by name.
    pub services: BTreeMap<ServiceName, ServiceSection>,
}

/// How credentials travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransportMode {
    /// A cookie for same-origin browsers, handles for everyone else.
    #[default]
    Auto,
    /// Always a cookie.
    Cookie,
    /// Always handles.
    Handle,
}

/// A visitor's site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SiteSection {
    /// ISO 4217 code.
    pub currency: Option<String>,
    /// Emporix site.
    pub site_code: Option<String>,
    /// Language of answers.
    pub language: Option<String>,
    /// Country code.
    pub target_location: Option<String>,
}

/// How a tenant's `saas_token` is checked and used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SaasTokenSection {
    /// What a `saas_token` is checked against.
    pub mode: SaasTokenMode,
    /// The passphrase of `hs256`; or `secret_file`.
    pub secret: Option<Secret>,
    /// JWKS file of `jwks`.
    pub jwks_file: Option<NamedFile>,
    /// JWKS address of `jwks`.
    pub jwks_url: Option<String>,
    /// Algorithms that are accepted, by mode when empty: HS256; or RS256, ES256 and EdDSA for `jwks`.
    pub algorithms: Vec<SaasAlgorithm>,
    /// Clock difference that is forgiven.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub leeway: Duration,
    /// Whether clients may present the JWT as their credential.
    pub accept: bool,
    /// Whether a login in handle transport by a client that is no browser is answered with the real JWT.
    pub expose: bool,
}

impl Default for SaasTokenSection {
    fn default() -> Self {
        Self {
            mode: SaasTokenMode::default(),
            secret: None,
            jwks_file: None,
            jwks_url: None,
            algorithms: Vec::new(),
            leeway: Duration::from_secs(10),
            accept: false,
            expose: false,
        }
    }
}

/// What a `saas_token` is checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaasTokenMode {
    /// No key is known: shape, algorithm, `exp` and `sub` are checked, the signature is not.
    #[default]
    Structure,
    /// The tenant's passphrase.
    Hs256,
    /// A JSON Web Key Set.
    Jwks,
}

/// A signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SaasAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

/// What happens to Bearer tokens that this gateway did not issue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForeignBearerSection {
    /// Refuse them, or take customers' tokens into sessions while a shop moves over.
    pub mode: ForeignBearerMode,
    /// The last moment of `adopt`, as an RFC 3339 date and time in UTC. While it stands, what was adopted works on, also
    /// past it or with `refuse`.
    #[serde(with = "humantime_serde::option")]
    #[schemars(with = "Option<String>")]
    pub until: Option<SystemTime>,
}

/// What to do with a foreign Bearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForeignBearerMode {
    /// 401.
    #[default]
    Refuse,
    /// Validate once upstream, then keep a session for it.
    Adopt,
}

/// The browser's cookie.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CookieSection {
    /// The cookie's `SameSite`.
    pub same_site: SameSite,
    /// For local work over plain HTTP: no `__Host-` prefix and no `Secure`.
    pub insecure_loopback: bool,
}

/// A cookie's `SameSite` attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    /// Sent on same-site requests and top-level navigation.
    #[default]
    Lax,
    /// Sent on same-site requests only.
    Strict,
    /// Sent on every request: for storefronts on another site.
    None,
}

/// The gateway's own caps on a session's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSection {
    /// An unused visitor session ends after this.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub visitor_idle: Duration,
    /// An unused customer session ends after this.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub customer_idle: Duration,
    /// A session ends this long after sign-in, however busy.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub absolute: Duration,
}

impl Default for SessionSection {
    fn default() -> Self {
        Self { visitor_idle: days(7), customer_idle: days(30), absolute: days(90) }
    }
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

/// When and how tokens are renewed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RefreshSection {
    /// Share of a token's life that is left when renewal is due.
    pub margin: f64,
    /// How long the right to renew a session lasts unless its holder renews it. Longer than `identity.timeout`, so that
    /// a holder that cannot reach the store is not overtaken while Emporix answers; a replica that dies in the middle of
    /// a refresh holds the session's others up for as long.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub lease: Duration,
    /// What reuse of a replaced refresh handle does.
    pub reuse: RefreshReuse,
}

impl Default for RefreshSection {
    fn default() -> Self {
        Self { margin: 0.25, lease: Duration::from_secs(15), reuse: RefreshReuse::Refuse }
    }
}

/// What reuse of a replaced refresh handle does, once its grace is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshReuse {
    /// 401 and an audit event.
    Refuse,
    /// The same, and the session ends.
    EndSession,
}

/// Sizes and rates.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Largest body of a token route, in bytes.
    pub token_body_bytes: usize,
    /// Largest body of an API route, in bytes, where the route names none.
    pub api_body_bytes: u64,
    /// Largest body that is held back so that a request can be repeated, in bytes.
    pub replay_body_bytes: usize,
    /// Largest request head, in bytes.
    pub head_bytes: usize,
    /// Bound on receiving a body that the gateway reads itself.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub body_timeout: Duration,
    /// Sign-ins, sign-ups, resets and exchanges, per client address.
    pub sign_in_per_address: RateSection,
    /// The same, per account.
    pub sign_in_per_account: RateSection,
    /// Visitors minted, per client address.
    pub visitors_per_address: RateSection,
    /// Addresses and accounts remembered.
    pub tracked: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            token_body_bytes: 64 * 1024,
            api_body_bytes: 64 * 1024 * 1024,
            replay_body_bytes: 64 * 1024,
            head_bytes: 32 * 1024,
            body_timeout: Duration::from_secs(15),
            sign_in_per_address: RateSection { burst: 30, per_minute: 30 },
            sign_in_per_account: RateSection { burst: 10, per_minute: 5 },
            visitors_per_address: RateSection { burst: 120, per_minute: 60 },
            tracked: 200_000,
        }
    }
}

/// A rate: so many at once, then so many a minute.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateSection {
    /// At once.
    pub burst: u32,
    /// A minute, from then on.
    pub per_minute: u32,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Form of a line.
    pub format: LogFormat,
    /// Least severe level that is written.
    pub level: LogLevel,
    /// Whether each request is a line.
    pub access: bool,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is off.
    Warn,
    /// What an operator reads.
    #[default]
    Info,
    /// What a developer reads.
    Debug,
}

/// The operators' listener.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Its address.
    pub listen: SocketAddr,
    /// What opens `/admin/sessions`, as a bearer token; or `token_file`. Without, there is no such path.
    pub token: Option<Secret>,
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), token: None }
    }
}

/// The listener that tells other proxies whether their requests may pass to the API, and with which tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardAuthSection {
    /// Its address; without, there is no such listener.
    pub listen: Option<SocketAddr>,
    /// Networks of the proxies that may ask. They are handed real tokens; nobody else is answered.
    #[schemars(with = "Vec<String>")]
    pub trusted_peers: Vec<IpNet>,
    /// Whether browsers get their visitor session here too: only where the proxy hands `Set-Cookie` on to them.
    pub visitors: bool,
}
