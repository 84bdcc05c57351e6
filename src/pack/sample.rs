//! An image made by hand.

use std::io;

use sifon_mount::layer::entry::Timestamp;

use super::node::{Content, PackKind, PackNode, Source, Standing};
use super::path::walk_order;

/// Nodes in walk order; contents by number.
#[derive(Default)]
pub(crate) struct Sample {
    pub(crate) nodes: Vec<PackNode>,
    pub(crate) contents: Vec<Vec<u8>>,
}

impl Sample {
    pub(crate) fn new() -> Self {
        Self::default().with("", PackKind::Directory)
    }

    pub(crate) fn with(mut self, path: impl AsRef<[u8]>, kind: PackKind) -> Self {
        self.nodes.push(PackNode {
            path: path.as_ref().to_vec(),
            mode: if kind == PackKind::Directory {
                0o755
            } else {
                0o644
            },
            kind,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            linked: None,
        });
        self.nodes
            .sort_by(|one, other| walk_order(&one.path, &other.path));
        self
    }

    pub(crate) fn file(mut self, path: impl AsRef<[u8]>, bytes: &[u8]) -> Self {
        self.contents.push(bytes.to_vec());
        let content = Content::InImage(self.contents.len() as u64 - 1);
        let size = bytes.len() as u64;
        self.with(path, PackKind::Regular { size, content })
    }

    pub(crate) fn link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref().to_vec();
        self.with(path, PackKind::Symlink { target })
    }

    pub(crate) fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.with(path, PackKind::Directory)
    }

    /// Changes the node at `path`.
    pub(crate) fn but(mut self, path: &str, change: impl Fn(&mut PackNode)) -> Self {
        let node = self.nodes.iter_mut();
        change(
            node.into_iter()
                .find(|node| node.path == path.as_bytes())
                .unwrap(),
        );
        self
    }
}

impl Source for Sample {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        Box::new(self.nodes.iter().cloned().map(Ok))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        let node = self.nodes.iter().find(|node| node.path == path);
        Ok(node.map(|node| match &node.kind {
            PackKind::Directory => Standing::Directory,
            PackKind::Symlink { target } => Standing::Symlink(target.clone()),
            _ => Standing::File,
        }))
    }

    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let content = self
            .contents
            .get(file as usize)
            .ok_or_else(|| io::Error::other("no such file"))?;
        let rest = &content[content.len().min(offset as usize)..];
        // Short reads, as they happen.
        let len = rest.len().min(into.len()).min(50_000);
        into[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
