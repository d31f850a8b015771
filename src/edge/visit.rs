//! Who came: the tenant that a request names, the address that it comes from, and what its answer owes to both.
//! Names that contradict each other are refused; addresses are believed of trusted proxies only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use http::HeaderMap;
use http::header::{HOST, HeaderName, HeaderValue};
use ipnet::IpNet;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use super::route::{Found, Route, TokenRoute};
use super::target::Target;
use super::{Gateway, proof};
use crate::config::{Config, TenantSection, TransportMode};
use crate::error::GatewayError;
use crate::session::{TenantId, Transport};
use crate::telemetry::trace::{Span, SpanKind};
use crate::telemetry::{Label, RouteClass};

const EMPORIX_TENANT: HeaderName = HeaderName::from_static("emporix-tenant");

/// A tenant, as the edge needs it.
pub(super) struct EdgeTenant {
    pub(super) id: TenantId,
    pub(super) transport: TransportMode,
    pub(super) origins: Vec<String>,
}

impl EdgeTenant {
    /// How the credentials of a session travel that this request creates.
    pub(super) fn transport_at_birth(&self, headers: &HeaderMap) -> Transport {
        match self.transport {
            TransportMode::Cookie => Transport::Cookie,
            TransportMode::Auto if proof::is_same_origin(headers) => Transport::Cookie,
            TransportMode::Auto | TransportMode::Handle => Transport::Handle,
        }
    }
}

/// What is known of a request when it ends.
pub(super) struct Visit<'g> {
    pub(super) class: RouteClass,
    pub(super) tenant: Option<&'g EdgeTenant>,
    /// Whether the cookie is the credential, and so what a session that is gone expires.
    pub(super) by_cookie: bool,
    pub(super) cors: Vec<(HeaderName, HeaderValue)>,
    /// Whether the gateway, and not Emporix, is to blame for a 5xx.
    pub(super) at_fault: bool,
    /// When its answer became a stream: what it lasts from then on says nothing of how fast it was served.
    pub(super) streams_since: Option<Instant>,
    /// Its span, where its trace is sampled.
    pub(super) span: Option<Span>,
}

impl<'g> Visit<'g> {
    pub(super) const fn new() -> Self {
        Self {
            class: RouteClass::None,
            tenant: None,
            by_cookie: false,
            cors: Vec::new(),
            at_fault: false,
            streams_since: None,
            span: None,
        }
    }

    /// The span of something that the request waits for.
    pub(super) fn child_span(&self, name: &'static str) -> Option<Span> {
        self.span.as_ref()?.context().child((name, ""), SpanKind::Client)
    }

    pub(super) fn class_text(&self) -> &'static str {
        self.class.text()
    }

    pub(super) fn tenant_text(&self) -> &'g str {
        self.tenant.map_or("-", |tenant| tenant.id.as_str())
    }

    pub(super) fn tenant_id(&self) -> Option<&'g TenantId> {
        self.tenant.map(|tenant| &tenant.id)
    }

    /// The origins that may call for the tenant.
    pub(super) fn origins(&self) -> &'g [String] {
        self.tenant.map_or(&[], |tenant| &tenant.origins)
    }
}

/// What names a request's tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamedBy {
    Path,
    Query,
    Header,
    Host,
    /// Nothing: there is only one.
    Default,
}

/// The tenants that are served, by name and by host.
pub(super) struct Tenants {
    known: HashMap<TenantId, EdgeTenant>,
    hosts: HashMap<String, TenantId>,
}

impl Tenants {
    /// The tenants of `config`.
    pub(super) fn new(config: &Config) -> Self {
        let tenant = |(id, section): (&TenantId, &TenantSection)| {
            (*id, EdgeTenant { id: *id, transport: section.transport, origins: section.origins.clone() })
        };
        let hosts =
            config.tenants.iter().flat_map(|(id, section)| section.hosts.iter().map(move |host| (host.clone(), *id)));
        Self { known: config.tenants.iter().map(tenant).collect(), hosts: hosts.collect() }
    }

    /// The tenant of this name.
    pub(super) fn get(&self, name: &str) -> Result<&EdgeTenant, GatewayError> {
        self.known.get(name).ok_or(GatewayError::UnknownTenant)
    }

    /// The tenant that the request names: in its path, in the query of the anonymous routes, in `Emporix-Tenant`, by
    /// its host. Names that contradict each other are refused; without one, the session decides.
    pub(super) fn named(
        &self,
        found: &Found<'_, '_>,
        target: &Target<'_>,
        head: &RequestHeader,
    ) -> Result<Option<(&EdgeTenant, NamedBy)>, GatewayError> {
        let in_query = match found.route {
            Route::Token(TokenRoute::AnonymousLogin | TokenRoute::AnonymousRefresh) => {
                let mut named = target.parameters().filter(|(name, _)| name == "tenant" || name == "hybris-tenant");
                let (_, tenant) = named.next().ok_or(GatewayError::BadRequest("tenant is missing"))?;
                if named.any(|(_, other)| other != tenant) {
                    return Err(GatewayError::TenantMismatch);
                }
                Some(tenant)
            }
            _ => None,
        };
        let in_path = found.tenant.map(|name| (name, NamedBy::Path));
        let in_target = in_path.or_else(|| in_query.as_deref().map(|name| (name, NamedBy::Query)));
        let named = in_target.map(|(name, by)| Ok::<_, GatewayError>((self.get(name)?, by))).transpose()?;
        let mut in_headers = head.headers.get_all(EMPORIX_TENANT).iter();
        let in_header = match in_headers.next() {
            Some(value) => Some(self.get(value.to_str().unwrap_or_default())?),
            None => None,
        };
        if in_headers.next().is_some() {
            return Err(GatewayError::BadRequest("Emporix-Tenant stands twice"));
        }
        match (named, in_header) {
            (Some((named, _)), Some(other)) if named.id != other.id => Err(GatewayError::TenantMismatch),
            (Some(named), _) => Ok(Some(named)),
            (None, Some(tenant)) => Ok(Some((tenant, NamedBy::Header))),
            (None, None) => Ok(self.of_host(head)),
        }
    }

    fn of_host(&self, head: &RequestHeader) -> Option<(&EdgeTenant, NamedBy)> {
        if self.known.len() == 1 {
            return self.known.values().next().map(|tenant| (tenant, NamedBy::Default));
        }
        let authority = match head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => head.headers.get(HOST)?.to_str().ok()?,
        };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let tenant = self.hosts.get(&host.to_ascii_lowercase()).and_then(|tenant| self.known.get(tenant))?;
        Some((tenant, NamedBy::Host))
    }
}

impl Gateway {
    /// The tenant that the request names.
    pub(super) fn tenant_of(
        &self,
        found: &Found<'_, '_>,
        target: &Target<'_>,
        head: &RequestHeader,
    ) -> Result<Option<&EdgeTenant>, GatewayError> {
        Ok(self.tenants.named(found, target, head)?.map(|(tenant, _)| tenant))
    }

    /// The client's address: the connection's, or what proxies that are trusted, or among `peers`, say of it.
    pub(super) fn client_address(&self, http: &ServerSession, peers: &[IpNet]) -> Option<IpAddr> {
        let peer = peer_of(http)?;
        let trusted = |address: &IpAddr| is_among(self.trusted_proxies.iter().chain(peers), *address);
        if !trusted(&peer) {
            return Some(peer);
        }
        let forwarded = http.req_header().headers.get_all("x-forwarded-for").iter().rev();
        let named = forwarded.filter_map(|value| value.to_str().ok()).flat_map(|value| value.rsplit(','));
        let named = named.map_while(|address| Some(address.trim().parse::<IpAddr>().ok()?.to_canonical()));
        let mut last = peer;
        for address in named {
            last = address;
            if !trusted(&address) {
                break;
            }
        }
        Some(last)
    }
}

/// Whether one of `networks` holds `address`, which may be named in either family's form where it is of IPv4.
pub(super) fn is_among<'n>(mut networks: impl Iterator<Item = &'n IpNet>, address: IpAddr) -> bool {
    let mapped = match address {
        IpAddr::V4(address) => Some(IpAddr::V6(address.to_ipv6_mapped())),
        IpAddr::V6(_) => None,
    };
    networks.any(|net| net.contains(&address) || mapped.is_some_and(|mapped| net.contains(&mapped)))
}

/// Who speaks on this connection: an IPv4 address also where the listener is on `[::]`, which sees it as `::ffff:…`.
pub(super) fn peer_of(http: &ServerSession) -> Option<IpAddr> {
    Some(http.client_addr()?.as_inet()?.ip().to_canonical())
}
