//! The tree file, record by record.
//!
//! ```text
//! header | layer digests | nodes | names | bytes      fixed records, then bytes they point into
//! ```
//!
//! Nodes are numbered from 1, the root, breadth first. A directory's names are adjacent and sorted. The
//! bytes are those of names, link targets and extended attributes; positions in them count from their start.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const MAGIC: [u8; 8] = *b"SIFNTREE";

/// Rises whenever an older reader would misread a tree; a reader refuses all others.
pub(super) const VERSION: u32 = 1;

/// The start of a tree file. Integers are little-endian.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: U32,
    /// How many 32-byte digests of layers follow this header, the bottom one first.
    pub layers: U32,
    pub nodes: U32,
    pub names: U32,
    pub bytes_len: U64,
    /// Length of the whole file, so that a truncated one is noticed on opening.
    pub file_len: U64,
    /// Sum of the sizes of all regular files.
    pub file_bytes: U64,
    /// 1 if any node has extended attributes, else 0.
    pub has_xattrs: U32,
    pub _reserved: U32,
}

/// One file, however many names it has.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct NodeRecord {
    /// One of the `KIND_` numbers.
    pub kind: u8,
    pub _reserved: u8,
    pub mode: U16,
    pub uid: U32,
    pub gid: U32,
    pub nlink: U32,
    pub mtime_secs: I64,
    pub mtime_nanos: U32,
    /// Length of the extended attributes, encoded as in a layer's table.
    pub xattrs_len: U32,
    pub xattrs_at: U64,
    /// Length of a regular file or of a link's target, else 0.
    pub size: U64,
    /// Bytes of a regular file that are not in holes, else 0.
    pub allocated: U64,
    /// Of a directory, the place of its first name; of a regular file, of its first piece in the layer's
    /// table; of a symbolic link, of its target; of a device, `major << 32 | minor`.
    pub place: U64,
    /// How many names or pieces there are.
    pub count: U32,
    /// Of a directory, the number of the directory above; of a regular file, the place of its layer.
    pub owner: U32,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct NameRecord {
    pub at: U64,
    pub node: U32,
    pub len: U16,
    pub _reserved: U16,
}

const _: () = assert!(size_of::<Header>() == 56 && std::mem::offset_of!(Header, bytes_len) == 24);
const _: () =
    assert!(size_of::<NodeRecord>() == 72 && std::mem::offset_of!(NodeRecord, xattrs_at) == 32);
const _: () = assert!(size_of::<NameRecord>() == 16);

pub(super) const KIND_DIRECTORY: u8 = 1;
pub(super) const KIND_REGULAR: u8 = 2;
pub(super) const KIND_SYMLINK: u8 = 3;
pub(super) const KIND_CHAR_DEVICE: u8 = 4;
pub(super) const KIND_BLOCK_DEVICE: u8 = 5;
pub(super) const KIND_FIFO: u8 = 6;
pub(super) const KIND_SOCKET: u8 = 7;

/// Directories inside each other at most. Deeper ones no path that the kernel takes could name.
pub(super) const DEPTH_LIMIT: u16 = 4096;
