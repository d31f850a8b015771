//! Single-flight within this process: of all who want one session's tokens renewed, one leads and the others wait for it.
//! What failed a moment ago is not tried again at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::watch;

use crate::clock::{Clock, Timestamp};
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
    failed: Cache<Flight, (Renewal, Timestamp)>,
    touched: Cache<SessionKey, ()>,
    clock: Arc<dyn Clock>,
}

/// What failed is not tried again for this long.
const COOL_DOWN: Duration = Duration::from_secs(1);

impl Flights {
    /// No renewal is under way yet.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let failed = Cache::builder().max_capacity(50_000).time_to_live(COOL_DOWN).build();
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
            self.failed.insert(flight.clone(), (renewal.clone(), self.clock.now()));
        }
        self.lock().remove(flight);
        lead.send_replace(Some(renewal));
    }

    /// What failed a moment ago.
    pub(super) fn failed_just_now(&self, flight: &Flight) -> Option<Renewal> {
        let (failed, at) = self.failed.get(flight)?;
        (self.clock.now().since(at) < COOL_DOWN).then_some(failed)
    }

    /// Whether the caller is the first in a while to record a use of the session.
    pub(super) fn begin_touch(&self, key: SessionKey) -> bool {
        self.touched.entry(key).or_insert(()).is_fresh()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Flight, watch::Receiver<Option<Renewal>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
