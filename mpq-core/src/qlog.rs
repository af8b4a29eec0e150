//! Traces for qvis and the like (draft-ietf-quic-qlog-main-schema), in the folder `QLOGDIR`.
//!
//! noq writes them, one for each connection. A file is opened for as long as it takes to append what
//! has come together, and then closed: a server can be frozen in between, as no file is open that
//! would have to be the same when it thaws. What is not in the file yet moves with the process, and
//! goes to a file of the same name where that goes on.
//!
//! This module is there with the feature `qlog` only. With it, noq describes every packet at the cost
//! of some allocations, also where nobody wants to know.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use noq::{ConnectionId, QlogConfig, QlogFactory, Side};

/// Appended at once, bytes.
const CHUNK: usize = 256 << 10;

/// The traces of an endpoint.
struct Traces {
    folder: PathBuf,
}

/// Where `QLOGDIR` says; `None` if it says nothing.
pub(crate) fn from_env() -> Option<Arc<dyn QlogFactory>> {
    let folder = std::env::var_os("QLOGDIR").filter(|folder| !folder.is_empty())?;
    let folder = folder.into();
    Some(Arc::new(Traces { folder }))
}

impl QlogFactory for Traces {
    fn for_connection(
        &self,
        side: Side,
        _remote: SocketAddr,
        initial_dst_cid: ConnectionId,
        _now: Instant,
    ) -> Option<QlogConfig> {
        let side = if side.is_client() { "client" } else { "server" };
        let file = self.folder.join(format!("{initial_dst_cid}_{side}.sqlog"));
        Some(QlogConfig::new(Box::new(Trace::new(file))))
    }
}

/// Writes a file which it does not hold open.
struct Trace {
    file: PathBuf,
    pending: Vec<u8>,
}

impl Trace {
    fn new(file: PathBuf) -> Self {
        Self {
            file,
            pending: Vec::new(),
        }
    }

    fn append(&mut self) -> io::Result<()> {
        // Be it written or not: what cannot be written must not pile up.
        let pending = std::mem::take(&mut self.pending);
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.file)?;
        file.write_all(&pending)
    }
}

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.append()?;
        }
        Ok(bytes.len())
    }

    /// Does nothing: that is asked for far too often.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.append() {
            tracing::warn!("cannot write {}: {error}", self.file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_written_and_nothing_is_held_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/trace");
        let mut trace = Trace::new(path.clone());
        let lines: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for line in lines.chunks(1000) {
            assert_eq!(trace.write(line).unwrap(), line.len());
        }
        let so_far = fs::read(&path).unwrap();
        assert!(so_far.len() >= CHUNK && so_far.len() < lines.len());
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        assert!(!open.into_iter().any(|file| file == path));
        drop(trace);
        assert!(fs::read(&path).unwrap() == lines);
    }

    #[test]
    fn what_cannot_be_written_does_not_pile_up() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "not a folder").unwrap();
        let mut trace = Trace::new(blocked.join("trace"));
        assert!(trace.write(&[0; CHUNK]).is_err());
        assert!(trace.pending.is_empty());
    }
}
