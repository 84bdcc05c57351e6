//! Feeds bytes that the fuzzer makes up to `bodies/squashfs.rs`.
#![no_main]

#[path = "../bodies/squashfs.rs"]
mod body;
#[path = "../bodies/written.rs"]
mod written;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::run(bytes));
