//! Why a certificate was not accepted, in words.

use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// Why a certificate was not accepted at this end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unaccepted(String);

/// What rustls says of a certificate; `None` if it is of something else.
pub fn unaccepted(error: &rustls::Error) -> Option<Unaccepted> {
    let rustls::Error::InvalidCertificate(error) = error else {
        return None;
    };
    Some(Unaccepted(words(error)))
}

fn words(error: &CertificateError) -> String {
    use CertificateError::{
        BadEncoding, BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext,
        NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, Other, Revoked,
        UnknownIssuer,
    };
    match error {
        BadEncoding => "it is malformed".to_owned(),
        Expired => "it has expired".to_owned(),
        ExpiredContext { time, not_after } => {
            format!("it has expired {} ago", days(*not_after, *time))
        }
        NotValidYet => "it is not valid yet; check the clock".to_owned(),
        NotValidYetContext { time, not_before } => {
            let days = days(*time, *not_before);
            format!("it is not valid yet, but in {days}; check the clock")
        }
        Revoked => "it was revoked".to_owned(),
        UnknownIssuer => "nobody who is trusted has issued it".to_owned(),
        BadSignature => "its signature is not that of its issuer".to_owned(),
        NotValidForName => "it is for another name".to_owned(),
        NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "it is for no name, as it has no subjectAltName".to_owned()
        }
        NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
            format!("it is for {}", names.join(", "))
        }
        InvalidPurpose | InvalidPurposeContext { .. } => "it is not for servers".to_owned(),
        Other(other) => match other.0.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "it is an authority's, not a server's".to_owned()
            }
            _ => other.to_string(),
        },
        other => other.to_string(),
    }
}

/// `DnsName("localhost")`, as webpki has it, without the frame.
fn plain(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// Between two times, roughly.
fn days(from: UnixTime, to: UnixTime) -> String {
    const DAY: Duration = Duration::from_secs(86_400);
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    match seconds / DAY.as_secs() {
        0 => "less than a day".to_owned(),
        1 => "a day".to_owned(),
        days => format!("{days} days"),
    }
}
