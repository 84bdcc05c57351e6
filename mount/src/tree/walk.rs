//! Every name of a tree, depth first.

use super::format::DEPTH_LIMIT;
use super::{NodeId, NodeKind, Tree, TreeError};

/// See [`Tree::walk`].
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    /// The directories that are being listed, the innermost last.
    open: Vec<Listing>,
    path: Vec<u8>,
    /// How many names may still come: in a damaged file directories may contain themselves or each other.
    left: u64,
    is_started: bool,
}

struct Listing {
    directory: NodeId,
    /// The next of its names.
    next: u64,
    /// How much of the path is the directory's own.
    path_len: usize,
}

impl<'a> Walk<'a> {
    pub fn of(tree: &'a Tree) -> Self {
        Self {
            tree,
            open: Vec::new(),
            path: Vec::new(),
            left: tree.name_count(),
            is_started: false,
        }
    }

    fn advance(&mut self) -> Result<Option<NodeId>, TreeError> {
        if !self.is_started {
            self.is_started = true;
            self.enter(NodeId::ROOT);
            return Ok(Some(NodeId::ROOT));
        }
        while let Some(listing) = self.open.last_mut() {
            let directory = listing.directory;
            self.path.truncate(listing.path_len);
            let Some(child) = self.tree.children(directory, listing.next)?.next() else {
                self.open.pop();
                continue;
            };
            let (name, node) = child?;
            listing.next += 1;
            let damaged = |problem| TreeError::Node {
                node: directory,
                problem,
            };
            self.left = self
                .left
                .checked_sub(1)
                .ok_or_else(|| damaged("its names occur twice"))?;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if self.tree.node(node)?.kind == NodeKind::Directory {
                if self.open.len() > usize::from(DEPTH_LIMIT) {
                    return Err(damaged("it contains itself"));
                }
                self.enter(node);
            }
            return Ok(Some(node));
        }
        Ok(None)
    }

    fn enter(&mut self, directory: NodeId) {
        self.open.push(Listing {
            directory,
            next: 0,
            path_len: self.path.len(),
        });
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(Vec<u8>, NodeId), TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.advance();
        if step.is_err() {
            self.open.clear();
        }
        step.map(|node| Some((self.path.clone(), node?)))
            .transpose()
    }
}
