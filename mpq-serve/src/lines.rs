//! Lines of text on their way into a file, or to a standard stream.
//!
//! Whoever has a line puts it into a queue and goes on; a thread writes it. So nobody waits for a reader that is
//! slow or gone, or for a disk that is full. What finds the queue full, or cannot be written, is counted, and the
//! count is told when lines can be written again.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{At, Error};
use crate::journal::{self, Priority};

/// How many lines may wait to be written.
const QUEUE: usize = 8192;
/// How long a [`flush`](Lines::flush) may take.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);
/// How often it is tried where the queue is full.
const RETRY: Duration = Duration::from_millis(1);

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    Stdout,
    Stderr,
    /// The journal of systemd, and the standard error stream where there is none.
    Journal,
    /// They are appended to it.
    File(PathBuf),
}

impl Destination {
    /// The standard output stream, or that which it stands for.
    pub(crate) fn stdout() -> Self {
        match journal::is_at(io::stdout()) {
            true => Self::Journal,
            false => Self::Stdout,
        }
    }

    /// The standard error stream, or that which it stands for.
    pub(crate) fn stderr() -> Self {
        match journal::is_at(io::stderr()) {
            true => Self::Journal,
            false => Self::Stderr,
        }
    }
}

/// What is to be written. Each call of [`write`](Write::write) is a line, with its end.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    sender: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
    destination: Arc<Mutex<Destination>>,
    priority: Priority,
}

/// What the thread is to do.
#[derive(Debug)]
enum Entry {
    Line(Priority, Vec<u8>),
    Flush(SyncSender<()>),
}

impl Lines {
    /// Starts the thread. `tell` says how many lines were lost, once lines can be written again.
    ///
    /// # Errors
    /// The file cannot be written, or there can be no thread.
    pub(crate) fn start(
        destination: Destination,
        tell: impl Fn(u64) + Send + 'static,
    ) -> Result<Self, Error> {
        if let Destination::File(file) = &destination {
            append(file).at(file)?;
        }
        let (sender, receiver) = sync_channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        let counted = lost.clone();
        let destination = Arc::new(Mutex::new(destination));
        let present = destination.clone();
        let write = move |priority, line: &[u8]| {
            let destination = lock(&present).clone();
            write_line(&destination, priority, line)
        };
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&receiver, &counted, write, tell))
            .map_err(|error| Error::Start(error.to_string()))?;
        Ok(Self {
            sender,
            lost,
            destination,
            priority: Priority::INFO,
        })
    }

    /// For lines that matter so much.
    pub(crate) fn with(&self, priority: Priority) -> Self {
        Self {
            priority,
            ..self.clone()
        }
    }

    /// Whether they go into the journal, which says when they came.
    pub(crate) fn are_in_journal(&self) -> bool {
        *lock(&self.destination) == Destination::Journal
    }

    /// Lines go into this file from now on.
    pub(crate) fn go_on_in(&self, file: PathBuf) {
        *lock(&self.destination) = Destination::File(file);
    }

    /// Waits until what was put here is written, but not for a reader that is stuck.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(0);
        let end = Instant::now() + FLUSH_LIMIT;
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(refused)) = self.sender.try_send(entry) {
            if Instant::now() >= end {
                return;
            }
            entry = refused;
            thread::sleep(RETRY);
        }
        // It is dropped then.
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn lock(destination: &Mutex<Destination>) -> MutexGuard<'_, Destination> {
    destination.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let entry = Entry::Line(self.priority, line.to_vec());
        if self.sender.try_send(entry).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes. Once a line can be written after some were lost, and no other waits, `tell` says how many.
fn write_lines(
    entries: &Receiver<Entry>,
    lost: &AtomicU64,
    mut write: impl FnMut(Priority, &[u8]) -> io::Result<()>,
    tell: impl Fn(u64),
) {
    let mut works = true;
    let mut told = 0;
    loop {
        let entry = match entries.try_recv() {
            Ok(entry) => entry,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let untold = lost.load(Ordering::Relaxed);
                if works && told == 0 && untold > 0 {
                    told = untold;
                    tell(told);
                    continue;
                }
                match entries.recv() {
                    Ok(entry) => entry,
                    Err(_) => return,
                }
            }
        };
        let (priority, line) = match entry {
            Entry::Line(priority, line) => (priority, line),
            Entry::Flush(done) => {
                drop(done);
                continue;
            }
        };
        works = write(priority, &line).is_ok();
        match works {
            true => lost.fetch_sub(told, Ordering::Relaxed),
            false => lost.fetch_add(1, Ordering::Relaxed),
        };
        told = 0;
    }
}

/// A file is not held open, so that the server can be frozen between any two lines, and the file be rotated. The
/// lock of a standard stream is not taken: a line that waits for its reader would keep it.
fn write_line(destination: &Destination, priority: Priority, line: &[u8]) -> io::Result<()> {
    match destination {
        Destination::File(file) => append(file)?.write_all(line),
        Destination::Stdout => write_to(io::stdout(), line),
        Destination::Stderr => write_to(io::stderr(), line),
        Destination::Journal => {
            journal::write(priority, line).or_else(|_| write_to(io::stderr(), line))
        }
    }
}

fn write_to(stream: impl AsFd, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match nix::unistd::write(&stream, line) {
            Ok(written) => line = &line[written..],
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A file that lines are appended to, made if it is not there.
///
/// # Errors
/// It cannot be written.
pub(crate) fn append(file: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().append(true).create(true).open(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_are_counted_and_told_once_it_works_again() {
        let (sender, receiver) = sync_channel(2);
        let mut log = Lines {
            sender: sender.clone(),
            lost: Arc::default(),
            destination: Arc::new(Mutex::new(Destination::Stderr)),
            priority: Priority::INFO,
        };
        let lost = log.lost.clone();
        let mut failing = 2;
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = written.clone();
        let mut send = |line: &str| log.write_all(line.as_bytes()).unwrap();
        // Two fit, and find a disk that is full; the third finds the queue full.
        ["a", "b", "c"].into_iter().for_each(&mut send);
        let notices = sender.clone();
        thread::spawn(move || {
            let write = |_, line: &[u8]| {
                if failing > 0 {
                    failing -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let line = String::from_utf8(line.to_vec()).unwrap();
                written.lock().unwrap().push(line);
                Ok(())
            };
            let tell = |lost| {
                let notice = Entry::Line(Priority::INFO, format!("{lost} lost").into());
                notices.try_send(notice).unwrap();
            };
            write_lines(&receiver, &lost, write, tell);
        });
        let flush = || {
            let (done, written) = sync_channel(0);
            sender.send(Entry::Flush(done)).unwrap();
            assert!(written.recv().is_err());
        };
        flush();
        assert_eq!(lines.lock().unwrap()[..], [""; 0], "nothing works yet");
        send("d");
        // The thread finds nothing to do but to tell.
        while lines.lock().unwrap().len() < 2 {
            thread::yield_now();
        }
        send("e");
        flush();
        assert_eq!(lines.lock().unwrap()[..], ["d", "3 lost", "e"]);
    }
}
