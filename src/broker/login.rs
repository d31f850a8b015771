//! Signs customers in: password, social login, token exchange, opt-in.
//! Authorised by the visitor's own token; what was presented before never gains the customer's rights.

use std::sync::Arc;
use std::time::Duration;

use super::granted::NewHandles;
use super::{Broker, Credential, Granted, Tenant};
use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::identity::{Grant, IdentityError, Issued};
use crate::session::{CustomerHalf, Scope, Session, SessionKey, TenantId, Token, Transport, saas_token};
use crate::store::layered::Change;
use crate::store::{Alias, Collision, CustomerName, StoreError};
use crate::telemetry::{LoginOutcome, SessionEvent};

/// How a login is to be answered.
#[derive(Clone, Copy, Debug)]
pub struct LoginOptions {
    /// How the credentials of a session that is born here travel.
    pub transport: Transport,
    /// Whether the client is no browser, and so may be given the real JWT where the tenant exposes it.
    pub no_browser: bool,
}

impl Broker {
    /// Signs a customer in.
    ///
    /// # Errors
    /// When Emporix refuses, or anything on the way cannot serve. No session is left half made.
    pub async fn login(
        self: &Arc<Self>,
        tenant: &TenantId,
        credential: Option<&Credential>,
        grant: Grant,
        options: LoginOptions,
    ) -> Result<Granted, GatewayError> {
        let flow = grant.flow();
        let result = self.sign_in(tenant, credential, grant, options).await;
        self.metrics.logins.count(
            flow,
            match &result {
                Ok(_) => LoginOutcome::Success,
                Err(error) if error.status() < 500 => LoginOutcome::Refused,
                Err(_) => LoginOutcome::Failed,
            },
        );
        result
    }

    async fn sign_in(
        self: &Arc<Self>,
        tenant: &TenantId,
        credential: Option<&Credential>,
        grant: Grant,
        options: LoginOptions,
    ) -> Result<Granted, GatewayError> {
        let known = self.known_tenant(tenant)?;
        let visitor = match credential {
            Some(credential) => {
                let opened = self.open(Some(tenant), credential, self.clock.now()).await?;
                self.store.load_record(&opened.ready.key).await?.ok_or(GatewayError::SessionEnded)?
            }
            None => self.mint_visitor(tenant, known.site.clone(), options.transport).await?,
        };
        let grant = of_this_visit(grant, &visitor)?;
        let issued = self.exchange(&visitor, &grant).await?;
        let access = issued.tokens.access.clone();
        match self.keep(&known, visitor, grant.email(), issued, options).await {
            Err(error) => {
                // What cannot be kept here must not live on at Emporix.
                self.revoke_behind(*tenant, access);
                Err(error)
            }
            kept => kept,
        }
    }

    /// Makes a session of what was issued, once it is believed.
    async fn keep(
        self: &Arc<Self>,
        tenant: &Tenant,
        visitor: Session,
        email: Option<&str>,
        issued: Issued,
        options: LoginOptions,
    ) -> Result<Granted, GatewayError> {
        let (half, saas) = self.believe(tenant, &visitor, &issued).await?;
        if let Some(email) = email {
            self.note_sign_in(tenant, email, &half.customer_id).await?;
        }
        let mut granted = self.upgrade(visitor, half, issued, &saas).await?;
        let exposed = tenant.expose_jwt && options.no_browser && granted.transport == Transport::Handle;
        granted.exposed_saas = exposed.then_some(saas);
        Ok(granted)
    }

    /// Exchanges the grant for tokens; an authorizer that just expired is renewed once, unseen.
    async fn exchange(self: &Arc<Self>, visitor: &Session, grant: &Grant) -> Result<Issued, GatewayError> {
        let authorizer = self.anonymous_token(visitor, None).await?;
        match self.identity.login(&visitor.tenant, grant, &authorizer).await {
            Err(IdentityError::AuthorizerRefused) => {
                let authorizer = if visitor.revision == 0 {
                    return Err(GatewayError::IdentityUnavailable("a new anonymous token is not honoured"));
                } else {
                    self.anonymous_token(visitor, Some(&authorizer)).await?
                };
                Ok(self.identity.login(&visitor.tenant, grant, &authorizer).await?)
            }
            answer => Ok(answer?),
        }
    }

    /// Verifies the `saas_token` that came, and with it who the customer is.
    async fn believe(
        &self,
        tenant: &Tenant,
        visitor: &Session,
        issued: &Issued,
    ) -> Result<(CustomerHalf, Token), GatewayError> {
        let saas = issued.unverified_saas.clone().ok_or(GatewayError::IdentityUnreadable("no saas_token"))?;
        let claims = tenant.saas.verify(&saas).await?;
        let mut tokens = issued.tokens.clone();
        tokens.saas = Some(saas_token::accepted(saas.clone(), &claims));
        let visit = visitor.session_id(Scope::Anonymous).map(str::to_owned);
        let half = CustomerHalf {
            tokens,
            session_id: issued.session_id.clone().or(visit),
            customer_id: claims.customer_id,
            legal_entity_id: None,
            signed_in_at: self.clock.now(),
        };
        Ok((half, saas))
    }

    /// Makes the visitor's session the customer's. Index first, then the record, then the epoch: a revocation that
    /// comes between finds one or the other.
    async fn upgrade(
        self: &Arc<Self>,
        visitor: Session,
        half: CustomerHalf,
        issued: Issued,
        saas: &Token,
    ) -> Result<Granted, GatewayError> {
        let now = half.signed_in_at;
        let limits = *self.store.limits();
        let customer = CustomerName::of(visitor.tenant, &half.customer_id);
        let linked = self.link_jwt(&visitor, saas, limits.absolute);
        let (indexed, linked) = tokio::join!(self.index(&customer, &visitor.key, now), linked);
        indexed?;
        linked?;
        let handles = NewHandles::random(&visitor, Scope::Customer, true)?;
        let mut replaced: Option<Token> = None;
        let mut apply = |session: &mut Session| {
            // Applied again to what this very sign-in wrote, it replaces nothing.
            let others = session.customer.as_ref().filter(|half| half.signed_in_at != now);
            replaced = others.map(|half| half.tokens.access.clone());
            session.upgrade(half.clone(), now, &limits);
            handles.issue(session, Scope::Customer);
            Change::Save
        };
        let key = visitor.key;
        let stored = if visitor.revision == 0 {
            let mut session = visitor;
            apply(&mut session);
            self.store.create(&session).await.map(|_| Some(session))
        } else {
            self.store.update(&key, &mut apply).await
        };
        let session = match stored {
            Ok(session) => session.ok_or(GatewayError::SessionEnded)?,
            Err(error) => {
                // It may have been stored all the same.
                self.undo(&key, now).await;
                return Err(error.into());
            }
        };
        if let Some(replaced) = replaced {
            self.revoke_behind(session.tenant, replaced);
        }
        if let Err(error) = self.honour_epoch(&customer, &session, now).await {
            self.undo(&session.key, now).await;
            return Err(error);
        }
        self.metrics.sessions.count(SessionEvent::CustomerSignedIn);
        let mut granted = handles.granted(&session, Scope::Customer, now, &limits);
        granted.has_saas = true;
        granted.fields = issued.fields;
        granted.number_form = issued.number_form;
        Ok(granted)
    }

    /// Takes a sign-in back that cannot be answered, now or as soon as the store can be reached: the visitor's half and
    /// cookie stay.
    async fn undo(self: &Arc<Self>, key: &SessionKey, signed_in_at: Timestamp) {
        const ATTEMPTS: u32 = 60;
        if self.revert_sign_in(key, signed_in_at).await.is_ok() {
            return;
        }
        let (broker, key) = (self.clone(), *key);
        self.go_on(async move {
            for _ in 0..ATTEMPTS {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if broker.revert_sign_in(&key, signed_in_at).await.is_ok() {
                    return;
                }
            }
            tracing::warn!(session = %broker.label(&key), "a sign-in that failed could not be undone");
        });
    }

    async fn revert_sign_in(&self, key: &SessionKey, signed_in_at: Timestamp) -> Result<(), StoreError> {
        let reverted = self.store.update(key, |session| {
            if session.signed_in_at() != Some(signed_in_at) {
                return Change::Discard;
            }
            session.revert_sign_in(signed_in_at);
            Change::Save
        });
        reverted.await.map(drop)
    }

    /// A session signed in before its customer's epoch is over: somebody revoked all of them meanwhile.
    pub(super) async fn honour_epoch(
        self: &Arc<Self>,
        customer: &CustomerName,
        session: &Session,
        signed_in_at: Timestamp,
    ) -> Result<(), GatewayError> {
        if self.store.customer(customer).await?.epoch < signed_in_at {
            return Ok(());
        }
        if self.store.remove(&session.key).await.is_err() {
            self.remove_behind(session.key);
        }
        Err(GatewayError::SessionEnded)
    }

    async fn link_jwt(&self, session: &Session, saas: &Token, life: Duration) -> Result<(), GatewayError> {
        if self.known_tenant(&session.tenant)?.accept_jwt {
            let alias = Alias::of(session.tenant, saas.expose().as_bytes());
            self.store.link(&alias, &session.key, Collision::Disable, life).await?;
        }
        Ok(())
    }
}

/// A social login belongs to the visit that makes it; a client that names another one is refused.
fn of_this_visit(grant: Grant, visitor: &Session) -> Result<Grant, GatewayError> {
    let Grant::Social { code, redirect_uri, code_verifier, state, session_id } = grant else { return Ok(grant) };
    let own = visitor.session_id(Scope::Anonymous);
    if session_id.is_some() && session_id.as_deref() != own {
        return Err(GatewayError::BadRequest("session-id names another visit"));
    }
    Ok(Grant::Social { code, redirect_uri, code_verifier, state, session_id: own.map(str::to_owned) })
}
