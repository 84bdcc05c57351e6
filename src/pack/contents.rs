//! An image with the names that we add among its own.

use std::cmp::Ordering;
use std::io;

use sifon_mount::layer::entry::{Timestamp, shown};

use super::node::{Content, PackKind, PackNode, Source, Standing, Standings};
use super::path::walk_order;

/// A name that the packed file system has in place of what the image has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// In the form of [`PackNode::path`].
    pub path: Vec<u8>,
    /// What it is.
    pub kind: AdditionKind,
    /// Permission bits.
    pub mode: u16,
}

impl Addition {
    /// All of these, in the order of [`Source::nodes`], with the directories above them.
    pub fn with_directories(mut additions: Vec<Self>) -> Vec<Self> {
        for index in 0..additions.len() {
            let path = additions[index].path.clone();
            let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            additions.extend(slashes.map(|(at, _)| Self {
                path: path[..at].to_vec(),
                kind: AdditionKind::Directory,
                mode: 0o755,
            }));
        }
        // A stable sort: of several at one path the first stays, which is not a directory made on the way.
        additions.sort_by(|one, other| walk_order(&one.path, &other.path));
        additions.dedup_by(|next, first| next.path == first.path);
        additions
    }

    /// Whether an image in which `standings` are has it not yet: directories that are there stay as they are.
    pub fn is_new(&self, standings: &Standings<'_>) -> io::Result<bool> {
        Ok(match self.kind {
            AdditionKind::Directory => standings(&self.path)? != Some(Standing::Directory),
            AdditionKind::File(_) | AdditionKind::Symlink(_) => true,
        })
    }
}

/// What is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdditionKind {
    /// A directory. One of the image stays as it is; anything else is replaced.
    Directory,
    /// A regular file.
    File(Vec<u8>),
    /// A symbolic link to a target.
    Symlink(Vec<u8>),
}

/// An image with additions.
pub struct Contents<'a> {
    source: &'a dyn Source,
    additions: Vec<Addition>,
    mtime: Timestamp,
}

impl<'a> Contents<'a> {
    /// `additions` with the time `mtime` in `source`. Directories above an addition are added where they are missing.
    pub fn new(source: &'a dyn Source, additions: Vec<Addition>, mtime: Timestamp) -> Self {
        Self {
            source,
            additions: Addition::with_directories(additions),
            mtime,
        }
    }

    /// Every name, in the order of [`Source::nodes`].
    pub fn nodes(&self) -> impl Iterator<Item = io::Result<PackNode>> + '_ {
        Merged {
            nodes: self.source.nodes(),
            waiting: None,
            additions: self.additions.iter().peekable(),
            hidden_below: None,
            owner: (0, 0),
            mtime: self.mtime,
        }
    }

    /// Bytes of a file that a node named; see [`Source::read`].
    pub fn read(&self, content: &Content, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match content {
            Content::InImage(file) => self.source.read(*file, offset, into),
            Content::Here(bytes) => {
                let rest = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| bytes.get(offset..))
                    .unwrap_or_default();
                let len = rest.len().min(into.len());
                into[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
        }
    }

    /// How many bytes of a file from `offset` on are known to be zeros; see [`Source::hole`].
    pub fn hole(&self, content: &Content, offset: u64) -> io::Result<u64> {
        match content {
            Content::InImage(file) => self.source.hole(*file, offset),
            Content::Here(_) => Ok(0),
        }
    }

    /// Where the bytes of the image's files come from.
    pub fn source(&self) -> &'a dyn Source {
        self.source
    }
}

/// Two walks as one.
struct Merged<'a, N, A: Iterator<Item = &'a Addition>> {
    nodes: N,
    /// A node that comes after the next addition.
    waiting: Option<PackNode>,
    additions: std::iter::Peekable<A>,
    /// A directory of the image that an addition replaced.
    hidden_below: Option<Vec<u8>>,
    /// The root directory's: who owns the image owns what is added.
    owner: (u32, u32),
    mtime: Timestamp,
}

impl<'a, N, A> Merged<'a, N, A>
where
    N: Iterator<Item = io::Result<PackNode>>,
    A: Iterator<Item = &'a Addition>,
{
    /// The next node of the image that is still seen.
    fn node(&mut self) -> Option<io::Result<PackNode>> {
        if let Some(node) = self.waiting.take() {
            return Some(Ok(node));
        }
        loop {
            let node = match self.nodes.next()? {
                Ok(node) => node,
                failed => return Some(failed),
            };
            if node.path.is_empty() {
                self.owner = (node.uid, node.gid);
            }
            if !self.is_hidden(&node.path) {
                return Some(Ok(node));
            }
        }
    }

    fn is_hidden(&self, path: &[u8]) -> bool {
        self.hidden_below.as_ref().is_some_and(|directory| {
            path.strip_prefix(directory.as_slice())
                .is_some_and(|rest| rest.first() == Some(&b'/'))
        })
    }

    /// The next addition, which is there, instead of `replaced`.
    fn added(&mut self, replaced: Option<PackNode>) -> Option<PackNode> {
        let addition = self.additions.next()?;
        if let Some(node) = replaced
            && node.kind == PackKind::Directory
        {
            if addition.kind == AdditionKind::Directory {
                return Some(node);
            }
            tracing::warn!(
                path = shown(&node.path),
                "a directory of the image makes way for a file that Singularity needs there"
            );
            self.hidden_below = Some(node.path);
        }
        Some(PackNode {
            path: addition.path.clone(),
            kind: match &addition.kind {
                AdditionKind::Directory => PackKind::Directory,
                AdditionKind::File(bytes) => PackKind::Regular {
                    size: bytes.len() as u64,
                    content: Content::Here(bytes.as_slice().into()),
                },
                AdditionKind::Symlink(target) => PackKind::Symlink {
                    target: target.clone(),
                },
            },
            mode: addition.mode,
            uid: self.owner.0,
            gid: self.owner.1,
            mtime: self.mtime,
            xattrs: Vec::new(),
            linked: None,
        })
    }
}

impl<'a, N, A> Iterator for Merged<'a, N, A>
where
    N: Iterator<Item = io::Result<PackNode>>,
    A: Iterator<Item = &'a Addition>,
{
    type Item = io::Result<PackNode>;

    fn next(&mut self) -> Option<Self::Item> {
        let node = match self.node() {
            Some(Ok(node)) => node,
            Some(failed) => return Some(failed),
            None => return self.added(None).map(Ok),
        };
        match self.additions.peek() {
            Some(addition) => match walk_order(&node.path, &addition.path) {
                Ordering::Less => Some(Ok(node)),
                Ordering::Equal => self.added(Some(node)).map(Ok),
                Ordering::Greater => {
                    self.waiting = Some(node);
                    self.added(None).map(Ok)
                }
            },
            None => Some(Ok(node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    fn addition(path: &str, kind: AdditionKind) -> Addition {
        Addition {
            path: path.into(),
            kind,
            mode: 0o755,
        }
    }

    fn walked(source: &Sample, additions: Vec<Addition>) -> Vec<(String, PackKind)> {
        Contents::new(source, additions, Timestamp::default())
            .nodes()
            .map(|node| node.unwrap())
            .map(|node| (String::from_utf8(node.path).unwrap(), node.kind))
            .collect()
    }

    fn here(text: &str) -> PackKind {
        PackKind::Regular {
            size: text.len() as u64,
            content: Content::Here(text.as_bytes().into()),
        }
    }

    #[test]
    fn additions_come_in_their_place_with_the_directories_above_them() {
        let source = Sample::new().directory("a").directory("a-b").directory("z");
        let text = || AdditionKind::File(b"text".to_vec());
        let additions = vec![addition("a/new/file", text()), addition("zz", text())];
        let expected = [
            ("".into(), PackKind::Directory),
            ("a".into(), PackKind::Directory),
            ("a/new".into(), PackKind::Directory),
            ("a/new/file".into(), here("text")),
            ("a-b".into(), PackKind::Directory),
            ("z".into(), PackKind::Directory),
            ("zz".into(), here("text")),
        ];
        assert_eq!(walked(&source, additions), expected);
    }

    #[test]
    fn an_addition_replaces_what_the_image_has_there() {
        let source = Sample::new()
            .directory("etc")
            .directory("etc/hosts")
            .file("etc/hosts/inside", b"x")
            .link("d", "/elsewhere");
        let additions = vec![
            addition("etc/hosts", AdditionKind::File(Vec::new())),
            addition("d/file", AdditionKind::File(Vec::new())),
        ];
        let expected = [
            ("".into(), PackKind::Directory),
            ("d".into(), PackKind::Directory),
            ("d/file".into(), here("")),
            ("etc".into(), PackKind::Directory),
            ("etc/hosts".into(), here("")),
        ];
        assert_eq!(walked(&source, additions), expected);
    }

    #[test]
    fn a_directory_of_the_image_keeps_its_mode() {
        let source = Sample::new()
            .directory("tmp")
            .but("tmp", |node| node.mode = 0o1777);
        let additions = vec![addition("tmp", AdditionKind::Directory)];
        let contents = Contents::new(&source, additions, Timestamp::default());
        let nodes: Vec<_> = contents.nodes().map(Result::unwrap).collect();
        assert_eq!((nodes.len(), nodes[1].mode), (2, 0o1777));
    }
}
