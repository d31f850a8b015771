//! The public listener's certificate: read as a whole or not at all, and changed for the handshakes to come.
//! Where clients are asked for theirs, none without one gets as far as a request.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::TlsSettings;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use crate::config::TlsSection;

/// Certificate and key, as they are now.
#[derive(Debug)]
pub(super) struct Certificate {
    now: ArcSwap<CertifiedKey>,
    section: TlsSection,
}

impl Certificate {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn read(section: &TlsSection) -> Result<Arc<Self>, String> {
        let read = Self { now: ArcSwap::new(Arc::new(certified_key(section)?)), section: section.clone() };
        client_roots(section)?;
        Ok(Arc::new(read))
    }

    /// Takes another one, for the handshakes to come.
    pub(super) fn take(&self, changed: &Self) {
        self.now.store(changed.now.load_full());
    }

    /// What the listener is set up with. HTTP/2 and HTTP/1.1 by ALPN: browsers open WebSockets over the latter.
    pub(super) fn settings(self: &Arc<Self>) -> Result<TlsSettings, String> {
        // The resolver takes the place of the files.
        let mut settings = TlsSettings::intermediate("", "").map_err(|error| error.to_string())?;
        settings.set_cert_resolver(self.clone());
        settings.enable_h2();
        if let Some(roots) = client_roots(&self.section)? {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            settings.set_client_cert_verifier(verifier.map_err(|error| format!("listen.tls.client_ca_file: {error}"))?);
        }
        Ok(settings)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.load_full())
    }
}

fn certified_key(section: &TlsSection) -> Result<CertifiedKey, String> {
    let TlsSection { certificate_file, key_file, .. } = section;
    let chain = certificates("certificate_file", certificate_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unusable("key_file", key_file, &error))?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| unusable("key_file", key_file, &error))
}

/// Whom clients' certificates have to come from; none where none are asked for.
pub(super) fn client_roots(section: &TlsSection) -> Result<Option<RootCertStore>, String> {
    let Some(file) = &section.client_ca_file else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client_ca_file", file)? {
        roots.add(certificate).map_err(|error| unusable("client_ca_file", file, &error))?;
    }
    Ok(Some(roots))
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.map_err(|error| unusable(key, file, &error))?;
    if chain.is_empty() { Err(unusable(key, file, &"no certificate in it")) } else { Ok(chain) }
}

fn unusable(key: &str, file: &Path, why: &dyn std::fmt::Display) -> String {
    format!("listen.tls.{key}: {}: {why}", file.display())
}
