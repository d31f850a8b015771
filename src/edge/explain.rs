//! What would happen to a request, asked of the same rules that decide it. Nothing is sent, and no session is looked up.
//! Says names, kinds and rules; never a credential's value, nor a path's or a query's.

use std::fmt;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Uri};
use pingora::http::RequestHeader;
use serde::Serialize;

use super::forward_auth::{check_disguise, judgeable};
use super::proof::{self, Exposure};
use super::respond::Cookies;
use super::route::{ApiRoute, Found, OwnRoute, Route, RouteTable, Rule, RuleSource, TokenRoute};
use super::slots::{Presented, Slot};
use super::target::Target;
use super::token_routes::{self, Query};
use super::visit::{EdgeTenant, NamedBy, Tenants};
use super::{api, check_size, headers, is_registered, own};
use crate::broker::Credential;
use crate::config::routes::{Access, SaasInjection};
use crate::config::{Config, ForeignBearerMode};
use crate::error::GatewayError;
use crate::session::{Scope, Transport};

/// What would happen to a request, point by point.
#[derive(Debug, Default)]
pub struct Explanation(Vec<(&'static str, String)>);

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (point, text)) in self.0.iter().enumerate() {
            let end = if index > 0 { "\n" } else { "" };
            write!(f, "{end}{point:<13} {text}")?;
        }
        Ok(())
    }
}

/// Explains what a gateway of `config` would do with a request.
///
/// # Errors
/// When this is no request, or the configuration's routes cannot be used.
pub fn explain(config: &Config, method: &str, url: &str, fields: &[String]) -> Result<Explanation, String> {
    let (head, target) = request(method, url, fields)?;
    let routes = RouteTable::new(&config.routes);
    let routes =
        routes.map_err(|faults| faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("\n"))?;
    let (tenants, cookies) = (Tenants::new(config), Cookies::new(&config.cookie));
    let mut request = Explained { config, head, cookies: &cookies, told: Explanation::default() };
    if let Err(error) = request.follow(&target, &routes, &tenants) {
        request.tell("answer", refused(&error));
    }
    Ok(request.told)
}

/// The head of the request, and its target as it would come.
fn request(method: &str, url: &str, fields: &[String]) -> Result<(RequestHeader, Vec<u8>), String> {
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| "METHOD: expected a method such as GET".to_owned())?;
    let (host, target) = match url.split_once("://") {
        Some((_, rest)) => rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())),
        None => ("", url),
    };
    let mut head = RequestHeader::build(method, b"/", None).map_err(|error| error.to_string())?;
    head.set_uri(Uri::from_static("/"));
    for field in fields {
        // The field is not quoted: it may hold a credential.
        let parsed = field.split_once(':').and_then(|(name, value)| {
            Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, value) = parsed.ok_or("-H: expected 'Name: value'")?;
        head.append_header(name, value).map_err(|error| error.to_string())?;
    }
    if !host.is_empty() && !head.headers.contains_key(HOST) {
        head.insert_header(HOST, host).map_err(|_| "URL: its host cannot be one".to_owned())?;
    }
    let target = if target.is_empty() { "/" } else { target };
    Ok((head, target.as_bytes().to_vec()))
}

/// Whose token goes to the API.
#[derive(Clone, Copy)]
enum Whose {
    Session,
    Visitor,
    Guest,
}

impl Whose {
    const fn text(self) -> &'static str {
        match self {
            Self::Session => "with the session's token, while the session is live",
            Self::Visitor => "with the token of a visitor who begins here: the answer sets the cookie",
            Self::Guest => "with the tenant's shared guest token",
        }
    }
}

struct Explained<'e> {
    config: &'e Config,
    head: RequestHeader,
    cookies: &'e Cookies,
    told: Explanation,
}

impl Explained<'_> {
    fn tell(&mut self, point: &'static str, text: impl Into<String>) {
        self.told.0.push((point, text.into()));
    }

    /// Goes the way of a request, in its order.
    fn follow(&mut self, target: &[u8], routes: &RouteTable, tenants: &Tenants) -> Result<(), GatewayError> {
        check_size(&self.head.headers, self.config.limits.head_bytes)?;
        if !headers::is_plainly_framed(&self.head.headers) {
            return Err(GatewayError::BadRequest("its body is framed in more than one way"));
        }
        let target = Target::parse(target)?;
        self.tell("target", "reads one way only");
        let found = routes.find(self.head.method.as_str(), target.path);
        self.tell("route", route(&found));
        let tenant = tenants.named(&found, &target, &self.head)?;
        let named = tenant.map(|(tenant, by)| format!("{}, {}", tenant.id, by.text()));
        self.tell("tenant", named.unwrap_or_else(|| "not named: the session's own".to_owned()));
        let tenant = tenant.map(|(tenant, _)| tenant);
        if self.cross_origin(tenant) {
            return Ok(());
        }
        match found.route {
            Route::Token(route) => self.token_route(*route, &target, tenant.ok_or(GatewayError::UnknownTenant)?),
            Route::Own(route) => self.own_route(*route, &target, tenant),
            Route::Webhook => {
                self.tell("answer", "by the gateway: it takes Emporix' signed events where the tenant has a secret");
                Ok(())
            }
            Route::Api(route) => {
                let passed = self.api_route(route, &target, tenant);
                self.forward_auth(found.route, &target, &passed);
                passed.map(|_| ())
            }
            Route::Closed if found.wrong_method => Err(GatewayError::MethodNotAllowed),
            // Open on the internal listener alone.
            Route::Service(_) | Route::Closed => Err(GatewayError::Denied),
        }
    }

    /// Whether it is a preflight that is answered.
    fn cross_origin(&mut self, tenant: Option<&EdgeTenant>) -> bool {
        let origins = tenant.map_or(&[][..], |tenant| &tenant.origins);
        let preflight = proof::is_preflight(&self.head.method, &self.head.headers);
        let cors = proof::cors(&self.head.headers, origins, preflight);
        let names: Vec<&str> = cors.iter().map(|(name, _)| name.as_str()).collect();
        self.tell("cors", if names.is_empty() { "nothing is added".to_owned() } else { names.join(", ") });
        let answered = preflight && !cors.is_empty();
        if answered {
            self.tell("answer", "by the gateway: 204 to the preflight");
        }
        answered
    }

    fn token_route(&mut self, route: TokenRoute, target: &Target<'_>, tenant: &EdgeTenant) -> Result<(), GatewayError> {
        let slots: Vec<&str> = token_routes::slots(route).iter().map(|(name, _)| *name).collect();
        if target.carries_credential(&slots) {
            return Err(GatewayError::BadTarget("it carries a credential where none belongs"));
        }
        let query = Query::parse(target)?;
        let fields = &self.head.headers;
        let presented = token_routes::presented(fields, self.cookies.name(), route, &query, &mut false)?;
        let exposure = token_routes::exposure(fields, route, &presented, tenant);
        self.credential(&presented, Some(tenant));
        self.proof(exposure, &tenant.origins)?;
        if presented.credential.is_none() && matches!(route, TokenRoute::Refresh | TokenRoute::Logout) {
            return Err(GatewayError::SessionRequired);
        }
        if presented.credential.is_none() && route == TokenRoute::AnonymousRefresh {
            return Err(GatewayError::SessionEnded);
        }
        let transport = match tenant.transport_at_birth(&self.head.headers) {
            Transport::Cookie => "cookie",
            Transport::Handle => "handles",
        };
        self.tell(
            "answer",
            format!("by the gateway, in Emporix' shape; a session that begins here travels by {transport}"),
        );
        Ok(())
    }

    fn own_route(
        &mut self,
        route: OwnRoute,
        target: &Target<'_>,
        tenant: Option<&EdgeTenant>,
    ) -> Result<(), GatewayError> {
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential"));
        }
        let presented = Presented::take(&self.head.headers, self.cookies.name(), &[])?;
        self.credential(&presented, tenant);
        self.proof(own::exposure(route, &presented), tenant.map_or(&[], |tenant| &tenant.origins))?;
        presented.credential.as_ref().ok_or(GatewayError::SessionRequired)?;
        self.tell("answer", "by the gateway itself");
        Ok(())
    }

    fn api_route(
        &mut self,
        route: &ApiRoute,
        target: &Target<'_>,
        tenant: Option<&EdgeTenant>,
    ) -> Result<Whose, GatewayError> {
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential"));
        }
        let visits = api::visits(&self.head, target)?.len();
        let presented = Presented::take(&self.head.headers, self.cookies.name(), &[])?;
        self.credential(&presented, tenant);
        let (safe, upgrades) = (self.head.method.is_safe(), headers::asks_for_websocket(&self.head));
        self.proof(api::exposure(&presented, safe, upgrades), tenant.map_or(&[], |tenant| &tenant.origins))?;
        let whose = if presented.credential.is_some() {
            Whose::Session
        } else if presented.bears_nothing() && api::creates_visitor(route, &self.head, tenant)? {
            Whose::Visitor
        } else if route.access == Access::Guest && safe && visits == 0 {
            Whose::Guest
        } else {
            return Err(GatewayError::SessionRequired);
        };
        let stripped = headers::stripped(&self.head.headers, self.cookies.name());
        self.tell("stripped", if stripped.is_empty() { "nothing".to_owned() } else { stripped.join(", ") });
        let saas = match route.saas_token {
            SaasInjection::Never => "",
            SaasInjection::WhenValid => ", saas-token (a customer's, while it is valid)",
            SaasInjection::Required => ", saas-token (a customer's; without a valid one they sign in again first)",
        };
        self.tell(
            "injected",
            format!("authorization, host, x-forwarded-for, x-forwarded-proto, x-forwarded-host{saas}"),
        );
        if visits > 0 {
            self.tell("visit", "has to be the session's own");
        }
        self.tell("answer", format!("by {}, {}", self.config.upstream.base_url, whose.text()));
        Ok(whose)
    }

    /// What counts of the credentials, by its place and kind.
    fn credential(&mut self, presented: &Presented, tenant: Option<&EdgeTenant>) {
        let section = tenant.and_then(|tenant| self.config.tenants.get(&tenant.id));
        let text = match &presented.credential {
            None => "none".to_owned(),
            Some(Credential::Handle(handle, others)) => {
                let others = if others.is_empty() { "" } else { ", with others of the same session" };
                format!("a handle ({}***) in {}{others}", handle.kind.prefix(), presented.slot.text())
            }
            Some(Credential::Cookie(_, Some(scope))) => {
                let whom = if *scope == Scope::Customer { "its customer" } else { "its visitor" };
                format!("the cookie's session, as {whom} by the placeholder in {}", presented.slot.text())
            }
            Some(Credential::Cookie(_, None)) => "the cookie's session".to_owned(),
            Some(Credential::Jwt(_)) => {
                let accepted = section.is_some_and(|section| section.saas_token.accept);
                let so = if accepted { "accepted here" } else { "not accepted here: saas_token.accept is false" };
                format!("a JWT in {}, {so}", presented.slot.text())
            }
            Some(Credential::Foreign(_)) => {
                let adopts = section.is_some_and(|section| section.foreign_bearer.mode == ForeignBearerMode::Adopt);
                let so = if adopts { "adopted until foreign_bearer.until" } else { "refused: foreign_bearer.mode" };
                format!("a token that the gateway did not issue in {}, {so}", presented.slot.text())
            }
        };
        self.tell("credential", text);
    }

    fn proof(&mut self, exposure: Exposure, origins: &[String]) -> Result<(), GatewayError> {
        let demanded = proof::is_demanded(&self.head.headers, exposure);
        let given = proof::demand(&self.head.headers, origins, exposure);
        self.tell(
            "proof",
            match (demanded, &given) {
                (false, _) => "not demanded",
                (true, Ok(())) => "demanded and given",
                (true, Err(_)) => {
                    "demanded and not given: Sec-Fetch-Site: same-origin, an allowed Origin or X-Emporix-Gateway: 1"
                }
            },
        );
        given
    }

    /// What another proxy would be told.
    fn forward_auth(&mut self, route: &Route, target: &Target<'_>, passed: &Result<Whose, GatewayError>) {
        let method = &self.head.method;
        let asked = if !is_registered(method) || matches!(*method, Method::CONNECT | Method::TRACE) {
            Err(GatewayError::MethodNotAllowed)
        } else {
            check_disguise(target, &self.head.headers).and_then(|()| judgeable(route).map(|_| ()))
        };
        let text = match (asked, passed) {
            (Err(error), _) => refused(&error),
            (Ok(()), Err(error)) => refused(error),
            (Ok(()), Ok(Whose::Visitor)) if !self.config.forward_auth.visitors => {
                refused(&GatewayError::SessionRequired)
            }
            (Ok(()), Ok(Whose::Visitor | Whose::Guest)) => "200".to_owned(),
            (Ok(()), Ok(Whose::Session)) => "200 while the session is live".to_owned(),
        };
        let listens = if self.config.forward_auth.listen.is_some() { "" } else { " (there is no forward_auth.listen)" };
        self.tell("forward-auth", text + listens);
    }
}

impl NamedBy {
    const fn text(self) -> &'static str {
        match self {
            Self::Path => "by the path",
            Self::Query => "by the query",
            Self::Header => "by Emporix-Tenant",
            Self::Host => "by the host",
            Self::Default => "the only one",
        }
    }
}

impl Slot {
    const fn text(self) -> &'static str {
        match self {
            Self::Query => "the query",
            Self::Authorization => "Authorization",
            Self::SaasToken => "saas-token",
            Self::Cookie => "the cookie",
        }
    }
}

fn refused(error: &GatewayError) -> String {
    format!("by the gateway: {} {} ({})", error.status(), error.code(), error.message())
}

/// The rule that was found, and what it says.
fn route(found: &Found<'_, '_>) -> String {
    let rule = match found.rule {
        Some(Rule { source: RuleSource::Own(index), path, .. }) => {
            format!("{path} (routes.{index} of this configuration)")
        }
        Some(Rule { source: RuleSource::Shipped, path, .. }) => format!("{path} (shipped table)"),
        Some(Rule { source: RuleSource::BuiltIn, path, .. }) => format!("{path} (built in)"),
        None => "no rule".to_owned(),
    };
    let says = match found.route {
        Route::Token(_) => "a token route".to_owned(),
        Route::Own(_) => "an endpoint of the gateway's own".to_owned(),
        Route::Webhook => "Emporix' events".to_owned(),
        Route::Closed => "closed".to_owned(),
        Route::Service(ApiRoute { access, .. }) => format!("access {}, on the internal listener alone", word(access)),
        Route::Api(ApiRoute { access, inject, saas_token, max_body_bytes, read_timeout, limit, on_success }) => {
            let bounds = max_body_bytes.map(|bytes| format!(", max_body_bytes {bytes}")).unwrap_or_default();
            let wait = read_timeout.map(|wait| format!(", read_timeout {wait:?}")).unwrap_or_default();
            format!(
                "access {}, inject {}, saas_token {}, limit {}, on_success {}{bounds}{wait}",
                word(access),
                word(inject),
                word(saas_token),
                word(limit),
                word(on_success)
            )
        }
    };
    format!("{rule}: {says}")
}

/// A word of the configuration, as it is written there.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
