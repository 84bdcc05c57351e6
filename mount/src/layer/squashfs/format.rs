//! squashfs 4.0, record by record, as `fs/squashfs/squashfs_fs.h` of Linux defines it; integers are little-endian.
//!
//! ```text
//! superblock | compressor options | data blocks and fragments | inodes | directories
//!            | fragment table | export table | id table | attributes and their table
//! ```
//!
//! Inodes, directories, attributes and tables are streams of *metadata blocks* of 8 KiB before compression. A
//! *reference* to something in such a stream is the place of its block, counted from the stream's start in the file,
//! and the byte in the plain block.

#![expect(missing_docs, reason = "the names are those of the format")]

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first 96 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    pub magic: [u8; 4],
    pub inodes: U32,
    pub created: U32,
    pub block_bytes: U32,
    pub fragments: U32,
    pub compression: U16,
    pub block_log: U16,
    /// `FLAG_` bits.
    pub flags: U16,
    pub ids: U16,
    pub major: U16,
    pub minor: U16,
    pub root: U64,
    pub bytes_used: U64,
    pub ids_at: U64,
    pub xattrs_at: U64,
    pub inodes_at: U64,
    pub directories_at: U64,
    pub fragments_at: U64,
    pub export_at: U64,
}

/// What every inode begins with.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeHeader {
    /// One of the `TYPE_` numbers; of the longer forms, [`EXTENDED`] more.
    pub kind: U16,
    pub mode: U16,
    /// Places in the id table.
    pub uid: U16,
    pub gid: U16,
    pub mtime: U32,
    /// From 1.
    pub number: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Directory {
    /// Where the block begins in which the listing does.
    pub block: U32,
    pub nlink: U32,
    /// Three more than the listing has, as if it held `.` and `..`.
    pub len: U16,
    pub offset: U16,
    /// The number of the directory above.
    pub parent: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedDirectory {
    pub nlink: U32,
    pub len: U32,
    pub block: U32,
    pub parent: U32,
    /// How many [`IndexEntry`] follow, each with its name.
    pub indexes: U16,
    pub offset: U16,
    pub xattrs: U32,
}

/// A place in a long listing where a header stands, so that a name is found without reading what is before.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndexEntry {
    /// Bytes of the listing before the header.
    pub at: U32,
    /// Where the header's block begins.
    pub block: U32,
    /// One less than the length of the name, which is that of the first entry there.
    pub name_len: U32,
}

/// A regular file; the sizes of its blocks follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct File {
    pub block: U32,
    pub fragment: U32,
    pub offset: U32,
    pub len: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedFile {
    pub block: U64,
    pub len: U64,
    /// Bytes in holes.
    pub sparse: U64,
    pub nlink: U32,
    pub fragment: U32,
    pub offset: U32,
    pub xattrs: U32,
}

/// What precedes at most 256 entries of a listing whose inodes lie in one metadata block.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ListingHeader {
    /// One less than there are.
    pub entries: U32,
    pub block: U32,
    /// What the entries' numbers count from.
    pub number: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ListingEntry {
    pub offset: U16,
    /// Two's complement.
    pub number: U16,
    pub kind: U16,
    /// One less than the name is long, which follows.
    pub name_len: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Fragment {
    pub at: U64,
    /// With [`STORED_BLOCK`], if it is not compressed.
    pub len: U32,
    pub unused: U32,
}

/// The attributes that some inodes share.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrSet {
    pub reference: U64,
    pub count: U32,
    /// Plain bytes.
    pub len: U32,
}

/// What precedes the list of blocks of [`XattrSet`].
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrTable {
    pub attributes_at: U64,
    pub sets: U32,
    pub unused: U32,
}

const _: () = assert!(size_of::<Superblock>() == 96 && size_of::<InodeHeader>() == 16);
const _: () = assert!(size_of::<Directory>() == 16 && size_of::<ExtendedDirectory>() == 24);
const _: () = assert!(size_of::<File>() == 16 && size_of::<ExtendedFile>() == 40);
const _: () = assert!(size_of::<ListingHeader>() == 12 && size_of::<ListingEntry>() == 8);
const _: () = assert!(size_of::<Fragment>() == 16 && size_of::<XattrSet>() == 16);
const _: () = assert!(size_of::<XattrTable>() == 16 && size_of::<IndexEntry>() == 12);

pub const MAGIC: [u8; 4] = *b"hsqs";

/// Plain bytes of a metadata block.
pub const METADATA_BYTES: usize = 8 << 10;
/// In the two bytes before a metadata block: it is not compressed.
pub const STORED_METADATA: u16 = 1 << 15;
/// In the size of a data block or fragment: it is not compressed.
pub const STORED_BLOCK: u32 = 1 << 24;

pub const TYPE_DIRECTORY: u16 = 1;
pub const TYPE_FILE: u16 = 2;
pub const TYPE_SYMLINK: u16 = 3;
pub const TYPE_BLOCK_DEVICE: u16 = 4;
pub const TYPE_CHAR_DEVICE: u16 = 5;
pub const TYPE_FIFO: u16 = 6;
pub const TYPE_SOCKET: u16 = 7;
/// What a longer form's type has more than the short one's.
pub const EXTENDED: u16 = 7;

/// Inodes are stored as they are.
pub const FLAG_STORED_INODES: u16 = 0x01;
/// The same of data blocks.
pub const FLAG_STORED_DATA: u16 = 0x02;
/// The same of fragments.
pub const FLAG_STORED_FRAGMENTS: u16 = 0x08;
/// Tails of large files are in fragments, too.
pub const FLAG_ALWAYS_FRAGMENTS: u16 = 0x20;
/// Equal files are stored once.
pub const FLAG_DUPLICATES: u16 = 0x40;
/// There is a table from inode numbers to inodes.
pub const FLAG_EXPORTABLE: u16 = 0x80;
/// Attributes are stored as they are.
pub const FLAG_STORED_XATTRS: u16 = 0x100;
/// There are none.
pub const FLAG_NO_XATTRS: u16 = 0x200;
/// A metadata block with the compressor's options follows the superblock.
pub const FLAG_OPTIONS: u16 = 0x400;
/// Ids are stored as they are.
pub const FLAG_STORED_IDS: u16 = 0x800;

/// No fragment, no attributes.
pub const NONE: u32 = u32::MAX;
/// No such table.
pub const NO_TABLE: u64 = u64::MAX;

/// In the type of an attribute: its value is a reference to another's.
pub const XATTR_ELSEWHERE: u16 = 0x100;
/// The families of attributes that have a number, in its order.
pub const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// A place in a stream of metadata blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// Where the block begins, counted from the stream's start.
    pub block: u64,
    /// The byte in the plain block.
    pub offset: u16,
}

impl Reference {
    /// As one number.
    pub fn packed(self) -> u64 {
        self.block << 16 | u64::from(self.offset)
    }
}
