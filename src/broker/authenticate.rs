//! From a credential to a permit.
//! The hot path: a fresh session in the hot cache is a hash, a compare and two reference counts. What waits for anything
//! is boxed, so that this path does not carry the room for it.

use std::sync::Arc;

use http::HeaderValue;
use serde::Serialize;

use super::flights::{LONGEST_BEHIND, Renewal};
use super::refresh::Ask;
use super::{Broker, Credential, Permit, Tenant};
use crate::clock::Timestamp;
use crate::config::routes::{Access, Inject, SaasInjection};
use crate::error::GatewayError;
use crate::session::{
    Freshness, Handle, HandleKind, ReadySession, Scope, SessionKey, TenantId, Token, Transport, Verified,
};
use crate::store::Alias;
use crate::telemetry::{Decision, Saved};

/// What a request is told whose new token the API calls over. The API's 401 would have clients log a session out that may
/// well live.
const CALLED_OVER: GatewayError = GatewayError::IdentityUnavailable("the API calls a new token over");

/// What a route demands of a request.
#[derive(Debug)]
pub struct Demand<'r> {
    /// The tenant that the path, a header or the host names; where none does, the session's own.
    pub tenant: Option<&'r TenantId>,
    /// Who may pass.
    pub access: &'r Access,
    /// Whose token is injected.
    pub inject: Inject,
    /// Whether the customer's `saas_token` goes along.
    pub saas_token: SaasInjection,
    /// The ids of visits that the request names, in its query or headers.
    pub visits: &'r [&'r str],
    /// Whether the method is safe (RFC 9110, section 9.2.1).
    pub safe: bool,
}

/// A credential that opened its session.
pub(super) struct Opened {
    pub(super) ready: Arc<ReadySession>,
    /// The most that the credential allows.
    pub(super) scope: Scope,
    /// The scope that the credential names, where it names one.
    pub(super) named: Option<Scope>,
}

impl Opened {
    /// The scope to act in: the named one, else the highest that lives.
    pub(super) fn acting_scope(&self, now: Timestamp) -> Scope {
        let customer_lives = self.ready.freshness(Scope::Customer, now) != Freshness::Dead;
        match self.named {
            Some(named) => named,
            None if self.scope == Scope::Customer && customer_lives => Scope::Customer,
            None => Scope::Anonymous,
        }
    }
}

/// What a client may know of its session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// `anonymous` or `customer`.
    pub kind: &'static str,
    /// The tenant.
    pub tenant: String,
    /// The customer number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// Emporix' id of the visit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// End of the session unless it is used, in seconds since 1970.
    pub expires_at: u64,
    /// End of the `saas_token`, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saas_token_expires_at: Option<u64>,
}

impl Broker {
    /// Lets a request pass, or says why not.
    ///
    /// # Errors
    /// Every reason not to.
    pub async fn authenticate(
        self: &Arc<Self>,
        demand: &Demand<'_>,
        credential: Option<&Credential>,
    ) -> Result<Permit, GatewayError> {
        let result = match credential {
            Some(credential) => self.with_credential(demand, credential).await,
            None => Box::pin(self.without_credential(demand)).await,
        };
        self.metrics.auth.count(match &result {
            Ok(permit) if permit.is_shared() => Decision::SharedGuest,
            Ok(_) => Decision::Session,
            Err(GatewayError::SessionRequired) => Decision::Missing,
            Err(error) if error.status() == 401 => Decision::Dead,
            Err(error) if error.status() >= 500 => Decision::Unknowable,
            Err(_) => Decision::Forbidden,
        });
        result
    }

    async fn with_credential(
        self: &Arc<Self>,
        demand: &Demand<'_>,
        credential: &Credential,
    ) -> Result<Permit, GatewayError> {
        let mut now = self.clock.now();
        let mut opened = self.open(demand.tenant, credential, now).await?;
        let mut asked_store = false;
        loop {
            let acting = opened.acting_scope(now);
            match demand.access {
                Access::Customer if acting != Scope::Customer => return Err(GatewayError::CustomerRequired),
                // The edge sends no session this way.
                Access::Service(_) | Access::Deny => return Err(GatewayError::Denied),
                Access::Guest | Access::Visitor | Access::Customer => {}
            }
            let scope = if demand.inject == Inject::Anonymous { Scope::Anonymous } else { acting };
            match opened.ready.freshness(scope, now) {
                Freshness::Fresh | Freshness::Final => {}
                Freshness::RefreshDue => self.renew_behind(&opened.ready, scope),
                Freshness::Dead if asked_store => return Err(GatewayError::SessionEnded),
                Freshness::Dead => {
                    // The hot cache may not have heard of new tokens elsewhere: only the store can say that a half is over.
                    Box::pin(self.store.reload(&opened.ready.key)).await?.ok_or(GatewayError::SessionGone)?;
                    opened = self.open(demand.tenant, credential, now).await?;
                    asked_store = true;
                    continue;
                }
                Freshness::Expired => {
                    let renewed = Box::pin(self.renew_half(&opened.ready, scope)).await?;
                    now = self.clock.now();
                    match renewed {
                        Some(renewed) => opened.ready = renewed,
                        // The half has ended. The visitor's half stays, so there may be another scope to act in.
                        None if scope == Scope::Customer && opened.named.is_none() => {
                            opened.ready = self.find(&opened.ready.key, now).await?;
                            opened.scope = Scope::Anonymous;
                            continue;
                        }
                        None => return Err(GatewayError::SessionEnded),
                    }
                }
            }
            self.touch_behind(&opened.ready, now);
            return permit(&opened.ready, scope, demand, now);
        }
    }

    async fn without_credential(self: &Arc<Self>, demand: &Demand<'_>) -> Result<Permit, GatewayError> {
        if *demand.access != Access::Guest || !demand.safe || !demand.visits.is_empty() {
            return Err(GatewayError::SessionRequired);
        }
        let ready = self.shared_guest(demand.tenant.ok_or(GatewayError::UnknownTenant)?).await?;
        let half = ready.half(Scope::Anonymous).ok_or(GatewayError::Internal("a guest token without a half"))?;
        self.metrics.emporix_saved.count(Saved::GuestShared);
        Ok(Permit::shared(ready.clone(), half))
    }

    /// Opens the session that `credential` names.
    pub(super) async fn open(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        credential: &Credential,
        now: Timestamp,
    ) -> Result<Opened, GatewayError> {
        let named_tenant = || tenant.ok_or(GatewayError::UnknownTenant);
        let opened = match credential {
            Credential::Handle(handle, others) => {
                let opened = self.open_handle(handle, now).await?;
                for other in others {
                    self.judge(&opened.ready, other.kind, opened.ready.verify(other, now))?;
                }
                Opened { named: Some(opened.scope), ..opened }
            }
            Credential::Cookie(handle, named) => {
                let opened = self.open_handle(handle, now).await?;
                if *named > Some(opened.scope) {
                    return Err(GatewayError::SessionEnded);
                }
                Opened { named: *named, ..opened }
            }
            Credential::Jwt(token) => self.open_jwt(named_tenant()?, token, now).await?,
            Credential::Foreign(token) => Box::pin(self.open_foreign(named_tenant()?, token, now)).await?,
        };
        if tenant.is_none_or(|tenant| opened.ready.tenant == *tenant) {
            Ok(opened)
        } else {
            Err(GatewayError::TenantMismatch)
        }
    }

    async fn open_handle(self: &Arc<Self>, handle: &Handle, now: Timestamp) -> Result<Opened, GatewayError> {
        let mut ready = self.find(&handle.key, now).await?;
        let mut verified = ready.verify(handle, now);
        if verified == Verified::Unknown {
            // The hot cache may not have heard of a login elsewhere: only the store can say that a handle is nothing.
            ready = Box::pin(self.store.reload(&handle.key)).await?.ok_or(GatewayError::SessionGone)?;
            verified = ready.verify(handle, now);
        }
        let scope = self.judge(&ready, handle.kind, verified)?;
        Ok(Opened { ready, scope, named: None })
    }

    /// The scope of a handle of `ready`; a handle of the other transport opens nothing.
    fn judge(
        self: &Arc<Self>,
        ready: &ReadySession,
        kind: HandleKind,
        verified: Verified,
    ) -> Result<Scope, GatewayError> {
        if (ready.transport == Transport::Cookie) != (kind == HandleKind::Cookie) {
            return Err(GatewayError::SessionEnded);
        }
        match verified {
            Verified::Valid(scope) => Ok(scope),
            Verified::Replaced(HandleKind::CustomerRefresh) => {
                self.note_reuse(ready);
                Err(GatewayError::SessionEnded)
            }
            Verified::Replaced(_) => Err(GatewayError::SessionEnded),
            Verified::Unknown => Err(GatewayError::SessionGone),
        }
    }

    /// Opens by the exact JWT that a login answered. Its verdict is cached until it expires.
    async fn open_jwt(&self, tenant: &TenantId, token: &Token, now: Timestamp) -> Result<Opened, GatewayError> {
        let known = self.known_tenant(tenant)?;
        if !known.accept_jwt {
            return Err(GatewayError::SessionEnded);
        }
        let alias = Alias::of(*tenant, token.expose().as_bytes());
        let cached = self.store.verdict(&alias, now);
        let (key, holds_until) = match cached {
            Some(key) => (key, now),
            None => Box::pin(self.verdict(&known, &alias, token)).await?,
        };
        let mut ready = self.find(&key, now).await?;
        if cached.is_none() {
            if !ready.holds_saas_token(token) {
                // The hot cache may not have heard of a login elsewhere: only the store can say that the JWT is nothing.
                ready = Box::pin(self.store.reload(&key)).await?.ok_or(GatewayError::SessionGone)?;
            }
            // Whoever finds this need not ask the store again, whether the session holds the JWT or not.
            self.store.remember_verdict(alias, key, holds_until);
            if !Arc::ptr_eq(&known, &*self.known_tenant(tenant)?) {
                // The key was changed while this one was judged by the old.
                self.store.forget_verdicts();
            }
        }
        if !ready.holds_saas_token(token) {
            return Err(GatewayError::SessionEnded);
        }
        Ok(Opened { ready, scope: Scope::Customer, named: Some(Scope::Customer) })
    }

    /// The session of a JWT that its tenant's key signed, and until when that holds.
    async fn verdict(
        &self,
        tenant: &Tenant,
        alias: &Alias,
        token: &Token,
    ) -> Result<(SessionKey, Timestamp), GatewayError> {
        let claims = match tenant.saas.verify(token).await {
            Ok(claims) => claims,
            Err(crate::identity::keys::Unverified::Bad(_)) => return Err(GatewayError::SessionEnded),
            Err(error) => return Err(error.into()),
        };
        let key = self.store.resolve(alias).await?.ok_or(GatewayError::SessionEnded)?;
        Ok((key, claims.expires_at))
    }

    /// The session, or that it is over.
    pub(super) async fn find(&self, key: &SessionKey, now: Timestamp) -> Result<Arc<ReadySession>, GatewayError> {
        if let Some(ready) = self.store.get(key, now) {
            return Ok(ready);
        }
        Box::pin(self.store.load(key)).await?.ok_or(GatewayError::SessionGone)
    }

    /// Waits for renewed tokens; none when the half has ended.
    pub(super) async fn renew_half(
        self: &Arc<Self>,
        ready: &ReadySession,
        scope: Scope,
    ) -> Result<Option<Arc<ReadySession>>, GatewayError> {
        let seen = ready.half(scope).map_or(0, |half| half.generation);
        match self.renew(&ready.key, scope, seen, Ask::WhenDue).await {
            Renewal::Current(renewed) if is_anothers(&renewed, scope, ready.signed_in_at) => Ok(None),
            Renewal::Current(renewed) => Ok(Some(renewed)),
            Renewal::Ended => Ok(None),
            Renewal::Failed(error) => Err(error),
        }
    }

    /// Renewed tokens in the place of those that upstream no longer honours; none when there are none to be had.
    ///
    /// # Errors
    /// When they cannot be renewed now: the session is not over for that, whatever upstream says of its token.
    pub async fn renew_refused(
        self: &Arc<Self>,
        permit: &Permit,
        demand: &Demand<'_>,
    ) -> Result<Option<Permit>, GatewayError> {
        let now = self.clock.now();
        if self.flights.were_unwanted(*permit.key(), permit.scope(), permit.generation()) {
            return Err(CALLED_OVER);
        }
        if matches!(demand.access, Access::Service(_)) {
            return self.renew_service(permit, demand).await.map(Some);
        }
        if permit.is_shared() {
            let ready = self.renew_shared_guest(permit.tenant(), permit.key()).await?;
            return Ok(ready.half(Scope::Anonymous).map(|half| Permit::shared(ready.clone(), half)));
        }
        match self.renew(permit.key(), permit.scope(), permit.generation(), Ask::Now).await {
            Renewal::Current(ready) => {
                let newer = ready.half(permit.scope()).is_some_and(|half| half.generation != permit.generation());
                let theirs = !is_anothers(&ready, permit.scope(), permit.signed_in_at());
                Ok((newer && theirs).then(|| self::permit(&ready, permit.scope(), demand, now).ok()).flatten())
            }
            Renewal::Ended => Ok(None),
            Renewal::Failed(error) => Err(error),
        }
    }

    /// Upstream does not honour the renewed tokens of `permit` either: another renewal would not mend it for a while.
    pub fn note_unwanted(&self, permit: &Permit) -> GatewayError {
        self.flights.note_unwanted(*permit.key(), permit.scope(), permit.generation());
        CALLED_OVER
    }

    fn renew_behind(self: &Arc<Self>, ready: &Arc<ReadySession>, scope: Scope) {
        let seen = ready.half(scope).map_or(0, |half| half.generation);
        // What is under way already, or failed a moment ago, needs no second start.
        let _ = self.start_renewal(&ready.key, scope, seen, Ask::WhenDue, LONGEST_BEHIND);
    }

    /// Records the use of a session, when the last record of it is old enough.
    fn touch_behind(self: &Arc<Self>, ready: &ReadySession, now: Timestamp) {
        if now < ready.touch_due_at || !self.flights.begin_touch(ready.key) {
            return;
        }
        let (broker, key) = (self.clone(), ready.key);
        self.go_on(async move {
            let touched = broker
                .store
                .update(&key, |session| {
                    session.last_seen_at = session.last_seen_at.max(now);
                    crate::store::layered::Change::Save
                })
                .await;
            if let Err(error) = touched {
                tracing::debug!(session = %broker.label(&key), %error, "the use of a session could not be recorded");
            }
        });
    }

    /// What the client may know of its session. Does not count as a use of it.
    ///
    /// # Errors
    /// When the credential opens none.
    pub async fn view(
        self: &Arc<Self>,
        tenant: Option<&TenantId>,
        credential: &Credential,
    ) -> Result<SessionView, GatewayError> {
        let now = self.clock.now();
        let opened = self.open(tenant, credential, now).await?;
        let scope = opened.acting_scope(now);
        let half = opened.ready.half(scope).ok_or(GatewayError::SessionEnded)?;
        let customer = opened.ready.customer().filter(|_| scope == Scope::Customer);
        let saas = customer.and_then(|customer| customer.saas.as_ref());
        Ok(SessionView {
            kind: if scope == Scope::Customer { "customer" } else { "anonymous" },
            tenant: opened.ready.tenant.to_string(),
            customer_id: customer.map(|customer| customer.customer_id.to_string()),
            session_id: half.session_id.as_deref().map(str::to_owned),
            expires_at: opened.ready.expires_at.seconds(),
            saas_token_expires_at: saas.map(|saas| saas.expires_at.seconds()),
        })
    }
}

/// Whether somebody else has signed in meanwhile: the rights of a second login are not those of the first.
fn is_anothers(ready: &ReadySession, scope: Scope, signed_in_at: Option<Timestamp>) -> bool {
    scope == Scope::Customer && ready.signed_in_at != signed_in_at
}

fn permit(
    ready: &Arc<ReadySession>,
    scope: Scope,
    demand: &Demand<'_>,
    now: Timestamp,
) -> Result<Permit, GatewayError> {
    let half = ready.half(scope).ok_or(GatewayError::SessionEnded)?;
    if demand.visits.iter().any(|visit| half.session_id.as_deref() != Some(visit)) {
        return Err(GatewayError::VisitMismatch);
    }
    let saas_token = saas_token(ready, scope, demand.saas_token, now)?;
    Ok(Permit::new(ready.clone(), scope, half, saas_token))
}

fn saas_token(
    ready: &ReadySession,
    scope: Scope,
    wanted: SaasInjection,
    now: Timestamp,
) -> Result<Option<HeaderValue>, GatewayError> {
    if scope == Scope::Anonymous || wanted == SaasInjection::Never {
        return Ok(None);
    }
    let saas = ready.customer().and_then(|customer| customer.saas.as_ref());
    match saas.filter(|saas| now < saas.expires_at) {
        Some(saas) => Ok(Some(saas.header.clone())),
        None if wanted == SaasInjection::Required => Err(GatewayError::ReauthenticationRequired),
        None => Ok(None),
    }
}
