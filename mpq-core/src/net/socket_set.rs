//! The sockets of one endpoint together: which one a datagram leaves by, where it goes instead if it is
//! redirected, and which of what comes is not for noq.

use std::collections::{HashMap, HashSet};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::Waker;

use noq::udp::{RecvMeta, Transmit, is_msg_size_err};
use tokio::sync::mpsc;

use super::address::{canonical, mapped};
use super::forwarded::Forwarded;
use super::old_paths::OldPaths;
use super::socket::Bound;
use super::succession::{PassedOn, Succession};
use crate::proto::probe::{self, Hint, Recogniser};
use crate::proto::server::echoes::Echoes;

/// How many senders are noted: anybody can feign more of them.
const MAX_SENDERS: usize = 1 << 16;

/// Somebody answers at `remote`: a Version Negotiation packet, or a knock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The local address that it came to.
    pub local: IpAddr,
    /// Who it came from.
    pub remote: SocketAddr,
    /// Whether it answered a probe, or knocked.
    pub hint: Hint,
}

/// The sockets of one endpoint, with what is known of the datagrams that pass through them.
pub(super) struct SocketSet {
    pub(super) bound: RwLock<Vec<Arc<Bound>>>,
    /// The task that reads; woken when the sockets are replaced.
    pub(super) reader: Mutex<Option<Waker>>,
    pub(super) redirection: RwLock<Option<Redirection>>,
    /// The local address of the socket for what has no source.
    pub(super) preferred: RwLock<Option<IpAddr>>,
    pub(super) recogniser: Mutex<Option<Recogniser>>,
    /// Every socket shows its local address to noq.
    pub(super) shows_local: AtomicBool,
    /// Something has come.
    pub(super) heard: AtomicBool,
    /// At a client that follows a server by paths.
    pub(super) old_paths: Mutex<Option<OldPaths>>,
    /// Who has sent something since they are noted.
    pub(super) senders: Mutex<Option<HashSet<SocketAddr>>>,
    /// At a server that has moved.
    pub(super) echoes: RwLock<Echoes>,
    /// At a server that has moved, too.
    pub(super) forwarded: RwLock<Forwarded>,
    /// What noq does not know of the paths to clients that are validated so, also after another move.
    pub(super) hidden: RwLock<HashMap<SocketAddr, IpAddr>>,
    /// At a server that has handed over, or has taken over.
    pub(super) succession: RwLock<Succession>,
    answers: mpsc::Sender<Answer>,
    pub(super) send_errors: AtomicU64,
    pub(super) unsent: AtomicU64,
}

/// What noq knows as `from` is at `to`, or nowhere.
#[derive(Clone, Copy)]
pub(super) struct Redirection {
    pub(super) from: SocketAddr,
    pub(super) to: Option<SocketAddr>,
}

impl SocketSet {
    /// Without any yet.
    pub(super) fn new(answers: mpsc::Sender<Answer>) -> Self {
        Self {
            bound: RwLock::default(),
            reader: Mutex::default(),
            redirection: RwLock::default(),
            preferred: RwLock::default(),
            recogniser: Mutex::default(),
            shows_local: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            old_paths: Mutex::default(),
            senders: Mutex::default(),
            echoes: RwLock::default(),
            forwarded: RwLock::default(),
            hidden: RwLock::default(),
            succession: RwLock::default(),
            answers,
            send_errors: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
        }
    }

    /// The socket for a datagram: the one of its source address, or any of its family.
    pub(super) fn pick(&self, transmit: &Transmit<'_>) -> Option<Arc<Bound>> {
        let bound = self.bound.read().unwrap();
        let reaches = |b: &&Arc<Bound>| b.reaches(transmit.destination);
        let source = transmit.src_ip.map(|ip| ip.to_canonical());
        let source = source.or_else(|| *self.preferred.read().unwrap());
        let of_source = bound
            .iter()
            .filter(reaches)
            .find(|b| Some(b.address.ip()) == source);
        of_source.or_else(|| bound.iter().find(reaches)).cloned()
    }

    /// A datagram of noq's as it is to be sent; `None` if to nobody.
    pub(super) fn redirected<'a>(&self, transmit: &Transmit<'a>) -> Option<Transmit<'a>> {
        let mut transmit = transmit.clone();
        if let Some(Redirection { from, to }) = *self.redirection.read().unwrap()
            && canonical(transmit.destination) == from
        {
            transmit.destination = mapped(to?);
        }
        let forwarded = self.forwarded.read().unwrap();
        if !forwarded.is_empty() {
            transmit.destination = mapped(forwarded.socket(canonical(transmit.destination))?);
        }
        Some(transmit)
    }

    /// Has each buffer hold packets of one sender, as far as there are buffers. Returns how many are used then.
    pub(super) fn part(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
        used: usize,
    ) -> usize {
        match &mut *self.old_paths.lock().unwrap() {
            Some(old_paths) => old_paths.part(buffers, metas, used),
            None => used,
        }
    }

    /// Takes out of these buffers what is for the process that had the sockets before.
    pub(super) fn pass_on(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let succession = self.succession.read().unwrap();
        let Some(elder) = &succession.elder else {
            return;
        };
        let mut is_gone = false;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            match elder.pass_on(meta, buffer) {
                PassedOn::Done => {}
                PassedOn::Lost => self.count_unsent(),
                PassedOn::Gone => is_gone = true,
            }
        }
        drop(succession);
        if is_gone {
            self.succession.write().unwrap().elder = None;
        }
    }

    /// The source address of a datagram: noq's, or the one that is hidden from it.
    pub(super) fn source(&self, transmit: &Transmit<'_>) -> Option<IpAddr> {
        let hidden = || self.hidden_local(canonical(transmit.destination));
        transmit.src_ip.or_else(hidden)
    }

    /// Which of our addresses is hidden from noq on paths to there.
    pub(super) fn hidden_local(&self, remote: SocketAddr) -> Option<IpAddr> {
        self.hidden.read().unwrap().get(&remote).copied()
    }

    /// Who noq is to take for the sender of what came in a buffer; `None` if it is not for noq.
    pub(super) fn shown(&self, meta: &RecvMeta, buffer: &[u8]) -> Option<SocketAddr> {
        let remote = canonical(meta.addr);
        let packets = buffer[..meta.len].chunks(meta.stride.max(1));
        if let Some(old_paths) = &mut *self.old_paths.lock().unwrap() {
            return Some(old_paths.sender(remote, packets));
        }
        match *self.redirection.read().unwrap() {
            Some(Redirection { from, to: Some(to) }) if remote == to => Some(from),
            Some(Redirection { from, to: Some(_) }) if remote == from => None,
            _ => Some(remote),
        }
    }

    pub(super) fn wake_reader(&self) {
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.wake();
        }
    }

    pub(super) fn count_error(&self, error: &io::Error) {
        // Path MTU discovery means to send what is too large.
        if !is_msg_size_err(error) {
            self.send_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "datagram not sent");
        }
    }

    pub(super) fn count_unsent(&self) {
        self.unsent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_sender(&self, meta: &RecvMeta, buffer: &[u8]) {
        let mut senders = self.senders.lock().unwrap();
        let Some(senders) = senders
            .as_mut()
            .filter(|senders| senders.len() < MAX_SENDERS)
        else {
            return;
        };
        let mut packets = buffer[..meta.len].chunks(meta.stride.max(1));
        if packets.any(|packet| !probe::has_long_header(packet)) {
            senders.insert(canonical(meta.addr));
        }
    }

    /// Whether a packet of a connection may have come from there, if senders are noted: of more than there is room
    /// for, everybody may be one.
    pub(super) fn is_noted(&self, remote: SocketAddr) -> Option<bool> {
        let senders = self.senders.lock().unwrap();
        let is_noted = |s: &HashSet<_>| s.len() >= MAX_SENDERS || s.contains(&remote);
        senders.as_ref().map(is_noted)
    }

    /// Has what a forwarder sends come from its clients. It introduces them by packets that noq discards.
    pub(super) fn put_back_clients(&self, meta: &mut RecvMeta, buffer: &[u8]) {
        if self.forwarded.read().unwrap().is_empty() {
            return;
        }
        let remote = canonical(meta.addr);
        let packets = buffer[..meta.len].chunks(meta.stride.max(1));
        // Anybody can send packets with long headers, and each would hold up who sends.
        let introduces = |packet: &&[u8]| {
            probe::has_long_header(packet) && self.forwarded.read().unwrap().is_introduction(packet)
        };
        for packet in packets.filter(introduces) {
            self.forwarded.write().unwrap().introduce(remote, packet);
        }
        let client = self.forwarded.read().unwrap().client(remote);
        if client != remote {
            meta.addr = mapped(client);
        }
    }

    /// Takes echoes of knocks out of a received buffer: it is left with length 0. They validate their sender, if
    /// that is new: noq keeps what it saw first.
    pub(super) fn take_echoes(&self, meta: &mut RecvMeta, buffer: &[u8]) {
        let remote = canonical(meta.addr);
        let packets = buffer[..meta.len].chunks(meta.stride.max(1));
        if !self.echoes.read().unwrap().are(remote, packets) {
            return;
        }
        let is_new = self.is_noted(remote) == Some(false);
        let local = meta.dst_ip.map(|ip| ip.to_canonical());
        if is_new && let Some(local) = local {
            self.echoes.write().unwrap().validate(local, remote);
            self.hidden.write().unwrap().insert(remote, local);
        }
        meta.len = 0;
    }

    /// The local address of a datagram as noq is to see it.
    ///
    /// noq takes a path for valid if it leads to where a valid one leads, as far as is known: where our own address
    /// is not shown to it, the client's decides. So where the client's is validated at ours, ours is hidden.
    pub(super) fn shown_local(&self, meta: &RecvMeta, shows_local: bool) -> Option<IpAddr> {
        let local = meta.dst_ip.map(|ip| ip.to_canonical());
        let is_hidden = |local| {
            let remote = canonical(meta.addr);
            self.echoes.read().unwrap().is_validated(local, remote)
        };
        local.filter(|local| shows_local && !is_hidden(*local))
    }

    /// Takes answers to probes out of a received buffer: it is left with length 0.
    pub(super) fn take_answers(&self, local: IpAddr, meta: &mut RecvMeta, buffer: &[u8]) {
        let remote = canonical(meta.addr);
        for packet in buffer[..meta.len].chunks(meta.stride.max(1)) {
            if !probe::has_long_header(packet) {
                return;
            }
            let mut recogniser = self.recogniser.lock().unwrap();
            let recogniser = recogniser.as_mut();
            let Some(hint) = recogniser.and_then(|r| r.hint(local, remote, packet)) else {
                return;
            };
            let answer = Answer {
                local,
                remote,
                hint,
            };
            let _ = self.answers.try_send(answer);
        }
        meta.len = 0;
    }
}
