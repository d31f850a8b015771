//! What anybody who reaches a listener can cause: such lines are said seldom, or counted and said at debug level only.
//! Nobody fills the log from outside, and none of these lines names an address.

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, Registry};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata};
use tracing_subscriber::layer::{Context, Filter};

use super::tally::Kind;

/// A warning that is said at most once in [`Seldom::PAUSE`].
pub struct Seldom {
    line: &'static str,
    unsaid: Mutex<Unsaid>,
}

struct Unsaid {
    last_said: Option<Instant>,
    times: u64,
}

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    /// `line`, which was not said yet.
    #[must_use]
    pub const fn new(line: &'static str) -> Self {
        Self { line, unsaid: Mutex::new(Unsaid { last_said: None, times: 0 }) }
    }

    /// Says it, unless it was said a moment ago; and how often it was not said in between.
    pub fn warn(&self) {
        if let Some(unsaid) = self.due(Instant::now()) {
            tracing::warn!(unsaid, "{}", self.line);
        }
    }

    /// How often the line was not said since it was said last; nothing where it is not to be said `now`.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        if unsaid.last_said.is_some_and(|last| now.saturating_duration_since(last) < Self::PAUSE) {
            unsaid.times += 1;
            return None;
        }
        unsaid.last_said = Some(now);
        Some(std::mem::take(&mut unsaid.times))
    }
}

/// Counts the handshakes that failed, of all listeners of this process: Pingora tells of them in its log alone.
pub struct FailedHandshakes;

static FAILED: OnceLock<IntCounter> = OnceLock::new();

impl Kind for FailedHandshakes {
    fn register(registry: &Registry, (name, help): (&str, &str), _: &[&str]) -> prometheus::Result<Self> {
        let counter = IntCounter::new(name, help)?;
        registry.register(Box::new(FAILED.get_or_init(|| counter).clone()))?;
        Ok(Self)
    }
}

/// Lets Pingora's word of a failed handshake, which names the client's address, pass where the log is at debug level.
/// A port that is open to the world, or a health check over TCP, would have it written all day.
pub(super) struct Handshakes;

impl<S> Filter<S> for Handshakes {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let mut failed = HandshakeFailed(false);
        if *event.metadata().level() == Level::ERROR {
            event.record(&mut failed);
        }
        if failed.0 {
            FAILED.get().inspect(|counter| counter.inc());
        }
        !failed.0 || LevelFilter::current() >= LevelFilter::DEBUG
    }
}

/// Whether an event's message says so.
struct HandshakeFailed(bool);

impl Visit for HandshakeFailed {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = tells_of_handshake(&format!("{value:?}"));
        }
    }
}

fn tells_of_handshake(message: &str) -> bool {
    message.starts_with("Downstream handshake ") || message.starts_with("H2 handshake error ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_once_in_a_while_with_the_number_of_those_that_were_not() {
        let (line, begin) = (Seldom::new("somebody knocks"), Instant::now());
        let due = |millis| line.due(begin + Duration::from_millis(millis));
        assert_eq!([0, 1, 9_999].map(due), [Some(0), None, None]);
        assert_eq!([10_000, 19_999].map(due), [Some(2), None]);
        assert_eq!([60_000, 59_000, 70_000].map(due), [Some(1), None, Some(1)]);
    }

    #[test]
    fn what_pingora_says_of_handshakes_is_known_and_nothing_else() {
        for (message, expected) in [
            ("Downstream handshake error from 203.0.113.9:4711: unexpected EOF", true),
            ("Downstream handshake error: unexpected EOF", true),
            ("Downstream handshake timeout", true),
            ("H2 handshake error invalid preface", true),
            ("Accept() failed Too many open files", false),
        ] {
            assert_eq!(tells_of_handshake(message), expected, "{message}");
        }
    }
}
