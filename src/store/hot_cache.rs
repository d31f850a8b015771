//! Recently used sessions in memory, ready to inject.
//! An entry disappears when any replica says so, and nothing that was read before such a word is kept after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::session::{ReadySession, SessionKey};

/// Sessions in memory, bounded in bytes.
pub struct HotCache {
    entries: Cache<SessionKey, Arc<ReadySession>>,
    epochs: Vec<AtomicU64>,
}

/// Taken before a session is read or written, shown when it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

impl HotCache {
    const EPOCHS: usize = 4096;

    /// An empty cache of about `max_bytes`; entries are dropped `longest_life` after they were kept.
    #[must_use]
    pub fn new(max_bytes: u64, longest_life: Duration) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, session: &Arc<ReadySession>| session.weight())
            .time_to_live(longest_life)
            .build();
        Self { entries, epochs: (0..Self::EPOCHS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The session, if it is here and live.
    #[must_use]
    pub fn get(&self, key: &SessionKey) -> Option<Arc<ReadySession>> {
        self.entries.get(key).filter(|session| session.is_live())
    }

    /// Begins a read or a write of `key`.
    #[must_use]
    pub fn begin(&self, key: &SessionKey) -> Ticket {
        Ticket(self.epoch(key).load(Ordering::Acquire))
    }

    /// Keeps what was read, unless the session changed since the read began.
    pub fn keep_read(&self, ticket: Ticket, session: &Arc<ReadySession>) {
        let key = session.key;
        self.entries.insert(key, session.clone());
        if self.epoch(&key).load(Ordering::Acquire) != ticket.0 {
            session.end();
            self.entries.invalidate(&key);
        }
    }

    /// Keeps what was written in the place of what was known, unless the session changed since the write began.
    pub fn keep_written(&self, ticket: Ticket, session: &Arc<ReadySession>) {
        let key = session.key;
        let unchanged =
            self.epoch(&key).compare_exchange(ticket.0, ticket.0 + 1, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if unchanged {
            self.end_entry(&key);
            self.keep_read(Ticket(ticket.0 + 1), session);
        } else {
            self.forget(&key);
        }
    }

    /// Drops the session, for everyone who holds it too.
    pub fn forget(&self, key: &SessionKey) {
        self.epoch(key).fetch_add(1, Ordering::AcqRel);
        self.end_entry(key);
        self.entries.invalidate(key);
    }

    /// The store may hold another session of this key by now; what is known serves only where it cannot be asked.
    pub fn doubt(&self, key: &SessionKey) {
        self.epoch(key).fetch_add(1, Ordering::AcqRel);
        if let Some(known) = self.entries.get(key) {
            known.doubt();
        }
    }

    /// Sessions and bytes kept, as estimated.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        (self.entries.entry_count(), self.entries.weighted_size())
    }

    fn end_entry(&self, key: &SessionKey) {
        if let Some(known) = self.entries.get(key) {
            known.end();
        }
    }

    fn epoch(&self, key: &SessionKey) -> &AtomicU64 {
        let bytes = key.as_bytes();
        &self.epochs[usize::from(u16::from_be_bytes([bytes[14], bytes[15]])) % Self::EPOCHS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::session::tests::{LIMITS, visitor};

    const KEY: SessionKey = SessionKey::from_bytes([3; 16]);

    fn cache() -> HotCache {
        HotCache::new(1 << 20, Duration::from_secs(60))
    }

    fn ready() -> Arc<ReadySession> {
        let now = Timestamp::from_seconds(1_000);
        Arc::new(ReadySession::of(&visitor(KEY, now), now, &LIMITS))
    }

    #[test]
    fn what_was_read_before_an_invalidation_is_not_kept_after_it() {
        let cache = cache();
        let ticket = cache.begin(&KEY);
        cache.forget(&KEY);
        cache.keep_read(ticket, &ready());
        assert!(cache.get(&KEY).is_none());
    }

    #[test]
    fn of_two_writes_at_once_neither_is_trusted() {
        let cache = cache();
        let (first, second) = (cache.begin(&KEY), cache.begin(&KEY));
        cache.keep_written(second, &ready());
        cache.keep_written(first, &ready());
        assert!(cache.get(&KEY).is_none());
    }

    #[test]
    fn a_forgotten_session_is_over_for_those_who_hold_it() {
        let cache = cache();
        let held = ready();
        cache.keep_read(cache.begin(&KEY), &held);
        cache.forget(&KEY);
        assert!(!held.is_live());
    }
}
