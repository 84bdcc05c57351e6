//! What is packed: the nodes of an image in path order, with the names that we add among them.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use sifon_mount::layer::entry::{Timestamp, shown};

use super::layout::{BLOCK_BYTES, Layout, Sized, Stored, Tail};

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

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// To what stands at this path, which has no symlink in it.
    Found(Vec<u8>, Standing),
    /// To a path where nothing stands yet; what stands above it are directories.
    Missing(Vec<u8>),
    /// Nowhere: through a file, or in circles.
    Blocked,
}

/// As many as the kernel follows in one path.
const LINKS_LIMIT: usize = 40;

/// Where `path` leads for a process whose root is the image: absolute targets begin at the image's root, `..`
/// stops there.
pub fn resolved(source: &dyn Source, path: &[u8]) -> io::Result<Resolved> {
    let mut links = 0;
    let mut ahead: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let mut at: Vec<u8> = Vec::new();
    let mut standing = Some(Standing::Directory);
    while let Some(name) = ahead.pop() {
        match standing {
            Some(Standing::Directory) | None => {}
            Some(_) => return Ok(Resolved::Blocked),
        }
        if name == b".." {
            at.truncate(at.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
            // Above something missing lies something missing or a directory, never a file.
            standing = found(source, &at)?;
            continue;
        }
        let here = at.len();
        if here > 0 {
            at.push(b'/');
        }
        at.extend_from_slice(&name);
        standing = match standing {
            Some(_) => found(source, &at)?,
            None => None,
        };
        if let Some(Standing::Symlink(target)) = &standing {
            links += 1;
            if links > LINKS_LIMIT {
                return Ok(Resolved::Blocked);
            }
            at.truncate(if target.starts_with(b"/") { 0 } else { here });
            ahead.extend(components(target).rev().map(<[u8]>::to_vec));
            standing = Some(Standing::Directory);
        }
    }
    Ok(match standing {
        Some(standing) => Resolved::Found(at, standing),
        None => Resolved::Missing(at),
    })
}

fn found(source: &dyn Source, path: &[u8]) -> io::Result<Option<Standing>> {
    if path.is_empty() {
        return Ok(Some(Standing::Directory));
    }
    source.standing(path)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// Paths in the order of a walk: by components, each by its bytes.
pub fn walk_order(one: &[u8], other: &[u8]) -> Ordering {
    let slash = |byte: &u8| *byte == b'/';
    one.split(slash).cmp(other.split(slash))
}

/// An image with additions.
pub struct Contents<'a> {
    source: &'a dyn Source,
    additions: Vec<Addition>,
    mtime: Timestamp,
}

impl<'a> Contents<'a> {
    /// `additions` with the time `mtime` in `source`. Directories above an addition are added where they are missing.
    pub fn new(source: &'a dyn Source, mut additions: Vec<Addition>, mtime: Timestamp) -> Self {
        for index in 0..additions.len() {
            let path = additions[index].path.clone();
            let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            additions.extend(slashes.map(|(at, _)| Addition {
                path: path[..at].to_vec(),
                kind: AdditionKind::Directory,
                mode: 0o755,
            }));
        }
        // A stable sort: of several at one path the first stays, which is not a directory made on the way.
        additions.sort_by(|one, other| walk_order(&one.path, &other.path));
        additions.dedup_by(|next, first| next.path == first.path);
        Self {
            source,
            additions,
            mtime,
        }
    }

    /// What is added, in the order of [`Source::nodes`]: without directories that the image has.
    pub fn additions(&self) -> impl Iterator<Item = io::Result<&Addition>> + '_ {
        let is_new = |addition: &Addition| match addition.kind {
            AdditionKind::Directory => {
                Ok(self.source.standing(&addition.path)? != Some(Standing::Directory))
            }
            AdditionKind::File(_) | AdditionKind::Symlink(_) => Ok(true),
        };
        self.additions
            .iter()
            .filter_map(move |addition| match is_new(addition) {
                Ok(true) => Some(Ok(addition)),
                Ok(false) => None,
                Err(err) => Some(Err(err)),
            })
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

/// An image made by hand.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

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
}

#[cfg(test)]
mod tests {
    use super::sample::Sample;
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

    #[test]
    fn paths_lead_where_a_process_in_the_image_would_get() {
        let source = Sample::new()
            .directory("usr")
            .directory("usr/etc")
            .file("usr/etc/hosts", b"")
            .link("etc", "usr/etc")
            .link("usr/up", "../../../../usr/./etc")
            .link("absolute", "/usr//etc/")
            .link("dangling", "/run/x")
            .link("loop", "loop")
            .link("file", "etc/hosts");
        let found = |path: &str, standing| Resolved::Found(path.into(), standing);
        for (path, expected) in [
            ("", found("", Standing::Directory)),
            ("etc", found("usr/etc", Standing::Directory)),
            ("etc/hosts", found("usr/etc/hosts", Standing::File)),
            ("usr/up/hosts", found("usr/etc/hosts", Standing::File)),
            ("absolute", found("usr/etc", Standing::Directory)),
            ("file", found("usr/etc/hosts", Standing::File)),
            ("dangling", Resolved::Missing("run/x".into())),
            ("dangling/a/../b", Resolved::Missing("run/x/b".into())),
            ("etc/new", Resolved::Missing("usr/etc/new".into())),
            ("loop", Resolved::Blocked),
            ("file/x", Resolved::Blocked),
        ] {
            assert_eq!(
                resolved(&source, path.as_bytes()).unwrap(),
                expected,
                "{path}"
            );
        }
    }
}
