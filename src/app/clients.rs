//! Whom clients' certificates have to come from: changed for the connections to come, as a certificate is.
//! A client whose authority is gone is let in no more, also where it takes up a TLS session of before.

use std::any::Any;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::protocols::tls::TlsRef;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::certificate::end_of;
use crate::edge::listener::Stranger;

/// The authorities of a listener's clients.
#[derive(Debug)]
pub(super) struct ClientRoots {
    roots: Vec<TrustAnchor<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Those that took their place. These stay beside them, for a handshake borrows what it says of them.
    followed_by: OnceLock<Box<Self>>,
}

impl ClientRoots {
    /// # Errors
    /// When there are none.
    pub(super) fn new(roots: RootCertStore) -> Result<Self, String> {
        let anchors = roots.roots.clone();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| error.to_string())?;
        Ok(Self { roots: anchors, verifier, followed_by: OnceLock::new() })
    }

    /// Has others take their place.
    pub(super) fn take(&self, changed: &Self) {
        let (known, changed) = (self.current(), changed.current());
        if known.roots != changed.roots {
            let (roots, verifier) = (changed.roots.clone(), changed.verifier.clone());
            let _ = known.followed_by.set(Box::new(Self { roots, verifier, followed_by: OnceLock::new() }));
        }
    }

    fn current(&self) -> &Self {
        let mut current = self;
        while let Some(next) = current.followed_by.get() {
            current = next;
        }
        current
    }

    /// Whether they stand behind `chain`, which was judged in time when it was shown: one that has ended since says nothing of
    /// the certificate that its owner has by now.
    fn stand_behind(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, more)) = chain.split_first() else { return false };
        let end = end_of(own).map(|end| UnixTime::since_unix_epoch(Duration::from_secs(end)));
        let then = end.map_or_else(UnixTime::now, |end| end.min(UnixTime::now()));
        self.verify_client_cert(own, more, then).is_ok()
    }
}

impl ClientCertVerifier for ClientRoots {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.current().verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.current().verifier.verify_client_cert(own, more, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Judges again who has shaken hands: rustls believes whoever takes up a TLS session of before, whatever it would say now.
pub(super) struct Doorkeeper(pub(super) Arc<ClientRoots>);

#[async_trait]
impl TlsAccept for Doorkeeper {
    async fn handshake_complete_callback(&self, tls: &TlsRef) -> Option<Arc<dyn Any + Send + Sync>> {
        let is_known = self.0.stand_behind(tls.peer_cert_chain_der().unwrap_or_default());
        (!is_known).then(|| Arc::new(Stranger) as Arc<dyn Any + Send + Sync>)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn who_shook_hands_in_time_is_known_as_long_as_his_authority_is() {
        crate::app::install_cryptography();
        let [known, other] = [(); 2].map(|()| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        });
        let roots_of = |issuer: &CertifiedIssuer<'_, KeyPair>| {
            let mut roots = RootCertStore::empty();
            roots.add(issuer.der().clone()).unwrap();
            ClientRoots::new(roots).unwrap()
        };
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let chain = [params.signed_by(&KeyPair::generate().unwrap(), &known).unwrap().der().clone()];
        let roots = roots_of(&known);
        assert!(roots.verify_client_cert(&chain[0], &[], UnixTime::now()).is_err(), "a handshake takes it no more");
        assert!(roots.stand_behind(&chain));
        roots.take(&roots_of(&other));
        assert!(!roots.stand_behind(&chain) && !roots.stand_behind(&[]));
    }
}
