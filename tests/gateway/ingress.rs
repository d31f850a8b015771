//! Other proxies that ask for verdicts: the shipped examples of `deploy/ingress`, run by the real programs.
//! The same cases hold before each of them; nothing of the client's own takes the place of what a verdict gives.

mod forged;
mod odd_targets;
mod programs;
mod tap;

use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::figures;
use crate::steps::{JOHN, assert_dead, john, who};
use crate::streaming::{echo, open_socket};
use crate::world::{Answer, Ask, SlowPath, Tokens, World, free_port};
use programs::{Behind, Ingress, Program};
use tap::Tap;

const ORDERS: &str = "GET /order-v2/acme/orders";
const PRICES: &str = "GET /price/acme/prices";
const SHOP: &str = "https://shop.example.com";

/// A gateway that gives verdicts, and a program before the API that asks for them.
struct Street {
    world: World,
    program: Program,
    ingress: Ingress,
    behind: Behind,
}

impl Street {
    async fn lined_by(program: Program) -> Self {
        let verdicts = free_port();
        let world = World::builder()
            .set("FORWARD_AUTH__LISTEN", format!("127.0.0.1:{verdicts}"))
            .set("FORWARD_AUTH__TRUSTED_PEERS", r#"["127.0.0.1/32"]"#)
            .set("FORWARD_AUTH__VISITORS", "true")
            .set("LISTEN__TRUSTED_PROXIES", r#"["127.0.0.1/32"]"#)
            .set("LIMITS__VISITORS_PER_ADDRESS__BURST", forged::BURST.to_string())
            .set("LIMITS__VISITORS_PER_ADDRESS__PER_MINUTE", "1")
            .start()
            .await;
        let (public, api) = (world.gateway().public.port(), world.simulator.address.port());
        let behind = Behind { public, verdicts, api };
        Self { ingress: Ingress::start(program, behind).await, world, program, behind }
    }

    /// Begins a request of the program.
    fn ask(&self, line: &str) -> Ask<'_> {
        self.world.ask_at(self.ingress.address, line)
    }

    /// What reached the API while `ask` was answered.
    async fn reached(&self, ask: Ask<'_>) -> (Answer, Vec<crate::world::Received>) {
        self.world.simulator.forget_calls().await;
        let answer = ask.send().await;
        (answer, self.world.received("api").await)
    }
}

async fn holds_every_case(program: Program) {
    let street = Street::lined_by(program).await;
    let world = &street.world;
    world.simulator.set(json!({"customer_access_ttl": 3_600})).await;
    let john = world.customer().await;
    let (visitor, customer) = (&john.visitor.access, &john.tokens.access);
    let held = |case: &str| figures::record("ingress_case", format!("{program:?}: {case}"));
    a_session_passes_with_its_tokens(&street, customer).await;
    held("authenticated");
    nobody_passes_without_one(&street).await;
    held("none");
    what_the_client_says_of_itself_is_gone(&street, visitor, customer).await;
    held("spoofed identity");
    what_the_client_says_of_the_request_is_not_believed(&street, customer).await;
    held("spoofed request");
    forged::addresses_do_not_reach_the_api(&street, customer).await;
    held("forged addresses");
    forged::hosts_are_not_believed(&street).await;
    held("forged hosts");
    forged::addresses_do_not_count(&street).await;
    held("rates by the real address");
    odd_targets::arrive_as_they_were_judged(&street, customer).await;
    held("odd targets");
    token_routes_are_the_gateways_own(&street).await;
    held("token routes");
    browsers_are_answered(&street).await;
    held("preflight, 401 body, first and last cookie");
    pages_of_another_origin_may_read(&street, customer).await;
    held("CORS");
    sockets_pass(&street, visitor);
    held("upgrade");
    a_session_that_expired_is_renewed(&street, customer).await;
    held("expired and refreshed");
    a_session_that_was_ended_does_not_pass(&street, customer).await;
    held("revoked");
    an_api_that_is_away_is_told_of_like_any_answer(&street, &world.customer().await.tokens.access).await;
    held("API down");
    nobody_passes_where_the_gateway_is_silent(&street).await;
    held("gateway silent");
    nobody_passes_without_the_gateway(street).await;
    held("gateway down");
}

async fn a_session_passes_with_its_tokens(street: &Street, access: &str) {
    let (answer, reached) = street.reached(street.ask(ORDERS).bearer(access)).await;
    assert_eq!((answer.status, reached.len()), (200, 1), "{}", answer.text);
    let one = |name| reached[0].headers(name).join("|");
    assert!(one("authorization").starts_with("Bearer ") && !one("authorization").contains("eg_"), "{reached:?}");
    assert!(one("saas-token").starts_with("eyJ"), "{reached:?}");
    assert_eq!(one("x-emporix-customer-id"), JOHN);
    assert_eq!(answer.header("cache-control"), "private, no-store");

    let create = json!({"siteCode": "main", "currency": "EUR"});
    let (answer, reached) = street.reached(street.ask("POST /cart/acme/carts").bearer(access).json(&create)).await;
    assert_eq!((answer.status, reached.len()), (201, 1), "a body arrives behind the verdict: {}", answer.text);
}

async fn nobody_passes_without_one(street: &Street) {
    let (answer, reached) = street.reached(street.ask(ORDERS)).await;
    assert_eq!((answer.status, answer.code().as_str(), reached.len()), (401, "session_required", 0), "{}", answer.text);
    let (answer, reached) = street.reached(street.ask(ORDERS).bearer("eg_c_forged")).await;
    assert_dead(&answer);
    assert!(reached.is_empty());
    let (answer, reached) = street.reached(street.ask("GET /product/acme/products")).await;
    assert_eq!((answer.status, reached.len()), (200, 1), "guests may read: {}", answer.text);
}

async fn what_the_client_says_of_itself_is_gone(street: &Street, visitor: &str, customer: &str) {
    for handle in [visitor, customer] {
        let forged = street
            .ask(PRICES)
            .bearer(handle)
            .header("saas-token", "forged")
            .header("x-emporix-session-id", "forged")
            .header("x-emporix-customer-id", "forged")
            .header("legal-entity-id", "forged")
            .header("legalEntityId", "forged")
            .header("cookie", "theme=dark; __Host-emporix-session=forged");
        let (answer, reached) = street.reached(forged).await;
        assert_eq!((answer.status, reached.len()), (200, 1), "{}", answer.text);
        assert!(!format!("{reached:?}").contains("forged"), "{reached:?}");
        assert_eq!(reached[0].headers("authorization").len(), 1);
        assert_eq!(reached[0].headers("x-emporix-session-id").len(), 1, "{reached:?}");
    }
}

async fn what_the_client_says_of_the_request_is_not_believed(street: &Street, access: &str) {
    let harmless = "/product/acme/products";
    for (name, value) in [
        ("x-original-uri", harmless),
        ("x-original-url", "http://shop.example.com/product/acme/products"),
        ("x-forwarded-uri", harmless),
        ("x-forwarded-method", "OPTIONS"),
        ("x-original-method", "OPTIONS"),
    ] {
        let (answer, reached) = street.reached(street.ask(ORDERS).header(name, value)).await;
        assert!((400..500).contains(&answer.status), "{name}: {} {}", answer.status, answer.text);
        assert!(reached.is_empty(), "{name}");
    }
    // Passed on, they could make another request of the one that was judged.
    for name in [
        "x-http-method-override",
        "x-rewrite-url",
        "x-original-url",
        "x-original-uri",
        "x-forwarded-uri",
        "forwarded",
        "saas.token",
        "X_Emporix_Customer_Id",
        "x-emporix.session-id",
    ] {
        let forged = street.ask(ORDERS).bearer(access).header(name, "/forged");
        let (answer, reached) = street.reached(forged).await;
        assert!(!format!("{reached:?}").contains("forged"), "{name}: {} {reached:?}", answer.status);
    }
    inside_which_protocol_is_not_believed(street, access).await;
}

/// Inside another protocol nobody could judge what is asked.
async fn inside_which_protocol_is_not_believed(street: &Street, access: &str) {
    let upgrade = |protocols: &[&str]| {
        let ask = street.ask(ORDERS).bearer(access).header("connection", "upgrade");
        let ask = ask.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        protocols.iter().fold(ask, |ask, protocol| ask.header("upgrade", protocol))
    };
    for protocols in [
        &["h2c"][..],
        &["h2c", "websocket"],
        &["websocket", "h2c"],
        &["h2c, websocket"],
        &["websocket, h2c"],
        &["WebSocket, H2C"],
        &["websocket,h2c/1"],
    ] {
        let (_, reached) = street.reached(upgrade(protocols)).await;
        assert!(!format!("{reached:?}").to_lowercase().contains("h2c"), "{protocols:?}: {reached:?}");
    }
    let (answer, reached) = street.reached(upgrade(&["WebSocket"])).await;
    assert_eq!(reached.len(), 1, "{} {}", answer.status, answer.text);
    assert_eq!(reached[0].headers("upgrade").join(", ").to_lowercase(), "websocket", "{reached:?}");
}

async fn token_routes_are_the_gateways_own(street: &Street) {
    let visitor = Tokens::of(&street.ask(crate::steps::ANONYMOUS_LOGIN).send().await);
    assert!(visitor.access.starts_with("eg_"), "{visitor:?}");
    let login = street.ask("POST /customer/acme/login").bearer(&visitor.access).json(&john()).send().await;
    let customer = Tokens::of(&login);
    assert_eq!(who(&street.ask("GET /customer/acme/me").bearer(&customer.access).send().await), JOHN);
    assert_eq!(street.ask("GET /customer/acme/logout").bearer(&customer.access).send().await.status, 204);
    assert_dead(&street.ask(ORDERS).bearer(&customer.access).send().await);
}

async fn browsers_are_answered(street: &Street) {
    let asks = street.ask("OPTIONS /order-v2/acme/orders").header("origin", SHOP);
    let (answer, reached) = street.reached(asks.header("access-control-request-method", "GET")).await;
    assert_eq!((answer.status, reached.len()), (204, 0), "{}", answer.text);
    assert_eq!(answer.header("access-control-allow-origin"), SHOP);

    let refused = street.ask(ORDERS).header("origin", SHOP).send().await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin").as_str()), (401, SHOP));
    assert_eq!(refused.code(), "session_required");

    let first = street.ask(PRICES).header("sec-fetch-site", "same-origin").send().await;
    assert_eq!((first.status, first.cookies().len()), (200, 1), "a browser gets its session: {}", first.text);
    assert!(first.cookies()[0].contains("HttpOnly"), "{:?}", first.cookies());
    let cookie = first.cookies()[0].split(';').next().unwrap().to_owned();
    let visit = street.world.simulator.last_api_request().await.headers("x-emporix-session-id");
    let again = street.ask(PRICES).header("sec-fetch-site", "same-origin").header("cookie", &cookie).send().await;
    assert_eq!((again.status, again.cookies().len()), (200, 0), "{}", again.text);
    assert_eq!(street.world.simulator.last_api_request().await.headers("x-emporix-session-id"), visit);

    let own = |line, cookie: &str| street.ask(line).header("sec-fetch-site", "same-origin").header("cookie", cookie);
    let customer = own("POST /customer/acme/login", &cookie).json(&john()).send().await;
    let cookie = customer.cookies()[0].split(';').next().unwrap().to_owned();
    assert_eq!(own("POST /_gateway/logout", &cookie).send().await.status, 204);
    let (gone, reached) = street.reached(street.ask(ORDERS).header("origin", SHOP).header("cookie", &cookie)).await;
    assert_dead(&gone);
    assert_eq!((reached.len(), gone.cookies().len()), (0, 1), "{:?}", gone.headers);
    assert!(gone.cookies()[0].contains("Max-Age=0"), "{:?}", gone.cookies());
    assert_eq!(gone.header("access-control-allow-origin"), SHOP);
}

async fn pages_of_another_origin_may_read(street: &Street, access: &str) {
    let own = json!({
        "vary": "Accept-Encoding", "access-control-allow-origin": "*", "access-control-allow-credentials": "false",
        "access-control-expose-headers": "server", "access-control-allow-methods": "PATCH",
        "access-control-allow-headers": "x-own", "access-control-max-age": "7"
    });
    street.world.simulator.fault(json!({"operation": "api", "mode": "status", "status": 200, "headers": own})).await;
    for site in [None, Some("cross-site"), Some("same-site")] {
        let ask = street.ask(ORDERS).bearer(access).header("origin", SHOP);
        let answer = if let Some(site) = site { ask.header("sec-fetch-site", site) } else { ask }.send().await;
        let all = |name: &str| answer.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(all("access-control-allow-origin"), [SHOP], "{:?}", answer.headers);
        assert_eq!(all("access-control-allow-credentials"), ["true"], "{:?}", answer.headers);
        let exposed = "x-total-count, x-next-cursor, x-prev-cursor, hybris-count, location, version, retry-after";
        assert_eq!(all("access-control-expose-headers"), [exposed], "{:?}", answer.headers);
        let vary = all("vary").join(", ").to_lowercase();
        assert!(vary.contains("origin") && vary.contains("accept-encoding"), "{vary}");
        assert!(!format!("{:?}", answer.headers).contains("access-control-allow-methods"), "{:?}", answer.headers);
    }
    for (origin, vary) in [(Some("https://evil.example.com"), true), (None, false)] {
        let ask = street.ask(ORDERS).bearer(access);
        let answer = if let Some(origin) = origin { ask.header("origin", origin) } else { ask }.send().await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(!format!("{:?}", answer.headers).contains("access-control"), "{:?}", answer.headers);
        let varies = answer.headers.get_all("vary").iter().any(|value| value.to_str().unwrap().contains("Origin"));
        assert_eq!(varies, vary, "{origin:?}: {:?}", answer.headers);
    }
    street.world.simulator.heal().await;
}

fn sockets_pass(street: &Street, access: &str) {
    let bearer = format!("Bearer {access}");
    let mut socket = open_socket(street.ingress.address, &[("authorization", &bearer)]).unwrap();
    echo(&mut socket, &Message::text("hello"));
    assert_eq!(open_socket(street.ingress.address, &[]).err(), Some(401));
}

async fn a_session_that_expired_is_renewed(street: &Street, access: &str) {
    street.world.clock.advance(Duration::from_secs(3_700));
    let (answer, reached) = street.reached(street.ask(ORDERS).bearer(access)).await;
    assert_eq!((answer.status, reached.len()), (200, 1), "{}", answer.text);
    assert_eq!(street.world.simulator.calls("refresh").await, 1);
}

async fn a_session_that_was_ended_does_not_pass(street: &Street, access: &str) {
    assert_eq!(street.world.log_out(access).await.status, 204);
    let (answer, reached) = street.reached(street.ask(ORDERS).bearer(access)).await;
    assert_dead(&answer);
    assert!(reached.is_empty());
}

/// A page of another origin may read that the API is away, and a new visitor keeps the session all the same.
async fn an_api_that_is_away_is_told_of_like_any_answer(street: &Street, access: &str) {
    let ingress = Ingress::start(street.program, Behind { api: free_port(), ..street.behind }).await;
    let answer = street.world.ask_at(ingress.address, ORDERS).bearer(access).header("origin", SHOP).send().await;
    // Traefik sends such calls through the gateway, whose API is there.
    assert!(answer.status >= 502 || street.program == Program::Traefik, "{} {}", answer.status, answer.text);
    assert_eq!(answer.header("access-control-allow-origin"), SHOP, "{:?}", answer.headers);
    assert_eq!(answer.header("access-control-allow-credentials"), "true", "{:?}", answer.headers);
    let first = street.world.ask_from([127, 0, 0, 6], ingress.address, PRICES).header("sec-fetch-site", "same-origin");
    let answer = first.send().await;
    assert!(answer.status >= 502, "{} {}", answer.status, answer.text);
    assert_eq!(answer.cookies().len(), 1, "{:?}", answer.headers);
}

/// Connections are taken, and nothing ever comes back. Traefik waits 30 s for a verdict, and cannot be told otherwise.
async fn nobody_passes_where_the_gateway_is_silent(street: &Street) {
    let (public, verdicts) =
        (SlowPath::start(street.behind.public).await, SlowPath::start(street.behind.verdicts).await);
    let api = Tap::before(street.behind.api).await;
    let behind = Behind { public: public.port, verdicts: verdicts.port, api: api.port };
    let ingress = Ingress::start_hurried(street.program, behind).await;
    for path in [&public, &verdicts] {
        path.hold();
    }
    let patience = Duration::from_secs(if street.program == Program::Traefik { 35 } else { 8 });
    let asked = street.world.ask_at(ingress.address, "GET /product/acme/products").send();
    let answer = tokio::time::timeout(patience, asked).await.expect("an answer in time");
    assert!(answer.status >= 500 && api.heads().is_empty(), "{} {}", answer.status, answer.text);
}

async fn nobody_passes_without_the_gateway(mut street: Street) {
    street.world.replicas[0].stop();
    street.world.replicas[0].join();
    for line in [ORDERS, "GET /product/acme/products"] {
        let (answer, reached) = street.reached(street.ask(line)).await;
        assert!(answer.status >= 500 && reached.is_empty(), "{line}: {} {}", answer.status, answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_passes_what_the_gateway_lets_pass() {
    holds_every_case(Program::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_passes_what_the_gateway_lets_pass() {
    holds_every_case(Program::Haproxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_passes_what_the_gateway_lets_pass() {
    holds_every_case(Program::Caddy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traefik_passes_what_the_gateway_lets_pass() {
    holds_every_case(Program::Traefik).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_passes_what_the_gateway_lets_pass() {
    holds_every_case(Program::Envoy).await;
}

/// Asks for a verdict as a proxy of the dialect `nginx` would, about `line`.
fn verdict<'w>(world: &'w World, listener: u16, line: &str) -> Ask<'w> {
    let (method, target) = line.split_once(' ').unwrap();
    let ask = world.ask_at(([127, 0, 0, 1], listener).into(), "GET /auth/nginx");
    ask.header("x-original-method", method).header("x-original-uri", target)
}

fn giving_verdicts(listener: u16, peers: &str) -> crate::world::Builder {
    let listen = World::builder().set("FORWARD_AUTH__LISTEN", format!("127.0.0.1:{listener}"));
    listen.set("FORWARD_AUTH__TRUSTED_PEERS", peers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_trusted_is_told_nothing() {
    let listener = free_port();
    let world = giving_verdicts(listener, r#"["10.0.0.0/8"]"#).start().await;
    let john = world.customer().await;
    let answer = verdict(&world, listener, ORDERS).bearer(&john.tokens.access).send().await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "denied"));
    let forwarded = verdict(&world, listener, ORDERS).bearer(&john.tokens.access).header("x-forwarded-for", "10.0.0.1");
    assert_eq!(forwarded.send().await.status, 403, "nobody is trusted for what he says");
    assert_eq!(answer.header("authorization"), "");
    assert_eq!(world.gateway().metric(r#"gateway_verdicts_total{dialect="nginx",verdict="pass"}"#), 0.0);
}

/// A listener on `[::]` sees IPv4 peers as `::ffff:…`, and networks are named as they are everywhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_ipv4_is_known_on_a_listener_of_ipv6() {
    for network in ["127.0.0.1/32", "::ffff:127.0.0.0/104"] {
        let listener = free_port();
        let peers = giving_verdicts(listener, &format!(r#"["{network}"]"#));
        let world = peers.set("FORWARD_AUTH__LISTEN", format!("[::ffff:127.0.0.1]:{listener}")).start().await;
        let john = world.customer().await;
        let passed = verdict(&world, listener, ORDERS).bearer(&john.tokens.access).stream().await;
        assert_eq!(passed.status(), 200, "{network}");
    }
}

/// A proxy would take a connection that closes without a word for broken, and ask again.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_cannot_be_parsed_is_answered() {
    let listener = free_port();
    let world = giving_verdicts(listener, r#"["127.0.0.1/32"]"#).start().await;
    for head in
        ["/auth/envoy/a<b HTTP/1.1\r\nHost: x\r\n\r\n", "/auth/nginx HTTP/1.1\r\nX-Original-Uri: /a\x7fb\r\n\r\n"]
    {
        let answer = world.raw_at(([127, 0, 0, 1], listener).into(), format!("GET {head}").as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("\r\nConnection: close\r\n"),
            "{head}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_gateway_can_do_passes_nobody() {
    let listener = free_port();
    let world = giving_verdicts(listener, r#"["127.0.0.1/32"]"#).start().await;
    let john = world.customer().await;
    let access = &john.tokens.access;
    for line in [
        "POST /customer/acme/login",
        "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront",
        "POST /customer/acme/password/change",
        "GET /_gateway/session",
        "POST /oauth/token",
        &format!("GET /order-v2/acme/orders?token={access}"),
    ] {
        let answer = verdict(&world, listener, line).bearer(access).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "denied"), "{line}");
    }
    let public = world.ask(ORDERS).bearer(access).send().await;
    let passed = verdict(&world, listener, ORDERS).bearer(access).stream().await;
    assert!(public.status == 200 && passed.headers().contains_key("authorization"));
    assert_eq!(passed.bytes().await.unwrap().len(), 0);
    assert_eq!(world.ask("GET /auth/nginx").bearer(access).send().await.header("authorization"), "", "public");
    let first = verdict(&world, listener, PRICES).header("sec-fetch-site", "same-origin").send().await;
    assert_eq!((first.status, first.cookies().len()), (401, 0), "no cookies unless configured");
}
