//! Streams whose bodies h3 reads to their end, and of whose frames no more is held than may be, whichever QUIC
//! carries them. See [`frame_filter`](super::frame_filter).

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};

use super::frame_filter::{FrameFilter, TooLarge};

/// How many chunks of a stream may bring nothing for h3 before it is somebody else's turn.
const MOST_IN_VAIN: u32 = 64;

/// A connection, or what opens streams of one, for h3 0.0.8, which takes an empty DATA frame for the end of a
/// body, and holds frames of any size. [`Connection`](super::Connection) needs no such wrapping.
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
    C::OpenStreams: Send + Sync + 'static,
{
    type RecvStream = WholeBody<C::RecvStream>;
    type OpenStreams = WholeBodies<C::OpenStreams>;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(self.0.poll_accept_recv(cx))?;
        let mut opener = self.0.opener();
        let close = move |code, reason: &[u8]| quic::OpenStreams::close(&mut opener, code, reason);
        Poll::Ready(Ok(WholeBody::unidirectional(stream, Box::new(close))))
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
    refuse: Option<Refuse<S>>,
}

/// Whether a request that could not be read was answered all the same: its header is too large, and the client has got
/// 431 (RFC 6585 §5).
pub fn is_answered(error: &StreamError) -> bool {
    match error {
        StreamError::HeaderTooBig { .. } => true,
        StreamError::Undefined { 0: error, .. } => error
            .downcast_ref::<TooLarge>()
            .is_some_and(TooLarge::is_header),
        _ => false,
    }
}

/// Answers that the header of the request is too large (431, RFC 6585 §5), unless there is an answer already.
pub(super) type Refuse<S> = fn(&mut S, &mut Context<'_>) -> Poll<()>;

impl<S, R> RequestStream<S, R> {
    /// Of its halves, of which nothing was read yet. Of a request of the peer's with what refuses it.
    pub(super) fn new(send: S, recv: R, refuse: Option<Refuse<S>>) -> Self {
        let recv = WholeBody::new(recv, FrameFilter::of_request());
        Self { send, recv, refuse }
    }

    fn from_bidi<B: Buf>(stream: impl quic::BidiStream<B, SendStream = S, RecvStream = R>) -> Self {
        let (send, recv) = stream.split();
        Self::new(send, recv, None)
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
        let chunk = ready!(self.recv.poll_frames(cx));
        if let Some(frame) = &self.recv.too_large {
            let code = match self.refuse {
                Some(refuse) if frame.is_header() => {
                    ready!(refuse(&mut self.send, cx));
                    Code::H3_NO_ERROR
                }
                _ => Code::H3_EXCESSIVE_LOAD,
            };
            self.recv.stop_sending(code.value());
        }
        Poll::Ready(chunk)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

/// The receiving half of a request stream, which fails where it ends within a DATA frame, or a unidirectional
/// stream: h3-util wants one type for both. Either fails where a frame is too large.
pub struct WholeBody<R> {
    stream: R,
    frames: FrameFilter,
    ended: bool,
    too_large: Option<TooLarge>,
    close: Option<Close>,
}

/// Closes the connection: one stream alone cannot be given up where HTTP/3 cannot do without it.
pub(super) type Close = Box<dyn FnMut(Code, &[u8]) + Send + Sync>;

impl<R> WholeBody<R> {
    fn new(stream: R, frames: FrameFilter) -> Self {
        Self {
            stream,
            frames,
            ended: false,
            too_large: None,
            close: None,
        }
    }

    /// A unidirectional stream of the peer's, from its type on.
    pub(super) fn unidirectional(stream: R, close: Close) -> Self {
        Self {
            close: Some(close),
            ..Self::new(stream, FrameFilter::of_unidirectional())
        }
    }
}

impl<R: quic::RecvStream> WholeBody<R> {
    /// The next bytes for h3. What fails, fails each time.
    fn poll_frames(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let mut in_vain = 0;
        while !self.ended && self.too_large.is_none() {
            match self.frames.pop() {
                Ok(Some(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                Ok(None) if in_vain == MOST_IN_VAIN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(None) => in_vain += 1,
                Err(error) => {
                    self.too_large = Some(error);
                    break;
                }
            }
            match ready!(self.stream.poll_data(cx))? {
                Some(mut chunk) => self.frames.push(chunk.copy_to_bytes(chunk.remaining())),
                None => self.ended = true,
            }
        }
        if let Some(error) = &self.too_large {
            let error = Box::new(error.clone());
            return Poll::Ready(Err(StreamErrorIncoming::Unknown(error)));
        }
        // RFC 9114 §7.1 wants the connection closed, as h3 does where it finds it itself. Its H3_FRAME_ERROR
        // cannot be asked for here.
        Poll::Ready(self.frames.finish().map_err(|error| {
            let connection_error = ConnectionErrorIncoming::InternalError(error.to_string());
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
        }))
    }
}

impl<R: quic::RecvStream> quic::RecvStream for WholeBody<R> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let chunk = ready!(self.poll_frames(cx));
        if let Some(error) = &self.too_large {
            let code = Code::H3_EXCESSIVE_LOAD;
            match &mut self.close {
                Some(close) => close(code, error.to_string().as_bytes()),
                None => self.stream.stop_sending(code.value()),
            }
        }
        Poll::Ready(chunk)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.stream.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.stream.recv_id()
    }
}
