//! What every session store promises: one suite, held against the embedded store and against a real Redis.
//! A store that passes may stand behind the broker; nothing here knows which one it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use emporix_gateway::clock::{Clock, ShiftedClock, SystemClock, Timestamp};
use emporix_gateway::config::{HotCacheSection, RedisSection, SealKeySection, SealSection, Secret};
use emporix_gateway::session::{
    AnonymousHalf, CustomerHalf, Handle, HandleKind, LifeLimits, SaasToken, Scope, Session, SessionKey, SiteContext,
    TenantId, Token, TokenSet, Transport, Verified,
};
use emporix_gateway::store::layered::Change;
use emporix_gateway::store::memory::MemoryStore;
use emporix_gateway::store::redis::RedisStore;
use emporix_gateway::store::seal::Keyring;
use emporix_gateway::store::{
    Alias, Collision, Cursor, CustomerName, Intent, LayeredStore, Lead, LeaseName, MOST_PER_CUSTOMER, NoteKind,
    NoteName, Owner, Saved, SessionStore, Settled, Standing, StoreError,
};
use emporix_gateway::telemetry::Metrics;

use tokio::runtime::Handle as Runtime;

use crate::world::{Redis, eventually, metric};

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(300);
const LIMITS: LifeLimits = LifeLimits { visitor_idle: HOUR, customer_idle: HOUR, absolute: HOUR, refresh_margin: 0.25 };

fn acme() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn now() -> Timestamp {
    SystemClock.now()
}

fn tokens(name: &str) -> TokenSet {
    TokenSet {
        access: Token::parse(&format!("{name}-access")).unwrap(),
        access_expires_at: now().after(HOUR),
        refresh: Token::parse(&format!("{name}-refresh")),
        refresh_expires_at: now().after(2 * HOUR),
        issued_at: now(),
        saas: None,
    }
}

pub fn session() -> Session {
    let key = SessionKey::random().unwrap();
    let mut session = Session::new(key, acme(), Transport::Handle, now(), &LIMITS);
    let context = SiteContext { currency: Some("EUR".into()), ..SiteContext::default() };
    session.set_anonymous(AnonymousHalf { tokens: tokens("guest"), session_id: "visit".into(), context });
    session
}

fn signed_in() -> (Session, Handle) {
    let mut session = session();
    let saas = SaasToken { token: Token::parse("the-jwt").unwrap(), expires_at: now().after(HOUR) };
    session.upgrade(
        CustomerHalf {
            tokens: TokenSet { saas: Some(saas), ..tokens("customer") },
            session_id: Some("visit".into()),
            customer_id: "13869000".into(),
            legal_entity_id: Some("entity".into()),
            signed_in_at: now(),
        },
        now(),
        &LIMITS,
    );
    let handle = Handle::random(HandleKind::CustomerAccess, session.key).unwrap();
    session.credentials.issue(&handle, Scope::Customer);
    (session, handle)
}

fn customer(number: u32) -> CustomerName {
    CustomerName::of(acme(), &number.to_string())
}

fn lease() -> LeaseName {
    LeaseName { key: SessionKey::random().unwrap(), scope: Scope::Customer }
}

fn intent(generation: u64) -> Intent {
    Intent { generation, started_at: now(), recoveries: 1 }
}

const ONE: Owner = [1; 16];
const TWO: Owner = [2; 16];

async fn what_is_saved_is_loaded(store: &dyn SessionStore) {
    let (session, handle) = signed_in();
    assert!(store.load(&session.key).await.unwrap().is_none(), "nothing is there before");
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Stored(1)));
    let loaded = store.load(&session.key).await.unwrap().unwrap();
    assert_eq!((loaded.revision, loaded.transport, &loaded.tenant), (1, Transport::Handle, &acme()));
    let (guest, half) = (loaded.anonymous.as_ref().unwrap(), loaded.customer.as_ref().unwrap());
    assert_eq!(guest.tokens.access.expose(), "guest-access");
    assert_eq!(guest.context.currency.as_deref(), Some("EUR"));
    assert_eq!(half.tokens.access.expose(), "customer-access");
    assert_eq!(half.tokens.refresh.as_ref().unwrap().expose(), "customer-refresh");
    assert_eq!(half.tokens.saas.as_ref().unwrap().token.expose(), "the-jwt");
    assert_eq!(half.tokens.access_expires_at, session.customer.as_ref().unwrap().tokens.access_expires_at);
    assert_eq!((half.customer_id.as_str(), half.legal_entity_id.as_deref()), ("13869000", Some("entity")));
    assert_eq!(loaded.credentials.verify(&handle, now()), Verified::Valid(Scope::Customer));
    assert_eq!((loaded.anonymous_generation, loaded.customer_generation), (1, 1));
    assert_eq!(store.save(&loaded, HOUR).await, Ok(Saved::Stored(2)));
}

async fn a_write_over_another_revision_is_a_conflict(store: &dyn SessionStore) {
    let session = session();
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Stored(1)));
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Conflict), "it is born once");
    let first = store.load(&session.key).await.unwrap().unwrap();
    assert_eq!(store.save(&first, HOUR).await, Ok(Saved::Stored(2)));
    assert_eq!(store.save(&first, HOUR).await, Ok(Saved::Conflict));
    assert_eq!(store.load(&session.key).await.unwrap().unwrap().revision, 2);
}

async fn of_many_writes_at_once_one_wins(store: &dyn SessionStore) {
    let session = session();
    store.save(&session, HOUR).await.unwrap();
    let read = store.load(&session.key).await.unwrap().unwrap();
    let (a, b, c) = tokio::join!(store.save(&read, HOUR), store.save(&read, HOUR), store.save(&read, HOUR));
    let mut saved = [a.unwrap(), b.unwrap(), c.unwrap()].map(|saved| format!("{saved:?}"));
    saved.sort();
    assert_eq!(saved, ["Conflict", "Conflict", "Stored(2)"]);
}

async fn an_end_is_absorbing(store: &dyn SessionStore) {
    let session = session();
    store.save(&session, HOUR).await.unwrap();
    let read = store.load(&session.key).await.unwrap().unwrap();
    assert_eq!(store.was_ended(&session.key).await, Ok(false));
    store.remove(&session.key, HOUR).await.unwrap();
    assert!(store.load(&session.key).await.unwrap().is_none());
    assert_eq!(store.was_ended(&session.key).await, Ok(true));
    assert_eq!(store.was_ended(&self::session().key).await, Ok(false), "being absent is not having ended");
    assert_eq!(store.save(&read, HOUR).await, Ok(Saved::Ended));
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Ended), "not even as a new one");
    store.remove(&session.key, HOUR).await.unwrap();
    assert!(store.load(&session.key).await.unwrap().is_none());
    let never_seen = self::session();
    store.remove(&never_seen.key, HOUR).await.unwrap();
    assert_eq!(store.save(&never_seen, HOUR).await, Ok(Saved::Ended), "an end may come before the birth");
}

async fn a_session_that_is_not_there_cannot_be_changed(store: &dyn SessionStore) {
    let session = Session { revision: 3, ..session() };
    assert_eq!(store.save(&session, HOUR).await, Ok(Saved::Ended));
    assert!(store.load(&session.key).await.unwrap().is_none());
}

async fn a_session_ends_with_its_life(store: &dyn SessionStore) {
    let session = session();
    store.save(&session, SOON).await.unwrap();
    let read = store.load(&session.key).await.unwrap().unwrap();
    eventually("the session is over", async || store.load(&session.key).await.unwrap().is_none()).await;
    assert_eq!(store.save(&read, HOUR).await, Ok(Saved::Ended), "an old copy does not bring it back");
}

async fn a_lease_lasts_as_long_as_its_owner_extends_it(store: &dyn SessionStore) {
    let lease = lease();
    assert_eq!(store.acquire(&lease, &ONE, SOON).await, Ok(Lead::Ours(None)));
    assert_eq!(store.extend(&lease, &TWO, HOUR).await, Ok(false));
    assert_eq!(store.extend(&lease, &ONE, 4 * SOON).await, Ok(true));
    tokio::time::sleep(2 * SOON).await;
    assert_eq!(store.acquire(&lease, &TWO, HOUR).await, Ok(Lead::Elsewhere));
    eventually("the lease runs out", async || store.acquire(&lease, &TWO, HOUR).await == Ok(Lead::Ours(None))).await;
    assert_eq!(store.extend(&lease, &ONE, HOUR).await, Ok(false), "a lost lease stays lost");
    assert_eq!(store.acquire(&lease, &ONE, HOUR).await, Ok(Lead::Elsewhere));
}

async fn a_lease_has_one_owner(store: &dyn SessionStore) {
    let lease = lease();
    assert_eq!(store.acquire(&lease, &ONE, HOUR).await, Ok(Lead::Ours(None)));
    assert_eq!(store.acquire(&lease, &TWO, HOUR).await, Ok(Lead::Elsewhere));
    assert_eq!(store.declare(&lease, &TWO, &intent(1), HOUR).await, Ok(false));
    assert_eq!(store.declare(&lease, &ONE, &intent(1), HOUR).await, Ok(true));
    store.release(&lease, &TWO, Settled::Known).await.unwrap();
    assert_eq!(store.acquire(&lease, &TWO, HOUR).await, Ok(Lead::Elsewhere), "only its owner gives it up");
    let other_half = LeaseName { scope: Scope::Anonymous, ..lease };
    assert_eq!(store.acquire(&other_half, &TWO, HOUR).await, Ok(Lead::Ours(None)), "each half has its own");
}

async fn an_intent_goes_when_its_fate_is_known_and_stays_when_not(store: &dyn SessionStore) {
    let (lease, written) = (lease(), intent(7));
    store.acquire(&lease, &ONE, HOUR).await.unwrap();
    store.declare(&lease, &ONE, &written, HOUR).await.unwrap();
    store.release(&lease, &ONE, Settled::Unknown).await.unwrap();
    assert_eq!(store.acquire(&lease, &TWO, HOUR).await, Ok(Lead::Ours(Some(written))));
    store.release(&lease, &TWO, Settled::Known).await.unwrap();
    assert_eq!(store.acquire(&lease, &ONE, HOUR).await, Ok(Lead::Ours(None)));
}

async fn a_lease_that_ran_out_shows_the_next_holder_what_was_begun(store: &dyn SessionStore) {
    let (lease, written) = (lease(), intent(9));
    store.acquire(&lease, &ONE, SOON).await.unwrap();
    store.declare(&lease, &ONE, &written, SOON).await.unwrap();
    let mut found = Lead::Elsewhere;
    eventually("the lease runs out", async || {
        found = store.acquire(&lease, &TWO, HOUR).await.unwrap();
        found != Lead::Elsewhere
    })
    .await;
    assert_eq!(found, Lead::Ours(Some(written)));
    assert_eq!(store.declare(&lease, &ONE, &intent(9), HOUR).await, Ok(false), "its first owner has lost it");
    store.release(&lease, &ONE, Settled::Known).await.unwrap();
    assert_eq!(store.acquire(&lease, &ONE, HOUR).await, Ok(Lead::Elsewhere));
}

async fn declaring_extends_a_lease(store: &dyn SessionStore) {
    let lease = lease();
    store.acquire(&lease, &ONE, SOON).await.unwrap();
    store.declare(&lease, &ONE, &intent(1), HOUR).await.unwrap();
    tokio::time::sleep(SOON + Duration::from_millis(50)).await;
    assert_eq!(store.acquire(&lease, &TWO, HOUR).await, Ok(Lead::Elsewhere));
}

async fn an_alias_names_one_session_or_none_for_good(store: &dyn SessionStore) {
    let secret = *SessionKey::random().unwrap().as_bytes();
    let alias = Alias::of(acme(), &secret);
    let [mine, other] = [(); 2].map(|()| SessionKey::random().unwrap());
    assert_eq!(store.resolve(&alias).await, Ok(None));
    store.link(&alias, &mine, Collision::Disable, HOUR).await.unwrap();
    store.link(&alias, &mine, Collision::Disable, HOUR).await.unwrap();
    assert_eq!(store.resolve(&alias).await, Ok(Some(mine)), "the same again is no collision");
    let elsewhere = Alias::of(TenantId::parse("globex").unwrap(), &secret);
    assert_eq!(store.resolve(&elsewhere).await, Ok(None), "another tenant's is another");
    store.link(&alias, &other, Collision::Disable, HOUR).await.unwrap();
    assert_eq!(store.resolve(&alias).await, Ok(None));
    for key in [mine, other] {
        store.link(&alias, &key, Collision::Disable, HOUR).await.unwrap();
        assert_eq!(store.resolve(&alias).await, Ok(None), "a collision disables it for good");
    }
}

async fn an_alias_may_keep_its_first_session(store: &dyn SessionStore) {
    let alias = Alias::of(acme(), SessionKey::random().unwrap().as_bytes());
    let [first, second] = [(); 2].map(|()| SessionKey::random().unwrap());
    for key in [first, second] {
        assert_eq!(store.link(&alias, &key, Collision::KeepFirst, HOUR).await, Ok(Some(first)));
    }
    assert_eq!(store.resolve(&alias).await, Ok(Some(first)));
}

async fn a_customer_has_sessions(store: &dyn SessionStore) {
    let (john, jane) = (customer(1), customer(2));
    assert_eq!(store.customer(&john).await.unwrap().keys, []);
    let [first, second] = [(); 2].map(|()| SessionKey::random().unwrap());
    // A login notes the session before it writes the record: none of these has one yet.
    for key in [first, second, second] {
        store.index(&john, &key, HOUR).await.unwrap();
    }
    let mut keys = store.customer(&john).await.unwrap().keys;
    keys.sort_by_key(|key| *key == second);
    assert_eq!(keys, [first, second]);
    assert_eq!(store.customer(&jane).await.unwrap().keys, []);
    assert_eq!(store.customer(&CustomerName::of(TenantId::parse("globex").unwrap(), "1")).await.unwrap().keys, []);
}

async fn the_index_says_which_session_is_one_too_many(store: &dyn SessionStore) {
    let john = customer(5);
    let [first, second, third] = [(); 3].map(|()| SessionKey::random().unwrap());
    assert_eq!(store.index(&john, &first, HOUR).await, Ok(None));
    for _ in 1..MOST_PER_CUSTOMER {
        assert_eq!(store.index(&john, &SessionKey::random().unwrap(), 3 * HOUR).await, Ok(None));
    }
    assert_eq!(store.index(&john, &second, 2 * HOUR).await, Ok(Some(first)));
    assert_eq!(store.index(&john, &third, 3 * HOUR).await, Ok(Some(second)), "the first was said before");
    let keys = store.customer(&john).await.unwrap().keys;
    assert!(keys.contains(&first) && keys.contains(&second), "they are ended with the others until they have");
    for key in [&first, &second, &third] {
        store.unindex(&john, key).await.unwrap();
    }
    assert_eq!(store.index(&john, &third, 3 * HOUR).await, Ok(None));
    assert_eq!(store.customer(&john).await.unwrap().keys.len(), MOST_PER_CUSTOMER);
}

async fn a_session_that_is_forgotten_makes_room_in_its_customers_index(store: &dyn SessionStore) {
    let (john, jane) = (customer(6), customer(7));
    let [ended, lives] = [(); 2].map(|()| SessionKey::random().unwrap());
    store.index(&john, &ended, HOUR).await.unwrap();
    store.index(&john, &lives, HOUR).await.unwrap();
    store.index(&jane, &ended, HOUR).await.unwrap();
    for _ in 0..2 {
        store.unindex(&john, &ended).await.unwrap();
        assert_eq!(store.customer(&john).await.unwrap().keys, [lives]);
    }
    assert_eq!(store.customer(&jane).await.unwrap().keys, [ended], "another's index is another");
    store.unindex(&john, &lives).await.unwrap();
    assert_eq!(store.customer(&john).await.unwrap().keys, []);
    store.unindex(&customer(8), &lives).await.unwrap();
    store.index(&john, &lives, HOUR).await.unwrap();
    assert_eq!(store.customer(&john).await.unwrap().keys, [lives], "it may come again");
}

async fn what_is_asked_twice_is_done_once(store: &dyn SessionStore) {
    let lease = LeaseName { key: SessionKey::random().unwrap(), scope: Scope::Customer };
    let owner = [7; 16];
    for _ in 0..2 {
        assert_eq!(store.acquire(&lease, &owner, HOUR).await, Ok(Lead::Ours(None)), "it is its owner's");
    }
    assert_eq!(store.acquire(&lease, &[8; 16], HOUR).await, Ok(Lead::Elsewhere));
}

async fn a_customers_session_leaves_the_index_with_its_life(store: &dyn SessionStore) {
    let john = customer(3);
    let [short, long] = [(); 2].map(|()| SessionKey::random().unwrap());
    store.index(&john, &short, SOON).await.unwrap();
    tokio::time::sleep(SOON + Duration::from_millis(50)).await;
    store.index(&john, &long, HOUR).await.unwrap();
    assert_eq!(store.customer(&john).await.unwrap().keys, [long]);
}

async fn an_epoch_is_never_lowered(store: &dyn SessionStore) {
    let john = customer(4);
    assert_eq!(store.customer(&john).await.unwrap().epoch, Timestamp::default());
    let (early, late) = (now(), now().after(HOUR));
    for (raised, known) in [(early, early), (late, late), (early, late)] {
        store.raise_epoch(&john, raised, HOUR).await.unwrap();
        assert_eq!(store.customer(&john).await.unwrap().epoch, known);
    }
}

async fn a_walk_comes_by_every_session_that_is_there(store: &dyn SessionStore) {
    let globex = TenantId::parse("globex").unwrap();
    let mut there = HashMap::new();
    for number in 0..1_200 {
        let tenant = if number % 3 == 0 { globex } else { acme() };
        let session = Session { tenant, ..session() };
        store.save(&session, HOUR).await.unwrap();
        there.insert(session.key, tenant);
    }
    let ended = *there.keys().next().unwrap();
    store.remove(&ended, HOUR).await.unwrap();
    there.remove(&ended);

    let (mut walked, mut from, mut steps) = (HashMap::new(), Some(Cursor::default()), 0);
    while let Some(cursor) = from {
        let page = store.walk(cursor).await.unwrap();
        walked.extend(page.sessions.into_iter().map(|session| (session.key, session.tenant)));
        from = page.next;
        steps += 1;
        assert!(steps < 1_000, "a walk ends");
    }
    assert!(!walked.contains_key(&ended), "what has ended is not there");
    assert!(there.iter().all(|(key, tenant)| walked.get(key) == Some(tenant)));
}

fn note(kind: NoteKind) -> NoteName {
    let [one, other] = [(); 2].map(|()| *SessionKey::random().unwrap().as_bytes());
    NoteName { tenant: acme(), kind, hash: [one, other].concat().try_into().unwrap() }
}

async fn a_note_stands_until_it_is_replaced_and_may_be_kept(store: &dyn SessionStore) {
    let name = note(NoteKind::Email);
    assert_eq!(store.noted(&name).await, Ok(None));
    for (value, standing, stands) in [
        (&b"first"[..], Standing::Keep, &b"first"[..]),
        (b"second", Standing::Keep, b"first"),
        (b"third", Standing::Replace, b"third"),
        (b"", Standing::Replace, b""),
        (b"fourth", Standing::Keep, b""),
    ] {
        store.note(&name, value, HOUR, standing).await.unwrap();
        assert_eq!(store.noted(&name).await, Ok(Some(stands.to_vec())));
    }
    let globex = TenantId::parse("globex").unwrap();
    for other in [NoteName { kind: NoteKind::MailToken, ..name.clone() }, NoteName { tenant: globex, ..name }] {
        assert_eq!(store.noted(&other).await, Ok(None), "{other:?}");
    }
}

async fn a_note_ends_with_its_life_and_keeping_it_does_not_prolong_it(store: &dyn SessionStore) {
    let name = note(NoteKind::Delivery);
    store.note(&name, b"x", SOON, Standing::Replace).await.unwrap();
    store.note(&name, b"y", HOUR, Standing::Keep).await.unwrap();
    eventually("the note is over", async || store.noted(&name).await.unwrap().is_none()).await;
    store.note(&name, b"y", HOUR, Standing::Keep).await.unwrap();
    assert_eq!(store.noted(&name).await, Ok(Some(b"y".to_vec())), "one that is over is none to keep");
}

/// What every store promises.
pub async fn holds_the_contract(store: &dyn SessionStore) {
    eventually("the store answers", async || store.ping().await.is_ok()).await;
    what_is_saved_is_loaded(store).await;
    a_write_over_another_revision_is_a_conflict(store).await;
    of_many_writes_at_once_one_wins(store).await;
    an_end_is_absorbing(store).await;
    a_session_that_is_not_there_cannot_be_changed(store).await;
    a_session_ends_with_its_life(store).await;
    a_lease_has_one_owner(store).await;
    a_lease_lasts_as_long_as_its_owner_extends_it(store).await;
    an_intent_goes_when_its_fate_is_known_and_stays_when_not(store).await;
    a_lease_that_ran_out_shows_the_next_holder_what_was_begun(store).await;
    declaring_extends_a_lease(store).await;
    an_alias_names_one_session_or_none_for_good(store).await;
    an_alias_may_keep_its_first_session(store).await;
    a_customer_has_sessions(store).await;
    the_index_says_which_session_is_one_too_many(store).await;
    a_session_that_is_forgotten_makes_room_in_its_customers_index(store).await;
    what_is_asked_twice_is_done_once(store).await;
    a_customers_session_leaves_the_index_with_its_life(store).await;
    an_epoch_is_never_lowered(store).await;
    a_walk_comes_by_every_session_that_is_there(store).await;
    a_note_stands_until_it_is_replaced_and_may_be_kept(store).await;
    a_note_ends_with_its_life_and_keeping_it_does_not_prolong_it(store).await;
}

fn redis_store(redis: &Redis) -> Arc<RedisStore> {
    tended(&RedisSection {
        url: Some(Secret::new(redis.url())),
        response_timeout: Duration::from_secs(2),
        ..RedisSection::default()
    })
}

/// The Redis store of `section`, its connection looked after.
pub fn tended(section: &RedisSection) -> Arc<RedisStore> {
    measured(section, Arc::new(Metrics::new().unwrap()))
}

/// The same, and it counts in `metrics`.
pub fn measured(section: &RedisSection, metrics: Arc<Metrics>) -> Arc<RedisStore> {
    let store = Arc::new(RedisStore::new(section, keyring(), Arc::new(SystemClock), metrics).unwrap());
    let tended = store.clone();
    tokio::spawn(async move { tended.tend().await });
    store
}

fn keyring() -> Keyring {
    let secret = Secret::new("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=".to_owned());
    let seal =
        SealSection { active: "test".into(), keys: vec![SealKeySection { id: "test".into(), secret: Some(secret) }] };
    Keyring::new(&seal).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_holds_the_contract() {
    holds_the_contract(&MemoryStore::new(Arc::new(SystemClock), 2_000).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_holds_the_contract_and_every_key_has_an_end() {
    let redis = Redis::start().await;
    let store = redis_store(&redis);
    holds_the_contract(&*store).await;
    let keys = redis.keys();
    for part in [":session", ":tombstone", ":lease:c", ":intent:c", "eg:saas:", "eg:customer:", ":epoch", "eg:note:"] {
        assert!(keys.iter().any(|key| key.contains(part)), "no {part} in {keys:?}");
    }
    for key in keys {
        let life = redis.command(&format!("PTTL {key}"));
        let millis: i64 = life.trim().trim_start_matches(':').parse().unwrap();
        assert!(millis > 0 || millis == -2, "{key} has no end: {life}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_behind_tls_with_an_acl_user_holds_the_contract() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let redis = Redis::start_with_tls("gateway", "hush-hush").await;
    let section = |password: &str| RedisSection {
        url: Some(Secret::new(redis.tls_url())),
        username: Some("gateway".into()),
        password: Some(Secret::new(password)),
        ca_file: Some(redis.certificate().into()),
        ..RedisSection::default()
    };
    let store = |section: RedisSection| tended(&section);
    holds_the_contract(&*store(section("hush-hush"))).await;
    assert!(store(section("wrong")).load(&SessionKey::random().unwrap()).await.is_err());
    let distrustful = RedisSection { ca_file: None, ..section("hush-hush") };
    assert!(store(distrustful).load(&SessionKey::random().unwrap()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_cannot_tell_and_says_so_quickly() {
    let redis = Redis::start().await;
    let store = redis_store(&redis);
    let session = session();
    store.save(&session, HOUR).await.unwrap();
    redis.kill();
    let asked = std::time::Instant::now();
    assert!(matches!(store.load(&session.key).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.save(&session, HOUR).await, Err(StoreError::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    redis.restart().await;
    eventually("it heals", async || matches!(store.load(&session.key).await, Ok(Some(_)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_embedded_store_refuses_new_sessions_and_recovers_when_old_ones_end() {
    let clock = Arc::new(ShiftedClock::default());
    let store = MemoryStore::new(clock.clone(), 2).unwrap();
    let [first, second, third] = [(); 3].map(|()| session());
    store.save(&first, HOUR).await.unwrap();
    store.save(&second, 2 * HOUR).await.unwrap();
    assert_eq!(store.save(&third, HOUR).await, Err(StoreError::Full));
    let known = store.load(&first.key).await.unwrap().unwrap();
    assert_eq!(store.save(&known, HOUR).await, Ok(Saved::Stored(2)), "those that are in may change");
    clock.advance(HOUR);
    assert_eq!(store.save(&third, HOUR).await, Ok(Saved::Stored(1)));
    assert!(store.load(&second.key).await.unwrap().is_some(), "what lives stays");
    store.remove(&second.key, HOUR).await.unwrap();
    assert_eq!(store.save(&session(), HOUR).await, Ok(Saved::Stored(1)), "an end makes room at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_embedded_store_lets_go_of_the_note_that_ends_first() {
    let store = MemoryStore::new(Arc::new(SystemClock), 3).unwrap();
    let [address, one, two, three] = [(); 4].map(|()| note(NoteKind::Email));
    store.note(&address, b"a", 9 * HOUR, Standing::Replace).await.unwrap();
    for (name, hours) in [(&one, 1), (&two, 2), (&three, 3)] {
        store.note(name, b"t", hours * HOUR, Standing::Replace).await.unwrap();
    }
    assert_eq!(store.noted(&one).await, Ok(None));
    for name in [&address, &two, &three] {
        assert!(store.noted(name).await.unwrap().is_some());
        store.note(name, b"again", 9 * HOUR, Standing::Replace).await.unwrap();
    }
    assert!(store.noted(&two).await.unwrap().is_some(), "what is written again needs no room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_conflicts_is_counted_once() {
    let (clock, metrics) = (Arc::new(SystemClock), Arc::new(Metrics::new().unwrap()));
    let store = Arc::new(MemoryStore::new(clock.clone(), 10).unwrap());
    let layered = LayeredStore::new(store.clone(), HotCacheSection::default(), LIMITS, clock, metrics.clone());
    let session = session();
    layered.create(&session).await.unwrap();
    let mut others_write = Some(store.load(&session.key).await.unwrap().unwrap());
    let updated = layered.update(&session.key, |_| {
        if let Some(theirs) = others_write.take() {
            tokio::task::block_in_place(|| Runtime::current().block_on(store.save(&theirs, HOUR)).unwrap());
        }
        Change::Save
    });
    updated.await.unwrap().unwrap();
    let text = String::from_utf8(metrics.render()).unwrap();
    let saves = ["success", "conflict"].map(|outcome| {
        metric(&text, &format!(r#"gateway_store_operations_total{{operation="save",outcome="{outcome}"}}"#))
    });
    assert_eq!(saves, [2.0, 1.0]);
}
