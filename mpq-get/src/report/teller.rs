//! The thread that tells: whoever reads what it writes may be slow, stuck or gone.

use std::io::{self, IsTerminal};
use std::sync::mpsc;
use std::time::Instant;

use mpq_core::client::{ClientEvent, InterfaceEvent};

use super::events::{DownloadEvent, Summary};
use super::progress::{Progress, Snapshot, live_paths};
use super::say::say;

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

/// What the thread is to tell.
#[derive(Debug)]
pub(super) enum Message {
    /// Something happened at that time.
    Event(Instant, DownloadEvent),
    /// So far it is.
    Progress(Instant, Snapshot),
    /// It is complete, and where the body is.
    Done(Instant, Summary, String),
    /// It has failed.
    Failed(Instant, DownloadEvent),
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Teller {
    start: Instant,
    options: Options,
    progress: Progress,
}

impl Teller {
    /// For a download that began at that time.
    pub(super) fn new(options: Options, start: Instant) -> Teller {
        // On a terminal the body would be mixed up with the display.
        let hidden = options.silent || (options.body_on_stdout && io::stdout().is_terminal());
        let progress = if hidden {
            Progress::Hidden
        } else if io::stderr().is_terminal() {
            Progress::live()
        } else {
            Progress::plain(start)
        };
        Teller {
            start,
            options,
            progress,
        }
    }

    /// The thread's work. `told` is called after each message.
    pub(super) fn run(mut self, messages: mpsc::Receiver<Message>, told: impl Fn()) {
        for message in messages {
            match message {
                Message::Event(at, event) => self.event(at, &event),
                Message::Progress(at, snapshot) => self.progress(at, &snapshot),
                Message::Done(at, summary, name) => self.done(at, summary, &name),
                Message::Failed(at, event) => self.failed(at, &event),
            }
            told();
        }
    }

    fn event(&mut self, at: Instant, event: &DownloadEvent) {
        self.write_json(at, event);
        match event {
            // The live line would soon be overwritten.
            DownloadEvent::Restarted { .. }
            | DownloadEvent::LeftAlone { .. }
            | DownloadEvent::Connection(ClientEvent::Interface(InterfaceEvent::LeftOut {
                ..
            })) => {
                self.progress.warn(&event.to_string());
            }
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

    fn progress(&mut self, at: Instant, snapshot: &Snapshot) {
        self.write_json(
            at,
            &DownloadEvent::Progress {
                bytes: snapshot.bytes,
                paths: live_paths(&snapshot.paths).cloned().collect(),
            },
        );
        self.progress.update(at, snapshot);
    }

    fn done(&mut self, at: Instant, summary: Summary, name: &str) {
        self.progress.finish();
        let digest = format!("sha256 {}  {name}", summary.sha256);
        let event = DownloadEvent::Done(summary);
        self.write_json(at, &event);
        if !self.options.silent {
            say(&event);
            say(&digest);
        }
    }

    fn failed(&mut self, at: Instant, event: &DownloadEvent) {
        self.progress.finish();
        // Programs first: nobody may read what people are told.
        self.write_json(at, event);
        say(&format_args!("mpq-get: {event}"));
    }

    fn write_json(&self, at: Instant, event: &DownloadEvent) {
        if self.options.json {
            let t = at.saturating_duration_since(self.start).as_secs_f64();
            // A reader that has gone must not end the download of a file.
            let _ = event.write_json(t, io::stdout().lock());
        }
    }
}
