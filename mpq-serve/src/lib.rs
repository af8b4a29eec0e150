//! mpq-serve
