//! A session as the hot path wants it: header values built, clocks worked out, the refresh tokens left behind.
//! Carries a validity flag, so that an ended session is ended for every request that already holds it.

use std::sync::atomic::{AtomicU8, Ordering};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderValue;

use super::{
    Credentials, Freshness, Handle, LifeLimits, Lifetime, Scope, Session, SessionKey, TenantId, Token, TokenSet,
    Transport, Verified,
};
use crate::clock::Timestamp;

/// One half, ready to inject.
#[derive(Debug)]
pub struct ReadyHalf {
    /// `Bearer …`.
    pub bearer: HeaderValue,
    /// Its clocks.
    pub lifetime: Lifetime,
    /// The token set's generation.
    pub generation: u64,
    /// Emporix' session id of this half.
    pub session_id: Option<Box<str>>,
}

/// The customer's half, ready to inject.
#[derive(Debug)]
pub struct ReadyCustomer {
    half: ReadyHalf,
    /// The `saas-token` header and its end.
    pub saas: Option<ReadySaas>,
    /// The customer number.
    pub customer_id: Box<str>,
}

/// A `saas_token`, ready to inject.
#[derive(Debug)]
pub struct ReadySaas {
    /// The header value.
    pub header: HeaderValue,
    /// The JWT's `exp`.
    pub expires_at: Timestamp,
}

impl ReadyHalf {
    fn new(tokens: &TokenSet, generation: u64, session_id: Option<&str>, margin: f64) -> Self {
        Self {
            bearer: tokens.access.to_bearer(),
            lifetime: tokens.lifetime(margin),
            generation,
            session_id: session_id.map(Into::into),
        }
    }
}

/// A session whose headers are built.
#[derive(Debug)]
pub struct ReadySession {
    /// Names the session.
    pub key: SessionKey,
    /// Its tenant.
    pub tenant: TenantId,
    /// How its credentials travel.
    pub transport: Transport,
    /// When its next use is worth recording.
    pub touch_due_at: Timestamp,
    /// When the customer who is signed in signed in.
    pub signed_in_at: Option<Timestamp>,
    /// When it ends unless it is used again.
    pub expires_at: Timestamp,
    /// When the store last confirmed it.
    pub verified_at: Timestamp,
    credentials: Credentials,
    anonymous: Option<ReadyHalf>,
    customer: Option<ReadyCustomer>,
    standing: AtomicU8,
}

/// Nobody has ended, replaced or doubted it since it was built.
const TRUSTED: u8 = 0;
/// The store may hold another one by now.
const DOUBTED: u8 = 1;
/// It is over.
const ENDED: u8 = 2;

impl ReadySession {
    /// Builds the headers of `session`, which the store confirmed at `now`.
    #[must_use]
    pub fn of(session: &Session, now: Timestamp, limits: &LifeLimits) -> Self {
        let margin = jittered(limits.refresh_margin, &session.key);
        let anonymous = session
            .anonymous
            .as_ref()
            .map(|half| ReadyHalf::new(&half.tokens, session.anonymous_generation, Some(&half.session_id), margin));
        let customer = session.customer.as_ref().map(|customer| ReadyCustomer {
            half: ReadyHalf::new(&customer.tokens, session.customer_generation, customer.session_id.as_deref(), margin),
            saas: customer
                .tokens
                .saas
                .as_ref()
                .map(|saas| ReadySaas { header: saas.token.to_header(), expires_at: saas.expires_at }),
            customer_id: customer.customer_id.as_str().into(),
        });
        Self {
            key: session.key,
            tenant: session.tenant,
            transport: session.transport,
            touch_due_at: session.touch_due_at(limits),
            signed_in_at: session.signed_in_at(),
            expires_at: session.expires_at(limits),
            verified_at: now,
            credentials: session.credentials.clone(),
            anonymous,
            customer,
            standing: AtomicU8::new(TRUSTED),
        }
    }

    /// What `handle` stands for at `now`; nothing once the session is over.
    #[must_use]
    pub fn verify(&self, handle: &Handle, now: Timestamp) -> Verified {
        if now >= self.expires_at { Verified::Unknown } else { self.credentials.verify(handle, now) }
    }

    /// Whether `token` is this session's present `saas_token`, told in a time that does not depend on where they differ.
    #[must_use]
    pub fn holds_saas_token(&self, token: &Token) -> bool {
        let saas = self.customer().and_then(|customer| customer.saas.as_ref());
        saas.is_some_and(|saas| verify_slices_are_equal(saas.header.as_bytes(), token.expose().as_bytes()).is_ok())
    }

    /// The half of `scope`.
    #[must_use]
    pub fn half(&self, scope: Scope) -> Option<&ReadyHalf> {
        match scope {
            Scope::Anonymous => self.anonymous.as_ref(),
            Scope::Customer => self.customer.as_ref().map(|customer| &customer.half),
        }
    }

    /// What only a customer's half has.
    #[must_use]
    pub const fn customer(&self) -> Option<&ReadyCustomer> {
        self.customer.as_ref()
    }

    /// How far the tokens of `scope` have aged; dead where there are none.
    #[must_use]
    pub fn freshness(&self, scope: Scope, now: Timestamp) -> Freshness {
        self.half(scope).map_or(Freshness::Dead, |half| half.lifetime.freshness(now))
    }

    /// Whether nobody has ended or replaced it since it was built.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.standing.load(Ordering::Acquire) != ENDED
    }

    /// Whether nobody has doubted it either.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.standing.load(Ordering::Acquire) == TRUSTED
    }

    /// Says that the store may hold another one by now: it is to be asked, where it can be.
    pub fn doubt(&self) {
        self.standing.fetch_max(DOUBTED, Ordering::AcqRel);
    }

    /// Ends it for everyone who holds it.
    pub fn end(&self) {
        self.standing.store(ENDED, Ordering::Release);
    }

    /// An estimate of the memory it takes, in bytes.
    #[must_use]
    pub fn weight(&self) -> u32 {
        const FIXED: usize = 700;
        let bearers =
            [Scope::Anonymous, Scope::Customer].map(|scope| self.half(scope).map_or(0, |half| half.bearer.len()));
        let saas = self.customer().and_then(|customer| customer.saas.as_ref()).map_or(0, |saas| saas.header.len());
        u32::try_from(FIXED + bearers.iter().sum::<usize>() + saas).unwrap_or(u32::MAX)
    }
}

/// The margin, up to a fifth wider by a share that depends on the key: sessions born together are not due together.
fn jittered(margin: f64, key: &SessionKey) -> f64 {
    margin * (1.0 + 0.2 * f64::from(key.as_bytes()[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_widened_by_a_fifth_at_most_and_by_every_share_of_it() {
        let wider = |first| {
            let mut bytes = [0; 16];
            bytes[0] = first;
            jittered(0.25, &SessionKey::from_bytes(bytes))
        };
        let margins: Vec<f64> = (0..=u8::MAX).map(wider).collect();
        assert_eq!(margins[0], 0.25);
        assert!((margins[255] - 0.3).abs() < 1e-9, "{}", margins[255]);
        let steps = margins.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(steps.fold(f64::MAX, f64::min) > 0.000_19, "no two keys of different first bytes are due together");
    }
}
