//! What the server answers, asked over real connections by an independent QUIC stack.

mod support;

use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::symlink;
use std::time::Duration;

use h3::error::Code;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{Method, StatusCode};
use mpq_serve::site::files::RootOptions;
use mpq_serve::site::{Served, Site};
use support::site::{Lab, PATIENCE, SIZE, assert_reset, write_old};
use tokio::time::timeout;

#[tokio::test]
async fn random_is_byte_exact_and_head_is_its_head() {
    let mut lab = Lab::new().await;
    let mut get = lab.get("/random", &[]).await;
    assert_eq!(get.status, StatusCode::OK);
    assert!(get.body == lab.random_bytes(0, SIZE as usize));
    assert_eq!(get.field(CONTENT_LENGTH), SIZE.to_string());
    assert_eq!(get.field(ACCEPT_RANGES), "bytes");
    assert_eq!(get.field(CONTENT_TYPE), "application/octet-stream");
    assert_eq!(get.field(ETAG), lab.random.etag());

    let mut head = lab.ask(Method::HEAD, "/random", &[]).await;
    assert!(head.header.remove(DATE).is_some() && get.header.remove(DATE).is_some());
    assert_eq!((head.status, head.header), (get.status, get.header));
    assert!(head.body.is_empty());

    for bytes in [SIZE, 0] {
        let served = Served {
            status: StatusCode::OK,
            bytes,
            cut: None,
        };
        assert_eq!(lab.log.recv().await, Some(served));
    }
}

#[tokio::test]
async fn ranges_of_random_are_byte_exact_at_odd_offsets() {
    let mut lab = Lab::new().await;
    for (first, last) in [
        (0, 0),
        (1, 1),
        (3, 6),
        (131_071, 131_073),
        (262_143, 700_002),
        (SIZE - 1, SIZE - 1),
    ] {
        let answer = lab
            .get("/random", &[(RANGE, &format!("bytes={first}-{last}"))])
            .await;
        let len = (last - first + 1) as usize;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            answer.field(CONTENT_RANGE),
            format!("bytes {first}-{last}/{SIZE}")
        );
        assert_eq!(answer.field(CONTENT_LENGTH), len.to_string());
        assert!(
            answer.body == lab.random_bytes(first, len),
            "{first}-{last}"
        );
    }
    let tail = lab.get("/random", &[(RANGE, "bytes=-5")]).await;
    assert_eq!(tail.body, lab.random_bytes(SIZE - 5, 5));

    let behind = lab.get("/random", &[(RANGE, "bytes=3000001-")]).await;
    assert_eq!(behind.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(behind.field(CONTENT_RANGE), format!("bytes */{SIZE}"));
}

#[tokio::test]
async fn a_file_with_its_conditions() {
    let mut lab = Lab::new().await;
    write_old(&lab.path("a b.txt"), b"0123456789");
    let whole = lab.get("/a%20b.txt?query", &[]).await;
    assert_eq!(whole.status, StatusCode::OK);
    assert_eq!(whole.body, b"0123456789");
    assert_eq!(whole.field(CONTENT_TYPE), "text/plain; charset=utf-8");
    let (etag, modified) = (whole.field(ETAG), whole.field(LAST_MODIFIED));
    assert!(etag.starts_with('"') && !modified.is_empty());

    for condition in [(IF_NONE_MATCH, etag), (IF_MODIFIED_SINCE, modified)] {
        let answer = lab.get("/a%20b.txt", &[condition]).await;
        assert_eq!(answer.status, StatusCode::NOT_MODIFIED);
        assert_eq!(answer.field(ETAG), etag);
        assert!(answer.body.is_empty());
    }
    for condition in [etag, modified] {
        let fields = [(RANGE, "bytes=4-"), (IF_RANGE, condition)];
        let answer = lab.get("/a%20b.txt", &fields).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.body, b"456789");
    }

    let held = [(IF_MATCH, etag), (RANGE, "bytes=4-")];
    let answer = lab.get("/a%20b.txt", &held).await;
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    let all = [(IF_RANGE, etag), (RANGE, "bytes=10-")];
    let answer = lab.get("/a%20b.txt", &all).await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.field(CONTENT_RANGE), "bytes */10");

    fs::write(lab.path("a b.txt"), "abcdefghij").unwrap();
    let answer = lab.get("/a%20b.txt", &held).await;
    assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED);
    for condition in [etag, modified] {
        let fields = [(RANGE, "bytes=4-"), (IF_RANGE, condition)];
        let answer = lab.get("/a%20b.txt", &fields).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, b"abcdefghij");
    }
    let answer = lab.get("/a%20b.txt", &[(IF_NONE_MATCH, etag)]).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_file_of_many_chunks_is_byte_exact() {
    let mut lab = Lab::new().await;
    let content = lab.random_bytes(0, SIZE as usize);
    fs::write(lab.path("big"), &content).unwrap();
    assert!(lab.get("/big", &[]).await.body == content);
    let part = lab.get("/big", &[(RANGE, "bytes=131071-1000002")]).await;
    assert!(part.body == content[131_071..=1_000_002]);
}

#[tokio::test]
async fn an_empty_file() {
    let mut lab = Lab::new().await;
    fs::write(lab.path("empty"), "").unwrap();
    let answer = lab.get("/empty", &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.field(CONTENT_LENGTH), "0");
    assert!(answer.body.is_empty());
    let answer = lab.get("/empty", &[(RANGE, "bytes=0-")]).await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn nothing_outside_the_root_is_served() {
    let mut lab = Lab::new().await;
    let secret = lab.dir.path().join("x");
    fs::write(&secret, "secret").unwrap();
    symlink("../x", lab.path("relative")).unwrap();
    symlink(&secret, lab.path("absolute")).unwrap();
    for path in [
        "/../x",
        "/%2e%2e/x",
        "/%2e%2e%2fx",
        "/..%2fx",
        "/relative",
        "/absolute",
        "/missing",
        "/%ff",
        "/",
        "//etc/hostname",
    ] {
        let answer = lab.get(path, &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.field(CONTENT_LENGTH), answer.body.len().to_string());
    }
    for path in ["/%00", "/a%00b"] {
        let answer = lab.get(path, &[]).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
    }
    let head = lab.ask(Method::HEAD, "/missing", &[]).await;
    assert_eq!(head.status, StatusCode::NOT_FOUND);
    assert!(head.body.is_empty());
}

#[tokio::test]
async fn a_file_is_not_hidden_by_made_up_bytes_of_its_name() {
    let mut lab = Lab::new().await;
    assert_eq!(lab.get("/random", &[]).await.field(ETAG), lab.random.etag());
    fs::write(lab.path("random"), "this one").unwrap();
    assert_eq!(lab.get("/random", &[]).await.body, b"this one");
}

#[tokio::test]
async fn other_methods_are_refused() {
    let mut lab = Lab::new().await;
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let answer = lab.ask(method, "/random", &[]).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.field(ALLOW), "GET, HEAD");
    }
}

#[tokio::test]
async fn a_file_that_changes_under_way_is_reset() {
    let mut lab = Lab::new().await;
    let content = lab.random_bytes(0, SIZE as usize);
    write_old(&lab.path("big"), &content);

    let mut stream = lab.open(Method::GET, "/big", &[]).await;
    let head = stream.recv_response().await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], SIZE.to_string().as_str());
    stream.recv_data().await.unwrap().unwrap();
    fs::write(lab.path("big"), &content).unwrap();
    assert_reset(&mut stream).await;
    let served = lab.log.recv().await.unwrap();
    assert!(served.cut.is_some() && served.bytes < SIZE, "{served:?}");

    // That was that one stream's end, not the connection's.
    assert!(lab.get("/big", &[]).await.body == content);
}

#[tokio::test]
async fn a_response_that_is_cancelled_is_reset() {
    let mut lab = Lab::new().await;
    let mut stream = lab.open(Method::GET, "/random", &[]).await;
    stream.recv_response().await.unwrap();
    lab.cancel.notify_waiters();
    assert_reset(&mut stream).await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_response_only() {
    let mut lab = Lab::new().await;
    let mut stream = lab.open(Method::GET, "/random", &[]).await;
    stream.recv_response().await.unwrap();
    stream.stop_sending(Code::H3_REQUEST_CANCELLED);
    let served = timeout(PATIENCE, lab.log.recv()).await.unwrap().unwrap();
    assert!(served.cut.is_some() && served.bytes < SIZE, "{served:?}");
    let answer = lab.get("/random", &[(RANGE, "bytes=7-7")]).await;
    assert_eq!(answer.body, lab.random_bytes(7, 1));
}

#[tokio::test]
async fn a_limited_rate_is_kept() {
    let site = Site {
        limit_rate: NonZeroU64::new(8_000_000), // 1 MB/s
        ..Site::default()
    };
    let mut lab = Lab::with(RootOptions::default(), site).await;
    let start = std::time::Instant::now();
    let answer = lab.get("/random", &[(RANGE, "bytes=0-499999")]).await;
    let took = start.elapsed();
    assert!(answer.body == lab.random_bytes(0, 500_000));
    // All but the first two chunks, which the bucket holds, are paid for in time.
    assert!(took >= Duration::from_millis(390), "{took:?}");
}
