//! Feeds bytes that the fuzzer makes up to `bodies/toc.rs`, which tests run over the seeds.
#![no_main]

#[path = "../bodies/toc.rs"]
mod body;
#[path = "../bodies/written.rs"]
mod written;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
