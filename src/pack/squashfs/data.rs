//! Contents: blocks of files and fragments, read and compressed on all cores, stored in one order.
//!
//! A file with the content of one before it is noticed when it ends, by its digest; its blocks are then taken back.
//! What ends up where depends on the contents and their order alone: this thread decides and writes, others work.

use std::collections::{HashMap, VecDeque};
use std::io;

use bytes::Bytes;
use crossbeam_channel::Receiver;

use super::catalogue::{Catalogue, FileIndex, Kind};
use super::format::{self, NONE, STORED_BLOCK};
use super::output::Output;
use super::plan::{Plan, Step};
use super::workers::{Bundle, Packed, PackedBlock, Workers};
use super::{BLOCK_BYTES, Settings, SquashfsError};
use crate::pack::contents::Contents;

/// Fragments that may wait to be compressed before the oldest is written.
const FRAGMENTS_WAITING: usize = 16;
/// A bundle is stored as the layer has it if at most this part of it are bytes that are stored already.
const DUPLICATE_SHARE: usize = 8;

/// Where a file's content is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Where its first block begins.
    pub start: u64,
    /// Its blocks: a range of [`StoredData::runs`].
    pub runs: std::ops::Range<usize>,
    /// Bytes in blocks of zeros.
    pub sparse: u64,
    /// The fragment with its tail, or [`NONE`].
    pub fragment: u32,
    /// Where in the fragment the tail begins.
    pub offset: u32,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            start: 0,
            runs: 0..0,
            sparse: 0,
            fragment: NONE,
            offset: 0,
        }
    }
}

/// Blocks of a file that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// One, of this size as the format has it.
    Block(u32),
    /// Zeros, so many blocks of them.
    Zeros(u64),
}

/// What was stored.
pub(super) struct StoredData {
    /// For each file of the catalogue that has bytes.
    pub places: HashMap<FileIndex, Place>,
    pub runs: Vec<Run>,
    pub fragments: Vec<format::Fragment>,
}

/// Stores all contents of the catalogue's files.
pub(super) fn store(
    contents: &Contents<'_>,
    catalogue: &Catalogue,
    output: &mut Output<'_>,
    settings: Settings<'_>,
    workers: &Workers<'_>,
) -> Result<StoredData, SquashfsError> {
    let mut plan = Plan::of(contents, catalogue).map_err(SquashfsError::Tree)?;
    let mut writer = Writer {
        output,
        workers,
        settings,
        data: StoredData {
            places: HashMap::new(),
            runs: Vec::new(),
            fragments: Vec::new(),
        },
        current: Current::default(),
        known: HashMap::new(),
        copies: Vec::new(),
        bundle: OpenBundle::default(),
        mixed: Mixed::default(),
        waiting: VecDeque::new(),
    };
    while let Some(step) = plan.next(workers).map_err(|err| err.of(catalogue))? {
        writer
            .take(step)
            .map_err(|failure| failure.of(plan.file_of(), catalogue))?;
    }
    writer.finish().map_err(SquashfsError::Write)
}

/// Why storing stopped.
pub(super) enum Failure {
    Content(io::Error),
    Write(io::Error),
}

impl Failure {
    fn of(self, file: FileIndex, catalogue: &Catalogue) -> SquashfsError {
        match self {
            Self::Content(source) => SquashfsError::Content {
                path: catalogue.path(file),
                source,
            },
            Self::Write(err) => SquashfsError::Write(err),
        }
    }
}

struct Writer<'a, 'o> {
    output: &'a mut Output<'o>,
    workers: &'a Workers<'a>,
    settings: Settings<'a>,
    data: StoredData,
    current: Current,
    /// Contents by their digests.
    known: HashMap<blake3::Hash, FileIndex>,
    /// Files with the content of another, which comes second.
    copies: Vec<(FileIndex, FileIndex)>,
    bundle: OpenBundle,
    mixed: Mixed,
    /// Fragments that get their places in this order.
    waiting: VecDeque<(u32, Waiting)>,
}

/// The file that is being stored.
#[derive(Default)]
struct Current {
    place: Place,
    hasher: blake3::Hasher,
    /// Blocks of zeros since the last other one.
    zeros: u64,
}

/// Tails that a layer keeps in one chunk.
#[derive(Default)]
struct OpenBundle {
    content: Bundle,
    is_whole: bool,
    /// Which of the tails is the next file's.
    next: usize,
    /// Files whose tails are stored nowhere else, with their places in the bundle.
    members: Vec<(FileIndex, std::ops::Range<usize>)>,
    duplicate_bytes: usize,
}

/// Tails from bundles that are not stored whole.
#[derive(Default)]
struct Mixed {
    plain: Vec<u8>,
    members: Vec<(FileIndex, u32)>,
}

enum Waiting {
    Here(Packed),
    Compressing(Receiver<Packed>),
}

impl Writer<'_, '_> {
    fn take(&mut self, step: Step) -> Result<(), Failure> {
        match step {
            Step::Zeros { blocks } => self.zeros(blocks),
            Step::Block { block } => {
                let block = received(&block).map_err(Failure::Content)?;
                match block {
                    Some(block) => self.block(&block).map_err(Failure::Write)?,
                    None => self.zeros(1),
                }
                (self.settings.progress)(BLOCK_BYTES as u64);
            }
            Step::Bundle { bundle, is_whole } => {
                self.end_bundle().map_err(Failure::Write)?;
                self.bundle = OpenBundle {
                    content: received(&bundle).map_err(Failure::Content)?,
                    is_whole,
                    ..OpenBundle::default()
                };
                let bytes = self.bundle.content.plain.len();
                (self.settings.progress)(bytes as u64);
            }
            Step::End { file, tail } => self.end_file(file, tail),
            Step::Start => {
                self.current = Current::default();
                self.current.place.start = self.output.position();
                let runs = self.data.runs.len();
                self.current.place.runs = runs..runs;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, blocks: u64) {
        self.current.zeros += blocks;
        self.current.place.sparse += blocks * BLOCK_BYTES as u64;
    }

    fn end_zeros(&mut self) {
        let zeros = std::mem::take(&mut self.current.zeros);
        if zeros > 0 {
            self.current.hasher.update(b"zeros");
            self.current.hasher.update(&zeros.to_le_bytes());
            self.data.runs.push(Run::Zeros(zeros));
        }
    }

    fn block(&mut self, block: &PackedBlock) -> io::Result<()> {
        self.end_zeros();
        self.current.hasher.update(b"block");
        self.current.hasher.update(block.digest.as_bytes());
        self.data.runs.push(Run::Block(block.packed.size()));
        self.output.write(block.packed.bytes())
    }

    fn end_file(&mut self, file: FileIndex, tail: usize) {
        self.end_zeros();
        let mut current = std::mem::take(&mut self.current);
        let mut at = 0..0;
        if tail > 0 {
            let start = self.bundle.members_end();
            at = start..start + tail;
            let digest = self.bundle.content.digests[self.bundle.next];
            self.bundle.next += 1;
            current.hasher.update(b"tail");
            current.hasher.update(&(tail as u64).to_le_bytes());
            current.hasher.update(digest.as_bytes());
        }
        let digest = current.hasher.finalize();
        match self.known.get(&digest) {
            Some(&original) => {
                self.copies.push((file, original));
                self.output.rewind(current.place.start);
                self.data.runs.truncate(current.place.runs.start);
                self.bundle.duplicate_bytes += tail;
            }
            None => {
                self.known.insert(digest, file);
                current.place.runs.end = self.data.runs.len();
                self.data.places.insert(file, current.place);
                if tail > 0 {
                    self.bundle.members.push((file, at));
                }
            }
        }
    }

    /// Stores the tails of a bundle: all of them in one fragment, or the new ones among others.
    fn end_bundle(&mut self) -> io::Result<()> {
        let bundle = std::mem::take(&mut self.bundle);
        let plain = &bundle.content.plain;
        if bundle.members.is_empty() {
            return Ok(());
        }
        if bundle.is_whole && bundle.duplicate_bytes <= plain.len() / DUPLICATE_SHARE {
            let members = bundle.members.into_iter();
            let members: Vec<_> = members.map(|(file, at)| (file, at.start as u32)).collect();
            let waiting = match bundle.content.packed {
                Some(packed) => Waiting::Here(packed),
                None => Waiting::Compressing(self.workers.fragment(bundle.content.plain)),
            };
            return self.fragment(&members, waiting);
        }
        for (file, at) in bundle.members {
            if self.mixed.plain.len() + at.len() > BLOCK_BYTES {
                self.end_mixed()?;
            }
            let offset = self.mixed.plain.len() as u32;
            self.mixed.members.push((file, offset));
            self.mixed.plain.extend_from_slice(&plain[at]);
        }
        Ok(())
    }

    fn end_mixed(&mut self) -> io::Result<()> {
        let mixed = std::mem::take(&mut self.mixed);
        if mixed.members.is_empty() {
            return Ok(());
        }
        let waiting = Waiting::Compressing(self.workers.fragment(mixed.plain.into()));
        self.fragment(&mixed.members, waiting)
    }

    fn fragment(&mut self, members: &[(FileIndex, u32)], waiting: Waiting) -> io::Result<()> {
        let number = self.data.fragments.len() as u32;
        self.data.fragments.push(format::Fragment {
            at: 0.into(),
            len: 0.into(),
            unused: 0.into(),
        });
        for (file, offset) in members {
            let place = self.data.places.get_mut(file);
            let place = place.expect("only files that have a place are members");
            (place.fragment, place.offset) = (number, *offset);
        }
        self.waiting.push_back((number, waiting));
        if self.waiting.len() > FRAGMENTS_WAITING {
            self.write_fragment()?;
        }
        Ok(())
    }

    fn write_fragment(&mut self) -> io::Result<()> {
        let Some((number, waiting)) = self.waiting.pop_front() else {
            return Ok(());
        };
        let packed = match waiting {
            Waiting::Here(packed) => packed,
            Waiting::Compressing(packed) => received_from(&packed),
        };
        let fragment = &mut self.data.fragments[number as usize];
        fragment.at = self.output.position().into();
        fragment.len = packed.size().into();
        self.output.write(packed.bytes())
    }

    fn finish(mut self) -> io::Result<StoredData> {
        self.end_bundle()?;
        self.end_mixed()?;
        while !self.waiting.is_empty() {
            self.write_fragment()?;
        }
        for (file, original) in self.copies {
            let place = self.data.places[&original].clone();
            self.data.places.insert(file, place);
        }
        Ok(self.data)
    }
}

impl OpenBundle {
    /// Where the next file's tail begins.
    fn members_end(&self) -> usize {
        self.content.ends[..self.next].last().copied().unwrap_or(0)
    }
}

impl Packed {
    /// As the format has it: with a mark if the bytes are not compressed.
    fn size(&self) -> u32 {
        match self {
            Self::Stored(bytes) => bytes.len() as u32 | STORED_BLOCK,
            Self::Compressed(bytes) => bytes.len() as u32,
        }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            Self::Stored(bytes) | Self::Compressed(bytes) => bytes,
        }
    }
}

fn received<T>(from: &Receiver<io::Result<T>>) -> io::Result<T> {
    received_from(from)
}

fn received_from<T>(from: &Receiver<T>) -> T {
    from.recv().expect("workers answer all that they are asked")
}

impl Catalogue {
    /// The files that have bytes, with their sizes.
    pub fn contents(&self) -> impl Iterator<Item = (FileIndex, u64, &super::Content)> {
        let files = self.files.iter().enumerate();
        files.filter_map(|(index, file)| match &file.kind {
            Kind::Regular { size, content } if *size > 0 => {
                Some((index as FileIndex, *size, content))
            }
            _ => None,
        })
    }
}
