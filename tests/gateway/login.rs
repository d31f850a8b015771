//! Login in its four flows: whose token authorises it, what comes back, and what never gains the customer's rights.

use std::time::Duration;

use serde_json::{Value, json};

use crate::steps::{ANONYMOUS_DUE, GUEST, JANE, JOHN, john, visiting, who};
use crate::world::{Answer, Tokens, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn login_is_authorised_by_the_visitors_own_anonymous_token() {
    let world = World::new().await;
    let first = world.visitor().await;
    let firsts = world.simulator.tokens().await;
    let _second = world.visitor().await;
    let customer = Tokens::of(&world.login(&first.access, "john.doe@example.com").await);
    let authorization = world.only("login").await.headers("authorization");
    let bearer = authorization[0].strip_prefix("Bearer ").unwrap().to_owned();
    assert!(authorization.len() == 1 && firsts.contains(&bearer));
    assert_eq!(customer.session_id, first.session_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_anonymous_token_is_renewed_once_and_unseen() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    world.simulator.expire("anonymous_access").await;
    let customer = Tokens::of(&world.login(&visitor.access, "john.doe@example.com").await);
    assert_eq!(customer.session_id, visitor.session_id);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 1);
    assert_eq!(world.simulator.calls("login").await, 2);

    let visitor = world.visitor().await;
    world.simulator.forget_calls().await;
    world.clock.advance(2 * ANONYMOUS_DUE);
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200);
    assert_eq!(world.simulator.calls("anonymous_refresh").await, 1);
    assert_eq!(world.simulator.calls("login").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_that_is_never_honoured_is_no_wrong_password() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let fault = json!({"fault": {"faultstring": "x", "detail": {"errorcode": "oauth.v2.InvalidAccessToken"}}});
    world.simulator.fault(json!({"operation": "login", "mode": "status", "status": 401, "body": fault})).await;
    let answer = world.login(&visitor.access, "john.doe@example.com").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "identity_unavailable"));
    assert_eq!(world.simulator.calls("login").await, 2);
    world.simulator.heal().await;
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_as_emporix_tells_it_and_makes_no_session() {
    let world = World::builder().redis().start().await;
    let body = json!({"email": "john.doe@example.com", "password": "wrong-password"});
    let answer = world.ask("POST /customer/acme/login").json(&body).send().await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "refused"));
    assert_eq!(answer.json()["message"], "Email or password is incorrect.");
    assert!(answer.json().get("fault").is_none());
    assert!(answer.cookies().is_empty());
    assert_eq!(world.redis.as_ref().unwrap().keys(), Vec::<String>::new());

    let visitor = world.visitor().await;
    let wrong = world.ask("POST /customer/acme/login").bearer(&visitor.access).json(&body).send().await;
    assert_eq!(wrong.status, 401);
    assert_eq!(world.rights(&visitor.access).await, GUEST);
    assert_eq!(world.login(&visitor.access, "john.doe@example.com").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn login_without_a_credential_mints_a_visit_first() {
    let world = World::new().await;
    let answer = world.ask("POST /customer/acme/login").json(&john()).send().await;
    let customer = Tokens::of(&answer);
    assert_eq!(world.simulator.calls("anonymous_login").await, 1);
    assert!(!customer.session_id.is_empty());
    assert_eq!(world.rights(&customer.access).await, JOHN);

    let browser = world.browser();
    let login = browser.login().await;
    assert_eq!((login.status, login.cookies().len()), (200, 1));
    assert_eq!(who(&browser.send("GET /customer/acme/me", |ask| ask).await), JOHN);
    assert_eq!(who(&browser.send("GET /customer/acme/me", |ask| ask.bearer("cookie.anonymous")).await), GUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_login_ends_the_first_customers_rights_here_and_upstream() {
    let world = World::new().await;
    let john = world.customer().await;
    let jane = Tokens::of(&world.login(&john.visitor.access, "jane.roe@example.com").await);
    assert_eq!(world.rights(&jane.access).await, JANE);
    assert_eq!(world.rights(&john.tokens.access).await, "session_ended");
    assert_eq!(world.refresh(&john.tokens.refresh, "").await.status, 401);
    assert_eq!(world.rights(&john.visitor.access).await, GUEST);
    eventually("upstream is told", async || world.simulator.calls("logout").await == 1).await;
    assert_eq!(world.rights(&jane.access).await, JANE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_from_before_login_never_gains_the_customers_rights() {
    let world = World::new().await;
    let john = world.customer().await;
    assert_eq!(world.rights(&john.visitor.access).await, GUEST);
    let addresses = world.ask("GET /customer/acme/me/addresses").bearer(&john.visitor.access).send().await;
    assert_eq!((addresses.status, addresses.code().as_str()), (401, "customer_required"));
    assert_eq!(world.log_out(&john.visitor.access).await.status, 401);
    assert_eq!(world.refresh(&john.visitor.access, "").await.status, 401);
    let line = format!("GET /customerlogin/auth/anonymous/refresh?tenant=acme&refresh_token={}", john.visitor.refresh);
    let renewed = Tokens::of(&world.ask(&line).send().await);
    assert!(renewed.access.starts_with("eg_a_"));
    assert_eq!(world.rights(&renewed.access).await, GUEST);
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(world.rights(&john.visitor.access).await, GUEST);
    assert_eq!(world.rights(&john.tokens.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_from_before_login_is_a_guests_for_thirty_seconds_and_then_nothing() {
    let world = World::new().await;
    let browser = visiting(&world).await;
    let old = browser.cookie.lock().unwrap().clone().unwrap();
    assert_eq!(browser.login().await.status, 200);
    assert_ne!(browser.cookie.lock().unwrap().clone().unwrap(), old);
    let with_old = async |more: &str| {
        let ask = world.ask("GET /customer/acme/me").header("cookie", &old).header("sec-fetch-site", "same-origin");
        who(&if more.is_empty() { ask.send().await } else { ask.bearer(more).send().await })
    };
    assert_eq!(with_old("").await, GUEST);
    assert_eq!(with_old("cookie.anonymous").await, GUEST);
    assert_eq!(with_old("cookie.customer").await, "session_ended");
    world.clock.advance(Duration::from_secs(31));
    assert_eq!(with_old("").await, "session_ended");
    assert_eq!(who(&browser.send("GET /customer/acme/me", |ask| ask).await), JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_answer_is_spelled_both_ways_and_keeps_emporix_types() {
    let world = World::new().await;
    for (camel_case, raw) in [(true, json!(2_591_999)), (false, json!("2591999"))] {
        world.simulator.set(json!({"camel_case": camel_case, "raw_expires_in": raw})).await;
        let answer = world.ask("POST /customer/acme/login").json(&john()).send().await;
        assert_eq!(answer.header("cache-control"), "no-store");
        let answer = answer.json();
        for (snake, camel) in [
            ("access_token", "accessToken"),
            ("refresh_token", "refreshToken"),
            ("saas_token", "saasToken"),
            ("expires_in", "expiresIn"),
            ("refresh_token_expires_in", "refreshTokenExpiresIn"),
        ] {
            assert!(!answer[snake].is_null(), "{snake}: {answer}");
            assert_eq!(answer[snake], answer[camel], "{answer}");
        }
        assert_eq!(answer["expires_in"].is_string(), raw.is_string(), "{answer}");
        assert_eq!((&answer["initialPassword"], &answer["token_type"]), (&json!(false), &json!("Bearer")));
    }
}

/// The visit of a customer, as a refresh tells it.
async fn kept_visit(world: &World, customer: &Tokens) -> String {
    Tokens::of(&world.refresh(&customer.refresh, "").await).session_id
}

const SOCIAL: &str = "POST /customer/acme/socialLogin?code=valid-code-1&redirect_uri=https%3A%2F%2Fshop.example.com\
                      &code_verifier=verifier-1&state=state-1&unknown=x";

#[tokio::test(flavor = "multi_thread")]
async fn social_login_belongs_to_its_visit_and_forwards_what_the_flow_needs() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let answer = world.ask(SOCIAL).bearer(&visitor.access).header("session-id", &visitor.session_id).send().await;
    let customer = Tokens::of(&answer);
    assert_eq!(kept_visit(&world, &customer).await, visitor.session_id, "it stays where the answer has none");
    let sent = world.only("social_login").await;
    assert_eq!(sent.headers("session-id"), [visitor.session_id.as_str()]);
    for part in ["code=valid-code-1", "redirect_uri=https", "code_verifier=verifier-1", "state=state-1"] {
        assert!(sent.line().contains(part), "{sent:?}");
    }
    assert!(!sent.line().contains("unknown"), "{sent:?}");
    assert_eq!(world.rights(&customer.access).await, JOHN);

    let answer = answer.json();
    assert!(answer["expires_in"].as_str().is_some_and(|text| text.parse::<u64>().is_ok()), "{answer}");
    assert!(answer["refresh_token_expires_in"].is_string() && answer["session_idle_time"] == 3600, "{answer}");
    assert!(!answer.as_object().unwrap().keys().any(|name| name.starts_with("social_")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn social_login_takes_the_visit_from_its_parameter_and_refuses_another_one() {
    let world = World::new().await;
    let (visitor, other) = (world.visitor().await, world.visitor().await);
    let mixed = world.ask(SOCIAL).bearer(&visitor.access).header("session-id", &other.session_id).send().await;
    assert_eq!((mixed.status, mixed.code().as_str()), (400, "bad_request"));
    assert_eq!(world.simulator.calls("social_login").await, 0);
    let line = format!("POST /customer/acme/socialLogin?code=valid-code-1&anonymous_token={}", visitor.access);
    let customer = Tokens::of(&world.ask(&line).send().await);
    assert_eq!(kept_visit(&world, &customer).await, visitor.session_id);
    assert!(!world.only("social_login").await.line().contains("anonymous_token"));
    let refused = world.ask("POST /customer/acme/socialLogin?code=bad").bearer(&visitor.access).send().await;
    assert_eq!((refused.status, refused.code().as_str()), (400, "refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_signs_in_and_never_echoes_the_subjects_token() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let line = "POST /customer/acme/exchangeauthtoken?subjectAccessToken=subject-token-of-the-provider&config=site_PL";
    let answer = world.ask(line).bearer(&visitor.access).send().await;
    let customer = Tokens::of(&answer);
    assert!(!answer.text.contains("subject"), "{}", answer.text);
    assert_eq!(
        (customer.session_id.as_str(), &answer.json()["session_idle_time"]),
        (&*visitor.session_id, &json!(120))
    );
    assert_eq!(world.rights(&customer.access).await, JANE);
    let life = answer.json()["expires_in"].as_u64().unwrap();
    assert!(life > 14_399, "the session outlives its first access token: {life}");

    for (subject, status) in [("bad-one", 401), ("unknown-one", 404)] {
        let line = format!("POST /customer/acme/exchangeauthtoken?subjectAccessToken={subject}");
        let refused = world.ask(&line).bearer(&visitor.access).send().await;
        assert_eq!((refused.status, refused.code().as_str()), (status, "refused"));
        assert!(refused.json().get("fault").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opt_in_link_signs_in_once() {
    let world = World::new().await;
    let visitor = world.visitor().await;
    let follow = async || world.ask("GET /customer/acme/signup/optin/optin-1").bearer(&visitor.access).send().await;
    let customer = Tokens::of(&follow().await);
    assert_eq!(kept_visit(&world, &customer).await, visitor.session_id);
    assert_eq!(world.rights(&customer.access).await, JOHN);
    assert_eq!(follow().await.status, 400);
    assert_eq!(world.rights(&customer.access).await, JOHN);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flow_signs_a_browser_in_with_a_new_cookie() {
    let world = World::new().await;
    for line in [
        SOCIAL,
        "POST /customer/acme/exchangeauthtoken?subjectAccessToken=subject-token",
        "GET /customer/acme/signup/optin/optin-2",
    ] {
        let browser = visiting(&world).await;
        let answer = browser.send(line, |ask| ask).await;
        assert_eq!((answer.status, answer.cookies().len()), (200, 1), "{line}: {}", answer.text);
        assert_placeholders(&answer);
        assert_ne!(who(&browser.send("GET /customer/acme/me", |ask| ask).await), GUEST);
    }
}

fn assert_placeholders(answer: &Answer) {
    let body: Value = answer.json();
    assert_eq!(body["access_token"], "cookie.customer");
    assert_eq!(body["refresh_token"], "cookie.customer-refresh");
    assert_eq!(body["saas_token"], "cookie.saas");
}
