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
//! A task of the [`Connection`] does all of this, whether h3 polls the connection or not. It ends with the
//! [`Connection`], which closes noq's when it is dropped.
//!
//! **Waiting.** Whoever drives the connection learns from its streams whether somebody waits for the peer,
//! and they learn from it why it gave the connection up (`supervision`). Nothing waits for a connection
//! that is lost. While a server is parked, what is written to its streams waits (`gate`).
//!
//! **Order.** Answers go in the order that the client asks for by the `Priority` field and PRIORITY_UPDATE frames
//! (RFC 9218; `turns`). The frames are read here (`priority_updates`); whoever reads the header tells [`Turns`] of
//! the field.
//!
//! **Truncated bodies.** noq finishes a stream that is dropped, and nothing in HTTP/3 makes a body
//! cut short that way different from a whole one. A [`SendStream`] dropped before it was finished is
//! therefore reset, with H3_INTERNAL_ERROR. Likewise noq reports the end of a stream to those who
//! read on after its failure; a [`RecvStream`] repeats the failure.
//!
//! **Frames.** h3 takes an empty DATA frame for the end of a body, and holds other frames until all of them is there,
//! however large. All streams hide the former from it, and what nobody knows. A frame that is too large ends its
//! stream, or the connection, with H3_EXCESSIVE_LOAD; if it is the header of a request, that is answered with 431
//! (`frame_filter`, [`limits::FIELD_SECTION`](crate::limits::FIELD_SECTION)). [`WholeBodies`] does the same for other
//! implementations of QUIC.
//!
//! [`MIGRATION_STREAM_TYPE`]: crate::proto::frame::MIGRATION_STREAM_TYPE

mod connection;
mod error;
mod field_section;
mod frame_filter;
mod frame_header;
pub(crate) mod gate;
pub(crate) mod go_away;
mod migration_stream;
mod priority;
mod priority_updates;
mod reassembly;
mod recv;
mod send;
pub(crate) mod send_window;
pub(crate) mod supervision;
mod turns;
mod whole_bodies;

pub(crate) use connection::Order;
pub use connection::{BidiStream, Connection, OpenStreams};
pub(crate) use migration_stream::try_open_migration_stream;
pub use migration_stream::{MigrationStream, open_migration_stream};
pub use priority::{NotAPriority, Priority};
pub use recv::RecvStream;
pub use send::SendStream;
pub use turns::Turns;
pub use whole_bodies::{RequestStream, WholeBodies, WholeBody, is_answered};

/// H3_NO_ERROR (RFC 9114 §8.1): a connection is closed, and nothing went wrong.
pub(crate) const NO_ERROR: noq::VarInt = noq::VarInt::from_u32(0x100);
