//! Downloads that go on while the client's links and interfaces fail, change and come back.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use common::{criu, privileged};
use mpq_core::client::{ClientEvent, InterfaceEvent, PathEvent, PathInfo};
use mpq_core::limits::STREAM_WINDOW;
use mpq_lab::arms::mpq_get::{Download, DownloadEvent, Entry, Summary};
use mpq_lab::arms::mpq_server::Content;
use mpq_lab::arms::sample::Sampler;
use mpq_lab::arms::testbed::Testbed;
use mpq_lab::network::link_model::Shape;
use mpq_lab::network::model::Network;
use mpq_lab::network::topology::Host::{Client, ServerA, ServerB};

mod common;

/// The second interface and its address.
const DOWN: &str = "ip link set eth1 down";
const UP: &str = "ip link set eth1 up; ip route add default via 10.0.1.1 dev eth1 metric 101";
const SECOND: &str = "10.0.1.2";

/// Runs a download with what `during` does meanwhile. It must end whole, with one handshake.
async fn download(
    content: Content,
    during: impl AsyncFnOnce(&Testbed, &mut Download) -> Result<()>,
) -> (Vec<Entry>, Summary) {
    download_over(&Network::default(), content, during).await
}

/// The same over other links.
async fn download_over(
    network: &Network,
    content: Content,
    during: impl AsyncFnOnce(&Testbed, &mut Download) -> Result<()>,
) -> (Vec<Entry>, Summary) {
    let testbed = Testbed::new(&criu(), network).unwrap();
    let run = async {
        testbed.serve(ServerA, content, |_| ()).await?;
        let mut download = testbed.download(ServerA)?;
        during(&testbed, &mut download).await?;
        download.finish().await
    };
    let result = run.await;
    let entries = result
        .with_context(|| format!("{content:?}; the logs:\n{}", testbed.logs()))
        .unwrap();
    let DownloadEvent::Done(done) = &entries.last().unwrap().event else {
        panic!("the last event is {:?}", entries.last());
    };
    let done = done.clone();
    assert_eq!(done.bytes, content.size);
    assert_eq!(done.sha256, content.sha256());
    assert_eq!(done.handshakes, 1);
    (entries, done)
}

/// Does something on the client's host.
fn on_client(testbed: &Testbed, line: &str) -> Result<()> {
    testbed.topology().run(Client, "sh", &["-ec", line])
}

/// Gives the client another address on a link.
fn renumber(testbed: &Testbed, link: usize) -> Result<()> {
    let line = format!(
        "ip addr del 10.0.{link}.2/24 dev eth{link}
         ip addr add 10.0.{link}.7/24 dev eth{link}
         ip route replace default via 10.0.{link}.1 dev eth{link} metric 10{link}"
    );
    on_client(testbed, &line)
}

fn set_link(testbed: &Testbed, link: usize, up: bool) -> Result<()> {
    let change = format!("up={up}").parse().map_err(anyhow::Error::msg)?;
    testbed.topology().set(link, &change)
}

async fn until_down(download: &mut Download, address: &str) -> Result<()> {
    let address: IpAddr = address.parse()?;
    download
        .wait_for(|event| matches!(event, DownloadEvent::Connection(ClientEvent::Interface(InterfaceEvent::Down { local, .. })) if *local == address))
        .await
}

async fn until_validated(download: &mut Download, address: &str) -> Result<()> {
    let address: IpAddr = address.parse()?;
    download
        .wait_for(|event| matches!(event, DownloadEvent::Connection(ClientEvent::Path(PathEvent::Validated(path))) if path.local == address))
        .await
}

async fn until_closed(download: &mut Download, address: &str) -> Result<()> {
    let address: IpAddr = address.parse()?;
    download
        .wait_for(|event| matches!(event, DownloadEvent::Connection(ClientEvent::Path(PathEvent::Closed(path))) if path.local == address))
        .await
}

fn paths_from(done: &Summary, address: &str) -> usize {
    let of_this = |path: &&PathInfo| path.local.to_string() == address;
    done.paths.iter().filter(of_this).count()
}

#[tokio::test]
async fn a_link_that_dies_silently_does_not_stop_a_download() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 60_000_000,
        seed: 50,
    };
    let (entries, done) = download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 4).await?;
        set_link(testbed, 1, false)
    })
    .await;
    let closed = |entry: &Entry| matches!(&entry.event, DownloadEvent::Connection(ClientEvent::Path(PathEvent::Closed(path))) if path.local.to_string() == SECOND);
    assert!(entries.iter().any(closed), "{entries:?}");
    // It stayed dead, and cost no further path.
    assert_eq!(paths_from(&done, SECOND), 1, "{done:?}");
}

/// What was in flight on a path that dies comes again only when that is given up.
#[tokio::test]
async fn the_other_path_goes_on_meanwhile_for_longer_than_a_stream_has_room_in_noq() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 200_000_000,
        seed: 56,
    };
    let fast = Shape {
        rate: 200_000_000,
        burst: 500_000,
        delay: Duration::from_millis(5),
        ..Shape::default()
    };
    let network = Network {
        links: [fast.clone(), fast],
        ..Network::default()
    };
    let mut meanwhile = 0;
    let (_, done) = download_over(&network, content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 4).await?;
        set_link(testbed, 1, false)?;
        let sampler = Sampler::start(testbed.topology().namespace_file(Client));
        until_closed(download, SECOND).await?;
        let samples = sampler.finish()?.samples;
        meanwhile = samples.last().unwrap().received[0] - samples[0].received[0];
        Ok(())
    })
    .await;
    assert_eq!(done.requests, 1, "it is one stream");
    assert!(meanwhile > 2 * u64::from(STREAM_WINDOW), "{meanwhile}");
}

#[tokio::test]
async fn a_link_that_comes_back_is_used_again() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 100_000_000,
        seed: 51,
    };
    let (_, done) = download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 10).await?;
        set_link(testbed, 1, false)?;
        until_closed(download, SECOND).await?;
        set_link(testbed, 1, true)?;
        until_validated(download, SECOND).await
    })
    .await;
    assert_eq!(paths_from(&done, SECOND), 2, "{done:?}");
}

#[tokio::test]
async fn an_interface_that_goes_is_left_and_used_again_when_it_is_back() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 100_000_000,
        seed: 52,
    };
    let (_, done) = download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 10).await?;
        on_client(testbed, DOWN)?;
        until_down(download, SECOND).await?;
        on_client(testbed, UP)?;
        until_validated(download, SECOND).await?;
        renumber(testbed, 1)?;
        until_down(download, SECOND).await?;
        until_validated(download, "10.0.1.7").await
    })
    .await;
    assert_eq!(paths_from(&done, "10.0.0.2"), 1, "{done:?}");
    assert_eq!(paths_from(&done, SECOND), 2, "{done:?}");
    assert_eq!(paths_from(&done, "10.0.1.7"), 1, "{done:?}");
}

#[tokio::test]
async fn a_client_without_any_interface_waits_for_one() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 60_000_000,
        seed: 53,
    };
    download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 4).await?;
        on_client(testbed, "ip link set eth0 down; ip link set eth1 down")?;
        until_down(download, SECOND).await?;
        // Only the second comes back, as another network would.
        on_client(
            testbed,
            "ip addr flush dev eth1; ip addr add 10.0.1.9/24 dev eth1",
        )?;
        on_client(testbed, UP)?;
        until_validated(download, "10.0.1.9").await
    })
    .await;
}

#[tokio::test]
async fn a_client_that_changes_networks_while_the_server_is_frozen_finds_it() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 60_000_000,
        seed: 54,
    };
    let (_, done) = download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 4).await?;
        testbed.checkpoint(ServerA, ServerB).await?;
        for link in 0..2 {
            renumber(testbed, link)?;
            until_down(download, &format!("10.0.{link}.2")).await?;
        }
        testbed.restore(ServerB).await?;
        Ok(())
    })
    .await;
    for address in ["10.0.0.7", "10.0.1.7"] {
        let there = |path: &PathInfo| {
            path.local.to_string() == address && path.remote == ServerB.server_address()
        };
        assert!(done.paths.iter().any(there), "{address}: {done:?}");
    }
}

#[tokio::test]
async fn a_server_moves_while_a_link_is_dead_and_the_link_finds_it_later() {
    let Some(_alone) = privileged().await else {
        return;
    };
    let content = Content {
        size: 100_000_000,
        seed: 55,
    };
    let (_, done) = download(content, async |testbed, download| {
        until_validated(download, SECOND).await?;
        download.wait_for_bytes(content.size / 10).await?;
        set_link(testbed, 1, false)?;
        until_closed(download, SECOND).await?;
        testbed.checkpoint(ServerA, ServerB).await?;
        testbed.restore(ServerB).await?;
        let target = ServerB.server_address();
        download
            .wait_for(
                |event| matches!(event, DownloadEvent::FirstByteAfterMove { remote, .. } if *remote == target),
            )
            .await?;
        set_link(testbed, 1, true)?;
        until_validated(download, SECOND).await
    })
    .await;
    assert_eq!(paths_from(&done, SECOND), 2, "{done:?}");
}
