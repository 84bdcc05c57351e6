//! The file system, without FUSE: an image's tree with the bytes of its files.

mod additions;
mod ahead;
mod attributes;
mod course;
mod documents;
pub mod history;
pub mod index;
pub mod indexing;
mod interpreter;
mod layers;
pub mod open;
pub mod outlook;
mod path;
pub mod profile;
pub mod program;
pub mod prometheus;
mod proof;
mod read;
pub mod reads;
mod ready;
mod sequence;
pub mod share;
pub mod stats;

use std::sync::{Arc, OnceLock};

use crossbeam_channel::Sender;

use crate::fetch::ChunkSource;
use crate::layer::table::Table;
use crate::tree::{Node, NodeId, NodeKind, Tree, TreeError, Xattrs};

use additions::Additions;
pub use attributes::{Attributes, Owners};
use course::Course;
pub use course::ThroughMount;
pub use path::{AddError, Added, AdditionKind};
use proof::Proven;
use reads::Reads;
use sequence::Sequences;

/// An opened image. Answers from memory and from mapped files, but for [`Image::read`].
///
/// Beside the sealed tree it can have *additions*: names of empty files and directories that a
/// program's binds need and the image lacks. Their numbers follow those of the tree.
pub struct Image {
    tree: Tree,
    tables: Vec<Arc<Table>>,
    chunks: Arc<dyn ChunkSource>,
    additions: Additions,
    proven: Proven,
    reads: OnceLock<Arc<Reads>>,
    /// Who wants to know of programs that begin to be read.
    programs: OnceLock<Sender<NodeId>>,
    /// What programs are known to read.
    course: OnceLock<Arc<Course>>,
    through: OnceLock<Arc<dyn ThroughMount>>,
    sequences: Sequences,
}

/// Places in a directory from here on count its additions; below, the tree's names.
const ADDITIONS_FROM: u64 = 1 << 62;

impl Image {
    /// The image that `tree` and the tables of its layers, bottom first, describe, with the bytes in `chunks`.
    pub fn new(tree: Tree, tables: Vec<Arc<Table>>, chunks: Arc<dyn ChunkSource>) -> Self {
        let additions = Additions::after(tree.node_count());
        Self {
            tree,
            tables,
            additions,
            proven: Proven::default(),
            reads: OnceLock::new(),
            programs: OnceLock::new(),
            course: OnceLock::new(),
            through: OnceLock::new(),
            sequences: Sequences::of(&chunks),
            chunks,
        }
    }

    /// Has `reads` remember what is read from now on; the first call counts.
    pub fn remember(&self, reads: &Arc<Reads>) {
        let _ = self.reads.set(Arc::clone(reads));
    }

    /// Has told, from now on, of programs and libraries that begin to be read; the first call counts.
    fn tell_of_programs(&self, programs: Sender<NodeId>) {
        let _ = self.programs.set(programs);
    }

    /// Has `course` told, from now on, where programs read; the first call counts.
    fn tell_course(&self, course: &Arc<Course>) {
        let _ = self.course.set(Arc::clone(course));
    }

    /// Has `through` read ahead what programs are known to read, from now on; the first call counts.
    pub fn read_ahead_through(&self, through: Arc<dyn ThroughMount>) {
        let _ = self.through.set(through);
    }

    /// What was sealed, without additions.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The tables of the tree's layers, bottom first.
    pub fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    /// Where the bytes come from.
    pub fn chunks(&self) -> &Arc<dyn ChunkSource> {
        &self.chunks
    }

    /// The file of this number.
    pub fn node(&self, id: NodeId) -> Result<Node, TreeError> {
        if let Some(node) = self.additions.node(id) {
            return Ok(node);
        }
        let mut node = self.tree.node(id)?;
        if matches!(node.kind, NodeKind::Directory) {
            let added = self.additions.directories_in(id);
            node.nlink = node.nlink.saturating_add(added);
        }
        Ok(node)
    }

    /// What `name` leads to in `directory`; not for `.` and `..`.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Option<NodeId>, TreeError> {
        if !self.additions.contains(directory)
            && let Some(id) = self.tree.lookup(directory, name)?
        {
            return Ok(Some(id));
        }
        Ok(self.additions.lookup(directory, name))
    }

    /// Shows the names in `directory` to `each`, without `.` and `..`, from the place `from` (0, or one
    /// that was given with a name) until it has had enough: with each, what it leads to and the place
    /// of the next. Places stay valid as long as the image, whatever is added.
    pub fn children(
        &self,
        directory: NodeId,
        from: u64,
        mut each: impl FnMut(&[u8], NodeId, u64) -> Enough,
    ) -> Result<(), TreeError> {
        if from < ADDITIONS_FROM && !self.additions.contains(directory) {
            let mut next = from;
            for child in self.tree.children(directory, from)? {
                let (name, id) = child?;
                next += 1;
                if each(name, id, next) == Enough::Yes {
                    return Ok(());
                }
            }
        }
        let mut next = from.max(ADDITIONS_FROM);
        for (name, id) in self.additions.children(directory, next - ADDITIONS_FROM) {
            next += 1;
            if each(&name, id, next) == Enough::Yes {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The directory above `directory`; the root's is the root.
    pub fn parent(&self, directory: NodeId) -> Result<NodeId, TreeError> {
        match self.additions.parent(directory) {
            Some(parent) => Ok(parent),
            None => self.tree.parent(directory),
        }
    }

    /// Where a symbolic link points, as written.
    pub fn link_target(&self, id: NodeId) -> Result<&[u8], TreeError> {
        self.tree.link_target(id)
    }

    /// Whether any file has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.tree.has_xattrs()
    }

    /// The extended attributes of a file, with their full names.
    pub fn xattrs(&self, id: NodeId) -> Result<Xattrs<'_>, TreeError> {
        if self.additions.contains(id) {
            return Ok(Vec::new());
        }
        self.tree.xattrs(id)
    }

    /// How many files there are.
    pub fn file_count(&self) -> u64 {
        self.tree.node_count() + self.additions.count()
    }
}

/// Whether one who is shown names wants no more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// Also not this last one.
    Yes,
    /// More, please.
    No,
}
