//! One store that all replicas share, behind the gate: the embedded one, observed at each call that is applied.
//! Says to the other replicas what it changed, as the real ones do; the schedule delivers it or not.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use emporix_gateway::clock::Clock;
use emporix_gateway::session::{LabelKeys, Session, SessionKey};
use emporix_gateway::store::memory::MemoryStore;
use emporix_gateway::store::{
    Alias, Collision, Cursor, CustomerName, CustomerSessions, Intent, Invalidation, Lead, LeaseName, NoteName, Owner,
    Page, Saved, SessionStore, Settled, Standing, StoreError,
};
use tokio::sync::broadcast;

use super::bug::Bug;
use super::emporix::Emporix;
use super::gate::{Gate, Seam};
use super::journal::{Half, Journal, Life, Sight};
use super::visitors::{VISITORS, customer_of, key_of, visitor_of};

/// The store itself.
pub struct SharedStore {
    records: MemoryStore,
    clock: Arc<dyn Clock>,
    journal: Arc<Journal>,
    emporix: Arc<Emporix>,
    bug: Bug,
    unreadable: AtomicBool,
    /// What each replica has not heard yet.
    unheard: Vec<Mutex<VecDeque<Invalidation>>>,
}

/// The embedded store never waits.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    match std::pin::pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("the embedded store waits for nothing"),
    }
}

impl SharedStore {
    pub fn new(clock: Arc<dyn Clock>, journal: Arc<Journal>, emporix: Arc<Emporix>, bug: Bug, replicas: usize) -> Self {
        let unheard = (0..replicas).map(|_| Mutex::default()).collect();
        let (records, unreadable) = (MemoryStore::new(clock.clone(), 100).unwrap(), AtomicBool::default());
        Self { records, clock, journal, emporix, bug, unreadable, unheard }
    }

    /// The record as it stands, past every gate.
    pub fn peek(&self, visitor: usize) -> Option<Session> {
        at_once(self.records.load(&key_of(visitor))).unwrap()
    }

    /// Puts a record there before the run begins.
    pub fn put(&self, session: &Session) {
        const LIFE: Duration = Duration::from_secs(90 * 86_400);
        at_once(self.records.index(&customer_of(visitor_of(&session.key)), &session.key, LIFE)).unwrap();
        at_once(self.records.save(session, LIFE)).unwrap();
        self.journal.begins_with(session);
    }

    /// Whether the record is gone and cannot be brought back.
    pub fn is_over(&self, visitor: usize) -> bool {
        let leftover = self.peek(visitor);
        let attempt = leftover.clone().unwrap_or_else(|| {
            let (_, tenant, transport) = VISITORS[visitor];
            let tenant = emporix_gateway::session::TenantId::parse(tenant).unwrap();
            Session::new(key_of(visitor), tenant, transport, Default::default(), &super::replica::LIMITS)
        });
        leftover.is_none() && at_once(self.records.save(&attempt, Duration::from_secs(1))) == Ok(Saved::Ended)
    }

    /// What `replica` hears next.
    pub fn next_unheard(&self, replica: usize) -> Option<Invalidation> {
        self.unheard[replica].lock().unwrap().pop_front()
    }

    /// `replica` begins anew: what was said before it says nothing to it.
    pub fn forget_unheard(&self, replica: usize) {
        self.unheard[replica].lock().unwrap().clear();
    }

    fn publish(&self, from: Life, invalidation: Invalidation) {
        let others = self.unheard.iter().enumerate().filter(|(replica, _)| *replica != from.0);
        others.for_each(|(_, unheard)| unheard.lock().unwrap().push_back(invalidation));
    }

    /// From now on it says that no record can be read.
    pub fn turn_unreadable(&self) {
        self.unreadable.store(true, Ordering::Relaxed);
    }

    fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        if self.unreadable.load(Ordering::Relaxed) {
            return Err(StoreError::Unreadable("the test says so"));
        }
        let loaded = at_once(self.records.load(key))?;
        let (Bug::MixedUp, Some(session)) = (self.bug, loaded.clone()) else { return Ok(loaded) };
        let other = self.peek((visitor_of(key) + 1) % VISITORS.len());
        Ok(Some(match other {
            Some(other) => Session { anonymous: other.anonymous, customer: other.customer, ..session },
            None => session,
        }))
    }

    fn save(&self, from: Life, session: &Session, life: Duration) -> Result<Saved, StoreError> {
        let before = self.peek(visitor_of(&session.key));
        let mut session = session.clone();
        let stored = before.as_ref().map_or(0, |before| before.revision);
        match self.bug {
            Bug::Talkative => {
                tracing::info!(access = ?session.customer.as_ref().map(|it| it.tokens.access.expose()), "saved");
            }
            Bug::BlindSave if before.is_some() => session.revision = stored,
            Bug::NoTombstone if before.is_none() => session.revision = 0,
            _ => {}
        }
        let saved = at_once(self.records.save(&session, life))?;
        match saved {
            Saved::Stored(_) => {
                self.journal.saves(before.as_ref(), &session, &self.emporix);
                self.publish(from, Invalidation::Replaced(session.key));
            }
            Saved::Conflict => self.journal.meets(Sight::ConflictingSave),
            Saved::Ended => self.journal.meets(Sight::SaveAfterTheEnd),
        }
        Ok(saved)
    }

    fn remove(&self, from: Life, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError> {
        let tombstone = if self.bug == Bug::NoTombstone { Duration::ZERO } else { tombstone };
        at_once(self.records.remove(key, tombstone))?;
        self.journal.removes(key);
        self.publish(from, Invalidation::Ended(*key, self.clock.now()));
        Ok(())
    }

    fn acquire(&self, from: Life, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        let mut lead = at_once(self.records.acquire(lease, owner, life))?;
        if self.bug == Bug::EveryLeaseGranted && lead == Lead::Elsewhere {
            lead = Lead::Ours(None);
        }
        match lead {
            Lead::Elsewhere => self.journal.meets(Sight::LeaseHeldElsewhere),
            Lead::Ours(orphan) => {
                self.journal.leads(from, half_of(lease), life);
                if orphan.is_some_and(|intent| intent.recoveries > 0) {
                    self.journal.finds_recovery_orphaned(half_of(lease));
                }
            }
        }
        Ok(lead)
    }

    fn declare(
        &self,
        from: Life,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError> {
        let ours = at_once(self.records.declare(lease, owner, intent, life))? || self.bug == Bug::EveryLeaseGranted;
        if ours {
            self.journal.declares(from, half_of(lease), life);
        }
        Ok(ours)
    }

    fn extend(&self, from: Life, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError> {
        let ours = at_once(self.records.extend(lease, owner, life))? || self.bug == Bug::EveryLeaseGranted;
        if ours {
            self.journal.extends(from, half_of(lease), life);
        }
        Ok(ours)
    }

    fn release(&self, from: Life, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError> {
        if settled == Settled::Unknown {
            self.journal.leaves_unsettled(from, half_of(lease));
        }
        at_once(self.records.release(lease, owner, settled))
    }
}

fn half_of(lease: &LeaseName) -> Half {
    (visitor_of(&lease.key), lease.scope)
}

/// The way of one replica to the store.
pub struct GatedStore {
    pub shared: Arc<SharedStore>,
    pub gate: Arc<Gate>,
    pub life: Life,
    /// Through this the replica hears what others said.
    pub hears: broadcast::Sender<Invalidation>,
}

impl GatedStore {
    async fn call<T: Send + 'static>(
        &self,
        name: String,
        work: impl FnOnce(&SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let answer = self.gate.pass(self.life.0, Seam::Store, name, move || work(&shared)).await;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the schedule says so".to_owned())))
    }
}

fn of(name: &str, key: &SessionKey) -> String {
    format!("{name} of {}", VISITORS[visitor_of(key)].0)
}

fn of_half(name: &str, lease: &LeaseName) -> String {
    format!("{name} of {}'s {:?} half", VISITORS[visitor_of(&lease.key)].0, lease.scope)
}

#[async_trait]
impl SessionStore for GatedStore {
    async fn load(&self, key: &SessionKey) -> Result<Option<Session>, StoreError> {
        let key = *key;
        let loaded = self.call(of("load", &key), move |store| store.load(&key)).await;
        if self.shared.bug == Bug::FaultIsAbsence { loaded.or(Ok(None)) } else { loaded }
    }

    async fn save(&self, session: &Session, life: Duration) -> Result<Saved, StoreError> {
        let (from, session) = (self.life, session.clone());
        self.call(of("save", &session.key), move |store| store.save(from, &session, life)).await
    }

    async fn remove(&self, key: &SessionKey, tombstone: Duration) -> Result<(), StoreError> {
        let (from, key) = (self.life, *key);
        self.call(of("remove", &key), move |store| store.remove(from, &key, tombstone)).await
    }

    async fn was_ended(&self, key: &SessionKey) -> Result<bool, StoreError> {
        let key = *key;
        self.call(of("look at the end", &key), move |store| at_once(store.records.was_ended(&key))).await
    }

    async fn acquire(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<Lead, StoreError> {
        let (from, lease, owner) = (self.life, *lease, *owner);
        self.call(of_half("acquire", &lease), move |store| store.acquire(from, &lease, &owner, life)).await
    }

    async fn declare(
        &self,
        lease: &LeaseName,
        owner: &Owner,
        intent: &Intent,
        life: Duration,
    ) -> Result<bool, StoreError> {
        let (from, lease, owner, intent) = (self.life, *lease, *owner, *intent);
        self.call(of_half("declare", &lease), move |store| store.declare(from, &lease, &owner, &intent, life)).await
    }

    async fn extend(&self, lease: &LeaseName, owner: &Owner, life: Duration) -> Result<bool, StoreError> {
        let (from, lease, owner) = (self.life, *lease, *owner);
        self.call(of_half("extend", &lease), move |store| store.extend(from, &lease, &owner, life)).await
    }

    async fn release(&self, lease: &LeaseName, owner: &Owner, settled: Settled) -> Result<(), StoreError> {
        let (from, lease, owner) = (self.life, *lease, *owner);
        self.call(of_half("release", &lease), move |store| store.release(from, &lease, &owner, settled)).await
    }

    async fn link(
        &self,
        alias: &Alias,
        key: &SessionKey,
        collision: Collision,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        let (alias, key) = (alias.clone(), *key);
        self.call(of("link", &key), move |store| at_once(store.records.link(&alias, &key, collision, life))).await
    }

    async fn resolve(&self, alias: &Alias) -> Result<Option<SessionKey>, StoreError> {
        let alias = alias.clone();
        self.call("resolve".to_owned(), move |store| at_once(store.records.resolve(&alias))).await
    }

    async fn index(
        &self,
        customer: &CustomerName,
        key: &SessionKey,
        life: Duration,
    ) -> Result<Option<SessionKey>, StoreError> {
        let (customer, key) = (customer.clone(), *key);
        self.call(of("index", &key), move |store| at_once(store.records.index(&customer, &key, life))).await
    }

    async fn unindex(&self, customer: &CustomerName, key: &SessionKey) -> Result<(), StoreError> {
        let (customer, key) = (customer.clone(), *key);
        self.call(of("unindex", &key), move |store| at_once(store.records.unindex(&customer, &key))).await
    }

    async fn customer(&self, customer: &CustomerName) -> Result<CustomerSessions, StoreError> {
        let customer = customer.clone();
        self.call("customer".to_owned(), move |store| at_once(store.records.customer(&customer))).await
    }

    async fn raise_epoch(
        &self,
        customer: &CustomerName,
        epoch: emporix_gateway::clock::Timestamp,
        life: Duration,
    ) -> Result<(), StoreError> {
        let customer = customer.clone();
        self.call("raise_epoch".to_owned(), move |store| at_once(store.records.raise_epoch(&customer, epoch, life)))
            .await
    }

    async fn note(&self, name: &NoteName, value: &[u8], life: Duration, standing: Standing) -> Result<(), StoreError> {
        let (name, value) = (name.clone(), value.to_vec());
        self.call("note".to_owned(), move |store| at_once(store.records.note(&name, &value, life, standing))).await
    }

    async fn noted(&self, name: &NoteName) -> Result<Option<Vec<u8>>, StoreError> {
        let name = name.clone();
        self.call("noted".to_owned(), move |store| at_once(store.records.noted(&name))).await
    }

    async fn walk(&self, from: Cursor) -> Result<Page, StoreError> {
        self.call("walk".to_owned(), move |store| at_once(store.records.walk(from))).await
    }

    fn labels(&self) -> &LabelKeys {
        self.shared.records.labels()
    }

    fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.hears.subscribe()
    }

    fn hears_invalidations(&self) -> bool {
        true
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.call("ping".to_owned(), |store| at_once(store.records.ping())).await
    }
}
