//! What an image's mounts cost: for people, for scripts and for pictures.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Image;
use super::history::{found, paths};
use super::profile::Part;
use super::reads::{PIECE_BYTES, ReadCount, Reads};
use crate::digest::Digest;
use crate::fetch::{Chunks, Moved, Request};
use crate::layer::entry::shown;
use crate::tree::{NodeId, NodeKind};

/// Statistics in the store at most.
pub const STATS_BYTES_LIMIT: usize = 8 << 20;

/// How many files that cost most are told.
const COSTLY: usize = 20;

/// Parts of the map at most; what is smaller than the rest is told as one part for each directory.
const MAP_PARTS: usize = 1500;

/// Requests that the store keeps one by one.
const KEPT_REQUESTS: usize = 4000;

/// Which image it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// How it was asked for.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
}

/// What a mount of an image cost so far. The names of the fields are those of the JSON: scripts depend on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Which image.
    #[serde(flatten)]
    pub subject: Subject,
    /// How long it is, or was, mounted.
    pub seconds: u64,
    /// How many times it was mounted and read before.
    pub mounts_before: u64,
    /// Packed bytes that those mounts fetched.
    pub fetched_before: u64,
    /// What was fetched, and why.
    pub moved: Moved,
    /// What programs read.
    pub reads: ReadCount,
    /// How much of it was ever read.
    pub share: Share,
    /// The layers that are fetched in parts.
    pub layers: Vec<Kept>,
    /// The files for which programs waited longest.
    pub costly: Vec<Costly>,
    /// All files, the small ones together.
    pub map: Vec<MapPart>,
    /// The latest requests, oldest first.
    pub requests: Vec<Request>,
}

/// How much of an image was ever read, by any mount that is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Bytes of files that were read.
    pub read_bytes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files of which something was read.
    pub read_files: u64,
    /// Regular files.
    pub files: u64,
}

/// How much of a layer the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The layer.
    pub layer: Digest,
    /// Its packed bytes that are here, as the disk counts them.
    pub kept_bytes: u64,
    /// All of them.
    pub bytes: u64,
}

/// A file and what it cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costly {
    /// Its path, shortened; what is not UTF-8 is replaced.
    pub path: String,
    /// Its reads.
    #[serde(flatten)]
    pub reads: ReadCount,
}

/// A file, or the small files of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapPart {
    /// The path; of small files together their directory's, with a slash at its end.
    pub path: String,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that were ever read.
    pub read_bytes: u64,
    /// How many files.
    pub files: u64,
}

impl Stats {
    /// What is known now. Of the time before there are the statistics of earlier mounts and what was ever read.
    pub(super) fn of(
        subject: Subject,
        age: Duration,
        image: &Image,
        chunks: &Chunks,
        reads: &Reads,
        (earlier, ever): (Option<&Self>, &[Part]),
    ) -> Self {
        let touched = touched(image, reads, ever);
        let costly = reads.costly(COSTLY);
        let named = costly.iter().map(|(id, _)| *id).collect();
        let names = paths(image, &named);
        let costly = costly.into_iter().map(|(id, reads)| Costly {
            path: names.get(&id).map_or_else(String::new, |path| shown(path)),
            reads,
        });
        let (map, share) = map(image, &touched);
        let layers = chunks.seekable().into_iter().map(|seekable| Kept {
            layer: seekable.layer,
            kept_bytes: seekable.stored_bytes,
            bytes: seekable.bytes,
        });
        Self {
            subject,
            seconds: age.as_secs(),
            mounts_before: earlier.map_or(0, |earlier| earlier.mounts_before.saturating_add(1)),
            fetched_before: earlier.map_or(0, |earlier| {
                let then = earlier.moved.fetched.iter().map(|count| count.bytes);
                then.fold(earlier.fetched_before, u64::saturating_add)
            }),
            moved: chunks.moved(),
            reads: reads.count(),
            share,
            layers: layers.collect(),
            costly: costly.collect(),
            map,
            requests: chunks.requests(),
        }
    }

    /// Leaves out the older requests.
    pub(super) fn shorten(&mut self) {
        let excess = self.requests.len().saturating_sub(KEPT_REQUESTS);
        self.requests.drain(..excess);
    }
}

/// The pieces of each file that were ever read.
fn touched(image: &Image, reads: &Reads, ever: &[Part]) -> HashMap<NodeId, HashSet<u64>> {
    let mut touched: HashMap<NodeId, HashSet<u64>> = HashMap::new();
    let before = ever.iter().filter_map(|part| {
        let id = found(image, &part.path)?;
        let size = image.node(id).ok()?.size;
        Some((id, part.bytes.start.min(size)..part.bytes.end.min(size)))
    });
    for (id, bytes) in before.chain(reads.parts()) {
        let pieces = bytes.start / PIECE_BYTES..bytes.end.div_ceil(PIECE_BYTES);
        touched.entry(id).or_default().extend(pieces);
    }
    touched
}

/// The map of an image's files, and what it adds up to.
fn map(image: &Image, touched: &HashMap<NodeId, HashSet<u64>>) -> (Vec<MapPart>, Share) {
    let mut share = Share::default();
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for (path, id) in image.tree().walk().map_while(Result::ok) {
        let Ok(node) = image.node(id) else { continue };
        if !matches!(node.kind, NodeKind::Regular { .. }) || (node.nlink > 1 && !seen.insert(id)) {
            continue;
        }
        let pieces = touched.get(&id).map_or(0, HashSet::len) as u64;
        let read_bytes = pieces.saturating_mul(PIECE_BYTES).min(node.size);
        share.files += 1;
        share.read_files += u64::from(pieces > 0);
        share.bytes = share.bytes.saturating_add(node.size);
        share.read_bytes = share.read_bytes.saturating_add(read_bytes);
        files.push((path, node.size, read_bytes));
    }
    files.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
    let small = files.split_off(files.len().min(MAP_PARTS));
    let mut parts: Vec<MapPart> = files
        .into_iter()
        .map(|(path, bytes, read_bytes)| MapPart {
            path: shown(&path),
            bytes,
            read_bytes,
            files: 1,
        })
        .collect();
    let mut directories: HashMap<String, MapPart> = HashMap::new();
    for (path, bytes, read_bytes) in small {
        let directory = shown(directory(&path)) + "/";
        let part = directories.entry(directory.clone()).or_insert(MapPart {
            path: directory,
            bytes: 0,
            read_bytes: 0,
            files: 0,
        });
        part.bytes = part.bytes.saturating_add(bytes);
        part.read_bytes = part.read_bytes.saturating_add(read_bytes);
        part.files += 1;
    }
    let mut directories: Vec<MapPart> = directories.into_values().collect();
    directories.sort_by_key(|part| (std::cmp::Reverse(part.bytes), part.path.clone()));
    directories.truncate(MAP_PARTS);
    parts.extend(directories);
    (parts, share)
}

/// The directory of a path, down to the third level.
fn directory(path: &[u8]) -> &[u8] {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let last = slashes.take(3).last().map_or(0, |(place, _)| place);
    &path[..last]
}
