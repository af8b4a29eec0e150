//! The driver of one client connection: the machine's outputs become calls of noq, and what noq and
//! the sockets report becomes its inputs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use noq::{FourTuple, PathEvent, PathId, PathStatus};
use noq_proto::NetworkChangeHint;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::config::ClientConfig;
use super::event::{self, ClientEvent, InterfaceEvent};
use super::opening;
use super::paths::{PathInfo, PathState, PathTable};
use crate::error::ClientError;
use crate::frame_io::{self, FrameReader, FrameWriter};
use crate::h3::MigrationStream;
use crate::h3::supervision::Supervision;
use crate::limits::PATHS;
use crate::net::address::{canonical, mapped};
use crate::net::interfaces::{self, Change};
use crate::net::{Answer, Local, Sockets};
use crate::proto::client::{ClientMachine, Config, Event, Input, Output, Refusal};
use crate::proto::probe::{Echo, ProbeKey, Recogniser};
use crate::proto::{Frame, trace};
use crate::stats::path_number;
use crate::time::sleep_until;
use crate::tls;

pub(super) struct Driver {
    endpoint: noq::Endpoint,
    connection: noq::WeakConnectionHandle,
    sockets: Sockets,
    /// What the user wants to be used, and what of it is there.
    wanted: Vec<String>,
    locals: Vec<Local>,
    machine: ClientMachine,
    table: PathTable,
    events: broadcast::Sender<(Instant, ClientEvent)>,
    frames: broadcast::Sender<Frame>,
    /// Makes our probes.
    probes: ProbeKey,
    supervision: Arc<Supervision>,
    /// Somebody waits for the server.
    expecting: bool,
    failure: Option<ClientError>,
}

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "made in one place")]
    pub(super) fn new(
        endpoint: noq::Endpoint,
        connection: &noq::Connection,
        sockets: Sockets,
        locals: Vec<Local>,
        remote: SocketAddr,
        table: PathTable,
        events: broadcast::Sender<(Instant, ClientEvent)>,
        supervision: Arc<Supervision>,
        config: &ClientConfig,
    ) -> Self {
        let now = Instant::now();
        let multipath = connection.is_multipath_enabled();
        let probes = ProbeKey::new(&tls::random());
        sockets.listen_for(Recogniser::new(probes.clone(), tls::knock_key(connection)));
        if !config.strategy.redirects() {
            sockets.keep_old_paths();
        }
        let wanted = config.interfaces.clone();
        let config = Config {
            deadline: config.migration_timeout,
            idle_timeout: config.idle_timeout,
            multipath,
            strategy: config.strategy,
            allow_unvalidated: config.allow_unvalidated,
            bare: config.bare,
            hold_back: config.hold_back.mul_f64(fraction()),
            path_ids: PATHS,
            seed: u64::from_be_bytes(tls::random()),
        };
        let mut machine = ClientMachine::new(now, config, locals[0].ip, remote);
        machine.handle(now, Input::Broadcasts(interfaces::broadcasts()));
        machine.handle(now, Input::Locals(locals.iter().map(|l| l.ip).collect()));
        let (frames, to_send) = frame_io::newest();
        if let Some(writer) = FrameWriter::open(connection) {
            tokio::spawn(writer.write(to_send, || (), || ()));
        }
        let driver = Self {
            endpoint,
            connection: connection.weak_handle(),
            sockets,
            wanted,
            locals,
            machine,
            table,
            events,
            frames,
            probes,
            supervision,
            expecting: false,
            failure: None,
        };
        let local = driver.locals[0].ip;
        driver.opening(PathId::ZERO, local, remote);
        if let Some(info) = driver.table.set(0.into(), PathState::Validated) {
            driver.event(event::PathEvent::Validated(info));
        }
        driver
    }

    /// Runs until the connection is over, and then says why. Closes it where it is given up.
    pub(super) async fn run(
        mut self,
        mut answers: mpsc::Receiver<Answer>,
        stream: oneshot::Receiver<MigrationStream>,
        mut changes: mpsc::Receiver<()>,
        failed: watch::Sender<Option<ClientError>>,
    ) {
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        let mut path_events = connection.path_events();
        let mut closed = connection.on_closed();
        drop(connection);
        let (frame_sender, mut frames) = mpsc::channel(16);
        let reader = tokio::spawn(read_frames(stream, frame_sender));
        let mut looked = Instant::now();
        let reason = loop {
            while let Some(output) = self.machine.poll() {
                self.perform(output);
            }
            if let Some(failure) = self.failure.take() {
                break failure;
            }
            let due = self.machine.next_timeout();
            let look_at = looked + self.machine.look_interval();
            tokio::select! {
                closed = &mut closed => {
                    break ClientError::closed(&closed.reason, self.supervision.closed_by_h3());
                }
                Some(frame) = frames.recv() => self.input(Input::Frame(frame)),
                Some(answer) = answers.recv() => self.answer(answer),
                Some(event) = path_events.next() => {
                    if let Ok(event) = event {
                        self.path_event(event);
                    }
                }
                Some(()) = changes.recv() => self.interfaces_changed(),
                () = sleep_until(Some(look_at)) => {
                    looked = Instant::now();
                    self.look();
                }
                () = sleep_until(due) => {
                    self.step(&format_args!("time"), |machine, now| machine.handle_timeout(now));
                }
            }
        };
        reader.abort();
        failed.send_replace(Some(reason.clone()));
        if let Some(connection) = self.connection.upgrade()
            && connection.close_reason().is_none()
        {
            let words = reason.to_string();
            self.supervision.give_up(&connection, reason.into(), &words);
        }
    }

    fn input(&mut self, input: Input) {
        tracing::debug!(state = self.machine.state(), ?input, "migration");
        self.quiet_input(input);
    }

    /// For what comes several times a second.
    fn quiet_input(&mut self, input: Input) {
        let cause = input.clone();
        self.step(&cause, |machine, now| machine.handle(now, input));
    }

    /// All that changes the machine's state goes through here.
    fn step(&mut self, cause: &dyn fmt::Debug, step: impl FnOnce(&mut ClientMachine, Instant)) {
        let before = self.machine.state();
        step(&mut self.machine, Instant::now());
        trace::transition("client", before, self.machine.state(), cause);
    }

    fn event(&self, event: impl Into<ClientEvent>) {
        let _ = self.events.send((Instant::now(), event.into()));
    }

    fn perform(&mut self, output: Output) {
        if output != Output::LookAtHandshake {
            tracing::debug!(?output, "migration");
        }
        match output {
            Output::Send(frame) => {
                let _ = self.frames.send(frame);
            }
            Output::LookAtHandshake => {
                if let Some(connection) = self.connection.upgrade() {
                    self.quiet_input(Input::Handshake(opening::handshake(&connection)));
                }
            }
            Output::Redirect(to) => self.redirect(to),
            Output::Probe(targets) => {
                for target in targets {
                    self.facing(target).for_each(|l| self.probe(l.ip, target));
                }
            }
            Output::ProbeFrom { local, target } => self.probe(local, target),
            Output::Echo {
                local,
                remote,
                echo,
            } => self.echo(local, remote, echo),
            Output::Open { local, remote } => self.open(local, remote),
            Output::Abandon(remote) => self.abandon(|path| path.remote == remote),
            Output::AbandonFrom(local) => self.abandon(|path| path.local == local),
            Output::Ping { path } => self.ping(path),
            Output::Evacuate { path, over } => self.evacuate(path, over),
            Output::Close { path } => self.close(path),
            Output::Event(event) => self.announce(event),
        }
    }

    /// Sends a probe, which has nothing in common with any other one.
    fn probe(&self, local: IpAddr, remote: SocketAddr) {
        let probe = self.probes.probe(local, remote, &tls::random());
        self.sockets.send(Some(local), remote, &probe);
    }

    fn announce(&mut self, event: Event) {
        match event {
            Event::Failed => {
                let (answered, elsewhere) = self.machine.elsewhere();
                self.failure = Some(ClientError::Migration {
                    answered,
                    elsewhere,
                });
            }
            Event::Idle => self.failure = Some(ClientError::Idle),
            _ => {}
        }
        self.event(event);
    }

    /// It is known at once if a path cannot be opened now: the server has not granted its id yet.
    fn open(&mut self, local: IpAddr, remote: SocketAddr) {
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        self.sockets.follow(remote);
        let tuple = FourTuple::new(mapped(remote), Some(local));
        let path = connection.open_path(tuple, PathStatus::Available);
        match path.path_id() {
            Some(id) => self.opening(id, local, remote),
            None => self.input(Input::PathRefused {
                local,
                remote,
                refusal: Refusal::NoId,
            }),
        }
    }

    /// Closes those paths that are not validated yet.
    fn abandon(&mut self, is_meant: impl Fn(&PathInfo) -> bool) {
        for path in self.table.all() {
            if path.state == PathState::Opening && is_meant(&path) {
                self.close(path.id.into());
            }
        }
    }

    fn redirect(&mut self, to: Option<SocketAddr>) {
        self.sockets.redirect(self.machine.path_remote(), to);
        self.look();
    }

    fn opening(&self, id: PathId, local: IpAddr, remote: SocketAddr) {
        let path = self
            .connection
            .upgrade()
            .and_then(|connection| connection.path(id));
        let info = PathInfo {
            id: path_number(id).into(),
            interface: self.interface(local),
            local,
            remote,
            state: PathState::Opening,
            rtt: None,
            received: 0,
            sent: 0,
            lost: 0,
        };
        self.table
            .insert(info.clone(), path.map(|path| path.weak_handle()));
        self.event(event::PathEvent::Opened(info));
    }

    fn close(&mut self, id: u32) {
        let path = self
            .connection
            .upgrade()
            .and_then(|c| c.path(PathId::from(id)));
        if let Some(path) = path {
            let _ = path.close();
        }
    }

    fn path_event(&mut self, event: PathEvent) {
        match event {
            PathEvent::Established { id, .. } => {
                let path = path_number(id);
                let Some(info) = self.table.set(path.into(), PathState::Validated) else {
                    return;
                };
                let (local, remote) = (info.local, info.remote);
                self.event(event::PathEvent::Validated(info));
                self.input(Input::PathOpen {
                    path,
                    local,
                    remote,
                });
            }
            PathEvent::Abandoned { id, .. } => {
                let id = path_number(id);
                let was_validated = self.table.is_validated(id.into());
                let Some(info) = self.table.set(id.into(), PathState::Closed) else {
                    return;
                };
                let (local, remote) = (info.local, info.remote);
                self.event(event::PathEvent::Closed(info));
                let refusal = Refusal::NoAnswer;
                self.input(match was_validated {
                    true => Input::PathGone { path: id },
                    false => Input::PathRefused {
                        local,
                        remote,
                        refusal,
                    },
                });
            }
            _ => {}
        }
    }

    fn answer(&mut self, answer: Answer) {
        self.input(Input::Answer {
            local: answer.local,
            remote: canonical(answer.remote),
            hint: answer.hint,
        });
    }

    /// Returns a knock.
    fn echo(&self, local: IpAddr, remote: SocketAddr, echo: Echo) {
        let [random] = tls::random();
        let datagram = echo.datagram(random);
        self.sockets.send(Some(local), remote, &datagram);
    }

    /// Has the machine look at what the paths have carried, and at whether somebody waits for more.
    fn look(&mut self) {
        let expecting = self.supervision.is_peer_awaited();
        if expecting != self.expecting {
            self.expecting = expecting;
            self.quiet_input(Input::Expecting(expecting));
        }
        self.quiet_input(Input::Figures(self.table.figures()));
    }

    fn ping(&self, id: u32) {
        let connection = self.connection.upgrade();
        if let Some(path) = connection.and_then(|c| c.path(PathId::from(id))) {
            let _ = path.ping();
        }
    }

    /// Has a path go over the link of another one: noq sends what has no source by the preferred socket,
    /// and takes a new connection id for each path.
    fn evacuate(&self, id: u32, over: u32) {
        let Some(connection) = self.connection.upgrade() else {
            return;
        };
        let (Some(path), Some(over)) = (
            connection.path(PathId::from(id)),
            connection.path(PathId::from(over)),
        ) else {
            return;
        };
        let Ok(Some(local)) = over.local_ip() else {
            return;
        };
        tracing::info!("the link of path {id} is silent; it goes over {local}");
        self.sockets.prefer(local.to_canonical());
        // Nothing new is to be sent on it.
        let _ = path.set_status(PathStatus::Backup);
        self.endpoint.handle_network_change(Some(Arc::new(InPlace)));
    }

    /// Uses what is there now of what the user wants, and no more what is gone.
    fn interfaces_changed(&mut self) {
        let server = self.machine.remote().ip();
        let change = interfaces::changed(server, &self.wanted, &self.locals);
        let Change { gone, present } = match change {
            Ok(change) => change,
            Err(error) => return tracing::warn!("cannot list the network interfaces: {error}"),
        };
        self.input(Input::Broadcasts(interfaces::broadcasts()));
        self.locals.clear();
        for Local { interface, ip, .. } in &gone {
            self.sockets.close_local(*ip);
            self.event(InterfaceEvent::Down {
                interface: interface.clone(),
                local: *ip,
            });
        }
        let mut news = false;
        for (local, is_new) in present {
            if is_new {
                // It may have gone again.
                if let Err(error) = self.sockets.add(&[local.bind()]) {
                    tracing::warn!("cannot use {} at {}: {error}", local.interface, local.ip);
                    continue;
                }
                self.event(InterfaceEvent::Up {
                    interface: local.interface.clone(),
                    local: local.ip,
                });
            }
            news |= is_new;
            self.locals.push(local);
        }
        if news || !gone.is_empty() {
            let locals = self.locals.iter().map(|l| l.ip).collect();
            self.input(Input::Locals(locals));
        }
    }

    /// The local addresses of the family of this remote one.
    fn facing(&self, remote: SocketAddr) -> impl Iterator<Item = &Local> {
        self.locals
            .iter()
            .filter(move |l| l.ip.is_ipv4() == remote.is_ipv4())
    }

    fn interface(&self, local: IpAddr) -> String {
        let of_this_address = self.locals.iter().find(|l| l.ip == local);
        of_this_address.map_or_else(|| local.to_string(), |l| l.interface.clone())
    }
}

/// After a change of the network all paths go on as they are.
#[derive(Debug)]
struct InPlace;

impl NetworkChangeHint for InPlace {
    fn is_path_recoverable(&self, _: PathId, _: FourTuple) -> bool {
        true
    }
}

/// A random number between 0 and 1.
fn fraction() -> f64 {
    u64::from_be_bytes(tls::random()) as f64 / u64::MAX as f64
}

async fn read_frames(stream: oneshot::Receiver<MigrationStream>, frames: mpsc::Sender<Frame>) {
    let Ok(stream) = stream.await else { return };
    let mut reader = FrameReader::new(stream);
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                return tracing::warn!("the server's migration stream is given up: {error}");
            }
        }
    }
}
