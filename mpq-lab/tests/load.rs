//! Many clients through one move.

use common::{criu, privileged};
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::bench::load::run;
use mpq_lab::network::model::Network;

mod common;

#[tokio::test]
async fn two_hundred_clients_go_with_their_server() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let testbed = Testbed::new(&criu(), &Network::default()).unwrap();
    let result = run(&testbed, 200, 500_000).await.unwrap();
    eprintln!("{result}");
    assert_eq!(result.lost, Vec::<String>::new());
    assert_eq!(result.exact, 200);
    let resumed = result.resumed.expect("some were downloading at the move");
    assert!(resumed.min > 0.0, "this byte is from before: {resumed:?}");
    assert!(result.cpu > 0.0, "{}", result.cpu);
    // The links lose every seventh packet, and the server waits no longer than an answer to a second try should take. Who
    // loses both is not told before the freeze, and is found by a knock.
    let [resumed, announced] = result.announced;
    assert!(
        announced * 5 >= resumed * 4,
        "only {announced} of {resumed} were told"
    );
}
