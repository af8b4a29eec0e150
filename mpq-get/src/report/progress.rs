//! The progress display on standard error: live lines on a terminal, a plain line a second
//! elsewhere, or nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mpq_core::client::{PathInfo, PathState};
use mpq_core::{PathId, printable};

use super::say::say;

/// Over how long a rate is measured.
const RATE_WINDOW: Duration = Duration::from_millis(500);
/// Between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);

/// How far a download is.
#[derive(Debug)]
pub struct Snapshot {
    /// Body bytes that are there.
    pub bytes: u64,
    /// The body's length, where the server gave one.
    pub total: Option<u64>,
    /// Every path there was, closed ones too.
    pub paths: Vec<PathInfo>,
}

/// A display on standard error.
#[derive(Debug)]
pub enum Progress {
    /// Shows nothing.
    Hidden,
    /// For logs and pipes.
    Plain(Plain),
    /// For terminals.
    Live(Box<Live>),
}

/// A line now and then.
#[derive(Debug)]
pub struct Plain {
    rate: Meter,
    due: Instant,
}

/// A line for the whole, one for each path, one for a move or a loss.
#[derive(Debug)]
pub struct Live {
    lines: MultiProgress,
    whole: ProgressBar,
    rate: Meter,
    paths: BTreeMap<PathId, (ProgressBar, Meter)>,
    incident: ProgressBar,
}

impl Progress {
    /// Plain lines, the first of them after a second.
    pub fn plain(now: Instant) -> Progress {
        Progress::Plain(Plain {
            rate: Meter::default(),
            due: now + PLAIN_INTERVAL,
        })
    }

    /// Live lines.
    pub fn live() -> Progress {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let whole = lines.add(ProgressBar::no_length().with_style(style("{decimal_bytes}  {msg}")));
        let incident = lines.add(ProgressBar::no_length().with_style(style("{msg}")));
        Progress::Live(Box::new(Live {
            lines,
            whole,
            rate: Meter::default(),
            paths: BTreeMap::new(),
            incident,
        }))
    }

    /// Brings the display up to date; call it about ten times a second.
    pub fn update(&mut self, now: Instant, snapshot: &Snapshot) {
        match self {
            Progress::Hidden => {}
            Progress::Plain(plain) => {
                if let Some(line) = plain.update(now, snapshot) {
                    say(&line);
                }
            }
            Progress::Live(live) => live.update(now, snapshot),
        }
    }

    /// Says how a move or a loss goes on; `text` replaces what was said before on a terminal.
    pub fn incident(&self, text: &str) {
        match self {
            Progress::Hidden => {}
            Progress::Plain(_) => say(&text),
            Progress::Live(live) => live.incident.set_message(printable(text)),
        }
    }

    /// Warns, with a line that stays.
    pub fn warn(&self, text: &str) {
        match self {
            Progress::Hidden => {}
            _ => self.print(&format!("warning: {text}")),
        }
    }

    /// Prints a line that stays.
    pub fn print(&self, line: &str) {
        match self {
            // A line that cannot be shown must not end the download.
            Progress::Live(live) => drop(live.lines.println(printable(line))),
            _ => say(&line),
        }
    }

    /// Leaves the display as it is and goes on below it.
    pub fn finish(&mut self) {
        if let Progress::Live(live) = self {
            live.whole.abandon();
            live.paths.values().for_each(|(line, _)| line.abandon());
            if live.incident.message().is_empty() {
                live.incident.finish_and_clear();
            } else {
                live.incident.abandon();
            }
        }
        *self = Progress::Hidden;
    }
}

impl Plain {
    fn update(&mut self, now: Instant, snapshot: &Snapshot) -> Option<String> {
        let rate = self.rate.update(now, snapshot.bytes);
        if now < self.due {
            return None;
        }
        self.due = now + PLAIN_INTERVAL;
        let amount = match snapshot.total {
            Some(total) => format!(
                "{:.1} of {:.1} MB ({}%)",
                snapshot.bytes as f64 * 1e-6,
                total as f64 * 1e-6,
                percent(snapshot.bytes, total)
            ),
            None => format!("{:.1} MB", snapshot.bytes as f64 * 1e-6),
        };
        let paths = live_paths(&snapshot.paths).count();
        let plural = if paths == 1 { "" } else { "s" };
        Some(format!(
            "{amount}, {}, {paths} path{plural}",
            speed(snapshot, rate)
        ))
    }
}

impl Live {
    fn update(&mut self, now: Instant, snapshot: &Snapshot) {
        // A file that is started over may have another length.
        if let Some(total) = snapshot
            .total
            .filter(|_| self.whole.length() != snapshot.total)
        {
            self.whole.set_length(total);
            self.whole.set_style(style(
                "{bar:30} {percent:>3}%  {decimal_bytes} of {decimal_total_bytes}  {msg}",
            ));
        }
        let rate = self.rate.update(now, snapshot.bytes);
        self.whole.set_position(snapshot.bytes);
        self.whole.set_message(speed(snapshot, rate));

        for path in live_paths(&snapshot.paths) {
            let (line, meter) = self.paths.entry(path.id).or_insert_with(|| {
                let line = ProgressBar::no_length().with_style(style("{msg}"));
                (
                    self.lines.insert_before(&self.incident, line),
                    Meter::default(),
                )
            });
            let rate = meter.update(now, path.received);
            line.set_message(path_line(path, rate));
        }
        let lines = &self.lines;
        self.paths.retain(|id, (line, _)| {
            let live = live_paths(&snapshot.paths).any(|path| path.id == *id);
            if !live {
                line.finish_and_clear();
                lines.remove(line);
            }
            live
        });
        // Draws even if nothing has come, so that the line stays in place.
        self.incident.tick();
    }
}

/// Bit/s over the last complete [`RATE_WINDOW`].
#[derive(Debug, Default)]
struct Meter {
    since: Option<(Instant, u64)>,
    rate: f64,
}

impl Meter {
    fn update(&mut self, now: Instant, bytes: u64) -> f64 {
        let (start, before) = *self.since.get_or_insert((now, bytes));
        let elapsed = now - start;
        if elapsed >= RATE_WINDOW {
            self.rate = bytes.saturating_sub(before) as f64 * 8.0 / elapsed.as_secs_f64();
            self.since = Some((now, bytes));
        }
        self.rate
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template")
}

/// Those that are not closed.
pub(crate) fn live_paths(paths: &[PathInfo]) -> impl Iterator<Item = &PathInfo> {
    paths.iter().filter(|path| path.state != PathState::Closed)
}

fn path_line(path: &PathInfo, rate: f64) -> String {
    let state = match path.state {
        PathState::Opening => "opening",
        PathState::Validated => "validated",
        PathState::Closed => "closed",
    };
    let mut line = format!(
        "path {}: {} to {}  {state}  {:.1} Mbit/s",
        path.id,
        path.interface,
        path.remote,
        rate * 1e-6,
    );
    if let Some(rtt) = path.rtt {
        line += &format!("  RTT {:.1} ms", rtt.as_secs_f64() * 1e3);
    }
    line
}

/// The rate in bit/s, and the time left where it can be told.
fn speed(snapshot: &Snapshot, rate: f64) -> String {
    let mut text = format!("{:.1} Mbit/s", rate * 1e-6);
    if let Some(total) = snapshot.total.filter(|_| rate > 0.0) {
        let left = total.saturating_sub(snapshot.bytes) as f64 * 8.0 / rate;
        text += &format!(", ETA {left:.0} s");
    }
    text
}

/// Rounded down, so that 100 means complete.
fn percent(bytes: u64, total: u64) -> u64 {
    (u128::from(bytes) * 100)
        .checked_div(u128::from(total))
        .map_or(100, |value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_a_window() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        assert_eq!(meter.update(start, 1_000), 0.0);
        assert_eq!(meter.update(start + RATE_WINDOW / 2, 50_000), 0.0);
        assert_eq!(meter.update(start + RATE_WINDOW, 126_000), 2e6);
        assert_eq!(meter.update(start + RATE_WINDOW * 2, 126_000), 0.0);
    }

    #[test]
    fn a_plain_line_a_second() {
        let start = Instant::now();
        let Progress::Plain(mut plain) = Progress::plain(start) else {
            unreachable!()
        };
        let snapshot = |bytes| Snapshot {
            bytes,
            total: Some(10_000_000),
            paths: Vec::new(),
        };
        assert_eq!(plain.update(start, &snapshot(0)), None);
        let line = plain.update(start + PLAIN_INTERVAL, &snapshot(2_500_000));
        assert_eq!(
            line.as_deref(),
            Some("2.5 of 10.0 MB (25%), 20.0 Mbit/s, ETA 3 s, 0 paths")
        );
        assert_eq!(
            plain.update(start + PLAIN_INTERVAL * 3 / 2, &snapshot(3_000_000)),
            None
        );
    }

    #[test]
    fn percentages_do_not_round_up() {
        assert_eq!(percent(999, 1000), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(0, 0), 100);
    }
}
