//! Layer formats: bytes come in, entries, chunk tables and decoders come out. No network, no async.

pub mod entry;
pub mod table;

pub mod decode;
pub mod toc;
pub mod zstd_chunked;
