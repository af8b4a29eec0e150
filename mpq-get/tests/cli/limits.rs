//! How long a download may take.

use std::time::{Duration, Instant};

use super::resume::{number, whole};
use super::server::{Answer, File, Server};

/// More than a server sends without an acknowledgement.
const CUT: usize = 1_000_003;

#[test]
fn a_body_that_stalls_is_asked_for_over_another_connection() {
    let server = Server::script([Answer::Stuck(File::new(), CUT), whole()]);
    let outcome = server.get(&["-y", "2", "-O", "--json"], "file");
    outcome.succeeds();
    assert_eq!(server.ranges(), [None, Some(format!("bytes={CUT}-"))]);
    let retry = &outcome.named("retry")[0]["reason"];
    assert!(
        retry.as_str().unwrap().contains("100 bytes a second"),
        "{retry}"
    );
    assert_eq!(number(&outcome.named("done")[0], "handshakes"), 2);
}

#[test]
fn a_body_that_stalls_to_the_end_is_a_timeout() {
    let server = Server::script([Answer::Stuck(File::new(), CUT)]);
    let line = ["-y", "1", "-Y", "1000", "--retry", "0", "-O"];
    server
        .get(&line, "file")
        .fails(28, "1000 bytes a second came in 1 s");
}

#[test]
fn all_of_it_may_take_so_long_and_no_longer() {
    let server = Server::script([Answer::Stuck(File::new(), CUT)]);
    let begun = Instant::now();
    let outcome = server.get(&["-m", "1.5", "-O"], "file");
    outcome.fails(28, "not complete after 1.5 s");
    assert!(
        outcome.stderr.contains("the next run goes on"),
        "{}",
        outcome.stderr
    );
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    assert_eq!(server.requests().len(), 1);
}
