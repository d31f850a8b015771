//! Everything that can go wrong for a request, in one type with a stable code each.
//! Two voices: a dull sentence for the client here, the reason for the log in the source that was gathered.

use crate::identity::keys::Unverified;
use crate::identity::webhook::Disbelief;
use crate::identity::{IdentityError, Refusal};
use crate::store::StoreError;

/// Why a request got no answer of its own.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GatewayError {
    /// The target reads more than one way, or is no origin form (RFC 9112, section 3.2.1).
    #[error("the request target is not acceptable: {0}")]
    BadTarget(&'static str),
    /// Something else about the request is malformed.
    #[error("the request is malformed: {0}")]
    BadRequest(&'static str),
    /// Credentials that do not belong together.
    #[error("the request carries credentials that contradict each other")]
    CredentialConflict,
    /// A route that needs a session was asked without a credential.
    #[error("a session is needed")]
    SessionRequired,
    /// A credential of a session that is over, or of none.
    #[error("the session is over or unknown")]
    SessionEnded,
    /// The same, and the session itself is known not to exist: a browser may drop its cookie.
    #[error("the session is over or unknown")]
    SessionGone,
    /// A visitor asked for a customer's route.
    #[error("a signed-in customer is needed")]
    CustomerRequired,
    /// The customer's `saas_token` is over and only signing in brings another.
    #[error("signing in again is needed")]
    ReauthenticationRequired,
    /// A cross-site request could have caused this one.
    #[error("the request does not prove that the storefront itself made it")]
    ProofRequired,
    /// A webhook delivery without the signature of the tenant's secret.
    #[error("the signature is missing or does not fit")]
    SignatureInvalid,
    /// A webhook delivery that was published too long ago, or is yet to be.
    #[error("the delivery is not of this time")]
    DeliveryStale,
    /// The credential belongs to another tenant than the target.
    #[error("the credential belongs to another tenant")]
    TenantMismatch,
    /// The request names the visit of somebody else.
    #[error("the request names another visit than its own")]
    VisitMismatch,
    /// The route is closed.
    #[error("the route is not open")]
    Denied,
    /// No such tenant.
    #[error("no such tenant")]
    UnknownTenant,
    /// No such route.
    #[error("no such route")]
    UnknownRoute,
    /// The route does not take this method.
    #[error("the route does not take this method")]
    MethodNotAllowed,
    /// The operators' API was asked without its token.
    #[error("the admin token is needed")]
    AdminTokenRequired,
    /// The internal listener was asked without its token.
    #[error("the internal token is needed")]
    InternalTokenRequired,
    /// No session has the label that an operator named.
    #[error("no session has this label")]
    UnknownSession,
    /// The store failed while an operator's revocation was under way.
    #[error("the session store failed; {ended} sessions were ended before")]
    RevocationIncomplete {
        /// Sessions that had ended by then.
        ended: u64,
    },
    /// The body did not come in time.
    #[error("the request body did not come in time")]
    BodyTimeout,
    /// The body is larger than the route takes.
    #[error("the request body is too large")]
    BodyTooLarge,
    /// The body is of a type that the route does not take.
    #[error("the route takes application/json")]
    UnsupportedMediaType,
    /// The head is larger than the gateway takes.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// Too many requests of a kind.
    #[error("too many requests")]
    RateLimited {
        /// Seconds until another is taken.
        retry_after: u64,
    },
    /// Emporix understood and said no.
    #[error("Emporix refused with {}", .0.status)]
    Refused(Box<Refusal>),
    /// A token endpoint answered with something that is no answer.
    #[error("the token endpoint's answer is unreadable: {0}")]
    IdentityUnreadable(&'static str),
    /// The API could not be reached or broke off.
    #[error("the API cannot be reached: {0}")]
    UpstreamFailed(&'static str),
    /// The API did not answer in time.
    #[error("the API did not answer in time")]
    UpstreamTimeout,
    /// The token endpoints cannot serve.
    #[error("the token endpoints cannot serve: {0}")]
    IdentityUnavailable(&'static str),
    /// The store cannot tell.
    #[error("the session store cannot tell: {0}")]
    StoreUnavailable(StoreError),
    /// The session is refused here, but the store could not be told.
    #[error("the logout is not confirmed by the session store")]
    LogoutUnconfirmed,
    /// A fault of the gateway itself.
    #[error("internal: {0}")]
    Internal(&'static str),
}

impl GatewayError {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::BadTarget(_) | Self::BadRequest(_) | Self::CredentialConflict => 400,
            Self::SessionRequired
            | Self::SessionEnded
            | Self::SessionGone
            | Self::CustomerRequired
            | Self::ReauthenticationRequired
            | Self::AdminTokenRequired
            | Self::InternalTokenRequired
            | Self::SignatureInvalid
            | Self::DeliveryStale => 401,
            Self::ProofRequired | Self::TenantMismatch | Self::VisitMismatch | Self::Denied => 403,
            Self::UnknownTenant | Self::UnknownRoute | Self::UnknownSession => 404,
            Self::MethodNotAllowed => 405,
            Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimited { .. } => 429,
            Self::HeadTooLarge => 431,
            Self::Refused(refusal) => refusal.status,
            Self::Internal(_) => 500,
            Self::IdentityUnreadable(_) | Self::UpstreamFailed(_) => 502,
            Self::IdentityUnavailable(_)
            | Self::StoreUnavailable(_)
            | Self::LogoutUnconfirmed
            | Self::RevocationIncomplete { .. } => 503,
            Self::UpstreamTimeout => 504,
        }
    }

    /// Whether Emporix' API or a token endpoint failed, and not the gateway or its store.
    #[must_use]
    pub const fn is_of_emporix(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::IdentityUnreadable(_)
                | Self::IdentityUnavailable(_)
                | Self::UpstreamFailed(_)
                | Self::UpstreamTimeout
        )
    }

    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadTarget(_) => "bad_target",
            Self::BadRequest(_) => "bad_request",
            Self::CredentialConflict => "credential_conflict",
            Self::SessionRequired => "session_required",
            Self::SessionEnded | Self::SessionGone => "session_ended",
            Self::CustomerRequired => "customer_required",
            Self::ReauthenticationRequired => "reauthentication_required",
            Self::ProofRequired => "proof_required",
            Self::SignatureInvalid => "signature_invalid",
            Self::DeliveryStale => "delivery_stale",
            Self::TenantMismatch => "tenant_mismatch",
            Self::VisitMismatch => "visit_mismatch",
            Self::Denied => "denied",
            Self::UnknownTenant => "unknown_tenant",
            Self::UnknownRoute => "unknown_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::AdminTokenRequired => "admin_token_required",
            Self::InternalTokenRequired => "internal_token_required",
            Self::UnknownSession => "unknown_session",
            Self::RevocationIncomplete { .. } => "revocation_incomplete",
            Self::BodyTimeout => "body_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::HeadTooLarge => "head_too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::Refused(_) => "refused",
            Self::IdentityUnreadable(_) => "identity_unreadable",
            Self::UpstreamFailed(_) => "upstream_failed",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::IdentityUnavailable(_) => "identity_unavailable",
            Self::StoreUnavailable(_) => "store_unavailable",
            Self::LogoutUnconfirmed => "logout_unconfirmed",
            Self::Internal(_) => "internal",
        }
    }

    /// The sentence for the client.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.message.clone().unwrap_or_else(|| "The request was refused.".to_owned()),
            Self::StoreUnavailable(_) | Self::IdentityUnavailable(_) | Self::UpstreamFailed(_) => {
                "The service is not available at the moment.".to_owned()
            }
            Self::IdentityUnreadable(_) => "The service answered something unreadable.".to_owned(),
            Self::Internal(_) => "The gateway failed.".to_owned(),
            other => {
                let mut sentence = other.to_string();
                sentence[..1].make_ascii_uppercase();
                sentence + "."
            }
        }
    }

    /// Seconds after which trying again makes sense.
    #[must_use]
    pub const fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after } => Some(*retry_after),
            Self::IdentityUnavailable(_)
            | Self::StoreUnavailable(_)
            | Self::LogoutUnconfirmed
            | Self::RevocationIncomplete { .. } => Some(2),
            _ => None,
        }
    }

    /// The `fault` that clients of Emporix look for when a credential is over: error code and text.
    #[must_use]
    pub const fn fault(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::SessionEnded | Self::SessionGone => {
                Some(("keymanagement.service.access_token_expired", "Access Token expired"))
            }
            _ => None,
        }
    }
}

impl From<StoreError> for GatewayError {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable(error)
    }
}

impl From<IdentityError> for GatewayError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Refused(refusal) => Self::Refused(refusal),
            IdentityError::AuthorizerRefused => Self::IdentityUnavailable("the authorizing token was refused"),
            IdentityError::RateLimited { retry_after } => Self::RateLimited { retry_after: retry_after.unwrap_or(5) },
            IdentityError::HeldBack => Self::IdentityUnavailable("its breaker is open"),
            IdentityError::Unavailable(reason) | IdentityError::Failed(reason) | IdentityError::Unknown(reason) => {
                Self::IdentityUnavailable(reason)
            }
            IdentityError::BrokenOff => Self::IdentityUnreadable("broken off"),
            IdentityError::Unreadable(reason) => Self::IdentityUnreadable(reason),
        }
    }
}

/// A `saas_token` that came from Emporix and is not believed.
impl From<Unverified> for GatewayError {
    fn from(error: Unverified) -> Self {
        match error {
            Unverified::Bad(_) => Self::IdentityUnreadable("a saas_token that cannot be believed"),
            Unverified::NoKeys => Self::IdentityUnavailable("the saas_token keys cannot be had"),
        }
    }
}

/// A webhook delivery that is not believed.
impl From<Disbelief> for GatewayError {
    fn from(disbelief: Disbelief) -> Self {
        match disbelief {
            Disbelief::Signature => Self::SignatureInvalid,
            Disbelief::Age => Self::DeliveryStale,
            Disbelief::Tenant => Self::TenantMismatch,
            Disbelief::Shape(what) => Self::BadRequest(what),
        }
    }
}

impl From<getrandom::Error> for GatewayError {
    fn from(_: getrandom::Error) -> Self {
        Self::Internal("the operating system gives no random bytes")
    }
}
