//! What the gateway answers itself: problems, JSON, cookies.
//! One head and one body in one write, never cached, and never a secret in an error.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SET_COOKIE};
use http::{Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::ServerSession;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::broker::{Granted, NumberForm};
use crate::config::{CookieSection, SameSite};
use crate::error::GatewayError;
use crate::session::{Handle, HandleKind, Scope, Transport};

/// An answer of the gateway's own.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    content_type: Option<&'static str>,
    body: Vec<u8>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Answer {
    /// A status alone.
    pub(super) const fn empty(status: u16) -> Self {
        Self { status, content_type: None, body: Vec::new(), headers: Vec::new() }
    }

    /// A JSON document.
    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).unwrap_or_default();
        Self { status, content_type: Some("application/json"), body, headers: Vec::new() }
    }

    /// A body of another type.
    pub(super) const fn text(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self { status, content_type: Some(content_type), body, headers: Vec::new() }
    }

    /// An error (RFC 9457), with the members that clients of Emporix look for.
    pub(super) fn problem(error: &GatewayError) -> Self {
        let status = error.status();
        let mut body = Map::new();
        body.insert("type".into(), format!("urn:emporix-gateway:{}", error.code()).into());
        body.insert("title".into(), StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).into());
        body.insert("status".into(), status.into());
        body.insert("code".into(), error.code().into());
        body.insert("message".into(), error.message().into());
        if let GatewayError::Refused(refusal) = error
            && !refusal.details.is_empty()
        {
            body.insert("details".into(), serde_json::to_value(&refusal.details).unwrap_or_default());
        }
        if let GatewayError::RevocationIncomplete { ended } = error {
            body.insert("ended".into(), (*ended).into());
        }
        if let Some((code, text)) = error.fault() {
            body.insert("fault".into(), serde_json::json!({"faultstring": text, "detail": {"errorcode": code}}));
        }
        let mut answer = Self { content_type: Some("application/problem+json"), ..Self::json(status, &body) };
        if let Some(seconds) = error.retry_after() {
            answer.headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
        }
        answer
    }

    /// The answer of a token route: Emporix' shape, with handles or placeholders where tokens stood.
    pub(super) fn granted(granted: &Granted, cookies: &Cookies) -> Self {
        let mut answer = Self::json(200, &token_fields(granted));
        if let Some(cookie) = &granted.cookie {
            answer = answer.with(SET_COOKIE, cookies.set(cookie));
        }
        answer
    }

    /// Its status.
    pub(super) const fn status(&self) -> u16 {
        self.status
    }

    /// The answer with a further header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The answer with further headers.
    pub(super) fn with_all(mut self, headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Writes the answer.
    pub(super) async fn write(self, http: &mut ServerSession) -> pingora::Result<()> {
        let (head, body) = self.into_parts()?;
        let bodiless = body.is_empty() || http.req_header().method == Method::HEAD;
        let mut tasks = vec![HttpTask::Header(Box::new(head), bodiless)];
        if !bodiless {
            tasks.push(HttpTask::Body(Some(body), true));
        }
        http.response_duplex_vec(tasks).await?;
        Ok(())
    }

    /// Writes the answer to a request whose head could not be read, and of which nothing can be asked therefore.
    pub(super) async fn write_unread(self, http: &mut ServerSession) -> pingora::Result<()> {
        let (head, body) = self.into_parts()?;
        http.write_error_response(head, body).await
    }

    fn into_parts(self) -> pingora::Result<(ResponseHeader, Bytes)> {
        let mut head = ResponseHeader::build_no_case(self.status, Some(self.headers.len() + 4))?;
        head.set_version(Version::HTTP_11);
        if let Some(content_type) = self.content_type {
            head.insert_header(CONTENT_TYPE, HeaderValue::from_static(content_type))?;
        }
        if self.status != 204 {
            head.insert_header(CONTENT_LENGTH, HeaderValue::from(self.body.len()))?;
        }
        head.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        for (name, value) in self.headers {
            head.append_header(name, value)?;
        }
        Ok((head, Bytes::from(self.body)))
    }
}

/// The token fields in both spellings, and the non-secret fields that Emporix gave.
fn token_fields(granted: &Granted) -> Map<String, Value> {
    let mut fields = granted.fields.clone();
    let mut both = |snake: &str, camel: &str, value: Value| {
        fields.insert(snake.to_owned(), value.clone());
        fields.insert(camel.to_owned(), value);
    };
    let (access, refresh) = match granted.scope {
        Scope::Anonymous => (HandleKind::AnonymousAccess, HandleKind::AnonymousRefresh),
        Scope::Customer => (HandleKind::CustomerAccess, HandleKind::CustomerRefresh),
    };
    let stand_in = |handle: &Option<Handle>, kind: HandleKind| match (granted.transport, handle) {
        (Transport::Handle, Some(handle)) => Value::String(handle.to_text().to_string()),
        _ => kind.placeholder().into(),
    };
    let seconds = granted.expires_in.as_secs();
    let life = match granted.number_form {
        NumberForm::Number => Value::from(seconds),
        NumberForm::Text => Value::String(seconds.to_string()),
    };
    both("access_token", "accessToken", stand_in(&granted.access, access));
    both("expires_in", "expiresIn", life.clone());
    if granted.has_refresh {
        both("refresh_token", "refreshToken", stand_in(&granted.refresh, refresh));
        both("refresh_token_expires_in", "refreshTokenExpiresIn", life);
    }
    if granted.has_saas {
        let saas = match &granted.exposed_saas {
            Some(jwt) => Value::String(jwt.expose().to_owned()),
            None => stand_in(&granted.saas, HandleKind::Saas),
        };
        both("saas_token", "saasToken", saas);
    }
    fields
}

/// How our cookie is set.
pub(super) struct Cookies {
    name: &'static str,
    attributes: &'static str,
}

impl Cookies {
    /// As `section` says.
    pub(super) const fn new(section: &CookieSection) -> Self {
        let (name, secure) =
            if section.insecure_loopback { ("emporix-session", false) } else { ("__Host-emporix-session", true) };
        let attributes = match (secure, section.same_site) {
            (true, SameSite::Lax) => "Path=/; HttpOnly; Secure; SameSite=Lax",
            (true, SameSite::Strict) => "Path=/; HttpOnly; Secure; SameSite=Strict",
            (true, SameSite::None) => "Path=/; HttpOnly; Secure; SameSite=None",
            (false, SameSite::Strict) => "Path=/; HttpOnly; SameSite=Strict",
            (false, _) => "Path=/; HttpOnly; SameSite=Lax",
        };
        Self { name, attributes }
    }

    /// The cookie's name.
    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// The `Set-Cookie` that gives a browser its session. Its life is the store's to decide; the browser keeps it a year.
    pub(super) fn set(&self, handle: &Handle) -> HeaderValue {
        const YEAR: u32 = 31_536_000;
        let text = format!("{}={}; Max-Age={YEAR}; {}", self.name, *handle.to_text(), self.attributes);
        let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    /// The `Set-Cookie` that takes it away.
    pub(super) fn expire(&self) -> HeaderValue {
        let text = format!("{}=; Max-Age=0; {}", self.name, self.attributes);
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::Fields;
    use crate::identity::{Refusal, RefusedField};

    fn granted(transport: Transport, number_form: NumberForm) -> Granted {
        Granted {
            transport,
            scope: Scope::Customer,
            access: None,
            refresh: None,
            saas: None,
            cookie: None,
            expires_in: Duration::from_secs(60),
            has_refresh: true,
            has_saas: true,
            exposed_saas: None,
            fields: Fields::new(),
            number_form,
        }
    }

    #[test]
    fn placeholders_name_a_scope_and_nothing_else() {
        let fields = token_fields(&granted(Transport::Cookie, NumberForm::Text));
        assert_eq!(fields["access_token"], "cookie.customer");
        assert_eq!(fields["refreshToken"], "cookie.customer-refresh");
        assert_eq!(fields["saas_token"], "cookie.saas");
        assert_eq!(fields["expires_in"], "60");
        assert_eq!(fields["expiresIn"], "60");
    }

    #[test]
    fn a_problem_has_what_both_kinds_of_client_look_for() {
        let answer = Answer::problem(&GatewayError::SessionEnded);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["code"], "session_ended");
        assert_eq!(body["status"], 401);
        assert_eq!(body["fault"]["detail"]["errorcode"], "keymanagement.service.access_token_expired");
        let refused = GatewayError::Refused(Box::new(Refusal {
            status: 400,
            kind: None,
            message: Some("Bad e-mail".into()),
            details: vec![RefusedField { field: Some("email".into()), message: None }],
        }));
        let body: Value = serde_json::from_slice(&Answer::problem(&refused).body).unwrap();
        assert_eq!(body["message"], "Bad e-mail");
        assert_eq!(body["details"][0]["field"], "email");
        assert!(body.get("fault").is_none());
    }

    #[test]
    fn the_cookie_is_host_bound_unless_local_work_asks_otherwise() {
        let cookies = Cookies::new(&CookieSection::default());
        let expired = cookies.expire();
        assert_eq!(expired, "__Host-emporix-session=; Max-Age=0; Path=/; HttpOnly; Secure; SameSite=Lax");
        let local = Cookies::new(&CookieSection { insecure_loopback: true, ..CookieSection::default() });
        assert_eq!(local.expire(), "emporix-session=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax");
    }
}
