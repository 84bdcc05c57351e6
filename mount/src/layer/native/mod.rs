//! Native layers: a tar layer cut into chunks while it streams by for the only time.
//!
//! ```text
//! packed chunks … | tar headers (zstd) | footer        the native file, beside the layer's table
//! ```
//!
//! A file is cut at multiples of [`CHUNK_BYTES`]; what is left over, and every smaller file, goes into a
//! *bundle* with its neighbours in tar order. So chunks are squashfs data blocks and fragments: one zstd
//! frame each with its content size and a window of 128 KiB at most, no dictionary; raw where zstd does not
//! shrink; whole blocks of zeros are holes that nothing stores.
//!
//! The tar headers stay, so that the tar stream can be rebuilt from the file and its diffID checked again.

mod accept;
mod blocks;
mod compress;
mod cut;
mod decompress;
mod headers;
mod ordered;
mod stream;

pub use accept::accepted;
pub use compress::{Compressors, LEVEL, is_frame};
pub use headers::{Footer, RebuildError, rebuild};
pub use stream::{Blueprint, ConvertError, convert};

#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::extent::CHUNK_BYTES;
