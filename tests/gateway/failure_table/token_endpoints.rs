//! The chapter on Emporix' token endpoints.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    ANONYMOUS_LOGIN, During, LOGIN, LOGOUT, ME, OWN, PRODUCTS, READY, REFRESH, Shopper, observe_all, refs, table,
};
use crate::steps::john;
use crate::world::{World, eventually};

/// Every answer comes within `identity.timeout`, a refresh that was joined within twice that; here it is a second.
const WITHIN: Duration = Duration::from_secs(4);
const TIMEOUT: &str = "1s";

const OTHER_GUEST: &str = "GET /product/globex/products";
const OPERATIONS: [&str; 5] = ["anonymous_login", "anonymous_refresh", "login", "refresh", "logout"];

const TEXT: &str = "\
## Emporix' token endpoints

| failure | what it is |
|---|---|
| 5xx | they answer 503 |
| reset | they close the connection without an answer |
| silent | they answer nothing within `identity.timeout` |
| 429 | they answer 429 with `Retry-After: 7` |
| garbage | they answer 200 with a web page |

";

const AFTER: &str = "
Look at `gateway_emporix_calls_total` for the call that fails and how: `unavailable` did nothing at Emporix, `unknown` may
have. Each answer comes within `identity.timeout`. Five calls of a kind in a row without an answer open the breaker of this
kind (`gateway_breaker_events_total`, `dependency` names the kind): requests are then refused at once (`refused`), and one
call tries again after a second, later after five. A 429 holds calls of its kind back for as long as it says, 60 s at most, and
up to a quarter longer; then one call tries again. A login's holds nobody else back. Sessions are served while their tokens
live. A refresh that failed is tried again by the next request after a second, and twice as long after each further failure: a
minute at most while the access token lives, five seconds when it is over; one whose answer was lost or cannot be read, once,
when the access token is over. Logouts are told to Emporix again, `identity.revoke_attempts` times.

";

fn fault(failure: &str, operation: &str) -> Value {
    match failure {
        "5xx" => json!({"operation": operation, "mode": "status", "status": 503}),
        "reset" => json!({"operation": operation, "mode": "reset"}),
        "silent" => json!({"operation": operation, "mode": "hang"}),
        "429" => json!({"operation": operation, "mode": "status", "status": 429, "headers": {"retry-after": "7"}}),
        _ => json!({"operation": operation, "mode": "html"}),
    }
}

/// The chapter, as observed.
pub(super) async fn chapter() -> String {
    let all = observe_all(1, ["5xx", "reset", "silent", "429", "garbage"], observe).await;
    format!("{TEXT}{}{AFTER}", table(&all))
}

async fn observe(failure: &'static str) -> During {
    let world = &World::builder().set("IDENTITY__TIMEOUT", TIMEOUT).start().await;
    let visitor = Shopper::visitor(world).await;
    assert_eq!(world.ask(PRODUCTS).send().await.status, 200);
    let leaving = Shopper::customer(world).await;
    world.simulator.set(json!({"customer_access_ttl": 600})).await;
    let [hot, due, over, refreshing] = [(); 4].map(|()| Shopper::customer(world));
    let (hot, due, over, refreshing) = (hot.await, due.await, over.await, refreshing.await);
    for operation in OPERATIONS {
        world.simulator.fault(fault(failure, operation)).await;
    }

    let (mut seen, at) = (During::new(failure), (world, 0));
    let during = &mut seen;
    during.note("API call, access token fresh", at, &[], WITHIN, hot.ask(world, 0, ME)).await;
    during.note("`/_gateway/session`", at, &[], WITHIN, hot.ask(world, 0, OWN)).await;
    during.note("`/readyz`", at, &[], WITHIN, world.ask_admin(0, READY)).await;
    during.note("guest route, a guest token lives", at, &[], WITHIN, world.ask(PRODUCTS)).await;
    let watched = calls("anonymous_login");
    during.note("anonymous login", at, &refs(&watched), WITHIN, world.ask(ANONYMOUS_LOGIN)).await;
    during.note("guest route, none lives", at, &[], WITHIN, world.ask(OTHER_GUEST)).await;
    let watched = calls("login");
    during.note("login", at, &refs(&watched), WITHIN, visitor.ask(world, 0, LOGIN).json(&john())).await;
    during.note("refresh, not due", at, &[], WITHIN, refreshing.ask(world, 0, REFRESH)).await;
    during.note("logout", at, &[], WITHIN, leaving.ask(world, 0, LOGOUT)).await;
    if ["5xx", "reset", "silent"].contains(&failure) {
        eventually("Emporix is told again", async || world.simulator.calls("logout").await >= 2).await;
    }

    world.clock.advance(Duration::from_secs(500));
    let watched = calls("refresh");
    during.note("refresh, due", at, &refs(&watched), WITHIN, due.ask(world, 0, REFRESH)).await;
    during.note("API call, refresh due", at, &[], WITHIN, due.ask(world, 0, ME)).await;
    world.clock.advance(Duration::from_secs(200));
    during.note("API call, access token over", at, &refs(&watched), WITHIN, over.ask(world, 0, ME)).await;
    during.note("refresh, access token over", at, &[], WITHIN, refreshing.ask(world, 0, REFRESH)).await;
    held_back_when_it_lasts(failure, world).await;

    world.simulator.heal().await;
    world.clock.advance(Duration::from_secs(70));
    for shopper in [&due, &over, &refreshing] {
        eventually("it heals", async || {
            let answer = shopper.ask(world, 0, ME).send().await;
            assert_ne!(answer.status, 401, "{failure}: {}", answer.text);
            answer.status == 200
        })
        .await;
    }
    seen
}

/// Calls that bring no answer open the breaker; what is refused behind it is refused at once.
async fn held_back_when_it_lasts(failure: &str, world: &World) {
    if !["reset", "silent"].contains(&failure) {
        return;
    }
    let breaker = |event: &str| {
        let series = format!(r#"gateway_breaker_events_total{{dependency="anonymous_login",event="{event}"}}"#);
        world.gateway().metric(&series)
    };
    eventually("the breaker opens", async || {
        assert_eq!(world.ask(ANONYMOUS_LOGIN).send().await.code(), "identity_unavailable");
        breaker("opened") >= 1.0
    })
    .await;
    let (refused, mut seen) = (breaker("refused"), During::new("an open breaker"));
    let at_once = Duration::from_millis(900);
    let answer = seen.note("anonymous login", (world, 0), &[], at_once, world.ask(ANONYMOUS_LOGIN)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "identity_unavailable"));
    assert!(breaker("refused") > refused);
}

fn calls(operation: &str) -> Vec<String> {
    let outcome = |outcome| format!(r#"gateway_emporix_calls_total{{operation="{operation}",outcome="{outcome}"}}"#);
    ["success", "refused", "unavailable", "unknown"].map(outcome).to_vec()
}
