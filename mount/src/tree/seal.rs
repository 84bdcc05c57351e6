//! A finished draft is written as a tree file, front to back.

use std::io::{self, Write};
use std::ops::Deref;
use std::panic::resume_unwind;
use std::thread;

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::draft::{Draft, NameIndex, NodeIndex, Origin, Shape};
use super::format::{
    Header, KIND_BLOCK_DEVICE, KIND_CHAR_DEVICE, KIND_DIRECTORY, KIND_FIFO, KIND_REGULAR,
    KIND_SOCKET, KIND_SYMLINK, MAGIC, NameRecord, NodeRecord, VERSION,
};
use super::merge::MergeError;
use crate::layer::entry::{Entry, Kind, Timestamp};
use crate::layer::table::{PieceRange, Table, TableError};

/// Writes `draft`, whose attributes are in the tables of `layers`, to `to`, record by record. Reads entries more than once rather than keep what it
/// needs of them.
pub(super) fn seal<T: Deref<Target = Table>>(
    draft: &Draft,
    layers: &[T],
    to: &mut impl Write,
) -> Result<(), MergeError> {
    let sealing = Sealing {
        order: Order::of(draft),
        draft,
        layers,
    };
    let (names_len, with_bytes) = sealing.header(to)?;
    thread::scope(|scope| {
        // Programs wait for this, and most machines have another core.
        let names = scope.spawn(|| sealing.order.name_part(draft, names_len));
        sealing.nodes(names_len, to)?;
        let names = names.join();
        write(to, &*names.unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    sealing.bytes(&with_bytes, to)
}

struct Sealing<'a, T> {
    order: Order,
    draft: &'a Draft,
    layers: &'a [T],
}

/// In which order nodes and names go into the file.
struct Order {
    /// All nodes breadth first: their places, plus one, are their numbers.
    nodes: Vec<NodeIndex>,
    /// The number of each node of the draft, 0 for those that no name leads to.
    numbers: Vec<u32>,
    /// The names of all directories in the order of these, sorted within each.
    names: Vec<NameIndex>,
    /// What each directory has, in the order of the directories.
    directories: Vec<Contents>,
}

#[derive(Clone, Copy)]
struct Contents {
    names: u32,
    directories: u32,
}

impl Order {
    fn of(draft: &Draft) -> Self {
        let mut order = Self {
            nodes: vec![Draft::ROOT],
            numbers: vec![0; draft.node_places()],
            names: Vec::new(),
            directories: Vec::new(),
        };
        order.numbers[Draft::ROOT.0 as usize] = 1;
        let mut place = 0;
        while let Some(&node) = order.nodes.get(place) {
            place += 1;
            if draft.shape(node) == Shape::Directory {
                order.add_directory(draft, node);
            }
        }
        order
    }

    fn add_directory(&mut self, draft: &Draft, directory: NodeIndex) {
        let first = self.names.len();
        self.names.extend(draft.children(directory));
        self.names[first..].sort_unstable_by_key(|&name| draft.bytes(name));
        let mut directories = 0;
        for &name in &self.names[first..] {
            let node = draft.node(name);
            directories += u32::from(draft.shape(node) == Shape::Directory);
            let number = &mut self.numbers[node.0 as usize];
            if *number == 0 {
                self.nodes.push(node);
                *number = count(self.nodes.len());
            }
        }
        self.directories.push(Contents {
            names: count(self.names.len() - first),
            directories,
        });
    }

    fn number(&self, node: NodeIndex) -> u32 {
        self.numbers[node.0 as usize]
    }

    /// All names, and behind them their bytes, of which there are `names_len`.
    fn name_part(&self, draft: &Draft, names_len: u64) -> Vec<u8> {
        let records_len = self.names.len() * size_of::<NameRecord>();
        let mut names = Vec::with_capacity(records_len + names_len as usize);
        let mut at = 0u64;
        for &name in &self.names {
            let len = draft.bytes(name).len() as u16;
            let record = NameRecord {
                at: at.into(),
                node: self.number(draft.node(name)).into(),
                len: len.into(),
                _reserved: 0.into(),
            };
            at += u64::from(len);
            names.extend_from_slice(record.as_bytes());
        }
        for &name in &self.names {
            names.extend_from_slice(draft.bytes(name));
        }
        names
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("the draft numbers nodes and names in 32 bits")
}

impl<T: Deref<Target = Table>> Sealing<'_, T> {
    /// Writes the header and the layers' digests; returns how many bytes all names have together, and the nodes that have link
    /// targets or attributes.
    fn header(&self, to: &mut impl Write) -> Result<(u64, Vec<NodeIndex>), MergeError> {
        let names = self.order.names.iter();
        let names_len: u64 = names.map(|&name| self.draft.bytes(name).len() as u64).sum();
        let (mut bytes_len, mut file_bytes, mut has_xattrs) = (names_len, 0u64, false);
        let mut with_bytes = Vec::new();
        for &node in &self.order.nodes {
            let Origin::Entry { layer, index } = self.draft.origin(node) else {
                continue;
            };
            let lens = self.layers[usize::from(layer)].lens(index.into())?;
            let own_bytes = u64::from(lens.target) + u64::from(lens.xattrs);
            if own_bytes > 0 {
                with_bytes.push(node);
            }
            bytes_len += own_bytes;
            has_xattrs |= lens.xattrs > 0;
            file_bytes = file_bytes.saturating_add(lens.file);
        }
        let records_len = size_of::<Header>()
            + self.layers.len() * 32
            + self.order.nodes.len() * size_of::<NodeRecord>()
            + self.order.names.len() * size_of::<NameRecord>();
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            layers: count(self.layers.len()).into(),
            nodes: count(self.order.nodes.len()).into(),
            names: count(self.order.names.len()).into(),
            bytes_len: bytes_len.into(),
            file_len: (records_len as u64 + bytes_len).into(),
            file_bytes: file_bytes.into(),
            has_xattrs: u32::from(has_xattrs).into(),
            _reserved: 0.into(),
        };
        write(to, &header)?;
        for layer in self.layers {
            write(to, layer.layer().as_bytes())?;
        }
        Ok((names_len, with_bytes))
    }

    /// Writes the nodes, whose link targets and attributes begin at `bytes_at`.
    fn nodes(&self, mut bytes_at: u64, to: &mut impl Write) -> Result<(), MergeError> {
        let mut names_at = 0u64;
        let mut directories = self.order.directories.iter();
        for &node in &self.order.nodes {
            let (entry, pieces) = self.entry(node)?;
            let mut record = attributes(&entry);
            record.nlink = self.draft.name_count(node).into();
            match &entry.kind {
                Kind::Directory => {
                    let contents = directories.next().expect("one for each directory");
                    record.nlink = (2 + contents.directories).into();
                    record.place = names_at.into();
                    record.count = contents.names.into();
                    record.owner = self.order.number(self.draft.above(node)).into();
                    names_at += u64::from(contents.names);
                }
                Kind::Regular { size } => {
                    let Origin::Entry { layer, .. } = self.draft.origin(node) else {
                        unreachable!("only directories are implied");
                    };
                    let table = &*self.layers[usize::from(layer)];
                    record.allocated = allocated(table, pieces, *size)?.into();
                    record.place = pieces.first.into();
                    record.count = pieces.count.into();
                    record.owner = u32::from(layer).into();
                }
                Kind::Symlink { .. } => record.place = bytes_at.into(),
                _ => {}
            }
            bytes_at += target(&entry).len() as u64;
            record.xattrs_at = bytes_at.into();
            bytes_at += u64::from(record.xattrs_len.get());
            write(to, &record)?;
        }
        Ok(())
    }

    /// Writes the link targets and attributes of the nodes that have some, in their order.
    fn bytes(&self, with_bytes: &[NodeIndex], to: &mut impl Write) -> Result<(), MergeError> {
        for &node in with_bytes {
            let (entry, _) = self.entry(node)?;
            write(to, target(&entry))?;
            for (name, value) in &entry.xattrs {
                write(to, &[name, value].map(|part| U32::new(part.len() as u32)))?;
                write(to, *name)?;
                write(to, *value)?;
            }
        }
        Ok(())
    }

    /// The entry that `node` comes from, and its pieces.
    fn entry(&self, node: NodeIndex) -> Result<(Entry<&[u8]>, PieceRange), TableError> {
        match self.draft.origin(node) {
            Origin::Entry { layer, index } => self.layers[usize::from(layer)].entry(index.into()),
            Origin::Implied => Ok((IMPLIED, PieceRange::default())),
        }
    }
}

/// What a directory has that no layer describes.
const IMPLIED: Entry<&[u8]> = Entry {
    path: b"",
    kind: Kind::Directory,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: Timestamp { secs: 0, nanos: 0 },
    xattrs: Vec::new(),
};

/// What the entry alone says about a node.
fn attributes(entry: &Entry<&[u8]>) -> NodeRecord {
    let (kind, size, place) = match entry.kind {
        Kind::Directory => (KIND_DIRECTORY, 0, 0),
        Kind::Regular { size } => (KIND_REGULAR, size, 0),
        Kind::Symlink { target } => (KIND_SYMLINK, target.len() as u64, 0),
        Kind::CharDevice { major, minor } => (KIND_CHAR_DEVICE, 0, device(major, minor)),
        Kind::BlockDevice { major, minor } => (KIND_BLOCK_DEVICE, 0, device(major, minor)),
        Kind::Fifo => (KIND_FIFO, 0, 0),
        Kind::Socket => (KIND_SOCKET, 0, 0),
        Kind::Hardlink { .. } | Kind::Whiteout | Kind::Opaque | Kind::Hidden { .. } => {
            unreachable!("merging makes no nodes of these")
        }
    };
    NodeRecord {
        kind,
        _reserved: 0,
        mode: entry.mode.into(),
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        nlink: 0.into(),
        mtime_secs: entry.mtime.secs.into(),
        mtime_nanos: entry.mtime.nanos.into(),
        xattrs_len: xattrs_len(entry).into(),
        xattrs_at: 0.into(),
        size: size.into(),
        allocated: 0.into(),
        place: place.into(),
        count: 0.into(),
        owner: 0.into(),
    }
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

fn target<'a>(entry: &Entry<&'a [u8]>) -> &'a [u8] {
    match entry.kind {
        Kind::Symlink { target } => target,
        _ => b"",
    }
}

/// Length of the attributes as the table's entry has them, which fits because it fitted there.
fn xattrs_len(entry: &Entry<&[u8]>) -> u32 {
    let lens = entry.xattrs.iter();
    lens.map(|(name, value)| 8 + name.len() as u32 + value.len() as u32)
        .sum()
}

/// How many of a file's bytes lie in chunks.
fn allocated(table: &Table, pieces: PieceRange, size: u64) -> Result<u64, TableError> {
    let pieces = table.pieces(pieces)?;
    let ends = pieces.iter().skip(1).map(|piece| piece.at()).chain([size]);
    let stretches = pieces.iter().zip(ends);
    Ok(stretches
        .filter(|(piece, _)| piece.chunk().is_some())
        .map(|(piece, end)| end.min(size).saturating_sub(piece.at()))
        .fold(0, u64::saturating_add)
        .min(size))
}

fn write(
    to: &mut impl Write,
    part: &(impl IntoBytes + Immutable + ?Sized),
) -> Result<(), MergeError> {
    to.write_all(part.as_bytes())
        .map_err(|err: io::Error| MergeError::Write(err))
}
