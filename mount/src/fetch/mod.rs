//! Chunks in motion: plain bytes of an image's layers, verified, from memory, store or source.

mod activity;
mod ahead;
mod blocks;
mod chunks;
mod complete;
mod copy;
mod download;
mod fetcher;
mod flights;
mod layer_chunks;
mod marks;
mod memory;
mod native;
mod pace;
mod remote;
mod resumed;
mod room;
mod spare;

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

pub use activity::{Count, Moved, Request, Why};
pub use chunks::Chunks;
pub use complete::{Completion, Lacking, Seekable};
pub use copy::PackedCopy;
pub use download::{Download, DownloadError};
pub use fetcher::Limits;
pub use layer_chunks::{LayerChunks, Origin};
pub use marks::Marks;
pub use native::Restream;
pub use resumed::Resumed;
pub use room::{Place, Room};

use crate::blob::BlobError;
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::layer::table::{ChunkIndex, TableError};

/// The chunks of an image's layers. `layer` counts the image's layers from the bottom, from 0.
pub trait ChunkSource: Send + Sync {
    /// A chunk that is in memory; never blocks.
    fn cached(&self, layer: u16, chunk: ChunkIndex) -> Option<Bytes>;

    /// Whether a chunk can be had without waiting for its source, as far as that is known. Blocks for the store at most.
    fn is_near(&self, _layer: u16, _chunk: ChunkIndex) -> bool {
        false
    }

    /// All of these chunks will be waited for, one after the other: what is missing of them may be asked for at once.
    fn announce(&self, _chunks: &[(u16, ChunkIndex)], _deadline: Instant) {}

    /// A chunk's plain bytes, verified. Blocks for store and source, until `deadline` at most.
    fn chunk(&self, layer: u16, chunk: ChunkIndex, deadline: Instant) -> Result<Bytes, ReadError>;

    /// Bytes `bytes` of a chunk that are in memory, fewer if it is shorter; never blocks.
    fn cached_part(&self, layer: u16, chunk: ChunkIndex, bytes: &Range<usize>) -> Option<Bytes> {
        self.cached(layer, chunk).map(|plain| within(&plain, bytes))
    }

    /// Bytes `bytes` of a chunk, fewer if it is shorter. Of a large one the rest need not come.
    fn part(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        bytes: &Range<usize>,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let plain = self.chunk(layer, chunk, deadline)?;
        Ok(within(&plain, bytes))
    }

    /// The same for one who reads every chunk once: it need not stay in memory.
    fn whole(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        deadline: Instant,
    ) -> Result<WholeChunk, ReadError> {
        let plain = self.chunk(layer, chunk, deadline)?;
        Ok(WholeChunk {
            plain,
            native: None,
        })
    }

    /// How a native layer's file has a chunk, verified, for one who needs no plain bytes: they are not decoded. `None` where that
    /// is not known, and where the chunk did not shrink.
    fn packed(
        &self,
        _layer: u16,
        _chunk: ChunkIndex,
        _deadline: Instant,
    ) -> Result<Option<NativeBytes>, ReadError> {
        Ok(None)
    }

    /// Has bytes `bytes` of a chunk in memory, if they can be had without waiting for the source, and if nobody is about to
    /// have them anyway.
    fn decode_ahead(&self, _layer: u16, _chunk: ChunkIndex, _bytes: &Range<usize>) {}

    /// Nobody will ask for bytes `bytes` of a chunk soon.
    fn forget(&self, _layer: u16, _chunk: ChunkIndex, _bytes: &Range<usize>) {}
}

/// What of `bytes` is there.
fn within(plain: &Bytes, bytes: &Range<usize>) -> Bytes {
    let end = bytes.end.min(plain.len());
    plain.slice(bytes.start.min(end)..end)
}

/// A chunk with what is known of it.
#[derive(Clone, Debug)]
pub struct WholeChunk {
    /// Its plain bytes, verified.
    pub plain: Bytes,
    /// Of a native layer's chunk, how it is packed.
    pub native: Option<NativeBytes>,
}

/// A chunk as a native layer's file has it: what compressing its plain bytes at
/// [`LEVEL`](crate::layer::native::LEVEL) gives, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeBytes {
    /// One zstd frame with its content size and a window of 128 KiB at most; `None` if the plain bytes do not shrink.
    pub frame: Option<Bytes>,
    /// The BLAKE3 digest of the frame, or of the plain bytes.
    pub digest: [u8; 32],
}

impl ReadError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Corrupt { .. } => Some(
                "the bytes were changed where they are kept or on the way: try again; if it stays so, the image \
                 must be pushed or copied again"
                    .into(),
            ),
            Self::Unproven { .. } => Some(
                "somebody attached a wrong SOCI index to the image: read it without --soci-v1".into(),
            ),
            Self::Late { .. } => Some("--timeout SECONDS waits longer".into()),
            Self::Source { source, .. } => source.hint(),
            Self::Table(_) | Self::Tree(_) => Some(
                "a file of the store is damaged: remove what is not in use with `sifon cache clean`, and try again"
                    .into(),
            ),
        }
    }
}

/// Why bytes of a file cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What came is not what the layer's table promises, from the store and from the source alike.
    #[error("layer {layer}, packed byte {}: the chunk's digest does not match", at.0)]
    Corrupt {
        /// The layer's blob.
        layer: Digest,
        /// Where in the blob (of a native layer: in its file) the chunk lies.
        at: PackedOffset,
    },
    /// Another reader was fetching the same chunk and did not finish in time.
    #[error("layer {layer}, packed byte {}: the chunk did not come in time", at.0)]
    Late {
        /// The layer's blob.
        layer: Digest,
        /// Where in the blob the chunk lies.
        at: PackedOffset,
    },
    /// The source failed.
    #[error("layer {layer}: cannot be read")]
    Source {
        /// The layer's blob.
        layer: Digest,
        /// What the source said.
        #[source]
        source: BlobError,
    },
    /// The layer's table was made from an index that nobody vouches for, and tells of a file otherwise than the layer.
    #[error("layer {layer}, file {name:?}: the index tells of it otherwise than the layer itself")]
    Unproven {
        /// The layer's blob.
        layer: Digest,
        /// The file's path, shortened.
        name: String,
    },
    /// The layer's table is damaged.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The tree is damaged.
    #[error("{0}")]
    Tree(String),
}
