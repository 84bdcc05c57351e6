//! What stat(2) tells about a file of an image.

use crate::tree::{Node, NodeId};

/// To whom files seem to belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// To those that the image names.
    AsInImage,
    /// All to one user, so that a program run by that user sees its own files.
    Caller {
        /// The user, as the mount's user namespace numbers it.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// A file's node, its number and the owner it is shown with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The number.
    pub id: NodeId,
    /// Type, mode, times, sizes and links.
    pub node: Node,
    /// Shown owner.
    pub uid: u32,
    /// Shown group.
    pub gid: u32,
}

impl Owners {
    /// What `node`, the file of number `id`, looks like.
    pub fn shown(self, id: NodeId, node: Node) -> Attributes {
        let (uid, gid) = match self {
            Self::AsInImage => (node.uid, node.gid),
            Self::Caller { uid, gid } => (uid, gid),
        };
        Attributes { id, node, uid, gid }
    }
}

impl Attributes {
    /// Blocks of 512 bytes that are not in holes, rounded up.
    pub fn blocks(&self) -> u64 {
        self.node.allocated.div_ceil(512)
    }
}
