//! Whose certificates a client takes, where rustls' own verifier does not decide that alone.

use std::fmt::Write as _;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, VerifierBuilderError};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// Takes what one of these certificates has issued, and each of them.
#[derive(Debug)]
pub(super) struct Listed {
    certificates: Vec<CertificateDer<'static>>,
    by_issuer: Arc<WebPkiServerVerifier>,
}

impl Listed {
    /// For at least one certificate.
    ///
    /// # Errors
    /// One of them cannot be trusted.
    pub(super) fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone())?;
        }
        let by_issuer = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self {
            certificates,
            by_issuer: by_issuer.map_err(|error| match error {
                VerifierBuilderError::InvalidCrl(error) => error.into(),
                error => rustls::Error::General(error.to_string()),
            })?,
        })
    }
}

/// webpki takes no authority's certificate for a server's, and `openssl req -x509` makes only such. OpenSSL, and so curl,
/// takes one that is listed itself. webpki has found it to be in its time by then.
fn is_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    let cause = other.0.downcast_ref();
    matches!(cause, Some(webpki::Error::CaUsedAsEndEntity))
}

impl ServerCertVerifier for Listed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.by_issuer.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(error) if is_authority(&error) && self.certificates.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_issuer.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_issuer.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_issuer.supported_verify_schemes()
    }
}

/// The SHA-256 of a certificate in hexadecimal.
pub(super) fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    digest.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a String does not fail");
        hex
    })
}

/// Takes every certificate, or the one that is pinned; but no handshake signed by another key than the certificate's.
#[derive(Debug)]
pub(super) struct AnyIssuer {
    /// The SHA-256 of that one, as [`fingerprint`] has it.
    pub(super) pinned: Option<String>,
    pub(super) provider: Arc<CryptoProvider>,
}

/// Another certificate than the one that is pinned.
#[derive(Debug, thiserror::Error)]
#[error("the server's certificate has the SHA-256 {0}, which is not the one asked for")]
struct NotPinned(String);

impl ServerCertVerifier for AnyIssuer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(pinned) = &self.pinned {
            let shown = fingerprint(end_entity);
            if shown != *pinned {
                let other = OtherError(Arc::new(NotPinned(shown)));
                return Err(CertificateError::Other(other).into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;
    use crate::tls::unaccepted::unaccepted;

    /// As `openssl req -x509` makes them: an authority of its own.
    fn own_authority() -> (CertificateDer<'static>, CertificateParams, KeyPair) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().clone(), params, key)
    }

    /// What is said of a certificate by whom only that list is trusted.
    fn verified(
        list: &CertificateDer<'static>,
        shown: &CertificateDer<'_>,
        name: &'static str,
        year: u64,
    ) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let listed = Listed::new(vec![list.clone()], provider).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
        let name = ServerName::try_from(name).unwrap();
        let verified = listed.verify_server_cert(shown, &[], &name, &[], now);
        verified
            .map(drop)
            .map_err(|error| unaccepted(&error).unwrap().to_string())
    }

    #[test]
    fn an_authority_that_is_listed_itself_is_a_server_too() {
        let (own, ..) = own_authority();
        assert_eq!(verified(&own, &own, "localhost", 2025), Ok(()));
        let fails = |shown: &CertificateDer<'_>, name, year, why: &str| {
            let said = verified(&own, shown, name, year).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        fails(&own, "other", 2025, "it is for localhost");
        fails(&own, "localhost", 2031, "expired");
        fails(&own, "localhost", 2019, "not valid yet");
        let (another, ..) = own_authority();
        fails(&another, "localhost", 2025, "an authority");
    }

    #[test]
    fn what_a_listed_one_has_issued_is_taken() {
        let (own, params, key) = own_authority();
        let issuer = rcgen::Issuer::new(params, key);
        let server = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = server.signed_by(&key, &issuer).unwrap();
        assert_eq!(verified(&own, issued.der(), "localhost", 2025), Ok(()));
        let (stranger, ..) = own_authority();
        let said = verified(&stranger, issued.der(), "localhost", 2025).unwrap_err();
        assert!(
            said.contains("signature") || said.contains("issued"),
            "{said}"
        );
    }
}
