//! Coalesces loads: of all who want one session that is not in memory, one asks the store and the others take its answer.
//! Nobody is handed an answer that an invalidation has overtaken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::StoreError;
use crate::session::{ReadySession, SessionKey};

type Loaded = Result<Option<Arc<ReadySession>>, StoreError>;
type Load = Arc<OnceCell<Loaded>>;

/// The loads under way.
#[derive(Default)]
pub(super) struct Loads(Mutex<HashMap<SessionKey, Load>>);

impl Loads {
    /// The answer of the load of `key` that is under way, or of `load`, begun now. Who leads may leave: another one
    /// then asks.
    pub(super) async fn join<F: Future<Output = Loaded>>(&self, key: &SessionKey, load: impl Fn() -> F) -> Loaded {
        let joined = Joined { loads: self, key: *key, load: self.under_way().entry(*key).or_default().clone() };
        let mut leads = false;
        let first = || {
            leads = true;
            load()
        };
        match joined.load.get_or_init(first).await {
            // It was read before somebody changed or ended it.
            Ok(Some(ready)) if !leads && !ready.is_live() => load().await,
            loaded => loaded.clone(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<SessionKey, Load>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part in a load. It is no longer under way once its answer is there, or nobody waits for it.
struct Joined<'l> {
    loads: &'l Loads,
    key: SessionKey,
    load: Load,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut under_way = self.loads.under_way();
        let is_this = under_way.get(&self.key).is_some_and(|load| Arc::ptr_eq(load, &self.load));
        // Besides this one, only the map holds it.
        let nobody_waits = Arc::strong_count(&self.load) <= 2;
        if is_this && (self.load.initialized() || nobody_waits) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::clock::Timestamp;
    use crate::session::tests::{LIMITS, visitor};

    const KEY: SessionKey = SessionKey::from_bytes([3; 16]);

    fn ready() -> Arc<ReadySession> {
        let now = Timestamp::from_seconds(1_000);
        Arc::new(ReadySession::of(&visitor(KEY, now), now, &LIMITS))
    }

    #[tokio::test]
    async fn those_who_come_while_a_load_is_under_way_take_its_answer() {
        let (loads, asked, answer) = (Loads::default(), AtomicUsize::new(0), Notify::new());
        let load = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            answer.notified().await;
            Ok(Some(ready()))
        };
        let release = async { answer.notify_one() };
        let (first, second, ()) = tokio::join!(loads.join(&KEY, load), loads.join(&KEY, load), release);
        assert!(Arc::ptr_eq(&first.unwrap().unwrap(), &second.unwrap().unwrap()));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(loads.under_way().is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_an_invalidation_overtook_is_not_handed_on() {
        let (loads, asked, answer) = (Loads::default(), AtomicUsize::new(0), Notify::new());
        let load = || async {
            let ready = ready();
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                answer.notified().await;
                ready.end();
            }
            Ok(Some(ready))
        };
        let release = async { answer.notify_one() };
        let (_, second, ()) = tokio::join!(loads.join(&KEY, load), loads.join(&KEY, load), release);
        assert!(second.unwrap().unwrap().is_live());
    }

    #[tokio::test]
    async fn a_load_that_everybody_left_is_forgotten() {
        let loads = Loads::default();
        let left = tokio::time::timeout(std::time::Duration::ZERO, loads.join(&KEY, pending::<Loaded>)).await;
        assert!(left.is_err() && loads.under_way().is_empty());
    }
}
