//! What time it is, as a value and as a seam.
//! Everything that depends on time takes a [`Timestamp`]; only the composition root chooses the [`Clock`].

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minicbor::{Decode, Encode};
use rustix::time::{ClockId, clock_gettime};

/// An instant, in whole milliseconds since the Unix epoch.
///
/// Arithmetic saturates: hostile lifetimes such as `1e18` seconds end at the last representable instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Timestamp(#[n(0)] u64);

impl Timestamp {
    /// An instant later than every other.
    pub const NEVER: Self = Self(u64::MAX);

    /// The instant `millis` milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The instant `seconds` seconds after the epoch.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// The instant `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_millis(duration)))
    }

    /// How long after `earlier` this instant is; zero when it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_millis(at.millis())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seconds())
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Between half and the whole of `wait`: replicas that began to wait together do not go on together.
#[must_use]
pub fn jittered(wait: Duration) -> Duration {
    wait / 2 + (wait / 2).mul_f64(random_share())
}

/// The whole of `asked` and up to a quarter more: who was asked to wait comes no sooner, and not with all the others.
#[must_use]
pub fn jittered_past(asked: Duration) -> Duration {
    asked.saturating_add((asked / 4).mul_f64(random_share()))
}

/// Between 0 and 1. Without random bytes it is merely the same for all.
fn random_share() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Timestamp;

    /// For how long the machine has been up. Nobody sets it, and it goes on while this process is stopped or the
    /// machine sleeps: what it measures is what others have lived through meanwhile.
    fn uptime(&self) -> Duration;
}

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(whole_millis(elapsed))
    }

    fn uptime(&self) -> Duration {
        Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
    }
}

/// The machine's clock, moved forward by hand: tests age a session without waiting for it.
#[derive(Debug, Default)]
pub struct ShiftedClock {
    ahead_millis: AtomicU64,
}

impl ShiftedClock {
    /// Moves the clock `duration` forward.
    pub fn advance(&self, duration: Duration) {
        self.ahead_millis.fetch_add(whole_millis(duration), Ordering::Relaxed);
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.ahead())
    }

    fn uptime(&self) -> Duration {
        SystemClock.uptime() + self.ahead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let century = Duration::from_secs(u64::MAX);
        assert_eq!(Timestamp::from_seconds(5).after(century), Timestamp::NEVER);
        assert_eq!(Timestamp::from_seconds(5).since(Timestamp::from_seconds(9)), Duration::ZERO);
    }

    /// The shortest and the longest of many draws.
    fn range_of(draw: impl Fn() -> Duration) -> (Duration, Duration) {
        let drawn: Vec<_> = (0..1_000).map(|_| draw()).collect();
        (*drawn.iter().min().unwrap(), *drawn.iter().max().unwrap())
    }

    #[test]
    fn jitter_keeps_its_bounds_and_makes_use_of_them() {
        let millis = Duration::from_millis;
        let (shortest, longest) = range_of(|| jittered(millis(10_000)));
        assert!((millis(5_000)..millis(5_500)).contains(&shortest), "{shortest:?}");
        assert!((millis(9_500)..=millis(10_000)).contains(&longest), "{longest:?}");
        let (shortest, longest) = range_of(|| jittered_past(millis(10_000)));
        assert!((millis(10_000)..millis(10_250)).contains(&shortest), "{shortest:?}");
        assert!((millis(12_250)..=millis(12_500)).contains(&longest), "{longest:?}");
        for of_nothing in [jittered(Duration::ZERO), jittered_past(Duration::ZERO)] {
            assert_eq!(of_nothing, Duration::ZERO);
        }
    }

    #[test]
    fn a_clock_that_is_moved_moves_its_uptime_too() {
        let (clock, before) = (ShiftedClock::default(), SystemClock.uptime());
        assert!(before > Duration::ZERO);
        clock.advance(Duration::from_secs(60));
        assert!(clock.uptime() >= before + Duration::from_secs(60));
    }
}
