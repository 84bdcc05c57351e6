//! What is packed, as the packer sees it: an image is its nodes in path order, and bytes by number.

use std::io;
use std::sync::Arc;

use sifon_mount::layer::entry::Timestamp;

use super::layout::{BLOCK_BYTES, Layout, Packing, Sized, Stored, Tail};

/// One name of the file system to be packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackNode {
    /// Components joined by single slashes, without a leading or trailing one; empty for the root directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: PackKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes with their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file, of which this is one name among several; `None` if it is the only one.
    pub linked: Option<u64>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Its length in bytes.
        size: u64,
        /// Where its bytes are.
        content: Content,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as written.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the image, under a number that only the image understands.
    InImage(u64),
    /// Here.
    Here(Arc<[u8]>),
}

/// What stands at a path itself, when no symlink at its end is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A directory.
    Directory,
    /// A symlink with its target.
    Symlink(Vec<u8>),
    /// Any other file.
    File,
}

/// Tells what stands at a path; no symlink is followed, a path through one finds nothing.
pub type Standings<'a> = dyn Fn(&[u8]) -> io::Result<Option<Standing>> + 'a;

/// An image as the packer sees it.
pub trait Source: Sync {
    /// Every name, a directory before what is in it and siblings sorted by their bytes; the root comes first.
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_>;

    /// What stands at `path`; no symlink is followed, a path through one finds nothing.
    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>>;

    /// Bytes of a file from `offset` into all of `into`, or as many as there are. Waits for them as long as the
    /// image does, and then fails.
    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// In which order `files` are stored.
    fn layout(&self, files: &[Sized]) -> io::Result<Layout> {
        Ok(Layout::in_order(files))
    }

    /// How many bytes from `offset` on are known to be zeros without being read.
    fn hole(&self, _file: u64, _offset: u64) -> io::Result<u64> {
        Ok(0)
    }

    /// The whole block of a file that begins at `offset`; see [`Source::read`].
    fn block(&self, file: u64, offset: u64) -> io::Result<Stored> {
        Stored::read(BLOCK_BYTES, |at, into| self.read(file, offset + at, into))
    }

    /// The same as the default compression packs it, where that is known without the plain bytes, which are not all zeros.
    fn packed_block(&self, _file: u64, _offset: u64) -> io::Result<Option<Packing>> {
        Ok(None)
    }

    /// Tails that share a block, one after another.
    fn bundle(&self, tails: &[Tail]) -> io::Result<Stored> {
        let mut plain = Vec::new();
        for tail in tails {
            let read = |at, into: &mut [u8]| self.read(tail.file, tail.at + at, into);
            plain.extend_from_slice(&Stored::read(tail.len, read)?.plain);
        }
        Ok(Stored::plain(plain))
    }
}
