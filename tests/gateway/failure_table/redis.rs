//! The chapter on Redis.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{ANONYMOUS_LOGIN, During, LOGIN, LOGOUT, ME, OWN, PRODUCTS, READY, REFRESH, Shopper, observe_all, table};
use crate::sick_redis::{COLD, HOT, Illness, Sick};
use crate::steps::john;
use crate::world::eventually;

const FAILURES: [(Illness, &str); 11] = [
    (Illness::Gone, "gone"),
    (Illness::Silent, "silent"),
    (Illness::Locked, "locked"),
    (Illness::Loading, "loading"),
    (Illness::ReadOnly, "read-only"),
    (Illness::Full, "full"),
    (Illness::Truncated, "damaged"),
    (Illness::FutureFormat, "future"),
    (Illness::UnknownKey, "unknown key"),
    (Illness::Flushed, "flushed"),
    (Illness::Evicted, "evicted"),
];

const LOAD: &str = r#"gateway_store_operations_total{operation="load",outcome="failed"}"#;
const SAVE: &str = r#"gateway_store_operations_total{operation="save",outcome="failed"}"#;
const INDEX: &str = r#"gateway_store_operations_total{operation="index",outcome="failed"}"#;
const REMOVE: &str = r#"gateway_store_operations_total{operation="remove",outcome="failed"}"#;
const LEASE: &str = r#"gateway_store_operations_total{operation="lease",outcome="failed"}"#;
const GRACE: &str = r#"gateway_hot_cache_total{outcome="grace"}"#;
const CALLED_FOR_VISIT: &str = r#"gateway_emporix_calls_total{operation="anonymous_login",outcome="success"}"#;
const CALLED_FOR_LOGIN: &str = r#"gateway_emporix_calls_total{operation="login",outcome="success"}"#;

/// Every answer comes within this.
const WITHIN: Duration = Duration::from_secs(1);

const TEXT: &str = "\
## Redis

| failure | what it is | breaker | how it heals |
|---|---|---|---|
| gone | no connection: crashed, restarted, unreachable | opens | when it is back: a connection is tried at least once a second |
| silent | connections stand and nothing comes back: half-open TCP, a latency beyond `store.redis.response_timeout` | opens | as above |
| locked | `NOAUTH`, `WRONGPASS`: its password is another one | opens | when the password fits again |
| loading | `LOADING`: it reads its files after a restart | opens | when it has loaded |
| read-only | `READONLY`: what answers is a replica | stays closed; a refused write replaces the connection, once a second at most | when a primary answers at this address, or Sentinel names one |
| full | `OOM`: `maxmemory` is reached, nothing may be evicted | stays closed | when there is room |
| damaged | records are cut off or altered | stays closed | when the sessions are ended: `emporix-gateway sessions revoke` |
| future | records are of a format that this release does not know | stays closed | with the newer release |
| unknown key | records are sealed under a key that is not in `store.seal.keys` | stays closed | with a ring that has the key again |
| flushed, evicted | sessions do not exist any more | stays closed | customers sign in again |

";

const AFTER: &str = "
Look at `gateway_breakers_open{dependency=\"store\"}`: 1 while the outage lasts; every request that it spares Redis is
counted as `refused` in `gateway_breaker_events_total`. Then at `gateway_store_operations_total{outcome=\"failed\"}`, and
at the log for the reason. Every answer comes within a second; once the breaker is open, 99 of 100 refusals come within
250 ms. A logout that is not confirmed is refused by this replica at once, revoked at Emporix, and told to Redis as soon as
it can be. That Redis is read-only or full is known by a write only: by then Emporix has been called, and what it issued for
a login is revoked. Redis must not evict (`maxmemory-policy noeviction`): an evicted session is a logout.

";

/// The chapter, as observed.
pub(super) async fn chapter() -> String {
    let all = observe_all(3, FAILURES, |(illness, name)| observe(illness, name)).await;
    format!("{TEXT}{}{AFTER}", table(&all))
}

async fn observe(illness: Illness, name: &'static str) -> During {
    let sick = Sick::start().await;
    let world = &sick.world;
    let visitor = Shopper::visitor(world).await;
    let [hot, cold, leaving, leaving_cold] = [(); 4].map(|()| Shopper::customer(world));
    let (hot, cold, leaving, leaving_cold) = (hot.await, cold.await, leaving.await, leaving_cold.await);
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    let over = Shopper::customer(world).await;
    visitor.warm(world, HOT).await;
    for shopper in [&hot, &leaving, &over] {
        shopper.warm(world, HOT).await;
    }
    sick.fall(illness).await;
    world.clock.advance(Duration::from_secs(40));

    let (mut seen, at, elsewhere) = (During::new(name), (world, HOT), (world, COLD));
    let during = &mut seen;
    during.note("API call, hot", at, &[GRACE], WITHIN, hot.ask(world, HOT, ME)).await;
    during.note("API call, cold", elsewhere, &[LOAD], WITHIN, cold.ask(world, COLD, ME)).await;
    during.note("guest route, no credential", elsewhere, &[LOAD], WITHIN, world.ask_replica(COLD, PRODUCTS)).await;
    let watched = [CALLED_FOR_VISIT, SAVE];
    during.note("anonymous login", at, &watched, WITHIN, world.ask_replica(HOT, ANONYMOUS_LOGIN)).await;
    let watched = [CALLED_FOR_LOGIN, LOAD, INDEX, SAVE];
    during.note("login", at, &watched, WITHIN, visitor.ask(world, HOT, LOGIN).json(&john())).await;
    during.note("refresh, not due", at, &[LOAD, SAVE], WITHIN, hot.ask(world, HOT, REFRESH)).await;
    during.note("`/_gateway/session`, hot", at, &[GRACE], WITHIN, hot.ask(world, HOT, OWN)).await;
    during.note("`/readyz`", at, &[], WITHIN, world.ask_admin(HOT, READY)).await;
    during.note("logout, hot", at, &[REMOVE], WITHIN, leaving.ask(world, HOT, LOGOUT)).await;
    during.note("API call after that", at, &[], WITHIN, leaving.ask(world, HOT, ME)).await;
    let watched = [LOAD, REMOVE];
    during.note("logout, cold", elsewhere, &watched, WITHIN, leaving_cold.ask(world, COLD, LOGOUT)).await;

    world.clock.advance(Duration::from_secs(25));
    during.note("API call, hot, after `hot_cache.hot_grace`", at, &[LOAD], WITHIN, hot.ask(world, HOT, ME)).await;
    world.clock.advance(Duration::from_secs(640));
    let watched = [LOAD, LEASE];
    during.note("API call, access token over", at, &watched, WITHIN, over.ask(world, HOT, ME)).await;
    if illness.is_away() {
        refusals_are_fast(&sick, &cold).await;
    }
    sick.recover(illness).await;
    if illness.ends() {
        for replica in [HOT, COLD] {
            eventually("it heals", async || cold.ask(world, replica, ME).send().await.status == 200).await;
        }
    }
    seen
}

/// 99 of 100 refusals come within a quarter of a second.
async fn refusals_are_fast(sick: &Sick, cold: &Shopper) {
    let refused = sick.breaker(COLD, "refused");
    let mut times = Vec::new();
    for _ in 0..100 {
        let asked = Instant::now();
        let answer = cold.ask(&sick.world, COLD, ME).send().await;
        times.push(asked.elapsed());
        assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"), "{}", answer.text);
    }
    times.sort();
    assert!(times[98] < Duration::from_millis(250), "{times:?}");
    assert!(sick.breaker(COLD, "refused") >= refused + 100.0);
}
