//! squashfs 4.0 file systems as layers: what `mksquashfs` makes, and what lies in a SIF.
//!
//! Only metadata is read here: inodes and directories become entries, data blocks and fragments become chunks that are
//! decoded when somebody reads them. Nothing in the format tells what a block's bytes should be, so its chunks have no
//! digest. Every place and length comes from a stranger: places are checked against the file, lengths against what the
//! format allows, and memory does not grow with what a number promises.

mod data;
pub mod format;
mod inode;
mod metadata;
mod walk;
mod xattr;

use std::io;

use bytes::Bytes;
use zerocopy::FromBytes;

use super::decode::Decoder;
use super::entry::shown;
use super::table::{Codec, TableWriter};
use format::{FLAG_NO_XATTRS, MAGIC, NO_TABLE, Superblock};
use metadata::{Lookup, Metadata};

/// Bytes of a file system, wherever they lie.
pub struct Input<'a> {
    /// Where in the layer's blob they begin.
    pub at: u64,
    /// How many there are.
    pub len: u64,
    /// Whether it hides files of lower layers, as OverlayFS writes that: devices of number 0, and directories with the
    /// attribute `trusted.overlay.opaque`.
    pub hides_lower: bool,
    /// Exactly so many bytes from this place, which is inside.
    pub read: &'a dyn Fn(u64, usize) -> io::Result<Bytes>,
}

/// Why a file system cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    /// It does not begin like one.
    #[error("not a squashfs: {0}")]
    NotSquashfs(&'static str),
    /// It is one that needs another program.
    #[error("squashfs: {0}")]
    Unsupported(String),
    /// It contradicts itself.
    #[error("squashfs, {part} at byte {at}: {problem}")]
    Damaged {
        /// What lies there.
        part: &'static str,
        /// Where in the file system.
        at: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The same, with the file's path.
    #[error("squashfs, file {:?}: {problem}", shown(path))]
    File {
        /// Its path in the file system.
        path: Vec<u8>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Its bytes did not come.
    #[error("squashfs: cannot be read")]
    Read(#[source] io::Error),
    /// The table could not be written, or would be larger than one may be.
    #[error("squashfs: its table cannot be written")]
    Write(#[source] io::Error),
}

impl SquashfsError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotSquashfs(_) | Self::Damaged { .. } | Self::File { .. } => {
                Some("the file is damaged or was cut short: make, copy or pull it again")
            }
            Self::Unsupported(_) => None,
            Self::Read(_) => Some("check the disk that the file is on"),
            Self::Write(_) => {
                Some("name a directory with room on a sound disk: --store DIR or SIFON_STORE")
            }
        }
    }

    fn damaged(part: &'static str, at: u64, problem: &'static str) -> Self {
        Self::Damaged { part, at, problem }
    }
}

/// Reads the file system's metadata into `writer`. Keeps 32 MiB of it in memory, the numbers of all directories, the
/// paths of files with several links, and 40 bytes for each data block.
pub fn table(input: &Input<'_>, writer: &mut TableWriter) -> Result<(), SquashfsError> {
    let superblock = superblock(input)?;
    let codec = codec(superblock.compression.get())?;
    let mut reader = Reader {
        metadata: Metadata::new(input, superblock.bytes_used.get(), codec),
        codec,
        superblock,
        begins: input.at,
        hides_lower: input.hides_lower,
        ids: Vec::new(),
        xattrs: None,
    };
    reader.ids = reader.all_ids()?;
    let has_xattrs =
        superblock.xattrs_at.get() != NO_TABLE && superblock.flags.get() & FLAG_NO_XATTRS == 0;
    if has_xattrs {
        reader.xattrs = Some(reader.xattr_sets()?);
    }
    walk::entries(&mut reader, writer)
}

/// What all parts of the reader use.
struct Reader<'a> {
    superblock: Superblock,
    /// Where in the layer's blob the file system begins.
    begins: u64,
    hides_lower: bool,
    codec: Codec<'static>,
    metadata: Metadata<'a>,
    ids: Vec<u32>,
    xattrs: Option<xattr::Sets>,
}

impl Reader<'_> {
    /// Users and groups, of which there are at most 65,536.
    fn all_ids(&mut self) -> Result<Vec<u32>, SquashfsError> {
        let lookup = Lookup::<zerocopy::little_endian::U32>::new(
            self.superblock.ids_at.get(),
            self.superblock.ids.get().into(),
        );
        (0..lookup.count)
            .map(|index| Ok(lookup.get(&mut self.metadata, index)?.get()))
            .collect()
    }
}

/// The superblock of a file system that is whole, and that we read.
fn superblock(input: &Input<'_>) -> Result<Superblock, SquashfsError> {
    let size = size_of::<Superblock>();
    if input.len < size as u64 {
        return Err(SquashfsError::NotSquashfs("shorter than a superblock"));
    }
    let bytes = (input.read)(0, size).map_err(SquashfsError::Read)?;
    let (superblock, _) = Superblock::read_from_prefix(&bytes)
        .map_err(|_| SquashfsError::NotSquashfs("shorter than a superblock"))?;
    if superblock.magic != MAGIC {
        return Err(SquashfsError::NotSquashfs("the magic number is missing"));
    }
    let version = (superblock.major.get(), superblock.minor.get());
    if version != (4, 0) {
        return Err(SquashfsError::Unsupported(format!(
            "version {}.{}, of before 2009, is not read",
            version.0, version.1
        )));
    }
    let wrong = |problem| Err(SquashfsError::damaged("superblock", 0, problem));
    let log = superblock.block_log.get();
    if !(12..=20).contains(&log) || superblock.block_bytes.get() != 1 << log {
        return wrong("its blocks have a size that the format does not allow");
    }
    let used = superblock.bytes_used.get();
    if used > input.len {
        return wrong("it should be longer than it is: it was cut short, or is still being copied");
    }
    let tables = [
        superblock.ids_at,
        superblock.inodes_at,
        superblock.directories_at,
    ];
    if tables.iter().any(|at| at.get() >= used) {
        return wrong("a table lies outside the file system");
    }
    Ok(superblock)
}

/// How its blocks are compressed (`squashfs_fs.h`, "Squashfs compression ids").
fn codec(compression: u16) -> Result<Codec<'static>, SquashfsError> {
    let name = match compression {
        1 => return Ok(Codec::Zlib),
        4 => return Ok(Codec::Xz),
        5 => return Ok(Codec::Lz4),
        6 => return Ok(Codec::Zstd),
        2 => "lzma",
        3 => "lzo",
        other => {
            return Err(SquashfsError::Unsupported(format!(
                "compressed in a way of number {other}, which is not known"
            )));
        }
    };
    Err(SquashfsError::Unsupported(format!(
        "compressed with {name}, which sifon does not read: make it again with zstd, gzip, xz or lz4"
    )))
}

/// The plain bytes of a block, at most `limit`.
fn decoded(
    decoder: &mut Decoder,
    codec: Codec<'_>,
    packed: &[u8],
    limit: usize,
) -> Option<Vec<u8>> {
    decoder.whole(codec, packed, limit).ok()
}

#[cfg(test)]
mod tests;
