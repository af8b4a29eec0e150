//! Which files are open, so that none is while the server is frozen.
//!
//! A running response keeps its file open, and so sends the version that it began with to the end, whatever becomes
//! of the name. A server that is dumped must have no file open: its images would want the same file at the same
//! place. [`close`] closes them all, and nothing is read until what it returns is dropped. Whoever reads on then
//! opens the file anew and sees by the [`generation`] that it may be a copy on another host.
//!
//! The table of descriptors is the process's, and so is this.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::timeout;

/// How long a freeze waits for reads in progress: a disk that does not answer cannot hold up a move.
const READS_END: Duration = Duration::from_secs(1);

/// How many descriptors the process asks for.
const MAX_OPEN: u64 = 65_536;

/// Whoever reads shares it, whoever freezes has it alone.
static READS: RwLock<()> = RwLock::const_new(());
/// How often all files were closed.
static GENERATION: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static OPEN: LazyLock<Mutex<HashMap<u64, Arc<File>>>> = LazyLock::new(Mutex::default);

/// Closes all files of the site. None is opened while the result lives.
pub async fn close() -> Closed {
    let guard = timeout(READS_END, READS.write()).await.ok();
    GENERATION.fetch_add(1, Ordering::Relaxed);
    OPEN.lock().unwrap().clear();
    Closed { _guard: guard }
}

/// No file is open.
#[derive(Debug)]
#[must_use = "files are opened again once it is dropped"]
pub struct Closed {
    _guard: Option<RwLockWriteGuard<'static, ()>>,
}

/// Lets the process have as many files open as it may need, if the system allows that.
pub fn allow_many() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(MAX_OPEN)), hard);
    }
}

/// Waits until files may be opened and read, which they may for as long as the result lives.
pub(super) async fn reading() -> RwLockReadGuard<'static, ()> {
    READS.read().await
}

/// Changes whenever the files are closed.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// A file that stays open until this is dropped, or until all are closed.
#[derive(Debug)]
pub(super) struct Kept(u64);

impl Kept {
    /// Nothing if half of what the process may have open is: connections need descriptors, too.
    pub(super) fn new(file: Arc<File>) -> Option<Self> {
        let mut open = OPEN.lock().unwrap();
        if open.len() >= most() {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        open.insert(number, file);
        Some(Self(number))
    }

    pub(super) fn file(&self) -> Option<Arc<File>> {
        OPEN.lock().unwrap().get(&self.0).cloned()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Closed after the lock is given back: that can take a while.
        let file = OPEN.lock().unwrap().remove(&self.0);
        drop(file);
    }
}

/// How many files are kept open at the most.
fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        usize::try_from(soft / 2).unwrap_or(usize::MAX)
    })
}
