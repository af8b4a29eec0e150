//! mpq-get
