//! API requests: from the head to a permit, then forward. Forward-auth asks for the permit alone.
//! Browsers without a session get one on the way; nobody else does.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::SET_COOKIE;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use super::forward::Passage;
use super::headers;
use super::proof::{self, Exposure};
use super::route::ApiRoute;
use super::slots::Presented;
use super::target::{Target, is_visit_name};
use super::{EdgeTenant, Ended, Gateway, Visit};
use crate::broker::{Credential, Demand, Permit};
use crate::config::routes::{Access, RouteLimit};
use crate::error::GatewayError;
use crate::session::Transport;
use crate::telemetry::trace::{SpanKind, spanned};

/// A request that asks to pass to the API.
pub(super) struct Asked<'a> {
    pub(super) head: &'a RequestHeader,
    pub(super) route: &'a ApiRoute,
    pub(super) target: &'a Target<'a>,
    /// Where the client is.
    pub(super) address: Option<IpAddr>,
    /// Whether it asks for another protocol.
    pub(super) upgrades: bool,
    /// Whether the answer can give a browser its first cookie.
    pub(super) can_set_cookie: bool,
}

impl Gateway {
    /// The way of an API request.
    pub(super) async fn api_request(
        &self,
        http: &mut ServerSession,
        route: &ApiRoute,
        target: &Target<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<Ended, GatewayError> {
        let address = self.client_address(http, &[]);
        let head = http.req_header();
        let upgrades = headers::asks_for_websocket(head);
        let asked = Asked { head, route, target, address, upgrades, can_set_cookie: true };
        let (permit, visits) = self.decide(&asked, visit).await?;
        let upload = self.take_upload(http, route).await?;
        if route.limit == RouteLimit::SignIn {
            // The account that a sign-up or reset names.
            let email = upload.member("email");
            self.limits.sign_in(address, visit.tenant_id().zip(email.as_ref().map(|email| email.as_str())))?;
        }
        let client = address.and_then(headers::address);
        // A problem on the way down owes the page the same headers.
        let answer_headers = visit.cors.clone();
        let passage = Passage { route, visit, visits, client, answer_headers };
        self.forward(http, passage, permit, upload).await
    }

    /// The one decision: whether a request may pass, and as whom; and the ids of the visits that it names.
    pub(super) async fn decide(
        &self,
        asked: &Asked<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(Permit, Vec<String>), GatewayError> {
        let Asked { head, route, target, address, upgrades, can_set_cookie } = *asked;
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential"));
        }
        let visits = visits(head, target)?;
        let presented = Presented::take(&head.headers, self.cookies.name(), &[]);
        visit.by_cookie = matches!(presented, Err(GatewayError::SessionGone));
        let presented = presented?;
        let safe = head.method.is_safe();
        proof::demand(&head.headers, visit.origins(), exposure(&presented, safe, upgrades))?;
        let bears_nothing = presented.bears_nothing();
        let mut credential = Self::noted(visit, presented);
        if bears_nothing && can_set_cookie && creates_visitor(route, head, visit.tenant)? {
            self.limits.visitor(address)?;
            let tenant = visit.tenant_id().ok_or(GatewayError::UnknownTenant)?;
            let cookie = Box::pin(self.broker.visitor_on_demand(tenant)).await?;
            visit.cors.push((SET_COOKIE, self.cookies.set(&cookie)));
            credential = Some(Credential::Cookie(cookie, None));
        }
        let named: Vec<&str> = visits.iter().map(AsRef::as_ref).collect();
        let demand = Demand {
            tenant: visit.tenant_id(),
            access: &route.access,
            inject: route.inject,
            saas_token: route.saas_token,
            visits: &named,
            safe,
        };
        let authenticate = || self.broker.authenticate(&demand, credential.as_ref());
        let permit = match visit.span {
            None => authenticate().await?,
            Some(_) => Box::pin(spanned(("authenticate", ""), SpanKind::Internal, authenticate())).await?,
        };
        Ok((permit, visits.into_iter().map(Cow::into_owned).collect()))
    }
}

/// What an API request risks.
pub(super) const fn exposure(presented: &Presented, safe: bool, upgrades: bool) -> Exposure {
    Exposure {
        rides_on_cookie: presented.cookie || presented.placeholder,
        may_set_cookie: false,
        changes_state: !safe || upgrades,
    }
}

/// Whether this request brings a visitor into being: a browser's, on a route that needs one, with proof.
pub(super) fn creates_visitor(
    route: &ApiRoute,
    head: &RequestHeader,
    tenant: Option<&EdgeTenant>,
) -> Result<bool, GatewayError> {
    let Some(tenant) = tenant else { return Ok(false) };
    if route.access != Access::Visitor || tenant.transport_at_birth(&head.headers) != Transport::Cookie {
        return Ok(false);
    }
    let exposure = Exposure { rides_on_cookie: false, may_set_cookie: true, changes_state: true };
    proof::demand(&head.headers, &tenant.origins, exposure)?;
    Ok(true)
}

/// The ids of visits that a request names, in its query and its headers.
pub(super) fn visits<'r>(head: &'r RequestHeader, target: &Target<'r>) -> Result<Vec<Cow<'r, str>>, GatewayError> {
    let mut visits: Vec<Cow<'_, str>> = target.visits().collect();
    for (name, value) in &head.headers {
        if name.as_str().len() <= 10 && is_visit_name(name.as_str()) {
            visits.push(Cow::Borrowed(value.to_str().map_err(|_| GatewayError::VisitMismatch)?));
        }
    }
    Ok(visits)
}
