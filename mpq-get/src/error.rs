//! What can go wrong, as one line for the reader and one number for scripts.
//!
//! Every error is printed as `mpq-get: what: what to do`. The exit code is curl's where curl has
//! one for the same thing, so that scripts written around curl keep working:
//!
//! | code | meaning |
//! | --- | --- |
//! | 1 | the URL's scheme is not https |
//! | 2 | wrong usage of the command line |
//! | 3 | malformed URL |
//! | 6 | unknown host |
//! | 7 | refused or unreachable |
//! | 18 | the body ended before its announced length |
//! | 22 | HTTP status other than success; no file is created |
//! | 23 | the output cannot be written |
//! | 28 | timeout: no connection in time, silence on it, too slow, or longer than `--max-time` |
//! | 33 | the body must be started over, which its output does not allow |
//! | 35 | TLS handshake failed |
//! | 45 | network interface unknown or unusable |
//! | 60 | the server's certificate is not trusted |
//! | 77 | the CA file cannot be used |
//! | 95 | HTTP/3 error, or no HTTP/3 server |
//! | 96 | QUIC error |
//! | 111 | SHA-256 differs from `--checksum` (ours) |
//! | 112 | the server moved and was not found again in time (ours) |
//! | 130, 143 | stopped by SIGINT, SIGTERM |

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use h3::error::Code;
use http::StatusCode;
use mpq_core::client::{Cause, ClientError, ConnectError};

use crate::http::resume::Restart;

/// Why a download did not succeed. The text says what happened and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL asks for a protocol other than https.
    #[error("{0}:// is not supported: use an https:// URL")]
    Scheme(String),
    /// Options that do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The URL cannot be parsed.
    #[error("bad URL {url}: {reason}")]
    Url {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host name has no address.
    #[error("cannot resolve {host} ({source}): check the name and the network's DNS")]
    Host {
        /// The name asked for.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Nothing listens there.
    #[error("{0} refused the connection: check that an HTTP/3 server listens on that UDP port")]
    Refused(SocketAddr),
    /// No datagram can be sent there.
    #[error("cannot reach {remote} ({reason}): check the network")]
    Unreachable {
        /// The address tried.
        remote: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// The body is shorter than Content-Length.
    #[error("the body ended at {received} of {expected} bytes: try again")]
    Short {
        /// Bytes received.
        received: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The server answered with something other than success.
    #[error("the server answered {status}: {}", advice(.status, .location))]
    Status {
        /// The answer's status.
        status: StatusCode,
        /// Its Location, where it redirects.
        location: Option<String>,
        /// How long to wait before asking again, where it says so.
        retry_after: Option<Duration>,
    },
    /// The output cannot be written.
    #[error("cannot write {target} ({source}): {}", remedy(.source))]
    Write {
        /// A path, or `standard output`.
        target: String,
        /// What the system said.
        source: io::Error,
    },
    /// What is at the part's path must not be written to.
    #[error("cannot write {} ({reason})", path.display())]
    Part {
        /// Its path.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The URL's path gives no name for `-O`.
    #[error("{0} ends in no file name: use -o FILE")]
    NoName(String),
    /// Standard output is a terminal and the body is not text.
    #[error(
        "standard output is a terminal and the body is binary: use -o FILE, or -o - to see it anyway"
    )]
    Terminal,
    /// What is written already is of no use, and cannot be taken back.
    #[error("{0}, and the output cannot be started over: use -o FILE")]
    CannotStartOver(Restart),
    /// No answer within `--connect-timeout`.
    #[error(
        "no answer from {0} in time: check address and firewall (UDP), or raise --connect-timeout"
    )]
    Timeout(SocketAddr),
    /// The server fell silent and nothing had announced a move.
    #[error("the server fell silent: check the network and try again")]
    Idle,
    /// It took longer than `--max-time`.
    #[error("not complete after {} s: raise --max-time, or run it again to go on", .0.as_secs_f64())]
    MaxTime(Duration),
    /// The body came too slowly.
    #[error(
        "fewer than {rate} bytes a second came in {} s: try again, or lower --speed-limit", .time.as_secs_f64()
    )]
    Slow {
        /// Bytes in a second that should come.
        rate: u64,
        /// For how long they did not.
        time: Duration,
    },
    /// TLS failed for a reason other than the certificate.
    #[error("TLS handshake with {remote} failed ({reason}): check that the server speaks TLS 1.3")]
    Tls {
        /// The address tried.
        remote: SocketAddr,
        /// What TLS said.
        reason: String,
    },
    /// An interface is unknown or cannot be used.
    #[error("interface {name}: {reason}: see the names and addresses that `ip address` lists")]
    Interface {
        /// The name or address as given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No interface has an address of the server's family.
    #[error("no usable {0} interface: bring one up, or name one with --interface")]
    NoInterface(&'static str),
    /// The certificate is not trusted.
    #[error(
        "certificate of {host} not accepted ({reason}): if it is the right server, use --cacert FILE, or the --pin that \
         mpq-serve prints; -k is for tests"
    )]
    Certificate {
        /// The name the certificate was checked for.
        host: String,
        /// Why it was rejected.
        reason: String,
    },
    /// The CA file cannot be used.
    #[error("CA file: {0}: give --cacert a readable PEM file with certificates")]
    CaFile(String),
    /// The body is not the one asked for.
    #[error("SHA-256 is {actual}, not {expected}: the file is another one or damaged")]
    Checksum {
        /// Hexadecimal digest asked for.
        expected: String,
        /// Hexadecimal digest of the body.
        actual: String,
    },
    /// The server moved and was not found again.
    #[error("the server moved and was lost ({0}): raise --migration-timeout, or try again")]
    Migration(String),
    /// HTTP/3 failed on a working connection.
    #[error("HTTP/3 error ({0}): try again, or ask who runs the server")]
    Http3(String),
    /// The server ended the request or the connection's requests.
    #[error("the server broke off ({0}): try again")]
    Reset(String),
    /// One end does not keep to HTTP/3, as the other one found.
    #[error("{0}: the two do not understand each other, ask who runs the server")]
    Misunderstood(String),
    /// The other side does not offer HTTP/3.
    #[error("{remote} is no HTTP/3 server ({reason}): check host and port")]
    NotHttp3 {
        /// The address tried.
        remote: SocketAddr,
        /// How it shows.
        reason: String,
    },
    /// The QUIC connection failed.
    #[error("QUIC error ({0}): try again")]
    Quic(String),
    /// There can be no QUIC connection.
    #[error("QUIC error ({0}): check the host's name, or ask who runs the server")]
    QuicProtocol(String),
    /// A signal ended the download.
    #[error("stopped by {}: run it again to go on", if *.0 == 2 { "SIGINT" } else { "SIGTERM" })]
    Signal(u8),
}

impl Error {
    /// The process's exit code, see the [module](self)'s table.
    pub fn code(&self) -> u8 {
        match self {
            Error::Scheme(_) => 1,
            Error::Usage(_) => 2,
            Error::Url { .. } => 3,
            Error::Host { .. } => 6,
            Error::Refused(_) | Error::Unreachable { .. } => 7,
            Error::Short { .. } => 18,
            Error::Status { .. } => 22,
            Error::Write { .. } | Error::Part { .. } | Error::NoName(_) | Error::Terminal => 23,
            Error::Timeout(_) | Error::Idle | Error::MaxTime(_) | Error::Slow { .. } => 28,
            Error::CannotStartOver(_) => 33,
            Error::Tls { .. } => 35,
            Error::Interface { .. } | Error::NoInterface(_) => 45,
            Error::Certificate { .. } => 60,
            Error::CaFile(_) => 77,
            Error::Checksum { .. } => 111,
            Error::Migration(_) => 112,
            Error::Http3(_)
            | Error::Reset(_)
            | Error::Misunderstood(_)
            | Error::NotHttp3 { .. } => 95,
            Error::Quic(_) | Error::QuicProtocol(_) => 96,
            Error::Signal(number) => 128 + number,
        }
    }

    /// A failure to connect to `remote`, whose certificate was checked for `host`.
    pub fn connecting(error: ConnectError, remote: SocketAddr, host: &str) -> Error {
        let reason = |cause: Cause| cause.to_string();
        match error {
            ConnectError::Name { name, source } => Error::Host { host: name, source },
            ConnectError::Interface { name, reason } => Error::Interface {
                name,
                reason: reason.to_string(),
            },
            ConnectError::NoInterface { family } => Error::NoInterface(family),
            ConnectError::Socket(source) => Error::Unreachable {
                remote,
                reason: source.to_string(),
            },
            ConnectError::Refused => Error::Refused(remote),
            ConnectError::Timeout => Error::Timeout(remote),
            ConnectError::Certificate(cause) => Error::Certificate {
                host: host.to_owned(),
                reason: reason(cause),
            },
            ConnectError::Trust(error) => Error::CaFile(error.to_string()),
            ConnectError::Tls(cause) => Error::Tls {
                remote,
                reason: reason(cause),
            },
            ConnectError::NotHttp3(cause) => Error::NotHttp3 {
                remote,
                reason: reason(cause),
            },
            ConnectError::Streams(error) => Error::NotHttp3 {
                remote,
                reason: error.to_string(),
            },
            ConnectError::Protocol(cause) => Error::QuicProtocol(reason(cause)),
            ConnectError::Quic(cause) => Error::Quic(reason(cause)),
            other => Error::Http3(other.to_string()),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        let text = error.to_string();
        match error {
            ClientError::Idle => Error::Idle,
            ClientError::Migration { answered, .. } => Error::Migration(match answered.first() {
                Some(other) => format!("{other} answers, and does not know this download"),
                None => "no answer at its new address".into(),
            }),
            ClientError::Http3 { code, .. } | ClientError::ClosedByServer { code, .. } => {
                match may_pass(code) {
                    true => Error::Reset(text),
                    false => Error::Misunderstood(text),
                }
            }
            _ => Error::Quic(text),
        }
    }
}

/// Whether a connection that was closed for this might not be closed the next time. A code that nobody knows
/// is as good as none (RFC 9114 §8.1), and H3_FRAME_ERROR is also that of a body that breaks off in a frame.
fn may_pass(code: Code) -> bool {
    !matches!(
        code,
        Code::H3_GENERAL_PROTOCOL_ERROR
            | Code::H3_STREAM_CREATION_ERROR
            | Code::H3_CLOSED_CRITICAL_STREAM
            | Code::H3_FRAME_UNEXPECTED
            | Code::H3_ID_ERROR
            | Code::H3_SETTINGS_ERROR
            | Code::H3_MISSING_SETTINGS
            | Code::H3_REQUEST_INCOMPLETE
            | Code::H3_MESSAGE_ERROR
            | Code::H3_VERSION_FALLBACK
            | Code::QPACK_DECOMPRESSION_FAILED
            | Code::QPACK_ENCODER_STREAM_ERROR
            | Code::QPACK_DECODER_STREAM_ERROR
    )
}

/// A failure to write `path`.
pub(crate) fn cannot_write(path: &std::path::Path, source: io::Error) -> Error {
    Error::Write {
        target: PathBuf::from(path).display().to_string(),
        source,
    }
}

fn advice(status: &StatusCode, location: &Option<String>) -> String {
    match location {
        Some(location) if status.is_redirection() => format!("redirected, ask for {location}"),
        _ if status.is_server_error() => "try again later".to_owned(),
        _ => "check the URL".to_owned(),
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space or choose another disk with -o"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a writable place with -o"
        }
        io::ErrorKind::NotFound => "create the folder first",
        io::ErrorKind::BrokenPipe => "the reader has gone",
        _ => "choose another file with -o",
    }
}

#[cfg(test)]
mod tests {
    use mpq_core::client::TooFewStreams;
    use mpq_core::tls::{self, Trust};

    use super::*;

    #[test]
    fn connect_errors_have_curls_numbers() {
        let remote = "127.0.0.1:1".parse().unwrap();
        let text = String::new;
        let code = |error| Error::connecting(error, remote, "host").code();
        assert_eq!(
            code(ConnectError::Interface {
                name: text(),
                reason: text().into()
            }),
            45
        );
        assert_eq!(code(ConnectError::NoInterface { family: "IPv4" }), 45);
        assert_eq!(
            code(ConnectError::Socket(
                io::ErrorKind::NetworkUnreachable.into()
            )),
            7
        );
        assert_eq!(code(ConnectError::Refused), 7);
        assert_eq!(code(ConnectError::Timeout), 28);
        assert_eq!(code(ConnectError::Certificate(text().into())), 60);
        let unreadable = tls::rustls_client(&Trust::CaFile("/".into())).unwrap_err();
        assert_eq!(code(ConnectError::Trust(unreadable)), 77);
        assert_eq!(code(ConnectError::Tls(text().into())), 35);
        assert_eq!(code(ConnectError::NotHttp3(text().into())), 95);
        let few = TooFewStreams { allowed: 2 };
        assert_eq!(code(ConnectError::Streams(few)), 95);
        assert_eq!(code(ConnectError::Protocol(text().into())), 96);
        assert_eq!(code(ConnectError::Quic(text().into())), 96);
    }

    #[test]
    fn lost_connections_are_told_apart() {
        assert_eq!(Error::from(ClientError::Idle).code(), 28);
        let lost = Error::from(ClientError::Migration {
            answered: vec!["10.1.0.3:443".parse().unwrap()],
            elsewhere: Vec::new(),
        });
        assert_eq!(lost.code(), 112);
        assert!(lost.to_string().contains("10.1.0.3:443"), "{lost}");
        assert_eq!(Error::from(ClientError::Closed).code(), 96);
        let closed = |code| {
            Error::from(ClientError::ClosedByServer {
                code,
                reason: "bye".to_owned(),
            })
        };
        let gone = closed(Code::H3_NO_ERROR);
        assert!(matches!(gone, Error::Reset(_)), "{gone}");
        let unheard_of = closed(Code::from(0x4242));
        assert!(matches!(unheard_of, Error::Reset(_)), "{unheard_of}");
        let wrong = closed(Code::H3_FRAME_UNEXPECTED);
        assert!(matches!(wrong, Error::Misunderstood(_)), "{wrong}");
        assert_eq!((gone.code(), wrong.code()), (95, 95));
    }

    #[test]
    fn signals_count_from_128() {
        assert_eq!(Error::Signal(2).code(), 130);
        assert_eq!(Error::Signal(15).code(), 143);
    }

    #[test]
    fn a_full_disk_and_a_redirect_say_what_to_do() {
        let full = cannot_write("f".as_ref(), io::ErrorKind::StorageFull.into());
        assert!(full.to_string().contains("free some space"), "{full}");
        let moved = Error::Status {
            status: StatusCode::MOVED_PERMANENTLY,
            location: Some("https://b/".to_owned()),
            retry_after: None,
        };
        assert!(moved.to_string().ends_with("ask for https://b/"), "{moved}");
    }
}
