//! Writes that must not die with the primary: a tombstone, an intent, renewed tokens.
//! Each waits until a replica has it too, on a line of its own, for `WAIT` holds up everything behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, Script, ServerErrorKind, Value};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::deployment::{Line, Timeouts};
use super::keeper::{Keeper, late, unavailable};
use crate::store::StoreError;
use crate::telemetry::{Metrics, Replication};

/// Lines of their own; a write beyond them waits for one.
const LINES: usize = 8;

/// How often Redis is asked whether it has replicas; as long, a replica that falls behind is not waited for again.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The lines for writes that wait for a replica.
pub(super) struct DurableLines {
    lines: [Mutex<Option<Line>>; LINES],
    has_replicas: AtomicBool,
    patience: Duration,
    metrics: Arc<Metrics>,
}

impl DurableLines {
    pub(super) fn new(patience: Duration, metrics: Arc<Metrics>) -> Self {
        let lines = std::array::from_fn(|_| Mutex::new(None));
        Self { lines, has_replicas: AtomicBool::new(false), patience, metrics }
    }

    /// Whether there is a replica worth waiting for.
    pub(super) fn has_replicas(&self) -> bool {
        self.has_replicas.load(Ordering::Relaxed)
    }

    /// Looks now and then whether Redis has replicas; runs until dropped.
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
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Runs `script`, and waits for a replica to have its effect. One that is late is counted, not an error: the
    /// primary has it.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        keeper: &Keeper,
        timeouts: Timeouts,
        script: &Script,
        keys: &[&str],
        arguments: &[&[u8]],
    ) -> Result<T, StoreError> {
        let mut slot = timeout(timeouts.response, self.free_line()).await.map_err(|_| late())?;
        // Taken out while it is in use: one whose answer was not awaited is not used again.
        let mut line = match slot.take() {
            Some(line) => line,
            None => keeper.open_private().await?,
        };
        let (answer, replicas) = self.write(&mut line, timeouts, script, keys, arguments).await?;
        *slot = Some(line);
        if replicas > 0 {
            self.metrics.replication.count(Replication::Acknowledged);
        } else {
            self.metrics.replication.count(Replication::Late);
            self.has_replicas.store(false, Ordering::Relaxed);
        }
        Ok(answer)
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

    async fn free_line(&self) -> MutexGuard<'_, Option<Line>> {
        for line in &self.lines {
            if let Ok(free) = line.try_lock() {
                return free;
            }
        }
        let mut byte = [0];
        // Without random bytes they all queue for the first.
        let _ = getrandom::fill(&mut byte);
        self.lines[usize::from(byte[0]) % LINES].lock().await
    }
}

/// The replicas of every primary behind `line`, as they tell themselves.
async fn count_replicas(line: &mut Line) -> u64 {
    let mut ask = redis::cmd("INFO");
    let told = timeout(ASK_EVERY, ask.arg("replication").query_async::<Value>(line)).await;
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
