//! What of a configuration can only be known by building with it: routes, certificates, addresses, files.
//! Finds all of it at once, and opens no socket.

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::parse_x509_certificate;

use super::certificate::Certificates;
use super::install_cryptography;
use crate::clock::Timestamp;
use crate::config::{Config, Finding, StoreKind, TlsSection};
use crate::edge::Gateway;
use crate::store::redis::RedisStore;

const CERTIFICATE: &str = "listen.tls.certificate_file";
const KEY: &str = "listen.tls.key_file";

/// Everything that cannot be used, and what had better be looked at.
#[must_use]
pub fn check(config: &Config, now: Timestamp) -> Vec<Finding> {
    install_cryptography();
    let mut found = Gateway::check(config);
    let certificates = certificate(config, now);
    let (as_a_whole, usable) = (Certificates::read(config), certificates.iter().all(|finding| finding.is_warning));
    found.extend(certificates);
    if let (Err(said), true) = (as_a_whole, usable) {
        let (key, why) = said.split_once(": ").unwrap_or(("listen.tls", &said));
        found.push(Finding::fault(key, why));
    }
    if config.store.kind == StoreKind::Redis {
        let faults = RedisStore::check(&config.store.redis).into_iter();
        found.extend(faults.map(|(key, message)| Finding::fault(format!("store.redis.{key}"), message)));
    }
    for (tenant, section) in &config.tenants {
        let unreadable =
            section.saas_token.jwks_file.as_deref().and_then(|file| std::fs::read(file).err().map(|e| (file, e)));
        if let Some((file, error)) = unreadable {
            // It is read when the first token comes, and may be there by then.
            let key = format!("tenants.{tenant}.saas_token.jwks_file");
            found.push(Finding::warning(key, said_of(file, error)));
        }
    }
    found
}

/// Reads certificate and key as the listener will: it would panic on what cannot be used.
fn certificate(config: &Config, now: Timestamp) -> Vec<Finding> {
    let Some(tls) = &config.listen.tls else { return Vec::new() };
    let (chain, key) = (chain_of(tls), key_of(tls));
    let mut found: Vec<Finding> = chain.as_ref().err().into_iter().chain(key.as_ref().err()).cloned().collect();
    if let (Ok(chain), Ok(key)) = (chain, key) {
        found.extend(expiry(tls, &chain, now));
        found.extend(mismatch(tls, chain, key));
    }
    found
}

fn chain_of(tls: &TlsSection) -> Result<Vec<CertificateDer<'static>>, Finding> {
    let file = &tls.certificate_file;
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| Finding::fault(CERTIFICATE, said_of(file, error)))?;
    if chain.is_empty() { Err(Finding::fault(CERTIFICATE, said_of(file, "no certificate in it"))) } else { Ok(chain) }
}

fn key_of(tls: &TlsSection) -> Result<PrivateKeyDer<'static>, Finding> {
    PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|error| Finding::fault(KEY, said_of(&tls.key_file, error)))
}

fn mismatch(tls: &TlsSection, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Option<Finding> {
    let built = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Some(match built.err()? {
        rustls::Error::InconsistentKeys(_) => {
            let why = format!("this key does not belong to the certificate of {}", tls.certificate_file.display());
            Finding::fault(KEY, said_of(&tls.key_file, why))
        }
        rustls::Error::InvalidCertificate(error) => Finding::fault(CERTIFICATE, said_of(&tls.certificate_file, error)),
        error => Finding::fault(KEY, said_of(&tls.key_file, error)),
    })
}

/// Says when the first certificate of the chain is over, or will be soon.
fn expiry(tls: &TlsSection, chain: &[CertificateDer<'_>], now: Timestamp) -> Option<Finding> {
    const SOON: Duration = Duration::from_secs(7 * 86_400);
    let (_, certificate) = parse_x509_certificate(chain.first()?).ok()?;
    let over = certificate.validity().not_after;
    let seconds = u64::try_from(over.timestamp()).unwrap_or_default();
    let word = match seconds {
        past if past <= now.seconds() => "expired",
        near if near <= now.after(SOON).seconds() => "expires",
        _ => return None,
    };
    Some(Finding::warning(CERTIFICATE, said_of(&tls.certificate_file, format!("{word} {over}"))))
}

fn said_of(file: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", file.display())
}
