//! An opened image as the packer sees it.

use std::io;

use bytes::Bytes;
use sifon_mount::tree::{NodeId, NodeKind, Tree, TreeError};

use super::node::{Content, PackKind, PackNode, Source, Standing};

/// A tree, with a function that gets bytes of its files.
pub struct TreeSource<'a, R> {
    tree: &'a Tree,
    read: R,
}

impl<'a, R> TreeSource<'a, R>
where
    R: Fn(NodeId, u64, u32) -> io::Result<Bytes> + Sync,
{
    /// `read` gets a file, an offset and a length, and returns fewer bytes only at the file's end.
    pub fn new(tree: &'a Tree, read: R) -> Self {
        Self { tree, read }
    }

    fn node(&self, path: Vec<u8>, id: NodeId) -> Result<PackNode, TreeError> {
        let node = self.tree.node(id)?;
        let xattrs = if self.tree.has_xattrs() {
            self.tree.xattrs(id)?.len()
        } else {
            0
        };
        let kind = match node.kind {
            NodeKind::Directory => PackKind::Directory,
            NodeKind::Regular { .. } => PackKind::Regular {
                size: node.size,
                content: Content::InImage(id.0),
            },
            NodeKind::Symlink => PackKind::Symlink {
                target: self.tree.link_target(id)?.to_vec(),
            },
            NodeKind::CharDevice { major, minor } => PackKind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => PackKind::BlockDevice { major, minor },
            NodeKind::Fifo => PackKind::Fifo,
            NodeKind::Socket => PackKind::Socket,
        };
        let is_linked = node.nlink > 1 && kind != PackKind::Directory;
        Ok(PackNode {
            path,
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: u32::try_from(xattrs).unwrap_or(u32::MAX),
            linked: is_linked.then_some(id.0),
        })
    }

    fn found(&self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let mut at = NodeId::ROOT;
        for name in path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if !matches!(self.tree.node(at)?.kind, NodeKind::Directory) {
                return Ok(None);
            }
            match self.tree.lookup(at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn standing_of(&self, id: NodeId) -> Result<Standing, TreeError> {
        Ok(match self.tree.node(id)?.kind {
            NodeKind::Directory => Standing::Directory,
            NodeKind::Symlink => Standing::Symlink(self.tree.link_target(id)?.to_vec()),
            _ => Standing::File,
        })
    }
}

impl<R> Source for TreeSource<'_, R>
where
    R: Fn(NodeId, u64, u32) -> io::Result<Bytes> + Sync,
{
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        Box::new(self.tree.walk().map(|name| {
            name.and_then(|(path, id)| self.node(path, id))
                .map_err(io::Error::other)
        }))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        self.found(path)
            .and_then(|found| found.map(|id| self.standing_of(id)).transpose())
            .map_err(io::Error::other)
    }

    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let bytes = (self.read)(NodeId(file), offset, len)?;
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use sifon_mount::digest::Digest;
    use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
    use sifon_mount::layer::table::{PieceRange, TableWriter, from_reader};
    use sifon_mount::sys::Sealed;

    use super::*;

    /// A tree of one layer, whose files are all holes.
    fn tree(entries: &[(&str, Kind)]) -> Tree {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path()).unwrap();
        for (path, kind) in entries {
            let entry = Entry {
                path: path.as_bytes().to_vec(),
                kind: kind.clone(),
                mode: 0o640,
                uid: 7,
                gid: 8,
                mtime: Timestamp { secs: 9, nanos: 1 },
                xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
            };
            writer.entry(&entry, PieceRange::default()).unwrap();
        }
        let mut bytes = Vec::new();
        writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
        let table = from_reader(&bytes[..]).unwrap();
        let mut bytes = Vec::new();
        sifon_mount::tree::merge(&[&table], &mut bytes).unwrap();
        Tree::open(Sealed::in_memory(bytes)).unwrap()
    }

    fn sample() -> Tree {
        let target = |text: &str| text.as_bytes().to_vec();
        tree(&[
            ("d", Kind::Directory),
            ("d/f", Kind::Regular { size: 300 }),
            (
                "d/g",
                Kind::Hardlink {
                    target: target("d/f"),
                },
            ),
            ("d-e", Kind::Fifo),
            (
                "l",
                Kind::Symlink {
                    target: target("d/f"),
                },
            ),
            ("n", Kind::CharDevice { major: 1, minor: 3 }),
        ])
    }

    #[test]
    fn a_tree_is_walked_with_everything_that_its_nodes_have() {
        let tree = sample();
        let source = TreeSource::new(&tree, |_, _, _| Ok(Bytes::new()));
        let nodes: Vec<_> = source.nodes().map(Result::unwrap).collect();
        let names: Vec<_> = nodes
            .iter()
            .map(|node| str::from_utf8(&node.path).unwrap())
            .collect();
        assert_eq!(names, ["", "d", "d/f", "d/g", "d-e", "l", "n"]);
        let f = &nodes[2];
        assert_eq!((f.mode, f.uid, f.gid, f.xattrs), (0o640, 7, 8, 1));
        assert_eq!(f.mtime, Timestamp { secs: 9, nanos: 1 });
        assert!(f.linked.is_some() && f.linked == nodes[3].linked);
        assert_eq!((nodes[1].linked, nodes[4].linked), (None, None));
        assert!(matches!(f.kind, PackKind::Regular { size: 300, .. }));
        assert_eq!(nodes[4].kind, PackKind::Fifo);
        assert_eq!(
            nodes[5].kind,
            PackKind::Symlink {
                target: b"d/f".to_vec()
            }
        );
        assert_eq!(nodes[6].kind, PackKind::CharDevice { major: 1, minor: 3 });
    }

    #[test]
    fn what_stands_at_a_path_is_found_without_following_links() {
        let tree = sample();
        let source = TreeSource::new(&tree, |_, _, _| Ok(Bytes::new()));
        let link = Standing::Symlink(b"d/f".to_vec());
        for (path, expected) in [
            ("d", Some(Standing::Directory)),
            ("d/f", Some(Standing::File)),
            ("l", Some(link)),
            ("l/x", None),
            ("d/f/x", None),
            ("nowhere", None),
        ] {
            assert_eq!(
                source.standing(path.as_bytes()).unwrap(),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn bytes_come_from_the_image() {
        let tree = sample();
        let source = TreeSource::new(&tree, |_, at, len| {
            assert_eq!((at, len), (5, 3));
            Ok(Bytes::from_static(b"ab"))
        });
        let mut into = [0; 3];
        assert_eq!(source.read(3, 5, &mut into).unwrap(), 2);
        assert_eq!(&into, b"ab\0");
    }
}
