//! Shared guest tokens: for reading a catalogue without a session, and for nothing that a visit could hang on.
//! One per tenant, held in memory and minted again when it is due.

use std::collections::HashMap;
use std::sync::Arc;

use super::Broker;
use super::shared::{Ages, Shared};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::session::{Freshness, ReadySession, Scope, Session, SessionKey, TenantId, Transport};

/// The tenants' shared guest tokens.
pub(super) struct GuestTokens(HashMap<TenantId, Shared<ReadySession>>);

impl Ages for ReadySession {
    fn age(&self, now: Timestamp) -> Freshness {
        self.freshness(Scope::Anonymous, now)
    }
}

impl GuestTokens {
    pub(super) fn new(tenants: impl Iterator<Item = TenantId>) -> Self {
        Self(tenants.map(|tenant| (tenant, Shared::default())).collect())
    }

    fn of(&self, tenant: &TenantId) -> Result<&Shared<ReadySession>, GatewayError> {
        self.0.get(tenant).ok_or(GatewayError::UnknownTenant)
    }
}

impl Broker {
    /// The tenant's shared guest token.
    pub(super) async fn shared_guest(self: &Arc<Self>, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        let Some(at_hand) = self.guests.of(tenant)?.at_hand(self.clock.now()) else {
            return self.fresh_guest(tenant).await;
        };
        if at_hand.wants_next {
            let (broker, tenant) = (self.clone(), *tenant);
            // Failing is fine while one lives.
            self.go_on(async move { drop(broker.fresh_guest(&tenant).await) });
        }
        Ok(at_hand.token)
    }

    async fn fresh_guest(&self, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        self.guests.of(tenant)?.fresh(self.clock.as_ref(), self.mint_guest(tenant)).await
    }

    /// Another guest token than `refused`.
    pub(super) async fn renew_shared_guest(
        &self,
        tenant: &TenantId,
        refused: &SessionKey,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        let is_refused = |ready: &ReadySession| ready.key == *refused;
        self.guests.of(tenant)?.other_than(is_refused, self.clock.as_ref(), self.mint_guest(tenant)).await
    }

    async fn mint_guest(&self, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        let (site, now) = (self.known_tenant(tenant)?.site.clone(), self.clock.now());
        let mut session = Session::new(SessionKey::random()?, *tenant, Transport::Handle, now, self.store.limits());
        session.set_anonymous(self.mint_half(&session, site).await?);
        Ok(self.ready_of(&session))
    }
}
