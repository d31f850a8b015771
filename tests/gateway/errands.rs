//! The program's everyday errands, each asked as an operator asks it: what it prints, and with which exit code it ends.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::world::World;

/// The repository's own configurations.
const SHIPPED: [&str; 2] = ["config/gateway.yaml", "config/demo.yaml"];

pub fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_emporix-gateway"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

/// Exit code, and what was said on either stream.
pub fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Asks for an errand while the world goes on.
pub async fn errand(arguments: &[&str]) -> (Option<i32>, String, String) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || said(&program(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_says_whether_the_gateway_is_ready() {
    let mut world = World::builder().redis().start().await;
    let admin = world.gateway().admin;
    assert_eq!(errand(&["healthcheck", "--admin", &url(admin)]).await, (Some(0), "ready\n".into(), String::new()));
    let config = tempfile::NamedTempFile::new().unwrap();
    let text = format!("tenants: {{acme: {{client_id: x}}}}\nadmin: {{listen: '0.0.0.0:{}'}}\n", admin.port());
    std::fs::write(config.path(), text).unwrap();
    assert_eq!(errand(&["healthcheck", "--config", config.path().to_str().unwrap()]).await.0, Some(0));
    world.redis().kill();
    let (code, shown, failed) = errand(&["healthcheck", "--admin", &url(admin)]).await;
    let expected = "not ready: the gateway answered 503 (the session store does not answer)\n";
    assert_eq!((code, shown.as_str(), failed.as_str()), (Some(69), "", expected));
    world.gateway().stop();
    tokio::task::block_in_place(|| world.replicas[0].join());
    let (code, _, failed) = errand(&["healthcheck", "--admin", &url(admin)]).await;
    assert_eq!((code, failed.lines().count()), (Some(69), 1), "{failed}");
    assert!(failed.starts_with("the gateway cannot be asked: "), "{failed}");
    assert_eq!(errand(&["healthcheck", "--admin", "nowhere"]).await.0, Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthcheck_does_not_wait_for_who_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = Instant::now();
    let (code, _, failed) = errand(&["healthcheck", "--admin", &url(silent.local_addr().unwrap())]).await;
    assert_eq!((code, failed.lines().count()), (Some(69), 1), "{failed}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[test]
fn every_shell_completes_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = said(&program(&["completions", shell]));
        assert_eq!(code, Some(0), "{shell}");
        for command in ["serve", "check-config", "sessions", "healthcheck", "schema", "completions"] {
            assert!(script.contains(command), "{command} in {shell}");
        }
    }
    assert_eq!(program(&["completions", "cobol"]).status.code(), Some(64));
}

fn schema() -> jsonschema::Validator {
    let (code, schema, _) = said(&program(&["schema"]));
    assert_eq!(code, Some(0));
    jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap()
}

fn yaml(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn shipped_configurations_fit_the_schema() {
    let schema = schema();
    for file in SHIPPED {
        let text = std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let faults: Vec<String> = schema.iter_errors(&yaml(&text)).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{file}: {faults:?}");
    }
    // Every key of the reference that is commented out for want of a default.
    let commented = "listen: {tls: {certificate_file: a, key_file: b}}\n\
        tenants: {acme: {client_id: x, saas_token: {secret_file: f, algorithms: [ES256]}, webhook: {secret: s},\n\
          foreign_bearer: {mode: adopt, until: '2027-01-31T00:00:00Z'}}}\n\
        store: {redis: {url_file: f, password_file: f, sentinel: {password_file: f}}, seal: {keys: [{id: a, secret_file: f}]}}\n\
        admin: {token_file: f}\n\
        routes: [{path: /a/**, methods: [GET], read_timeout: 5s, limit: sign_in}]\n";
    assert!(schema.is_valid(&yaml(commented)), "{:?}", schema.iter_errors(&yaml(commented)).next());
}

#[test]
fn what_the_program_refuses_does_not_fit_the_schema() {
    let schema = schema();
    for text in [
        "colour: red",
        "listen: {colour: red}",
        "listen: {threads: 0}",
        "store: {kind: mongo}",
        "tenants: {acme: {client_id: x, password_file: f}}",
        "tenants: {Acme: {client_id: x}}",
        "listen: {drain_timeout: 30}",
        "listen: {drain_timeout: soon}",
        "store: {seal: {keys: [{id: a, secret: [1]}]}}",
        "routes: [{methods: [GET]}]",
        "routes: [{path: /a, access: everybody}]",
    ] {
        assert!(!schema.is_valid(&yaml(text)), "{text}");
    }
}
