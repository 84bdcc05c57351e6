//! Places and sizes, so that the compiler keeps plain and packed bytes apart.

/// A byte position in a layer's tar stream, after decompression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlainOffset(pub u64);

/// A byte position in a blob as it is stored, before decompression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackedOffset(pub u64);

/// Plain bytes in a native chunk at most: one squashfs block, so that packing copies chunks as they are.
pub const CHUNK_BYTES: usize = 1 << 17;

/// Plain bytes in a chunk of any format at most. Others' tables may cut larger chunks than ours
/// (eStargz: 4 MiB); a chunk is decoded whole into memory, so a table that asks for more is refused.
pub const CHUNK_BYTES_LIMIT: usize = 64 << 20;
