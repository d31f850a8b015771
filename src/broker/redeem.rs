//! One redeem under its lease: from "still due?" to the saved answer.
//! Sends the refresh token once, keeps what comes back, and says what is known of the token's fate.

use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::flights::Renewal;
use super::lease::{HeldLease, LeaseLost, Undeclared};
use super::refresh::{Ask, half};
use crate::clock::{Timestamp, jittered};
use crate::error::GatewayError;
use crate::identity::{IdentityError, Issued, Refusal};
use crate::session::{Freshness, Scope, Session, Token, TokenSet};
use crate::store::layered::Change;
use crate::store::{Intent, Settled, StoreError};
use crate::telemetry::{RefreshOutcome, SessionEvent};

/// One redeem under its lease.
struct Redeem<'r> {
    lease: &'r HeldLease,
    intent: Intent,
    session: &'r Session,
    refresh: &'r Token,
}

impl Redeem<'_> {
    /// Nothing was spent. An intent of our own goes with the lease; one that was found stays.
    fn unspent(&self, error: impl Into<GatewayError>) -> Redeemed {
        Redeemed { settled: self.unspent_settles(), ..Redeemed::untouched(error) }
    }

    /// Nothing was sent, for somebody else may be at it.
    const fn overtaken(&self, lost: LeaseLost) -> Redeemed {
        Redeemed {
            renewal: Err(lost),
            settled: self.unspent_settles(),
            outcome: RefreshOutcome::Superseded,
            put_back: None,
        }
    }

    const fn unspent_settles(&self) -> Settled {
        if self.is_recovery() { Settled::Unknown } else { Settled::Known }
    }

    /// Whether the token may have been spent before, by somebody who did not live to say so.
    const fn is_recovery(&self) -> bool {
        self.intent.recoveries > 0
    }
}

/// What became of one redeem.
struct Redeemed {
    renewal: Result<Renewal, LeaseLost>,
    settled: Settled,
    outcome: RefreshOutcome,
    /// The intent that was found, and stands for as little as before.
    put_back: Option<Intent>,
}

impl Redeemed {
    const fn known(renewal: Renewal, outcome: RefreshOutcome) -> Self {
        Self { renewal: Ok(renewal), settled: Settled::Known, outcome, put_back: None }
    }

    /// The session is over. The store may not know of it yet, and then its record still holds what may be spent: so an
    /// intent stays.
    const fn gone() -> Self {
        Self {
            renewal: Ok(Renewal::Ended),
            settled: Settled::Unknown,
            outcome: RefreshOutcome::Superseded,
            put_back: None,
        }
    }

    /// Nothing was sent, and what an earlier holder left stays as it is.
    fn untouched(error: impl Into<GatewayError>) -> Self {
        let renewal = Ok(Renewal::Failed(error.into()));
        Self { renewal, settled: Settled::Unknown, outcome: RefreshOutcome::Unavailable, put_back: None }
    }
}

impl Broker {
    /// Redeems, while the lease is kept, and gives it up.
    pub(super) async fn redeem_under(
        self: &Arc<Self>,
        lease: HeldLease,
        seen: u64,
        ask: &Ask,
        orphan: Option<Intent>,
    ) -> Result<Renewal, LeaseLost> {
        let redeemed = tokio::select! {
            redeemed = self.redeem_if_due(&lease, seen, ask, orphan) => redeemed,
            never = self.keep_lease(&lease) => match never {},
        };
        self.metrics.refreshes.count(half(lease.scope()), redeemed.outcome);
        match redeemed.put_back {
            Some(found) => self.put_back_behind(lease, found),
            None => self.give_up(&lease, redeemed.settled).await,
        }
        redeemed.renewal
    }

    /// Puts back the intent that was found, for as long as it takes within reason, and only then gives the lease up:
    /// whoever comes next would take the token for spent. Nobody waits for it.
    fn put_back_behind(self: &Arc<Self>, lease: HeldLease, found: Intent) {
        const ATTEMPTS: u32 = 25;
        let broker = self.clone();
        self.go_on(async move {
            let put_back = async {
                for attempt in 1..=ATTEMPTS {
                    if !matches!(broker.declare(&lease, &found).await, Err(Undeclared::Unknown(_))) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
            };
            tokio::select! {
                () = put_back => {}
                never = broker.keep_lease(&lease) => match never {},
            }
            broker.give_up(&lease, Settled::Unknown).await;
        });
    }

    async fn redeem_if_due(
        self: &Arc<Self>,
        lease: &HeldLease,
        seen: u64,
        ask: &Ask,
        orphan: Option<Intent>,
    ) -> Redeemed {
        let (key, scope) = (lease.key(), lease.scope());
        let now = self.clock.now();
        let session = match self.store.load_record(key).await {
            Ok(Some(session)) => session,
            Ok(None) => return Redeemed::gone(),
            Err(error) => return Redeemed::untouched(error),
        };
        let Some(tokens) = session.tokens(scope) else {
            return Redeemed::known(Renewal::Ended, RefreshOutcome::Superseded);
        };
        if !is_due(&session, tokens, scope, seen, ask, now, self.store.limits().refresh_margin) {
            return Redeemed::known(Renewal::Current(self.ready_of(&session)), RefreshOutcome::Superseded);
        }
        let Some(refresh) = tokens.refresh.clone().filter(|_| now < tokens.refresh_expires_at) else {
            return Redeemed::known(Renewal::Ended, RefreshOutcome::Rejected);
        };
        let generation = session.generation(scope);
        let orphan = orphan.filter(|intent| intent.generation == generation);
        let access_lives = now < tokens.access_expires_at && *ask != Ask::Now;
        let session = match orphan {
            None => session,
            // The token may be spent. While access lives, nothing is lost by leaving it alone.
            Some(_) if access_lives => {
                return Redeemed::untouched(GatewayError::IdentityUnavailable("an earlier refresh is unsettled"));
            }
            Some(_) => match self.still_unsettled(session, scope).await {
                Ok(session) => session,
                Err(settled) => return settled,
            },
        };
        if orphan.is_some_and(|intent| intent.recoveries > 0) {
            return self.lose(&session, scope).await;
        }
        let recoveries = orphan.map_or(0, |intent| intent.recoveries + 1);
        let intent = Intent { generation, started_at: self.clock.now(), recoveries };
        let redeem = Redeem { lease, intent, session: &session, refresh: &refresh };
        let redeemed = match scope {
            Scope::Anonymous => self.redeem_anonymous(&redeem).await,
            Scope::Customer => self.redeem_customer(&redeem, ask).await,
        };
        // Nothing was spent, so the one recovery is still to come.
        let put_back = orphan.filter(|_| redeemed.outcome == RefreshOutcome::Unavailable);
        Redeemed { put_back, ..redeemed }
    }

    /// The record, if nobody has advanced the half while the lease was held for a while.
    async fn still_unsettled(&self, seen: Session, scope: Scope) -> Result<Session, Redeemed> {
        /// The leader whose intent was found may live, with the only valid token: where the store was away for longer than
        /// its lease, it comes back within the keeper's retry and the longest pause between two saves, a second each.
        const HELD_FOR: Duration = Duration::from_secs(3);
        tokio::time::sleep(HELD_FOR).await;
        match self.store.load_record(&seen.key).await {
            Ok(Some(session)) if session.generation(scope) == seen.generation(scope) => Ok(session),
            Ok(Some(settled)) => Err(Redeemed::known(self.standing(&settled, scope), RefreshOutcome::Superseded)),
            Ok(None) => Err(Redeemed::gone()),
            Err(error) => Err(Redeemed::untouched(error)),
        }
    }

    async fn redeem_anonymous(self: &Arc<Self>, redeem: &Redeem<'_>) -> Redeemed {
        if let Err(redeemed) = self.about_to_send(redeem).await {
            return redeemed;
        }
        match self.identity.anonymous_refresh(&redeem.session.tenant, redeem.refresh).await {
            Ok(issued) => self.keep_renewed(redeem, issued, None).await,
            Err(IdentityError::Refused(refusal)) if matches!(refusal.status, 400 | 401) => self.reject(redeem).await,
            Err(IdentityError::AuthorizerRefused) => self.reject(redeem).await,
            Err(error) => failed(error, redeem),
        }
    }

    async fn redeem_customer(self: &Arc<Self>, redeem: &Redeem<'_>, ask: &Ask) -> Redeemed {
        let Redeem { session, refresh, .. } = redeem;
        let remembered = session.customer.as_ref().and_then(|half| half.legal_entity_id.clone());
        let legal_entity = if let Ask::LegalEntity(entity) = ask { entity.clone() } else { remembered };
        let mut refused: Option<Token> = None;
        loop {
            let authorizer = match self.refresh_authorizer(session, refused.as_ref()).await {
                Ok(authorizer) => authorizer,
                Err(error) => return redeem.unspent(error),
            };
            if let Err(redeemed) = self.about_to_send(redeem).await {
                return redeemed;
            }
            let answer = self.identity.refresh(&session.tenant, refresh, &authorizer, legal_entity.as_deref()).await;
            match answer {
                Ok(issued) => return self.keep_renewed(redeem, issued, Some(legal_entity)).await,
                // Said of the authorizer, and so no word on the refresh token: another one, once.
                Err(IdentityError::AuthorizerRefused) if refused.is_none() => refused = Some(authorizer),
                Err(IdentityError::Refused(refusal)) if matches!(refusal.status, 400 | 401) => {
                    return self.refused(redeem, refusal, ask).await;
                }
                Err(error) => return failed(error, redeem),
            }
        }
    }

    /// A refusal of an explicit switch may be about the legal entity; one of a plain refresh is about the token.
    async fn refused(&self, redeem: &Redeem<'_>, refusal: Box<Refusal>, ask: &Ask) -> Redeemed {
        match ask {
            Ask::LegalEntity(Some(_)) if refusal.status == 400 => {
                Redeemed::known(Renewal::Failed(GatewayError::Refused(refusal)), RefreshOutcome::Unavailable)
            }
            _ => self.reject(redeem).await,
        }
    }

    /// Writes ahead that the refresh token is about to be sent, if the lease is still ours. Not while the store leaves too
    /// many answers unsaved: of those that are under way already, none is let go.
    async fn about_to_send(&self, redeem: &Redeem<'_>) -> Result<(), Redeemed> {
        if self.unsaved.available_permits() == 0 {
            let error = StoreError::Unavailable("too many renewed tokens wait to be saved".to_owned());
            return Err(redeem.unspent(error));
        }
        self.declare(redeem.lease, &redeem.intent).await.map_err(|undeclared| match undeclared {
            Undeclared::Lost(lost) => redeem.overtaken(lost),
            Undeclared::Unknown(error) => redeem.unspent(error),
        })
    }

    /// Saves what was issued, if nobody advanced the generation meanwhile: whoever holds the lease by now, it may be the
    /// only valid token. So a store that is away is asked again for as long as the session lives and the tokens can be used
    /// or renewed.
    async fn keep_renewed(
        self: &Arc<Self>,
        redeem: &Redeem<'_>,
        issued: Issued,
        legal_entity: Option<Option<String>>,
    ) -> Redeemed {
        /// Short: once the store is back, whoever takes the lease finds an intent and sends the spent token again.
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        let (redeemed, scope) = (redeem.session, redeem.lease.scope());
        let generation = redeemed.generation(scope);
        /// About a minute's: who wrote what this replica cannot read will not take it back.
        const MOST_UNREADABLE: u32 = 60;
        let worth_until = issued.tokens.lifetime(self.store.limits().refresh_margin).ends_at().min(redeemed.ends_at);
        let mut unreadable = 0;
        let (mut unsaved, mut pause) = (None, Duration::from_millis(100));
        loop {
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
            unreadable += u32::from(matches!(saved, Err(StoreError::Unreadable(_))));
            match saved {
                Ok(Some(session)) if ours => {
                    self.rejections.note_success(session.tenant, scope, self.clock.now());
                    let outcome =
                        if redeem.is_recovery() { RefreshOutcome::Recovered } else { RefreshOutcome::Renewed };
                    return Redeemed::known(self.standing(&session, scope), outcome);
                }
                Ok(overtaken) => return self.discard_renewed(redeem, issued, overtaken.as_ref()),
                Err(error) if self.clock.now() >= worth_until || unreadable == MOST_UNREADABLE => {
                    tracing::error!(session = %self.label(&redeemed.key), %error, "renewed tokens could not be saved");
                    return Redeemed { outcome: RefreshOutcome::Unknown, ..Redeemed::untouched(error) };
                }
                Err(error) if unsaved.is_none() => {
                    tracing::warn!(session = %self.label(&redeemed.key), %error, "renewed tokens wait for the session store");
                    unsaved = Some(self.unsaved.try_acquire());
                }
                Err(_) => {}
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// A logout or another customer's sign-in overtook the refresh: Emporix must hear of that customer's newest token
    /// too. Where another refresh was faster, both tokens are the same customer's, and neither is revoked.
    fn discard_renewed(self: &Arc<Self>, redeem: &Redeem<'_>, issued: Issued, overtaken: Option<&Session>) -> Redeemed {
        let (redeemed, scope) = (redeem.session, redeem.lease.scope());
        let signed_out = overtaken.is_none_or(|session| session.signed_in_at() != redeemed.signed_in_at());
        if scope == Scope::Customer && signed_out {
            self.revoke_behind(redeemed.tenant, issued.tokens.access);
        }
        match overtaken {
            Some(session) => Redeemed::known(self.standing(session, scope), RefreshOutcome::Superseded),
            None => Redeemed::gone(),
        }
    }

    /// Emporix refused the refresh token. Another replica may have won; if not, the half is over.
    async fn reject(&self, redeem: &Redeem<'_>) -> Redeemed {
        let (refused, scope) = (redeem.session, redeem.lease.scope());
        if self.rejections.are_a_burst(refused.tenant, scope, self.clock.now()) {
            tracing::error!(session = %self.label(&refused.key), "Emporix refuses refreshes of many sessions at once; none is ended");
            return redeem.unspent(GatewayError::IdentityUnavailable("refreshes of many sessions are refused"));
        }
        if redeem.is_recovery() {
            return self.lose(refused, scope).await;
        }
        tracing::info!(session = %self.label(&refused.key), tenant = %refused.tenant, ?scope, "Emporix refused a refresh");
        self.end_half(refused, scope, RefreshOutcome::Rejected).await
    }

    /// An unsettled refresh has spent the token, and nobody has its answer: the half ends cleanly.
    async fn lose(&self, session: &Session, scope: Scope) -> Redeemed {
        tracing::warn!(session = %self.label(&session.key), tenant = %session.tenant, ?scope, "a refresh token was lost");
        self.end_half(session, scope, RefreshOutcome::Lost).await
    }

    /// Ends the half for the reason that `outcome` names, unless somebody advanced it meanwhile. Where the store cannot
    /// be told, the intent stays: whoever finds it knows that the token is not to be sent as a new one.
    async fn end_half(&self, seen: &Session, scope: Scope, outcome: RefreshOutcome) -> Redeemed {
        let (now, generation, mut ours) = (self.clock.now(), seen.generation(scope), false);
        let ended = self.store.update(&seen.key, |session| {
            ours = session.generation(scope) == generation;
            if !ours {
                return Change::Discard;
            }
            end(session, scope, now);
            Change::Save
        });
        match ended.await {
            Ok(Some(session)) if !ours => Redeemed::known(self.standing(&session, scope), RefreshOutcome::Superseded),
            Ok(Some(_)) => {
                if scope == Scope::Customer {
                    self.metrics.sessions.count(SessionEvent::CustomerLost);
                }
                Redeemed::known(Renewal::Ended, outcome)
            }
            Ok(None) => Redeemed::gone(),
            Err(error) => Redeemed { outcome: RefreshOutcome::Unknown, ..Redeemed::untouched(error) },
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

fn end(session: &mut Session, scope: Scope, now: Timestamp) {
    match (scope, &mut session.anonymous) {
        (Scope::Customer, _) => session.end_customer(),
        (Scope::Anonymous, Some(half)) => {
            half.tokens.refresh = None;
            half.tokens.access_expires_at = half.tokens.access_expires_at.min(now);
            session.anonymous_generation += 1;
        }
        (Scope::Anonymous, None) => {}
    }
}

/// What a failed call says of the refresh token: nothing, or that it may be spent. Who says yes unreadably may have
/// spent it as well. A recovery that settles nothing
/// leaves the intent that it found.
fn failed(error: IdentityError, redeem: &Redeem<'_>) -> Redeemed {
    let unknown = matches!(error, IdentityError::Unknown(_) | IdentityError::BrokenOff | IdentityError::Unreadable(_));
    let outcome = if unknown { RefreshOutcome::Unknown } else { RefreshOutcome::Unavailable };
    let reason = match GatewayError::from(error) {
        limited @ GatewayError::RateLimited { .. } => limited,
        GatewayError::IdentityUnavailable(reason) | GatewayError::IdentityUnreadable(reason) => {
            GatewayError::IdentityUnavailable(reason)
        }
        _ => GatewayError::IdentityUnavailable("the refresh was not served"),
    };
    let unspent = redeem.unspent(reason);
    Redeemed { settled: if unknown { Settled::Unknown } else { unspent.settled }, outcome, ..unspent }
}
