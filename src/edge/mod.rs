//! HTTP in and out, and the only room that knows Pingora.
//! Each request is parsed once, sent its way, and ends in one place: an answer, a relayed response, or a problem.

pub mod admin;
mod api;
mod forward;
mod headers;
mod limits;
mod own;
mod proof;
mod respond;
mod route;
mod slots;
mod target;
mod token_routes;
mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::header::{HOST, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Method};
use ipnet::IpNet;
use pingora::ErrorType;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use crate::broker::{Broker, Credential};
use crate::clock::Clock;
use crate::config::{Config, LimitsSection, TenantSection, TransportMode};
use crate::error::GatewayError;
use crate::session::{TenantId, Transport};
use crate::telemetry::{Metrics, Outcome, RouteClass};
use limits::Limits;
use respond::{Answer, Cookies};
use route::{Found, Route, RouteTable};
use slots::Presented;
use target::Target;
use upstream::Upstream;

/// How long an idle connection is kept, in seconds.
const KEEPALIVE_SECONDS: u64 = 60;

/// Bound on idling and sending a request's head together: a client that trickles its head is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(KEEPALIVE_SECONDS + 15);

/// The names of tenants, as the edge needs them.
struct EdgeTenant {
    transport: TransportMode,
    origins: Vec<String>,
}

impl EdgeTenant {
    /// How the credentials of a session travel that this request creates.
    fn transport_at_birth(&self, headers: &HeaderMap) -> Transport {
        match self.transport {
            TransportMode::Cookie => Transport::Cookie,
            TransportMode::Auto if proof::is_same_origin(headers) => Transport::Cookie,
            TransportMode::Auto | TransportMode::Handle => Transport::Handle,
        }
    }
}

/// The public listener's application.
pub struct Gateway {
    broker: Arc<Broker>,
    routes: RouteTable,
    upstream: Upstream,
    limits: Limits,
    limits_section: LimitsSection,
    cookies: Cookies,
    tenants: HashMap<TenantId, EdgeTenant>,
    hosts: HashMap<String, TenantId>,
    trusted_proxies: Vec<IpNet>,
    log_access: bool,
    metrics: Arc<Metrics>,
    options: HttpServerOptions,
    under_way: AtomicUsize,
    draining: AtomicBool,
}

/// How a request ended that got its answer, or part of one.
enum Ended {
    /// The answer was written as a whole.
    Complete,
    /// It broke off, or the connection is no longer HTTP: nothing more can be said on it.
    Aborted,
}

/// What is known of a request when it ends.
struct Visit {
    class: RouteClass,
    tenant: Option<TenantId>,
    /// Whether the cookie is the credential, and so what a session that is gone expires.
    by_cookie: bool,
    cors: Vec<(HeaderName, HeaderValue)>,
}

impl Gateway {
    /// The gateway that `config` describes.
    ///
    /// # Errors
    /// What of the configuration cannot be used.
    pub fn new(
        config: &Config,
        broker: Arc<Broker>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let tenant =
            |section: &TenantSection| EdgeTenant { transport: section.transport, origins: section.origins.clone() };
        let hosts = config
            .tenants
            .iter()
            .flat_map(|(id, section)| section.hosts.iter().map(move |host| (host.clone(), id.clone())));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(Duration::from_secs(2 * KEEPALIVE_SECONDS));
        options.keepalive_request_limit = Some(10_000);
        Ok(Self {
            broker,
            routes: RouteTable::new(&config.routes)?,
            upstream: Upstream::new(&config.upstream).ok_or("upstream.base_url cannot be used")?,
            limits: Limits::new(&config.limits, clock, metrics.clone()).map_err(|error| error.to_string())?,
            limits_section: config.limits.clone(),
            cookies: Cookies::new(&config.cookie),
            tenants: config.tenants.iter().map(|(id, section)| (id.clone(), tenant(section))).collect(),
            hosts: hosts.collect(),
            trusted_proxies: config.listen.trusted_proxies.clone(),
            log_access: config.log.access,
            metrics,
            options,
            under_way: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        })
    }

    /// What of a configuration only this room can judge.
    ///
    /// # Errors
    /// What is wrong with its routes.
    pub fn check(config: &Config) -> Result<(), String> {
        RouteTable::new(&config.routes).map(|_| ())
    }

    /// The application of the public listener.
    #[must_use]
    pub fn listener(self: &Arc<Self>) -> PublicListener {
        PublicListener(self.clone())
    }

    /// Keeps the API's name resolved; runs until dropped.
    pub async fn keep_resolved(&self) {
        self.upstream.keep_resolved().await;
    }

    /// Resolves the API's name once.
    pub async fn resolve(&self) {
        self.upstream.resolve().await;
    }

    /// From now on every answer closes its connection.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// The way of one request.
    async fn request_filter(&self, http: &mut ServerSession, visit: &mut Visit) -> Result<Ended, GatewayError> {
        let head = http.req_header();
        self.check_size(&head.headers)?;
        let raw = head.raw_path().to_vec();
        let target = Target::parse(&raw)?;
        let found = self.routes.find(head.method.as_str(), target.path);
        visit.tenant = self.tenant_of(&found, &target, head)?;
        if let Some(answer) = self.cross_origin(visit, head) {
            return self.answer(http, answer).await;
        }
        match found.route {
            Route::Token(route) => {
                visit.class = route.class();
                let answer = self.token_route(http, *route, &target, found.token, visit).await?;
                self.answer(http, answer.with_all(std::mem::take(&mut visit.cors))).await
            }
            Route::Own(route) => {
                visit.class = RouteClass::Own;
                let answer = self.own_route(http, *route, &target, visit).await?;
                self.answer(http, answer.with_all(std::mem::take(&mut visit.cors))).await
            }
            Route::Api(route) => {
                visit.class = route.class();
                self.api_request(http, route, &target, visit).await
            }
            Route::Closed if found.wrong_method => Err(GatewayError::MethodNotAllowed),
            Route::Closed => Err(GatewayError::Denied),
        }
    }

    fn check_size(&self, headers: &HeaderMap) -> Result<(), GatewayError> {
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if size > self.limits_section.head_bytes { Err(GatewayError::HeadTooLarge) } else { Ok(()) }
    }

    /// The tenant that the request names: in its path, in the query of the anonymous routes, in `Emporix-Tenant`, by
    /// its host. Names that contradict each other are refused; without one, the session decides.
    fn tenant_of(
        &self,
        found: &Found<'_, '_>,
        target: &Target<'_>,
        head: &pingora::http::RequestHeader,
    ) -> Result<Option<TenantId>, GatewayError> {
        let in_query = match found.route {
            Route::Token(route::TokenRoute::AnonymousLogin | route::TokenRoute::AnonymousRefresh) => {
                let named = target.parameters().find(|(name, _)| name == "tenant" || name == "hybris-tenant");
                Some(named.ok_or(GatewayError::BadRequest("tenant is missing"))?.1)
            }
            _ => None,
        };
        let in_path = found.tenant.or(in_query.as_deref());
        let named = in_path.map(|name| self.known_tenant(name)).transpose()?;
        let in_header = match head.headers.get("emporix-tenant") {
            Some(value) => Some(self.known_tenant(value.to_str().unwrap_or_default())?),
            None => None,
        };
        match (named, in_header) {
            (Some(named), Some(other)) if named != other => Err(GatewayError::TenantMismatch),
            (Some(tenant), _) | (None, Some(tenant)) => Ok(Some(tenant)),
            (None, None) => Ok(self.tenant_of_host(head)),
        }
    }

    fn known_tenant(&self, name: &str) -> Result<TenantId, GatewayError> {
        self.tenants.get_key_value(name).map(|(id, _)| id.clone()).ok_or(GatewayError::UnknownTenant)
    }

    fn tenant_of_host(&self, head: &pingora::http::RequestHeader) -> Option<TenantId> {
        if self.tenants.len() == 1 {
            return self.tenants.keys().next().cloned();
        }
        let authority = match head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => head.headers.get(HOST)?.to_str().ok()?,
        };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        self.hosts.get(&host.to_ascii_lowercase()).cloned()
    }

    /// Notes what the answer owes a page of another origin, and answers its preflight before any lookup.
    fn cross_origin(&self, visit: &mut Visit, head: &pingora::http::RequestHeader) -> Option<Answer> {
        let origins = self.origins(visit.tenant.as_ref());
        let preflight = proof::is_preflight(&head.method, &head.headers);
        visit.cors = proof::cors(&head.headers, origins, preflight);
        if !preflight || visit.cors.is_empty() {
            return None;
        }
        visit.class = RouteClass::Preflight;
        Some(Answer::empty(204).with_all(std::mem::take(&mut visit.cors)))
    }

    fn origins(&self, tenant: Option<&TenantId>) -> &[String] {
        tenant.and_then(|tenant| self.tenants.get(tenant)).map_or(&[], |tenant| &tenant.origins)
    }

    /// Notes who came, and returns the credential.
    fn noted(visit: &mut Visit, presented: Presented) -> Option<Credential> {
        visit.by_cookie = matches!(presented.credential, Some(Credential::Cookie(..)));
        presented.credential
    }

    async fn answer(&self, http: &mut ServerSession, answer: Answer) -> Result<Ended, GatewayError> {
        Ok(if answer.write(http).await.is_ok() { Ended::Complete } else { Ended::Aborted })
    }

    /// Where every error of every way ends.
    async fn problem(&self, http: &mut ServerSession, visit: &mut Visit, error: &GatewayError) -> Ended {
        let (code, route, tenant) = (error.code(), visit.class_text(), visit.tenant_text());
        if error.status() >= 500 {
            tracing::warn!(code, route, tenant, %error, "request failed");
        } else {
            tracing::debug!(code, route, tenant, "request refused");
        }
        let mut answer = Answer::problem(error).with_all(std::mem::take(&mut visit.cors));
        if visit.by_cookie && matches!(error, GatewayError::SessionGone) {
            answer = answer.with(SET_COOKIE, self.cookies.expire());
        }
        if !http.is_body_done() {
            http.set_keepalive(None);
        }
        if answer.write(http).await.is_ok() { Ended::Complete } else { Ended::Aborted }
    }

    /// The client's address: the connection's, or what proxies that are trusted say of it.
    fn client_address(&self, http: &ServerSession) -> Option<IpAddr> {
        let peer = http.client_addr()?.as_inet()?.ip();
        let trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        if self.trusted_proxies.is_empty() || !trusted(&peer) {
            return Some(peer);
        }
        let forwarded = http.req_header().headers.get_all("x-forwarded-for").iter().rev();
        let named = forwarded.filter_map(|value| value.to_str().ok()).flat_map(|value| value.rsplit(','));
        let named = named.map_while(|address| address.trim().parse::<IpAddr>().ok());
        let mut last = peer;
        for address in named {
            last = address;
            if !trusted(&address) {
                break;
            }
        }
        Some(last)
    }

    fn finished(&self, http: &ServerSession, visit: &Visit, ended: &Ended, started: Instant) {
        let status = http.response_written().map_or(0, |head| head.status.as_u16());
        let outcome = match (ended, status) {
            (_, 101) => Outcome::Success,
            (Ended::Aborted, _) => Outcome::Aborted,
            (_, ..400) => Outcome::Success,
            (_, 400..500) => Outcome::ClientError,
            _ => Outcome::ServerError,
        };
        let elapsed = started.elapsed();
        self.metrics.requests.count(visit.class, outcome);
        self.metrics.request_seconds.record(visit.class, elapsed);
        if self.log_access {
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            // A method of the client's own invention may hold anything.
            let method = match &http.req_header().method {
                known if is_registered(known) => known.as_str(),
                _ => "other",
            };
            tracing::info!(method, route = visit.class_text(), tenant = visit.tenant_text(), status, millis, "request");
        }
    }
}

impl Visit {
    const fn new() -> Self {
        Self { class: RouteClass::None, tenant: None, by_cookie: false, cors: Vec::new() }
    }

    fn class_text(&self) -> &'static str {
        use crate::telemetry::Label;
        self.class.text()
    }

    fn tenant_text(&self) -> &str {
        self.tenant.as_ref().map_or("-", TenantId::as_str)
    }
}

/// Whether RFC 9110 or 5789 defines the method.
fn is_registered(method: &Method) -> bool {
    use Method as M;
    [M::GET, M::HEAD, M::POST, M::PUT, M::PATCH, M::DELETE, M::OPTIONS, M::CONNECT, M::TRACE].contains(method)
}

/// Counts a request as under way while it lives.
struct UnderWay<'g>(&'g AtomicUsize);

impl<'g> UnderWay<'g> {
    fn new(count: &'g AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The public listener's application: one request after the other on each connection.
pub struct PublicListener(Arc<Gateway>);

#[async_trait]
impl HttpServerApp for PublicListener {
    async fn process_new_http(
        self: &Arc<Self>,
        http: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.0.serve(http).await
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.0.options)
    }
}

impl Gateway {
    /// One request: reads its head, sends it its way, ends it, and gives the connection back if it can be used again.
    async fn serve(&self, mut http: ServerSession) -> Option<ReusedHttpStream> {
        match tokio::time::timeout(HEAD_TIMEOUT, http.read_request()).await {
            Ok(Ok(true)) => {}
            // The error's text may quote the request: it is not logged.
            Ok(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => {
                let problem = Answer::problem(&GatewayError::BadRequest("its head cannot be parsed"));
                self.metrics.requests.count(RouteClass::None, Outcome::ClientError);
                // The connection closes either way.
                let _ = problem.write_unread(&mut http).await;
                http.shutdown().await;
                return None;
            }
            Ok(Ok(false) | Err(_)) | Err(_) => return None,
        }
        let under_way = UnderWay::new(&self.under_way);
        let started = Instant::now();
        http.set_pipelining_enabled(true);
        http.set_total_drain_timeout(Some(Duration::from_secs(2)));
        http.set_write_timeout(Some(Duration::from_secs(60)));
        // What the request itself rules out stays out: HTTP/1.0, `close`, two ways of framing the body.
        let may_stay = http.get_keepalive().is_some() && !self.draining.load(Ordering::Acquire);
        http.set_keepalive(may_stay.then_some(KEEPALIVE_SECONDS));

        let mut visit = Visit::new();
        let ended = match http.req_header().method {
            Method::CONNECT | Method::TRACE => Err(GatewayError::MethodNotAllowed),
            _ => self.request_filter(&mut http, &mut visit).await,
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) if http.response_written().is_none() => self.problem(&mut http, &mut visit, &error).await,
            Err(_) => Ended::Aborted,
        };
        self.finished(&http, &visit, &ended, started);
        drop(under_way);
        if matches!(ended, Ended::Aborted) {
            http.shutdown().await;
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&http);
        let stream = http.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}
