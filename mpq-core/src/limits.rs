//! How much a connection may hold: the windows of flow control, headers, and paths; and how many handshakes a server.
//!
//! A stream's window stays small, since noq ends a connection whose stream has too many gaps
//! ("too many gaps in stream buffer", about a thousand packets): 2 MiB cannot reach that. Where the paths
//! hold more, several streams do (`mpq-get --segments`).
//!
//! Path ids are never reused, so there is room for several moves of several interfaces; noq grants new ones
//! as old paths are abandoned.

/// Bytes a peer may send on one stream before they are read.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes a peer may send on all streams together before they are read.
pub const CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes kept for retransmission; part of a frozen server's image.
pub const SEND_WINDOW: u64 = 16 << 20;
/// Bytes that a client may send to a server on all streams together before they are read: less, since there are many
/// clients, and anybody may be one.
pub const REQUESTS_WINDOW: u32 = 8 << 20;
/// Bytes of the header of a request or an answer, as RFC 9114 §4.2.2 counts them; and of any other frame of HTTP/3
/// that is held until all of it is there.
pub const FIELD_SECTION: u64 = 64 << 10;
/// Handshakes at a time with clients whose address is not validated. Those of who comes beyond are asked to prove it
/// first (Retry, RFC 9000 §8.1.2), which costs them a round trip and the server no memory.
pub const UNVALIDATED_HANDSHAKES: usize = 128;
/// Handshakes at a time with all clients: each takes some 50 kB. Who comes beyond is not answered, and tries again.
pub const HANDSHAKES: usize = 2048;
/// First datagrams of clients that wait to be looked at.
pub(crate) const INCOMING: usize = 1024;
/// Bytes that follow the first datagram of such a client, and of all of them together.
pub(crate) const INCOMING_BUFFER: u64 = 64 << 10;
pub(crate) const INCOMING_BUFFERS: u64 = 4 << 20;
/// Paths at a time. A move needs two for each interface.
pub(crate) const PATHS: u32 = 16;
