//! Steps that several files of tests take.

use std::time::Duration;

use serde_json::json;

use crate::world::{Answer, Browser, Received, World};

pub const ANONYMOUS_LOGIN: &str = "GET /customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront";
/// Old enough for an anonymous token to be due, and young enough for it to live.
pub const ANONYMOUS_DUE: Duration = Duration::from_secs(2_800);
/// Old enough for a customer's tokens to be due; the anonymous half beside them can still be renewed.
pub const CUSTOMER_DUE: Duration = Duration::from_secs(66_000);

impl World {
    /// What upstream received of `operation`, oldest first.
    pub async fn received(&self, operation: &str) -> Vec<Received> {
        let requests = self.simulator.requests().await.into_iter();
        requests.filter(|request| request["operation"] == operation).map(Received).collect()
    }

    /// The one request of `operation` that upstream received.
    pub async fn only(&self, operation: &str) -> Received {
        let mut received = self.received(operation).await;
        assert_eq!(received.len(), 1, "{operation}: {received:?}");
        received.remove(0)
    }

    /// Whose rights `handle` has: the customer number that `me` shows, or the code of the refusal.
    pub async fn rights(&self, handle: &str) -> String {
        who(&self.ask("GET /customer/acme/me").bearer(handle).send().await)
    }

    pub async fn refresh(&self, handle: &str, more: &str) -> Answer {
        self.ask(&format!("GET /customer/acme/refreshauthtoken?refreshToken={handle}{more}")).send().await
    }

    pub async fn log_out(&self, handle: &str) -> Answer {
        self.ask("GET /customer/acme/logout").bearer(handle).send().await
    }
}

/// The customer number of a profile, or the code of the refusal.
pub fn who(answer: &Answer) -> String {
    if answer.status == 200 { answer.json()["customerNumber"].as_str().unwrap().to_owned() } else { answer.code() }
}

pub const GUEST: &str = "00000000";
pub const JOHN: &str = "13869000";
pub const JANE: &str = "C0033";

/// Fails unless `answer` is the 401 that clients of Emporix take for a dead token.
pub fn assert_dead(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (401, "session_ended"), "{}", answer.text);
    assert_eq!(
        answer.json()["fault"]["detail"]["errorcode"],
        "keymanagement.service.access_token_expired",
        "{}",
        answer.text
    );
}

pub fn john() -> serde_json::Value {
    json!({"email": "john.doe@example.com", "password": "password123"})
}

/// A browser that has visited.
pub async fn visiting(world: &World) -> Browser<'_> {
    let browser = world.browser();
    assert_eq!(browser.send(ANONYMOUS_LOGIN, |ask| ask).await.json()["access_token"], "cookie.anonymous");
    browser
}

/// A customer's real token, as a shop without the gateway would hold it.
pub async fn real_customer_token(world: &World) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let base = format!("http://{}", world.simulator.address);
    let url = format!("{base}/customerlogin/auth/anonymous/login?tenant=acme&client_id=storefront");
    let guest: serde_json::Value =
        serde_json::from_slice(&client.get(url).send().await.unwrap().bytes().await.unwrap()).unwrap();
    let login = client
        .post(format!("{base}/customer/acme/login"))
        .bearer_auth(guest["access_token"].as_str().unwrap())
        .header("content-type", "application/json")
        .body(john().to_string());
    let login: serde_json::Value = serde_json::from_slice(&login.send().await.unwrap().bytes().await.unwrap()).unwrap();
    world.simulator.forget_calls().await;
    login["access_token"].as_str().unwrap().to_owned()
}
