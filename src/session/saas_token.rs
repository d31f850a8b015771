//! Checks a `saas_token`: shape, algorithm, `exp`, `sub`, and the signature where a key is known.
//! The algorithm comes from configuration, never from the token.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::tokens::{SaasToken, Token};
use crate::clock::Timestamp;

/// Why a `saas_token` is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Not three base64url parts of JSON.
    #[error("malformed")]
    Malformed,
    /// Signed with an algorithm that is not configured.
    #[error("algorithm not accepted")]
    Algorithm,
    /// The signature does not fit, or no key is known that could tell.
    #[error("signature not valid")]
    Signature,
    /// `exp` is missing or past, or `iat` lies ahead.
    #[error("expired")]
    Expired,
    /// `sub` is missing or no customer number.
    #[error("subject not accepted")]
    Subject,
}

/// What a verified `saas_token` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The customer number.
    pub customer_id: String,
    /// The end of its validity.
    pub expires_at: Timestamp,
}

/// What a `saas_token` has to satisfy.
#[derive(Clone, Debug)]
pub struct SaasRules {
    /// Algorithms that are accepted.
    pub algorithms: Vec<Algorithm>,
    /// Clock difference that is forgiven.
    pub leeway: Duration,
}

/// What a signature is checked against.
pub enum VerifyingKey<'k> {
    /// Nothing: no key is known.
    Unknown,
    /// This key.
    Known(&'k DecodingKey),
}

#[derive(Deserialize)]
struct WireClaims {
    sub: Option<String>,
    exp: Option<f64>,
    iat: Option<f64>,
}

/// The `kid` that `token` names, provided that its algorithm is accepted.
///
/// # Errors
/// [`BadToken::Malformed`] or [`BadToken::Algorithm`].
pub fn key_id(token: &Token, rules: &SaasRules) -> Result<Option<String>, BadToken> {
    let header = jsonwebtoken::decode_header(token.expose()).map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::InvalidAlgorithmName => BadToken::Algorithm,
        _ => unreadable_header(token),
    })?;
    if rules.algorithms.contains(&header.alg) { Ok(header.kid) } else { Err(BadToken::Algorithm) }
}

/// A header of three parts that does not parse names an algorithm that does not exist here, such as `none`.
fn unreadable_header(token: &Token) -> BadToken {
    if token.expose().split('.').count() == 3 { BadToken::Algorithm } else { BadToken::Malformed }
}

/// Verifies `token` at `now`.
///
/// # Errors
/// Why it is not believed.
pub fn verify(token: &Token, key: &VerifyingKey<'_>, rules: &SaasRules, now: Timestamp) -> Result<Claims, BadToken> {
    key_id(token, rules)?;
    let claims = match key {
        VerifyingKey::Unknown => {
            jsonwebtoken::dangerous::insecure_decode::<WireClaims>(token.expose())
                .map_err(|_| BadToken::Malformed)?
                .claims
        }
        VerifyingKey::Known(key) => {
            jsonwebtoken::decode::<WireClaims>(token.expose(), key, &signature_only(rules))
                .map_err(|error| why(&error))?
                .claims
        }
    };
    believe(claims, rules, now)
}

/// The signature alone: the clocks are checked against the gateway's own clock.
fn signature_only(rules: &SaasRules) -> Validation {
    let mut validation = Validation::new(rules.algorithms.first().copied().unwrap_or(Algorithm::HS256));
    validation.algorithms.clone_from(&rules.algorithms);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

fn why(error: &jsonwebtoken::errors::Error) -> BadToken {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => BadToken::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => BadToken::Algorithm,
        _ => BadToken::Malformed,
    }
}

fn believe(claims: WireClaims, rules: &SaasRules, now: Timestamp) -> Result<Claims, BadToken> {
    let expires_at = claims.exp.and_then(instant).ok_or(BadToken::Expired)?;
    let issued_ahead = claims.iat.and_then(instant).is_some_and(|at| at > now.after(rules.leeway));
    if now >= expires_at.after(rules.leeway) || issued_ahead {
        return Err(BadToken::Expired);
    }
    let customer_id = claims.sub.filter(|sub| is_customer_id(sub)).ok_or(BadToken::Subject)?;
    Ok(Claims { customer_id, expires_at })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate, as wanted here")]
fn instant(seconds: f64) -> Option<Timestamp> {
    (seconds >= 0.0).then(|| Timestamp::from_seconds(seconds as u64))
}

fn is_customer_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The token together with its verified end.
#[must_use]
pub fn accepted(token: Token, claims: &Claims) -> SaasToken {
    SaasToken { token, expires_at: claims.expires_at }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn rules() -> SaasRules {
        SaasRules { algorithms: vec![Algorithm::HS256], leeway: Duration::from_secs(10) }
    }

    fn signed(claims: &Value) -> Token {
        let key = EncodingKey::from_secret(b"passphrase");
        Token::parse(&jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()).unwrap()
    }

    fn unsigned(header: &Value, claims: &Value) -> Token {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        Token::parse(&format!("{}.{}.c2ln", part(header), part(claims))).unwrap()
    }

    fn verify_with(secret: &[u8], token: &Token) -> Result<Claims, BadToken> {
        verify(token, &VerifyingKey::Known(&DecodingKey::from_secret(secret)), &rules(), NOW)
    }

    #[test]
    fn a_signed_living_token_is_believed() {
        let token = signed(&json!({"sub": "13869000", "exp": 1_000_500}));
        let claims = verify_with(b"passphrase", &token).unwrap();
        assert_eq!(claims, Claims { customer_id: "13869000".into(), expires_at: Timestamp::from_seconds(1_000_500) });
        assert_eq!(verify_with(b"another", &token), Err(BadToken::Signature));
    }

    #[test]
    fn the_clocks_are_the_gateways_own() {
        for (claims, expected) in [
            (json!({"sub": "1", "exp": 999_995}), None),
            (json!({"sub": "1", "exp": 999_990}), Some(BadToken::Expired)),
            (json!({"sub": "1"}), Some(BadToken::Expired)),
            (json!({"sub": "1", "exp": 1_000_500, "iat": 1_000_011}), Some(BadToken::Expired)),
            (json!({"exp": 1_000_500}), Some(BadToken::Subject)),
            (json!({"sub": "", "exp": 1_000_500}), Some(BadToken::Subject)),
        ] {
            assert_eq!(verify_with(b"passphrase", &signed(&claims)).err(), expected, "{claims}");
            assert_eq!(verify(&signed(&claims), &VerifyingKey::Unknown, &rules(), NOW).err(), expected, "{claims}");
        }
    }

    #[test]
    fn an_algorithm_that_is_not_configured_is_refused_whatever_the_token_says() {
        let claims = json!({"sub": "1", "exp": 1_000_500});
        for algorithm in ["none", "None", "HS512", "RS256", "nonsense"] {
            let token = unsigned(&json!({"alg": algorithm}), &claims);
            assert_eq!(verify_with(b"passphrase", &token), Err(BadToken::Algorithm), "{algorithm}");
            assert_eq!(verify(&token, &VerifyingKey::Unknown, &rules(), NOW), Err(BadToken::Algorithm));
        }
    }

    #[test]
    fn what_is_no_jwt_is_malformed() {
        for text in ["x", "a.b", "undefined", "eyJhbGciOiJIUzI1NiJ9.e30"] {
            let token = Token::parse(text).unwrap();
            assert!(verify(&token, &VerifyingKey::Unknown, &rules(), NOW).is_err(), "{text}");
        }
    }
}
