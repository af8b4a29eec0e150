//! What becomes of a download whose file is replaced, renamed, removed or overwritten, also when the server moves
//! meanwhile: the version that it began with, or a reset, and never a part of each.

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use bytes::Buf;
use http::header::{ETAG, IF_RANGE, RANGE};
use http::{Method, StatusCode};
use mpq_serve::site::Site;
use mpq_serve::site::descriptors;
use mpq_serve::site::files::{RootOptions, Tags};
use support::site::{Lab, SIZE, Stream, assert_reset, read_on, write_old};
use tokio::sync::Mutex;

/// A server has one table of descriptors, which the tests would share.
static ALONE: Mutex<()> = Mutex::const_new(());

const CONTENT: RootOptions = RootOptions {
    dotfiles: false,
    tags: Tags::Content,
};

fn old() -> Vec<u8> {
    vec![b'o'; SIZE as usize]
}

fn new() -> Vec<u8> {
    vec![b'n'; SIZE as usize]
}

/// Begins to download `big`, so that its end is still to be read. Returns its tag, too.
async fn begin(lab: &mut Lab) -> (Stream, Vec<u8>, String) {
    let mut stream = lab.open(Method::GET, "/big", &[]).await;
    let head = stream.recv_response().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    let etag = head.headers()[ETAG].to_str().unwrap().to_owned();
    let mut first = stream.recv_data().await.unwrap().unwrap();
    let length = first.remaining();
    let body = first.copy_to_bytes(length).to_vec();
    (stream, body, etag)
}

/// Writes this into another file and gives it the time of the first.
fn copy_time(of: &Path, to: &Path, content: &[u8]) {
    let time = fs::metadata(of).unwrap().modified().unwrap();
    fs::write(to, content).unwrap();
    let file = File::options().write(true).open(to).unwrap();
    file.set_modified(time).unwrap();
}

/// The files below this folder that the process has open.
fn open_below(folder: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|path| path.starts_with(folder))
        .count()
}

#[tokio::test]
async fn whatever_becomes_of_its_name_a_download_ends_as_it_began() {
    let _alone = ALONE.lock().await;
    for what in ["replaced", "renamed", "removed", "linked"] {
        let mut lab = Lab::new().await;
        let (path, other) = (lab.path("big"), lab.path("other"));
        write_old(&path, &old());
        let (mut stream, mut body, etag) = begin(&mut lab).await;
        match what {
            "replaced" => {
                write_old(&other, &new());
                fs::rename(&other, &path).unwrap();
            }
            "renamed" => fs::rename(&path, &other).unwrap(),
            "removed" => fs::remove_file(&path).unwrap(),
            _ => fs::hard_link(&path, &other).unwrap(),
        }
        body.extend(read_on(&mut stream).await);
        assert!(body == old(), "{what}");
        let served = lab.log.recv().await.unwrap();
        assert_eq!((served.cut, served.bytes), (None, SIZE), "{what}");
        if what == "replaced" {
            let next = lab.get("/big", &[]).await;
            assert!(next.body == new() && next.field(ETAG) != etag);
            lab.log.recv().await.unwrap();
        }
        drop(stream);
        assert_eq!(open_below(lab.dir.path()), 0, "{what}");
    }
}

#[tokio::test]
async fn a_file_of_the_same_size_and_time_is_another_version() {
    let _alone = ALONE.lock().await;
    let mut lab = Lab::new().await;
    let (path, other) = (lab.path("big"), lab.path("other"));
    write_old(&path, &old());
    let (mut stream, mut body, etag) = begin(&mut lab).await;
    assert!(etag.starts_with('"'), "{etag}");
    copy_time(&path, &other, &new());
    fs::rename(&other, &path).unwrap();
    body.extend(read_on(&mut stream).await);
    assert!(body == old());

    // Nobody puts the end of it after the beginning of the one before.
    let rest = [(RANGE, "bytes=1000000-"), (IF_RANGE, etag.as_str())];
    let answer = lab.get("/big", &rest).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body == new() && answer.field(ETAG) != etag);
    let second = answer.field(ETAG).to_owned();
    assert_eq!(lab.get("/big", &[]).await.field(ETAG), second);
}

#[tokio::test]
async fn a_file_that_is_overwritten_and_given_its_time_back_is_reset() {
    let _alone = ALONE.lock().await;
    // `cp -p` sets the rights as well, so that they explain nothing.
    for mode in [0o644, 0o600] {
        let mut lab = Lab::new().await;
        let path = lab.path("big");
        write_old(&path, &old());
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (mut stream, _, etag) = begin(&mut lab).await;
        // At once, as far as the server is concerned.
        let file = File::options().write(true).open(&path).unwrap();
        let time = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&new(), 0).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        file.set_modified(time).unwrap();
        assert_reset(&mut stream).await;
        assert_ne!(lab.get("/big", &[]).await.field(ETAG), etag);
    }
}

#[tokio::test]
async fn no_file_is_open_while_the_server_is_frozen_and_a_copy_is_gone_on_with() {
    let _alone = ALONE.lock().await;
    for options in [RootOptions::default(), CONTENT] {
        let mut lab = Lab::with(options, Site::default()).await;
        let (path, other) = (lab.path("big"), lab.path("other"));
        write_old(&path, &old());
        let (mut stream, mut body, etag) = begin(&mut lab).await;
        assert_eq!(open_below(lab.dir.path()), 1);
        let closed = descriptors::close().await;
        assert_eq!(open_below(lab.dir.path()), 0);
        // Here the process is on another host, which has a copy.
        copy_time(&path, &other, &old());
        fs::rename(&other, &path).unwrap();
        drop(closed);
        body.extend(read_on(&mut stream).await);
        assert!(body == old(), "{options:?}");
        // Its tag is what it was, so that another request can bring the rest.
        assert_eq!(lab.get("/big", &[]).await.field(ETAG), etag);
    }
}

#[tokio::test]
async fn what_is_another_file_after_a_move_is_reset() {
    let _alone = ALONE.lock().await;
    for what in [
        "removed",
        "another time",
        "another length",
        "another content",
    ] {
        let options = match what {
            // Nothing else tells.
            "another content" => CONTENT,
            _ => RootOptions::default(),
        };
        let mut lab = Lab::with(options, Site::default()).await;
        let (path, other) = (lab.path("big"), lab.path("other"));
        write_old(&path, &old());
        let (mut stream, _, etag) = begin(&mut lab).await;
        assert_eq!(etag.starts_with("\"sha256-"), what == "another content");
        let closed = descriptors::close().await;
        fs::rename(&path, &other).unwrap();
        match what {
            "removed" => {}
            "another time" => fs::write(&path, new()).unwrap(),
            "another length" => copy_time(&other, &path, b"short"),
            _ => copy_time(&other, &path, &new()),
        }
        drop(closed);
        assert_reset(&mut stream).await;
        if what == "another content" {
            assert_ne!(lab.get("/big", &[]).await.field(ETAG), etag);
        }
    }
}
