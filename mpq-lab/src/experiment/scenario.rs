//! What an experiment is, as data: a TOML file holds the network, the file, the server's move and
//! what the links do, and who competes.
//!
//! ```toml
//! description = "A move that was announced"
//! size = "250M"                  # bytes of /random
//! arms = ["quic", "multipath"]   # see [`Arm`]
//! runs = 20                      # of each arm [20]
//! rival = true                   # a plain QUIC download beside it [false]
//! patience = "30s"               # after which a lost server is given up [30s]
//! bare = true                    # other strategies than ours go without our help, see [`Strategy`] [false]
//! segments = 1                   # how many requests of a body there are at once [mpq-get's own choice]
//! offload = true                 # packets sent in one are carried in one, see [`Network`] [false]
//!
//! [[links]]                      # two of them, as in [`Shape`] [those of the paper's Table 2]
//! rate = "100M"
//! delay = "25ms"
//!
//! [shared]                       # one more link that both paths go through [none]
//! rate = "50M"
//!
//! [move]                         # seconds after the handshake [the server stays]
//! announce = "5s"                # [never: the server crashes, another one takes its place]
//! freeze = "10s"
//! thaw = "20s"                   # or a list: each run takes the next [as soon as the checkpoint is there]
//!
//! [[events]]                     # what links do meanwhile
//! at = "3s"
//! link = 0
//! change = { up = false }        # any of the fields of a link
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mpq_core::proto::Strategy;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::arms::mpq_server::Content;
use crate::network::link_model::{Change, Shape};
use crate::network::model::Network;

/// An experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Its name: the file's, without `.toml`.
    pub name: String,
    /// What it shows, for people.
    pub description: String,
    /// Bytes to download.
    pub size: u64,
    /// What the bytes are made from.
    pub seed: u64,
    /// Who downloads.
    pub arms: Vec<Arm>,
    /// How often each does.
    pub runs: u32,
    /// Whether a plain QUIC download from the same server runs beside it, over the first interface.
    pub rival: bool,
    /// How long a client waits for a server that has vanished.
    pub patience: Duration,
    /// Whether the strategies of the literature are followed without the help that only this server gives
    /// (`mpq-get --bare`).
    pub bare: bool,
    /// How many parts of the body are asked for at once (`mpq-get --segments`).
    pub segments: Option<u32>,
    /// The links.
    pub network: Network,
    /// What the server does.
    pub moves: Option<Move>,
    /// What the links do.
    pub events: Vec<LinkEvent>,
}

/// A way to download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// No download: pings over each interface.
    Ping,
    /// HTTP/3 over plain QUIC and the first interface; started again when the server is lost.
    Quic,
    /// `mpq-get` with both interfaces. It goes with the server.
    Multipath,
    /// As [`Arm::Multipath`], with OLIA instead of CUBIC at the server.
    MultipathOlia,
    /// As [`Arm::Multipath`], with slow start instead of careful resume after a move.
    MultipathSlowStart,
    /// As [`Arm::Multipath`], with a jump from the first packet on after a move.
    MultipathAggressive,
    /// As [`Arm::Multipath`], with the strategy of this name; see [`Strategy`].
    Paper,
    /// As [`Arm::Paper`], with OLIA instead of CUBIC at the server, as the paper has it.
    PaperOlia,
    /// The same.
    Proactive,
    /// The same.
    Reactive,
    /// The same; the client knows both addresses.
    Pool,
    /// The same.
    Symmetric,
    /// The same; started again when the server is lost.
    Restart,
    /// HTTPS over TCP and the first interface; started again when the server is lost.
    Tcp,
    /// HTTPS over Multipath TCP and both interfaces; started again when the server is lost.
    Mptcp,
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arm::Ping => "ping",
            Arm::Quic => "quic",
            Arm::Multipath => "multipath",
            Arm::MultipathOlia => "multipath-olia",
            Arm::MultipathSlowStart => "multipath-slow-start",
            Arm::MultipathAggressive => "multipath-aggressive",
            Arm::Paper => "paper",
            Arm::PaperOlia => "paper-olia",
            Arm::Proactive => "proactive",
            Arm::Reactive => "reactive",
            Arm::Pool => "pool",
            Arm::Symmetric => "symmetric",
            Arm::Restart => "restart",
            Arm::Tcp => "tcp",
            Arm::Mptcp => "mptcp",
        })
    }
}

impl Arm {
    /// How the client follows the server, if by `mpq-get` over both interfaces.
    pub fn strategy(self) -> Option<Strategy> {
        match self {
            Arm::Multipath
            | Arm::MultipathOlia
            | Arm::MultipathSlowStart
            | Arm::MultipathAggressive => Some(Strategy::Multipath),
            Arm::Paper | Arm::PaperOlia => Some(Strategy::Paper),
            Arm::Proactive => Some(Strategy::Proactive),
            Arm::Reactive => Some(Strategy::Reactive),
            Arm::Pool => Some(Strategy::Pool),
            Arm::Symmetric => Some(Strategy::Symmetric),
            Arm::Restart => Some(Strategy::Restart),
            Arm::Ping | Arm::Quic | Arm::Tcp | Arm::Mptcp => None,
        }
    }

    /// Whether its server has OLIA instead of CUBIC.
    pub fn has_olia(self) -> bool {
        matches!(self, Arm::MultipathOlia | Arm::PaperOlia)
    }

    /// The arm that does the same while the server stays.
    pub fn without_move(self) -> Arm {
        match self.strategy() {
            Some(_) if !self.has_olia() => Arm::Multipath,
            _ => self,
        }
    }
}

/// How the server goes from one host to the other; times since the first handshake.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "MoveText")]
pub struct Move {
    /// It says that it will move, unless it crashes.
    pub announce: Option<Duration>,
    /// It stops.
    pub freeze: Duration,
    /// It is brought back; at once if not said. Each run takes the next of these, and then the first again.
    pub thaws: Vec<Duration>,
}

impl Move {
    /// When the server is brought back in a run, which are numbered from 1 on.
    pub fn thaw(&self, run: u32) -> Option<Duration> {
        let index = run.saturating_sub(1) as usize % self.thaws.len().max(1);
        self.thaws.get(index).copied()
    }

    /// How long it is away in a run, if that was asked for.
    pub fn outage(&self, run: u32) -> Option<Duration> {
        self.thaw(run).map(|thaw| thaw - self.freeze)
    }
}

/// A change of a link during a run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkEvent {
    /// Time since the first handshake.
    #[serde(deserialize_with = "duration")]
    pub at: Duration,
    /// Which one: 0 or 1.
    #[serde(deserialize_with = "link")]
    pub link: usize,
    /// What becomes of it.
    pub change: Change,
}

impl Scenario {
    /// The content its servers serve.
    pub fn content(&self) -> Content {
        Content {
            size: self.size,
            seed: self.seed,
        }
    }

    /// Reads a scenario's file; if it is not there, the one of that name that comes with the lab.
    ///
    /// # Errors
    /// If it cannot be read, or is wrong; the message names the file, the line and the field.
    pub fn read(file: &Path) -> Result<Scenario> {
        let of_the_lab = folder().join(file);
        let file = match !file.exists() && of_the_lab.exists() {
            true => &of_the_lab,
            false => file,
        };
        let wrong = || format!("the scenario {} is not usable", file.display());
        let text = std::fs::read_to_string(file).with_context(wrong)?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        Scenario::parse(&name, &text).with_context(wrong)
    }

    /// A scenario that comes with the lab.
    ///
    /// # Errors
    /// If its file is not there.
    pub fn shipped(name: &str) -> Result<Scenario> {
        Scenario::read(&folder().join(name).with_extension("toml"))
    }

    /// Reads a scenario.
    ///
    /// # Errors
    /// What is wrong, with its line and field.
    pub fn parse(name: &str, text: &str) -> Result<Scenario> {
        let file: File = toml::from_str(text)?;
        let network = Network {
            links: file.links.unwrap_or(Network::default().links),
            shared: file.shared,
            offload: file.offload,
        };
        let scenario = Scenario {
            name: name.to_owned(),
            description: file.description,
            size: file.size,
            seed: file.seed,
            arms: file.arms,
            runs: file.runs,
            rival: file.rival,
            patience: file.patience,
            bare: file.bare,
            segments: file.segments,
            network,
            moves: file.moves,
            events: file.events,
        };
        scenario.network.check().map_err(anyhow::Error::msg)?;
        ensure!(!scenario.arms.is_empty(), "arms: at least one is needed");
        ensure!(scenario.runs > 0, "runs: at least one is needed");
        Ok(scenario)
    }

    /// The same without what happens to the server: what a move is measured against.
    pub fn without_move(&self) -> Scenario {
        Scenario {
            name: format!("{}-without", self.name),
            description: format!("As {}, but the server stays", self.name),
            moves: None,
            ..self.clone()
        }
    }
}

/// Where the scenarios are that come with the lab.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// A scenario as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    description: String,
    #[serde(deserialize_with = "size")]
    size: u64,
    #[serde(default = "one")]
    seed: u64,
    arms: Vec<Arm>,
    #[serde(default = "twenty")]
    runs: u32,
    #[serde(default)]
    rival: bool,
    #[serde(default = "half_a_minute", deserialize_with = "duration")]
    patience: Duration,
    #[serde(default)]
    bare: bool,
    segments: Option<u32>,
    links: Option<[Shape; 2]>,
    shared: Option<Shape>,
    #[serde(default)]
    offload: bool,
    #[serde(rename = "move")]
    moves: Option<Move>,
    #[serde(default)]
    events: Vec<LinkEvent>,
}

fn one() -> u64 {
    1
}

/// The paper's number.
fn twenty() -> u32 {
    20
}

/// QUIC's usual idle timeout.
fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveText {
    #[serde(default, deserialize_with = "some_duration")]
    announce: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    freeze: Duration,
    #[serde(default, deserialize_with = "durations")]
    thaw: Vec<Duration>,
}

impl TryFrom<MoveText> for Move {
    type Error = &'static str;

    fn try_from(text: MoveText) -> Result<Move, Self::Error> {
        let MoveText {
            announce,
            freeze,
            thaw,
        } = text;
        if announce.is_some_and(|announce| announce > freeze) {
            return Err("announce must not be later than freeze");
        }
        if thaw.iter().any(|thaw| *thaw < freeze) {
            return Err("thaw must not be earlier than freeze");
        }
        Ok(Move {
            announce,
            freeze,
            thaws: thaw,
        })
    }
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    mpq_serve::units::size(&text).map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    mpq_serve::units::duration(&text).map_err(D::Error::custom)
}

fn some_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

/// One or several.
fn durations<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a duration or a list of them")]
    enum Durations {
        One(String),
        Several(Vec<String>),
    }
    let texts = match Durations::deserialize(from)? {
        Durations::One(text) => vec![text],
        Durations::Several(texts) => texts,
    };
    let durations = texts.iter().map(|text| mpq_serve::units::duration(text));
    durations
        .collect::<Result<_, _>>()
        .map_err(D::Error::custom)
}

fn link<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match usize::deserialize(from)? {
        link @ 0..=1 => Ok(link),
        other => Err(D::Error::custom(format!(
            "there is no link {other}, only 0 and 1"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        description = "all there is"
        size = "1.5M"
        arms = ["quic", "multipath-olia"]
        runs = 3
        patience = "5s"
        links = [{ rate = "20M", delay = "20ms" }, { rate = "10M", loss = 0.01 }]
        shared = { rate = "15M" }
        move = { announce = "1s", freeze = "2s", thaw = "2.5s" }
        [[events]]
        at = "3s"
        link = 1
        change = { up = false }
    "#;

    #[test]
    fn a_whole_scenario_is_read() {
        let scenario = Scenario::parse("whole", WHOLE).unwrap();
        assert_eq!(scenario.size, 1_500_000);
        assert_eq!(scenario.arms, [Arm::Quic, Arm::MultipathOlia]);
        assert_eq!(scenario.network.links[0].rate, 20_000_000);
        assert_eq!(scenario.network.links[1].loss, 0.01);
        assert_eq!(scenario.network.shared.as_ref().unwrap().rate, 15_000_000);
        let moves = scenario.moves.as_ref().unwrap();
        assert_eq!(moves.announce, Some(Duration::from_secs(1)));
        assert_eq!(moves.thaw(1), Some(Duration::from_millis(2500)));
        assert_eq!(moves.thaw(2), Some(Duration::from_millis(2500)));
        assert_eq!(scenario.events[0].change.up, Some(false));
        assert_eq!(scenario.without_move().moves, None);
    }

    #[test]
    fn what_is_left_out_is_as_in_the_paper() {
        let text = "description = ''\nsize = '100M'\narms = ['multipath']";
        let scenario = Scenario::parse("short", text).unwrap();
        assert_eq!(scenario.runs, 20);
        assert_eq!(scenario.network, Network::default());
        assert_eq!((scenario.moves, scenario.events.len()), (None, 0));
    }

    #[test]
    fn each_run_takes_the_next_thaw() {
        let parse = |thaw: &str| {
            let text = WHOLE.replace("\"2.5s\"", thaw);
            Scenario::parse("thaws", &text)
        };
        let moves = parse("['2.5s', '3s', '5s']").unwrap().moves.unwrap();
        let outages: Vec<_> = (1..=4).map(|run| moves.outage(run)).collect();
        assert_eq!(
            outages,
            [500, 1000, 3000, 500].map(|ms| Some(Duration::from_millis(ms)))
        );
        for (wrong, field) in [("['3s', '1s']", "thaw"), ("3", "a list"), ("['3x']", "3x")] {
            let message = format!("{:#}", parse(wrong).unwrap_err());
            assert!(message.contains(field), "{message}");
        }
        let text = WHOLE.replace(", thaw = \"2.5s\"", "");
        let moves = Scenario::parse("none", &text).unwrap().moves.unwrap();
        assert_eq!((moves.thaw(1), moves.outage(1)), (None, None));
    }

    #[test]
    fn the_strategies_meet_eight_outages() {
        // As it is named on the command line.
        let strategies = Scenario::read(Path::new("strategies.toml")).unwrap();
        let moves = strategies.moves.unwrap();
        let outages: std::collections::BTreeSet<_> =
            (1..=16).map(|run| moves.outage(run)).collect();
        assert_eq!(outages.len(), 8);
    }

    #[test]
    fn links_that_lose_single_packets_have_no_offload() {
        let parse = |links: &str| {
            let text = "description = ''\nsize = '100M'\narms = ['multipath']\noffload = true\n";
            Scenario::parse("fast", &format!("{text}{links}"))
        };
        assert!(parse("").unwrap().network.offload);
        for (second, field) in [("loss = 0.01", "loss"), ("burst = '64k'", "burst")] {
            let wrong = parse(&format!("links = [{{}}, {{ {second} }}]")).unwrap_err();
            let wrong = format!("{wrong:#}");
            assert!(
                wrong.contains("links[1]") && wrong.contains(field),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_error_names_the_line_and_the_field() {
        let wrong = |from: &str, to: &str| {
            let text = WHOLE.replace(from, to);
            assert_ne!(text, WHOLE);
            format!("{:#}", Scenario::parse("wrong", &text).unwrap_err())
        };
        for (from, to, line, field) in [
            ("size =", "sise =", "line 3", "sise"),
            ("\"1.5M\"", "\"1.5X\"", "line 3", "size"),
            ("\"quic\"", "\"quick\"", "line 4", "quick"),
            ("delay =", "delais =", "line 7", "delais"),
            ("freeze = \"2s\"", "freeze = \"3s\"", "line 9", "thaw"),
            ("link = 1", "link = 2", "line 12", "link"),
            ("{ up = false }", "{ down = true }", "line 13", "down"),
        ] {
            let message = wrong(from, to);
            assert!(
                message.contains(line) && message.contains(field),
                "{message}"
            );
        }
        assert!(wrong("loss = 0.01", "loss = 2.0").contains("links[1]"));
    }

    #[test]
    fn what_is_shipped_can_be_read_and_is_named_as_it_is_printed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files = std::fs::read_dir(folder).unwrap();
        let scenarios: Vec<_> = files
            .map(|file| Scenario::read(&file.unwrap().path()).unwrap())
            .collect();
        assert!(scenarios.len() >= 9, "{}", scenarios.len());
        for arm in scenarios.iter().flat_map(|scenario| &scenario.arms) {
            let written = serde_json::to_value(arm).unwrap();
            assert_eq!(written, arm.to_string());
        }
    }
}
