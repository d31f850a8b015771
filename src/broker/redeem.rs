//! One redeem under its lease: from "still due?" to the saved answer.
//! Sends the refresh token once, keeps what comes back, and says what is known of the token's fate.

use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::refresh::{Ask, Renewal, half};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::identity::{IdentityError, Issued, Refusal};
use crate::session::{Freshness, Scope, Session, Token, TokenSet};
use crate::store::layered::Change;
use crate::store::{Intent, LeaseName, Owner, Settled};
use crate::telemetry::{RefreshOutcome, SessionEvent};

/// One redeem under its lease.
struct Redeem<'r> {
    lease: &'r LeaseName,
    owner: &'r Owner,
    intent: Intent,
    session: &'r Session,
    refresh: &'r Token,
}

impl Redeem<'_> {
    /// Nothing was sent. An intent of our own goes with the lease; one that was found stays.
    fn unsent(&self, error: impl Into<GatewayError>) -> Redeemed {
        let settled = if self.intent.recoveries == 0 { Settled::Known } else { Settled::Unknown };
        Redeemed { settled, ..Redeemed::untouched(error) }
    }
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
    pub(super) async fn redeem_under(
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
            tracing::warn!(session = %self.label(&lease.key), %error, "a lease could not be released; it ends by itself");
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
        let recoveries = orphan.map_or(0, |intent| intent.recoveries + 1);
        let intent = Intent { generation, started_at: now, recoveries };
        let redeem = Redeem { lease, owner, intent, session: &session, refresh: &refresh };
        let redeemed = match scope {
            Scope::Anonymous => self.redeem_anonymous(&redeem).await,
            Scope::Customer => self.redeem_customer(&redeem, ask).await,
        };
        if let (Some(found), RefreshOutcome::Unavailable) = (orphan, redeemed.outcome) {
            // Nothing was spent, so the one recovery is still to come. If this is not heard, it is taken for spent.
            let _ = self.store.declare(lease, owner, &found, self.lease_life()).await;
        }
        redeemed
    }

    async fn redeem_anonymous(self: &Arc<Self>, redeem: &Redeem<'_>) -> Redeemed {
        if let Err(redeemed) = self.declare(redeem).await {
            return redeemed;
        }
        match self.identity.anonymous_refresh(&redeem.session.tenant, redeem.refresh).await {
            Ok(issued) => self.keep_renewed(redeem, issued, None).await,
            Err(IdentityError::Refused(refusal)) if matches!(refusal.status, 400 | 401) => {
                self.reject(redeem.session, Scope::Anonymous).await
            }
            Err(IdentityError::AuthorizerRefused) => self.reject(redeem.session, Scope::Anonymous).await,
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
                Err(error) => return redeem.unsent(error),
            };
            if let Err(redeemed) = self.declare(redeem).await {
                return redeemed;
            }
            let answer = self.identity.refresh(&session.tenant, refresh, &authorizer, legal_entity.as_deref()).await;
            match answer {
                Ok(issued) => return self.keep_renewed(redeem, issued, Some(legal_entity)).await,
                // Said of the authorizer, and so no word on the refresh token: another one, once.
                Err(IdentityError::AuthorizerRefused) if refused.is_none() => refused = Some(authorizer),
                Err(IdentityError::Refused(refusal)) if matches!(refusal.status, 400 | 401) => {
                    return self.refused(session, refusal, ask).await;
                }
                Err(error) => return failed(error, redeem),
            }
        }
    }

    /// A refusal of an explicit switch may be about the legal entity; one of a plain refresh is about the token.
    async fn refused(&self, session: &Session, refusal: Box<Refusal>, ask: &Ask) -> Redeemed {
        match ask {
            Ask::LegalEntity(Some(_)) if refusal.status == 400 => {
                Redeemed::known(Renewal::Failed(GatewayError::Refused(refusal)), RefreshOutcome::Unavailable)
            }
            _ => self.reject(session, Scope::Customer).await,
        }
    }

    /// Writes ahead that the refresh token is about to be sent, if the lease is still ours.
    async fn declare(&self, redeem: &Redeem<'_>) -> Result<(), Redeemed> {
        match self.store.declare(redeem.lease, redeem.owner, &redeem.intent, self.lease_life()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(redeem.unsent(GatewayError::IdentityUnavailable("the lease was lost"))),
            Err(error) => Err(redeem.unsent(error)),
        }
    }

    /// Saves what was issued, if nobody advanced the generation meanwhile. It may hold the only valid token, so a
    /// store that is away is asked again for a while, and the lease is kept as long.
    async fn keep_renewed(
        self: &Arc<Self>,
        redeem: &Redeem<'_>,
        issued: Issued,
        legal_entity: Option<Option<String>>,
    ) -> Redeemed {
        const ATTEMPTS: u32 = 25;
        let (redeemed, scope) = (redeem.session, redeem.lease.scope);
        let generation = redeemed.generation(scope);
        let mut attempt = 1;
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
            match saved {
                Ok(Some(session)) => {
                    let outcome = if ours { RefreshOutcome::Renewed } else { RefreshOutcome::Superseded };
                    return Redeemed::known(Renewal::Current(self.ready_of(&session)), outcome);
                }
                Ok(None) => {
                    // A logout overtook the refresh: the session is gone, and Emporix must hear of its newest token too.
                    if scope == Scope::Customer {
                        self.revoke_behind(redeemed.tenant.clone(), issued.tokens.access);
                    }
                    return Redeemed::known(Renewal::Ended, RefreshOutcome::Superseded);
                }
                Err(error) if attempt == ATTEMPTS => {
                    tracing::error!(session = %self.label(&redeemed.key), %error, "renewed tokens could not be saved");
                    let renewal = Renewal::Failed(error.into());
                    return Redeemed { renewal, settled: Settled::Unknown, outcome: RefreshOutcome::Lost };
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                    // Whether or not this is heard, the answer is worth saving: only the generation decides.
                    let _ = self.declare(redeem).await;
                    attempt += 1;
                }
            }
        }
    }

    /// Emporix refused the refresh token. Another replica may have won; if not, the half is over.
    async fn reject(&self, refused: &Session, scope: Scope) -> Redeemed {
        if scope == Scope::Customer && self.rejections.are_a_burst(self.clock.now()) {
            tracing::error!(session = %self.label(&refused.key), "Emporix refuses refreshes of many sessions at once; none is ended");
            let renewal = Renewal::Failed(GatewayError::IdentityUnavailable("refreshes of many sessions are refused"));
            return Redeemed::known(renewal, RefreshOutcome::Unavailable);
        }
        let renewal = self.end_half(refused, scope).await;
        if matches!(renewal, Renewal::Ended) && scope == Scope::Customer {
            tracing::info!(session = %self.label(&refused.key), tenant = %refused.tenant, "Emporix refused the refresh; the customer's half ended");
        }
        Redeemed::known(renewal, RefreshOutcome::Rejected)
    }

    /// The recovery of an unsettled refresh was unsettled as well: the half ends cleanly.
    async fn lose(&self, session: &Session, scope: Scope) -> Redeemed {
        tracing::warn!(session = %self.label(&session.key), tenant = %session.tenant, "a refresh token was lost");
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
                    (Scope::Customer, _) => session.end_customer(),
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

/// What a failed call says of the refresh token: nothing, or that it may be spent. A recovery that settles nothing
/// leaves the intent that it found.
fn failed(error: IdentityError, redeem: &Redeem<'_>) -> Redeemed {
    let unknown = matches!(error, IdentityError::Unknown(_) | IdentityError::BrokenOff);
    let outcome = if unknown { RefreshOutcome::Unknown } else { RefreshOutcome::Unavailable };
    let reason = match GatewayError::from(error) {
        limited @ GatewayError::RateLimited { .. } => limited,
        GatewayError::IdentityUnavailable(reason) | GatewayError::IdentityUnreadable(reason) => {
            GatewayError::IdentityUnavailable(reason)
        }
        _ => GatewayError::IdentityUnavailable("the refresh was not served"),
    };
    let unsent = redeem.unsent(reason);
    Redeemed { settled: if unknown { Settled::Unknown } else { unsent.settled }, outcome, ..unsent }
}
