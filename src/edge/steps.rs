//! The edge's steps of an API request, one by one, for `benches/hot_path.rs` and nobody else.
//! Each calls what serves requests and adds nothing; the permit comes from the broker, as ever.

use bytes::BytesMut;
use http::{HeaderValue, Method};
use pingora::http::RequestHeader;

use super::headers::{self, Framing, Outgoing};
use super::line::ApiHead;
use super::respond::Cookies;
use super::route::{Route, RouteTable};
use super::slots::Presented;
use super::target::Target;
use crate::broker::{Credential, Demand, Permit};
use crate::config::CookieSection;

/// A client's GET and the head that the API answers, with what the steps between them need.
pub struct Steps {
    routes: RouteTable,
    cookies: Cookies,
    client: RequestHeader,
    host: HeaderValue,
    address: HeaderValue,
    answer: ApiHead,
}

impl Steps {
    /// The steps of a GET of `target`, by the shipped routes; none where a part of it cannot be parsed.
    #[must_use]
    pub fn new(target: &str, fields: &[(&'static str, &str)], answer: &str) -> Option<Self> {
        let mut client = RequestHeader::build(Method::GET, target.as_bytes(), None).ok()?;
        for (name, value) in fields {
            client.append_header(*name, *value).ok()?;
        }
        Some(Self {
            routes: RouteTable::new(&[]).ok()?,
            cookies: Cookies::new(&CookieSection::default()),
            client,
            host: HeaderValue::from_static("api.emporix.io"),
            address: HeaderValue::from_static("127.0.0.1"),
            answer: ApiHead::take(&mut BytesMut::from(answer)).ok()??,
        })
    }

    /// The path of the target, unless that is refused.
    #[must_use]
    pub fn parse_target(&self) -> Option<&str> {
        Some(Target::parse(self.client.raw_path()).ok()?.path)
    }

    /// What the route of `path` demands, of a tenant that is yet to be named.
    #[must_use]
    pub fn find_route(&self, path: &str) -> Option<Demand<'_>> {
        let Route::Api(route) = self.routes.find(self.client.method.as_str(), path).route else { return None };
        Some(Demand {
            tenant: None,
            access: &route.access,
            inject: route.inject,
            saas_token: route.saas_token,
            visits: &[],
            safe: self.client.method.is_safe(),
        })
    }

    /// The credential.
    #[must_use]
    pub fn find_credential(&self) -> Option<Credential> {
        Presented::take(&self.client.headers, self.cookies.name(), &[]).ok()?.credential
    }

    /// The head that goes to the API.
    #[must_use]
    pub fn write_outgoing(&self, permit: &Permit) -> Option<BytesMut> {
        let with = Outgoing {
            permit,
            cookie_name: self.cookies.name(),
            host: &self.host,
            client: Some(&self.address),
            secure: false,
            upgrade: false,
            body: Framing::None,
            trace: None,
        };
        headers::outgoing(&self.client, &with).ok()
    }

    /// The head that goes to the client.
    #[must_use]
    pub fn turn_incoming(&self, permit: &Permit) -> Option<impl Sized> {
        headers::incoming(&self.answer, self.cookies.name(), !permit.is_shared(), false).ok()
    }
}
