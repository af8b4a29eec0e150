//! HTTP: asking for a body, whole or in parts, and what the answers mean for the bytes that are there.
//!
//! `request` sends requests and waits for the heads of their answers. [`resume`] says which bytes are
//! still to be asked for, and what becomes of those there are. `segments` reads a body by one request
//! or by several at once; by how many, `bandwidth_delay` decides.

mod bandwidth_delay;
pub(crate) mod request;
pub mod resume;
pub(crate) mod segments;
