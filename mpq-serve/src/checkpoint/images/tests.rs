//! Folders of images: who finds, opens, checks and removes them.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn manifest() -> Manifest {
    Manifest {
        program: Manifest::PROGRAM.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: 1,
        id_outside: None,
        control: "/nowhere".into(),
        listen: "127.0.0.1:4433".parse().unwrap(),
        targets: Vec::new(),
        sequence: 1,
        announced: 0.0,
        parked: 0.0,
        dump_started: 0.0,
        dumped: 0.0,
        pid_file: None,
        log_file: None,
        logs_to_journal: false,
        owner: None,
        folders: Vec::new(),
        files: BTreeMap::new(),
    }
}

/// Images as a checkpoint leaves them.
pub(crate) fn checkpoint(parent: &Path, id: &str) -> PathBuf {
    let folder = new_folder(parent, &RequestId::parse(id).unwrap()).unwrap();
    fs::write(folder.join("pages-1.img"), "memory").unwrap();
    fs::write(folder.join("dump.log"), "").unwrap();
    finish(&folder, manifest()).unwrap();
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
fn a_file_is_no_folder_for_images() {
    let parent = tempfile::NamedTempFile::new().unwrap();
    let folder = new_folder(parent.path(), &RequestId::parse("1-1").unwrap());
    let said = folder.unwrap_err().to_string();
    assert!(said.contains("no directory; give --images one"), "{said}");
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
    token::spend(&second).unwrap();
    assert_eq!(open().unwrap().folder, first);
    token::spend(&first).unwrap();
    assert!(matches!(open(), Err(Error::ManyImages(_, 2))));
    Images::open(&second).unwrap().remove();
    let images = open().unwrap();
    assert!(images.are_spent());
    let reason = images.claim(Claim::Usual).unwrap_err().to_string();
    assert!(reason.contains("woken already"), "{reason}");
}

#[test]
fn one_at_a_time_restores_or_releases_them() {
    let parent = tempfile::tempdir().unwrap();
    let folder = checkpoint(parent.path(), "1-1");
    let first = Images::open(&folder).unwrap();
    assert!(matches!(Images::open(&folder), Err(Error::ImagesBusy(_))));
    let kept = first.lock().unwrap();
    drop(first);
    assert!(matches!(Images::open(&folder), Err(Error::ImagesBusy(_))));
    drop(kept);
    Images::open(&folder).unwrap();
}

#[test]
fn damaged_images_are_named() {
    let parent = tempfile::tempdir().unwrap();
    let folder = checkpoint(parent.path(), "1-1");
    let (image, manifest) = (folder.join("pages-1.img"), folder.join(Manifest::FILE));
    let refused = |file: &Path, why: &str| {
        let error = Images::open(&folder)
            .and_then(|images| images.check())
            .unwrap_err();
        let Error::Damaged(named, reason) = &error else {
            panic!("{error}");
        };
        assert_eq!((named.as_path(), error.code()), (file, 3));
        assert!(reason.contains(why), "{reason}");
    };
    let good = fs::read(&image).unwrap();
    fs::write(&image, "mem").unwrap();
    refused(&image, "3 bytes instead of 6");
    fs::write(&image, "memorz").unwrap();
    refused(&image, "contents");
    fs::remove_file(&image).unwrap();
    refused(&image, "missing");
    fs::write(&image, good).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    let more = folder.join("core-2.img");
    fs::write(&more, "").unwrap();
    fs::set_permissions(&more, fs::Permissions::from_mode(0o600)).unwrap();
    refused(&more, "none of them");
    fs::remove_file(more).unwrap();
    let good = fs::read(&manifest).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    for edited in [text.replace("4433", "4434"), text.replace('{', "")] {
        fs::write(&manifest, edited).unwrap();
        refused(&manifest, "contents");
    }
    fs::write(&manifest, good).unwrap();
    Images::open(&folder).unwrap().check().unwrap();
}

#[test]
fn images_that_others_could_have_changed_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = checkpoint(parent.path(), "1-1");
    let image = folder.join("pages-1.img");
    let checked = || Images::open(&folder).and_then(|images| images.check());
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, bad, good) in [
        (parent.path(), 0o777, 0o700),
        (&folder, 0o755, 0o700),
        (&image, 0o666, 0o600),
    ] {
        chmod(path, bad);
        assert!(matches!(checked(), Err(Error::Untrusted(..))));
        chmod(path, good);
    }
    checked().unwrap();
    // CRIU reads that, too.
    fs::write(folder.join("more"), "").unwrap();
    chmod(&folder.join("more"), 0o666);
    assert!(matches!(checked(), Err(Error::Untrusted(..))));
}

#[test]
fn what_of_the_memory_is_dumped() {
    let status =
        "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  10 kB\nRssFile:\t 5 kB\nRssShmem:\t 2 kB\n";
    assert_eq!(memory(status), 12 * 1024);
}
