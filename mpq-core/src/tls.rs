//! TLS 1.3 configurations for HTTP/3 over noq, by rustls with the ring provider.
//!
//! A client says whom it trusts ([`Trust`]), a server who it is ([`Identity`]); [`client_config`]
//! and [`server_config`] turn that into what noq wants, [`rustls_client`] and [`rustls_server`]
//! into what any other QUIC on rustls takes. All offer the one protocol `h3` (RFC 9114 §3.1), and
//! QUIC allows nothing older than TLS 1.3 (RFC 9001 §4.2).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use noq::ConnectionError;
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_platform_verifier::BuilderVerifierExt;

pub use self::unaccepted::{Unaccepted, unaccepted};
use self::verifiers::{AnyIssuer, Listed, fingerprint};
use crate::proto::probe::{KnockKey, Secret};

mod unaccepted;
mod verifiers;

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate or key file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not well-formed PEM.
    #[error("{} is not valid PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A PEM file holds nothing of the wanted kind.
    #[error("{} holds no {wanted} in PEM form", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        wanted: &'static str,
    },
    /// A private key is encrypted.
    #[error("the key in {} is encrypted: decrypt it first, as `openssl pkey` does", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// A private key is of a kind that is not supported, or damaged.
    #[error(
        "the key in {} cannot be used ({source}): supported are RSA with 2048 to 8192 bits, ECDSA on P-256 or P-384, \
         and Ed25519",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// A certificate in a file cannot be a root of trust.
    #[error("a certificate in {} cannot be used: {source}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// A certificate file and a key file do not make an identity, mostly since they do not match.
    #[error("{} and {} do not go together: {}", cert.display(), key.display(), unpaired(source))]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What is wrong with the pair.
        source: rustls::Error,
    },
    /// A certificate chain and key given as values cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Identity(#[source] rustls::Error),
    /// No certificate can be made for the names.
    #[error("cannot make a certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
    /// [`Trust::Pinned`] is no SHA-256.
    #[error(
        "{0:?} is not the SHA-256 of a certificate: 64 hexadecimal digits, with or without sha256: before them"
    )]
    Pin(String),
    /// The system's roots of trust are not available.
    #[error("cannot use the system's certificates: {0}")]
    System(#[source] rustls::Error),
}

/// Which servers a client trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those the operating system trusts.
    System,
    /// Those with a certificate issued by one in this PEM file (or being one of them).
    CaFile(PathBuf),
    /// The one with this certificate, whoever issued it: its SHA-256, as [`Identity::fingerprint`] has it, or with
    /// `sha256:` before it. The server must prove that it holds the key.
    Pinned(String),
    /// All. The server must still prove that it holds the key of the certificate it shows.
    Insecure,
}

/// A client's TLS configuration for noq.
///
/// # Errors
/// As [`rustls_client`].
pub fn client_config(trust: &Trust) -> Result<QuicClientConfig, TlsError> {
    Ok(rustls_client(trust)?.try_into().expect(INITIAL_SUITE))
}

/// A client's TLS configuration.
///
/// # Errors
/// A [`TlsError`] naming the CA file if it cannot be used, [`TlsError::Pin`], or [`TlsError::System`].
pub fn rustls_client(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has cipher suites for TLS 1.3");
    let builder = match trust {
        Trust::System => builder.with_platform_verifier().map_err(TlsError::System)?,
        Trust::CaFile(path) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(roots(path, provider)?)),
        Trust::Pinned(fingerprint) => {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyIssuer {
                    pinned: Some(pin(fingerprint)?),
                    provider,
                }))
        }
        Trust::Insecure => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyIssuer {
                pinned: None,
                provider,
            })),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Who a server is: a certificate chain, its own certificate first, and that one's key.
#[derive(Debug)]
pub struct Identity {
    /// The server's certificate, followed by those that issued it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A fresh key with a certificate for `names` (DNS names and IP addresses), signed by itself.
    ///
    /// # Errors
    /// [`TlsError::SelfSigned`] if a name is neither.
    pub fn self_signed(names: &[String]) -> Result<Self, TlsError> {
        let made = rcgen::generate_simple_self_signed(names)?;
        Ok(Self {
            chain: vec![made.cert.der().clone()],
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
        })
    }

    /// Reads a certificate chain and a private key from PEM files; it may be twice the same file.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file which cannot be used, or both if they do not match.
    pub fn from_pem(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let identity = Self {
            chain: read_certificates(cert)?,
            key: read_key(key)?,
        };
        match identity.certified_key() {
            Ok(_) => Ok(identity),
            Err(source) => Err(TlsError::Pair {
                cert: cert.into(),
                key: key.into(),
                source,
            }),
        }
    }

    /// The SHA-256 of the server's own certificate in hexadecimal, for people to compare. Empty
    /// chains have the digest of nothing.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.chain.first().map_or(&[][..], |leaf| leaf))
    }

    /// The pair as rustls wants it, once found to match.
    fn certified_key(&self) -> Result<CertifiedKey, rustls::Error> {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider())
    }
}

/// A server's TLS configuration for noq.
///
/// # Errors
/// As [`rustls_server`].
pub fn server_config(identity: &Identity) -> Result<QuicServerConfig, TlsError> {
    Ok(rustls_server(identity)?.try_into().expect(INITIAL_SUITE))
}

/// A server's TLS configuration.
///
/// # Errors
/// [`TlsError::Identity`] if the chain is empty or malformed, or the key is not the certificate's.
pub fn rustls_server(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has cipher suites for TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Why this end did not accept the other's certificate, if a connection failed for that.
pub(crate) fn certificate_error(error: &ConnectionError) -> Option<Unaccepted> {
    let ConnectionError::TransportError(error) = error else {
        return None;
    };
    let cause = error.crypto.as_deref()?;
    unaccepted(cause.downcast_ref()?)
}

/// Whether a QUIC error code is that of a TLS alert about a certificate (RFC 9001 §4.8: the alert
/// is the low byte of the codes 0x0100 to 0x01ff).
pub(crate) fn is_certificate_alert(code: u64) -> bool {
    // RFC 8446 §6.2: bad, unsupported, revoked, expired and unknown certificate, unknown CA.
    const ALERTS: [u64; 6] = [42, 43, 44, 45, 46, 48];
    ALERTS.iter().any(|alert| code == 0x100 + alert)
}

/// HTTP/3's name in ALPN (RFC 9114 §3.1).
const ALPN: &[u8] = b"h3";
/// QUIC protects its first packets with this one suite (RFC 9001 §5.2).
const INITIAL_SUITE: &str = "ring has TLS_AES_128_GCM_SHA256";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Who trusts the certificates of a PEM file.
fn roots(path: &Path, provider: Arc<CryptoProvider>) -> Result<Listed, TlsError> {
    let certificates = read_certificates(path)?;
    Listed::new(certificates, provider).map_err(|source| TlsError::Root {
        path: path.into(),
        source,
    })
}

/// All certificates of a PEM file, at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|sections| sections.collect())
        .map_err(|error| pem_error(path, "certificate", error))?;
    match chain.is_empty() {
        true => Err(pem_error(path, "certificate", pem::Error::NoItemsFound)),
        false => Ok(chain),
    }
}

/// The first private key of a PEM file, of a supported kind.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| {
        // PKCS #8's own kind, and the older one that names the cipher in a line of its own.
        const MARKS: [&str; 2] = [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----",
            "Proc-Type: 4,ENCRYPTED",
        ];
        let text = std::fs::read_to_string(path).unwrap_or_default();
        match MARKS.iter().any(|mark| text.contains(mark)) {
            true => TlsError::Encrypted { path: path.into() },
            false => pem_error(path, "private key", error),
        }
    })?;
    match provider().key_provider.load_private_key(key.clone_key()) {
        Ok(_) => Ok(key),
        Err(source) => Err(TlsError::Unsupported {
            path: path.into(),
            source,
        }),
    }
}

/// Why a certificate and a key do not go together.
fn unpaired(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "the key is not that of the first certificate".into(),
        other => other.to_string(),
    }
}

/// As [`fingerprint`] has it.
fn pin(given: &str) -> Result<String, TlsError> {
    let digits = given.strip_prefix("sha256:").unwrap_or(given);
    match digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(digits.to_ascii_lowercase()),
        false => Err(TlsError::Pin(given.to_owned())),
    }
}

fn pem_error(path: &Path, wanted: &'static str, error: pem::Error) -> TlsError {
    let path = path.into();
    match error {
        pem::Error::Io(source) => TlsError::Read { path, source },
        pem::Error::NoItemsFound => TlsError::Missing { path, wanted },
        source => TlsError::Pem { path, source },
    }
}

/// The key of the knocks of a connection's server, known to both of its ends and nobody else (RFC 8446
/// §7.5).
pub(crate) fn knock_key(connection: &noq::Connection) -> KnockKey {
    let mut secret = Secret::default();
    // Can only fail for absurd lengths; a key of zeros would merely be guessable.
    let _ = connection.export_keying_material(&mut secret, b"EXPORTER-mpq-knock", b"");
    KnockKey::new(&secret)
}

/// Bytes that nobody can guess, nor tell from one another who drew them.
pub(crate) fn random<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn write(dir: &tempfile::TempDir, name: &str, content: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn an_identity_is_read_back_from_its_pem_files() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let cert = write(&dir, "cert.pem", &made.cert.pem());
        let key = write(&dir, "key.pem", &made.signing_key.serialize_pem());
        let both = write(
            &dir,
            "both.pem",
            &(made.signing_key.serialize_pem() + &made.cert.pem()),
        );

        let identity = Identity::from_pem(&cert, &key).unwrap();
        assert_eq!(identity.chain, [made.cert.der().clone()]);
        let digest = Sha256::digest(made.cert.der());
        let bytes: Vec<u8> = (0..64)
            .step_by(2)
            .map(|i| u8::from_str_radix(&identity.fingerprint()[i..i + 2], 16).unwrap())
            .collect();
        assert_eq!(bytes, digest[..]);
        assert_eq!(Identity::from_pem(&both, &both).unwrap().key, identity.key);
        server_config(&identity).unwrap();
        client_config(&Trust::CaFile(cert)).unwrap();
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let cert = write(&dir, "cert.pem", &made.cert.pem());
        let key = write(&dir, "key.pem", &made.signing_key.serialize_pem());
        let text = write(&dir, "text.pem", "hello\n");
        let cut = write(&dir, "cut.pem", &made.cert.pem()[..200]);
        let absent = dir.path().join("absent.pem");
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = write(&dir, "other.pem", &other.signing_key.serialize_pem());
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let junk = write(&dir, "junk.pem", junk);

        let encrypted = [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
             -----END RSA PRIVATE KEY-----\n",
        ];
        let encrypted = [("encrypted.pem", encrypted[0]), ("older.pem", encrypted[1])]
            .map(|(name, text)| write(&dir, name, text));
        let odd = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let odd = write(&dir, "odd.pem", odd);

        let identity = |cert: &Path, key: &Path| Identity::from_pem(cert, key).unwrap_err();
        let trust = |path: &Path| client_config(&Trust::CaFile(path.into())).err().unwrap();
        for (error, file, what) in [
            (identity(&absent, &key), "absent.pem", "cannot read"),
            (identity(&cert, &absent), "absent.pem", "cannot read"),
            (identity(&text, &key), "text.pem", "no certificate"),
            (identity(&cert, &cert), "cert.pem", "no private key"),
            (identity(&cut, &key), "cut.pem", "not valid PEM"),
            (identity(&cert, &other), "other.pem", "do not go together"),
            (
                identity(&cert, &other),
                "other.pem",
                "not that of the first",
            ),
            (
                identity(&cert, &encrypted[0]),
                "encrypted.pem",
                "decrypt it",
            ),
            (identity(&cert, &encrypted[1]), "older.pem", "decrypt it"),
            (identity(&cert, &odd), "odd.pem", "supported are"),
            (trust(&absent), "absent.pem", "cannot read"),
            (trust(&key), "key.pem", "no certificate"),
            (trust(&junk), "junk.pem", "cannot be used"),
        ] {
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(what), "{text}");
        }
    }

    #[test]
    fn a_server_needs_a_certificate_and_its_own_key() {
        let identity = || Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let empty = Identity {
            chain: Vec::new(),
            ..identity()
        };
        assert!(matches!(server_config(&empty), Err(TlsError::Identity(_))));
        let mixed = Identity {
            key: identity().key,
            ..identity()
        };
        assert!(matches!(server_config(&mixed), Err(TlsError::Identity(_))));
    }
}
