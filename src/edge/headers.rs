//! Header hygiene both ways, as pure functions over borrowed heads.
//! What leaves upstream carries one `Authorization` and at most one `saas-token`, both ours; what comes back is private.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue,
    ORIGIN, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, Method, Response, Version};
use pingora::http::{RequestHeader, ResponseHeader};

use super::line::ApiHead;
use super::slots::{SAAS_TOKEN, value_of};
use crate::broker::Permit;
use crate::error::GatewayError;
use crate::session::Handle;
use crate::telemetry::trace::{Context, TRACEPARENT, TRACESTATE};

const LEGAL_ENTITY: HeaderName = HeaderName::from_static("legal-entity-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The header by which a storefront proves that the request is its own.
pub(super) const PROOF: &str = "x-emporix-gateway";

/// Names that no alias in `_` or `.` may imitate: some backends read those as `-`.
const GUARDED: [&str; 17] = [
    "authorization",
    "saas-token",
    "legal-entity-id",
    "legalentityid",
    "cookie",
    "host",
    "content-length",
    "transfer-encoding",
    "session-id",
    "sessionid",
    "emporix-tenant",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "x-emporix-session-id",
    "x-emporix-customer-id",
];

/// What the upstream request is made of, beside the client's head.
pub(super) struct Outgoing<'o> {
    pub(super) permit: &'o Permit,
    pub(super) cookie_name: &'o str,
    /// The API's own name.
    pub(super) host: &'o HeaderValue,
    pub(super) client: Option<&'o HeaderValue>,
    pub(super) secure: bool,
    pub(super) upgrade: bool,
    pub(super) body: Framing,
    /// Its place in a trace, where that is ours to say.
    pub(super) trace: Option<&'o Context>,
}

/// What would let a request be another one than the one that was authorised, or come from elsewhere.
const OVERRIDES: [&str; 6] =
    ["x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url", "x-real-ip"];

/// Those of them that no proxy sets for itself.
const DISGUISES: [&str; 4] = ["x-http-method-override", "x-http-method", "x-method-override", "x-rewrite-url"];

/// How the upstream request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The upstream request's head, as it is sent: the client's, stripped, with what the permit allows injected.
pub(super) fn outgoing(client: &RequestHeader, with: &Outgoing<'_>) -> Result<BytesMut, GatewayError> {
    let target = client.raw_path();
    if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err(GatewayError::BadTarget("it cannot be forwarded"));
    }
    let mut head = BytesMut::with_capacity(2048);
    for part in [client.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        head.put_slice(part);
    }
    let nominated = nominated(all(&client.headers, CONNECTION));
    for (name, value) in &client.headers {
        let retold = *name == COOKIE || with.trace.is_some_and(|trace| retells(trace, name));
        if !retold && !is_dropped(name, value, &nominated) {
            put(&mut head, name, value.as_bytes());
        }
    }
    if let Some(cookies) = cookies_of_others(&client.headers, with.cookie_name) {
        put(&mut head, &COOKIE, cookies.as_bytes());
    }
    put(&mut head, &HOST, with.host.as_bytes());
    put(&mut head, &AUTHORIZATION, with.permit.authorization().as_bytes());
    if let Some(saas_token) = with.permit.saas_token() {
        put(&mut head, &SAAS_TOKEN, saas_token.as_bytes());
    }
    if let Some(address) = with.client {
        put(&mut head, &X_FORWARDED_FOR, address.as_bytes());
    }
    put(&mut head, &X_FORWARDED_PROTO, if with.secure { b"https" } else { b"http" });
    let authority = || client.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(host) = client.headers.get(HOST).map(HeaderValue::as_bytes).or_else(authority) {
        put(&mut head, &X_FORWARDED_HOST, host);
    }
    if let Some(trace) = with.trace {
        put(&mut head, &TRACEPARENT, trace.traceparent().as_bytes());
    }
    match with.body {
        // Some servers take a request for incomplete that could have a body and does not say that it has none.
        Framing::None if matches!(client.method, Method::POST | Method::PUT | Method::PATCH) => {
            put(&mut head, &CONTENT_LENGTH, b"0");
        }
        Framing::None => {}
        Framing::Length(length) => put(&mut head, &CONTENT_LENGTH, HeaderValue::from(length).as_bytes()),
        Framing::Chunked => put(&mut head, &TRANSFER_ENCODING, b"chunked"),
    }
    if with.upgrade {
        put(&mut head, &CONNECTION, b"upgrade");
        put(&mut head, &UPGRADE, b"websocket");
    }
    head.put_slice(b"\r\n");
    Ok(head)
}

fn put(head: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    head.reserve(name.as_str().len() + value.len() + 4);
    for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
        head.put_slice(part);
    }
}

/// Whether the place in a trace that is ours to say replaces what the client said of it.
fn retells(trace: &Context, name: &HeaderName) -> bool {
    *name == TRACEPARENT || (*name == TRACESTATE && !trace.keeps_state())
}

fn is_dropped(name: &HeaderName, value: &HeaderValue, nominated: &[String]) -> bool {
    is_never_forwarded(name) || nominated.iter().any(|known| known == name.as_str()) || carries_handle(value.as_bytes())
}

/// The names of the client's fields that do not go upstream as they came.
pub(super) fn stripped(client: &HeaderMap, cookie_name: &str) -> Vec<String> {
    let nominated = nominated(all(client, CONNECTION));
    let cookies_change = client.get(COOKIE) != cookies_of_others(client, cookie_name).as_ref();
    let dropped = |name: &HeaderName| client.get_all(name).iter().any(|value| is_dropped(name, value, &nominated));
    let names = client.keys().filter(|name| if **name == COOKIE { cookies_change } else { dropped(name) });
    names.map(ToString::to_string).collect()
}

/// Whether a body's framing reads one way only: one length in digits, or chunks and no other coding.
pub(super) fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let only = |name: HeaderName, fits: fn(&[u8]) -> bool| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => true,
            (Some(only), None) => fits(only.as_bytes()),
            (Some(_), Some(_)) => false,
        }
    };
    let digits = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let chunked = |value: &[u8]| value.trim_ascii().eq_ignore_ascii_case(b"chunked");
    only(CONTENT_LENGTH, digits) && only(TRANSFER_ENCODING, chunked)
}

/// Whether the client asks for a WebSocket (RFC 6455, section 4.2.1): no other protocol is switched to.
pub(super) fn asks_for_websocket(client: &RequestHeader) -> bool {
    let Some(upgrade) = client.headers.get(UPGRADE) else { return false };
    let mut connection = client.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let has_body = client.headers.contains_key(TRANSFER_ENCODING)
        || client.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    client.version == Version::HTTP_11
        && client.method == Method::GET
        && !has_body
        && upgrade.as_bytes().eq_ignore_ascii_case(b"websocket")
        && connection.any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
}

/// An address as the value of a field. What formats addresses in general takes 1,300 instructions for four numbers.
pub(super) fn address(address: IpAddr) -> Option<HeaderValue> {
    let IpAddr::V4(address) = address else { return HeaderValue::from_str(&address.to_string()).ok() };
    let mut text = Vec::with_capacity(15);
    for octet in address.octets() {
        let digits = [octet / 100, octet / 10 % 10, octet % 10].map(|digit| b'0' + digit);
        let leading = usize::from(octet < 100) + usize::from(octet < 10);
        text.extend_from_slice(&digits[leading..]);
        text.push(b'.');
    }
    text.pop();
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// Whether a handle stands anywhere in a field: it is the client's and ours, and no business of the API.
pub(super) fn carries_handle(value: &[u8]) -> bool {
    value.len() >= Handle::LEAST_BYTES
        && memchr::memmem::find_iter(value, b"eg_").any(|at| {
            let end = (at + Handle::MOST_BYTES).min(value.len());
            (at..=end).any(|end| Handle::parse(&value[at..end]).is_some())
        })
}

/// Hop-by-hop fields (RFC 9110, section 7.6.1), what is rebuilt, and what only the gateway may say.
fn is_never_forwarded(name: &HeaderName) -> bool {
    is_hop_by_hop(name)
        || *name == AUTHORIZATION
        || *name == SAAS_TOKEN
        || *name == LEGAL_ENTITY
        || *name == HOST
        || *name == CONTENT_LENGTH
        || *name == EXPECT
        || *name == FORWARDED
        || *name == ORIGIN
        || name.as_str() == PROOF
        || name.as_str() == "legalentityid"
        || name.as_str().starts_with("x-forwarded-")
        || OVERRIDES.contains(&name.as_str())
        || imitates_guarded(name.as_str())
}

/// Whether a field that another proxy would pass on could make the request another one than the one that was judged.
pub(super) fn disguises(name: &HeaderName) -> bool {
    DISGUISES.contains(&name.as_str()) || imitates_guarded(name.as_str())
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == PROXY_AUTHORIZATION
        || *name == TE
        || *name == TRAILER
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
}

fn imitates_guarded(name: &str) -> bool {
    if !name.bytes().any(|b| b == b'_' || b == b'.') {
        return false;
    }
    let folded: String = name.chars().map(|c| if matches!(c, '_' | '.') { '-' } else { c }).collect();
    GUARDED.contains(&folded.as_str())
}

/// The fields that `Connection` nominates: gone with it, but never what the gateway adds itself.
fn nominated<'v>(connection: impl Iterator<Item = &'v [u8]>) -> Vec<String> {
    connection
        .filter_map(|value| str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !matches!(name.as_str(), "" | "keep-alive" | "close" | "upgrade"))
        .collect()
}

fn all(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).into_iter().map(HeaderValue::as_bytes)
}

/// The client's cookies without ours, joined as HTTP/1.1 wants them. A field without ours is shared, not copied.
fn cookies_of_others(headers: &HeaderMap, our_name: &str) -> Option<HeaderValue> {
    let mut fields = headers.get_all(COOKIE).iter();
    let (first, second) = (fields.next()?, fields.next());
    let is_ours = |pair: &[u8]| value_of(pair, our_name).is_some() || carries_handle(pair);
    if second.is_none() && !first.as_bytes().split(|b| *b == b';').any(is_ours) {
        return Some(first.clone());
    }
    let mut joined = Vec::new();
    for field in headers.get_all(COOKIE) {
        for pair in field.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii) {
            if pair.is_empty() || is_ours(pair) {
                continue;
            }
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(pair);
        }
    }
    if joined.is_empty() { None } else { HeaderValue::from_bytes(&joined).ok() }
}

/// The downstream response's head: upstream's, stripped, private where a session was used, and another one for whoever
/// shows another credential.
pub(super) fn incoming(
    upstream: &ApiHead,
    cookie_name: &str,
    used_session: bool,
    keep_upgrade: bool,
) -> Result<ResponseHeader, GatewayError> {
    let fits = |_| GatewayError::UpstreamFailed("its response head cannot be forwarded");
    let mut parts = Response::new(()).into_parts().0;
    parts.status = upstream.status;
    parts.headers = HeaderMap::with_capacity(upstream.field_count() + 4);
    let head = &mut parts.headers;
    let nominated = nominated(upstream.values("connection"));
    for field in upstream.fields() {
        let (name, value) = field.ok_or(GatewayError::UpstreamFailed("a field of its head is none"))?;
        let ours = name == SET_COOKIE && sets_our_cookie(&value, cookie_name);
        let upgrade = keep_upgrade && name == UPGRADE;
        let cors = name.as_str().starts_with("access-control-");
        let echo = name == AUTHORIZATION || name == SAAS_TOKEN;
        let dropped = (is_hop_by_hop(&name) && !upgrade) || nominated.iter().any(|known| known == name.as_str());
        let caching = used_session && (name == CACHE_CONTROL || is_shared_caches(name.as_str()));
        if ours || cors || echo || dropped || caching {
            continue;
        }
        head.try_append(name, value).map_err(fits)?;
    }
    if keep_upgrade {
        head.try_insert(CONNECTION, HeaderValue::from_static("upgrade")).map_err(fits)?;
    }
    let caching = used_session.then(|| privately_cached(upstream.values("cache-control")));
    if caching.as_ref().is_none_or(|caching| caching != NO_STORE) {
        head.try_append(VARY, HeaderValue::from_static(CREDENTIALS)).map_err(fits)?;
    }
    if let Some(caching) = caching {
        head.try_insert(CACHE_CONTROL, caching).map_err(fits)?;
    }
    Ok(ResponseHeader::from(parts))
}

const NO_STORE: &str = "no-store";
/// Where a request may show who asks, and of which tenant: what a cache keeps of one is nothing for the next.
const CREDENTIALS: &str = "Authorization, Cookie, saas-token, Emporix-Tenant";

/// What shared caches obey before `Cache-Control`.
fn is_shared_caches(name: &str) -> bool {
    name.ends_with("cdn-cache-control") || name == "surrogate-control"
}

fn sets_our_cookie(value: &HeaderValue, name: &str) -> bool {
    value.as_bytes().split(|b| *b == b';').next().is_some_and(|pair| {
        let pair = pair.trim_ascii_start();
        let end = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        pair[..end].trim_ascii().eq_ignore_ascii_case(name.as_bytes())
    })
}

/// `private` with what upstream allowed a private cache; `no-store` where it said nothing.
fn privately_cached<'v>(said: impl Iterator<Item = &'v [u8]>) -> HeaderValue {
    let said: Vec<&str> = said.filter_map(|value| str::from_utf8(value).ok()).collect();
    // Field lists in quotes do not survive being taken apart.
    if said.is_empty() || said.iter().any(|value| value.contains('"')) {
        return HeaderValue::from_static(NO_STORE);
    }
    let kept = said.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|directive| {
        let name = directive.split('=').next().unwrap_or_default().to_ascii_lowercase();
        !matches!(name.as_str(), "" | "public" | "private" | "s-maxage")
    });
    let directives: Vec<&str> = std::iter::once("private").chain(kept).collect();
    HeaderValue::from_str(&directives.join(", ")).unwrap_or(HeaderValue::from_static(NO_STORE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn aliases_of_injected_names_do_not_pass() {
        for name in ["saas_token", "saas.token", "legal_entity_id", "session_id", "x_forwarded_for", "emporix.tenant"] {
            assert!(is_never_forwarded(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x-http-method-override", "x-original-url", "x-rewrite-url"] {
            assert!(is_never_forwarded(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x-version", "accept-language", "emporix-tenant", "session-id", "my_own.header"] {
            assert!(!is_never_forwarded(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn an_address_is_written_as_ever() {
        for text in ["0.0.0.0", "1.20.99.100", "255.255.255.255", "10.0.200.7", "::1", "2001:db8::ff"] {
            assert_eq!(address(text.parse().unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn a_handle_is_seen_wherever_it_stands() {
        let key = crate::session::SessionKey::from_bytes([7; 16]);
        let handle = Handle::random(crate::session::HandleKind::CustomerAccess, key).unwrap().to_text();
        for value in [handle.to_string(), format!("http://x/?t={}&y=1", *handle), format!("a=1; x = {}", *handle)] {
            assert!(carries_handle(value.as_bytes()), "{value}");
        }
        assert!(!carries_handle(b"leg_c_short") && !carries_handle(b""));
    }

    #[test]
    fn a_body_is_framed_one_way_or_not_at_all() {
        for (fields, expected) in [
            (&[("content-length", "2")][..], true),
            (&[("transfer-encoding", "Chunked")][..], true),
            (&[][..], true),
            (&[("content-length", "2, 2")][..], false),
            (&[("content-length", "+2")][..], false),
            (&[("content-length", "2"), ("content-length", "2")][..], false),
            (&[("transfer-encoding", "gzip, chunked")][..], false),
        ] {
            assert_eq!(is_plainly_framed(&map(fields)), expected, "{fields:?}");
        }
    }

    #[test]
    fn only_our_cookie_is_taken_out_and_the_others_are_joined() {
        let name = "__Host-emporix-session";
        let split = map(&[("cookie", "a=1; __Host-emporix-session=eg_k_x"), ("cookie", "b=2")]);
        assert_eq!(cookies_of_others(&split, name).unwrap(), "a=1; b=2");
        assert!(cookies_of_others(&map(&[("cookie", "__Host-emporix-session=eg_k_x")]), name).is_none());
        assert_eq!(cookies_of_others(&map(&[("cookie", "a=1;b=2")]), name).unwrap(), "a=1;b=2");
    }

    #[test]
    fn what_a_session_received_is_private() {
        for (said, expected) in [
            (&[][..], "no-store"),
            (&["public, max-age=60, s-maxage=90"], "private, max-age=60"),
            (&["no-cache"], "private, no-cache"),
        ] {
            assert_eq!(privately_cached(said.iter().map(|value| value.as_bytes())), expected);
        }
    }

    #[test]
    fn upstream_cannot_set_our_cookie_in_any_spelling() {
        for value in ["__Host-emporix-session=x", " __host-EMPORIX-session =x; Path=/"] {
            assert!(sets_our_cookie(&HeaderValue::from_static(value), "__Host-emporix-session"), "{value}");
        }
        assert!(!sets_our_cookie(&HeaderValue::from_static("other=__Host-emporix-session"), "__Host-emporix-session"));
    }
}
