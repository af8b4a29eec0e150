//! A connection as h3 sees it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, future, stream};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming};
use noq::ConnectionError;
use tokio::sync::oneshot;

use super::error::{connection_error, lost, varint};
use super::migration_stream::{MIGRATION_STREAM_TYPE, MigrationStream};
use super::reassembly::Chunks;
use super::recv::RecvStream;
use super::send::SendStream;
use super::send_window::{Body, SendWindow};
use super::whole_bodies::RequestStream;
use crate::congestion::send_control::SendControl;
use crate::proto::varint::read_varint;

/// How many incoming unidirectional streams may at once not have told their type yet. Later ones
/// stay in noq, where the peer's stream limit bounds them.
const MAX_UNTYPED: usize = 16;

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

/// A connection that h3 can serve or request over.
pub struct Connection {
    streams: OpenStreams,
    incoming_bi: Pending<(noq::SendStream, noq::RecvStream)>,
    incoming_uni: Pending<Uni>,
    migration: Option<oneshot::Sender<MigrationStream>>,
    send_window: Option<Arc<SendWindow>>,
}

impl Connection {
    /// Wraps `conn`, whose incoming streams nobody else may accept.
    ///
    /// The receiver yields the peer's first migration stream, or an error once the connection is
    /// dropped. If the receiver is dropped the peer is told that the stream is not wanted.
    pub fn new(conn: noq::Connection) -> (Self, oneshot::Receiver<MigrationStream>) {
        let (migration, receiver) = oneshot::channel();
        let accepted = repeat(conn.clone(), |conn| async move { conn.accept_uni().await });
        let sorted = accepted.map(|accepted| async {
            match accepted {
                Ok(stream) => sort(stream).await.map(Ok),
                Err(error) => Some(Err(error)),
            }
        });
        let connection = Self {
            incoming_bi: repeat(conn.clone(), |conn| async move { conn.accept_bi().await }),
            incoming_uni: Box::pin(
                sorted
                    .buffer_unordered(MAX_UNTYPED)
                    .filter_map(future::ready),
            ),
            streams: OpenStreams::new(conn, Order::Noq),
            migration: Some(migration),
            send_window: None,
        };
        (connection, receiver)
    }

    /// Has the answers to requests be read so; otherwise noq puts them in order.
    pub(crate) fn read(&mut self, order: Order) {
        self.streams.order = order;
    }

    /// Has the answers to requests be written no further ahead than the paths can use.
    pub(crate) fn bound(&mut self, paths: Arc<SendControl>) -> Arc<SendWindow> {
        let send_window = Arc::new(SendWindow::new(&self.streams.conn, paths));
        self.send_window = Some(send_window.clone());
        send_window
    }
}

/// An incoming unidirectional stream whose type is known.
enum Uni {
    Http(RecvStream),
    Migration(RecvStream),
}

/// Reads a stream's type. `None` if the stream ends or fails before: RFC 9114 §6.2 wants that
/// tolerated, and a lost connection is reported by accepting the next stream.
async fn sort(mut stream: noq::RecvStream) -> Option<Uni> {
    let mut head = Bytes::new();
    loop {
        let chunk = stream.read_chunk(usize::MAX).await.ok()??;
        head = if head.is_empty() {
            chunk
        } else {
            [head, chunk].concat().into()
        };
        let mut rest = &head[..];
        match read_varint(&mut rest) {
            Some(MIGRATION_STREAM_TYPE) => {
                let len = head.len() - rest.len();
                head.advance(len);
                return Some(Uni::Migration(Chunks::ordered(stream, head).into()));
            }
            Some(_) => return Some(Uni::Http(Chunks::ordered(stream, head).into())),
            None => {}
        }
    }
}

/// The next item of a stream that never ends.
fn poll_pending<T>(
    pending: &mut Pending<T>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, ConnectionErrorIncoming>> {
    let item = ready!(pending.poll_next_unpin(cx)).expect("it repeats forever");
    Poll::Ready(item.map_err(connection_error))
}

impl<B: Buf> quic::Connection<B> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = OpenStreams;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        loop {
            let stream = match ready!(poll_pending(&mut self.incoming_uni, cx))? {
                Uni::Http(stream) => return Poll::Ready(Ok(stream)),
                Uni::Migration(stream) => MigrationStream(stream),
            };
            let refused = match self.migration.take() {
                Some(receiver) => receiver.send(stream).err(),
                None => Some(stream),
            };
            if let Some(MigrationStream(mut stream)) = refused {
                quic::RecvStream::stop_sending(&mut stream, Code::H3_STREAM_CREATION_ERROR.value());
            }
        }
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, ConnectionErrorIncoming>> {
        let stream = ready!(poll_pending(&mut self.incoming_bi, cx))?;
        Poll::Ready(Ok(accepted(stream, self.send_window.clone())))
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
    opening_bi: Pending<(noq::SendStream, noq::RecvStream)>,
    opening_uni: Pending<noq::SendStream>,
}

impl OpenStreams {
    fn new(conn: noq::Connection, order: Order) -> Self {
        Self {
            order,
            opening_bi: repeat(conn.clone(), |conn| async move { conn.open_bi().await }),
            opening_uni: repeat(conn.clone(), |conn| async move { conn.open_uni().await }),
            conn,
        }
    }
}

impl Clone for OpenStreams {
    fn clone(&self) -> Self {
        Self::new(self.conn.clone(), self.order)
    }
}

impl<B: Buf> quic::OpenStreams<B> for OpenStreams {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        let (send, recv) = ready!(poll_pending(&mut self.opening_bi, cx)).map_err(lost)?;
        let chunks = match self.order {
            Order::Noq => Chunks::ordered(recv, Bytes::new()),
            Order::Ours => Chunks::reordered(recv, self.conn.weak_handle()),
        };
        let send = SendStream::new(send, None);
        Poll::Ready(Ok(RequestStream::new(send, chunks.into())))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        poll_pending(&mut self.opening_uni, cx)
            .map_ok(|stream| SendStream::new(stream, None))
            .map_err(lost)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.conn.close(varint(code.value()), reason);
    }
}

/// A request stream: both directions, which can be split.
pub type BidiStream<B> = RequestStream<SendStream<B>, RecvStream>;

/// A request stream of the peer's.
fn accepted<B: Buf>(
    (send, recv): (noq::SendStream, noq::RecvStream),
    send_window: Option<Arc<SendWindow>>,
) -> BidiStream<B> {
    // One answer after the other, as they were asked for (RFC 9218 §10): who asks for parts of a body
    // waits for the first. Fails once it is closed, which writing tells.
    let turn = i32::try_from(send.id().index()).unwrap_or(i32::MAX);
    let _ = send.set_priority(-turn);
    let send = SendStream::new(send, send_window.map(Body::new));
    RequestStream::new(send, Chunks::ordered(recv, Bytes::new()).into())
}
