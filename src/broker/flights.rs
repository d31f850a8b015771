//! Single-flight within this process: of all who want one session's tokens renewed, one leads and the others wait for it.
//! What failed a moment ago is not tried again at once, and what fails again and again ever more seldom.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::watch;

use crate::clock::{Clock, Timestamp, jittered};
use crate::error::GatewayError;
use crate::session::{ReadySession, Scope, SessionKey};

/// What came of a renewal.
#[derive(Clone, Debug)]
pub(super) enum Renewal {
    /// The session as it now stands; its tokens are current.
    Current(Arc<ReadySession>),
    /// The half is over.
    Ended,
    /// Nothing is known or changed.
    Failed(GatewayError),
}

/// What is being renewed. Different wishes for one half do not share a flight; the lease puts them in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    pub(super) key: SessionKey,
    pub(super) scope: Scope,
    pub(super) legal_entity: Option<Option<String>>,
}

/// The caller's part in a flight.
pub(super) enum Part {
    /// It leads, and reports through this.
    Lead(watch::Sender<Option<Renewal>>),
    /// It waits for who leads.
    Follow(watch::Receiver<Option<Renewal>>),
}

/// The renewals under way.
pub(super) struct Flights {
    under_way: Mutex<HashMap<Flight, watch::Receiver<Option<Renewal>>>>,
    failed: Cache<Flight, Failure>,
    touched: Cache<SessionKey, ()>,
    clock: Arc<dyn Clock>,
}

/// What failed, and how often in a row.
#[derive(Clone)]
struct Failure {
    renewal: Renewal,
    times: u32,
    at: Timestamp,
    cool_down: Duration,
}

/// For how long what failed is not tried again: at first, and at most while nobody waits for it and while somebody does.
/// Each failure doubles it.
const COOL_DOWN: Duration = Duration::from_secs(1);
pub(super) const LONGEST_BEHIND: Duration = Duration::from_secs(60);
pub(super) const LONGEST_AWAITED: Duration = Duration::from_secs(5);

impl Flights {
    /// No renewal is under way yet.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let failed = Cache::builder().max_capacity(50_000).time_to_live(2 * LONGEST_BEHIND).build();
        let touched = Cache::builder().max_capacity(50_000).time_to_live(Duration::from_secs(5)).build();
        Self { under_way: Mutex::default(), failed, touched, clock }
    }

    /// Joins the flight, or leads it when there is none.
    pub(super) fn join_or_lead(&self, flight: &Flight) -> Part {
        let mut under_way = self.lock();
        if let Some(follow) = under_way.get(flight) {
            return Part::Follow(follow.clone());
        }
        let (lead, follow) = watch::channel(None);
        under_way.insert(flight.clone(), follow);
        Part::Lead(lead)
    }

    /// Ends the flight with what came of it.
    pub(super) fn land(&self, flight: &Flight, lead: &watch::Sender<Option<Renewal>>, renewal: Renewal) {
        if matches!(renewal, Renewal::Failed(_)) {
            let times = self.failed.get(flight).map_or(0, |before| before.times + 1);
            let cool_down = jittered((COOL_DOWN * 2_u32.pow(times.min(6))).min(LONGEST_BEHIND));
            let failure = Failure { renewal: renewal.clone(), times, at: self.clock.now(), cool_down };
            self.failed.insert(flight.clone(), failure);
        } else {
            self.failed.invalidate(flight);
        }
        self.lock().remove(flight);
        lead.send_replace(Some(renewal));
    }

    /// What failed a moment ago, and is left alone for `longest` at most.
    pub(super) fn failed_just_now(&self, flight: &Flight, longest: Duration) -> Option<Renewal> {
        let failure = self.failed.get(flight)?;
        (self.clock.now().since(failure.at) < failure.cool_down.min(longest)).then_some(failure.renewal)
    }

    /// Whether the caller is the first in a while to record a use of the session.
    pub(super) fn begin_touch(&self, key: SessionKey) -> bool {
        self.touched.entry(key).or_insert(()).is_fresh()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Flight, watch::Receiver<Option<Renewal>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ShiftedClock;

    #[test]
    fn what_fails_again_and_again_is_tried_ever_more_seldom_and_sooner_where_somebody_waits() {
        let clock = Arc::new(ShiftedClock::default());
        let flights = Flights::new(clock.clone());
        let key = SessionKey::parse(&"A".repeat(22)).unwrap();
        let flight = Flight { key, scope: Scope::Customer, legal_entity: None };
        let rests = |longest| flights.failed_just_now(&flight, longest).is_some();
        let land = |renewal| {
            let Part::Lead(lead) = flights.join_or_lead(&flight) else { panic!("somebody leads") };
            flights.land(&flight, &lead, renewal);
        };
        for _ in 0..10 {
            clock.advance(LONGEST_BEHIND);
            assert!(!rests(LONGEST_BEHIND));
            land(Renewal::Failed(GatewayError::Internal("it failed")));
        }
        clock.advance(LONGEST_AWAITED);
        assert!(!rests(LONGEST_AWAITED), "who waits has another try");
        clock.advance(Duration::from_secs(24));
        assert!(rests(LONGEST_BEHIND), "half a minute at least");
        land(Renewal::Ended);
        assert!(!rests(LONGEST_BEHIND), "what does not fail is forgotten");
        land(Renewal::Failed(GatewayError::Internal("it failed")));
        clock.advance(COOL_DOWN);
        assert!(!rests(LONGEST_BEHIND), "and begins anew");
    }
}
