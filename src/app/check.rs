//! What of a configuration can only be known by building with it: routes, certificates, addresses, files.
//! Finds all of it at once, and opens no socket.

use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;

use super::certificate::{CERTIFICATE, KEY, Unusable, client_roots, private_key, said_of, shown_chain};
use super::doors::open_to_others;
use super::install_cryptography;
use crate::clock::Timestamp;
use crate::config::{
    Config, Finding, ForeignBearerMode, ForeignBearerSection, SaasTokenMode, SaasTokenSection, StoreKind, TlsSection,
};
use crate::edge::Gateway;
use crate::identity::keys;
use crate::store::redis::RedisStore;

/// Everything that cannot be used, and what had better be looked at.
#[must_use]
pub fn check(config: &Config, now: Timestamp) -> Vec<Finding> {
    install_cryptography();
    let mut found = Gateway::check(config);
    for (section, tls) in [("listen.tls", &config.listen.tls), ("internal.tls", &config.internal.tls)] {
        found.extend(tls.iter().flat_map(|tls| certificate(section, tls, now)));
    }
    if config.store.kind == StoreKind::Redis {
        let faults = RedisStore::check(&config.store.redis).into_iter();
        found.extend(faults.map(|(key, message)| Finding::fault(format!("store.redis.{key}"), message)));
    }
    let others = config.listen.upgrade_socket.as_deref().and_then(open_to_others);
    found.extend(
        others.map(|others| Finding::warning("listen.upgrade_socket", format!("--upgrade refuses it: {others}"))),
    );
    if config.refresh.lease < config.identity.timeout {
        let overtaken = "shorter than identity.timeout: a leader that cannot renew it may be overtaken";
        found.push(Finding::warning("refresh.lease", overtaken));
    }
    let trusting = [
        ("listen.trusted_proxies", &config.listen.trusted_proxies, "every client chooses its address"),
        ("forward_auth.trusted_peers", &config.forward_auth.trusted_peers, "whoever reaches it is told real tokens"),
    ];
    let trusting = trusting.into_iter().filter(|(_, networks, _)| networks.iter().any(|net| net.prefix_len() == 0));
    found.extend(trusting.map(|(key, _, so)| Finding::warning(key, format!("trusts everybody: {so}"))));
    for (tenant, section) in &config.tenants {
        let warnings = [
            ("saas_token.jwks_file", key_set_fault(&section.saas_token)),
            ("foreign_bearer.until", over(&section.foreign_bearer, now)),
        ];
        let told = warnings.into_iter().filter_map(|(key, why)| Some((key, why?)));
        found.extend(told.map(|(key, why)| Finding::warning(format!("tenants.{tenant}.{key}"), why)));
    }
    found
}

/// Why the file has no key for a tenant's tokens. It is read when the first token comes, and may be there by then.
pub(super) fn key_set_fault(section: &SaasTokenSection) -> Option<String> {
    let file = section.jwks_file.as_ref().filter(|_| section.mode == SaasTokenMode::Jwks)?;
    keys::fault_of(file).map(|why| said_of(file.path(), why))
}

/// Says that nothing is adopted any more.
fn over(section: &ForeignBearerSection, now: Timestamp) -> Option<String> {
    let now = SystemTime::from(now);
    let adopts = section.mode == ForeignBearerMode::Adopt;
    let is_over = adopts && section.until.is_some_and(|until| until <= now);
    is_over.then(|| "is over: nothing is adopted any more, and what was adopted works on".to_owned())
}

/// Reads what a section's listener will, and finds all that is wrong there.
fn certificate(section: &'static str, tls: &TlsSection, now: Timestamp) -> Vec<Finding> {
    let (chain, key) = (shown_chain(tls), private_key(tls));
    let unread = [chain.as_ref().err().cloned(), key.as_ref().err().cloned(), client_roots(tls).err()];
    let (pair, over) = match (chain, key) {
        (Ok(chain), Ok(key)) => (mismatch(tls, &chain, key), expiry(tls, &chain, now)),
        _ => (None, None),
    };
    let at = |key| format!("{section}.{key}");
    let faults = unread.into_iter().chain([pair]).flatten().map(|(key, why)| Finding::fault(at(key), why));
    faults.chain(over.map(|why| Finding::warning(at(CERTIFICATE), why))).collect()
}

fn mismatch(tls: &TlsSection, chain: &[CertificateDer<'static>], key: PrivateKeyDer<'static>) -> Option<Unusable> {
    let built = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain.to_vec(), key);
    Some(match built.err()? {
        rustls::Error::InconsistentKeys(_) => {
            let why = format!("this key does not belong to the certificate of {}", tls.certificate_file.display());
            (KEY, said_of(&tls.key_file, why))
        }
        rustls::Error::InvalidCertificate(error) => (CERTIFICATE, said_of(&tls.certificate_file, error)),
        error => (KEY, said_of(&tls.key_file, error)),
    })
}

/// Says when the first certificate of the chain is over, or will be soon.
fn expiry(tls: &TlsSection, chain: &[CertificateDer<'_>], now: Timestamp) -> Option<String> {
    const SOON: Duration = Duration::from_secs(7 * 86_400);
    let (_, certificate) = parse_x509_certificate(chain.first()?).ok()?;
    let over = certificate.validity().not_after;
    let seconds = u64::try_from(over.timestamp()).unwrap_or_default();
    let word = match seconds {
        past if past <= now.seconds() => "expired",
        near if near <= now.after(SOON).seconds() => "expires",
        _ => return None,
    };
    Some(said_of(&tls.certificate_file, format!("{word} {over}")))
}
