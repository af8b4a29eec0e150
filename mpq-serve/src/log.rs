//! The log: lines on the standard error stream, or in a file.
//!
//! Whoever logs puts a line into a queue and goes on; a thread writes it. So nobody waits for a reader that is
//! slow or gone, or for a disk that is full. What finds the queue full, or cannot be written, is counted, and
//! the count is logged when lines can be written again.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::error::{At, Error};

/// How many lines may wait to be written.
const QUEUE: usize = 8192;
/// How long a [`flush`] may take.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);
/// How often it is tried where the queue is full.
const RETRY: Duration = Duration::from_millis(1);

/// That of the process.
static LOG: OnceLock<Log> = OnceLock::new();

/// Sends what is traced to `file`, or else to the standard error stream; `RUST_LOG` says what is told. A panic
/// is logged, too.
///
/// # Errors
/// The file cannot be written, or there can be no thread.
pub(crate) fn start(file: Option<PathBuf>) -> Result<(), Error> {
    if let Some(file) = &file {
        append(file).at(file)?;
    }
    let (sender, receiver) = sync_channel(QUEUE);
    let log = Log {
        sender,
        lost: Arc::default(),
    };
    let lost = log.lost.clone();
    let write = move |line: &[u8]| write_line(file.as_deref(), line);
    let tell = |lost| tracing::warn!("{lost} lines of the log are lost: they could not be written");
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&receiver, &lost, write, tell))
        .map_err(|error| Error::Start(error.to_string()))?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = LOG.set(log.clone());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || log.clone())
        .init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        flush();
    }));
    Ok(())
}

/// Waits until what was logged is written, but not for a reader that is stuck.
pub(crate) fn flush() {
    let Some(log) = LOG.get() else { return };
    let (done, written) = sync_channel(0);
    let end = Instant::now() + FLUSH_LIMIT;
    let mut entry = Entry::Flush(done);
    while let Err(TrySendError::Full(refused)) = log.sender.try_send(entry) {
        if Instant::now() >= end {
            return;
        }
        entry = refused;
        thread::sleep(RETRY);
    }
    // It is dropped then.
    let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
}

/// What the thread is to do.
enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Puts each line into the queue, and counts what finds it full.
#[derive(Clone)]
struct Log {
    sender: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes. Once a line can be written after some were lost, and no other waits, `tell` logs how many.
fn write_lines(
    entries: &Receiver<Entry>,
    lost: &AtomicU64,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
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
        let line = match entry {
            Entry::Line(line) => line,
            Entry::Flush(done) => {
                drop(done);
                continue;
            }
        };
        works = write(&line).is_ok();
        match works {
            true => lost.fetch_sub(told, Ordering::Relaxed),
            false => lost.fetch_add(1, Ordering::Relaxed),
        };
        told = 0;
    }
}

/// The file is not held open, so that the server can be frozen between any two lines, and the file be rotated.
/// The lock of the standard error stream is not taken: a line that waits for its reader would keep it.
fn write_line(file: Option<&Path>, line: &[u8]) -> io::Result<()> {
    if let Some(file) = file {
        return append(file)?.write_all(line);
    }
    let mut rest = line;
    while !rest.is_empty() {
        match nix::unistd::write(io::stderr(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn append(file: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().append(true).create(true).open(file)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn lost_lines_are_counted_and_told_once_it_works_again() {
        let (sender, receiver) = sync_channel(2);
        let mut log = Log {
            sender: sender.clone(),
            lost: Arc::default(),
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
            let write = |line: &[u8]| {
                if failing > 0 {
                    failing -= 1;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let line = String::from_utf8(line.to_vec()).unwrap();
                written.lock().unwrap().push(line);
                Ok(())
            };
            let tell = |lost| {
                let notice = Entry::Line(format!("{lost} lost").into());
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
