//! Who is told what: programs by JSON lines on standard output, people by lines and the progress
//! display on standard error.

use std::io::{self, IsTerminal};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::args::Args;
use crate::error::Error;
use crate::events::{Event, Summary};
use crate::output::Kept;
use crate::progress::{Progress, Snapshot, live_paths};

/// Tells the world about one download.
#[derive(Debug)]
pub struct Reporter {
    start: Instant,
    unix: f64,
    json: bool,
    silent: bool,
    verbose: bool,
    progress: Progress,
}

impl Reporter {
    /// A reporter as the command line wants it; the clock of the events starts now.
    pub fn new(args: &Args) -> Reporter {
        let start = Instant::now();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |t| t.as_secs_f64());
        // On a terminal the body would be mixed up with the display.
        let hidden = args.silent || (args.body_on_stdout() && io::stdout().is_terminal());
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
            json: args.json,
            silent: args.silent,
            verbose: args.verbose,
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
    pub fn event(&mut self, at: Instant, event: &Event) {
        self.write_json(at, event);
        match event {
            // The live line would soon be overwritten.
            Event::Restarted { .. } => self.progress.warn(&event.to_string()),
            _ if event.is_incident() => self.progress.incident(&event.to_string()),
            _ => {}
        }
        // Where there is no live display, an incident has just become a line.
        let shown = event.is_incident() && matches!(self.progress, Progress::Plain(_));
        if self.verbose && !shown {
            let t = at.saturating_duration_since(self.start).as_secs_f64();
            self.progress.print(&format!("{t:8.3} s  {event}"));
        }
    }

    /// Tells how far the download is.
    pub fn progress(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        self.write_json(
            now,
            &Event::Progress {
                bytes: snapshot.bytes,
                paths: live_paths(&snapshot.paths)
                    .cloned()
                    .map(Into::into)
                    .collect(),
            },
        );
        self.progress.update(now, snapshot);
    }

    /// The download is complete; `name` is where the body is.
    pub fn done(&mut self, name: &str, summary: Summary) {
        self.progress.finish();
        let digest = format!("sha256 {}  {name}", summary.sha256);
        let event = Event::Done(summary);
        self.write_json(Instant::now(), &event);
        if !self.silent {
            eprintln!("{event}");
            eprintln!("{digest}");
        }
    }

    /// The download has failed.
    pub fn failed(&mut self, error: &Error, kept: &Kept) {
        self.progress.finish();
        let mut message = error.to_string();
        if let Some((part, bytes)) = kept.part() {
            message += &format!("; {bytes} bytes are kept in {}", part.display());
            if kept.is_resumable() {
                message += ", -C goes on with them";
            }
        }
        eprintln!("mpq-get: {message}");
        self.write_json(
            Instant::now(),
            &Event::Error {
                code: error.code(),
                message,
            },
        );
    }

    fn write_json(&self, at: Instant, event: &Event) {
        if self.json {
            let t = at.saturating_duration_since(self.start).as_secs_f64();
            // A reader that has gone must not end the download of a file.
            let _ = event.write_json(t, io::stdout().lock());
        }
    }
}
