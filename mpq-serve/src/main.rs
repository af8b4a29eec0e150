//! mpq-serve
fn main() {}
