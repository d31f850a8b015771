//! Sessions in this process: the embedded default, for one replica.
//! Bounded; what is over makes room, and a new session beyond the bound is refused rather than an old one lost.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::{
    Alias, Collision, Cursor, CustomerName, CustomerSessions, Intent, Invalidation, Lead, LeaseName, MOST_PER_CUSTOMER,
    NoteName, Owner, Page, Saved, SessionStore, Settled, Standing, StoreError, Walked,
};
use crate::clock::{Clock, Timestamp};
use crate::session::{LabelKeys, Session, SessionKey};

/// Intents outlive their leases by far, as they do in Redis.
const INTENT_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// What is over is swept out this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The embedded store.
pub struct MemoryStore {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    max_sessions: usize,
    labels: LabelKeys,
    invalidations: broadcast::Sender<Invalidation>,
}

#[derive(Default)]
struct State {
    sessions: Expiring<SessionKey, Session>,
    tombstones: Expiring<SessionKey, ()>,
    leases: Expiring<LeaseName, Owner>,
    intents: Expiring<LeaseName, Intent>,
    aliases: Expiring<Alias, Option<SessionKey>>,
    customers: Expiring<CustomerName, Vec<(SessionKey, Timestamp)>>,
    epochs: Expiring<CustomerName, Timestamp>,
    notes: Expiring<NoteName, Vec<u8>>,
    swept_at: Timestamp,
}

impl State {
    fn sweep(&mut self, now: Timestamp) {
        self.swept_at = now;
        self.sessions.sweep(now);
        self.tombstones.sweep(now);
        self.leases.sweep(now);
        self.intents.sweep(now);
        self.aliases.sweep(now);
        self.customers.sweep(now);
        self.epochs.sweep(now);
        self.notes.sweep(now);
    }
}

impl MemoryStore {
    /// An empty store for `max_sessions` sessions.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new(clock: Arc<dyn Clock>, max_sessions: usize) -> Result<Self, StoreError> {
        let (invalidations, _) = broadcast::channel(16);
        let labels = LabelKeys::random().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self { state: Mutex::default(), clock, max_sessions, labels, invalidations })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if now.since(state.swept_at) >= SWEEP_EVERY {
            state.sweep(now);
        }
        state
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        Ok(self.state().sessions.get(key, self.clock.now()).cloned())
    }

    async fn save(&self, session: &Session, life: Duration) -> Result<Saved, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        if state.tombstones.get(&session.key, now).is_some() {
            return Ok(Saved::Ended);
        }
        let stored = state.sessions.get(&session.key, now).map_or(0, |stored| stored.revision);
        if stored != session.revision {
            return Ok(if stored == 0 { Saved::Ended } else { Saved::Conflict });
        }
        if stored == 0 && state.sessions.len() >= self.max_sessions {
            return Err(StoreError::Full);
        }
        let revision = stored + 1;
        state.sessions.put(session.key, Session { revision, ..session.clone() }, now.after(life));
        Ok(Saved::Stored(revision))
    }

    async fn remove(&self, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        state.sessions.remove(key);
        state.tombstones.put(*key, (), now.after(tombstone));
        Ok(())
    }

    async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        if state.leases.get(lease, now).is_some_and(|holder| holder != owner) {
            return Ok(Lead::Elsewhere);
        }
        state.leases.put(*lease, *owner, now.after(life));
        Ok(Lead::Ours(state.intents.get(lease, now).copied()))
    }

    async fn extend(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let held = state.leases.get(lease, now) == Some(owner);
        if held {
            state.leases.put(*lease, *owner, now.after(life));
        }
        Ok(held)
    }

    async fn declare(
        &self,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        if state.leases.get(lease, now) != Some(owner) {
            return Ok(false);
        }
        state.leases.put(*lease, *owner, now.after(life));
        state.intents.put(*lease, *intent, now.after(INTENT_LIFE));
        Ok(true)
    }

    async fn release(&self, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.leases.get(lease, self.clock.now()) == Some(owner) {
            state.leases.remove(lease);
            if settled == Settled::Known {
                state.intents.remove(lease);
            }
        }
        Ok(())
    }

    async fn link(
        &self,
        alias: &Alias,
        key: &SessionKey,
        collision: Collision,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let named = match (state.aliases.get(alias, now), collision) {
            (None, _) => Some(*key),
            (Some(Some(named)), _) if named == key => Some(*key),
            (Some(named), Collision::KeepFirst) => *named,
            (Some(_), Collision::Disable) => None,
        };
        state.aliases.put(alias.clone(), named, now.after(life));
        Ok(named)
    }

    async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError> {
        Ok(self.state().aliases.get(alias, self.clock.now()).copied().flatten())
    }

    async fn index(
        &self,
        customer: &CustomerName,
        key: &SessionKey,
        life: Duration,
    ) -> Result<Vec<SessionKey>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let mut keys = state.customers.get(customer, now).cloned().unwrap_or_default();
        // By their own ends, not by their records: a login notes the session before it writes the record.
        keys.retain(|(known, end)| known != key && now < *end);
        keys.push((*key, now.after(life)));
        let surplus = keys.len().saturating_sub(MOST_PER_CUSTOMER);
        let displaced = keys.drain(..surplus).map(|(key, _)| key).collect();
        state.customers.put(customer.clone(), keys, now.after(life));
        Ok(displaced)
    }

    async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError> {
        let now = self.clock.now();
        let state = self.state();
        let noted = state.customers.get(customer, now).map(Vec::as_slice).unwrap_or_default();
        Ok(CustomerSessions {
            epoch: state.epochs.get(customer, now).copied().unwrap_or_default(),
            keys: noted.iter().map(|(key, _)| *key).collect(),
        })
    }

    async fn raise_epoch(&self, customer: &CustomerName, epoch: Timestamp, life: Duration) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let raised = state.epochs.get(customer, now).map_or(epoch, |known| epoch.max(*known));
        state.epochs.put(customer.clone(), raised, now.after(life));
        Ok(())
    }

    /// One step is the whole walk: the sessions stand still for it, and it makes no wait.
    async fn walk(&self, _from: Cursor) -> Result<Page, StoreError> {
        let now = self.clock.now();
        let state = self.state();
        let walked = |(key, session): (&SessionKey, &Session)| Walked { key: *key, tenant: session.tenant };
        Ok(Page { sessions: state.sessions.live(now).map(walked).collect(), next: None })
    }

    fn labels(&self) -> &LabelKeys {
        &self.labels
    }

    async fn note(&self, name: &NoteName, value: &[u8], life: Duration, standing: Standing) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let stands = state.notes.get(name, now).is_some();
        if stands && standing == Standing::Keep {
            return Ok(());
        }
        // What ends first makes room: who has tokens mailed again and again displaces no address.
        if !stands && state.notes.len() >= self.max_sessions {
            state.notes.remove_first_to_end();
        }
        state.notes.put(name.clone(), value.to_vec(), now.after(life));
        Ok(())
    }

    async fn noted(&self, name: &NoteName) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state().notes.get(name, self.clock.now()).cloned())
    }

    fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.invalidations.subscribe()
    }

    fn hears_invalidations(&self) -> bool {
        true
    }

    async fn ping(&self) -> Result<(), StoreError> {
        if self.state().sessions.len() < self.max_sessions { Ok(()) } else { Err(StoreError::Full) }
    }
}

/// A map whose entries end.
struct Expiring<K, V>(HashMap<K, (V, Timestamp)>);

impl<K, V> Default for Expiring<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, V> Expiring<K, V> {
    fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        self.0.get(key).filter(|(_, end)| now < *end).map(|(value, _)| value)
    }

    fn put(&mut self, key: K, value: V, end: Timestamp) {
        self.0.insert(key, (value, end));
    }

    fn remove(&mut self, key: &K) {
        self.0.remove(key);
    }

    fn live(&self, now: Timestamp) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().filter(move |(_, (_, end))| now < *end).map(|(key, (value, _))| (key, value))
    }

    fn remove_first_to_end(&mut self) {
        let first = self.0.iter().min_by_key(|(_, (_, end))| *end).map(|(key, _)| key.clone());
        if let Some(first) = first {
            self.0.remove(&first);
        }
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn sweep(&mut self, now: Timestamp) {
        self.0.retain(|_, (_, end)| now < *end);
    }
}
