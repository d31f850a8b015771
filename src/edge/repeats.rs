//! Requests that are repeated with a renewed token: a share of what is under way, so that an API that takes every token for
//! over is not asked everything twice. The others wait for their turn, for one renewal may mend a thousand requests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// The requests that are being repeated.
#[derive(Default)]
pub(super) struct Repeats {
    begun: AtomicUsize,
    one_ended: Notify,
}

/// A request that is being repeated.
pub(super) struct Repeat<'g>(&'g Repeats);

impl Repeats {
    fn begin(&self, under_way: usize) -> Option<Repeat<'_>> {
        const ALWAYS: usize = 16;
        let most = ALWAYS + under_way / 5;
        let begun = self.begun.try_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < most).then(|| now + 1));
        begun.is_ok().then(|| Repeat(self))
    }

    /// Begins when there is leave to; not at all where that takes too long.
    pub(super) async fn turn(&self, under_way: impl Fn() -> usize) -> Option<Repeat<'_>> {
        let begun = async {
            loop {
                match self.begin(under_way()) {
                    Some(repeat) => return repeat,
                    // One that ended since has left its word here.
                    None => self.one_ended.notified().await,
                }
            }
        };
        timeout(PATIENCE, begun).await.ok()
    }
}

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::AcqRel);
        self.0.one_ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_a_share_of_what_is_under_way() {
        let repeats = Repeats::default();
        let begun: Vec<_> = (0..100).map_while(|_| repeats.begin(50)).collect();
        assert_eq!(begun.len(), 26);
        drop(begun);
        assert!(repeats.begin(0).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_be_repeated_yet_waits_for_its_turn_and_not_for_ever() {
        let repeats = Repeats::default();
        let mut begun: Vec<_> = (0..16).map_while(|_| repeats.begin(0)).collect();
        assert!(repeats.turn(|| 0).await.is_none());
        let waiting = async { repeats.turn(|| 0).await.is_some() };
        let (taken, ()) = tokio::join!(waiting, async { drop(begun.pop()) });
        assert!(taken);
    }
}
