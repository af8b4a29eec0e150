//! Which version of a file there is, and the entity tag that stands for it (RFC 9110 §8.8.3).
//!
//! A [`Version`] is the length of a file and its time of change in nanoseconds. A copy made with its times (`cp -p`,
//! `rsync -t`) is the same version on every host, so that a download can go on there, on the same connection
//! after a move or on another one after a loss. Two things are taken on trust: who sets a file's time by hand does not
//! do so to hide a change, and the clock behind it ticks between two changes. The latter does not hold for changes
//! right after each other; so the entity tag of a file changed within the last second is marked as weak (RFC 9110
//! §8.8.1), with which no client may put parts together.
//!
//! As long as a server runs, nothing need be trusted for what happens on its host: an [`Identity`] tells one file from
//! another of the same version, and [`Sightings`] remembers which it has seen. The tag of the second one says so.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// In which two changes may bear the same time: the kernel's clock ticks every few milliseconds, those
/// of some file systems once a second.
const TIME_GRANULARITY: Duration = Duration::from_secs(1);

/// How many versions are remembered. Each takes about 200 bytes, in the images of a server as well.
const MAX_SIGHTINGS: usize = 16_384;

/// What a change of a file changes, and a copy of it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Version {
    pub(super) len: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Version {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }

    /// Whether another change may bear the same time, as of `now`. A time to come was set by hand.
    pub(super) fn may_hide_a_change(self, now: SystemTime) -> bool {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let (Some(now), Ok(seconds)) = (since(now), u64::try_from(self.seconds)) else {
            return false;
        };
        let changed = Duration::from_secs(seconds) + Duration::from_nanos(self.nanoseconds as u64);
        now.checked_sub(changed)
            .is_some_and(|age| age < TIME_GRANULARITY)
    }

    /// Its entity tag, with what tells it from an earlier file of the same version; as of `now`.
    pub(super) fn tag(self, mark: Option<Mark>, now: SystemTime) -> String {
        let Self {
            len,
            seconds,
            nanoseconds,
        } = self;
        let weak = match self.may_hide_a_change(now) {
            true => "W/",
            false => "",
        };
        let mark = mark.map_or(String::new(), |Mark(mark)| {
            format!("-{}", HEXLOWER.encode(&mark))
        });
        format!("{weak}\"{len:x}-{seconds:x}-{nanoseconds:x}{mark}\"")
    }
}

/// What no two files of a host have in common, and what nobody can set by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    /// When anything of it was last changed, also its name or its owner: seconds and nanoseconds.
    changed: (i64, i64),
    links: u64,
    mode: u32,
    owner: (u32, u32),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
        }
    }

    /// Whether it is the same file, with whatever in it.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether it got or lost a name, and nothing else is known to have been changed: backups do that to whole trees.
    pub(super) fn differs_in_links(&self, other: &Self) -> bool {
        let rights = |it: &Self| (it.mode, it.owner);
        self.is_same_file(other) && self.links != other.links && rights(self) == rights(other)
    }
}

/// Tells a file from another of the same version in its entity tag. Nobody can read the inode out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark([u8; 8]);

impl Mark {
    fn of(identity: &Identity) -> Self {
        let (seconds, nanoseconds) = identity.changed;
        let digest = Sha256::new()
            .chain_update(identity.device.to_le_bytes())
            .chain_update(identity.inode.to_le_bytes())
            .chain_update(seconds.to_le_bytes())
            .chain_update(nanoseconds.to_le_bytes())
            .finalize();
        Self(digest[..8].try_into().expect("it has 32 bytes"))
    }
}

/// The versions that were seen.
#[derive(Debug, Default)]
pub(super) struct Sightings(Mutex<HashMap<(PathBuf, Version), Sighting>>);

#[derive(Debug, Clone, Copy)]
struct Sighting {
    generation: u64,
    identity: Identity,
    mark: Option<Mark>,
}

impl Sightings {
    /// What the tag of a file needs beside its version: nothing, unless another file of that version was there before.
    ///
    /// In a new `generation` the files may be copies on another host, of which only the version is the same: the tags
    /// stay what they were.
    pub(super) fn note(
        &self,
        path: &Path,
        version: Version,
        identity: Identity,
        generation: u64,
    ) -> Option<Mark> {
        let mut seen = self.0.lock().unwrap();
        if let Some(sighting) = seen.get_mut(&(path.to_owned(), version)) {
            let is_same =
                sighting.identity == identity || sighting.identity.differs_in_links(&identity);
            if sighting.generation == generation && !is_same {
                sighting.mark = Some(Mark::of(&identity));
            }
            sighting.generation = generation;
            sighting.identity = identity;
            return sighting.mark;
        }
        if seen.len() >= MAX_SIGHTINGS {
            // What bears a mark must keep it.
            seen.retain(|_, sighting| sighting.mark.is_some());
        }
        if seen.len() >= MAX_SIGHTINGS {
            seen.clear();
        }
        let sighting = Sighting {
            generation,
            identity,
            mark: None,
        };
        seen.insert((path.to_owned(), version), sighting);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "file";
    const VERSION: Version = Version {
        len: 10,
        seconds: 1_000,
        nanoseconds: 5,
    };

    fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            changed: (2, 3),
            links: 1,
            mode: 0o644,
            owner: (0, 0),
        }
    }

    #[test]
    fn another_file_of_the_same_version_has_another_tag() {
        let seen = Sightings::default();
        let tag = |inode, generation| {
            let mark = seen.note(PATH.as_ref(), VERSION, identity(inode), generation);
            VERSION.tag(mark, SystemTime::now())
        };
        let first = tag(1, 0);
        assert_eq!(tag(1, 0), first);
        let second = tag(2, 0);
        assert_ne!(second, first);
        assert_eq!(tag(2, 0), second);
        let linked = Identity {
            links: 2,
            changed: (3, 4),
            ..identity(2)
        };
        let mark = seen.note(PATH.as_ref(), VERSION, linked, 0);
        assert_eq!(VERSION.tag(mark, SystemTime::now()), second);
        // On another host all files are others.
        assert_eq!(tag(3, 1), second);
        assert_eq!(tag(3, 1), second);
        let third = tag(4, 1);
        assert!(third != first && third != second);
        // The first one again is not what it was: its time of change tells that it was moved.
        assert_ne!(tag(1, 1), first);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_marks_are_kept() {
        let seen = Sightings::default();
        seen.note(PATH.as_ref(), VERSION, identity(1), 0);
        let mark = seen.note(PATH.as_ref(), VERSION, identity(2), 0);
        assert!(mark.is_some());
        for number in 0..2 * MAX_SIGHTINGS {
            seen.note(number.to_string().as_ref(), VERSION, identity(1), 0);
        }
        assert!(seen.0.lock().unwrap().len() <= MAX_SIGHTINGS);
        assert_eq!(seen.note(PATH.as_ref(), VERSION, identity(2), 0), mark);
    }

    #[test]
    fn a_version_that_may_hide_a_change_is_weak() {
        let changed = SystemTime::UNIX_EPOCH + Duration::new(1_000, 5);
        let tag = |now| VERSION.tag(None, now);
        assert!(tag(changed + TIME_GRANULARITY / 2).starts_with("W/\""));
        let strong = tag(changed + TIME_GRANULARITY);
        assert!(strong.starts_with('"'));
        // Set by hand.
        assert_eq!(tag(changed - TIME_GRANULARITY), strong);
    }
}
