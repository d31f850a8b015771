//! Shared guest tokens: for reading a catalogue without a session, and for nothing that a visit could hang on.
//! One per tenant and its site, held in memory and minted again when it is due.

use std::sync::Arc;

use super::shared::{Ages, Shared};
use super::{Broker, Tenant};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::session::{Freshness, ReadySession, Scope, Session, SessionKey, TenantId, Transport};

/// A tenant's shared guest token.
#[derive(Clone, Default)]
pub struct GuestToken(Arc<Shared<ReadySession>>);

impl Ages for ReadySession {
    fn age(&self, now: Timestamp) -> Freshness {
        self.freshness(Scope::Anonymous, now)
    }
}

impl Broker {
    /// The tenant's shared guest token.
    pub(super) async fn shared_guest(self: &Arc<Self>, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        let known = self.known_tenant(tenant)?;
        let Some(at_hand) = known.guest.0.at_hand(self.clock.now()) else { return self.fresh_guest(&known).await };
        if at_hand.wants_next {
            let (broker, known) = (self.clone(), Arc::clone(&known));
            // Failing is fine while one lives.
            self.go_on(async move { drop(broker.fresh_guest(&known).await) });
        }
        Ok(at_hand.token)
    }

    async fn fresh_guest(&self, tenant: &Tenant) -> Result<Arc<ReadySession>, GatewayError> {
        tenant.guest.0.fresh(self.clock.as_ref(), self.mint_guest(tenant)).await
    }

    /// Another guest token than `refused`.
    pub(super) async fn renew_shared_guest(
        &self,
        tenant: &TenantId,
        refused: &SessionKey,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        let known = self.known_tenant(tenant)?;
        let is_refused = |ready: &ReadySession| ready.key == *refused;
        known.guest.0.other_than(is_refused, self.clock.as_ref(), self.mint_guest(&known)).await
    }

    async fn mint_guest(&self, tenant: &Tenant) -> Result<Arc<ReadySession>, GatewayError> {
        let limits = self.store.limits();
        let mut session = Session::new(SessionKey::random()?, tenant.id, Transport::Handle, self.clock.now(), limits);
        session.set_anonymous(self.mint_half(&session, tenant.site.clone()).await?);
        Ok(self.ready_of(&session))
    }
}
