//! Ends sessions: one, all of a customer's, or all but one.
//! The tombstone comes first, then upstream is told; a session that is refused once stays refused.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Broker, Credential, Permit, Revoked};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::session::{ReadySession, Scope, Session, SessionKey, TenantId, Token};
use crate::store::{CustomerName, StoreError};
use crate::telemetry::SessionEvent;

impl Broker {
    /// Logs the customer out: the whole family of credentials ends.
    ///
    /// # Errors
    /// [`GatewayError::LogoutUnconfirmed`] when the store could not be told; the session is refused here all the same.
    pub async fn logout(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        credential: &Credential,
    ) -> Result<(), GatewayError> {
        let ready = self.customer_session(tenant, credential).await?;
        self.end(&ready).await
    }

    /// Logs the customer out on every device.
    ///
    /// # Errors
    /// As for [`Broker::logout`].
    pub async fn logout_all(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        credential: &Credential,
    ) -> Result<(), GatewayError> {
        let ready = self.customer_session(tenant, credential).await?;
        let (customer, epoch) = (customer_of(&ready)?, self.clock.now());
        let others = self.revoke_all_elsewhere(&customer, None, epoch).await;
        if others.is_err() {
            self.revoke_all_behind(customer, None, epoch);
        }
        self.end(&ready).await?;
        others.map_err(|_| GatewayError::LogoutUnconfirmed)
    }

    /// Ends the customer's other sessions, after a change of password.
    pub fn end_others_behind(self: &Arc<Self>, permit: &Permit) {
        if let Some(customer_id) = permit.customer_id() {
            let customer = CustomerName::of(*permit.tenant(), customer_id);
            self.revoke_all_behind(customer, Some(*permit.key()), self.clock.now());
        }
    }

    /// As [`Broker::revoke_all`], for what happened to the customer elsewhere.
    pub(super) async fn revoke_all_elsewhere(
        self: &Arc<Self>,
        customer: &CustomerName,
        except: Option<SessionKey>,
        epoch: Timestamp,
    ) -> Result<(), StoreError> {
        self.revoke_all(customer, except, epoch, SessionEvent::RevokedElsewhere, &mut Revoked::default()).await
    }

    /// As [`Broker::revoke_all_elsewhere`], again until the store takes it.
    fn revoke_all_behind(self: &Arc<Self>, customer: CustomerName, except: Option<SessionKey>, epoch: Timestamp) {
        let broker = self.clone();
        self.go_on(async move {
            until_taken(&customer.tenant, || broker.revoke_all_elsewhere(&customer, except, epoch)).await;
        });
    }

    /// Notes that the session of `key` is `customer`'s, signed in at `now`. Where the customer has one too many by that, an old
    /// one ends.
    pub(super) async fn index(
        self: &Arc<Self>,
        customer: &CustomerName,
        key: &SessionKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(old) = self.store.index(customer, key, self.store.limits().absolute).await? else { return Ok(()) };
        let (broker, customer) = (self.clone(), customer.clone());
        self.go_on(async move {
            until_taken(&customer.tenant, || async {
                let event = SessionEvent::RevokedElsewhere;
                match broker.end_theirs(&customer, &old, now, event, &mut Revoked::default()).await? {
                    Met::Ended | Met::Nothing => broker.store.unindex(&customer, &old).await,
                    Met::Later => Ok(()),
                }
            })
            .await;
        });
        Ok(())
    }

    /// Ends what the customer signed in up to `epoch`, but `except`. The epoch is raised first: it ends the logins that
    /// are under way.
    pub(super) async fn revoke_all(
        self: &Arc<Self>,
        customer: &CustomerName,
        except: Option<SessionKey>,
        epoch: Timestamp,
        event: SessionEvent,
        revoked: &mut Revoked,
    ) -> Result<(), StoreError> {
        self.store.raise_epoch(customer, epoch, self.store.limits().absolute).await?;
        let mut fault = None;
        for key in self.store.customer(customer).await?.keys {
            if Some(key) == except {
                continue;
            }
            let ended = self.end_theirs(customer, &key, epoch, event, revoked).await;
            fault = fault.or_else(|| ended.err());
        }
        fault.map_or(Ok(()), Err)
    }

    /// Ends the session of `key`, which stands in the customer's index, if the customer signed it in up to `epoch`. By
    /// now it may be somebody else's.
    async fn end_theirs(
        self: &Arc<Self>,
        customer: &CustomerName,
        key: &SessionKey,
        epoch: Timestamp,
        event: SessionEvent,
        revoked: &mut Revoked,
    ) -> Result<Met, StoreError> {
        // One that an earlier attempt could not end everywhere is refused here, and still has to end.
        let found = match self.store.load_refused(key).await {
            Ok(Some(session)) if !customer.owns(&session) => return Ok(Met::Nothing),
            Ok(Some(session)) if session.signed_in_at() > Some(epoch) => return Ok(Met::Later),
            Ok(Some(session)) => Some(session),
            Ok(None) => return Ok(Met::Nothing),
            // It opens for nobody.
            Err(StoreError::Unreadable(_)) => None,
            Err(error) => return Err(error),
        };
        self.end_found(key, found, event, revoked).await.map(|()| Met::Ended)
    }

    async fn customer_session(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        credential: &Credential,
    ) -> Result<Arc<ReadySession>, GatewayError> {
        let now = self.clock.now();
        let opened = self.open(tenant, credential, now).await?;
        let is_customers = opened.scope == Scope::Customer && opened.ready.half(Scope::Customer).is_some();
        if is_customers { Ok(opened.ready) } else { Err(GatewayError::CustomerRequired) }
    }

    /// Ends one session.
    async fn end(self: &Arc<Self>, ready: &ReadySession) -> Result<(), GatewayError> {
        let record = self.store.load_record(&ready.key).await;
        let removed = self.store.remove(&ready.key).await;
        self.announce_end(ready.key);
        self.metrics.sessions.count(SessionEvent::LoggedOut);
        let access = match &record {
            Ok(record) => record.as_ref().and_then(customer_token),
            Err(_) => bearer_token(ready),
        };
        if let Some(access) = access {
            self.revoke_behind(ready.tenant, access);
        }
        if let Err(error) = removed {
            tracing::warn!(session = %self.label(&ready.key), %error, "a logout waits for the session store");
            self.remove_behind(ready.key);
            return Err(GatewayError::LogoutUnconfirmed);
        }
        self.unindex_behind(customer_of(ready).ok(), ready.key);
        tracing::info!(session = %self.label(&ready.key), tenant = %ready.tenant, "logged out");
        Ok(())
    }

    /// Makes room in the customer's index. A session that has ended and stands there all the same goes with its time.
    fn unindex_behind(self: &Arc<Self>, customer: Option<CustomerName>, key: SessionKey) {
        let Some(customer) = customer else { return };
        let broker = self.clone();
        self.go_on(async move {
            if let Err(error) = broker.store.unindex(&customer, &key).await {
                let session = broker.label(&key);
                tracing::debug!(%session, %error, "a session that has ended stays in its customer's index");
            }
        });
    }

    /// Ends a session that was found in the store. Where the store cannot be told it is refused here, and told later.
    pub(super) async fn end_found(
        self: &Arc<Self>,
        key: &SessionKey,
        found: Option<Session>,
        event: SessionEvent,
        revoked: &mut Revoked,
    ) -> Result<(), StoreError> {
        // Where a removal waits already, Emporix heard of the end when that began.
        let waits = self.removals().contains(key);
        let removed = self.store.remove(key).await;
        self.announce_end(*key);
        if !waits
            && let Some(session) = &found
            && let Some(access) = customer_token(session)
            && !self.revoke_behind(session.tenant, access)
        {
            revoked.tokens_left_to_expire += 1;
        }
        if removed.is_err() {
            self.remove_behind(*key);
            return removed;
        }
        self.unindex_behind(found.as_ref().and_then(CustomerName::of_session), *key);
        self.metrics.sessions.count(event);
        revoked.ended += 1;
        Ok(())
    }

    /// Ends a session in the background, as soon as the store takes it.
    pub(super) fn end_behind(self: &Arc<Self>, key: SessionKey) {
        let broker = self.clone();
        self.go_on(async move {
            if broker.store.remove(&key).await.is_err() {
                broker.remove_behind(key);
            }
            broker.announce_end(key);
        });
    }

    /// Tells the store of an end for as long as it takes, within reason; of one session's, once at a time.
    pub(super) fn remove_behind(self: &Arc<Self>, key: SessionKey) {
        if !self.removals().insert(key) {
            return;
        }
        let broker = self.clone();
        self.go_on(async move {
            broker.remove_until_taken(&key).await;
            broker.removals().remove(&key);
        });
    }

    async fn remove_until_taken(&self, key: &SessionKey) {
        const ATTEMPTS: u32 = 600;
        for _ in 0..ATTEMPTS {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.store.remove(key).await.is_ok() {
                tracing::info!(session = %self.label(key), "a logout that waited is confirmed");
                return;
            }
        }
        tracing::error!(session = %self.label(key), "a logout was never confirmed by the session store");
    }

    fn removals(&self) -> MutexGuard<'_, HashSet<SessionKey>> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a session that stands in its customer's index.
enum Met {
    Ended,
    /// It is not there, or somebody else's by now.
    Nothing,
    /// The customer has signed it in again since.
    Later,
}

/// Makes attempts at ending a customer's sessions, until the store takes one, within reason.
pub(super) async fn until_taken<E: Display, F>(tenant: &TenantId, attempt: impl Fn() -> F)
where
    F: Future<Output = Result<(), E>>,
{
    const ATTEMPTS: u32 = 600;
    for _ in 0..ATTEMPTS {
        match attempt().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%tenant, %error, "a customer's sessions are not ended yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tracing::error!(%tenant, "a customer's sessions could not be ended");
}

fn customer_of(ready: &ReadySession) -> Result<CustomerName, GatewayError> {
    let customer = ready.customer().ok_or(GatewayError::CustomerRequired)?;
    Ok(CustomerName::of(ready.tenant, &customer.customer_id))
}

fn customer_token(session: &Session) -> Option<Token> {
    session.customer.as_ref().map(|half| half.tokens.access.clone())
}

/// The customer's access token as the hot cache holds it.
fn bearer_token(ready: &ReadySession) -> Option<Token> {
    let bearer = &ready.half(Scope::Customer)?.bearer;
    Token::parse(bearer.to_str().ok()?.strip_prefix("Bearer ")?)
}
