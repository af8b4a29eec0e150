//! Where the images of a checkpoint are: in a folder of their own, which nobody else can look into or change.
//!
//! The manifest says how long each image is, and what its digest is; the [`token`] says so of the manifest. So images
//! that were damaged are found before CRIU reads them, which might wait without end, or wake a server that is not
//! what it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::O_NOFOLLOW;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::notes::{ImageFile, Manifest, RequestId, write_whole};
use super::token::{self, Claim, Token};
use super::{namespace, proc, standstill, trust};
use crate::error::{At, Error};

/// How the name of such a folder begins,
const PREFIX: &str = "checkpoint-";
/// and that of one for images that were sealed, for as long as they are restored.
const UNSEALED_PREFIX: &str = "unsealed-";
/// The images in one file, encrypted.
pub const SEALED: &str = "images.sealed";
/// The same as long as it is written.
pub const SEALED_PART: &str = "images.sealed.part";
/// Whoever has locked this file may wake the server, or have somebody else do.
const LOCK: &str = "lock";
/// What CRIU and a restore add to images that are complete.
const ADDED: [&str; 14] = [
    Manifest::FILE,
    SEALED,
    SEALED_PART,
    token::FILE,
    token::SPENT,
    LOCK,
    standstill::READY,
    standstill::HELD,
    namespace::ENDED,
    namespace::SEEN,
    "dump.log",
    "restore.log",
    "stats-dump",
    "stats-restore",
];
/// More than CRIU writes besides the memory of the server, bytes.
const BESIDES_MEMORY: u64 = 8 << 20;

/// Makes a folder for the images of one checkpoint, in `parent`, where all else is left alone.
///
/// # Errors
/// Others could change `parent`; those of the file system.
pub fn new_folder(parent: &Path, request: &RequestId) -> Result<PathBuf, Error> {
    make_folder(parent, &format!("{PREFIX}{request}"))
}

/// The same for images that were sealed with the key of this id. What an earlier attempt has left there is removed.
///
/// # Errors
/// As there; something else has the name.
pub fn unsealed_folder(parent: &Path, id: &str) -> Result<PathBuf, Error> {
    let name = format!("{UNSEALED_PREFIX}{id}");
    let left = parent.join(&name);
    if fs::symlink_metadata(&left).is_ok() {
        trust::private_folder(&left, trust::me())?;
        fs::remove_dir_all(&left).at(&left)?;
    }
    make_folder(parent, &name)
}

fn make_folder(parent: &Path, name: &str) -> Result<PathBuf, Error> {
    if parent.exists() && !parent.is_dir() {
        let reason = "it is no directory; give --images one, or a name that is free";
        return Err(io::Error::new(io::ErrorKind::NotADirectory, reason)).at(parent);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .at(parent)?;
    let folder = trust::path(parent)?.join(name);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .at(&folder)?;
    trust::private_folder(&folder, trust::me())?;
    Ok(folder)
}

/// There is room for the memory of a process; it is named as in `/proc`.
///
/// # Errors
/// How much there is, and how much is needed.
pub fn check_room(folder: &Path, process: &str) -> Result<(), Error> {
    lacks_room(folder, needed(process)?)?.map_or(Ok(()), |reason| Err(Error::Dump(reason)))
}

/// How much the images of a process may need, bytes; it is named as in `/proc`.
///
/// # Errors
/// There is no such process.
pub fn needed(process: &str) -> Result<u64, Error> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).at(&path)?;
    Ok(memory(&status) + BESIDES_MEMORY)
}

/// What is to be said if a folder, which may still have to be made, has no room for so many bytes.
///
/// # Errors
/// Those of the file system.
pub fn lacks_room(folder: &Path, needed: u64) -> Result<Option<String>, Error> {
    let folder = existing(folder);
    let space = statvfs(folder).map_err(std::io::Error::from).at(folder)?;
    let free = space.blocks_available() as u64 * space.fragment_size() as u64;
    let reason = || {
        let folder = folder.display();
        format!("{folder} has room for {free} bytes, and the images may need {needed}")
    };
    Ok((free < needed).then(reason))
}

/// Whether what is written to a folder, which may still have to be made, is in memory only.
///
/// # Errors
/// Those of the file system.
pub fn is_in_memory(folder: &Path) -> Result<bool, Error> {
    let folder = existing(folder);
    let system = statfs(folder).map_err(io::Error::from).at(folder)?;
    Ok(system.filesystem_type() == TMPFS_MAGIC)
}

/// It, or the one above it in which it would be made.
fn existing(folder: &Path) -> &Path {
    let mut above = folder.ancestors();
    above.find(|above| above.is_dir()).unwrap_or(folder)
}

/// What of it is in no file, bytes.
fn memory(status: &str) -> u64 {
    let kilobytes = |name| {
        let number = proc::named(status, name)?.strip_suffix("kB")?;
        number.trim().parse::<u64>().ok()
    };
    let parts = ["RssAnon", "RssShmem", "VmSwap"].into_iter();
    parts.filter_map(kilobytes).sum::<u64>() * 1024
}

/// Says that the images are complete, and which they are. They can be restored from this folder then, once they have a
/// token.
///
/// # Errors
/// Those of the file system.
pub fn complete(folder: &Path, manifest: Manifest) -> Result<(), Error> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        if let (true, Ok(name)) = (is_image(&entry.path()), entry.file_name().into_string()) {
            files.insert(name, ImageFile::of(&entry.path()).at(entry.path())?);
        }
    }
    let manifest = Manifest { files, ..manifest };
    let text = serde_json::to_vec(&manifest).expect("plain data");
    write_whole(&folder.join(Manifest::FILE), &text)
}

/// As [`complete`], and gives them their token.
///
/// # Errors
/// Those of the file system.
pub fn finish(folder: &Path, manifest: Manifest) -> Result<(), Error> {
    complete(folder, manifest)?;
    entitle(folder)
}

/// Gives complete images their token.
///
/// # Errors
/// Those of the file system.
pub fn entitle(folder: &Path) -> Result<(), Error> {
    let manifest = folder.join(Manifest::FILE);
    let text = fs::read(&manifest).at(manifest)?;
    token::issue(folder, &text)
}

/// Removes what is left of a checkpoint, or of a copy, that failed, but for CRIU's log.
pub fn discard(folder: &Path) {
    for name in ADDED.iter().filter(|name| !name.ends_with(".log")) {
        let _ = fs::remove_file(folder.join(name));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_image(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Whether a file of this name is one of the images.
pub fn is_image(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "img")
}

/// A folder with images, in clear or sealed, with which nobody else can do anything meanwhile.
#[derive(Debug)]
pub struct Taken {
    /// Where it is.
    pub folder: PathBuf,
    lock: File,
}

impl Taken {
    /// This one, or the only one in it that has images.
    ///
    /// # Errors
    /// There is none, or there are several; others could have changed it; somebody else restores or releases them.
    pub fn take(folder: &Path) -> Result<Self, Error> {
        let folder = trust::path(&find(folder)?)?;
        trust::private_folder(&folder, trust::me())?;
        let lock = lock(&folder)?;
        Ok(Self { folder, lock })
    }

    /// Whether they are sealed.
    pub fn is_sealed(&self) -> bool {
        fs::symlink_metadata(self.folder.join(SEALED)).is_ok()
    }
}

/// Complete images, with which nobody else can do anything meanwhile.
#[derive(Debug)]
pub struct Images {
    /// Where they are.
    pub folder: PathBuf,
    /// What they are of.
    pub manifest: Manifest,
    /// The manifest, as it is in the folder.
    text: Vec<u8>,
    /// Where their token is: in their folder, or in that which they were unsealed from.
    home: Taken,
}

impl Images {
    /// Those in this folder, or in the only folder in it that has some.
    ///
    /// # Errors
    /// There are none, or several, or they are sealed, or of another program; others could have changed them; the
    /// manifest was changed; or somebody else restores or releases them.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let home = Taken::take(folder)?;
        match home.is_sealed() {
            true => Err(Error::Sealed(home.folder)),
            false => Self::read(home.folder.clone(), home),
        }
    }

    /// Those in a folder, which are there in clear, by the token in that of `home`.
    ///
    /// # Errors
    /// They are of another program; others could have changed them; the manifest was changed.
    pub fn read(folder: PathBuf, home: Taken) -> Result<Self, Error> {
        let file = folder.join(Manifest::FILE);
        trust::file(&file)?;
        let text = fs::read(&file).at(&file)?;
        if Token::read(&home.folder).is_some_and(|token| !token.is_for(&text)) {
            return Err(Error::Damaged(file, "its contents have changed".to_owned()));
        }
        Ok(Self {
            manifest: parse(&text, &folder)?,
            folder,
            text,
            home,
        })
    }

    /// All of them are there, as they were written, and no others.
    ///
    /// # Errors
    /// Which one is not; others could have changed one.
    pub fn check(&self) -> Result<(), Error> {
        for (name, written) in &self.manifest.files {
            let file = self.folder.join(name);
            let damaged = |reason: String| Err(Error::Damaged(file.clone(), reason));
            let found = match trust::file(&file) {
                Ok(metadata) => metadata.len(),
                Err(Error::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                    return damaged("it is missing".to_owned());
                }
                Err(error) => return Err(error),
            };
            if found != written.bytes {
                return damaged(format!("it has {found} bytes instead of {}", written.bytes));
            }
            if ImageFile::of(&file).at(&file)? != *written {
                return damaged("its contents have changed".to_owned());
            }
        }
        for entry in fs::read_dir(&self.folder).at(&self.folder)? {
            let entry = entry.at(&self.folder)?;
            trust::file(&entry.path())?;
            let is_listed = |name: &str| self.manifest.files.contains_key(name);
            if is_image(&entry.path()) && !entry.file_name().to_str().is_some_and(is_listed) {
                let reason = "it is none of them".to_owned();
                return Err(Error::Damaged(entry.path(), reason));
            }
        }
        Ok(())
    }

    /// Their server may wake here: they have the token, or get it, by what the operator knows.
    ///
    /// # Errors
    /// Why it may not.
    pub fn claim(&self, claim: Claim) -> Result<(), Error> {
        token::claim(&self.home.folder, &self.text, claim)
    }

    /// Lets a copy of them wake instead, for so long.
    ///
    /// # Errors
    /// They may not wake here.
    pub fn release(&self, valid: Duration) -> Result<(), Error> {
        token::release(&self.home.folder, valid)
    }

    /// The ids that the process and its threads have when it is restored. CRIU names images after them.
    pub fn ids(&self) -> Vec<i32> {
        let names = self.manifest.files.keys();
        let id = |name: &String| {
            name.strip_prefix("core-")?
                .strip_suffix(".img")?
                .parse()
                .ok()
        };
        names.filter_map(id).collect()
    }

    /// Their length, bytes.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|file| file.bytes).sum()
    }

    /// The manifest, as it is in the folder.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// As [`release`](Self::release). Returns the token, which has a copy wake once it is beside that.
    ///
    /// # Errors
    /// As there.
    pub fn hand_over(&self, valid: Duration) -> Result<String, Error> {
        self.release(valid)?;
        let token = self.home.folder.join(token::FILE);
        fs::read_to_string(&token).at(token)
    }

    /// Whether their server has woken, or is about to.
    pub fn are_spent(&self) -> bool {
        token::is_spent(&self.home.folder)
    }

    /// The folder that their token is in.
    pub fn token_folder(&self) -> &Path {
        &self.home.folder
    }

    /// For a process whose life is to keep everybody else away from them, also beyond that of this one.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn lock(&self) -> Result<File, Error> {
        self.home.lock.try_clone().at(&self.home.folder)
    }

    /// Removes what the checkpoint and the restore have written. The folder stays if anything else is in it.
    pub fn remove(&self) {
        for folder in [&self.folder, &self.home.folder] {
            let added = ADDED.into_iter();
            for name in added.chain(self.manifest.files.keys().map(String::as_str)) {
                let _ = fs::remove_file(folder.join(name));
            }
            let _ = fs::remove_dir(folder);
        }
    }

    /// They are not restored: what of them was unsealed for that goes, but for CRIU's log.
    pub fn keep(&self) {
        if self.folder != self.home.folder {
            discard(&self.folder);
        }
    }
}

/// What a manifest says, which is to be of this program. The folder is for the message.
///
/// # Errors
/// It is not.
pub fn parse(text: &[u8], folder: &Path) -> Result<Manifest, Error> {
    let foreign = |reason: String| Error::ForeignImages(folder.to_owned(), reason);
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|error| foreign(error.to_string()))?;
    let (program, version) = (&manifest.program, &manifest.version);
    if program != Manifest::PROGRAM || version != env!("CARGO_PKG_VERSION") {
        return Err(foreign(format!("{program} {version}")));
    }
    let is_name = |name: &str| Path::new(name).file_name() == Some(name.as_ref());
    match manifest.files.keys().find(|name| !is_name(name)) {
        Some(name) => Err(foreign(format!("{name:?} is no file's name"))),
        None => Ok(manifest),
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(&path)
        .at(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::ImagesBusy(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(Error::Io(path, error)),
    }
}

fn find(folder: &Path) -> Result<PathBuf, Error> {
    let has = |folder: &Path, name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
    let is_complete = |folder: &Path| has(folder, Manifest::FILE) || has(folder, SEALED);
    if is_complete(folder) {
        return Ok(folder.to_owned());
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX)) && is_complete(path)
    };
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_ours).collect();
    // Those that are of no more use count if there are no others.
    let is_usable = |folder: &PathBuf| !token::is_spent(folder);
    if found.iter().any(is_usable) {
        found.retain(is_usable);
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Error::NoImages(folder.to_owned())),
        (Some(_), others) => Err(Error::ManyImages(folder.to_owned(), others + 1)),
    }
}

#[cfg(test)]
pub(super) mod tests;
