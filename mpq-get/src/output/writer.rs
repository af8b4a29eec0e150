//! The thread that writes and hashes a body.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::leftover::{Leftover, Written};
use super::part::Part;
use super::part_meta::PartMeta;
use super::stream::NotText;
use crate::error::{Error, cannot_write};

/// Chunks in the channel, each up to one datagram train of 64 KiB: 16 MiB at the most.
pub(super) const CHANNEL_CAPACITY: usize = 256;
/// Bytes collected for one write call.
const BUFFER_SIZE: usize = 256 * 1024;

/// For the thread.
#[derive(Debug)]
pub(super) enum Message {
    Chunk(Bytes),
    /// What came so far is of no use; what comes next is of what the record says.
    StartOver(PartMeta),
}

/// The thread's state.
pub(super) struct Writer {
    sink: BufWriter<Sink>,
    hash: Sha256,
    bytes: u64,
    /// What to call the sink in an error.
    target: String,
    part: Option<Part>,
}

/// Where the thread writes to.
pub(super) enum Sink {
    /// Which can be started over.
    File(File),
    Stream(Box<dyn Write + Send>),
}

impl Writer {
    /// One that writes into a part.
    ///
    /// # Errors
    /// [`Error::Write`] if the system has no more descriptors.
    pub(super) fn of_part(part: Part) -> Result<Writer, Error> {
        let file = part.file().map_err(|e| cannot_write(part.path(), e))?;
        let target = part.path().display().to_string();
        let mut writer = Writer::of_stream(Sink::File(file), target);
        writer.part = Some(part);
        Ok(writer)
    }

    /// One that writes to what is called `target` in an error.
    pub(super) fn of_stream(sink: Sink, target: String) -> Writer {
        Writer {
            sink: BufWriter::with_capacity(BUFFER_SIZE, sink),
            hash: Sha256::new(),
            bytes: 0,
            target,
            part: None,
        }
    }

    /// Whether what is written can be taken back.
    pub(super) fn is_restartable(&self) -> bool {
        matches!(self.sink.get_ref(), Sink::File(_))
    }

    /// The thread's work: until the channel is closed or a write fails.
    pub(super) fn run(
        mut self,
        offset: u64,
        mut incoming: mpsc::Receiver<Message>,
    ) -> Result<Written, (Error, Leftover)> {
        let mut batch = Vec::with_capacity(CHANNEL_CAPACITY);
        let mut result = self.skip(offset);
        while result.is_ok() && incoming.blocking_recv_many(&mut batch, CHANNEL_CAPACITY) > 0 {
            // One flush a batch: few calls when the disk is behind, no delay when it is not.
            result = batch.drain(..).try_for_each(|message| self.take(message));
            result = result.and_then(|()| self.sink.flush());
        }
        // Whoever waits at the other end of a pipe is to see its end, if nothing else.
        let result = result.and_then(|()| self.sink.flush());
        match result {
            Ok(()) => Ok(Written {
                bytes: self.bytes,
                sha256: HEXLOWER.encode(&self.hash.finalize()),
                part: self.part,
            }),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Goes behind the first `bytes`, and hashes them. What follows them is cut off.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let Sink::File(file) = self.sink.get_mut() else {
            return Ok(());
        };
        let read = hash(Read::by_ref(file).take(bytes), &mut self.hash)?;
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
                match &self.part {
                    Some(part) => PartMeta::store(Some(&record), part.path()),
                    None => Ok(()),
                }
            }
        }
    }

    fn failed(self, source: io::Error) -> (Error, Leftover) {
        // Dropped as it is, a buffer would try again to write what has just failed.
        let _ = self.sink.into_parts();
        let leftover = self.part.as_ref().map_or(Leftover::NOTHING, Leftover::of);
        let error = match source.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(NotText) => Error::Terminal,
            None => Error::Write {
                target: self.target,
                source,
            },
        };
        (error, leftover)
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

/// The length of a file in bytes, and its SHA-256 in lower-case hexadecimal.
pub(super) fn digest(file: &mut File) -> io::Result<(u64, String)> {
    let mut sha256 = Sha256::new();
    let bytes = hash(file, &mut sha256)?;
    Ok((bytes, HEXLOWER.encode(&sha256.finalize())))
}

fn hash(read: impl Read, sha256: &mut Sha256) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(BUFFER_SIZE, read);
    io::copy(&mut reader, &mut Hashing(sha256))
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
