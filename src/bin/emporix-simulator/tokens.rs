//! Every opaque token the simulator minted, what it stands for and until when it lives.
//! Time comes in as an argument (milliseconds), so a token's whole life fits in a unit test.

use std::collections::HashMap;

use serde::Deserialize;

use crate::random;

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A guest's bearer.
    AnonymousAccess,
    /// Renews a guest's bearer.
    AnonymousRefresh,
    /// A customer's bearer.
    CustomerAccess,
    /// Renews a customer's bearer.
    CustomerRefresh,
    /// A client-credentials bearer.
    Service,
}

impl Kind {
    fn token_length(self) -> usize {
        match self {
            Self::AnonymousAccess | Self::CustomerAccess => 28,
            Self::AnonymousRefresh | Self::CustomerRefresh | Self::Service => 32,
        }
    }
}

/// Whom a token stands for, and in which session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The tenant the token is valid in.
    pub(crate) tenant: String,
    /// The session, which a guest keeps when becoming a customer.
    pub(crate) session_id: String,
    /// The customer number, absent for guests.
    pub(crate) customer: Option<String>,
    /// The legal entity a business customer acts for.
    pub(crate) legal_entity: Option<String>,
}

/// A token that was minted and not yet removed.
pub(crate) struct Token {
    /// What it may be used for.
    pub(crate) kind: Kind,
    /// Whom it stands for.
    pub(crate) grant: Grant,
    /// The first millisecond at which it is dead.
    pub(crate) expires_at: u64,
}

/// Why a token is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dead {
    /// Never minted, removed, or of another kind.
    Unknown,
    /// Minted, but its time is over.
    Expired,
}

/// All tokens, and every secret ever handed out.
#[derive(Default)]
pub(crate) struct TokenBook {
    tokens: HashMap<String, Token>,
    secrets: Vec<String>,
}

impl TokenBook {
    /// Mints a token that lives `ttl_seconds` from `now`.
    pub(crate) fn mint(&mut self, kind: Kind, grant: &Grant, ttl_seconds: u64, now: u64) -> String {
        let secret = random::opaque(kind.token_length());
        let token = Token { kind, grant: grant.clone(), expires_at: now + ttl_seconds * 1000 };
        self.tokens.insert(secret.clone(), token);
        self.remember_secret(&secret);
        secret
    }

    /// The token behind `secret`, if it is of `kind` and alive at `now`.
    pub(crate) fn find(&self, secret: &str, kind: Kind, now: u64) -> Result<&Token, Dead> {
        self.find_any(secret, &[kind], now)
    }

    /// The token behind `secret`, if it is one of `kinds` and alive at `now`.
    pub(crate) fn find_any(&self, secret: &str, kinds: &[Kind], now: u64) -> Result<&Token, Dead> {
        match self.tokens.get(secret) {
            Some(token) if !kinds.contains(&token.kind) => Err(Dead::Unknown),
            Some(token) if now >= token.expires_at => Err(Dead::Expired),
            Some(token) => Ok(token),
            None => Err(Dead::Unknown),
        }
    }

    /// Forgets a token, as logout and single-use renewal do.
    pub(crate) fn remove(&mut self, secret: &str) {
        self.tokens.remove(secret);
    }

    /// Ends the life of every token of `kind`, or of all tokens.
    pub(crate) fn expire(&mut self, kind: Option<Kind>, now: u64) {
        let chosen = self.tokens.values_mut().filter(|token| kind.is_none_or(|kind| kind == token.kind));
        for token in chosen {
            token.expires_at = token.expires_at.min(now);
        }
    }

    /// Adds a secret that is not an opaque token, such as a JWT, to the list of canaries.
    pub(crate) fn remember_secret(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    /// Every secret ever handed out.
    pub(crate) fn secrets(&self) -> &[String] {
        &self.secrets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Grant {
        Grant { tenant: "acme".into(), session_id: "s".into(), customer: None, legal_entity: None }
    }

    #[test]
    fn a_token_lives_until_its_last_millisecond() {
        let mut book = TokenBook::default();
        let token = book.mint(Kind::AnonymousAccess, &guest(), 3, 1_000);

        assert!(book.find(&token, Kind::AnonymousAccess, 3_999).is_ok());
        assert_eq!(book.find(&token, Kind::AnonymousAccess, 4_000).err(), Some(Dead::Expired));
    }

    #[test]
    fn a_refresh_token_is_no_bearer() {
        let mut book = TokenBook::default();
        let token = book.mint(Kind::AnonymousRefresh, &guest(), 3, 0);

        assert_eq!(book.find(&token, Kind::AnonymousAccess, 0).err(), Some(Dead::Unknown));
    }

    #[test]
    fn expiring_one_kind_leaves_the_others_alive() {
        let mut book = TokenBook::default();
        let access = book.mint(Kind::AnonymousAccess, &guest(), 60, 0);
        let refresh = book.mint(Kind::AnonymousRefresh, &guest(), 60, 0);

        book.expire(Some(Kind::AnonymousAccess), 5);

        assert_eq!(book.find(&access, Kind::AnonymousAccess, 5).err(), Some(Dead::Expired));
        assert!(book.find(&refresh, Kind::AnonymousRefresh, 5).is_ok());
    }

    #[test]
    fn a_removed_token_stays_a_canary() {
        let mut book = TokenBook::default();
        let token = book.mint(Kind::CustomerAccess, &guest(), 60, 0);

        book.remove(&token);

        assert_eq!(book.find(&token, Kind::CustomerAccess, 0).err(), Some(Dead::Unknown));
        assert_eq!(book.secrets(), [token]);
    }
}
