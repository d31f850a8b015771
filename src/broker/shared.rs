//! A token that many requests share: held in memory, and fetched anew behind one of them when it is due.
//! As long as one lives all are served with it; where none does they wait for what one fetch brings.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use crate::clock::{Clock, Timestamp};
use crate::error::GatewayError;
use crate::session::Freshness;

/// What ages.
pub(super) trait Ages {
    /// How far it has aged at `now`.
    fn age(&self, now: Timestamp) -> Freshness;
}

/// A token that lives.
pub(super) struct AtHand<T> {
    pub(super) token: Arc<T>,
    /// Whether the next one is due, and nobody fetches it nor failed to a moment ago.
    pub(super) wants_next: bool,
}

/// The token of the moment, and the turn to fetch the next.
pub(super) struct Shared<T> {
    current: ArcSwapOption<T>,
    fetching: Mutex<LastFailure>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), fetching: Mutex::default() }
    }
}

/// Why and when fetching last failed: those who waited for it need not try for themselves.
#[derive(Default)]
struct LastFailure(Option<(GatewayError, Timestamp)>);

impl LastFailure {
    fn just_failed(&self, now: Timestamp) -> Option<GatewayError> {
        const COOL_DOWN: Duration = Duration::from_secs(1);
        self.0.as_ref().filter(|(_, at)| now.since(*at) < COOL_DOWN).map(|(error, _)| error.clone())
    }
}

impl<T: Ages> Shared<T> {
    /// The token, where one lives.
    pub(super) fn at_hand(&self, now: Timestamp) -> Option<AtHand<T>> {
        let token = self.current.load_full()?;
        let wants_next = match token.age(now) {
            Freshness::Fresh => false,
            Freshness::RefreshDue | Freshness::Final => {
                self.fetching.try_lock().is_ok_and(|last_failure| last_failure.just_failed(now).is_none())
            }
            Freshness::Expired | Freshness::Dead => return None,
        };
        Some(AtHand { token, wants_next })
    }

    /// A fresh token: another request's, or what `fetch` brings.
    pub(super) async fn fresh(
        &self,
        clock: &dyn Clock,
        fetch: impl Future<Output = Result<Arc<T>, GatewayError>>,
    ) -> Result<Arc<T>, GatewayError> {
        let mut last_failure = self.fetching.lock().await;
        match self.current.load_full() {
            Some(token) if token.age(clock.now()) == Freshness::Fresh => Ok(token),
            _ => self.fetch_in_turn(clock, &mut last_failure, fetch).await,
        }
    }

    /// Another token than the one that upstream refused.
    pub(super) async fn other_than(
        &self,
        is_refused: impl FnOnce(&T) -> bool,
        clock: &dyn Clock,
        fetch: impl Future<Output = Result<Arc<T>, GatewayError>>,
    ) -> Result<Arc<T>, GatewayError> {
        let mut last_failure = self.fetching.lock().await;
        match self.current.load_full() {
            Some(token) if !is_refused(&token) => Ok(token),
            _ => self.fetch_in_turn(clock, &mut last_failure, fetch).await,
        }
    }

    /// Fetches, unless that failed a moment ago.
    async fn fetch_in_turn(
        &self,
        clock: &dyn Clock,
        last_failure: &mut LastFailure,
        fetch: impl Future<Output = Result<Arc<T>, GatewayError>>,
    ) -> Result<Arc<T>, GatewayError> {
        if let Some(error) = last_failure.just_failed(clock.now()) {
            return Err(error);
        }
        let fetched = fetch.await;
        last_failure.0 = fetched.as_ref().err().map(|error| (error.clone(), clock.now()));
        if let Ok(token) = &fetched {
            self.current.store(Some(token.clone()));
        }
        fetched
    }
}
