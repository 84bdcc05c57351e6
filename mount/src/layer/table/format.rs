//! The records of a table file, as they lie in it.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Rises whenever an older reader would misread a table.
pub(super) const VERSION: u32 = 4;

/// The start of a table file. Integers are little-endian; positions count from byte 0 of the file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// `b"SIFNLAYR"`.
    pub magic: [u8; 8],
    pub version: U32,
    /// How many stretches of chunks its builder wants fetched before anybody asks.
    pub leads: U32,
    /// The blob that the packed offsets of chunks count in.
    pub layer: [u8; 32],
    /// What the table was made from, if not from the blob itself: the digest of its index; else zeros.
    pub index: [u8; 32],
    pub entries: U64,
    pub pieces: U64,
    pub chunks: U64,
    pub proofs: U64,
    /// Length of the part with the windows of checkpoints.
    pub windows_len: U64,
    /// Length of the part with names, link targets and attributes, which ends the file.
    pub names_len: U64,
}

/// One entry. Its names lie together in the names part: path, target, then attributes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct EntryRecord {
    pub names_at: U64,
    pub path_len: U32,
    pub target_len: U32,
    /// Attributes: for each, the lengths of name and value as u32, then both.
    pub xattrs_len: U32,
    /// One of the `KIND_` numbers.
    pub kind: u8,
    pub _reserved: u8,
    pub mode: U16,
    pub uid: U32,
    pub gid: U32,
    pub mtime_secs: I64,
    pub mtime_nanos: U32,
    pub pieces: U32,
    pub first_piece: U64,
    /// Bytes of a regular file; of a device, `major << 32 | minor`.
    pub size: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ChunkRecord {
    pub packed_at: U64,
    pub packed_len: U32,
    pub plain_len: U32,
    pub skip: U32,
    /// One of the `CODEC_` numbers.
    pub codec: u8,
    /// One of the `DIGEST_` numbers.
    pub algorithm: u8,
    /// Of a deflate chunk: the bits of its first byte, and its window in the windows part.
    pub bits: u8,
    pub _reserved: [u8; 5],
    pub window_len: U32,
    pub window_at: U64,
    pub digest: [u8; 32],
}

const _: () = assert!(size_of::<Header>() == 128 && size_of::<EntryRecord>() == 64);
/// Where the layer itself tells of a file that an index told of, in the order of the file's pieces.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ProofRecord {
    /// The first of the file's pieces, which tells it from others.
    pub first_piece: U64,
    pub entry: U64,
    /// The pieces of its tar headers.
    pub header: U64,
    pub header_pieces: U32,
    pub header_len: U32,
}

/// Chunks that are worth fetching before anybody asks, as the layer's builder thinks.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LeadRecord {
    pub first: U32,
    pub end: U32,
}

const _: () = assert!(size_of::<ChunkRecord>() == 72 && size_of::<ProofRecord>() == 32);

pub(super) const MAGIC: [u8; 8] = *b"SIFNLAYR";

pub(super) const KIND_DIRECTORY: u8 = 1;
pub(super) const KIND_REGULAR: u8 = 2;
pub(super) const KIND_SYMLINK: u8 = 3;
pub(super) const KIND_HARDLINK: u8 = 4;
pub(super) const KIND_CHAR_DEVICE: u8 = 5;
pub(super) const KIND_BLOCK_DEVICE: u8 = 6;
pub(super) const KIND_FIFO: u8 = 7;
pub(super) const KIND_SOCKET: u8 = 8;
pub(super) const KIND_WHITEOUT: u8 = 9;
pub(super) const KIND_OPAQUE: u8 = 10;
pub(super) const KIND_HIDDEN: u8 = 11;

pub(super) const DIGEST_SHA256: u8 = 1;
pub(super) const DIGEST_PACKED_BLAKE3: u8 = 2;
pub(super) const DIGEST_PACKED_SHA256: u8 = 3;
pub(super) const DIGEST_UNKNOWN: u8 = 4;

pub(super) const CODEC_RAW: u8 = 0;
pub(super) const CODEC_ZSTD: u8 = 1;
pub(super) const CODEC_GZIP: u8 = 2;
pub(super) const CODEC_DEFLATE: u8 = 3;
pub(super) const CODEC_ZLIB: u8 = 4;
pub(super) const CODEC_XZ: u8 = 5;
pub(super) const CODEC_LZ4: u8 = 6;
