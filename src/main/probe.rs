//! One probing call to Emporix, and what of its answer may be told: names, lengths and shapes, never a token.
//! No proxy of the environment is used, no redirect followed, nothing repeated.

use std::collections::BTreeSet;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use emporix_gateway::config::{Config, Secret, TenantSection};
use reqwest::{Client, Method, RequestBuilder, Url};
use serde_json::Value;

use super::admin::{bounded, causes, client};
use super::{FAULTY, Failure, UNAVAILABLE, plain};

/// A tenant at Emporix, and what was noticed on the way.
pub(super) struct Probe {
    client: Client,
    base: Url,
    tenant: String,
    client_id: String,
    rate_headers: Mutex<BTreeSet<String>>,
}

/// What came back.
pub(super) struct Answer {
    /// Its status; or why there is none.
    status: Result<u16, String>,
    pub(super) body: Value,
}

/// What an answer says to a question of yes or no.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Yes,
    No,
    /// Nothing: Emporix was too busy or too ill to answer, or could not be reached.
    Nothing,
}

impl Probe {
    /// The upstream of `config`, as one of its tenants.
    pub(super) fn new(config: &Config, tenant: &str, section: &TenantSection) -> Result<Self, Failure> {
        let client = client(config.identity.timeout).map_err(|error| (UNAVAILABLE, error.to_string()))?;
        let base = Url::parse(&config.upstream.base_url);
        let base = base.map_err(|error| (FAULTY, format!("upstream.base_url: {error}")))?;
        let (tenant, client_id) = (tenant.to_owned(), section.client_id.clone());
        Ok(Self { client, base, tenant, client_id, rate_headers: Mutex::default() })
    }

    /// A visitor's tokens.
    pub(super) async fn anonymous_login(&self) -> Answer {
        let query = [("tenant", self.tenant.as_str()), ("client_id", self.client_id.as_str())];
        self.call(Method::GET, "/customerlogin/auth/anonymous/login", &query, None, None).await
    }

    /// `GET /customer/{tenant}/…`
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], bearer: &Secret) -> Answer {
        self.call(Method::GET, &format!("/customer/{}/{path}", self.tenant), query, Some(bearer), None).await
    }

    /// The context of the visit that the token belongs to.
    pub(super) async fn context(&self, bearer: &Secret) -> Answer {
        self.call(Method::GET, &format!("/session-context/{}/me/context", self.tenant), &[], Some(bearer), None).await
    }

    /// A customer's sign-in.
    pub(super) async fn login(&self, email: &str, password: &str, bearer: &Secret) -> Answer {
        let body = serde_json::json!({"email": email, "password": password});
        self.call(Method::POST, &format!("/customer/{}/login", self.tenant), &[], Some(bearer), Some(body)).await
    }

    /// Names of headers that speak of rates, in any answer so far.
    pub(super) fn rate_headers(&self) -> Vec<String> {
        // A probe that panicked has told nothing.
        self.rate_headers.lock().map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        bearer: Option<&Secret>,
        body: Option<Value>,
    ) -> Answer {
        let mut url = self.base.clone();
        url.set_path(path);
        url.query_pairs_mut().extend_pairs(query);
        let mut request = self.client.request(method, url).header("accept", "application/json");
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer.expose());
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        match self.exchange(request).await {
            Ok((status, text)) => {
                Answer { status: Ok(status), body: serde_json::from_slice(&text).unwrap_or_default() }
            }
            // The address of a failed call holds tokens.
            Err(error) => Answer { status: Err(causes(&error.without_url())), body: Value::Null },
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> reqwest::Result<(u16, Vec<u8>)> {
        let answer = request.send().await?;
        let names = answer.headers().keys().map(|name| name.as_str().to_owned());
        if let Ok(mut known) = self.rate_headers.lock() {
            known.extend(names.filter(|name| ["rate", "retry", "quota"].iter().any(|word| name.contains(word))));
        }
        Ok((answer.status().as_u16(), bounded(answer).await?))
    }
}

impl Answer {
    /// Only what refuses is a no: a 429 or a 503 says nothing, nor does a web page.
    pub(super) fn word(&self) -> Word {
        match self.status {
            Ok(204) => Word::Yes,
            Ok(200..300) if self.body.is_object() => Word::Yes,
            Ok(400 | 401 | 403) => Word::No,
            _ => Word::Nothing,
        }
    }

    /// The same, of something that there may not be.
    pub(super) fn word_of_existence(&self) -> Word {
        if self.status == Ok(404) { Word::No } else { self.word() }
    }

    /// The same, where nobody knows how a no is spelled: an account may be locked.
    pub(super) fn word_of_refusal(&self) -> Word {
        match self.status {
            Ok(408 | 429) => Word::Nothing,
            Ok(400..500) => Word::No,
            _ => self.word(),
        }
    }

    /// Its status, or why there is none.
    pub(super) fn told(&self) -> String {
        match &self.status {
            Ok(status @ 200..300) if self.word() == Word::Nothing => format!("{status}, no JSON object"),
            Ok(status) => status.to_string(),
            Err(why) => why.clone(),
        }
    }

    /// A token of the answer.
    pub(super) fn token(&self, name: &str) -> Option<Secret> {
        self.body[name].as_str().filter(|text| !text.is_empty()).map(Secret::new)
    }

    /// Seconds, as a number or in a text.
    pub(super) fn seconds(&self, name: &str) -> Option<u64> {
        let value = &self.body[name];
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    }

    /// How long the `saas_token` lives from `now`, by its own word.
    pub(super) fn saas_seconds(&self, now: u64) -> Option<u64> {
        let payload = self.body["saas_token"].as_str()?.split('.').nth(1)?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        Some(claims["exp"].as_u64()?.saturating_sub(now))
    }

    /// Status, and each member's name and shape.
    pub(super) fn shape(&self) -> String {
        let Value::Object(members) = &self.body else {
            return self.status.as_ref().map_or_else(Clone::clone, |status| format!("{status}, no JSON object"));
        };
        let shown: Vec<String> =
            members.iter().map(|(name, value)| format!("{} {}", plain(name), form(name, value))).collect();
        format!("{}: {}", self.told(), shown.join(", "))
    }
}

/// A value's kind and length. A number is told only where it is a length of time, also where it is written as a text.
fn form(name: &str, value: &Value) -> String {
    let tells_time = ["expires", "idle", "time"].iter().any(|word| name.to_lowercase().contains(word));
    let is_number = |text: &str| (1..=12).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Number(number) if tells_time => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(text) if tells_time && is_number(text) => format!("text {text}"),
        Value::String(text) => format!("text of {}", text.chars().count()),
        Value::Array(items) => format!("list of {}", items.len()),
        Value::Object(members) => {
            let inner: Vec<String> =
                members.iter().map(|(name, value)| format!("{} {}", plain(name), form(name, value))).collect();
            format!("{{{}}}", inner.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_lengths_of_time_are_told() {
        for (name, value, told) in [
            ("session_idle_time", json!(120), "number 120"),
            ("refreshTokenExpiresIn", json!("86399"), "text 86399"),
            ("expires_in", json!("no-number"), "text of 9"),
            ("code", json!(7), "number"),
            ("access_token", json!("86399"), "text of 5"),
        ] {
            assert_eq!(form(name, &value), told);
        }
    }
}
