//! The configuration's shape where sessions live: the store, Redis and its keys, and the hot cache.
//! The doc comment of a field is its manual, as in `sections.rs`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::files::NamedFile;
use super::secret::Secret;
use super::span::{self, Span};

/// Where sessions live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSection {
    /// Which store.
    pub kind: StoreKind,
    /// The embedded store.
    pub memory: MemorySection,
    /// The Redis store.
    pub redis: RedisSection,
    /// Keys that seal records; needed by the Redis store.
    pub seal: SealSection,
}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// In this process: one replica, sessions end with it.
    #[default]
    Memory,
    /// In Redis.
    Redis,
}

/// The embedded store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// Sessions kept at most; a new one over that is a 503.
    pub max_sessions: usize,
}

impl Default for MemorySection {
    fn default() -> Self {
        Self { max_sessions: 200_000 }
    }
}

/// The Redis store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSection {
    /// How Redis is deployed.
    pub topology: RedisTopology,
    /// `redis://` or `rediss://` address of the one server of `standalone`; or `url_file`.
    pub url: Option<Secret>,
    /// Addresses, without credentials, of the Sentinels of `sentinel` or of some nodes of `cluster`.
    pub nodes: Vec<String>,
    /// What Sentinel is asked, and how.
    pub sentinel: SentinelSection,
    /// ACL user, where the address names none.
    pub username: Option<String>,
    /// Its password; or `password_file`.
    pub password: Option<Secret>,
    /// PEM file with the certificates that `rediss://` trusts, in place of the system's.
    pub ca_file: Option<NamedFile>,
    /// Bound on connecting.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub connect_timeout: Duration,
    /// Bound on one command.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub response_timeout: Duration,
    /// How long a session, its end or the intent to renew it waits for a replica of Redis to have it too, where there
    /// is one; not at all when 0.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub replica_timeout: Duration,
}

impl Default for RedisSection {
    fn default() -> Self {
        Self {
            topology: RedisTopology::default(),
            url: None,
            nodes: Vec::new(),
            sentinel: SentinelSection::default(),
            username: None,
            password: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(200),
            replica_timeout: Duration::from_millis(100),
        }
    }
}

impl RedisSection {
    /// The same without what proves who asks, and who answers.
    #[must_use]
    pub fn without_credentials(&self) -> Self {
        let service = self.sentinel.service.clone();
        Self {
            url: self.url.as_ref().map(|url| Secret::new(anonymous(url.expose()))),
            username: None,
            password: None,
            ca_file: None,
            sentinel: SentinelSection { service, ..SentinelSection::default() },
            ..self.clone()
        }
    }

    /// Where it is, without what proves who asks.
    #[must_use]
    pub fn place(&self) -> String {
        match (self.topology, &self.url) {
            (RedisTopology::Standalone, Some(url)) => {
                let end = url.expose().find(['?', '#']).unwrap_or_else(|| url.expose().len());
                anonymous(&url.expose()[..end])
            }
            _ => self.nodes.join(", "),
        }
    }

    /// Whether both show and want the same as proof of who asks and who answers, wherever they ask.
    #[must_use]
    pub fn shows_the_same_as(&self, other: &Self) -> bool {
        let shown = |section: &Self| {
            let in_url = section.url.as_ref().and_then(|url| user_of(url.expose()).map(Secret::new));
            let Self { username, password, ca_file, sentinel, .. } = section.clone();
            (in_url, username, password, ca_file, sentinel.username, sentinel.password)
        };
        shown(self) == shown(other)
    }
}

/// The address without user and password.
fn anonymous(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
}

/// User and password of the address.
fn user_of(url: &str) -> Option<&str> {
    let (user, _) = url.split_once("://")?.1.rsplit_once('@')?;
    Some(user)
}

/// How Redis is deployed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RedisTopology {
    /// One server, or one name that always leads to the primary.
    #[default]
    Standalone,
    /// The primary that Sentinel names.
    Sentinel,
    /// A cluster.
    Cluster,
}

/// What Sentinel is asked, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SentinelSection {
    /// The name under which Sentinel watches the primary.
    pub service: String,
    /// ACL user of the Sentinels themselves.
    pub username: Option<String>,
    /// Its password; or `password_file`.
    pub password: Option<Secret>,
}

/// Keys that seal records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SealSection {
    /// The id of the key that seals.
    pub active: String,
    /// The keys that open.
    pub keys: Vec<SealKeySection>,
}

/// One sealing key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SealKeySection {
    /// Its id, 1 to 16 letters, digits, dots and dashes; records carry it.
    pub id: String,
    /// 32 bytes in base64; or `secret_file`.
    pub secret: Option<Secret>,
}

/// Sessions kept in memory, ready to inject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HotCacheSection {
    /// Memory bound, in bytes.
    pub max_bytes: u64,
    /// A session older than this is read again from the store.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub revalidate_after: Duration,
    /// The same while other replicas' invalidations cannot be heard.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub revocation_staleness: Duration,
    /// How long a session is served after its last verification while the store cannot answer.
    #[serde(with = "span")]
    #[schemars(with = "Span")]
    pub hot_grace: Duration,
}

impl Default for HotCacheSection {
    fn default() -> Self {
        Self {
            max_bytes: 512 * 1024 * 1024,
            revalidate_after: Duration::from_secs(30),
            revocation_staleness: Duration::from_secs(5),
            hot_grace: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_no_part_of_where_redis_is() {
        let place = |url: &str, password: &str| {
            let sentinel =
                SentinelSection { service: "shop".into(), password: Some(Secret::new(password)), username: None };
            let (url, password) = (Some(Secret::new(url)), Some(Secret::new(password)));
            RedisSection { url, password, sentinel, username: Some("me".into()), ..RedisSection::default() }
                .without_credentials()
        };
        let known = place("redis://redis.example.com:6379/1", "a");
        assert_eq!(known, place("redis://me:p%40ss@redis.example.com:6379/1", "b"));
        assert_eq!(known, place("redis://:p@ss@redis.example.com:6379/1", "b"));
        assert_ne!(known, place("rediss://redis.example.com:6379/1", "a"));
        assert_ne!(known, place("redis://me@redis.example.net:6379/1", "a"));
        assert_ne!(known, place("nonsense", "a"));
        assert_ne!(known, RedisSection { connect_timeout: Duration::ZERO, ..known.clone() });
    }
    #[test]
    fn credentials_are_the_same_wherever_they_are_shown() {
        let shown = |url: &str, password: &str| RedisSection {
            url: Some(Secret::new(url)),
            password: Some(Secret::new(password)),
            ..RedisSection::default()
        };
        let known = shown("redis://me:p@ss@redis.example.com:6379", "a");
        assert!(known.shows_the_same_as(&shown("rediss://me:p@ss@redis.example.net:6380/1", "a")));
        assert!(!known.shows_the_same_as(&shown("redis://me:pass@redis.example.com:6379", "a")));
        assert!(!known.shows_the_same_as(&shown("redis://redis.example.com:6379", "a")));
        assert!(!known.shows_the_same_as(&shown("redis://me:p@ss@redis.example.com:6379", "b")));
        let sentinel = SentinelSection { password: Some(Secret::new("b")), ..SentinelSection::default() };
        assert!(!known.shows_the_same_as(&RedisSection { sentinel, ..known.clone() }));
    }
}
