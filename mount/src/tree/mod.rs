//! The merged tree: what an image shows, as one sealed file that is read in place.

mod draft;
mod format;
mod merge;
mod read;
mod resolve;
mod seal;
mod walk;

#[cfg(test)]
mod tests;

pub use format::VERSION;
pub use merge::{MergeError, Merger, merge};
pub use read::{Tree, TreeError, Xattrs};
pub use resolve::{Blocked, LINKS_LIMIT, Paths, Step, Way, followed};

use crate::layer::entry::Timestamp;
use crate::layer::table::PieceRange;

/// The number of a file in its tree, which is also its inode number: 1 is the root, and every number up to
/// [`Tree::node_count`] is a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The directory that everything is in.
    pub const ROOT: Self = Self(1);
}

/// Where a path leads in a tree.
pub type Resolved = resolve::Resolved<NodeId>;

/// One file of a tree, however many names it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// How many names it has; of a directory, 2 and one for each directory in it, as `find` expects.
    pub nlink: u32,
    /// Bytes of a regular file or of a symbolic link's target, else 0.
    pub size: u64,
    /// Bytes of a regular file that are not in holes, for `st_blocks`.
    pub allocated: u64,
}

/// What a node is, with what only this kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// The place of its layer in [`Tree::layers`].
        layer: u16,
        /// Its pieces in that layer's table.
        pieces: PieceRange,
    },
    /// A symbolic link; see [`Tree::link_target`].
    Symlink,
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
