//! The table of docs/http.md, asked of the program.

mod support;
#[path = "support/table.rs"]
#[allow(dead_code, reason = "the lab reads the rest")]
mod table;

use std::fs::{self, File};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use h3::client::SendRequest;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use http::{HeaderMap, Request};
use support::{connect, start};
use table::{CONTENT, MODIFIED, cases, told};

type Requests = SendRequest<h3_quinn::OpenStreams, Bytes>;

async fn client(server: SocketAddr) -> Requests {
    let connection = h3_quinn::Connection::new(connect(server).await.unwrap());
    let (mut driver, requests) = h3::client::new(connection).await.unwrap();
    tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    requests
}

async fn ask(
    requests: &mut Requests,
    method: &str,
    fields: &[(String, String)],
) -> (u16, HeaderMap, Vec<u8>) {
    let mut request = Request::builder()
        .method(method)
        .uri("https://localhost/file");
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let request = request.body(()).unwrap();
    let mut stream = requests.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    let (head, ()) = stream.recv_response().await.unwrap().into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.recv_data().await.unwrap() {
        body.extend_from_slice(data.chunk());
    }
    (head.status.as_u16(), head.headers, body)
}

#[tokio::test]
async fn every_row_of_the_table_is_answered_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, CONTENT).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(MODIFIED);
    file.set_modified(modified).unwrap();
    let (_server, address) = start(&["--root", folder.path().to_str().unwrap()]);
    let mut requests = client(address).await;

    let (_, header, _) = ask(&mut requests, "GET", &[]).await;
    let etag = header[ETAG].to_str().unwrap().to_owned();
    let mut wrong = Vec::new();
    for case in cases(&etag) {
        let (status, header, body) = ask(&mut requests, &case.method, &case.fields).await;
        let field = |name| header.get(name).map(|value| value.to_str().unwrap());
        let answer = told(status, field(CONTENT_RANGE));
        if answer != case.ours {
            wrong.push(format!("{answer} to {case:?}"));
            continue;
        }
        let length = field(CONTENT_LENGTH);
        match status {
            _ if case.method == "HEAD" => {
                assert_eq!(body, b"", "{case:?}");
                // It is that of the answer to GET, or of the text that goes with an error.
                assert!(status != 200 || length == Some("10"), "{case:?}");
            }
            200 => assert_eq!(body, CONTENT.as_bytes(), "{case:?}"),
            206 => {
                let (first, last) = answer[4..].split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                assert_eq!(body, &CONTENT.as_bytes()[first..=last], "{case:?}");
                assert_eq!(length, Some(body.len().to_string().as_str()), "{case:?}");
            }
            304 => assert_eq!((body.len(), length), (0, None), "{case:?}"),
            416 => assert_eq!(field(CONTENT_RANGE), Some("bytes */10"), "{case:?}"),
            _ => assert_eq!(length, Some(body.len().to_string().as_str()), "{case:?}"),
        }
        // Whoever has an old version learns of the new one (RFC 9110 §15.4.5).
        let has_tag = matches!(status, 200 | 206 | 304);
        assert!(!has_tag || field(ETAG) == Some(&etag), "{case:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
