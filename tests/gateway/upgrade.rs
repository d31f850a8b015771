//! Another binary takes the listeners over under load: no request fails, and the old process goes when it is idle.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use crate::process::ProcessReplica;
use crate::world::{Tokens, World, eventually, plain_get};

const SHOPPERS: usize = 8;
const TRIES_IN_VAIN: &str = "the listeners could not be handed over";

/// A folder that nobody else enters.
pub fn private_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_hands_its_listeners_over_under_load_and_no_request_fails() {
    let folder = private_folder();
    let socket = folder.path().join("upgrade.sock");
    let world = Arc::new(World::builder().redis().start().await);
    let changes = [("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap()), ("LISTEN__DRAIN_TIMEOUT", "20s")];
    let mut old = ProcessReplica::start(&world, &changes).await;
    let (public, admin) = (old.public, old.admin);
    let access = Tokens::of(&world.ask_at(public, crate::steps::ANONYMOUS_LOGIN).send().await).access;

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut shoppers = JoinSet::new();
    for _ in 0..SHOPPERS {
        let (world, stop, answered, access) = (world.clone(), stop.clone(), answered.clone(), access.clone());
        shoppers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let answer = world.ask_at(public, "GET /price/acme/prices").bearer(&access).try_send().await;
                let answer = answer.unwrap_or_else(|error| panic!("a request failed: {error:?}"));
                assert_eq!(answer.status, 200, "{}", answer.text);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let some_more = async || {
        let before = answered.load(Ordering::SeqCst);
        eventually("they go on", async || answered.load(Ordering::SeqCst) > before + 200).await;
    };
    some_more().await;
    let new = old.successor(&world, &changes);
    eventually("it waits for the listeners", async || socket.exists()).await;
    some_more().await;
    old.quit();
    eventually("the old one goes", async || old.has_ended()).await;
    let logged = old.logged();
    let (_, afterwards) = logged.split_once("the listeners were handed over").expect("they were handed over");
    let served = afterwards.matches(r#""message":"request""#).count();
    assert!(served <= 4 * SHOPPERS, "{served} requests on connections that should have been the new one's");
    some_more().await;
    stop.store(true, Ordering::SeqCst);
    while let Some(ended) = shoppers.join_next().await {
        ended.unwrap();
    }
    assert!(plain_get(admin, "/readyz").starts_with("HTTP/1.1 200"), "operators' listener went along");
    assert!(new.metric(r#"gateway_requests_total{outcome="success",route="visitor"}"#) > 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_nobody_follows_serves_on() {
    let folder = private_folder();
    let socket = folder.path().join("upgrade.sock");
    let world = World::new().await;
    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap())]).await;
    gateway.quit();
    eventually("it gives up", async || gateway.logged().contains(TRIES_IN_VAIN)).await;
    assert!(!gateway.has_ended());
    assert_eq!(world.ask_at(gateway.public, "GET /product/acme/products").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_nobody_hands_listeners_to_says_so_and_ends() {
    let folder = private_folder();
    let socket = folder.path().join("upgrade.sock");
    let changes = [("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap())];
    let world = World::new().await;
    let old = ProcessReplica::start(&world, &changes).await;
    let mut new = old.successor(&world, &changes);
    eventually("it ends", async || new.exit_code() == Some(69)).await;
    let logged = new.logged();
    let clear = format!("listen.upgrade_socket: nobody handed listeners over at {}", socket.display());
    assert_eq!(logged.lines().filter(|line| line.starts_with(&clear)).count(), 1, "{logged}");
    assert!(!socket.exists(), "nothing is left of it");
    assert_eq!(world.ask_at(old.public, "GET /product/acme/products").send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_told_to_stop_while_it_waits_for_a_successor_stops() {
    let folder = private_folder();
    let socket = folder.path().join("upgrade.sock");
    let world = World::new().await;
    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap())]).await;
    gateway.quit();
    gateway.terminate();
    eventually("it goes", async || gateway.has_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_leaves_at_once_when_told_so() {
    let world = World::new().await;
    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__DRAIN_TIMEOUT", "60s")]).await;
    world.simulator.fault(serde_json::json!({"operation": "api", "mode": "delay", "delay_ms": 40_000})).await;
    let access = Tokens::of(&world.ask_at(gateway.public, crate::steps::ANONYMOUS_LOGIN).send().await).access;
    let asked = world.ask_at(gateway.public, "GET /price/acme/prices").bearer(&access).try_send();
    let leave = async {
        eventually("the API is asked", async || world.simulator.calls("api").await == 1).await;
        gateway.terminate();
        eventually("it drains", async || gateway.logged().contains("draining")).await;
        gateway.interrupt();
        eventually("it goes", async || gateway.has_ended()).await;
    };
    let (answer, ()) = tokio::join!(asked, leave);
    assert!(answer.is_err(), "the request is cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_listen_everywhere_says_so_and_ends() {
    let folder = private_folder();
    let socket = folder.path().join("upgrade.sock");
    let world = World::new().await;
    let old = ProcessReplica::start(&world, &[("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap())]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let changes = [
        ("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap()),
        ("FORWARD_AUTH__LISTEN", &address),
        ("FORWARD_AUTH__TRUSTED_PEERS", r#"["127.0.0.0/8"]"#),
    ];
    let mut new = old.successor(&world, &changes);
    eventually("it waits for the listeners", async || socket.exists()).await;
    old.quit();
    eventually("it ends", async || new.exit_code() == Some(69)).await;
    assert!(new.logged().contains(&format!("cannot listen on {address}")), "{}", new.logged());
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_not_taken_over_where_others_could_take_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("upgrade.sock");
    let changes = [("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap())];
    let world = World::new().await;
    let old = ProcessReplica::start(&world, &changes).await;
    let mut new = old.successor(&world, &changes);
    eventually("it ends", async || new.exit_code() == Some(64)).await;
    assert!(new.logged().contains("listen.upgrade_socket: others may enter"), "{}", new.logged());
}
