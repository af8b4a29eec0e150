//! What goes on in a connection beside its requests: its paths are watched, its client is heard and told
//! things, and its machine is told what it asks for.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use h3::quic::ConnectionErrorIncoming;
use noq::PathEvent;
use tokio::sync::oneshot;

use super::hub::Hub;
use super::peer::{Peer, peer_number};
use crate::frame_io::FrameReader;
use crate::h3::MigrationStream;
use crate::h3::supervision::Supervision;
use crate::net::address::canonical;
use crate::proto::Frame;
use crate::proto::server::peer::{Input, Output};
use crate::stats::{Traffic, path_number};
use crate::time::sleep_until;

/// Starts the tasks of a connection; what it carried comes when it is over.
pub(super) fn start(
    hub: Arc<Hub>,
    connection: noq::Connection,
    peer: Peer,
    stream: oneshot::Receiver<MigrationStream>,
    supervision: Arc<Supervision>,
) -> oneshot::Receiver<Traffic> {
    let id = peer_number(&connection);
    let peer = Arc::new(peer);
    hub.add(id, peer.clone());
    let on_closed = connection.on_closed();
    let events = connection.path_events();
    let start = tokio::time::Instant::now();
    let (sender, traffic) = oneshot::channel();
    tokio::spawn(async move {
        let driver = Driver {
            hub: &hub,
            peer: &peer,
            supervision: &supervision,
        };
        let work = async {
            tokio::join!(
                driver.watch_paths(events),
                driver.hear(stream),
                driver.keep_time(),
            )
        };
        let closed = tokio::select! {
            closed = on_closed => closed,
            ((), _, never) = work => match never {},
        };
        hub.remove(id);
        // Who waits to write learns of it.
        peer.gate.open();
        let remotes = peer.paths.lock().unwrap().remotes();
        let _ = sender.send(Traffic::new(start.elapsed(), &closed, &remotes));
        driver.take_leave().await;
        hub.end_forwarding(&peer);
    });
    traffic
}

/// Drives the machine of one connection.
struct Driver<'a> {
    hub: &'a Hub,
    peer: &'a Peer,
    supervision: &'a Supervision,
}

impl Driver<'_> {
    fn input(&self, input: Input) {
        let outputs = self.peer.handle(input);
        self.perform(outputs);
    }

    /// What the machine asks for may have it want more.
    fn perform(&self, outputs: Vec<Output>) {
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            let answer = match output {
                Output::Server(input) => {
                    self.hub.input(input);
                    None
                }
                Output::Idle => {
                    self.give_up();
                    None
                }
                Output::Look => self.peer.figures().map(|(received, paths)| Input::Figures {
                    stage: self.hub.stage(),
                    received,
                    paths,
                }),
                Output::Listen => Some(self.listen()),
                Output::LookInFlight => {
                    Some(Input::InFlight(self.peer.send_control.left_in_flight()))
                }
                Output::LookWhetherTold => Some(self.peer.told()),
                done => unreachable!("the peer does {done:?} itself"),
            };
            if let Some(answer) = answer {
                outputs.extend(self.peer.handle(answer));
            }
        }
    }

    fn listen(&self) -> Input {
        // The paths of before come first: who has made new ones is not to be taken for who stays.
        let old = self.peer.heard_on_old_paths();
        Input::Heard {
            stage: self.hub.stage(),
            new: self.peer.new_paths(),
            old,
        }
    }

    fn give_up(&self) {
        if let Some(connection) = self.peer.connection.upgrade() {
            let why = ConnectionErrorIncoming::Timeout;
            self.supervision.give_up(&connection, why, "idle");
        }
    }

    /// Tells the machine of its paths.
    async fn watch_paths(&self, mut events: noq::PathEvents) {
        while let Some(event) = events.next().await {
            match event {
                Ok(PathEvent::Established { id: path, .. }) => {
                    let Some(connection) = self.peer.connection.upgrade() else {
                        return;
                    };
                    let Some(handle) = connection.path(path) else {
                        continue;
                    };
                    let Ok(remote) = handle.remote_address().map(canonical) else {
                        continue;
                    };
                    let paths = &self.peer.paths;
                    paths
                        .lock()
                        .unwrap()
                        .add(path, remote, handle.weak_handle());
                    self.peer.begin_path(&connection, path);
                    self.input(Input::PathOpen(path_number(path)));
                }
                Ok(PathEvent::Abandoned { id: path, .. }) => {
                    self.peer.paths.lock().unwrap().open.remove(&path);
                    self.input(Input::PathGone(path_number(path)));
                }
                // What the client wishes (draft-ietf-quic-multipath-21 §3.3); noq leaves it to us.
                Ok(PathEvent::RemoteStatus {
                    id: path, status, ..
                }) => {
                    let path = self.peer.connection.upgrade().and_then(|c| c.path(path));
                    if let Some(path) = path {
                        let _ = path.set_status(status);
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Reads the client's migration stream.
    async fn hear(&self, stream: oneshot::Receiver<MigrationStream>) {
        // Without the stream there is nothing to do here, but the connection goes on.
        let Ok(stream) = stream.await else { return };
        let mut reader = FrameReader::new(stream);
        loop {
            match reader.next().await {
                // Whoever cannot be told of a move cannot come along, whatever it says.
                Ok(Some(Frame::Hello { .. })) if !self.peer.can_be_told() => return,
                Ok(Some(frame)) => self.input(Input::Frame(frame)),
                Ok(None) => return,
                Err(error) => {
                    return tracing::info!("a client's migration stream is given up: {error}");
                }
            }
        }
    }

    /// The end of the connection is on its way, and goes on.
    async fn take_leave(&self) {
        while self.peer.is_leaving() {
            sleep_until(Some(self.peer.next_timeout())).await;
            self.perform(self.peer.timeout());
        }
    }

    async fn keep_time(&self) -> Infallible {
        loop {
            let due = self.peer.next_timeout();
            tokio::select! {
                () = sleep_until(Some(due)) => self.perform(self.peer.timeout()),
                () = self.peer.sooner() => {}
            }
        }
    }
}
