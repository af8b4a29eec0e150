//! Many clients through one move.

use common::{criu, privileged};
use mpq_lab::bench::Bench;
use mpq_lab::herd::run;
use mpq_lab::topology::Network;

mod common;

#[tokio::test]
async fn two_hundred_clients_go_with_their_server() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let bench = Bench::new(&criu(), &Network::default()).unwrap();
    let herd = run(&bench, 200, 500_000).await.unwrap();
    eprintln!("{herd}");
    assert_eq!(herd.lost, Vec::<String>::new());
    assert_eq!(herd.exact, 200);
    let resumed = herd.resumed.expect("some were downloading at the move");
    assert!(resumed.min > 0.0, "this byte is from before: {resumed:?}");
    assert!(herd.cpu > 0.0, "{}", herd.cpu);
    let [resumed, announced] = herd.announced;
    assert_eq!(
        announced, resumed,
        "the others were not told before the freeze"
    );
}
