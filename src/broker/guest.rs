//! Shared guest tokens: for reading a catalogue without a session, and for nothing that a visit could hang on.
//! One per tenant, held in memory and minted again when it is due.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::Broker;
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::session::{Freshness, ReadySession, Scope, Session, SessionKey, TenantId, Transport};

/// The tenants' shared guest tokens.
pub(super) struct GuestTokens(HashMap<TenantId, GuestToken>);

#[derive(Default)]
struct GuestToken {
    current: ArcSwapOption<ReadySession>,
    minting: Mutex<LastFailure>,
}

/// Why and when minting last failed: those who waited for it need not try for themselves.
#[derive(Default)]
struct LastFailure(Option<(GatewayError, Timestamp)>);

impl LastFailure {
    fn just_failed(&self, now: Timestamp) -> Option<GatewayError> {
        const COOL_DOWN: Duration = Duration::from_secs(1);
        self.0.as_ref().filter(|(_, at)| now.since(*at) < COOL_DOWN).map(|(error, _)| error.clone())
    }
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
        let mut minting = guest.minting.lock().await;
        let current = guest.current.load_full();
        if let Some(ready) = &current
            && ready.freshness(Scope::Anonymous, now) == Freshness::Fresh
        {
            return Ok(ready.clone());
        }
        let lives = |ready: &Arc<ReadySession>| {
            !matches!(ready.freshness(Scope::Anonymous, now), Freshness::Expired | Freshness::Dead)
        };
        let minted = self.mint_in_turn(tenant, guest, &mut minting).await;
        minted.or_else(|error| current.filter(lives).ok_or(error))
    }

    /// Another guest token than `refused`.
    pub(super) async fn renew_shared_guest(
        &self,
        tenant: &TenantId,
        refused: &SessionKey,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        let guest = self.guests.of(tenant)?;
        let mut minting = guest.minting.lock().await;
        match guest.current.load_full() {
            Some(ready) if ready.key != *refused => Ok(ready),
            _ => self.mint_in_turn(tenant, guest, &mut minting).await,
        }
    }

    /// Mints, unless that failed a moment ago.
    async fn mint_in_turn(
        &self,
        tenant: &TenantId,
        guest: &GuestToken,
        last_failure: &mut LastFailure,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        if let Some(error) = last_failure.just_failed(self.clock.now()) {
            return Err(error);
        }
        let minted = self.mint_guest(tenant, guest).await;
        last_failure.0 = minted.as_ref().err().map(|error| (error.clone(), self.clock.now()));
        minted
    }

    async fn mint_guest(&self, tenant: &TenantId, guest: &GuestToken) -> Result<Arc<ReadySession>, GatewayError> {
        let (site, now) = (self.known_tenant(tenant)?.site.clone(), self.clock.now());
        let mut session = Session::new(SessionKey::random()?, *tenant, Transport::Handle, now, self.store.limits());
        session.set_anonymous(self.mint_half(&session, site).await?);
        let ready = self.ready_of(&session);
        guest.current.store(Some(ready.clone()));
        Ok(ready)
    }
}
