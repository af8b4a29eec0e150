//! Where the images of a checkpoint are: in a folder of their own, which nobody else can look into or change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::notes::{Manifest, RequestId, write_json};
use super::trust;
use crate::error::{At, Error};

/// How the name of such a folder begins.
const PREFIX: &str = "checkpoint-";
/// The manifest's name while a restore is under way: two of them would send with one key.
const TAKEN: &str = "manifest.taken";
/// What CRIU and a restore add to images that are complete.
const ADDED: [&str; 6] = [
    Manifest::FILE,
    TAKEN,
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
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .at(parent)?;
    let folder = trust::path(parent)?.join(format!("{PREFIX}{request}"));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .at(&folder)?;
    trust::private_folder(&folder)?;
    Ok(folder)
}

/// There is room for the memory of this process.
///
/// # Errors
/// How much there is, and how much is needed.
pub fn check_room(folder: &Path) -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").at("/proc/self/status")?;
    let needed = memory(&status) + BESIDES_MEMORY;
    let space = statvfs(folder).map_err(std::io::Error::from).at(folder)?;
    let free = space.blocks_available() as u64 * space.fragment_size() as u64;
    match free >= needed {
        true => Ok(()),
        false => Err(Error::Dump(format!(
            "{} has room for {free} bytes, and the images may need {needed}",
            folder.display()
        ))),
    }
}

/// What of it is in no file, bytes.
fn memory(status: &str) -> u64 {
    let kilobytes = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let is_memory = ["RssAnon", "RssShmem", "VmSwap"].contains(&name);
        let number = value.trim().strip_suffix("kB")?.trim();
        is_memory.then(|| number.parse::<u64>().ok()).flatten()
    };
    status.lines().filter_map(kilobytes).sum::<u64>() * 1024
}

/// Says that the images are complete, and which they are.
///
/// # Errors
/// Those of the file system.
pub fn seal(folder: &Path, manifest: Manifest) -> Result<(), Error> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        if let (true, Ok(name)) = (is_image(&entry.path()), entry.file_name().into_string()) {
            files.insert(name, entry.metadata().at(entry.path())?.len());
        }
    }
    write_json(
        &folder.join(Manifest::FILE),
        &Manifest { files, ..manifest },
    )
}

/// Removes what is left of a checkpoint that failed, but for CRIU's log.
pub fn discard(folder: &Path) {
    let _ = fs::remove_file(folder.join(Manifest::FILE));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_image(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

fn is_image(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "img")
}

/// Images that can be restored.
#[derive(Debug)]
pub struct Images {
    /// Where they are.
    pub folder: PathBuf,
    /// What they are of.
    pub manifest: Manifest,
}

impl Images {
    /// Those in this folder, or in the only folder in it that has some.
    ///
    /// # Errors
    /// There are none, or several, or of another program; others could have changed them, or some are cut.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let folder = trust::path(&find(folder)?)?;
        trust::private_folder(&folder)?;
        let file = folder.join(Manifest::FILE);
        trust::file(&file)?;
        let foreign = |reason: String| Error::ForeignImages(folder.clone(), reason);
        let text = fs::read(&file).at(&file)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        let (program, version) = (&manifest.program, &manifest.version);
        if program != Manifest::PROGRAM || version != env!("CARGO_PKG_VERSION") {
            return Err(foreign(format!("{program} {version}")));
        }
        for (name, length) in &manifest.files {
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(foreign(format!("{name:?} is no file's name")));
            }
            let file = folder.join(name);
            if !file.exists() {
                return Err(foreign(format!("{name} is missing")));
            }
            let found = trust::file(&file)?.len();
            if found != *length {
                return Err(Error::CutImage(file, found, *length));
            }
        }
        // Those that nobody lists are read, too.
        for entry in fs::read_dir(&folder).at(&folder)? {
            trust::file(&entry.at(&folder)?.path())?;
        }
        Ok(Self { folder, manifest })
    }

    /// Nobody else can restore them from now on.
    ///
    /// # Errors
    /// Somebody else has taken them; those of the file system.
    pub fn take(&self) -> Result<(), Error> {
        let file = self.folder.join(Manifest::FILE);
        fs::rename(&file, self.folder.join(TAKEN)).at(&file)
    }

    /// They can be restored after all.
    pub fn give_back(&self) {
        let file = self.folder.join(Manifest::FILE);
        let _ = fs::rename(self.folder.join(TAKEN), file);
    }

    /// Removes what the checkpoint and the restore have written. The folder stays if anything else is in it.
    pub fn remove(&self) {
        let added = ADDED.into_iter();
        for name in added.chain(self.manifest.files.keys().map(String::as_str)) {
            let _ = fs::remove_file(self.folder.join(name));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn find(folder: &Path) -> Result<PathBuf, Error> {
    let is_complete = |folder: &Path| fs::symlink_metadata(folder.join(Manifest::FILE)).is_ok();
    if is_complete(folder) {
        return Ok(folder.to_owned());
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX)) && is_complete(path)
    };
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_ours).collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Error::NoImages(folder.to_owned())),
        (Some(_), others) => Err(Error::ManyImages(folder.to_owned(), others + 1)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            program: Manifest::PROGRAM.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: 1,
            control: "/nowhere".into(),
            listen: "127.0.0.1:4433".parse().unwrap(),
            targets: Vec::new(),
            sequence: 1,
            announced: 0.0,
            parked: 0.0,
            dump_started: 0.0,
            dumped: 0.0,
            files: BTreeMap::new(),
        }
    }

    fn checkpoint(parent: &Path, id: &str) -> PathBuf {
        let folder = new_folder(parent, &RequestId::parse(id).unwrap()).unwrap();
        fs::write(folder.join("pages-1.img"), "memory").unwrap();
        fs::write(folder.join("dump.log"), "").unwrap();
        seal(&folder, manifest()).unwrap();
        folder
    }

    #[test]
    fn only_what_a_checkpoint_wrote_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let mine = parent.path().join("mine");
        fs::write(&mine, "kept").unwrap();
        let folder = checkpoint(parent.path(), "1-1");
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let images = Images::open(parent.path()).unwrap();
        images.remove();
        assert!(!folder.exists() && mine.exists());

        let folder = checkpoint(parent.path(), "1-2");
        let images = Images::open(&folder).unwrap();
        fs::write(folder.join("notes"), "kept").unwrap();
        images.remove();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn one_checkpoint_is_found_and_two_are_not_confused() {
        let parent = tempfile::tempdir().unwrap();
        let open = || Images::open(parent.path());
        assert!(matches!(open(), Err(Error::NoImages(_))));
        let first = checkpoint(parent.path(), "1-1");
        assert_eq!(open().unwrap().folder, first);
        let second = checkpoint(parent.path(), "1-2");
        assert!(matches!(open(), Err(Error::ManyImages(_, 2))));
        Images::open(&second).unwrap().take().unwrap();
        assert_eq!(open().unwrap().folder, first);
    }

    #[test]
    fn images_that_others_could_have_changed_or_that_are_cut_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = checkpoint(parent.path(), "1-1");
        let image = folder.join("pages-1.img");
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (path, bad, good) in [
            (parent.path(), 0o777, 0o700),
            (&folder, 0o755, 0o700),
            (&image, 0o666, 0o600),
        ] {
            chmod(path, bad);
            assert!(matches!(Images::open(&folder), Err(Error::Untrusted(..))));
            chmod(path, good);
        }
        fs::write(folder.join("core-2.img"), "").unwrap();
        chmod(&folder.join("core-2.img"), 0o666);
        assert!(matches!(Images::open(&folder), Err(Error::Untrusted(..))));
        chmod(&folder.join("core-2.img"), 0o600);
        Images::open(&folder).unwrap();
        fs::write(&image, "mem").unwrap();
        assert!(matches!(
            Images::open(&folder),
            Err(Error::CutImage(_, 3, 6))
        ));
    }

    #[test]
    fn what_of_the_memory_is_dumped() {
        let status =
            "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  10 kB\nRssFile:\t 5 kB\nRssShmem:\t 2 kB\n";
        assert_eq!(memory(status), 12 * 1024);
    }
}
