//! A static token of the configuration that opens a listener, or a part of one.
//! Hashes are compared, in constant time: not even a length shows.

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};

use super::respond::Answer;
use crate::config::Secret;
use crate::session::SecretHash;

/// What of such a token is kept.
#[derive(Clone)]
pub(super) struct BearerKey(SecretHash);

impl BearerKey {
    pub(super) fn of(token: &Secret) -> Self {
        Self(SecretHash::of(token.expose().as_bytes()))
    }

    /// Whether the one `Authorization` is the token.
    pub(super) fn opens(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && SecretHash::of(token.as_bytes()).matches(&self.0)
        })
    }
}

/// `answer`, saying what it wants to see.
pub(super) fn wanted(answer: Answer) -> Answer {
    answer.with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}
