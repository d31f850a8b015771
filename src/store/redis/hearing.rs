//! Hears what other replicas say over Redis' pub/sub, and knows whether it hears at all.
//! A replica trusts the channel only while its own beats come back over it: silence proves nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{AsyncPushSender, SendError};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, broadcast};

use crate::clock::Timestamp;
use crate::session::SessionKey;
use crate::store::{Invalidation, StoreError};

/// Where replicas tell each other what changed.
pub(super) const CHANNEL: &str = "eg:invalidations";

/// How often a replica says that it is there.
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Beats that may be late before the channel counts as broken.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// The replica's ear.
pub(super) struct Hearing {
    /// Tells this replica's messages from the others'.
    replica: [u8; 16],
    /// The line that is listened to; what comes over an earlier one proves nothing.
    line: AtomicU64,
    hears: AtomicBool,
    round: Mutex<Round>,
    invalidations: broadcast::Sender<Invalidation>,
    /// Woken when the server closed the line.
    pub(super) broken: Notify,
}

/// One beat, said to every primary: messages from each of them arrive when all of its copies do.
struct Round {
    number: u64,
    said: usize,
    heard: usize,
    /// When a round was last heard as a whole.
    complete_at: Instant,
}

/// Turns what Redis pushes over one line into invalidations.
pub(super) struct Listener {
    pub(super) hearing: Arc<Hearing>,
    pub(super) line: u64,
}

impl Hearing {
    pub(super) fn new() -> Result<Self, StoreError> {
        let mut replica = [0; 16];
        getrandom::fill(&mut replica).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self {
            replica,
            line: AtomicU64::new(0),
            hears: AtomicBool::new(false),
            round: Mutex::new(Round { number: 0, said: 0, heard: 0, complete_at: Instant::now() }),
            invalidations: broadcast::channel(4096).0,
            broken: Notify::new(),
        })
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Invalidation> {
        self.invalidations.subscribe()
    }

    /// Whether messages of other replicas arrive.
    pub(super) fn hears(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    /// Nothing is known to arrive from now on, until a round of beats does.
    pub(super) fn lose(&self) {
        self.hears.store(false, Ordering::Release);
    }

    /// Listens to another line from now on; earlier silence counts for nothing.
    pub(super) fn turn_to(&self, line: u64) {
        self.lose();
        self.line.store(line, Ordering::Release);
        self.round().complete_at = Instant::now();
    }

    /// Says that the channel is broken when no round came through for too long. Returns whether none did.
    pub(super) fn listen_for_beats(&self) -> bool {
        let missing = self.round().complete_at.elapsed() > PATIENCE;
        if missing {
            self.lose();
        }
        missing
    }

    /// The beat of a new round.
    pub(super) fn beat(&self) -> Vec<u8> {
        let mut round = self.round();
        (round.number, round.said, round.heard) = (round.number + 1, 0, 0);
        [&self.replica[..], b"B", &round.number.to_be_bytes()].concat()
    }

    /// So many servers took the beat.
    pub(super) fn said_to(&self, servers: usize) {
        let mut round = self.round();
        round.said = servers;
        self.settle(&mut round);
    }

    /// That a record was written.
    pub(super) fn replaced(&self, key: &SessionKey) -> Vec<u8> {
        [&self.replica[..], b"R", key.as_bytes()].concat()
    }

    /// That a session ended, and when.
    pub(super) fn ended(&self, key: &SessionKey, at: Timestamp) -> Vec<u8> {
        [&self.replica[..], b"E", key.as_bytes(), &at.millis().to_be_bytes()].concat()
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear_beat(&self, number: u64) {
        let mut round = self.round();
        if number == round.number {
            round.heard += 1;
            self.settle(&mut round);
        }
    }

    fn settle(&self, round: &mut Round) {
        if round.said == 0 || round.heard < round.said {
            return;
        }
        round.complete_at = Instant::now();
        if !self.hears.swap(true, Ordering::AcqRel) {
            self.tell(Invalidation::Everything);
        }
    }

    fn tell(&self, invalidation: Invalidation) {
        // Nobody listening is fine: the hot cache is then bounded by its staleness.
        let _ = self.invalidations.send(invalidation);
    }

    fn hear(&self, line: u64, message: &[u8]) -> Option<()> {
        let (replica, rest) = message.split_first_chunk::<16>()?;
        let (kind, rest) = rest.split_first()?;
        match (kind, *replica == self.replica) {
            (b'B', true) if line == self.line.load(Ordering::Acquire) => {
                self.hear_beat(u64::from_be_bytes(*rest.first_chunk::<8>()?));
            }
            (b'R', false) => self.tell(Invalidation::Replaced(read_key(rest)?.0)),
            (b'E', false) => {
                let (key, rest) = read_key(rest)?;
                let at = u64::from_be_bytes(*rest.first_chunk::<8>()?);
                self.tell(Invalidation::Ended(key, Timestamp::from_millis(at)));
            }
            // What this replica did itself, and that others are there, is no news.
            _ => {}
        }
        Some(())
    }
}

fn read_key(bytes: &[u8]) -> Option<(SessionKey, &[u8])> {
    let (key, rest) = bytes.split_first_chunk::<{ SessionKey::LENGTH }>()?;
    Some((SessionKey::from_bytes(*key), rest))
}

impl AsyncPushSender for Listener {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        match push.kind {
            PushKind::Disconnection if self.line == self.hearing.line.load(Ordering::Acquire) => {
                self.hearing.lose();
                self.hearing.broken.notify_one();
            }
            PushKind::Message => {
                if let Some(Value::BulkString(message)) = push.data.get(1) {
                    // A message that cannot be read is none of ours.
                    let _ = self.hearing.hear(self.line, message);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SessionKey = SessionKey::from_bytes([7; 16]);

    /// Says a beat to `servers`, of which `heard` send it back over `line`.
    fn beat(hearing: &Hearing, line: u64, servers: usize, heard: usize) {
        let beat = hearing.beat();
        hearing.said_to(servers);
        (0..heard).for_each(|_| assert!(hearing.hear(line, &beat).is_some()));
    }

    #[test]
    fn messages_of_other_replicas_are_heard_and_own_ones_are_not() {
        let (own, other) = (Hearing::new().unwrap(), Hearing::new().unwrap());
        let mut heard = own.subscribe();
        let at = Timestamp::from_seconds(5);
        for message in [own.replaced(&KEY), own.ended(&KEY, at), other.replaced(&KEY), other.ended(&KEY, at)] {
            assert!(own.hear(0, &message).is_some());
        }
        assert_eq!(heard.try_recv(), Ok(Invalidation::Replaced(KEY)));
        assert_eq!(heard.try_recv(), Ok(Invalidation::Ended(KEY, at)));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn only_its_own_beat_proves_that_a_replica_hears_and_all_may_have_changed_before_it() {
        let (own, other) = (Hearing::new().unwrap(), Hearing::new().unwrap());
        let mut heard = own.subscribe();
        own.hear(0, &other.beat());
        assert!(!own.hears());
        beat(&own, 0, 1, 1);
        assert!(own.hears());
        assert_eq!(heard.try_recv(), Ok(Invalidation::Everything));
        beat(&own, 0, 1, 1);
        assert!(heard.try_recv().is_err(), "a further beat says nothing new");
        own.lose();
        beat(&own, 0, 1, 1);
        assert_eq!(heard.try_recv(), Ok(Invalidation::Everything));
    }

    #[test]
    fn a_beat_has_to_come_back_from_every_server_and_in_its_own_round() {
        let own = Hearing::new().unwrap();
        beat(&own, 0, 3, 2);
        assert!(!own.hears(), "one server's messages do not arrive");
        let late = own.beat();
        beat(&own, 0, 1, 0);
        own.hear(0, &late);
        assert!(!own.hears(), "an earlier round's beat");
        beat(&own, 0, 3, 3);
        assert!(own.hears());
    }

    #[test]
    fn what_comes_over_an_abandoned_line_proves_nothing() {
        let own = Arc::new(Hearing::new().unwrap());
        own.turn_to(2);
        beat(&own, 1, 1, 1);
        assert!(!own.hears());
        beat(&own, 2, 1, 1);
        assert!(own.hears());
        let close = |line| {
            let listener = Listener { hearing: own.clone(), line };
            listener.send(PushInfo { kind: PushKind::Disconnection, data: Vec::new() }).unwrap();
        };
        close(1);
        assert!(own.hears());
        close(2);
        assert!(!own.hears());
    }

    #[test]
    fn what_is_no_message_of_ours_is_ignored() {
        let own = Hearing::new().unwrap();
        let mut heard = own.subscribe();
        let cut_off = &Hearing::new().unwrap().ended(&KEY, Timestamp::NEVER)[..30];
        for message in [&b""[..], b"R", &[0; 16], &[0; 20], &[1; 60], cut_off] {
            let _ = own.hear(0, message);
        }
        assert!(heard.try_recv().is_err());
    }
}
