//! A configuration that changes under a running gateway: all of it takes effect, or none.

use std::process::Command;

use crate::process::ProcessReplica;
use crate::steps::{GUEST, JOHN, real_customer_token};
use crate::world::{Certificate, SlowPath, World, eventually, plain_get};

const PRICES: &str = "GET /price/acme/prices";
const NO_PRICES: &str = "routes:\n  - {path: '/price/{tenant}/**', access: deny}\n";
const REFUSED: &str = "gateway_config_refused";
const ENDS: &str = r#"gateway_certificate_expires_timestamp_seconds{listener="public"}"#;

async fn priced(world: &World, gateway: &ProcessReplica, access: &str) -> u16 {
    world.ask_at(gateway.public, PRICES).bearer(access).send().await.status
}

async fn visitor(world: &World, gateway: &ProcessReplica) -> String {
    let answer = world.ask_at(gateway.public, crate::steps::ANONYMOUS_LOGIN).send().await;
    crate::world::Tokens::of(&answer).access
}

#[tokio::test(flavor = "multi_thread")]
async fn another_route_table_takes_effect_on_sighup_and_sessions_live_on() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let access = visitor(&world, &gateway).await;
    assert_eq!(priced(&world, &gateway, &access).await, 200);
    gateway.configure(|text| text + NO_PRICES);
    gateway.hang_up();
    eventually("the rule holds", async || priced(&world, &gateway, &access).await == 403).await;
    let me = world.ask_at(gateway.public, "GET /customer/acme/me").bearer(&access).send().await;
    assert_eq!(crate::steps::who(&me), GUEST, "the session is the same");
    assert_eq!(gateway.metric(r#"gateway_config_reloads_total{outcome="applied"}"#), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_configuration_leaves_the_old_one_and_says_where_the_fault_is() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let access = visitor(&world, &gateway).await;
    // One part of it would be fine: nothing of it is taken.
    gateway.configure(|text| format!("{text}{NO_PRICES}limits:\n  token_body_bites: 1\n"));
    gateway.hang_up();
    eventually("it is refused", async || gateway.metric(REFUSED) == 1.0).await;
    assert_eq!(priced(&world, &gateway, &access).await, 200);
    let logged = gateway.logged();
    assert!(logged.contains("gateway.yaml:") && logged.contains("token_body_bites"), "{logged}");
    // Mended, it is taken without anybody saying so.
    gateway.configure(|text| text + NO_PRICES);
    eventually("it is taken", async || gateway.metric(REFUSED) == 0.0).await;
    assert_eq!(priced(&world, &gateway, &access).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_start_takes_up_is_named_and_tenants_neither_come_nor_go() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let products = async || world.ask_at(gateway.public, "GET /product/globex/products").send().await.status;
    assert_eq!(products().await, 200);
    gateway.configure(|text| {
        let (text, _) = text.split_once("  globex:").unwrap();
        text.replace("threads: 1", "threads: 3")
    });
    gateway.hang_up();
    let warned = || gateway.logged().contains("parts of it take effect at the next start only");
    eventually("it says so", async || warned()).await;
    assert!(gateway.logged().contains("/listen/threads /tenants"), "{}", gateway.logged());
    assert_eq!(products().await, 200, "a tenant that was taken out is served as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_only_a_start_takes_up_are_named_and_never_shown() {
    let world = World::builder().redis().start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let key = file("key", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
    let keys = format!(r#"[{{"id": "test", "secret_file": "{key}"}}]"#);
    let gateway = ProcessReplica::start(&world, &[("STORE__SEAL__KEYS", &*keys)]).await;
    let named = async |keys: &str| {
        eventually(keys, async || gateway.logged().contains(&format!(r#""keys":"{keys}""#))).await;
    };
    let other = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
    file("key", other);
    named("/store/seal").await;
    gateway.configure(|text| {
        text + "traces: {sample: 0.5}\nlimits: {tracked: 7}\nstore: {redis: {response_timeout: 300ms}}\n"
    });
    named("/store/seal /limits/tracked /traces /store/redis").await;
    assert!(!gateway.logged().contains(other), "no secret is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_of_redis_are_tried_and_taken_and_sessions_live_on() {
    let (world, folder) = (World::builder().redis().start().await, tempfile::tempdir().unwrap());
    let (redis, file) = (world.redis(), folder.path().join("password"));
    let [old, new] = ["hush-hush-old", "hush-hush-new"];
    redis.command(&format!("ACL SETUSER gateway on >{old} ~eg:* &eg:* +@all"));
    std::fs::write(&file, old).unwrap();
    let credentials = [("STORE__REDIS__USERNAME", "gateway"), ("STORE__REDIS__PASSWORD_FILE", file.to_str().unwrap())];
    let gateway = ProcessReplica::start(&world, &credentials).await;
    let access = visitor(&world, &gateway).await;
    let ready = async || plain_get(gateway.admin, "/readyz").starts_with("HTTP/1.1 200");

    std::fs::write(&file, new).unwrap();
    eventually("what Redis does not know is refused", async || gateway.metric(REFUSED) == 1.0).await;
    assert!(
        gateway.logged().contains("store.redis: its credentials cannot be used: unavailable: "),
        "{}",
        gateway.logged()
    );
    redis.command("CLIENT KILL USER gateway");
    eventually("the old ones hold", ready).await;
    redis.command(&format!("ACL SETUSER gateway >{new}"));
    gateway.hang_up();
    eventually("they are taken", async || gateway.metric(REFUSED) == 0.0).await;
    redis.command(&format!("ACL SETUSER gateway <{old}"));
    redis.command("CLIENT KILL USER gateway");
    eventually("the new ones hold", ready).await;
    assert_eq!(priced(&world, &gateway, &access).await, 200, "the session lives on");
    visitor(&world, &gateway).await;

    let third = "hush-hush-third";
    redis.command(&format!("ACL SETUSER gateway resetpass >{third}"));
    redis.command("CLIENT KILL USER gateway");
    eventually("Redis is locked", async || !ready().await).await;
    std::fs::write(&file, "hush-hush-guessed").unwrap();
    eventually("what Redis does not know is refused then too", async || gateway.metric(REFUSED) == 1.0).await;
    std::fs::write(&file, third).unwrap();
    eventually("what was locked opens", ready).await;
    assert_eq!(priced(&world, &gateway, &access).await, 200, "the session lives on");
    let logged = gateway.logged();
    assert!(!logged.contains("hush-hush") && !logged.contains("take effect at the next start"), "{logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_redis_that_let_in_and_no_further_are_refused_and_sessions_live_on() {
    let world = World::builder().redis().start().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let access = visitor(&world, &gateway).await;
    let may = |rights: &str| world.redis().command(&format!("ACL SETUSER narrow reset on >hush {rights}"));
    let turns = |outcome: &str| gateway.metric(&format!(r#"gateway_config_reloads_total{{outcome="{outcome}"}}"#));
    gateway.configure(|text| text + "store: {redis: {username: narrow, password: hush}}\n");
    let lacking = [
        "~eg:* resetchannels +@all",
        "~eg:* &eg:* +@all -subscribe",
        "~eg:* &eg:* +@all -publish",
        "resetkeys &eg:* +@all",
    ];
    for (before, rights) in lacking.iter().enumerate() {
        may(rights);
        gateway.hang_up();
        eventually(rights, async || turns("refused") as usize > before).await;
        assert_eq!((gateway.metric(REFUSED), turns("applied")), (1.0, 0.0), "{rights}");
        assert!(plain_get(gateway.admin, "/readyz").starts_with("HTTP/1.1 200"), "{rights}");
        assert_eq!(priced(&world, &gateway, &access).await, 200, "{rights}");
        visitor(&world, &gateway).await;
    }
    assert!(gateway.logged().contains("store.redis: its credentials cannot be used: unavailable: "));
    assert!(!gateway.logged().contains("the session store does not answer"), "the line stands");
    may("~eg:* &eg:* +@all");
    gateway.hang_up();
    eventually("they are taken", async || gateway.metric(REFUSED) == 0.0).await;
    visitor(&world, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_redis_learns_after_their_file_are_taken_without_anybody_saying_so() {
    let world = World::builder().redis().start().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    gateway.configure(|text| text + "store: {redis: {username: late, password: hush}}\n");
    eventually("they are refused", async || gateway.metric(REFUSED) == 1.0).await;
    world.redis().command("ACL SETUSER late on >hush ~eg:* &eg:* +@all");
    eventually("they are taken", async || gateway.metric(REFUSED) == 0.0).await;
    let lines = world.redis().command("CLIENT LIST");
    assert!(lines.contains("user=late"), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_redis_that_cannot_be_taken_are_named_until_they_are() {
    let (world, folder) = (World::builder().redis().start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("password");
    let user = |change: &str| world.redis().command(&format!("ACL SETUSER gateway {change}"));
    user("on >hush-hush-old >hush-hush-new ~eg:* &eg:* +@all");
    std::fs::write(&file, "hush-hush-old").unwrap();
    let credentials = [("STORE__REDIS__USERNAME", "gateway"), ("STORE__REDIS__PASSWORD_FILE", file.to_str().unwrap())];
    let gateway = ProcessReplica::start(&world, &credentials).await;
    let named = async |keys: &str| {
        eventually(keys, async || gateway.logged().contains(&format!(r#""keys":"{keys}""#))).await;
    };
    gateway.configure(|text| text + "store: {redis: {response_timeout: 300ms}}\n");
    named("/store/redis").await;
    std::fs::write(&file, "hush-hush-new").unwrap();
    named("/store/redis /store/redis/credentials").await;

    gateway.configure(|text| text);
    eventually("all three are read", async || {
        gateway.metric(r#"gateway_config_reloads_total{outcome="applied"}"#) == 3.0
    })
    .await;
    user("<hush-hush-old");
    world.redis().command("CLIENT KILL USER gateway");
    eventually("the new ones hold", async || plain_get(gateway.admin, "/readyz").starts_with("HTTP/1.1 200")).await;
    visitor(&world, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_of_saas_tokens_holds_at_once_and_sessions_live_on() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "true")]).await;
    let login =
        async || world.ask_at(gateway.public, "POST /customer/acme/login").json(&crate::steps::john()).send().await;
    let rights = async |credential: &str| {
        crate::steps::who(&world.ask_at(gateway.public, "GET /customer/acme/me").bearer(credential).send().await)
    };
    let signed_by = |key: &str| {
        let claims = serde_json::json!({"sub": JOHN, "exp": 4_000_000_000_u64});
        let key = jsonwebtoken::EncodingKey::from_secret(key.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let [old, new] = ["simulator-passphrase", "the-passphrase-that-follows"].map(|key| (key, signed_by(key)));
    let answers = async |token: &str| world.simulator.set(serde_json::json!({"saas_token_override": token})).await;
    answers(&old.1).await;
    let access = crate::world::Tokens::of(&login().await).access;
    assert_eq!([rights(&access).await, rights(&old.1).await], [JOHN, JOHN]);

    gateway.configure(|text| text.replace(old.0, new.0));
    gateway.hang_up();
    eventually("what the old key signed is no credential", async || rights(&old.1).await == "session_ended").await;
    assert_eq!(login().await.code(), "identity_unreadable", "nor is it believed when Emporix answers it");
    assert_eq!(rights(&access).await, JOHN, "the session lives on");
    answers(&new.1).await;
    assert_eq!(login().await.status, 200);
    assert_eq!(rights(&new.1).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_was_under_way_when_its_key_was_changed_is_not_kept() {
    let mut world = World::builder().redis().start().await;
    world.saas_is_exposed = true;
    let path = SlowPath::start(world.redis().port).await;
    let url = format!("redis://127.0.0.1:{}", path.port);
    let jwt = [("TENANTS__ACME__SAAS_TOKEN__ACCEPT", "true"), ("TENANTS__ACME__SAAS_TOKEN__EXPOSE", "true")];
    let slow = [("STORE__REDIS__URL", url.as_str()), ("STORE__REDIS__RESPONSE_TIMEOUT", "20s")];
    let writes = ProcessReplica::start(&world, &jwt).await;
    let reads = ProcessReplica::start(&world, &[jwt, slow].concat()).await;
    let login = world.ask_at(writes.public, "POST /customer/acme/login").json(&crate::steps::john()).send().await;
    let token = login.json()["saas_token"].as_str().unwrap().to_owned();
    let rights =
        async || crate::steps::who(&world.ask_at(reads.public, "GET /customer/acme/me").bearer(&token).send().await);

    path.hold_from("eg:saas:");
    let change = async {
        eventually("the store is asked for the session", async || path.is_holding()).await;
        reads.configure(|text| text.replace("simulator-passphrase", "the-passphrase-that-follows"));
        reads.hang_up();
        let applied = async || reads.metric(r#"gateway_config_reloads_total{outcome="applied"}"#) == 1.0;
        eventually("the key is another", applied).await;
        path.let_go();
    };
    assert_eq!(tokio::join!(rights(), change).0, JOHN, "it came before the change");
    assert_eq!(rights().await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_of_another_site_are_others_and_of_the_same_site_the_same() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let reads = async || world.ask_at(gateway.public, "GET /product/acme/products").send().await.status;
    assert_eq!(reads().await, 200);
    let applied = || gateway.metric(r#"gateway_config_reloads_total{outcome="applied"}"#);
    for (section, minted) in [("hosts: [acme.example.com]", 1), ("site: {site_code: other}", 2)] {
        let before = applied();
        let section = format!("tenants:\n  acme:\n    {section}\n");
        gateway.configure(|text| text.replace("tenants:\n  acme:\n", &section));
        gateway.hang_up();
        eventually("it is taken", async || applied() > before).await;
        assert_eq!(reads().await, 200);
        assert_eq!(world.simulator.calls("anonymous_login").await, minted, "{section}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_adopted_works_on_when_nothing_is_adopted_any_more() {
    let world = World::builder().redis().start().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let [adopted, late] = [real_customer_token(&world).await, real_customer_token(&world).await];
    let rights = async |bearer: &str| {
        crate::steps::who(&world.ask_at(gateway.public, "GET /customer/acme/me").bearer(bearer).send().await)
    };
    let applied = || gateway.metric(r#"gateway_config_reloads_total{outcome="applied"}"#);
    let adopting = async |section: &str| {
        let before = applied();
        let section = format!("tenants:\n  acme:\n    foreign_bearer: {section}\n");
        gateway.configure(|text| text.replace("tenants:\n  acme:\n", &section));
        gateway.hang_up();
        eventually("it is taken", async || applied() > before).await;
    };
    adopting("{mode: adopt, until: '2099-01-01T00:00:00Z'}").await;
    assert_eq!(rights(&adopted).await, JOHN);
    for ends in ["{mode: refuse, until: '2099-01-01T00:00:00Z'}", "{mode: adopt, until: '2020-01-01T00:00:00Z'}"] {
        adopting(ends).await;
        assert_eq!([rights(&adopted).await, rights(&late).await], [JOHN, "session_ended"], "{ends}");
    }
    adopting("{mode: refuse}").await;
    assert_eq!(rights(&adopted).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_webhook_secret_holds_at_once_and_sessions_live_on() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("secret");
    std::fs::write(&file, "the-first-webhook-secret").unwrap();
    let gateway =
        ProcessReplica::start(&world, &[("TENANTS__ACME__WEBHOOK__SECRET_FILE", file.to_str().unwrap())]).await;
    let login = world.ask_at(gateway.public, "POST /customer/acme/login").json(&crate::steps::john()).send().await;
    let access = crate::world::Tokens::of(&login).access;
    let url = format!("http://{}/_gateway/webhooks/emporix/acme", gateway.public);
    let john = serde_json::json!({"customerNumber": JOHN});
    let delivered = async |kind: &str, secret: &str| world.simulator.deliver(kind, john.clone(), secret, &url).await;
    let rights =
        async || crate::steps::who(&world.ask_at(gateway.public, "GET /customer/acme/me").bearer(&access).send().await);
    let [first, second] = ["the-first-webhook-secret", "the-second-webhook-secret"];
    assert_eq!([delivered("order.created", first).await, delivered("order.created", second).await], [204, 401]);
    std::fs::write(&file, second).unwrap();
    eventually("the new one is believed", async || delivered("order.created", second).await == 204).await;
    assert_eq!(delivered("customer.deleted", first).await, 401, "the old one no longer counts");
    assert_eq!(rights().await, JOHN, "the session lives on");
    assert_eq!(delivered("customer.deleted", second).await, 204);
    eventually("it ends", async || rights().await == "session_ended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_limit_holds_without_a_start() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let signs_in = async || {
        let login = world.ask_at(gateway.public, "POST /customer/acme/login").json(&crate::steps::john());
        login.send().await.status
    };
    assert_eq!([signs_in().await, signs_in().await], [200; 2]);
    gateway.configure(|text| text + "limits: {sign_in_per_account: {burst: 1, per_minute: 1}}\n");
    gateway.hang_up();
    eventually("it is taken", async || gateway.metric(r#"gateway_config_reloads_total{outcome="applied"}"#) == 1.0)
        .await;
    signs_in().await;
    assert_eq!(signs_in().await, 429);
    assert!(!gateway.logged().contains("take effect at the next start only"), "{}", gateway.logged());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_file_changes_while_it_runs() {
    let (world, folder) = (World::new().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("token");
    std::fs::write(&file, "the-first-admin-token\n").unwrap();
    let gateway = ProcessReplica::start(&world, &[("ADMIN__TOKEN_FILE", file.to_str().unwrap())]).await;
    let opens = async |token: &str| {
        let ask = world.ask_at(gateway.admin, "GET /admin/sessions?tenant=acme&customer=x").bearer(token);
        ask.send().await.status
    };
    assert_eq!((opens("the-first-admin-token").await, opens("the-second-admin-token").await), (200, 401));
    std::fs::write(&file, "the-second-admin-token\n").unwrap();
    eventually("the new token opens", async || opens("the-second-admin-token").await == 200).await;
    assert_eq!(opens("the-first-admin-token").await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_changes_while_it_runs() {
    let world = World::new().await;
    let gateway = ProcessReplica::start(&world, &[]).await;
    let access = visitor(&world, &gateway).await;
    let logs_requests = async || {
        let before = gateway.logged().len();
        priced(&world, &gateway, &access).await;
        gateway.logged()[before..].contains(r#""route":"visitor""#)
    };
    eventually("requests are logged", logs_requests).await;
    gateway.configure(|text| text.replace("level: debug", "level: error"));
    gateway.hang_up();
    eventually("requests are logged no more", async || !logs_requests().await).await;
    gateway.configure(|text| text);
    eventually("they are again", logs_requests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_once_its_key_is_there_too() {
    let (world, folder, authority) = (World::new().await, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [certificate, key] = Certificate::new().write(folder.path());
    let files = [("LISTEN__TLS__CERTIFICATE_FILE", &*certificate), ("LISTEN__TLS__KEY_FILE", &*key)];
    let gateway = ProcessReplica::start(&world, &files).await;
    let renewed = Certificate::until(2030).write(authority.path());
    let shows_the_new_one = async || trusts(&renewed[0], gateway.public.port(), &[]).await;
    assert!(trusts(&certificate, gateway.public.port(), &[]).await && !shows_the_new_one().await);
    assert!(gateway.metric(ENDS) > 4e9, "far from now");

    std::fs::copy(&renewed[0], &certificate).unwrap();
    eventually("half of a pair is refused", async || gateway.metric(REFUSED) == 1.0).await;
    assert!(!shows_the_new_one().await, "the old pair is shown");
    assert_eq!(gateway.metric(r#"gateway_config_reloads_total{outcome="refused"}"#), 1.0);
    let said = format!("listen.tls.key_file: {key}: ");
    assert!(gateway.logged().contains(&said), "{said} in {}", gateway.logged());
    std::fs::copy(&renewed[1], &key).unwrap();
    eventually("the new one is shown", shows_the_new_one).await;
    eventually("its end is told", async || gateway.metric(ENDS) == 1_893_456_000.0).await;
    eventually("all is well", async || gateway.metric(REFUSED) == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_certificates_where_they_are_asked_for() {
    let [folder, client] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [certificate, key] = Certificate::new().write(folder.path());
    let [known, known_key] = Certificate::new().write(client.path());
    let tls = World::builder().set("LISTEN__TLS__CERTIFICATE_FILE", &certificate).set("LISTEN__TLS__KEY_FILE", key);
    let world = tls.set("LISTEN__TLS__CLIENT_CA_FILE", &known).start().await;
    let port = world.gateway().public.port();
    assert!(!trusts(&certificate, port, &[]).await, "without one");
    assert!(trusts(&certificate, port, &["--cert", &known, "--key", &known_key]).await, "with the one that is known");
    assert!(plain_get(world.gateway().admin, "/readyz").contains(" 200 "));
}

/// Whether a client that trusts `authority` alone gets an answer.
async fn trusts(authority: &str, port: u16, more: &[&str]) -> bool {
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "--max-time",
        "5",
        "--cacert",
        authority,
        "--resolve",
        &format!("localhost:{port}:127.0.0.1"),
    ]);
    command.args(more).arg(format!("https://localhost:{port}/product/acme/products"));
    let printed = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    String::from_utf8_lossy(&printed.stdout).contains("Espresso")
}
