//! See `mpq_fuzz::responses`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mpq_fuzz::responses(bytes));
