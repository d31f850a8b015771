//! The route table's rules: typed templates, and what the gateway does for each.
//! `config/routes.yaml` is the shipped table and part of the binary; a deployment's own rules come before it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::service::ServiceName;
use super::span::{self, Span};

/// The shipped table, in order of services.
pub const SHIPPED: &str = include_str!("../../config/routes.yaml");

/// What the gateway does for the requests that a template names.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// Path template: literal segments, `{tenant}`, `{name}` for one segment, `/**` at the end for any rest.
    pub path: String,
    /// Methods; every method when empty.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Who may pass.
    #[serde(default)]
    pub access: Access,
    /// Whose token is injected.
    #[serde(default)]
    pub inject: Inject,
    /// Whether a customer's `saas_token` goes with the request.
    #[serde(default)]
    pub saas_token: SaasInjection,
    /// Largest body, in bytes.
    #[serde(default)]
    pub max_body_bytes: Option<u64>,
    /// Bound on each wait for the API.
    #[serde(default, with = "span")]
    #[schemars(with = "Option<Span>")]
    pub read_timeout: Option<Duration>,
    /// The limit that guards it.
    #[serde(default)]
    pub limit: RouteLimit,
    /// What success ends.
    #[serde(default)]
    pub on_success: OnSuccess,
}

/// A method a rule can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the methods of RFC 9110")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

impl Method {
    /// The method as HTTP spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

/// Who may pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^(guest|visitor|customer|deny|service:[a-z0-9-]{1,32})$"))]
pub enum Access {
    /// Anybody: a session is used when present, otherwise a shared guest token for safe methods.
    Guest,
    /// A session is needed; browsers get one on demand.
    #[default]
    Visitor,
    /// A signed-in customer.
    Customer,
    /// A back-office caller on the internal listener, with this service's token.
    Service(ServiceName),
    /// Nobody.
    Deny,
}

impl TryFrom<String> for Access {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "guest" => Ok(Self::Guest),
            "visitor" => Ok(Self::Visitor),
            "customer" => Ok(Self::Customer),
            "deny" => Ok(Self::Deny),
            other => match other.strip_prefix("service:") {
                Some(name) => ServiceName::try_from(name.to_owned()).map(Self::Service),
                None => Err(format!("`{other}` is none of guest, visitor, customer, service:<name> and deny")),
            },
        }
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        match access {
            Access::Guest => "guest".to_owned(),
            Access::Visitor => "visitor".to_owned(),
            Access::Customer => "customer".to_owned(),
            Access::Service(name) => format!("service:{name}"),
            Access::Deny => "deny".to_owned(),
        }
    }
}

/// Whose token is injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Inject {
    /// The session's highest scope, or the one that the credential names.
    #[default]
    Session,
    /// The guest's, also when signed in.
    Anonymous,
}

/// Whether a customer's `saas_token` goes with the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaasInjection {
    /// It does not.
    #[default]
    Never,
    /// It does while it is valid.
    WhenValid,
    /// It does; a customer whose `saas_token` is over signs in again first.
    Required,
}

/// The rate that guards a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteLimit {
    /// None.
    #[default]
    None,
    /// Per address and per account, like signing in; the JSON body names the account in `email`.
    SignIn,
}

/// What a successful answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSuccess {
    /// Nothing.
    #[default]
    Nothing,
    /// The customer's other sessions.
    EndOtherSessions,
    /// The sessions of the customer to whom the `token` of the JSON body was mailed, as a webhook event told.
    EndNamedSessions,
}
