//! Who reaches a listener and has nothing to ask there cannot fill the log.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::process::ProcessReplica;
use crate::world::{Certificate, World, eventually, free_port};

const HANDSHAKES: &str = "gateway_handshakes_failed_total";

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_fail_are_counted_and_written_down_at_debug_level_only() {
    let (world, folder) = (World::builder().start().await, tempfile::tempdir().unwrap());
    let [certificate, key] = Certificate::new().write(folder.path());
    let tls = [("LISTEN__TLS__CERTIFICATE_FILE", certificate.as_str()), ("LISTEN__TLS__KEY_FILE", key.as_str())];
    let replica = ProcessReplica::start(&world, &tls).await;
    let told = || replica.logged().matches("Downstream handshake error from 127.0.0.1:").count();
    eventually("the look whether it listens is told of", async || told() > 0).await;

    replica.configure(|config| config.replace("level: debug", "level: info"));
    replica.hang_up();
    eventually("it logs less", async || replica.logged().contains("the configuration was read again")).await;
    let (told_before, failed_before) = (told(), replica.metric(HANDSHAKES));
    for knock in ["", "GET / HTTP/1.1\r\n\r\n"] {
        TcpStream::connect(replica.public).unwrap().write_all(knock.as_bytes()).unwrap();
    }
    eventually("both are counted", async || replica.metric(HANDSHAKES) == failed_before + 2.0).await;
    assert_eq!(told(), told_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_warned_of_once_in_a_while() {
    let world = World::builder().start().await;
    let [internal, forward_auth] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let replica = ProcessReplica::start(
        &world,
        &[
            ("INTERNAL__LISTEN", &internal.to_string()),
            ("INTERNAL__TOKEN", "the-token-of-the-back-office"),
            ("FORWARD_AUTH__LISTEN", &forward_auth.to_string()),
            ("FORWARD_AUTH__TRUSTED_PEERS", r#"["192.0.2.0/24"]"#),
            ("ADMIN__TOKEN", "a-token-of-operators-that-is-long"),
        ],
    )
    .await;
    let begun = Instant::now();
    for (address, target, status, line) in [
        (internal, "/vendor/acme/stock", 401, "the internal listener was asked without its token"),
        (forward_auth, "/auth/nginx", 403, "a verdict was asked by a peer that is not in forward_auth.trusted_peers"),
        (replica.admin, "/admin/sessions", 401, "the operators' API was asked without its token"),
    ] {
        eventually("it listens", async || TcpStream::connect(address).is_ok()).await;
        for _ in 0..20 {
            assert_eq!(world.ask_at(address, &format!("GET {target}")).send().await.status, status, "{target}");
        }
        let said = replica.logged().matches(line).count();
        let most = 1 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap();
        assert!((1..=most).contains(&said), "{said} times: {line}");
    }
}
