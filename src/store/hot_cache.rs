//! Recently used sessions in memory, ready to inject.
//! An entry disappears when any replica says so, and nothing that was read before such a word is kept after it.
//! What a thread uses again and again it finds without touching anything that other threads write.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use thread_local::ThreadLocal;

use crate::session::{ReadySession, SessionKey};

/// Sessions in memory, bounded in bytes.
pub struct HotCache {
    entries: Cache<SessionKey, Arc<ReadySession>>,
    stripes: Vec<Stripe>,
    nearby: ThreadLocal<RefCell<Vec<Place>>>,
}

/// What happened to a share of the keys.
#[derive(Default)]
struct Stripe {
    /// Counts the words that ended what was known.
    epoch: AtomicU64,
    /// Raised whenever what is known has changed, and always after that: whoever reads it first and the session then, or
    /// finds it as it was, has the session that is known.
    version: AtomicU64,
}

/// A place for a session that a thread uses again and again.
#[derive(Clone, Default)]
struct Place {
    /// The key that was asked for last. Only one that is asked for twice in a row moves in: a thread that sees every
    /// session once is not slowed down by the moves.
    asked: Option<SessionKey>,
    resident: Option<Resident>,
    /// How often a resident was found here.
    found: u8,
}

#[derive(Clone)]
struct Resident {
    session: Arc<ReadySession>,
    /// Its stripe's version before it was looked up.
    version: u64,
}

/// Taken before a session is read or written, shown when it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

impl HotCache {
    const STRIPES: usize = 4096;
    /// Places of one thread.
    const PLACES: usize = 1024;
    /// One in so many uses nearby is a use of the shared cache too, which would forget what nobody asks it for.
    const PRESENTED: u8 = 64;

    /// An empty cache of about `max_bytes`; entries are dropped `longest_life` after they were kept.
    #[must_use]
    pub fn new(max_bytes: u64, longest_life: Duration) -> Self {
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, session: &Arc<ReadySession>| session.weight())
            .time_to_live(longest_life)
            .build();
        let stripes = (0..Self::STRIPES).map(|_| Stripe::default()).collect();
        Self { entries, stripes, nearby: ThreadLocal::new() }
    }

    /// The session, if it is here, live and `good`: the hot path.
    #[must_use]
    pub fn get(&self, key: &SessionKey, good: impl Fn(&ReadySession) -> bool) -> Option<Arc<ReadySession>> {
        let places = self.nearby.get_or(|| RefCell::new(vec![Place::default(); Self::PLACES]));
        // Nothing below comes back here: the borrow ends with this function, and no other thread has one.
        let mut places = places.try_borrow_mut().ok()?;
        let place = &mut places[Self::share_of(key) % Self::PLACES];
        let version = self.stripe(key).version.load(Ordering::Acquire);
        if let Some(resident) = place.resident.as_ref().filter(|resident| resident.session.key == *key) {
            place.found = place.found.wrapping_add(1);
            let known = resident.version == version && resident.session.is_live();
            if known && good(&resident.session) && place.found % Self::PRESENTED != 0 {
                return Some(resident.session.clone());
            }
            place.resident = None;
        }
        let session = self.peek(key).filter(|session| good(session))?;
        if place.asked.replace(*key) == Some(*key) {
            place.resident = Some(Resident { session: session.clone(), version });
        }
        Some(session)
    }

    /// The session, if it is here and live.
    #[must_use]
    pub fn peek(&self, key: &SessionKey) -> Option<Arc<ReadySession>> {
        self.entries.get(key).filter(|session| session.is_live())
    }

    /// Begins a read or a write of `key`.
    #[must_use]
    pub fn begin(&self, key: &SessionKey) -> Ticket {
        Ticket(self.stripe(key).epoch.load(Ordering::Acquire))
    }

    /// Keeps what was read, unless the session changed since the read began.
    pub fn keep_read(&self, ticket: Ticket, session: &Arc<ReadySession>) {
        let key = session.key;
        self.entries.insert(key, session.clone());
        self.stripe(&key).version.fetch_add(1, Ordering::AcqRel);
        if self.stripe(&key).epoch.load(Ordering::Acquire) != ticket.0 {
            session.end();
            self.entries.invalidate(&key);
        }
    }

    /// Keeps what was written in the place of what was known, unless the session changed since the write began.
    pub fn keep_written(&self, ticket: Ticket, session: &Arc<ReadySession>) {
        let key = session.key;
        let epoch = &self.stripe(&key).epoch;
        if epoch.compare_exchange(ticket.0, ticket.0 + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.end_entry(&key);
            self.keep_read(Ticket(ticket.0 + 1), session);
        } else {
            self.forget(&key);
        }
    }

    /// Drops the session: it is found nowhere any more, and over for those who hold what is shared of it.
    pub fn forget(&self, key: &SessionKey) {
        let stripe = self.stripe(key);
        stripe.epoch.fetch_add(1, Ordering::AcqRel);
        self.end_entry(key);
        self.entries.invalidate(key);
        stripe.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The store may hold another session of this key by now; what is known serves only where it cannot be asked.
    pub fn doubt(&self, key: &SessionKey) {
        let stripe = self.stripe(key);
        stripe.epoch.fetch_add(1, Ordering::AcqRel);
        if let Some(known) = self.entries.get(key) {
            known.doubt();
        }
        stripe.version.fetch_add(1, Ordering::AcqRel);
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

    fn stripe(&self, key: &SessionKey) -> &Stripe {
        &self.stripes[Self::share_of(key) % Self::STRIPES]
    }

    /// Keys are random: two of their bytes spread them.
    fn share_of(key: &SessionKey) -> usize {
        let bytes = key.as_bytes();
        usize::from(u16::from_be_bytes([bytes[14], bytes[15]]))
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
        assert!(cache.peek(&KEY).is_none());
    }

    #[test]
    fn of_two_writes_at_once_neither_is_trusted() {
        let cache = cache();
        let (first, second) = (cache.begin(&KEY), cache.begin(&KEY));
        cache.keep_written(second, &ready());
        cache.keep_written(first, &ready());
        assert!(cache.peek(&KEY).is_none());
    }

    #[test]
    fn what_a_thread_has_nearby_ends_with_the_word_that_ends_it() {
        let any = |_: &ReadySession| true;
        for end in [HotCache::forget, HotCache::doubt] {
            let (cache, held) = (cache(), ready());
            cache.keep_read(cache.begin(&KEY), &held);
            for _ in 0..3 {
                assert!(cache.get(&KEY, any).is_some());
            }
            // Not even the cache itself can name it any more, as when it had no room for it.
            cache.entries.invalidate(&KEY);
            assert!(cache.get(&KEY, any).is_some(), "it is nearby");
            end(&cache, &KEY);
            assert!(held.is_live(), "nobody could tell the entry itself");
            assert!(cache.get(&KEY, any).is_none());
        }
    }

    #[test]
    fn the_shared_cache_hears_of_what_is_used_nearby_and_a_place_of_what_is_over() {
        let (cache, held) = (cache(), ready());
        cache.keep_read(cache.begin(&KEY), &held);
        for _ in 0..3 {
            assert!(cache.get(&KEY, |_| true).is_some());
        }
        cache.entries.invalidate(&KEY);
        let uses = (0..1_000).take_while(|_| cache.get(&KEY, |_| true).is_some()).count();
        assert!((1..=64).contains(&uses), "{uses} uses were all nearby");

        cache.keep_read(cache.begin(&KEY), &held);
        for _ in 0..3 {
            assert!(cache.get(&KEY, |_| true).is_some());
        }
        cache.forget(&KEY);
        assert!(cache.get(&KEY, |_| true).is_none());
        let places = cache.nearby.get().unwrap().borrow();
        assert!(places.iter().all(|place| place.resident.is_none()), "no place holds its tokens");
    }

    #[test]
    fn what_a_thread_has_nearby_gives_way_to_what_is_kept_anew() {
        let (cache, old) = (cache(), ready());
        cache.keep_read(cache.begin(&KEY), &old);
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&cache.get(&KEY, |_| true).unwrap(), &old));
        }
        let new = ready();
        cache.keep_read(cache.begin(&KEY), &new);
        assert!(Arc::ptr_eq(&cache.get(&KEY, |_| true).unwrap(), &new), "what was kept last is what is known");
        assert!(cache.get(&KEY, |_| false).is_none());
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
