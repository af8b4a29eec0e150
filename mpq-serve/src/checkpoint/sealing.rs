//! Images that leave their host in one encrypted file ([`seal`]), whose key goes another way.
//!
//! `checkpoint --seal` writes the key first, before any client hears of a move, and has the server dumped into memory.
//! Then all images become one file beside their token, and are removed. `restore --key` reads all of that file before it
//! does anything, and unseals it into a folder in memory for as long as CRIU needs that. The token stays where it is: who
//! may wake the server does not depend on the key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::control::Control;
use super::images::{self, Images, SEALED, SEALED_PART, Taken};
use super::notes::Manifest;
use super::seal::{Key, Sealing, Unsealing};
use super::token::{self, Claim};
use super::trust;
use crate::error::{At, Error};
use crate::log;

/// No manifest is longer, bytes.
const MAX_MANIFEST: u32 = 1 << 20;
/// No file with a key is, bytes.
const MAX_KEY: u64 = 1 << 10;
/// What a restore adds to images, bytes.
const BESIDES_IMAGES: u64 = 1 << 20;

/// A new key, which was written down.
pub struct KeptKey {
    key: Key,
    /// Where; none if it was printed.
    file: Option<PathBuf>,
}

impl KeptKey {
    /// Makes one, and writes it to a new file that only this user can read, or with `-` to the standard output.
    ///
    /// # Errors
    /// There is such a file already; those of the file system.
    pub fn create(file: &Path) -> Result<Self, Error> {
        let key = Key::new().at(file)?;
        let line = format!("{}\n", key.text());
        if is_stream(file) {
            let mut stdout = io::stdout();
            let written = stdout.write_all(line.as_bytes());
            written.and_then(|()| stdout.flush()).at("stdout")?;
            return Ok(Self { key, file: None });
        }
        let mut opened = create(file)
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => {
                    let reason = "it is there already, and a key is written to a new file only";
                    io::Error::new(error.kind(), reason)
                }
                _ => error,
            })
            .at(file)?;
        let kept = Self {
            key,
            file: Some(file.to_owned()),
        };
        let written = opened.write_all(line.as_bytes());
        let written = written.and_then(|()| opened.sync_all());
        written.at(file).inspect_err(|_| kept.remove())?;
        Ok(kept)
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether it was printed, so that nothing else can be.
    pub fn is_printed(&self) -> bool {
        self.file.is_none()
    }

    /// It is of no use: nothing was sealed with it.
    pub fn remove(&self) {
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// The key that was written to a file; `-` is the standard input.
///
/// # Errors
/// It holds none; those of the file system.
pub fn read_key(file: &Path) -> Result<Key, Error> {
    let mut text = String::new();
    let read = match is_stream(file) {
        true => io::stdin().take(MAX_KEY).read_to_string(&mut text),
        false => File::open(file).and_then(|file| file.take(MAX_KEY).read_to_string(&mut text)),
    };
    match read {
        Err(error) if error.kind() != ErrorKind::InvalidData => return Err(error).at(file),
        _ => {}
    }
    Key::parse(&text).ok_or_else(|| {
        let reason = "it holds no key, which is a line of 64 hexadecimal digits";
        Error::Key(file.to_owned(), reason.to_owned())
    })
}

fn is_stream(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Images of so many bytes can be in a folder of this one in clear, until they are sealed: it is in memory, has room for
/// both, and is not where the key is to be.
///
/// # Errors
/// Why not.
pub fn check(parent: &Path, key_file: &Path, bytes: u64) -> Result<(), Error> {
    let is_printed = is_stream(key_file);
    if !images::is_in_memory(parent)? {
        let reason = "it is not on tmpfs, and a disk may keep what is there in clear until it is sealed; name a folder in \
                      memory by --images, such as /dev/shm/images";
        return Err(Error::Untrusted(parent.to_owned(), reason.to_owned()));
    }
    let key_file = std::path::absolute(key_file).at(key_file)?;
    if !is_printed && key_file.starts_with(parent) {
        let reason = format!(
            "a key must not lie among the images, in {}",
            parent.display()
        );
        return Err(io::Error::new(ErrorKind::InvalidInput, reason)).at(key_file);
    }
    images::lacks_room(parent, 2 * bytes)?.map_or(Ok(()), |reason| Err(Error::Dump(reason)))
}

/// Seals images, and removes those in clear.
///
/// # Errors
/// It cannot be done; they stay as they are.
pub fn seal(images: &Images, key: &Key) -> Result<(), Error> {
    let folder = &images.folder;
    let part = folder.join(SEALED_PART);
    let sealed = write(images, key, &part).at(&part);
    let sealed = sealed.and_then(|()| fs::rename(&part, folder.join(SEALED)).at(folder));
    sealed.inspect_err(|_| drop(fs::remove_file(&part)))?;
    let of_criu = ["dump.log", "stats-dump", Manifest::FILE].into_iter();
    for name in of_criu.chain(images.manifest.files.keys().map(String::as_str)) {
        let file = folder.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let file = file.display();
                log::tell(&format!("remove {file}, which is in clear: {error}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The manifest, with its length before it, and behind it all images in its order.
fn write(images: &Images, key: &Key, part: &Path) -> io::Result<()> {
    let mut sealing = Sealing::new(key, create(part)?)?;
    let manifest = images.text();
    sealing.write_all(&(manifest.len() as u32).to_be_bytes())?;
    sealing.write_all(manifest)?;
    for (name, image) in &images.manifest.files {
        let file = File::open(images.folder.join(name))?;
        copy(file, image.bytes, &mut sealing)?;
    }
    sealing.finish()?.sync_all()
}

fn copy(from: impl Read, bytes: u64, to: &mut impl Write) -> io::Result<()> {
    match io::copy(&mut from.take(bytes), to)? {
        copied if copied == bytes => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Unseals images for a restore by this claim, into a folder in memory. All of them are read, and the claim is looked
/// at, before anything is written.
///
/// # Errors
/// They are not sealed, or with another key than this one of `key_file`; they were damaged; they may not wake here; there is
/// no memory for them. They stay as they are.
pub fn unseal(home: Taken, key: &Key, key_file: &Path, claim: Claim) -> Result<Images, Error> {
    if !home.is_sealed() {
        return Err(Error::NotSealed(home.folder));
    }
    let sealed = Sealed {
        file: home.folder.join(SEALED),
        key,
        key_file,
    };
    trust::file(&sealed.file)?;
    let (text, manifest) = sealed.read(None)?;
    token::claim(&home.folder, &text, claim)?;
    let folder = unsealed_folder(&home.folder, key, &manifest)?;
    let unsealed = sealed
        .read(Some(&folder))
        .and_then(|_| Images::read(folder.clone(), home));
    unsealed.inspect_err(|_| images::discard(&folder))
}

/// A new folder in memory: beside the images if they are there, or else where images are if nobody says otherwise.
fn unsealed_folder(home: &Path, key: &Key, manifest: &Manifest) -> Result<PathBuf, Error> {
    let usual = Control::images();
    let beside = home.parent().unwrap_or(home);
    let parent = match images::is_in_memory(beside)? {
        true => beside,
        false => &usual,
    };
    if !images::is_in_memory(parent)? {
        let reason = "it is not on tmpfs, and a disk may keep what is unsealed; have a tmpfs there, or move the folder of \
                      the images to one, such as /dev/shm";
        return Err(Error::Untrusted(parent.to_owned(), reason.to_owned()));
    }
    let bytes = manifest.files.values().map(|file| file.bytes).sum::<u64>();
    let lacking = images::lacks_room(parent, bytes + BESIDES_IMAGES)?;
    lacking.map_or(Ok(()), |reason| Err(Error::Restore(reason)))?;
    images::unsealed_folder(parent, &key.id())
}

/// A sealed file.
struct Sealed<'a> {
    file: PathBuf,
    key: &'a Key,
    key_file: &'a Path,
}

impl Sealed<'_> {
    /// Reads all of it, and writes that to a folder, if there is one.
    fn read(&self, to: Option<&Path>) -> Result<(Vec<u8>, Manifest), Error> {
        let file = BufReader::new(File::open(&self.file).at(&self.file)?);
        let unsealing = Unsealing::new(self.key, file);
        let Some(mut unsealing) = unsealing.map_err(|error| self.failed(error))? else {
            let reason = "the images were sealed with another key".to_owned();
            return Err(Error::Key(self.key_file.to_owned(), reason));
        };
        let text = manifest(&mut unsealing).map_err(|error| self.failed(error))?;
        let manifest = images::parse(&text, &self.file)?;
        let mut rest = || {
            for (name, image) in &manifest.files {
                match to {
                    Some(folder) => copy(
                        &mut unsealing,
                        image.bytes,
                        &mut create(&folder.join(name))?,
                    )?,
                    None => copy(&mut unsealing, image.bytes, &mut io::sink())?,
                }
            }
            match unsealing.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(ErrorKind::InvalidData.into()),
            }
        };
        rest().map_err(|error| match (self.failed(error), to) {
            (Error::Io(_, error), Some(folder)) => Error::Io(folder.to_owned(), error),
            (error, _) => error,
        })?;
        if let Some(folder) = to {
            let file = folder.join(Manifest::FILE);
            create(&file)
                .and_then(|mut file| file.write_all(&text))
                .at(file)?;
        }
        Ok((text, manifest))
    }

    fn failed(&self, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::InvalidData => Error::Damaged(self.file.clone(), error.to_string()),
            ErrorKind::UnexpectedEof => Error::Damaged(self.file.clone(), "it was cut".to_owned()),
            _ => Error::Io(self.file.clone(), error),
        }
    }
}

fn manifest(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_MANIFEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    Ok(text)
}

/// Makes a file that only this user can read, where there is none, nor a link.
fn create(file: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::*;
    use crate::checkpoint::images::tests::checkpoint;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn images_are_the_same_once_unsealed_and_their_token_stays_where_it_is() {
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = checkpoint(parent.path(), "1-1");
        let (key, file) = (Key::new().unwrap(), Path::new("key"));
        let images = Images::open(&folder).unwrap();
        let (text, written) = (images.text().to_owned(), images.manifest.files.clone());
        seal(&images, &key).unwrap();
        drop(images);
        assert_eq!(names(&folder), [SEALED, "lock", token::FILE]);
        assert!(matches!(Images::open(parent.path()), Err(Error::Sealed(_))));

        let unsealed = || {
            unseal(
                Taken::take(parent.path()).unwrap(),
                &key,
                file,
                Claim::Usual,
            )
        };
        let images = unsealed().unwrap();
        images.check().unwrap();
        assert_eq!(
            (images.text(), &images.manifest.files),
            (&text[..], &written)
        );
        assert_eq!(
            (images.token_folder(), images.are_spent()),
            (&*folder, false)
        );
        let mode = fs::metadata(&images.folder).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, names(&folder).len()), (0o700, 3));
        assert!(matches!(Taken::take(&folder), Err(Error::ImagesBusy(_))));
        // As if whoever unsealed them had been killed.
        let left = images.folder.clone();
        drop(images);
        assert_eq!(names(&left), [Manifest::FILE, "pages-1.img"]);
        let images = unsealed().unwrap();
        images.keep();
        assert_eq!((images.folder.as_path(), left.exists()), (&*left, false));
        drop(images);

        // They may wake here, or a copy may.
        token::release(&folder, Duration::from_secs(600)).unwrap();
        assert!(matches!(unsealed(), Err(Error::Fenced(..))));
        assert!(!left.exists());
        let forced = unseal(Taken::take(&folder).unwrap(), &key, file, Claim::Forced);
        forced.unwrap().remove();
        assert!(names(parent.path()).is_empty());
    }

    #[test]
    fn images_that_cannot_be_sealed_stay_as_they_are() {
        let parent = tempfile::tempdir().unwrap();
        let folder = checkpoint(parent.path(), "1-1");
        let images = Images::open(&folder).unwrap();
        let image = folder.join("pages-1.img");
        let whole = fs::read(&image).unwrap();
        fs::write(&image, "mem").unwrap();
        assert!(seal(&images, &Key::new().unwrap()).is_err());
        fs::write(&image, whole).unwrap();
        drop(images);
        Images::open(&folder).unwrap().check().unwrap();
        assert!(!folder.join(SEALED_PART).exists());
    }

    #[test]
    fn a_key_is_kept_in_a_new_file_that_nobody_else_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["key", "link"].map(|name| folder.path().join(name));
        let kept = KeptKey::create(&file).unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, kept.is_printed()), (0o600, false));
        assert!(read_key(&file).unwrap() == *kept.key());
        symlink("nowhere", &link).unwrap();
        for taken in [&file, &link] {
            let error = KeptKey::create(taken).map(drop).unwrap_err();
            assert!(error.to_string().contains("to a new file only"), "{error}");
        }
        assert!(read_key(&file).unwrap() == *kept.key());
        kept.remove();
        assert_eq!(names(folder.path()), ["link"]);
        fs::write(&file, [0xff; 70]).unwrap();
        assert!(matches!(read_key(&file), Err(Error::Key(..))));
    }
}
