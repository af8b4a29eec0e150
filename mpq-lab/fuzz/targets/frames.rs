//! See `mpq_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mpq_fuzz::frames(bytes));
