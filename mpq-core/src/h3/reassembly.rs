//! The bytes of a stream, taken from noq and handed out in order.
//!
//! What a client has asked for is most often taken as it comes, and put in order here
//! ([`Chunks::reordered`]). noq's own buffer may not hold more than a thousand gaps, so a stream's window is
//! small (see [`limits`](crate::limits)), and after a loss it would be full before what was lost can have
//! come again: every path would stand still. Taken from noq at once, what comes behind a gap does not count
//! there.
//!
//! **Lost by noq.** If noq has to make order among what was not taken yet, it takes all that lies before the
//! *number* of bytes that were for what it has given already (`Assembler::defragment` of noq-proto 1.4.0,
//! where quinn's begins at 0). Taken out of order, those are others: what just came to fill a gap is thrown
//! away, and acknowledged. noq makes order where what it holds occupies 32 KiB more memory than it has bytes,
//! and two and a half times as much: a few packets with three or more pieces each. Only packets larger than
//! Ethernet's were seen to hold as many (one of 150 downloads on loopback with an outage), so where a path may
//! have them noq's order is kept ([`Chunks::ordered`], `transport::order`). For all others, a gap that stays
//! although the connection is alive is taken for a reset of the stream: the rest can be asked for. Not known
//! upstream; `tests/noq.rs` tells when this can go.
//!
//! A server reads what clients send as noq has it in order: flow control is then what bounds the memory that
//! they can take.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h3::error::Code;
use noq::{ReadError, RecvStream, StreamId, UnorderedRecvStream, VarInt, WeakConnectionHandle};
use tokio::time::{Instant, Sleep, sleep};

use super::error::varint;
use crate::stats;

/// How many chunks to take from noq at once; it takes a lock, and a chunk is one packet's payload.
const BATCH_CHUNKS: usize = 32;
/// How many bytes may lie behind a gap here; noq holds a stream's window more.
const MAX_HELD: usize = 8 << 20;
/// How often a gap that so much lies behind is looked at: noq cannot tell when it is filled.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// For how many [ticks](GAP_TICK) in which the peer said something a gap may stay. What was lost on a path that
/// died comes sooner.
const MAX_GAP_TICKS: u32 = 10;
const GAP_TICK: Duration = Duration::from_secs(1);

/// A stream's bytes, in order.
pub(super) enum Chunks {
    Ordered(Ordered),
    Reordered(Reordered),
}

impl Chunks {
    /// As noq puts them in order. `head` was read before.
    pub(super) fn ordered(stream: RecvStream, head: Bytes) -> Self {
        Self::Ordered(Ordered {
            stream,
            unread: 0..usize::from(!head.is_empty()),
            batch: vec![head],
        })
    }

    /// As they come, put in order here. Nothing was read before.
    pub(super) fn reordered(stream: RecvStream, connection: WeakConnectionHandle) -> Self {
        Self::Reordered(Reordered {
            stream: stream.into_unordered(),
            queue: Queue::default(),
            flows: true,
            look: None,
            connection,
            watch: Watch::new(GAP_TICK),
        })
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        match self {
            Self::Ordered(stream) => stream.poll_next(cx),
            Self::Reordered(stream) => stream.poll_next(cx),
        }
    }

    /// Wants no more of it.
    pub(super) fn stop(&mut self, code: VarInt) {
        // Fails if all was received already, and then there is nothing to stop.
        let _ = match self {
            Self::Ordered(stream) => stream.stream.stop(code),
            Self::Reordered(stream) => stream.stream.stop(code),
        };
    }

    pub(super) fn id(&self) -> StreamId {
        match self {
            Self::Ordered(stream) => stream.stream.id(),
            Self::Reordered(stream) => stream.stream.id(),
        }
    }
}

pub(super) struct Ordered {
    stream: RecvStream,
    /// Chunks taken from noq, of which those in `unread` were not handed out yet.
    batch: Vec<Bytes>,
    unread: Range<usize>,
}

impl Ordered {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            if let Some(next) = self.unread.next() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.batch[next]))));
            }
            self.batch.resize(BATCH_CHUNKS, Bytes::new());
            // The future holds nothing of its own: noq keeps the waker with the stream, and so the
            // future can be made anew for each poll and `stop` finds the stream here.
            match ready!(pin!(self.stream.read_many_chunks(&mut self.batch)).poll(cx))? {
                Some(read) => self.unread = 0..read,
                None => return Poll::Ready(Ok(None)),
            }
        }
    }
}

pub(super) struct Reordered {
    stream: UnorderedRecvStream,
    queue: Queue,
    /// The last chunk was the next.
    flows: bool,
    look: Option<Pin<Box<Sleep>>>,
    connection: WeakConnectionHandle,
    watch: Watch,
}

impl Reordered {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        let chunk = self.poll_in_order(cx);
        if chunk.is_pending() && self.queue.held > 0 {
            let heard = || heard(&self.connection);
            ready!(self.watch.poll_lost(self.queue.next, heard, cx));
            let code = varint(Code::H3_INTERNAL_ERROR.value());
            // Fails if all was received already, and then there is nothing to stop.
            let _ = self.stream.stop(code);
            return Poll::Ready(Err(ReadError::Reset(code)));
        }
        chunk
    }

    fn poll_in_order(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            if let Some(bytes) = self.queue.pop() {
                return Poll::Ready(Ok(Some(bytes)));
            }
            // noq gives what is first of all that it has. With too much here already, a single byte
            // shows whether that is the next.
            let most = match self.flows || self.queue.held < MAX_HELD {
                true => usize::MAX,
                false => {
                    let look = self
                        .look
                        .get_or_insert_with(|| Box::pin(sleep(LOOK_INTERVAL)));
                    ready!(look.as_mut().poll(cx));
                    1
                }
            };
            self.look = None;
            let Some(chunk) = ready!(pin!(self.stream.read_chunk(most)).poll(cx))? else {
                return Poll::Ready(Ok(None));
            };
            let next = self.queue.put(chunk.offset, chunk.bytes);
            self.flows = next.is_some();
            if self.flows {
                return Poll::Ready(Ok(next));
            }
        }
    }
}

/// How much the peer has said on a connection; nobody else can make it more.
fn heard(connection: &WeakConnectionHandle) -> u64 {
    let connection = connection.upgrade();
    connection.map_or(0, |connection| stats::heard(&connection.stats().frame_rx))
}

/// Puts chunks in order. Each byte comes once.
#[derive(Default)]
struct Queue {
    /// Offset of the next byte to hand out.
    next: u64,
    /// What came behind a gap, by its offset.
    ahead: BTreeMap<u64, Bytes>,
    /// Bytes in `ahead`.
    held: usize,
}

impl Queue {
    /// Gives the chunk back if it is the next.
    fn put(&mut self, offset: u64, bytes: Bytes) -> Option<Bytes> {
        if offset == self.next {
            self.next += bytes.len() as u64;
            return Some(bytes);
        }
        self.held += bytes.len();
        self.ahead.insert(offset, bytes);
        None
    }

    /// The next chunk, if it came before.
    fn pop(&mut self) -> Option<Bytes> {
        let first = self.ahead.first_entry()?;
        if *first.key() != self.next {
            return None;
        }
        let bytes = first.remove();
        self.held -= bytes.len();
        self.next += bytes.len() as u64;
        Some(bytes)
    }
}

/// Finds out that a gap will not be filled.
struct Watch {
    /// Where it is.
    gap: u64,
    /// How much the peer has said.
    heard: u64,
    /// Since it is there, with something heard.
    ticks: u32,
    every: Duration,
    tick: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(every: Duration) -> Self {
        Self {
            gap: 0,
            heard: 0,
            ticks: 0,
            every,
            tick: Box::pin(sleep(every)),
        }
    }

    /// Ready if the gap at this offset stays, though the peer goes on speaking.
    fn poll_lost(&mut self, gap: u64, heard: impl Fn() -> u64, cx: &mut Context<'_>) -> Poll<()> {
        if self.gap != gap {
            self.gap = gap;
            self.ticks = 0;
        }
        while self.ticks < MAX_GAP_TICKS {
            ready!(self.tick.as_mut().poll(cx));
            self.tick.as_mut().reset(Instant::now() + self.every);
            let heard = heard();
            // Nothing comes from a server that is frozen.
            self.ticks += u32::from(heard > self.heard);
            self.heard = heard;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::sync::Arc;

    use noq::{ClientConfig, Endpoint, ServerConfig};
    use proptest::prelude::*;
    use tokio::net::UdpSocket;
    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;
    use crate::tls::{self, Identity, Trust};

    const MOMENT: Duration = Duration::from_micros(1);
    const TICKS: u64 = MAX_GAP_TICKS as u64;

    proptest! {
        #[test]
        fn chunks_that_come_in_any_order_are_handed_out_in_theirs(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 1..40)
                .prop_flat_map(|chunks| {
                    let mut offset = 0;
                    let mut placed = Vec::new();
                    for chunk in chunks {
                        let len = chunk.len();
                        placed.push((offset, chunk));
                        offset += len;
                    }
                    (Just(placed.clone()), Just(placed).prop_shuffle())
                })
        ) {
            let (whole, shuffled) = chunks;
            let mut queue = Queue::default();
            let (mut came, mut given) = (0, Vec::new());
            for (offset, chunk) in shuffled {
                came += chunk.len();
                given.extend(queue.put(offset as u64, chunk.into()).into_iter().flatten());
                given.extend(std::iter::from_fn(|| queue.pop()).flatten());
                prop_assert_eq!(queue.next as usize, given.len());
                prop_assert_eq!(queue.held, came - given.len());
            }
            prop_assert_eq!(given, whole.into_iter().flat_map(|(_, chunk)| chunk).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn a_gap_is_lost_if_it_stays_while_other_things_come() {
        let mut watch = Watch::new(MOMENT);
        let received = Cell::new(0);
        let more = || {
            received.set(received.get() + 1);
            received.get()
        };
        // Just before it would be lost, it is filled, and there is another one.
        poll_fn(|cx| {
            let gap = 1 + u64::from(received.get() >= TICKS - 1);
            let lost = watch.poll_lost(gap, more, cx);
            // It could not tell while it was looking.
            if received.get() == TICKS - 1 {
                cx.waker().wake_by_ref();
            }
            lost
        })
        .await;
        assert_eq!(received.get(), TICKS - 1 + TICKS);
    }

    #[tokio::test]
    async fn no_gap_is_lost_while_the_server_is_frozen() {
        let mut watch = Watch::new(MOMENT);
        let ticks = Cell::new(0);
        let nothing = || {
            ticks.set(ticks.get() + 1);
            1
        };
        poll_fn(|cx| {
            assert!(watch.poll_lost(1, nothing, cx).is_pending());
            if ticks.get() > 3 * TICKS {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn what_somebody_repeats_is_not_heard() {
        const REPEATED: u64 = 500;
        let here = "127.0.0.1:0";
        let identity = Identity::self_signed(&["localhost".to_owned()]).unwrap();
        let config = ServerConfig::with_crypto(Arc::new(tls::server_config(&identity).unwrap()));
        let server = Endpoint::server(config, here.parse().unwrap()).unwrap();
        let at_server = server.local_addr().unwrap();
        // He is between them, and repeats what the server has sent last whenever it is asked for.
        let socket = Arc::new(UdpSocket::bind(here).await.unwrap());
        let (between, repeat) = (socket.local_addr().unwrap(), Arc::new(Notify::new()));
        let repeats = repeat.clone();
        tokio::spawn(async move {
            let (mut client, mut last, mut buffer) = (at_server, Vec::new(), vec![0; 65_536]);
            loop {
                tokio::select! {
                    received = socket.recv_from(&mut buffer) => {
                        let (length, from) = received.unwrap();
                        let to = if from == at_server { client } else { at_server };
                        if from == at_server {
                            last = buffer[..length].to_vec();
                        } else {
                            client = from;
                        }
                        socket.send_to(&buffer[..length], to).await.unwrap();
                    }
                    () = repeats.notified() => drop(socket.send_to(&last, client).await.unwrap()),
                }
            }
        });
        let client = Endpoint::client(here.parse().unwrap()).unwrap();
        let config = ClientConfig::new(Arc::new(tls::client_config(&Trust::Insecure).unwrap()));
        let connecting = client.connect_with(config, between, "localhost").unwrap();
        let accepting = async { server.accept().await.unwrap().await };
        let (connection, accepted) = tokio::join!(connecting, accepting);
        let (connection, _accepted) = (connection.unwrap(), accepted.unwrap());

        let datagrams = || connection.stats().udp_rx.datagrams;
        let (before, all) = (heard(&connection.weak_handle()), datagrams() + REPEATED);
        while datagrams() < all {
            repeat.notify_one();
            yield_now().await;
        }
        // Both ends still look for the size of datagrams.
        let more = heard(&connection.weak_handle()) - before;
        assert!(more < REPEATED / 4, "{more}");
    }
}
