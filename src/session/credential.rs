//! What clients hold instead of tokens: opaque handles, and the placeholders of cookie transport.
//! Only the SHA-256 of a handle's secret is ever kept, and a handle of one kind is nothing as another kind.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use minicbor::{Decode, Encode};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::Scope;
use crate::clock::Timestamp;

/// Names one session's record. Not a secret: it opens nothing without a handle's secret. Logs and operators are shown
/// its label instead ([`super::SessionLabel`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct SessionKey(#[cbor(n(0), with = "minicbor::bytes")] [u8; SessionKey::LENGTH]);

impl SessionKey {
    /// Bytes in a key.
    pub const LENGTH: usize = 16;

    /// A key that nobody can guess.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; Self::LENGTH];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The key of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The key as bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The key in 22 characters of base64url, as store keys spell it.
    #[must_use]
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// The key that [`SessionKey::to_text`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; Self::LENGTH];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == Self::LENGTH).then_some(Self(bytes))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum HandleKind {
    /// Stands where an anonymous access token stood.
    #[n(0)]
    AnonymousAccess,
    /// Stands where an anonymous refresh token stood.
    #[n(1)]
    AnonymousRefresh,
    /// Stands where a customer's access token stood.
    #[n(2)]
    CustomerAccess,
    /// Stands where a customer's refresh token stood.
    #[n(3)]
    CustomerRefresh,
    /// Stands where a `saas_token` stood.
    #[n(4)]
    Saas,
    /// Rides in the browser's cookie.
    #[n(5)]
    Cookie,
}

impl HandleKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::AnonymousAccess,
        Self::AnonymousRefresh,
        Self::CustomerAccess,
        Self::CustomerRefresh,
        Self::Saas,
        Self::Cookie,
    ];

    /// The text every handle of this kind begins with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::AnonymousAccess => "eg_a_",
            Self::AnonymousRefresh => "eg_ar_",
            Self::CustomerAccess => "eg_c_",
            Self::CustomerRefresh => "eg_cr_",
            Self::Saas => "eg_s_",
            Self::Cookie => "eg_k_",
        }
    }

    /// What stands in a token field where the cookie is the credential; cookies themselves have none.
    #[must_use]
    pub const fn placeholder(self) -> Option<&'static str> {
        match self {
            Self::AnonymousAccess => Some("cookie.anonymous"),
            Self::AnonymousRefresh => Some("cookie.anonymous-refresh"),
            Self::CustomerAccess => Some("cookie.customer"),
            Self::CustomerRefresh => Some("cookie.customer-refresh"),
            Self::Saas => Some("cookie.saas"),
            Self::Cookie => None,
        }
    }

    /// The scope that a token of this kind has by its nature; a cookie's is recorded with its credential.
    #[must_use]
    pub const fn scope(self) -> Scope {
        match self {
            Self::AnonymousAccess | Self::AnonymousRefresh => Scope::Anonymous,
            Self::CustomerAccess | Self::CustomerRefresh | Self::Saas | Self::Cookie => Scope::Customer,
        }
    }
}

/// The random half of a handle.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Secret([u8; Secret::LENGTH]);

impl Secret {
    const LENGTH: usize = 32;
}

/// An opaque credential: `eg_` + kind + `_` + base64url(session key ‖ secret).
#[derive(Clone)]
pub struct Handle {
    /// What it stands for.
    pub kind: HandleKind,
    /// The session it opens.
    pub key: SessionKey,
    secret: Secret,
}

impl Handle {
    const BYTES: usize = SessionKey::LENGTH + Secret::LENGTH;
    const ENCODED: usize = Self::BYTES / 3 * 4;

    /// Bytes in the shortest handle's text.
    pub const LEAST_BYTES: usize = 5 + Self::ENCODED;

    /// Bytes in the longest handle's text.
    pub const MOST_BYTES: usize = 6 + Self::ENCODED;

    /// A fresh handle of `kind` for the session `key`.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random(kind: HandleKind, key: SessionKey) -> Result<Self, getrandom::Error> {
        let mut secret = Secret([0; Secret::LENGTH]);
        getrandom::fill(&mut secret.0)?;
        Ok(Self { kind, key, secret })
    }

    /// Parses a handle; any other text is none.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let kind = HandleKind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix().as_bytes()))?;
        let encoded = &text[kind.prefix().len()..];
        if encoded.len() != Self::ENCODED {
            return None;
        }
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        URL_SAFE_NO_PAD.decode_slice(encoded, bytes.as_mut()).ok()?;
        let (key, secret) = bytes.split_at(SessionKey::LENGTH);
        Some(Self { kind, key: SessionKey(key.try_into().ok()?), secret: Secret(secret.try_into().ok()?) })
    }

    /// The handle as the client keeps it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; Self::BYTES]);
        bytes[..SessionKey::LENGTH].copy_from_slice(self.key.as_bytes());
        bytes[SessionKey::LENGTH..].copy_from_slice(&self.secret.0);
        let mut text = Zeroizing::new(String::with_capacity(8 + Self::ENCODED));
        text.push_str(self.kind.prefix());
        URL_SAFE_NO_PAD.encode_string(bytes.as_ref(), &mut text);
        text
    }

    fn hash(&self) -> SecretHash {
        SecretHash::of(&self.secret.0)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:?}, …)", self.kind)
    }
}

/// The SHA-256 of a secret: what is kept of it.
#[derive(Clone, Copy, Encode, Decode)]
#[cbor(transparent)]
pub struct SecretHash(#[cbor(n(0), with = "minicbor::bytes")] [u8; 32]);

impl SecretHash {
    /// The hash of `secret`.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, secret).as_ref());
        Self(hash)
    }

    /// The hash as bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// What a session remembers of one handle.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Credential {
    #[n(0)]
    kind: HandleKind,
    #[n(1)]
    hash: SecretHash,
    #[n(2)]
    scope: Scope,
    #[n(3)]
    expires_at: Timestamp,
}

/// What a handle turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It stands for this scope.
    Valid(Scope),
    /// It was this session's, and was replaced longer ago than its grace.
    Replaced(HandleKind),
    /// It never was this session's, or is forgotten.
    Unknown,
}

/// The handles of one session, oldest first.
#[derive(Clone, Debug, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Credentials(#[n(0)] Vec<Credential>);

impl Credentials {
    /// Handles of one kind that a session keeps; tabs share sessions, and the oldest is dropped.
    const MOST_PER_KIND: usize = 8;

    /// Remembers `handle`, good for `scope` while the session lives.
    pub fn issue(&mut self, handle: &Handle, scope: Scope) {
        let same_kind = self.0.iter().filter(|known| known.kind == handle.kind).count();
        if same_kind >= Self::MOST_PER_KIND
            && let Some(oldest) = self.0.iter().position(|known| known.kind == handle.kind)
        {
            self.0.remove(oldest);
        }
        self.0.push(Credential { kind: handle.kind, hash: handle.hash(), scope, expires_at: Timestamp::NEVER });
    }

    /// What `handle` stands for at `now`.
    #[must_use]
    pub fn verify(&self, handle: &Handle, now: Timestamp) -> Verified {
        let hash = handle.hash();
        match self.0.iter().find(|known| known.kind == handle.kind && known.hash.matches(&hash)) {
            Some(known) if now < known.expires_at => Verified::Valid(known.scope),
            Some(known) => Verified::Replaced(known.kind),
            None => Verified::Unknown,
        }
    }

    /// Lets `handle` end at `at`.
    pub fn retire(&mut self, handle: &Handle, at: Timestamp) {
        let hash = handle.hash();
        for known in self.0.iter_mut().filter(|known| known.kind == handle.kind && known.hash.matches(&hash)) {
            known.expires_at = known.expires_at.min(at);
        }
    }

    /// Leaves every cookie no more than anonymous rights.
    pub fn demote_cookies(&mut self) {
        for known in self.0.iter_mut().filter(|known| known.kind == HandleKind::Cookie) {
            known.scope = Scope::Anonymous;
        }
    }

    /// Lets every cookie end at `at`.
    pub fn retire_cookies(&mut self, at: Timestamp) {
        for known in self.0.iter_mut().filter(|known| known.kind == HandleKind::Cookie) {
            known.expires_at = known.expires_at.min(at);
        }
    }

    /// Lets the cookies that were to end at `at` live on.
    pub fn reinstate_cookies(&mut self, at: Timestamp) {
        for known in self.0.iter_mut().filter(|known| known.kind == HandleKind::Cookie && known.expires_at == at) {
            known.expires_at = Timestamp::NEVER;
        }
    }

    /// Forgets every handle of `kind`.
    pub fn forget(&mut self, kind: HandleKind) {
        self.0.retain(|known| known.kind != kind);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SessionKey = SessionKey::from_bytes([7; 16]);
    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn handle(kind: HandleKind) -> Handle {
        Handle::random(kind, KEY).unwrap()
    }

    #[test]
    fn a_handle_survives_the_wire() {
        for kind in HandleKind::ALL {
            let sent = handle(kind);
            let parsed = Handle::parse(sent.to_text().as_bytes()).unwrap();
            assert_eq!((parsed.kind, parsed.key), (kind, KEY));
            assert!(parsed.hash().matches(&sent.hash()));
        }
    }

    #[test]
    fn a_handle_of_one_kind_is_nothing_as_another_kind() {
        let mut credentials = Credentials::default();
        let anonymous = handle(HandleKind::AnonymousAccess);
        credentials.issue(&anonymous, Scope::Anonymous);
        let relabelled = anonymous.to_text().replace("eg_a_", "eg_c_");
        let relabelled = Handle::parse(relabelled.as_bytes()).unwrap();
        assert_eq!(credentials.verify(&relabelled, NOW), Verified::Unknown);
    }

    #[test]
    fn the_ninth_handle_of_a_kind_drops_the_oldest() {
        let mut credentials = Credentials::default();
        let issued: Vec<Handle> = (0..9).map(|_| handle(HandleKind::AnonymousAccess)).collect();
        for handle in &issued {
            credentials.issue(handle, Scope::Anonymous);
        }
        assert_eq!(credentials.verify(&issued[0], NOW), Verified::Unknown);
        assert_eq!(credentials.verify(&issued[1], NOW), Verified::Valid(Scope::Anonymous));
    }

    #[test]
    fn a_retired_cookie_keeps_anonymous_rights_until_its_end() {
        let mut credentials = Credentials::default();
        let cookie = handle(HandleKind::Cookie);
        credentials.issue(&cookie, Scope::Customer);
        let end = NOW.after(std::time::Duration::from_secs(30));
        credentials.demote_cookies();
        credentials.retire_cookies(end);
        assert_eq!(credentials.verify(&cookie, NOW), Verified::Valid(Scope::Anonymous));
        assert_eq!(credentials.verify(&cookie, end), Verified::Replaced(HandleKind::Cookie));
    }

    #[test]
    fn a_retired_handle_leaves_the_others_alone() {
        let mut credentials = Credentials::default();
        let (old, other) = (handle(HandleKind::CustomerRefresh), handle(HandleKind::CustomerRefresh));
        credentials.issue(&old, Scope::Customer);
        credentials.issue(&other, Scope::Customer);
        credentials.retire(&old, NOW);
        assert_eq!(credentials.verify(&old, NOW), Verified::Replaced(HandleKind::CustomerRefresh));
        assert_eq!(credentials.verify(&other, NOW), Verified::Valid(Scope::Customer));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let handle = handle(HandleKind::CustomerAccess);
        let mut credentials = Credentials::default();
        credentials.issue(&handle, Scope::Customer);
        let shown = format!("{handle:?} {credentials:?}");
        assert!(!shown.contains(&handle.to_text()[5..30]));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Handle::parse(&text);
        }

        #[test]
        fn one_changed_character_makes_a_handle_unknown(position in 5_usize..69, replacement in "[A-Za-z0-9_-]") {
            let original = handle(HandleKind::AnonymousAccess);
            let mut credentials = Credentials::default();
            credentials.issue(&original, Scope::Anonymous);
            let mut text = original.to_text().to_string();
            text.replace_range(position..=position, &replacement);
            prop_assume!(text != *original.to_text());
            if let Some(tampered) = Handle::parse(text.as_bytes()) {
                prop_assert!(tampered.key != KEY || credentials.verify(&tampered, NOW) == Verified::Unknown);
            }
        }
    }
}
