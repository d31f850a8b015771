//! Tells one dead refresh token from an incident: when Emporix refuses many sessions' refreshes at once, the fault is
//! hardly theirs, and no half of any session ends for it. Tenants, customers and visitors are each judged by their own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::session::{Scope, TenantId};

/// Refusals within [`WINDOW`] that are still taken for the sessions' own.
const ORDINARY: usize = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// When refreshes were refused of late. Bounded by the tenants, for only theirs are sent.
#[derive(Default)]
pub(super) struct Rejections(Mutex<HashMap<(TenantId, Scope), Recent>>);

#[derive(Default)]
struct Recent {
    refused_at: VecDeque<Timestamp>,
    is_incident: bool,
}

impl Rejections {
    /// Counts a refusal, and says whether there are too many to be believed.
    pub(super) fn are_a_burst(&self, tenant: TenantId, scope: Scope, now: Timestamp) -> bool {
        let mut all = self.lock();
        let recent = all.entry((tenant, scope)).or_default();
        recent.forget_before(now);
        if recent.refused_at.len() > ORDINARY {
            recent.refused_at.pop_front();
        }
        recent.refused_at.push_back(now);
        recent.is_incident |= recent.refused_at.len() > ORDINARY;
        recent.is_incident
    }

    /// A refresh succeeded. Where none was refused of late, that ends an incident: silence alone does not, for those
    /// that are refused try ever less often.
    pub(super) fn note_success(&self, tenant: TenantId, scope: Scope, now: Timestamp) {
        if let Some(recent) = self.lock().get_mut(&(tenant, scope)) {
            recent.forget_before(now);
            recent.is_incident &= !recent.refused_at.is_empty();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(TenantId, Scope), Recent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn forget_before(&mut self, now: Timestamp) {
        while self.refused_at.front().is_some_and(|at| now.since(*at) >= WINDOW) {
            self.refused_at.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_000 + seconds)
    }

    #[test]
    fn many_refusals_at_once_are_an_incident_and_few_are_not() {
        let rejections = Rejections::default();
        let burst = |scope, seconds| rejections.are_a_burst(acme(), scope, at(seconds));
        for scope in [Scope::Anonymous, Scope::Customer] {
            assert!((0..ORDINARY).all(|_| !burst(scope, 0)), "each half is judged by its own");
            assert!(burst(scope, 1));
        }
        assert!(!rejections.are_a_burst(TenantId::parse("globex").unwrap(), Scope::Customer, at(1)));
    }

    #[test]
    fn an_incident_that_goes_on_is_one_incident_however_seldom_it_is_seen() {
        let rejections = Rejections::default();
        assert!((0..ORDINARY).all(|_| !rejections.are_a_burst(acme(), Scope::Customer, at(0))));
        assert!((0..100).all(|minute| rejections.are_a_burst(acme(), Scope::Customer, at(60 * minute))));
    }

    #[test]
    fn an_incident_ends_when_refreshes_succeed_and_none_is_refused() {
        let rejections = Rejections::default();
        let burst = |seconds| rejections.are_a_burst(acme(), Scope::Customer, at(seconds));
        assert_eq!((0..=ORDINARY).filter(|_| burst(0)).count(), 1);
        rejections.note_success(acme(), Scope::Customer, at(1));
        assert!(burst(12), "some were still refused");
        rejections.note_success(acme(), Scope::Customer, at(30));
        assert!(!burst(31));
    }
}
