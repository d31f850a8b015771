//! The request target, parsed once and refused where it reads more than one way.
//! The path that is authorised is byte for byte the path that is forwarded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::error::GatewayError;
use crate::session::{Handle, HandleKind};

/// A request target in origin form (RFC 9112, section 3.2.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'t> {
    /// The path, as it came.
    pub(super) path: &'t str,
    /// The query, as it came, without its question mark.
    pub(super) query: Option<&'t str>,
}

impl<'t> Target<'t> {
    /// Parses `raw`.
    pub(super) fn parse(raw: &'t [u8]) -> Result<Self, GatewayError> {
        let text = std::str::from_utf8(raw).map_err(|_| GatewayError::BadTarget("it is not UTF-8"))?;
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        check_path(path.as_bytes())?;
        if path.contains('%') && percent_decode_str(path).decode_utf8().is_err() {
            return Err(GatewayError::BadTarget("its escapes are not UTF-8"));
        }
        if query.is_some_and(|query| query.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#')) {
            return Err(GatewayError::BadTarget("its query holds a space, a control character or a fragment"));
        }
        Ok(Self { path, query })
    }

    /// The query's parameters, decoded.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (Cow<'t, str>, Cow<'t, str>)> {
        self.query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
    }

    /// Whether a handle or a placeholder stands anywhere in the target but in the parameters of these names.
    pub(super) fn carries_credential(&self, slots: &[&str]) -> bool {
        let suspicious = |text: &str| {
            memchr::memchr2(b'_', b'.', text.as_bytes()).is_some() && (text.contains("eg_") || text.contains("cookie."))
        };
        if !suspicious(self.path) && !self.query.is_some_and(|query| query.contains('%') || suspicious(query)) {
            return false;
        }
        let in_path = self.path.split('/').any(|segment| is_credential(&decoded(segment)));
        let misplaced = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
            is_credential(&name) || (!slots.contains(&name.as_ref()) && is_credential(&value))
        };
        in_path || self.parameters().any(misplaced)
    }

    /// The ids of visits that the query names.
    pub(super) fn visits(&self) -> impl Iterator<Item = Cow<'t, str>> {
        let parameters = self.query.filter(|query| may_name_visit(query)).map(|_| self.parameters());
        parameters.into_iter().flatten().filter(|(name, _)| is_visit_name(name)).map(|(_, value)| value)
    }
}

/// Whether `text` names a visit in any of Emporix' spellings.
pub(super) fn is_visit_name(text: &str) -> bool {
    let letters = text.bytes().filter(|b| !matches!(b, b'-' | b'_' | b'.'));
    letters.map(|b| b.to_ascii_lowercase()).eq(*b"sessionid")
}

/// A cheap look before parameters are decoded.
fn may_name_visit(query: &str) -> bool {
    query.contains('%') || query.as_bytes().windows(7).any(|window| window.eq_ignore_ascii_case(b"session"))
}

fn check_path(path: &[u8]) -> Result<(), GatewayError> {
    if path.first() != Some(&b'/') {
        return Err(GatewayError::BadTarget("it is not in origin form"));
    }
    let mut segment_start = 1;
    let mut position = 1;
    while position <= path.len() {
        match path.get(position) {
            None | Some(b'/') => {
                let segment = &path[segment_start..position];
                if is_dot_segment(segment) {
                    return Err(GatewayError::BadTarget("it has a dot segment"));
                }
                if segment.is_empty() && position < path.len() {
                    return Err(GatewayError::BadTarget("it has an empty segment"));
                }
                segment_start = position + 1;
            }
            Some(b'%') => {
                check_escape(path.get(position + 1..position + 3))?;
                position += 2;
            }
            Some(b'\\' | b'#' | 0x7f..) => return Err(GatewayError::BadTarget("it holds a byte that needs escaping")),
            Some(byte) if *byte <= b' ' => {
                return Err(GatewayError::BadTarget("it holds a byte that needs escaping"));
            }
            Some(_) => {}
        }
        position += 1;
    }
    Ok(())
}

/// A dot segment, also to servers that take what follows a semicolon for parameters.
fn is_dot_segment(segment: &[u8]) -> bool {
    if segment.first() != Some(&b'.') {
        return false;
    }
    let name = segment.split(|b| *b == b';').next().unwrap_or_default();
    let name = name.split(|b| *b == b'%').next().unwrap_or_default();
    matches!(name, b"." | b"..")
}

/// An escape has to be one (RFC 3986, section 2.1), and of a byte that cannot stand for itself.
fn check_escape(digits: Option<&[u8]>) -> Result<(), GatewayError> {
    let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    let byte = digits
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        .ok_or(GatewayError::BadTarget("it has a broken escape"))?;
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/' | b'\\' | b'%') || byte < b' ' {
        return Err(GatewayError::BadTarget("it escapes a byte that must not be escaped"));
    }
    Ok(())
}

fn decoded(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}

fn is_credential(text: &str) -> bool {
    let placeholder = HandleKind::ALL.iter().filter_map(|kind| kind.placeholder()).any(|known| known == text);
    let handle = HandleKind::ALL.iter().any(|kind| {
        text.match_indices(kind.prefix()).any(|(at, _)| {
            let end = (at + kind.prefix().len() + 64).min(text.len());
            text.as_bytes().get(at..end).is_some_and(|text| Handle::parse(text).is_some())
        })
    });
    placeholder || handle
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::SessionKey;

    fn accepted(target: &str) -> bool {
        Target::parse(target.as_bytes()).is_ok()
    }

    #[test]
    fn ordinary_targets_are_accepted() {
        for target in ["/", "/cart/acme/carts", "/a/b/", "/a%20b/caf%C3%A9", "/a?x=../%2e%2f//", "/a:b;c=d/@e"] {
            assert!(accepted(target), "{target}");
        }
    }

    #[test]
    fn what_reads_two_ways_is_refused() {
        for target in [
            "",
            "*",
            "http://x/",
            "cart",
            "//x",
            "/a//b",
            "/a/./b",
            "/a/../b",
            "/..",
            "/.",
            "/a%2fb",
            "/a%2Fb",
            "/%2e%2e/b",
            "/%6cogin",
            "/a%5cb",
            "/a\\b",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%00b",
            "/caf\u{e9}",
            "/a b",
            "/a#b",
            "/a?b#c",
            "/a?b c",
            "/%25%32%66",
            "/a/..;/b",
            "/a/..;x=y/b",
            "/a/.;/b",
            "/a/..%3b/b",
            "/a/..%20/b",
            "/a/%c0%ae%c0%ae/b",
        ] {
            assert!(!accepted(target), "{target}");
        }
    }

    #[test]
    fn a_handle_in_a_target_is_seen_however_it_is_spelled() {
        let key = SessionKey::from_bytes([9; 16]);
        let handle = Handle::random(HandleKind::CustomerAccess, key).unwrap().to_text();
        let escaped: String = handle.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for target in [
            format!("/a/{}", *handle),
            format!("/a?x={}", *handle),
            format!("/a?x=1&{}=2", *handle),
            format!("/a?x={escaped}"),
            format!("/a?x=Bearer%20{}", *handle),
            "/a?token=cookie.customer".to_owned(),
            "/a?token=cookie%2Ecustomer".to_owned(),
        ] {
            assert!(Target::parse(target.as_bytes()).unwrap().carries_credential(&[]), "{target}");
        }
        for target in ["/a?x=eg_c_short", "/leg_a_b", "/a?policy=cookie.html", "/a?x=%41"] {
            assert!(!Target::parse(target.as_bytes()).unwrap().carries_credential(&[]), "{target}");
        }
    }

    #[test]
    fn visits_are_found_in_every_spelling() {
        for query in ["sessionId=v", "SESSIONID=v", "a=b&session-id=v", "session_id=v", "%73essionId=v"] {
            let target = format!("/cart/acme/carts?{query}");
            let target = Target::parse(target.as_bytes()).unwrap();
            assert_eq!(target.visits().collect::<Vec<_>>(), ["v"], "{query}");
        }
        assert_eq!(Target::parse(b"/cart?siteCode=main&sessions=3").unwrap().visits().count(), 0);
    }

    proptest! {
        #[test]
        fn an_accepted_path_survives_normalisation(raw in "(/[a-zA-Z0-9%._~!$&'()*+,;=:@-]{0,8}){1,6}") {
            if let Ok(target) = Target::parse(raw.as_bytes()) {
                let decoded = percent_decode_str(target.path).decode_utf8_lossy().into_owned();
                let normal = decoded.split('/').all(|segment| segment != "." && segment != "..");
                prop_assert!(normal);
                prop_assert_eq!(decoded.matches('/').count(), target.path.matches('/').count());
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(target) = Target::parse(&raw) {
                let _ = (target.carries_credential(&[]), target.visits().count());
            }
        }
    }
}
