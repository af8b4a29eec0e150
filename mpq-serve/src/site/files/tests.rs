//! Files as they are found, and what is kept of them.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;

fn root() -> (tempfile::TempDir, Root) {
    with(RootOptions::default())
}

fn with(options: RootOptions) -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(inside.join("a.txt"), "0123456789").unwrap();
    let root = Root::with(&inside, options).unwrap();
    (dir, root)
}

fn find(root: &Root, path: &str) -> Result<Found, FindError> {
    root.find(path.as_bytes())
}

#[track_caller]
fn file(root: &Root, path: &str) -> StoredFile {
    match find(root, path) {
        Ok(Found::File(file)) => file,
        found => panic!("{path}: {found:?}"),
    }
}

#[track_caller]
fn assert_hidden(root: &Root, path: &str) {
    let found = find(root, path);
    assert!(
        matches!(found, Err(FindError::NotFound)),
        "{path}: {found:?}"
    );
}

fn names(root: &Root, path: &str) -> Vec<String> {
    let Ok(Found::Directory(path)) = find(root, path) else {
        panic!("{path} is no directory without an index");
    };
    let name = |entry: Entry| {
        let slash = if entry.is_directory { "/" } else { "" };
        entry.name.into_string().unwrap() + slash
    };
    root.list(&path).unwrap().into_iter().map(name).collect()
}

#[tokio::test]
async fn a_file_is_found_and_read_in_parts() {
    let (_dir, root) = root();
    let file = file(&root, "/a.txt");
    assert_eq!(file.len(), 10);
    assert_eq!(file.content_type(), "text/plain; charset=utf-8");
    assert_eq!(&file.read(3, 4).await.unwrap()[..], b"3456");
    assert_eq!(
        file.read(8, 3).await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
}

#[test]
fn nothing_outside_is_reachable() {
    let (dir, root) = root();
    let inside = dir.path().join("inside");
    symlink("../secret", inside.join("relative")).unwrap();
    symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink(dir.path(), inside.join("out")).unwrap();
    symlink("loop", inside.join("loop")).unwrap();
    symlink("/proc/self/cwd", inside.join("magic")).unwrap();
    for path in [
        "/../secret",
        "/a/../../secret",
        "..",
        "/relative",
        "/absolute",
        "/up/secret",
        "/out/secret",
        "/out/",
        "/loop",
        "/magic/Cargo.toml",
        "//etc/hostname",
    ] {
        assert_hidden(&root, path);
    }
    // They are not told of, either.
    assert_eq!(names(&root, "/"), ["a.txt"]);
}

#[test]
fn a_link_that_stays_inside_is_as_good_as_its_target() {
    let (dir, root) = root();
    let inside = dir.path().join("inside");
    fs::create_dir(inside.join("sub")).unwrap();
    symlink("a.txt", inside.join("alias")).unwrap();
    symlink(inside.join("a.txt"), inside.join("sub/absolute")).unwrap();
    symlink("../../inside/a.txt", inside.join("sub/out-and-in")).unwrap();
    symlink(&inside, inside.join("here")).unwrap();
    for path in ["/alias", "/sub/absolute", "/sub/out-and-in", "/here/a.txt"] {
        assert_eq!(file(&root, path).len(), 10, "{path}");
    }
    assert_eq!(names(&root, "/here/"), ["here/", "sub/", "a.txt", "alias"]);
}

#[test]
fn a_root_that_is_pointed_elsewhere_is_followed() {
    let (dir, _root) = root();
    let link = dir.path().join("current");
    symlink("inside", &link).unwrap();
    let root = Root::new(&link).unwrap();
    assert_eq!(file(&root, "/a.txt").len(), 10);
    fs::create_dir(dir.path().join("next")).unwrap();
    fs::write(dir.path().join("next/a.txt"), "next").unwrap();
    symlink("next", dir.path().join("new")).unwrap();
    fs::rename(dir.path().join("new"), &link).unwrap();
    assert_eq!(file(&root, "/a.txt").len(), 4);
}

#[test]
fn a_directory_is_its_index_or_what_is_in_it() {
    let (dir, root) = root();
    let inside = dir.path().join("inside");
    fs::create_dir(inside.join("sub")).unwrap();
    assert_eq!(names(&root, "/"), ["sub/", "a.txt"]);
    fs::write(inside.join("sub/index.html"), "<p>").unwrap();
    let index = file(&root, "/sub/");
    assert_eq!(index.len(), 3);
    assert_eq!(index.content_type(), "text/html; charset=utf-8");
    let found = find(&root, "/sub").unwrap();
    assert!(matches!(found, Found::WithoutSlash), "{found:?}");
    fs::create_dir(inside.join("index.html")).unwrap();
    assert_eq!(names(&root, "/"), ["index.html/", "sub/", "a.txt"]);
    assert_hidden(&root, "/a.txt/");
}

#[test]
fn dotfiles_are_hidden_unless_they_are_asked_for() {
    let paths = [".git/config", "sub/.env", ".x", ".well-known/.x"];
    for dotfiles in [false, true] {
        let options = RootOptions {
            dotfiles,
            ..RootOptions::default()
        };
        let (dir, root) = with(options);
        for path in paths.into_iter().chain([".well-known/y"]) {
            let path = dir.path().join("inside").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "hidden").unwrap();
        }
        for path in paths {
            match dotfiles {
                true => assert_eq!(file(&root, path).len(), 6, "{path}"),
                false => assert_hidden(&root, path),
            }
        }
        assert_eq!(file(&root, "/.well-known/y").len(), 6);
        let shown = match dotfiles {
            true => &[".git/", ".well-known/", "sub/", ".x", "a.txt"][..],
            false => &[".well-known/", "sub/", "a.txt"],
        };
        assert_eq!(names(&root, "/"), shown);
    }
}

#[test]
fn a_fifo_is_no_file_and_does_not_block() {
    let (dir, root) = root();
    let fifo = dir.path().join("inside/fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    symlink(&fifo, dir.path().join("inside/link")).unwrap();
    assert_hidden(&root, "/fifo");
    assert_hidden(&root, "/link");
    assert_eq!(names(&root, "/"), ["a.txt"]);
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn a_copy_with_its_time_has_the_same_tag() {
    let (dir, root) = root();
    let inside = dir.path().join("inside");
    let (path, copy) = (inside.join("a.txt"), inside.join("b.txt"));
    let hour = Duration::from_secs(3600);
    set_modified(&path, modified(&path) - hour);
    let etag = |name: &str| file(&root, name).etag();
    fs::copy(&path, &copy).unwrap();
    assert_ne!(etag("/a.txt"), etag("/b.txt"));
    set_modified(&copy, modified(&path));
    assert_eq!(etag("/a.txt"), etag("/b.txt"));
    assert!(etag("/a.txt").starts_with('"'));
}

#[tokio::test]
async fn the_content_is_the_tag_if_that_is_wanted() {
    let options = RootOptions {
        tags: Tags::Content,
        ..RootOptions::default()
    };
    let (dir, root) = with(options);
    let path = dir.path().join("inside/a.txt");
    set_modified(&path, modified(&path) - Duration::from_secs(3600));
    let unknown = file(&root, "/a.txt").etag();
    assert!(unknown.starts_with("W/\""), "{unknown}");
    let identified = async || {
        let mut file = file(&root, "/a.txt");
        root.identify(&mut file).await;
        file.etag()
    };
    // Of "0123456789", by sha256sum.
    let known = "\"sha256-84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882\"";
    assert_eq!(identified().await, known);
    // Whenever it was changed, and whichever file it is.
    fs::write(dir.path().join("inside/new"), "0123456789").unwrap();
    fs::rename(dir.path().join("inside/new"), &path).unwrap();
    assert_eq!(identified().await, known);
    fs::write(&path, "0123456780").unwrap();
    let other = identified().await;
    assert!(other.starts_with("\"sha256-") && other != known, "{other}");
}

#[test]
fn times_that_http_cannot_express_are_left_out() {
    let (dir, root) = root();
    let path = dir.path().join("inside/a.txt");
    set_modified(&path, SystemTime::UNIX_EPOCH - Duration::from_secs(1));
    assert_eq!(file(&root, "/a.txt").modified(), None);
    assert_eq!(
        http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800)),
        None
    );
    set_modified(&path, SystemTime::UNIX_EPOCH);
    assert!(file(&root, "/a.txt").modified().is_some());
}

#[test]
fn a_root_must_be_a_directory() {
    let (dir, _root) = root();
    assert!(Root::new(&dir.path().join("secret")).is_err());
    assert!(Root::new(&dir.path().join("missing")).is_err());
}
