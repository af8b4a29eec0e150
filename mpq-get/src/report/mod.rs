//! What is told of a download: to programs by JSON lines on standard output, to people by lines and
//! the progress display on standard error.
//!
//! [`Reporter`] decides who is told what. [`events`] are what happens, as JSON; `text` has them as lines
//! for people; [`progress`] is the display; `outage` measures what a move costs the body.

pub mod events;
pub(crate) mod outage;
pub mod progress;
mod say;
mod text;

use std::io::{self, IsTerminal};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use self::events::{DownloadEvent, Summary};
use self::progress::{Progress, Snapshot, live_paths};
use self::say::say;
use crate::error::Error;
use crate::output::Leftover;

/// What is to be told, and how.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Each event as a line of JSON on standard output.
    pub json: bool,
    /// No progress and no digest.
    pub silent: bool,
    /// Each event as a line of text.
    pub verbose: bool,
    /// Whether standard output is for the body.
    pub body_on_stdout: bool,
}

/// Tells the world about one download.
#[derive(Debug)]
pub struct Reporter {
    start: Instant,
    unix: f64,
    options: Options,
    progress: Progress,
}

impl Reporter {
    /// A reporter for one download; the clock of the events starts now.
    pub fn new(options: Options) -> Reporter {
        let start = Instant::now();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |t| t.as_secs_f64());
        // On a terminal the body would be mixed up with the display.
        let hidden = options.silent || (options.body_on_stdout && io::stdout().is_terminal());
        let progress = if hidden {
            Progress::Hidden
        } else if io::stderr().is_terminal() {
            Progress::live()
        } else {
            Progress::plain(start)
        };
        Reporter {
            start,
            unix,
            options,
            progress,
        }
    }

    /// Unix time in seconds at which the events' clock started.
    pub fn unix(&self) -> f64 {
        self.unix
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Tells of something that happened at `at`.
    pub fn event(&mut self, at: Instant, event: &DownloadEvent) {
        self.write_json(at, event);
        match event {
            // The live line would soon be overwritten.
            DownloadEvent::Restarted { .. } => self.progress.warn(&event.to_string()),
            _ if event.is_incident() => self.progress.incident(&event.to_string()),
            _ => {}
        }
        // Where there is no live display, an incident has just become a line.
        let shown = event.is_incident() && matches!(self.progress, Progress::Plain(_));
        if self.options.verbose && !shown {
            let t = at.saturating_duration_since(self.start).as_secs_f64();
            self.progress.print(&format!("{t:8.3} s  {event}"));
        }
    }

    /// Tells how far the download is.
    pub fn progress(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        self.write_json(
            now,
            &DownloadEvent::Progress {
                bytes: snapshot.bytes,
                paths: live_paths(&snapshot.paths).cloned().collect(),
            },
        );
        self.progress.update(now, snapshot);
    }

    /// The download is complete; `name` is where the body is.
    pub fn done(&mut self, name: &str, summary: Summary) {
        self.progress.finish();
        let digest = format!("sha256 {}  {name}", summary.sha256);
        let event = DownloadEvent::Done(summary);
        self.write_json(Instant::now(), &event);
        if !self.options.silent {
            say(&event);
            say(&digest);
        }
    }

    /// The download has failed.
    pub fn failed(&mut self, error: &Error, leftover: &Leftover) {
        self.progress.finish();
        let mut message = error.to_string();
        if let Some((part, bytes)) = leftover.part() {
            message += &format!("; {bytes} bytes are kept in {}", part.display());
            if leftover.is_resumable() {
                message += ", -C goes on with them";
            }
        }
        say(&format_args!("mpq-get: {message}"));
        self.write_json(
            Instant::now(),
            &DownloadEvent::Error {
                code: error.code(),
                message,
            },
        );
    }

    fn write_json(&self, at: Instant, event: &DownloadEvent) {
        if self.options.json {
            let t = at.saturating_duration_since(self.start).as_secs_f64();
            // A reader that has gone must not end the download of a file.
            let _ = event.write_json(t, io::stdout().lock());
        }
    }
}
