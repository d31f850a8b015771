//! What types alone cannot say of a configuration: values that contradict each other or cannot work.
//! Pure: reads no file and opens no socket.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use super::routes::{Access, Inject, OnSuccess, RouteLimit, RouteRule, SaasInjection};
use super::sections::{CookieSection, ForeignBearerMode, SaasAlgorithm, SaasTokenMode, SameSite, TenantSection};
use super::store::{RedisSection, RedisTopology, SealSection, StoreKind};
use super::{Config, Secret, ServiceSection, TracesSection};

/// Every contradiction, as key and message.
pub(super) fn faults(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut fault = |key: &str, message: &str| found.push((key.to_owned(), message.to_owned()));
    if config.tenants.is_empty() {
        fault("tenants", "expected at least one tenant");
    }
    if !is_base_url(&config.upstream.base_url) {
        fault("upstream.base_url", "expected http:// or https://, a host, perhaps a port, and no path");
    }
    if config.listen.threads == 0 {
        fault("listen.threads", "expected 1 or more");
    }
    if config.listen.drain_timeout > Duration::from_secs(86_400) {
        fault("listen.drain_timeout", "expected a day at most");
    }
    if !(0.01..=0.9).contains(&config.refresh.margin) {
        fault("refresh.margin", "expected a share from 0.01 to 0.9");
    }
    if config.refresh.lease < Duration::from_secs(1) {
        fault("refresh.lease", "expected a second or more");
    }
    for (key, idle) in [
        ("session.visitor_idle", config.session.visitor_idle),
        ("session.customer_idle", config.session.customer_idle),
        ("session.absolute", config.session.absolute),
    ] {
        if idle < Duration::from_secs(60) {
            fault(key, "expected a minute or more");
        }
    }
    if config.identity.timeout.is_zero() {
        fault("identity.timeout", "expected more than nothing");
    }
    if config.hot_cache.hot_grace < config.hot_cache.revalidate_after {
        fault("hot_cache.hot_grace", "expected no less than hot_cache.revalidate_after");
    }
    check_addresses(config, &mut fault);
    for (key, token) in [("admin.token", &config.admin.token), ("internal.token", &config.internal.token)] {
        if token.as_ref().is_some_and(|token| !is_long_token(token.expose())) {
            fault(key, "expected 16 to 256 printable characters without spaces (openssl rand -hex 32)");
        }
    }
    check_internal(config, &mut fault);
    for (index, rule) in config.routes.iter().enumerate() {
        check_service_rule(config, rule, &mut |key, message| fault(&format!("routes.{index}.{key}"), message));
    }
    check_cookie(config, &config.cookie, &mut fault);
    if config.store.kind == StoreKind::Redis {
        check_redis(&config.store.redis, &mut fault);
        check_seal(&config.store.seal, &mut fault);
    }
    check_webhook_secrets(config, &mut fault);
    check_traces(&config.traces, &mut fault);
    for (tenant, section) in &config.tenants {
        check_tenant(section, &mut |key, message| fault(&format!("tenants.{tenant}.{key}"), message));
    }
    found
}

/// Every listener has an address of its own, and verdicts are for somebody.
fn check_addresses(config: &Config, fault: &mut impl FnMut(&str, &str)) {
    let listeners: Vec<_> = config.listeners().collect();
    for (index, (key, address)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners[..index].iter().find(|(_, other)| are_one(*address, *other)) {
            fault(key, &format!("expected another address than {other}"));
        }
    }
    if config.forward_auth.listen.is_some() && config.forward_auth.trusted_peers.is_empty() {
        fault("forward_auth.trusted_peers", "expected the networks of the proxies that may ask");
    }
}

/// Whether who listens on one cannot listen on the other: the unspecified address is all of its family's, and IPv6's those of
/// IPv4 too.
fn are_one(one: SocketAddr, other: SocketAddr) -> bool {
    let [one, other] = [one, other].map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
    let covers = |all: SocketAddr, one: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}

/// Who reaches the internal listener acts with a service's rights: it opens to nobody unknown.
fn check_internal(config: &Config, fault: &mut impl FnMut(&str, &str)) {
    let internal = &config.internal;
    if internal.listen.is_some() && internal.token.is_none() && !internal.asks_for_certificates() {
        fault("internal.listen", "expected internal.token or internal.tls.client_ca_file, so that callers are known");
    }
}

/// A service that somebody has, and nothing that only a session's request could mean.
fn check_service_rule(config: &Config, rule: &RouteRule, fault: &mut impl FnMut(&str, &str)) {
    let Access::Service(service) = &rule.access else { return };
    if !config.tenants.values().any(|tenant| tenant.services.contains_key(service)) {
        fault("access", "expected a service that stands under `services` of a tenant");
    }
    let meaningless = [
        ("inject", rule.inject != Inject::Session),
        ("saas_token", rule.saas_token != SaasInjection::Never),
        ("limit", rule.limit != RouteLimit::None),
        ("on_success", rule.on_success != OnSuccess::Nothing),
    ];
    for (key, _) in meaningless.into_iter().filter(|(_, set)| *set) {
        fault(key, "means nothing with access: service");
    }
}

fn check_service(service: &ServiceSection, fault: &mut impl FnMut(&str, &str)) {
    if !is_client_id(&service.client_id) {
        fault("client_id", "expected the id of a client at Emporix");
    }
    let secret = service.client_secret.as_ref().map(Secret::expose);
    if secret.is_none_or(|secret| secret.is_empty() || secret.len() > 1_024) {
        fault("client_secret", "expected the client's secret, or client_secret_file");
    }
    let is_scope = |b: u8| b == b' ' || b.is_ascii_graphic();
    if service.scope.len() > 4_096 || !service.scope.bytes().all(is_scope) {
        fault("scope", "expected scopes parted by spaces, 4096 bytes at most");
    }
}

fn is_client_id(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Scheme, host and perhaps a port. An empty host would switch certificate checks off, so it is no URL here.
fn is_base_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.and_then(|rest| rest.parse::<http::uri::Authority>().ok())
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
}

/// Long enough not to be guessed, and fit for a header.
fn is_long_token(token: &str) -> bool {
    (16..=256).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic())
}

fn check_cookie(config: &Config, cookie: &CookieSection, fault: &mut impl FnMut(&str, &str)) {
    if cookie.insecure_loopback && !config.listen.public.ip().is_loopback() {
        fault("cookie.insecure_loopback", "expected only where listen.public is a loopback address");
    }
    if cookie.insecure_loopback && cookie.same_site == SameSite::None {
        fault("cookie.same_site", "`none` needs a Secure cookie: browsers drop it otherwise");
    }
}

fn check_traces(traces: &TracesSection, fault: &mut impl FnMut(&str, &str)) {
    let is_address = |url: &Secret| Url::parse(url.expose()).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if traces.otlp_endpoint.as_ref().is_some_and(|url| !is_address(url)) {
        fault("traces.otlp_endpoint", "expected http:// or https://, as in http://127.0.0.1:4318/v1/traces");
    }
    if !(0.0..=1.0).contains(&traces.sample) {
        fault("traces.sample", "expected a share from 0 to 1");
    }
}

/// An event without a tenant in it would be believed by all who share its key.
fn check_webhook_secrets(config: &Config, fault: &mut impl FnMut(&str, &str)) {
    let mut known = HashSet::new();
    for (tenant, section) in &config.tenants {
        let secret = section.webhook.secret.as_ref().map(Secret::expose);
        if secret.is_some_and(|secret| !known.insert(secret)) {
            fault(&format!("tenants.{tenant}.webhook.secret"), "expected another secret than any other tenant's");
        }
    }
}

fn check_redis(redis: &RedisSection, fault: &mut impl FnMut(&str, &str)) {
    let is_address = |url: &str| ["redis://", "rediss://"].iter().any(|scheme| url.starts_with(scheme));
    match (redis.topology, &redis.url) {
        (RedisTopology::Standalone, None) => fault("store.redis.url", "needed by store.kind: redis"),
        (RedisTopology::Standalone, Some(url)) if !is_address(url.expose()) => {
            fault("store.redis.url", "expected redis:// or rediss://");
        }
        (RedisTopology::Standalone, Some(_)) => {}
        (RedisTopology::Sentinel | RedisTopology::Cluster, _) if redis.nodes.is_empty() => {
            fault("store.redis.nodes", "needed by this topology");
        }
        (RedisTopology::Sentinel, _) if redis.sentinel.service.is_empty() => {
            fault("store.redis.sentinel.service", "needed by store.redis.topology: sentinel");
        }
        _ => {}
    }
    for (key, bound) in [("connect_timeout", redis.connect_timeout), ("response_timeout", redis.response_timeout)] {
        if bound.is_zero() {
            fault(&format!("store.redis.{key}"), "expected more than nothing");
        }
    }
    let waits = Duration::from_millis(1)..=Duration::from_secs(5);
    if !redis.replica_timeout.is_zero() && !waits.contains(&redis.replica_timeout) {
        fault("store.redis.replica_timeout", "expected 0s, or a millisecond to five seconds");
    }
    let schemes: Vec<_> = redis.nodes.iter().map(|node| node.split_once("://").map(|(scheme, _)| scheme)).collect();
    if redis.nodes.iter().any(|node| !is_address(node) || node.contains('@')) {
        fault("store.redis.nodes", "expected redis:// or rediss:// addresses without credentials");
    } else if schemes.windows(2).any(|pair| pair[0] != pair[1]) {
        fault("store.redis.nodes", "expected either redis:// or rediss://, not both");
    }
}

fn check_seal(seal: &SealSection, fault: &mut impl FnMut(&str, &str)) {
    if !seal.keys.iter().any(|key| key.id == seal.active) {
        fault("store.seal.active", "expected the id of one of store.seal.keys");
    }
    for (index, key) in seal.keys.iter().enumerate() {
        let well_formed = (1..=16).contains(&key.id.len())
            && key.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        if !well_formed {
            fault(&format!("store.seal.keys.{index}.id"), "expected 1 to 16 letters, digits, dots and dashes");
        }
        if seal.keys[..index].iter().any(|earlier| earlier.id == key.id) {
            fault(&format!("store.seal.keys.{index}.id"), "stands twice");
        }
        let bytes = key.secret.as_ref().and_then(|secret| STANDARD.decode(secret.expose()).ok());
        if bytes.is_none_or(|bytes| bytes.len() != 32) {
            fault(&format!("store.seal.keys.{index}.secret"), "expected 32 bytes in base64 (openssl rand -base64 32)");
        }
    }
}

fn check_tenant(tenant: &TenantSection, fault: &mut impl FnMut(&str, &str)) {
    if !is_client_id(&tenant.client_id) {
        fault("client_id", "expected the tenant's storefront key");
    }
    for origin in &tenant.origins {
        let exact = is_base_url(origin) && *origin == origin.to_lowercase();
        if !exact {
            fault("origins", "expected exact origins such as https://shop.example.com");
        }
    }
    for host in &tenant.hosts {
        if host.is_empty() || *host != host.to_lowercase() || host.contains(['/', '@', ' ']) {
            fault("hosts", "expected lowercase host names");
        }
    }
    let saas = &tenant.saas_token;
    match saas.mode {
        SaasTokenMode::Hs256 if saas.secret.as_ref().is_none_or(|secret| secret.expose().is_empty()) => {
            fault("saas_token.secret", "needed by saas_token.mode: hs256");
        }
        SaasTokenMode::Jwks if saas.jwks_file.is_some() == saas.jwks_url.is_some() => {
            fault("saas_token.jwks_url", "saas_token.mode: jwks needs either jwks_file or jwks_url");
        }
        _ => {}
    }
    let symmetric = saas.algorithms.contains(&SaasAlgorithm::HS256);
    let asymmetric = saas.algorithms.iter().any(|algorithm| *algorithm != SaasAlgorithm::HS256);
    if (saas.mode == SaasTokenMode::Jwks && symmetric) || (saas.mode == SaasTokenMode::Hs256 && asymmetric) {
        fault("saas_token.algorithms", "expected algorithms of the mode's own family");
    }
    if saas.jwks_url.as_deref().is_some_and(|url| !Url::parse(url).is_ok_and(|url| serves_keys(&url))) {
        fault("saas_token.jwks_url", "expected https:// (http:// on this machine alone), without a user");
    }
    if saas.expose && !saas.accept {
        fault("saas_token.expose", "expected only together with saas_token.accept");
    }
    if tenant.foreign_bearer.mode == ForeignBearerMode::Adopt && tenant.foreign_bearer.until.is_none() {
        fault("foreign_bearer.until", "adopt needs an end, such as 2027-01-31T00:00:00Z");
    }
    let webhook = &tenant.webhook;
    if webhook.secret.as_ref().is_some_and(|secret| secret.expose().is_empty()) {
        fault(
            "webhook.secret",
            "expected the secret key of the webhook at Emporix: anybody could sign with an empty one",
        );
    }
    if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&webhook.max_age) {
        fault("webhook.max_age", "expected a second to a day");
    }
    for (name, service) in &tenant.services {
        check_service(service, &mut |key, message| fault(&format!("services.{name}.{key}"), message));
    }
}

/// Whether a key set from there is the tenant's: over TLS, or from this machine. What opens it to a user is no public key set,
/// and would be printed with the configuration.
fn serves_keys(url: &Url) -> bool {
    let is_here = matches!(url.host(), Some(url::Host::Ipv4(address)) if address.is_loopback());
    (url.scheme() == "https" || (url.scheme() == "http" && is_here))
        && url.username().is_empty()
        && url.password().is_none()
}
