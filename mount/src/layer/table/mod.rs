//! A layer's table: its entries, and the chunks that hold their bytes, as one sealed file.
//!
//! ```text
//! header | entries | pieces | chunks | proofs | leads | windows | names      fixed records, then bytes they point into
//! ```
//!
//! A file's bytes are its *pieces*: each starts at an offset in the file and lies in one chunk, or is a hole,
//! and lasts until the next piece or the end of the file. A chunk is what is verified and cached.

mod format;
mod read;
mod records;
mod shapes;
mod write;

pub use read::{Lens, Proof, Table, TableError, from_reader, key};
pub(crate) use records::{Records, xattrs};
pub use shapes::{Checkpoint, Chunk, ChunkIndex, Codec, Piece, PieceRange, Stretch, stretches};
pub use write::{Excess, TableWriter};

#[cfg(test)]
mod tests;
