//! The pages of docs/how-to: what they tell to try happens as they say.

use std::path::Path;
use std::process::Command;

use crate::world::World;

/// Runs what a page tells to try, from its first block to its last, in one shell.
async fn tried(page: &str) {
    let adopting = World::builder().set("TENANTS__ACME__FOREIGN_BEARER__MODE", "adopt");
    let world = adopting.set("TENANTS__ACME__FOREIGN_BEARER__UNTIL", "2099-01-01T00:00:00Z").start().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/how-to").join(page);
    let text = std::fs::read_to_string(file).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let script: String = blocks.filter(|block| block.trim_start().starts_with("# Try it")).collect();
    assert!(script.contains("test "), "{page} tells nothing to try");
    let [gateway, emporix] =
        [world.gateway().public, world.simulator.address].map(|address| format!("http://{address}"));
    let program = Path::new(env!("CARGO_BIN_EXE_emporix-gateway")).parent().unwrap();
    let script = format!("PATH='{}':$PATH\n{script}", program.display());
    let run = move || {
        let mut command = Command::new("bash");
        command.args(["-euc", &script]).env("GATEWAY", gateway).env("EMPORIX", emporix).output().unwrap()
    };
    let tried = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(tried.status.success(), "{page}: {}", String::from_utf8_lossy(&tried.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_shop_moves_over_as_its_page_says() {
    tried("move-a-live-shop-over.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_back_hits_whom_its_page_says() {
    tried("roll-back.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_cdn_only_what_its_page_says_may_be_cached() {
    tried("run-behind-a-cdn.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_binary_takes_over_as_its_page_says() {
    tried("upgrade-and-downgrade.md").await;
}
