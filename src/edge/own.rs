//! The gateway's own endpoints on the public listener: who am I, log me out, log me out everywhere.
//! They tell of a session, and never a token.

use pingora::protocols::http::ServerSession;

use super::proof::{self, Exposure};
use super::respond::Answer;
use super::route::OwnRoute;
use super::slots::Presented;
use super::target::Target;
use super::{Gateway, Visit};
use crate::error::GatewayError;

impl Gateway {
    /// Answers an endpoint of our own.
    pub(super) async fn own_route(
        &self,
        http: &ServerSession,
        route: OwnRoute,
        target: &Target<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<Answer, GatewayError> {
        if target.carries_credential(&[]) {
            return Err(GatewayError::BadTarget("it carries a credential"));
        }
        let headers = &http.req_header().headers;
        let presented = Presented::take(headers, self.cookies.name(), &[]);
        visit.by_cookie = matches!(presented, Err(GatewayError::SessionGone));
        let presented = presented?;
        proof::demand(headers, visit.origins(), exposure(route, &presented))?;
        let credential = Self::noted(visit, presented).ok_or(GatewayError::SessionRequired)?;
        let tenant = visit.tenant_id();
        match route {
            OwnRoute::Session => Ok(Answer::json(200, &self.broker.view(tenant, &credential).await?)),
            OwnRoute::Logout => {
                self.broker.logout(tenant, &credential).await?;
                Ok(self.logged_out(&credential))
            }
            OwnRoute::LogoutAll => {
                self.broker.logout_all(tenant, &credential).await?;
                Ok(self.logged_out(&credential))
            }
        }
    }
}

/// What an endpoint of our own risks: all but one end sessions.
pub(super) fn exposure(route: OwnRoute, presented: &Presented) -> Exposure {
    Exposure {
        rides_on_cookie: presented.cookie || presented.placeholder,
        may_set_cookie: false,
        changes_state: route != OwnRoute::Session,
    }
}
