//! A listener's certificate: read as a whole or not at all, and changed for the handshakes to come.
//! Where clients are asked for theirs, none without one gets as far as a request.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::tls::TlsSettings;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;

use super::clients::{ClientRoots, Doorkeeper};
use crate::config::{Config, TlsSection, files};
use crate::telemetry::{Certified, Metrics};

/// The keys of a section.
pub(super) const CERTIFICATE: &str = "certificate_file";
pub(super) const KEY: &str = "key_file";
const CLIENT_CA: &str = "client_ca_file";

/// What of a section cannot be used: a key of it, and why.
pub(super) type Unusable = (&'static str, String);

/// The certificates of the listeners that have one.
#[derive(Clone)]
pub(super) struct Certificates {
    pub(super) public: Option<Arc<Certificate>>,
    pub(super) internal: Option<Arc<Certificate>>,
}

impl Certificates {
    /// Reads those that `config` names.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn read(config: &Config) -> Result<Self, String> {
        let read = |key, tls: &Option<TlsSection>| tls.as_ref().map(|tls| Certificate::read(key, tls)).transpose();
        Ok(Self {
            public: read("listen.tls", &config.listen.tls)?,
            internal: read("internal.tls", &config.internal.tls)?,
        })
    }

    /// Takes other ones, for the handshakes to come. A listener that had none keeps to plain text.
    pub(super) fn take(&self, changed: &Self) {
        for pair in [(&self.public, &changed.public), (&self.internal, &changed.internal)] {
            if let (Some(known), Some(changed)) = pair {
                known.now.store(changed.now.load_full());
                if let (Some(known), Some(changed)) = (&known.clients, &changed.clients) {
                    known.take(changed);
                }
            }
        }
    }

    /// Tells when those end that are shown now.
    pub(super) fn tell(&self, metrics: &Metrics) {
        for (listener, shown) in [(Certified::Public, &self.public), (Certified::Internal, &self.internal)] {
            metrics.certificate_expires.set(listener, shown.as_ref().and_then(|shown| shown.ends()).unwrap_or(0));
        }
    }
}

/// Certificate and key, as they are now.
#[derive(Debug)]
pub(super) struct Certificate {
    now: ArcSwap<CertifiedKey>,
    /// Whom clients' certificates have to come from; none where none are asked for.
    clients: Option<Arc<ClientRoots>>,
}

impl Certificate {
    /// Reads certificate and key of the section at `key`.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    fn read(key: &'static str, section: &TlsSection) -> Result<Arc<Self>, String> {
        let at = |(of, why): Unusable| format!("{key}.{of}: {why}");
        let now = ArcSwap::from_pointee(certified_key(section).map_err(at)?);
        let clients = client_roots(section).map_err(at)?.map(ClientRoots::new).transpose();
        let clients = clients.map_err(|why| at((CLIENT_CA, why)))?.map(Arc::new);
        Ok(Arc::new(Self { now, clients }))
    }

    /// When the one that is shown now ends, in seconds since 1970.
    fn ends(&self) -> Option<usize> {
        usize::try_from(end_of(self.now.load().cert.first()?)?).ok()
    }

    /// What a listener for browsers is set up with: HTTP/2 and HTTP/1.1 by ALPN, for they open WebSockets over the latter.
    pub(super) fn settings_for_browsers(self: &Arc<Self>) -> Result<TlsSettings, String> {
        let mut settings = self.settings()?;
        settings.enable_h2();
        Ok(settings)
    }

    /// What a listener is set up with that speaks HTTP/1.1 alone.
    pub(super) fn settings(self: &Arc<Self>) -> Result<TlsSettings, String> {
        // The resolver takes the place of the files.
        let settings = match &self.clients {
            None => TlsSettings::intermediate("", ""),
            Some(clients) => TlsSettings::with_callbacks(Box::new(Doorkeeper(clients.clone()))),
        };
        let mut settings = settings.map_err(|error| error.to_string())?;
        settings.set_cert_resolver(self.clone());
        if let Some(clients) = &self.clients {
            settings.set_client_cert_verifier(clients.clone());
        }
        Ok(settings)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.load_full())
    }
}

fn certified_key(section: &TlsSection) -> Result<CertifiedKey, Unusable> {
    let (chain, key) = (shown_chain(section)?, private_key(section)?);
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| (KEY, said_of(&section.key_file, error)))
}

/// The certificate of the section, and those that it is shown with.
pub(super) fn shown_chain(section: &TlsSection) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    certificates(&section.certificate_file).map_err(|why| (CERTIFICATE, why))
}

/// Its key.
pub(super) fn private_key(section: &TlsSection) -> Result<PrivateKeyDer<'static>, Unusable> {
    let file = &section.key_file;
    let pem = read_pem(file).map_err(|why| (KEY, why))?;
    let is_encrypted =
        || ["BEGIN ENCRYPTED", ",ENCRYPTED"].iter().any(|mark| String::from_utf8_lossy(&pem).contains(mark));
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let why = match error {
            _ if is_encrypted() => said_of(file, "the private key in it is encrypted, and cannot be read"),
            pem::Error::NoItemsFound => said_of(file, "no private key in it"),
            error => said_of(file, error),
        };
        (KEY, why)
    })
}

/// The authorities of the section.
pub(super) fn client_roots(section: &TlsSection) -> Result<Option<RootCertStore>, Unusable> {
    let Some(file) = &section.client_ca_file else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file).map_err(|why| (CLIENT_CA, why))? {
        roots.add(certificate).map_err(|error| (CLIENT_CA, said_of(file, error)))?;
    }
    Ok(Some(roots))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_pem(file)?;
    let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = read.map_err(|error| said_of(file, error))?;
    if chain.is_empty() { Err(said_of(file, "no certificate in it")) } else { Ok(chain) }
}

/// The last second of a certificate, in seconds since 1970.
pub(super) fn end_of(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

fn read_pem(file: &Path) -> Result<Vec<u8>, String> {
    files::read(file, files::MOST_KEYS).map_err(|error| said_of(file, error))
}

pub(super) fn said_of(file: &Path, why: impl std::fmt::Display) -> String {
    format!("{}: {why}", file.display())
}
