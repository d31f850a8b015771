//! Hears what other replicas say over Redis' pub/sub, and knows whether it hears at all.
//! A replica trusts the channel only while its own beats come back over it: silence proves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    hears: AtomicBool,
    started: Instant,
    heard_at: AtomicU64,
    invalidations: broadcast::Sender<Invalidation>,
    /// Woken when the server closed a line.
    pub(super) broken: Notify,
}

/// Turns what Redis pushes into invalidations.
#[derive(Clone)]
pub(super) struct Listener(pub(super) Arc<Hearing>);

impl Hearing {
    pub(super) fn new() -> Result<Self, StoreError> {
        let mut replica = [0; 16];
        getrandom::fill(&mut replica).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self {
            replica,
            hears: AtomicBool::new(false),
            started: Instant::now(),
            heard_at: AtomicU64::new(0),
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

    /// Nothing is known to arrive from now on, until a beat does.
    pub(super) fn lose(&self) {
        self.hears.store(false, Ordering::Release);
    }

    /// A beat is about to be sent for the first time: earlier silence counts for nothing.
    pub(super) fn expect_beat(&self) {
        self.heard_at.store(self.now(), Ordering::Release);
    }

    /// Says that the channel is broken when beats have been missing for too long. Returns whether they have.
    pub(super) fn listen_for_beats(&self) -> bool {
        let silent = self.now().saturating_sub(self.heard_at.load(Ordering::Acquire));
        let missing = u128::from(silent) > PATIENCE.as_millis();
        if missing {
            self.lose();
        }
        missing
    }

    /// This replica's beat.
    pub(super) fn beat(&self) -> Vec<u8> {
        [&self.replica[..], b"B"].concat()
    }

    /// That a record was written.
    pub(super) fn replaced(&self, key: &SessionKey) -> Vec<u8> {
        [&self.replica[..], b"R", key.as_bytes()].concat()
    }

    /// That a session ended, and when.
    pub(super) fn ended(&self, key: &SessionKey, at: Timestamp) -> Vec<u8> {
        [&self.replica[..], b"E", key.as_bytes(), &at.millis().to_be_bytes()].concat()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note_beat(&self) {
        self.expect_beat();
        if !self.hears.swap(true, Ordering::AcqRel) {
            self.tell(Invalidation::Everything);
        }
    }

    fn tell(&self, invalidation: Invalidation) {
        // Nobody listening is fine: the hot cache is then bounded by its staleness.
        let _ = self.invalidations.send(invalidation);
    }

    fn hear(&self, message: &[u8]) -> Option<()> {
        let (replica, rest) = message.split_first_chunk::<16>()?;
        let (kind, rest) = rest.split_first()?;
        match (kind, *replica == self.replica) {
            (b'B', true) => self.note_beat(),
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
            PushKind::Disconnection => {
                self.0.lose();
                self.0.broken.notify_one();
            }
            PushKind::Message => {
                if let Some(Value::BulkString(message)) = push.data.get(1) {
                    // A message that cannot be read is none of ours.
                    let _ = self.0.hear(message);
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

    #[test]
    fn messages_of_other_replicas_are_heard_and_own_ones_are_not() {
        let (own, other) = (Hearing::new().unwrap(), Hearing::new().unwrap());
        let mut heard = own.subscribe();
        let at = Timestamp::from_seconds(5);
        for message in [own.replaced(&KEY), own.ended(&KEY, at), other.replaced(&KEY), other.ended(&KEY, at)] {
            assert!(own.hear(&message).is_some());
        }
        assert_eq!(heard.try_recv(), Ok(Invalidation::Replaced(KEY)));
        assert_eq!(heard.try_recv(), Ok(Invalidation::Ended(KEY, at)));
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn only_its_own_beat_proves_that_a_replica_hears_and_all_may_have_changed_before_it() {
        let (own, other) = (Hearing::new().unwrap(), Hearing::new().unwrap());
        let mut heard = own.subscribe();
        own.hear(&other.beat());
        assert!(!own.hears());
        own.hear(&own.beat());
        assert!(own.hears());
        assert_eq!(heard.try_recv(), Ok(Invalidation::Everything));
        own.hear(&own.beat());
        assert!(heard.try_recv().is_err(), "a further beat says nothing new");
        own.lose();
        own.hear(&own.beat());
        assert_eq!(heard.try_recv(), Ok(Invalidation::Everything));
    }

    #[test]
    fn what_is_no_message_of_ours_is_ignored() {
        let own = Hearing::new().unwrap();
        let mut heard = own.subscribe();
        let cut_off = &Hearing::new().unwrap().ended(&KEY, Timestamp::NEVER)[..30];
        for message in [&b""[..], b"R", &[0; 16], &[0; 20], &[1; 60], cut_off] {
            let _ = own.hear(message);
        }
        assert!(heard.try_recv().is_err());
    }
}
