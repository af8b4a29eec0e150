//! The thread that writes and hashes a body.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::destination::{Destination, Rename};
use super::leftover::{Leftover, Written};
use super::part_meta::PartMeta;
use crate::error::Error;

/// Chunks in the channel, each up to one datagram train of 64 KiB: 16 MiB at the most.
pub(super) const CHANNEL_CAPACITY: usize = 256;
/// Bytes collected for one write call.
const BUFFER_SIZE: usize = 256 * 1024;

/// For the thread.
#[derive(Debug)]
pub(super) enum Message {
    Chunk(Bytes),
    /// What came so far is of no use; what comes next is of what the record says.
    StartOver(Option<PartMeta>),
}

/// The thread's state.
pub(super) struct Writer {
    sink: BufWriter<Sink>,
    hash: Sha256,
    bytes: u64,
    /// What to call the sink in an error.
    target: String,
    rename: Option<Rename>,
}

/// Where the thread writes to.
pub(super) enum Sink {
    /// Which can be started over.
    File(File),
    Stream(Box<dyn Write + Send>),
}

impl Writer {
    /// Before the first byte.
    pub(super) fn new(sink: Sink, destination: &Destination, rename: Option<Rename>) -> Writer {
        let target = match (destination, &rename) {
            (Destination::File(_), Some(Rename { part, .. })) => part.display().to_string(),
            (Destination::File(path), None) => path.display().to_string(),
            (Destination::Stdout | Destination::Terminal, _) => "standard output".to_owned(),
        };
        Writer {
            sink: BufWriter::with_capacity(BUFFER_SIZE, sink),
            hash: Sha256::new(),
            bytes: 0,
            target,
            rename,
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
        match result {
            Ok(()) => Ok(Written {
                bytes: self.bytes,
                sha256: HEXLOWER.encode(&self.hash.finalize()),
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
        let mut reader = BufReader::with_capacity(BUFFER_SIZE, Read::by_ref(file).take(bytes));
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
                    Some(Rename { part, .. }) => PartMeta::store(record.as_ref(), part),
                    None => Ok(()),
                }
            }
        }
    }

    fn failed(self, source: io::Error) -> (Error, Leftover) {
        // Dropped as it is, a buffer would try again to write what has just failed.
        let _ = self.sink.into_parts();
        let leftover = self.rename.and_then(|Rename { part, .. }| {
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
        (error, Leftover(leftover))
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
pub(super) struct TextOnly;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_binary() {
        let error = TextOnly.write(b"a\0b").unwrap_err();
        assert!(error.get_ref().unwrap().is::<NotText>());
    }
}
