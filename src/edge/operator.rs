//! The operators' API: `/admin/sessions` shows a customer's sessions, `/admin/sessions/revoke` ends sessions.
//! Opens to the admin token alone, and shows labels where sessions and customers would be named.

use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::http::ServerSession;
use serde::Deserialize;

use super::bearer::{self, BearerKey};
use super::respond::Answer;
use super::target::Target;
use super::upload::read_json;
use crate::broker::{Broker, Revocation};
use crate::config::Secret;
use crate::error::GatewayError;
use crate::session::{SessionLabel, TenantId};
use crate::telemetry::Seldom;

/// Bounds on what an operator sends.
const MOST_BODY_BYTES: usize = 4_096;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_CUSTOMER_BYTES: usize = 256;

static STRANGERS: Seldom = Seldom::new("the operators' API was asked without its token");

/// Sessions, for operators.
#[derive(Clone)]
pub(super) struct Sessions {
    broker: Arc<Broker>,
    key: BearerKey,
}

/// Which sessions to end: one customer's, one by its label, or all of a tenant's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    tenant: Option<String>,
    customer: Option<String>,
    session: Option<String>,
    #[serde(default)]
    all: bool,
}

impl Sessions {
    /// The API that `token` opens.
    pub(super) fn new(broker: Arc<Broker>, token: &Secret) -> Self {
        Self { broker, key: BearerKey::of(token) }
    }

    /// Answers a request below `/admin/`.
    pub(super) async fn answer(&self, http: &mut ServerSession) -> Answer {
        let head = http.req_header();
        if !self.key.opens(&head.headers) {
            STRANGERS.warn();
            return bearer::wanted(Answer::problem(&GatewayError::AdminTokenRequired));
        }
        let answer = match (head.method.as_str(), head.uri.path()) {
            ("GET", "/admin/sessions") => self.list(http).await,
            ("POST", "/admin/sessions/revoke") => self.revoke(http).await,
            (_, "/admin/sessions" | "/admin/sessions/revoke") => Err(GatewayError::MethodNotAllowed),
            _ => Err(GatewayError::UnknownRoute),
        };
        answer.unwrap_or_else(|error| Answer::problem(&error))
    }

    async fn list(&self, http: &ServerSession) -> Result<Answer, GatewayError> {
        let raw = http.req_header().raw_path().to_vec();
        let target = Target::parse(&raw)?;
        let one = |name: &str| {
            let mut values = target.parameters().filter(|(given, _)| given == name).map(|(_, value)| value);
            values.next().filter(|_| values.next().is_none())
        };
        let (Some(tenant), Some(customer)) = (one("tenant"), one("customer")) else {
            return Err(GatewayError::BadRequest("expected tenant and customer, once each"));
        };
        let listing = self.broker.sessions_of(&tenant_of(&tenant)?, known_form(&customer)?).await?;
        Ok(Answer::json(200, &listing))
    }

    async fn revoke(&self, http: &mut ServerSession) -> Result<Answer, GatewayError> {
        let body = read_json(http, MOST_BODY_BYTES, BODY_TIMEOUT).await?;
        let asked: Asked = serde_json::from_slice(&body)
            .map_err(|_| GatewayError::BadRequest("expected a JSON object with tenant and customer, session or all"))?;
        Ok(Answer::json(200, &self.broker.revoke(asked.revocation()?).await?))
    }
}

impl Asked {
    fn revocation(self) -> Result<Revocation, GatewayError> {
        const ONE_OF_THREE: GatewayError =
            GatewayError::BadRequest("expected tenant and customer, or session, or tenant and all: true");
        let tenant = self.tenant.as_deref().map(tenant_of).transpose()?;
        match (tenant, self.customer, self.session, self.all) {
            (Some(tenant), Some(customer), None, false) => {
                Ok(Revocation::Customer(tenant, known_form(&customer)?.to_owned()))
            }
            (tenant, None, Some(label), false) => {
                let label = SessionLabel::parse(&label)
                    .ok_or(GatewayError::BadRequest("expected a session's label: 16 hexadecimal digits"))?;
                Ok(Revocation::Session(tenant, label))
            }
            (Some(tenant), None, None, true) => Ok(Revocation::Tenant(tenant)),
            _ => Err(ONE_OF_THREE),
        }
    }
}

fn tenant_of(name: &str) -> Result<TenantId, GatewayError> {
    TenantId::parse(name).ok_or(GatewayError::UnknownTenant)
}

fn known_form(customer: &str) -> Result<&str, GatewayError> {
    if customer.is_empty() || customer.len() > MOST_CUSTOMER_BYTES {
        return Err(GatewayError::BadRequest("expected a customer number"));
    }
    Ok(customer)
}
