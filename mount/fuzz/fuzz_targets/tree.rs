//! Feeds bytes that the fuzzer makes up to `bodies/tree.rs`, which tests run over the seeds.
#![no_main]

#[path = "../bodies/tree.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
