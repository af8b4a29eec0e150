//! The command line.

use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser, Subcommand};
use http::{HeaderName, HeaderValue};
use mpq_core::proto::frame::{MAX_ADDRESSES, MAX_NAME};
use mpq_core::{Congestion, Resume};

use crate::access::Format;
use crate::between_hosts::options::MoveOptions;
use crate::checkpoint::notes::RequestId;
use crate::checkpoint::owner::Owner;
use crate::config;
use crate::containers::options::MoveContainerOptions;
use crate::guests::Limits;
use crate::site::files::Tags;
use crate::site::is_of_the_server;
use crate::units::{duration, rate, size};
use crate::values::{pid, target};

const LOG: &str = "\
Log:
  A connection that is over leaves lines for programs to read. After `stats` they hold name=value
  pairs, in bytes and seconds: one line for the connection, then one for each of its paths.

";

const EXIT_CODES: &str = "\
Signals of a running server:
  SIGUSR1          Announce the move, park, and be checkpointed
  SIGTERM, SIGINT  Finish what is running within --grace, then leave; a second one leaves at once
  SIGUSR2          Hand over to the `mpq-serve handover` that waits; of no meaning otherwise
  SIGHUP           Read the certificate and its key again, for new connections

Exit codes:
  0  Success
  1  Failure without a code of its own
  2  Wrong use of the command line
  3  The images are missing, damaged, of several checkpoints, or of another program; or they are sealed, and
     not with this key, or not sealed
  4  No CRIU, or one that is too old
  5  Not permitted, or a folder that others could change, or that is not in memory and has to be
  6  The server is not there or leaves, or the pid file is stale
  7  The address is in use, or not one of this host
  8  The dump failed; the server goes on where it was
  9  The restore failed
  10  The server is moving already, or its images are in use; that goes on
  11  The images cannot wake here: they have woken, were released, or are a copy
  12  Something is in the way of a move to another host; the server serves where it was
  13  A move to another host failed; the server serves where it was
  14  It failed, and nobody has said that the server serves; the message says what to do
  15  A new process has not taken over; the old one serves as before";

/// What `mpq-serve` is asked to do.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "mpq-serve",
    version,
    about = "Serves files over HTTP/3, and moves to another address or host under its downloads",
    after_help = [LOG, EXIT_CODES].concat(),
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    /// A command on a server; without one, `serve` applies.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// The options of the server itself.
#[derive(Debug, Clone, clap::Args)]
pub struct Serve {
    /// Serve the files in this directory; nothing outside it can be reached
    #[arg(value_name = "DIR", conflicts_with = "root")]
    pub dir: Option<PathBuf>,

    /// Read options from this TOML file: its keys are the long names of options, without the dashes. An
    /// option on the command line replaces that of the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address and UDP port to listen on, or a name and a port; :PORT listens on all addresses. May be repeated; such a
    /// server cannot move. Sockets that systemd passes on count instead
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:4433", value_parser = listen)]
    pub listen: Vec<SocketAddr>,

    /// The same as DIR
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Answer a directory without index.html with what is in it, as a page or as JSON (Accept)
    #[arg(long)]
    pub listing: bool,

    /// Serve also what has a name that begins with a dot
    #[arg(long)]
    pub dotfiles: bool,

    /// What the ETag of a file is made of: its length and time of change, or its content, whose SHA-256 is
    /// computed in the background. The latter is the same on every host with the same bytes
    #[arg(long, value_name = "HOW", default_value = "time")]
    pub etag: Tags,

    /// Let the scripts of other sites read what there is (CORS)
    #[arg(long)]
    pub cors: bool,

    /// Add this field to every response; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = field)]
    pub header: Vec<(HeaderName, HeaderValue)>,

    /// Serve pseudo-random bytes as /random, 100M of them or so many; with k, M, G, T (powers of 1000) or
    /// Ki, Mi, Gi, Ti (of 1024), and with or without B. A file of that name goes first
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "100M", value_parser = size)]
    pub random: Option<u64>,

    /// What the bytes of /random are made from; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Limit each response to this rate, in bit/s; with k, M or G (powers of 1000), and with or
    /// without bit/s
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub limit_rate: Option<NonZeroU64>,

    /// Limit all responses of one connection together to this rate
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub limit_rate_connection: Option<NonZeroU64>,

    /// Limit all responses to one client address together to this rate; of IPv6, to one network of 64 bits
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub limit_rate_address: Option<NonZeroU64>,

    /// Limit all responses of the server together to this rate
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub limit_rate_total: Option<NonZeroU64>,

    /// Most connections at a time, over QUIC and TCP; who comes then is refused
    #[arg(long, value_name = "N", value_parser = most)]
    pub max_connections: Option<NonZeroUsize>,

    /// Most connections at a time with one client address; of IPv6, with one network of 64 bits
    #[arg(long, value_name = "N", value_parser = most)]
    pub max_connections_address: Option<NonZeroUsize>,

    /// Cut the responses to a client that takes nothing of them for so long; in s, or with ms, s, m or h. With 0
    /// they wait for ever
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub send_timeout: Duration,

    /// Congestion control of what is sent: cubic, bbr, newreno, or olia, which couples the paths of a
    /// connection
    #[arg(long, value_name = "NAME", default_value_t)]
    pub congestion: Congestion,

    /// Certificate chain, PEM; without it a self-signed one is made at start, for the addresses listened on
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,

    /// Keep the self-signed certificate and its key in this directory, and use them at the next start
    #[arg(long, value_name = "DIR", conflicts_with = "cert")]
    pub save_cert: Option<PathBuf>,

    /// Become this user for good, once the key is read. Only for a server that root starts; it listens on ports below
    /// 1024 all the same
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// Address to move to on SIGUSR1; may be repeated, up to 8 times
    #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
    pub migrate_to: Vec<SocketAddr>,

    /// Move without announcing it: clients find the server by its knock, or at its --pool
    #[arg(long)]
    pub unannounced: bool,

    /// How paths begin after a move: careful, with half of what the path carried before once an initial
    /// window was acknowledged (RFC 9959); aggressive, with that half at once; or off, by slow start
    #[arg(long, value_name = "HOW", default_value_t)]
    pub resume: Resume,

    /// Address at which clients may look for the server should it vanish; may be repeated, up to 8
    /// times
    #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
    pub pool: Vec<SocketAddr>,

    /// DNS name that leads to the server wherever it is, which clients are told
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,

    /// Time between the announcement of a move and parking; in s, or with ms, s, m or h
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub lead: Duration,

    /// How long a move is expected to take, which clients are told: they look for the server most often
    /// about then; in s, or with ms, s, m or h. By default that of --move-in-process, or not known
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub outage: Option<Duration>,

    /// Directory in which each checkpoint makes a new one for its images; they hold every session key. No other
    /// user may own it or write to it
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,

    /// Write the process id to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Append the log to this file instead of writing it to the standard error stream
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Log responses to this file, one line each, instead of among the rest, and handshakes that fail; `-` is the
    /// standard output stream
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,

    /// How these lines look
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "combined",
        requires = "access_log"
    )]
    pub access_format: Format,

    /// Serve the same over TCP as well, by HTTP/1.1 and HTTP/2, at the same address; answers say that there is
    /// HTTP/3. A move cuts what is sent over TCP
    #[arg(long)]
    pub tcp: bool,

    /// Serve /metrics, for Prometheus, and /health there, by plain HTTP over TCP
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,

    /// Move without CRIU: on SIGUSR1 park, be silent for this long, and go on at --migrate-to in
    /// the same process; in s, or with ms, s, m or h
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = duration,
        requires = "migrate_to",
        conflicts_with = "images"
    )]
    pub move_in_process: Option<Duration>,

    /// How long running downloads may take to finish after SIGTERM or SIGINT; in s, or with ms, s,
    /// m or h
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub grace: Duration,
}

impl Serve {
    /// Where the files are.
    pub fn root(&self) -> Option<&Path> {
        self.dir.as_deref().or(self.root.as_deref())
    }

    /// How many clients there may be, and how fast they are sent what they ask for.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            connections_of_an_address: self.max_connections_address,
            rate_of_a_connection: self.limit_rate_connection,
            rate_of_an_address: self.limit_rate_address,
            rate: self.limit_rate_total,
        }
    }
}

/// Which server to take over from, and how to serve.
#[derive(Debug, Clone, clap::Args)]
pub struct HandoverOptions {
    /// Process id of the server to take over from; without it, the one that --pid-file names, which names this process
    /// afterwards
    #[arg(long, value_name = "PID", value_parser = pid(), required_unless_present = "pid_file")]
    pub pid: Option<i32>,

    /// How long what is running at the old server may take to finish; in s, or with ms, s, m or h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub drain: Duration,

    /// How this process serves: all that `mpq-serve` takes. It listens where the old server does, whatever --listen says
    #[command(flatten)]
    pub serve: Serve,
}

/// A command on a server.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Announce the move of a running server, checkpoint it, and return when its images are complete
    #[command(after_help = EXIT_CODES, group = ArgGroup::new("server").required(true))]
    Checkpoint {
        /// Process id of the server
        #[arg(long, value_name = "PID", group = "server", value_parser = pid())]
        pid: Option<i32>,

        /// File that holds the process id of the server
        #[arg(long, value_name = "FILE", group = "server")]
        pid_file: Option<PathBuf>,

        /// Directory in which to make a new one for the images, instead of in the one that the server was started
        /// with, or in /run/mpq-serve/images if it is another user's; the new one is printed
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,

        /// Address to move to instead of those the server was started with; may be repeated, up to 8
        /// times
        #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
        migrate_to: Vec<SocketAddr>,

        /// Keep clients that cannot follow, such as browsers: a process stays here and forwards what they and the
        /// server send, until they have been silent for a minute
        #[arg(long)]
        forward: bool,

        /// Encrypt the images, and write the key, which `restore --key` wants, to this new file; `-` is the standard
        /// output, which has nothing else then. The directory of the images must be in memory, and not have this
        /// file in it
        #[arg(long, value_name = "FILE")]
        seal: Option<PathBuf>,
    },

    /// Announce the move of a running server, and return when it stands still: for container engines and others that
    /// dump it and restore it themselves. Restored, it goes on by itself. Whoever dumps it has to end it: two servers
    /// would send with the same keys
    #[command(after_help = EXIT_CODES, group = ArgGroup::new("server").required(true))]
    Park {
        /// Process id of the server
        #[arg(long, value_name = "PID", group = "server", value_parser = pid())]
        pid: Option<i32>,

        /// File that holds the process id of the server
        #[arg(long, value_name = "FILE", group = "server")]
        pid_file: Option<PathBuf>,

        /// Address to move to instead of those the server was started with; may be repeated, up to 8
        /// times. There it listens, unless it listens on all addresses
        #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
        migrate_to: Vec<SocketAddr>,

        /// How long it may stand still before it goes on where it was; in s, or with ms, s, m or h
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
        limit: Duration,
    },

    /// Have a server go on where it is that `park` has stopped. Only if no copy of it was restored, or will be
    #[command(after_help = EXIT_CODES, group = ArgGroup::new("server").required(true))]
    Unpark {
        /// Process id of the server
        #[arg(long, value_name = "PID", group = "server", value_parser = pid())]
        pid: Option<i32>,

        /// File that holds the process id of the server
        #[arg(long, value_name = "FILE", group = "server")]
        pid_file: Option<PathBuf>,
    },

    /// Bring a checkpointed server back, here, with its connections
    #[command(after_help = EXIT_CODES)]
    Restore {
        /// Directory that `checkpoint` has printed, or the one that this is in if there is no other
        #[arg(long, value_name = "DIR")]
        images: PathBuf,

        /// File with the key that `checkpoint --seal` has written, if the images are sealed; `-` is the standard input
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,

        /// Address and port to listen on instead of the one that was announced
        #[arg(long, value_name = "ADDR:PORT")]
        listen: Option<SocketAddr>,

        /// Write the process id of the restored server to this file
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,

        /// Append the log of the restored server to this file, instead of where it was written before
        #[arg(long, value_name = "FILE")]
        log_file: Option<PathBuf>,

        /// End CRIU, and what it has restored, if it takes longer; in s, or with ms, s, m or h
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
        time_limit: Duration,

        /// Restore images that were released here, once the time for which their copies could be restored is
        /// over. Only if none of them was restored: two servers would send with the same keys
        #[arg(long)]
        rollback: bool,

        /// Restore images that were released here, or are a copy, at once. Only if it is certain that no other
        /// copy was restored, or will be
        #[arg(long, conflicts_with = "rollback")]
        force: bool,
    },

    /// Take over from a running server on this host, as a new process: new clients are this one's, and the old one
    /// finishes what it has begun, and ends. No client notices
    #[command(after_help = EXIT_CODES)]
    Handover(Box<HandoverOptions>),

    /// Move a running server to another host, by ssh, with its connections. All that would be in the way is looked
    /// for on both hosts first
    #[command(after_help = EXIT_CODES, group = ArgGroup::new("server").required(true))]
    Move(MoveOptions),

    /// Move the container of a running server to another host, by ssh and the engine that runs it, with its connections
    #[command(after_help = EXIT_CODES)]
    MoveContainer(MoveContainerOptions),

    /// Receive a server. Started by `move` on the other host.
    #[command(hide = true)]
    Receive,

    /// Let a copy of these images be restored on another host, and these no longer. Run it before they are
    /// copied, or copy their token.json once more afterwards
    #[command(after_help = EXIT_CODES)]
    Release {
        /// Directory that `checkpoint` has printed, or the one that this is in if there is no other
        #[arg(long, value_name = "DIR")]
        images: PathBuf,

        /// How long a copy can be restored; in s, or with ms, s, m or h. Later these can be again, by
        /// restore --rollback
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = duration)]
        valid: Duration,
    },

    /// Forward for clients of a server that has left. Started by the helper.
    #[command(hide = true)]
    Forward {
        /// Directory through which the server and its helper talk
        #[arg(long, value_name = "DIR")]
        control: PathBuf,

        /// Which checkpoint it is for
        #[arg(long, value_name = "ID", value_parser = RequestId::parse)]
        request: RequestId,
    },

    /// Restore a server as the first process of a namespace, and stay. Started by `restore`.
    #[command(hide = true)]
    Init {
        /// Process id of the server
        #[arg(long, value_name = "PID", value_parser = pid())]
        pid: i32,

        /// The last id that it or one of its threads needs
        #[arg(long, value_name = "ID", value_parser = pid())]
        last_id: i32,

        /// Directory of its images
        #[arg(long, value_name = "DIR")]
        images: PathBuf,

        /// CRIU, and its arguments
        #[arg(last = true, required = true, value_name = "CRIU")]
        criu: Vec<OsString>,
    },

    /// Dump a parked server. Started by the server itself.
    #[command(hide = true)]
    Dump {
        /// Process id of the server
        #[arg(long, value_name = "PID", value_parser = pid())]
        pid: i32,

        /// Directory for the images, made for them
        #[arg(long, value_name = "DIR", required_unless_present = "dumper")]
        images: Option<PathBuf>,

        /// Process of root's that dumps it instead, into another one
        #[arg(long, value_name = "PID", conflicts_with = "images", value_parser = pid())]
        dumper: Option<i32>,

        /// User and group of the server, if this is root and it is another one's
        #[arg(long, value_name = "UID:GID", requires = "images", value_parser = owner)]
        owner: Option<Owner>,

        /// Directory through which the server and its helper talk
        #[arg(long, value_name = "DIR")]
        control: PathBuf,

        /// Whose wish it is
        #[arg(long, value_name = "ID", value_parser = RequestId::parse)]
        request: RequestId,
    },
}

impl Args {
    /// Reads the command line of the program, and ends it if that cannot be.
    pub fn read() -> Self {
        Self::read_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn read_from<T: Into<OsString> + Clone>(
        line: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let line = line.into_iter().map(Into::into).collect();
        let line = config::complete(&Self::command(), line)
            .map_err(|why| Self::command().error(ErrorKind::InvalidValue, why))?;
        let mut args = Self::try_parse_from(line)?;
        let mut definition = Self::command();
        let is_server = matches!(args.command, None | Some(Command::Handover(_)));
        let serve = match &mut args.command {
            Some(Command::Handover(options)) => &mut options.serve,
            _ => &mut args.serve,
        };
        serve.listen = without_those_of_all(&serve.listen);
        let serve = serve.clone();
        let dir = serve.dir.as_deref().and_then(Path::to_str);
        if let Some(name) = dir.filter(|name| definition.find_subcommand(name).is_some()) {
            let message = format!(
                "the command {name} comes before all options; a directory of that name is ./{name}"
            );
            return Err(definition.error(ErrorKind::ArgumentConflict, message));
        }
        if is_server && serve.root().is_none() && serve.random.is_none() {
            let message = "there is nothing to serve: name a directory, or give --random";
            return Err(definition.error(ErrorKind::MissingRequiredArgument, message));
        }
        let moves = serve.move_in_process.is_some() || !serve.migrate_to.is_empty();
        if serve.listen.len() > 1 && moves {
            let message =
                "a server with several --listen cannot move: give one, or no --migrate-to";
            return Err(definition.error(ErrorKind::ArgumentConflict, message));
        }
        let of_a_checkpoint = match &args.command {
            Some(Command::Checkpoint { migrate_to, .. } | Command::Park { migrate_to, .. }) => {
                migrate_to.as_slice()
            }
            _ => &[],
        };
        for (option, addresses) in [
            ("--migrate-to", serve.migrate_to.as_slice()),
            ("--migrate-to", of_a_checkpoint),
            ("--pool", &serve.pool),
        ] {
            if addresses.len() > MAX_ADDRESSES {
                let count = addresses.len();
                let message =
                    format!("{option} can be given {MAX_ADDRESSES} times at most, not {count}");
                return Err(definition.error(ErrorKind::TooManyValues, message));
            }
        }
        Ok(args)
    }
}

/// An address to listen on. Of those of a name it is the first.
fn listen(text: &str) -> Result<SocketAddr, String> {
    const EXPECTED: &str =
        "expected ADDR:PORT, as in 192.0.2.1:4433, [2001:db8::1]:4433, localhost:4433 or :4433";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let port: u16 = port.parse().map_err(|_| EXPECTED)?;
    match host {
        "" => Ok((Ipv6Addr::UNSPECIFIED, port).into()),
        host => (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("no address of {host}: {error}"))?
            .next()
            .ok_or_else(|| format!("{host} has no address")),
    }
}

/// Whoever listens on `[::]` listens on `0.0.0.0` as well: without the latter where both are given.
fn without_those_of_all(listens: &[SocketAddr]) -> Vec<SocketAddr> {
    let all = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let is_covered = |listen: &SocketAddr| {
        let is_of_ipv4 = listen.is_ipv4() && listen.ip().is_unspecified();
        is_of_ipv4 && listen.port() != 0 && listens.contains(&all(listen.port()))
    };
    let listens = listens.iter().copied();
    listens.filter(|listen| !is_covered(listen)).collect()
}

/// How many there may be.
fn most(given: &str) -> Result<NonZeroUsize, String> {
    given.parse().map_err(|_| {
        "must be a whole number from 1 on; without the option there is no limit".to_owned()
    })
}

/// A field of a header.
fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let expected = || "expected NAME: VALUE, as in 'Cache-Control: max-age=60'".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(expected)?;
    let name: HeaderName = name.trim().parse().map_err(|_| expected())?;
    let value = value.trim().parse().map_err(|_| expected())?;
    if is_of_the_server(&name) {
        return Err(format!("{name} is the server's to say"));
    }
    Ok((name, value))
}

/// A user and a group.
fn owner(text: &str) -> Result<Owner, String> {
    let ids = text.split_once(':').and_then(|(uid, gid)| {
        Some(Owner {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        })
    });
    ids.ok_or_else(|| "expected UID:GID".to_owned())
}

/// A name that clients can be told.
fn name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_NAME => Ok(text.to_owned()),
        length => Err(format!("a name has 1 to {MAX_NAME} bytes, not {length}")),
    }
}

#[cfg(test)]
mod tests;
