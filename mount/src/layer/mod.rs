//! Layer formats: bytes come in, entries, chunk tables and decoders come out. No network, no async.

pub mod entry;
pub mod landmark;
pub mod table;

pub mod tar;

pub mod inflate;

pub mod decode;
pub mod native;

pub mod toc;

pub mod estargz;
pub mod soci;
pub mod squashfs;
pub mod zstd_chunked;
pub mod zstd_seekable;
