//! A tree while layers are merged into it: compact, because it holds every name of the image at once.
//!
//! A node keeps only where its entry stands; attributes stay in the layers' tables until the tree is sealed.
//! What is removed leaves its records behind; the numbers of all records are bounded.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::format::DEPTH_LIMIT;

/// A node's place in the draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeIndex(pub u32);

/// A name's place in the draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameIndex(u32);

const NO_NAME: NameIndex = NameIndex(u32::MAX);

/// Which entry a node comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From none: a directory that only its contents imply.
    Implied,
    /// From this one.
    Entry { layer: u16, index: u32 },
}

/// What merging must know of a node's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Directory,
    Symlink,
    Other,
}

#[derive(Clone, Copy)]
struct Node {
    entry: u32,
    layer: u16,
    shape: Shape,
    /// How many names lead here.
    names: u32,
    /// Of a directory: its own name, its first child, and how many directories it is below the root.
    name: NameIndex,
    first_child: NameIndex,
    depth: u16,
}

/// [`Node::entry`] of an implied directory.
const IMPLIED: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Name {
    directory: NodeIndex,
    node: NodeIndex,
    next: NameIndex,
    before: NameIndex,
    at: u32,
    len: u8,
}

const _: () = assert!(size_of::<Node>() <= 24 && size_of::<Name>() <= 24);
const _: () = assert!(NODES_LIMIT < IMPLIED as usize);
const _: () = assert!(BYTES_LIMIT < u32::MAX as usize);

/// See the module.
pub(super) struct Draft {
    nodes: Vec<Node>,
    names: Vec<Name>,
    bytes: Vec<u8>,
    /// Finds names by directory and bytes. Keyed afresh in each process, so that no image can be made to collide.
    index: HashTable<u32>,
    hashes: DefaultHashBuilder,
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// There was none before.
    Added,
    /// It led elsewhere before, or to the same.
    Replaced,
}

/// Why a draft does not take one more name.
pub(super) type Refusal = &'static str;

/// Names in one image at most, those that layers above hide included, and nodes, those without a name included. The
/// largest images people run have about two million files; all of this is in memory at once.
const NAMES_LIMIT: usize = 4 << 20;
const NODES_LIMIT: usize = 2 * NAMES_LIMIT;

/// Bytes in all names of one image at most: 64 for each.
const BYTES_LIMIT: usize = 64 * NAMES_LIMIT;

impl Draft {
    /// The directory that everything is in.
    pub const ROOT: NodeIndex = NodeIndex(0);

    /// A root directory without entry.
    pub fn new() -> Self {
        let mut draft = Self {
            nodes: Vec::new(),
            names: Vec::new(),
            bytes: Vec::new(),
            index: HashTable::new(),
            hashes: DefaultHashBuilder::default(),
        };
        draft.nodes.push(Node {
            names: 1,
            ..node(Origin::Implied, Shape::Directory)
        });
        draft
    }

    /// Makes room for so many names, so that it need not be made again and again: all of them would have to be found a new place.
    pub fn make_room(&mut self, names: usize) {
        let more = names.min(NAMES_LIMIT).saturating_sub(self.names.len());
        self.nodes.reserve(more);
        self.names.reserve(more);
        let (names, all_bytes, hashes) = (&self.names, &self.bytes, &self.hashes);
        self.index
            .reserve(more, |&place| rehashed(hashes, names, all_bytes, place));
    }

    pub fn shape(&self, node: NodeIndex) -> Shape {
        self.nodes[node.0 as usize].shape
    }

    pub fn origin(&self, node: NodeIndex) -> Origin {
        let node = &self.nodes[node.0 as usize];
        match node.entry {
            IMPLIED => Origin::Implied,
            index => Origin::Entry {
                layer: node.layer,
                index,
            },
        }
    }

    /// How many names lead to `node`.
    pub fn name_count(&self, node: NodeIndex) -> u32 {
        self.nodes[node.0 as usize].names
    }

    /// The directory above `directory`; the root's is the root.
    pub fn above(&self, directory: NodeIndex) -> NodeIndex {
        match self.nodes[directory.0 as usize].name {
            NO_NAME => Self::ROOT,
            name => self.name(name).directory,
        }
    }

    /// Whether `path` is that of `directory` itself, without links.
    pub fn has_path(&self, mut directory: NodeIndex, path: &[u8]) -> bool {
        let mut names = path.rsplit(|&byte| byte == b'/');
        while directory != Self::ROOT {
            let name = self.nodes[directory.0 as usize].name;
            if names.next() != Some(self.bytes(name)) {
                return false;
            }
            directory = self.above(directory);
        }
        path.is_empty() || names.next().is_none()
    }

    /// The node that `name` leads to.
    pub fn node(&self, name: NameIndex) -> NodeIndex {
        self.name(name).node
    }

    /// The bytes of `name`.
    pub fn bytes(&self, name: NameIndex) -> &[u8] {
        let name = self.name(name);
        &self.bytes[name.at as usize..][..usize::from(name.len)]
    }

    /// The names in `directory`, in no order.
    pub fn children(&self, directory: NodeIndex) -> impl Iterator<Item = NameIndex> {
        let some = |name: NameIndex| (name != NO_NAME).then_some(name);
        std::iter::successors(
            some(self.nodes[directory.0 as usize].first_child),
            move |&name| some(self.name(name).next),
        )
    }

    /// How many nodes there are, those that no name leads to any more included.
    pub fn node_places(&self) -> usize {
        self.nodes.len()
    }

    /// The name of these bytes in `directory`.
    pub fn find(&self, directory: NodeIndex, bytes: &[u8]) -> Option<NameIndex> {
        self.find_hashed(hash_of(&self.hashes, directory, bytes), directory, bytes)
    }

    /// A node that no name leads to yet.
    pub fn add_node(&mut self, origin: Origin, shape: Shape) -> Result<NodeIndex, Refusal> {
        let place = self.nodes.len();
        if place == NODES_LIMIT {
            return Err("with it the layers have more than 8 million entries");
        }
        self.nodes.push(node(origin, shape));
        Ok(NodeIndex(place as u32))
    }

    /// Gives `node` the attributes of another entry.
    pub fn set_origin(&mut self, node: NodeIndex, origin: Origin) {
        let node = &mut self.nodes[node.0 as usize];
        (node.layer, node.entry) = fields(origin);
    }

    /// Makes the name of these bytes in `directory` lead to `node`, instead of to what it may have led to;
    /// a directory that is replaced goes with everything in it.
    pub fn put(
        &mut self,
        directory: NodeIndex,
        bytes: &[u8],
        node: NodeIndex,
    ) -> Result<Put, Refusal> {
        let depth = self.nodes[directory.0 as usize].depth + 1;
        if self.shape(node) == Shape::Directory && depth > DEPTH_LIMIT {
            return Err("more than 4096 directories inside each other");
        }
        let hash = hash_of(&self.hashes, directory, bytes);
        let (name, put) = match self.find_hashed(hash, directory, bytes) {
            Some(name) => {
                self.nodes[node.0 as usize].names += 1;
                let replaced = std::mem::replace(&mut self.names[name.0 as usize].node, node);
                self.release(replaced);
                (name, Put::Replaced)
            }
            None => {
                let name = self.add_name(hash, directory, bytes, node)?;
                self.nodes[node.0 as usize].names += 1;
                (name, Put::Added)
            }
        };
        if self.shape(node) == Shape::Directory {
            let node = &mut self.nodes[node.0 as usize];
            (node.name, node.depth) = (name, depth);
        }
        Ok(put)
    }

    /// Takes `name` away, and what it leads to unless other names do, too.
    pub fn remove(&mut self, name: NameIndex) {
        let Name { node, .. } = *self.name(name);
        self.unlink(name);
        self.release(node);
    }

    /// Takes away everything in `directory`.
    pub fn clear(&mut self, directory: NodeIndex) {
        let mut doomed = vec![directory];
        while let Some(directory) = doomed.pop() {
            loop {
                let name = self.nodes[directory.0 as usize].first_child;
                if name == NO_NAME {
                    break;
                }
                let Name { node, .. } = *self.name(name);
                self.unlink(name);
                self.nodes[node.0 as usize].names -= 1;
                if self.shape(node) == Shape::Directory {
                    doomed.push(node);
                }
            }
        }
    }

    fn name(&self, name: NameIndex) -> &Name {
        &self.names[name.0 as usize]
    }

    fn find_hashed(&self, hash: u64, directory: NodeIndex, bytes: &[u8]) -> Option<NameIndex> {
        let found = self.index.find(hash, |&place| {
            let name = NameIndex(place);
            self.name(name).directory == directory && self.bytes(name) == bytes
        });
        found.copied().map(NameIndex)
    }

    /// Counts one name of `node` less.
    fn release(&mut self, node: NodeIndex) {
        self.nodes[node.0 as usize].names -= 1;
        if self.shape(node) == Shape::Directory {
            self.clear(node);
        }
    }

    fn add_name(
        &mut self,
        hash: u64,
        directory: NodeIndex,
        bytes: &[u8],
        node: NodeIndex,
    ) -> Result<NameIndex, Refusal> {
        if self.names.len() == NAMES_LIMIT {
            return Err("with it the image has more than 4 million names");
        }
        if self.bytes.len() + bytes.len() > BYTES_LIMIT {
            return Err("with it the image has more than 256 MiB of names");
        }
        let (place, at) = (self.names.len() as u32, self.bytes.len() as u32);
        let len = match u8::try_from(bytes.len()) {
            Ok(_) if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&0) => {
                return Err("a component of its name is empty, `.`, `..` or has a NUL byte");
            }
            Ok(len) => len,
            Err(_) => return Err("a component of its name is longer than 255 bytes"),
        };
        self.bytes.extend_from_slice(bytes);
        let name = NameIndex(place);
        let first = &mut self.nodes[directory.0 as usize].first_child;
        let next = std::mem::replace(first, name);
        if next != NO_NAME {
            self.names[next.0 as usize].before = name;
        }
        self.names.push(Name {
            directory,
            node,
            next,
            before: NO_NAME,
            at,
            len,
        });
        let (names, all_bytes, hashes) = (&self.names, &self.bytes, &self.hashes);
        self.index.insert_unique(hash, place, |&place| {
            rehashed(hashes, names, all_bytes, place)
        });
        Ok(name)
    }

    fn unlink(&mut self, name: NameIndex) {
        let hash = hash_of(&self.hashes, self.name(name).directory, self.bytes(name));
        if let Ok(found) = self.index.find_entry(hash, |&place| place == name.0) {
            found.remove();
        }
        let Name {
            directory,
            next,
            before,
            ..
        } = *self.name(name);
        match before {
            NO_NAME => self.nodes[directory.0 as usize].first_child = next,
            before => self.names[before.0 as usize].next = next,
        }
        if next != NO_NAME {
            self.names[next.0 as usize].before = before;
        }
    }
}

fn node(origin: Origin, shape: Shape) -> Node {
    let (layer, entry) = fields(origin);
    Node {
        entry,
        layer,
        shape,
        names: 0,
        name: NO_NAME,
        first_child: NO_NAME,
        depth: 0,
    }
}

fn fields(origin: Origin) -> (u16, u32) {
    match origin {
        Origin::Implied => (0, IMPLIED),
        Origin::Entry { layer, index } => (layer, index),
    }
}

fn rehashed(hashes: &DefaultHashBuilder, names: &[Name], all_bytes: &[u8], place: u32) -> u64 {
    let name = &names[place as usize];
    let bytes = &all_bytes[name.at as usize..][..usize::from(name.len)];
    hash_of(hashes, name.directory, bytes)
}

fn hash_of(hashes: &DefaultHashBuilder, directory: NodeIndex, bytes: &[u8]) -> u64 {
    let mut hasher = hashes.build_hasher();
    hasher.write_u32(directory.0);
    hasher.write(bytes);
    hasher.finish()
}
