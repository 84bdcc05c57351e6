//! What is fetched before a program asks: what was read the last times, or, where nobody has read the image yet, what its
//! builder thought of, and what a program that starts is going to read: its loader, itself, the libraries it needs.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::Image;
use super::course;
use super::history::{found, profile};
use super::interpreter;
use super::profile::Profile;
use super::program::{self, Program};
use crate::digest::Digest;
use crate::fetch::{Chunks, Why};
use crate::layer::table::ChunkIndex;
use crate::store::Store;
use crate::tree::{NodeId, NodeKind};

/// Chunks of a profile that are fetched ahead at most.
const CHUNKS_LIMIT: usize = 1 << 20;

/// Programs that began to be read and were not looked at yet; more are passed over.
const STARTED_LIMIT: usize = 256;

/// A program or library is fetched whole if it takes so many packed bytes at most; of larger ones what its loader reads.
const WHOLE_BYTES_LIMIT: u64 = 4 << 20;

/// Programs and libraries that are looked at in one image at most.
const PROGRAMS_LIMIT: usize = 4096;

/// How long a part of a program is waited for: later it is of no use.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is read before any program runs, by any that is linked dynamically, and by any that speaks the user's language, which
/// in an image is `C.UTF-8` if it is any.
const STARTS: [&[u8]; 6] = [
    b"etc/passwd",
    b"etc/group",
    b"etc/ld.so.cache",
    b"usr/lib/locale/C.utf8/LC_CTYPE",
    b"usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    b"usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
];
const LOADERS: [&[u8]; 4] = [
    b"lib64/ld-linux-x86-64.so.2",
    b"lib/ld-linux-aarch64.so.1",
    b"lib/ld-musl-x86_64.so.1",
    b"lib/ld-musl-aarch64.so.1",
];
const C_LIBRARY: &[u8] = b"libc.so.6";

/// Where loaders look for libraries (`ld.so.8`); with multiarch's names, which `ld.so.cache` leads to.
const LIBRARIES: [&[u8]; 9] = [
    b"lib/x86_64-linux-gnu",
    b"usr/lib/x86_64-linux-gnu",
    b"lib/aarch64-linux-gnu",
    b"usr/lib/aarch64-linux-gnu",
    b"lib64",
    b"usr/lib64",
    b"lib",
    b"usr/lib",
    b"usr/local/lib",
];

/// A program that is going to run.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// How its user calls it.
    pub name: Vec<u8>,
    /// Where it is looked for if that is no path: directories, separated by colons.
    pub directories: Vec<u8>,
}

/// Begins to fetch ahead for programs that read `image`: what was read before, on the course that is known, or else what goes
/// with a program that starts, and with those that begin to be read from now on. The profile is read aside: nobody waits for it.
pub(super) fn begin(
    store: &Arc<Store>,
    manifest: Digest,
    image: &Arc<Image>,
    chunks: &Arc<Chunks>,
    program: Option<Expected>,
) {
    let (tell, programs) = bounded(STARTED_LIMIT);
    image.tell_of_programs(tell);
    let (store, image, chunks) = (Arc::clone(store), Arc::clone(image), Arc::clone(chunks));
    started(move || match profile(&store, manifest) {
        Some(profile) => {
            drop(programs);
            replay(&profile, &image, &chunks);
            course::accompany(&profile, &image, &chunks);
        }
        None => {
            let open = (Arc::downgrade(&image), Arc::downgrade(&chunks));
            // They end when nobody has the image open any more, and so does the thread.
            started(move || watch(&programs, &open));
            begin_anew(&image, &chunks, program.as_ref());
        }
    });
}

/// Has brought what goes with each of the `programs` and libraries, as they begin to be read.
fn watch(programs: &Receiver<NodeId>, (image, chunks): &(Weak<Image>, Weak<Chunks>)) {
    let mut ahead = Ahead::default();
    while let Ok(id) = programs.recv() {
        let Some((image, chunks)) = image.upgrade().zip(chunks.upgrade()) else {
            return;
        };
        ahead.look_at(id, &image, &chunks);
    }
}

fn started(work: impl FnOnce() + Send + 'static) {
    let started = thread::Builder::new().name("ahead".into()).spawn(work);
    if let Err(err) = started {
        tracing::warn!(error = %err, "nothing is fetched ahead");
    }
}

fn begin_anew(image: &Image, chunks: &Chunks, program: Option<&Expected>) {
    chunks.prefetch(&chunks.leads(), Why::Profile);
    let loader = LOADERS
        .iter()
        .find_map(|path| image.resolved(path).ok().flatten());
    let program = program.and_then(|program| program.found(image));
    let first = program.iter().map(|(id, _)| *id);
    let first: Vec<NodeId> = first
        .chain(loader)
        .chain(library(image, C_LIBRARY))
        .collect();
    let starts = STARTS.iter();
    let starts = starts.filter_map(|path| image.resolved(path).ok().flatten());
    let known = program.iter();
    let known = known.flat_map(|(_, path)| interpreter::starts_with(image, path));
    // All at once, so that what lies side by side comes together.
    let all = first.iter().copied().chain(starts).chain(known);
    let all: Vec<_> = all.flat_map(|id| if_small(image, chunks, id)).collect();
    chunks.prefetch(&all, Why::ReadAhead);
    let mut ahead = Ahead::default();
    for id in first {
        ahead.look_at(id, image, chunks);
    }
}

impl Expected {
    /// The program, and its path without links.
    fn found(&self, image: &Image) -> Option<(NodeId, Vec<u8>)> {
        let found = |path: &[u8]| {
            let (id, path) = image.found(path).ok()??;
            let kind = image.node(id).ok()?.kind;
            matches!(kind, NodeKind::Regular { .. }).then_some((id, path))
        };
        if self.name.contains(&b'/') {
            return found(&self.name);
        }
        let mut directories = self.directories.split(|&byte| byte == b':');
        directories.find_map(|directory| found(&[directory, &self.name].join(&b'/')))
    }
}

#[derive(Default)]
struct Ahead {
    /// Programs and libraries that were looked at.
    seen: HashSet<NodeId>,
}

impl Ahead {
    /// Has brought what the loader of a program or library reads, and the libraries that it needs.
    fn look_at(&mut self, id: NodeId, image: &Image, chunks: &Chunks) {
        let mut queue = vec![id];
        while let Some(id) = queue.pop() {
            if self.seen.len() == PROGRAMS_LIMIT || !self.seen.insert(id) {
                continue;
            }
            for name in brought(id, image, chunks).unwrap_or_default() {
                if let Some(id) = library(image, &name).filter(|id| !self.seen.contains(id)) {
                    // At once, so that they come together.
                    bring_if_small(image, chunks, id);
                    queue.push(id);
                }
            }
        }
    }
}

/// Has one brought; gives the names of the libraries that it needs. `None` if it is all here, or is none.
fn brought(id: NodeId, image: &Image, chunks: &Chunks) -> Option<Vec<Vec<u8>>> {
    let size = image.node(id).ok()?.size;
    let all = image.chunks_of(id, &(0..size));
    if !chunks.lack(&all) {
        return None;
    }
    let read = |place: Range<u64>| {
        let len = u32::try_from(place.end.checked_sub(place.start)?).ok()?;
        let bytes = image.awaited(id, place.start, len, Instant::now() + PATIENCE);
        bytes.ok().filter(|bytes| bytes.len() == len as usize)
    };
    let head = 0..program::HEAD_BYTES.min(size);
    bring(image, chunks, id, &head);
    let program = Program::of(&read(head)?)?;
    // What is waited for next; the rest can come behind it.
    bring(image, chunks, id, &program.dynamic);
    bring_if_small(image, chunks, id);
    let dynamic = read(program.dynamic.clone())?;
    let strings = program.strings(&dynamic)?;
    let strings = read(strings)?;
    Some(
        program::needed(&dynamic, &strings)
            .map(<[u8]>::to_vec)
            .collect(),
    )
}

/// Has bytes of a file brought.
fn bring(image: &Image, chunks: &Chunks, id: NodeId, bytes: &Range<u64>) {
    chunks.prefetch(&image.chunks_of(id, bytes), Why::ReadAhead);
}

fn bring_if_small(image: &Image, chunks: &Chunks, id: NodeId) {
    chunks.prefetch(&if_small(image, chunks, id), Why::ReadAhead);
}

/// All chunks of a file, or none if they are too many to be brought whole.
fn if_small(image: &Image, chunks: &Chunks, id: NodeId) -> Vec<(u16, ChunkIndex)> {
    let all = image.chunks_of(id, &(0..image.node(id).map_or(0, |node| node.size)));
    match chunks.packed_bytes(&all) <= WHOLE_BYTES_LIMIT {
        true => all,
        false => Vec::new(),
    }
}

/// The library that a loader would find under this name.
fn library(image: &Image, name: &[u8]) -> Option<NodeId> {
    LIBRARIES.iter().find_map(|directory| {
        let id = image.resolved(&[directory, name].join(&b'/')).ok()??;
        let kind = image.node(id).ok()?.kind;
        matches!(kind, NodeKind::Regular { .. }).then_some(id)
    })
}

/// Has fetched what the profile says. Files and parts that the image does not have are passed over.
fn replay(profile: &Profile, image: &Image, chunks: &Chunks) {
    let mut seen = HashSet::new();
    let mut wanted: Vec<(u16, ChunkIndex)> = Vec::new();
    for part in profile.lively() {
        let Some(id) = found(image, &part.path) else {
            continue;
        };
        for chunk in image.chunks_of(id, &part.bytes) {
            if wanted.len() < CHUNKS_LIMIT && seen.insert(chunk) {
                wanted.push(chunk);
            }
        }
    }
    tracing::debug!("profile: {} chunks are fetched ahead", wanted.len());
    chunks.prefetch(&wanted, Why::Profile);
}
