//! mpq-get
fn main() {}
