//! Who issues tokens: the seam to the identity provider, and what its answers mean.
//! Every answer is typed and bounded before it leaves this room; an error here never carries a token or a URL.

pub mod answer;
mod breaker;
mod canonical;
pub mod emporix;
pub mod keys;
pub mod webhook;

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

pub use answer::{Fields, Issued, NumberForm};

use crate::config::Secret;
use crate::session::{SiteContext, TenantId, Token};
use crate::telemetry::Flow;
use zeroize::Zeroizing;

/// What a customer offers in exchange for tokens.
pub enum Grant {
    /// E-mail and password.
    Password {
        /// The account.
        email: String,
        /// Its password.
        password: Zeroizing<String>,
    },
    /// An authorization code of the customer's own identity provider.
    Social {
        /// The code.
        code: Zeroizing<String>,
        /// Where the provider sent it, when the client says so.
        redirect_uri: Option<String>,
        /// PKCE verifier (RFC 7636).
        code_verifier: Option<Zeroizing<String>>,
        /// The OAuth `state`: its prefix selects the provider's configuration.
        state: Option<String>,
        /// Emporix' id of the visit that signs in.
        session_id: Option<String>,
    },
    /// A JWT of the customer's own identity provider.
    Exchange {
        /// The JWT.
        subject_access_token: Zeroizing<String>,
        /// The provider's configuration.
        config: Option<String>,
    },
    /// The token of an activation mail.
    OptIn {
        /// The token.
        token: Zeroizing<String>,
    },
}

impl Grant {
    /// The flow's name in metrics.
    #[must_use]
    pub const fn flow(&self) -> Flow {
        match self {
            Self::Password { .. } => Flow::Password,
            Self::Social { .. } => Flow::Social,
            Self::Exchange { .. } => Flow::Exchange,
            Self::OptIn { .. } => Flow::OptIn,
        }
    }

    /// The e-mail address that it proves to be the customer's.
    #[must_use]
    pub fn email(&self) -> Option<&str> {
        if let Self::Password { email, .. } = self { Some(email) } else { None }
    }
}

/// A service's client credentials (RFC 6749, section 4.4), and the scopes that are asked for.
#[derive(Debug)]
pub struct ServiceClient {
    /// The client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// Scopes, parted by spaces; what the client may at most when empty.
    pub scope: String,
}

/// What Emporix says of a customer's access token.
#[derive(Debug)]
pub struct Introspection {
    /// The life that is left to it.
    pub expires_in: Duration,
    /// Emporix' id of the visit.
    pub session_id: Option<String>,
    /// The customer number.
    pub customer_id: String,
    /// The legal entity the token acts for.
    pub legal_entity_id: Option<String>,
}

/// One field that Emporix found wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RefusedField {
    /// The field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Emporix understood the request and said no.
#[derive(Clone, Debug, Default)]
pub struct Refusal {
    /// Its HTTP status, 400 to 499.
    pub status: u16,
    /// Its `type`, such as `conflict_resource`.
    pub kind: Option<String>,
    /// Its `message`.
    pub message: Option<String>,
    /// The fields it names.
    pub details: Vec<RefusedField>,
}

/// Why a token call brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// Emporix understood and said no.
    #[error("Emporix refused with {}", .0.status)]
    Refused(Box<Refusal>),
    /// The `fault` shape: the token that authorises the call is over or unknown.
    #[error("Emporix no longer honours the authorizing token")]
    AuthorizerRefused,
    /// Too many calls.
    #[error("Emporix limits the rate of calls")]
    RateLimited {
        /// Its `Retry-After`, in seconds: between one and those of an hour.
        retry_after: Option<u64>,
    },
    /// Nothing was issued: the call did not get through, or Emporix said that it cannot serve it.
    #[error("Emporix cannot serve the call: {0}")]
    Unavailable(&'static str),
    /// The call was not made: Emporix is away, and its breaker open.
    #[error("calls are held back")]
    HeldBack,
    /// Nothing was issued: Emporix failed at this very call.
    #[error("Emporix failed at the call: {0}")]
    Failed(&'static str),
    /// The call was sent and no complete answer came: a token may have been spent.
    #[error("the call was sent and its answer lost: {0}")]
    Unknown(&'static str),
    /// The call was sent and its answer broke off half-way: a token may have been spent.
    #[error("the call's answer broke off")]
    BrokenOff,
    /// A yes that is no token answer: a token may have been spent.
    #[error("Emporix answered nonsense: {0}")]
    Unreadable(&'static str),
}

impl IdentityError {
    /// Whether the next call is likely to fare no better.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown(_) | Self::BrokenOff)
    }
}

/// Issues, renews and revokes tokens. No implementation repeats a call on its own.
#[async_trait]
pub trait IdentityProvider: Send + Sync + 'static {
    /// Tells the metrics what can only be known when somebody asks.
    fn report(&self) {}

    /// Tokens for a new visit.
    async fn anonymous_login(&self, tenant: &TenantId, site: &SiteContext) -> Result<Issued, IdentityError>;

    /// New tokens for the same visit.
    async fn anonymous_refresh(&self, tenant: &TenantId, refresh: &Token) -> Result<Issued, IdentityError>;

    /// A customer's tokens, authorised by the visitor's own anonymous token, so that the cart survives.
    async fn login(&self, tenant: &TenantId, grant: &Grant, authorizer: &Token) -> Result<Issued, IdentityError>;

    /// Redeems a customer's refresh token.
    async fn refresh(
        &self,
        tenant: &TenantId,
        refresh: &Token,
        authorizer: &Token,
        legal_entity_id: Option<&str>,
    ) -> Result<Issued, IdentityError>;

    /// Ends a customer's access token.
    async fn revoke(&self, tenant: &TenantId, access: &Token) -> Result<(), IdentityError>;

    /// A token of a service's own. None of these can be refreshed.
    async fn service_token(&self, tenant: &TenantId, client: &ServiceClient) -> Result<Issued, IdentityError>;

    /// Whose access token this is.
    async fn introspect(&self, tenant: &TenantId, access: &Token) -> Result<Introspection, IdentityError>;
}
