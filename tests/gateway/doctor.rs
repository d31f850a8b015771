//! `doctor`: what it sees of a tenant, the switch that it advises, and that it tells no token and no password.

use serde_json::json;

use crate::errands::errand;
use crate::world::{World, canaries, scan};

struct Patient {
    world: World,
    folder: tempfile::TempDir,
}

impl Patient {
    async fn new(settings: serde_json::Value) -> Self {
        let patient = Self { world: World::new().await, folder: tempfile::tempdir().unwrap() };
        patient.world.simulator.set(settings).await;
        let text = format!(
            "upstream: {{base_url: 'http://{}'}}\ntenants: {{acme: {{client_id: storefront}}}}\nidentity: {{timeout: 2s}}\n",
            patient.world.simulator.address
        );
        std::fs::write(patient.file("gateway.yaml"), text).unwrap();
        std::fs::write(patient.file("password"), "password123\n").unwrap();
        patient
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Exit code and what was said, which holds no secret.
    async fn examined(&self, more: &[&str]) -> (Option<i32>, String) {
        let config = self.file("gateway.yaml");
        let (code, shown, failed) = errand(&[&["doctor", "--config", &config][..], more].concat()).await;
        let (said, mut leaks) = (shown + &failed, Vec::new());
        let secrets = [canaries(self.world.simulator.address), vec!["password123".to_owned()]].concat();
        scan("what the doctor said", said.as_bytes(), &secrets, &mut leaks);
        assert!(leaks.is_empty() && !said.contains("panicked"), "{leaks:?}\n{said}");
        (code, said)
    }

    async fn as_john(&self) -> (Option<i32>, String) {
        let password = self.file("password");
        let john = ["--tenant", "acme", "--email", "john.doe@example.com", "--password-file", &password];
        self.examined(&john).await
    }
}

fn assert_says(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "{expected}\nin\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_as_documented_needs_no_switch() {
    let patient = Patient::new(json!({})).await;
    let (code, said) = patient.as_john().await;
    assert_eq!(code, Some(0), "{said}");
    let expected = [
        "What does anonymous login answer?\n  seen    200: access_token text of 28",
        "What does a wrong password answer?\n  seen    401: message text of",
        "Is expires_in a number or a text?\n  seen    number",
        "Are camelCase fields sent?\n  seen    still sent",
        "anonymous: 200, customer: 401\n  switch  identity.refresh_authorizer: anonymous (as it is)",
        "Does the old access token die on refresh?\n  seen    it lives on (200)",
        "single use: 401\n  switch  refresh.lease: 15s (as it is: it outlasts identity.timeout, 2s; raise both together)",
        "it is fixed: 86399 s, then 86390 s",
        "; a refresh brings none",
        "204; access token dies (401), refresh token lives on (200)",
        "the customer's before: 200 (a customer's); the visitor's after: 200 (nobody's)",
        "refresh_token_expires_in number 86399",
        "Which headers speak of rates?\n  seen    none",
        "not asked\n",
    ];
    assert_says(&said, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_differs_is_told_the_switch_that_it_needs() {
    let differs = json!({
        "refresh_authorizer": "customer", "refresh_single_use": false, "camel_case": false, "raw_expires_in": "2591999",
        "saas_ttl": 60,
    });
    let patient = Patient::new(differs).await;
    let limits =
        json!({"operation": "anonymous_login", "mode": "status", "status": 429, "headers": {"x-ratelimit-limit": "1"}});
    let (code, said) = patient.as_john().await;
    assert_eq!(code, Some(0), "{said}");
    let expected = [
        "Is expires_in a number or a text?\n  seen    text",
        "Are camelCase fields sent?\n  seen    no longer sent",
        "anonymous: 401, customer: 200\n  switch  identity.refresh_authorizer: customer (CHANGE IT",
        "it works twice: 200\n  switch  none: the gateway sends each once",
    ];
    assert_says(&said, &expected);
    assert!(said.contains("it lives 60 s") || said.contains("it lives 59 s"), "{said}");
    patient.world.simulator.fault(limits).await;
    let (code, said) = patient.as_john().await;
    assert_eq!((code, said.lines().count()), (Some(69), 1), "{said}");
    assert!(said.starts_with("anonymous login could not be asked: 429"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_too_short_for_single_use_tokens_is_advised_against() {
    let patient = Patient::new(json!({"refresh_authorizer": "any"})).await;
    let short = std::fs::read_to_string(patient.file("gateway.yaml")).unwrap() + "refresh: {lease: 1s}\n";
    std::fs::write(patient.file("gateway.yaml"), short).unwrap();
    let (_, said) = patient.as_john().await;
    let expected = "switch  refresh.lease: 3s (CHANGE IT: 1s does not outlast identity.timeout, 2s,";
    assert_says(&said, &["anonymous: 200, customer: 200", expected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_customer_only_a_visitors_questions_are_asked() {
    let patient = Patient::new(json!({})).await;
    let (code, said) = patient.examined(&["--tenant", "acme"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("password answer") && said.contains("anonymous login answer"), "{said}");
    assert_eq!(patient.world.simulator.calls("login").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_one_line_and_an_exit_code() {
    let patient = Patient::new(json!({})).await;
    assert_eq!(patient.examined(&["--tenant", "nobody"]).await.0, Some(64));
    assert_eq!(patient.examined(&["--tenant", "acme", "--email", "a@b.c"]).await.0, Some(64));
    std::fs::write(patient.file("password"), "wrong-password").unwrap();
    let (code, said) = patient.as_john().await;
    assert_eq!(
        (code, said.as_str()),
        (
            Some(69),
            "the test customer's sign-in was refused: 401: message text of 31, status number, type text of 12\n"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_emporix_is_too_ill_to_answer_is_no_answer_and_no_advice() {
    const WHOSE: &str = "Whose token authorises a refresh?\n  seen    anonymous: could not be asked";
    const TWICE: &str = "Does a refresh token work twice?\n  seen    could not be asked";
    const OLD: &str = "Does the old access token die on refresh?\n  seen    it could not be asked";
    const LOGOUT: &str = "What does a logout end?\n  seen    204; access token";
    const CONTEXT: &str = "Does a logout end the session context?\n  seen    ";
    let patient = Patient::new(json!({})).await;
    let once = |operation: &str, mode: &str| json!({"operation": operation, "mode": mode, "status": 503, "times": 1});
    let busy = |operation: &str| json!({"operation": operation, "mode": "status", "status": 429});
    let well = |times: u32| json!({"operation": "refresh", "mode": "delay", "delay_ms": 0, "times": times});
    let ill = || once("refresh", "status");
    for (ailments, expected) in [
        (vec![ill()], format!("{WHOSE} (503), customer: 401\n  switch  no advice")),
        (vec![ill()], format!("{TWICE} (no refresh was answered)\n  switch  no advice")),
        (vec![busy("refresh")], format!("{WHOSE} (429), customer: could not be asked (429)\n  switch  no advice")),
        (vec![once("refresh", "hang")], format!("{WHOSE} (error sending request: operation timed out")),
        (vec![once("refresh", "html")], format!("{WHOSE} (200, no JSON object), customer: 401\n  switch  no advice")),
        (vec![once("refresh", "garbage")], format!("{WHOSE} (200, no JSON object)")),
        (vec![once("refresh", "half_body")], format!("{WHOSE} (")),
        (vec![once("refresh", "reset")], format!("{WHOSE} (error sending request")),
        (vec![well(1), ill()], "anonymous: 200, customer: could not be asked (503)".to_owned()),
        (vec![well(2), ill()], format!("{TWICE} (the refresh answered 503)\n  switch  no advice")),
        (vec![well(3), ill()], format!("{TWICE} (503)\n  switch  no advice")),
        (
            vec![well(4), ill()],
            format!("{LOGOUT} dies (401), refresh token could not be asked (503)\n  switch  no advice"),
        ),
        (vec![busy("validate")], format!("{OLD} (429)\n  switch  no advice")),
        (
            vec![busy("validate")],
            format!("{LOGOUT} could not be asked (429), refresh token lives on (200)\n  switch  no"),
        ),
        (vec![busy("logout")], format!("{CONTEXT}could not be asked (the logout answered 429)\n  switch  no advice")),
        (vec![busy("api")], format!("{CONTEXT}the customer's before: could not be asked (429); the visitor's after")),
    ] {
        for ailment in &ailments {
            patient.world.simulator.fault(ailment.clone()).await;
        }
        let (code, said) = patient.as_john().await;
        patient.world.simulator.heal().await;
        assert_eq!(code, Some(69), "{ailments:?}: {said}");
        assert!(!said.contains("CHANGE IT") && !said.contains("none fits"), "{ailments:?}: {said}");
        assert_says(&said, &[&expected, "could not be asked, or not as a whole"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_busy_from_the_start_is_one_line() {
    let patient = Patient::new(json!({})).await;
    patient.world.simulator.fault(json!({"operation": "*", "mode": "status", "status": 429})).await;
    let (code, said) = patient.as_john().await;
    assert_eq!((code, said.lines().count()), (Some(69), 1), "{said}");
    patient.world.simulator.heal().await;
    patient.world.simulator.fault(json!({"operation": "login", "mode": "status", "status": 503})).await;
    let (code, said) = patient.as_john().await;
    let expected = "the test customer's sign-in could not be asked: 503: code number, message text of 15\n";
    assert_eq!((code, said.as_str()), (Some(69), expected));
}
