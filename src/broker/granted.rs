//! What a token route grants: handles or a cookie in the place of tokens, and the clocks that go with them.
//! Holds no token, but for the one `saas_token` that a tenant may choose to expose.

use std::time::Duration;

use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::GatewayError;
use crate::identity::{Fields, NumberForm};
use crate::session::{Handle, HandleKind, LifeLimits, Scope, Session, Token, Transport};

/// The answer of a token route, before it is spelled out.
#[derive(Debug)]
pub struct Granted {
    /// How the session's credentials travel.
    pub transport: Transport,
    /// Whose rights were granted.
    pub scope: Scope,
    /// What stands for the access token.
    pub access: Option<Handle>,
    /// What stands for the refresh token.
    pub refresh: Option<Handle>,
    /// What stands for the `saas_token`.
    pub saas: Option<Handle>,
    /// The cookie, when a new one is set.
    pub cookie: Option<Handle>,
    /// Life of what was granted.
    pub expires_in: Duration,
    /// Whether a refresh token belongs in the answer.
    pub has_refresh: bool,
    /// Whether a `saas_token` belongs in the answer.
    pub has_saas: bool,
    /// The real JWT, where the tenant exposes it.
    pub exposed_saas: Option<Token>,
    /// Non-secret fields.
    pub fields: Fields,
    /// How lifetimes are typed.
    pub number_form: NumberForm,
}

/// The handles that an answer is going to carry.
#[derive(Clone, Debug, Default)]
pub(super) struct NewHandles {
    pub(super) access: Option<Handle>,
    pub(super) refresh: Option<Handle>,
    pub(super) saas: Option<Handle>,
    pub(super) cookie: Option<Handle>,
}

impl NewHandles {
    /// Fresh handles for `scope` of `session`: those of its transport.
    pub(super) fn random(session: &Session, scope: Scope, new_cookie: bool) -> Result<Self, GatewayError> {
        let random = |kind| Handle::random(kind, session.key).map(Some);
        Ok(match (session.transport, scope) {
            (Transport::Cookie, _) if new_cookie => Self { cookie: random(HandleKind::Cookie)?, ..Self::default() },
            (Transport::Cookie, _) => Self::default(),
            (Transport::Handle, Scope::Anonymous) => Self {
                access: random(HandleKind::AnonymousAccess)?,
                refresh: random(HandleKind::AnonymousRefresh)?,
                ..Self::default()
            },
            (Transport::Handle, Scope::Customer) => Self {
                access: random(HandleKind::CustomerAccess)?,
                refresh: random(HandleKind::CustomerRefresh)?,
                saas: random(HandleKind::Saas)?,
                ..Self::default()
            },
        })
    }

    /// Lets the handles open `session`.
    pub(super) fn issue(&self, session: &mut Session, scope: Scope) {
        for handle in [&self.access, &self.refresh, &self.saas, &self.cookie].into_iter().flatten() {
            session.credentials.issue(handle, scope);
        }
    }

    /// The answer for `scope` of `session`, as it stands at `now`.
    pub(super) fn granted(self, session: &Session, scope: Scope, now: Timestamp, limits: &LifeLimits) -> Granted {
        let tokens = session.tokens(scope);
        let mut fields = Fields::new();
        fields.insert("token_type".to_owned(), "Bearer".into());
        if let Some(id) = session.session_id(scope) {
            let name = if scope == Scope::Anonymous { "sessionId" } else { "session_id" };
            fields.insert(name.to_owned(), id.into());
        }
        if scope == Scope::Anonymous {
            fields.insert("scope".to_owned(), Value::String(format!("tenant={}", session.tenant)));
        }
        Granted {
            transport: session.transport,
            scope,
            access: self.access,
            refresh: self.refresh,
            saas: self.saas,
            cookie: self.cookie,
            expires_in: session.scope_expires_at(scope, limits).since(now),
            has_refresh: tokens.is_some_and(|tokens| tokens.refresh.is_some()),
            has_saas: false,
            exposed_saas: None,
            fields,
            number_form: NumberForm::Number,
        }
    }
}
