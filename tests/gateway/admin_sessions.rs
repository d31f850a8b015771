//! What operators may see of sessions, and that what they end is over: on every replica, at once, and for nobody else.

use std::collections::HashSet;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::steps::{ANONYMOUS_LOGIN, JANE, JOHN, who};
use crate::world::{Answer, Builder, Customer, Tokens, World, eventually, logged};

const TOKEN: &str = "the-operators-token-0123456789";
/// The longest that another replica may go on serving what was ended: the hot cache would for much longer.
const AT_ONCE: Duration = Duration::from_secs(3);
const UNTHROTTLED: &str = r#"{"burst": 10000, "per_minute": 10000}"#;

fn guarded() -> Builder {
    World::builder()
        .set("ADMIN__TOKEN", TOKEN)
        .set("LIMITS__SIGN_IN_PER_ACCOUNT", UNTHROTTLED)
        .set("LIMITS__SIGN_IN_PER_ADDRESS", UNTHROTTLED)
}

async fn list(world: &World, replica: usize, customer: &str) -> Value {
    let line = format!("GET /admin/sessions?tenant=acme&customer={customer}");
    let answer = world.ask_admin(replica, &line).bearer(TOKEN).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn labels(world: &World, replica: usize, customer: &str) -> Vec<String> {
    let listing = list(world, replica, customer).await;
    let sessions = listing["sessions"].as_array().unwrap();
    sessions.iter().map(|session| session["session"].as_str().unwrap().to_owned()).collect()
}

async fn revoke(world: &World, replica: usize, which: Value) -> Answer {
    world.ask_admin(replica, "POST /admin/sessions/revoke").bearer(TOKEN).json(&which).send().await
}

/// Fails unless the revocation ended `count` sessions.
async fn ends(world: &World, which: Value, count: u64) {
    let answer = revoke(world, 0, which).await;
    assert_eq!((answer.status, answer.json()["ended"].as_u64()), (200, Some(count)), "{}", answer.text);
}

async fn jane(world: &World) -> Tokens {
    let visitor = world.visitor().await;
    Tokens::of(&world.login(&visitor.access, "jane.roe@example.com").await)
}

async fn rights(world: &World, replica: usize, handle: &str) -> String {
    who(&world.ask_replica(replica, "GET /customer/acme/me").bearer(handle).send().await)
}

/// The raw keys of the sessions, as Redis names them.
fn keys(world: &World) -> Vec<String> {
    let keys = world.redis().keys().into_iter();
    keys.filter_map(|key| Some(key.strip_prefix("eg:{")?.strip_suffix("}:session")?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_labels_and_clocks_and_is_the_same_on_every_replica() {
    let world = guarded().redis().replicas(2).start().await;
    let customers = [world.customer().await, world.customer().await];
    jane(&world).await;
    let listing = list(&world, 0, JOHN).await;
    assert_eq!(listing, list(&world, 1, JOHN).await);
    let sessions = listing["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    for session in sessions {
        let known: HashSet<&str> = session.as_object().unwrap().keys().map(String::as_str).collect();
        let told = ["session", "transport", "signedInAt", "lastSeenAt", "expiresAt", "hasLegalEntity"];
        assert_eq!(known, HashSet::from(told));
        assert_eq!((&session["transport"], &session["hasLegalEntity"]), (&json!("handle"), &json!(false)));
        assert!(session["expiresAt"].as_u64() > session["signedInAt"].as_u64());
    }
    for key in keys(&world) {
        assert!(!listing.to_string().contains(&key), "a session is not named by its key");
        assert!(!logged().contains(&key), "nor in the log");
    }
    assert_eq!(list(&world, 0, "nobody").await, json!({"sessions": []}));

    let listed = labels(&world, 0, JOHN).await;
    for customer in &customers {
        assert_eq!(world.log_out(&customer.tokens.access).await.status, 204);
    }
    assert_eq!(list(&world, 1, JOHN).await["sessions"], json!([]), "what is over is not listed");
    for label in listed {
        assert!(logged().contains(&format!(r#""session":"{label}""#)), "the log names a session as the list does");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_customers_sessions_reaches_every_replica_at_once_and_closes_streams() {
    let world = guarded().redis().replicas(3).start().await;
    let (first, second, jane) = (world.customer().await, world.customer().await, jane(&world).await);
    for replica in 0..3 {
        for (handle, owner) in [(&first.tokens, JOHN), (&second.tokens, JOHN), (&jane, JANE)] {
            assert_eq!(rights(&world, replica, &handle.access).await, owner, "the hot cache is warm");
        }
    }
    let line = "GET /ai-service/acme/agentic/chat-stream?events=0";
    let mut stream = world.ask_replica(1, line).bearer(&first.tokens.access).stream().await;
    stream.chunk().await.unwrap().unwrap();

    let asked = Instant::now();
    ends(&world, json!({"tenant": "acme", "customer": JOHN}), 2).await;
    let closed = timeout(AT_ONCE, async { while let Ok(Some(_)) = stream.chunk().await {} }).await;
    assert!(closed.is_ok(), "the stream outlived its session");
    for replica in 0..3 {
        for customer in [&first, &second] {
            eventually("the end is known", async || {
                rights(&world, replica, &customer.tokens.access).await == "session_ended"
            })
            .await;
        }
        assert_eq!(rights(&world, replica, &jane.access).await, JANE);
    }
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    eventually("Emporix is told", async || world.simulator.calls("logout").await == 2).await;
    assert_eq!(world.gateway().metric(r#"gateway_sessions_total{event="revoked_by_operator"}"#), 2.0);
    let log = logged();
    let audit: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("an operator ended sessions") && line.contains(r#""kind":"customer""#))
        .collect();
    assert!(
        audit.iter().any(|line| line.contains(r#""ended":2"#) && line.contains(r#""by":"admin token""#)),
        "{audit:?}"
    );
    assert!(audit.iter().all(|line| !line.contains(JOHN)), "{audit:?}");
}

async fn one_session_ends_by_its_label(world: &World) {
    let (first, second) = (world.customer().await, world.customer().await);
    let known: HashSet<String> = labels(world, 0, JOHN).await.into_iter().collect();
    assert_eq!(world.log_out(&second.tokens.access).await.status, 204);
    let [label] = &labels(world, 0, JOHN).await[..] else { panic!("one is left") };
    assert!(known.contains(label));
    let third = world.customer().await;
    for elsewhere in [json!({"session": "0123456789abcdef"}), json!({"tenant": "globex", "session": label})] {
        let answer = revoke(world, 0, elsewhere).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_session"));
    }
    assert_eq!(rights(world, 0, &first.tokens.access).await, JOHN);
    ends(world, json!({"session": label}), 1).await;
    assert_eq!(rights(world, 0, &first.tokens.access).await, "session_ended");
    assert_eq!(rights(world, 0, &first.visitor.access).await, "session_ended", "the whole family");
    assert_eq!(rights(world, 0, &third.tokens.access).await, JOHN, "and nobody else");
    assert_eq!(revoke(world, 0, json!({"session": label})).await.code(), "unknown_session", "it is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_ends_by_its_label_in_redis() {
    one_session_ends_by_its_label(&guarded().redis().start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_ends_by_its_label_in_the_embedded_store() {
    one_session_ends_by_its_label(&guarded().start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_tenant_ends_visitors_and_customers_and_nothing_of_another_tenant() {
    let world = guarded().redis().replicas(2).start().await;
    let elsewhere = Tokens::of(&world.ask(&ANONYMOUS_LOGIN.replace("acme", "globex")).send().await);
    let mut handles = Vec::new();
    for _ in 0..40 {
        handles.push(world.visitor().await.access);
    }
    handles.push(world.customer().await.tokens.access);
    for handle in &handles {
        assert_ne!(rights(&world, 1, handle).await, "session_ended");
    }
    ends(&world, json!({"tenant": "acme", "all": true}), handles.len() as u64).await;
    for handle in &handles {
        eventually("the end is known", async || rights(&world, 1, handle).await == "session_ended").await;
    }
    assert_eq!(keys(&world).len(), 1);
    let alive = world.ask_replica(1, "GET /cart/globex/carts").bearer(&elsewhere.access).send().await;
    assert_ne!(alive.status, 401, "{}", alive.text);
    ends(&world, json!({"tenant": "acme", "all": true}), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_many_neither_waits_for_emporix_nor_floods_it() {
    let world = guarded().start().await;
    let mut customers: Vec<Customer> = Vec::new();
    for _ in 0..24 {
        customers.push(world.customer().await);
    }
    world.simulator.fault(json!({"operation": "logout", "mode": "delay", "delay_ms": 1500})).await;
    let asked = Instant::now();
    ends(&world, json!({"tenant": "acme", "customer": JOHN}), 24).await;
    assert!(asked.elapsed() < Duration::from_millis(1_200), "{:?}", asked.elapsed());
    eventually("the first are under way", async || world.simulator.calls("logout").await >= 16).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.simulator.calls("logout").await, 16, "at a time");
    eventually("all are told", async || world.simulator.calls("logout").await == 24).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_from_before_a_change_of_keys_still_names_its_session() {
    let mut world = guarded().redis().start().await;
    let john = world.customer().await;
    let [old] = &labels(&world, 0, JOHN).await[..] else { panic!("one session") };
    let keys = r#"[{"id": "next", "secret": "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="},
                   {"id": "test", "secret": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}]"#;
    let changed = world.add_replica(&[("STORE__SEAL__ACTIVE", "next"), ("STORE__SEAL__KEYS", keys)]).await;
    let [new] = &labels(&world, changed, JOHN).await[..] else { panic!("the same session") };
    assert_ne!(old, new);
    let answer = revoke(&world, changed, json!({"tenant": "acme", "session": old})).await;
    assert_eq!((answer.status, &answer.json()["ended"]), (200, &json!(1)), "{}", answer.text);
    eventually("it is over everywhere", async || rights(&world, 0, &john.tokens.access).await == "session_ended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_admin_token_opens_it_and_without_one_configured_nothing_does() {
    let world = guarded().start().await;
    let john = world.customer().await;
    let lines =
        ["GET /admin/sessions?tenant=acme&customer=13869000", "POST /admin/sessions/revoke", "GET /admin/other"];
    let wish = json!({"tenant": "acme", "all": true});
    let longer = format!("{TOKEN}0");
    for line in lines {
        let ask = || world.ask_admin(0, line).json(&wish);
        let refused = [
            ask().send().await,
            ask().bearer("").send().await,
            ask().bearer(&TOKEN[1..]).send().await,
            ask().bearer(&longer).send().await,
            ask().bearer(&john.tokens.access).send().await,
            ask().bearer(TOKEN).bearer(TOKEN).send().await,
            ask().header("authorization", &format!("Basic {TOKEN}")).send().await,
        ];
        for answer in refused {
            assert_eq!((answer.status, answer.code().as_str()), (401, "admin_token_required"), "{line}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        let public = world.ask(line).bearer(TOKEN).json(&wish).send().await;
        assert!((400..500).contains(&public.status) && !public.text.contains("ended\""), "{line}: {}", public.text);
    }
    assert_eq!(rights(&world, 0, &john.tokens.access).await, JOHN);
    assert_eq!(world.ask_admin(0, "GET /admin/other").bearer(TOKEN).send().await.code(), "unknown_route");
    assert_eq!(world.ask_admin(0, "DELETE /admin/sessions").bearer(TOKEN).send().await.code(), "method_not_allowed");
    assert!(!logged().contains(TOKEN));

    let closed = World::new().await;
    for line in lines {
        let answer = closed.ask_admin(0, line).bearer(TOKEN).json(&wish).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_route"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_is_not_clear_ends_nothing() {
    let world = guarded().start().await;
    let john = world.customer().await;
    for (wish, code) in [
        (json!({}), "bad_request"),
        (json!({"tenant": "acme"}), "bad_request"),
        (json!({"all": true}), "bad_request"),
        (json!({"customer": JOHN}), "bad_request"),
        (json!({"tenant": "acme", "all": false}), "bad_request"),
        (json!({"tenant": "acme", "all": true, "customer": JOHN}), "bad_request"),
        (json!({"tenant": "acme", "customer": JOHN, "session": "0123456789abcdef"}), "bad_request"),
        (json!({"tenant": "acme", "customer": ""}), "bad_request"),
        (json!({"tenant": "acme", "customer": "1".repeat(300)}), "bad_request"),
        (json!({"tenant": "acme", "all": true, "dry_run": true}), "bad_request"),
        (json!({"session": "not-a-label"}), "bad_request"),
        (json!([1]), "bad_request"),
        (json!({"tenant": "nobody", "all": true}), "unknown_tenant"),
        (json!({"tenant": "../acme", "all": true}), "unknown_tenant"),
        (json!({"tenant": "x".repeat(5_000), "all": true}), "body_too_large"),
    ] {
        assert_eq!(revoke(&world, 0, wish.clone()).await.code(), code, "{wish}");
    }
    let text = world.ask_admin(0, "POST /admin/sessions/revoke").bearer(TOKEN).body(r#"{"tenant":"acme","all":true}"#);
    assert_eq!(text.send().await.code(), "unsupported_media_type");
    for query in ["", "?tenant=acme", "?customer=1", "?tenant=acme&customer=", "?tenant=acme&customer=1&customer=2"] {
        let answer = world.ask_admin(0, &format!("GET /admin/sessions{query}")).bearer(TOKEN).send().await;
        assert_eq!(answer.code(), "bad_request", "{query}");
    }
    assert_eq!(rights(&world, 0, &john.tokens.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_said_and_ends_nothing() {
    let world = guarded().redis().start().await;
    world.customer().await;
    world.redis().kill();
    let line = format!("GET /admin/sessions?tenant=acme&customer={JOHN}");
    let answer = world.ask_admin(0, &line).bearer(TOKEN).send().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"));
    for which in [json!({"tenant": "acme", "customer": JOHN}), json!({"tenant": "acme", "all": true})] {
        let answer = revoke(&world, 0, which).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "revocation_incomplete"));
        assert_eq!(answer.json()["ended"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_the_midst_keeps_no_other_session_from_its_end() {
    let world = guarded().redis().start().await;
    let mut names = Vec::new();
    for _ in 0..3 {
        world.customer().await;
        // The index is in the order of ends.
        world.clock.advance(Duration::from_secs(1));
        names.push(keys(&world).into_iter().find(|key| !names.contains(key)).unwrap());
    }
    let unreadable = format!("eg:{{{}}}:session", names[1]);
    world.redis().command(&format!("DEL {unreadable}"));
    world.redis().command(&format!("LPUSH {unreadable} x"));
    let answer = revoke(&world, 0, json!({"tenant": "acme", "customer": JOHN})).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "revocation_incomplete"));
    assert_eq!(answer.json()["ended"], 2);
    world.redis().command(&format!("DEL {unreadable}"));
    ends(&world, json!({"tenant": "acme", "customer": JOHN}), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_ends_with_the_others() {
    let world = guarded().redis().start().await;
    for _ in 0..3 {
        world.customer().await;
        world.clock.advance(Duration::from_secs(1));
    }
    // The oldest record is sealed under a key that is no longer known.
    world.redis().command(&format!("SETRANGE eg:{{{}}}:session 10 no", keys(&world)[0]));
    ends(&world, json!({"tenant": "acme", "customer": JOHN}), 3).await;
    assert_eq!(keys(&world), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_store_did_not_take_is_told_again_until_it_does() {
    let world = guarded().redis().replicas(2).start().await;
    let john = world.customer().await;
    assert_eq!(rights(&world, 1, &john.tokens.access).await, JOHN);
    world.redis().command("ACL SETUSER default -del");
    let answer = revoke(&world, 0, json!({"tenant": "acme", "customer": JOHN})).await;
    assert_eq!((answer.status, &answer.json()["ended"]), (503, &json!(0)), "{}", answer.text);
    assert_eq!(rights(&world, 0, &john.tokens.access).await, "session_ended", "it is refused here already");
    world.redis().command("ACL SETUSER default +del");
    eventually("the store takes it", async || keys(&world).is_empty()).await;
    eventually("it is over elsewhere", async || rights(&world, 1, &john.tokens.access).await == "session_ended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_another_customer_took_over_is_that_customers() {
    let world = guarded().redis().start().await;
    let john = world.customer().await;
    let jane = Tokens::of(&world.login(&john.visitor.access, "jane.roe@example.com").await);
    assert_eq!(labels(&world, 0, JOHN).await, Vec::<String>::new());
    assert_eq!(labels(&world, 0, JANE).await.len(), 1);
    ends(&world, json!({"tenant": "acme", "customer": JOHN}), 0).await;
    assert_eq!(rights(&world, 0, &jane.access).await, JANE);
}

/// Runs the program as an operator does.
fn program(world: &World, arguments: &[&str], token: Option<&str>) -> Output {
    let admin = format!("http://{}", world.gateway().admin);
    let mut command = Command::new(env!("CARGO_BIN_EXE_emporix-gateway"));
    command.arg("sessions").args(arguments).args(["--admin", &admin]).env_remove("EMPORIX_GATEWAY__ADMIN__TOKEN");
    if let Some(token) = token {
        command.env("EMPORIX_GATEWAY__ADMIN__TOKEN", token);
    }
    tokio::task::block_in_place(|| command.output().unwrap())
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_lists_and_ends_sessions_of_a_gateway_that_runs() {
    let world = guarded().redis().start().await;
    let (first, second) = (world.customer().await, world.customer().await);
    let visitor = world.visitor().await;
    let listing = ["list", "--tenant", "acme", "--customer", JOHN];
    let (code, table, errors) = said(&program(&world, &listing, Some(TOKEN)));
    assert_eq!(code, 0, "{errors}");
    let known = labels(&world, 0, JOHN).await;
    assert!(table.starts_with("SESSION"), "{table}");
    assert!(known.iter().all(|label| table.contains(label)) && table.lines().count() == 3, "{table}");
    assert!(table.contains("handle") && table.contains('Z'), "{table}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let from_file = [&listing[..], &["--json", "--token-file", file.path().to_str().unwrap()]].concat();
    let (code, json, errors) = said(&program(&world, &from_file, None));
    assert_eq!(code, 0, "{errors}");
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), list(&world, 0, JOHN).await);

    let ended = |arguments: &[&str]| said(&program(&world, &[&["revoke"], arguments].concat(), Some(TOKEN)));
    assert_eq!(ended(&["--session", &known[0]]).1.trim(), "ended: 1");
    let rights_now = [rights(&world, 0, &first.tokens.access).await, rights(&world, 0, &second.tokens.access).await];
    assert_eq!(rights_now.iter().filter(|rights| *rights == JOHN).count(), 1, "{rights_now:?}");
    assert_eq!(
        ended(&["--tenant", "acme", "--customer", JOHN, "--json"]).1.trim(),
        r#"{"ended":1,"tokensLeftToExpire":0}"#
    );
    assert_eq!(ended(&["--tenant", "acme", "--all"]).1.trim(), "ended: 1");
    assert_eq!(rights(&world, 0, &visitor.access).await, "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_with_its_exit_code_who_is_to_blame() {
    let world = guarded().start().await;
    let john = world.customer().await;
    let long = "1".repeat(257);
    let usage: [&[&str]; 10] = [
        &["revoke", "--session", "nothex"],
        &["revoke", "--session", "0123456789ABCDEF"],
        &["revoke", "--tenant", "no", "--all"],
        &["revoke", "--tenant", "acme", "--customer", &long],
        &["list", "--tenant", "Acme", "--customer", JOHN],
        &["revoke", "--all"],
        &["revoke", "--tenant", "acme"],
        &["revoke", "--tenant", "acme", "--all", "--customer", JOHN],
        &["revoke", "--customer", JOHN],
        &["list", "--tenant", "acme"],
    ];
    for arguments in usage {
        assert_eq!(said(&program(&world, arguments, Some(TOKEN))).0, 64, "{arguments:?}");
    }
    let all = ["revoke", "--tenant", "acme", "--all"];
    let (code, _, errors) = said(&program(&world, &all, None));
    assert!(code == 64 && errors.contains("--token-file"), "{code} {errors}");
    let missing = [&all[..], &["--token-file", "/nowhere/token"]].concat();
    assert_eq!(said(&program(&world, &missing, None)).0, 64);
    let (code, _, errors) = said(&program(&world, &all, Some("another-token-of-some-length")));
    assert!(code == 69 && errors.contains("admin_token_required"), "{code} {errors}");
    assert!(!errors.contains("another-token"), "{errors}");
    let (code, _, errors) = said(&program(&world, &["revoke", "--session", "0123456789abcdef"], Some(TOKEN)));
    assert!(code == 69 && errors.contains("unknown_session"), "{code} {errors}");
    assert_eq!(rights(&world, 0, &john.tokens.access).await, JOHN);
    let open = World::new().await;
    let (code, _, errors) = said(&program(&open, &all, Some(TOKEN)));
    assert!(code == 69 && errors.contains("it has no admin.token"), "{code} {errors}");

    let nobody = crate::world::free_port();
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let text = |port: u16| {
        format!("tenants: {{acme: {{client_id: x}}}}\nadmin: {{listen: '0.0.0.0:{port}', token: {TOKEN}}}\n")
    };
    let configured = |port: u16| {
        std::fs::write(config.path(), text(port)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_emporix-gateway"));
        command.arg("sessions").args(all).args(["--config", config.path().to_str().unwrap()]);
        said(&tokio::task::block_in_place(|| command.output().unwrap()))
    };
    let (code, _, errors) = configured(nobody);
    assert!(code == 69 && errors.contains("cannot be asked"), "{code} {errors}");
    let (code, out, errors) = configured(world.gateway().admin.port());
    assert!(code == 0 && out.trim() == "ended: 1", "address and token come from the configuration: {errors}");
}
