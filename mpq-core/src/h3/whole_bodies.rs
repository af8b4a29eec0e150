//! Request streams whose bodies h3 reads to their end, whichever QUIC carries them. See
//! [`frame_filter`](super::frame_filter).

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};

use super::frame_filter::FrameFilter;

/// A connection, or what opens streams of one, for h3 0.0.8, which takes an empty DATA frame for the end of a
/// body. [`Connection`](super::Connection) needs no such wrapping.
#[derive(Debug, Clone)]
pub struct WholeBodies<C>(C);

impl<C> WholeBodies<C> {
    /// Has all bodies that come over `connection` be read to their end.
    pub fn new(connection: C) -> Self {
        Self(connection)
    }
}

/// The halves of a stream of `S`.
type Whole<S, B> =
    RequestStream<<S as quic::BidiStream<B>>::SendStream, <S as quic::BidiStream<B>>::RecvStream>;

impl<B, C> quic::Connection<B> for WholeBodies<C>
where
    B: Buf,
    C: quic::Connection<B>,
    C::BidiStream: quic::BidiStream<B>,
{
    type RecvStream = C::RecvStream;
    type OpenStreams = WholeBodies<C::OpenStreams>;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        self.0.poll_accept_recv(cx)
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        self.0.poll_accept_bidi(cx).map_ok(RequestStream::from_bidi)
    }

    fn opener(&self) -> Self::OpenStreams {
        WholeBodies(self.0.opener())
    }
}

impl<B, C> quic::OpenStreams<B> for WholeBodies<C>
where
    B: Buf,
    C: quic::OpenStreams<B>,
    C::BidiStream: quic::BidiStream<B>,
{
    type BidiStream = Whole<C::BidiStream, B>;
    type SendStream = C::SendStream;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.0.poll_open_bidi(cx).map_ok(RequestStream::from_bidi)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.0.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.0.close(code, reason);
    }
}

/// A request stream: both directions, which can be split.
pub struct RequestStream<S, R> {
    send: S,
    recv: WholeBody<R>,
}

impl<S, R> RequestStream<S, R> {
    /// Of its halves, of which nothing was read yet.
    pub(super) fn new(send: S, recv: R) -> Self {
        let recv = WholeBody {
            stream: recv,
            frames: Some(FrameFilter::default()),
            ended: false,
        };
        Self { send, recv }
    }

    fn from_bidi<B: Buf>(stream: impl quic::BidiStream<B, SendStream = S, RecvStream = R>) -> Self {
        let (send, recv) = stream.split();
        Self::new(send, recv)
    }
}

impl<B, S, R> quic::BidiStream<B> for RequestStream<S, R>
where
    B: Buf,
    S: quic::SendStream<B>,
    R: quic::RecvStream,
{
    type SendStream = S;
    type RecvStream = WholeBody<R>;

    fn split(self) -> (S, WholeBody<R>) {
        (self.send, self.recv)
    }
}

impl<B, S, R> quic::SendStream<B> for RequestStream<S, R>
where
    B: Buf,
    S: quic::SendStream<B>,
{
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl<S, R: quic::RecvStream> quic::RecvStream for RequestStream<S, R> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

/// The receiving half of a request stream, which fails where it ends within a DATA frame; or a stream without
/// bodies, as it is: h3-util wants one type for both.
pub struct WholeBody<R> {
    stream: R,
    /// None where there are no bodies.
    frames: Option<FrameFilter>,
    ended: bool,
}

impl<R> WholeBody<R> {
    /// A unidirectional stream.
    pub(super) fn without_bodies(stream: R) -> Self {
        Self {
            stream,
            frames: None,
            ended: false,
        }
    }
}

impl<R: quic::RecvStream> quic::RecvStream for WholeBody<R> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let whole = |mut chunk: R::Buf| chunk.copy_to_bytes(chunk.remaining());
        let Some(frames) = &mut self.frames else {
            return self.stream.poll_data(cx).map_ok(|chunk| chunk.map(whole));
        };
        while !self.ended {
            if let Some(bytes) = frames.pop() {
                return Poll::Ready(Ok(Some(bytes)));
            }
            match ready!(self.stream.poll_data(cx))? {
                Some(chunk) => frames.push(whole(chunk)),
                None => self.ended = true,
            }
        }
        // RFC 9114 §7.1 wants the connection closed, as h3 does where it finds it itself. Its H3_FRAME_ERROR
        // cannot be asked for here.
        Poll::Ready(frames.finish().map_err(|error| {
            let connection_error = ConnectionErrorIncoming::InternalError(error.to_string());
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
        }))
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.stream.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.stream.recv_id()
    }
}
