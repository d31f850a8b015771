//! The gateway is told to stop: clients are told to go, what ends in time ends whole, and nothing outlasts the bound.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::process::ProcessReplica;
use crate::steps::ANONYMOUS_LOGIN;
use crate::streaming::{echo, open_socket};
use crate::world::{Certificate, Tokens, World, eventually};

const PRODUCTS: &str = "/product/acme/products";

/// A gateway behind TLS, whose certificate lies in `folder`.
async fn with_tls(world: &World, folder: &tempfile::TempDir, drain_timeout: &str) -> ProcessReplica {
    let [certificate, key] = Certificate::new().write(folder.path());
    let changes = [
        ("LISTEN__TLS__CERTIFICATE_FILE", &*certificate),
        ("LISTEN__TLS__KEY_FILE", &*key),
        ("LISTEN__DRAIN_TIMEOUT", drain_timeout),
    ];
    ProcessReplica::start(world, &changes).await
}

/// A connection over TLS that speaks `protocol`, to a gateway whose certificate lies in `folder`.
pub async fn tls(address: SocketAddr, folder: &tempfile::TempDir, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.path().join("certificate.pem")).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// An HTTP/2 connection, and what says how it ended.
struct Http2 {
    send: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    /// Opens one and asks for `path` as the first thing on it.
    async fn asking(
        gateway: &ProcessReplica,
        folder: &tempfile::TempDir,
        path: &str,
    ) -> (Self, h2::client::ResponseFuture) {
        let (mut send, connection) = h2::client::handshake(tls(gateway.public, folder, b"h2").await).await.unwrap();
        let request = http::Request::get(format!("https://localhost{path}")).body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        (Self { send, ended: tokio::spawn(connection) }, answer)
    }

    /// Waits until the other side has told it to go and closed it in order.
    async fn told_to_go(self) {
        eventually("the connection ends", async || self.ended.is_finished()).await;
        match self.ended.await.unwrap() {
            Ok(()) => {}
            // It was told to go and gone before our own farewell could be written.
            Err(error) => {
                let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                assert!(error.get_io().is_some_and(|error| closed.contains(&error.kind())), "{error}");
            }
        }
        drop(self.send);
    }
}

/// Status and body of an answer, which has to be whole.
pub async fn whole(answer: h2::client::ResponseFuture) -> Result<(u16, String), h2::Error> {
    let (head, mut body) = answer.await?.into_parts();
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len()).unwrap();
        text.extend_from_slice(&piece);
    }
    Ok((head.status.as_u16(), String::from_utf8(text).unwrap()))
}

/// Something that is under way until it is told to end, and ends in order.
async fn delayed(world: &World) {
    world.simulator.fault(json!({"operation": "api", "mode": "delay", "delay_ms": 2_000, "times": 1})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_clients_are_told_to_go_those_too_that_come_while_it_drains_and_their_answers_are_whole() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let mut gateway = with_tls(&world, &folder, "20s").await;
    delayed(&world).await;
    let (early, answer) = Http2::asking(&gateway, &folder, PRODUCTS).await;
    eventually("it is under way", async || world.simulator.calls("api").await == 1).await;
    gateway.terminate();
    eventually("it drains", async || gateway.logged().contains("draining")).await;
    let (late, another) = Http2::asking(&gateway, &folder, PRODUCTS).await;
    // What comes with the word to go is answered whole, or named as what was not begun and can be asked elsewhere.
    match whole(another).await {
        Ok((status, text)) => assert!(status == 200 && text.contains("Espresso"), "{status} {text}"),
        Err(error) => assert_eq!((error.is_go_away(), error.reason()), (true, Some(h2::Reason::NO_ERROR)), "{error}"),
    }
    late.told_to_go().await;
    assert!(gateway.exit_code().is_none() && !early.ended.is_finished(), "the early one is waited for");
    let (status, text) = whole(answer).await.unwrap();
    assert!(status == 200 && text.contains("Espresso"), "{status} {text}");
    early.told_to_go().await;
    eventually("the gateway goes", async || gateway.has_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_as_the_gateway_goes_is_answered_or_was_never_begun() {
    let world = World::new().await;
    let mut answered = 0;
    for millis in (0..=200).step_by(10) {
        let mut gateway = ProcessReplica::start(&world, &[]).await;
        let visitor = world.ask_at(gateway.public, ANONYMOUS_LOGIN).send().await;
        let access = Tokens::of(&visitor).access;
        let mut kept = TcpStream::connect(gateway.public).await.unwrap();
        world.simulator.heal().await;
        world.simulator.forget_calls().await;
        world.simulator.fault(json!({"operation": "api", "mode": "delay", "delay_ms": 150})).await;
        gateway.terminate();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let order = format!("GET {PRODUCTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {access}\r\n\r\n");
        // Where it is gone already, the write fails or the read does.
        let _ = kept.write_all(order.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = kept.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer);
        let calls = world.simulator.calls("api").await;
        match calls {
            0 => assert_eq!(text, "", "{millis} ms"),
            _ => assert!(text.starts_with("HTTP/1.1 200") && text.contains("Espresso"), "{millis} ms: {text}"),
        }
        answered += calls;
        eventually("the gateway goes", async || gateway.has_ended()).await;
    }
    assert!(answered > 0, "some came in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_traffic_that_never_ceases_whatever_was_begun_is_answered() {
    let world = World::new().await;
    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__DRAIN_TIMEOUT", "3s")]).await;
    let access = Tokens::of(&world.ask_at(gateway.public, ANONYMOUS_LOGIN).send().await).access;
    world.simulator.fault(json!({"operation": "api", "mode": "delay", "delay_ms": 300, "times": null})).await;
    world.simulator.forget_calls().await;
    let answered = Arc::new(AtomicU64::new(0));
    let shoppers: Vec<_> = (0..8)
        .map(|_| {
            let (answered, public) = (answered.clone(), gateway.public);
            let asked = format!(
                "GET {PRODUCTS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {access}\r\n\r\n"
            );
            tokio::spawn(async move {
                while let Ok(mut connection) = TcpStream::connect(public).await {
                    let mut answer = Vec::new();
                    let _ = connection.write_all(asked.as_bytes()).await;
                    let _ = connection.read_to_end(&mut answer).await;
                    let text = String::from_utf8_lossy(&answer);
                    let whole = text.starts_with("HTTP/1.1 200") && text.contains("Espresso");
                    assert!(whole || text.is_empty(), "{text}");
                    answered.fetch_add(whole.into(), Ordering::SeqCst);
                }
            })
        })
        .collect();
    eventually("they are served", async || answered.load(Ordering::SeqCst) > 16).await;
    gateway.terminate();
    eventually("the gateway goes", async || gateway.has_ended()).await;
    for shopper in shoppers {
        shopper.await.unwrap();
    }
    assert_eq!(world.simulator.calls("api").await, answered.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_gateway_goes_at_once_whoever_keeps_a_connection() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let mut gateway = with_tls(&world, &folder, "60s").await;
    let (idle, answer) = Http2::asking(&gateway, &folder, PRODUCTS).await;
    assert_eq!(whole(answer).await.unwrap().0, 200);
    let told = Instant::now();
    gateway.terminate();
    eventually("the gateway goes", async || gateway.has_ended()).await;
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    idle.told_to_go().await;

    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__DRAIN_TIMEOUT", "60s")]).await;
    let mut kept = TcpStream::connect(gateway.public).await.unwrap();
    kept.write_all(format!("GET {PRODUCTS} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    assert!(kept.read(&mut [0; 1]).await.unwrap() == 1, "it is answered");
    let told = Instant::now();
    gateway.terminate();
    eventually("the gateway goes", async || gateway.has_ended()).await;
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_sockets_and_a_request_without_end_are_cut_off_at_the_bound() {
    const BOUND: Duration = Duration::from_secs(2);
    let world = World::new().await;
    let mut gateway = ProcessReplica::start(&world, &[("LISTEN__DRAIN_TIMEOUT", "2s")]).await;
    let access = Tokens::of(&world.ask_at(gateway.public, ANONYMOUS_LOGIN).send().await).access;
    let events = "GET /ai-service/acme/agentic/chat-stream?events=0";
    let mut events = world.ask_at(gateway.public, events).bearer(&access).stream().await;
    events.chunk().await.unwrap().unwrap();
    let mut socket = open_socket(gateway.public, &[("authorization", &format!("Bearer {access}"))]).unwrap();
    echo(&mut socket, &Message::text("hello"));
    world.simulator.forget_calls().await;
    world.simulator.fault(json!({"operation": "api", "mode": "hang"})).await;
    let endless = world.ask_at(gateway.public, "GET /price/acme/prices").bearer(&access).try_send();
    let stops = async {
        eventually("it is under way", async || world.simulator.calls("api").await == 1).await;
        let told = Instant::now();
        gateway.terminate();
        eventually("it drains", async || gateway.logged().contains("draining")).await;
        echo(&mut socket, &Message::text("still there"));
        eventually("the gateway goes", async || gateway.has_ended()).await;
        told.elapsed()
    };
    let (answer, took) = tokio::join!(endless, stops);
    assert!(answer.is_err(), "it is cut off");
    assert!(took >= BOUND && took < BOUND + Duration::from_secs(3), "{took:?}");
    assert!(!matches!(events.chunk().await, Ok(Some(_))), "no event comes from nowhere");
    assert!(!matches!(socket.read(), Ok(Message::Text(_) | Message::Binary(_))));
}
