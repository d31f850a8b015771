//! What operators may do: see a customer's sessions, and end a customer's, one, or all of a tenant's.
//! Sessions and customers are shown by their labels; what an operator began is finished, waited for or not.

use std::sync::Arc;

use serde::Serialize;
use tokio::task::JoinSet;

use super::Broker;
use crate::error::GatewayError;
use crate::session::{Session, SessionKey, SessionLabel, TenantId, Transport};
use crate::store::{Cursor, CustomerName, StoreError, Walked};
use crate::telemetry::SessionEvent;

/// Revocations that operators may have under way at a time.
pub(super) const MOST_REVOCATIONS: usize = 4;

/// Seconds after which an operator beyond that may try again.
const TRY_AGAIN_AFTER: u64 = 5;

/// Sessions that one revocation ends at a time.
const AT_ONCE: usize = 16;

/// Which sessions an operator ends.
#[derive(Clone)]
pub enum Revocation {
    /// All of one customer, by number.
    Customer(TenantId, String),
    /// One, by its label; of this tenant only, where one is named.
    Session(Option<TenantId>, SessionLabel),
    /// All of a tenant, visitors' too.
    Tenant(TenantId),
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    /// Sessions that ended.
    pub ended: u64,
    /// Of their tokens, those that Emporix is not told of: too many wait already, and these are left to expire.
    pub tokens_left_to_expire: u64,
}

/// A session as operators see it. Times are seconds since 1970.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSummary {
    /// Its label.
    pub session: String,
    /// `cookie` or `handle`.
    pub transport: &'static str,
    /// When the customer signed in.
    pub signed_in_at: u64,
    /// When it was last used, to some minutes.
    pub last_seen_at: u64,
    /// When it ends unless it is used.
    pub expires_at: u64,
    /// Whether the customer acts for a legal entity.
    pub has_legal_entity: bool,
}

/// A customer's sessions.
#[derive(Debug, Serialize)]
pub struct CustomerListing {
    /// Those that live.
    pub sessions: Vec<SessionSummary>,
}

impl Broker {
    /// The live sessions of a customer.
    ///
    /// # Errors
    /// When the tenant is unknown or the store cannot tell.
    pub async fn sessions_of(&self, tenant: &TenantId, customer_id: &str) -> Result<CustomerListing, GatewayError> {
        self.known_tenant(tenant)?;
        let customer = CustomerName::of(*tenant, customer_id);
        let keys = self.store.customer(&customer).await?.keys;
        let mut sessions = Vec::new();
        for key in keys {
            match self.store.load_record(&key).await {
                Ok(found) => sessions
                    .extend(found.filter(|session| customer.owns(session)).and_then(|session| self.summary(&session))),
                Err(StoreError::Unreadable(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let label = self.store.labels().customer(tenant, customer_id);
        tracing::info!(by = "admin token", %tenant, customer = %label, sessions = sessions.len(), "an operator listed sessions");
        Ok(CustomerListing { sessions })
    }

    /// Ends sessions for an operator, and answers when it is done.
    ///
    /// # Errors
    /// When the tenant or the session is unknown, when too many revocations are under way, or when the store failed in
    /// the midst of it: [`GatewayError::RevocationIncomplete`].
    pub async fn revoke(self: &Arc<Self>, asked: Revocation) -> Result<Revoked, GatewayError> {
        if let Revocation::Customer(tenant, _) | Revocation::Session(Some(tenant), _) | Revocation::Tenant(tenant) =
            &asked
        {
            self.known_tenant(tenant)?;
        }
        let Ok(turn) = self.operators.clone().try_acquire_owned() else {
            return Err(GatewayError::RateLimited { retry_after: TRY_AGAIN_AFTER });
        };
        let broker = self.clone();
        let work = self.go_on(async move {
            let revoked = broker.carry_out(&asked).await;
            drop(turn);
            revoked
        });
        work.await.unwrap_or(Err(GatewayError::Internal("a revocation broke off")))
    }

    async fn carry_out(self: &Arc<Self>, asked: &Revocation) -> Result<Revoked, GatewayError> {
        let mut revoked = Revoked::default();
        let result = match asked {
            Revocation::Customer(tenant, id) => {
                let customer = CustomerName::of(*tenant, id);
                self.revoke_all(&customer, None, self.clock.now(), SessionEvent::RevokedByOperator, &mut revoked).await
            }
            Revocation::Session(tenant, label) => self.end_labelled(tenant.as_ref(), *label, &mut revoked).await,
            Revocation::Tenant(tenant) => self.end_tenant(tenant, &mut revoked).await,
        };
        self.note(asked, revoked, result.as_ref().err());
        match result {
            Ok(()) if revoked.ended == 0 && matches!(asked, Revocation::Session(..)) => {
                Err(GatewayError::UnknownSession)
            }
            Ok(()) => Ok(revoked),
            Err(_) => Err(GatewayError::RevocationIncomplete { ended: revoked.ended }),
        }
    }

    /// Ends the session of this label, if there is one.
    async fn end_labelled(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        label: SessionLabel,
        revoked: &mut Revoked,
    ) -> Result<(), StoreError> {
        let mut from = Some(Cursor::default());
        while let Some(cursor) = from.filter(|_| revoked.ended == 0) {
            let page = self.store.walk(cursor).await?;
            let meant = |walked: &Walked| {
                tenant.is_none_or(|tenant| walked.tenant == *tenant)
                    && self.store.labels().recognise(label, &walked.key)
            };
            self.end_each(page.sessions.into_iter().filter(meant).collect(), revoked).await?;
            from = page.next;
        }
        Ok(())
    }

    /// Ends what the tenant has; also what is born while the walk lasts, where the walk comes by it.
    async fn end_tenant(self: &Arc<Self>, tenant: &TenantId, revoked: &mut Revoked) -> Result<(), StoreError> {
        let mut from = Some(Cursor::default());
        while let Some(cursor) = from {
            let page = self.store.walk(cursor).await?;
            let theirs = page.sessions.into_iter().filter(|walked| walked.tenant == *tenant).collect();
            self.end_each(theirs, revoked).await?;
            from = page.next;
        }
        Ok(())
    }

    /// Ends these, a few at a time. After a fault those that were begun are finished, and no others begun.
    async fn end_each(self: &Arc<Self>, sessions: Vec<Walked>, revoked: &mut Revoked) -> Result<(), StoreError> {
        for some in sessions.chunks(AT_ONCE) {
            let mut ends = JoinSet::new();
            for Walked { key, .. } in some {
                let (broker, key) = (self.clone(), *key);
                ends.spawn(async move { broker.end_walked(key).await });
            }
            let mut fault = None;
            while let Some(ended) = ends.join_next().await {
                match ended {
                    Ok(Ok(one)) => revoked.add(one),
                    Ok(Err(error)) => fault = Some(error),
                    Err(_) => fault = Some(StoreError::Unavailable("broken off".to_owned())),
                }
            }
            if let Some(fault) = fault {
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Ends a session that a walk came by. One that cannot be read ends as well; only its tokens cannot be revoked.
    async fn end_walked(self: &Arc<Self>, key: SessionKey) -> Result<Revoked, StoreError> {
        let found = match self.store.load_record(&key).await {
            Err(StoreError::Unreadable(_)) => None,
            loaded => loaded?,
        };
        let mut revoked = Revoked::default();
        self.end_found(&key, found, SessionEvent::RevokedByOperator, &mut revoked).await?;
        Ok(revoked)
    }

    fn summary(&self, session: &Session) -> Option<SessionSummary> {
        let half = session.customer.as_ref()?;
        Some(SessionSummary {
            session: self.label(&session.key).to_string(),
            transport: match session.transport {
                Transport::Cookie => "cookie",
                Transport::Handle => "handle",
            },
            signed_in_at: half.signed_in_at.seconds(),
            last_seen_at: session.last_seen_at.seconds(),
            expires_at: session.expires_at(self.store.limits()).seconds(),
            has_legal_entity: half.legal_entity_id.is_some(),
        })
    }

    /// The audit line of a revocation: who, what, how many.
    fn note(&self, asked: &Revocation, revoked: Revoked, error: Option<&StoreError>) {
        let (kind, tenant, whose) = match asked {
            Revocation::Customer(tenant, id) => {
                ("customer", Some(tenant), self.store.labels().customer(tenant, id).to_string())
            }
            Revocation::Session(tenant, label) => ("session", tenant.as_ref(), label.to_string()),
            Revocation::Tenant(tenant) => ("tenant", Some(tenant), "all".to_owned()),
        };
        let (by, tenant, ended) = ("admin token", tenant.map(TenantId::as_str), revoked.ended);
        match error {
            None => tracing::info!(by, kind, tenant, whose, ended, "an operator ended sessions"),
            Some(error) => tracing::warn!(by, kind, tenant, whose, ended, %error, "an operator's revocation broke off"),
        }
    }
}

impl Revoked {
    const fn add(&mut self, other: Self) {
        self.ended += other.ended;
        self.tokens_left_to_expire += other.tokens_left_to_expire;
    }
}
