//! The SHA-256 of files, for entity tags that are the same wherever the bytes are.
//!
//! They are computed in the background, one file at a time, and remembered for as long as the file is the same one.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::Digest as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::descriptors;
use super::stored::{Digest, StoredFile};
use super::versions::{Identity, Version};

/// How long a request waits for the digest of its file: that of a small one is there by then.
const PATIENCE: Duration = Duration::from_millis(100);

/// How much is read at a time, bytes.
const PART: u64 = 1 << 20;

/// How many digests are remembered. Each takes about 200 bytes.
const MAX_KNOWN: usize = 16_384;

/// That file, and what it holds.
type Key = (Identity, Version);

/// The digests of files, as far as they are known.
#[derive(Debug)]
pub(super) struct Digests {
    known: Mutex<HashMap<Key, watch::Receiver<Option<Digest>>>>,
    turn: Semaphore,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            turn: Semaphore::new(1),
        }
    }
}

impl Digests {
    /// That of a file, if it is known or soon will be. It is computed otherwise.
    pub(super) async fn soon(self: &Arc<Self>, file: &StoredFile) -> Option<Digest> {
        timeout(PATIENCE, self.of(file)).await.ok().flatten()
    }

    /// That of a file; none if it changes meanwhile or cannot be read.
    pub(super) async fn of(self: &Arc<Self>, file: &StoredFile) -> Option<Digest> {
        let mut digest = self.begin(file);
        // Fails when it cannot be computed.
        *digest.wait_for(Option::is_some).await.ok()?
    }

    /// Has it computed, unless that was begun before.
    fn begin(self: &Arc<Self>, file: &StoredFile) -> watch::Receiver<Option<Digest>> {
        let key = file.key();
        let mut known = self.known.lock().unwrap();
        if let Some(digest) = known.get(&key) {
            return digest.clone();
        }
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        let (tell, digest) = watch::channel(None);
        known.insert(key, digest.clone());
        let (digests, file) = (Arc::clone(self), file.clone());
        tokio::spawn(async move {
            let Ok(_turn) = digests.turn.acquire().await else {
                return;
            };
            match compute(&file).await {
                Ok(digest) => drop(tell.send(Some(digest))),
                Err(error) => {
                    tracing::debug!("no digest: {error}");
                    digests.known.lock().unwrap().remove(&key);
                }
            }
        });
        digest
    }
}

async fn compute(file: &StoredFile) -> io::Result<Digest> {
    let generation = descriptors::generation();
    let mut hash = sha2::Sha256::new();
    let mut offset = 0;
    while offset < file.len() {
        let len = PART.min(file.len() - offset);
        let bytes = file.read_unproved(offset, len as usize).await?;
        hash = tokio::task::spawn_blocking(move || hash.chain_update(bytes)).await?;
        offset += len;
    }
    // The digest of a file of which a part lies on another host is nobody's.
    match descriptors::generation() == generation {
        true => Ok(hash.finalize().into()),
        false => Err(io::Error::other("the server has moved meanwhile")),
    }
}
