//! How a tenant takes Emporix' webhook events.
//! Without a secret it takes none: the route is not there.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::span::{self, Span};

/// How a tenant takes Emporix' webhook events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookSection {
    /// The secret key of the tenant's HTTP webhook at Emporix; or `secret_file`. Without, no event is taken.
    pub secret: Option<Secret>,
    /// How long ago an event may have been published.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub max_age: Duration,
}

impl Default for WebhookSection {
    fn default() -> Self {
        Self { secret: None, max_age: Duration::from_secs(300) }
    }
}
