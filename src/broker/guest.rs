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
    pub(super) async fn shared_guest(&self, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        let guest = self.guests.of(tenant)?;
        match guest.at_hand(self.clock.now()) {
            Some(ready) => Ok(ready),
            None => guest.fresh(self.clock.as_ref(), self.mint_guest(tenant)).await,
        }
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
