//! The routes that the gateway answers in Emporix' place: every one that carries a token.
//! Reads what they take, asks the broker, and spells out the answer; nothing of them is ever proxied.

use http::HeaderMap;
use http::header::SET_COOKIE;
use pingora::protocols::http::ServerSession;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::proof::{self, Exposure};
use super::respond::Answer;
use super::route::TokenRoute;
use super::slots::{Presented, QuerySlot};
use super::target::Target;
use super::{EdgeTenant, Gateway, Visit};
use crate::broker::{Credential, Grant, LoginOptions};
use crate::error::GatewayError;
use crate::session::{HandleKind, SiteContext, TenantId, Transport};

/// The body of a login.
#[derive(Deserialize)]
struct LoginBody {
    email: String,
    password: String,
}

impl Gateway {
    /// Answers a token route.
    pub(super) async fn token_route(
        &self,
        http: &mut ServerSession,
        route: TokenRoute,
        target: &Target<'_>,
        path_token: Option<&str>,
        visit: &mut Visit<'_>,
    ) -> Result<Answer, GatewayError> {
        let tenant = *visit.tenant_id().ok_or(GatewayError::UnknownTenant)?;
        let slots: Vec<&str> = slots(route).iter().map(|(name, _)| *name).collect();
        if target.carries_credential(&slots) {
            return Err(GatewayError::BadTarget("it carries a credential where none belongs"));
        }
        let query = Query::parse(target)?;
        let credential = self.credential_of(http, route, &query, &tenant, visit)?;
        match route {
            TokenRoute::AnonymousLogin => self.anonymous_login(http, &tenant, credential, &query).await,
            TokenRoute::AnonymousRefresh => {
                let credential = credential.ok_or(GatewayError::SessionEnded)?;
                let mut granted = self.broker.anonymous_refresh(&tenant, &credential).await?;
                // Emporix, too, gives no refresh token to who comes with an access token.
                granted.has_refresh &= query.get("refresh_token").is_some() || query.get("anonymous_token").is_none();
                Ok(Answer::granted(&granted, &self.cookies))
            }
            TokenRoute::Login | TokenRoute::SocialLogin | TokenRoute::Exchange | TokenRoute::OptIn => {
                let grant = self.grant(http, route, &query, path_token).await?;
                self.limit_sign_in(http, &tenant, &grant)?;
                let options = self.login_options(http, &tenant)?;
                let granted = self.broker.login(&tenant, credential.as_ref(), grant, options).await?;
                Ok(Answer::granted(&granted, &self.cookies))
            }
            TokenRoute::Refresh => {
                let credential = credential.ok_or(GatewayError::SessionRequired)?;
                let legal_entity = query.get("legalEntityId").filter(|id| !id.is_empty()).map(str::to_owned);
                let granted = self.broker.refresh(&tenant, &credential, legal_entity).await?;
                Ok(Answer::granted(&granted, &self.cookies))
            }
            TokenRoute::Logout => {
                let credential = credential.ok_or(GatewayError::SessionRequired)?;
                self.log_out(&tenant, &credential).await
            }
        }
    }

    /// Ends the session; the browser's cookie goes with it.
    pub(super) async fn log_out(&self, tenant: &TenantId, credential: &Credential) -> Result<Answer, GatewayError> {
        self.broker.logout(Some(tenant), credential).await?;
        Ok(self.logged_out(credential))
    }

    /// 204, and the end of the cookie.
    pub(super) fn logged_out(&self, credential: &Credential) -> Answer {
        let answer = Answer::empty(204);
        match credential {
            Credential::Cookie(..) => answer.with(SET_COOKIE, self.cookies.expire()),
            _ => answer,
        }
    }

    /// The credential of a token route, once the request has proven that it is the storefront's own.
    fn credential_of(
        &self,
        http: &ServerSession,
        route: TokenRoute,
        query: &Query,
        tenant: &TenantId,
        visit: &mut Visit<'_>,
    ) -> Result<Option<Credential>, GatewayError> {
        let headers = &http.req_header().headers;
        let edge_tenant = self.tenants.get(tenant.as_str())?;
        let presented = presented(headers, self.cookies.name(), route, query, &mut visit.by_cookie)?;
        let exposure = exposure(headers, route, &presented, edge_tenant);
        proof::demand(headers, &edge_tenant.origins, exposure)?;
        Ok(Self::noted(visit, presented))
    }

    async fn anonymous_login(
        &self,
        http: &ServerSession,
        tenant: &TenantId,
        credential: Option<Credential>,
        query: &Query,
    ) -> Result<Answer, GatewayError> {
        let transport = self.edge_tenant(tenant)?.transport_at_birth(&http.req_header().headers);
        let asked = query.site()?;
        let address = self.client_address(http, &[]);
        let may_mint = || self.limits.visitor(address);
        let granted = self.broker.anonymous_login(tenant, credential.as_ref(), asked, transport, may_mint).await?;
        Ok(Answer::granted(&granted, &self.cookies))
    }

    async fn grant(
        &self,
        http: &mut ServerSession,
        route: TokenRoute,
        query: &Query,
        path_token: Option<&str>,
    ) -> Result<Grant, GatewayError> {
        let secret = |name: &'static str| {
            query.get(name).filter(|value| !value.is_empty()).map(|value| Zeroizing::new(value.to_owned()))
        };
        let text = |name: &str| query.get(name).filter(|value| !value.is_empty()).map(str::to_owned);
        Ok(match route {
            TokenRoute::SocialLogin => Grant::Social {
                code: secret("code").ok_or(GatewayError::BadRequest("code is missing"))?,
                redirect_uri: text("redirect_uri"),
                code_verifier: secret("code_verifier"),
                state: text("state"),
                session_id: visit_header(&http.req_header().headers)?,
            },
            TokenRoute::Exchange => Grant::Exchange {
                subject_access_token: secret("subjectAccessToken")
                    .ok_or(GatewayError::BadRequest("subjectAccessToken is missing"))?,
                config: text("config"),
            },
            TokenRoute::OptIn => Grant::OptIn { token: Zeroizing::new(opt_in_token(path_token)?.to_owned()) },
            _ => self.read_login(http).await?,
        })
    }

    /// Reads a login's body.
    async fn read_login(&self, http: &mut ServerSession) -> Result<Grant, GatewayError> {
        let body = self.read_json(http).await?;
        let LoginBody { email, password } = serde_json::from_slice(&body)
            .map_err(|_| GatewayError::BadRequest("expected a JSON object with email and password"))?;
        if email.trim().is_empty() || password.is_empty() {
            return Err(GatewayError::BadRequest("email and password must not be empty"));
        }
        Ok(Grant::Password { email, password: Zeroizing::new(password) })
    }

    fn limit_sign_in(&self, http: &ServerSession, tenant: &TenantId, grant: &Grant) -> Result<(), GatewayError> {
        self.limits.sign_in(self.client_address(http, &[]), grant.email().map(|email| (tenant, email)))
    }

    fn login_options(&self, http: &ServerSession, tenant: &TenantId) -> Result<LoginOptions, GatewayError> {
        let headers = &http.req_header().headers;
        let transport = self.edge_tenant(tenant)?.transport_at_birth(headers);
        Ok(LoginOptions { transport, no_browser: !proof::is_browsers(headers) })
    }

    fn edge_tenant(&self, tenant: &TenantId) -> Result<&EdgeTenant, GatewayError> {
        self.tenants.get(tenant.as_str())
    }
}

/// What a token route takes for its credential; `by_cookie` notes whether the cookie's session is gone.
pub(super) fn presented(
    headers: &HeaderMap,
    cookie_name: &str,
    route: TokenRoute,
    query: &Query,
    by_cookie: &mut bool,
) -> Result<Presented, GatewayError> {
    let presented = Presented::take(headers, cookie_name, &query.slots(route));
    let forgives = route == TokenRoute::AnonymousLogin;
    *by_cookie = matches!(presented, Err(GatewayError::SessionGone));
    let mut presented = match presented {
        // A dead credential on anonymous login is as good as none.
        Err(GatewayError::SessionGone | GatewayError::SessionEnded) if forgives => {
            Presented { cookie: *by_cookie, ..Presented::default() }
        }
        presented => presented?,
    };
    // Foreign Bearers are adopted on API routes alone.
    if matches!(presented.credential, Some(Credential::Foreign(_))) {
        if !forgives {
            return Err(GatewayError::SessionEnded);
        }
        presented.credential = None;
    }
    Ok(presented)
}

/// What a token route risks: it changes state, also by GET, and may give birth to a cookie.
pub(super) fn exposure(headers: &HeaderMap, route: TokenRoute, presented: &Presented, tenant: &EdgeTenant) -> Exposure {
    let gives_birth = presented.credential.is_none() && !matches!(route, TokenRoute::Refresh | TokenRoute::Logout);
    Exposure {
        rides_on_cookie: presented.cookie || presented.placeholder,
        may_set_cookie: gives_birth && tenant.transport_at_birth(headers) == Transport::Cookie,
        changes_state: true,
    }
}

/// The parameters of a token route; each at most once.
pub(super) struct Query(Vec<(String, Zeroizing<String>)>);

impl Query {
    pub(super) fn parse(target: &Target<'_>) -> Result<Self, GatewayError> {
        let mut parameters: Vec<(String, Zeroizing<String>)> = Vec::new();
        for (name, value) in target.parameters() {
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(GatewayError::BadRequest("a parameter stands twice"));
            }
            parameters.push((name.into_owned(), Zeroizing::new(value.into_owned())));
        }
        Ok(Self(parameters))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The parameters of `route` that hold a credential; the first one counts.
    fn slots(&self, route: TokenRoute) -> Vec<QuerySlot<'_>> {
        let present =
            |(name, takes): &(&str, HandleKind)| self.get(name).map(|value| QuerySlot { value, takes: *takes });
        slots(route).iter().filter_map(present).collect()
    }

    fn site(&self) -> Result<SiteContext, GatewayError> {
        let text = |name: &str| match self.get(name) {
            None | Some("") => Ok(None),
            Some(value) if value.len() <= 64 && value.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(Some(value.to_owned()))
            }
            Some(_) => Err(GatewayError::BadRequest("currency, siteCode, language or targetLocation is malformed")),
        };
        Ok(SiteContext {
            currency: text("currency")?,
            site_code: text("siteCode")?,
            language: text("language")?,
            target_location: text("targetLocation")?,
        })
    }
}

/// The query parameters of `route` that hold a credential, and its kind; the first that is present counts.
pub(super) const fn slots(route: TokenRoute) -> &'static [(&'static str, HandleKind)] {
    match route {
        TokenRoute::Refresh => &[("refreshToken", HandleKind::CustomerRefresh)],
        TokenRoute::Logout => &[("accessToken", HandleKind::CustomerAccess)],
        TokenRoute::AnonymousRefresh => {
            &[("refresh_token", HandleKind::AnonymousRefresh), ("anonymous_token", HandleKind::AnonymousAccess)]
        }
        TokenRoute::SocialLogin => &[("anonymous_token", HandleKind::AnonymousAccess)],
        _ => &[],
    }
}

fn opt_in_token(token: Option<&str>) -> Result<&str, GatewayError> {
    let fits =
        |token: &&str| token.len() <= 512 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
    token.filter(fits).ok_or(GatewayError::BadRequest("the token is malformed"))
}

fn visit_header(headers: &HeaderMap) -> Result<Option<String>, GatewayError> {
    let Some(value) = headers.get("session-id") else { return Ok(None) };
    let text = value.to_str().map_err(|_| GatewayError::BadRequest("session-id is malformed"))?;
    Ok(Some(text.to_owned()))
}
