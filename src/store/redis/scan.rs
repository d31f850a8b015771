//! One step of a walk over the sessions, one primary after the other.
//! Each step is bounded and leaves the server free between steps; none is ever taken for a client's request.

use std::hash::{DefaultHasher, Hash, Hasher};

use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, Slot, SlotAddr};
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Value};

use super::deployment::Line;
use super::keeper::Numbered;
use super::names::{ANY_SESSION, session_in};
use crate::store::seal::{HEAD_LENGTH, tenant_of};
use crate::store::{Cursor, Page, Walked};

/// Keys that the server looks at in one step, more or less.
const KEYS_PER_STEP: u32 = 500;

/// Takes the next step from `from`. A walk is over the servers with which it began: when others take their place, it
/// ends in an error, for what it passed may not be all.
pub(super) async fn step(used: &mut Numbered, from: Cursor) -> Result<Page, RedisError> {
    const OTHERS: (ErrorKind, &str) = (ErrorKind::Client, "the servers changed in the midst of a walk");
    let primaries = primaries(used).await?;
    let over = fingerprint(used.number, &primaries);
    let (Some(primary), true) = (primaries.get(usize::from(from.server)), [0, over].contains(&from.over)) else {
        return Err(OTHERS.into());
    };
    let (line, route) = (&mut used.line, primary.route());
    let mut scan = redis::cmd("SCAN");
    scan.arg(from.position).arg("MATCH").arg(ANY_SESSION).arg("COUNT").arg(KEYS_PER_STEP);
    let (position, names): (u64, Vec<Vec<u8>>) = ask(line, route, scan).await?;
    let next = match position {
        0 if usize::from(from.server) + 1 == primaries.len() => None,
        0 => Some(Cursor { over, server: from.server + 1, position: 0 }),
        _ => Some(Cursor { over, position, ..from }),
    };
    let mut read = redis::pipe();
    for name in &names {
        read.cmd("GETRANGE").arg(name).arg(0).arg(HEAD_LENGTH - 1);
    }
    let heads: Vec<Vec<u8>> =
        if names.is_empty() { Vec::new() } else { ask_all(line, route, read, names.len()).await? };
    let walked = names
        .iter()
        .zip(&heads)
        .filter_map(|(name, head)| Some(Walked { key: session_in(name)?, tenant: tenant_of(head)? }));
    Ok(Page { sessions: walked.collect(), next })
}

/// A primary: its node id and a slot that it serves; neither where the line leads to one server.
#[derive(Hash, PartialEq, Eq, PartialOrd, Ord)]
struct Primary(Option<(String, u16)>);

impl Primary {
    fn route(&self) -> Option<Route> {
        let slot = Slot::new(self.0.as_ref()?.1)?;
        Some(Route::with_slot(slot, SlotAddr::Master))
    }
}

async fn primaries(used: &mut Numbered) -> RedisResult<Vec<Primary>> {
    let Line::Cluster(_) = used.line else { return Ok(vec![Primary(None)]) };
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut used.line).await?;
    let mut primaries = Vec::new();
    for range in ranges {
        let [start, _, primary, ..] = range.as_slice() else { continue };
        let (start, primary) = (u16::from_redis_value_ref(start)?, Vec::<Value>::from_redis_value_ref(primary)?);
        let Some(id) = primary.get(2) else { continue };
        primaries.push(Primary(Some((String::from_redis_value_ref(id)?, start))));
    }
    primaries.sort_unstable();
    primaries.dedup_by(|one, other| one.0.as_ref().map(|(id, _)| id) == other.0.as_ref().map(|(id, _)| id));
    Ok(primaries)
}

/// Tells one set of servers from another; never 0.
fn fingerprint(line: u64, primaries: &[Primary]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    primaries.iter().for_each(|Primary(primary)| primary.as_ref().map(|(id, _)| id).hash(&mut hasher));
    hasher.finish().max(1)
}

async fn ask<T: FromRedisValue>(line: &mut Line, primary: Option<Route>, command: Cmd) -> RedisResult<T> {
    match (line, primary) {
        (Line::Cluster(cluster), Some(route)) => {
            let node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
            Ok(T::from_redis_value(cluster.route_command(command, node).await?)?)
        }
        (line, _) => command.query_async(line).await,
    }
}

async fn ask_all<T: FromRedisValue>(
    line: &mut Line,
    primary: Option<Route>,
    commands: Pipeline,
    count: usize,
) -> RedisResult<Vec<T>> {
    match (line, primary) {
        (Line::Cluster(cluster), Some(route)) => {
            let node = SingleNodeRoutingInfo::SpecificNode(route);
            let answers = cluster.route_pipeline(commands, 0, count, node).await?;
            answers.into_iter().map(|answer| Ok(T::from_redis_value(answer)?)).collect()
        }
        (line, _) => commands.query_async(line).await,
    }
}
