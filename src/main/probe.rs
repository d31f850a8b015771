//! One probing call to Emporix, and what of its answer may be told: names, lengths and shapes, never a token.
//! No proxy of the environment is used, no redirect followed, nothing repeated.

use std::collections::BTreeSet;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use emporix_gateway::config::{Config, Secret, TenantSection};
use reqwest::{Client, Method, Url};
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
    pub(super) status: u16,
    pub(super) body: Value,
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
    pub(super) async fn anonymous_login(&self) -> Result<Answer, Failure> {
        let query = [("tenant", self.tenant.as_str()), ("client_id", self.client_id.as_str())];
        self.call(Method::GET, "/customerlogin/auth/anonymous/login", &query, None, None).await
    }

    /// `GET /customer/{tenant}/…`
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)], bearer: &Secret) -> Result<Answer, Failure> {
        self.call(Method::GET, &format!("/customer/{}/{path}", self.tenant), query, Some(bearer), None).await
    }

    /// A customer's sign-in.
    pub(super) async fn login(&self, email: &str, password: &str, bearer: &Secret) -> Result<Answer, Failure> {
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
    ) -> Result<Answer, Failure> {
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
        // The address of a failed call holds tokens.
        let failed =
            |error: reqwest::Error| (UNAVAILABLE, format!("Emporix cannot be asked: {}", causes(&error.without_url())));
        let answer = request.send().await.map_err(failed)?;
        let names = answer.headers().keys().map(|name| name.as_str().to_owned());
        if let Ok(mut known) = self.rate_headers.lock() {
            known.extend(names.filter(|name| ["rate", "retry", "quota"].iter().any(|word| name.contains(word))));
        }
        let status = answer.status().as_u16();
        let text = bounded(answer).await.map_err(failed)?;
        Ok(Answer { status, body: serde_json::from_slice(&text).unwrap_or_default() })
    }
}

impl Answer {
    pub(super) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
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
        let Value::Object(members) = &self.body else { return format!("{}, no JSON object", self.status) };
        let shown: Vec<String> =
            members.iter().map(|(name, value)| format!("{} {}", plain(name), form(name, value))).collect();
        format!("{}: {}", self.status, shown.join(", "))
    }
}

/// A value's kind and length. A number is told only where it is a length of time.
fn form(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Number(number) if name.to_lowercase().contains("expires") => format!("number {number}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(text) => format!("text of {}", text.chars().count()),
        Value::Array(items) => format!("list of {}", items.len()),
        Value::Object(members) => {
            let inner: Vec<String> =
                members.iter().map(|(name, value)| format!("{} {}", plain(name), form(name, value))).collect();
            format!("{{{}}}", inner.join(", "))
        }
    }
}
