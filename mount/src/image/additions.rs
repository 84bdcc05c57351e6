//! Names beside the sealed tree.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::layer::entry::Timestamp;
use crate::layer::table::PieceRange;
use crate::tree::{Node, NodeId, NodeKind};

/// Additions in one image at most. A command has a handful of binds; a caller that asks for more than
/// this is in a loop.
const ADDITIONS_LIMIT: usize = 1 << 16;

/// Files and directories that were added. Costs one atomic load per question while there are none.
pub(super) struct Additions {
    /// The number of the first one.
    first: u64,
    exist: AtomicBool,
    added: RwLock<Added>,
}

#[derive(Default)]
struct Added {
    nodes: Vec<AddedNode>,
    /// What was added in a directory, in order: places in a listing count in it.
    children: HashMap<NodeId, Vec<(Vec<u8>, NodeId)>>,
}

struct AddedNode {
    parent: NodeId,
    is_directory: bool,
    mtime: Timestamp,
}

impl Additions {
    /// None yet; numbers follow on `last`, the tree's last.
    pub(super) fn after(last: u64) -> Self {
        Self {
            first: last + 1,
            exist: AtomicBool::new(false),
            added: RwLock::default(),
        }
    }

    /// Adds `name` in `parent`, or gives what was added there under that name. `None` when there are too many.
    pub(super) fn add(
        &self,
        parent: NodeId,
        name: &[u8],
        is_directory: bool,
        mtime: Timestamp,
    ) -> Option<NodeId> {
        let mut added = self.added.write();
        if let Some(id) = added.lookup(parent, name) {
            return Some(id);
        }
        if added.nodes.len() == ADDITIONS_LIMIT {
            return None;
        }
        let id = NodeId(self.first + added.nodes.len() as u64);
        added.nodes.push(AddedNode {
            parent,
            is_directory,
            mtime,
        });
        let siblings = added.children.entry(parent).or_default();
        siblings.push((name.to_vec(), id));
        self.exist.store(true, Ordering::Release);
        Some(id)
    }

    /// Whether this number is an addition's.
    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.ask(|added| added.nodes.get(self.place(id)?).map(|_| ()))
            .is_some()
    }

    pub(super) fn node(&self, id: NodeId) -> Option<Node> {
        self.ask(|added| {
            let node = added.nodes.get(self.place(id)?)?;
            let kind = match node.is_directory {
                true => NodeKind::Directory,
                false => NodeKind::Regular {
                    layer: 0,
                    pieces: PieceRange::default(),
                },
            };
            Some(Node {
                kind,
                mode: if node.is_directory { 0o755 } else { 0o644 },
                uid: 0,
                gid: 0,
                mtime: node.mtime,
                nlink: match node.is_directory {
                    true => 2 + added.directories_in(id, self.first),
                    false => 1,
                },
                size: 0,
                allocated: 0,
            })
        })
    }

    pub(super) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.ask(|added| Some(added.nodes.get(self.place(id)?)?.parent))
    }

    pub(super) fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.ask(|added| added.lookup(directory, name))
    }

    /// Names added in `directory`, from the `from`-th on.
    pub(super) fn children(&self, directory: NodeId, from: u64) -> Vec<(Vec<u8>, NodeId)> {
        let children = self.ask(|added| {
            let children = added.children.get(&directory)?;
            Some(children.get(usize::try_from(from).ok()?..)?.to_vec())
        });
        children.unwrap_or_default()
    }

    /// How many directories were added in `directory`.
    pub(super) fn directories_in(&self, directory: NodeId) -> u32 {
        self.ask(|added| Some(added.directories_in(directory, self.first)))
            .unwrap_or(0)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.ask(|added| Some(added.nodes.len() as u64))
            .unwrap_or(0)
    }

    fn place(&self, id: NodeId) -> Option<usize> {
        usize::try_from(id.0.checked_sub(self.first)?).ok()
    }

    fn ask<T>(&self, question: impl FnOnce(&Added) -> Option<T>) -> Option<T> {
        if !self.exist.load(Ordering::Acquire) {
            return None;
        }
        question(&self.added.read())
    }
}

impl Added {
    fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children.get(&directory)?;
        let (_, id) = children.iter().find(|(added, _)| added == name)?;
        Some(*id)
    }

    fn directories_in(&self, directory: NodeId, first: u64) -> u32 {
        let children = self.children.get(&directory).map_or(&[][..], Vec::as_slice);
        let directories = children
            .iter()
            .filter(|(_, id)| self.nodes[(id.0 - first) as usize].is_directory);
        directories.count() as u32
    }
}
