//! What would happen to a request, asked of the same rules that decide it. Nothing is sent, and no session is looked up.
//! Says names, kinds and rules; never a credential's value, nor a path's or a query's.

mod opens;

use std::fmt;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Uri};
use pingora::http::RequestHeader;
use serde::Serialize;

use super::forward_auth::{check_disguise, judgeable};
use super::proof::{self, Exposure};
use super::respond::Cookies;
use super::route::{ApiRoute, Found, OwnRoute, Route, RouteTable, Rule, RuleSource, TokenRoute};
use super::slots::Presented;
use super::target::Target;
use super::token_routes::{self, Query};
use super::visit::{EdgeTenant, NamedBy, Tenants};
use super::{api, check_size, headers, is_registered, own};
use crate::clock::Timestamp;
use crate::config::routes::{Access, SaasInjection};
use crate::config::{Config, ServiceName, TenantSection};
use crate::error::GatewayError;
use crate::session::Transport;
use opens::{Judged, Refused, Whose};

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

/// Explains what a gateway of `config` would do with a request that comes `now`.
///
/// # Errors
/// When this is no request, or the configuration's routes cannot be used.
pub fn explain(
    config: &Config,
    method: &str,
    url: &str,
    fields: &[String],
    now: Timestamp,
) -> Result<Explanation, String> {
    let (head, target) = request(method, url, fields)?;
    let routes = RouteTable::new(&config.routes);
    let routes =
        routes.map_err(|faults| faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("\n"))?;
    let (tenants, cookies) = (Tenants::new(config), Cookies::new(&config.cookie));
    let mut request = Explained { config, head, cookies: &cookies, now, told: Explanation::default() };
    if let Err(refused) = request.follow(&target, &routes, &tenants) {
        request.tell("answer", refused.to_string());
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

struct Explained<'e> {
    config: &'e Config,
    head: RequestHeader,
    cookies: &'e Cookies,
    now: Timestamp,
    told: Explanation,
}

impl Explained<'_> {
    fn tell(&mut self, point: &'static str, text: impl Into<String>) {
        self.told.0.push((point, text.into()));
    }

    /// Goes the way of a request, in its order.
    fn follow(&mut self, target: &[u8], routes: &RouteTable, tenants: &Tenants) -> Result<(), Refused> {
        check_size(&self.head.headers, self.config.limits.head_bytes)?;
        if !headers::is_plainly_framed(&self.head.headers) {
            return Err(GatewayError::BadRequest("its body is framed in more than one way").into());
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
            Route::Webhook => self.webhook(tenant),
            Route::Api(route) => {
                let passed = self.api_route(route, &target, tenant);
                self.forward_auth(found.route, &target, &passed);
                passed.map(|_| ())
            }
            Route::Service(ApiRoute { access: Access::Service(name), .. }) => {
                self.internal(name, &target, tenant);
                Err(GatewayError::Denied.into())
            }
            Route::Closed if found.wrong_method => Err(GatewayError::MethodNotAllowed.into()),
            Route::Service(_) | Route::Closed => Err(GatewayError::Denied.into()),
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

    fn webhook(&mut self, tenant: Option<&EdgeTenant>) -> Result<(), Refused> {
        if self.section(tenant)?.webhook.secret.is_none() {
            return Err(Refused::when(GatewayError::UnknownRoute, ": the tenant has no webhook.secret"));
        }
        self.tell("answer", "by the gateway: 204 to an event that Emporix signed; 401 signature_invalid otherwise");
        Ok(())
    }

    /// What the internal listener would do.
    fn internal(&mut self, name: &ServiceName, target: &Target<'_>, tenant: Option<&EdgeTenant>) {
        let judged = self.section(tenant).and_then(|section| match section.services.contains_key(name) {
            _ if target.carries_credential(&[]) => Err(GatewayError::BadTarget("it carries a credential")),
            true => Ok(()),
            false => Err(GatewayError::Denied),
        });
        let section = &self.config.internal;
        let shown = match (&section.token, section.asks_for_certificates()) {
            (None, _) => "to who shows a certificate",
            (Some(_), false) => "to who shows internal.token; 401 internal_token_required otherwise",
            (Some(_), true) => "to who shows a certificate and internal.token; 401 internal_token_required otherwise",
        };
        let text = match judged {
            Ok(()) => format!("by {}, with the token of the service {name}, {shown}", self.config.upstream.base_url),
            Err(error) => format!("{}, {shown}", Refused::from(error)),
        };
        let listens = if section.listen.is_some() { "" } else { " (there is no internal.listen)" };
        self.tell("internal", text + listens);
    }

    fn section(&self, tenant: Option<&EdgeTenant>) -> Result<&TenantSection, GatewayError> {
        tenant.and_then(|tenant| self.config.tenants.get(&tenant.id)).ok_or(GatewayError::UnknownTenant)
    }

    fn token_route(&mut self, route: TokenRoute, target: &Target<'_>, tenant: &EdgeTenant) -> Result<(), Refused> {
        let slots: Vec<&str> = token_routes::slots(route).iter().map(|(name, _)| *name).collect();
        if target.carries_credential(&slots) {
            return Err(GatewayError::BadTarget("it carries a credential where none belongs").into());
        }
        let query = Query::parse(target)?;
        let fields = &self.head.headers;
        let presented = token_routes::presented(fields, self.cookies.name(), route, &query, &mut false)?;
        let exposure = token_routes::exposure(fields, route, &presented, tenant);
        let credential = self.judged(&presented, Some(tenant)).text();
        self.tell("credential", credential);
        self.proof(exposure, &tenant.origins)?;
        let judged = self.judged(&presented, Some(tenant));
        let opens = match judged.opens() {
            // There a dead credential is as good as none.
            _ if route == TokenRoute::AnonymousLogin => None,
            opens => opens?,
        };
        match route {
            TokenRoute::Refresh | TokenRoute::Logout if opens.is_none() => {
                return Err(GatewayError::SessionRequired.into());
            }
            TokenRoute::AnonymousRefresh if opens.is_none() => return Err(GatewayError::SessionEnded.into()),
            TokenRoute::Refresh if judged.is_visitors_handle() => return Err(GatewayError::SessionEnded.into()),
            TokenRoute::Logout if judged.is_visitors_handle() => return Err(Refused::NO_CUSTOMER),
            _ => {}
        }
        let transport = match tenant.transport_at_birth(&self.head.headers) {
            Transport::Cookie => "cookie",
            Transport::Handle => "handles",
        };
        let answer = match opens {
            Some(whose) => whose.said("by the gateway, in Emporix' shape"),
            None => format!("by the gateway, in Emporix' shape; a session that begins here travels by {transport}"),
        };
        self.tell("answer", answer);
        Ok(())
    }

    fn own_route(&mut self, route: OwnRoute, target: &Target<'_>, tenant: Option<&EdgeTenant>) -> Result<(), Refused> {
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential").into());
        }
        let presented = Presented::take(&self.head.headers, self.cookies.name(), &[])?;
        let credential = self.judged(&presented, tenant).text();
        self.tell("credential", credential);
        self.proof(own::exposure(route, &presented), tenant.map_or(&[], |tenant| &tenant.origins))?;
        let judged = self.judged(&presented, tenant);
        let opens = judged.opens()?.ok_or(GatewayError::SessionRequired)?;
        if route != OwnRoute::Session && judged.is_visitors_handle() {
            return Err(Refused::NO_CUSTOMER);
        }
        self.tell("answer", opens.said("by the gateway itself"));
        Ok(())
    }

    fn api_route(
        &mut self,
        route: &ApiRoute,
        target: &Target<'_>,
        tenant: Option<&EdgeTenant>,
    ) -> Result<Whose, Refused> {
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential").into());
        }
        let visits = api::visits(&self.head, target)?.len();
        let presented = Presented::take(&self.head.headers, self.cookies.name(), &[])?;
        let credential = self.judged(&presented, tenant).text();
        self.tell("credential", credential);
        let (safe, upgrades) = (self.head.method.is_safe(), headers::asks_for_websocket(&self.head));
        self.proof(api::exposure(&presented, safe, upgrades), tenant.map_or(&[], |tenant| &tenant.origins))?;
        let judged = self.judged(&presented, tenant);
        let whose = if let Some(whose) = judged.opens()? {
            if route.access == Access::Customer && judged.acts_for_visitor() {
                return Err(Refused::NO_CUSTOMER);
            }
            whose
        } else if presented.bears_nothing() && api::creates_visitor(route, &self.head, tenant)? {
            Whose::Visitor
        } else if route.access == Access::Guest && safe && visits == 0 {
            Whose::Guest
        } else {
            return Err(GatewayError::SessionRequired.into());
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
        self.tell("answer", whose.said(&format!("by {}, {}", self.config.upstream.base_url, whose.text())));
        Ok(whose)
    }

    fn judged<'j>(&'j self, presented: &'j Presented, tenant: Option<&EdgeTenant>) -> Judged<'j> {
        Judged { presented, tenant: self.section(tenant), now: self.now }
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
    fn forward_auth(&mut self, route: &Route, target: &Target<'_>, passed: &Result<Whose, Refused>) {
        let method = &self.head.method;
        let asked = if !is_registered(method) || matches!(*method, Method::CONNECT | Method::TRACE) {
            Err(GatewayError::MethodNotAllowed)
        } else {
            check_disguise(target, &self.head.headers).and_then(|()| judgeable(route).map(|_| ()))
        };
        let text = match (asked, passed) {
            (Err(error), _) => Refused::from(error).to_string(),
            (Ok(()), Err(refused)) => refused.to_string(),
            (Ok(()), Ok(Whose::Visitor)) if !self.config.forward_auth.visitors => {
                Refused::from(GatewayError::SessionRequired).to_string()
            }
            (Ok(()), Ok(whose)) => whose.said("200"),
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
