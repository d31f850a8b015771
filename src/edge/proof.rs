//! Proof that the storefront itself made a request (CSRF), and the answers browsers want across origins (CORS).
//! Pure functions of the head and the tenant's list of origins.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::{HeaderMap, Method};

use super::headers::PROOF;
use crate::error::GatewayError;

/// Tells how a request's site relates to ours (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Request headers of the Emporix API and our own, as browsers may send them across origins.
const ALLOWED_HEADERS: &str = "authorization, content-type, accept-language, content-language, emporix-tenant, \
                               saas-token, session-id, x-version, x-total-count, x-emporix-gateway";
const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
const EXPOSED_HEADERS: &str =
    "x-total-count, x-next-cursor, x-prev-cursor, hybris-count, location, version, retry-after";

/// Whether a browser on our own origin made the request.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "same-origin")
}

/// Whether anything shows that a browser made the request.
pub(super) fn is_browsers(headers: &HeaderMap) -> bool {
    headers.contains_key(SEC_FETCH_SITE) || headers.contains_key(ORIGIN)
}

/// What makes a cross-site request dangerous, beside its head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Exposure {
    /// Our cookie or a placeholder came with it.
    pub(super) rides_on_cookie: bool,
    /// The answer may set our cookie.
    pub(super) may_set_cookie: bool,
    /// It is for a token route, of an unsafe method, an upgrade, or would create a visitor.
    pub(super) changes_state: bool,
}

/// Demands proof where a cross-site page could have caused the request.
pub(super) fn demand(headers: &HeaderMap, origins: &[String], exposure: Exposure) -> Result<(), GatewayError> {
    if !is_demanded(headers, exposure) || is_proven(headers, origins) {
        return Ok(());
    }
    Err(GatewayError::ProofRequired)
}

/// Whether a cross-site page could have caused the request, and would have done harm.
pub(super) fn is_demanded(headers: &HeaderMap, exposure: Exposure) -> bool {
    let exposed = || exposure.rides_on_cookie || exposure.may_set_cookie || headers.contains_key(SEC_FETCH_SITE);
    exposure.changes_state && exposed()
}

fn is_proven(headers: &HeaderMap, origins: &[String]) -> bool {
    is_same_origin(headers)
        || allowed_origin(headers, origins).is_some()
        || headers.get(PROOF).is_some_and(|v| v == "1")
}

fn allowed_origin<'h>(headers: &'h HeaderMap, origins: &[String]) -> Option<&'h HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    origins.iter().any(|allowed| origin.as_bytes() == allowed.as_bytes()).then_some(origin)
}

/// Whether the request asks a browser's question before the real one.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The headers that let the page of an allowed origin read the answer; none for any other.
pub(super) fn cors(headers: &HeaderMap, origins: &[String], preflight: bool) -> Vec<(HeaderName, HeaderValue)> {
    if origins.is_empty() || !headers.contains_key(ORIGIN) {
        return Vec::new();
    }
    let mut answer = vec![(VARY, HeaderValue::from_static("Origin"))];
    let Some(origin) = allowed_origin(headers, origins) else { return answer };
    answer.push((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
    answer.push((ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
    if preflight {
        answer.push((ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS)));
        answer.push((ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS)));
        answer.push((ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")));
    } else {
        answer.push((ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS)));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    const RIDING: Exposure = Exposure { rides_on_cookie: true, may_set_cookie: false, changes_state: true };

    #[test]
    fn a_riding_request_that_changes_state_needs_proof() {
        let origins = ["https://shop.example.com".to_owned()];
        for (fields, expected) in [
            (&[][..], false),
            (&[("sec-fetch-site", "cross-site")][..], false),
            (&[("sec-fetch-site", "same-site")][..], false),
            (&[("origin", "https://evil.example.com")][..], false),
            (&[("origin", "null")][..], false),
            (&[("x-emporix-gateway", "0")][..], false),
            (&[("x-emporix-gateway", "1")][..], true),
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("origin", "https://shop.example.com"), ("sec-fetch-site", "cross-site")][..], true),
        ] {
            assert_eq!(demand(&headers(fields), &origins, RIDING).is_ok(), expected, "{fields:?}");
        }
    }

    #[test]
    fn handle_calls_without_browser_signs_are_exempt() {
        let plain = Exposure { changes_state: true, ..Exposure::default() };
        assert!(demand(&headers(&[]), &[], plain).is_ok());
        assert!(demand(&headers(&[("sec-fetch-site", "cross-site")]), &[], plain).is_err());
    }

    #[test]
    fn only_exact_origins_are_answered() {
        let origins = ["https://shop.example.com".to_owned()];
        assert_eq!(cors(&headers(&[("origin", "https://shop.example.com.evil")]), &origins, false).len(), 1);
        assert!(cors(&headers(&[("origin", "https://shop.example.com")]), &origins, true).len() > 3);
        assert!(cors(&headers(&[]), &origins, true).is_empty());
    }
}
