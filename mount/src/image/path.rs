//! Paths inside an image, and adding what is missing at their end.

use super::Image;
use crate::layer::entry::{NAME_BYTES_LIMIT, PATH_BYTES_LIMIT, shown};
use crate::tree::{Blocked, LINKS_LIMIT, NodeId, NodeKind, Paths, Step, TreeError, Way, followed};

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

impl Image {
    /// Makes `path` lead somewhere: follows it as a process would whose root is this image (absolute
    /// links start at the image's root, `..` stops there) and adds what is missing. The image's own
    /// names never change.
    pub fn add(&self, path: &[u8], kind: AdditionKind) -> Result<Added, AddError> {
        let way = self.followed(path)?;
        let mut id = way.end();
        let mut news = None;
        if let Some(last) = way.missing().len().checked_sub(1) {
            let mtime = self.node(id)?.mtime;
            for (place, name) in way.missing().enumerate() {
                let is_directory = place < last || kind == AdditionKind::Directory;
                let parent = id;
                id = self
                    .additions
                    .add(parent, name, is_directory, mtime)
                    .ok_or_else(|| AddError::TooMany(path.to_vec()))?;
                news.get_or_insert_with(|| (parent, name.to_vec()));
            }
        }
        Ok(Added {
            id,
            path: way.path(),
            news,
        })
    }

    /// What `path` leads to, followed in the same way; `None` if something on it is missing.
    pub fn resolved(&self, path: &[u8]) -> Result<Option<NodeId>, AddError> {
        let way = self.followed(path)?;
        Ok((way.missing().len() == 0).then(|| way.end()))
    }

    /// The same, with the path that leads there without symbolic links and without a leading slash.
    pub(super) fn found(&self, path: &[u8]) -> Result<Option<(NodeId, Vec<u8>)>, AddError> {
        let way = self.followed(path)?;
        Ok((way.missing().len() == 0).then(|| (way.end(), way.path())))
    }

    fn followed<'a>(&'a self, path: &'a [u8]) -> Result<Way<'a, NodeId>, AddError> {
        let long = || AddError::Long(path.to_vec());
        if path.len() > PATH_BYTES_LIMIT || path.contains(&0) {
            return Err(long());
        }
        let slashes = path.iter().rev().take_while(|&&byte| byte == b'/').count();
        // A slash at the end tells of no directory: users write it after files, too.
        let way = match followed(&self, &path[..path.len() - slashes])? {
            Ok(way) => way,
            Err(Blocked::Loop) => return Err(AddError::Loop(path.to_vec())),
            Err(Blocked::NotADirectory) => return Err(AddError::NotADirectory(path.to_vec())),
        };
        if way.missing().any(|name| name.len() > NAME_BYTES_LIMIT) {
            return Err(long());
        }
        Ok(way)
    }
}

impl<'a> Paths<'a> for &'a Image {
    type Id = NodeId;
    type Error = TreeError;

    fn root(&self) -> NodeId {
        NodeId::ROOT
    }

    fn child(&self, directory: &NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        self.lookup(*directory, name)
    }

    fn step(&self, id: &NodeId) -> Result<Step<'a>, TreeError> {
        let image: &'a Image = self;
        Ok(match image.node(*id)?.kind {
            NodeKind::Directory => Step::Directory,
            NodeKind::Symlink => Step::Symlink(image.link_target(*id)?.into()),
            _ => Step::Other,
        })
    }
}
