//! Spares Emporix' token endpoints, and those who wait for them, while they are away or ask for a pause: a breaker for each
//! tenant and kind of call. A call that Emporix itself refuses or fails at says nothing about the next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::IdentityError;
use crate::clock::{Clock, Timestamp, jittered, jittered_past};
use crate::session::TenantId;
use crate::telemetry::{BreakerEvent, Dependency, EmporixCall, Label, Metrics};

/// Outages in a row after which it opens.
const MOST_OUTAGES: u32 = 5;

/// How long it stays open at first and at most; each probe that fails doubles it.
const OPEN_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The longest `Retry-After` that is believed.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// The breakers of all tenants.
pub(super) struct Breakers {
    breakers: HashMap<TenantId, Vec<Mutex<Breaker>>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Breaker {
    outages: u32,
    /// Nobody calls before this.
    opens_at: Timestamp,
    open_for: Duration,
    probing: bool,
    /// Until when Emporix asked for a pause, where that is what holds calls back.
    asked_until: Option<Timestamp>,
}

/// Leave to make one call.
pub(super) struct Leave<'b> {
    breakers: &'b Breakers,
    breaker: &'b Mutex<Breaker>,
    call: EmporixCall,
    /// Whether the others wait for how this one fares.
    pub(super) probes: bool,
    settled: bool,
}

impl Breakers {
    pub(super) fn new<'t>(
        tenants: impl Iterator<Item = &'t TenantId>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let closed = || EmporixCall::ALL.iter().map(|_| Mutex::default()).collect();
        Self { breakers: tenants.map(|tenant| (*tenant, closed())).collect(), clock, metrics }
    }

    /// Leave to make a call now. Once a pause is over one call goes ahead, and the others wait for how it fares.
    pub(super) fn ask(&self, tenant: &TenantId, call: EmporixCall) -> Result<Leave<'_>, IdentityError> {
        let unknown = IdentityError::Unavailable("an unknown tenant");
        let breaker = self.breakers.get(tenant).and_then(|breakers| breakers.get(call.index())).ok_or(unknown)?;
        let now = self.clock.now();
        let mut state = lock(breaker);
        if state.holds_back(now) {
            self.metrics.breakers.count(dependency(call), BreakerEvent::Refused);
            return Err(state.refusal(now));
        }
        let probes = state.outages >= MOST_OUTAGES || state.asked_until.is_some();
        state.probing = probes;
        Ok(Leave { breakers: self, breaker, call, probes, settled: false })
    }

    /// Tells the metrics how many of each kind hold calls back now, over all tenants.
    pub(super) fn report(&self) {
        let now = self.clock.now();
        for call in EmporixCall::ALL {
            let of_kind = self.breakers.values().filter_map(|breakers| breakers.get(call.index()));
            let open = of_kind.filter(|breaker| lock(breaker).holds_back(now)).count();
            self.metrics.breakers_open.set(dependency(*call), open);
        }
    }
}

impl Breaker {
    /// Whether a call would be refused now. A pause that is over holds nobody back, though no call came to prove it.
    fn holds_back(&self, now: Timestamp) -> bool {
        now < self.opens_at || self.probing
    }

    fn refusal(&self, now: Timestamp) -> IdentityError {
        let Some(asked_until) = self.asked_until else { return IdentityError::HeldBack };
        let seconds = asked_until.since(now).as_millis().div_ceil(1_000).max(1);
        IdentityError::RateLimited { retry_after: u64::try_from(seconds).ok() }
    }

    /// Emporix asked for a pause, which ends a little later than asked: no replica comes back with all the others.
    fn pause(&mut self, asked: Duration, now: Timestamp) {
        self.opens_at = self.opens_at.max(now.after(jittered_past(asked)));
        self.asked_until = self.asked_until.max(Some(now.after(asked)));
    }
}

impl Leave<'_> {
    /// Takes note of how the call ended.
    pub(super) fn settle<T>(mut self, answer: &Result<T, IdentityError>) {
        self.settled = true;
        let now = self.breakers.clock.now();
        let mut state = lock(self.breaker);
        state.probing &= !self.probes;
        match answer {
            Err(IdentityError::RateLimited { retry_after }) => {
                // A login may be limited for its account's sake, and others' logins must not suffer for it.
                if !self.call.signs_in() {
                    state.pause(Duration::from_secs(retry_after.unwrap_or(1)).min(LONGEST_HOLD), now);
                }
            }
            Err(error) if error.is_outage() => self.note_outage(&mut state, now),
            // It was under way when Emporix asked for a pause.
            _ if state.asked_until.is_some() && !self.probes => {}
            _ => {
                if state.outages >= MOST_OUTAGES {
                    self.breakers.metrics.breakers.count(dependency(self.call), BreakerEvent::Closed);
                    tracing::info!(call = self.call.text(), "Emporix answers again");
                }
                *state = Breaker::default();
            }
        }
    }

    fn note_outage(&self, state: &mut Breaker, now: Timestamp) {
        let was_open = state.outages >= MOST_OUTAGES;
        // Those that were under way when it opened say nothing new.
        if was_open && !self.probes {
            return;
        }
        state.outages += 1;
        if state.outages < MOST_OUTAGES {
            return;
        }
        if !was_open {
            self.breakers.metrics.breakers.count(dependency(self.call), BreakerEvent::Opened);
            tracing::warn!(call = self.call.text(), "Emporix is away; calls are held back");
        }
        state.open_for = (state.open_for * 2).clamp(OPEN_FOR.0, OPEN_FOR.1);
        // A pause that Emporix asked for is not cut short.
        state.opens_at = state.opens_at.max(now.after(jittered(state.open_for)));
        state.asked_until = None;
    }
}

impl Drop for Leave<'_> {
    /// A probe that nobody waited for proves nothing; the next call is one.
    fn drop(&mut self) {
        if !self.settled && self.probes {
            lock(self.breaker).probing = false;
        }
    }
}

fn lock(breaker: &Mutex<Breaker>) -> MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn dependency(call: EmporixCall) -> Dependency {
    match call {
        EmporixCall::AnonymousLogin => Dependency::AnonymousLogin,
        EmporixCall::AnonymousRefresh => Dependency::AnonymousRefresh,
        EmporixCall::Login => Dependency::Login,
        EmporixCall::SocialLogin => Dependency::SocialLogin,
        EmporixCall::Exchange => Dependency::Exchange,
        EmporixCall::OptIn => Dependency::OptIn,
        EmporixCall::Refresh => Dependency::Refresh,
        EmporixCall::Revoke => Dependency::Revoke,
        EmporixCall::Introspect => Dependency::Introspect,
        EmporixCall::Service => Dependency::Service,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ShiftedClock;

    const OUTAGE: Result<(), IdentityError> = Err(IdentityError::Unknown("no answer in time"));
    const LIMITED: Result<(), IdentityError> = Err(IdentityError::RateLimited { retry_after: Some(7) });

    fn breakers() -> (Breakers, Arc<ShiftedClock>, TenantId) {
        let (clock, tenant) = (Arc::new(ShiftedClock::default()), TenantId::parse("acme").unwrap());
        let metrics = Arc::new(Metrics::new().unwrap());
        (Breakers::new([&tenant].into_iter(), clock.clone(), metrics), clock, tenant)
    }

    #[test]
    fn it_opens_after_outages_in_a_row_and_lets_one_probe_through_at_a_time() {
        let (breakers, clock, acme) = breakers();
        let ask = || breakers.ask(&acme, EmporixCall::Refresh);
        for _ in 0..MOST_OUTAGES {
            ask().unwrap().settle(&OUTAGE);
        }
        assert!(matches!(ask(), Err(IdentityError::HeldBack)));
        assert!(breakers.ask(&acme, EmporixCall::Login).is_ok(), "other calls are others");
        clock.advance(OPEN_FOR.0);
        let probe = ask().unwrap();
        assert!(ask().is_err(), "one at a time");
        probe.settle(&OUTAGE);
        assert!(ask().is_err());
        clock.advance(OPEN_FOR.1);
        ask().unwrap().settle(&Ok(()));
        let (first, second) = (ask(), ask());
        assert!(first.is_ok() && second.is_ok(), "closed again");
    }

    #[test]
    fn a_probe_that_nobody_waited_for_leaves_room_for_the_next() {
        let (breakers, clock, acme) = breakers();
        for _ in 0..MOST_OUTAGES {
            breakers.ask(&acme, EmporixCall::Refresh).unwrap().settle(&OUTAGE);
        }
        clock.advance(OPEN_FOR.0);
        drop(breakers.ask(&acme, EmporixCall::Refresh).unwrap());
        assert!(breakers.ask(&acme, EmporixCall::Refresh).is_ok());
    }

    #[test]
    fn it_is_told_of_as_open_only_while_it_holds_calls_back() {
        let (breakers, clock, acme) = breakers();
        let open = || {
            breakers.report();
            let text = String::from_utf8(breakers.metrics.render()).unwrap();
            ["refresh", "login"].map(|kind| text.contains(&format!("breakers_open{{dependency=\"{kind}\"}} 1")))
        };
        for _ in 0..MOST_OUTAGES {
            assert_eq!(open(), [false, false]);
            breakers.ask(&acme, EmporixCall::Refresh).unwrap().settle(&OUTAGE);
        }
        assert_eq!(open(), [true, false]);
        clock.advance(OPEN_FOR.0);
        assert_eq!(open(), [false, false], "nobody calls, and nobody would be refused");
        let probe = breakers.ask(&acme, EmporixCall::Refresh).unwrap();
        assert_eq!(open(), [true, false], "the others wait for the probe");
        probe.settle(&Ok(()));
        assert_eq!(open(), [false, false]);
    }

    #[test]
    fn calls_that_were_under_way_when_it_opened_say_nothing_new() {
        let (breakers, clock, acme) = breakers();
        let ask = || breakers.ask(&acme, EmporixCall::Refresh);
        let under_way: Vec<_> = (0..4 * MOST_OUTAGES).map(|_| ask().unwrap()).collect();
        under_way.into_iter().for_each(|leave| leave.settle(&OUTAGE));
        clock.advance(OPEN_FOR.0);
        assert!(ask().is_ok(), "open for the first, short time");
    }

    #[test]
    fn what_emporix_refuses_or_fails_at_is_no_outage() {
        let (breakers, _, acme) = breakers();
        for answer in [IdentityError::AuthorizerRefused, IdentityError::Failed("server error")] {
            for _ in 0..3 * MOST_OUTAGES {
                breakers.ask(&acme, EmporixCall::Refresh).unwrap().settle(&Err::<(), _>(answer.clone()));
            }
        }
        assert!(breakers.ask(&acme, EmporixCall::Refresh).is_ok());
    }

    #[test]
    fn a_pause_that_emporix_asks_for_is_kept_and_passed_on() {
        let (breakers, clock, acme) = breakers();
        breakers.ask(&acme, EmporixCall::Refresh).unwrap().settle(&LIMITED);
        clock.advance(Duration::from_secs(3));
        let refused = breakers.ask(&acme, EmporixCall::Refresh);
        assert!(matches!(refused, Err(IdentityError::RateLimited { retry_after: Some(4) })));
        clock.advance(Duration::from_secs(6));
        assert!(breakers.ask(&acme, EmporixCall::Refresh).is_ok());
        breakers.ask(&acme, EmporixCall::Login).unwrap().settle(&LIMITED);
        assert!(breakers.ask(&acme, EmporixCall::Login).is_ok(), "one account's limit is not everybody's");
    }

    #[test]
    fn one_call_goes_ahead_when_a_pause_ends_and_the_others_wait_for_how_it_fares() {
        let (breakers, clock, acme) = breakers();
        let ask = || breakers.ask(&acme, EmporixCall::Refresh);
        let over = Duration::from_secs(7 * 5 / 4 + 1);
        let under_way = ask().unwrap();
        ask().unwrap().settle(&LIMITED);
        under_way.settle(&Ok(()));
        assert!(ask().is_err(), "what was under way does not end the pause");
        for answer in [LIMITED, OUTAGE, Ok(())] {
            clock.advance(over);
            let probe = ask().unwrap();
            assert!(matches!(ask(), Err(IdentityError::RateLimited { retry_after: Some(1) })), "{answer:?}");
            probe.settle(&answer);
        }
        let (first, second) = (ask(), ask());
        assert!(first.is_ok() && second.is_ok(), "all go on");
    }

    #[test]
    fn a_pause_ends_no_sooner_than_asked_and_not_for_all_at_once() {
        const MOST: usize = 200;
        let mut early = 0;
        for _ in 0..MOST {
            let (breakers, clock, acme) = breakers();
            let ask = || breakers.ask(&acme, EmporixCall::Refresh);
            ask().unwrap().settle(&LIMITED);
            clock.advance(Duration::from_millis(6_900));
            assert!(ask().is_err());
            clock.advance(Duration::from_millis(975));
            early += usize::from(ask().is_ok());
        }
        assert!((MOST / 5..MOST * 4 / 5).contains(&early), "{early} of {MOST} after half of the spread");
    }
}
