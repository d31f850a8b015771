//! `explain`: what would happen to a request, said as the gateway then does it, and without a credential's value.

use std::net::{SocketAddr, TcpStream};

use emporix_gateway::app;
use emporix_gateway::clock::Clock;
use emporix_gateway::config::{self, Config};
use serde_json::json;

use crate::errands::{program, said};
use crate::world::{Answer, Ask, World, configuration, eventually, free_port};

const HANDLE: &str = "eg_c_";

fn config() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "tenants:\n  acme:\n    client_id: storefront\n    origins: ['https://shop.example.com']\n    hosts: [shop.example.com]\n\
        \x20 globex: {client_id: storefront}\n\
        routes:\n  - {path: '/cart/{tenant}/**', access: customer, saas_token: required}\n";
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Exit code, and the points of the explanation.
fn explain(arguments: &[&str]) -> (Option<i32>, String) {
    let file = config();
    let arguments = [&["explain", "--config", file.path().to_str().unwrap()][..], arguments].concat();
    let (code, shown, failed) = said(&program(&arguments));
    (code, shown + &failed)
}

fn point<'t>(shown: &'t str, name: &str) -> &'t str {
    shown.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
}

#[test]
fn a_guests_request_is_followed_from_target_to_answer() {
    let (code, shown) =
        explain(&["GET", "https://shop.example.com/product/acme/products?q=cup", "-H", "X-Forwarded-For: 1.2.3.4"]);
    assert_eq!(code, Some(0), "{shown}");
    for (name, expected) in [
        ("target", "reads one way only"),
        ("route", "/product/{tenant}/** (shipped table): access guest"),
        ("tenant", "acme, by the path"),
        ("credential", "none"),
        ("proof", "not demanded"),
        ("stripped", "x-forwarded-for, host"),
        ("injected", "authorization, host"),
        ("answer", "by https://api.emporix.io, with the tenant's shared guest token"),
        ("forward-auth", "200 (there is no forward_auth.listen)"),
    ] {
        assert!(point(&shown, name).starts_with(expected), "{name}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_happens_and_no_credential_is_printed() {
    let world = World::new().await;
    let customer = world.customer().await;
    let access = customer.tokens.access.as_str();
    assert!(access.starts_with(HANDLE));
    let bearer = format!("Authorization: Bearer {access}");
    let foreign = "Authorization: Bearer tpYgJPZqddEQ2zwfzNtx79noBP65";
    let cookie = "Cookie: __Host-emporix-session=eg_k_broken";
    for (arguments, expected) in [
        (&["GET", "/customer/acme/me", "-H", &bearer][..], "a handle (eg_c_***) in Authorization"),
        (
            &["GET", "/customer/acme/me", "-H", foreign],
            "a token that the gateway did not issue in Authorization, refused",
        ),
        (&["GET", &format!("/cart/acme/carts?x={access}")], "400 bad_target"),
        (&["GET", &format!("/customer/acme/logout?accessToken={access}")], "a handle (eg_c_***) in the query"),
        (&["GET", "/customer/acme/me", "-H", cookie], "401 session_ended"),
        (&["POST", "/oauth/token"], "403 denied"),
        (&["DELETE", "/customer/acme/login"], "405 method_not_allowed"),
        (&["GET", "/a/../b"], "400 bad_target"),
        (&["GET", "/cart/acme/carts", "-H", "Emporix-Tenant: globex"], "403 tenant_mismatch"),
        (&["GET", "/cart/nobody/carts"], "404 unknown_tenant"),
        (&["POST", "/cart/acme/carts", "-H", "Sec-Fetch-Site: cross-site"], "403 proof_required"),
        (&["POST", "/checkout/acme/checkouts/order"], "401 session_required"),
        (
            &["POST", "/cart/acme/carts", "-H", &bearer],
            "routes.0 of this configuration): access customer, inject session, saas_token required",
        ),
        (&["POST", "/customer/acme/login", "-H", "Origin: https://shop.example.com"], "access-control-allow-origin"),
        (
            &[
                "OPTIONS",
                "/cart/acme/carts",
                "-H",
                "Origin: https://shop.example.com",
                "-H",
                "Access-Control-Request-Method: POST",
            ],
            "204 to the preflight",
        ),
        (&["GET", "/product/acme/products", "-H", "X_Forwarded_For: x"], "forward-auth  by the gateway: 403 denied"),
    ] {
        let (code, shown) = explain(arguments);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains(expected), "{expected}\nin\n{shown}");
        for secret in [access, "tpYgJPZqddEQ2zwfzNtx79noBP65", "eg_k_broken"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        // Where the client asks exactly this, and not what it makes of it, the gateway answers as was explained.
        if let [method, url] = arguments
            && !url.contains("..")
            && !url.contains(access)
        {
            let happened = world.ask(&format!("{method} {url}")).send().await;
            let answer = format!("{} {}", happened.status, happened.code());
            assert!(shown.contains(&answer), "{answer}: {shown}");
        }
    }
    assert_eq!(
        world.ask("GET /customer/acme/me").bearer(access).send().await.json()["customerNumber"],
        json!("13869000")
    );
}

/// A world, and its configuration for who explains it.
struct Explained {
    world: World,
    config: Config,
    verdicts: SocketAddr,
    internal: SocketAddr,
}

impl Explained {
    async fn new(changes: &[(&str, &str)]) -> Self {
        let [verdicts, internal] = [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let builder = World::builder()
            .set("FORWARD_AUTH__LISTEN", verdicts.to_string())
            .set("FORWARD_AUTH__TRUSTED_PEERS", r#"["127.0.0.1/32"]"#)
            .set("INTERNAL__LISTEN", internal.to_string())
            .set("INTERNAL__TOKEN", INTERNAL_TOKEN);
        let mut world = changes.iter().fold(builder, |builder, (key, value)| builder.set(key, *value)).start().await;
        // Verdicts bear real tokens.
        world.saas_is_exposed = true;
        eventually("it listens", async || TcpStream::connect(internal).is_ok()).await;
        let overrides = world.overrides.iter().map(|(key, value)| (format!("EMPORIX_GATEWAY__{key}"), value.clone()));
        let text = configuration(world.simulator.address, world.gateway().public, world.gateway().admin);
        let config = config::parse("test.yaml", &text, overrides).unwrap();
        Self { world, config, verdicts, internal }
    }

    fn explain(&self, line: &str, fields: &[&str]) -> String {
        let (method, url) = line.split_once(' ').unwrap();
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        app::explain(&self.config, method, url, &fields, self.world.clock.now()).unwrap().to_string()
    }

    /// Fails unless the gateway, and who asks for a verdict, are answered as is explained. Returns the status.
    async fn compare(&self, line: &str, fields: &[&str]) -> u16 {
        let shown = self.explain(line, fields);
        let happened = dressed(self.world.ask(line), fields).send().await;
        assert_foretold(point(&shown, "answer"), &happened, &shown);
        let verdict = point(&shown, "forward-auth");
        if !verdict.is_empty() {
            let (method, url) = line.split_once(' ').unwrap();
            let asked = self.world.ask_at(self.verdicts, "GET /auth/nginx");
            let asked = asked.header("x-original-method", method).header("x-original-uri", url);
            assert_foretold(verdict, &dressed(asked, fields).send().await, &shown);
        }
        happened.status
    }
}

fn dressed<'w>(ask: Ask<'w>, fields: &[&str]) -> Ask<'w> {
    fields.iter().fold(ask, |ask, field| {
        let (name, value) = field.split_once(": ").unwrap();
        ask.header(name, value)
    })
}

/// Whether `told` is what happened. What hangs on the session is told with both ends.
fn assert_foretold(told: &str, happened: &Answer, shown: &str) {
    let answer = if happened.status < 400 { String::new() } else { format!("{} {}", happened.status, happened.code()) };
    let refused = told.starts_with("by the gateway: 4");
    let foretold = if answer.is_empty() { !refused } else { told.contains(&answer) };
    assert!(foretold, "{} {answer}: {told}\n{shown}", happened.status);
}

const INTERNAL_TOKEN: &str = "the-token-of-the-back-office";
const FOREIGN: &str = "Authorization: Bearer tpYgJPZqddEQ2zwfzNtx79noBP65";
const OVER: &str = "2020-01-01T00:00:00Z";
const TO_COME: &str = "2099-01-01T00:00:00Z";

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_foreign_bearer_is_explained_as_it_happens() {
    let refused = "by the gateway: 401 session_ended (The session is over or unknown.)";
    let known_alone = format!("{refused}, unless the token was taken into a session before");
    let adopted = ", with the token itself, which is taken into a session, when Emporix knows the token; 401 session_ended otherwise";
    for (mode, until, answer) in [
        ("refuse", None, refused),
        ("refuse", Some(TO_COME), &*known_alone),
        ("adopt", Some(OVER), &*known_alone),
        ("adopt", Some(TO_COME), adopted),
    ] {
        let until = until.map(|until| ("TENANTS__ACME__FOREIGN_BEARER__UNTIL", until));
        let changes: Vec<_> = [("TENANTS__ACME__FOREIGN_BEARER__MODE", mode)].into_iter().chain(until).collect();
        let explained = Explained::new(&changes).await;
        let shown = explained.explain("GET /customer/acme/me", &[FOREIGN]);
        assert!(point(&shown, "answer").ends_with(answer), "{mode} {until:?}: {shown}");
        for (line, status) in [
            ("GET /customer/acme/me", 401),
            ("GET /product/acme/products", 401),
            ("GET /product/acme/products?session-id=x", 401),
            ("GET /customer/acme/logout?accessToken=foreign", 401),
            ("POST /customer/acme/login", 401),
            ("GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront", 200),
            ("GET /_gateway/session", 404),
            ("GET /labels", 404),
            ("GET /cart/globex/carts", 401),
        ] {
            assert_eq!(explained.compare(line, &[FOREIGN]).await, status, "{mode} {until:?} {line}");
        }
        let of_acme = [FOREIGN, "Emporix-Tenant: acme"];
        assert_eq!(explained.compare("GET /_gateway/session", &of_acme).await, 401, "{mode} {until:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_credential_is_explained_as_it_happens() {
    let explained = Explained::new(&[]).await;
    let customer = explained.world.customer().await;
    let unknown = |kind: &str, filler: &str| format!("eg_{kind}_{}", filler.repeat(64));
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let cookie = |filler: &str| format!("__Host-emporix-session={}", unknown("k", filler));
    let [visitors, customers] = [bearer(&customer.visitor.access), bearer(&customer.tokens.access)];
    let [unknown_visitors, unknown_customers] = [bearer(&unknown("a", "A")), bearer(&unknown("c", "A"))];
    let unknown_saas = format!("saas-token: {}", unknown("s", "A"));
    let [unknown_cookie, two_cookies] =
        [format!("Cookie: {}", cookie("A")), format!("Cookie: {}; {}", cookie("A"), cookie("B"))];
    let other = format!("GET /customer/acme/logout?accessToken={}", unknown("c", "B"));
    let (me, carts, products) = ("GET /customer/acme/me", "POST /cart/acme/carts", "GET /product/acme/products");
    let (session, logout) = ("GET /_gateway/session", "POST /_gateway/logout");
    let (orders, visit) = ("GET /order-v2/acme/orders", "GET /product/acme/products?session-id=x");
    let cross_site = "Sec-Fetch-Site: cross-site";
    for (line, fields, status) in [
        (me, &[&*customers][..], 200),
        (me, &[&unknown_customers], 401),
        (me, &[&unknown_visitors], 401),
        (me, &[&unknown_saas], 401),
        (me, &["Authorization: Bearer eg_c_garbage"], 401),
        (me, &["Authorization: Bearer a b"], 401),
        (me, &["Authorization: Basic YTpi"], 401),
        (me, &["Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.e30.AAAA"], 401),
        (me, &["Authorization: Bearer cookie.customer"], 401),
        (me, &["Authorization: Bearer cookie.anonymous"], 401),
        (products, &["Authorization: Bearer cookie.anonymous"], 200),
        (products, &[], 200),
        (visit, &[], 401),
        (products, &["session-id: x"], 401),
        (orders, &[&visitors], 401),
        (orders, &[&customers], 200),
        (me, &[&customers, &unknown_customers], 400),
        (&other, &[&unknown_customers], 400),
        (&other, &[], 401),
        ("GET /customer/acme/logout", &[&visitors], 401),
        ("GET /customer/acme/refreshauthtoken", &[&visitors], 401),
        (me, &[&unknown_cookie], 401),
        (me, &[&two_cookies], 400),
        (carts, &[&unknown_cookie], 403),
        (carts, &[&unknown_cookie, "X-Emporix-Gateway: 1"], 401),
        (carts, &[&customers, cross_site], 403),
        (session, &[&customers], 200),
        (session, &[], 401),
        (logout, &[&visitors], 401),
        (logout, &[&unknown_cookie], 403),
    ] {
        assert_eq!(explained.compare(line, fields).await, status, "{line} {fields:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_storefronts_is_explained_as_it_happens() {
    let service = r#"{"erp": {"client_id": "erp-client", "client_secret": "simulator-client-secret"}}"#;
    let rules = r#"[{"path": "/vendor/{tenant}/**", "access": "service:erp"}]"#;
    let changes =
        [("TENANTS__GLOBEX__WEBHOOK__SECRET", "hush"), ("TENANTS__ACME__SERVICES", service), ("ROUTES", rules)];
    let explained = Explained::new(&changes).await;
    assert_eq!(explained.compare("POST /_gateway/webhooks/emporix/acme", &[]).await, 404);
    assert_eq!(explained.compare("POST /_gateway/webhooks/emporix/globex", &[]).await, 401);
    for (line, status) in [
        ("GET /vendor/acme/stock", 200),
        ("GET /vendor/globex/stock", 403),
        ("GET /vendor/acme/stock?x=cookie.saas", 400),
    ] {
        assert_eq!(explained.compare(line, &[]).await, 403, "on the public listener");
        let shown = explained.explain(line, &[]);
        let (told, world) = (point(&shown, "internal"), &explained.world);
        let happened = world.ask_at(explained.internal, line).bearer(INTERNAL_TOKEN).send().await;
        assert_eq!(happened.status, status, "{line}");
        assert_foretold(told, &happened, &shown);
        assert_foretold(told, &world.ask_at(explained.internal, line).send().await, &shown);
    }
}

#[test]
fn what_is_no_request_is_one_clear_line() {
    for arguments in [&["G T", "/"][..], &["GET", "/", "-H", "no colon"], &["GET", "/", "-H", "a b: c"], &["GET"]] {
        let (code, shown) = explain(arguments);
        assert_eq!(code, Some(64), "{shown}");
        assert!(!shown.contains("panicked"), "{shown}");
    }
}
