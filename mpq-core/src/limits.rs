//! How much a connection may hold: the windows of flow control, and paths.
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
/// Bytes of the header of a request, as RFC 9114 §4.2.2 counts them.
pub const FIELD_SECTION: u64 = 64 << 10;
/// Paths at a time. A move needs two for each interface.
pub(crate) const PATHS: u32 = 16;
