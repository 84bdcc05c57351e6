//! Feeds bytes that the fuzzer makes up to `bodies/sif.rs`.
#![no_main]

#[path = "../bodies/sif.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
