//! The steps of an authenticated API request, in its order (the first way of docs/ARCHITECTURE.md).
//! `cargo bench`; compare two commits on one machine, in one sitting.

use std::collections::HashMap;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use emporix_gateway::broker::{Broker, BrokerSettings, Demand, GuestToken, Services, Tenant};
use emporix_gateway::clock::{Clock, SystemClock, Timestamp};
use emporix_gateway::config::{HotCacheSection, RefreshAuthorizer, RefreshReuse, SaasTokenSection};
use emporix_gateway::edge::steps::Steps;
use emporix_gateway::identity::emporix::{Emporix, client};
use emporix_gateway::identity::keys::SaasVerifier;
use emporix_gateway::session::{
    CustomerHalf, Handle, HandleKind, LifeLimits, SaasToken, Scope, Session, SessionKey, SiteContext, TenantId, Token,
    TokenSet, Transport, Verified,
};
use emporix_gateway::store::memory::MemoryStore;
use emporix_gateway::store::{Alias, Collision, LayeredStore, SessionStore};
use emporix_gateway::telemetry::{Metrics, Outcome, RouteClass};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DAY: Duration = Duration::from_secs(86_400);
const LIMITS: LifeLimits = LifeLimits {
    visitor_idle: DAY.saturating_mul(7),
    customer_idle: DAY.saturating_mul(30),
    absolute: DAY.saturating_mul(90),
    refresh_margin: 0.25,
};
const TARGET: &str = "/order-v2/acme/orders";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n";

/// The gateway from the broker inwards, over a store in memory; Emporix is never called.
struct Inside {
    tenant: TenantId,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    store: Arc<MemoryStore>,
    runtime: Runtime,
}

impl Inside {
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self {
            tenant: TenantId::parse("acme").expect("a tenant's name"),
            metrics: Arc::new(Metrics::new().expect("every metric has its own name")),
            store: Arc::new(MemoryStore::new(clock.clone(), 10).expect("random bytes")),
            clock,
            runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"),
        }
    }

    /// A hot cache before the store: what is in it stays hot until the last step was timed.
    fn layered(&self) -> LayeredStore {
        let section = HotCacheSection { revalidate_after: DAY, ..HotCacheSection::default() };
        LayeredStore::new(self.store.clone(), section, LIMITS, self.clock.clone(), self.metrics.clone())
    }

    fn broker(&self) -> Arc<Broker> {
        let http = client(DAY).expect("the system's certificates");
        let identity = Emporix::new(
            http.clone(),
            DAY,
            "http://localhost",
            HashMap::new(),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let section = SaasTokenSection { accept: true, ..SaasTokenSection::default() };
        let tenant = Tenant {
            id: self.tenant,
            site: SiteContext::default(),
            saas: SaasVerifier::new(&section, http, self.clock.clone()),
            accept_jwt: section.accept,
            expose_jwt: section.expose,
            adopt_until: None,
            webhook: None,
            services: Services::default(),
            guest: GuestToken::default(),
        };
        let settings = BrokerSettings {
            refresh_authorizer: RefreshAuthorizer::Anonymous,
            refresh_reuse: RefreshReuse::Refuse,
            identity_timeout: DAY,
            lease_term: DAY,
            revoke_attempts: 1,
            most_unsaved: 1,
        };
        Broker::new(
            self.layered(),
            Arc::new(identity.expect("a URL")),
            HashMap::from([(self.tenant, tenant)]),
            settings,
            self.clock.clone(),
            self.metrics.clone(),
            self.runtime.handle().clone(),
        )
    }

    /// A customer's session as a login would have left it in the store: what opens it, and its JWT.
    fn signed_in(&self, customer_id: &str, kind: HandleKind) -> (Handle, String) {
        let (key, now) = (SessionKey::random().expect("random bytes"), self.clock.now());
        let transport = if kind == HandleKind::Cookie { Transport::Cookie } else { Transport::Handle };
        let jwt = signed_jwt(customer_id, now);
        let mut session = Session::new(key, self.tenant, transport, now, &LIMITS);
        let half = CustomerHalf {
            tokens: TokenSet {
                access: token("tpYgJPZqddEQ2zwfzNtx79noBP65"),
                access_expires_at: now.after(DAY),
                refresh: Some(token("7FnviYrxvQWYdzUVBVTvXeNAA4Jy1HPe")),
                refresh_expires_at: now.after(30 * DAY),
                issued_at: now,
                saas: Some(SaasToken { token: token(&jwt), expires_at: now.after(30 * DAY) }),
            },
            session_id: Some("6d4d4d5e-04b9-40c5-9074-4df1405c6081".to_owned()),
            customer_id: customer_id.to_owned(),
            legal_entity_id: None,
            signed_in_at: now,
        };
        session.upgrade(half, now, &LIMITS);
        let handle = Handle::random(kind, key).expect("random bytes");
        session.credentials.issue(&handle, Scope::Customer);
        let alias = Alias::of(self.tenant, jwt.as_bytes());
        self.runtime.block_on(async {
            self.store.save(&session, 30 * DAY).await.expect("room for it");
            self.store.link(&alias, &key, Collision::Disable, 30 * DAY).await.expect("room for it");
        });
        (handle, jwt)
    }
}

fn token(text: &str) -> Token {
    Token::parse(text).expect("visible characters")
}

/// As long as the JWT of docs/PERFORMANCE.md.
fn signed_jwt(customer_id: &str, now: Timestamp) -> String {
    let claims = json!({
        "iss": "emporix", "sub": customer_id, "tenant": "acme", "iat": now.seconds(),
        "exp": now.after(30 * DAY).seconds(), "jti": "x".repeat(36), "x": "x".repeat(28),
    });
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(b"x")).expect("plain claims")
}

/// A client's request that bears a credential, for the steps of the edge.
fn request(credential: (&'static str, &str)) -> Steps {
    let fields = [("host", "127.0.0.1"), ("accept", "application/json"), credential];
    Steps::new(TARGET, &fields, ANSWER).expect("a request and an answer")
}

/// What `work` comes to, which waits for nothing.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a step of the hot path waits"),
    }
}

fn hot_path(c: &mut Criterion) {
    let inside = Inside::new();
    let (cookie, _) = inside.signed_in("C0123456789", HandleKind::Cookie);
    let (handle, jwt) = inside.signed_in("C9876543210", HandleKind::CustomerAccess);
    let (cookie_text, handle_text) = (cookie.to_text(), handle.to_text());
    let by_cookie = request(("cookie", &format!("__Host-emporix-session={}", *cookie_text)));
    let by_handle = request(("authorization", &format!("Bearer {}", *handle_text)));
    let by_jwt = request(("authorization", &format!("Bearer {jwt}")));

    c.bench_function("parse the target", |b| b.iter(|| black_box(&by_cookie).parse_target()));
    let path = by_cookie.parse_target().expect("a plain target");
    c.bench_function("find the route", |b| b.iter(|| by_cookie.find_route(black_box(path))));
    let demand = by_cookie.find_route(path).map(|demand| Demand { tenant: Some(&inside.tenant), ..demand });
    let demand = demand.expect("a route to the API");

    c.bench_function("find the credential in the cookie", |b| b.iter(|| black_box(&by_cookie).find_credential()));
    c.bench_function("find the credential in Authorization", |b| b.iter(|| black_box(&by_handle).find_credential()));
    c.bench_function("parse a handle", |b| b.iter(|| Handle::parse(black_box(cookie_text.as_bytes()))));

    let (store, now) = (inside.layered(), inside.clock.now());
    let ready = inside.runtime.block_on(store.load(&cookie.key)).expect("a store that answers").expect("a session");
    assert_eq!(ready.verify(&cookie, now), Verified::Valid(Scope::Customer));
    c.bench_function("get the session from the hot cache", |b| {
        b.iter(|| store.get(black_box(&cookie.key), now).expect("it is hot"));
    });
    c.bench_function("verify a handle", |b| b.iter(|| ready.verify(black_box(&cookie), now)));
    c.bench_function("tell the freshness", |b| b.iter(|| ready.freshness(black_box(Scope::Customer), now)));
    c.bench_function("share the header", |b| b.iter(|| ready.half(Scope::Customer).map(|half| half.bearer.clone())));

    let broker = inside.broker();
    for (request, held) in [(&by_cookie, "the cookie"), (&by_handle, "a handle"), (&by_jwt, "the saas_token")] {
        let credential = request.find_credential();
        let authenticate = || broker.authenticate(black_box(&demand), credential.as_ref());
        inside.runtime.block_on(authenticate()).expect("a session that was not hot");
        c.bench_function(&format!("authenticate by {held}"), |b| {
            b.iter(|| at_once(authenticate()).expect("a hot session"));
        });
    }

    let permit = inside.runtime.block_on(broker.authenticate(&demand, by_cookie.find_credential().as_ref()));
    let permit = permit.expect("a hot session");
    c.bench_function("write the head to the API", |b| {
        b.iter(|| by_cookie.write_outgoing(black_box(&permit)).expect("a head"));
    });
    c.bench_function("turn the API's head into the client's", |b| {
        b.iter(|| by_cookie.turn_incoming(black_box(&permit)).expect("a head"));
    });
    c.bench_function("count the finished request", |b| {
        b.iter(|| {
            inside.metrics.finished(None, black_box(RouteClass::Customer), Outcome::Success, Duration::from_millis(1));
        });
    });
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
