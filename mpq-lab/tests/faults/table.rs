//! The table of faults, as it is documented.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

/// A fault, and when it happens.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) phase: &'static str,
    pub(crate) fault: &'static str,
    /// Has it happen.
    pub(crate) run: fn() -> Seen,
    /// It takes more than ten seconds.
    pub(crate) is_slow: bool,
}

impl Row {
    pub(crate) const fn new(phase: &'static str, fault: &'static str, run: fn() -> Seen) -> Self {
        Self {
            phase,
            fault,
            run,
            is_slow: false,
        }
    }

    pub(crate) const fn slow(self) -> Self {
        Self {
            is_slow: true,
            ..self
        }
    }
}

/// What is seen of it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The exit code of the command that met it.
    pub(crate) code: String,
    /// A part of what that command has said.
    pub(crate) says: String,
    /// Who serves from then on, one after the other.
    pub(crate) serving: String,
    /// What becomes of the download.
    pub(crate) download: String,
}

const INTRODUCTION: &str = "\
# What goes wrong when

A server at A has a client in the midst of a download when something goes wrong with its move to B. This table is made by
the test `faults` in `mpq-lab/tests`, with real processes and CRIU, on loopback. The test compares what it sees with
this page, and writes it with `UPDATE_FAULTS=1`. It also makes sure at each row that A and B never answer both, that
one of them answers unless the server has ended, and that the client has every byte, and each of them once.

- **Exit code** is that of the command that met the fault, and **it says** a part of its message. A dash is for a command
  that was killed, and for faults that no command meets.
- **Who serves** is seen by new requests to both. *Nobody: dumped* means that the server is in its images, and waits for
  a `restore` that succeeds. That follows once what was wrong is put right. After *nobody: killed*, *nobody: the images
  are spent* and *nobody: the images are lost* another server is started, with the same files and at the place that is
  named. After *nobody: told to leave* nothing is left to do.
- **The download** *goes on* at A, on the connection that it had. *The move is off* if the client had heard of it, and
  was told. It *follows* a server that moves. Or the connection is lost, and it *resumes* over another one, from the byte
  that it had come to.

The client has the usual options. Only where another server is started it waits for 3 s for one that moves
(`--migration-timeout`) and 2 s for one that is silent (`--idle-timeout`), so that the test need not wait for minutes.

";

/// The page with these rows.
pub(crate) fn render(rows: impl Iterator<Item = (Row, Seen)>) -> String {
    let mut text = INTRODUCTION.to_owned();
    text += "| when | what goes wrong | exit code | it says | who serves | the download |\n";
    text += "| --- | --- | --- | --- | --- | --- |\n";
    let mut last = "";
    for (Row { phase, fault, .. }, seen) in rows {
        let phase = if phase == last { "" } else { phase };
        last = if phase.is_empty() { last } else { phase };
        let Seen {
            code,
            says,
            serving,
            download,
        } = seen;
        let cells = [phase, fault, &code, &says, &serving, &download];
        let cells = cells.map(|cell| {
            if cell.is_empty() {
                " ".into()
            } else {
                format!(" {cell} ")
            }
        });
        writeln!(text, "|{}|", cells.join("|")).unwrap();
    }
    text
}

fn page() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md"))
}

pub(crate) fn documented() -> String {
    fs::read_to_string(page()).unwrap_or_default()
}

/// The page is as documented, or becomes so.
pub(crate) fn compare(text: &str) {
    if std::env::var_os("UPDATE_FAULTS").is_some() {
        fs::write(page(), text).unwrap();
    }
    let documented = documented();
    let lines = |text: &str, other: &str, sign| {
        let new = text
            .lines()
            .filter(|line| !other.lines().any(|old| old == *line));
        new.map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    assert!(
        text == documented,
        "docs/faults.md differs from what was seen; is it as it should be, write it with UPDATE_FAULTS=1:\n{}{}",
        lines(&documented, text, '-'),
        lines(text, &documented, '+'),
    );
}
