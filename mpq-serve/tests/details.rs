//! Directories, header fields, and requests that are none.

mod support;

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h3::error::{Code, StreamError};
use http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONNECTION,
    CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, LAST_MODIFIED, LOCATION, SERVER, TE, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use mpq_serve::site::Site;
use mpq_serve::site::files::RootOptions;
use support::site::{Lab, PATIENCE, write_old};
use tokio::time::timeout;

#[tokio::test]
async fn a_directory_is_redirected_to_its_slash_with_the_query() {
    let mut lab = Lab::new().await;
    fs::create_dir_all(lab.path("a b/c")).unwrap();
    fs::write(lab.path("a b/c/index.html"), "<p>").unwrap();
    for (path, location) in [
        ("/a%20b/c", "/a%20b/c/"),
        ("/a%20b/c?x=1&y=%20", "/a%20b/c/?x=1&y=%20"),
        // After two slashes there would come a host.
        ("//a%20b//c", "/a%20b/c/"),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let answer = lab.ask(method, path, &[]).await;
            assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT, "{path}");
            assert_eq!(answer.field(LOCATION), location);
        }
    }
    let answer = lab.get("/a%20b/c/", &[]).await;
    assert_eq!(answer.body, b"<p>");
    assert_eq!(answer.field(CONTENT_TYPE), "text/html; charset=utf-8");
    // Nothing lists what is in the other one.
    let answer = lab.get("/a%20b/", &[]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_listing_is_for_people_and_for_programs() {
    let site = Site {
        listing: true,
        ..Site::default()
    };
    let mut lab = Lab::with(RootOptions::default(), site).await;
    fs::create_dir(lab.path("sub")).unwrap();
    fs::write(lab.path("sub/a&b"), "12345").unwrap();
    fs::write(lab.path("sub/.hidden"), "").unwrap();
    let page = lab.get("/sub/", &[]).await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(page.field(CONTENT_TYPE), "text/html; charset=utf-8");
    assert_eq!(page.field(VARY), "accept");
    let text = String::from_utf8(page.body).unwrap();
    assert!(text.contains("href=\"./a%26b\">a&amp;b<"), "{text}");
    assert!(!text.contains("hidden"), "{text}");

    let json = lab.get("/sub/", &[(ACCEPT, "application/json")]).await;
    assert_eq!(json.field(CONTENT_TYPE), "application/json");
    let list: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(
        (&list[0]["name"], &list[0]["size"]),
        (&"a&b".into(), &5.into())
    );
    let head = lab.ask(Method::HEAD, "/sub/", &[]).await;
    assert_eq!(head.field(CONTENT_LENGTH), text.len().to_string());
}

#[tokio::test]
async fn every_response_has_the_fields_that_were_asked_for() {
    let header = HeaderMap::from_iter([
        (CACHE_CONTROL, HeaderValue::from_static("max-age=60")),
        (SERVER, HeaderValue::from_static("mpq")),
    ]);
    let site = Site {
        header,
        cors: true,
        ..Site::default()
    };
    let mut lab = Lab::with(RootOptions::default(), site).await;
    for (method, path, status) in [
        (Method::GET, "/random", StatusCode::OK),
        (Method::GET, "/missing", StatusCode::NOT_FOUND),
        (Method::POST, "/random", StatusCode::METHOD_NOT_ALLOWED),
        (Method::OPTIONS, "/random", StatusCode::NO_CONTENT),
    ] {
        let answer = lab.ask(method.clone(), path, &[]).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.field(X_CONTENT_TYPE_OPTIONS), "nosniff");
        assert_eq!(answer.field(CACHE_CONTROL), "max-age=60");
        assert_eq!(answer.field(SERVER), "mpq");
        assert_eq!(answer.field(ACCESS_CONTROL_ALLOW_ORIGIN), "*");
        let methods = answer.field(ACCESS_CONTROL_ALLOW_METHODS);
        assert_eq!(methods == "GET, HEAD", method == Method::OPTIONS);
    }
}

#[tokio::test]
async fn nothing_was_changed_in_the_future() {
    let mut lab = Lab::new().await;
    fs::write(lab.path("file"), "x").unwrap();
    let file = File::options().write(true).open(lab.path("file")).unwrap();
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    file.set_modified(tomorrow).unwrap();
    let answer = lab.get("/file", &[]).await;
    assert_eq!(answer.field(LAST_MODIFIED), answer.field(DATE));
    // It may change until then, and nobody could tell.
    let modified = answer.field(LAST_MODIFIED).to_owned();
    let condition = [(http::header::IF_MODIFIED_SINCE, modified.as_str())];
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(lab.get("/file", &condition).await.status, StatusCode::OK);
}

/// The error that ends the answer to a request with these fields and this body.
async fn refusal(lab: &mut Lab, fields: &[(HeaderName, &str)], body: &'static str) -> StreamError {
    let mut request = Request::builder().uri("https://localhost/file");
    for (name, value) in fields {
        request = request.header(name, *value);
    }
    let request = request.body(()).unwrap();
    let mut stream = lab.client.send_request(request).await.unwrap();
    // It may be refused before it is complete.
    let _ = stream.send_data(Bytes::from_static(body.as_bytes())).await;
    let _ = stream.finish().await;
    let answer = timeout(PATIENCE, stream.recv_response()).await.unwrap();
    answer.expect_err("it is answered")
}

#[tokio::test]
async fn malformed_requests_are_reset() {
    let mut lab = Lab::new().await;
    write_old(&lab.path("file"), b"content");
    for (fields, body) in [
        (vec![(CONNECTION, "close")], ""),
        (vec![(HeaderName::from_static("keep-alive"), "5")], ""),
        (
            vec![(HeaderName::from_static("transfer-encoding"), "chunked")],
            "",
        ),
        (vec![(HeaderName::from_static("upgrade"), "h2c")], ""),
        (vec![(TE, "gzip")], ""),
        (vec![(CONTENT_LENGTH, "5")], "abcd"),
        (vec![(CONTENT_LENGTH, "5")], "abcdef"),
        (vec![(CONTENT_LENGTH, "5")], ""),
        (vec![(CONTENT_LENGTH, "0")], "a"),
        (vec![(CONTENT_LENGTH, "five")], "abcde"),
    ] {
        let error = refusal(&mut lab, &fields, body).await;
        assert!(
            matches!(
                error,
                StreamError::RemoteTerminate { code, .. } if code == Code::H3_MESSAGE_ERROR
            ),
            "{fields:?}, {body}: {error:?}"
        );
        let served = lab.log.recv().await.unwrap();
        assert!(served.cut.is_some(), "{served:?}");
    }
    // None of them was the connection's end.
    for fields in [&[(TE, "trailers")][..], &[(CONTENT_LENGTH, "0")], &[]] {
        let answer = lab.get("/file", fields).await;
        assert_eq!(
            (answer.status, &answer.body[..]),
            (StatusCode::OK, &b"content"[..])
        );
    }
    let large = [(CONTENT_LENGTH, "1000000")];
    let answer = lab.get("/file", &large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}
