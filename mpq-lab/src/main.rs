//! mpq-lab
fn main() {}
