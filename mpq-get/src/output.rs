//! Where the body goes.
//!
//! [`Output`] hands the chunks to a thread of its own, which writes and hashes them: neither a
//! slow disk nor SHA-256 takes time from the network. The channel between is bounded, so a disk
//! slower than the network slows the download down instead of filling the memory.
//!
//! A file is written as `FILE.part`; [`Written::publish`] gives it its name when all is well. What
//! already exists but is no regular file (a device, a named pipe) is written to directly.
//!
//! An output outlives connections. It is opened at the body's first byte, or behind what an earlier
//! run has left, which the thread then reads once, for the digest; and a file can be started over.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, cannot_write};
use crate::sidecar::Sidecar;

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
    messages: mpsc::Sender<Message>,
    result: oneshot::Receiver<Result<Written, (Error, Kept)>>,
    restartable: bool,
}

/// For the thread.
#[derive(Debug)]
enum Message {
    Chunk(Bytes),
    /// What came so far is of no use; what comes next is of what the record says.
    StartOver(Option<Sidecar>),
}

/// A body that has been written completely; until it is published, its file is called `.part`.
#[derive(Debug)]
pub struct Written {
    /// Bytes written.
    pub bytes: u64,
    /// SHA-256 of these bytes, lower-case hexadecimal.
    pub sha256: String,
    rename: Option<Rename>,
}

/// A file and what it is called until it is complete.
#[derive(Debug, Clone)]
struct Rename {
    part: PathBuf,
    path: PathBuf,
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

    /// The `.part` file; none for what is written to directly.
    pub fn part(&self) -> Option<PathBuf> {
        match self {
            Destination::File(path) if path.metadata().is_ok_and(|known| !known.is_file()) => None,
            Destination::File(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(".part");
                Some(name.into())
            }
            Destination::Stdout | Destination::Terminal => None,
        }
    }
}

impl Output {
    /// Opens the destination for a whole body. An existing `.part` is overwritten, so call this
    /// only when the server has answered with the body. The record is what a later run learns of a
    /// `.part`.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be opened.
    pub fn create(destination: &Destination, record: Option<&Sidecar>) -> Result<Output, Error> {
        let rename = rename(destination);
        let sink = match (destination, &rename) {
            (Destination::Stdout, _) => Sink::Stream(Box::new(io::stdout())),
            (Destination::Terminal, _) => Sink::Stream(Box::new(TextOnly)),
            (Destination::File(path), None) => {
                let file = File::create(path).map_err(|e| cannot_write(path, e))?;
                Sink::Stream(Box::new(file))
            }
            (Destination::File(_), Some(Rename { part, .. })) => {
                let file = File::create(part).map_err(|e| cannot_write(part, e))?;
                Sidecar::store(record, part).map_err(|e| cannot_write(&Sidecar::path(part), e))?;
                Sink::File(file)
            }
        };
        Output::start(Writer::new(sink, destination, rename), 0)
    }

    /// Opens a `.part` file to go on behind its first `bytes`.
    ///
    /// # Errors
    /// [`Error::Write`] if there is none or it cannot be opened.
    pub fn go_on(destination: &Destination, bytes: u64) -> Result<Output, Error> {
        let rename = rename(destination);
        let file = match &rename {
            Some(Rename { part, .. }) => File::options()
                .read(true)
                .write(true)
                .open(part)
                .map_err(|e| cannot_write(part, e))?,
            None => {
                let source = io::ErrorKind::NotSeekable.into();
                return Err(cannot_write(Path::new(&*destination.name()), source));
            }
        };
        Output::start(Writer::new(Sink::File(file), destination, rename), bytes)
    }

    fn start(writer: Writer, offset: u64) -> Result<Output, Error> {
        let restartable = matches!(writer.sink.get_ref(), Sink::File(_));
        let (messages, incoming) = mpsc::channel(CHANNEL);
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                // Nobody waits for the result any more if the download was given up.
                let _ = done.send(writer.run(offset, incoming));
            })
            .map_err(|source| Error::Write {
                target: "from a new thread".to_owned(),
                source,
            })?;
        Ok(Output {
            messages,
            result,
            restartable,
        })
    }

    /// Whether [`write`](Output::write) would return at once.
    pub fn has_room(&self) -> bool {
        self.messages.capacity() > 0
    }

    /// Queues a chunk; waits while the writer is behind. False if the writer has failed: then
    /// [`close`](Output::close) says why.
    pub async fn write(&self, chunk: Bytes) -> bool {
        self.messages.send(Message::Chunk(chunk)).await.is_ok()
    }

    /// Whether what is written can be taken back.
    pub fn is_restartable(&self) -> bool {
        self.restartable
    }

    /// Takes back what is written, if anything is; the record is as for
    /// [`create`](Output::create). Answers like [`write`](Output::write).
    pub async fn start_over(&self, record: Option<Sidecar>) -> bool {
        self.messages.send(Message::StartOver(record)).await.is_ok()
    }

    /// Waits until everything queued is written.
    ///
    /// # Errors
    /// The write error, and what is on the disk.
    pub async fn close(self) -> Result<Written, (Error, Kept)> {
        drop(self.messages);
        self.result.await.expect("the output thread always reports")
    }
}

impl Written {
    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be renamed, and what is on the disk.
    pub fn publish(mut self) -> Result<Written, (Error, Kept)> {
        if let Some(Rename { part, path }) = &self.rename {
            if let Err(source) = std::fs::rename(part, path) {
                return Err((cannot_write(path, source), self.keep()));
            }
            // Without its .part it says nothing to anybody.
            let _ = Sidecar::store(None, part);
            self.rename = None;
        }
        Ok(self)
    }

    /// Leaves it as it is.
    pub fn keep(self) -> Kept {
        Kept(self.rename.map(|rename| (rename.part, self.bytes)))
    }
}

impl Kept {
    /// Nothing was written.
    pub const NOTHING: Kept = Kept(None);

    /// The `.part` file that an earlier run has left, if there is one with something in it.
    pub fn earlier(destination: &Destination) -> Kept {
        let part = destination.part();
        Kept(part.and_then(|part| {
            let bytes = part.metadata().ok()?.len();
            (bytes > 0).then_some((part, bytes))
        }))
    }

    /// The file's path and its size in bytes.
    pub fn part(&self) -> Option<(&Path, u64)> {
        self.0
            .as_ref()
            .map(|(part, bytes)| (part.as_path(), *bytes))
    }

    /// Whether a later run may go on with it.
    pub fn is_resumable(&self) -> bool {
        self.part()
            .is_some_and(|(part, bytes)| bytes > 0 && Sidecar::path(part).exists())
    }
}

fn rename(destination: &Destination) -> Option<Rename> {
    match destination {
        Destination::File(path) => destination.part().map(|part| Rename {
            part,
            path: path.clone(),
        }),
        Destination::Stdout | Destination::Terminal => None,
    }
}

/// The thread's state.
struct Writer {
    sink: BufWriter<Sink>,
    hash: Sha256,
    bytes: u64,
    /// What to call the sink in an error.
    target: String,
    rename: Option<Rename>,
}

/// Where the thread writes to.
enum Sink {
    /// Which can be started over.
    File(File),
    Stream(Box<dyn Write + Send>),
}

impl Writer {
    fn new(sink: Sink, destination: &Destination, rename: Option<Rename>) -> Writer {
        let target = match (destination, &rename) {
            (Destination::File(_), Some(Rename { part, .. })) => part.display().to_string(),
            (Destination::File(path), None) => path.display().to_string(),
            (Destination::Stdout | Destination::Terminal, _) => "standard output".to_owned(),
        };
        Writer {
            sink: BufWriter::with_capacity(BUFFER, sink),
            hash: Sha256::new(),
            bytes: 0,
            target,
            rename,
        }
    }

    /// The thread's work: until the channel is closed or a write fails.
    fn run(
        mut self,
        offset: u64,
        mut incoming: mpsc::Receiver<Message>,
    ) -> Result<Written, (Error, Kept)> {
        let mut batch = Vec::with_capacity(CHANNEL);
        let mut result = self.skip(offset);
        while result.is_ok() && incoming.blocking_recv_many(&mut batch, CHANNEL) > 0 {
            // One flush a batch: few calls when the disk is behind, no delay when it is not.
            result = batch.drain(..).try_for_each(|message| self.take(message));
            result = result.and_then(|()| self.sink.flush());
        }
        match result {
            Ok(()) => Ok(Written {
                bytes: self.bytes,
                sha256: hex(&self.hash.finalize()),
                rename: self.rename,
            }),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Goes behind the first `bytes`, and hashes them. What follows them is cut off.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let Sink::File(file) = self.sink.get_mut() else {
            return Ok(());
        };
        let mut reader = BufReader::with_capacity(BUFFER, Read::by_ref(file).take(bytes));
        let read = io::copy(&mut reader, &mut Hashing(&mut self.hash))?;
        if read < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.set_len(bytes)?;
        file.seek(io::SeekFrom::Start(bytes))?;
        self.bytes = bytes;
        Ok(())
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::Chunk(chunk) => {
                self.hash.update(&chunk);
                self.bytes += chunk.len() as u64;
                self.sink.write_all(&chunk)
            }
            Message::StartOver(record) => {
                self.sink.flush()?;
                self.hash = Sha256::new();
                self.skip(0)?;
                self.bytes = 0;
                match &self.rename {
                    Some(Rename { part, .. }) => Sidecar::store(record.as_ref(), part),
                    None => Ok(()),
                }
            }
        }
    }

    fn failed(self, source: io::Error) -> (Error, Kept) {
        // Dropped as it is, a buffer would try again to write what has just failed.
        let _ = self.sink.into_parts();
        let kept = self.rename.and_then(|Rename { part, .. }| {
            let size = part.metadata().ok()?.len();
            Some((part, size))
        });
        let error = match source.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(NotText) => Error::Terminal,
            None => Error::Write {
                target: self.target,
                source,
            },
        };
        (error, Kept(kept))
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Sink::File(file) => file.write(data),
            Sink::Stream(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::File(file) => file.flush(),
            Sink::Stream(stream) => stream.flush(),
        }
    }
}

/// Hashes what is written to it.
struct Hashing<'a>(&'a mut Sha256);

impl Write for Hashing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::resume::{Held, Validator};

    fn file(path: &Path) -> Destination {
        Destination::File(path.to_owned())
    }

    #[tokio::test]
    async fn a_file_is_a_part_until_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a.b"), folder.path().join("a.b.part"));
        fs::write(&part, "an older and longer attempt").unwrap();
        let output = Output::create(&file(&path), None).unwrap();
        assert!(output.write(Bytes::from_static(b"ab")).await);
        assert!(output.write(Bytes::from_static(b"c")).await);
        let written = output.close().await.unwrap();
        assert_eq!(fs::read(&part).unwrap(), b"abc");
        assert!(!path.exists());
        assert_eq!(written.bytes, 3);
        assert_eq!(written.sha256, ABC);
        written.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert!(!part.exists());
    }

    #[tokio::test]
    async fn what_is_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        let output = Output::create(&file(&path), None).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let kept = output.close().await.unwrap().keep();
        assert_eq!(kept.part(), Some((part.as_path(), 3)));
        assert!(part.exists() && !path.exists());
    }

    /// Of "abc", FIPS 180-4's own example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn record() -> Sidecar {
        let held = Held {
            version: Ok(Validator::parse("\"v\"").unwrap()),
            ..Held::default()
        };
        Sidecar::of("https://localhost/a", &held).unwrap()
    }

    #[tokio::test]
    async fn an_earlier_part_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        fs::write(&part, "abxyz").unwrap();
        let output = Output::go_on(&file(&path), 2).unwrap();
        assert!(output.write(Bytes::from_static(b"c")).await);
        let written = output.close().await.unwrap().publish().unwrap();
        assert_eq!((written.bytes, written.sha256.as_str()), (3, ABC));
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_part_that_is_too_short_is_no_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(Output::go_on(&file(&path), 2).unwrap_err().code(), 23);
        assert_eq!(
            Output::go_on(&Destination::Stdout, 2).unwrap_err().code(),
            23
        );
        fs::write(folder.path().join("a.part"), "a").unwrap();
        let output = Output::go_on(&file(&path), 2).unwrap();
        assert_eq!(output.close().await.unwrap_err().0.code(), 23);
    }

    #[tokio::test]
    async fn a_file_is_started_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        let meta = folder.path().join("a.part.meta");
        let output = Output::create(&file(&path), None).unwrap();
        assert!(output.is_restartable());
        assert!(!meta.exists());
        assert!(output.write(Bytes::from_static(b"something longer")).await);
        assert!(output.start_over(Some(record())).await);
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let written = output.close().await.unwrap();
        assert_eq!((written.bytes, written.sha256.as_str()), (3, ABC));
        assert_eq!(fs::read(&part).unwrap(), b"abc");
        assert!(meta.exists());
        written.publish().unwrap();
        assert!(path.exists() && !part.exists() && !meta.exists());
    }

    #[tokio::test]
    async fn a_part_with_a_record_can_be_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let destination = file(&folder.path().join("a"));
        assert_eq!(Kept::earlier(&destination), Kept::NOTHING);
        for (record, resumable) in [(Some(record()), true), (None, false)] {
            let output = Output::create(&destination, record.as_ref()).unwrap();
            assert!(output.write(Bytes::from_static(b"abc")).await);
            let kept = output.close().await.unwrap().keep();
            assert_eq!(kept.is_resumable(), resumable);
            assert_eq!(kept, Kept::earlier(&destination));
        }
    }

    #[test]
    fn a_device_cannot_be_started_over() {
        let output = Output::create(&file("/dev/null".as_ref()), None).unwrap();
        assert!(!output.is_restartable());
    }

    #[tokio::test]
    async fn a_full_disk_is_reported() {
        let output = Output::create(&file("/dev/full".as_ref()), None).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let (error, kept) = output.close().await.unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(kept, Kept::NOTHING);
    }

    #[tokio::test]
    async fn a_failed_writer_stops_the_download() {
        let output = Output::create(&file("/dev/full".as_ref()), None).unwrap();
        while output.write(Bytes::from_static(b"abc")).await {}
        assert_eq!(output.close().await.unwrap_err().0.code(), 23);
    }

    #[test]
    fn a_missing_folder_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let error = Output::create(&file(&folder.path().join("none/a")), None).unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("create the folder"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Output::create(&file(folder.path()), None).unwrap_err();
        assert_eq!(error.code(), 23);
    }

    #[test]
    fn a_terminal_gets_no_binary() {
        let error = TextOnly.write(b"a\0b").unwrap_err();
        assert!(error.get_ref().unwrap().is::<NotText>());
    }
}
