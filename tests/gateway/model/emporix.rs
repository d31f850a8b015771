//! A small Emporix behind the identity seam: refresh tokens that are good once, and a memory of who was given what.
//! Every secret it issues bears one mark, so that a leak shows itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use emporix_gateway::clock::{Clock, Timestamp};
use emporix_gateway::identity::{
    Fields, Grant, IdentityError, IdentityProvider, Introspection, Issued, NumberForm, Refusal, ServiceClient,
};
use emporix_gateway::session::{Scope, SiteContext, TenantId, Token, TokenSet};

use super::bug::Bug;
use super::gate::{Fault, Gate, Seam};
use super::journal::{Half, Journal, Life, Promise};
use super::visitors::{CUSTOMER, VISIT, VISITORS};

/// Stands in every secret.
pub const MARK: &str = "canary";

pub const ACCESS_LIFE: Duration = Duration::from_secs(600);
pub const REFRESH_LIFE: Duration = Duration::from_secs(3_600);

/// How a token set came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By a sign-in, or minted for a visit.
    Fresh,
    /// In exchange for this refresh token.
    Renewal(String),
}

struct Known {
    half: Half,
    origin: Origin,
    ends_at: Timestamp,
    is_refresh: bool,
    spent: bool,
}

/// What Emporix does besides what is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whim {
    #[default]
    None,
    /// Its tokens never end.
    EndlessTokens,
    /// It asks whoever revokes a token for a pause of an hour.
    PausedRevocations,
}

/// The servers of Emporix.
pub struct Emporix {
    whim: Mutex<Whim>,
    known: Mutex<HashMap<String, Known>>,
    clock: Arc<dyn Clock>,
    journal: Arc<Journal>,
}

impl Emporix {
    pub fn new(clock: Arc<dyn Clock>, journal: Arc<Journal>) -> Self {
        Self { whim: Mutex::default(), known: Mutex::default(), clock, journal }
    }

    pub fn turn(&self, whim: Whim) {
        *self.whim.lock().unwrap() = whim;
    }

    fn is(&self, whim: Whim) -> bool {
        *self.whim.lock().unwrap() == whim
    }

    /// Whose `token` is.
    pub fn whose(&self, token: &str) -> Option<Half> {
        self.known().get(token).map(|known| known.half)
    }

    /// How the set of an access token came to be.
    pub fn origin(&self, access: &str) -> Origin {
        self.known().get(access).map_or(Origin::Fresh, |known| known.origin.clone())
    }

    /// Tokens for `half`, as if issued `age` ago.
    pub fn issue(&self, half: Half, origin: &Origin, age: Duration) -> Issued {
        let now = Timestamp::from_millis(self.clock.now().millis() - u64::try_from(age.as_millis()).unwrap());
        let endless = self.is(Whim::EndlessTokens).then_some(Duration::MAX);
        let [access_ends, refresh_ends] = [ACCESS_LIFE, REFRESH_LIFE].map(|life| now.after(endless.unwrap_or(life)));
        let access = self.token(half, origin, access_ends, false);
        let refresh = self.token(half, origin, refresh_ends, true);
        let signs_in = half.1 == Scope::Customer && *origin == Origin::Fresh;
        Issued {
            tokens: TokenSet {
                access,
                access_expires_at: access_ends,
                refresh: Some(refresh),
                refresh_expires_at: refresh_ends,
                issued_at: now,
                saas: None,
            },
            unverified_saas: signs_in.then(|| self.jwt(half)),
            session_id: Some(VISIT.to_owned()),
            fields: Fields::new(),
            number_form: NumberForm::Number,
        }
    }

    /// A `saas_token`; the mark stands in what would be its signature.
    fn jwt(&self, half: Half) -> Token {
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let ends_at = self.clock.now().after(24 * REFRESH_LIFE);
        let signature = format!("{MARK}{:06}", self.known().len());
        let jwt = format!(
            "{}.{}.{signature}",
            encode(r#"{"alg":"HS256"}"#.to_owned()),
            encode(format!(r#"{{"sub":"{CUSTOMER}","exp":{}}}"#, ends_at.seconds())),
        );
        self.remember(&jwt, half, &Origin::Fresh, ends_at, false);
        Token::parse(&jwt).unwrap()
    }

    fn token(&self, half: Half, origin: &Origin, ends_at: Timestamp, is_refresh: bool) -> Token {
        let text = format!("{MARK}-{:06}", self.known().len());
        self.remember(&text, half, origin, ends_at, is_refresh);
        Token::parse(&text).unwrap()
    }

    fn remember(&self, text: &str, half: Half, origin: &Origin, ends_at: Timestamp, is_refresh: bool) {
        let known = Known { half, origin: origin.clone(), ends_at, is_refresh, spent: false };
        self.known().insert(text.to_owned(), known);
    }

    /// Whose visit the authorizer is; it has to be a living one.
    fn authorizing(&self, tenant: &TenantId, authorizer: &str) -> Result<usize, IdentityError> {
        let now = self.clock.now();
        let known = self.known();
        let honoured = known.get(authorizer).filter(|known| {
            let theirs = known.half.1 == Scope::Anonymous && VISITORS[known.half.0].1 == tenant.as_str();
            theirs && !known.is_refresh && now < known.ends_at
        });
        honoured.map(|known| known.half.0).ok_or(IdentityError::AuthorizerRefused)
    }

    /// Exchanges a refresh token, which is good once.
    fn redeem(&self, send: usize, half: Half, refresh: &str) -> Result<Issued, IdentityError> {
        self.journal.redeems(send);
        let now = self.clock.now();
        let good = match self.known().get_mut(refresh) {
            Some(known) => !std::mem::replace(&mut known.spent, true) && known.is_refresh && now < known.ends_at,
            None => false,
        };
        if good {
            return Ok(self.issue(half, &Origin::Renewal(refresh.to_owned()), Duration::ZERO));
        }
        self.journal.refuses(half);
        Err(IdentityError::Refused(Box::new(Refusal { status: 400, ..Refusal::default() })))
    }

    fn redeem_customer(
        &self,
        send: usize,
        half: Half,
        tenant: &TenantId,
        refresh: &str,
        authorizer: &str,
    ) -> Result<Issued, IdentityError> {
        if self.authorizing(tenant, authorizer)? != half.0 {
            let what = format!("a refresh of {} was authorised by another visit", VISITORS[half.0].0);
            self.journal.breaks(Promise::SessionsStayApart, what);
        }
        self.redeem(send, half, refresh)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap()
    }
}

/// The way of one replica to Emporix.
pub struct GatedIdentity {
    pub emporix: Arc<Emporix>,
    pub gate: Arc<Gate>,
    pub journal: Arc<Journal>,
    pub life: Life,
    pub bug: Bug,
}

impl GatedIdentity {
    async fn call<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Emporix) -> Result<T, IdentityError> + Send + 'static,
    ) -> Result<T, IdentityError> {
        let emporix = self.emporix.clone();
        match self.gate.pass(self.life.0, Seam::Identity, name.to_owned(), move || work(&emporix)).await {
            Ok(answer) => answer,
            Err(Fault::NeverArrived) => Err(IdentityError::Unavailable("the schedule says so")),
            Err(Fault::AnswerLost) => Err(IdentityError::Unknown("the schedule says so")),
        }
    }

    async fn send(
        &self,
        tenant: &TenantId,
        refresh: &Token,
        authorizer: Option<&Token>,
    ) -> Result<Issued, IdentityError> {
        let refresh = refresh.expose().to_owned();
        let half = self.emporix.whose(&refresh).expect("no refresh token comes from elsewhere");
        if VISITORS[half.0].1 != tenant.as_str() {
            self.journal.breaks(Promise::SessionsStayApart, "a refresh token was sent to another tenant");
        }
        let send = self.journal.sends(self.life, half, &refresh);
        let (tenant, authorizer) = (*tenant, authorizer.map(|token| token.expose().to_owned()));
        let answer = self
            .call(if half.1 == Scope::Customer { "refresh" } else { "anonymous refresh" }, move |emporix| {
                match authorizer {
                    Some(authorizer) => emporix.redeem_customer(send, half, &tenant, &refresh, &authorizer),
                    None => emporix.redeem(send, half, &refresh),
                }
            })
            .await;
        if matches!(answer, Err(IdentityError::Unknown(_))) {
            self.journal.lost_the_answer(send);
        }
        answer
    }
}

#[async_trait]
impl IdentityProvider for GatedIdentity {
    async fn anonymous_login(&self, _: &TenantId, site: &SiteContext) -> Result<Issued, IdentityError> {
        // The model's visitors differ in the site they look at, so that Emporix knows who is who.
        let code = site.site_code.clone().unwrap_or_default();
        let visitor = VISITORS.iter().position(|(name, ..)| *name == code).expect("a site of the model");
        self.call("anonymous login", move |emporix| {
            Ok(emporix.issue((visitor, Scope::Anonymous), &Origin::Fresh, Duration::ZERO))
        })
        .await
    }

    async fn anonymous_refresh(&self, tenant: &TenantId, refresh: &Token) -> Result<Issued, IdentityError> {
        self.send(tenant, refresh, None).await
    }

    async fn login(&self, tenant: &TenantId, _: &Grant, authorizer: &Token) -> Result<Issued, IdentityError> {
        let (tenant, authorizer) = (*tenant, authorizer.expose().to_owned());
        self.call("login", move |emporix| {
            let visitor = emporix.authorizing(&tenant, &authorizer)?;
            Ok(emporix.issue((visitor, Scope::Customer), &Origin::Fresh, Duration::ZERO))
        })
        .await
    }

    async fn refresh(
        &self,
        tenant: &TenantId,
        refresh: &Token,
        authorizer: &Token,
        _: Option<&str>,
    ) -> Result<Issued, IdentityError> {
        match self.send(tenant, refresh, Some(authorizer)).await {
            Err(IdentityError::Unknown(_)) if self.bug == Bug::RepeatedCall => {
                self.send(tenant, refresh, Some(authorizer)).await
            }
            answer => answer,
        }
    }

    async fn revoke(&self, _: &TenantId, _: &Token) -> Result<(), IdentityError> {
        self.call("revoke", |emporix| match emporix.is(Whim::PausedRevocations) {
            true => Err(IdentityError::RateLimited { retry_after: Some(3_600) }),
            false => Ok(()),
        })
        .await
    }

    async fn service_token(&self, _: &TenantId, _: &ServiceClient) -> Result<Issued, IdentityError> {
        Err(IdentityError::Unavailable("the model has no services"))
    }

    async fn introspect(&self, _: &TenantId, _: &Token) -> Result<Introspection, IdentityError> {
        Err(IdentityError::Unavailable("the model adopts nothing"))
    }
}
