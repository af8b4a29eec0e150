//! HTTP/3 over noq: the [`h3::quic`] traits for [`noq::Connection`], and the stream that carries
//! MIGRATION frames beside HTTP/3.
//!
//! **Migration streams.** Both ends may open one unidirectional stream of the type
//! [`MIGRATION_STREAM_TYPE`]. RFC 9114 §6.2 makes every other HTTP/3 endpoint discard it. h3 would
//! discard it too, so [`Connection`] reads the type of each incoming unidirectional stream itself:
//! the first stream of our type goes to the receiver that [`Connection::new`] returns, further ones
//! are refused, and all others reach h3 with the bytes read so far put back in front. The types of
//! several streams are awaited at once, so that none has to wait for a slow one.
//!
//! All of this happens while h3 polls the connection: in `accept` of a server, in `poll_close` or
//! `wait_idle` of a client.
//!
//! **Truncated bodies.** noq finishes a stream that is dropped, and nothing in HTTP/3 makes a body
//! cut short that way different from a whole one. A [`SendStream`] dropped before it was finished is
//! therefore reset, with H3_INTERNAL_ERROR. Likewise noq reports the end of a stream to those who
//! read on after its failure; a [`RecvStream`] repeats the failure.
//!
//! **Empty frames.** h3 takes an empty DATA frame for the end of a body. A [`BidiStream`] hides those from it;
//! [`WholeBodies`] does so for other implementations of QUIC.

pub(crate) mod ahead;
mod chunks;
mod data_frames;
mod whole_bodies;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, future, stream};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use noq::{ConnectionError, ReadError, VarInt, WriteError};
use tokio::sync::oneshot;

use self::ahead::{Ahead, Body};
use self::chunks::Chunks;
pub use self::whole_bodies::{RequestStream, WholeBodies, WholeBody};
use crate::congestion::careful::Careful;

/// The HTTP/3 type (RFC 9114 §6.2) of the unidirectional streams that carry MIGRATION frames:
/// "MIG" in ASCII.
pub const MIGRATION_STREAM_TYPE: u64 = 0x4d4947;

/// How many incoming unidirectional streams may at once not have told their type yet. Later ones
/// stay in noq, where the peer's stream limit bounds them.
const MAX_UNTYPED: usize = 16;

/// Opens a stream for MIGRATION frames towards the peer and writes its type.
///
/// # Errors
/// As noq's `open_uni` and `write_all`: the connection is lost, or the peer does not want the stream.
pub async fn open_migration_stream(conn: &noq::Connection) -> Result<noq::SendStream, WriteError> {
    // A varint of four bytes (RFC 9000 §16).
    const TYPE: [u8; 4] = (0b10 << 30 | MIGRATION_STREAM_TYPE as u32).to_be_bytes();
    let mut stream = conn.open_uni().await?;
    // Ahead of all bodies. Fails once it is closed, which writing tells.
    let _ = stream.set_priority(1);
    stream.write_all(&TYPE).await?;
    Ok(stream)
}

/// The peer's stream of MIGRATION frames, read up to and including its type.
pub struct MigrationStream(RecvStream);

impl MigrationStream {
    /// The next bytes, in order, or `None` at the end of the stream. Cancel-safe. Chunks have
    /// nothing to do with frames.
    ///
    /// # Errors
    /// As noq's `read_chunk`: the peer reset the stream or the connection is lost. Later calls
    /// fail in the same way.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        future::poll_fn(|cx| self.0.poll_chunk(cx)).await
    }
}

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
    ahead: Option<Arc<Ahead>>,
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
            ahead: None,
        };
        (connection, receiver)
    }

    /// Has the answers to requests be read so; otherwise noq puts them in order.
    pub(crate) fn read(&mut self, order: Order) {
        self.streams.order = order;
    }

    /// Has the answers to requests be written no further ahead than the paths can use.
    pub(crate) fn bound(&mut self, paths: Arc<Careful>) -> Arc<Ahead> {
        let ahead = Arc::new(Ahead::new(&self.streams.conn, paths));
        self.ahead = Some(ahead.clone());
        ahead
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
        match decode_varint(&head) {
            Some((MIGRATION_STREAM_TYPE, len)) => {
                head.advance(len);
                return Some(Uni::Migration(Chunks::ordered(stream, head).into()));
            }
            Some(_) => return Some(Uni::Http(Chunks::ordered(stream, head).into())),
            None => {}
        }
    }
}

/// A variable-length integer (RFC 9000 §16) and its length, if `bytes` hold all of it.
fn decode_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let len = 1 << (bytes.first()? >> 6);
    let value = bytes
        .get(..len)?
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((value & (u64::MAX >> (66 - 8 * len)), len))
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
        Poll::Ready(Ok(accepted(stream, self.ahead.clone())))
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

/// Who puts the bytes of an answer in order; see [`chunks`].
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
    ahead: Option<Arc<Ahead>>,
) -> BidiStream<B> {
    // One answer after the other, as they were asked for (RFC 9218 §10): who asks for parts of a body
    // waits for the first. Fails once it is closed, which writing tells.
    let turn = i32::try_from(send.id().index()).unwrap_or(i32::MAX);
    let _ = send.set_priority(-turn);
    let send = SendStream::new(send, ahead.map(Body::new));
    RequestStream::new(send, Chunks::ordered(recv, Bytes::new()).into())
}

/// The sending half of a stream. Dropped before it is finished, it is reset.
pub struct SendStream<B: Buf> {
    stream: noq::SendStream,
    /// What noq did not take yet.
    writing: Option<WriteBuf<B>>,
    /// How much it may take, if that is bounded.
    body: Option<Body>,
    /// Finished, reset, or stopped by the peer: noq may drop it as it likes.
    closed: bool,
}

impl<B: Buf> SendStream<B> {
    fn new(stream: noq::SendStream, body: Option<Body>) -> Self {
        Self {
            stream,
            writing: None,
            body,
            closed: false,
        }
    }
}

impl<B: Buf> Drop for SendStream<B> {
    fn drop(&mut self) {
        if !self.closed {
            quic::SendStream::reset(self, Code::H3_INTERNAL_ERROR.value());
        }
    }
}

impl<B: Buf> quic::SendStream<B> for SendStream<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            if let Some(body) = &self.body {
                body.adapt();
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())) {
                Ok(written) => data.advance(written),
                Err(error) => {
                    // When dropped, noq answers STOP_SENDING with the peer's own code, as RFC 9000
                    // §3.5 asks for.
                    self.closed |= matches!(error, WriteError::Stopped(_));
                    return Poll::Ready(Err(write_error(error)));
                }
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            // The frame before was given up half-way, by a dropped future: what follows would be
            // taken for its rest.
            let reason = "a frame was sent before the one before it was".to_owned();
            return Err(lost(ConnectionErrorIncoming::InternalError(reason)));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        let finished = self.stream.finish();
        self.closed = true;
        Poll::Ready(finished.map_err(|error| StreamErrorIncoming::Unknown(error.into())))
    }

    fn reset(&mut self, reset_code: u64) {
        // Fails if it is closed already, and then there is nothing to reset.
        let _ = self.stream.reset(varint(reset_code));
        self.closed = true;
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

/// The receiving half of a stream.
pub struct RecvStream {
    chunks: Chunks,
    failure: Option<ReadError>,
}

impl From<Chunks> for RecvStream {
    fn from(chunks: Chunks) -> Self {
        Self {
            chunks,
            failure: None,
        }
    }
}

impl RecvStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failure.clone()));
        }
        let chunk = ready!(self.chunks.poll_next(cx));
        self.failure = chunk.as_ref().err().cloned();
        Poll::Ready(chunk)
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.poll_chunk(cx).map_err(read_error)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.chunks.stop(varint(error_code));
        self.failure.get_or_insert(ReadError::ClosedStream);
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.chunks.id())
    }
}

fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn stream_id(id: noq::StreamId) -> StreamId {
    u64::from(id)
        .try_into()
        .expect("QUIC and HTTP/3 number streams alike")
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose {
            error_code: close.error_code.into(),
        },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn lost(connection_error: ConnectionErrorIncoming) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into(),
        },
        ReadError::ConnectionLost(error) => lost(connection_error(error)),
        error => StreamErrorIncoming::Unknown(error.into()),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated {
            error_code: code.into(),
        },
        WriteError::ConnectionLost(error) => lost(connection_error(error)),
        error => StreamErrorIncoming::Unknown(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::decode_varint;

    /// The examples of RFC 9000 §A.1, and each cut short by a byte.
    #[test]
    fn varints() {
        for (bytes, value) in [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(decode_varint(bytes), Some((value, bytes.len())));
            assert_eq!(decode_varint(&bytes[..bytes.len() - 1]), None);
        }
    }
}
