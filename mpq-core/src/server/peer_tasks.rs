//! What goes on in a connection beside its requests: its paths are watched, its client is heard and told
//! things, and it ends where nothing comes any more.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use h3::quic::ConnectionErrorIncoming;
use noq::PathEvent;
use tokio::sync::{mpsc, oneshot};

use super::hub::Hub;
use super::peer::Peer;
use crate::frame_io::{FrameReader, write_frames};
use crate::h3::MigrationStream;
use crate::h3::supervision::Supervision;
use crate::net::address::canonical;
use crate::proto::Frame;
use crate::proto::liveness::{Liveness, Verdict};
use crate::proto::server::Input;
use crate::stats::{Traffic, figures, path_number};

/// How long a connection may be silent before it is closed, seconds of the server's own clock,
/// which stands still while it is frozen.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the paths of a connection are compared.
const COMPARE_INTERVAL: Duration = Duration::from_millis(200);

/// Starts the tasks of a connection; what it carried comes when it is over.
pub(super) fn start(
    hub: Arc<Hub>,
    connection: noq::Connection,
    (peer, to_send): (Peer, mpsc::UnboundedReceiver<Frame>),
    stream: oneshot::Receiver<MigrationStream>,
    supervision: Arc<Supervision>,
) -> oneshot::Receiver<Traffic> {
    let id = connection.stable_id() as u64;
    let peer = Arc::new(peer);
    hub.add(id, peer.clone());
    let weak = connection.weak_handle();
    let on_closed = connection.on_closed();
    let events = connection.path_events();
    let start = tokio::time::Instant::now();
    let (sender, traffic) = oneshot::channel();
    tokio::spawn(async move {
        let work = async {
            tokio::join!(
                watch_paths(&hub, id, &peer, events),
                speak(&hub, id, &peer, stream, to_send),
                close_when_idle(&hub, &weak, &supervision),
                close_silent_paths(&hub, &peer),
            )
        };
        let closed = tokio::select! {
            closed = on_closed => closed,
            ((), never, (), ()) = work => match never {},
        };
        hub.remove(id);
        // Who waits to write learns of it.
        peer.gate.open();
        let remotes = peer.paths.lock().unwrap().remotes();
        let _ = sender.send(Traffic::new(start.elapsed(), &closed, &remotes));
    });
    traffic
}

/// Keeps the list of paths; after a thaw, the first new one replaces the old ones.
async fn watch_paths(hub: &Hub, id: u64, peer: &Peer, mut events: noq::PathEvents) {
    while let Some(event) = events.next().await {
        match event {
            Ok(PathEvent::Established { id: path, .. }) => {
                let Some(connection) = peer.connection.upgrade() else {
                    return;
                };
                let Some(handle) = connection.path(path) else {
                    continue;
                };
                let Ok(remote) = handle.remote_address().map(canonical) else {
                    continue;
                };
                let paths = &peer.paths;
                paths
                    .lock()
                    .unwrap()
                    .add(path, remote, handle.weak_handle());
                peer.arrived(&connection);
                peer.begin_path(&connection, path);
                hub.input(Input::Established(id));
            }
            Ok(PathEvent::Abandoned { id: path, .. }) => {
                peer.paths.lock().unwrap().open.remove(&path);
            }
            // What the client wishes (draft-ietf-quic-multipath-21 §3.3); noq leaves it to us.
            Ok(PathEvent::RemoteStatus {
                id: path, status, ..
            }) => {
                let path = peer.connection.upgrade().and_then(|c| c.path(path));
                if let Some(path) = path {
                    let _ = path.set_status(status);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// Reads the client's migration stream and, once it said HELLO, writes ours.
async fn speak(
    hub: &Hub,
    id: u64,
    peer: &Peer,
    stream: oneshot::Receiver<MigrationStream>,
    to_send: mpsc::UnboundedReceiver<Frame>,
) -> Infallible {
    if let Ok(stream) = stream.await {
        let mut to_send = Some(to_send);
        let mut reader = FrameReader::new(stream);
        loop {
            match reader.next().await {
                Ok(Some(Frame::Hello { capabilities })) => {
                    // Only the first counts.
                    let Some(frames) = to_send.take() else {
                        continue;
                    };
                    if let Some(connection) = peer.connection.upgrade() {
                        let (send_window, unsaid) = (peer.send_window.clone(), peer.unsaid.clone());
                        let widen = move || send_window.widen();
                        let said = move || {
                            unsaid.fetch_sub(1, Ordering::Relaxed);
                        };
                        tokio::spawn(write_frames(connection, frames, widen, said));
                    }
                    let redirects = capabilities & Frame::REDIRECT != 0;
                    peer.redirects.store(redirects, Ordering::Relaxed);
                    // One that can do neither cannot come along.
                    if redirects || capabilities & Frame::MULTIPATH != 0 {
                        hub.input(Input::Hello(id));
                    }
                }
                Ok(Some(Frame::Ready { .. })) => hub.input(Input::Ready(id)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::info!("a client's migration stream is given up: {error}");
                    break;
                }
            }
        }
    }
    // Without the stream there is nothing to do here, but the connection goes on.
    std::future::pending().await
}

/// Closes a connection from which nothing came for a long time while the server was awake.
async fn close_when_idle(
    hub: &Hub,
    connection: &noq::WeakConnectionHandle,
    supervision: &Supervision,
) {
    let mut last = (0, tokio::time::Instant::now());
    loop {
        tokio::time::sleep(IDLE_TIMEOUT / 10).await;
        let Some(connection) = connection.upgrade() else {
            return;
        };
        let received = connection.stats().udp_rx.datagrams;
        if received != last.0 || !hub.is_serving() {
            last = (received, tokio::time::Instant::now());
        } else if last.1.elapsed() >= IDLE_TIMEOUT {
            return supervision.give_up(&connection, ConnectionErrorIncoming::Timeout, "idle");
        }
    }
}

/// Closes paths that have died silently, so that what was sent on them is sent again on others. Not
/// while the server parks, where no path has anything to say.
async fn close_silent_paths(hub: &Hub, peer: &Peer) {
    let mut liveness = Liveness::of_server();
    loop {
        tokio::time::sleep(COMPARE_INTERVAL).await;
        if hub.is_parking() {
            liveness = Liveness::of_server();
            continue;
        }
        let paths: BTreeMap<u32, noq::Path> = {
            let paths = peer.paths.lock().unwrap();
            // There is nothing to compare a single one with.
            let several = paths.open.iter().filter(|_| paths.open.len() > 1);
            several
                .filter_map(|(id, path)| Some((path_number(*id), path.upgrade()?)))
                .collect()
        };
        let looks: Vec<_> = paths.values().map(figures).collect();
        for verdict in liveness.look(Instant::now(), &looks, false) {
            match verdict {
                Verdict::Ping(id) => {
                    let _ = paths[&id].ping();
                }
                Verdict::Close(id) => {
                    let remote = paths[&id].remote_address().map(canonical);
                    tracing::info!("path {id} to {remote:?} is silent, and closed");
                    let _ = paths[&id].close();
                }
            }
        }
    }
}
