//! HTTP in and out, and the only room that knows Pingora.
//! Each request is parsed once, sent its way, and ends in one place: an answer, a relayed response, or a problem.

pub mod admin;
mod api;
mod bearer;
mod drain;
pub mod explain;
mod forward;
pub mod forward_auth;
mod headers;
mod idle;
mod internal;
mod limits;
mod line;
pub mod listener;
mod operator;
mod own;
mod proof;
mod relay;
mod repeats;
mod respond;
mod route;
mod slots;
#[doc(hidden)]
pub mod steps;
mod target;
mod token_routes;
mod upload;
mod upstream;
mod visit;
mod webhook;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use http::header::{HOST, SET_COOKIE};
use http::{HeaderMap, Method, Version};
use ipnet::IpNet;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use crate::broker::{Broker, Credential};
use crate::clock::Clock;
use crate::config::{Config, Finding, ForwardAuthSection, LimitsSection};
use crate::error::GatewayError;
use crate::telemetry::trace::{Span, Tracer};
use crate::telemetry::{Census, Label, Metrics, Outcome, RouteClass};
use drain::Drain;
use internal::Callers;
use limits::Limits;
use listener::final_head;
use repeats::Repeats;
use respond::{Answer, Cookies};
use route::{Route, RouteTable, RuleFault, RuleSource};
use slots::Presented;
use target::Target;
use upstream::Upstream;
use visit::{EdgeTenant, Tenants, Visit};

/// The edge of the gateway: what every request passes.
pub struct Gateway {
    broker: Arc<Broker>,
    routes: RouteTable,
    upstream: Arc<Upstream>,
    limits: Arc<Limits>,
    limits_section: LimitsSection,
    cookies: Cookies,
    tenants: Tenants,
    trusted_proxies: Vec<IpNet>,
    log_access: bool,
    metrics: Arc<Metrics>,
    forward_auth: ForwardAuthSection,
    /// Absent where nothing is traced.
    tracer: Option<Tracer>,
    under_way: Arc<Census>,
    /// Requests that are being repeated with renewed tokens.
    repeats: Arc<Repeats>,
    drain: Arc<Drain>,
    callers: Callers,
}

/// What outlives a change of the configuration.
struct Standing {
    broker: Arc<Broker>,
    upstream: Arc<Upstream>,
    limits: Arc<Limits>,
    under_way: Arc<Census>,
    repeats: Arc<Repeats>,
    drain: Arc<Drain>,
    metrics: Arc<Metrics>,
    tracer: Option<Tracer>,
    /// Whether the internal listener's handshakes prove who calls.
    handshake_proves: bool,
}

/// The gateway by the configuration that holds now. A request is served to its end by the one that it began with.
pub type CurrentGateway = Arc<ArcSwap<Gateway>>;

/// How a request ended that got its answer, or part of one.
enum Ended {
    /// The answer was written as a whole.
    Complete,
    /// It broke off, or the connection is no longer HTTP: nothing more can be said on it.
    Aborted,
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
        tracer: Option<Tracer>,
    ) -> Result<Self, String> {
        let upstream =
            Upstream::new(&config.upstream, config.listen.threads).ok_or("upstream.base_url cannot be used")?;
        let limits = Limits::new(&config.limits, clock, metrics.clone()).map_err(|error| error.to_string())?;
        let standing = Standing {
            broker,
            upstream: Arc::new(upstream),
            limits: Arc::new(limits),
            under_way: Arc::default(),
            repeats: Arc::default(),
            drain: Arc::default(),
            metrics,
            tracer,
            handshake_proves: config.internal.asks_for_certificates(),
        };
        Self::of(config, standing)
    }

    /// The same gateway by another configuration: what is under way, and who has used how much of his rates, stays known.
    ///
    /// # Errors
    /// What of the configuration cannot be used.
    pub fn changed(&self, config: &Config) -> Result<Self, String> {
        let standing = Standing {
            broker: self.broker.clone(),
            upstream: self.upstream.clone(),
            limits: Arc::new(self.limits.changed(&config.limits)),
            under_way: self.under_way.clone(),
            repeats: self.repeats.clone(),
            drain: self.drain.clone(),
            metrics: self.metrics.clone(),
            tracer: self.tracer.clone(),
            handshake_proves: self.callers.handshake_proves(),
        };
        Self::of(config, standing)
    }

    fn of(config: &Config, standing: Standing) -> Result<Self, String> {
        let Standing { broker, upstream, limits, under_way, repeats, drain, metrics, tracer, handshake_proves } =
            standing;
        Ok(Self {
            broker,
            routes: RouteTable::new(&config.routes)
                .map_err(|faults| faults.into_iter().next().map_or_else(String::new, |fault| fault.message))?,
            upstream,
            limits,
            limits_section: config.limits.clone(),
            cookies: Cookies::new(&config.cookie),
            tenants: Tenants::new(config),
            trusted_proxies: config.listen.trusted_proxies.clone(),
            log_access: config.log.access,
            metrics,
            tracer,
            forward_auth: config.forward_auth.clone(),
            under_way,
            repeats,
            drain,
            callers: Callers::new(config.internal.token.as_ref(), handshake_proves),
        })
    }

    /// What of a configuration only this room can judge: everything that is wrong with its routes.
    #[must_use]
    pub fn check(config: &Config) -> Vec<Finding> {
        let finding = |RuleFault { source, message }| match source {
            RuleSource::Own(index) => Finding::fault(format!("routes.{index}"), message),
            RuleSource::BuiltIn | RuleSource::Shipped => Finding::fault("routes", message),
        };
        RouteTable::new(&config.routes).err().unwrap_or_default().into_iter().map(finding).collect()
    }

    /// Keeps the API's name resolved and what idles tidy; runs until dropped.
    pub async fn tend(&self) {
        tokio::join!(self.upstream.keep_resolved(), self.upstream.keep_swept());
    }

    /// Resolves the API's name once.
    pub async fn resolve(&self) {
        self.upstream.resolve().await;
    }

    /// From now on every answer closes its connection, and HTTP/2 clients are told to go.
    pub fn drain(&self) {
        self.drain.begin();
    }

    /// From now on no request is begun: its connection closes instead. Those under way go on.
    pub fn close(&self) {
        self.drain.end();
    }

    /// Whether no request and no work that one began is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0 && self.broker.under_way() == 0
    }

    /// Whether HTTP/2 connections are open: they may hold the last bytes of a request that has ended.
    #[must_use]
    pub fn has_http2_connections(&self) -> bool {
        self.drain.is_watched()
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.count()
    }

    /// The way of one request.
    async fn request_filter<'g>(
        &'g self,
        http: &mut ServerSession,
        visit: &mut Visit<'g>,
    ) -> Result<Ended, GatewayError> {
        let head = http.req_header();
        check_size(&head.headers, self.limits_section.head_bytes)?;
        check_framing(http)?;
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
                let answer = Box::pin(self.token_route(http, *route, &target, found.token, visit)).await?;
                self.answer(http, answer.with_all(std::mem::take(&mut visit.cors))).await
            }
            Route::Own(route) => {
                visit.class = RouteClass::Own;
                let answer = Box::pin(self.own_route(http, *route, &target, visit)).await?;
                self.answer(http, answer.with_all(std::mem::take(&mut visit.cors))).await
            }
            Route::Webhook => {
                visit.class = RouteClass::Own;
                let answer = Box::pin(self.webhook(http, visit)).await?;
                self.answer(http, answer).await
            }
            Route::Api(route) => {
                visit.class = route.class();
                self.api_request(http, route, &target, visit).await
            }
            Route::Closed if found.wrong_method => Err(GatewayError::MethodNotAllowed),
            Route::Service(_) | Route::Closed => Err(GatewayError::Denied),
        }
    }

    /// Notes what the answer owes a page of another origin, and answers its preflight before any lookup.
    fn cross_origin(&self, visit: &mut Visit<'_>, head: &RequestHeader) -> Option<Answer> {
        let origins = visit.origins();
        let preflight = proof::is_preflight(&head.method, &head.headers);
        visit.cors = proof::cors(&head.headers, origins, preflight);
        if !preflight || visit.cors.is_empty() {
            return None;
        }
        visit.class = RouteClass::Preflight;
        Some(Answer::empty(204).with_all(std::mem::take(&mut visit.cors)))
    }

    /// Notes who came, and returns the credential.
    fn noted(visit: &mut Visit<'_>, presented: Presented) -> Option<Credential> {
        visit.by_cookie = matches!(presented.credential, Some(Credential::Cookie(..)));
        presented.credential
    }

    async fn answer(&self, http: &mut ServerSession, answer: Answer) -> Result<Ended, GatewayError> {
        Ok(if Box::pin(answer.write(http)).await.is_ok() { Ended::Complete } else { Ended::Aborted })
    }

    /// Where every error of every way ends.
    async fn problem(&self, http: &mut ServerSession, visit: &mut Visit<'_>, error: &GatewayError) -> Ended {
        let answer = self.refusal(visit, error);
        if !http.is_body_done() {
            http.set_keepalive(None);
        }
        if answer.write(http).await.is_ok() { Ended::Complete } else { Ended::Aborted }
    }

    /// What the client is told of `error`, and the log beside it.
    fn refusal(&self, visit: &mut Visit<'_>, error: &GatewayError) -> Answer {
        let (code, route, tenant) = (error.code(), visit.class_text(), visit.tenant_text());
        if error.status() >= 500 {
            visit.at_fault = !error.is_of_emporix();
            tracing::warn!(code, route, tenant, %error, "request failed");
        } else {
            tracing::debug!(code, route, tenant, "request refused");
        }
        let answer = Answer::problem(error).with_all(std::mem::take(&mut visit.cors));
        match error {
            GatewayError::SessionGone if visit.by_cookie => answer.with(SET_COOKIE, self.cookies.expire()),
            GatewayError::InternalTokenRequired => bearer::wanted(answer),
            _ => answer,
        }
    }

    fn finished(&self, http: &ServerSession, visit: &mut Visit<'_>, ended: &Ended, started: Instant) {
        let status = final_head(http).map_or(0, |head| head.status.as_u16());
        let outcome = match (ended, status) {
            (_, 101) => Outcome::Success,
            (Ended::Aborted, _) => Outcome::Aborted,
            (_, ..400) => Outcome::Success,
            (_, 400..500) => Outcome::ClientError,
            _ if visit.at_fault => Outcome::ServerError,
            _ => Outcome::UpstreamError,
        };
        let elapsed = started.elapsed();
        let served_in = visit.streams_since.map_or(elapsed, |since| since - started);
        self.metrics.finished(visit.span.as_ref().map(Span::context), visit.class, outcome, served_in);
        let (route, tenant) = (visit.class_text(), visit.tenant_text());
        if let Some(span) = &mut visit.span {
            span.note("route", route);
            span.note("tenant", tenant);
            span.note("outcome", outcome.text());
            span.note("status", status.to_string());
            span.settle(matches!(outcome, Outcome::ServerError | Outcome::UpstreamError));
        }
        if self.log_access {
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            // A method of the client's own invention may hold anything.
            let method = match &http.req_header().method {
                known if is_registered(known) => known.as_str(),
                _ => "other",
            };
            tracing::info!(method, route, tenant, status, millis, "request");
        }
    }
}

fn check_size(headers: &HeaderMap, most: usize) -> Result<(), GatewayError> {
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if size > most { Err(GatewayError::HeadTooLarge) } else { Ok(()) }
}

/// Refuses heads that another reader might take for something else (RFC 9112, sections 2.2, 3.2 and 6).
fn check_framing(http: &ServerSession) -> Result<(), GatewayError> {
    let head = http.req_header();
    if !headers::is_plainly_framed(&head.headers) {
        return Err(GatewayError::BadRequest("its body is framed in more than one way"));
    }
    let Some(http1) = http.as_http1() else { return Ok(()) };
    if head.version == Version::HTTP_11 && !head.headers.contains_key(HOST) {
        return Err(GatewayError::BadRequest("Host is missing"));
    }
    if !line::has_whole_lines(&http1.get_headers_raw_bytes()) {
        return Err(GatewayError::BadRequest("a line of its head ends without a carriage return"));
    }
    Ok(())
}

/// Whether RFC 9110 or 5789 defines the method.
pub(super) fn is_registered(method: &Method) -> bool {
    use Method as M;
    [M::GET, M::HEAD, M::POST, M::PUT, M::PATCH, M::DELETE, M::OPTIONS, M::CONNECT, M::TRACE].contains(method)
}
