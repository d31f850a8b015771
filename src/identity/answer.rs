//! Reads a token answer of Emporix into tokens, clocks and the few fields that clients may see.
//! Whatever it does not know for harmless stays behind.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::{IdentityError, Refusal, RefusedField};
use crate::clock::Timestamp;
use crate::session::{Token, TokenSet};

/// Fields of an answer that are no secret, as Emporix spelled and typed them.
pub type Fields = Map<String, Value>;

/// How Emporix typed the lifetimes of an answer; the gateway's own answer follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NumberForm {
    /// `"expires_in": 3599`
    #[default]
    Number,
    /// `"expires_in": "3599"`
    Text,
}

/// What a token call brought.
#[derive(Debug)]
pub struct Issued {
    /// The tokens, with their clocks.
    pub tokens: TokenSet,
    /// The `saas_token` as it came, not yet verified.
    pub unverified_saas: Option<Token>,
    /// Emporix' id of the visit.
    pub session_id: Option<String>,
    /// Non-secret fields.
    pub fields: Fields,
    /// How lifetimes were typed.
    pub number_form: NumberForm,
}

/// For how long an access token is used, even when the answer that brings it calls it over. An answer that is wrong
/// about that costs an API call with a token that is over, and not a redeem for each request.
const LEAST_ACCESS_LIFE: Duration = Duration::from_secs(3);

/// The shortest and the longest pause that is taken from a `Retry-After`. Whoever is told of it gets no other.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));

/// Fields that never pass, in any spelling: tokens, and what names a token.
const SECRET_FIELDS: [&str; 12] = [
    "access_token",
    "accessToken",
    "refresh_token",
    "refreshToken",
    "saas_token",
    "saasToken",
    "social_access_token",
    "social_id_token",
    "subject_access_token",
    "subjectAccessToken",
    "id_token",
    "idToken",
];

/// Fields that the gateway writes itself.
const REWRITTEN_FIELDS: [&str; 4] = ["expires_in", "expiresIn", "refresh_token_expires_in", "refreshTokenExpiresIn"];

/// Fields known to be harmless, whose text passes as it is.
const HARMLESS_FIELDS: [&str; 6] =
    ["token_type", "session_id", "sessionId", "scope", "session_idle_time", "initialPassword"];

impl Issued {
    /// Reads a token answer that came at `now`.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`] when it is no JSON object with an access token and a life time.
    pub fn read(body: &[u8], now: Timestamp) -> Result<Self, IdentityError> {
        let Ok(Value::Object(answer)) = serde_json::from_slice(body) else {
            return Err(IdentityError::Unreadable("no JSON object"));
        };
        let access =
            token(&answer, "access_token", "accessToken")?.ok_or(IdentityError::Unreadable("no access token"))?;
        let refresh = token(&answer, "refresh_token", "refreshToken")?;
        let expires_in = answer.get("expires_in").or_else(|| answer.get("expiresIn"));
        let number_form = match expires_in {
            Some(Value::String(_)) => NumberForm::Text,
            _ => NumberForm::Number,
        };
        let access_life = lifetime(expires_in).ok_or(IdentityError::Unreadable("no life time"))?;
        let access_life = access_life.max(LEAST_ACCESS_LIFE);
        let refresh_expires_in = answer.get("refresh_token_expires_in").or_else(|| answer.get("refreshTokenExpiresIn"));
        let refresh_life = lifetime(refresh_expires_in).unwrap_or_default();
        Ok(Self {
            tokens: TokenSet {
                access,
                access_expires_at: now.after(access_life),
                refresh,
                refresh_expires_at: now.after(refresh_life),
                issued_at: now,
                saas: None,
            },
            unverified_saas: token(&answer, "saas_token", "saasToken")?,
            session_id: session_id(&answer),
            fields: answer.into_iter().filter(|(name, value)| may_pass(name, value)).collect(),
            number_form,
        })
    }
}

fn token(answer: &Map<String, Value>, snake: &str, camel: &str) -> Result<Option<Token>, IdentityError> {
    match answer.get(snake).or_else(|| answer.get(camel)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => {
            Token::parse(text).map(Some).ok_or(IdentityError::Unreadable("a token that is none"))
        }
        Some(_) => Err(IdentityError::Unreadable("a token that is no text")),
    }
}

/// Emporix types lifetimes as numbers or as text. Negative ones are over at once, and what is neither is none.
pub(super) fn lifetime(value: Option<&Value>) -> Option<Duration> {
    let seconds = match value? {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().map(saturated))?,
        Value::String(text) => text.trim().parse::<f64>().ok().map(saturated)?,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate, as wanted here")]
fn saturated(seconds: f64) -> u64 {
    seconds as u64
}

fn session_id(answer: &Map<String, Value>) -> Option<String> {
    let id = answer.get("session_id").or_else(|| answer.get("sessionId"))?.as_str()?;
    is_identifier(id).then(|| id.to_owned())
}

/// Whether `text` is fit for an identifier: 1 to 128 letters, digits and `-_.:`.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

fn may_pass(name: &str, value: &Value) -> bool {
    if SECRET_FIELDS.contains(&name) || REWRITTEN_FIELDS.contains(&name) || name.starts_with("social_") {
        return false;
    }
    match value {
        Value::Number(_) | Value::Bool(_) => true,
        Value::String(text) if HARMLESS_FIELDS.contains(&name) => text.len() <= 1_024,
        Value::String(text) => is_plain_words(text),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Words a person would say, too short to hide a token: letters and spaces, 20 at most.
fn is_plain_words(text: &str) -> bool {
    text.len() <= 20 && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b' ' || b == b'_')
}

/// A sentence without a word long enough to be a token: what Emporix says of an error reaches the client.
fn is_sentence(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
    text.len() <= 300 && words.all(|word| word.len() <= 20)
}

/// The seconds that a `Retry-After` which came at `now` asks for (RFC 9110, section 10.2.3); none when it cannot be read.
#[must_use]
pub fn read_retry_after(value: &str, now: Timestamp) -> Option<u64> {
    let value = value.trim();
    let asked = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has room for are a long time.
        value.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        let until = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().after(until).since(now)
    };
    Some(asked.clamp(PAUSE.0, PAUSE.1).as_secs())
}

/// Reads an error answer of Emporix.
#[must_use]
pub fn read_error(status: u16, retry_after: Option<u64>, body: &[u8]) -> IdentityError {
    if status == 401 && is_expiry_fault(body) {
        return IdentityError::AuthorizerRefused;
    }
    match status {
        429 => IdentityError::RateLimited { retry_after },
        408 => IdentityError::Unavailable("request timeout"),
        400..=499 => IdentityError::Refused(Box::new(refusal(status, body))),
        502..=504 => IdentityError::Unavailable("out of service"),
        _ => IdentityError::Failed("server error"),
    }
}

/// Whether a 401's body is the shape that alone means "token over" (and not "wrong password" or "cart closed").
#[must_use]
pub fn is_expiry_fault(body: &[u8]) -> bool {
    const CODES: [&str; 3] = [
        "oauth.v2.InvalidAccessToken",
        "keymanagement.service.access_token_expired",
        "keymanagement.service.invalid_access_token",
    ];
    serde_json::from_slice::<Value>(body).is_ok_and(|body| {
        let code = body.pointer("/fault/detail/errorcode").and_then(Value::as_str);
        code.is_some_and(|code| CODES.contains(&code))
    })
}

fn refusal(status: u16, body: &[u8]) -> Refusal {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let sentence = |value: Option<&Value>| value?.as_str().filter(|text| is_sentence(text)).map(str::to_owned);
    let details = body.get("details").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Refusal {
        status,
        kind: sentence(body.get("type")).filter(|kind| is_plain_words(kind)),
        message: sentence(body.get("message")).or_else(|| sentence(body.pointer("/fault/faultstring"))),
        details: details
            .iter()
            .take(20)
            .map(|detail| RefusedField {
                field: sentence(detail.get("field")),
                message: sentence(detail.get("message")),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn read(answer: &Value) -> Result<Issued, IdentityError> {
        Issued::read(answer.to_string().as_bytes(), NOW)
    }

    #[test]
    fn lifetimes_may_be_text_and_the_form_is_remembered() {
        let social = serde_json::json!({
            "access_token": "a", "refresh_token": "r", "expires_in": "2591999", "refresh_token_expires_in": "86399"
        });
        let issued = read(&social).unwrap();
        assert_eq!(issued.number_form, NumberForm::Text);
        assert_eq!(issued.tokens.refresh_expires_at, NOW.after(Duration::from_secs(86_399)));
    }

    #[test]
    fn hostile_lifetimes_saturate_and_no_token_is_over_when_it_comes() {
        for (life, expected) in [
            (serde_json::json!(1e18), Timestamp::NEVER),
            (serde_json::json!("1e18"), Timestamp::NEVER),
            (serde_json::json!(-1), NOW.after(LEAST_ACCESS_LIFE)),
            (serde_json::json!("-1"), NOW.after(LEAST_ACCESS_LIFE)),
            (serde_json::json!(0), NOW.after(LEAST_ACCESS_LIFE)),
            (serde_json::json!(60), NOW.after(Duration::from_secs(60))),
        ] {
            let issued = read(&serde_json::json!({"access_token": "a", "expires_in": life})).unwrap();
            assert_eq!(issued.tokens.access_expires_at, expected);
        }
    }

    #[test]
    fn a_refresh_token_is_believed_for_as_long_as_its_answer_says_and_no_longer() {
        let in_seconds = |seconds| NOW.after(Duration::from_secs(seconds));
        for (life, expected) in [
            (serde_json::json!(86_399), in_seconds(86_399)),
            (serde_json::json!("86399"), in_seconds(86_399)),
            (serde_json::json!(86_399.9), in_seconds(86_399)),
            (serde_json::json!(" 86399.9 "), in_seconds(86_399)),
            (serde_json::json!(1e18), Timestamp::NEVER),
            (serde_json::json!("1e18"), Timestamp::NEVER),
            (serde_json::json!(u64::MAX), Timestamp::NEVER),
            (serde_json::json!("inf"), Timestamp::NEVER),
            (serde_json::json!(0), NOW),
            (serde_json::json!(-1), NOW),
            (serde_json::json!("-1"), NOW),
            (serde_json::json!(-1e18), NOW),
            (serde_json::json!("NaN"), NOW),
            (serde_json::json!("soon"), NOW),
            (serde_json::json!(""), NOW),
            (serde_json::json!(true), NOW),
            (serde_json::json!([86_399]), NOW),
            (serde_json::json!(null), NOW),
        ] {
            for spelling in ["refresh_token_expires_in", "refreshTokenExpiresIn"] {
                let answer =
                    serde_json::json!({"access_token": "a", "expires_in": 60, "refresh_token": "r", spelling: life});
                let tokens = read(&answer).unwrap().tokens;
                assert_eq!(tokens.refresh_expires_at, expected, "{answer}");
                assert_eq!(tokens.access_expires_at, in_seconds(60), "{answer}");
            }
        }
        let untold = serde_json::json!({"access_token": "a", "expires_in": 60, "refresh_token": "r"});
        assert_eq!(read(&untold).unwrap().tokens.refresh_expires_at, NOW);
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date_and_neither_nothing_nor_for_ever() {
        let now = Timestamp::from_seconds(784_111_777); // The dates of RFC 9110, section 5.6.7.
        for (value, expected) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", Some(1)),
            ("3600", Some(3_600)),
            ("3601", Some(3_600)),
            ("1000000000000000000", Some(3_600)),
            ("99999999999999999999999999", Some(3_600)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun Nov  6 08:50:07 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(1)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(1)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3_600)),
            ("", None),
            ("-1", None),
            ("+7", None),
            ("1.5", None),
            ("1e18", None),
            ("7, 7", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(read_retry_after(value, now), expected, "{value:?}");
        }
    }

    #[test]
    fn only_harmless_fields_pass() {
        let issued = read(&serde_json::json!({
            "access_token": "a", "expires_in": 1, "saas_token": "s", "social_access_token": "jwt",
            "subject_access_token": "jwt", "initialPassword": false, "session_id": "6d4d4d5e-04b9",
            "scope": "tenant=acme", "session_idle_time": 120, "mood": "all good",
            "device_secret": "tpYgJPZqddEQ2zwfzNtx79noBP65", "nested": {"token": "x"}
        }))
        .unwrap();
        let mut passed: Vec<&str> = issued.fields.keys().map(String::as_str).collect();
        passed.sort_unstable();
        assert_eq!(passed, ["initialPassword", "mood", "scope", "session_id", "session_idle_time"]);
    }

    #[test]
    fn an_answer_without_a_usable_token_is_unreadable() {
        for answer in [
            serde_json::json!([]),
            serde_json::json!({}),
            serde_json::json!({"access_token": "two words", "expires_in": 1}),
            serde_json::json!({"access_token": 7, "expires_in": 1}),
            serde_json::json!({"access_token": "a"}),
        ] {
            assert!(matches!(read(&answer), Err(IdentityError::Unreadable(_))), "{answer}");
        }
    }

    #[test]
    fn no_token_hides_in_what_emporix_says_of_an_error() {
        let said = |message: &str| {
            let body = serde_json::json!({"message": message}).to_string();
            let IdentityError::Refused(refusal) = read_error(400, None, body.as_bytes()) else { panic!("no refusal") };
            refusal.message.is_some()
        };
        assert!(said("Duplicate account 'john.doe@example.com' for tenant 'acme'."));
        assert!(!said("token tpYgJPZqddEQ2zwfzNtx79noBP65 bad"));
        assert!(!said("token tpYgJPZqddEQ2zwf-ztx79noBP65 bad"));
        assert!(!said(
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMzg2OTAwMCIsImV4cCI6MX0.c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmU"
        ));
    }

    #[test]
    fn only_the_fault_shape_means_that_a_token_is_over() {
        let fault =
            br#"{"fault":{"faultstring":"x","detail":{"errorcode":"keymanagement.service.access_token_expired"}}}"#;
        assert!(matches!(read_error(401, None, fault), IdentityError::AuthorizerRefused));
        for other in [&br#"{"status":401,"message":"Saas TOKEN is invalid"}"#[..], b"<html>", b""] {
            assert!(matches!(read_error(401, None, other), IdentityError::Refused(_)));
        }
    }
}
