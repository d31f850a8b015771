//! Renews the tokens of one half of a session: once, whoever and however many ask.
//! The work goes on when the request that began it is gone, for the answer may be the only valid token.

use std::sync::Arc;
use std::time::Duration;

use super::flights::{Flight, Part};
use super::granted::NewHandles;
use super::{Broker, Credential, Granted};
use crate::clock::Timestamp;
use crate::config::RefreshReuse;
use crate::error::GatewayError;
use crate::identity::{IdentityError, Issued};
use crate::session::{Freshness, HandleKind, ReadySession, Scope, Session, SessionKey, TenantId, Token, TokenSet};
use crate::store::layered::Change;
use crate::store::{Intent, Lead, LeaseName, Owner, Settled};
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

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Renewal {
    /// The session as it now stands; its tokens are current.
    Current(Arc<ReadySession>),
    /// The half is over.
    Ended,
    /// Nothing is known or changed.
    Failed(GatewayError),
}

/// What became of one redeem.
struct Redeemed {
    renewal: Renewal,
    settled: Settled,
    outcome: RefreshOutcome,
}

impl Redeemed {
    const fn known(renewal: Renewal, outcome: RefreshOutcome) -> Self {
        Self { renewal, settled: Settled::Known, outcome }
    }

    /// Nothing was sent, and what an earlier holder left stays as it is.
    fn untouched(error: impl Into<GatewayError>) -> Self {
        let renewal = Renewal::Failed(error.into());
        Self { renewal, settled: Settled::Unknown, outcome: RefreshOutcome::Unavailable }
    }
}

impl Broker {
    /// Renews, and waits for it.
    pub(super) async fn renew(self: &Arc<Self>, key: &SessionKey, scope: Scope, seen: u64, ask: Ask) -> Renewal {
        let mut follow = match self.start_renewal(key, scope, seen, ask) {
            Ok(follow) => follow,
            Err(failed) => return failed,
        };
        // The work goes on beyond this wait: what was issued is kept for as long as the store can be hoped for.
        match tokio::time::timeout(2 * self.settings.identity_timeout, follow.wait_for(Option::is_some)).await {
            Ok(Ok(landed)) => landed.clone().unwrap_or(Renewal::Failed(GatewayError::Internal("no outcome"))),
            Ok(Err(_)) => Renewal::Failed(GatewayError::Internal("a refresh ended without an outcome")),
            Err(_) => Renewal::Failed(GatewayError::IdentityUnavailable("a refresh takes too long")),
        }
    }

    /// Sees to it that a renewal is under way; what failed a moment ago is not tried again at once.
    pub(super) fn start_renewal(
        self: &Arc<Self>,
        key: &SessionKey,
        scope: Scope,
        seen: u64,
        ask: Ask,
    ) -> Result<tokio::sync::watch::Receiver<Option<Renewal>>, Renewal> {
        let legal_entity = if let Ask::LegalEntity(entity) = &ask { Some(entity.clone()) } else { None };
        let flight = Flight { key: *key, scope, legal_entity };
        if let Some(failed) = self.flights.failed_just_now(&flight) {
            return Err(failed);
        }
        match self.flights.join_or_lead(&flight) {
            Part::Follow(follow) => {
                self.metrics.refreshes.count(half(scope), RefreshOutcome::Joined);
                self.metrics.emporix_saved.count(Saved::RefreshJoined);
                Ok(follow)
            }
            Part::Lead(lead) => {
                let follow = lead.subscribe();
                let broker = self.clone();
                self.runtime.spawn(async move {
                    let work = broker.clone();
                    let led = work.runtime.clone().spawn({
                        let flight = flight.clone();
                        async move { work.lead(&flight.key, flight.scope, seen, &ask).await }
                    });
                    let failed = Renewal::Failed(GatewayError::Internal("a refresh did not end"));
                    broker.flights.land(&flight, &lead, led.await.unwrap_or(failed));
                });
                Ok(follow)
            }
        }
    }

    /// Longer than everything a leader does while it holds the lease: the authorizer's calls and the redeem.
    fn lease_life(&self) -> Duration {
        4 * self.settings.identity_timeout
    }

    async fn lead(self: &Arc<Self>, key: &SessionKey, scope: Scope, seen: u64, ask: &Ask) -> Renewal {
        const POLL: Duration = Duration::from_millis(40);
        let lease = LeaseName { key: *key, scope };
        let mut owner = Owner::default();
        if let Err(error) = getrandom::fill(&mut owner) {
            return Renewal::Failed(error.into());
        }
        let polls = self.lease_life().as_millis() / POLL.as_millis();
        for _ in 0..=polls {
            match self.store.acquire(&lease, &owner, self.lease_life()).await {
                Err(error) => return Renewal::Failed(error.into()),
                Ok(Lead::Ours(orphan)) => return self.redeem_under(&lease, &owner, seen, ask, orphan).await,
                Ok(Lead::Elsewhere) => {}
            }
            tokio::time::sleep(POLL).await;
            if let Some(settled) = self.settled_elsewhere(key, scope, seen, ask).await {
                return settled;
            }
        }
        Renewal::Failed(GatewayError::IdentityUnavailable("another replica's refresh does not end"))
    }

    /// What another replica's refresh made of the session, if it did.
    async fn settled_elsewhere(&self, key: &SessionKey, scope: Scope, seen: u64, ask: &Ask) -> Option<Renewal> {
        match self.store.load_record(key).await {
            Ok(None) => Some(Renewal::Ended),
            Ok(Some(session)) if session.tokens(scope).is_none() => Some(Renewal::Ended),
            Ok(Some(session)) if session.generation(scope) != seen && !matches!(ask, Ask::LegalEntity(_)) => {
                Some(Renewal::Current(self.ready_of(&session)))
            }
            Ok(Some(_)) => None,
            Err(error) => Some(Renewal::Failed(error.into())),
        }
    }

    async fn redeem_under(
        self: &Arc<Self>,
        lease: &LeaseName,
        owner: &Owner,
        seen: u64,
        ask: &Ask,
        orphan: Option<Intent>,
    ) -> Renewal {
        let redeemed = self.redeem_if_due(lease, owner, seen, ask, orphan).await;
        self.metrics.refreshes.count(half(lease.scope), redeemed.outcome);
        if let Err(error) = self.store.release(lease, owner, redeemed.settled).await {
            tracing::warn!(session = %lease.key, %error, "a lease could not be released; it ends by itself");
        }
        redeemed.renewal
    }

    async fn redeem_if_due(
        self: &Arc<Self>,
        lease: &LeaseName,
        owner: &Owner,
        seen: u64,
        ask: &Ask,
        orphan: Option<Intent>,
    ) -> Redeemed {
        let LeaseName { key, scope } = lease;
        let now = self.clock.now();
        let session = match self.store.load_record(key).await {
            Ok(Some(session)) => session,
            Ok(None) => return Redeemed::known(Renewal::Ended, RefreshOutcome::Superseded),
            Err(error) => return Redeemed::untouched(error),
        };
        let Some(tokens) = session.tokens(*scope) else {
            return Redeemed::known(Renewal::Ended, RefreshOutcome::Superseded);
        };
        if !is_due(&session, tokens, *scope, seen, ask, now, self.store.limits().refresh_margin) {
            return Redeemed::known(Renewal::Current(self.ready_of(&session)), RefreshOutcome::Superseded);
        }
        let Some(refresh) = tokens.refresh.clone().filter(|_| now < tokens.refresh_expires_at) else {
            return Redeemed::known(Renewal::Ended, RefreshOutcome::Rejected);
        };
        let generation = session.generation(*scope);
        let orphan = orphan.filter(|intent| intent.generation == generation);
        let access_lives = now < tokens.access_expires_at && *ask != Ask::Now;
        match orphan {
            // The token may be spent. While access lives, nothing is lost by leaving it alone.
            Some(_) if access_lives => {
                return Redeemed::untouched(GatewayError::IdentityUnavailable("an earlier refresh is unsettled"));
            }
            Some(intent) if intent.recoveries > 0 => return self.lose(&session, *scope).await,
            _ => {}
        }
        let intent =
            Intent { generation, started_at: now, recoveries: orphan.map_or(0, |intent| intent.recoveries + 1) };
        match scope {
            Scope::Anonymous => self.redeem_anonymous(lease, owner, &session, &refresh, intent).await,
            Scope::Customer => self.redeem_customer(lease, owner, &session, &refresh, intent, ask).await,
        }
    }

    async fn redeem_anonymous(
        self: &Arc<Self>,
        lease: &LeaseName,
        owner: &Owner,
        session: &Session,
        refresh: &Token,
        intent: Intent,
    ) -> Redeemed {
        if let Err(redeemed) = self.declare(lease, owner, &intent).await {
            return redeemed;
        }
        match self.identity.anonymous_refresh(&session.tenant, refresh).await {
            Ok(issued) => self.keep_renewed(session, Scope::Anonymous, issued, None).await,
            Err(IdentityError::Refused(refusal)) if !matches!(refusal.status, 400 | 401) => {
                Redeemed::known(Renewal::Failed(IdentityError::Refused(refusal).into()), RefreshOutcome::Unavailable)
            }
            Err(IdentityError::Refused(_) | IdentityError::AuthorizerRefused) => {
                self.reject(session, Scope::Anonymous).await
            }
            Err(error) => failed(error),
        }
    }

    async fn redeem_customer(
        self: &Arc<Self>,
        lease: &LeaseName,
        owner: &Owner,
        session: &Session,
        refresh: &Token,
        intent: Intent,
        ask: &Ask,
    ) -> Redeemed {
        let remembered = session.customer.as_ref().and_then(|half| half.legal_entity_id.clone());
        let legal_entity = if let Ask::LegalEntity(entity) = ask { entity.clone() } else { remembered };
        let mut authorizer = match self.refresh_authorizer(session, None).await {
            Ok(authorizer) => authorizer,
            Err(error) => return Redeemed::untouched(error),
        };
        for renewed_authorizer in [false, true] {
            if let Err(redeemed) = self.declare(lease, owner, &intent).await {
                return redeemed;
            }
            let answer = self.identity.refresh(&session.tenant, refresh, &authorizer, legal_entity.as_deref()).await;
            match answer {
                Ok(issued) => return self.keep_renewed(session, Scope::Customer, issued, Some(legal_entity)).await,
                Err(IdentityError::AuthorizerRefused) if !renewed_authorizer => {
                    authorizer = match self.refresh_authorizer(session, Some(&authorizer)).await {
                        Ok(authorizer) => authorizer,
                        Err(error) => return Redeemed::known(Renewal::Failed(error), RefreshOutcome::Unavailable),
                    };
                }
                Err(IdentityError::Refused(refusal)) if matches!(refusal.status, 400 | 401) => {
                    return self.refused(session, refusal, ask).await;
                }
                Err(error) => return failed(error),
            }
        }
        failed(IdentityError::AuthorizerRefused)
    }

    /// A refusal of an explicit switch may be about the legal entity; one of a plain refresh is about the token.
    async fn refused(&self, session: &Session, refusal: Box<crate::identity::Refusal>, ask: &Ask) -> Redeemed {
        match ask {
            Ask::LegalEntity(Some(_)) if refusal.status == 400 => {
                Redeemed::known(Renewal::Failed(GatewayError::Refused(refusal)), RefreshOutcome::Unavailable)
            }
            _ => self.reject(session, Scope::Customer).await,
        }
    }

    /// Writes ahead that the refresh token is about to be sent, if the lease is still ours.
    async fn declare(&self, lease: &LeaseName, owner: &Owner, intent: &Intent) -> Result<(), Redeemed> {
        match self.store.declare(lease, owner, intent, self.lease_life()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Redeemed::untouched(GatewayError::IdentityUnavailable("the lease was lost"))),
            Err(error) => Err(Redeemed::untouched(error)),
        }
    }

    /// Saves what was issued, if nobody advanced the generation meanwhile. It may hold the only valid token, so a
    /// store that is away is asked again for a while.
    async fn keep_renewed(
        self: &Arc<Self>,
        redeemed: &Session,
        scope: Scope,
        issued: Issued,
        legal_entity: Option<Option<String>>,
    ) -> Redeemed {
        const ATTEMPTS: u32 = 25;
        let generation = redeemed.generation(scope);
        for attempt in 1..=ATTEMPTS {
            let mut ours = false;
            let saved = self
                .store
                .update(&redeemed.key, |session| {
                    ours = session.generation(scope) == generation;
                    if !ours {
                        return Change::Discard;
                    }
                    apply(session, scope, &issued, legal_entity.clone());
                    Change::Save
                })
                .await;
            match saved {
                Ok(Some(session)) => {
                    let outcome = if ours { RefreshOutcome::Renewed } else { RefreshOutcome::Superseded };
                    return Redeemed::known(Renewal::Current(self.ready_of(&session)), outcome);
                }
                Ok(None) => {
                    // Logged out meanwhile. The logout told Emporix of the token before this one.
                    if scope == Scope::Customer {
                        self.revoke_behind(redeemed.tenant.clone(), issued.tokens.access);
                    }
                    return Redeemed::known(Renewal::Ended, RefreshOutcome::Superseded);
                }
                Err(error) if attempt == ATTEMPTS => {
                    tracing::error!(session = %redeemed.key, %error, "renewed tokens could not be saved");
                    let renewal = Renewal::Failed(error.into());
                    return Redeemed { renewal, settled: Settled::Unknown, outcome: RefreshOutcome::Lost };
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100) * attempt).await,
            }
        }
        Redeemed::untouched(GatewayError::Internal("no attempt was made"))
    }

    /// Emporix refused the refresh token. Another replica may have won; if not, the half is over.
    async fn reject(&self, refused: &Session, scope: Scope) -> Redeemed {
        let renewal = self.end_half(refused, scope).await;
        if matches!(renewal, Renewal::Ended) && scope == Scope::Customer {
            tracing::info!(session = %refused.key, tenant = %refused.tenant, "Emporix refused the refresh; the customer's half ended");
        }
        Redeemed::known(renewal, RefreshOutcome::Rejected)
    }

    /// The recovery of an unsettled refresh was unsettled as well: the half ends cleanly.
    async fn lose(&self, session: &Session, scope: Scope) -> Redeemed {
        tracing::warn!(session = %session.key, tenant = %session.tenant, "a refresh token was lost");
        Redeemed::known(self.end_half(session, scope).await, RefreshOutcome::Lost)
    }

    async fn end_half(&self, seen: &Session, scope: Scope) -> Renewal {
        let (now, generation) = (self.clock.now(), seen.generation(scope));
        let ended = self
            .store
            .update(&seen.key, |session| {
                if session.generation(scope) != generation {
                    return Change::Discard;
                }
                match (scope, &mut session.anonymous) {
                    (Scope::Customer, _) => session.end_customer(now),
                    (Scope::Anonymous, Some(half)) => {
                        half.tokens.refresh = None;
                        half.tokens.access_expires_at = half.tokens.access_expires_at.min(now);
                        session.anonymous_generation += 1;
                    }
                    (Scope::Anonymous, None) => return Change::Discard,
                }
                Change::Save
            })
            .await;
        match ended {
            Ok(Some(session)) if session.generation(scope) == generation + 1 => {
                if scope == Scope::Customer {
                    self.metrics.sessions.count(SessionEvent::CustomerLost);
                }
                Renewal::Ended
            }
            Ok(Some(session)) => Renewal::Current(self.ready_of(&session)),
            Ok(None) => Renewal::Ended,
            Err(error) => Renewal::Failed(error.into()),
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
        let rotated = self
            .store
            .update(&session.key, |session| {
                if session.customer.is_none() {
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
        let session = rotated.filter(|session| session.customer.is_some()).ok_or(GatewayError::SessionEnded)?;
        Ok(handles.granted(&session, Scope::Customer, now, self.store.limits()))
    }

    /// A refresh handle was used long after it was replaced: somebody else may hold a copy.
    pub(super) fn note_reuse(self: &Arc<Self>, ready: &ReadySession) {
        self.metrics.sessions.count(SessionEvent::RefreshReused);
        tracing::warn!(session = %ready.key, tenant = %ready.tenant, "a replaced refresh handle was used again");
        if self.settings.refresh_reuse == RefreshReuse::EndSession {
            self.end_behind(ready.key);
        }
    }
}

fn is_due(
    session: &Session,
    tokens: &TokenSet,
    scope: Scope,
    seen: u64,
    ask: &Ask,
    now: Timestamp,
    margin: f64,
) -> bool {
    match ask {
        Ask::WhenDue => {
            let lifetime = tokens.lifetime((margin * 1.3).min(0.95));
            !matches!(lifetime.freshness(now), Freshness::Fresh | Freshness::Final)
        }
        Ask::Now => session.generation(scope) == seen,
        Ask::LegalEntity(entity) => session.customer.as_ref().is_some_and(|half| half.legal_entity_id != *entity),
    }
}

fn apply(session: &mut Session, scope: Scope, issued: &Issued, legal_entity: Option<Option<String>>) {
    let tokens = issued.tokens.clone();
    match (scope, &mut session.anonymous) {
        (Scope::Customer, _) => {
            session.renew_customer(tokens, issued.session_id.clone(), legal_entity.flatten());
        }
        (Scope::Anonymous, Some(half)) => {
            half.tokens = tokens;
            session.anonymous_generation += 1;
        }
        (Scope::Anonymous, None) => {}
    }
}

/// What a failed call says of the refresh token: nothing, or that it may be spent.
fn failed(error: IdentityError) -> Redeemed {
    let unknown = matches!(error, IdentityError::Unknown(_) | IdentityError::BrokenOff);
    let (settled, outcome) = if unknown {
        (Settled::Unknown, RefreshOutcome::Unknown)
    } else {
        (Settled::Known, RefreshOutcome::Unavailable)
    };
    let reason = match GatewayError::from(error) {
        limited @ GatewayError::RateLimited { .. } => limited,
        GatewayError::IdentityUnavailable(reason) | GatewayError::IdentityUnreadable(reason) => {
            GatewayError::IdentityUnavailable(reason)
        }
        _ => GatewayError::IdentityUnavailable("the refresh was not served"),
    };
    Redeemed { renewal: Renewal::Failed(reason), settled, outcome }
}

const fn half(scope: Scope) -> Half {
    match scope {
        Scope::Anonymous => Half::Anonymous,
        Scope::Customer => Half::Customer,
    }
}
