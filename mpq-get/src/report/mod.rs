//! What is told of a download: to programs by JSON lines on standard output, to people by lines and
//! the progress display on standard error.
//!
//! [`Reporter`] takes what there is to tell, and never waits for a reader: `teller` is a thread, which decides who is
//! told what. [`events`] are what happens, as JSON; `text` has them as lines
//! for people; [`progress`] is the display; `outage` measures what a move costs the body.

pub mod events;
pub(crate) mod outage;
pub mod progress;
mod say;
mod teller;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use self::events::{DownloadEvent, Summary};
use self::progress::Snapshot;
pub use self::teller::Options;
use self::teller::{Message, Teller};
use crate::error::Error;
use crate::output::Leftover;

/// Messages that wait for a slow reader before it is told no more of the progress.
const MAX_BACKLOG: usize = 16;

/// Tells the world about one download.
#[derive(Debug)]
pub struct Reporter {
    start: Instant,
    unix: f64,
    messages: mpsc::Sender<Message>,
    backlog: Arc<AtomicUsize>,
    told: oneshot::Receiver<()>,
}

impl Reporter {
    /// A reporter for one download; the clock of the events starts now.
    ///
    /// # Errors
    /// If the system gives no thread for it.
    pub fn new(options: Options) -> std::io::Result<Reporter> {
        let start = Instant::now();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |t| t.as_secs_f64());
        let (messages, incoming) = mpsc::channel();
        let (done, told) = oneshot::channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&backlog);
        let thread = std::thread::Builder::new().name("report".to_owned());
        thread.spawn(move || {
            let one_less = || {
                left.fetch_sub(1, Ordering::Relaxed);
            };
            Teller::new(options, start).run(incoming, one_less);
            let _ = done.send(());
        })?;
        Ok(Reporter {
            start,
            unix,
            messages,
            backlog,
            told,
        })
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
    pub fn event(&mut self, at: Instant, event: DownloadEvent) {
        self.tell(Message::Event(at, event));
    }

    /// Tells how far the download is, unless whoever reads is too slow for that.
    pub fn progress(&mut self, snapshot: Snapshot) {
        if self.backlog.load(Ordering::Relaxed) < MAX_BACKLOG {
            self.tell(Message::Progress(Instant::now(), snapshot));
        }
    }

    /// The download is complete; `name` is where the body is.
    pub fn done(&mut self, name: &str, summary: Summary) {
        self.tell(Message::Done(Instant::now(), summary, name.to_owned()));
    }

    /// The download has failed.
    pub fn failed(&mut self, error: &Error, leftover: &Leftover) {
        let mut message = error.to_string();
        if let Some((part, bytes)) = leftover.part() {
            message += &format!("; {bytes} bytes are kept in {}", part.display());
            if leftover.is_resumable() {
                message += ", the next run goes on with them";
            }
        }
        let code = error.code();
        self.tell(Message::Failed(
            Instant::now(),
            DownloadEvent::Error { code, message },
        ));
    }

    /// Waits until all is written.
    pub async fn close(self) {
        drop(self.messages);
        let _ = self.told.await;
    }

    fn tell(&self, message: Message) {
        self.backlog.fetch_add(1, Ordering::Relaxed);
        // The thread ends with the last message.
        let _ = self.messages.send(message);
    }
}
