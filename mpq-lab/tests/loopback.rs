//! The move that needs no privileges: in one process, between two loopback addresses.

use mpq_lab::demo::on_loopback;

#[tokio::test]
async fn a_server_moves_in_its_own_process() {
    on_loopback().await.unwrap().verify().unwrap();
}
