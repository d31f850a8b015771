//! Shared guest tokens: for reading a catalogue without a session, and for nothing that a visit could hang on.
//! One per tenant, held in memory and minted again when it is due.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::Broker;
use crate::error::GatewayError;
use crate::session::{Freshness, ReadySession, Scope, Session, SessionKey, TenantId, Transport};

/// The tenants' shared guest tokens.
pub(super) struct GuestTokens(HashMap<TenantId, GuestToken>);

#[derive(Default)]
struct GuestToken {
    current: ArcSwapOption<ReadySession>,
    minting: Mutex<()>,
}

impl GuestTokens {
    pub(super) fn new(tenants: impl Iterator<Item = TenantId>) -> Self {
        Self(tenants.map(|tenant| (tenant, GuestToken::default())).collect())
    }

    fn of(&self, tenant: &TenantId) -> Result<&GuestToken, GatewayError> {
        self.0.get(tenant).ok_or(GatewayError::UnknownTenant)
    }
}

impl Broker {
    /// The tenant's shared guest token. One that is due is served while one request fetches the next.
    pub(super) async fn shared_guest(&self, tenant: &TenantId) -> Result<Arc<ReadySession>, GatewayError> {
        let guest = self.guests.of(tenant)?;
        let now = self.clock.now();
        let usable = |ready: &Arc<ReadySession>| match ready.freshness(Scope::Anonymous, now) {
            Freshness::Fresh => true,
            Freshness::RefreshDue | Freshness::Final => guest.minting.try_lock().is_err(),
            Freshness::Expired | Freshness::Dead => false,
        };
        if let Some(ready) = guest.current.load_full().filter(usable) {
            return Ok(ready);
        }
        let _minting = guest.minting.lock().await;
        if let Some(ready) = guest.current.load_full()
            && ready.freshness(Scope::Anonymous, now) == Freshness::Fresh
        {
            return Ok(ready);
        }
        self.mint_guest(tenant, guest).await
    }

    /// Another guest token than `refused`.
    pub(super) async fn renew_shared_guest(
        &self,
        tenant: &TenantId,
        refused: &SessionKey,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        let guest = self.guests.of(tenant)?;
        let _minting = guest.minting.lock().await;
        match guest.current.load_full() {
            Some(ready) if ready.key != *refused => Ok(ready),
            _ => self.mint_guest(tenant, guest).await,
        }
    }

    async fn mint_guest(&self, tenant: &TenantId, guest: &GuestToken) -> Result<Arc<ReadySession>, GatewayError> {
        let (site, now) = (self.known_tenant(tenant)?.site.clone(), self.clock.now());
        let mut session =
            Session::new(SessionKey::random()?, tenant.clone(), Transport::Handle, now, self.store.limits());
        session.set_anonymous(self.mint_half(&session, site).await?);
        let ready = self.ready_of(&session);
        guest.current.store(Some(ready.clone()));
        Ok(ready)
    }
}
