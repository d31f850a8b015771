//! The store with the hot cache in front: what the broker asks.
//! A store that cannot answer is an error here, or a session served within its grace; never an absence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Mutex;

use super::hot_cache::HotCache;
use super::loads::Loads;
use super::{Alias, Invalidation, Saved, SessionStore, StoreError};
use crate::clock::{Clock, Timestamp};
use crate::config::HotCacheSection;
use crate::session::{LifeLimits, ReadySession, Session, SessionKey};
use crate::telemetry::trace::{SpanKind, spanned};
use crate::telemetry::{CacheOutcome, Label, Metrics, RevocationPath, StoreOperation, StoreOutcome};

/// How long a tombstone stands: longer than any write that was under way can last.
const TOMBSTONE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long before a look at what ended a failover may have lost it.
const LOST_BY_FAILOVER: Duration = Duration::from_secs(600);

/// Attempts at applying one change over conflicting writes of others.
const MOST_CONFLICTS: usize = 8;

/// The store, with the hot cache in front.
pub struct LayeredStore {
    pub(super) store: Arc<dyn SessionStore>,
    hot: HotCache,
    aliases: Cache<Alias, (SessionKey, Timestamp)>,
    /// Sessions that are known here to have ended: refused whatever the store says, for it may have lost their end.
    ended: Cache<SessionKey, Timestamp>,
    loads: Loads,
    /// What was verified before this has to be verified again: word of a change may have been missed.
    verify_from: AtomicU64,
    /// One look at a time at what ended, and when the last one was.
    reasserted_at: Mutex<Timestamp>,
    freshness: HotCacheSection,
    limits: LifeLimits,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// What a change wants done with the record it was applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write it.
    Save,
    /// Leave the record as it is.
    Discard,
}

impl LayeredStore {
    /// Puts a hot cache before `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn SessionStore>,
        freshness: HotCacheSection,
        limits: LifeLimits,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let hot = HotCache::new(freshness.max_bytes, freshness.hot_grace.max(freshness.revalidate_after));
        let aliases = Cache::builder().max_capacity(100_000).time_to_live(freshness.revalidate_after).build();
        // The newest are kept, however seldom they are asked for.
        let newest = EvictionPolicy::lru();
        let ended = Cache::builder().max_capacity(100_000).time_to_live(TOMBSTONE_LIFE).eviction_policy(newest).build();
        Self {
            store,
            hot,
            aliases,
            ended,
            loads: Loads::default(),
            verify_from: AtomicU64::new(0),
            reasserted_at: Mutex::default(),
            freshness,
            limits,
            clock,
            metrics,
        }
    }

    /// The session if the hot cache holds it and need not ask: the hot path.
    #[must_use]
    pub fn get(&self, key: &SessionKey, now: Timestamp) -> Option<Arc<ReadySession>> {
        let (verify_from, trusted_for) = (self.verify_from.load(Ordering::Acquire), self.trusted_for());
        let ready = self.hot.get(key, |ready| {
            let verified_since = ready.verified_at.millis() > verify_from;
            verified_since && ready.is_trusted() && now.since(ready.verified_at) <= trusted_for
        })?;
        self.metrics.hot_cache.count(CacheOutcome::Hit);
        Some(ready)
    }

    /// The session, from the hot cache or the store.
    ///
    /// # Errors
    /// When the store cannot tell and the hot cache's word is too old.
    pub async fn load(&self, key: &SessionKey) -> Result<Option<Arc<ReadySession>>, StoreError> {
        let now = self.clock.now();
        if let Some(ready) = self.get(key, now) {
            return Ok(Some(ready));
        }
        let stale = self.hot.peek(key);
        match self.loads.join(key, || self.reload(key)).await {
            Ok(found) => {
                let outcome = if stale.is_some() { CacheOutcome::Revalidated } else { CacheOutcome::Miss };
                self.metrics.hot_cache.count(outcome);
                if let (Some(stale), None) = (&stale, &found)
                    && self.store.was_ended(key).await.unwrap_or(false)
                {
                    let unnoticed = now.since(stale.verified_at);
                    self.metrics.revocation_seconds.record(RevocationPath::Revalidation, unnoticed);
                }
                Ok(found)
            }
            Err(error) => match stale {
                Some(stale) if now.since(stale.verified_at) <= self.freshness.hot_grace => {
                    self.metrics.hot_cache.count(CacheOutcome::Grace);
                    Ok(Some(stale))
                }
                _ => Err(error),
            },
        }
    }

    /// The session as the store has it, past the hot cache and into it.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn reload(&self, key: &SessionKey) -> Result<Option<Arc<ReadySession>>, StoreError> {
        let (now, ticket) = (self.clock.now(), self.hot.begin(key));
        let Some(session) = self.load_record(key).await? else {
            self.hot.forget(key);
            return Ok(None);
        };
        let ready = Arc::new(ReadySession::of(&session, now, &self.limits));
        self.hot.keep_read(ticket, &ready);
        Ok(Some(ready))
    }

    /// The record itself, past the hot cache; a session over its time is absent.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn load_record(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        if self.ended.contains_key(key) {
            return Ok(None);
        }
        let loaded = self.load_refused(key).await?;
        Ok(loaded.filter(|_| !self.ended.contains_key(key)))
    }

    /// The same of a session that is known here to have ended: the store may not know of it.
    ///
    /// # Errors
    /// When the store cannot tell.
    pub async fn load_refused(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        let loaded = self.timed(StoreOperation::Load, self.store.load(key)).await?;
        Ok(loaded.filter(|session| self.clock.now() < session.expires_at(&self.limits)))
    }

    /// Stores a new session.
    ///
    /// # Errors
    /// When the store cannot, or a session of this key is known.
    pub async fn create(&self, session: &Session) -> Result<Arc<ReadySession>, StoreError> {
        match self.save(session).await? {
            (Saved::Stored(_), Some(ready)) => Ok(ready),
            _ => Err(StoreError::Unreadable("a session of this key is known")),
        }
    }

    /// Applies `change` to the record, again whenever another write came between. Returns what the record then is,
    /// or none when the session is over.
    ///
    /// # Errors
    /// When the store cannot tell, or conflicts do not end.
    pub async fn update(
        &self,
        key: &SessionKey,
        mut change: impl FnMut(&mut Session) -> Change + Send,
    ) -> Result<Option<Session>, StoreError> {
        for _ in 0..MOST_CONFLICTS {
            let Some(mut session) = self.load_record(key).await? else { return Ok(None) };
            if change(&mut session) == Change::Discard {
                return Ok(Some(session));
            }
            match self.save(&session).await?.0 {
                Saved::Stored(revision) => return Ok(Some(Session { revision, ..session })),
                Saved::Ended => return Ok(None),
                Saved::Conflict => {}
            }
        }
        Err(StoreError::Unavailable("conflicting writes do not end".to_owned()))
    }

    async fn save(&self, session: &Session) -> Result<(Saved, Option<Arc<ReadySession>>), StoreError> {
        let now = self.clock.now();
        let ticket = self.hot.begin(&session.key);
        let life = session.expires_at(&self.limits).since(now).max(Duration::from_secs(1));
        let saved = match self.judged(StoreOperation::Save, self.store.save(session, life), outcome_of).await {
            Ok(saved) => saved,
            Err(error) => {
                // It may have been stored all the same.
                self.hot.doubt(&session.key);
                return Err(error);
            }
        };
        match saved {
            Saved::Stored(_) => {
                let ready = Arc::new(ReadySession::of(session, now, &self.limits));
                self.hot.keep_written(ticket, &ready);
                if self.ended.contains_key(&session.key) {
                    self.hot.forget(&session.key);
                }
                return Ok((saved, Some(ready)));
            }
            Saved::Conflict => {}
            Saved::Ended => self.hot.forget(&session.key),
        }
        Ok((saved, None))
    }

    /// Ends the session. It is refused here from now on, even when the store cannot be told.
    ///
    /// # Errors
    /// When the store cannot be told.
    pub async fn remove(&self, key: &SessionKey) -> Result<(), StoreError> {
        self.ended.insert(*key, self.clock.now());
        self.hot.forget(key);
        self.timed(StoreOperation::Remove, self.store.remove(key, TOMBSTONE_LIFE)).await
    }

    /// Does what another replica's message asks.
    pub fn hear(&self, invalidation: Invalidation) {
        match invalidation {
            Invalidation::Replaced(key) => self.hot.forget(&key),
            Invalidation::Ended(key, at) => {
                self.ended.insert(key, self.clock.now());
                self.hot.forget(&key);
                self.metrics.revocation_seconds.record(RevocationPath::Message, self.clock.now().since(at));
            }
            Invalidation::Everything => {
                self.verify_from.fetch_max(self.clock.now().millis(), Ordering::AcqRel);
            }
        }
    }

    /// Ends again what ended since the last look and is there all the same: a failover loses writes. Gives up at the
    /// first fault of the store, for then there will be another occasion.
    pub async fn reassert_ends(&self) {
        let mut reasserted_at = self.reasserted_at.lock().await;
        let now = self.clock.now();
        let since = *reasserted_at;
        let recent = self.ended.iter().filter(|(_, at)| at.after(LOST_BY_FAILOVER) > since);
        let ended: Vec<SessionKey> = recent.map(|(key, _)| *key).collect();
        for key in ended {
            match self.store.load(&key).await {
                Ok(None) => {}
                Ok(Some(_)) | Err(StoreError::Unreadable(_)) => {
                    tracing::warn!("a session that had ended was back in the store; it is ended again");
                    if self.remove(&key).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
        *reasserted_at = now;
    }

    /// The session of a secret that was verified before, while the verdict holds.
    #[must_use]
    pub fn verdict(&self, alias: &Alias, now: Timestamp) -> Option<SessionKey> {
        self.aliases.get(alias).filter(|(_, holds_until)| now < *holds_until).map(|(key, _)| key)
    }

    /// Remembers that a secret was verified and names `key`.
    pub fn remember_verdict(&self, alias: Alias, key: SessionKey, holds_until: Timestamp) {
        self.aliases.insert(alias, (key, holds_until));
    }

    /// Has every secret verified again: another key may tell now.
    pub fn forget_verdicts(&self) {
        self.aliases.invalidate_all();
    }

    /// What other replicas say from now on.
    #[must_use]
    pub fn invalidations(&self) -> tokio::sync::broadcast::Receiver<Invalidation> {
        self.store.invalidations()
    }

    /// The caps on a session's life.
    #[must_use]
    pub const fn limits(&self) -> &LifeLimits {
        &self.limits
    }

    /// Tells the metrics how much the hot cache holds, and whether other replicas are heard.
    pub fn report(&self) {
        self.metrics.hears_invalidations.set(self.store.hears_invalidations().into());
        let (sessions, bytes) = self.hot.size();
        self.metrics.hot_cache_sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.metrics.hot_cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn trusted_for(&self) -> Duration {
        if self.store.hears_invalidations() {
            self.freshness.revalidate_after
        } else {
            self.freshness.revocation_staleness
        }
    }

    pub(super) async fn timed<T>(
        &self,
        operation: StoreOperation,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.judged(operation, work, |_| StoreOutcome::Success).await
    }

    /// The same of work whose success has more than one name.
    async fn judged<T>(
        &self,
        operation: StoreOperation,
        work: impl Future<Output = Result<T, StoreError>>,
        judge: fn(&T) -> StoreOutcome,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let result = spanned(("store", operation.text()), SpanKind::Client, work).await;
        self.metrics.store_seconds.record(operation, started.elapsed());
        self.metrics.store.count(operation, result.as_ref().map_or(StoreOutcome::Failed, judge));
        result
    }
}

const fn outcome_of(saved: &Saved) -> StoreOutcome {
    match saved {
        Saved::Conflict => StoreOutcome::Conflict,
        Saved::Stored(_) | Saved::Ended => StoreOutcome::Success,
    }
}
