//! Requests of back-office callers: who is known passes to the routes of services, and to nothing else.
//! No credential of a customer means anything here, and no token of a service is ever shown.

use http::HeaderMap;
use pingora::protocols::http::ServerSession;

use super::bearer::BearerKey;
use super::forward::Passage;
use super::headers;
use super::route::Route;
use super::target::Target;
use super::{Ended, Gateway, Visit, check_framing, check_size};
use crate::config::Secret;
use crate::error::GatewayError;
use crate::telemetry::{Decision, RouteClass, Seldom};

static STRANGERS: Seldom = Seldom::new("the internal listener was asked without its token");

/// Who may call.
pub(super) struct Callers {
    token: Option<BearerKey>,
    /// Of the listener as it was opened: a changed configuration alone makes nobody known.
    handshake_proves: bool,
}

impl Callers {
    pub(super) fn new(token: Option<&Secret>, handshake_proves: bool) -> Self {
        Self { token: token.map(BearerKey::of), handshake_proves }
    }

    pub(super) const fn handshake_proves(&self) -> bool {
        self.handshake_proves
    }

    fn include(&self, headers: &HeaderMap) -> bool {
        self.token.as_ref().map_or(self.handshake_proves, |token| token.opens(headers))
    }
}

impl Gateway {
    /// The way of one request of the internal listener.
    pub(super) async fn internal_request<'g>(
        &'g self,
        http: &mut ServerSession,
        visit: &mut Visit<'g>,
    ) -> Result<Ended, GatewayError> {
        visit.class = RouteClass::Service;
        let head = http.req_header();
        check_size(&head.headers, self.limits_section.head_bytes)?;
        if !self.callers.include(&head.headers) {
            STRANGERS.warn();
            self.metrics.auth.count(Decision::Stranger);
            return Err(GatewayError::InternalTokenRequired);
        }
        check_framing(http)?;
        let raw = head.raw_path().to_vec();
        let target = Target::parse(&raw)?;
        let found = self.routes.find(head.method.as_str(), target.path);
        let Route::Service(route) = found.route else { return Err(GatewayError::Denied) };
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential"));
        }
        visit.tenant = self.tenant_of(&found, &target, head)?;
        let client = self.client_address(http, &[]).and_then(headers::address);
        let (visits, answer_headers) = (Vec::new(), Vec::new());
        let passage = Passage { route, visit, visits, client, answer_headers };
        let permit = self.broker.authenticate_service(&passage.demand(&[])).await?;
        let upload = self.take_upload(http, route).await?;
        self.forward(http, passage, permit, upload).await
    }
}
