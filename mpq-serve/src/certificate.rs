//! Who the server is: a certificate and its key, from files or made at start.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use mpq_core::tls::Identity;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::args::Serve;
use crate::error::{At, Error};

/// So long before a certificate expires there is a warning.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The names of the files of a certificate that is kept.
const CERT: &str = "cert.pem";
const KEY: &str = "key.pem";

/// The identity in the files that the command line names, if it does.
///
/// # Errors
/// They cannot be used.
pub(crate) fn given(options: &Serve) -> Result<Option<Identity>, Error> {
    let files = options.cert.as_ref().zip(options.key.as_ref());
    let given = files.map(|(cert, key)| Identity::from_pem(cert, key).map_err(start));
    given.transpose()
}

/// The identity that the command line asks for, of a server that listens on these addresses: the one that is given, or
/// one that it makes.
///
/// # Errors
/// A file cannot be used or written.
pub(crate) fn identity(
    options: &Serve,
    given: Option<Identity>,
    addresses: &[IpAddr],
) -> Result<Identity, Error> {
    if let Some(identity) = given {
        let cert = options.cert.as_deref();
        warn(&identity, cert.unwrap_or(Path::new("")));
        return Ok(identity);
    }
    match &options.save_cert {
        Some(dir) => kept(dir, addresses),
        None => Identity::self_signed(&names(addresses)).map_err(start),
    }
}

/// Reads a certificate and its key, and warns of what clients will not like about it.
///
/// # Errors
/// They cannot be used.
pub(crate) fn read(cert: &Path, key: &Path) -> Result<Identity, Error> {
    let identity = Identity::from_pem(cert, key).map_err(start)?;
    warn(&identity, cert);
    Ok(identity)
}

/// Says what clients will not like about the one in this file.
fn warn(identity: &Identity, cert: &Path) {
    if let Some(doubt) = doubt(identity, SystemTime::now()) {
        tracing::warn!("{}: {doubt}", cert.display());
    }
}

/// The one in this directory, which is made if there is none.
fn kept(dir: &Path, addresses: &[IpAddr]) -> Result<Identity, Error> {
    let (cert, key) = (dir.join(CERT), dir.join(KEY));
    let names = names(addresses);
    if !cert.exists() && !key.exists() {
        let made = rcgen::generate_simple_self_signed(names.clone());
        let made = made.map_err(|error| Error::Start(error.to_string()))?;
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(dir).at(dir)?;
        // The key first: a certificate without one would be taken for a mistake.
        let mut file = fs::OpenOptions::new();
        let file = file.write(true).create_new(true).mode(0o600);
        let file = file.open(&key).at(&key)?;
        (&file)
            .write_all(made.signing_key.serialize_pem().as_bytes())
            .at(&key)?;
        fs::write(&cert, made.cert.pem()).at(&cert)?;
    }
    let identity = read(&cert, &key)?;
    let missing = missing(&identity, &names);
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let cert = cert.display();
        tracing::warn!(
            "{cert} does not name {missing}: remove it and its key to have it made anew"
        );
    }
    Ok(identity)
}

/// What a certificate for these addresses is to name. A name is always there, so that it can be asked for by one.
fn names(addresses: &[IpAddr]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    if let Ok(host) = nix::unistd::gethostname()
        && let Ok(host) = host.into_string()
        && host != "localhost"
        && is_dns_name(&host)
    {
        names.push(host);
    }
    names.extend(addresses.iter().map(IpAddr::to_string));
    names
}

fn is_dns_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    !name.is_empty() && name.bytes().all(is_good)
}

/// Those of the names that a certificate has not got.
fn missing(identity: &Identity, names: &[String]) -> Vec<String> {
    let named = named(identity).unwrap_or_default();
    let missing = names.iter().filter(|name| !named.contains(name));
    missing.cloned().collect()
}

fn named(identity: &Identity) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(identity.chain.first()?).ok()?;
    let alternatives = certificate.subject_alternative_name().ok()??;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    };
    Some(
        alternatives
            .value
            .general_names
            .iter()
            .filter_map(name)
            .collect(),
    )
}

/// Why clients will not trust a certificate, or soon will not, by its dates.
fn doubt(identity: &Identity, now: SystemTime) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(identity.chain.first()?).ok()?;
    let validity = certificate.validity();
    let (begin, end) = (time(validity.not_before)?, time(validity.not_after)?);
    let told = |time| httpdate::fmt_http_date(time);
    if now < begin {
        Some(format!(
            "the certificate is not valid before {}",
            told(begin)
        ))
    } else if now > end {
        Some(format!("the certificate has expired on {}", told(end)))
    } else if now + SOON > end {
        Some(format!("the certificate expires on {}", told(end)))
    } else {
        None
    }
}

/// None before 1970 and after 9999, which is as good as never.
fn time(time: ASN1Time) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = u64::try_from(time.timestamp()).ok()?.min(YEAR_10000 - 1);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn start(error: mpq_core::tls::TlsError) -> Error {
    Error::Start(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn valid(from: u64, to: u64) -> Identity {
        let time = |seconds| (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (time(from), time(to));
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        Identity {
            chain: vec![made.der().clone()],
            key: key.into(),
        }
    }

    #[test]
    fn dates_that_clients_will_not_like_are_told() {
        let day = 24 * 3600;
        let begin = 1_000_000_000;
        let certificate = valid(begin, begin + 90 * day);
        let doubt = |seconds| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            doubt(&certificate, now).unwrap_or_default()
        };
        assert!(doubt(begin - 1).contains("not valid before Sun, 09 Sep 2001"));
        assert_eq!(doubt(begin), "");
        assert_eq!(doubt(begin + 75 * day), "");
        assert!(doubt(begin + 77 * day).contains("expires on Sat, 08 Dec 2001"));
        assert!(doubt(begin + 91 * day).contains("has expired on"));
    }

    #[test]
    fn a_certificate_is_kept_with_its_key_and_names_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cert");
        let first = kept(&dir, &[ADDRESS]).unwrap();
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode(KEY) & 0o777, 0o600);
        assert_eq!(mode("") & 0o777, 0o700);
        assert_eq!(missing(&first, &names(&[ADDRESS])), [""; 0]);
        let again = kept(&dir, &[ADDRESS]).unwrap();
        assert_eq!(again.fingerprint(), first.fingerprint());
        let other = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(missing(&again, &names(&[other])), ["192.0.2.2"]);

        // Half of it is a mistake, and nothing is overwritten.
        fs::remove_file(dir.join(CERT)).unwrap();
        assert!(kept(&dir, &[ADDRESS]).is_err());
    }
}
