//! The token that authorises a customer's login or refresh: the visitor's own, so that the cart survives.
//! Made fresh where it is stale, minted again where it is dead; here and nowhere on the way of an API request.

use std::sync::Arc;

use super::Broker;
use super::flights::Renewal;
use super::refresh::Ask;
use crate::clock::Timestamp;
use crate::config::RefreshAuthorizer;
use crate::error::GatewayError;
use crate::session::{AnonymousHalf, Freshness, Scope, Session, SiteContext, Token};
use crate::store::layered::Change;

impl Broker {
    /// The token that authorises a refresh of `session`, another one than `refused`.
    pub(super) async fn refresh_authorizer(
        self: &Arc<Self>,
        session: &Session,
        refused: Option<&Token>,
    ) -> Result<Token, GatewayError> {
        match self.settings.refresh_authorizer {
            RefreshAuthorizer::Anonymous => self.anonymous_token(session, refused).await,
            RefreshAuthorizer::Customer => {
                session.customer.as_ref().map(|half| half.tokens.access.clone()).ok_or(GatewayError::SessionEnded)
            }
        }
    }

    /// The visitor's living anonymous token, another one than `refused`.
    pub(super) async fn anonymous_token(
        self: &Arc<Self>,
        session: &Session,
        refused: Option<&Token>,
    ) -> Result<Token, GatewayError> {
        let now = self.clock.now();
        let Some(half) = &session.anonymous else { return self.remint_token(session).await };
        let lives = refused.is_none_or(|refused| refused.expose() != half.tokens.access.expose());
        let freshness = half.tokens.lifetime(self.store.limits().refresh_margin).freshness(now);
        let ask = match freshness {
            Freshness::Fresh | Freshness::RefreshDue | Freshness::Final if lives => {
                return Ok(half.tokens.access.clone());
            }
            Freshness::Final | Freshness::Dead => return self.remint_token(session).await,
            Freshness::Expired => Ask::WhenDue,
            Freshness::Fresh | Freshness::RefreshDue => Ask::Now,
        };
        match self.renew(&session.key, Scope::Anonymous, session.anonymous_generation, ask).await {
            Renewal::Current(_) => {
                let renewed = self.store.load_record(&session.key).await?;
                let half = renewed.and_then(|session| session.anonymous).ok_or(GatewayError::SessionEnded)?;
                Ok(half.tokens.access)
            }
            Renewal::Ended => self.remint_token(session).await,
            Renewal::Failed(error) => Err(error),
        }
    }

    async fn remint_token(&self, session: &Session) -> Result<Token, GatewayError> {
        let site = session.anonymous.as_ref().map(|half| half.context.clone()).unwrap_or_default();
        let session = self.remint_anonymous(session, site).await?;
        session.anonymous.map(|half| half.tokens.access).ok_or(GatewayError::SessionEnded)
    }

    /// A new anonymous half, and so a new visit, in the place of one that is dead or of another site.
    pub(super) async fn remint_anonymous(&self, session: &Session, site: SiteContext) -> Result<Session, GatewayError> {
        let half = self.mint_half(session, site).await?;
        let seen = session.anonymous_generation;
        let saved = self.store.update(&session.key, |session| {
            if session.anonymous_generation != seen {
                return Change::Discard;
            }
            session.set_anonymous(half.clone());
            Change::Save
        });
        saved.await?.ok_or(GatewayError::SessionEnded)
    }

    /// Anonymous tokens fresh from Emporix.
    pub(super) async fn mint_half(&self, session: &Session, site: SiteContext) -> Result<AnonymousHalf, GatewayError> {
        let issued = self.identity.anonymous_login(&session.tenant, &site).await?;
        let session_id = issued.session_id.ok_or(GatewayError::IdentityUnreadable("no session id"))?;
        Ok(AnonymousHalf { tokens: issued.tokens, session_id, context: site })
    }

    /// Whether the guest's half can still be used or renewed at `now`.
    pub(super) fn anonymous_lives(&self, session: &Session, now: Timestamp) -> bool {
        session.anonymous.as_ref().is_some_and(|half| {
            half.tokens.lifetime(self.store.limits().refresh_margin).freshness(now) != Freshness::Dead
        })
    }
}
