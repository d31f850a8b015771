//! The behaviour tests may change while the simulator runs, with Emporix' documented values as defaults.
//! An unknown or mistyped setting is refused as a whole; nothing is half applied.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything `PATCH /_simulator/settings` accepts; all times are seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Whether customer answers repeat their fields in deprecated camelCase.
    pub(crate) camel_case: bool,
    /// Which bearer may ask for a customer refresh.
    pub(crate) refresh_authorizer: RefreshAuthorizer,
    /// Whether a customer refresh token dies when it is used.
    pub(crate) refresh_single_use: bool,
    /// Life of a guest's bearer.
    pub(crate) anonymous_access_ttl: u64,
    /// Life of a guest's refresh token.
    pub(crate) anonymous_refresh_ttl: u64,
    /// Life of a customer's bearer.
    pub(crate) customer_access_ttl: u64,
    /// Life of a customer's refresh token.
    pub(crate) customer_refresh_ttl: u64,
    /// Life of a customer's bearer that came from a token exchange.
    pub(crate) exchange_access_ttl: u64,
    /// Life of a customer's refresh token that came from a token exchange.
    pub(crate) exchange_refresh_ttl: u64,
    /// Life of a service's bearer.
    pub(crate) service_ttl: u64,
    /// Life of a SaaS token.
    pub(crate) saas_ttl: u64,
    /// Returned as `saas_token` instead of a signed one.
    pub(crate) saas_token_override: Option<String>,
    /// Returned as `expires_in` of customer answers, whatever it is.
    pub(crate) raw_expires_in: Option<Value>,
}

/// The two readings of Emporix' contradicting documentation, and their union.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RefreshAuthorizer {
    /// Only a guest's bearer.
    Anonymous,
    /// Only a customer's bearer.
    Customer,
    /// Either.
    Any,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            camel_case: true,
            refresh_authorizer: RefreshAuthorizer::Anonymous,
            refresh_single_use: true,
            anonymous_access_ttl: 3599,
            anonymous_refresh_ttl: 86_399,
            customer_access_ttl: 2_591_999,
            customer_refresh_ttl: 86_399,
            exchange_access_ttl: 14_399,
            exchange_refresh_ttl: 15_551_999,
            service_ttl: 14_399,
            saas_ttl: 14_400,
            saas_token_override: None,
            raw_expires_in: None,
        }
    }
}

impl Settings {
    /// These settings with the fields of `change` replaced.
    pub(crate) fn merged(&self, change: &Value) -> Result<Self, serde_json::Error> {
        let mut merged = serde_json::to_value(self)?;
        if let (Some(merged), Some(change)) = (merged.as_object_mut(), change.as_object()) {
            merged.extend(change.clone());
        }
        serde_json::from_value(merged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_touches_only_what_it_names() {
        let changed = Settings::default().merged(&json!({"saas_ttl": 2, "raw_expires_in": "soon"}));
        let changed = changed.expect("both are settings");

        assert_eq!((changed.saas_ttl, changed.raw_expires_in), (2, Some(json!("soon"))));
        assert_eq!(changed.customer_access_ttl, 2_591_999);
    }

    #[test]
    fn a_mistyped_setting_is_refused() {
        assert!(Settings::default().merged(&json!({"sass_ttl": 2})).is_err());
    }
}
