//! The pages of docs/how-to: what they tell to try happens as they say.

use std::path::Path;
use std::process::Command;

use crate::world::World;

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// Runs what a page tells to try, in the way and against the gateway that README.md names.
async fn tried(page: &str) {
    let how = std::fs::read_to_string(format!("{FOLDER}/docs/how-to/README.md")).unwrap();
    let told = how.lines().filter_map(|line| line.strip_prefix("export EMPORIX_GATEWAY__")?.split_once('='));
    let configured =
        told.fold(World::builder(), |builder, (key, value)| builder.set(key, value.split_whitespace().next().unwrap()));
    let world = configured.start().await;
    let text = std::fs::read_to_string(format!("{FOLDER}/docs/how-to/{page}")).unwrap();
    assert!(text.contains("# Try it") && text.contains("test "), "{page} tells nothing to try");
    let [gateway, emporix] =
        [world.gateway().public, world.simulator.address].map(|address| format!("http://{address}"));
    let program = Path::new(env!("CARGO_BIN_EXE_emporix-gateway")).parent().unwrap();
    let trying = how.lines().find(|line| line.starts_with("try()")).unwrap();
    let script = format!("PATH='{}':$PATH\n{trying}\ntry {page}", program.display());
    let run = move || {
        let mut command = Command::new("bash");
        command.current_dir(FOLDER).args(["-euc", &script]).env("GATEWAY", gateway).env("EMPORIX", emporix);
        command.output().unwrap()
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
