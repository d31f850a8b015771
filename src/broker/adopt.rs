//! Takes foreign Bearers into sessions, while a live shop moves over to the gateway.
//! Each is validated once upstream; from then on its exact text names the session.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Mutex, MutexGuard};

use super::Broker;
use super::authenticate::Opened;
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::identity::IdentityError;
use crate::session::{CustomerHalf, Scope, Session, SessionKey, TenantId, Token, TokenSet, Transport};
use crate::store::{Alias, Collision, CustomerName};
use crate::telemetry::SessionEvent;

/// Adoptions under way, and Bearers that open nothing.
pub(super) struct Adoptions {
    turns: [Mutex<()>; 64],
    refused: Cache<Alias, ()>,
}

impl Default for Adoptions {
    fn default() -> Self {
        const REFUSED_FOR: Duration = Duration::from_secs(30);
        let refused = Cache::builder().max_capacity(100_000).time_to_live(REFUSED_FOR).build();
        Self { turns: std::array::from_fn(|_| Mutex::new(())), refused }
    }
}

impl Adoptions {
    async fn turn(&self, alias: &Alias) -> MutexGuard<'_, ()> {
        self.turns[usize::from(alias.hash[0]) % self.turns.len()].lock().await
    }
}

impl Broker {
    /// Opens the session of a foreign Bearer: one of before, or a new one where the tenant still adopts them.
    pub(super) async fn open_foreign(
        self: &Arc<Self>,
        tenant: &TenantId,
        token: &Token,
        now: Timestamp,
    ) -> Result<Opened, GatewayError> {
        let adopt_until = self.known_tenant(tenant)?.adopt_until.ok_or(GatewayError::SessionEnded)?;
        let alias = Alias::of(*tenant, token.expose().as_bytes());
        let key = match self.store.verdict(&alias, now) {
            Some(key) => key,
            None if now < adopt_until => self.adopted(tenant, token, &alias, now).await?,
            None => self.adopted_before(&alias).await?,
        };
        let ready = self.find(&key, now).await?;
        self.store.remember_verdict(alias, key, ready.expires_at);
        Ok(Opened { ready, scope: Scope::Customer, named: Some(Scope::Customer) })
    }

    /// The session that the Bearer was taken into when it was the time for that.
    async fn adopted_before(&self, alias: &Alias) -> Result<SessionKey, GatewayError> {
        let known = self.known_adoption(alias).await?;
        known.ok_or_else(|| {
            self.adoptions.refused.insert(alias.clone(), ());
            GatewayError::SessionEnded
        })
    }

    /// The session that the Bearer was taken into, now or before. One request asks Emporix, the others of a page load
    /// wait for it; what Emporix does not know is not asked again for a while.
    async fn adopted(
        self: &Arc<Self>,
        tenant: &TenantId,
        token: &Token,
        alias: &Alias,
        now: Timestamp,
    ) -> Result<SessionKey, GatewayError> {
        if let Some(key) = self.known_adoption(alias).await? {
            return Ok(key);
        }
        let turn = tokio::time::timeout(self.settings.identity_timeout, self.adoptions.turn(alias)).await;
        let _turn = turn.map_err(|_| GatewayError::IdentityUnavailable("too many Bearers wait to be adopted"))?;
        if let Some(key) = self.known_adoption(alias).await? {
            return Ok(key);
        }
        let adopted = self.adopt(tenant, token, alias, now).await;
        if matches!(adopted, Err(GatewayError::SessionEnded)) {
            self.adoptions.refused.insert(alias.clone(), ());
        }
        adopted
    }

    /// The session of a Bearer that was adopted before; an error when it opened nothing a moment ago.
    async fn known_adoption(&self, alias: &Alias) -> Result<Option<SessionKey>, GatewayError> {
        if self.adoptions.refused.contains_key(alias) {
            return Err(GatewayError::SessionEnded);
        }
        Ok(self.store.resolve(alias).await?)
    }

    async fn adopt(
        self: &Arc<Self>,
        tenant: &TenantId,
        token: &Token,
        alias: &Alias,
        now: Timestamp,
    ) -> Result<SessionKey, GatewayError> {
        let known = match self.identity.introspect(tenant, token).await {
            Ok(known) => known,
            Err(IdentityError::Refused(_) | IdentityError::AuthorizerRefused) => {
                return Err(GatewayError::SessionEnded);
            }
            Err(error) => return Err(error.into()),
        };
        let access_expires_at = now.after(known.expires_in);
        let limits = self.store.limits();
        let mut session = Session::new(SessionKey::random()?, *tenant, Transport::Handle, now, limits);
        session.upgrade(
            CustomerHalf {
                tokens: TokenSet {
                    access: token.clone(),
                    access_expires_at,
                    refresh: None,
                    refresh_expires_at: Timestamp::default(),
                    issued_at: now,
                    saas: None,
                },
                session_id: known.session_id,
                customer_id: known.customer_id.clone(),
                legal_entity_id: known.legal_entity_id,
                signed_in_at: now,
            },
            now,
            limits,
        );
        let customer = CustomerName::of(*tenant, &known.customer_id);
        self.index(&customer, &session.key, now).await?;
        self.store.create(&session).await?;
        self.honour_epoch(&customer, &session, now).await?;
        let first = self.store.link(alias, &session.key, Collision::KeepFirst, limits.absolute).await?;
        if first != Some(session.key) {
            // Another replica was first.
            self.store.remove(&session.key).await?;
            return first.ok_or(GatewayError::SessionEnded);
        }
        self.metrics.sessions.count(SessionEvent::CustomerAdopted);
        Ok(session.key)
    }
}
