//! Paths inside an image, and adding what is missing at their end.

use super::Image;
use crate::layer::entry::{NAME_BYTES_LIMIT, PATH_BYTES_LIMIT, shown};
use crate::tree::{NodeId, NodeKind, TreeError};

/// Symbolic links followed for one path at most, as `MAXSYMLINKS` of linux/namei.h.
const LINKS_LIMIT: u32 = 40;

/// What is added at the end of a path. Directories on the way are added as needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdditionKind {
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
}

/// Where a path leads, now that it leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The file or directory; its kind is as asked for only if it was missing.
    pub id: NodeId,
    /// Its path in the image without symbolic links and without a leading slash.
    pub path: Vec<u8>,
    /// The directory and the name in it that nobody knew before; others, if any, are below that. `None` when
    /// the path was there already.
    pub news: Option<(NodeId, Vec<u8>)>,
}

/// Why a path cannot be made to lead anywhere.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Through a file.
    #[error("path {:?} in the image: a component is no directory", shown(.0))]
    NotADirectory(Vec<u8>),
    /// Round in circles.
    #[error("path {:?} in the image: more than {LINKS_LIMIT} symbolic links", shown(.0))]
    Loop(Vec<u8>),
    /// No file system takes it.
    #[error("path {:?} in the image: too long, or a component is", shown(.0))]
    Long(Vec<u8>),
    /// A loop in the caller.
    #[error("path {:?} in the image: too many names were added already", shown(.0))]
    TooMany(Vec<u8>),
    /// The tree is damaged.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// How far a path leads: names with what they lead to, from the root down, then names without.
struct Way {
    there: Vec<(Vec<u8>, NodeId)>,
    missing: Vec<Vec<u8>>,
}

impl Way {
    fn end(&self) -> NodeId {
        self.there.last().map_or(NodeId::ROOT, |(_, id)| *id)
    }
}

impl Image {
    /// Makes `path` lead somewhere: follows it as a process would whose root is this image (absolute
    /// links start at the image's root, `..` stops there) and adds what is missing. The image's own
    /// names never change.
    pub fn add(&self, path: &[u8], kind: AdditionKind) -> Result<Added, AddError> {
        let way = self.followed(path)?;
        let mut id = way.end();
        let mut news = None;
        if !way.missing.is_empty() {
            let node = self.node(id)?;
            if !matches!(node.kind, NodeKind::Directory) {
                return Err(AddError::NotADirectory(path.to_vec()));
            }
            let last = way.missing.len() - 1;
            for (place, name) in way.missing.iter().enumerate() {
                let is_directory = place < last || kind == AdditionKind::Directory;
                let parent = id;
                id = self
                    .additions
                    .add(parent, name, is_directory, node.mtime)
                    .ok_or_else(|| AddError::TooMany(path.to_vec()))?;
                news.get_or_insert_with(|| (parent, name.clone()));
            }
        }
        let names = way.there.into_iter().map(|(name, _)| name);
        let names: Vec<Vec<u8>> = names.chain(way.missing).collect();
        Ok(Added {
            id,
            path: names.join(&b'/'),
            news,
        })
    }

    /// What `path` leads to, followed in the same way; `None` if something on it is missing.
    pub fn resolved(&self, path: &[u8]) -> Result<Option<NodeId>, AddError> {
        let way = self.followed(path)?;
        Ok(way.missing.is_empty().then(|| way.end()))
    }

    fn followed(&self, path: &[u8]) -> Result<Way, AddError> {
        let long = || AddError::Long(path.to_vec());
        if path.len() > PATH_BYTES_LIMIT || path.contains(&0) {
            return Err(long());
        }
        let mut way = Way {
            there: Vec::new(),
            missing: Vec::new(),
        };
        let mut links = 0;
        // What is still to be followed, each part before those below it in the stack.
        let mut pending = vec![path];
        while let Some(rest) = pending.pop() {
            let name = match rest.iter().position(|&byte| byte == b'/') {
                Some(slash) => {
                    pending.push(&rest[slash + 1..]);
                    &rest[..slash]
                }
                None => rest,
            };
            match name {
                b"" | b"." => {}
                b".." if way.missing.pop().is_some() => {}
                b".." => drop(way.there.pop()),
                name if name.len() > NAME_BYTES_LIMIT => return Err(long()),
                name if !way.missing.is_empty() => way.missing.push(name.to_vec()),
                name => {
                    let directory = way.end();
                    if !matches!(self.node(directory)?.kind, NodeKind::Directory) {
                        return Err(AddError::NotADirectory(path.to_vec()));
                    }
                    let Some(id) = self.lookup(directory, name)? else {
                        way.missing.push(name.to_vec());
                        continue;
                    };
                    if !matches!(self.node(id)?.kind, NodeKind::Symlink) {
                        way.there.push((name.to_vec(), id));
                        continue;
                    }
                    links += 1;
                    let target = self.link_target(id)?;
                    if links > LINKS_LIMIT || target.len() > PATH_BYTES_LIMIT {
                        return Err(AddError::Loop(path.to_vec()));
                    }
                    if target.starts_with(b"/") {
                        way.there.clear();
                    }
                    pending.push(target);
                }
            }
        }
        Ok(way)
    }
}
