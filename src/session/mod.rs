//! What a session is: one visitor's tokens, credentials and clocks. Pure: no I/O, no async, no clock of its own.
//! Every change of a session is a method here, so that a store conflict can be answered by applying it again.

pub mod credential;
pub mod label;
pub mod ready;
pub mod saas_token;
pub mod tenant;
pub mod tokens;

use std::time::Duration;

use minicbor::{Decode, Encode};

pub use credential::{Credentials, Handle, HandleKind, SecretHash, SessionKey, Verified};
pub use label::{CustomerLabel, LabelKeys, SessionLabel};
pub use ready::{ReadyCustomer, ReadyHalf, ReadySession};
pub use tenant::TenantId;
pub use tokens::{Freshness, Lifetime, SaasToken, Token, TokenSet};

use crate::clock::Timestamp;

/// Whose rights: the guest's or the signed-in customer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Scope {
    /// The guest's.
    #[n(0)]
    Anonymous,
    /// The signed-in customer's.
    #[n(1)]
    Customer,
}

/// How a session's credentials travel; fixed when the session is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Transport {
    /// In the browser's cookie; token fields hold placeholders.
    #[n(0)]
    Cookie,
    /// In the token fields, as handles.
    #[n(1)]
    Handle,
}

/// The site a visitor looks at, as given at anonymous login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct SiteContext {
    /// ISO 4217 code.
    #[n(0)]
    pub currency: Option<String>,
    /// Emporix site.
    #[n(1)]
    pub site_code: Option<String>,
    /// Language of answers.
    #[n(2)]
    pub language: Option<String>,
    /// Country code.
    #[n(3)]
    pub target_location: Option<String>,
}

impl SiteContext {
    /// Whether `asked` names anything other than this context does; an absent parameter is no difference.
    #[must_use]
    pub fn differs_from(&self, asked: &Self) -> bool {
        let differs = |own: &Option<String>, asked: &Option<String>| asked.is_some() && own != asked;
        differs(&self.currency, &asked.currency)
            || differs(&self.site_code, &asked.site_code)
            || differs(&self.language, &asked.language)
            || differs(&self.target_location, &asked.target_location)
    }

    /// This context with what `asked` names put in its place.
    #[must_use]
    pub fn overlaid(&self, asked: Self) -> Self {
        Self {
            currency: asked.currency.or_else(|| self.currency.clone()),
            site_code: asked.site_code.or_else(|| self.site_code.clone()),
            language: asked.language.or_else(|| self.language.clone()),
            target_location: asked.target_location.or_else(|| self.target_location.clone()),
        }
    }
}

/// The guest's half of a session.
#[derive(Clone, Debug, Encode, Decode)]
pub struct AnonymousHalf {
    /// The guest's tokens.
    #[n(0)]
    pub tokens: TokenSet,
    /// Emporix' id of the visit: the cart hangs on it.
    #[n(1)]
    pub session_id: String,
    /// The site the tokens were issued for.
    #[n(2)]
    pub context: SiteContext,
}

/// The customer's half of a session.
#[derive(Clone, Debug, Encode, Decode)]
pub struct CustomerHalf {
    /// The customer's tokens.
    #[n(0)]
    pub tokens: TokenSet,
    /// Emporix' id of the visit, where it told one.
    #[n(1)]
    pub session_id: Option<String>,
    /// The customer number.
    #[n(2)]
    pub customer_id: String,
    /// The legal entity a B2B customer acts for; sent again on every refresh.
    #[n(3)]
    pub legal_entity_id: Option<String>,
    /// When the customer signed in.
    #[n(4)]
    pub signed_in_at: Timestamp,
}

/// The gateway's own caps on a session's life.
#[derive(Clone, Copy, Debug)]
pub struct LifeLimits {
    /// An unused visitor session ends after this.
    pub visitor_idle: Duration,
    /// An unused customer session ends after this.
    pub customer_idle: Duration,
    /// A customer session ends this long after it was signed in, a visitor session this long after it began.
    pub absolute: Duration,
    /// Share of a token set's life that is left when renewal is due, 0 to 1.
    pub refresh_margin: f64,
}

/// One visitor's state in one tenant.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Session {
    /// Names the record.
    #[n(0)]
    pub key: SessionKey,
    /// The tenant whose tokens these are.
    #[n(1)]
    pub tenant: TenantId,
    /// How its credentials travel.
    #[n(2)]
    pub transport: Transport,
    /// The guest's half.
    #[n(3)]
    pub anonymous: Option<AnonymousHalf>,
    /// The customer's half, once signed in.
    #[n(4)]
    pub customer: Option<CustomerHalf>,
    /// What opens it.
    #[n(5)]
    pub credentials: Credentials,
    /// When it was last used, to the precision of [`Session::touch_due_at`].
    #[n(6)]
    pub last_seen_at: Timestamp,
    /// Its absolute end.
    #[n(7)]
    pub ends_at: Timestamp,
    /// Changes with the guest's token set and nothing else.
    #[n(8)]
    pub anonymous_generation: u64,
    /// Changes with the customer's token set and nothing else.
    #[n(9)]
    pub customer_generation: u64,
    /// Counts the record's writes; the store refuses a write over another revision than the one read.
    #[n(10)]
    pub revision: u64,
}

impl Session {
    /// How long a replaced cookie or refresh handle still works, for requests in flight.
    pub const REPLACEMENT_GRACE: Duration = Duration::from_secs(30);

    /// A new session without tokens.
    #[must_use]
    pub fn new(key: SessionKey, tenant: TenantId, transport: Transport, now: Timestamp, limits: &LifeLimits) -> Self {
        Self {
            key,
            tenant,
            transport,
            anonymous: None,
            customer: None,
            credentials: Credentials::default(),
            last_seen_at: now,
            ends_at: now.after(limits.absolute),
            anonymous_generation: 0,
            customer_generation: 0,
            revision: 0,
        }
    }

    /// When the session ends unless it is used again.
    #[must_use]
    pub fn expires_at(&self, limits: &LifeLimits) -> Timestamp {
        let idle = if self.customer.is_some() { limits.customer_idle } else { limits.visitor_idle };
        self.last_seen_at.after(idle).min(self.ends_at)
    }

    /// When the handles of `scope` end unless they are used again: never later than the tokens behind them can be renewed.
    #[must_use]
    pub fn scope_expires_at(&self, scope: Scope, limits: &LifeLimits) -> Timestamp {
        self.tokens(scope).map_or_else(Timestamp::default, |tokens| {
            self.expires_at(limits).min(tokens.lifetime(limits.refresh_margin).ends_at())
        })
    }

    /// When the next use of the session is worth recording: uses are recorded to a tenth of the idle time at least.
    #[must_use]
    pub fn touch_due_at(&self, limits: &LifeLimits) -> Timestamp {
        const PRECISION: Duration = Duration::from_secs(600);
        let idle = if self.customer.is_some() { limits.customer_idle } else { limits.visitor_idle };
        self.last_seen_at.after(PRECISION.min(idle / 10))
    }

    /// When the customer who is signed in signed in: tells one customer's half from the next one's.
    #[must_use]
    pub fn signed_in_at(&self) -> Option<Timestamp> {
        self.customer.as_ref().map(|half| half.signed_in_at)
    }

    /// The tokens of `scope`.
    #[must_use]
    pub fn tokens(&self, scope: Scope) -> Option<&TokenSet> {
        match scope {
            Scope::Anonymous => self.anonymous.as_ref().map(|half| &half.tokens),
            Scope::Customer => self.customer.as_ref().map(|half| &half.tokens),
        }
    }

    /// The generation of `scope`'s token set.
    #[must_use]
    pub const fn generation(&self, scope: Scope) -> u64 {
        match scope {
            Scope::Anonymous => self.anonymous_generation,
            Scope::Customer => self.customer_generation,
        }
    }

    /// Emporix' session id of `scope`'s half.
    #[must_use]
    pub fn session_id(&self, scope: Scope) -> Option<&str> {
        match scope {
            Scope::Anonymous => self.anonymous.as_ref().map(|half| half.session_id.as_str()),
            Scope::Customer => self.customer.as_ref().and_then(|half| half.session_id.as_deref()),
        }
    }

    /// Puts the guest's half in place of the present one.
    pub fn set_anonymous(&mut self, half: AnonymousHalf) {
        self.anonymous = Some(half);
        self.anonymous_generation += 1;
    }

    /// Signs a customer in. What opened the session before keeps anonymous rights at most: a handle by its kind,
    /// the cookie until its grace is over; a customer signed in before loses every credential.
    pub fn upgrade(&mut self, half: CustomerHalf, now: Timestamp, limits: &LifeLimits) {
        self.end_customer();
        self.credentials.retire_cookies(now.after(Self::REPLACEMENT_GRACE));
        self.last_seen_at = now;
        self.ends_at = now.after(limits.absolute);
        self.customer = Some(half);
        self.customer_generation += 1;
    }

    /// Takes the sign-in of `signed_in_at` back: nobody was given its credentials. The cookie that it retired stays.
    pub fn revert_sign_in(&mut self, signed_in_at: Timestamp) {
        self.end_customer();
        self.credentials.reinstate_cookies(signed_in_at.after(Self::REPLACEMENT_GRACE));
    }

    /// Puts renewed customer tokens in place; the `saas_token` is carried over, for a refresh issues none.
    pub fn renew_customer(&mut self, renewed: TokenSet, session_id: Option<String>, legal_entity_id: Option<String>) {
        if let Some(half) = &mut self.customer {
            let saas = half.tokens.saas.take();
            half.tokens = TokenSet { saas, ..renewed };
            half.session_id = session_id.or_else(|| half.session_id.take());
            half.legal_entity_id = legal_entity_id;
            self.customer_generation += 1;
        }
    }

    /// Ends the customer's half. The visitor's half stays, and so does the cookie, with a visitor's rights.
    pub fn end_customer(&mut self) {
        if self.customer.take().is_some() {
            self.customer_generation += 1;
        }
        for kind in [HandleKind::CustomerAccess, HandleKind::CustomerRefresh, HandleKind::Saas] {
            self.credentials.forget(kind);
        }
        self.credentials.demote_cookies();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const LIMITS: LifeLimits = LifeLimits {
        visitor_idle: Duration::from_secs(7 * 86_400),
        customer_idle: Duration::from_secs(30 * 86_400),
        absolute: Duration::from_secs(90 * 86_400),
        refresh_margin: 0.25,
    };
    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    pub(crate) fn token_set(name: &str, now: Timestamp) -> TokenSet {
        TokenSet {
            access: Token::parse(&format!("{name}-access")).unwrap(),
            access_expires_at: now.after(Duration::from_secs(3_600)),
            refresh: Token::parse(&format!("{name}-refresh")),
            refresh_expires_at: now.after(Duration::from_secs(86_400)),
            issued_at: now,
            saas: None,
        }
    }

    pub(crate) fn visitor(key: SessionKey, now: Timestamp) -> Session {
        let tenant = TenantId::parse("acme").unwrap();
        let mut session = Session::new(key, tenant, Transport::Handle, now, &LIMITS);
        session.set_anonymous(AnonymousHalf {
            tokens: token_set("guest", now),
            session_id: "visit-1".into(),
            context: SiteContext::default(),
        });
        session
    }

    pub(crate) fn customer_half(now: Timestamp) -> CustomerHalf {
        CustomerHalf {
            tokens: token_set("customer", now),
            session_id: Some("visit-1".into()),
            customer_id: "13869000".into(),
            legal_entity_id: None,
            signed_in_at: now,
        }
    }

    fn handle(kind: HandleKind, session: &Session) -> Handle {
        Handle::random(kind, session.key).unwrap()
    }

    #[test]
    fn what_opened_the_session_before_login_never_gains_customer_rights() {
        let mut session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        let guest = handle(HandleKind::AnonymousAccess, &session);
        let cookie = handle(HandleKind::Cookie, &session);
        session.credentials.issue(&guest, Scope::Anonymous);
        session.credentials.issue(&cookie, Scope::Anonymous);
        session.upgrade(customer_half(NOW), NOW, &LIMITS);
        let later = NOW.after(Session::REPLACEMENT_GRACE);
        assert_eq!(session.credentials.verify(&guest, later), Verified::Valid(Scope::Anonymous));
        assert_eq!(session.credentials.verify(&cookie, NOW), Verified::Valid(Scope::Anonymous));
        assert_eq!(session.credentials.verify(&cookie, later), Verified::Replaced(HandleKind::Cookie));
    }

    #[test]
    fn a_sign_in_that_is_taken_back_leaves_the_visitors_cookie() {
        let mut session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        let cookie = handle(HandleKind::Cookie, &session);
        session.credentials.issue(&cookie, Scope::Anonymous);
        session.upgrade(customer_half(NOW), NOW, &LIMITS);
        session.revert_sign_in(NOW);
        let later = NOW.after(Duration::from_secs(3_600));
        assert_eq!(session.credentials.verify(&cookie, later), Verified::Valid(Scope::Anonymous));
        assert!(session.customer.is_none());
    }

    #[test]
    fn a_second_login_kills_the_first_customers_credentials() {
        let mut session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        session.upgrade(customer_half(NOW), NOW, &LIMITS);
        let first = handle(HandleKind::CustomerAccess, &session);
        session.credentials.issue(&first, Scope::Customer);
        session.upgrade(customer_half(NOW), NOW, &LIMITS);
        assert_eq!(session.credentials.verify(&first, NOW), Verified::Unknown);
    }

    #[test]
    fn a_refresh_carries_the_saas_token_and_changes_only_the_customers_generation() {
        let mut session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        let mut half = customer_half(NOW);
        half.tokens.saas = Some(SaasToken { token: Token::parse("a.b.c").unwrap(), expires_at: NOW });
        session.upgrade(half, NOW, &LIMITS);
        let (anonymous, customer) = (session.anonymous_generation, session.customer_generation);
        session.renew_customer(token_set("renewed", NOW), None, Some("entity".into()));
        let half = session.customer.as_ref().unwrap();
        assert_eq!(half.tokens.saas.as_ref().unwrap().token.expose(), "a.b.c");
        assert_eq!(half.session_id.as_deref(), Some("visit-1"));
        assert_eq!((session.anonymous_generation, session.customer_generation), (anonymous, customer + 1));
    }

    #[test]
    fn an_anonymous_scope_never_outlives_its_upstream_refresh_token() {
        let session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        assert_eq!(session.scope_expires_at(Scope::Anonymous, &LIMITS), NOW.after(Duration::from_secs(86_400)));
    }

    #[test]
    fn the_record_survives_its_encoding_and_shows_no_token() {
        let mut session = visitor(SessionKey::from_bytes([1; 16]), NOW);
        session.upgrade(customer_half(NOW), NOW, &LIMITS);
        let bytes = minicbor::to_vec(&session).unwrap();
        let decoded: Session = minicbor::decode(&bytes).unwrap();
        assert_eq!(minicbor::to_vec(&decoded).unwrap(), bytes);
        assert!(!format!("{session:?}").contains("customer-access"));
    }
}
