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
//!
//! `destination` says where a body is to go, `writer` is the thread, `leftover` what has become of the
//! body on the disk, and [`part_meta`] the record by which a later run goes on with it.

mod destination;
mod leftover;
pub mod part_meta;
mod writer;

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::destination::Destination;
use self::destination::Rename;
pub use self::leftover::{Leftover, Written};
use self::part_meta::PartMeta;
use self::writer::{CHANNEL_CAPACITY, Message, Sink, TextOnly, Writer};
use crate::error::{Error, cannot_write};

/// An open output and its thread.
#[derive(Debug)]
pub struct Output {
    messages: mpsc::Sender<Message>,
    result: oneshot::Receiver<Result<Written, (Error, Leftover)>>,
    restartable: bool,
}

impl Output {
    /// Opens the destination for a whole body. An existing `.part` is overwritten, so call this
    /// only when the server has answered with the body. The record is what a later run learns of a
    /// `.part`.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be opened.
    pub fn create(destination: &Destination, record: Option<&PartMeta>) -> Result<Output, Error> {
        let rename = Rename::of(destination);
        let sink = match (destination, &rename) {
            (Destination::Stdout, _) => Sink::Stream(Box::new(io::stdout())),
            (Destination::Terminal, _) => Sink::Stream(Box::new(TextOnly)),
            (Destination::File(path), None) => {
                let file = File::create(path).map_err(|e| cannot_write(path, e))?;
                Sink::Stream(Box::new(file))
            }
            (Destination::File(_), Some(Rename { part, .. })) => {
                let file = File::create(part).map_err(|e| cannot_write(part, e))?;
                PartMeta::store(record, part)
                    .map_err(|e| cannot_write(&PartMeta::path(part), e))?;
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
        let rename = Rename::of(destination);
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
        let restartable = writer.is_restartable();
        let (messages, incoming) = mpsc::channel(CHANNEL_CAPACITY);
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
    pub async fn start_over(&self, record: Option<PartMeta>) -> bool {
        self.messages.send(Message::StartOver(record)).await.is_ok()
    }

    /// Waits until everything queued is written.
    ///
    /// # Errors
    /// The write error, and what is on the disk.
    pub async fn close(self) -> Result<Written, (Error, Leftover)> {
        drop(self.messages);
        self.result.await.expect("the output thread always reports")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::http::resume::{Partial, Validator};

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
        let leftover = output.close().await.unwrap().keep();
        assert_eq!(leftover.part(), Some((part.as_path(), 3)));
        assert!(part.exists() && !path.exists());
    }

    /// Of "abc", FIPS 180-4's own example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn record() -> PartMeta {
        let partial = Partial {
            version: Ok(Validator::parse("\"v\"").unwrap()),
            ..Partial::default()
        };
        PartMeta::of("https://localhost/a", &partial).unwrap()
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
        assert_eq!(Leftover::earlier(&destination), Leftover::NOTHING);
        for (record, resumable) in [(Some(record()), true), (None, false)] {
            let output = Output::create(&destination, record.as_ref()).unwrap();
            assert!(output.write(Bytes::from_static(b"abc")).await);
            let leftover = output.close().await.unwrap().keep();
            assert_eq!(leftover.is_resumable(), resumable);
            assert_eq!(leftover, Leftover::earlier(&destination));
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
        let (error, leftover) = output.close().await.unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(leftover, Leftover::NOTHING);
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
}
