//! The keys that `saas_token` signatures are checked against, by tenant.
//! A key set is fetched when first needed and again for an unknown `kid`, at a bounded rate; a failed fetch keeps the old keys
//! and is soon repeated. One that a file holds is there from the start, and goes with the file's content.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::emporix::read_bounded;
use crate::clock::{Clock, Timestamp};
use crate::config::{NamedFile, SaasAlgorithm, SaasTokenMode, SaasTokenSection, files};
use crate::session::Token;
use crate::session::saas_token::{self, BadToken, Claims, SaasRules, VerifyingKey};

/// Least time between two fetches of one key set.
const FETCH_INTERVAL: Duration = Duration::from_secs(60);

/// The same after the first fetch that failed; twice as long after each further one.
const REPEAT_AFTER: Duration = Duration::from_secs(1);

/// Why a `saas_token` was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// It is not to be believed.
    #[error(transparent)]
    Bad(#[from] BadToken),
    /// The keys cannot be had, so nothing is known of it.
    #[error("the keys cannot be had")]
    NoKeys,
}

/// Checks the `saas_token`s of one tenant.
pub struct SaasVerifier {
    rules: SaasRules,
    keys: Keys,
    clock: Arc<dyn Clock>,
}

enum Keys {
    Unknown,
    Passphrase(DecodingKey),
    Set(KeySet),
}

impl SaasVerifier {
    /// A verifier as `section` describes it; `client` fetches its key set.
    #[must_use]
    pub fn new(section: &SaasTokenSection, client: reqwest::Client, clock: Arc<dyn Clock>) -> Self {
        let keys = match section.mode {
            SaasTokenMode::Structure => Keys::Unknown,
            SaasTokenMode::Hs256 => {
                let secret = section.secret.as_ref().map(|secret| secret.expose().as_bytes()).unwrap_or_default();
                Keys::Passphrase(DecodingKey::from_secret(secret))
            }
            SaasTokenMode::Jwks => Keys::Set(KeySet::new(section, client)),
        };
        Self { rules: SaasRules { algorithms: algorithms(section), leeway: section.leeway }, keys, clock }
    }

    /// Verifies `token` now.
    ///
    /// # Errors
    /// Why it is not believed, or that nothing can be known.
    pub async fn verify(&self, token: &Token) -> Result<Claims, Unverified> {
        let now = self.clock.now();
        match &self.keys {
            Keys::Unknown => Ok(saas_token::verify(token, &VerifyingKey::Unknown, &self.rules, now)?),
            Keys::Passphrase(key) => Ok(saas_token::verify(token, &VerifyingKey::Known(key), &self.rules, now)?),
            Keys::Set(set) => {
                let key_id = saas_token::key_id(token, &self.rules)?;
                let (key, algorithm) = &*set.find(key_id.as_deref(), self.clock.as_ref()).await?;
                let rules = SaasRules { algorithms: vec![*algorithm], leeway: self.rules.leeway };
                Ok(saas_token::verify(token, &VerifyingKey::Known(key), &rules, now)?)
            }
        }
    }
}

fn algorithms(section: &SaasTokenSection) -> Vec<Algorithm> {
    let named: Vec<Algorithm> = section
        .algorithms
        .iter()
        .map(|algorithm| match algorithm {
            SaasAlgorithm::HS256 => Algorithm::HS256,
            SaasAlgorithm::RS256 => Algorithm::RS256,
            SaasAlgorithm::ES256 => Algorithm::ES256,
            SaasAlgorithm::EdDSA => Algorithm::EdDSA,
        })
        .collect();
    match (named.is_empty(), section.mode) {
        (false, _) => named,
        (true, SaasTokenMode::Jwks) => vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA],
        (true, _) => vec![Algorithm::HS256],
    }
}

type KnownKey = Arc<(DecodingKey, Algorithm)>;

enum KeySource {
    File(PathBuf),
    Url(String, reqwest::Client),
}

struct KeySet {
    source: KeySource,
    known: ArcSwap<HashMap<String, KnownKey>>,
    next_fetch: Mutex<NextFetch>,
}

/// When the set may be fetched again.
#[derive(Default)]
struct NextFetch {
    due_at: Timestamp,
    /// Fetches that failed since the last one that did not.
    failures: u32,
}

impl NextFetch {
    fn note(&mut self, succeeded: bool, now: Timestamp) {
        self.failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
        let wait = match self.failures {
            0 => FETCH_INTERVAL,
            failures => (REPEAT_AFTER * 2_u32.pow((failures - 1).min(6))).min(FETCH_INTERVAL),
        };
        self.due_at = now.after(wait);
    }
}

impl KeySet {
    fn new(section: &SaasTokenSection, client: reqwest::Client) -> Self {
        let (source, known) = match (&section.jwks_file, &section.jwks_url) {
            (Some(file), _) => (KeySource::File(file.path().to_owned()), keys_in(file).unwrap_or_default()),
            (None, url) => (KeySource::Url(url.clone().unwrap_or_default(), client), HashMap::default()),
        };
        Self { source, known: ArcSwap::from_pointee(known), next_fetch: Mutex::default() }
    }

    async fn find(&self, key_id: Option<&str>, clock: &dyn Clock) -> Result<KnownKey, Unverified> {
        if let Some(key) = self.known_key(key_id) {
            return Ok(key);
        }
        let mut next_fetch = self.next_fetch.lock().await;
        if let Some(key) = self.known_key(key_id) {
            return Ok(key);
        }
        if clock.now() >= next_fetch.due_at {
            let succeeded = self.fetch().await;
            next_fetch.note(succeeded, clock.now());
        }
        // A set that could not be read last may have it by now.
        let unknown = if next_fetch.failures > 0 { Unverified::NoKeys } else { BadToken::Signature.into() };
        self.known_key(key_id).ok_or(unknown)
    }

    /// The key of this id; a token that names none may use a set's only key.
    fn known_key(&self, key_id: Option<&str>) -> Option<KnownKey> {
        let known = self.known.load();
        match key_id {
            Some(key_id) => known.get(key_id).cloned(),
            None if known.len() == 1 => known.values().next().cloned(),
            None => None,
        }
    }

    /// Fetches the set, and says whether it has keys.
    async fn fetch(&self) -> bool {
        const MOST_BYTES: usize = 256 * 1024;
        let body = match &self.source {
            KeySource::File(file) => {
                let file = file.clone();
                spawn_blocking(move || files::read(&file, files::MOST_KEYS)).await.ok().and_then(Result::ok)
            }
            KeySource::Url(url, client) => match client.get(url).send().await {
                Ok(answer) if answer.status().is_success() => read_bounded(answer, MOST_BYTES).await.ok(),
                _ => None,
            },
        };
        let keys = body.as_deref().and_then(parse_set);
        let succeeded = keys.is_some();
        match keys {
            Some(keys) => self.known.store(Arc::new(keys)),
            None => tracing::warn!("the saas_token key set cannot be read; the known keys stay"),
        }
        succeeded
    }
}

/// Why no key can be had from `file`.
#[must_use]
pub fn fault_of(file: &NamedFile) -> Option<String> {
    keys_in(file).err()
}

fn keys_in(file: &NamedFile) -> Result<HashMap<String, KnownKey>, String> {
    parse_set(file.held()?).ok_or_else(|| "no key in it that can be used".to_owned())
}

/// The usable signature keys of a set, by id, where there are any. A key that is not understood does not spoil the others.
fn parse_set(body: &[u8]) -> Option<HashMap<String, KnownKey>> {
    let set: Value = serde_json::from_slice(body).ok()?;
    let keys = set.get("keys")?.as_array()?.iter().take(64);
    let keys = keys.filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
    let keys: HashMap<_, _> = keys.filter_map(|key| usable(&key)).collect();
    (!keys.is_empty()).then_some(keys)
}

/// A public key for signatures, with the one algorithm of its family. Symmetric keys have no place in a public set.
fn usable(key: &Jwk) -> Option<(String, KnownKey)> {
    let algorithm = match key.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(_) => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
        _ => return None,
    };
    let signs = matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let agrees = key.common.key_algorithm.is_none_or(|named| Algorithm::try_from(named).ok() == Some(algorithm));
    if !signs || !agrees {
        return None;
    }
    let decoding = DecodingKey::try_from(key).ok()?;
    Some((key.common.key_id.clone().unwrap_or_default(), Arc::new((decoding, algorithm))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;
    use crate::clock::ShiftedClock;

    /// The Ed25519 example of RFC 8037, appendix A, as PKCS#8.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    const PUBLIC_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn token(key_id: &str) -> Token {
        let header = Header { kid: Some(key_id.into()), ..Header::new(Algorithm::EdDSA) };
        let claims = json!({"sub": "13869000", "exp": 99_999_999_999_u64});
        let key = EncodingKey::from_ed_pem(PRIVATE.as_bytes()).unwrap();
        Token::parse(&jsonwebtoken::encode(&header, &claims, &key).unwrap()).unwrap()
    }

    fn key(key_id: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": key_id, "x": PUBLIC_X})
    }

    fn verifier(file: &std::path::Path, clock: Arc<ShiftedClock>) -> SaasVerifier {
        let section = SaasTokenSection {
            mode: SaasTokenMode::Jwks,
            jwks_file: Some(file.to_path_buf().into()),
            ..SaasTokenSection::default()
        };
        SaasVerifier::new(&section, super::super::emporix::client(Duration::from_secs(1)).unwrap(), clock)
    }

    fn fetching(url: String, clock: Arc<ShiftedClock>) -> SaasVerifier {
        let section =
            SaasTokenSection { mode: SaasTokenMode::Jwks, jwks_url: Some(url), ..SaasTokenSection::default() };
        SaasVerifier::new(&section, super::super::emporix::client(Duration::from_secs(1)).unwrap(), clock)
    }

    #[tokio::test]
    async fn an_unknown_key_id_fetches_the_set_again_at_a_bounded_rate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.json");
        let clock = Arc::new(ShiftedClock::default());
        let verifier = verifier(&file, clock.clone());
        std::fs::write(&file, json!({"keys": [key("one"), {"kty": "martian"}]}).to_string()).unwrap();
        assert_eq!(verifier.verify(&token("one")).await.unwrap().customer_id, "13869000");
        std::fs::write(&file, json!({"keys": [key("two")]}).to_string()).unwrap();
        assert_eq!(verifier.verify(&token("two")).await, Err(BadToken::Signature.into()));
        clock.advance(FETCH_INTERVAL);
        assert!(verifier.verify(&token("two")).await.is_ok());
    }

    #[tokio::test]
    async fn a_fetch_that_fails_is_soon_repeated_and_takes_no_known_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.json");
        let clock = Arc::new(ShiftedClock::default());
        let verifier = verifier(&file, clock.clone());
        assert_eq!(verifier.verify(&token("one")).await, Err(Unverified::NoKeys));
        std::fs::write(&file, json!({"keys": [key("one")]}).to_string()).unwrap();
        clock.advance(REPEAT_AFTER);
        assert!(verifier.verify(&token("one")).await.is_ok());
        for unreadable in ["<html>", r#"{"keys": []}"#] {
            std::fs::write(&file, unreadable).unwrap();
            clock.advance(FETCH_INTERVAL);
            for _ in 0..2 {
                assert_eq!(
                    verifier.verify(&token("two")).await,
                    Err(Unverified::NoKeys),
                    "{unreadable}: it may be there"
                );
            }
            assert!(verifier.verify(&token("one")).await.is_ok(), "{unreadable}");
        }
        std::fs::write(&file, json!({"keys": [key("two")]}).to_string()).unwrap();
        clock.advance(2 * REPEAT_AFTER);
        assert!(verifier.verify(&token("two")).await.is_ok());
        assert_eq!(verifier.verify(&token("three")).await, Err(BadToken::Signature.into()), "it is known not to be");
    }

    #[test]
    fn fetches_that_fail_are_repeated_ever_more_seldom() {
        let (mut next, now) = (NextFetch::default(), Timestamp::from_seconds(1_000));
        let mut waits = |succeeded| {
            next.note(succeeded, now);
            next.due_at.since(now).as_secs()
        };
        assert_eq!([false; 9].map(&mut waits), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!([true, false].map(waits), [60, 1]);
    }

    #[tokio::test]
    async fn a_slow_fetch_that_fails_is_not_repeated_by_each_who_waited_for_it() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let (clock, asked) = (Arc::new(ShiftedClock::default()), Arc::new(AtomicUsize::new(0)));
        let (slow, count) = (clock.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 4096]).await;
                slow.advance(10 * REPEAT_AFTER);
                let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            }
        });
        let verifier = Arc::new(fetching(url, clock));
        let mut verdicts = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let verifier = verifier.clone();
            verdicts.spawn(async move { verifier.verify(&token("one")).await });
        }
        assert!(verdicts.join_all().await.iter().all(|verdict| *verdict == Err(Unverified::NoKeys)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_set_is_fetched_from_its_address_once_for_many_tokens() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /jwks.json"));
            let body = json!({"keys": [key("one")]}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        });
        let verifier = Arc::new(fetching(url, Arc::default()));
        let mut verdicts = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let verifier = verifier.clone();
            verdicts.spawn(async move { verifier.verify(&token("one")).await });
        }
        assert!(verdicts.join_all().await.iter().all(Result::is_ok));
        server.await.unwrap();
    }

    #[test]
    fn symmetric_and_encryption_keys_of_a_set_are_not_used() {
        let set = json!({"keys": [
            {"kty": "oct", "k": "aHVzaA", "kid": "symmetric", "alg": "HS256"},
            {"kty": "OKP", "crv": "Ed25519", "use": "enc", "kid": "encryption", "x": PUBLIC_X},
            key("good"),
        ]});
        let keys = parse_set(set.to_string().as_bytes()).unwrap();
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["good"]);
    }
}
