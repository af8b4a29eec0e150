//! A connection as h3 sees it.

use std::collections::VecDeque;
use std::future::{self, Future};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{FutureExt, Stream, StreamExt, stream};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming};
use noq::ConnectionError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::NO_ERROR;
use super::error::{lost, stream_id, varint};
use super::frame_filter::CONTROL_STREAM_TYPE;
use super::gate::Gate;
use super::go_away::GoAway;
use super::migration_stream::MigrationStream;
use super::reassembly::Chunks;
use super::recv::RecvStream;
use super::send::SendStream;
use super::send_window::{Body, SendWindow};
use super::supervision::{Supervised, Supervision};
use super::turns::Turns;
use super::whole_bodies::{RequestStream, WholeBody};
use crate::congestion::send_control::SendControl;
use crate::error::TooFewStreams;
use crate::proto::frame::MIGRATION_STREAM_TYPE;
use crate::proto::varint::read_varint;

/// How many incoming unidirectional streams may at once not have told their type yet. Later ones
/// stay in noq, where the peer's stream limit bounds them.
const MAX_UNTYPED: usize = 16;

/// Those of RFC 9114 §6.2 and RFC 9204 §4.2 end with QPACK's decoder streams.
const LAST_STREAM_TYPE: u64 = 0x03;

/// For control and QPACK (RFC 9114 §6.2).
const CRITICAL_STREAMS: usize = 3;

/// Items that are always on their way: pending ones are kept from one poll to the next.
type Pending<T> = Pin<Box<dyn Stream<Item = Result<T, ConnectionError>> + Send + Sync>>;

/// Asks again and again for what `ask` gives. Unlike noq's futures, the stream owns its connection.
fn repeat<T, F>(conn: noq::Connection, ask: fn(noq::Connection) -> F) -> Pending<T>
where
    T: 'static,
    F: Future<Output = Result<T, ConnectionError>> + Send + Sync + 'static,
{
    Box::pin(stream::repeat(()).then(move |()| ask(conn.clone())))
}

/// The next item of a stream that never ends.
fn poll_pending<T>(
    pending: &mut Pending<T>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ConnectionError>> {
    Poll::Ready(ready!(pending.poll_next_unpin(cx)).expect("it repeats forever"))
}

/// A connection that h3 can serve or request over. It is closed when this is dropped: whoever watches over its streams
/// keeps noq's alive.
pub struct Connection {
    streams: OpenStreams,
    incoming_bi: Pending<(noq::SendStream, noq::RecvStream)>,
    /// Those that are h3's.
    incoming_uni: mpsc::UnboundedReceiver<RecvStream>,
    /// Ends with the connection: what it does keeps noq's alive.
    _sorting: JoinSet<()>,
    answers: Option<(Arc<SendWindow>, Gate)>,
    turns: Turns,
}

impl Connection {
    /// Wraps `conn`, whose incoming streams nobody else may accept, and accepts its unidirectional ones from
    /// now on, in a task.
    ///
    /// The receiver yields the peer's first migration stream, or an error once the connection is
    /// dropped. If the receiver is dropped the peer is told that the stream is not wanted.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(conn: noq::Connection) -> (Self, oneshot::Receiver<MigrationStream>) {
        let (migration, receiver) = oneshot::channel();
        let (to_h3, incoming_uni) = mpsc::unbounded_channel();
        let supervision = Arc::<Supervision>::default();
        let mut sorting = JoinSet::new();
        let turns = Turns::default();
        let sort = sort(
            conn.clone(),
            supervision.clone(),
            turns.clone(),
            migration,
            to_h3,
        );
        sorting.spawn(sort);
        let connection = Self {
            incoming_bi: repeat(conn.clone(), |conn| async move { conn.accept_bi().await }),
            incoming_uni,
            _sorting: sorting,
            streams: OpenStreams::new(conn, Order::Noq, supervision, GoAway::default()),
            answers: None,
            turns,
        };
        (connection, receiver)
    }

    /// What its streams and its driver tell each other.
    pub(crate) fn supervision(&self) -> Arc<Supervision> {
        self.streams.supervision.clone()
    }

    /// What tells the client of a server to make no more requests.
    pub(crate) fn go_away(&self) -> GoAway {
        self.streams.go_away.clone()
    }

    /// Whose turn it is among the answers.
    pub fn turns(&self) -> Turns {
        self.turns.clone()
    }

    /// Opens the streams that HTTP/3 cannot do without, for h3 to have them: it would wait for ever for a peer
    /// that does not allow them. Such a peer is left.
    ///
    /// # Errors
    /// There are too few.
    pub(crate) fn open_critical_streams(&mut self) -> Result<(), TooFewStreams> {
        let conn = &self.streams.conn;
        while self.streams.opened.len() < CRITICAL_STREAMS {
            match conn.open_uni().now_or_never() {
                Some(Ok(stream)) => self.streams.opened.push_back(stream),
                // h3 comes to know of a connection that is lost.
                Some(Err(_)) => break,
                None => {
                    let error = TooFewStreams {
                        allowed: self.streams.opened.len(),
                    };
                    let code = varint(Code::H3_GENERAL_PROTOCOL_ERROR.value());
                    conn.close(code, error.to_string().as_bytes());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Has the answers to requests be read so; otherwise noq puts them in order.
    pub(crate) fn read(&mut self, order: Order) {
        self.streams.order = order;
    }

    /// Has the answers to requests be written while the gate is open, and no further ahead than the paths can
    /// use.
    pub(crate) fn bound(&mut self, paths: Arc<SendControl>, gate: Gate) -> Arc<SendWindow> {
        let send_window = Arc::new(SendWindow::new(&self.streams.conn, paths));
        self.answers = Some((send_window.clone(), gate));
        send_window
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let conn = &self.streams.conn;
        // h3's connections do it themselves, but whoever drops a handshake has none.
        if conn.close_reason().is_none() {
            conn.close(NO_ERROR, b"the connection is not wanted");
        }
    }
}

/// Accepts unidirectional streams until the connection is lost: the first migration stream is for its
/// receiver, those of HTTP/3 are h3's, and all others are refused (RFC 9114 §6.2). How many wait to be taken by h3
/// is bounded by the peer's stream limit; and what comes on QPACK's, which h3 does not read since there is no
/// dynamic table, by flow control.
async fn sort(
    conn: noq::Connection,
    supervision: Arc<Supervision>,
    turns: Turns,
    migration: oneshot::Sender<MigrationStream>,
    to_h3: mpsc::UnboundedSender<RecvStream>,
) {
    let accepted = repeat(conn, |conn| async move { conn.accept_uni().await });
    let accepted = accepted.take_while(|accepted| future::ready(accepted.is_ok()));
    let typed = accepted.filter_map(|accepted| future::ready(accepted.ok()));
    let mut typed = pin!(typed.map(read_type).buffer_unordered(MAX_UNTYPED));
    let mut migration = Some(migration);
    while let Some(stream) = typed.next().await {
        let Some((stream_type, mut chunks)) = stream else {
            continue;
        };
        if stream_type > LAST_STREAM_TYPE && stream_type != MIGRATION_STREAM_TYPE {
            chunks.stop(varint(Code::H3_STREAM_CREATION_ERROR.value()));
            continue;
        }
        let supervised = Supervised::other(supervision.clone());
        let stream = match stream_type {
            CONTROL_STREAM_TYPE => RecvStream::control(chunks, supervised, turns.clone()),
            _ => RecvStream::new(chunks, supervised),
        };
        if stream_type != MIGRATION_STREAM_TYPE {
            // Fails while the connection is being dropped.
            let _ = to_h3.send(stream);
            continue;
        }
        let stream = MigrationStream(stream);
        let refused = match migration.take() {
            Some(receiver) => receiver.send(stream).err(),
            None => Some(stream),
        };
        if let Some(MigrationStream(mut stream)) = refused {
            quic::RecvStream::stop_sending(&mut stream, Code::H3_STREAM_CREATION_ERROR.value());
        }
    }
}

/// Reads a stream's type, which h3 reads again of its own. `None` if the stream ends or fails before:
/// RFC 9114 §6.2 wants that tolerated, and a lost connection is reported by accepting the next stream.
async fn read_type(mut stream: noq::RecvStream) -> Option<(u64, Chunks)> {
    let mut head = Bytes::new();
    loop {
        let chunk = stream.read_chunk(usize::MAX).await.ok()??;
        head = if head.is_empty() {
            chunk
        } else {
            [head, chunk].concat().into()
        };
        let mut rest = &head[..];
        let Some(stream_type) = read_varint(&mut rest) else {
            continue;
        };
        if stream_type == MIGRATION_STREAM_TYPE {
            let len = head.len() - rest.len();
            head.advance(len);
        }
        return Some((stream_type, Chunks::ordered(stream, head)));
    }
}

impl<B: Buf> quic::Connection<B> for Connection {
    type RecvStream = WholeBody<RecvStream>;
    type OpenStreams = OpenStreams;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<WholeBody<RecvStream>, ConnectionErrorIncoming>> {
        match ready!(self.incoming_uni.poll_recv(cx)) {
            Some(stream) => {
                let (conn, supervision) =
                    (self.streams.conn.clone(), self.streams.supervision.clone());
                let close = move |code, reason: &[u8]| supervision.close(&conn, code, reason);
                Poll::Ready(Ok(WholeBody::unidirectional(stream, Box::new(close))))
            }
            None => {
                let reason = self.streams.conn.close_reason();
                let reason = reason.unwrap_or(ConnectionError::LocallyClosed);
                Poll::Ready(Err(self.streams.supervision.connection_error(reason)))
            }
        }
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, ConnectionErrorIncoming>> {
        let supervision = &self.streams.supervision;
        let stream = loop {
            let (mut send, mut recv) = ready!(poll_pending(&mut self.incoming_bi, cx))
                .map_err(|error| supervision.connection_error(error))?;
            if self.streams.go_away.accepts(send.id()) {
                break (send, recv);
            }
            // The client may make this one again elsewhere (RFC 9114 §4.1.1).
            let code = varint(Code::H3_REQUEST_REJECTED.value());
            let _ = (send.reset(code), recv.stop(code));
        };
        let answers = self.answers.clone();
        Poll::Ready(Ok(accepted(stream, supervision, &self.turns, answers)))
    }

    fn opener(&self) -> OpenStreams {
        self.streams.clone()
    }
}

impl<B: Buf> quic::OpenStreams<B> for Connection {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        self.streams.poll_open_bidi(cx)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        self.streams.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        quic::OpenStreams::<B>::close(&mut self.streams, code, reason);
    }
}

/// Who puts the bytes of an answer in order; see [`reassembly`](super::reassembly).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    Noq,
    Ours,
}

/// Opens streams of a [`Connection`].
pub struct OpenStreams {
    conn: noq::Connection,
    order: Order,
    supervision: Arc<Supervision>,
    /// What waits is a request.
    supervised: Supervised,
    go_away: GoAway,
    opening_bi: Pending<(noq::SendStream, noq::RecvStream)>,
    opening_uni: Pending<noq::SendStream>,
    /// Those that are to be had at once.
    opened: VecDeque<noq::SendStream>,
}

impl OpenStreams {
    fn new(
        conn: noq::Connection,
        order: Order,
        supervision: Arc<Supervision>,
        go_away: GoAway,
    ) -> Self {
        Self {
            order,
            supervised: Supervised::request(supervision.clone()),
            supervision,
            go_away,
            opening_bi: repeat(conn.clone(), |conn| async move { conn.open_bi().await }),
            opening_uni: repeat(conn.clone(), |conn| async move { conn.open_uni().await }),
            opened: VecDeque::new(),
            conn,
        }
    }
}

impl Clone for OpenStreams {
    fn clone(&self) -> Self {
        let (supervision, go_away) = (self.supervision.clone(), self.go_away.clone());
        Self::new(self.conn.clone(), self.order, supervision, go_away)
    }
}

impl<B: Buf> quic::OpenStreams<B> for OpenStreams {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        let opened = poll_pending(&mut self.opening_bi, cx);
        let (send, recv) = ready!(self.supervised.note(opened))
            .map_err(|error| lost(self.supervision.connection_error(error)))?;
        let chunks = match self.order {
            Order::Noq => Chunks::ordered(recv, Bytes::new()),
            Order::Ours => Chunks::reordered(recv, self.conn.weak_handle()),
        };
        let supervised = || Supervised::request(self.supervision.clone());
        let send = SendStream::new(send, supervised(), None, None);
        let recv = RecvStream::new(chunks, supervised());
        Poll::Ready(Ok(RequestStream::new(send, recv, None)))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        let supervision = &self.supervision;
        let opened = match self.opened.pop_front() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => poll_pending(&mut self.opening_uni, cx),
        };
        opened
            .map_ok(|stream| {
                let stream = self.go_away.opened(stream);
                SendStream::new(stream, Supervised::other(supervision.clone()), None, None)
            })
            .map_err(|error| lost(supervision.connection_error(error)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.supervision.close(&self.conn, code, reason);
    }
}

/// A request stream: both directions, which can be split.
pub type BidiStream<B> = RequestStream<SendStream<B>, RecvStream>;

/// A request stream of the peer's.
fn accepted<B: Buf>(
    (send, recv): (noq::SendStream, noq::RecvStream),
    supervision: &Arc<Supervision>,
    turns: &Turns,
    answers: Option<(Arc<SendWindow>, Gate)>,
) -> BidiStream<B> {
    let turn = turns.begin(stream_id(send.id()));
    let supervised = || Supervised::request(supervision.clone());
    let body = answers.map(|(window, gate)| Body::new(window, gate));
    let send = SendStream::new(send, supervised(), Some(turn), body);
    let recv = RecvStream::new(Chunks::ordered(recv, Bytes::new()), supervised());
    RequestStream::new(send, recv, Some(SendStream::poll_refuse))
}
