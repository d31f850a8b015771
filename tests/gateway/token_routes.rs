//! Anonymous login, anonymous refresh, and what holds of every token route and credential.

use std::time::Duration;

use serde_json::json;

use crate::steps::{ANONYMOUS_DUE, ANONYMOUS_LOGIN, GUEST, assert_dead, john, visiting};
use crate::world::{Answer, Tokens, World};

const ANONYMOUS_REFRESH: &str = "GET /customerlogin/auth/anonymous/refresh?tenant=acme&client_id=storefront";

async fn refresh(world: &World, handle: &str) -> Answer {
    world.ask(&format!("{ANONYMOUS_REFRESH}&refresh_token={handle}")).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_login_sends_the_configured_client_id_and_the_site() {
    let world = World::new().await;
    let line = "GET /customerlogin/auth/anonymous/login?hybris-tenant=acme&client_id=somebody-elses&currency=USD\
                &siteCode=us&language=de&targetLocation=US&unknown=x";
    let answer = world.ask(line).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), "no-store");
    let line = world.only("anonymous_login").await.line();
    for part in
        ["tenant=acme", "client_id=storefront", "currency=USD", "siteCode=us", "language=de", "targetLocation=US"]
    {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains("unknown") && !line.contains("somebody"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_visit_is_returned_again_without_asking_emporix() {
    let world = World::new().await;
    let first = world.visitor().await;
    let again = Tokens::of(&world.ask(ANONYMOUS_LOGIN).bearer(&first.access).send().await);
    assert_eq!(again.session_id, first.session_id);
    assert_ne!(again.access, first.access);
    for handle in [&first.access, &again.access] {
        assert_eq!(world.rights(handle).await, GUEST);
    }
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookies_live_visit_is_returned_again_too() {
    let world = World::new().await;
    let browser = visiting(&world).await;
    let again = browser.send(ANONYMOUS_LOGIN, |ask| ask).await;
    assert_eq!((again.status, again.cookies().len()), (200, 0));
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_differing_site_begins_a_new_visit_and_an_absent_one_does_not() {
    let world = World::new().await;
    let first = Tokens::of(&world.ask(&format!("{ANONYMOUS_LOGIN}&currency=EUR&siteCode=main")).send().await);
    let login = async |more: &str| {
        Tokens::of(&world.ask(&format!("{ANONYMOUS_LOGIN}{more}")).bearer(&first.access).send().await).session_id
    };
    assert_eq!(login("").await, first.session_id);
    assert_eq!(login("&currency=EUR").await, first.session_id);
    let other = login("&currency=USD").await;
    assert_ne!(other, first.session_id);
    assert_eq!(login("").await, other);
    let line = world.received("anonymous_login").await.last().unwrap().line();
    assert!(line.contains("currency=USD") && line.contains("siteCode=main"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_visit_leaves_the_customer_signed_in() {
    let world = World::new().await;
    let john = world.customer().await;
    let answer = world.ask(&format!("{ANONYMOUS_LOGIN}&currency=USD")).bearer(&john.visitor.access).send().await;
    assert_ne!(Tokens::of(&answer).session_id, john.visitor.session_id);
    assert_eq!(world.rights(&john.tokens.access).await, crate::steps::JOHN);
    assert_eq!(world.rights(&john.visitor.access).await, GUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_credential_is_ignored_on_anonymous_login() {
    let world = World::new().await;
    let john = world.customer().await;
    assert_eq!(world.log_out(&john.tokens.access).await.status, 204);
    for dead in [john.tokens.access.as_str(), &john.visitor.access, "eg_a_broken", "cookie.customer", "undefined"] {
        let visit = Tokens::of(&world.ask(ANONYMOUS_LOGIN).bearer(dead).send().await);
        assert_ne!(visit.session_id, john.visitor.session_id, "{dead}");
        assert_eq!(world.rights(&visit.access).await, GUEST, "{dead}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_answer_never_promises_more_than_upstreams_refresh_token_holds() {
    let world = World::new().await;
    let answer = world.ask(ANONYMOUS_LOGIN).send().await.json();
    let life = answer["expires_in"].as_u64().unwrap();
    assert!((86_000..=86_399).contains(&life), "{life}");
    assert_eq!(answer["expires_in"], answer["refresh_token_expires_in"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visit_whose_refresh_token_is_over_when_it_comes_lasts_as_long_as_its_access_token() {
    let world = World::new().await;
    world.simulator.set(json!({"anonymous_refresh_ttl": 0})).await;
    let answer = world.ask(ANONYMOUS_LOGIN).send().await;
    let life = answer.json()["expires_in"].as_u64().unwrap();
    assert!((3_500..=3_599).contains(&life), "{life}");
    let visit = Tokens::of(&answer);
    world.clock.advance(Duration::from_secs(3_500));
    assert_eq!(world.rights(&visit.access).await, GUEST);
    let again = Tokens::of(&world.ask(ANONYMOUS_LOGIN).bearer(&visit.access).send().await);
    assert_eq!(again.session_id, visit.session_id);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 0);
    world.clock.advance(Duration::from_secs(100));
    assert_ne!(world.rights(&visit.access).await, GUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_refresh_asks_emporix_only_when_due_and_keeps_the_visit() {
    let world = World::new().await;
    let first = world.visitor().await;
    let fresh = Tokens::of(&refresh(&world, &first.refresh).await);
    assert_eq!(fresh.session_id, first.session_id);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 0);
    world.clock.advance(ANONYMOUS_DUE);
    let renewed = Tokens::of(&refresh(&world, &fresh.refresh).await);
    assert_eq!(renewed.session_id, first.session_id);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 1);
    for handle in [&first.access, &fresh.access, &renewed.access] {
        assert_eq!(world.rights(handle).await, GUEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_anonymous_half_is_minted_anew_by_anonymous_refresh() {
    let world = World::new().await;
    let first = world.visitor().await;
    world.clock.advance(Duration::from_secs(2 * 86_400));
    let anew = Tokens::of(&refresh(&world, &first.refresh).await);
    assert_ne!(anew.session_id, first.session_id);
    assert_eq!(world.rights(&anew.access).await, GUEST);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_emporix_rejects_is_minted_anew() {
    let world = World::new().await;
    let first = world.visitor().await;
    world.simulator.expire("anonymous_refresh").await;
    world.clock.advance(ANONYMOUS_DUE);
    let anew = Tokens::of(&refresh(&world, &first.refresh).await);
    assert_ne!(anew.session_id, first.session_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gone_anonymous_refresh_handle_is_a_dead_token() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    assert_dead(&world.ask(ANONYMOUS_REFRESH).send().await);
    assert_dead(&refresh(&world, "eg_ar_broken").await);
    assert_dead(&refresh(&world, &tampered(&visitor.refresh)).await);
    let placeholder = world.ask(&format!("{ANONYMOUS_REFRESH}&refresh_token=cookie.anonymous-refresh"));
    assert_dead(&placeholder.header("x-emporix-gateway", "1").send().await);
    world.clock.advance(Duration::from_secs(8 * 86_400));
    assert_dead(&refresh(&world, &visitor.refresh).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deprecated_anonymous_token_earns_no_refresh_token() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let line = format!("{ANONYMOUS_REFRESH}&anonymous_token={}", visitor.access);
    let answer = world.ask(&line).send().await.json();
    assert_eq!(answer["sessionId"], visitor.session_id.as_str());
    assert!(answer["access_token"].as_str().unwrap().starts_with("eg_a_"));
    assert!(answer.get("refresh_token").is_none() && answer.get("refreshToken").is_none(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailing_slash_matches_every_token_route() {
    let world = World::new().await;
    let visit = world.ask("GET /customerlogin/auth/anonymous/login/?tenant=acme").send().await;
    let visit = Tokens::of(&visit);
    let line = format!("GET /customerlogin/auth/anonymous/refresh/?tenant=acme&refresh_token={}", visit.refresh);
    assert_eq!(world.ask(&line).send().await.status, 200);
    let login = world.ask("POST /customer/acme/login/").bearer(&visit.access).json(&john()).send().await;
    let john = Tokens::of(&login);
    let line = format!("GET /customer/acme/refreshauthtoken/?refreshToken={}", john.refresh);
    assert_eq!(world.ask(&line).send().await.status, 200);
    assert_eq!(world.ask("GET /customer/acme/logout/").bearer(&john.access).send().await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ninth_handle_of_a_type_drops_the_oldest() {
    let world = World::new().await;
    let first = world.visitor().await;
    let mut handles = vec![first.access.clone()];
    for _ in 0..8 {
        let answer = world.ask(ANONYMOUS_LOGIN).bearer(handles.last().unwrap()).send().await;
        handles.push(Tokens::of(&answer).access);
    }
    assert_eq!(world.rights(&handles[0]).await, "session_ended");
    for handle in &handles[1..] {
        assert_eq!(world.rights(handle).await, GUEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn placeholders_without_a_cookie_are_no_credential_or_a_dead_one() {
    let world = World::new().await;
    let with = |line: &'static str, token: &'static str| world.ask(line).header("x-emporix-gateway", "1").bearer(token);
    assert_eq!(with(ANONYMOUS_LOGIN, "cookie.anonymous").send().await.status, 200);
    let login = with("POST /customer/acme/login", "cookie.anonymous").json(&john()).send().await;
    assert_eq!(login.status, 200, "{}", login.text);
    for (line, token) in [
        ("GET /customer/acme/logout", "cookie.customer"),
        ("GET /customer/acme/me", "cookie.customer"),
        ("GET /customer/acme/me", "cookie.saas"),
    ] {
        assert_dead(&with(line, token).send().await);
    }
    assert_dead(&world.refresh("cookie.customer-refresh", "").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_never_changes_its_transport() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let own_origin = |line: &'static str| world.ask(line).header("sec-fetch-site", "same-origin");
    let login = own_origin("POST /customer/acme/login").bearer(&visitor.access).json(&john()).send().await;
    assert!(login.cookies().is_empty());
    assert!(Tokens::of(&login).access.starts_with("eg_c_"));

    let browser = visiting(&world).await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    let login = world.ask("POST /customer/acme/login").header("cookie", &cookie).header("x-emporix-gateway", "1");
    let login = login.json(&john()).send().await;
    assert_eq!(login.json()["access_token"], "cookie.customer");
    assert!(!login.text.contains("eg_"), "{}", login.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookies_handle_opens_nothing_elsewhere() {
    let world = World::new().await;
    let browser = visiting(&world).await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    let (name, handle) = cookie.split_once('=').unwrap();
    assert_dead(&world.ask("GET /customer/acme/me").bearer(handle).send().await);
    assert_dead(&world.ask("GET /customer/acme/me").bearer(&handle.replace("eg_k_", "eg_a_")).send().await);
    let visitor = world.visitor().await;
    for value in [visitor.access.clone(), visitor.access.replace("eg_a_", "eg_k_")] {
        let cookie = format!("{name}={value}");
        let ask = world.ask("GET /customer/acme/me").header("cookie", &cookie);
        assert_dead(&ask.header("sec-fetch-site", "same-origin").send().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_another_tenant_is_forbidden() {
    let world = World::new().await;
    let john_ = world.customer().await;
    let refused = |answer: Answer| assert_eq!((answer.status, answer.code().as_str()), (403, "tenant_mismatch"));
    refused(world.ask("POST /customer/globex/login").bearer(&john_.visitor.access).json(&john()).send().await);
    refused(world.ask("GET /customer/globex/me").bearer(&john_.tokens.access).send().await);
    refused(world.ask("GET /customer/globex/logout").bearer(&john_.tokens.access).send().await);
    let line = format!("GET /customer/globex/refreshauthtoken?refreshToken={}", john_.tokens.refresh);
    refused(world.ask(&line).send().await);
    assert_eq!(world.rights(&john_.tokens.access).await, crate::steps::JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_another_type_or_with_a_changed_byte_is_dead() {
    let world = World::new().await;
    let john = world.customer().await;
    let wrong = [
        john.tokens.refresh.clone(),
        john.visitor.refresh.clone(),
        john.saas.clone(),
        john.visitor.access.replace("eg_a_", "eg_c_"),
        john.tokens.refresh.replace("eg_cr_", "eg_c_"),
        tampered(&john.tokens.access),
    ];
    for handle in wrong {
        assert_dead(&world.ask("GET /customer/acme/me").bearer(&handle).send().await);
    }
    assert_dead(&world.refresh(&john.tokens.access, "").await);
    assert_dead(&world.refresh(&john.visitor.refresh, "").await);
    assert_dead(&refresh(&world, &john.tokens.refresh).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_contradict_each_other_are_refused() {
    let world = World::new().await;
    let (john, other) = (world.customer().await, world.visitor().await);
    let conflict = |answer: Answer| assert_eq!((answer.status, answer.code().as_str()), (400, "credential_conflict"));
    let (access, visitor) = (&john.tokens.access, &john.visitor.access);
    conflict(world.ask("GET /customer/acme/me").bearer(access).bearer(visitor).send().await);
    conflict(world.ask(&format!("GET /customer/acme/logout?accessToken={access}")).bearer(&other.access).send().await);
    let line = format!("{ANONYMOUS_REFRESH}&refresh_token={}", other.refresh);
    conflict(world.ask(&line).bearer(visitor).send().await);
    let browser = visiting(&world).await;
    let cookie = browser.cookie.lock().unwrap().clone().unwrap();
    conflict(browser.send("GET /customer/acme/me", |ask| ask.header("cookie", &cookie)).await);
    let two = format!("{cookie}; {cookie}");
    conflict(world.ask("GET /customer/acme/me").header("cookie", &two).send().await);
    let twice = format!("GET /customer/acme/logout?accessToken={access}&accessToken={access}");
    assert_eq!(world.ask(&twice).send().await.status, 400);
    assert_eq!(world.rights(access).await, crate::steps::JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_would_hand_out_raw_tokens_are_refused() {
    let world = World::new().await;
    let john = world.customer().await;
    world.simulator.forget_calls().await;
    for line in [
        "POST /oauth/token",
        "POST /oauth/token/",
        "POST /customer/acme/assisted-buying-login",
        "POST /caas-customer/acme/assisted-buying-login",
        "POST /customer/acme/newlogin",
        "GET /customerlogin/acme/anything",
    ] {
        let answer = world.ask(line).bearer(&john.tokens.access).send().await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "denied"), "{line}");
    }
    assert!(world.simulator.requests().await.is_empty());
}

/// The same handle with another secret.
pub fn tampered(handle: &str) -> String {
    let (rest, last) = handle.split_at(handle.len() - 1);
    format!("{rest}{}", if last == "A" { "B" } else { "A" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_or_placeholder_where_none_belongs_is_refused_and_goes_nowhere() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.forget_calls().await;
    for target in [
        format!("GET /customerlogin/auth/anonymous/login?tenant=acme&siteCode={}", visitor.access),
        "GET /customerlogin/auth/anonymous/login?tenant=acme&siteCode=cookie.customer".to_owned(),
        format!("POST /customer/acme/socialLogin?code=valid-code&state={}", visitor.access),
        format!("POST /customer/acme/exchangeauthtoken?subjectAccessToken={}", visitor.access),
        format!("GET /customer/acme/signup/optin/{}", visitor.access),
        format!("POST /customer/acme/login?anonymous_token={}", visitor.access),
    ] {
        let answer = world.ask(&target).bearer(&visitor.access).send().await;
        assert_eq!((answer.status, answer.code()), (400, "bad_target".to_owned()), "{target}");
    }
    assert!(world.simulator.requests().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_contradict_each_other_are_refused() {
    let world = World::new().await;
    let (mine, other) = (world.visitor().await, world.visitor().await);
    let refresh = "GET /customerlogin/auth/anonymous/refresh?tenant=acme";
    let both = world.ask(&format!("{refresh}&refresh_token={}&anonymous_token={}", mine.refresh, other.access));
    assert_eq!(both.send().await.code(), "credential_conflict");
    let own = world.ask(&format!("{refresh}&refresh_token={}&anonymous_token={}", mine.refresh, mine.access));
    assert_eq!(own.send().await.status, 200);
    let two = world.ask("GET /customerlogin/auth/anonymous/login?tenant=acme&hybris-tenant=globex");
    assert_eq!(two.send().await.code(), "tenant_mismatch");
    let ask = world.ask("GET /brand/brands").bearer(&mine.access);
    let twice = ask.header("emporix-tenant", "acme").header("emporix-tenant", "globex").send().await;
    assert_eq!((twice.status, twice.code()), (400, "bad_request".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_keeps_changing_sites_is_limited_like_one_who_keeps_coming() {
    let world = World::builder().set("LIMITS__VISITORS_PER_ADDRESS", r#"{"burst": 3, "per_minute": 1}"#).start().await;
    let visitor = world.visitor().await;
    let mut codes = Vec::new();
    for site in ["a", "b", "c", "d"] {
        let login = format!("GET /customerlogin/auth/anonymous/login?tenant=acme&siteCode={site}");
        codes.push(world.ask(&login).bearer(&visitor.access).send().await.status);
    }
    assert_eq!(codes, [200, 200, 429, 429]);
}
