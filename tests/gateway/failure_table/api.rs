//! The chapter on Emporix' API.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::{During, ME, OWN, PRODUCTS, READY, Shopper, observe_all, refs, table};
use crate::world::{World, eventually, free_port};

/// Every answer comes within `upstream.read_timeout`; here it is a second.
const WITHIN: Duration = Duration::from_secs(4);
const TIMEOUT: &str = "1s";

const TEXT: &str = "\
## Emporix' API

| failure | what it is |
|---|---|
| refused | no connection can be had |
| reset | it closes the connection without an answer |
| silent | it answers nothing within `upstream.read_timeout`, or what the route sets in its place |
| 5xx | it answers 503 itself |
| 429 | it answers 429 with `Retry-After: 7` itself |

";

const AFTER: &str = "
Look at `gateway_requests_total{outcome=\"upstream_error\"}` by route, and at `gateway_upstream_seconds`. What the API answers
itself is passed on as it is, `Retry-After` included. What it did with a request that it answered nothing to cannot be known:
nothing is sent twice but a request without side effects over a connection that had gone stale. It heals with the first
request that the API answers; sessions and tokens are not touched by any of this.

";

/// The chapter, as observed.
pub(super) async fn chapter() -> String {
    let all = observe_all(1, ["refused", "reset", "silent", "5xx", "429"], observe).await;
    format!("{TEXT}{}{AFTER}", table(&all))
}

fn fault(failure: &str) -> Option<Value> {
    match failure {
        "refused" => None,
        "reset" => Some(json!({"operation": "api", "mode": "reset"})),
        "silent" => Some(json!({"operation": "api", "mode": "hang"})),
        "5xx" => Some(json!({"operation": "api", "mode": "status", "status": 503})),
        _ => Some(json!({"operation": "api", "mode": "status", "status": 429, "headers": {"retry-after": "7"}})),
    }
}

async fn observe(failure: &'static str) -> During {
    let mut world = World::builder().start().await;
    let door = Door::before(world.simulator.address).await;
    let base_url = format!("http://127.0.0.1:{}", door.port);
    let set = [("UPSTREAM__BASE_URL", base_url.as_str()), ("UPSTREAM__READ_TIMEOUT", TIMEOUT)];
    let behind = world.add_replica(&set).await;
    let world = &world;
    assert_eq!(world.ask_replica(behind, PRODUCTS).send().await.status, 200);
    let visit = world.ask_replica(behind, super::ANONYMOUS_LOGIN).header("sec-fetch-site", "same-origin");
    let visitor = Shopper::of(&visit.send().await);
    let login = visitor.ask(world, behind, super::LOGIN).json(&crate::steps::john());
    let customer = Shopper::of(&login.send().await);
    match fault(failure) {
        Some(fault) => world.simulator.fault(fault).await,
        None => door.close().await,
    }

    let (mut seen, at) = (During::new(failure), (world, behind));
    let during = &mut seen;
    let (visitors, guests) = (ended("visitor"), ended("guest"));
    during.note("API call that reads", at, &refs(&visitors), WITHIN, customer.ask(world, behind, ME)).await;
    let cart = json!({"siteCode": "main", "currency": "EUR"});
    let writing = customer.ask(world, behind, "POST /cart/acme/carts").json(&cart);
    during.note("API call that writes", at, &refs(&visitors), WITHIN, writing).await;
    let guest = world.ask_replica(behind, PRODUCTS);
    during.note("guest route, no credential", at, &refs(&guests), WITHIN, guest).await;
    during.note("`/_gateway/session`", at, &[], WITHIN, customer.ask(world, behind, OWN)).await;
    during.note("`/readyz`", at, &[], WITHIN, world.ask_admin(behind, READY)).await;

    world.simulator.heal().await;
    if failure == "refused" {
        door.open().await;
    }
    eventually("it heals", async || customer.ask(world, behind, ME).send().await.status == 200).await;
    seen
}

/// How requests of this route may have ended.
fn ended(route: &str) -> Vec<String> {
    let outcome = |outcome| format!(r#"gateway_requests_total{{outcome="{outcome}",route="{route}"}}"#);
    ["success", "client_error", "server_error", "upstream_error", "aborted"].map(outcome).to_vec()
}

/// A door before the API: behind a closed one nobody is.
struct Door {
    port: u16,
    api: SocketAddr,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    async fn before(api: SocketAddr) -> Self {
        let door = Self { port: free_port(), api, keeper: Mutex::default() };
        door.open().await;
        door
    }

    async fn open(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        *self.keeper.lock().unwrap() = Some(tokio::spawn(keep(listener, self.api)));
    }

    /// Closes it, and every connection that went through.
    async fn close(&self) {
        let keeper = self.keeper.lock().unwrap().take().unwrap();
        keeper.abort();
        assert!(keeper.await.unwrap_err().is_cancelled());
    }
}

async fn keep(listener: TcpListener, api: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        connections.spawn(async move {
            let Ok(mut api) = TcpStream::connect(api).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut api).await;
        });
    }
}
