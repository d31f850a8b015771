//! Signs and checks the SaaS token, the HS256 JWT that proves the customer to checkout.
//! The passphrase is the simulator's own; a token of another passphrase, customer or time is refused.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::random;

/// The simulator's end of the shared passphrase.
pub(crate) struct SaasSigner {
    passphrase: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    iat: u64,
    jti: String,
}

impl SaasSigner {
    /// A signer for this passphrase.
    pub(crate) fn new(passphrase: String) -> Self {
        Self { passphrase }
    }

    /// A SaaS token for `customer`, issued at `now` (milliseconds).
    pub(crate) fn sign(&self, customer: &str, ttl_seconds: u64, now: u64) -> String {
        let iat = now / 1000;
        let claims = Claims { sub: customer.to_owned(), exp: iat + ttl_seconds, iat, jti: random::uuid() };
        let key = EncodingKey::from_secret(self.passphrase.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
            .expect("plain claims and an HMAC key always encode")
    }

    /// Whether `token` is ours, belongs to `customer` and has not expired at `now` (milliseconds).
    pub(crate) fn accepts(&self, token: &str, customer: &str, now: u64) -> bool {
        let key = DecodingKey::from_secret(self.passphrase.as_bytes());
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        jsonwebtoken::decode::<Claims>(token, &key, &validation)
            .is_ok_and(|token| token.claims.sub == customer && token.claims.exp > now / 1000)
    }
}

/// A token shaped like one of an external identity provider; its signature is noise.
pub(crate) fn provider_token(subject: &str, now: u64) -> String {
    let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({"alg": "RS256", "typ": "JWT", "kid": "simulated-provider"}));
    let claims = part(json!({"iss": "https://idp.example.com/", "sub": subject, "exp": now / 1000 + 3600}));
    format!("{header}.{claims}.{}", random::opaque(86))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saas_token_serves_its_own_customer_until_it_expires() {
        let signer = SaasSigner::new("passphrase".into());
        let token = signer.sign("C0033", 10, 1_000_000);

        assert!(signer.accepts(&token, "C0033", 1_009_999));
        assert!(!signer.accepts(&token, "C0033", 1_010_000), "expired");
        assert!(!signer.accepts(&token, "13869000", 1_000_000), "someone else's");
        assert!(!SaasSigner::new("other".into()).accepts(&token, "C0033", 1_000_000), "forged");
    }
}
