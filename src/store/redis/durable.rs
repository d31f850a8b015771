//! Writes that must not die with the primary: a tombstone, an intent, renewed tokens, whose a session is.
//! Each waits until a replica has it too, on a line of its own, for `WAIT` holds up everything behind it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, Script, ServerErrorKind, Value};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::deployment::{Line, Timeouts};
use super::faults::{late, unavailable};
use super::keeper::Keeper;
use crate::store::StoreError;
use crate::telemetry::{Metrics, Replication};

/// Lines that are kept; a write that finds none idle waits for one.
const LINES: usize = 8;

/// How often Redis is asked whether it has replicas, and lines are tried and replaced.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// How long a replica that fell behind is not waited for again.
const LEFT_BEHIND_FOR: Duration = Duration::from_secs(5);

/// The lines for writes that wait for a replica.
pub(super) struct DurableLines {
    idle: Mutex<VecDeque<Line>>,
    /// One permit for each idle line.
    ready: Semaphore,
    /// Lines that are open, those in use too.
    open: AtomicUsize,
    /// The keeper's line beside which these were opened: another one may lead to another server.
    beside: AtomicU64,
    has_replicas: AtomicBool,
    fell_behind: AtomicBool,
    patience: Duration,
    metrics: Arc<Metrics>,
}

/// A line in the hands of one write. One whose answer was not awaited is closed.
pub(super) struct InUse<'d> {
    lines: &'d DurableLines,
    line: Option<Line>,
    beside: u64,
}

impl DurableLines {
    pub(super) fn new(patience: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            idle: Mutex::default(),
            ready: Semaphore::new(0),
            open: AtomicUsize::new(0),
            beside: AtomicU64::new(0),
            has_replicas: AtomicBool::new(false),
            fell_behind: AtomicBool::new(false),
            patience,
            metrics,
        }
    }

    /// A line, where there is a replica worth waiting for and a line comes free in time.
    pub(super) async fn reserve(&self, timeouts: Timeouts) -> Option<InUse<'_>> {
        if !self.has_replicas.load(Ordering::Relaxed) {
            return None;
        }
        let line = match timeout(timeouts.response, self.ready.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                self.idle().pop_back()
            }
            _ => None,
        };
        if line.is_none() {
            self.metrics.replication.count(Replication::Late);
        }
        line.map(|line| self.in_use(line))
    }

    /// Looks whether Redis has replicas, and keeps lines open while it has; runs until dropped.
    pub(super) async fn tend(&self, keeper: &Keeper) {
        if self.patience.is_zero() {
            return;
        }
        loop {
            if self.fell_behind.swap(false, Ordering::Relaxed) {
                tokio::time::sleep(LEFT_BEHIND_FOR).await;
            }
            if let Ok(mut used) = keeper.line().await {
                if self.beside.swap(used.number, Ordering::AcqRel) != used.number {
                    self.close_idle();
                }
                let has_replicas = every_primary_has_a_replica(&mut used.line).await;
                self.has_replicas.store(has_replicas, Ordering::Relaxed);
                if has_replicas {
                    self.try_the_oldest().await;
                    self.open_missing(keeper).await;
                }
            } else {
                self.has_replicas.store(false, Ordering::Relaxed);
            }
            tokio::time::sleep(TEND_EVERY).await;
        }
    }

    async fn open_missing(&self, keeper: &Keeper) {
        while self.open.load(Ordering::Acquire) < LINES {
            let Ok(line) = keeper.open_private().await else { return };
            self.open.fetch_add(1, Ordering::AcqRel);
            self.in_use(line).put_back();
        }
    }

    /// A line that is seldom used may be dead without anybody having noticed.
    async fn try_the_oldest(&self) {
        let Ok(permit) = self.ready.try_acquire() else { return };
        permit.forget();
        let Some(line) = self.idle().pop_front() else { return };
        let mut in_use = self.in_use(line);
        if let Some(line) = &mut in_use.line
            && matches!(timeout(TEND_EVERY, redis::cmd("PING").exec_async(line)).await, Ok(Ok(())))
        {
            in_use.put_back();
        }
    }

    fn close_idle(&self) {
        let closed: Vec<Line> = self.idle().drain(..).collect();
        self.ready.forget_permits(closed.len());
        for line in closed {
            drop(self.in_use(line));
        }
    }

    fn in_use(&self, line: Line) -> InUse<'_> {
        InUse { lines: self, line: Some(line), beside: self.beside.load(Ordering::Acquire) }
    }

    /// Runs `script`, and waits for a replica to have its effect. One that is late is counted, not an error: the
    /// primary has it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        mut in_use: InUse<'_>,
        timeouts: Timeouts,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        let line = in_use.line.as_mut().ok_or_else(late)?;
        let (answer, replicas): (T, i64) = self.write(line, timeouts, script, keys, arguments).await?;
        in_use.put_back();
        if replicas > 0 {
            self.metrics.replication.count(Replication::Acknowledged);
        } else {
            self.metrics.replication.count(Replication::Late);
            self.has_replicas.store(false, Ordering::Relaxed);
            self.fell_behind.store(true, Ordering::Relaxed);
        }
        Ok(answer)
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Line>> {
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

impl InUse<'_> {
    /// Gives the line back, unless it leads to a server of yesterday.
    fn put_back(mut self) {
        if self.beside == self.lines.beside.load(Ordering::Acquire)
            && let Some(line) = self.line.take()
        {
            self.lines.idle().push_back(line);
            self.lines.ready.add_permits(1);
        }
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if self.line.is_some() {
            self.lines.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Whether every primary behind `line` has a replica, as they tell themselves. Not knowing is having none: the write
/// itself does not depend on it.
async fn every_primary_has_a_replica(line: &mut Line) -> bool {
    let mut ask = redis::cmd("INFO");
    let told = timeout(TEND_EVERY, ask.arg("replication").query_async::<Value>(line)).await;
    told.ok().and_then(Result::ok).is_some_and(|told| fewest_replicas(&told) > Some(0))
}

fn fewest_replicas(told: &Value) -> Option<u64> {
    let count = |text: &str| text.lines().find_map(|line| line.trim().strip_prefix("connected_slaves:")?.parse().ok());
    match told {
        Value::BulkString(text) => count(std::str::from_utf8(text).ok()?),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => count(text),
        Value::Array(values) => values.iter().map(fewest_replicas).min()?,
        Value::Map(pairs) => pairs.iter().map(|(_, value)| fewest_replicas(value)).min()?,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_primary_without_a_replica_is_one_too_few() {
        let told = |count: u8| Value::BulkString(format!("role:master\r\nconnected_slaves:{count}\r\n").into_bytes());
        let named = |count| (Value::SimpleString("10.0.0.1:6379".into()), told(count));
        assert_eq!(fewest_replicas(&told(2)), Some(2));
        assert_eq!(fewest_replicas(&Value::Map(vec![named(2), named(0)])), Some(0));
        assert_eq!(fewest_replicas(&Value::Map(vec![named(2), named(1)])), Some(1));
        assert_eq!(fewest_replicas(&Value::Array(vec![told(0), told(1)])), Some(0));
        assert_eq!(fewest_replicas(&Value::Nil), None);
    }
}
