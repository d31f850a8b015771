//! Tells one dead refresh token from an incident: when Emporix refuses many sessions' refreshes at once, the fault is
//! hardly theirs, and nobody is logged out for it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// Refusals within [`WINDOW`] that are still taken for the sessions' own.
const ORDINARY: usize = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// When refreshes were refused of late.
#[derive(Default)]
pub(super) struct Rejections(Mutex<VecDeque<Timestamp>>);

impl Rejections {
    /// Counts a refusal, and says whether there are too many to be believed.
    pub(super) fn are_a_burst(&self, now: Timestamp) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.front().is_some_and(|at| now.since(*at) >= WINDOW) {
            recent.pop_front();
        }
        if recent.len() > ORDINARY {
            recent.pop_front();
        }
        recent.push_back(now);
        recent.len() > ORDINARY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_at_once_are_an_incident_and_few_are_not() {
        let rejections = Rejections::default();
        let at = |seconds: u64| Timestamp::from_seconds(1_000 + seconds);
        assert!((0..ORDINARY).all(|_| !rejections.are_a_burst(at(0))));
        assert!(rejections.are_a_burst(at(1)));
        assert!(!rejections.are_a_burst(at(12)));
    }

    #[test]
    fn an_incident_that_goes_on_is_one_incident() {
        let rejections = Rejections::default();
        let refusals = (0..3_000).map(|tenth: u64| Timestamp::from_millis(1_000_000 + tenth * 100));
        let believed = refusals.filter(|at| !rejections.are_a_burst(*at)).count();
        assert_eq!(believed, ORDINARY);
    }
}
