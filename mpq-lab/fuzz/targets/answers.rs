//! See `mpq_fuzz::answers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mpq_fuzz::answers(bytes));
