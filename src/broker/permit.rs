//! The evidence that authentication happened.
//! Only this room makes one, and headers are injected from nothing else.

use std::sync::Arc;

use http::HeaderValue;

use super::service::ServiceToken;
use crate::clock::Timestamp;
use crate::session::{ReadyHalf, ReadySession, Scope, SessionKey, TenantId};

/// Proof that a request may pass, with the headers it passes with.
#[derive(Clone, Debug)]
pub struct Permit {
    session: Arc<ReadySession>,
    scope: Scope,
    generation: u64,
    bearer: HeaderValue,
    saas_token: Option<HeaderValue>,
    holder: Holder,
}

/// Whose the token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Session,
    AllGuests,
    Service,
}

impl Permit {
    pub(super) fn new(
        session: Arc<ReadySession>,
        scope: Scope,
        half: &ReadyHalf,
        saas_token: Option<HeaderValue>,
    ) -> Self {
        let (generation, bearer) = (half.generation, half.bearer.clone());
        Self { session, scope, generation, bearer, saas_token, holder: Holder::Session }
    }

    pub(super) fn shared(session: Arc<ReadySession>, half: &ReadyHalf) -> Self {
        Self { holder: Holder::AllGuests, ..Self::new(session, Scope::Anonymous, half, None) }
    }

    pub(super) fn service(token: &ServiceToken) -> Self {
        Self {
            session: token.session.clone(),
            scope: Scope::Anonymous,
            generation: 0,
            bearer: token.bearer.clone(),
            saas_token: None,
            holder: Holder::Service,
        }
    }

    /// `Bearer …`.
    #[must_use]
    pub const fn authorization(&self) -> &HeaderValue {
        &self.bearer
    }

    /// The `saas-token` header, where the route takes one.
    #[must_use]
    pub const fn saas_token(&self) -> Option<&HeaderValue> {
        self.saas_token.as_ref()
    }

    /// The session; of a shared guest token or a service's, one that nobody else can name.
    #[must_use]
    pub fn key(&self) -> &SessionKey {
        &self.session.key
    }

    /// The session's tenant.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.session.tenant
    }

    /// Whose token is injected.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// The generation of the token that is injected.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// When the customer whose rights these are signed in.
    #[must_use]
    pub fn signed_in_at(&self) -> Option<Timestamp> {
        self.session.signed_in_at
    }

    /// The customer number, for a customer's permit.
    #[must_use]
    pub fn customer_id(&self) -> Option<&str> {
        self.session.customer().map(|customer| &*customer.customer_id)
    }

    /// Emporix' id of the visit; none of a token that many share.
    #[must_use]
    pub fn session_id(&self) -> Option<&str> {
        self.session.half(self.scope).filter(|_| self.is_of_session())?.session_id.as_deref()
    }

    /// Whether the token is the tenant's shared guest token, and no session's.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.holder, Holder::AllGuests)
    }

    /// Whether the token is a session's, and ends with it.
    #[must_use]
    pub const fn is_of_session(&self) -> bool {
        matches!(self.holder, Holder::Session)
    }
}
