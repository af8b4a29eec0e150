//! The command line of the testbed, `cargo lab`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{Parser, Subcommand};
use mpq_lab::arms::{attacker, quinn_server};
use mpq_lab::bench::{self, attacks, linkfail, load};
use mpq_lab::experiment::reproduce;
use mpq_lab::experiment::scenario::Scenario;
use mpq_lab::network::calibrate::calibrate;
use mpq_lab::network::emulator;
use mpq_lab::network::model::{Line, Network};
use mpq_lab::network::topology::Host;
use mpq_lab::network::up::{self, LinkOption};
use mpq_lab::system::setup;
use mpq_lab::{check, demo, guards, mutants, package};
use tokio::signal::unix::{SignalKind, signal};

/// Testbed for mpq
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the lab needs and is missing: iproute2, and a private CRIU
    Setup,
    /// Show a download that goes on while its server moves to another host
    Demo,
    /// Repeat the paper's experiments and write a report; goes on where it was interrupted
    Reproduce {
        #[command(flatten)]
        options: Options,
    },
    /// Run experiments of your own
    Run {
        /// Their files, or names of those in mpq-lab/scenarios
        #[arg(required = true, value_name = "FILE")]
        scenarios: Vec<PathBuf>,

        #[command(flatten)]
        options: Options,
    },
    /// Measure ratios side by side: mpq against plain quinn on loopback, both links against their
    /// sum, a move against none
    Bench {
        #[command(flatten)]
        options: bench::Options,
    },
    /// Move a server under many clients: what they lose, how long it takes, what they cost
    Herd {
        #[command(flatten)]
        options: load::Options,
    },
    /// Let links die under a download, for a moment and for good, beside Multipath TCP
    Linkfail {
        #[command(flatten)]
        options: linkfail::Options,
    },
    /// Attack a server, in five ways, and see what a good client keeps of its rate, and what memory the server needs
    Attacks {
        #[command(flatten)]
        options: attacks::Options,
    },
    /// Make the network and leave it up; its hosts are the namespaces mpq-lab-client, mpq-lab-router,
    /// mpq-lab-server-a and mpq-lab-server-b
    Up {
        /// Change a link, as `link set` does: 0:delay=10ms,rate=20M
        #[arg(long = "link", value_name = "LINK:KEY=VALUE,…")]
        links: Vec<LinkOption>,
    },
    /// Remove the network that is up, and what runs there
    Down,
    /// Run a command on a host of the network that is up
    Exec {
        /// client, router, server-a or server-b
        host: Host,

        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Change or show the links of the network that is up
    Link {
        #[command(subcommand)]
        command: LinkCommand,
    },
    /// Measure whether the emulated links are as asked for; fails if they are not
    Calibrate {
        /// Measure the links of this experiment instead of the paper's
        #[arg(long, value_name = "FILE")]
        scenario: Option<PathBuf>,
    },
    /// Move packets between hosts; what to do is told on the standard input. Started by the lab itself
    #[command(hide = true)]
    Emulate {
        /// The network's name, for whoever looks for the process
        id: String,
    },
    /// Be the attacker; started by the lab itself
    #[command(hide = true)]
    Attack {
        #[command(flatten)]
        options: attacker::Options,
    },
    /// Be the clients of a herd; started by the lab itself
    #[command(hide = true)]
    HerdClients {
        #[command(flatten)]
        options: load::ClientOptions,
    },
    /// Serve by plain quinn; started by the lab itself
    #[command(hide = true)]
    QuinnServer {
        #[command(flatten)]
        options: quinn_server::Options,
    },
    /// Take out one guard of the protocol after the other, and see that a test fails for each
    Guards,
    /// Change the machines of the protocol in a thousand places, one after the other, and list what no test notices
    Mutants {
        /// Arguments for `cargo mutants`, such as `--file policy.rs` or `--shard 0/4`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Make what a package of the tools has, from their options
    Package {
        #[command(subcommand)]
        what: package::What,
    },
    /// Check format and lints, and run all tests
    Test {
        /// Arguments for `cargo test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum LinkCommand {
    /// Change a link at once, in both directions
    Set {
        /// 0, 1 or shared
        link: Line,

        /// rate=100M (bit/s), burst=400k (bytes), latency=1ms, delay=25ms, jitter=0ms, loss=0.01,
        /// reorder=0.0, up=true
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
    },
    /// Show the links
    Show,
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Runs of each arm [default: as the scenario says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    /// Folder for the report and the raw results
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        // It is one thread, and ends as any process does when it is told to.
        Command::Emulate { .. } => emulator::emulate().map(|()| ExitCode::SUCCESS),
        command => in_runtime(command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn in_runtime(command: Command) -> Result<ExitCode> {
    tokio::select! {
        result = run(command) => result,
        // What runs is dropped then, and cleans up after itself.
        code = interrupted() => Ok(code),
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => match setup::setup() {
            Ok(criu) => println!("Ready; CRIU is {}", criu.display()),
            // The rest of the lab works without.
            Err(reason) => println!("Only the loopback demo and tests can run here: {reason:#}"),
        },
        Command::Demo => demo::demo().await?,
        Command::Reproduce { options } => experiment(reproduce::paper()?, &options).await?,
        Command::Run { scenarios, options } => {
            let scenarios = scenarios.iter().map(|file| Scenario::read(file));
            experiment(scenarios.collect::<Result<_>>()?, &options).await?;
        }
        Command::Bench { options } => bench::bench(&options).await?,
        Command::Herd { options } => load::load(&options).await?,
        Command::Linkfail { options } => linkfail::linkfail(&options).await?,
        Command::Attacks { options } => attacks::attacks(&options).await?,
        Command::Attack { options } => attacker::attack(options).await?,
        Command::HerdClients { options } => load::clients(options).await?,
        Command::QuinnServer { options } => quinn_server::serve(options).await?,
        Command::Up { links } => up::up(&links)?,
        Command::Down => up::down()?,
        Command::Exec { host, command } => match up::exec(host, &command)? {},
        Command::Link { command } => match command {
            LinkCommand::Set { link, changes } => {
                let change = changes.join(" ").parse().map_err(Error::msg)?;
                up::set(link, &change)?;
            }
            LinkCommand::Show => up::show()?,
        },
        Command::Calibrate { scenario } => {
            setup::install_programs()?;
            let network = match scenario {
                Some(file) => Scenario::read(&file)?.network,
                None => Network::default(),
            };
            let calibration = calibrate(&network).await?;
            print!("{calibration}");
        }
        Command::Emulate { .. } => unreachable!("main runs it"),
        Command::Guards => guards::check()?,
        Command::Mutants { arguments } => mutants::mutants(&arguments)?,
        Command::Package { what } => package::make(&what)?,
        Command::Test { arguments } => check::check(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn experiment(scenarios: Vec<Scenario>, options: &Options) -> Result<()> {
    let report = reproduce::reproduce(scenarios, options.runs, &options.out).await?;
    println!("{}", report.display());
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM and returns the exit code that tells of it.
async fn interrupted() -> ExitCode {
    let wait = async |kind: SignalKind| {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        };
        ExitCode::from(128 + kind.as_raw_value() as u8)
    };
    tokio::select! {
        code = wait(SignalKind::interrupt()) => code,
        code = wait(SignalKind::terminate()) => code,
    }
}
