//! What operators rely on: health, metrics, drain, exit codes, and error messages that name their place.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::errands::{program, said};
use crate::world::{World, eventually, free_port, plain_get};

/// The status of a GET on the admin listener.
fn admin(world: &World, path: &str) -> (u16, String) {
    let answer = plain_get(world.gateway().admin, path);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn config_of(public: u16, admin: u16) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let text = format!(
        "listen: {{public: '127.0.0.1:{public}', drain_timeout: 2s}}\n\
         admin: {{listen: '127.0.0.1:{admin}'}}\n\
         upstream: {{base_url: 'http://127.0.0.1:9'}}\n\
         tenants: {{acme: {{client_id: storefront}}}}\n"
    );
    std::fs::write(file.path(), text).unwrap();
    file
}

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_on_the_admin_listener_and_nothing_of_it_on_the_public_one() {
    let world = World::new().await;
    for path in ["/livez", "/readyz", "/startupz", "/healthz"] {
        assert_eq!(admin(&world, path).0, 200, "{path}");
    }
    for path in ["/", "/admin/sessions", "/livez/", "/product/acme/products", "/customer/acme/me"] {
        assert_eq!(admin(&world, path).0, 404, "{path}");
    }
    for path in ["/livez", "/readyz", "/startupz", "/healthz", "/metrics", "/admin/sessions"] {
        let answer = world.ask(&format!("GET {path}")).send().await;
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.text.contains("gateway_"), "{path}");
    }
    assert_eq!(world.simulator.calls("api").await, 0, "none of them reached Emporix");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_its_store_lives_but_is_not_ready_until_the_store_is_back() {
    let world = World::builder().redis().start().await;
    let says = |series: &str| world.gateway().metric(series) >= 1.0;
    let open = r#"gateway_breakers_open{dependency="store"}"#;
    eventually("it is ready", async || admin(&world, "/readyz").0 == 200).await;
    eventually("it hears", async || says("gateway_hears_invalidations") && says("gateway_store_reachable")).await;
    assert!(!says(open) && !says("gateway_draining"));
    world.redis().kill();
    let asked = Instant::now();
    assert_eq!(admin(&world, "/readyz").0, 503);
    assert!(asked.elapsed() < Duration::from_secs(2));
    for path in ["/livez", "/healthz", "/startupz"] {
        assert_eq!(admin(&world, path).0, 200, "{path}: a restart would not bring Redis back");
    }
    eventually("its breaker opens", async || says(open)).await;
    assert!(!says("gateway_hears_invalidations") && !says("gateway_store_reachable"));
    let refused = world.ask("POST /customer/acme/login").json(&crate::steps::john()).send().await;
    assert_eq!(refused.status, 503);
    let at_fault = r#"gateway_requests_total{outcome="server_error",route="login"}"#;
    eventually("it is counted, and Emporix is not to blame", async || says(at_fault)).await;
    world.redis().restart().await;
    eventually("it is ready again", async || admin(&world, "/readyz").0 == 200).await;
    eventually("it hears again", async || says("gateway_hears_invalidations") && !says(open)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_emporix_fails_at_is_not_counted_as_the_gateways_fault() {
    let world = World::new().await;
    for mode in ["status", "reset"] {
        world.simulator.fault(json!({"operation": "api", "mode": mode, "status": 503})).await;
        assert!(world.ask("GET /product/acme/products").send().await.status >= 502, "{mode}");
        world.simulator.heal().await;
    }
    world.simulator.fault(json!({"operation": "login", "mode": "status", "status": 503})).await;
    assert_eq!(world.ask("POST /customer/acme/login").json(&crate::steps::john()).send().await.status, 503);
    let counted = |outcome: &str, route: &str| {
        world.gateway().metric(&format!(r#"gateway_requests_total{{outcome="{outcome}",route="{route}"}}"#))
    };
    eventually("all are counted", async || counted("upstream_error", "login") == 1.0).await;
    assert_eq!([counted("upstream_error", "guest"), counted("server_error", "guest")], [2.0, 0.0]);
    assert_eq!(counted("server_error", "login"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_of_requests_logins_and_calls_that_were_saved() {
    let world = World::new().await;
    let customer = world.customer().await;
    for _ in 0..3 {
        assert_eq!(world.ask("GET /product/acme/products").send().await.status, 200);
        world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
    }
    let gateway = world.gateway();
    assert!(gateway.metric(r#"gateway_emporix_calls_saved_total{reason="guest_shared"}"#) >= 2.0);
    assert!(gateway.metric(r#"gateway_logins_total{flow="password",outcome="success"}"#) >= 1.0);
    assert!(gateway.metric(r#"gateway_requests_total{outcome="success",route="guest"}"#) >= 3.0);
    let metrics = gateway.metrics();
    for name in ["gateway_build_info", "gateway_auth_total", "gateway_refreshes_total", "gateway_store_seconds"] {
        assert!(metrics.contains(name), "{name}");
    }
    assert!(!metrics.contains("acme") && !metrics.contains("13869000"), "no tenant and no customer is a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_for_the_request_under_way_and_then_ends_promptly() {
    let mut world = World::new().await;
    let customer = world.customer().await;
    world.simulator.fault(json!({"operation": "api", "mode": "delay", "delay_ms": 700, "times": 1})).await;
    let slow = async {
        let answer = world.ask("GET /customer/acme/me").bearer(&customer.tokens.access).send().await;
        assert_eq!((answer.status, answer.json()["customerNumber"].as_str()), (200, Some("13869000")));
    };
    let stop = async {
        eventually("the request is under way", async || world.simulator.calls("api").await == 1).await;
        world.gateway().stop();
        eventually("it says that it is draining", async || admin(&world, "/readyz").0 != 200).await;
        assert_eq!(world.gateway().metric("gateway_draining"), 1.0);
    };
    tokio::join!(slow, stop);
    let waited = Instant::now();
    tokio::task::block_in_place(|| world.replicas[0].join());
    assert!(waited.elapsed() < Duration::from_secs(5), "{:?}", waited.elapsed());
}

#[test]
fn the_program_checks_prints_and_names_itself() {
    let (code, said_so, _) = said(&program(&["check-config", "--config", DEMO]));
    assert_eq!(code, Some(0));
    assert!(said_so.trim_end().ends_with("demo.yaml: ok"), "{said_so}");
    let (code, printed, _) = said(&program(&["print-config", "--config", DEMO]));
    assert_eq!(code, Some(0));
    assert!(printed.contains("client_id: storefront") && printed.contains("secret:"), "{printed}");
    assert!(!printed.contains("simulator-passphrase"), "secrets are masked");
    let (code, version, _) = said(&program(&["--version"]));
    assert_eq!((code, version.trim()), (Some(0), concat!("emporix-gateway ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_variable_that_is_no_text_is_a_fault_where_it_is_ours_and_nothing_elsewhere() {
    use std::os::unix::ffi::OsStrExt;
    let garbled = std::ffi::OsStr::from_bytes(b"hunter2\xff");
    for (name, expected, told) in [
        ("NOBODYS", 0, ""),
        ("EMPORIX_GATEWAY__ADMIN__TOKEN", 64, "environment EMPORIX_GATEWAY__ADMIN__TOKEN: is no text in UTF-8\n"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emporix-gateway"));
        let output = command.args(["check-config", "--config", DEMO]).env(name, garbled);
        let (code, _, faults) = said(&output.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap());
        assert_eq!((code, &*faults), (Some(expected), told));
    }
}

#[test]
fn a_configuration_may_come_through_a_pipe_where_it_is_not_followed() {
    let piped = |command: &str| {
        let program = env!("CARGO_BIN_EXE_emporix-gateway");
        let script = format!("cat {DEMO} | {program} {command} --config /dev/stdin");
        said(&Command::new("sh").args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap())
    };
    assert_eq!(piped("check-config").0, Some(0));
    assert!(piped("print-config").1.contains("client_id: storefront"));
    let (code, _, fault) = piped("serve");
    assert_eq!((code, &*fault), (Some(64), "/dev/stdin: cannot be read: it is no regular file\n"));
}

#[test]
fn a_faulty_file_is_refused_with_every_place_named() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), "listen:\n  colour: red\nstore:\n  kind: mongo\ntenants: {acme: {client_id: x}}\n")
        .unwrap();
    let path = file.path().to_str().unwrap();
    for command in ["check-config", "print-config", "serve"] {
        let (code, _, faults) = said(&program(&[command, "--config", path]));
        assert_eq!(code, Some(64), "{command}");
        for place in [":2:3: listen.colour: ", ":4:3: store.kind: "] {
            assert!(faults.contains(&format!("{path}{place}")), "{place} in {faults}");
        }
    }
    for arguments in [&["serve"][..], &["dance"], &["check-config", "--config", "/nowhere.yaml"]] {
        assert_eq!(program(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn a_port_in_use_ends_the_program_with_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let public = taken.local_addr().unwrap().port();
    let file = config_of(public, free_port());
    let (code, _, errors) = said(&program(&["serve", "--config", file.path().to_str().unwrap()]));
    assert_eq!(code, Some(69), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.contains("cannot listen on")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    assert!(lines[0].contains("listen.public") && lines[0].contains(&public.to_string()), "{}", lines[0]);
    assert!(!errors.contains("panicked"), "{errors}");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_program_with_success() {
    let (public, admin) = (free_port(), free_port());
    let file = config_of(public, admin);
    let serve = Command::new(env!("CARGO_BIN_EXE_emporix-gateway"))
        .args(["serve", "--config", file.path().to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(serve);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], admin));
    eventually("it is ready", async || plain_get(address, "/readyz").starts_with("HTTP/1.1 200")).await;
    let killed = Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let mut ended = None;
    eventually("it ends", async || {
        ended = running.0.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    assert_eq!(ended.unwrap().code(), Some(0));
    let mut log = BufReader::new(running.0.stderr.take().unwrap());
    let mut first = String::new();
    log.read_line(&mut first).unwrap();
    assert!(first.contains(r#""message":"listening""#) && first.contains("version"), "{first}");
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""message":"draining""#), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_takes_no_head_without_end() {
    let world = World::new().await;
    let answer = world.ask_admin(0, "GET /livez").header("x-long", &"x".repeat(100_000)).send().await;
    assert_eq!((answer.status, answer.code().as_str()), (431, "head_too_large"));
}
