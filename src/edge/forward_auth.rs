//! Verdicts for other proxies: whether a request of theirs may pass to the API, and with which headers.
//! It hands out real tokens, so it answers trusted peers alone; and the decision is the same as for our own requests.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Uri};
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::api::Asked;
use super::listener::{KEEPALIVE_SECONDS, UnderWay, kept, takes_own_head};
use super::respond::Answer;
use super::route::{ApiRoute, Route};
use super::slots::SAAS_TOKEN;
use super::target::Target;
use super::visit::{is_among, peer_of};
use super::{CurrentGateway, Gateway, Visit, check_framing, check_size, headers, is_registered, proof};
use crate::broker::Permit;
use crate::config::routes::{OnSuccess, RouteLimit};
use crate::error::GatewayError;
use crate::session::Scope;
use crate::telemetry::{Dialect, Seldom, Verdict};

const SESSION_ID: HeaderName = HeaderName::from_static("x-emporix-session-id");
const CUSTOMER_ID: HeaderName = HeaderName::from_static("x-emporix-customer-id");
const ENVOY_REMOVES: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

static STRANGERS: Seldom = Seldom::new("a verdict was asked by a peer that is not in forward_auth.trusted_peers");

/// The forward-auth listener's application.
#[derive(Clone)]
pub struct ForwardAuth {
    current: CurrentGateway,
}

impl ForwardAuth {
    /// Verdicts of the gateway that is current when they are asked for.
    #[must_use]
    pub const fn new(current: CurrentGateway) -> Self {
        Self { current }
    }
}

impl Gateway {
    async fn answer_peer(&self, http: &ServerSession) -> Answer {
        let asked_at = Instant::now();
        let head = http.req_header();
        if !self.trusts_peer_of(http) {
            STRANGERS.warn();
            return Answer::problem(&GatewayError::Denied);
        }
        let Some(dialect) = dialect(head) else { return Answer::problem(&GatewayError::UnknownRoute) };
        let mut visit = Visit::new();
        let answer = match self.verdict(http, dialect, &mut visit).await {
            Ok(permit) => pass(&permit, dialect).with_all(visit.cors),
            Err(error) => self.refusal(&mut visit, &error),
        };
        let verdict = match answer.status() {
            200 => Verdict::Pass,
            ..500 => Verdict::Refused,
            _ => Verdict::Unknowable,
        };
        self.metrics.verdicts.count(dialect, verdict);
        self.metrics.verdict_seconds.record(dialect, asked_at.elapsed());
        answer
    }

    fn trusts_peer_of(&self, http: &ServerSession) -> bool {
        peer_of(http).is_some_and(|peer| is_among(self.forward_auth.trusted_peers.iter(), peer))
    }

    async fn verdict<'g>(
        &'g self,
        http: &ServerSession,
        dialect: Dialect,
        visit: &mut Visit<'g>,
    ) -> Result<Permit, GatewayError> {
        check_size(&http.req_header().headers, self.limits_section.head_bytes)?;
        check_framing(http)?;
        let original = Original::of(dialect, http.req_header())?;
        let target = Target::parse(&original.target)?;
        check_disguise(&target, &original.head.headers)?;
        let found = self.routes.find(original.head.method.as_str(), target.path);
        visit.tenant = self.tenant_of(&found, &target, &original.head)?;
        visit.cors = proof::cors(&original.head.headers, visit.origins(), false);
        let route = judgeable(found.route)?;
        visit.class = route.class();
        let asked = Asked {
            head: &original.head,
            route,
            target: &target,
            address: self.client_address(http, &self.forward_auth.trusted_peers),
            upgrades: original.upgrades(),
            can_set_cookie: self.forward_auth.visitors,
        };
        let (permit, _) = self.decide(&asked, visit).await?;
        if route.limit == RouteLimit::SignIn {
            self.limits.sign_in(asked.address, None)?;
        }
        Ok(permit)
    }
}

/// Refuses what the proxy would pass on and we would take out.
pub(super) fn check_disguise(target: &Target<'_>, fields: &HeaderMap) -> Result<(), GatewayError> {
    let disguised = target.carries_credential(&[]) || fields.keys().any(headers::disguises) || tunnels(fields);
    if disguised { Err(GatewayError::Denied) } else { Ok(()) }
}

/// The route, where there can be a verdict about it: what has to be done behind the API's answer can only be done by who
/// sees it.
pub(super) fn judgeable(route: &Route) -> Result<&ApiRoute, GatewayError> {
    match route {
        Route::Api(route) if route.on_success == OnSuccess::Nothing => Ok(route),
        _ => Err(GatewayError::Denied),
    }
}

/// Whose way of asking this is.
fn dialect(head: &RequestHeader) -> Option<Dialect> {
    match head.uri.path() {
        "/auth/nginx" => Some(Dialect::Nginx),
        "/auth/traefik" => Some(Dialect::Traefik),
        "/auth/haproxy" => Some(Dialect::Haproxy),
        path => path.strip_prefix("/auth/envoy").filter(|rest| rest.starts_with('/')).map(|_| Dialect::Envoy),
    }
}

/// 200, with what the proxy is to put in the place of the client's own. Envoy removes only what it is told to.
fn pass(permit: &Permit, dialect: Dialect) -> Answer {
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let customer = permit.customer_id().filter(|_| permit.scope() == Scope::Customer);
    let identity = [
        (AUTHORIZATION, Some(permit.authorization().clone())),
        (SAAS_TOKEN, permit.saas_token().cloned()),
        (SESSION_ID, permit.session_id().and_then(text)),
        (CUSTOMER_ID, customer.and_then(text)),
    ];
    let unknown: Vec<&str> =
        identity.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_str()).collect();
    let removed = Some(unknown.join(",")).filter(|names| dialect == Dialect::Envoy && !names.is_empty());
    let known = identity.into_iter().chain([(ENVOY_REMOVES, removed.as_deref().and_then(text))]);
    Answer::empty(200).with_all(known.filter_map(|(name, value)| Some((name, value?))).collect())
}

/// The request that a verdict is about, as the proxy tells of it.
struct Original {
    /// The head that the proxy sent along, with the method and the host of the original.
    head: RequestHeader,
    /// Its target, as it came to the proxy.
    target: Vec<u8>,
}

impl Original {
    /// What the proxy says of the original. Where it is said more than once it has to be the same, whoever said it: a
    /// header that one proxy sets may be the client's own behind another.
    fn of(dialect: Dialect, head: &RequestHeader) -> Result<Self, GatewayError> {
        let said = |name| only(&head.headers, name);
        let (url_host, url_target) = said("x-original-url")?.map(split_url).transpose()?.unzip();
        let targets = [said("x-original-uri")?, url_target, said("x-forwarded-uri")?];
        let methods = [said("x-original-method")?, said("x-forwarded-method")?];
        let (method, target, host) = match dialect {
            Dialect::Nginx | Dialect::Haproxy => {
                (methods[0], targets[0].or(targets[1]), agreed([said("x-original-host")?, url_host])?)
            }
            Dialect::Traefik => (methods[1], targets[2], said("x-forwarded-host")?),
            Dialect::Envoy => {
                let target = head.raw_path().strip_prefix(b"/auth/envoy");
                (Some(head.method.as_str().as_bytes()), target, said("host")?)
            }
        };
        let method = agreed([method, methods[0], methods[1]])?.ok_or(UNTOLD)?;
        let target = agreed([target, targets[0], targets[1], targets[2]])?.ok_or(UNTOLD)?;
        let method = Method::from_bytes(method).ok().filter(is_registered).ok_or(GatewayError::MethodNotAllowed)?;
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err(GatewayError::MethodNotAllowed);
        }
        let host = host.map(HeaderValue::from_bytes).transpose().map_err(|_| UNTOLD)?;
        let target = target.to_vec();
        let mut head = head.clone();
        head.set_method(method);
        head.set_uri(Uri::from_static("/"));
        match host {
            Some(host) => head.insert_header(HOST, host).map_err(|_| UNTOLD)?,
            None => drop(head.remove_header(&HOST)),
        }
        Ok(Self { head, target })
    }

    /// Whether it asks for a WebSocket. Proxies keep `Upgrade` to themselves; the key goes along.
    fn upgrades(&self) -> bool {
        self.head.headers.contains_key(UPGRADE) || self.head.headers.contains_key("sec-websocket-key")
    }
}

/// Whether another protocol is asked for than a WebSocket: nobody could judge a request inside it.
fn tunnels(fields: &HeaderMap) -> bool {
    let mut asked = fields.get_all(UPGRADE).iter();
    asked.any(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

const UNTOLD: GatewayError = GatewayError::BadRequest("the proxy does not tell method and target of the original");

/// The one value of a header.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h [u8]>, GatewayError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => Err(GatewayError::BadRequest("the original is told of twice")),
        (value, _) => Ok(value.map(HeaderValue::as_bytes)),
    }
}

/// What is said, where nobody says anything else.
fn agreed<const N: usize>(said: [Option<&[u8]>; N]) -> Result<Option<&[u8]>, GatewayError> {
    let mut said = said.into_iter().flatten();
    let first = said.next();
    if said.all(|other| Some(other) == first) {
        Ok(first)
    } else {
        Err(GatewayError::BadRequest("what is told of the original contradicts itself"))
    }
}

/// Host and target of an absolute address.
fn split_url(url: &[u8]) -> Result<(&[u8], &[u8]), GatewayError> {
    let rest = url.strip_prefix(b"https://").or_else(|| url.strip_prefix(b"http://")).ok_or(UNTOLD)?;
    let at = rest.iter().position(|byte| *byte == b'/').ok_or(UNTOLD)?;
    Ok(rest.split_at(at))
}

#[async_trait]
impl HttpServerApp for ForwardAuth {
    async fn process_new_http(
        self: &Arc<Self>,
        mut http: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !takes_own_head(&mut http).await {
            return None;
        }
        let gateway = self.current.load();
        let _under_way = UnderWay::new(&gateway.under_way);
        if gateway.drain.is_over() {
            return None;
        }
        let stays = http.get_keepalive().is_some() && !gateway.drain.has_begun();
        http.set_keepalive(stays.then_some(KEEPALIVE_SECONDS));
        gateway.answer_peer(&http).await.write(&mut http).await.ok()?;
        kept(http).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn original(dialect: Dialect, head: &RequestHeader) -> Result<(String, String, Option<String>), &'static str> {
        let original = Original::of(dialect, head).map_err(|error| error.code())?;
        let host = original.head.headers.get(HOST).map(|host| host.to_str().unwrap().to_owned());
        Ok((original.head.method.to_string(), String::from_utf8(original.target).unwrap(), host))
    }

    #[test]
    fn every_dialect_tells_of_the_original_in_its_own_way() {
        let told = Ok(("POST".to_owned(), "/cart/acme?a=%20".to_owned(), Some("shop.example.com".to_owned())));
        let nginx = [
            ("host", "gateway:8081"),
            ("x-original-method", "POST"),
            ("x-original-uri", "/cart/acme?a=%20"),
            ("x-original-host", "shop.example.com"),
        ];
        assert_eq!(original(Dialect::Nginx, &asked("/auth/nginx", &nginx)), told);
        let ingress = [("x-original-method", "POST"), ("x-original-url", "https://shop.example.com/cart/acme?a=%20")];
        assert_eq!(original(Dialect::Nginx, &asked("/auth/nginx", &ingress)), told);
        let traefik = [
            ("host", "gateway:8081"),
            ("x-forwarded-method", "POST"),
            ("x-forwarded-uri", "/cart/acme?a=%20"),
            ("x-forwarded-host", "shop.example.com"),
        ];
        assert_eq!(original(Dialect::Traefik, &asked("/auth/traefik", &traefik)), told);
        let mut envoy = asked("/auth/envoy/cart/acme?a=%20", &[("host", "shop.example.com")]);
        envoy.set_method(Method::POST);
        assert_eq!(original(Dialect::Envoy, &envoy), told);
    }

    #[test]
    fn what_contradicts_itself_is_not_believed() {
        let nginx = [("x-original-method", "GET"), ("x-original-uri", "/order-v2/acme/orders")];
        for forged in [
            ("x-original-method", "POST"),
            ("x-original-uri", "/product/acme"),
            ("x-original-url", "https://shop.example.com/product/acme"),
            ("x-forwarded-uri", "/product/acme"),
            ("x-forwarded-method", "POST"),
        ] {
            let fields = [nginx.as_slice(), &[forged]].concat();
            assert_eq!(original(Dialect::Nginx, &asked("/auth/nginx", &fields)), Err("bad_request"), "{forged:?}");
        }
        let envoy = asked("/auth/envoy/order-v2/acme/orders", &[("x-original-uri", "/product/acme")]);
        assert_eq!(original(Dialect::Envoy, &envoy), Err("bad_request"));
        for half in [&nginx[..1], &nginx[1..]] {
            assert_eq!(original(Dialect::Nginx, &asked("/auth/nginx", half)), Err("bad_request"));
        }
    }

    #[test]
    fn a_host_that_is_not_told_is_not_the_gateways_own() {
        let fields = [("host", "gateway:8081"), ("x-original-method", "GET"), ("x-original-uri", "/product/acme")];
        assert_eq!(original(Dialect::Nginx, &asked("/auth/nginx", &fields)).unwrap().2, None);
    }
}
