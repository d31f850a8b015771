//! Emporix' token endpoints, spoken over HTTP. Each call is made once: nothing repeats, redirects or decompresses.
//! Secrets travel in these URLs, so no URL of this file is ever logged or put into an error.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use url::form_urlencoded::Serializer;

use super::answer::{is_identifier, lifetime, read_error, read_retry_after};
use super::breaker::Breakers;
use super::{Grant, IdentityError, IdentityProvider, Introspection, Issued, ServiceClient};
use crate::clock::{Clock, Timestamp};
use crate::session::{SiteContext, TenantId, Token};
use crate::telemetry::trace::{self, SpanKind, spanned};
use crate::telemetry::{CallOutcome, EmporixCall, Label, Metrics};

/// How long after its time an answer is still looked for: one that came while this process stood still lies unread, and
/// may hold the only valid token.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// The library's own bound on a call, which must not be the first to see that time is over: [`within`] is the bound.
const OUT_OF_THE_WAY: Duration = Duration::from_secs(86_400);

/// Largest answer of a token endpoint that is read, in bytes.
const MOST_ANSWER_BYTES: usize = 64 * 1024;

/// Speaks to Emporix.
pub struct Emporix {
    client: Client,
    timeout: Duration,
    base: Url,
    client_ids: HashMap<TenantId, String>,
    breakers: Breakers,
    queues: HashMap<TenantId, Queue>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

/// The HTTP client of token calls: pooled, bounded, no redirects, no proxy from the environment, no repetition.
///
/// # Errors
/// When the system offers no certificates to trust.
pub fn client(timeout: Duration) -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .http1_only()
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(Duration::from_secs(20))
        .pool_max_idle_per_host(64)
        .user_agent(concat!("emporix-gateway/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Emporix {
    /// Emporix at `base_url`, with each tenant's `client_id`; calls last no longer than `timeout`.
    ///
    /// # Errors
    /// When `base_url` is no URL.
    pub fn new(
        client: Client,
        timeout: Duration,
        base_url: &str,
        client_ids: HashMap<TenantId, String>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, url::ParseError> {
        let breakers = Breakers::new(client_ids.keys(), clock.clone(), metrics.clone());
        let base = Url::parse(base_url)?;
        let queues = client_ids.keys().map(|tenant| (*tenant, Queue::default())).collect();
        Ok(Self { client, timeout, base, client_ids, breakers, queues, clock, metrics })
    }

    fn url<'q>(&self, path: &[&str], query: impl IntoIterator<Item = (&'q str, Option<&'q str>)>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        let mut pairs = url.query_pairs_mut();
        for (name, value) in query {
            if let Some(value) = value {
                pairs.append_pair(name, value);
            }
        }
        drop(pairs);
        if url.query() == Some("") {
            url.set_query(None);
        }
        url
    }

    fn client_id(&self, tenant: &TenantId) -> Option<&str> {
        self.client_ids.get(tenant).map(String::as_str)
    }

    /// Makes the call once, if its breaker allows, and reads its whole answer.
    async fn call(&self, tenant: &TenantId, call: EmporixCall, request: Call<'_>) -> Result<Vec<u8>, IdentityError> {
        let leave = self.breakers.ask(tenant, call)?;
        let queue = self.queues.get(tenant).ok_or(IdentityError::Failed("an unknown tenant"))?;
        let turn = queue.turn().await;
        let _turn = turn.inspect_err(|_| self.metrics.emporix_calls.count(call, CallOutcome::Unavailable))?;
        // What piled up before the breaker opened is held back as well.
        let leave = if leave.probes { leave } else { self.breakers.ask(tenant, call)? };
        let started = Instant::now();
        let exchange = async {
            let answer = within(self.timeout, self.exchange(request)).await;
            answer.unwrap_or(Err(IdentityError::Unknown("no answer in time")))
        };
        let answer = spanned(("emporix", call.text()), SpanKind::Client, exchange).await;
        leave.settle(&answer);
        self.metrics.emporix_seconds.record_at(trace::current().as_ref(), call, started.elapsed());
        let outcome = match &answer {
            Ok(_) => CallOutcome::Success,
            Err(IdentityError::Refused(_) | IdentityError::AuthorizerRefused) => CallOutcome::Refused,
            Err(IdentityError::Unknown(_) | IdentityError::BrokenOff | IdentityError::Unreadable(_)) => {
                CallOutcome::Unknown
            }
            Err(_) => CallOutcome::Unavailable,
        };
        self.metrics.emporix_calls.count(call, outcome);
        answer
    }

    async fn exchange(&self, call: Call<'_>) -> Result<Vec<u8>, IdentityError> {
        let mut request = self
            .client
            .request(call.method, call.url)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .timeout(OUT_OF_THE_WAY);
        if let Some(authorizer) = call.authorizer {
            request = request.header(AUTHORIZATION, authorizer.to_bearer());
        }
        if let Some(session_id) = call.session_id {
            request = request.header("session-id", session_id);
        }
        for (name, value) in trace::headers() {
            request = request.header(name, value);
        }
        request = match call.body {
            Some(Body::Json(body)) => request.header(CONTENT_TYPE, "application/json").body(body.to_string()),
            Some(Body::Form(form)) => request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form),
            None => request,
        };
        let answer = request.send().await.map_err(|error| match () {
            () if error.is_connect() => IdentityError::Unavailable("no connection"),
            () if error.is_timeout() => IdentityError::Unknown("no answer in time"),
            () => IdentityError::Unknown("connection lost"),
        })?;
        read_answer(answer, self.clock.now()).await
    }

    async fn issue(&self, tenant: &TenantId, call: EmporixCall, request: Call<'_>) -> Result<Issued, IdentityError> {
        let body = self.call(tenant, call, request).await?;
        Issued::read(&body, self.clock.now())
    }
}

/// Lets so many calls of one tenant be made at once, and so many wait for their turn: when Emporix returns, what has
/// piled up comes to it piece by piece.
struct Queue {
    places: Semaphore,
    turns: Semaphore,
}

impl Default for Queue {
    fn default() -> Self {
        const AT_ONCE: usize = 64;
        const WAITING: usize = 4_096;
        Self { places: Semaphore::new(AT_ONCE + WAITING), turns: Semaphore::new(AT_ONCE) }
    }
}

impl Queue {
    async fn turn(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), IdentityError> {
        const LONGEST_WAIT: Duration = Duration::from_secs(2);
        const TOO_MANY: IdentityError = IdentityError::Failed("too many calls are waiting");
        let place = self.places.try_acquire().map_err(|_| TOO_MANY)?;
        match tokio::time::timeout(LONGEST_WAIT, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok((turn, place)),
            _ => Err(TOO_MANY),
        }
    }
}

/// One HTTP request to make.
struct Call<'c> {
    method: Method,
    url: Url,
    authorizer: Option<&'c Token>,
    session_id: Option<&'c str>,
    body: Option<Body>,
}

enum Body {
    Json(Value),
    Form(String),
}

impl<'c> Call<'c> {
    const fn new(method: Method, url: Url, authorizer: Option<&'c Token>) -> Self {
        Self { method, url, authorizer, session_id: None, body: None }
    }
}

/// What `call` brings within `timeout`, or is found to have brought when the time is over.
async fn within<T>(timeout: Duration, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    match tokio::time::timeout(timeout, &mut call).await {
        Ok(brought) => Some(brought),
        Err(_) => tokio::time::timeout(LAST_LOOK, call).await.ok(),
    }
}

async fn read_answer(answer: Response, now: Timestamp) -> Result<Vec<u8>, IdentityError> {
    let status = answer.status();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| read_retry_after(value.to_str().ok()?, now));
    let encoded = answer.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    let body = read_bounded(answer, MOST_ANSWER_BYTES).await;
    if !status.is_success() {
        return Err(read_error(status.as_u16(), retry_after, &body.unwrap_or_default()));
    }
    let body = body?;
    match () {
        () if encoded => Err(IdentityError::Unreadable("a compressed answer")),
        () if status == StatusCode::NO_CONTENT || !body.is_empty() => Ok(body),
        () => Err(IdentityError::Unreadable("an empty answer")),
    }
}

/// Reads a body of no more than `most` bytes.
pub(super) async fn read_bounded(mut answer: Response, most: usize) -> Result<Vec<u8>, IdentityError> {
    let mut body = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= most => body.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(IdentityError::Unreadable("an oversized answer")),
            Err(_) => return Err(IdentityError::BrokenOff),
        }
    }
}

#[async_trait]
impl IdentityProvider for Emporix {
    fn report(&self) {
        self.breakers.report();
    }

    async fn anonymous_login(&self, tenant: &TenantId, site: &SiteContext) -> Result<Issued, IdentityError> {
        let query = [
            ("tenant", Some(tenant.as_str())),
            ("client_id", self.client_id(tenant)),
            ("currency", site.currency.as_deref()),
            ("siteCode", site.site_code.as_deref()),
            ("language", site.language.as_deref()),
            ("targetLocation", site.target_location.as_deref()),
        ];
        let url = self.url(&["customerlogin", "auth", "anonymous", "login"], query);
        let issued = self.issue(tenant, EmporixCall::AnonymousLogin, Call::new(Method::GET, url, None)).await?;
        named(issued)
    }

    async fn anonymous_refresh(&self, tenant: &TenantId, refresh: &Token) -> Result<Issued, IdentityError> {
        let query = [
            ("tenant", Some(tenant.as_str())),
            ("client_id", self.client_id(tenant)),
            ("refresh_token", Some(refresh.expose())),
        ];
        let url = self.url(&["customerlogin", "auth", "anonymous", "refresh"], query);
        self.issue(tenant, EmporixCall::AnonymousRefresh, Call::new(Method::GET, url, None)).await
    }

    async fn login(&self, tenant: &TenantId, grant: &Grant, authorizer: &Token) -> Result<Issued, IdentityError> {
        let customer = |path: &[&str]| -> Vec<String> {
            ["customer", tenant.as_str()].iter().chain(path).map(|segment| (*segment).to_owned()).collect()
        };
        let url = |path: &[&str], query: &[(&str, Option<&str>)]| {
            let path = customer(path);
            self.url(&path.iter().map(String::as_str).collect::<Vec<_>>(), query.iter().copied())
        };
        let kind = match grant {
            Grant::Password { .. } => EmporixCall::Login,
            Grant::Social { .. } => EmporixCall::SocialLogin,
            Grant::Exchange { .. } => EmporixCall::Exchange,
            Grant::OptIn { .. } => EmporixCall::OptIn,
        };
        let call = match grant {
            Grant::Password { email, password } => Call {
                body: Some(Body::Json(serde_json::json!({"email": email, "password": password.as_str()}))),
                ..Call::new(Method::POST, url(&["login"], &[]), Some(authorizer))
            },
            Grant::Social { code, redirect_uri, code_verifier, state, session_id } => {
                let query = [
                    ("code", Some(code.as_str())),
                    ("redirect_uri", redirect_uri.as_deref()),
                    ("code_verifier", code_verifier.as_ref().map(|verifier| verifier.as_str())),
                    ("state", state.as_deref()),
                ];
                let call = Call::new(Method::POST, url(&["socialLogin"], &query), Some(authorizer));
                Call { session_id: session_id.as_deref(), ..call }
            }
            Grant::Exchange { subject_access_token, config } => {
                let query =
                    [("subjectAccessToken", Some(subject_access_token.as_str())), ("config", config.as_deref())];
                Call::new(Method::POST, url(&["exchangeauthtoken"], &query), Some(authorizer))
            }
            Grant::OptIn { token } => {
                Call::new(Method::GET, url(&["signup", "optin", token.as_str()], &[]), Some(authorizer))
            }
        };
        self.issue(tenant, kind, call).await
    }

    async fn refresh(
        &self,
        tenant: &TenantId,
        refresh: &Token,
        authorizer: &Token,
        legal_entity_id: Option<&str>,
    ) -> Result<Issued, IdentityError> {
        let query = [("refreshToken", Some(refresh.expose())), ("legalEntityId", legal_entity_id)];
        let url = self.url(&["customer", tenant.as_str(), "refreshauthtoken"], query);
        self.issue(tenant, EmporixCall::Refresh, Call::new(Method::GET, url, Some(authorizer))).await
    }

    async fn revoke(&self, tenant: &TenantId, access: &Token) -> Result<(), IdentityError> {
        let url = self.url(&["customer", tenant.as_str(), "logout"], [("accessToken", Some(access.expose()))]);
        match self.call(tenant, EmporixCall::Revoke, Call::new(Method::GET, url, Some(access))).await {
            Ok(_) | Err(IdentityError::AuthorizerRefused | IdentityError::Unreadable("an empty answer")) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn service_token(&self, tenant: &TenantId, client: &ServiceClient) -> Result<Issued, IdentityError> {
        let call = Call::new(Method::POST, self.url(&["oauth", "token"], []), None);
        let call = Call { body: Some(Body::Form(client_credentials(client))), ..call };
        self.issue(tenant, EmporixCall::Service, call).await
    }

    async fn introspect(&self, tenant: &TenantId, access: &Token) -> Result<Introspection, IdentityError> {
        let get = |path: &[&str]| Call::new(Method::GET, self.url(path, []), Some(access));
        let validity = self
            .call(tenant, EmporixCall::Introspect, get(&["customer", tenant.as_str(), "validateauthtoken"]))
            .await?;
        let profile = self.call(tenant, EmporixCall::Introspect, get(&["customer", tenant.as_str(), "me"])).await?;
        let (validity, profile): (Value, Value) = (
            serde_json::from_slice(&validity).unwrap_or_default(),
            serde_json::from_slice(&profile).unwrap_or_default(),
        );
        let text = |value: &Value, name: &str| {
            let text = value.get(name)?.as_str()?;
            is_identifier(text).then(|| text.to_owned())
        };
        Ok(Introspection {
            expires_in: lifetime(validity.get("expires_in")).ok_or(IdentityError::Unreadable("no life time"))?,
            session_id: text(&validity, "sessionId"),
            customer_id: text(&profile, "customerNumber").ok_or(IdentityError::Unreadable("no customer number"))?,
            legal_entity_id: text(&validity, "legalEntityId"),
        })
    }
}

fn client_credentials(client: &ServiceClient) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials")
        .append_pair("client_id", &client.client_id)
        .append_pair("client_secret", client.client_secret.expose());
    if !client.scope.is_empty() {
        form.append_pair("scope", &client.scope);
    }
    form.finish()
}

/// A visit without an id would lose its cart.
fn named(issued: Issued) -> Result<Issued, IdentityError> {
    if issued.session_id.is_some() { Ok(issued) } else { Err(IdentityError::Unreadable("no session id")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Emporix asks for a pause in the midst of what has piled up.
    #[tokio::test]
    async fn calls_that_wait_for_their_turn_when_the_breaker_opens_are_not_made() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::TcpListener;

        const CALLS: usize = 150;
        const AT_ONCE: usize = 64;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (made, all_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, answers) = (made.clone(), all_there.clone());
        tokio::spawn(async move {
            while let Ok((mut line, _)) = listener.accept().await {
                let (counted, answers) = (counted.clone(), answers.clone());
                tokio::spawn(async move {
                    while line.read(&mut [0; 4_096]).await.is_ok_and(|length| length > 0) {
                        if counted.fetch_add(1, Ordering::Relaxed) + 1 == AT_ONCE {
                            answers.add_permits(CALLS);
                        }
                        answers.acquire().await.unwrap().forget();
                        let limited = b"HTTP/1.1 429 Limited\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
                        line.write_all(limited).await.unwrap();
                    }
                });
            }
        });
        let (acme, metrics) = (TenantId::parse("acme").unwrap(), Arc::new(Metrics::new().unwrap()));
        let (client, ids) = (client(Duration::from_secs(5)).unwrap(), HashMap::from([(acme, "storefront".to_owned())]));
        let clock = Arc::new(crate::clock::ShiftedClock::default());
        let emporix =
            Arc::new(Emporix::new(client, Duration::from_secs(5), &base, ids, clock, metrics.clone()).unwrap());
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CALLS {
            let emporix = emporix.clone();
            calls.spawn(async move { emporix.anonymous_refresh(&acme, &Token::parse("spent").unwrap()).await });
        }
        for answer in calls.join_all().await {
            assert!(matches!(answer, Err(IdentityError::RateLimited { .. })), "{answer:?}");
        }
        assert_eq!(made.load(Ordering::Relaxed), AT_ONCE);
        let text = String::from_utf8(metrics.render()).unwrap();
        let counts = |series: &str| text.lines().any(|line| line == series);
        assert!(
            counts(r#"gateway_emporix_calls_total{operation="anonymous_refresh",outcome="unavailable"} 64"#),
            "{text}"
        );
        assert!(counts(r#"gateway_breaker_events_total{dependency="anonymous_refresh",event="refused"} 86"#), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_calls_wait_for_their_turn_and_for_so_long_and_what_is_beyond_is_refused_at_once() {
        let queue = Arc::new(Queue::default());
        let mut turns = Vec::new();
        for _ in 0..64 {
            turns.push(queue.turn().await.unwrap());
        }
        let wait = || {
            let queue = queue.clone();
            tokio::spawn(async move { queue.turn().await.is_ok() })
        };
        let waiting: Vec<_> = (0..4_096).map(|_| wait()).collect();
        for _ in 0..1_000 {
            // All of them have to have asked.
            tokio::task::yield_now().await;
        }
        let asked = tokio::time::Instant::now();
        assert!(queue.turn().await.is_err());
        assert_eq!(asked.elapsed(), Duration::ZERO, "without a wait");
        for turned_away in waiting {
            assert!(!turned_away.await.unwrap());
        }
        assert_eq!(asked.elapsed().as_secs(), 2);
        let next = wait();
        tokio::task::yield_now().await;
        turns.pop();
        assert!(next.await.unwrap(), "there is room again");
    }
}
