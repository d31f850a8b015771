//! Sessions as a login would have left them, put into Redis by the gateway's own store.
//! Tokens are random; the JWT is signed, for a client may present it.

use std::io::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

use emporix_gateway::clock::{Clock, SystemClock, Timestamp};
use emporix_gateway::config::Config;
use emporix_gateway::session::{
    CustomerHalf, Handle, HandleKind, LifeLimits, SaasToken, Scope, Session, SessionKey, TenantId, Token, TokenSet,
    Transport,
};
use emporix_gateway::store::redis::RedisStore;
use emporix_gateway::store::seal::Keyring;
use emporix_gateway::store::{Alias, Collision, CustomerName, SessionStore};
use emporix_gateway::telemetry::Metrics;
use futures_util::{StreamExt, TryStreamExt, stream};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

/// The tenant's passphrase.
pub(crate) const PASSPHRASE: &str = "simulator-passphrase";

const DAY: Duration = Duration::from_secs(86_400);
const LIMITS: LifeLimits = LifeLimits {
    visitor_idle: DAY.saturating_mul(7),
    customer_idle: DAY.saturating_mul(30),
    absolute: DAY.saturating_mul(90),
    refresh_margin: 0.25,
};

/// How a client holds its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// One cookie.
    Cookie,
    /// A handle in `Authorization`.
    Handle,
    /// The JWT itself, in `Authorization`.
    SaasToken,
}

/// A session, and what its client and its API see of it.
pub(crate) struct Minted {
    /// The client's header.
    pub(crate) presented: (String, String),
    /// The token that the gateway injects.
    pub(crate) access: String,
    /// The JWT that the gateway injects.
    pub(crate) jwt: String,
    session: Session,
}

impl Minted {
    /// The cookie's value, where the client holds a cookie.
    pub(crate) fn cookie(&self) -> &str {
        self.presented.1.strip_prefix("emporix-session=").unwrap_or_default()
    }

    /// What a client sends that brings both tokens itself.
    pub(crate) fn tokens(&self) -> [(String, String); 2] {
        [("Authorization".to_owned(), format!("Bearer {}", self.access)), ("saas-token".to_owned(), self.jwt.clone())]
    }
}

/// Mints a session whose access token has `token_bytes`, and its JWT that many and 300.
pub(crate) fn mint(holds: Holds, token_bytes: usize) -> Minted {
    let key = SessionKey::random().expect("random bytes");
    let now = SystemClock.now();
    let transport = if holds == Holds::Cookie { Transport::Cookie } else { Transport::Handle };
    let kind = if holds == Holds::Cookie { HandleKind::Cookie } else { HandleKind::CustomerAccess };
    let handle = Handle::random(kind, key).expect("random bytes");
    let (access, jwt) = (random_text(token_bytes), signed_jwt(token_bytes, now));
    let mut session = Session::new(key, tenant(), transport, now, &LIMITS);
    let half = CustomerHalf {
        tokens: TokenSet {
            access: token(&access),
            access_expires_at: now.after(DAY),
            refresh: Some(token(&random_text(32))),
            refresh_expires_at: now.after(30 * DAY),
            issued_at: now,
            saas: Some(SaasToken { token: token(&jwt), expires_at: now.after(30 * DAY) }),
        },
        session_id: Some("6d4d4d5e-04b9-40c5-9074-4df1405c6081".to_owned()),
        customer_id: "C0123456789".to_owned(),
        legal_entity_id: None,
        signed_in_at: now,
    };
    session.upgrade(half, now, &LIMITS);
    session.credentials.issue(&handle, Scope::Customer);
    let presented = match holds {
        Holds::Cookie => ("Cookie".to_owned(), format!("emporix-session={}", *handle.to_text())),
        Holds::Handle => ("Authorization".to_owned(), format!("Bearer {}", *handle.to_text())),
        Holds::SaasToken => ("Authorization".to_owned(), format!("Bearer {jwt}")),
    };
    Minted { presented, access, jwt, session }
}

/// What Redis keeps of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Record,
    /// By which its JWT finds it.
    Alias,
    /// By which its customer's sessions are found, who here has one.
    Index,
}

/// Saves these parts of sessions where a gateway of this configuration looks for them.
pub(crate) async fn save(config: &Config, sessions: &[Minted], parts: &[Part]) -> Result<()> {
    let keyring = Keyring::new(&config.store.seal).ok_or_else(|| Error::other("no key seals records"))?;
    let (clock, metrics) = (Arc::new(SystemClock), Arc::new(Metrics::new().map_err(Error::other)?));
    let store = RedisStore::new(&config.store.redis, keyring, clock, metrics).map_err(Error::other)?;
    let saving = stream::iter(sessions.iter().enumerate()).map(Ok).try_for_each_concurrent(64, |(place, minted)| {
        let store = &store;
        async move {
            for part in parts {
                save_part(store, place, minted, *part).await?;
            }
            Ok(())
        }
    });
    tokio::select! {
        () = store.tend() => Err(Error::other("the store stopped")),
        saved = async {
            while store.ping().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            saving.await
        } => saved,
    }
}

async fn save_part(store: &RedisStore, place: usize, minted: &Minted, part: Part) -> Result<()> {
    let session = &minted.session;
    let saved = match part {
        Part::Record => store.save(session, 30 * DAY).await.map(drop),
        Part::Alias => {
            let alias = Alias::of(session.tenant, minted.jwt.as_bytes());
            store.link(&alias, &session.key, Collision::Disable, 30 * DAY).await.map(drop)
        }
        Part::Index => {
            let customer = CustomerName::of(session.tenant, &format!("C{place:010}"));
            store.index(&customer, &session.key, 30 * DAY).await.map(drop)
        }
    };
    saved.map_err(Error::other)
}

fn tenant() -> TenantId {
    TenantId::parse("acme").expect("a tenant's name")
}

fn token(text: &str) -> Token {
    Token::parse(text).expect("visible characters")
}

fn random_text(length: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect()
}

/// About 300 bytes and 4/3 of `padding`.
fn signed_jwt(padding: usize, now: Timestamp) -> String {
    let claims = json!({
        "iss": "emporix", "sub": "C0123456789", "tenant": "acme", "iat": now.seconds(),
        "exp": now.after(30 * DAY).seconds(), "jti": random_text(36), "x": random_text(padding),
    });
    let key = EncodingKey::from_secret(PASSPHRASE.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).expect("plain claims and an HMAC key")
}
