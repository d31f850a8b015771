//! Renews the tokens of one half of a session: once, whoever and however many ask.
//! The work goes on when the request that began it is gone, for the answer may be the only valid token.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::flights::{Flight, LONGEST_AWAITED, Part, Renewal};
use super::granted::NewHandles;
use super::{Broker, Credential, Granted};
use crate::clock::{Timestamp, jittered};
use crate::config::RefreshReuse;
use crate::error::GatewayError;
use crate::session::{Freshness, HandleKind, ReadySession, Scope, Session, SessionKey, TenantId};
use crate::store::layered::Change;
use crate::store::{Invalidation, LeaseName, Owner};
use crate::telemetry::{Half, RefreshOutcome, Saved, SessionEvent};

/// Why tokens are to be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// If they are due.
    WhenDue,
    /// Upstream no longer honours them.
    Now,
    /// For this legal entity, or for none.
    LegalEntity(Option<String>),
}

impl Broker {
    /// Renews, and waits for it.
    pub(super) async fn renew(self: &Arc<Self>, key: &SessionKey, scope: Scope, seen: u64, ask: Ask) -> Renewal {
        let mut follow = match self.start_renewal(key, scope, seen, ask, LONGEST_AWAITED) {
            Ok(follow) => follow,
            Err(failed) => return failed,
        };
        // The work goes on beyond this wait: what was issued is kept for as long as the store can be hoped for.
        match tokio::time::timeout(self.longest_wait(), follow.wait_for(Option::is_some)).await {
            Ok(Ok(landed)) => landed.clone().unwrap_or(Renewal::Failed(GatewayError::Internal("no outcome"))),
            Ok(Err(_)) => Renewal::Failed(GatewayError::Internal("a refresh ended without an outcome")),
            Err(_) => takes_too_long(),
        }
    }

    /// For how long a request waits for a renewal.
    fn longest_wait(&self) -> Duration {
        2 * self.settings.identity_timeout
    }

    /// Sees to it that a renewal is under way; what failed is left alone for a while, and for `longest` at most.
    pub(super) fn start_renewal(
        self: &Arc<Self>,
        key: &SessionKey,
        scope: Scope,
        seen: u64,
        ask: Ask,
        longest: Duration,
    ) -> Result<tokio::sync::watch::Receiver<Option<Renewal>>, Renewal> {
        let legal_entity = if let Ask::LegalEntity(entity) = &ask { Some(entity.clone()) } else { None };
        let flight = Flight { key: *key, scope, legal_entity };
        if let Some(failed) = self.flights.failed_just_now(&flight, longest) {
            return Err(failed);
        }
        match self.flights.join_or_lead(&flight) {
            Part::Taken => Err(Renewal::Failed(GatewayError::RateLimited { retry_after: 1 })),
            Part::Follow(follow) => {
                self.metrics.refreshes.count(half(scope), RefreshOutcome::Joined);
                self.metrics.emporix_saved.count(Saved::RefreshJoined);
                Ok(follow)
            }
            Part::Lead(lead) => {
                let follow = lead.subscribe();
                let broker = self.clone();
                self.go_on(async move {
                    let work = broker.clone();
                    let led = broker.go_on({
                        let flight = flight.clone();
                        async move { work.lead(&flight.key, flight.scope, seen, &ask).await }
                    });
                    let failed = Renewal::Failed(GatewayError::Internal("a refresh did not end"));
                    tokio::pin!(led);
                    let landed = match tokio::time::timeout(broker.longest_wait(), &mut led).await {
                        Ok(landed) => landed,
                        Err(_) => {
                            // It goes on, and who comes from now on need not wait to learn so.
                            lead.send_replace(Some(takes_too_long()));
                            led.await
                        }
                    };
                    broker.flights.land(&flight, &lead, landed.unwrap_or(failed));
                });
                Ok(follow)
            }
        }
    }

    /// Renews under the lease; while another replica has it, waits for what comes of that.
    async fn lead(self: &Arc<Self>, key: &SessionKey, scope: Scope, seen: u64, ask: &Ask) -> Renewal {
        let name = LeaseName { key: *key, scope };
        let mut owner = Owner::default();
        if let Err(error) = getrandom::fill(&mut owner) {
            return Renewal::Failed(error.into());
        }
        // Long enough for a holder that died, and for a redeem of its successor's.
        let deadline = Instant::now() + self.settings.lease_term + 2 * self.settings.identity_timeout;
        // Listened to before the lease is asked for: so no word of its holder's is missed.
        let mut words = self.store.invalidations();
        while Instant::now() < deadline {
            match self.take_lease(name, owner).await {
                Err(error) => {
                    self.drop_lease_behind(name, owner);
                    return Renewal::Failed(error.into());
                }
                Ok(Some((held, orphan))) => {
                    // Who loses the lease before the token was sent follows who has it.
                    if let Ok(renewal) = self.redeem_under(held, seen, ask, orphan).await {
                        return renewal;
                    }
                }
                Ok(None) => {}
            }
            word_of(key, &mut words).await;
            if let Some(settled) = self.settled_elsewhere(key, scope, seen, ask).await {
                self.metrics.refreshes.count(half(scope), RefreshOutcome::Followed);
                return settled;
            }
        }
        Renewal::Failed(GatewayError::IdentityUnavailable("another replica's refresh does not end"))
    }

    /// What another replica's refresh made of the session, if it did.
    async fn settled_elsewhere(&self, key: &SessionKey, scope: Scope, seen: u64, ask: &Ask) -> Option<Renewal> {
        match self.store.load_record(key).await {
            Ok(None) => Some(Renewal::Ended),
            Ok(Some(session)) => {
                let advanced = session.generation(scope) != seen && !matches!(ask, Ask::LegalEntity(_));
                (advanced || session.tokens(scope).is_none()).then(|| self.standing(&session, scope))
            }
            Err(error) => Some(Renewal::Failed(error.into())),
        }
    }

    /// How the half of `session` stands.
    pub(super) fn standing(&self, session: &Session, scope: Scope) -> Renewal {
        match session.tokens(scope) {
            Some(_) => Renewal::Current(self.ready_of(session)),
            None => Renewal::Ended,
        }
    }

    pub(super) fn ready_of(&self, session: &Session) -> Arc<ReadySession> {
        Arc::new(ReadySession::of(session, self.clock.now(), self.store.limits()))
    }

    /// The token route: redeems only when due or when the legal entity changes, and rotates the client's handles.
    ///
    /// # Errors
    /// When the credential opens no customer's session, or the renewal fails and access is over.
    pub async fn refresh(
        self: &Arc<Self>,
        tenant: &TenantId,
        credential: &Credential,
        legal_entity: Option<String>,
    ) -> Result<Granted, GatewayError> {
        let now = self.clock.now();
        let opened = self.open(Some(tenant), credential, now).await?;
        if opened.acting_scope(now) != Scope::Customer {
            return Err(GatewayError::SessionEnded);
        }
        let key = opened.ready.key;
        let session = self.store.load_record(&key).await?.ok_or(GatewayError::SessionEnded)?;
        let half = session.customer.as_ref().ok_or(GatewayError::SessionEnded)?;
        let freshness = half.tokens.lifetime(self.store.limits().refresh_margin).freshness(now);
        let switches = half.legal_entity_id != legal_entity;
        match (switches, freshness) {
            (true, Freshness::Final) | (_, Freshness::Dead) => return Err(GatewayError::SessionEnded),
            (true, _) => self.settle(&session, Ask::LegalEntity(legal_entity), true).await?,
            (false, Freshness::Expired) => self.settle(&session, Ask::WhenDue, true).await?,
            (false, Freshness::RefreshDue) => self.settle(&session, Ask::WhenDue, false).await?,
            (false, Freshness::Fresh | Freshness::Final) => self.metrics.emporix_saved.count(Saved::RefreshNotDue),
        }
        self.rotate(&session, credential, now).await
    }

    /// Renews; where the present token would do, a renewal that fails does not matter.
    async fn settle(self: &Arc<Self>, session: &Session, ask: Ask, needed: bool) -> Result<(), GatewayError> {
        match self.renew(&session.key, Scope::Customer, session.customer_generation, ask).await {
            Renewal::Current(_) => Ok(()),
            Renewal::Ended => Err(GatewayError::SessionEnded),
            Renewal::Failed(error) if needed => Err(error),
            Renewal::Failed(_) => Ok(()),
        }
    }

    /// Issues the handles of a refresh answer. The refresh handle that came works for a short grace; those of other tabs
    /// are theirs.
    async fn rotate(&self, session: &Session, came: &Credential, now: Timestamp) -> Result<Granted, GatewayError> {
        let handles = NewHandles { saas: None, ..NewHandles::random(session, Scope::Customer, false)? };
        // Somebody else may have signed in while a renewal was waited for.
        let (seen, mut theirs) = (session.signed_in_at(), false);
        let rotated = self
            .store
            .update(&session.key, |session| {
                theirs = session.signed_in_at() == seen;
                if !theirs {
                    return Change::Discard;
                }
                session.last_seen_at = session.last_seen_at.max(now);
                if let Credential::Handle(came, _) = came
                    && came.kind == HandleKind::CustomerRefresh
                {
                    session.credentials.retire(came, now.after(Session::REPLACEMENT_GRACE));
                }
                handles.issue(session, Scope::Customer);
                Change::Save
            })
            .await?;
        let session = rotated.filter(|_| theirs).ok_or(GatewayError::SessionEnded)?;
        Ok(handles.granted(&session, Scope::Customer, now, self.store.limits()))
    }

    /// A refresh handle was used long after it was replaced: somebody else may hold a copy.
    pub(super) fn note_reuse(self: &Arc<Self>, ready: &ReadySession) {
        self.metrics.sessions.count(SessionEvent::RefreshReused);
        tracing::warn!(session = %self.label(&ready.key), tenant = %ready.tenant, "a replaced refresh handle was used again");
        if self.settings.refresh_reuse == RefreshReuse::EndSession {
            self.end_behind(ready.key);
        }
    }
}

const fn takes_too_long() -> Renewal {
    Renewal::Failed(GatewayError::IdentityUnavailable("a refresh takes too long"))
}

/// Waits until another replica says that the session changed, or until it is time to look without such a word.
async fn word_of(key: &SessionKey, words: &mut Receiver<Invalidation>) {
    const LOOK_EVERY: Duration = Duration::from_millis(300);
    let word = async {
        loop {
            match words.recv().await {
                Ok(Invalidation::Replaced(changed) | Invalidation::Ended(changed, _)) if changed != *key => {}
                Ok(_) | Err(RecvError::Lagged(_)) => return,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    // No word: it was lost on its way, or the holder died or gave up, which no one says.
    let _ = tokio::time::timeout(jittered(LOOK_EVERY), word).await;
}

pub(super) const fn half(scope: Scope) -> Half {
    match scope {
        Scope::Anonymous => Half::Anonymous,
        Scope::Customer => Half::Customer,
    }
}
