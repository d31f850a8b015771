//! Bytes on their way: large bodies, event streams, WebSockets, and connections that are used again or break.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, Notify};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, HandshakeError, Message, WebSocket};

use crate::world::{World, eventually};

const FIVE_MEGABYTES: usize = 5 * 1024 * 1024;
const AT_MOST: Duration = Duration::from_secs(10);
/// The longest that a stream may outlive its session.
const AFTERLIFE: Duration = Duration::from_secs(2);
pub const SOCKET: &str = "/ai-service/acme/agentic/socket";

/// A client's connection, spoken to in bytes.
struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    async fn open(world: &World) -> Self {
        Self { stream: TcpStream::connect(world.gateway().public).await.unwrap(), unread: Vec::new() }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads on; false when the other side has closed.
    async fn read(&mut self) -> bool {
        let mut piece = [0; 16_384];
        let length = timeout(AT_MOST, self.stream.read(&mut piece)).await.expect("something comes").unwrap_or(0);
        self.unread.extend_from_slice(&piece[..length]);
        length > 0
    }

    /// The next head, and the body that its length announces.
    async fn response(&mut self, has_body: bool) -> (String, String) {
        let end = loop {
            match self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => assert!(self.read().await, "closed before a head came"),
            }
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length = if has_body { length.unwrap_or(0) } else { 0 };
        while self.unread.len() < length {
            assert!(self.read().await, "closed before the body was complete");
        }
        let body = String::from_utf8(self.unread.drain(..length).collect()).unwrap();
        (head, body)
    }

    /// Everything until the other side closes.
    async fn rest(mut self) -> String {
        while self.read().await {}
        String::from_utf8_lossy(&self.unread).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_arrives_complete_with_a_length_and_in_chunks() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let upload =
        world.ask("POST /media/acme/assets").bearer(&visitor.access).body(vec![7; FIVE_MEGABYTES]).send().await;
    assert_eq!((upload.status, upload.json()), (200, json!({"received": FIVE_MEGABYTES})));
    assert_eq!(world.simulator.last_api_request().await.headers("content-length"), [FIVE_MEGABYTES.to_string()]);

    let mut connection = Connection::open(&world).await;
    let head = "POST /media/acme/assets HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer ";
    connection.send(&format!("{head}{}\r\n\r\n", visitor.access)).await;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    for _ in 0..FIVE_MEGABYTES / 65_536 {
        connection.send(&chunk).await;
    }
    connection.send("0\r\n\r\n").await;
    let (head, body) = connection.response(true).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({"received": FIVE_MEGABYTES}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_arrives_complete() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.fault(json!({"operation": "api", "mode": "oversized"})).await;
    let answer = world.ask("GET /coupon/acme/c").bearer(&visitor.access).send().await;
    assert_eq!(answer.json()["padding"].as_str().unwrap().len(), 4 * 1024 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one_and_not_at_the_end() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let ask = |events: u32| {
        world.ask(&format!("GET /ai-service/acme/agentic/chat-stream?events={events}")).bearer(&visitor.access).stream()
    };
    let mut silent = ask(0).await;
    assert_eq!(silent.headers()["content-type"], "text/event-stream");
    let first = timeout(AT_MOST, silent.chunk()).await.expect("it comes though no end is near").unwrap().unwrap();
    assert_eq!(first, "data: {\"n\":1}\n\n");

    let mut counting = ask(5).await;
    let mut heard = Vec::new();
    while let Some(piece) = timeout(AT_MOST, counting.chunk()).await.unwrap().unwrap() {
        heard.push(String::from_utf8(piece.to_vec()).unwrap());
    }
    assert!(heard.len() > 1, "not in one piece: {heard:?}");
    assert_eq!(heard.concat(), (1..=5).map(|n| format!("data: {{\"n\":{n}}}\n\n")).collect::<String>());
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_stream_stays_open_says_nothing_of_how_fast_it_was_served() {
    let world = World::new().await;
    let customer = world.customer().await;
    let ask = world.ask("GET /ai-service/acme/agentic/chat-stream?events=0").bearer(&customer.tokens.access);
    let mut stream = ask.stream().await;
    stream.chunk().await.unwrap().unwrap();
    let open_for = Duration::from_millis(1_500);
    tokio::time::sleep(open_for).await;
    assert_eq!(world.ask("POST /_gateway/logout").bearer(&customer.tokens.access).send().await.status, 204);
    let seconds = |what: &str| {
        let classes =
            ["visitor", "customer"].map(|route| format!("gateway_request_seconds_{what}{{route=\"{route}\"}}"));
        classes.iter().map(|series| world.gateway().metric(series)).sum::<f64>()
    };
    eventually("it is counted", async || seconds("count") >= 1.0).await;
    assert!(seconds("sum") < open_for.as_secs_f64(), "{}", seconds("sum"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_ends_with_its_session_idle_or_not() {
    let world = World::new().await;
    for events in [0, 1000] {
        let (customer, other) = (world.customer().await, world.customer().await);
        let ask = |access: &str| {
            world.ask(&format!("GET /ai-service/acme/agentic/chat-stream?events={events}")).bearer(access).stream()
        };
        let mut stream = ask(&customer.tokens.access).await;
        let mut others = ask(&other.tokens.access).await;
        stream.chunk().await.unwrap().unwrap();
        others.chunk().await.unwrap().unwrap();
        assert_eq!(world.ask("POST /_gateway/logout").bearer(&customer.tokens.access).send().await.status, 204);
        let drained = timeout(AFTERLIFE, async { while let Ok(Some(_)) = stream.chunk().await {} }).await;
        assert!(drained.is_ok(), "the stream of {events} events outlived its session");
        let quiet = timeout(Duration::from_millis(300), others.chunk()).await;
        assert!(matches!(quiet, Err(_) | Ok(Ok(Some(_)))), "nobody else's stream ends: {quiet:?}");
    }
}

pub fn open_socket(
    address: SocketAddr,
    headers: &[(&'static str, &str)],
) -> Result<WebSocket<std::net::TcpStream>, u16> {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(AT_MOST)).unwrap();
    let mut request = format!("ws://{address}{SOCKET}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(tungstenite::Error::Http(answer))) => Err(answer.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

pub fn echo(socket: &mut WebSocket<std::net::TcpStream>, message: &Message) {
    socket.send(message.clone()).unwrap();
    assert_eq!(socket.read().unwrap(), *message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_says_back_what_it_hears_many_times() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let mut socket =
        open_socket(world.gateway().public, &[("authorization", &format!("Bearer {}", visitor.access))]).unwrap();
    for number in 0..300 {
        echo(&mut socket, &Message::text(format!("message {number}")));
    }
    echo(&mut socket, &Message::binary(vec![9; 200_000]));
    let arrived = world.simulator.last_api_request().await;
    assert_eq!(arrived.headers("authorization").len(), 1);
    assert!(!arrived.headers("authorization")[0].contains("eg_"));
    assert_eq!(
        (arrived.headers("upgrade"), arrived.headers("sec-websocket-version")),
        (vec!["websocket".to_owned()], vec!["13".to_owned()])
    );
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_behind_a_cookie_needs_proof_and_a_session() {
    let world = World::new().await;
    assert_eq!(open_socket(world.gateway().public, &[]).err(), Some(401));
    let browser = world.browser();
    browser.login().await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    let with =
        |name: &'static str, value: &str| open_socket(world.gateway().public, &[("cookie", &cookie), (name, value)]);
    assert_eq!(open_socket(world.gateway().public, &[("cookie", &cookie)]).err(), Some(403));
    assert_eq!(with("origin", "https://evil.example.com").err(), Some(403));
    assert_eq!(with("sec-fetch-site", "cross-site").err(), Some(403));
    for (name, value) in
        [("origin", "https://shop.example.com"), ("sec-fetch-site", "same-origin"), ("x-emporix-gateway", "1")]
    {
        echo(&mut with(name, value).unwrap(), &Message::text("hello"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_websocket_ends_with_its_session() {
    let world = World::new().await;
    let customer = world.customer().await;
    let mut socket =
        open_socket(world.gateway().public, &[("authorization", &format!("Bearer {}", customer.tokens.access))])
            .unwrap();
    echo(&mut socket, &Message::text("hello"));
    assert_eq!(world.ask("POST /_gateway/logout").bearer(&customer.tokens.access).send().await.status, 204);
    assert!(is_closed(&mut socket), "the socket outlived its session");
}

/// Whether an idle socket ends within the afterlife of a session.
pub fn is_closed(socket: &mut WebSocket<std::net::TcpStream>) -> bool {
    socket.get_ref().set_read_timeout(Some(AFTERLIFE)).unwrap();
    match socket.read() {
        Ok(Message::Close(_)) => true,
        Err(tungstenite::Error::Io(error)) => error.kind() != std::io::ErrorKind::WouldBlock,
        Err(_) => true,
        Ok(message) => panic!("{message:?}"),
    }
}

/// A place between the gateway and the simulator that sees who hangs up.
struct Between {
    address: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
    hung_up: Arc<AtomicUsize>,
}

impl Between {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, hung_up) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
        let between =
            Self { address: listener.local_addr().unwrap(), target: target.clone(), hung_up: hung_up.clone() };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, hung_up) = (*target.wait(), hung_up.clone());
                tokio::spawn(async move {
                    let (mut near_in, mut near_out) = near.into_split();
                    let (mut far_in, mut far_out) = TcpStream::connect(target).await.unwrap().into_split();
                    let down = tokio::spawn(async move { tokio::io::copy(&mut far_in, &mut near_out).await });
                    let _ = tokio::io::copy(&mut near_in, &mut far_out).await;
                    hung_up.fetch_add(1, Ordering::SeqCst);
                    down.abort();
                });
            }
        });
        between
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_hangs_up_upstream_too() {
    let between = Between::start().await;
    let world = World::builder().set("UPSTREAM__BASE_URL", format!("http://{}", between.address)).start().await;
    between.target.set(world.simulator.address).unwrap();
    let visitor = world.visitor().await;
    let mut hung_up = between.hung_up.load(Ordering::SeqCst);
    let mut gone = async |what: &str| {
        hung_up += 1;
        let expected = hung_up;
        eventually(what, async || between.hung_up.load(Ordering::SeqCst) >= expected).await;
    };
    let stream = world.ask("GET /ai-service/acme/agentic/chat-stream?events=0").bearer(&visitor.access).stream().await;
    drop(stream);
    gone("the idle event stream is closed upstream").await;

    let bearer = format!("Bearer {}", visitor.access);
    drop(open_socket(world.gateway().public, &[("authorization", &bearer)]).unwrap());
    gone("the WebSocket is closed upstream").await;

    world.simulator.fault(json!({"operation": "api", "mode": "hang", "times": 1})).await;
    let called = world.simulator.calls("api").await;
    let mut waiting = Connection::open(&world).await;
    waiting.send(&format!("GET /coupon/acme/c HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\n\r\n")).await;
    eventually("the request has arrived", async || world.simulator.calls("api").await > called).await;
    drop(waiting);
    gone("the request that waits is given up").await;
}

/// An API of a test's own before the simulator: `answer` has what is sent to `/coupon/`, with the head that came.
async fn before_the_simulator<F: Future<Output = ()> + Send>(
    simulator: Arc<OnceLock<SocketAddr>>,
    answer: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (simulator, answer) = (simulator.clone(), answer.clone());
            tokio::spawn(async move {
                let mut head = vec![0; 1024];
                let length = near.read(&mut head).await.unwrap();
                if head.windows(8).any(|window| window == b"/coupon/") {
                    return answer(near).await;
                }
                let mut far = TcpStream::connect(*simulator.wait()).await.unwrap();
                far.write_all(&head[..length]).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_pooled_connections_the_api_has_closed_a_new_one_serves() {
    let simulator = Arc::new(OnceLock::new());
    let (together, asked) = (Arc::new(Barrier::new(4)), Arc::new(AtomicUsize::new(0)));
    let api = before_the_simulator(simulator.clone(), move |mut near| {
        let (together, asked) = (together.clone(), asked.clone());
        async move {
            // The first four are under way at once, each on a connection of its own.
            if asked.fetch_add(1, Ordering::SeqCst) < 4 {
                together.wait().await;
            }
            near.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            // It closes when it is asked once more.
            let _ = near.read(&mut [0; 1024]).await;
        }
    });
    let api = api.await;
    let world = World::builder().set("UPSTREAM__BASE_URL", format!("http://{api}")).start().await;
    simulator.set(world.simulator.address).unwrap();
    let visitor = world.visitor().await;
    let ask = || async { world.ask("GET /coupon/acme/c").bearer(&visitor.access).send().await.status };
    assert_eq!(tokio::join!(ask(), ask(), ask(), ask()), (200, 200, 200, 200));
    assert_eq!(ask().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_upload_ends_is_not_lost() {
    const REFUSAL: &[u8] = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large";
    let (simulator, refuse) = (Arc::new(OnceLock::new()), Arc::new(Notify::new()));
    let api = before_the_simulator(simulator.clone(), {
        let refuse = refuse.clone();
        move |mut near| {
            let refuse = refuse.clone();
            async move {
                refuse.notified().await;
                near.write_all(REFUSAL).await.unwrap();
            }
        }
    });
    let api = api.await;
    let world = World::builder()
        .set("UPSTREAM__BASE_URL", format!("http://{api}"))
        .set("LIMITS__API_BODY_BYTES", "1000000000")
        .start()
        .await;
    simulator.set(world.simulator.address).unwrap();
    let visitor = world.visitor().await;
    for framing in ["Content-Length: 500000000", "Transfer-Encoding: chunked"] {
        let mut connection = Connection::open(&world).await;
        let head = "POST /coupon/acme/c HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ";
        connection.send(&format!("{head}{}\r\n{framing}\r\n\r\n", visitor.access)).await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
        // Until the gateway takes no more, for the API takes no more from it.
        while timeout(Duration::from_secs(1), connection.stream.write_all(chunk.as_bytes())).await.is_ok() {}
        refuse.notify_one();
        let (head, body) = connection.response(true).await;
        assert!(head.starts_with("HTTP/1.1 413 "), "{framing}: {head}");
        assert_eq!(body, "too large", "{framing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_response_is_never_taken_for_a_whole_one() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.fault(json!({"operation": "api", "mode": "half_body", "times": 1})).await;
    let answer = world.ask("GET /customer/acme/me").bearer(&visitor.access).try_send().await;
    assert!(answer.is_err(), "{answer:?}");

    // An upload whose client stops in the middle is no complete request either.
    let mut connection = Connection::open(&world).await;
    let head = "POST /coupon/acme/c HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nAuthorization: Bearer ";
    connection.send(&format!("{head}{}\r\n\r\n{}", visitor.access, "x".repeat(50_000))).await;
    connection.stream.shutdown().await.unwrap();
    let answer = connection.rest().await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_request_after_request() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let request = |method: &str, target: &str, rest: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{rest}", visitor.access)
    };
    let mut connection = Connection::open(&world).await;
    for _ in 0..2 {
        connection.send(&request("HEAD", "/product/acme/products", "\r\n")).await;
        let (head, _) = connection.response(false).await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-total-count: 3"), "{head}");
        connection.send(&request("GET", "/customer/acme/me", "\r\n")).await;
        let (head, body) = connection.response(true).await;
        assert!(head.starts_with("HTTP/1.1 200") && body.contains("00000000"), "{head}{body}");
        connection.send(&request("GET", "/customer/acme/unknown", "\r\n")).await;
        let (head, body) = connection.response(true).await;
        assert!(head.starts_with("HTTP/1.1 403") && body.contains("denied"), "a refusal keeps it open: {head}");
    }
    let first = request("POST", "/coupon/acme/one", "Content-Length: 3\r\n\r\nabc");
    let second = request("GET", "/coupon/acme/two", "\r\n");
    connection.send(&format!("{first}{second}")).await;
    for method in ["POST", "GET"] {
        let (head, body) = connection.response(true).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap()["method"],
            method,
            "pipelined answers keep their order"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_continue_is_told_to() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for length in [10, 300_000] {
        let mut connection = Connection::open(&world).await;
        let head = "POST /media/acme/assets HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nAuthorization: Bearer ";
        connection.send(&format!("{head}{}\r\nContent-Length: {length}\r\n\r\n", visitor.access)).await;
        let (interim, _) = connection.response(false).await;
        assert!(interim.starts_with("HTTP/1.1 100"), "{interim}");
        connection.send(&"x".repeat(length)).await;
        let (head, body) = connection.response(true).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({"received": length}));
    }
    let mut refused = Connection::open(&world).await;
    refused
        .send("POST /cart/acme/carts HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        .await;
    let (head, _) = refused.response(true).await;
    assert!(head.starts_with("HTTP/1.1 401"), "no body is asked for in vain: {head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_no_chunks_and_a_closed_connection() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    for (target, expected) in [
        ("/customer/acme/me", "\"00000000\""),
        ("/ai-service/acme/agentic/chat-stream?events=2", "\r\n\r\ndata: {\"n\":1}\n\ndata: {\"n\":2}\n\n"),
    ] {
        let mut connection = Connection::open(&world).await;
        connection.send(&format!("GET {target} HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", visitor.access)).await;
        let answer = connection.rest().await;
        assert!(answer.contains(" 200 ") && answer.contains(expected), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_on_a_connection_after_a_request_that_is_framed_twice() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let bearer = format!("Authorization: Bearer {}", visitor.access);
    let mut connection = Connection::open(&world).await;
    let head = "POST /coupon/acme/c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let hidden = format!("GET /coupon/acme/hidden HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n");
    connection.send(&format!("{head}{bearer}\r\n\r\n0\r\n\r\n{hidden}")).await;
    let answer = connection.rest().await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(!format!("{:?}", world.simulator.requests().await).contains("hidden"));
}
