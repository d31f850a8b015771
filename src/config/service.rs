//! Service tokens: whose client credentials the gateway keeps, and the listener where back-office callers use them.
//! Without an address there is no such listener, and no rule opens a service anywhere else.

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TlsSection;
use super::secret::Secret;

/// The listener for back-office callers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InternalSection {
    /// Its address; without, there is no such listener.
    pub listen: Option<SocketAddr>,
    /// What callers show as a bearer token; or `token_file`.
    pub token: Option<Secret>,
    /// Certificate and key; with `client_ca_file` callers show a certificate, beside the token where both are set.
    pub tls: Option<TlsSection>,
}

impl InternalSection {
    /// Whether a handshake proves who calls.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some())
    }
}

/// The client credentials of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSection {
    /// The client at Emporix.
    pub client_id: String,
    /// Its secret; or `client_secret_file`.
    pub client_secret: Option<Secret>,
    /// The scopes that are asked for, parted by spaces; what the client may at most when empty.
    pub scope: String,
}

/// Names a service: 1 to 32 lowercase letters, digits and dashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(with = "String")]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Box<str>);

impl ServiceName {
    /// The name, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (fits && (1..=32).contains(&text.len())).then(|| Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServiceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("`{text}` is no service: 1 to 32 lowercase letters, digits and dashes"))
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
