//! Service tokens: what back-office callers act with, by client credentials that only the gateway holds.
//! One per tenant and service, in memory alone; there is no refreshing them, so each is fetched like the first.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use super::shared::{Ages, Shared};
use super::{Broker, Demand, Permit};
use crate::clock::Timestamp;
use crate::config::ServiceName;
use crate::config::routes::Access;
use crate::error::GatewayError;
use crate::identity::{IdentityError, ServiceClient};
use crate::session::{Freshness, Lifetime, ReadySession, Session, SessionKey, TenantId, Transport};
use crate::telemetry::Decision;

/// The services of one tenant, by name.
#[derive(Default)]
pub struct Services(HashMap<ServiceName, Service>);

/// A client, and the token that it has.
#[derive(Clone)]
struct Service {
    client: Arc<ServiceClient>,
    token: Arc<Shared<ServiceToken>>,
}

/// A service's token, ready to inject.
pub(super) struct ServiceToken {
    pub(super) bearer: HeaderValue,
    /// One that nobody can name: it tells this token from the next.
    pub(super) session: Arc<ReadySession>,
    lifetime: Lifetime,
}

impl Ages for ServiceToken {
    fn age(&self, now: Timestamp) -> Freshness {
        self.lifetime.freshness(now)
    }
}

impl Services {
    /// These services, none of which has a token yet.
    pub fn new(clients: impl Iterator<Item = (ServiceName, ServiceClient)>) -> Self {
        let service = |client| Service { client: Arc::new(client), token: Arc::default() };
        Self(clients.map(|(name, client)| (name, service(client))).collect())
    }

    /// Takes over the tokens of `earlier` ones that the same clients asked for with the same scopes.
    pub(super) fn inherit(&mut self, earlier: &Self) {
        for (name, service) in &mut self.0 {
            let known = earlier.0.get(name).filter(|known| {
                known.client.client_id == service.client.client_id && known.client.scope == service.client.scope
            });
            if let Some(known) = known {
                service.token = known.token.clone();
            }
        }
    }
}

impl Broker {
    /// Lets a request of a back-office caller pass, with the token of the service that `demand` names.
    ///
    /// # Errors
    /// When the tenant has no such service, or Emporix gives no token for it.
    pub async fn authenticate_service(self: &Arc<Self>, demand: &Demand<'_>) -> Result<Permit, GatewayError> {
        let result = self.service_permit(demand).await;
        self.metrics.auth.count(match &result {
            Ok(_) => Decision::Service,
            Err(error) if error.status() >= 500 => Decision::Unknowable,
            Err(_) => Decision::Forbidden,
        });
        result
    }

    async fn service_permit(self: &Arc<Self>, demand: &Demand<'_>) -> Result<Permit, GatewayError> {
        let (tenant, service) = self.service_of(demand)?;
        let Some(at_hand) = service.token.at_hand(self.clock.now()) else {
            return self.fresh_service_token(tenant, &service).await.map(|token| Permit::service(&token));
        };
        if at_hand.wants_next {
            let (broker, tenant) = (self.clone(), *tenant);
            // Failing is fine while one lives.
            self.go_on(async move { drop(broker.fresh_service_token(&tenant, &service).await) });
        }
        Ok(Permit::service(&at_hand.token))
    }

    async fn fresh_service_token(
        &self,
        tenant: &TenantId,
        service: &Service,
    ) -> Result<Arc<ServiceToken>, GatewayError> {
        service.token.fresh(self.clock.as_ref(), self.fetch_service_token(tenant, service)).await
    }

    /// Another token of the service than the refused one of `permit`.
    pub(super) async fn renew_service(&self, permit: &Permit, demand: &Demand<'_>) -> Result<Permit, GatewayError> {
        let (tenant, service) = self.service_of(demand)?;
        let is_refused = |token: &ServiceToken| token.session.key == *permit.key();
        let fetch = self.fetch_service_token(tenant, &service);
        let token = service.token.other_than(is_refused, self.clock.as_ref(), fetch).await?;
        Ok(Permit::service(&token))
    }

    fn service_of<'d>(&self, demand: &Demand<'d>) -> Result<(&'d TenantId, Service), GatewayError> {
        let Access::Service(name) = demand.access else { return Err(GatewayError::Denied) };
        let tenant = demand.tenant.ok_or(GatewayError::UnknownTenant)?;
        let service = self.known_tenant(tenant)?.services.0.get(name).cloned();
        Ok((tenant, service.ok_or(GatewayError::Denied)?))
    }

    async fn fetch_service_token(
        &self,
        tenant: &TenantId,
        service: &Service,
    ) -> Result<Arc<ServiceToken>, GatewayError> {
        let client = &service.client;
        let issued = self.identity.service_token(tenant, client).await.map_err(|error| match error {
            // What is wrong with the credentials is the operator's business, not the caller's.
            IdentityError::Refused(_) => GatewayError::IdentityUnavailable("a service's client was refused"),
            other => other.into(),
        })?;
        let granted = issued.fields.get("scope").and_then(Value::as_str);
        if granted.is_some_and(|granted| is_less(granted, &client.scope)) {
            tracing::warn!(%tenant, scope = client.scope, "Emporix grants a service less than the scope it asks for");
        }
        let limits = self.store.limits();
        let session = Session::new(SessionKey::random()?, *tenant, Transport::Handle, self.clock.now(), limits);
        Ok(Arc::new(ServiceToken {
            bearer: issued.tokens.access.to_bearer(),
            session: self.ready_of(&session),
            lifetime: issued.tokens.lifetime_of_access(limits.refresh_margin),
        }))
    }
}

/// Whether a scope that was asked for is not among those that are granted: Emporix drops them without a word.
fn is_less(granted: &str, asked: &str) -> bool {
    asked.split_whitespace().any(|scope| granted.split_whitespace().all(|granted| granted != scope))
}
