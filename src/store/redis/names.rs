//! What things are called in Redis, and how what is no record is written.
//! Keys that one script touches share a hash tag, so that a cluster keeps them on one node.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Timestamp;
use crate::session::{Scope, SessionKey};
use crate::store::{Alias, CustomerName, Intent, LeaseName, NoteName};

/// What the names of all records look like, as `SCAN` matches them.
pub(super) const ANY_SESSION: &str = "eg:{*}:session";

pub(super) fn session_key(key: &SessionKey) -> String {
    format!("eg:{{{}}}:session", key.to_text())
}

/// The session of the record of this name: [`session_key`] read backwards.
pub(super) fn session_in(name: &[u8]) -> Option<SessionKey> {
    let name = std::str::from_utf8(name).ok()?;
    SessionKey::parse(name.strip_prefix("eg:{")?.strip_suffix("}:session")?)
}

pub(super) fn tombstone_key(key: &SessionKey) -> String {
    format!("eg:{{{}}}:tombstone", key.to_text())
}

pub(super) fn lease_keys(lease: &LeaseName) -> [String; 2] {
    let half = match lease.scope {
        Scope::Anonymous => "a",
        Scope::Customer => "c",
    };
    let key = lease.key.to_text();
    [format!("eg:{{{key}}}:lease:{half}"), format!("eg:{{{key}}}:intent:{half}")]
}

pub(super) fn alias_key(alias: &Alias) -> String {
    let hash = URL_SAFE_NO_PAD.encode(alias.hash);
    format!("eg:saas:{{{}:{hash}}}", alias.tenant)
}

pub(super) fn customer_keys(customer: &CustomerName) -> [String; 2] {
    let name = format!("eg:customer:{{{}:{}}}", customer.tenant, customer.hash_text());
    [format!("{name}:epoch"), name]
}

pub(super) fn note_key(name: &NoteName) -> String {
    let hash = URL_SAFE_NO_PAD.encode(name.hash);
    format!("eg:note:{{{}:{}:{hash}}}", name.tenant, name.kind.text())
}

/// As Redis takes durations; one of nothing would be refused.
pub(super) fn millis(duration: Duration) -> String {
    duration.as_millis().clamp(1, i64::MAX as u128).to_string()
}

impl Intent {
    pub(super) fn to_wire(self) -> String {
        format!("{}:{}:{}", self.generation, self.started_at.millis(), self.recoveries)
    }

    pub(super) fn from_wire(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, ':').map(str::parse::<u64>);
        Some(Self {
            generation: numbers.next()?.ok()?,
            started_at: Timestamp::from_millis(numbers.next()?.ok()?),
            recoveries: u8::try_from(numbers.next()?.ok()?).ok()?,
        })
    }
}
