//! Writes that must not die with the primary: a tombstone, an intent, renewed tokens.
//! Each waits until a replica has it too, on a line of its own, for `WAIT` holds up everything behind it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, Script, ServerErrorKind, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::deployment::{Line, Timeouts};
use super::keeper::{Keeper, late, unavailable};
use crate::store::StoreError;
use crate::telemetry::{Metrics, Replication};

/// Lines that are kept; a write that finds none idle waits for one.
const LINES: usize = 8;

/// How often Redis is asked whether it has replicas, and lines that broke are replaced.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How long a replica that fell behind is not waited for again.
const LEFT_BEHIND_FOR: u32 = 5;

/// The lines for writes that wait for a replica.
pub(super) struct DurableLines {
    idle: Mutex<Vec<Line>>,
    /// One permit for each idle line.
    ready: Semaphore,
    has_replicas: AtomicBool,
    fell_behind: AtomicBool,
    patience: Duration,
    metrics: Arc<Metrics>,
}

/// A line that is in use by one write.
pub(super) struct Reserved<'d> {
    line: Line,
    permit: SemaphorePermit<'d>,
}

impl DurableLines {
    pub(super) fn new(patience: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            idle: Mutex::default(),
            ready: Semaphore::new(0),
            has_replicas: AtomicBool::new(false),
            fell_behind: AtomicBool::new(false),
            patience,
            metrics,
        }
    }

    /// A line, where there is a replica worth waiting for and a line comes free in time.
    pub(super) async fn reserve(&self, timeouts: Timeouts) -> Option<Reserved<'_>> {
        if !self.has_replicas.load(Ordering::Relaxed) {
            return None;
        }
        match timeout(timeouts.response, self.ready.acquire()).await {
            Ok(Ok(permit)) => Some(Reserved { line: self.idle().pop()?, permit }),
            _ => {
                self.metrics.replication.count(Replication::Late);
                None
            }
        }
    }

    /// Looks whether Redis has replicas, and keeps lines open while it has; runs until dropped.
    pub(super) async fn tend(&self, keeper: &Keeper) {
        if self.patience.is_zero() {
            return;
        }
        loop {
            let replicas = match keeper.line().await {
                Ok(mut used) => count_replicas(&mut used.line).await,
                Err(_) => 0,
            };
            self.has_replicas.store(replicas > 0, Ordering::Relaxed);
            while replicas > 0 && self.idle().len() < LINES {
                let Ok(line) = keeper.open_private().await else { break };
                self.keep(line);
            }
            let fell_behind = self.fell_behind.swap(false, Ordering::Relaxed);
            tokio::time::sleep(if fell_behind { TEND_EVERY * LEFT_BEHIND_FOR } else { TEND_EVERY }).await;
        }
    }

    /// Runs `script`, and waits for a replica to have its effect. One that is late is counted, not an error: the
    /// primary has it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        reserved: Reserved<'_>,
        timeouts: Timeouts,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        let Reserved { mut line, permit } = reserved;
        // Until its answer is there the line is nobody else's: one that was left half-way is dropped.
        permit.forget();
        let (answer, replicas): (T, i64) = self.write(&mut line, timeouts, script, keys, arguments).await?;
        if replicas > 0 {
            self.metrics.replication.count(Replication::Acknowledged);
        } else {
            self.metrics.replication.count(Replication::Late);
            self.has_replicas.store(false, Ordering::Relaxed);
            self.fell_behind.store(true, Ordering::Relaxed);
        }
        self.keep(line);
        Ok(answer)
    }

    /// Puts a line among the idle ones, unless others took its place while it was in use.
    fn keep(&self, line: Line) {
        let mut idle = self.idle();
        if idle.len() < LINES {
            idle.push(line);
            self.ready.add_permits(1);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Line>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write<T: FromRedisValue>(
        &self,
        line: &mut Line,
        timeouts: Timeouts,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<(T, i64), StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
        pipeline.cmd("WAIT").arg(1).arg(self.patience.as_millis().to_string());
        let work = async {
            match pipeline.query_async(line).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    script.prepare_invoke().load_async(line).await?;
                    pipeline.query_async(line).await
                }
                answer => answer,
            }
        };
        match timeout(timeouts.response + self.patience, work).await {
            Ok(answer) => answer.map_err(|error| unavailable(&error)),
            Err(_) => Err(late()),
        }
    }
}

/// The replicas of every primary behind `line`, as they tell themselves.
async fn count_replicas(line: &mut Line) -> u64 {
    let mut ask = redis::cmd("INFO");
    let told = timeout(TEND_EVERY, ask.arg("replication").query_async::<Value>(line)).await;
    // Not knowing is having none: the write itself does not depend on it.
    let told = told.ok().and_then(Result::ok);
    told.as_ref().map_or(0, connected_replicas)
}

fn connected_replicas(told: &Value) -> u64 {
    let count = |text: &str| -> u64 {
        let counts = text.lines().filter_map(|line| line.trim().strip_prefix("connected_slaves:")?.parse::<u64>().ok());
        counts.sum()
    };
    match told {
        Value::BulkString(text) => std::str::from_utf8(text).map_or(0, count),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => count(text),
        Value::Array(values) => values.iter().map(connected_replicas).sum(),
        Value::Map(pairs) => pairs.iter().map(|(_, value)| connected_replicas(value)).sum(),
        _ => 0,
    }
}
