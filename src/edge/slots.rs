//! Where clients put their credentials, and which of them counts.
//! Two values in one slot, or handles of different sessions, are refused; the dead are never taken for guests.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};

use crate::broker::Credential;
use crate::error::GatewayError;
use crate::session::{Handle, HandleKind, Scope, Token};

/// The `saas-token` header.
pub(super) const SAAS_TOKEN: HeaderName = HeaderName::from_static("saas-token");

/// What a token slot may hold.
enum Held {
    Handle(Handle),
    Placeholder(HandleKind),
    Jwt(Token),
    Foreign(Token),
}

/// The credential of a request, and what its presence says of the client.
#[derive(Debug, Default)]
pub(super) struct Presented {
    /// What counts.
    pub(super) credential: Option<Credential>,
    /// Whether our cookie came.
    pub(super) cookie: bool,
    /// Whether a placeholder came.
    pub(super) placeholder: bool,
    /// Where what counts stood.
    pub(super) slot: Slot,
}

/// A place of the credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    Query,
    Authorization,
    SaasToken,
    #[default]
    Cookie,
}

/// A query parameter of a token route that holds a credential.
pub(super) struct QuerySlot<'q> {
    /// Its value.
    pub(super) value: &'q str,
    /// The kind of handle it takes.
    pub(super) takes: HandleKind,
}

impl Presented {
    /// The credential of a request: the query's, where the route takes one there, else that of `Authorization`, else the
    /// `saas-token` header's, else the cookie.
    pub(super) fn take(headers: &HeaderMap, cookie_name: &str, query: &[QuerySlot<'_>]) -> Result<Self, GatewayError> {
        let cookie = our_cookie(headers, cookie_name)?;
        let asked = query.iter().map(|slot| held(slot.value, &[slot.takes]));
        let bearer = bearer(headers)?.map(|text| held(text, &BEARER_KINDS));
        let slots = asked.chain(bearer).collect::<Result<Vec<Held>, GatewayError>>()?;
        let placeholder = slots.iter().any(|held| matches!(held, Held::Placeholder(_)));
        let mut presented = Self { cookie: cookie.is_some(), placeholder, ..Self::default() };
        if !slots.is_empty() {
            presented.slot = if query.is_empty() { Slot::Authorization } else { Slot::Query };
        }
        let mut slots = slots.into_iter();
        presented.credential = match slots.next() {
            Some(Held::Handle(handle)) => {
                let others = companions(&handle, slots)?;
                Some(Credential::Handle(handle, others))
            }
            Some(Held::Placeholder(kind)) => match slots.all(|held| matches!(held, Held::Placeholder(_))) {
                true => behind_placeholder(kind, cookie)?,
                false => return Err(GatewayError::CredentialConflict),
            },
            Some(Held::Jwt(token)) => Some(Credential::Jwt(token)),
            Some(Held::Foreign(token)) => Some(Credential::Foreign(token)),
            None => match saas_handle(headers)? {
                Some(handle) if cookie.is_none() => {
                    presented.slot = Slot::SaasToken;
                    Some(Credential::Handle(handle, Vec::new()))
                }
                _ => cookie.map(|handle| handle.map(|handle| Credential::Cookie(handle, None))).transpose()?,
            },
        };
        Ok(presented)
    }

    /// Whether the client holds nothing of ours.
    pub(super) const fn bears_nothing(&self) -> bool {
        self.credential.is_none() && !self.cookie
    }
}

/// The handles that `Authorization` takes.
const BEARER_KINDS: [HandleKind; 2] = [HandleKind::AnonymousAccess, HandleKind::CustomerAccess];

/// The other handles of the request: of the same session, or a contradiction. A refresh handle alone selects the
/// session, so the anonymous token that clients send along is ignored.
fn companions(first: &Handle, others: impl Iterator<Item = Held>) -> Result<Vec<Handle>, GatewayError> {
    let refreshes = first.kind == HandleKind::CustomerRefresh;
    let mut found = Vec::new();
    for other in others {
        match other {
            Held::Handle(other) if refreshes && other.kind == HandleKind::AnonymousAccess => {}
            Held::Handle(other) if other.key == first.key => found.push(other),
            _ => return Err(GatewayError::CredentialConflict),
        }
    }
    Ok(found)
}

/// A placeholder means the cookie's session. Without a cookie a guest's is as good as none.
fn behind_placeholder(
    kind: HandleKind,
    cookie: Option<Result<Handle, GatewayError>>,
) -> Result<Option<Credential>, GatewayError> {
    match cookie {
        Some(handle) => Ok(Some(Credential::Cookie(handle?, Some(kind.scope())))),
        None if kind.scope() == Scope::Anonymous => Ok(None),
        None => Err(GatewayError::SessionEnded),
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, GatewayError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(GatewayError::CredentialConflict);
    }
    let text = value.to_str().map_err(|_| GatewayError::BadRequest("Authorization is not ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(GatewayError::SessionEnded),
    }
}

fn held(text: &str, takes: &[HandleKind]) -> Result<Held, GatewayError> {
    if let Some(handle) = Handle::parse(text.as_bytes()) {
        return if takes.contains(&handle.kind) { Ok(Held::Handle(handle)) } else { Err(GatewayError::SessionEnded) };
    }
    let placeholder = HandleKind::ALL.into_iter().find(|kind| kind.placeholder() == Some(text));
    if let Some(kind) = placeholder {
        return if takes.contains(&kind) { Ok(Held::Placeholder(kind)) } else { Err(GatewayError::SessionEnded) };
    }
    if text.starts_with("eg_") || text.starts_with("cookie.") {
        return Err(GatewayError::SessionEnded);
    }
    let token = Token::parse(text).ok_or(GatewayError::SessionEnded)?;
    let is_jwt = text.starts_with("eyJ") && text.split('.').count() == 3;
    Ok(if is_jwt { Held::Jwt(token) } else { Held::Foreign(token) })
}

/// The handle of the `saas-token` header. Anything else there is stripped unread.
fn saas_handle(headers: &HeaderMap) -> Result<Option<Handle>, GatewayError> {
    let mut values = headers.get_all(SAAS_TOKEN).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(GatewayError::CredentialConflict);
    }
    Ok(Handle::parse(value.as_bytes()).filter(|handle| handle.kind == HandleKind::Saas))
}

/// Our cookie's handle; inside, an error when the cookie holds none. HTTP/2 clients split cookies over several fields.
fn our_cookie(headers: &HeaderMap, name: &str) -> Result<Option<Result<Handle, GatewayError>>, GatewayError> {
    let mut found = None;
    for field in headers.get_all(COOKIE) {
        for pair in field.as_bytes().split(|byte| *byte == b';') {
            let Some(value) = value_of(pair, name) else { continue };
            let handle = Handle::parse(value).filter(|handle| handle.kind == HandleKind::Cookie);
            if found.replace(handle.ok_or(GatewayError::SessionGone)).is_some() {
                return Err(GatewayError::CredentialConflict);
            }
        }
    }
    Ok(found)
}

/// The value of the cookie pair, if it is `name`'s.
pub(super) fn value_of<'p>(pair: &'p [u8], name: &str) -> Option<&'p [u8]> {
    pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::session::SessionKey;

    const COOKIE_NAME: &str = "__Host-emporix-session";

    fn handle(kind: HandleKind, key: u8) -> String {
        Handle::random(kind, SessionKey::from_bytes([key; 16])).unwrap().to_text().to_string()
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            map.append(name, value);
        }
        map
    }

    fn presented(fields: &[(&str, &str)]) -> Result<Presented, GatewayError> {
        Presented::take(&headers(fields), COOKIE_NAME, &[])
    }

    fn code(result: Result<Presented, GatewayError>) -> &'static str {
        result.map_or_else(|error| error.code(), |_| "accepted")
    }

    #[test]
    fn an_explicit_handle_wins_over_the_cookie() {
        let bearer = format!("Bearer {}", handle(HandleKind::CustomerAccess, 1));
        let cookie = format!("{COOKIE_NAME}={}", handle(HandleKind::Cookie, 2));
        let found = presented(&[("authorization", &bearer), ("cookie", &cookie)]).unwrap();
        assert!(
            matches!(found.credential, Some(Credential::Handle(handle, _)) if handle.kind == HandleKind::CustomerAccess)
        );
        assert!(found.cookie);
    }

    #[test]
    fn a_placeholder_means_the_cookies_session_in_its_scope() {
        let cookie = format!("a=b; {COOKIE_NAME}={}", handle(HandleKind::Cookie, 2));
        let found = presented(&[("authorization", "Bearer cookie.anonymous"), ("cookie", &cookie)]).unwrap();
        assert!(matches!(found.credential, Some(Credential::Cookie(_, Some(Scope::Anonymous)))));
        assert!(presented(&[("authorization", "Bearer cookie.anonymous")]).unwrap().credential.is_none());
        assert_eq!(code(presented(&[("authorization", "Bearer cookie.customer")])), "session_ended");
    }

    #[test]
    fn contradictions_are_refused() {
        let bearer = format!("Bearer {}", handle(HandleKind::CustomerAccess, 1));
        let cookie = |key| format!("{COOKIE_NAME}={}", handle(HandleKind::Cookie, key));
        assert_eq!(code(presented(&[("authorization", &bearer), ("authorization", &bearer)])), "credential_conflict");
        assert_eq!(code(presented(&[("cookie", &cookie(1)), ("cookie", &cookie(1))])), "credential_conflict");
        let slot = QuerySlot { value: &handle(HandleKind::CustomerAccess, 2), takes: HandleKind::CustomerAccess };
        let two = Presented::take(&headers(&[("authorization", &bearer)]), COOKIE_NAME, &[slot]);
        assert_eq!(code(two), "credential_conflict");
    }

    #[test]
    fn a_refresh_handle_alone_selects_its_session() {
        let bearer = format!("Bearer {}", handle(HandleKind::AnonymousAccess, 1));
        let slot = QuerySlot { value: &handle(HandleKind::CustomerRefresh, 2), takes: HandleKind::CustomerRefresh };
        let found = Presented::take(&headers(&[("authorization", &bearer)]), COOKIE_NAME, &[slot]).unwrap();
        assert!(matches!(found.credential, Some(Credential::Handle(handle, others))
            if handle.kind == HandleKind::CustomerRefresh && others.is_empty()));
    }

    #[test]
    fn the_dead_and_the_misplaced_are_never_guests() {
        for value in ["Bearer eg_c_broken", "Bearer ", "Basic dXNlcg==", "Bearer cookie.saas", "undefined"] {
            assert_eq!(code(presented(&[("authorization", value)])), "session_ended", "{value}");
        }
        let refresh = format!("Bearer {}", handle(HandleKind::CustomerRefresh, 1));
        assert_eq!(code(presented(&[("authorization", &refresh)])), "session_ended");
        assert_eq!(code(presented(&[("cookie", "__Host-emporix-session=old")])), "session_ended");
    }

    #[test]
    fn the_saas_header_counts_only_alone_and_only_as_a_handle() {
        let saas = handle(HandleKind::Saas, 1);
        let found = presented(&[("saas-token", &saas)]).unwrap();
        assert!(matches!(found.credential, Some(Credential::Handle(handle, _)) if handle.kind == HandleKind::Saas));
        assert!(presented(&[("saas-token", "undefined")]).unwrap().credential.is_none());
        let bearer = format!("Bearer {}", handle(HandleKind::AnonymousAccess, 2));
        assert!(presented(&[("saas-token", &saas), ("authorization", &bearer)]).is_ok());
    }
}
