//! Lines of the threads' own, for reading: an answer comes on the thread that waits for it, and no other one is woken.
//! They stand beside the keeper's line, which serves whoever has none: while it opens, and after it failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thread_local::ThreadLocal;
use tokio::time::{Instant, timeout};

use super::deployment::{CurrentDeployment, Deployment, Line, Timeouts};
use super::keeper::Numbered;

/// A line that nobody used for so long is replaced: a firewall may have forgotten it.
const IDLE: Duration = Duration::from_secs(30);

/// How long a thread does without after its line failed.
const REST: Duration = Duration::from_secs(1);

/// A line for each thread that reads.
pub(super) struct NearLines {
    deployment: CurrentDeployment,
    timeouts: Timeouts,
    threads: ThreadLocal<Slot>,
}

type Slot = Arc<Mutex<State>>;

enum State {
    /// None is wanted before then.
    Absent(Option<Instant>),
    Opening,
    Open {
        line: Line,
        /// The keeper's line beside which it was opened: what that one's end says of the server counts here too.
        beside: u64,
        opened_at: Instant,
        used_at: Instant,
    },
}

/// A use of a thread's line.
pub(super) struct Near<'n> {
    pub(super) line: Line,
    slot: &'n Slot,
    opened_at: Instant,
}

impl NearLines {
    pub(super) fn new(deployment: CurrentDeployment, timeouts: Timeouts) -> Self {
        Self { deployment, timeouts, threads: ThreadLocal::new() }
    }

    /// This thread's line. Where it has none, one is opened behind the request. A cluster has one line to each node as it
    /// is: there the keeper's serves.
    pub(super) fn beside(&self, keepers: &Numbered) -> Option<Near<'_>> {
        if !keepers.is_one_server() {
            return None;
        }
        let (slot, now) = (self.threads.get_or_default(), Instant::now());
        let mut state = lock(slot);
        match &mut *state {
            State::Open { line, beside, opened_at, used_at } if *beside == keepers.number && now - *used_at < IDLE => {
                *used_at = now;
                return Some(Near { line: line.clone(), slot, opened_at: *opened_at });
            }
            State::Opening => return None,
            State::Absent(Some(until)) if now < *until => return None,
            State::Open { .. } | State::Absent(_) => *state = State::Opening,
        }
        tokio::spawn(open(slot.clone(), self.deployment.load_full(), self.timeouts, keepers.number));
        None
    }
}

impl Near<'_> {
    /// Says that it failed. A fault of an old line is none of a new one.
    pub(super) fn give_up(self) {
        let mut state = lock(self.slot);
        if matches!(&*state, State::Open { opened_at, .. } if *opened_at == self.opened_at) {
            *state = State::Absent(Some(Instant::now() + REST));
        }
    }
}

/// Opens a line on the thread's own runtime, whose tasks then carry its bytes.
async fn open(slot: Slot, deployment: Arc<Deployment>, timeouts: Timeouts, beside: u64) {
    let opened = timeout(timeouts.opening(), deployment.open(timeouts, None)).await;
    let now = Instant::now();
    *lock(&slot) = match opened {
        Ok(Ok(line)) => State::Open { line, beside, opened_at: now, used_at: now },
        Ok(Err(_)) | Err(_) => State::Absent(Some(now + REST)),
    };
}

fn lock(slot: &Slot) -> MutexGuard<'_, State> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for State {
    fn default() -> Self {
        Self::Absent(None)
    }
}
