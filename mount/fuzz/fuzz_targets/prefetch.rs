//! Feeds bytes that the fuzzer makes up to `bodies/prefetch.rs`, which tests run over the seeds.
#![no_main]

#[path = "../bodies/prefetch.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
