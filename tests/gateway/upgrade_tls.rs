//! Another binary takes over behind TLS, under uploads of both protocols: each body is taken once and whole, streams end at
//! the bound, and nobody is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::process::ProcessReplica;
use crate::stopping::{tls, whole};
use crate::streaming::SOCKET;
use crate::upgrade::private_folder;
use crate::world::{Certificate, World, eventually};

/// Shoppers over each protocol.
const SHOPPERS: usize = 4;
const BOUND: Duration = Duration::from_secs(5);
/// More than a read of Pingora's takes, so that a body is under way for a while.
const PADDING: usize = 20_000;
const ANONYMOUS_LOGIN: &str = "/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
const CARTS: &str = "/cart/acme/carts";

/// Where the gateway is, whichever process it is by now.
#[derive(Clone)]
struct Place {
    address: SocketAddr,
    folder: Arc<tempfile::TempDir>,
}

/// A client that keeps a connection while it may, as a library for its protocol does.
enum Client {
    Http1(reqwest::Client),
    Http2(Option<SendRequest<Bytes>>),
}

impl Client {
    fn http1() -> Self {
        let client = reqwest::Client::builder().no_proxy().http1_only().tls_danger_accept_invalid_certs(true);
        Self::Http1(client.build().unwrap())
    }

    /// Status and body of the answer. There has to be one.
    async fn ask(&mut self, place: &Place, method: &str, path: &str, access: &str, body: &str) -> (u16, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://localhost:{}{path}", place.address.port()))
            .header("authorization", format!("Bearer {access}"))
            .header("content-type", "application/json");
        match self {
            Self::Http1(client) => {
                let request = request.body(body.to_owned()).unwrap().try_into().unwrap();
                let answer = client.execute(request).await.unwrap_or_else(|error| panic!("it failed: {error:?}"));
                (answer.status().as_u16(), answer.text().await.unwrap())
            }
            Self::Http2(kept) => {
                let request = request.body(()).unwrap();
                loop {
                    match try_http2(kept, place, request.clone(), body).await {
                        Ok(answer) => return answer,
                        // It was not begun, says the gateway: asking elsewhere doubles nothing.
                        Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                            *kept = None;
                        }
                        Err(error) => panic!("it failed: {error:?}"),
                    }
                }
            }
        }
    }
}

async fn try_http2(
    kept: &mut Option<SendRequest<Bytes>>,
    place: &Place,
    request: http::Request<()>,
    body: &str,
) -> Result<(u16, String), h2::Error> {
    let send = match kept.take() {
        Some(send) => send,
        None => {
            let (send, connection) = h2::client::handshake(tls(place.address, &place.folder, b"h2").await).await?;
            tokio::spawn(connection);
            send
        }
    };
    let mut send = send.ready().await?;
    let (answer, mut upload) = send.send_request(request, false)?;
    upload.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
    let answer = whole(answer).await?;
    *kept = Some(send);
    Ok(answer)
}

/// What the shoppers of a test have in common.
#[derive(Clone)]
struct Shop {
    place: Place,
    closes: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

impl Shop {
    /// Fills a cart until the shop closes, and finds in it what was put there: each item once, and whole.
    async fn shopper(self, mut client: Client) {
        let login = client.ask(&self.place, "GET", ANONYMOUS_LOGIN, "none", "").await;
        let access = json_of(&login, 200)["access_token"].as_str().unwrap().to_owned();
        let cart = client.ask(&self.place, "POST", CARTS, &access, r#"{"siteCode":"main","currency":"EUR"}"#).await;
        let cart = format!("{CARTS}/{}", json_of(&cart, 201)["cartId"].as_str().unwrap());
        let padding = "x".repeat(PADDING);
        let mut put = 0;
        while !self.closes.load(Ordering::SeqCst) {
            let item = json!({"number": put, "padding": padding}).to_string();
            json_of(&client.ask(&self.place, "POST", &format!("{cart}/items"), &access, &item).await, 201);
            self.taken.fetch_add(1, Ordering::SeqCst);
            put += 1;
        }
        let found = json_of(&client.ask(&self.place, "GET", &cart, &access, "").await, 200);
        let found = found["items"].as_array().unwrap().iter().map(|item| {
            assert_eq!(item["padding"].as_str().unwrap().len(), PADDING);
            item["number"].as_u64().unwrap()
        });
        assert_eq!(found.collect::<Vec<_>>(), (0..put).collect::<Vec<_>>(), "each once, in order");
    }

    async fn takes_more(&self) {
        let before = self.taken.load(Ordering::SeqCst);
        eventually("uploads go on", async || self.taken.load(Ordering::SeqCst) > before + 100).await;
    }
}

fn json_of((status, text): &(u16, String), expected: u16) -> Value {
    assert_eq!(*status, expected, "{text}");
    serde_json::from_str(text).unwrap()
}

/// A request of HTTP/1.1 whose head and first bytes are written.
async fn begun(place: &Place, head: &str, access: &str) -> TlsStream<TcpStream> {
    let mut stream = tls(place.address, &place.folder, b"http/1.1").await;
    let head = format!("{head} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {access}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads on until `text` has come; false when the stream ended without.
async fn comes(stream: &mut TlsStream<TcpStream>, text: &str) -> bool {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !all.windows(text.len()).any(|window| window == text.as_bytes()) {
        match stream.read(&mut piece).await {
            Ok(length @ 1..) => all.extend_from_slice(&piece[..length]),
            _ => return false,
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_over_tls_are_taken_once_and_whole_and_streams_end_at_the_bound() {
    let folder = Arc::new(private_folder());
    let socket = folder.path().join("upgrade.sock");
    let [certificate, key] = Certificate::new().write(folder.path());
    let world = World::builder().redis().start().await;
    let changes = [
        ("LISTEN__TLS__CERTIFICATE_FILE", &*certificate),
        ("LISTEN__TLS__KEY_FILE", &*key),
        ("LISTEN__UPGRADE_SOCKET", socket.to_str().unwrap()),
        ("LISTEN__DRAIN_TIMEOUT", "5s"),
    ];
    let mut old = ProcessReplica::start(&world, &changes).await;
    let place = Place { address: old.public, folder };
    let shop = Shop { place: place.clone(), closes: Arc::default(), taken: Arc::default() };
    let mut shoppers = JoinSet::new();
    for _ in 0..SHOPPERS {
        shoppers.spawn(shop.clone().shopper(Client::http1()));
        shoppers.spawn(shop.clone().shopper(Client::Http2(None)));
    }
    let login = Client::http1().ask(&place, "GET", ANONYMOUS_LOGIN, "none", "").await;
    let access = json_of(&login, 200)["access_token"].as_str().unwrap().to_owned();
    let mut events = begun(&place, "GET /ai-service/acme/agentic/chat-stream?events=0", &access).await;
    events.write_all(b"\r\n").await.unwrap();
    assert!(comes(&mut events, "data: {\"n\":1}\n\n").await);
    let mut chat = begun(&place, &format!("GET {SOCKET}"), &access).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    chat.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(comes(&mut chat, "\r\n\r\n").await);
    let mut upload = begun(&place, "POST /media/acme/assets", &access).await;
    upload.write_all(b"Content-Length: 8\r\n\r\nfour").await.unwrap();

    shop.takes_more().await;
    let _new = old.successor(&world, &changes);
    eventually("it waits for the listeners", async || socket.exists()).await;
    shop.takes_more().await;
    let told = Instant::now();
    old.quit();
    eventually("the listeners are handed over", async || old.logged().contains("the listeners were handed over")).await;
    shop.takes_more().await;
    upload.write_all(b"more").await.unwrap();
    assert!(comes(&mut upload, r#"{"received":8}"#).await, "what was begun is ended");
    // A text frame under a mask of zeros.
    chat.write_all(b"\x81\x8b\0\0\0\0still there").await.unwrap();
    assert!(comes(&mut chat, "still there").await);
    assert!(old.exit_code().is_none(), "streams are waited for");
    eventually("the old one goes", async || old.has_ended()).await;
    let took = told.elapsed();
    assert!(took >= BOUND && took < BOUND + Duration::from_secs(3), "{took:?}");
    assert!(!comes(&mut events, "data").await && !comes(&mut chat, "still there").await, "they end");

    shop.takes_more().await;
    shop.closes.store(true, Ordering::SeqCst);
    while let Some(ended) = shoppers.join_next().await {
        ended.unwrap();
    }
}
