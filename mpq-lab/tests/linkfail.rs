//! Links that die under a download cost a part of a second, and never the connection.

use common::{criu, privileged};
use mpq_lab::bench::linkfail::rows;

mod common;

#[tokio::test]
async fn a_link_that_dies_costs_neither_the_connection_nor_half_a_second() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // `cargo lab linkfail` has the long ones, and Multipath TCP beside them.
    for row in rows().iter().filter(|row| !row.name.contains("25 s")) {
        let outcome = row.run(1, false, &criu()).await.unwrap();
        assert_eq!(outcome.faults(), [""; 0], "{}: {outcome:?}", row.name);
        assert_eq!(outcome.requests, 1, "{}", row.name);
    }
}
