//! Visits: anonymous login, anonymous refresh, and visitors minted on demand.
//! A visit that lives is given again; a dead one is minted anew, with everything else of the session kept.

use std::sync::Arc;

use super::flights::Renewal;
use super::granted::NewHandles;
use super::refresh::Ask;
use super::{Broker, Credential, Granted};
use crate::error::GatewayError;
use crate::session::{Freshness, Handle, Scope, Session, SessionKey, SiteContext, TenantId, Transport};
use crate::store::layered::Change;
use crate::telemetry::{Saved, SessionEvent};

impl Broker {
    /// The token route: the visit of `credential` if it lives and `asked` fits it, else a new one.
    /// A dead credential is as good as none. `may_mint` is asked before a visit is minted.
    ///
    /// # Errors
    /// When Emporix or the store cannot serve, or the visit may not be minted.
    pub async fn anonymous_login(
        self: &Arc<Self>,
        tenant: &TenantId,
        credential: Option<&Credential>,
        asked: SiteContext,
        transport: Transport,
        may_mint: impl FnOnce() -> Result<(), GatewayError>,
    ) -> Result<Granted, GatewayError> {
        let opened = match credential {
            Some(credential) => match self.open(Some(tenant), credential, self.clock.now()).await {
                Ok(opened) => Some(opened.ready.key),
                Err(error) if error.status() >= 500 => return Err(error),
                Err(_) => None,
            },
            None => None,
        };
        let session = match opened {
            Some(key) => self.store.load_record(&key).await?,
            None => None,
        };
        match session {
            Some(session) => self.visit_again(session, asked, may_mint).await,
            None => {
                may_mint()?;
                self.new_visit(tenant, asked, transport).await
            }
        }
    }

    async fn visit_again(
        self: &Arc<Self>,
        session: Session,
        asked: SiteContext,
        may_mint: impl FnOnce() -> Result<(), GatewayError>,
    ) -> Result<Granted, GatewayError> {
        let now = self.clock.now();
        let own = session.anonymous.as_ref().map(|half| half.context.clone()).unwrap_or_default();
        let session = if self.anonymous_lives(&session, now) && !own.differs_from(&asked) {
            self.metrics.emporix_saved.count(Saved::AnonymousReused);
            session
        } else {
            may_mint()?;
            self.remint_anonymous(&session, own.overlaid(asked)).await?
        };
        self.grant_again(&session.key).await
    }

    async fn new_visit(
        self: &Arc<Self>,
        tenant: &TenantId,
        asked: SiteContext,
        transport: Transport,
    ) -> Result<Granted, GatewayError> {
        let mut session = self.mint_visitor(tenant, asked, transport).await?;
        let handles = NewHandles::random(&session, Scope::Anonymous, true)?;
        handles.issue(&mut session, Scope::Anonymous);
        self.store.create(&session).await?;
        Ok(handles.granted(&session, Scope::Anonymous, self.clock.now(), self.store.limits()))
    }

    /// A visitor for a browser that came without one; the handle is its cookie's.
    ///
    /// # Errors
    /// When Emporix or the store cannot serve.
    pub async fn visitor_on_demand(self: &Arc<Self>, tenant: &TenantId) -> Result<Handle, GatewayError> {
        let site = self.known_tenant(tenant)?.site.clone();
        let granted = self.new_visit(tenant, site, Transport::Cookie).await?;
        granted.cookie.ok_or(GatewayError::Internal("a cookie session without a cookie"))
    }

    /// A session with fresh anonymous tokens, not yet stored. The store is asked first, so that Emporix is not
    /// called for a session that could not be kept.
    pub(super) async fn mint_visitor(
        &self,
        tenant: &TenantId,
        site: SiteContext,
        transport: Transport,
    ) -> Result<Session, GatewayError> {
        self.store.ping().await?;
        let now = self.clock.now();
        let mut session = Session::new(SessionKey::random()?, *tenant, transport, now, self.store.limits());
        session.set_anonymous(self.mint_half(&session, site).await?);
        self.metrics.sessions.count(SessionEvent::VisitorBorn);
        Ok(session)
    }

    /// The token route: the same visit, refreshed upstream when due.
    ///
    /// # Errors
    /// When the credential opens none.
    pub async fn anonymous_refresh(
        self: &Arc<Self>,
        tenant: &TenantId,
        credential: &Credential,
    ) -> Result<Granted, GatewayError> {
        let now = self.clock.now();
        let opened = self.open(Some(tenant), credential, now).await?;
        let seen = opened.ready.half(Scope::Anonymous).map_or(0, |half| half.generation);
        let renewal = match opened.ready.freshness(Scope::Anonymous, now) {
            Freshness::Fresh | Freshness::Final => {
                self.metrics.emporix_saved.count(Saved::RefreshNotDue);
                None
            }
            Freshness::Dead => Some(Renewal::Ended),
            Freshness::RefreshDue | Freshness::Expired => {
                Some(self.renew(&opened.ready.key, Scope::Anonymous, seen, Ask::WhenDue).await)
            }
        };
        match renewal {
            None | Some(Renewal::Current(_)) => {}
            Some(Renewal::Ended) => {
                let session = self.store.load_record(&opened.ready.key).await?.ok_or(GatewayError::SessionEnded)?;
                let site = session.anonymous.as_ref().map(|half| half.context.clone()).unwrap_or_default();
                self.remint_anonymous(&session, site).await?;
            }
            Some(Renewal::Failed(error)) => {
                if opened.ready.freshness(Scope::Anonymous, now) == Freshness::Expired {
                    return Err(error);
                }
            }
        }
        self.grant_again(&opened.ready.key).await
    }

    /// Further handles for a visit that lives: only hashes of the earlier ones are kept.
    async fn grant_again(&self, key: &SessionKey) -> Result<Granted, GatewayError> {
        let now = self.clock.now();
        let session = self.store.load_record(key).await?.ok_or(GatewayError::SessionEnded)?;
        let handles = NewHandles::random(&session, Scope::Anonymous, false)?;
        let updated = self.store.update(key, |session| {
            session.last_seen_at = session.last_seen_at.max(now);
            handles.issue(session, Scope::Anonymous);
            Change::Save
        });
        let session = updated.await?.ok_or(GatewayError::SessionEnded)?;
        Ok(handles.granted(&session, Scope::Anonymous, now, self.store.limits()))
    }
}
