//! Micro benches of the steps that every authenticated request takes.
//! `cargo bench`; compare two commits on one machine, in one sitting.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use emporix_gateway::clock::Timestamp;
use emporix_gateway::session::{
    AnonymousHalf, Handle, HandleKind, LifeLimits, ReadySession, Scope, Session, SessionKey, SiteContext, TenantId,
    Token, TokenSet, Transport,
};

const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
const LIMITS: LifeLimits = LifeLimits {
    visitor_idle: Duration::from_secs(604_800),
    customer_idle: Duration::from_secs(2_592_000),
    absolute: Duration::from_secs(7_776_000),
    refresh_margin: 0.25,
};

fn session() -> (ReadySession, Handle) {
    let key = SessionKey::from_bytes([7; 16]);
    let tenant = TenantId::parse("acme").expect("a tenant name");
    let mut session = Session::new(key, tenant, Transport::Cookie, NOW, &LIMITS);
    session.set_anonymous(AnonymousHalf {
        tokens: TokenSet {
            access: Token::parse("tpYgJPZqddEQ2zwfzNtx79noBP65").expect("a token"),
            access_expires_at: NOW.after(Duration::from_secs(3_599)),
            refresh: Token::parse("7FnviYrxvQWYdzUVBVTvXeNAA4Jy1HPe"),
            refresh_expires_at: NOW.after(Duration::from_secs(86_399)),
            issued_at: NOW,
            saas: None,
        },
        session_id: "6d4d4d5e-04b9-40c5-9074-4df1405c6081".to_owned(),
        context: SiteContext::default(),
    });
    let handle = Handle::random(HandleKind::Cookie, key).expect("random bytes");
    session.credentials.issue(&handle, Scope::Anonymous);
    (ReadySession::of(&session, NOW, &LIMITS), handle)
}

fn hot_path(c: &mut Criterion) {
    let (ready, handle) = session();
    let text = handle.to_text();
    c.bench_function("parse a handle", |b| b.iter(|| Handle::parse(black_box(text.as_bytes()))));
    c.bench_function("verify a handle", |b| b.iter(|| ready.verify(black_box(&handle), NOW)));
    c.bench_function("tell the freshness", |b| b.iter(|| ready.freshness(black_box(Scope::Anonymous), NOW)));
    c.bench_function("share the header", |b| b.iter(|| ready.half(Scope::Anonymous).map(|half| half.bearer.clone())));
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
