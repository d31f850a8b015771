//! Keeps a line to Redis open, and is the breaker in front of it: while there is no line, nobody waits for one.
//! One task opens lines and tries them out, so Redis meets one newcomer a replica when it returns, not every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::{Cmd, RedisError, RedisResult};
use tokio::sync::watch;
use tokio::time::{Instant, error::Elapsed, timeout};

use super::deployment::{CurrentDeployment, Deployment, Line, Timeouts};
use super::faults::{is_denied, is_of_the_line, is_refusal, late, unavailable};
use super::hearing::{BEAT_EVERY, CHANNEL, Hearing, Listener};
use crate::clock::jittered;
use crate::store::StoreError;
use crate::telemetry::{BreakerEvent, Dependency, Metrics};

/// Answers that may be late in a row before the line is given up.
const MOST_LATE: u32 = 5;

/// How long a line is kept at least when all that its server says is that it does not serve: the next one would hear
/// the same.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// Waits between attempts at opening a line, doubling from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What is said and read on trial: no replica takes it for a message, and there is no such record.
const NO_MESSAGE: &[u8] = b"";
const NO_KEY: &str = "eg:trial";

/// The line, as its users see it.
#[derive(Clone)]
enum State {
    /// There will be one in a moment, or it will be known that there is none.
    Opening,
    Open(Numbered),
    /// There is none: the breaker is open.
    Away,
}

/// A line and its number: a fault of an old line is none of a new one.
#[derive(Clone)]
pub(super) struct Numbered {
    pub(super) line: Line,
    pub(super) number: u64,
    /// A refusal before this replaces it not yet.
    kept_until: Instant,
}

impl Numbered {
    /// Whether a fault is one of the whole line: a cluster's other nodes may well serve, and it mends its own lines.
    pub(super) const fn is_one_server(&self) -> bool {
        matches!(self.line, Line::Node(_))
    }
}

/// Keeps the line.
pub(super) struct Keeper {
    deployment: CurrentDeployment,
    /// Its address, for who reads the log.
    place: String,
    timeouts: Timeouts,
    hearing: Arc<Hearing>,
    state: watch::Sender<State>,
    late: AtomicU32,
    metrics: Arc<Metrics>,
}

impl Keeper {
    pub(super) fn new(
        deployment: CurrentDeployment,
        place: String,
        timeouts: Timeouts,
        hearing: Arc<Hearing>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (state, _) = watch::channel(State::Opening);
        Self { deployment, place, timeouts, hearing, state, late: AtomicU32::new(0), metrics }
    }

    /// The line. Waits for one that is being opened, and for none that is away.
    pub(super) async fn line(&self) -> Result<Numbered, StoreError> {
        if let State::Open(open) = &*self.state.borrow() {
            return Ok(open.clone());
        }
        let mut state = self.state.subscribe();
        let settled = timeout(self.timeouts.response, state.wait_for(|state| !matches!(state, State::Opening)));
        if let Ok(Ok(state)) = settled.await
            && let State::Open(open) = &*state
        {
            return Ok(open.clone());
        }
        self.metrics.breakers.count(Dependency::Store, BreakerEvent::Refused);
        Err(StoreError::Unavailable("no connection".to_owned()))
    }

    /// A line for one user alone.
    pub(super) async fn open_private(&self) -> Result<Line, StoreError> {
        self.open_in_time(&self.deployment.load_full()).await
    }

    async fn open_in_time(&self, deployment: &Deployment) -> Result<Line, StoreError> {
        match timeout(self.timeouts.opening(), deployment.open(self.timeouts, None)).await {
            Ok(opened) => opened.map_err(|error| unavailable(&error)),
            Err(_) => Err(late()),
        }
    }

    /// Opens lines to `changed` from now on, in place of the one that stands and those beside it. It is tried first: what
    /// does not serve replaces no line that stands, and what Redis denies replaces nothing.
    pub(super) async fn turn_to(&self, changed: Deployment) -> Result<(), StoreError> {
        let tried = self.try_out(&changed).await;
        let denied = matches!(&tried, Ok(Err(error)) if is_denied(error));
        let standing = match &*self.state.borrow() {
            State::Open(open) => Some(open.number),
            State::Opening | State::Away => None,
        };
        if standing.is_some() || denied {
            tried.map_err(|_| late())?.map_err(|error| unavailable(&error))?;
        }
        self.deployment.store(Arc::new(changed));
        // A cluster's line mends itself, by what it was opened with.
        standing.into_iter().for_each(|number| self.give_up(number));
        Ok(())
    }

    /// Has a line of its own do what the store lives by: hear, speak and read.
    async fn try_out(&self, changed: &Deployment) -> Result<RedisResult<()>, Elapsed> {
        let mut line = match timeout(self.timeouts.opening(), changed.open(self.timeouts, None)).await? {
            Ok(line) => line,
            Err(error) => return Ok(Err(error)),
        };
        let tried = timeout(4 * self.timeouts.response, async {
            begin_to_hear(&mut line, NO_MESSAGE).await?;
            Cmd::get(NO_KEY).exec_async(&mut line).await
        })
        .await;
        match tried {
            Ok(Err(error)) if is_denied(&error) => Ok(Err(error)),
            Ok(Err(_)) | Err(_) if self.serves_in_part(&mut line).await => Ok(Ok(())),
            tried => tried,
        }
    }

    /// Takes note of how a use of the line ended.
    pub(super) fn judge<T>(
        &self,
        used: &Numbered,
        result: Result<Result<T, RedisError>, Elapsed>,
    ) -> Result<T, StoreError> {
        match result {
            Ok(Ok(value)) => {
                self.late.store(0, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) if error.is_timeout() => Err(self.note_late(used, unavailable(&error))),
            Ok(Err(error)) => {
                let is_kept = is_refusal(&error) && Instant::now() < used.kept_until;
                if is_of_the_line(&error) && used.is_one_server() && !is_kept {
                    self.give_up(used.number);
                }
                Err(unavailable(&error))
            }
            Err(_) => Err(self.note_late(used, late())),
        }
    }

    fn note_late(&self, used: &Numbered, error: StoreError) -> StoreError {
        if used.is_one_server() && self.late.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_LATE {
            self.give_up(used.number);
        }
        error
    }

    /// Lets the line go, and has another one opened.
    fn give_up(&self, number: u64) {
        let given_up = self.state.send_if_modified(|state| match state {
            State::Open(open) if open.number == number => {
                *state = State::Opening;
                true
            }
            _ => false,
        });
        if given_up {
            self.hearing.lose();
            self.hearing.broken.notify_one();
        }
    }

    /// Opens lines and keeps the subscription standing; runs until dropped.
    pub(super) async fn tend(&self) {
        let (mut number, mut wait) = (0, RETRY.0);
        loop {
            let open = match &*self.state.borrow() {
                State::Open(open) => Some(open.clone()),
                State::Opening | State::Away => None,
            };
            let pause = match open {
                Some(open) => {
                    self.look_after(&open).await;
                    BEAT_EVERY
                }
                None => {
                    number += 1;
                    if self.open(number).await {
                        wait = RETRY.0;
                        BEAT_EVERY
                    } else {
                        wait = (wait * 2).min(RETRY.1);
                        jittered(wait)
                    }
                }
            };
            // A line that breaks is replaced at once; one that cannot be opened is not tried at every blow.
            let away = matches!(&*self.state.borrow(), State::Away);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.hearing.broken.notified(), if !away => {}
            }
        }
    }

    async fn look_after(&self, open: &Numbered) {
        let mut line = open.line.clone();
        let said = timeout(self.timeouts.response, line.say(CHANNEL, &self.hearing.beat())).await;
        // What it says of the line counts; that the beat was not said will be heard.
        let said = self.judge(open, said).map(|servers| self.hearing.said_to(servers));
        if self.hearing.listen_for_beats() && !(said.is_err() && self.serves_in_part(&mut line).await) {
            tracing::warn!("other replicas are not heard; the connection to the session store is replaced");
            self.give_up(open.number);
        }
    }

    /// Whether primaries serve though not all take a beat: their sessions need the line, which mends itself.
    async fn serves_in_part(&self, line: &mut Line) -> bool {
        timeout(self.timeouts.response, line.serves_in_part()).await.unwrap_or(false)
    }

    async fn open(&self, number: u64) -> bool {
        let opened = match timeout(self.timeouts.opening(), self.open_listening(number)).await {
            Ok(opened) => opened,
            Err(_) => Err(late()),
        };
        match opened {
            Ok(line) => {
                self.late.store(0, Ordering::Relaxed);
                let kept_until = Instant::now() + jittered(KEPT_FOR);
                let before = self.state.send_replace(State::Open(Numbered { line, number, kept_until }));
                if matches!(before, State::Away) {
                    self.note(BreakerEvent::Closed, 0);
                    tracing::info!("the session store answers again");
                }
                true
            }
            Err(error) => {
                let before = self.state.send_replace(State::Away);
                if matches!(before, State::Opening) {
                    self.note(BreakerEvent::Opened, 1);
                    tracing::warn!(at = self.place, %error, "the session store does not answer");
                }
                false
            }
        }
    }

    fn note(&self, event: BreakerEvent, open: usize) {
        self.metrics.breakers.count(Dependency::Store, event);
        self.metrics.breakers_open.set(Dependency::Store, open);
    }

    /// A line that hears, and whose server serves; in a cluster, some of whose servers do.
    async fn open_listening(&self, number: u64) -> Result<Line, StoreError> {
        self.hearing.turn_to(number);
        let listener = Listener { hearing: self.hearing.clone(), line: number };
        let opened = self.deployment.load_full().open(self.timeouts, Some(listener)).await;
        let mut line = opened.map_err(|error| unavailable(&error))?;
        // Three commands.
        let begun = match timeout(3 * self.timeouts.response, begin_to_hear(&mut line, &self.hearing.beat())).await {
            Ok(begun) => begun.map(|servers| self.hearing.said_to(servers)).map_err(|error| unavailable(&error)),
            Err(_) => Err(late()),
        };
        match begun {
            Err(error) if !self.serves_in_part(&mut line).await => Err(error),
            Ok(()) | Err(_) => Ok(line),
        }
    }
}

/// Subscribes, and says `message`. Returns how many servers took it.
async fn begin_to_hear(line: &mut Line, message: &[u8]) -> RedisResult<usize> {
    line.subscribe(CHANNEL).await?;
    // A server that is loading its files takes messages, and nothing else: it is asked for more.
    if let Line::Node(node) = line {
        redis::cmd("PING").exec_async(node).await?;
    }
    line.say(CHANNEL, message).await
}
