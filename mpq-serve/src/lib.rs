//! mpq-serve
pub mod args;
pub mod files;
pub mod http;
pub mod random;
pub mod range;
