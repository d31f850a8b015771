//! `keys rotate`: a fleet moves over to a new sealing key step by step, and no session is lost on the way.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::errands::errand;
use crate::world::World;

/// The key of every test world.
const FIRST: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

struct Fleet {
    folder: tempfile::TempDir,
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self { folder: tempfile::tempdir().unwrap() };
        let text = format!(
            "tenants: {{acme: {{client_id: x}}}}\nstore: {{seal: {{active: test, keys: [{{id: test, secret: {FIRST}}}]}}}}\n"
        );
        std::fs::write(fleet.config(), text).unwrap();
        fleet
    }

    fn config(&self) -> String {
        self.folder.path().join("gateway.yaml").display().to_string()
    }

    async fn rotate(&self, more: &[&str]) -> (Option<i32>, String, String) {
        let config = self.config();
        errand(&[&["keys", "rotate", "--config", &config][..], more].concat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_moves_to_a_new_key_in_three_steps_and_every_session_lives() {
    let mut world = World::builder().redis().start().await;
    let before = world.customer().await;
    let fleet = Fleet::new();
    // As seen from where the program runs.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let up = root.ancestors().skip(1).map(|_| "..").collect::<Vec<_>>().join("/");
    let folder = format!("{up}{}", fleet.folder.path().display());
    let (code, shown, failed) = fleet.rotate(&["--write", &folder]).await;
    assert_eq!((code, failed.as_str()), (Some(0), ""));
    let section: Value = serde_saphyr::from_str(&shown).unwrap();
    let seal = &section["store"]["seal"];
    let (id, file) = (seal["keys"][1]["id"].as_str().unwrap(), seal["keys"][1]["secret_file"].as_str().unwrap());
    assert!(file.starts_with('/'), "{file}");
    assert_eq!((&seal["active"], &seal["keys"][0]["id"]), (&json!("test"), &json!("test")));
    assert!(shown.contains(&format!("active: '{id}'")) && shown.contains("Then, 90d (session.absolute)"), "{shown}");
    let secret = std::fs::read_to_string(file).unwrap();
    assert!(!shown.contains(secret.trim()) && !shown.contains(FIRST), "{shown}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);

    let [old, new] = [json!({"id": "test", "secret": FIRST}), json!({"id": id, "secret": secret.trim()})];
    let [both, alone] = [json!([old, new]).to_string(), json!([new]).to_string()];
    let opener = world.add_replica(&[("STORE__SEAL__ACTIVE", "test"), ("STORE__SEAL__KEYS", &both)]).await;
    let sealer = world.add_replica(&[("STORE__SEAL__ACTIVE", id), ("STORE__SEAL__KEYS", &both)]).await;
    let me = async |replica: usize, access: &str| {
        world.ask_replica(replica, "GET /customer/acme/me").bearer(access).send().await.status
    };
    assert_eq!((me(opener, &before.tokens.access).await, me(sealer, &before.tokens.access).await), (200, 200));
    // The record was met by the new key's replica, and sealed anew: who has both keys still opens it.
    assert_eq!(me(opener, &before.tokens.access).await, 200);
    let last = world.add_replica(&[("STORE__SEAL__ACTIVE", id), ("STORE__SEAL__KEYS", &alone)]).await;
    let answer = world.ask_replica(last, "GET /customer/acme/me").bearer(&before.tokens.access).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_overwrites_nothing_and_takes_no_id_twice() {
    let fleet = Fleet::new();
    let folder = fleet.folder.path().to_str().unwrap();
    let written = || {
        let entries = std::fs::read_dir(fleet.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut keys: Vec<_> = entries.filter(|path| path.to_str().unwrap().contains("seal-")).collect();
        keys.sort();
        keys.into_iter().map(|path| std::fs::read_to_string(path).unwrap()).collect::<Vec<String>>()
    };
    assert_eq!(fleet.rotate(&["--write", folder]).await.0, Some(0));
    let first = written();
    assert_eq!(fleet.rotate(&["--write", folder]).await.0, Some(0));
    let both = written();
    assert_eq!((first.len(), both.len()), (1, 2));
    assert!(both.contains(&first[0]) && both[0] != both[1]);
    let (code, shown, failed) = fleet.rotate(&["--write", "/nowhere/at/all"]).await;
    assert_eq!((code, shown.as_str(), failed.lines().count()), (Some(69), "", 1), "{failed}");
    assert_eq!(errand(&["keys", "rotate", "--config", "/nowhere.yaml"]).await.0, Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_folder_the_key_stands_in_the_section_that_is_printed() {
    let fleet = Fleet::new();
    let (code, shown, _) = fleet.rotate(&[]).await;
    let section: Value = serde_saphyr::from_str(&shown).unwrap();
    let mut seal = section["store"]["seal"].clone();
    seal["keys"][0]["secret"] = FIRST.into();
    assert_eq!(code, Some(0));
    // The section is a configuration as it stands, once the old secret is in its place.
    let text = json!({"tenants": {"acme": {"client_id": "x"}}, "store": {"kind": "redis", "redis": {"url": "redis://h"}, "seal": seal}});
    let parsed = emporix_gateway::config::parse("f", &text.to_string(), std::iter::empty());
    assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
}
