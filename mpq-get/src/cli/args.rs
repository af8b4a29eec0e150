//! The options: [`Args`] is what was typed, [`DownloadRequest`] what is to be done.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args as ClapArgs, Parser};
use mpq_core::Congestion;
use mpq_core::client::ClientConfig;
use mpq_core::proto::Strategy;
use mpq_core::tls::Trust;

use super::url::{parse_url, remote_name};
use crate::download::pace::SpeedLimit;
use crate::download::request::{DownloadRequest, Protocol};
use crate::download::retry::Policy;
use crate::error::Error;
use crate::output::Destination;
use crate::report;
use crate::resolve::overrides::{ConnectTo, Overrides, Resolve};

const EXIT_CODES: &str = "\
Exit codes (curl's where it has one):
    0  done                            28  timeout, silence, or too slow
    1  the URL is not https            35  TLS handshake failed
    2  wrong usage                     45  interface unknown or unusable
    3  malformed URL                   60  certificate not trusted
    6  unknown host                    77  CA file unusable
    7  refused or unreachable          95  HTTP/3 error, or no HTTP/3 server
   18  body shorter than announced     96  QUIC error
   22  HTTP status not a success      111  SHA-256 differs from --checksum
   23  output cannot be written       112  the server moved and was not found again
   33  cannot go on, nor start over
  130  stopped by SIGINT              143  stopped by SIGTERM

While a file is received it is called FILE.part; after an error it keeps that name, FILE.part.meta
says what it is of, and the next run goes on with it. What is there and is of something else stays,
and FILE.1.part is used. A body with a wrong --checksum becomes FILE.bad. A lost connection is replaced by another one, which asks for what
is missing. If the file has changed meanwhile, or the server gives it neither a strong ETag nor an
old enough Last-Modified, it is started over. Waits between attempts are 1 s, 2 s, 4 s... up to 60 s,
or what the server's Retry-After says.";

/// Download over HTTP/3, through every network interface at once, and through server moves.
#[derive(Debug, Parser)]
#[command(name = "mpq-get", version, after_help = EXIT_CODES)]
pub struct Args {
    /// What to get; https:// may be left out
    pub url: String,

    /// Write to FILE; `-` is standard output, where the body goes without -o and -O, too
    #[arg(short, long, value_name = "FILE", conflicts_with = "remote_name")]
    pub output: Option<PathBuf>,

    /// Write to a file named as the URL's last part
    #[arg(short = 'O', long)]
    pub remote_name: bool,

    /// Fetch nothing if FILE is there and complete. What an earlier run has left in FILE.part is gone on with in any
    /// case
    #[arg(short = 'C', long = "continue")]
    pub resume: bool,

    /// Give the file the time at which the server's was changed last
    #[arg(short = 'R', long)]
    pub remote_time: bool,

    /// Try again so many times in a row without getting any further: after lost connections, failures
    /// to connect and the statuses 408, 429, 500, 502, 503 and 504. 0 is curl's default
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub retry: u32,

    /// Try again also if nobody listens there from the start
    #[arg(long)]
    pub retry_connrefused: bool,

    /// No attempt begins later than this after the start [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub retry_max_time: Option<Duration>,

    /// Give up after this time, whatever has come [default: no limit]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub max_time: Option<Duration>,

    /// A body slower than this for --speed-time is asked for again over another connection, as after a loss; the time
    /// of a move does not count. 0 is never
    #[arg(short = 'Y', long, value_name = "BYTES", default_value_t = 100)]
    pub speed_limit: u64,

    /// How long a body may be slower than --speed-limit
    #[arg(short = 'y', long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub speed_time: Duration,

    /// Connect to these addresses for this host (`*` for all) and port; may be repeated
    #[arg(long, value_name = "HOST:PORT:ADDR[,ADDR]", action = ArgAction::Append)]
    pub resolve: Vec<Resolve>,

    /// Connect to HOST2 instead of HOST1, for the same URL and certificate; an empty host or port
    /// stands for any, or for the URL's; may be repeated
    #[arg(long, value_name = "HOST1:PORT1:HOST2:PORT2", action = ArgAction::Append)]
    pub connect_to: Vec<ConnectTo>,

    /// Ask for the body in parts, so many at once, where one request cannot fill the paths; 1 is never
    // Parts that are not read yet must leave room in the connection's window for the one that is.
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    pub segments: u8,

    /// Use this interface, by name or address; may be repeated [default: all usable]
    #[arg(long, value_name = "NAME|IP", action = ArgAction::Append)]
    pub interface: Vec<String>,

    /// Congestion control of what is sent, which is little: cubic, bbr, newreno or olia
    #[arg(long, value_name = "NAME", default_value_t)]
    pub congestion: Congestion,

    /// The transport under HTTP/3
    #[arg(long, value_enum, default_value_t)]
    pub protocol: Protocol,

    /// How to follow a server that moves: multipath, or for comparison paper, proactive, reactive,
    /// pool, symmetric or restart
    #[arg(long, value_name = "NAME", default_value_t)]
    pub strategy: Strategy,

    /// Let the strategies that redirect datagrams send to an address before it is validated, as
    /// their papers do (for testbeds)
    #[arg(long)]
    pub allow_unvalidated: bool,

    /// Follow the server without the help that the literature's servers do not give: ignore that it says
    /// that it is parked, and its knocks (for comparison; that it drains first cannot be switched off here)
    #[arg(long)]
    pub bare: bool,

    /// After a move, wait up to so long, at random, before going to the new address, so that many
    /// clients do not come at once
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = some_seconds)]
    pub hold_back: Duration,

    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub cacert: Option<PathBuf>,

    /// Trust the server whose certificate has this SHA-256, whoever issued it; mpq-serve prints it. The word sha256:
    /// may be left out
    #[arg(long, value_name = "sha256:HEX", value_parser = pin, conflicts_with_all = ["cacert", "insecure"])]
    pub pin: Option<String>,

    /// Accept any certificate (for tests)
    #[arg(short = 'k', long)]
    pub insecure: bool,

    /// Fail unless the body has this SHA-256
    #[arg(long, value_name = "sha256:HEX", value_parser = checksum)]
    pub checksum: Option<String>,

    /// Write one JSON object a line to standard output for each event
    #[arg(long)]
    pub json: bool,

    /// No progress and no SHA-256; errors are still printed
    #[arg(short, long)]
    pub silent: bool,

    /// Print each event as a line
    #[arg(short, long, conflicts_with = "silent")]
    pub verbose: bool,

    /// Longest wait for the connection
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub connect_timeout: Duration,

    /// Longest silence of a server that has not said it would move
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub idle_timeout: Duration,

    /// Longest wait for a server that moves
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub migration_timeout: Duration,

    /// What is so in any case.
    #[command(flatten)]
    pub anyway: Anyway,
}

/// Options of curl's that say what mpq-get does in any case.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "For scripts made for curl; mpq-get does so anyway")]
pub struct Anyway {
    /// No file, and exit code 22, if the server answers with an error
    #[arg(short, long)]
    pub fail: bool,

    /// Say what went wrong, also with -s
    #[arg(short = 'S', long)]
    pub show_error: bool,

    /// Take a URL as it is: it names no sequence and no range
    #[arg(short, long)]
    pub globoff: bool,

    /// Read no file of options
    #[arg(short = 'q', long)]
    pub disable: bool,

    /// Speak HTTP/3
    #[arg(long)]
    pub http3: bool,

    /// Speak nothing but HTTP/3
    #[arg(long)]
    pub http3_only: bool,

    /// Use TLS 1.3
    #[arg(long = "tlsv1.3")]
    pub tls_1_3: bool,
}

impl Args {
    /// Whether standard output is for the body.
    pub fn body_on_stdout(&self) -> bool {
        match &self.output {
            Some(path) => Destination::named(path) == Destination::Stdout,
            None => !self.remote_name,
        }
    }

    /// What is to be told of the download, and how.
    pub fn report(&self) -> report::Options {
        report::Options {
            json: self.json,
            silent: self.silent,
            verbose: self.verbose,
            body_on_stdout: self.body_on_stdout(),
        }
    }

    /// Resolves what was typed.
    ///
    /// # Errors
    /// [`Error::Scheme`], [`Error::Url`], [`Error::NoName`], and [`Error::Usage`] if the body and
    /// the JSON lines would both go to standard output, or standard output were to be gone on with.
    pub fn resolve(&self) -> Result<DownloadRequest, Error> {
        let url = parse_url(&self.url)?;
        let destination = match &self.output {
            Some(path) => Destination::named(path),
            None if self.remote_name => Destination::File(remote_name(&url)?.into()),
            None if std::io::stdout().is_terminal() => Destination::Terminal,
            None => Destination::Stdout,
        };
        if self.json && self.body_on_stdout() {
            return Err(Error::Usage(
                "--json and the body cannot share standard output: add -o FILE or -O".to_owned(),
            ));
        }
        if self.resume && self.body_on_stdout() {
            return Err(Error::Usage(
                "-C goes on with a file: add -o FILE or -O".to_owned(),
            ));
        }
        let trust = match (&self.cacert, &self.pin) {
            (Some(file), _) => Trust::CaFile(file.clone()),
            (None, Some(fingerprint)) => Trust::Pinned(fingerprint.clone()),
            (None, None) if self.insecure => Trust::Insecure,
            (None, None) => Trust::System,
        };
        Ok(DownloadRequest {
            url,
            destination,
            checksum: self.checksum.clone(),
            resume: self.resume,
            remote_time: self.remote_time,
            segments: self.segments.into(),
            retry: Policy {
                limit: self.retry,
                max_time: self.retry_max_time,
                connrefused: self.retry_connrefused,
            },
            max_time: self.max_time,
            speed_limit: SpeedLimit {
                rate: self.speed_limit,
                time: self.speed_time,
            },
            overrides: Overrides {
                resolve: self.resolve.clone(),
                connect_to: self.connect_to.clone(),
            },
            protocol: self.protocol,
            client: ClientConfig {
                trust,
                interfaces: self.interface.clone(),
                connect_timeout: self.connect_timeout,
                idle_timeout: self.idle_timeout,
                migration_timeout: self.migration_timeout,
                congestion: self.congestion,
                strategy: self.strategy,
                allow_unvalidated: self.allow_unvalidated,
                bare: self.bare,
                hold_back: self.hold_back,
            },
        })
    }
}

fn pin(given: &str) -> Result<String, String> {
    let digits = given.strip_prefix("sha256:").unwrap_or(given);
    checksum(&format!("sha256:{digits}")).map_err(|_| {
        "must be 64 hexadecimal digits, with or without sha256: before them".to_owned()
    })
}

fn checksum(given: &str) -> Result<String, String> {
    match given.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(hex.to_ascii_lowercase())
        }
        _ => Err("must be sha256: and 64 hexadecimal digits".to_owned()),
    }
}

fn seconds(given: &str) -> Result<Duration, String> {
    some_seconds(given)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "must be a number of seconds above zero".to_owned())
}

fn some_seconds(given: &str) -> Result<Duration, String> {
    given
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "must be a number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn resolve(line: &[&str]) -> Result<DownloadRequest, Error> {
        Args::try_parse_from([&["mpq-get"], line].concat())
            .expect("parses")
            .resolve()
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn ports_and_hosts() {
        let request = resolve(&["https://[::1]/a"]).unwrap();
        assert_eq!((request.host().as_str(), request.port()), ("::1", 443));
        let request = resolve(&["Example.org:8443"]).unwrap();
        assert_eq!(
            (request.host().as_str(), request.port()),
            ("example.org", 8443)
        );
    }

    #[test]
    fn json_and_the_body_cannot_share_stdout() {
        assert_eq!(
            resolve(&["--json", "-o", "-", "h/a"]).unwrap_err().code(),
            2
        );
        assert_eq!(resolve(&["--json", "h/a"]).unwrap_err().code(), 2);
        let request = resolve(&["--json", "-O", "h/a"]).unwrap();
        assert_eq!(request.destination, Destination::File("a".into()));
    }

    #[test]
    fn only_a_file_can_be_gone_on_with() {
        for line in [["-C", "h/a"].as_slice(), &["-C", "-o", "-", "h/a"]] {
            assert_eq!(resolve(line).unwrap_err().code(), 2, "{line:?}");
        }
        assert!(resolve(&["-C", "-O", "h/a"]).unwrap().resume);
        assert!(!resolve(&["-O", "h/a"]).unwrap().resume);
    }

    #[test]
    fn attempts_are_limited() {
        let policy = |line: &[&str]| resolve(line).unwrap().retry;
        let usual = Policy {
            limit: 3,
            max_time: None,
            connrefused: false,
        };
        assert_eq!(policy(&["h/a"]), usual);
        let line = &["--retry", "0", "--retry-max-time", "0.5", "h/a"];
        let limited = Policy {
            limit: 0,
            max_time: Some(Duration::from_millis(500)),
            connrefused: false,
        };
        assert_eq!(policy(line), limited);
    }

    #[test]
    fn overrides_are_read() {
        let line = ["--resolve", "h:443:192.0.2.1", "--connect-to", "::i:1"];
        let request = resolve(&[&line[..], &["h/a"]].concat()).unwrap();
        let expected = Overrides {
            resolve: vec!["h:443:192.0.2.1".parse().unwrap()],
            connect_to: vec!["::i:1".parse().unwrap()],
        };
        assert_eq!(request.overrides, expected);
        assert!(Args::try_parse_from(["mpq-get", "--resolve=h:443", "h/a"]).is_err());
    }

    #[test]
    fn congestion_controls_have_names() {
        let chosen = |line: &[&str]| resolve(line).unwrap().client.congestion;
        assert_eq!(chosen(&["h/a"]), Congestion::default());
        assert_eq!(chosen(&["--congestion", "olia", "h/a"]), Congestion::Olia);
        assert!(Args::try_parse_from(["mpq-get", "--congestion=reno", "h/a"]).is_err());
    }

    #[test]
    fn strategies_have_names() {
        let chosen = |line: &[&str]| resolve(line).unwrap().client;
        let plain = chosen(&["h/a"]);
        assert_eq!(plain.strategy, Strategy::default());
        assert_eq!(plain.hold_back, Duration::ZERO);
        let pool = chosen(&["--strategy", "pool", "--hold-back=0.5", "h/a"]);
        assert_eq!(pool.strategy, Strategy::Pool);
        assert_eq!(pool.hold_back, Duration::from_millis(500));
        assert!(Args::try_parse_from(["mpq-get", "--strategy=none", "h/a"]).is_err());
    }

    #[test]
    fn options_that_exclude_each_other() {
        for line in [["-k", "--cacert=f"], ["-O", "-of"], ["-s", "-v"]] {
            let error = Args::try_parse_from(["mpq-get", line[0], line[1], "h"]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn checksums_and_seconds() {
        let upper = format!("sha256:{}", "AB".repeat(32));
        assert_eq!(checksum(&upper).unwrap(), "ab".repeat(32));
        assert!(checksum(&"ab".repeat(32)).is_err());
        assert!(checksum("sha256:ab").is_err());
        assert_eq!(pin(&upper), pin(&"ab".repeat(32)));
        assert!(pin(&upper).is_ok());
        for bad in ["", "sha256:ab", "sha1:ab", &upper[1..]] {
            let said = pin(bad).unwrap_err();
            assert!(said.contains("64 hexadecimal digits"), "{said}");
        }
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert!(
            ["0", "-1", "nan", "inf", "1s"]
                .into_iter()
                .all(|bad| seconds(bad).is_err())
        );
    }
}
