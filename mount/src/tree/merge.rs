//! Layers become one tree, by the rules of the OCI image specification (layer.md, "Applying changesets")
//! and, where it is silent, by what unpackers do.
//!
//! Of each layer first the whiteouts and opaque directories are applied to what lower layers left, wherever
//! they stand in the layer, then its entries in order.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::Deref;

use super::draft::{Draft, NameIndex, NodeIndex, Origin, Put, Refusal, Shape};
use super::resolve::{Blocked, Paths, Resolved, Step, resolved};
use super::seal::seal;
use crate::digest::Digest;
use crate::layer::entry::{Entry, Kind, shown};
use crate::layer::table::{Table, TableError};

/// Names looked up for each entry on average at most, and as many more in any case. Most entries need none, because they
/// are in the directory of the one before; but each of a hostile layer's may lead through 40 links of 2,000 names.
const LOOKUPS_PER_ENTRY: u64 = 64;
const LOOKUPS_ALWAYS: u64 = 1 << 20;

/// Why layers do not make a tree.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// An entry that no file system could hold.
    #[error("layer {layer}, entry {:?}: {problem}", shown(path))]
    Entry {
        /// The layer.
        layer: Digest,
        /// The entry's path.
        path: Vec<u8>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A damaged table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// More of something than a tree file has room for.
    #[error("image: {0}")]
    Image(&'static str),
    /// The tree file could not be written.
    #[error("tree file: not written")]
    Write(#[source] io::Error),
}

/// Merges `layers`, the bottom one first, and writes the finished tree file to `to`. Takes about 100 bytes of
/// memory for each name while it lasts; on failure `to` may hold the beginning of a file.
pub fn merge(layers: &[&Table], to: &mut impl Write) -> Result<(), MergeError> {
    let mut merger = Merger::default();
    for layer in layers {
        merger.add(*layer)?;
    }
    merger.seal(to)
}

/// Merges layers one by one, from the bottom to the top, as their tables come. What is merged so far can be sealed, and go on.
pub struct Merger<T> {
    layers: Vec<T>,
    draft: Draft,
    lookups_left: Cell<u64>,
}

impl<T> Default for Merger<T> {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            draft: Draft::new(),
            lookups_left: Cell::new(LOOKUPS_ALWAYS),
        }
    }
}

impl<T: Deref<Target = Table>> Merger<T> {
    /// Puts one more layer on top. After a failure nothing can be done with what was merged.
    pub fn add(&mut self, layer: T) -> Result<(), MergeError> {
        let number = u16::try_from(self.layers.len())
            .ok()
            .filter(|&number| number < u16::MAX)
            .ok_or(MergeError::Image("more than 65535 layers in one image"))?;
        self.layers.push(layer);
        let mut merging = Merging {
            layers: &self.layers,
            draft: &mut self.draft,
            last: None,
            lookups_left: &self.lookups_left,
        };
        merging.hide(number)?;
        merging.add(number)
    }

    /// Makes room for so many entries in all, as far as that is known.
    pub fn make_room(&mut self, entries: u64) {
        self.draft
            .make_room(usize::try_from(entries).unwrap_or(usize::MAX));
    }

    /// What stands at `path` in the layers so far; no symbolic link is followed, a path through one finds nothing.
    pub fn standing(&self, path: &[u8]) -> Result<Option<Step<'_>>, TableError> {
        let mut node = Draft::ROOT;
        let names = path.split(|&byte| byte == b'/');
        for name in names.filter(|name| !name.is_empty()) {
            match self.draft.find(node, name) {
                Some(name) => node = self.draft.node(name),
                None => return Ok(None),
            }
        }
        step(&self.draft, &self.layers, node).map(Some)
    }

    /// User and group that the root directory belongs to.
    pub fn root_owner(&self) -> Result<(u32, u32), TableError> {
        match self.draft.origin(Draft::ROOT) {
            Origin::Implied => Ok((0, 0)),
            Origin::Entry { layer, index } => {
                let (root, _) = self.layers[usize::from(layer)].entry(index.into())?;
                Ok((root.uid, root.gid))
            }
        }
    }

    /// Writes the tree of the layers so far to `to`.
    pub fn seal(&self, to: &mut impl Write) -> Result<(), MergeError> {
        seal(&self.draft, &self.layers, to)
    }
}

struct Merging<'a, T> {
    layers: &'a [T],
    draft: &'a mut Draft,
    /// The directory that an entry before was in, and its own path, which no link is part of: most layers list
    /// directory by directory. Holds until something is hidden or replaced.
    last: Option<(&'a [u8], NodeIndex)>,
    lookups_left: &'a Cell<u64>,
}

/// What keeps an entry out of the tree.
enum Obstacle {
    Entry(&'static str),
    Table(TableError),
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        Self::Entry(refusal)
    }
}

impl From<TableError> for Obstacle {
    fn from(err: TableError) -> Self {
        Self::Table(err)
    }
}

impl<'a, T: Deref<Target = Table>> Merging<'a, T> {
    /// Applies the whiteouts and opaque directories of `layer` to what the layers below left.
    fn hide(&mut self, layer: u16) -> Result<(), MergeError> {
        let count = self.layers[usize::from(layer)].entry_count();
        let more = count.saturating_mul(LOOKUPS_PER_ENTRY);
        self.lookups_left
            .set(self.lookups_left.get().saturating_add(more));
        let table = &*self.layers[usize::from(layer)];
        let hiding = table.hiding().map(|index| Ok(table.entry(index)?.0));
        let mut hiding = hiding.collect::<Result<Vec<_>, TableError>>()?;
        if hiding.is_empty() {
            return Ok(());
        }
        // What a path leads to may itself be hidden here; so that this does not depend on where the two
        // stand, names go before the contents of directories, and shallow paths before those below.
        hiding.sort_by_cached_key(|entry| {
            let slashes = entry.path.iter().filter(|&&byte| byte == b'/').count();
            (entry.kind == Kind::Opaque, slashes, entry.path)
        });
        self.last = None;
        let replaced = self.replaced_links(layer)?;
        for entry in hiding {
            self.hide_one(&entry, &replaced)
                .map_err(|obstacle| self.error(layer, entry.path, obstacle))?;
        }
        Ok(())
    }

    /// The symbolic links that `layer` replaces by directories. What it hides inside such a directory is not to
    /// be looked for where the link led: OverlayFS marks every directory that replaces something opaque,
    /// and `lib -> usr/lib` must not take `usr/lib` with it.
    fn replaced_links(&self, layer: u16) -> Result<HashSet<NameIndex>, MergeError> {
        let mut replaced = HashSet::new();
        for entry in self.layers[usize::from(layer)].entries() {
            let (entry, _) = entry?;
            if entry.kind != Kind::Directory {
                continue;
            }
            let (above, name) = split(entry.path);
            let followed = resolved(&self.paths(&replaced), above)
                .map_err(|obstacle| self.error(layer, entry.path, obstacle))?;
            let Resolved::Found(directory) = followed else {
                continue;
            };
            if let Some(name) = self.draft.find(directory, name)
                && self.draft.shape(self.draft.node(name)) == Shape::Symlink
            {
                replaced.insert(name);
            }
        }
        Ok(replaced)
    }

    fn hide_one(
        &mut self,
        entry: &Entry<&'a [u8]>,
        replaced: &HashSet<NameIndex>,
    ) -> Result<(), Obstacle> {
        let is_opaque = entry.kind == Kind::Opaque;
        if entry.path.is_empty() && !is_opaque {
            return Err(Obstacle::Entry(ROOT_IS_A_DIRECTORY));
        }
        let (above, name) = split(entry.path);
        let directory = if is_opaque { entry.path } else { above };
        let Resolved::Found(directory) = resolved(&self.paths(replaced), directory)? else {
            return Ok(());
        };
        if is_opaque {
            self.draft.clear(directory);
        } else if let Some(name) = self.draft.find(directory, name) {
            self.draft.remove(name);
        }
        Ok(())
    }

    /// Adds the entries of `layer` in order.
    fn add(&mut self, layer: u16) -> Result<(), MergeError> {
        for (index, entry) in self.layers[usize::from(layer)].entries().enumerate() {
            let (entry, _) = entry?;
            let index = u32::try_from(index).map_err(|_| MergeError::Image("too many entries"))?;
            self.add_one(Origin::Entry { layer, index }, &entry)
                .map_err(|obstacle| self.error(layer, entry.path, obstacle))?;
        }
        Ok(())
    }

    fn add_one(&mut self, origin: Origin, entry: &Entry<&'a [u8]>) -> Result<(), Obstacle> {
        let shape = match entry.kind {
            Kind::Whiteout | Kind::Opaque | Kind::Hidden { .. } => return Ok(()),
            Kind::Directory if entry.path.is_empty() => {
                self.draft.set_origin(Draft::ROOT, origin);
                return Ok(());
            }
            _ if entry.path.is_empty() => return Err(Obstacle::Entry(ROOT_IS_A_DIRECTORY)),
            Kind::Hardlink { target } => return self.add_hard_link(entry.path, target),
            Kind::Regular { size } if i64::try_from(size).is_err() => {
                return Err(Obstacle::Entry("larger than a file can be"));
            }
            Kind::Directory => Shape::Directory,
            Kind::Symlink { .. } => Shape::Symlink,
            _ => Shape::Other,
        };
        let (above, name) = split(entry.path);
        let directory = self.directory(above)?;
        if shape == Shape::Directory
            && let Some(found) = self.draft.find(directory, name)
            && let node = self.draft.node(found)
            && self.draft.shape(node) == Shape::Directory
        {
            self.draft.set_origin(node, origin);
            return Ok(());
        }
        let node = self.draft.add_node(origin, shape)?;
        self.put(directory, name, node)
    }

    /// Gives what is at `target` at this moment another name.
    fn add_hard_link(&mut self, path: &'a [u8], target: &'a [u8]) -> Result<(), Obstacle> {
        let (above, name) = split(target);
        if name.is_empty() {
            return Err(Obstacle::Entry("a hard link to a directory"));
        }
        let found = match resolved(&self.paths(&HashSet::new()), above)? {
            Resolved::Found(directory) => self.draft.find(directory, name),
            _ => None,
        };
        let node = match found.map(|name| self.draft.node(name)) {
            None => return Err(Obstacle::Entry("a hard link to nothing")),
            Some(node) if self.draft.shape(node) == Shape::Directory => {
                return Err(Obstacle::Entry("a hard link to a directory"));
            }
            Some(node) => node,
        };
        let (above, name) = split(path);
        let directory = self.directory(above)?;
        self.put(directory, name, node)
    }

    fn put(&mut self, directory: NodeIndex, name: &[u8], node: NodeIndex) -> Result<(), Obstacle> {
        if self.draft.put(directory, name, node)? == Put::Replaced {
            self.last = None;
        }
        Ok(())
    }

    /// The directory that `path` leads to; what is missing of it is created without attributes of its own.
    fn directory(&mut self, path: &'a [u8]) -> Result<NodeIndex, Obstacle> {
        if let Some((last, directory)) = self.last
            && last == path
        {
            return Ok(directory);
        }
        let directory = self.found_or_implied(path)?;
        if self.draft.has_path(directory, path) {
            self.last = Some((path, directory));
        }
        Ok(directory)
    }

    fn found_or_implied(&mut self, path: &'a [u8]) -> Result<NodeIndex, Obstacle> {
        let (mut directory, missing) = match resolved(&self.paths(&HashSet::new()), path)? {
            Resolved::Found(node) if self.draft.shape(node) == Shape::Directory => {
                return Ok(node);
            }
            Resolved::Found(_) | Resolved::Blocked(Blocked::NotADirectory) => {
                return Err(Obstacle::Entry("an entry below a file"));
            }
            Resolved::Blocked(Blocked::Loop) => {
                return Err(Obstacle::Entry("an entry below a loop of symbolic links"));
            }
            Resolved::Missing { at, rest } => (at, rest),
        };
        for name in missing.split(|&byte| byte == b'/') {
            let implied = self.draft.add_node(Origin::Implied, Shape::Directory)?;
            self.put(directory, name, implied)?;
            directory = implied;
        }
        Ok(directory)
    }

    fn paths<'d>(&'d self, without: &'d HashSet<NameIndex>) -> DraftPaths<'d, 'a, T> {
        DraftPaths {
            draft: self.draft,
            layers: self.layers,
            without,
            lookups_left: self.lookups_left,
        }
    }

    fn error(&self, layer: u16, path: &[u8], obstacle: Obstacle) -> MergeError {
        match obstacle {
            Obstacle::Table(err) => MergeError::Table(err),
            Obstacle::Entry(problem) => MergeError::Entry {
                layer: self.layers[usize::from(layer)].layer(),
                path: path.to_vec(),
                problem,
            },
        }
    }
}

const ROOT_IS_A_DIRECTORY: &str = "the root of an image can only be a directory";

/// A path's directory and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The draft as paths see it, without some names.
struct DraftPaths<'d, 'a, T> {
    draft: &'d Draft,
    layers: &'a [T],
    without: &'d HashSet<NameIndex>,
    lookups_left: &'d Cell<u64>,
}

impl<'a, T: Deref<Target = Table>> Paths<'a> for DraftPaths<'_, 'a, T> {
    type Id = NodeIndex;
    type Error = Obstacle;

    fn root(&self) -> NodeIndex {
        Draft::ROOT
    }

    fn child(&self, directory: &NodeIndex, name: &[u8]) -> Result<Option<NodeIndex>, Obstacle> {
        let left = self.lookups_left.get().checked_sub(1);
        self.lookups_left.set(left.ok_or(Obstacle::Entry(
            "the layers' paths lead through symbolic links too many times",
        ))?);
        let name = self.draft.find(*directory, name);
        Ok(name
            .filter(|name| self.without.is_empty() || !self.without.contains(name))
            .map(|name| self.draft.node(name)))
    }

    fn step(&self, node: &NodeIndex) -> Result<Step<'a>, Obstacle> {
        Ok(step(self.draft, self.layers, *node)?)
    }
}

fn step<'a, T: Deref<Target = Table>>(
    draft: &Draft,
    layers: &'a [T],
    node: NodeIndex,
) -> Result<Step<'a>, TableError> {
    let Origin::Entry { layer, index } = draft.origin(node) else {
        return Ok(Step::Directory);
    };
    Ok(match draft.shape(node) {
        Shape::Directory => Step::Directory,
        Shape::Other => Step::Other,
        Shape::Symlink => match layers[usize::from(layer)].entry(index.into())?.0.kind {
            Kind::Symlink { target } => Step::Symlink(target.into()),
            _ => Step::Other,
        },
    })
}
