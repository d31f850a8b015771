//! Seals records before they leave the process: AES-256-GCM under a keyring.
//! A record opens only under the session key, tenant and format it was sealed for; keys that are no longer active still open.
//!
//! Layout: revision (8 bytes, big-endian) ‖ format (1) ‖ key id (1 + n) ‖ tenant (1 + n) ‖ nonce (12) ‖ ciphertext and tag.
//! The revision stands in clear and outside the seal: the store's scripts compare it.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::StoreError;
use crate::config::SealSection;
use crate::session::{LabelKeys, Session, SessionKey, TenantId};

/// Bytes of the revision at the head of a record.
pub const REVISION_LENGTH: usize = 8;

/// Bytes at the head of a record in which the tenant stands, whatever the names' lengths: each has 16 at most.
pub const HEAD_LENGTH: usize = REVISION_LENGTH + 1 + 17 + 17;

/// The record format that is written.
const FORMAT: u8 = 1;

/// The keys that seal and open.
pub struct Keyring {
    active: String,
    keys: HashMap<String, LessSafeKey>,
    labels: LabelKeys,
}

impl Keyring {
    /// The keyring that `section` describes; none when a key is not 32 bytes of base64 or the active one is missing.
    #[must_use]
    pub fn new(section: &SealSection) -> Option<Self> {
        let mut keys = HashMap::new();
        let mut secrets = HashMap::new();
        for key in &section.keys {
            let bytes = Zeroizing::new(STANDARD.decode(key.secret.as_ref()?.expose()).ok()?);
            keys.insert(key.id.clone(), LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?));
            secrets.insert(key.id.as_str(), bytes);
        }
        let active = secrets.remove(section.active.as_str())?;
        let labels = LabelKeys::derived(&active, secrets.values().map(|secret| secret.as_slice()));
        Some(Self { active: section.active.clone(), keys, labels })
    }

    /// What labels are made with: derived from the keys, so that all who share them show the same.
    #[must_use]
    pub const fn labels(&self) -> &LabelKeys {
        &self.labels
    }

    /// `session` as a record of revision `revision`.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn seal(&self, session: &Session, revision: u64) -> Result<Vec<u8>, StoreError> {
        const FAILED: StoreError = StoreError::Unreadable("cannot be sealed");
        let key = self.keys.get(&self.active).ok_or(FAILED)?;
        let tenant = session.tenant.as_str();
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| FAILED)?;
        let mut sealed = minicbor::to_vec(session).map_err(|_| FAILED)?;
        let aad = Aad::from(bound_to(tenant, &session.key, FORMAT));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).map_err(|_| FAILED)?;

        let mut record =
            Vec::with_capacity(REVISION_LENGTH + 3 + self.active.len() + tenant.len() + NONCE_LEN + sealed.len());
        record.extend_from_slice(&revision.to_be_bytes());
        record.push(FORMAT);
        for name in [self.active.as_str(), tenant] {
            record.push(u8::try_from(name.len()).map_err(|_| FAILED)?);
            record.extend_from_slice(name.as_bytes());
        }
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    /// Whether `record` is sealed under the active key.
    #[must_use]
    pub fn is_active(&self, record: &[u8]) -> bool {
        let sealed_under = record.get(REVISION_LENGTH + 1..).and_then(split_name);
        sealed_under.is_some_and(|(key_id, _)| key_id == self.active)
    }

    /// The session of `record`, which was found under `key`.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] when it was not sealed here for this key, or is damaged.
    pub fn open(&self, key: &SessionKey, record: &[u8]) -> Result<Session, StoreError> {
        const DAMAGED: StoreError = StoreError::Unreadable("damaged");
        let (revision, rest) = record.split_first_chunk::<REVISION_LENGTH>().ok_or(DAMAGED)?;
        let (format, rest) = rest.split_first().ok_or(DAMAGED)?;
        if *format != FORMAT {
            return Err(StoreError::Unreadable("of another format"));
        }
        let (key_id, rest) = split_name(rest).ok_or(DAMAGED)?;
        let (tenant, rest) = split_name(rest).ok_or(DAMAGED)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(DAMAGED)?;
        let opener = self.keys.get(key_id).ok_or(StoreError::Unreadable("sealed with an unknown key"))?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let aad = Aad::from(bound_to(tenant, key, *format));
        let opened = opener
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut sealed)
            .map_err(|_| StoreError::Unreadable("not sealed for this session"))?;
        let session: Session = minicbor::decode(opened).map_err(|_| DAMAGED)?;
        Ok(Session { revision: u64::from_be_bytes(*revision), ..session })
    }
}

/// The tenant that stands in the head of a record; what the head says is not proven before the record is opened.
#[must_use]
pub fn tenant_of(head: &[u8]) -> Option<TenantId> {
    let (_, rest) = head.split_at_checked(REVISION_LENGTH)?;
    let (format, rest) = rest.split_first()?;
    let (_, rest) = split_name(rest).filter(|_| *format == FORMAT)?;
    TenantId::parse(split_name(rest)?.0)
}

fn bound_to(tenant: &str, key: &SessionKey, format: u8) -> Vec<u8> {
    let mut aad = Vec::with_capacity(tenant.len() + SessionKey::LENGTH + 2);
    aad.push(format);
    aad.extend_from_slice(key.as_bytes());
    aad.extend_from_slice(tenant.as_bytes());
    aad
}

fn split_name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(name).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::{SealKeySection, Secret};
    use crate::session::tests::{LIMITS, customer_half, visitor};
    use crate::session::{Handle, SaasToken, Scope, SiteContext, Token};

    /// [`everything`] as the first release sealed it, under the key `old`. It stays as it is.
    const FORMAT_1: &str = include_str!("records/format-1.base64");
    const HANDLE: &str = "eg_c_BwcHBwcHBwcHBwcHBwcHBwkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJ";

    fn keyring(active: &str, ids: &[&str]) -> Keyring {
        let key = |id: &&str| {
            let mut bytes = [0_u8; 32];
            bytes[..id.len()].copy_from_slice(id.as_bytes());
            SealKeySection { id: (*id).to_owned(), secret: Some(Secret::new(STANDARD.encode(bytes))) }
        };
        Keyring::new(&SealSection { active: active.into(), keys: ids.iter().map(key).collect() }).unwrap()
    }

    fn session(byte: u8) -> Session {
        visitor(SessionKey::from_bytes([byte; 16]), Timestamp::from_seconds(1_000))
    }

    /// A customer's session with all that a record can hold.
    fn everything() -> Session {
        let now = Timestamp::from_seconds(1_000);
        let mut session = session(7);
        let text = |text: &str| Some(text.to_owned());
        session.anonymous.as_mut().unwrap().context = SiteContext {
            currency: text("EUR"),
            site_code: text("main"),
            language: text("de"),
            target_location: text("DE"),
        };
        let mut customer = customer_half(now);
        customer.legal_entity_id = text("entity-1");
        customer.tokens.saas = Token::parse("a.saas.token").map(|token| SaasToken { token, expires_at: now });
        session.upgrade(customer, now, &LIMITS);
        session.credentials.issue(&Handle::parse(HANDLE.as_bytes()).unwrap(), Scope::Customer);
        session
    }

    #[test]
    fn a_record_of_the_first_release_opens_as_what_it_was() {
        let record = STANDARD.decode(FORMAT_1.replace('\n', "")).unwrap();
        let opened = keyring("new", &["new", "old"]).open(&SessionKey::from_bytes([7; 16]), &record).unwrap();
        assert_eq!(opened.revision, 3);
        let written = |session| minicbor::to_vec(session).unwrap();
        assert_eq!(written(Session { revision: 0, ..opened }), written(everything()));
    }

    #[test]
    fn a_record_opens_under_its_own_key_only() {
        let ring = keyring("new", &["new"]);
        let session = session(1);
        let record = ring.seal(&session, 7).unwrap();
        assert_eq!(ring.open(&session.key, &record).unwrap().revision, 7);
        assert!(ring.open(&SessionKey::from_bytes([2; 16]), &record).is_err());
    }

    #[test]
    fn a_key_that_is_no_longer_active_still_opens() {
        let session = session(1);
        let record = keyring("old", &["old"]).seal(&session, 1).unwrap();
        let both = keyring("new", &["new", "old"]);
        assert!(both.open(&session.key, &record).is_ok() && !both.is_active(&record));
        assert!(both.is_active(&both.seal(&session, 1).unwrap()));
        assert_eq!(
            keyring("new", &["new"]).open(&session.key, &record).unwrap_err(),
            StoreError::Unreadable("sealed with an unknown key")
        );
    }

    #[test]
    fn damage_is_an_error_wherever_it_strikes() {
        let ring = keyring("k", &["k"]);
        let session = session(1);
        let record = ring.seal(&session, 1).unwrap();
        for length in 0..record.len() {
            assert!(ring.open(&session.key, &record[..length]).is_err(), "{length}");
        }
        for position in REVISION_LENGTH..record.len() {
            let mut damaged = record.clone();
            damaged[position] ^= 1;
            assert!(ring.open(&session.key, &damaged).is_err(), "{position}");
        }
    }

    #[test]
    fn the_head_of_a_record_tells_its_tenant_however_long_the_names_are() {
        let longest = "k".repeat(16);
        let ring = keyring(&longest, &[&longest]);
        let tenant = TenantId::parse(&"t".repeat(16)).unwrap();
        let record = ring.seal(&Session { tenant, ..session(1) }, 1).unwrap();
        assert_eq!(tenant_of(&record[..HEAD_LENGTH]), Some(tenant));
        for length in 0..HEAD_LENGTH {
            assert_eq!(tenant_of(&record[..length]), None, "{length}");
        }
    }

    #[test]
    fn every_key_of_the_ring_recognises_its_labels() {
        let key = SessionKey::from_bytes([1; 16]);
        let old = keyring("old", &["old"]).labels().session(&key);
        let ring = keyring("new", &["new", "old"]);
        assert_ne!(ring.labels().session(&key), old);
        assert!(ring.labels().recognise(old, &key));
        assert_eq!(ring.labels().session(&key), keyring("new", &["new"]).labels().session(&key));
    }

    #[test]
    fn no_token_stands_in_a_record() {
        let record = keyring("k", &["k"]).seal(&session(1), 1).unwrap();
        let token = b"guest-access";
        assert!(!record.windows(token.len()).any(|window| window == token));
    }
}
