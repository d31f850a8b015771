//! Single-flight within this process: of all who want one session's tokens renewed, one leads and the others wait for it.
//! What failed a moment ago is not tried again at once, and what fails again and again ever more seldom.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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

/// What is being renewed, and the legal entity that it is to switch to, or away from, where it is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) key: SessionKey,
    pub(super) scope: Scope,
    pub(super) legal_entity: Option<Option<String>>,
}

/// One half has room for two flights: a renewal and a switch. The lease puts them in order.
type Place = (SessionKey, Scope, bool);

type UnderWay = HashMap<Place, (Flight, watch::Receiver<Option<Renewal>>)>;

impl Flight {
    const fn place(&self) -> Place {
        (self.key, self.scope, self.legal_entity.is_some())
    }
}

/// The caller's part in a flight.
pub(super) enum Part {
    /// It leads, and reports through this.
    Lead(watch::Sender<Option<Renewal>>),
    /// It waits for who leads.
    Follow(watch::Receiver<Option<Renewal>>),
    /// It may come again: another flight has its place.
    Taken,
}

/// The renewals under way.
pub(super) struct Flights {
    under_way: Mutex<UnderWay>,
    failed: Cache<Place, Failure>,
    /// New tokens that the API called over, by their half, and their generation.
    unwanted: Cache<(SessionKey, Scope), (u64, Rest)>,
    touched: Cache<SessionKey, ()>,
    clock: Arc<dyn Clock>,
}

/// What failed, and the rest that follows.
#[derive(Clone)]
struct Failure {
    flight: Flight,
    renewal: Renewal,
    rest: Rest,
}

/// A rest after something failed, so often in a row.
#[derive(Clone, Copy)]
struct Rest {
    times: u32,
    since: Timestamp,
    length: Duration,
}

impl Rest {
    fn after(earlier: Option<Self>, now: Timestamp) -> Self {
        let times = earlier.map_or(0, |earlier| earlier.times + 1);
        let length = jittered((COOL_DOWN * 2_u32.pow(times.min(6))).min(LONGEST_BEHIND));
        Self { times, since: now, length }
    }

    fn lasts(&self, now: Timestamp, longest: Duration) -> bool {
        now.since(self.since) < self.length.min(longest)
    }
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
        let unwanted = Cache::builder().max_capacity(50_000).time_to_live(2 * LONGEST_BEHIND).build();
        let touched = Cache::builder().max_capacity(50_000).time_to_live(Duration::from_secs(5)).build();
        Self { under_way: Mutex::default(), failed, unwanted, touched, clock }
    }

    /// Joins the flight, or leads it when its place is free.
    pub(super) fn join_or_lead(&self, flight: &Flight) -> Part {
        match self.lock().entry(flight.place()) {
            Entry::Vacant(place) => {
                let (lead, follow) = watch::channel(None);
                place.insert((flight.clone(), follow));
                Part::Lead(lead)
            }
            Entry::Occupied(place) if place.get().0 == *flight => Part::Follow(place.get().1.clone()),
            Entry::Occupied(_) => Part::Taken,
        }
    }

    /// Ends the flight with what came of it.
    pub(super) fn land(&self, flight: &Flight, lead: &watch::Sender<Option<Renewal>>, renewal: Renewal) {
        if matches!(renewal, Renewal::Failed(_)) {
            let rest = Rest::after(self.failure_of(flight).map(|failure| failure.rest), self.clock.now());
            let (flight, renewal) = (flight.clone(), renewal.clone());
            self.failed.insert(flight.place(), Failure { flight, renewal, rest });
        } else {
            self.failed.invalidate(&flight.place());
        }
        self.lock().remove(&flight.place());
        lead.send_replace(Some(renewal));
    }

    /// What failed a moment ago, and is left alone for `longest` at most.
    pub(super) fn failed_just_now(&self, flight: &Flight, longest: Duration) -> Option<Renewal> {
        let failure = self.failure_of(flight)?;
        failure.rest.lasts(self.clock.now(), longest).then_some(failure.renewal)
    }

    fn failure_of(&self, flight: &Flight) -> Option<Failure> {
        self.failed.get(&flight.place()).filter(|failure| failure.flight == *flight)
    }

    /// Takes note that the API called the tokens of `generation` over when they were new.
    pub(super) fn note_unwanted(&self, key: SessionKey, scope: Scope, generation: u64) {
        let earlier = self.unwanted.get(&(key, scope));
        let rest = match earlier {
            Some((known, rest)) if known == generation => rest,
            _ => Rest::after(earlier.map(|(_, rest)| rest), self.clock.now()),
        };
        self.unwanted.insert((key, scope), (generation, rest));
    }

    /// Whether that happened to them a moment ago: newer ones are not likely to fare better.
    pub(super) fn were_unwanted(&self, key: SessionKey, scope: Scope, generation: u64) -> bool {
        let now = self.clock.now();
        let known = self.unwanted.get(&(key, scope)).filter(|(known, _)| *known == generation);
        known.is_some_and(|(_, rest)| rest.lasts(now, LONGEST_BEHIND))
    }

    /// Whether the caller is the first in a while to record a use of the session.
    pub(super) fn begin_touch(&self, key: SessionKey) -> bool {
        self.touched.entry(key).or_insert(()).is_fresh()
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
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

    #[test]
    fn new_tokens_that_the_api_calls_over_are_renewed_ever_more_seldom() {
        let clock = Arc::new(ShiftedClock::default());
        let (flights, key) = (Flights::new(clock.clone()), SessionKey::from_bytes([1; 16]));
        let rests = |generation| flights.were_unwanted(key, Scope::Customer, generation);
        for generation in 0..10 {
            assert!(!rests(generation), "newer ones are tried");
            for _ in 0..100 {
                flights.note_unwanted(key, Scope::Customer, generation);
            }
            assert!(rests(generation));
            clock.advance(COOL_DOWN);
            assert_eq!(rests(generation), generation > 0, "at first it is a short rest, however many saw it");
        }
        clock.advance(Duration::from_secs(28));
        assert!(rests(9), "half a minute at least");
        clock.advance(LONGEST_BEHIND);
        assert!(!rests(9));
        assert!(!flights.were_unwanted(key, Scope::Anonymous, 9));
    }

    #[test]
    fn a_half_is_renewed_and_switched_by_one_flight_each_at_a_time() {
        let flights = Flights::new(Arc::new(ShiftedClock::default()));
        let key = SessionKey::from_bytes([1; 16]);
        let flight = |legal_entity| Flight { key, scope: Scope::Customer, legal_entity };
        let entity = |name: &str| flight(Some(Some(name.to_owned())));
        let Part::Lead(renewal) = flights.join_or_lead(&flight(None)) else { panic!("somebody leads") };
        let Part::Lead(switch) = flights.join_or_lead(&entity("LE1")) else { panic!("somebody leads") };
        assert!(matches!(flights.join_or_lead(&entity("LE1")), Part::Follow(_)));
        assert!(matches!(flights.join_or_lead(&entity("LE2")), Part::Taken));
        assert!(matches!(flights.join_or_lead(&flight(Some(None))), Part::Taken));
        flights.land(&flight(None), &renewal, Renewal::Ended);
        assert!(matches!(flights.join_or_lead(&entity("LE2")), Part::Taken));
        flights.land(&entity("LE1"), &switch, Renewal::Failed(GatewayError::Internal("it failed")));
        assert!(flights.failed_just_now(&entity("LE1"), LONGEST_AWAITED).is_some());
        assert!(flights.failed_just_now(&entity("LE2"), LONGEST_AWAITED).is_none(), "it says nothing of another");
        assert!(matches!(flights.join_or_lead(&entity("LE2")), Part::Lead(_)));
    }
}
