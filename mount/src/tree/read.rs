//! A tree file read in place. Every access is checked: a damaged file is an error, never a crash or a hang.

use zerocopy::FromBytes;

use super::format::{
    Header, KIND_BLOCK_DEVICE, KIND_CHAR_DEVICE, KIND_DIRECTORY, KIND_FIFO, KIND_REGULAR,
    KIND_SOCKET, KIND_SYMLINK, MAGIC, NameRecord, NodeRecord, VERSION,
};
use super::resolve::{Paths, Step, resolved};
use super::walk::Walk;
use super::{Node, NodeId, NodeKind, Resolved};
use crate::digest::Digest;
use crate::layer::entry::{NAME_BYTES_LIMIT, Timestamp};
use crate::layer::table::{PieceRange, Records, xattrs};
use crate::sys::Sealed;

/// What is wrong with a tree file, or with what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// This is no whole tree file of ours.
    #[error("tree file: {0}")]
    File(&'static str),
    /// One node is damaged, or not what the caller takes it for.
    #[error("tree file, node {}: {problem}", node.0)]
    Node {
        /// Which.
        node: NodeId,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Names and values of extended attributes.
pub type Xattrs<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A sealed tree.
pub struct Tree {
    bytes: Sealed,
    header: Header,
    parts: Parts,
}

/// What follows the header.
struct Parts {
    layers: Records<[u8; 32]>,
    nodes: Records<NodeRecord>,
    names: Records<NameRecord>,
    bytes_at: usize,
    end: u64,
}

impl Parts {
    fn after(header: &Header) -> Option<Self> {
        let (layers, at) = Records::from(size_of::<Header>(), header.layers.get().into())?;
        let (nodes, at) = Records::from(at, header.nodes.get().into())?;
        let (names, bytes_at) = Records::from(at, header.names.get().into())?;
        Some(Self {
            layers,
            nodes,
            names,
            bytes_at,
            end: header.bytes_len.get().checked_add(bytes_at as u64)?,
        })
    }
}

impl Tree {
    /// Checks the header and that the parts it promises fill the file; nothing is read beyond that.
    pub fn open(bytes: Sealed) -> Result<Self, TreeError> {
        let (header, _) = Header::read_from_prefix(&bytes)
            .map_err(|_| TreeError::File("shorter than its header"))?;
        if header.magic != MAGIC {
            return Err(TreeError::File("not a tree"));
        }
        if header.version.get() != VERSION {
            return Err(TreeError::File("written by another version of sifon"));
        }
        if header.file_len.get() != bytes.len() as u64 {
            return Err(TreeError::File("not as long as it was written"));
        }
        let parts = Parts::after(&header).filter(|parts| parts.end == bytes.len() as u64);
        let Some(parts) = parts else {
            return Err(TreeError::File("its parts do not fill the file"));
        };
        if header.nodes.get() == 0 {
            return Err(TreeError::File("without a root"));
        }
        Ok(Self {
            bytes,
            header,
            parts,
        })
    }

    /// The layers it was merged from, the bottom one first: [`Table::layer`](crate::layer::table::Table::layer) of each.
    pub fn layers(&self) -> Result<Vec<Digest>, TreeError> {
        let layers = self
            .parts
            .layers
            .range(&self.bytes, 0, self.parts.layers.count());
        let layers = layers.ok_or(TreeError::File("without its layers"))?;
        Ok(layers
            .iter()
            .map(|&digest| Digest::from_bytes(digest))
            .collect())
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> u64 {
        self.parts.nodes.count()
    }

    /// Sum of the sizes of all regular files.
    pub fn file_bytes(&self) -> u64 {
        self.header.file_bytes.get()
    }

    /// Whether any node has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.header.has_xattrs.get() != 0
    }

    /// The node of this number.
    pub fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        let record = self.record(id)?;
        let place = record.place.get();
        let (major, minor) = ((place >> 32) as u32, place as u32);
        let kind = match record.kind {
            KIND_DIRECTORY => NodeKind::Directory,
            KIND_REGULAR if record.owner.get() < self.header.layers.get() => NodeKind::Regular {
                layer: u16::try_from(record.owner.get())
                    .map_err(|_| wrong(id, "its layer does not exist"))?,
                pieces: PieceRange {
                    first: place,
                    count: record.count.get(),
                },
            },
            KIND_REGULAR => return Err(wrong(id, "its layer does not exist")),
            KIND_SYMLINK => NodeKind::Symlink,
            KIND_CHAR_DEVICE => NodeKind::CharDevice { major, minor },
            KIND_BLOCK_DEVICE => NodeKind::BlockDevice { major, minor },
            KIND_FIFO => NodeKind::Fifo,
            KIND_SOCKET => NodeKind::Socket,
            _ => return Err(wrong(id, "an unknown kind")),
        };
        Ok(Node {
            kind,
            mode: record.mode.get() & 0o7777,
            uid: record.uid.get(),
            gid: record.gid.get(),
            mtime: Timestamp {
                secs: record.mtime_secs.get(),
                nanos: record.mtime_nanos.get().min(999_999_999),
            },
            nlink: record.nlink.get(),
            size: record.size.get(),
            allocated: record.allocated.get(),
        })
    }

    /// What `name` leads to in `directory`.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let names = self.names(directory)?;
        let (mut low, mut high) = (0, names.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, node) = self.name(directory, &names[middle])?;
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(node)),
            }
        }
        Ok(None)
    }

    /// The names in `directory` and what they lead to, sorted by their bytes, from the `from`-th on; without `.`
    /// and `..`.
    pub fn children(
        &self,
        directory: NodeId,
        from: u64,
    ) -> Result<impl Iterator<Item = Result<(&[u8], NodeId), TreeError>>, TreeError> {
        let names = self.names(directory)?;
        let from = usize::try_from(from).map_or(names.len(), |from| from.min(names.len()));
        Ok(names[from..].iter().map(move |name| {
            let (bytes, node) = self.name(directory, name)?;
            match bytes {
                b"" | b"." | b".." => Err(wrong(directory, "one of its names is no name")),
                _ if bytes.len() > NAME_BYTES_LIMIT
                    || bytes.iter().any(|byte| matches!(byte, 0 | b'/')) =>
                {
                    Err(wrong(directory, "one of its names is no name"))
                }
                _ => Ok((bytes, node)),
            }
        }))
    }

    /// The directory above `directory`; the root's is the root.
    pub fn parent(&self, directory: NodeId) -> Result<NodeId, TreeError> {
        let above = NodeId(self.directory(directory)?.owner.get().into());
        match self.directory(above) {
            Ok(_) => Ok(above),
            Err(_) => Err(wrong(directory, "the directory above it does not exist")),
        }
    }

    /// Where a symbolic link points, as written.
    pub fn link_target(&self, id: NodeId) -> Result<&[u8], TreeError> {
        let record = self.record(id)?;
        if record.kind != KIND_SYMLINK {
            return Err(wrong(id, "not a symbolic link"));
        }
        self.stretch(record.place.get(), record.size.get())
            .ok_or_else(|| wrong(id, "its target lies outside the file"))
    }

    /// The extended attributes of a node, with their full names, in the order of the layer.
    pub fn xattrs(&self, id: NodeId) -> Result<Xattrs<'_>, TreeError> {
        let record = self.record(id)?;
        self.stretch(record.xattrs_at.get(), record.xattrs_len.get().into())
            .and_then(xattrs)
            .ok_or_else(|| wrong(id, "its attributes are damaged"))
    }

    /// Where `path` leads; see [`followed`](super::followed).
    pub fn resolve(&self, path: &[u8]) -> Result<Resolved, TreeError> {
        resolved(&self, path)
    }

    /// Every name with its path and what it leads to: each directory before what is in it, names in order, the
    /// root (an empty path) first. A node comes as often as it has names. Ends after the first error.
    pub fn walk(&self) -> impl Iterator<Item = Result<(Vec<u8>, NodeId), TreeError>> {
        Walk::of(self)
    }

    /// How many names there are in all directories together.
    pub(super) fn name_count(&self) -> u64 {
        self.parts.names.count()
    }

    fn record(&self, id: NodeId) -> Result<&NodeRecord, TreeError> {
        let place = id.0.checked_sub(1);
        place
            .and_then(|place| self.parts.nodes.get(&self.bytes, place))
            .ok_or_else(|| wrong(id, "no such node"))
    }

    fn directory(&self, id: NodeId) -> Result<&NodeRecord, TreeError> {
        let record = self.record(id)?;
        match record.kind {
            KIND_DIRECTORY => Ok(record),
            _ => Err(wrong(id, "not a directory")),
        }
    }

    fn names(&self, directory: NodeId) -> Result<&[NameRecord], TreeError> {
        let record = self.directory(directory)?;
        let (first, count) = (record.place.get(), u64::from(record.count.get()));
        let names = self.parts.names.range(&self.bytes, first, count);
        names.ok_or_else(|| wrong(directory, "its names lie outside the file"))
    }

    fn name(&self, directory: NodeId, name: &NameRecord) -> Result<(&[u8], NodeId), TreeError> {
        let bytes = self
            .stretch(name.at.get(), name.len.get().into())
            .ok_or_else(|| wrong(directory, "one of its names lies outside the file"))?;
        let node = NodeId(name.node.get().into());
        if node.0 == 0 || node.0 > self.node_count() {
            return Err(wrong(directory, "one of its names leads to no node"));
        }
        Ok((bytes, node))
    }

    /// `len` of the bytes that records point into.
    fn stretch(&self, at: u64, len: u64) -> Option<&[u8]> {
        let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        self.bytes[self.parts.bytes_at..].get(at..at.checked_add(len)?)
    }
}

fn wrong(node: NodeId, problem: &'static str) -> TreeError {
    TreeError::Node { node, problem }
}

impl<'a> Paths<'a> for &'a Tree {
    type Id = NodeId;
    type Error = TreeError;

    fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    fn child(&self, directory: &NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        self.lookup(*directory, name)
    }

    fn step(&self, id: &NodeId) -> Result<Step<'a>, TreeError> {
        let tree: &'a Tree = self;
        Ok(match tree.record(*id)?.kind {
            KIND_DIRECTORY => Step::Directory,
            KIND_SYMLINK => Step::Symlink(tree.link_target(*id)?.into()),
            _ => Step::Other,
        })
    }
}
