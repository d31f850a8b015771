//! What a credential opens, as far as that can be said without its session, and why a request is refused.
//! Names a credential's place and kind, and never its value.

use std::fmt;
use std::time::SystemTime;

use crate::broker::Credential;
use crate::clock::Timestamp;
use crate::config::{ForeignBearerMode, ForeignBearerSection, TenantSection};
use crate::edge::slots::{Presented, Slot};
use crate::error::GatewayError;
use crate::session::Scope;

/// Whose token goes to the API.
#[derive(Clone, Copy)]
pub(super) enum Whose {
    Session,
    Adopted,
    Visitor,
    Guest,
}

impl Whose {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Session => "with the session's token",
            Self::Adopted => "with the token itself, which is taken into a session",
            Self::Visitor => "with the token of a visitor who begins here: the answer sets the cookie",
            Self::Guest => "with the tenant's shared guest token",
        }
    }

    /// `text`, and what it hangs on.
    pub(super) fn said(self, text: &str) -> String {
        match self {
            Self::Session => format!("{text}, while the session is live; 401 session_ended otherwise"),
            Self::Adopted => format!("{text}, when Emporix knows the token; 401 session_ended otherwise"),
            Self::Visitor | Self::Guest => text.to_owned(),
        }
    }
}

/// Why a request is refused, and where that is not sure, what it hangs on.
pub(super) struct Refused {
    error: GatewayError,
    condition: &'static str,
}

impl Refused {
    /// A visitor asks for what is a customer's.
    pub(super) const NO_CUSTOMER: Self =
        Self::when(GatewayError::CustomerRequired, ", while the session is live; 401 session_ended otherwise");

    pub(super) const fn when(error: GatewayError, condition: &'static str) -> Self {
        Self { error, condition }
    }
}

impl From<GatewayError> for Refused {
    fn from(error: GatewayError) -> Self {
        Self::when(error, "")
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { error, condition } = self;
        write!(f, "by the gateway: {} {} ({}){condition}", error.status(), error.code(), error.message())
    }
}

/// What becomes of a foreign Bearer.
enum Foreign {
    Refused,
    /// Refused, but for those that were adopted while it was the time for that.
    KnownAlone,
    Adopted,
}

impl Foreign {
    fn of(section: &ForeignBearerSection, now: Timestamp) -> Self {
        let now = SystemTime::from(now);
        match section.until {
            None => Self::Refused,
            Some(until) if section.mode == ForeignBearerMode::Adopt && now < until => Self::Adopted,
            Some(_) => Self::KnownAlone,
        }
    }
}

/// A credential, in the eyes of the tenant that the request names.
pub(super) struct Judged<'j> {
    pub(super) presented: &'j Presented,
    pub(super) tenant: Result<&'j TenantSection, GatewayError>,
    pub(super) now: Timestamp,
}

impl Judged<'_> {
    /// What it opens; an error where it opens nothing, whatever its session is like.
    pub(super) fn opens(&self) -> Result<Option<Whose>, Refused> {
        let tenant = || self.tenant.clone();
        Ok(match &self.presented.credential {
            None => None,
            Some(Credential::Handle(..) | Credential::Cookie(..)) => Some(Whose::Session),
            Some(Credential::Jwt(_)) if tenant()?.saas_token.accept => Some(Whose::Session),
            Some(Credential::Jwt(_)) => return Err(GatewayError::SessionEnded.into()),
            Some(Credential::Foreign(_)) => match Foreign::of(&tenant()?.foreign_bearer, self.now) {
                Foreign::Refused => return Err(GatewayError::SessionEnded.into()),
                Foreign::KnownAlone => {
                    let condition = ", unless the token was taken into a session before";
                    return Err(Refused::when(GatewayError::SessionEnded, condition));
                }
                Foreign::Adopted => Some(Whose::Adopted),
            },
        })
    }

    /// Whether it is a visitor's handle, whatever its session has become.
    pub(super) fn is_visitors_handle(&self) -> bool {
        matches!(&self.presented.credential, Some(Credential::Handle(handle, _)) if handle.kind.scope() == Scope::Anonymous)
    }

    /// The same, or a placeholder that names the visitor.
    pub(super) fn acts_for_visitor(&self) -> bool {
        let placeholder = matches!(self.presented.credential, Some(Credential::Cookie(_, Some(Scope::Anonymous))));
        placeholder || self.is_visitors_handle()
    }

    /// Its place and kind.
    pub(super) fn text(&self) -> String {
        let place = self.presented.slot.text();
        match &self.presented.credential {
            None => "none".to_owned(),
            Some(Credential::Handle(handle, others)) => {
                let others = if others.is_empty() { "" } else { ", with others of the same session" };
                format!("a handle ({}***) in {place}{others}", handle.kind.prefix())
            }
            Some(Credential::Cookie(_, Some(scope))) => {
                let whom = if *scope == Scope::Customer { "its customer" } else { "its visitor" };
                format!("the cookie's session, as {whom} by the placeholder in {place}")
            }
            Some(Credential::Cookie(_, None)) => "the cookie's session".to_owned(),
            Some(Credential::Jwt(_)) => {
                let accepted = self.tenant.as_ref().is_ok_and(|tenant| tenant.saas_token.accept);
                let so = if accepted { "accepted here" } else { "not accepted here: saas_token.accept is false" };
                format!("a JWT in {place}, {so}")
            }
            Some(Credential::Foreign(_)) => {
                let foreign = self.tenant.as_ref().map(|tenant| Foreign::of(&tenant.foreign_bearer, self.now));
                let so = match foreign {
                    Err(_) => "which only a named tenant could take",
                    Ok(Foreign::Refused) => "refused: foreign_bearer.mode",
                    Ok(Foreign::KnownAlone) => "refused unless it was taken into a session before: foreign_bearer",
                    Ok(Foreign::Adopted) => "taken into a session until foreign_bearer.until",
                };
                format!("a token that the gateway did not issue in {place}, {so}")
            }
        }
    }
}

impl Slot {
    const fn text(self) -> &'static str {
        match self {
            Self::Query => "the query",
            Self::Authorization => "Authorization",
            Self::SaasToken => "saas-token",
            Self::Cookie => "the cookie",
        }
    }
}
