//! What Emporix issues, in types that never show it.
//! A token leaves its type through one named exit only: the header value that carries it upstream.

use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use minicbor::{Decode, Decoder, Encode, Encoder};
use zeroize::Zeroizing;

use crate::clock::Timestamp;

/// A secret text that Emporix issued. `Debug` shows nothing and memory is wiped on drop.
#[derive(Clone)]
pub struct Token(Zeroizing<Box<str>>);

impl Token {
    /// Longest token that is believed to be one, in bytes.
    pub const MAX_LENGTH: usize = 8 * 1024;

    /// Parses a token: 1 to [`Token::MAX_LENGTH`] visible ASCII characters, fit for a header and a query.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_LENGTH).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(Zeroizing::new(text.into())))
    }

    /// The secret itself: for the identity provider's calls and for sealing, never for display.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `Bearer …`, marked sensitive.
    #[must_use]
    pub fn to_bearer(&self) -> HeaderValue {
        sensitive(&format!("Bearer {}", self.expose()))
    }

    /// The token alone as a header value, marked sensitive.
    #[must_use]
    pub fn to_header(&self) -> HeaderValue {
        sensitive(self.expose())
    }
}

fn sensitive(text: &str) -> HeaderValue {
    // A token is visible ASCII by construction, so the conversion cannot fail; an empty value would only be refused upstream.
    let mut value = HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl<C> Encode<C> for Token {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(self.expose())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Token {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::parse(d.str()?).ok_or_else(|| minicbor::decode::Error::message("not a token"))
    }
}

/// A verified `saas_token` and the end of its validity.
#[derive(Clone, Debug, Encode, Decode)]
pub struct SaasToken {
    /// The JWT.
    #[n(0)]
    pub token: Token,
    /// Its `exp`.
    #[n(1)]
    pub expires_at: Timestamp,
}

/// The tokens that were issued together, with their clocks.
#[derive(Clone, Debug, Encode, Decode)]
pub struct TokenSet {
    /// Injected as Bearer.
    #[n(0)]
    pub access: Token,
    /// When upstream stops honouring `access`.
    #[n(1)]
    pub access_expires_at: Timestamp,
    /// Redeemed once for the next set; absent when none was issued.
    #[n(2)]
    pub refresh: Option<Token>,
    /// When upstream stops honouring `refresh`.
    #[n(3)]
    pub refresh_expires_at: Timestamp,
    /// When the set was issued.
    #[n(4)]
    pub issued_at: Timestamp,
    /// The customer's JWT; carried over a refresh, which issues none.
    #[n(5)]
    pub saas: Option<SaasToken>,
}

impl TokenSet {
    /// The clocks that decide when to refresh.
    #[must_use]
    pub fn lifetime(&self, margin: f64) -> Lifetime {
        let refresh_expires_at = if self.refresh.is_some() { self.refresh_expires_at } else { Timestamp::default() };
        Lifetime::new(self.issued_at, self.access_expires_at, refresh_expires_at, margin)
    }

    /// The same for tokens that are fetched anew, and not refreshed.
    #[must_use]
    pub fn lifetime_of_access(&self, margin: f64) -> Lifetime {
        Lifetime::new(self.issued_at, self.access_expires_at, self.access_expires_at, margin)
    }
}

/// How far a token set has aged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve.
    Fresh,
    /// Serve, and renew behind the request.
    RefreshDue,
    /// Access is over, refresh lives: renew first.
    Expired,
    /// Refresh is over: serve while access lives, never redeem.
    Final,
    /// Both are over.
    Dead,
}

/// The instants that decide a token set's freshness.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    refresh_due_at: Timestamp,
    access_expires_at: Timestamp,
    refresh_expires_at: Timestamp,
}

impl Lifetime {
    fn new(issued_at: Timestamp, access: Timestamp, refresh: Timestamp, margin: f64) -> Self {
        let life = access.min(refresh).since(issued_at);
        let young = Duration::try_from_secs_f64(life.as_secs_f64() * (1.0 - margin)).unwrap_or(life);
        Self { refresh_due_at: issued_at.after(young), access_expires_at: access, refresh_expires_at: refresh }
    }

    /// How far the set has aged at `now`.
    #[must_use]
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        let access_lives = now < self.access_expires_at;
        let refresh_lives = now < self.refresh_expires_at;
        match (access_lives, refresh_lives) {
            (true, true) if now < self.refresh_due_at => Freshness::Fresh,
            (true, true) => Freshness::RefreshDue,
            (false, true) => Freshness::Expired,
            (true, false) => Freshness::Final,
            (false, false) => Freshness::Dead,
        }
    }

    /// The instant after which neither access nor renewal is possible.
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        self.access_expires_at.max(self.refresh_expires_at)
    }

    /// The instant at which the access token ends.
    #[must_use]
    pub const fn access_expires_at(&self) -> Timestamp {
        self.access_expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn freshness_follows_the_shorter_clock() {
        let login = Lifetime::new(at(0), at(2_592_000), at(86_400), 0.25);
        for (seconds, expected) in [
            (0, Freshness::Fresh),
            (64_799, Freshness::Fresh),
            (64_801, Freshness::RefreshDue),
            (86_400, Freshness::Final),
            (2_592_000, Freshness::Dead),
        ] {
            assert_eq!(login.freshness(at(seconds)), expected, "{seconds}");
        }
        let exchange = Lifetime::new(at(0), at(14_400), at(15_552_000), 0.25);
        assert_eq!(exchange.freshness(at(10_801)), Freshness::RefreshDue);
        assert_eq!(exchange.freshness(at(14_400)), Freshness::Expired);
        assert_eq!(exchange.freshness(at(15_552_000)), Freshness::Dead);
    }

    #[test]
    fn hostile_lifetimes_do_not_overflow() {
        let eternal = Lifetime::new(at(5), Timestamp::NEVER, Timestamp::NEVER, 0.25);
        assert_eq!(eternal.freshness(at(1_000_000)), Freshness::Fresh);
        let none = Lifetime::new(at(5), at(5), at(5), 0.25);
        assert_eq!(none.freshness(at(5)), Freshness::Dead);
    }

    #[test]
    fn a_token_is_bounded_visible_ascii() {
        assert!(Token::parse("tpYgJPZqddEQ2zwfzNtx79noBP65").is_some());
        for bad in ["", "two words", "line\nbreak", "naïve", &"x".repeat(Token::MAX_LENGTH + 1)] {
            assert!(Token::parse(bad).is_none());
        }
    }

    #[test]
    fn a_token_is_silent() {
        let token = Token::parse("tpYgJPZqddEQ2zwfzNtx79noBP65").unwrap();
        assert_eq!(format!("{token:?} {:?}", token.to_bearer()), "Token(…) Sensitive");
    }
}
