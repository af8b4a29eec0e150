//! See `mpq_fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mpq_fuzz::requests(bytes));
