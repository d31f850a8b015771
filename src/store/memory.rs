//! Sessions in this process: the embedded default, for one replica.
//! Bounded; what is over makes room, and a new session beyond the bound is refused rather than an old one lost.

use std::collections::{BTreeMap, HashMap};
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

/// The embedded store.
pub struct MemoryStore {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    max_sessions: usize,
    labels: LabelKeys,
    invalidations: broadcast::Sender<Invalidation>,
}

/// What is kept; of each kind so many at most, of which the first to end makes room.
struct State {
    sessions: Expiring<SessionKey, Session>,
    tombstones: Expiring<SessionKey, ()>,
    leases: Expiring<LeaseName, Owner>,
    intents: Expiring<LeaseName, Intent>,
    aliases: Expiring<Alias, Option<SessionKey>>,
    customers: Expiring<CustomerName, Vec<(SessionKey, Timestamp)>>,
    epochs: Expiring<CustomerName, Timestamp>,
    notes: Expiring<NoteName, Vec<u8>>,
}

impl State {
    fn new(max_sessions: usize) -> Self {
        // A session has two halves to renew, and a JWT from each sign-in.
        let two_each = max_sessions.saturating_mul(2);
        Self {
            sessions: Expiring::bounded(max_sessions),
            tombstones: Expiring::bounded(two_each),
            leases: Expiring::bounded(two_each),
            intents: Expiring::bounded(two_each),
            aliases: Expiring::bounded(two_each),
            customers: Expiring::bounded(max_sessions),
            epochs: Expiring::bounded(max_sessions),
            notes: Expiring::bounded(max_sessions),
        }
    }

    fn sweep(&mut self, now: Timestamp) {
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
        Ok(Self { state: Mutex::new(State::new(max_sessions)), clock, max_sessions, labels, invalidations })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sweep(self.clock.now());
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

    async fn was_ended(&self, key: &SessionKey) -> Result<bool, StoreError> {
        Ok(self.state().tombstones.get(key, self.clock.now()).is_some())
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
    ) -> Result<Option<SessionKey>, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let mut keys = state.customers.get(customer, now).cloned().unwrap_or_default();
        // By their own ends, not by their records: a login notes the session before it writes the record.
        keys.retain(|(known, end)| known != key && now < *end);
        keys.push((*key, now.after(life)));
        keys.sort_by_key(|(_, end)| *end);
        let surplus = keys.iter().rev().nth(MOST_PER_CUSTOMER).map(|(key, _)| *key);
        state.customers.put(customer.clone(), keys, now.after(life));
        Ok(surplus)
    }

    async fn unindex(&self, customer: &CustomerName, key: &SessionKey) -> Result<(), StoreError> {
        let mut state = self.state();
        let mut keys = state.customers.get(customer, self.clock.now()).cloned().unwrap_or_default();
        keys.retain(|(known, _)| known != key);
        match keys.iter().map(|(_, end)| *end).max() {
            Some(end) => state.customers.put(customer.clone(), keys, end),
            None => state.customers.remove(customer),
        }
        Ok(())
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
        if standing == Standing::Keep && state.notes.get(name, now).is_some() {
            return Ok(());
        }
        // When they are full, who has tokens mailed again and again displaces no address: that ends later.
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

/// A bounded map whose entries end. The first to end makes room for one that is beyond the bound.
struct Expiring<K, V> {
    entries: HashMap<K, (V, End)>,
    order: BTreeMap<End, K>,
    put: u64,
    most: usize,
}

/// When an entry ends, and its number among those that were put.
type End = (Timestamp, u64);

impl<K: Clone + Eq + Hash, V> Expiring<K, V> {
    fn bounded(most: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), put: 0, most }
    }

    fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        self.entries.get(key).filter(|(_, end)| now < end.0).map(|(value, _)| value)
    }

    fn put(&mut self, key: K, value: V, end: Timestamp) {
        self.remove(&key);
        if self.len() >= self.most {
            self.remove_first_to_end();
        }
        self.put += 1;
        let end = (end, self.put);
        self.order.insert(end, key.clone());
        self.entries.insert(key, (value, end));
    }

    fn remove(&mut self, key: &K) {
        if let Some((_, end)) = self.entries.remove(key) {
            self.order.remove(&end);
        }
    }

    fn live(&self, now: Timestamp) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().filter(move |(_, (_, end))| now < end.0).map(|(key, (value, _))| (key, value))
    }

    fn remove_first_to_end(&mut self) {
        if let Some((_, key)) = self.order.pop_first() {
            self.entries.remove(&key);
        }
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn sweep(&mut self, now: Timestamp) {
        while self.order.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            self.remove_first_to_end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::session::{Scope, TenantId};
    use crate::store::NoteKind;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn the_first_to_end_makes_room_and_an_entry_that_is_put_again_takes_none() {
        let (now, mut map) = (Timestamp::from_seconds(100), Expiring::bounded(3));
        for (key, end) in [('a', 130), ('b', 110), ('c', 120), ('b', 140), ('b', 140)] {
            map.put(key, (), Timestamp::from_seconds(end));
        }
        let mut kept = |key, end| {
            map.put(key, (), Timestamp::from_seconds(end));
            let mut keys: Vec<_> = map.live(now).map(|(key, ())| *key).collect();
            keys.sort_unstable();
            assert_eq!(map.order.len(), keys.len());
            String::from_iter(keys)
        };
        assert_eq!(kept('d', 150), "abd");
        assert_eq!(kept('e', 105), "bde");
        assert_eq!(kept('f', 150), "bdf");
    }

    #[test]
    fn what_is_over_is_swept_out_and_nothing_else() {
        let mut map = Expiring::bounded(9);
        for (key, end) in [('a', 130), ('b', 110), ('c', 120)] {
            map.put(key, (), Timestamp::from_seconds(end));
        }
        map.remove(&'b');
        map.sweep(Timestamp::from_seconds(120));
        assert_eq!((map.len(), map.order.len()), (1, 1));
        assert!(map.get(&'a', Timestamp::from_seconds(129)).is_some());
        assert!(map.get(&'a', Timestamp::from_seconds(130)).is_none(), "not even before it is swept out");
    }

    #[tokio::test]
    async fn nothing_that_is_kept_beside_the_sessions_grows_without_end() {
        let store = MemoryStore::new(Arc::new(SystemClock), 4).unwrap();
        let tenant = TenantId::parse("acme").unwrap();
        let intent = Intent { generation: 1, started_at: Timestamp::from_seconds(1), recoveries: 0 };
        for number in 0..40_u8 {
            let (key, owner) = (SessionKey::from_bytes([number; 16]), [number; 16]);
            let customer = CustomerName::of_hash(tenant, [number; 16]);
            let lease = LeaseName { key, scope: Scope::Customer };
            let note = NoteName { tenant, kind: NoteKind::Email, hash: [number; 32] };
            store.remove(&key, HOUR).await.unwrap();
            store.acquire(&lease, &owner, HOUR).await.unwrap();
            assert!(store.declare(&lease, &owner, &intent, HOUR).await.unwrap());
            store.link(&Alias::of(tenant, &[number]), &key, Collision::Disable, HOUR).await.unwrap();
            store.index(&customer, &key, HOUR).await.unwrap();
            store.raise_epoch(&customer, Timestamp::from_seconds(1), HOUR).await.unwrap();
            store.note(&note, b"x", HOUR, Standing::Replace).await.unwrap();
        }
        let state = store.state();
        let twice = [state.tombstones.len(), state.leases.len(), state.intents.len(), state.aliases.len()];
        assert_eq!(twice, [8; 4]);
        assert_eq!([state.customers.len(), state.epochs.len(), state.notes.len()], [4; 3]);
    }
}
