//! Which requests are traced, and who is told of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::Secret;

/// Which requests are traced, and who is told of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracesSection {
    /// Where spans are sent, by OTLP/HTTP in JSON; a user and a password in it are sent along; or `otlp_endpoint_file`. Without,
    /// nothing is traced, and trace headers pass unread.
    pub otlp_endpoint: Option<Secret>,
    /// Share of the traces that begin here which are sampled. Whether others are is said by who began them.
    pub sample: f64,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample: 0.01 }
    }
}
