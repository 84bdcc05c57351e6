//! What a table tells: pieces of files, and the chunks that they lie in.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::digest::ChunkDigest;
use crate::extent::PackedOffset;

/// Where a stretch of a file begins.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Piece {
    at: U64,
    chunk: U32,
    skip: U32,
}

const _: () = assert!(size_of::<Piece>() == 16);

const HOLE: u32 = u32::MAX;

/// The place of a chunk in its layer's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkIndex(pub u32);

/// A run of a layer's pieces: what one file consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PieceRange {
    /// The first one's place in the table.
    pub first: u64,
    /// How many follow each other.
    pub count: u32,
}

impl Piece {
    /// A stretch that begins at byte `at` of the file and at byte `skip` of the chunk's plain bytes.
    pub fn in_chunk(at: u64, chunk: ChunkIndex, skip: u32) -> Self {
        Self {
            at: at.into(),
            chunk: chunk.0.into(),
            skip: skip.into(),
        }
    }

    /// A stretch of zeros that nothing stores.
    pub fn hole(at: u64) -> Self {
        Self {
            at: at.into(),
            chunk: HOLE.into(),
            skip: 0.into(),
        }
    }

    /// The same stretch where everything begins `by` bytes later.
    pub fn moved_by(&self, by: u64) -> Self {
        Self {
            at: (self.at() + by).into(),
            ..*self
        }
    }

    /// Where in the file it begins.
    pub fn at(&self) -> u64 {
        self.at.get()
    }

    /// The chunk it lies in and where in the chunk's plain bytes it begins; `None` for a hole.
    pub fn chunk(&self) -> Option<(ChunkIndex, u32)> {
        (self.chunk.get() != HOLE).then_some((ChunkIndex(self.chunk.get()), self.skip.get()))
    }
}

/// A part of a file that lies in one chunk, from a byte of its plain bytes on, or in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// `None` for a hole.
    pub chunk: Option<(ChunkIndex, usize)>,
    /// At least one byte.
    pub len: u64,
}

/// Where bytes `from..to` of a file that consists of `pieces` lie. `None` if the pieces do not tell, because the
/// table is damaged.
pub fn stretches(pieces: &[Piece], from: u64, to: u64) -> Option<Vec<Stretch>> {
    let mut next = pieces.partition_point(|piece| piece.at() <= from);
    let mut at = from;
    let mut stretches = Vec::new();
    while at < to {
        let piece = pieces.get(next.checked_sub(1)?)?;
        let until = pieces.get(next).map_or(to, Piece::at).min(to);
        let len = until.checked_sub(at)?;
        let inside = at.checked_sub(piece.at())?;
        let chunk = match piece.chunk() {
            Some((chunk, skip)) => {
                let from = inside.checked_add(skip.into())?;
                Some((chunk, usize::try_from(from).ok()?))
            }
            None => None,
        };
        if len > 0 {
            stretches.push(Stretch { chunk, len });
        }
        at = until;
        next += 1;
    }
    Some(stretches)
}

/// How a chunk's packed bytes become plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec<'a> {
    /// They are the plain bytes.
    Raw,
    /// Zstd frames, in most formats one, until there are enough plain bytes; what follows is ignored.
    Zstd,
    /// Gzip members, in most formats one, until there are enough plain bytes; what follows is ignored.
    Gzip,
    /// A gzip stream from somewhere in its middle, through the ends of members, until there are enough plain bytes.
    Deflate(Checkpoint<'a>),
    /// A zlib stream (RFC 1950), a block of squashfs.
    Zlib,
    /// A stream of xz, a block of squashfs.
    Xz,
    /// A block of LZ4 without a frame, a block of squashfs.
    Lz4,
}

/// What resumes a gzip stream in its middle: the state that a decompressor would have there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    /// How many bits, the topmost, of the chunk's first packed byte come before the second; 0: all of its bytes are whole.
    pub bits: u8,
    /// The plain bytes before, at most 32 KiB and oldest first, as one zstd frame; empty where there are none.
    pub window: &'a [u8],
}

/// One chunk: where its packed bytes lie, and what they must become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where in the blob (of a native layer: in its file) the packed bytes begin.
    pub packed_at: PackedOffset,
    /// How many packed bytes there are at most.
    pub packed_len: u32,
    /// How many plain bytes of the frame or member come before the chunk's own: several chunks may share one.
    pub skip: u32,
    /// How many plain bytes of it are the chunk's, exactly.
    pub plain_len: u32,
    /// How packed bytes become plain ones.
    pub codec: Codec<'a>,
    /// What the chunk must hash to.
    pub digest: ChunkDigest,
}
