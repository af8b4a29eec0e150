//! Where the body goes.
//!
//! [`Output`] hands the chunks to a thread of its own, which writes and hashes them: neither a
//! slow disk nor SHA-256 takes time from the network. The channel between is bounded, so a disk
//! slower than the network slows the download down instead of filling the memory.
//!
//! A file is written as `FILE.part`; [`Written::publish`] gives it its name when all is well. What
//! already exists but is no regular file (a device, a named pipe) is written to directly.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, cannot_write};

/// Chunks in the channel, each up to one datagram train of 64 KiB: 16 MiB at the most.
const CHANNEL: usize = 256;
/// Bytes collected for one write call.
const BUFFER: usize = 256 * 1024;

/// Where the body is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A file, by way of `.part`.
    File(PathBuf),
    /// Standard output, whatever it is.
    Stdout,
    /// Standard output that nobody asked for and that is a terminal: text only, as curl does it.
    Terminal,
}

/// An open output and its thread.
#[derive(Debug)]
pub struct Output {
    chunks: mpsc::Sender<Bytes>,
    result: oneshot::Receiver<Result<Written, (Error, Kept)>>,
}

/// A body that has been written completely; until it is published, its file is called `.part`.
#[derive(Debug)]
pub struct Written {
    /// Bytes written.
    pub bytes: u64,
    /// SHA-256 of these bytes, lower-case hexadecimal.
    pub sha256: String,
    rename: Option<(PathBuf, PathBuf)>,
}

/// What is left on the disk of a body that did not become a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept(Option<(PathBuf, u64)>);

impl Destination {
    /// How to call it in a report: the path, or `-` as the tools that read checksums do.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Destination::File(path) => path.to_string_lossy(),
            Destination::Stdout | Destination::Terminal => "-".into(),
        }
    }
}

impl Output {
    /// Opens the destination. An existing `.part` is overwritten, so call this only when the
    /// server has answered with the body.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be opened.
    pub fn create(destination: &Destination) -> Result<Output, Error> {
        let (sink, target, rename): (Box<dyn Write + Send>, _, _) = match destination {
            Destination::Stdout => (Box::new(io::stdout()), "standard output".into(), None),
            Destination::Terminal => (Box::new(TextOnly), "standard output".into(), None),
            Destination::File(path) => {
                let special = path.metadata().is_ok_and(|known| !known.is_file());
                let target = if special { path.clone() } else { part_of(path) };
                let file = File::create(&target).map_err(|e| cannot_write(&target, e))?;
                let rename = (!special).then(|| (target.clone(), path.clone()));
                (Box::new(file), target, rename)
            }
        };
        let (chunks, incoming) = mpsc::channel(CHANNEL);
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                // Nobody waits for the result any more if the download was given up.
                let _ = done.send(write_all(sink, &target, rename, incoming));
            })
            .map_err(|source| Error::Write {
                target: "from a new thread".to_owned(),
                source,
            })?;
        Ok(Output { chunks, result })
    }

    /// Whether [`write`](Output::write) would return at once.
    pub fn has_room(&self) -> bool {
        self.chunks.capacity() > 0
    }

    /// Queues a chunk; waits while the writer is behind. False if the writer has failed: then
    /// [`close`](Output::close) says why.
    pub async fn write(&self, chunk: Bytes) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }

    /// Waits until everything queued is written.
    ///
    /// # Errors
    /// The write error, and what is on the disk.
    pub async fn close(self) -> Result<Written, (Error, Kept)> {
        drop(self.chunks);
        self.result.await.expect("the output thread always reports")
    }
}

impl Written {
    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be renamed, and what is on the disk.
    pub fn publish(mut self) -> Result<Written, (Error, Kept)> {
        if let Some((part, path)) = &self.rename {
            if let Err(source) = std::fs::rename(part, path) {
                return Err((cannot_write(path, source), self.keep()));
            }
            self.rename = None;
        }
        Ok(self)
    }

    /// Leaves it as it is.
    pub fn keep(self) -> Kept {
        Kept(self.rename.map(|(part, _)| (part, self.bytes)))
    }
}

impl Kept {
    /// Nothing was written.
    pub const NOTHING: Kept = Kept(None);

    /// The file's path and its size in bytes.
    pub fn part(&self) -> Option<(&Path, u64)> {
        self.0
            .as_ref()
            .map(|(part, bytes)| (part.as_path(), *bytes))
    }
}

/// The thread's work: until the channel is closed or a write fails.
fn write_all(
    sink: Box<dyn Write + Send>,
    target: &Path,
    rename: Option<(PathBuf, PathBuf)>,
    mut incoming: mpsc::Receiver<Bytes>,
) -> Result<Written, (Error, Kept)> {
    let mut sink = BufWriter::with_capacity(BUFFER, sink);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut batch = Vec::with_capacity(CHANNEL);
    let mut result = Ok(());
    while result.is_ok() && incoming.blocking_recv_many(&mut batch, CHANNEL) > 0 {
        // One flush a batch: few calls when the disk is behind, no delay when it is not.
        result = batch.drain(..).try_for_each(|chunk| {
            hash.update(&chunk);
            bytes += chunk.len() as u64;
            sink.write_all(&chunk)
        });
        result = result.and_then(|()| sink.flush());
    }
    match result {
        Ok(()) => Ok(Written {
            bytes,
            sha256: hex(&hash.finalize()),
            rename,
        }),
        Err(source) => {
            // Dropped as it is, a buffer would try again to write what has just failed.
            let _ = sink.into_parts();
            let kept = rename.and_then(|(part, _)| {
                let size = part.metadata().ok()?.len();
                Some((part, size))
            });
            let error = match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(NotText) => Error::Terminal,
                None => Error::Write {
                    target: target.display().to_string(),
                    source,
                },
            };
            Err((error, Kept(kept)))
        }
    }
}

/// Standard output that refuses binary data, told by its zero bytes.
struct TextOnly;

#[derive(Debug, thiserror::Error)]
#[error("not text")]
struct NotText;

impl Write for TextOnly {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.contains(&0) {
            return Err(io::Error::other(NotText));
        }
        io::stdout().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(path: &Path) -> Destination {
        Destination::File(path.to_owned())
    }

    #[tokio::test]
    async fn a_file_is_a_part_until_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a.b"), folder.path().join("a.b.part"));
        fs::write(&part, "an older and longer attempt").unwrap();
        let output = Output::create(&file(&path)).unwrap();
        assert!(output.write(Bytes::from_static(b"ab")).await);
        assert!(output.write(Bytes::from_static(b"c")).await);
        let written = output.close().await.unwrap();
        assert_eq!(fs::read(&part).unwrap(), b"abc");
        assert!(!path.exists());
        assert_eq!(written.bytes, 3);
        // SHA-256 of "abc", FIPS 180-4's own example.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(written.sha256, expected);
        written.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert!(!part.exists());
    }

    #[tokio::test]
    async fn what_is_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        let output = Output::create(&file(&path)).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let kept = output.close().await.unwrap().keep();
        assert_eq!(kept.part(), Some((part.as_path(), 3)));
        assert!(part.exists() && !path.exists());
    }

    #[tokio::test]
    async fn a_full_disk_is_reported() {
        let output = Output::create(&file("/dev/full".as_ref())).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let (error, kept) = output.close().await.unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(kept, Kept::NOTHING);
    }

    #[tokio::test]
    async fn a_failed_writer_stops_the_download() {
        let output = Output::create(&file("/dev/full".as_ref())).unwrap();
        while output.write(Bytes::from_static(b"abc")).await {}
        assert_eq!(output.close().await.unwrap_err().0.code(), 23);
    }

    #[test]
    fn a_missing_folder_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let error = Output::create(&file(&folder.path().join("none/a"))).unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("create the folder"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Output::create(&file(folder.path())).unwrap_err().code(), 23);
    }

    #[test]
    fn a_terminal_gets_no_binary() {
        let error = TextOnly.write(b"a\0b").unwrap_err();
        assert!(error.get_ref().unwrap().is::<NotText>());
    }
}
