//! See `mpq_fuzz::schedules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mpq_fuzz::schedules(bytes));
