//! Where the body goes.
//!
//! [`Output`] hands the chunks to a thread of its own, which writes and hashes them: neither a
//! slow disk nor SHA-256 takes time from the network. The channel between is bounded, so a disk
//! slower than the network slows the download down instead of filling the memory.
//!
//! A file is written as `FILE.part`, which nobody else writes to meanwhile; [`Written::publish`] gives it its name when
//! all is well. What already exists but is no regular file (a device, a named pipe) is written to directly.
//!
//! An output outlives connections. It is opened at the body's first byte, or behind what an earlier
//! run has left, which the thread then reads once, for the digest; and a file can be started over.
//!
//! `destination` says where a body is to go, [`place`] finds that, `part` is the file until it is complete, `names` what
//! it is called, `holder` who else has it, `writer` the thread, `leftover` what has become of the
//! body on the disk, and [`part_meta`] the record by which a later run goes on with it.

mod destination;
mod holder;
mod leftover;
mod names;
mod part;
pub mod part_meta;
pub mod place;
mod stream;
mod writer;

use std::fs::File;
use std::io;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::destination::Destination;
pub use self::leftover::{Leftover, Written};
pub use self::part::{LeftAlone, Part};
use self::part_meta::PartMeta;
use self::place::Place;
use self::stream::{OnDemand, TextOnly};
use self::writer::{CHANNEL_CAPACITY, Message, Sink, Writer, digest};
use crate::error::{Error, cannot_write};

type Outcome = Result<Written, (Error, Leftover)>;

/// An open output and its thread.
#[derive(Debug)]
pub struct Output {
    messages: mpsc::Sender<Message>,
    result: oneshot::Receiver<Outcome>,
    restartable: bool,
}

impl Output {
    /// Opens a place for a whole body. What there is of a part is cut off, so call this
    /// only when the server has answered with the body. The record is what a later run learns of a
    /// part.
    ///
    /// # Errors
    /// [`Error::Write`] if it cannot be opened.
    pub fn create(place: Place, record: &PartMeta) -> Result<Output, Error> {
        let writer = match place {
            Place::Part(part) => {
                let stored = PartMeta::store(Some(record), part.path());
                stored.map_err(|e| cannot_write(part.path(), e))?;
                Writer::of_part(part)?
            }
            Place::Stdout => stdout(io::stdout()),
            Place::Terminal => stdout(TextOnly),
            Place::Stream(path) => {
                let target = path.display().to_string();
                Writer::of_stream(Sink::Stream(Box::new(OnDemand::new(path))), target)
            }
        };
        Output::write_by(writer, 0)
    }

    /// Opens a part to go on behind its first `bytes`.
    ///
    /// # Errors
    /// [`Error::Write`] if it is none or cannot be opened.
    pub fn go_on(place: Place, bytes: u64) -> Result<Output, Error> {
        match place {
            Place::Part(part) => Output::write_by(Writer::of_part(part)?, bytes),
            _ => Err(not_a_file()),
        }
    }

    /// The file that there is has all of the body: it is only read, for the digest.
    ///
    /// # Errors
    /// [`Error::Write`] if there is none, or it cannot be read.
    pub fn complete(place: Place) -> Result<Output, Error> {
        let Place::Part(part) = place else {
            return Err(not_a_file());
        };
        let target = part.target().to_owned();
        let mut file = File::open(&target).map_err(|e| cannot_write(&target, e))?;
        Output::start(false, move |_| {
            let (bytes, sha256) =
                digest(&mut file).map_err(|e| (cannot_write(&target, e), Leftover::NOTHING))?;
            let part = None;
            Ok(Written {
                bytes,
                sha256,
                part,
            })
        })
    }

    fn write_by(writer: Writer, offset: u64) -> Result<Output, Error> {
        Output::start(writer.is_restartable(), move |incoming| {
            writer.run(offset, incoming)
        })
    }

    fn start(
        restartable: bool,
        work: impl FnOnce(mpsc::Receiver<Message>) -> Outcome + Send + 'static,
    ) -> Result<Output, Error> {
        let (messages, incoming) = mpsc::channel(CHANNEL_CAPACITY);
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                // Nobody waits for the result any more if the download was given up.
                let _ = done.send(work(incoming));
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
    pub async fn start_over(&self, record: PartMeta) -> bool {
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

fn stdout(stream: impl io::Write + Send + 'static) -> Writer {
    let target = "standard output".to_owned();
    Writer::of_stream(Sink::Stream(Box::new(stream)), target)
}

fn not_a_file() -> Error {
    Error::Write {
        target: "to the middle of it".to_owned(),
        source: io::ErrorKind::NotSeekable.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::http::resume::{Partial, Validator};

    const URL: &str = "https://localhost/a";
    /// Of "abc", FIPS 180-4's own example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn place(path: &Path) -> Result<Place, Error> {
        Place::find(&Destination::File(path.to_owned()), URL).map(|found| found.place)
    }

    fn create(path: &Path) -> Result<Output, Error> {
        Output::create(place(path)?, &record())
    }

    fn record() -> PartMeta {
        let partial = Partial {
            version: Ok(Validator::parse("\"v\"").unwrap()),
            ..Partial::default()
        };
        PartMeta::of(URL, &partial)
    }

    /// What an earlier run has left in `a.part`.
    fn leave(folder: &Path, bytes: &str) {
        fs::write(folder.join("a.part"), bytes).unwrap();
        PartMeta::store(Some(&record()), &folder.join("a.part")).unwrap();
    }

    #[tokio::test]
    async fn a_file_is_a_part_until_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        leave(folder.path(), "an older and longer attempt");
        let output = create(&path).unwrap();
        assert!(output.write(Bytes::from_static(b"ab")).await);
        assert!(output.write(Bytes::from_static(b"c")).await);
        let written = output.close().await.unwrap();
        assert_eq!(fs::read(&part).unwrap(), b"abc");
        assert!(!path.exists());
        assert_eq!(written.bytes, 3);
        assert_eq!(written.sha256, ABC);
        written.publish(None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert!(!part.exists());
    }

    #[tokio::test]
    async fn what_is_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        let output = create(&path).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let leftover = output.close().await.unwrap().keep();
        assert_eq!(leftover.part(), Some((part.as_path(), 3)));
        assert!(leftover.is_resumable());
        assert!(part.exists() && !path.exists());
    }

    #[tokio::test]
    async fn an_earlier_part_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        leave(folder.path(), "abxyz");
        let output = Output::go_on(place(&path).unwrap(), 2).unwrap();
        assert!(output.write(Bytes::from_static(b"c")).await);
        let written = output.close().await.unwrap().publish(None).unwrap();
        assert_eq!((written.bytes, written.sha256.as_str()), (3, ABC));
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_part_that_is_too_short_is_no_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(Output::go_on(Place::Stdout, 2).unwrap_err().code(), 23);
        leave(folder.path(), "a");
        let output = Output::go_on(place(&path).unwrap(), 2).unwrap();
        assert_eq!(output.close().await.unwrap_err().0.code(), 23);
    }

    #[tokio::test]
    async fn a_file_is_started_over() {
        let folder = tempfile::tempdir().unwrap();
        let (path, part) = (folder.path().join("a"), folder.path().join("a.part"));
        let output = create(&path).unwrap();
        assert!(output.is_restartable());
        assert!(output.write(Bytes::from_static(b"something longer")).await);
        assert!(output.start_over(record()).await);
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let written = output.close().await.unwrap();
        assert_eq!((written.bytes, written.sha256.as_str()), (3, ABC));
        assert_eq!(fs::read(&part).unwrap(), b"abc");
        written.publish(None).unwrap();
        let meta = folder.path().join("a.part.meta");
        assert!(path.exists() && !part.exists() && !meta.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_complete_is_read_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        let output = Output::complete(place(&path).unwrap()).unwrap();
        let written = output.close().await.unwrap().publish(None).unwrap();
        assert_eq!((written.bytes, written.sha256.as_str()), (3, ABC));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_cannot_be_started_over() {
        let output = create("/dev/null".as_ref()).unwrap();
        assert!(!output.is_restartable());
    }

    #[tokio::test]
    async fn a_full_disk_is_reported() {
        let output = create("/dev/full".as_ref()).unwrap();
        assert!(output.write(Bytes::from_static(b"abc")).await);
        let (error, leftover) = output.close().await.unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(leftover, Leftover::NOTHING);
    }

    #[tokio::test]
    async fn a_failed_writer_stops_the_download() {
        let output = create("/dev/full".as_ref()).unwrap();
        while output.write(Bytes::from_static(b"abc")).await {}
        assert_eq!(output.close().await.unwrap_err().0.code(), 23);
    }

    #[test]
    fn a_missing_folder_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let error = create(&folder.path().join("none/a")).unwrap_err();
        assert_eq!(error.code(), 23);
        assert!(error.to_string().contains("create the folder"), "{error}");
    }

    #[test]
    fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(create(folder.path()).unwrap_err().code(), 23);
    }
}
