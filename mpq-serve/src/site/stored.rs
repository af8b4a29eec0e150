//! A file that was found, and its bytes.
//!
//! A [`StoredFile`] stands for the version that was found. It keeps the file open, so that it can be replaced, renamed
//! or removed meanwhile; whoever began to download it gets it as it was. A file that is overwritten is another
//! version: a read fails then, and never returns a part of each.
//!
//! When the server is about to be frozen, all files are closed ([`descriptors`]). The next read opens the file anew.
//! It may lie on another host then, where a copy has nothing in common with it but the version, and its digest if that
//! was in the entity tag.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::future::BoxFuture;
use http::HeaderValue;
use httpdate::HttpDate;
use std::os::unix::fs::FileExt;
use tokio::task::spawn_blocking;

use super::descriptors::{self, Kept};
use super::versions::{Identity, Mark, Version};

/// A SHA-256.
pub(super) type Digest = [u8; 32];

/// Where a file was found, and is looked for again.
pub(super) trait Place: fmt::Debug + Send + Sync {
    /// Opens what lies there for reading.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Whether entity tags are digests.
    fn tags_content(&self) -> bool;

    /// What the bytes of a file are; none if it changes meanwhile or cannot be read.
    fn digest_of<'a>(&'a self, file: &'a StoredFile) -> BoxFuture<'a, Option<Digest>>;
}

/// A file as it was when it was found.
#[derive(Debug, Clone)]
pub struct StoredFile {
    pub(super) place: Arc<dyn Place>,
    /// Below that.
    pub(super) path: PathBuf,
    pub(super) version: Version,
    pub(super) mark: Option<Mark>,
    pub(super) found: SystemTime,
    pub(super) modified: Option<HttpDate>,
    pub(super) content_type: HeaderValue,
    /// What its bytes are, if it is known and in the tag.
    pub(super) digest: Option<Digest>,
    pub(super) state: Arc<Mutex<State>>,
}

/// Which file it is, at present.
#[derive(Debug)]
pub(super) struct State {
    /// When it was opened last, by how often all files had been closed.
    pub(super) generation: u64,
    pub(super) identity: Identity,
    pub(super) kept: Option<Kept>,
}

impl StoredFile {
    /// Its length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a length, not a collection")]
    pub fn len(&self) -> u64 {
        self.version.len
    }

    /// Its entity tag (RFC 9110 §8.8.3). With [`Tags::Content`](super::files::Tags) it is the digest; weak as long as
    /// that is not known. Otherwise it is strong, unless the file has only just been changed.
    pub fn etag(&self) -> String {
        if let Some(digest) = &self.digest {
            return format!("\"sha256-{}\"", HEXLOWER.encode(digest));
        }
        let tag = self.version.tag(self.mark, self.found);
        match self.place.tags_content() && !tag.starts_with("W/") {
            true => format!("W/{tag}"),
            false => tag,
        }
    }

    /// When it was last changed, where HTTP can express that.
    pub fn modified(&self) -> Option<HttpDate> {
        self.modified
    }

    /// The media type its name stands for.
    pub fn content_type(&self) -> &HeaderValue {
        &self.content_type
    }

    /// What its digest is known by.
    pub(super) fn key(&self) -> (Identity, Version) {
        (self.state.lock().unwrap().identity, self.version)
    }

    /// Reads exactly `len` bytes at `offset`.
    ///
    /// # Errors
    /// It was overwritten since it was found, it is not there any more after a move, or it cannot be read.
    pub async fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if let (Some(digest), true) = (self.digest, self.was_closed()) {
            // Opens it.
            self.read_unproved(0, 0).await?;
            if self.place.digest_of(self).await != Some(digest) {
                return Err(changed());
            }
        }
        self.read_unproved(offset, len).await
    }

    /// The same, whatever its digest.
    pub(super) async fn read_unproved(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let reading = descriptors::reading().await;
        let file = self.clone();
        spawn_blocking(move || {
            let bytes = file.read_now(offset, len);
            drop(reading);
            bytes
        })
        .await?
    }

    /// All files were closed since it was opened.
    fn was_closed(&self) -> bool {
        self.state.lock().unwrap().generation != descriptors::generation()
    }

    /// Blocking.
    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut state = self.state.lock().unwrap();
        let file = match state.kept.as_ref().and_then(Kept::file) {
            Some(file) => file,
            None => self.open_again(&mut state)?,
        };
        let mut buffer = vec![0; len];
        file.read_exact_at(&mut buffer, offset)?;
        // After the read: what is still unchanged now was so while it was being read.
        let metadata = file.metadata()?;
        let identity = Identity::of(&metadata);
        if Version::of(&metadata) != self.version || !self.explains(&state.identity, &identity) {
            return Err(changed());
        }
        state.identity = identity;
        Ok(buffer.into())
    }

    /// Opens the file of that name, if it is the same one, or can be.
    fn open_again(&self, state: &mut State) -> io::Result<Arc<File>> {
        let file = self.place.open(&self.path)?;
        let metadata = file.metadata()?;
        let identity = Identity::of(&metadata);
        let generation = descriptors::generation();
        // A copy on another host is the same only by its version.
        let may_be = state.generation != generation || state.identity.is_same_file(&identity);
        if !may_be || Version::of(&metadata) != self.version {
            return Err(changed());
        }
        if state.generation != generation {
            state.generation = generation;
            state.identity = identity;
        }
        let file = Arc::new(file);
        state.kept = Kept::new(Arc::clone(&file));
        Ok(file)
    }

    /// Whether this change of an open file of which the version is the same has left its bytes alone: it was renamed,
    /// replaced or removed, or got another name. Otherwise somebody may have written to it and set the time back, as
    /// `cp -p` does, which also sets the rights.
    fn explains(&self, before: &Identity, now: &Identity) -> bool {
        if before == now || before.differs_in_links(now) {
            return true;
        }
        let there = self.place.open(&self.path);
        let there = there.and_then(|file| file.metadata());
        !there.is_ok_and(|metadata| Identity::of(&metadata).is_same_file(now))
    }
}

fn changed() -> io::Error {
    io::Error::other("the file has changed")
}
