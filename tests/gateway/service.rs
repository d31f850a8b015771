//! Service tokens: back-office callers act with tokens that only the gateway holds, on a listener of their own.
//! When a world ends, no such token and no client's secret may have been shown (`World`).

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use emporix_gateway::config;
use serde_json::{Value, json};

use crate::process::ProcessReplica;
use crate::world::{Answer, Ask, Builder, Certificate, World, eventually, free_port};

const TOKEN: &str = "the-token-of-the-back-office";
const STOCK: &str = "GET /vendor/acme/stock";
const PAYOUTS: &str = "POST /sepa-export/acme/jobs";
/// Old enough for a service's token to be due, and young enough for it to live.
const DUE: Duration = Duration::from_secs(11_000);
/// From then on until its end.
const OVER: Duration = Duration::from_secs(3_500);

fn services(scope: &str) -> String {
    let service =
        |id: &str, scope: &str| json!({"client_id": id, "client_secret": "simulator-client-secret", "scope": scope});
    json!({"erp": service("erp-client", scope), "payouts": service("payout-client", "")}).to_string()
}

const ROUTES: &str = r#"[{"path": "/vendor/{tenant}/**", "access": "service:erp"},
    {"path": "/sepa-export/{tenant}/**", "access": "service:payouts"}]"#;

fn employing(listener: u16) -> Builder {
    World::builder()
        .set("INTERNAL__LISTEN", format!("127.0.0.1:{listener}"))
        .set("TENANTS__ACME__SERVICES", services("tenant=acme vendor.read vendor.write"))
        .set("ROUTES", ROUTES)
}

/// The world of `builder`, once its internal listener is there too.
async fn opened(builder: Builder, listener: u16) -> World {
    let world = builder.start().await;
    eventually("it listens", async || std::net::TcpStream::connect(("127.0.0.1", listener)).is_ok()).await;
    world
}

/// A world whose back office calls with a token.
struct Office {
    world: World,
    listener: SocketAddr,
}

impl Office {
    async fn open() -> Self {
        let listener = free_port();
        let world = opened(employing(listener).set("INTERNAL__TOKEN", TOKEN), listener).await;
        Self { world, listener: ([127, 0, 0, 1], listener).into() }
    }

    /// Begins a request that shows nothing.
    fn stranger(&self, line: &str) -> Ask<'_> {
        self.world.ask_at(self.listener, line)
    }

    /// Begins a request that shows the token.
    fn ask(&self, line: &str) -> Ask<'_> {
        self.stranger(line).bearer(TOKEN)
    }

    async fn token_calls(&self) -> u64 {
        self.world.simulator.calls("oauth").await
    }

    fn decided(&self, decision: &str) -> f64 {
        self.world.gateway().metric(&format!(r#"gateway_auth_total{{decision="{decision}"}}"#))
    }
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_acts_with_its_own_token_and_scope() {
    let office = Office::open().await;
    let simulator = &office.world.simulator;
    let answer = office.ask(STOCK).send().await;
    assert_eq!((answer.status, &answer.json()["as"]), (200, &json!("service")), "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store", "what a service sees is no shared cache's");
    let erp = simulator.last_api_request().await.headers("authorization");
    let asked = office.world.only("oauth").await;
    assert_eq!(asked.headers("content-type"), ["application/x-www-form-urlencoded"]);
    assert_eq!(
        asked.0["body"],
        "grant_type=client_credentials&client_id=erp-client&client_secret=simulator-client-secret\
         &scope=tenant%3Dacme+vendor.read+vendor.write"
    );
    assert_eq!(office.ask(PAYOUTS).json(&json!({})).send().await.status, 200);
    let payouts = simulator.last_api_request().await.headers("authorization");
    let body = office.world.received("oauth").await[1].0["body"].clone();
    assert!(body.as_str().is_some_and(|body| body.contains("payout-client") && !body.contains("scope")), "{body}");
    assert_eq!((erp.len(), payouts.len(), erp == payouts), (1, 1, false));

    office.ask(STOCK).send().await;
    assert_eq!(simulator.last_api_request().await.headers("authorization"), erp, "it is kept");
    assert_eq!(office.token_calls().await, 2);
    let gateway = office.world.gateway();
    assert_eq!(gateway.metric(r#"gateway_emporix_calls_total{operation="service",outcome="success"}"#), 2.0);
    assert_eq!(gateway.metric(r#"gateway_requests_total{outcome="success",route="service"}"#), 3.0);
    assert_eq!(office.decided("service"), 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_first_requests_fetch_one_token() {
    let office = Office::open().await;
    office.world.simulator.fault(json!({"operation": "oauth", "mode": "delay", "delay_ms": 300})).await;
    let statuses = futures_of((0..200).map(|_| office.ask(STOCK).send())).await;
    assert!(statuses.iter().all(|answer| answer.status == 200));
    assert_eq!(office.token_calls().await, 1);
}

/// The outputs of `futures`, which are polled together.
async fn futures_of<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(done) = future.as_mut().poll(context) {
                *output = Some(done);
            }
        }
        if waiting.iter().all(|(_, output)| output.is_some()) { ().into() } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_its_end_and_when_the_api_calls_it_over() {
    let office = Office::open().await;
    office.ask(STOCK).send().await;
    office.world.clock.advance(DUE);
    assert_eq!(office.ask(STOCK).send().await.status, 200);
    eventually("it was due, and is fetched behind", async || office.token_calls().await == 2).await;
    office.world.simulator.expire("service").await;
    let statuses = futures_of((0..8).map(|_| office.ask(PAYOUTS.replace("POST", "PUT").as_str()).send())).await;
    assert!(statuses.iter().all(|answer| answer.status == 200));
    assert_eq!(office.token_calls().await, 3, "another service's");
    let answers = futures_of((0..8).map(|_| office.ask(STOCK).send())).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "a 401 is mended");
    assert_eq!(office.token_calls().await, 4, "one call for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_token_endpoint_is_down_a_token_serves_as_long_as_it_lives() {
    let office = Office::open().await;
    office.ask(STOCK).send().await;
    office.world.simulator.fault(json!({"operation": "oauth", "mode": "status", "status": 503})).await;
    office.world.clock.advance(DUE);
    assert_eq!(office.ask(STOCK).send().await.status, 200, "it lives");
    office.world.clock.advance(OVER);
    assert_eq!(refused(&office.ask(STOCK).send().await), (503, "identity_unavailable".into()));
    office.world.simulator.heal().await;
    office.world.clock.advance(Duration::from_secs(10));
    assert_eq!(office.ask(STOCK).send().await.status, 200, "it heals by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_token_that_lives_serves_while_the_next_one_is_waited_for() {
    const PATIENCE: Duration = Duration::from_secs(5);
    let listener = free_port();
    let built = employing(listener).set("INTERNAL__TOKEN", TOKEN).set("IDENTITY__TIMEOUT", "5s");
    let office = Office { world: opened(built, listener).await, listener: ([127, 0, 0, 1], listener).into() };
    office.world.simulator.set(json!({"anonymous_access_ttl": 14_399})).await;
    let service = || office.ask(STOCK).send();
    let guest = || office.world.ask("GET /product/acme/products").send();
    assert_eq!([service().await.status, guest().await.status], [200; 2]);
    for operation in ["oauth", "anonymous_login"] {
        office.world.simulator.fault(json!({"operation": operation, "mode": "hang"})).await;
    }
    office.world.clock.advance(DUE);
    let asked = std::time::Instant::now();
    for _ in 0..3 {
        assert_eq!([service().await.status, guest().await.status], [200; 2]);
    }
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    for operation in ["oauth", "anonymous_login"] {
        eventually("one asks for the next", async || office.world.simulator.calls(operation).await == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_emporix_refuses_is_the_operators_business() {
    let listener = free_port();
    let wrong = r#"{"erp": {"client_id": "erp", "client_secret": "a-wrong-secret-9x7"}, "payouts": {"client_id": "p", "client_secret": "y"}}"#;
    let built = employing(listener).set("INTERNAL__TOKEN", TOKEN).set("TENANTS__ACME__SERVICES", wrong);
    let office = Office { world: opened(built, listener).await, listener: ([127, 0, 0, 1], listener).into() };
    let answer = office.ask(STOCK).send().await;
    assert_eq!(refused(&answer), (503, "identity_unavailable".into()));
    assert_eq!(office.world.leaks(&["a-wrong-secret-9x7".to_owned()]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_listener_and_verdicts_know_no_service() {
    let (listener, verdicts) = (free_port(), free_port());
    let world = employing(listener)
        .set("INTERNAL__TOKEN", TOKEN)
        .set("FORWARD_AUTH__LISTEN", format!("127.0.0.1:{verdicts}"))
        .set("FORWARD_AUTH__TRUSTED_PEERS", r#"["127.0.0.1/32"]"#)
        .start()
        .await;
    let john = world.customer().await;
    for credential in [TOKEN, &john.tokens.access] {
        let public = world.ask(STOCK).bearer(credential).send().await;
        assert_eq!(refused(&public), (403, "denied".into()), "public");
        let ask = world.ask_at(([127, 0, 0, 1], verdicts).into(), "GET /auth/nginx").bearer(credential);
        let verdict =
            ask.header("x-original-method", "GET").header("x-original-uri", "/vendor/acme/stock").send().await;
        assert_eq!((refused(&verdict), verdict.header("authorization")), ((403, "denied".into()), String::new()));
    }
    let first = world.ask(STOCK).header("sec-fetch-site", "same-origin").send().await;
    assert_eq!((first.status, first.cookies().len()), (403, 0), "no visitor is born of it");
    assert_eq!(world.simulator.calls("oauth").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_internal_listener_passes_nothing_but_services() {
    let office = Office::open().await;
    for line in [
        "GET /product/acme/products",
        "GET /order-v2/acme/orders",
        "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront",
        "POST /customer/acme/login",
        "GET /_gateway/session",
        "POST /_gateway/webhooks/emporix/acme",
        "POST /oauth/token",
        "GET /metrics",
        "GET /vendor/globex/stock",
    ] {
        let answer = office.ask(line).send().await;
        assert_eq!(refused(&answer), (403, "denied".into()), "{line}");
    }
    let unknown = office.ask("GET /vendor/initech/stock").send().await;
    assert_eq!(refused(&unknown), (404, "unknown_tenant".into()));
    assert_eq!((office.token_calls().await, office.world.simulator.calls("api").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_show_the_token_is_told_nothing() {
    let office = Office::open().await;
    let john = office.world.customer().await;
    let strangers = [
        office.stranger(STOCK),
        office.stranger(STOCK).bearer("the-token-of-the-back-offic"),
        office.stranger(STOCK).bearer(&john.tokens.access),
        office.stranger(STOCK).header("authorization", TOKEN),
        office.stranger(STOCK).bearer(TOKEN).header("authorization", "Bearer x"),
        office.stranger("GET /customer/acme/me").bearer(&john.tokens.access),
        office.stranger("GET /vendor/initech/stock"),
    ];
    let count = strangers.len() as f64;
    for ask in strangers {
        let answer = ask.send().await;
        assert_eq!(refused(&answer), (401, "internal_token_required".into()));
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!((office.decided("stranger"), office.token_calls().await), (count, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_shows_goes_no_further() {
    let office = Office::open().await;
    let john = office.world.customer().await;
    let ask = office.ask(STOCK).header("saas-token", &john.saas).header("legal-entity-id", "le-1");
    let cookie = format!("__Host-emporix-session={}; theme=dark", john.tokens.access);
    let answer = ask.header("cookie", &cookie).header("x-note", &john.tokens.access).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let received = office.world.simulator.last_api_request().await;
    assert!(!format!("{received:?}").contains(TOKEN) && !format!("{received:?}").contains("eg_"), "{received:?}");
    assert_eq!((received.headers("saas-token").len(), received.headers("legal-entity-id").len()), (0, 0));
    assert_eq!(received.headers("cookie"), ["theme=dark"]);

    let bearer = received.headers("authorization").remove(0);
    let echo = json!({"authorization": bearer, "saas-token": bearer});
    let fault = json!({"operation": "api", "mode": "status", "status": 200, "headers": echo, "times": 1});
    office.world.simulator.fault(fault).await;
    let echoed = office.ask(STOCK).send().await;
    assert_eq!((echoed.header("authorization"), echoed.header("saas-token")), Default::default());
    let in_target = office.ask(&format!("{STOCK}?accessToken={}", john.tokens.access)).send().await;
    assert_eq!(refused(&in_target), (400, "bad_target".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_open_it_beside_or_in_place_of_the_token() {
    let [folder, client] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [certificate, key] = Certificate::new().write(folder.path());
    let [known, known_key] = Certificate::new().write(client.path());
    let shows = ["--cert", &known, "--key", &known_key];
    let bearer = format!("authorization: Bearer {TOKEN}");
    for token in [None, Some(TOKEN)] {
        let listener = free_port();
        let tls = employing(listener)
            .set("INTERNAL__TLS__CERTIFICATE_FILE", &certificate)
            .set("INTERNAL__TLS__KEY_FILE", &key)
            .set("INTERNAL__TLS__CLIENT_CA_FILE", &known);
        let world = match token {
            Some(token) => opened(tls.set("INTERNAL__TOKEN", token), listener).await,
            None => opened(tls, listener).await,
        };
        assert_eq!(curl(&certificate, listener, &["-H", &bearer]).await, "000", "no handshake without one");
        let alone = if token.is_some() { "1.1 401" } else { "1.1 200" };
        assert_eq!(curl(&certificate, listener, &shows).await, alone);
        let both = [shows.as_slice(), &["--http2", "-H", &bearer]].concat();
        assert_eq!(curl(&certificate, listener, &both).await, "1.1 200", "HTTP/1.1 alone is spoken");
        drop(world);
    }
}

/// Version and status of what a client gets that trusts `authority` alone.
async fn curl(authority: &str, port: u16, more: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--max-time", "5"]);
    command.args(["--cacert", authority, "--resolve", &format!("localhost:{port}:127.0.0.1")]).args(more);
    command.arg(format!("https://localhost:{port}/vendor/acme/stock"));
    let printed = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    if printed.ends_with("000") { "000".to_owned() } else { printed }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_scope_or_secret_takes_effect_while_it_runs() {
    let (world, listener, folder) = (World::new().await, free_port(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "simulator-client-secret\n").unwrap();
    let gateway = ProcessReplica::start(
        &world,
        &[("INTERNAL__LISTEN", &format!("127.0.0.1:{listener}")), ("INTERNAL__TOKEN", TOKEN)],
    )
    .await;
    let scoped = |scope: &'static str| {
        let file = secret.display().to_string();
        move |text: String| {
            let services = format!(
                "    services:\n      erp: {{client_id: erp, client_secret_file: '{file}', scope: '{scope}'}}\n  globex:"
            );
            text.replace("  globex:", &services) + "routes: [{path: '/vendor/{tenant}/**', access: 'service:erp'}]\n"
        }
    };
    let ask = || world.ask_at(([127, 0, 0, 1], listener).into(), STOCK).bearer(TOKEN).send();
    let applied = async |times: f64| {
        let series = r#"gateway_config_reloads_total{outcome="applied"}"#;
        gateway.hang_up();
        eventually("it is taken", async || gateway.metric(series) >= times).await;
    };
    gateway.configure(scoped("vendor.read"));
    applied(1.0).await;
    assert_eq!(ask().await.status, 200);
    gateway.configure(scoped("vendor.write"));
    applied(2.0).await;
    assert_eq!(ask().await.status, 200);
    let bodies: Vec<Value> = world.received("oauth").await.iter().map(|asked| asked.0["body"].clone()).collect();
    assert!(bodies.len() == 2 && bodies[1].as_str().unwrap().contains("vendor.write"), "{bodies:?}");

    std::fs::write(&secret, "another-secret-of-the-client\n").unwrap();
    applied(3.0).await;
    assert_eq!(ask().await.status, 200, "the token of the client and scope is kept");
    assert_eq!(world.simulator.calls("oauth").await, 2);
    world.simulator.expire("service").await;
    assert_eq!(refused(&ask().await), (503, "identity_unavailable".into()), "the next fetch is by the new secret");
    gateway.configure(|text| text);
    applied(4.0).await;
    assert_eq!(refused(&ask().await), (403, "denied".into()), "a service that is gone");
}

#[test]
fn a_configuration_that_opens_it_to_anybody_or_names_nobody_is_faulty() {
    let service = "    services: {erp: {client_id: x, client_secret: y}}\n";
    let text = |more: &str, services: &str| format!("tenants:\n  acme:\n    client_id: x\n{services}{more}");
    let faults = |text: &str| match config::parse("g.yaml", text, std::iter::empty()) {
        Ok(_) => String::new(),
        Err(faults) => faults.to_string(),
    };
    let rule = |more: &str| format!("routes:\n  - {{path: /vendor/x, access: 'service:erp'{more}}}\n");
    let open = "internal: {listen: 127.0.0.1:8082, token: sixteen-letters!}\n";
    assert_eq!(faults(&text(&(rule("") + open), service)), "");
    for (text, expected) in [
        (
            text("internal: {listen: 127.0.0.1:8082}\n", service),
            "g.yaml:5:12: internal.listen: expected internal.token or",
        ),
        (
            text("internal: {listen: 127.0.0.1:8080, token: sixteen-letters!}\n", service),
            "g.yaml:5:12: internal.listen: ",
        ),
        (text("internal: {token: short}\n", service), "g.yaml:5:12: internal.token: expected 16 to 256"),
        (text(&rule(""), ""), "g.yaml:5:23: routes.0.access: expected a service that stands under"),
        (text(&rule(", inject: anonymous"), service), "routes.0.inject: means nothing"),
        (text(&rule(", saas_token: required"), service), "routes.0.saas_token: means nothing"),
        (text(&rule(", on_success: end_named_sessions"), service), "routes.0.on_success: means nothing"),
        (text(&rule(""), service).replace("service:erp", "service:Erp"), "routes.0.access: `Erp` is no service"),
        (text(&rule(""), service).replace("service:erp", "anyone"), "routes.0.access: `anyone` is none of"),
        (text("", "    services: {erp: {client_id: x}}\n"), "tenants.acme.services.erp.client_secret: expected"),
        (text("", "    services: {erp: {client_secret: x}}\n"), "tenants.acme.services.erp.client_id: expected"),
        (text("", "    services: {E_P: {}}\n"), "`E_P` is no service"),
        (text("", &service.replace("y}", "y, scope: 'a\\tb\u{e9}'}")), "tenants.acme.services.erp.scope: expected"),
    ] {
        assert!(faults(&text).contains(expected), "{expected}\nin\n{}", faults(&text));
    }
    let printed = serde_json::to_string(
        &config::parse("g", &text(open, &service.replace('y', "hush-hush")), std::iter::empty()).unwrap(),
    );
    assert!(!printed.unwrap().contains("hush-hush"));
}
