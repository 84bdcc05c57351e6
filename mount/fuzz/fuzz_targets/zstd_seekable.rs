//! Feeds bytes that the fuzzer makes up to `bodies/zstd_seekable.rs`, which tests run over the seeds.
#![no_main]

#[path = "../bodies/zstd_seekable.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
