//! The course that programs take through an image, as far as a profile knows it, and a reader that runs ahead of them on it:
//! what they will ask for next has been decoded when they ask, or is even in the kernel's memory. It keeps near them, because memory
//! is short.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Image;
use super::history::found;
use super::profile::Profile;
use crate::fetch::Chunks;
use crate::tree::NodeId;

/// Plain bytes between the programs and the reader at most: a part of what stays in memory.
const LEAD_BYTES: u64 = 8 << 20;

/// The same for one that reads through the mount: the kernel has more memory.
const LEAD_IN_KERNEL_BYTES: u64 = 32 << 20;

/// Programs that read less are at their end before somebody who reads through the mount has begun.
const SHORT_BYTES: u64 = 16 << 20;

/// It reads in steps of so many bytes, between which it looks where the programs are.
const STEP_BYTES: u64 = 512 << 10;

/// How long it waits for what is on its way: after that it goes on to the next.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the image is still open is looked at so often.
const LOOK: Duration = Duration::from_secs(1);

/// Threads that decode ahead at most; one core is left to the programs.
const READERS_LIMIT: usize = 4;

/// Reads files of an image through its mount, which fills the kernel's memory.
pub trait ThroughMount: Send + Sync {
    /// Has bytes of the file at `path`, which begins at the root without a slash, read soon. After an error it reads no more.
    fn read(&self, path: &[u8], bytes: &Range<u64>) -> io::Result<()>;

    /// There is no more to read.
    fn over(&self);
}

/// Parts of files in the order in which they are read, and where on it the programs are.
pub(super) struct Course {
    parts: Vec<Part>,
    /// The first part that the reader was not given yet.
    next: AtomicUsize,
    /// Whether it reads through the mount.
    is_through: AtomicBool,
    /// Which parts a file has, by their places in `parts`.
    of_files: HashMap<NodeId, Vec<usize>>,
    /// How far programs have come, in plain bytes from the start.
    reached: Mutex<u64>,
    moved: Condvar,
}

struct Part {
    id: NodeId,
    path: Arc<[u8]>,
    bytes: Range<u64>,
    /// How many bytes of parts lie before it.
    at: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.at + (self.bytes.end - self.bytes.start)
    }
}

impl Course {
    fn of(profile: &Profile, image: &Image) -> Self {
        let (mut parts, mut of_files, mut at) = (Vec::new(), HashMap::new(), 0);
        for part in profile.lively() {
            let Some(id) = found(image, &part.path) else {
                continue;
            };
            let path: Arc<[u8]> = part.path.as_slice().into();
            let size = image.node(id).map_or(0, |node| node.size);
            let mut from = part.bytes.start;
            while from < part.bytes.end.min(size) {
                let until = part.bytes.end.min(size).min(from + STEP_BYTES);
                let of_file: &mut Vec<usize> = of_files.entry(id).or_default();
                of_file.push(parts.len());
                parts.push(Part {
                    id,
                    path: Arc::clone(&path),
                    bytes: from..until,
                    at,
                });
                at += until - from;
                from = until;
            }
        }
        Self {
            parts,
            next: AtomicUsize::new(0),
            is_through: AtomicBool::new(false),
            of_files,
            reached: Mutex::new(0),
            moved: Condvar::new(),
        }
    }

    /// A program reads these bytes.
    pub fn read(&self, id: NodeId, bytes: &Range<u64>) {
        let Some(places) = self.of_files.get(&id) else {
            return;
        };
        let mut parts = places.iter().map(|&place| (place, &self.parts[place]));
        let Some((place, part)) = parts.find(|(_, part)| part.bytes.contains(&bytes.start)) else {
            return;
        };
        // What was read ahead through the mount says nothing of programs.
        if self.is_through() && place < self.next.load(Ordering::Relaxed) {
            return;
        }
        let here = part.at + (bytes.end.min(part.bytes.end) - part.bytes.start);
        let mut reached = self.reached.lock();
        // Whoever looks far ahead once has not got there yet.
        let here = here.min(*reached + self.lead_bytes());
        if here > *reached {
            *reached = here;
            drop(reached);
            self.moved.notify_all();
        }
    }

    /// Waits a moment until programs have come so near to `part` that it is to be read. Whether they have.
    fn is_due(&self, part: &Part) -> bool {
        let mut reached = self.reached.lock();
        let is_far = |reached: &mut u64| part.at > *reached + self.lead_bytes();
        let waited = self.moved.wait_while_for(&mut reached, is_far, LOOK);
        !waited.timed_out()
    }

    fn is_behind(&self, part: &Part) -> bool {
        part.end() <= *self.reached.lock()
    }

    fn is_through(&self) -> bool {
        self.is_through.load(Ordering::Relaxed)
    }

    fn lead_bytes(&self) -> u64 {
        match self.is_through() {
            true => LEAD_IN_KERNEL_BYTES,
            false => LEAD_BYTES,
        }
    }

    /// Has a part, all of which is here, read by `through`, if it is worth the while. Whether it is.
    fn is_read(&self, part: &Part, through: &dyn ThroughMount) -> bool {
        let is_long = *self.reached.lock() > SHORT_BYTES;
        let is_read = is_long && through.read(&part.path, &part.bytes).is_ok();
        self.is_through.store(is_read, Ordering::Relaxed);
        is_read
    }
}

/// Runs ahead of the programs that read `image` from now on.
pub(super) fn accompany(profile: &Profile, image: &Arc<Image>, chunks: &Arc<Chunks>) {
    let course = Arc::new(Course::of(profile, image));
    image.tell_course(&course);
    let end = Arc::new(End(Arc::downgrade(image)));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..cores.saturating_sub(1).clamp(1, READERS_LIMIT) {
        let course = Arc::clone(&course);
        let (image, chunks) = (Arc::downgrade(image), Arc::downgrade(chunks));
        let end = Arc::clone(&end);
        let reader = move || {
            read_ahead(&course, &image, &chunks);
            drop(end);
        };
        let started = thread::Builder::new().name("course".into()).spawn(reader);
        if let Err(err) = started {
            tracing::warn!(error = %err, "nothing is decoded ahead");
        }
    }
}

/// The end of the last reader.
struct End(Weak<Image>);

impl Drop for End {
    fn drop(&mut self) {
        let image = self.0.upgrade();
        if let Some(through) = image.as_ref().and_then(|image| image.through.get()) {
            through.over();
        }
    }
}

/// Ends with the course, or when nobody has the image open any more.
fn read_ahead(course: &Course, image: &Weak<Image>, chunks: &Weak<Chunks>) {
    while let Some(part) = course
        .parts
        .get(course.next.fetch_add(1, Ordering::Relaxed))
    {
        while !course.is_due(part) {
            if image.strong_count() == 0 {
                return;
            }
        }
        if course.is_behind(part) {
            continue;
        }
        let Some((image, chunks)) = image.upgrade().zip(chunks.upgrade()) else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        let mut stretches = image.stretches_of(part.id, &part.bytes);
        stretches.retain(|(layer, chunk, _)| chunks.await_packed((*layer, *chunk), deadline));
        let through = image.through.get();
        if through.is_some_and(|through| course.is_read(part, &**through)) {
            continue;
        }
        for (layer, chunk, bytes) in stretches {
            chunks.decode_expected(layer, chunk, &bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(parts: &[(u64, Range<u64>)]) -> Course {
        let mut course = Course {
            parts: Vec::new(),
            next: AtomicUsize::new(0),
            is_through: AtomicBool::new(false),
            of_files: HashMap::new(),
            reached: Mutex::new(0),
            moved: Condvar::new(),
        };
        let mut at = 0;
        for (place, (id, bytes)) in parts.iter().enumerate() {
            let (id, bytes) = (NodeId(*id), bytes.clone());
            course.of_files.entry(id).or_default().push(place);
            let end = at + bytes.end - bytes.start;
            let path = Arc::from(&b"file"[..]);
            course.parts.push(Part {
                id,
                path,
                bytes,
                at,
            });
            at = end;
        }
        course
    }

    #[test]
    fn the_reader_keeps_near_the_programs_and_passes_over_what_they_have_read() {
        let mib = |count: u64| count << 20;
        let course = course(&[(1, 0..mib(6)), (2, mib(50)..mib(54)), (1, mib(6)..mib(12))]);
        let (first, last) = (&course.parts[0], &course.parts[2]);
        assert!(course.is_due(first) && !course.is_behind(first));
        assert!(!course.is_due(last));
        course.read(NodeId(1), &(mib(5)..mib(6)));
        assert!(course.is_behind(first) && course.is_due(last));
        // What is not on the course, and what was passed, changes nothing.
        course.read(NodeId(3), &(0..mib(9)));
        course.read(NodeId(2), &(0..mib(9)));
        course.read(NodeId(1), &(0..mib(1)));
        assert_eq!(*course.reached.lock(), mib(6));
    }

    #[test]
    fn one_look_far_ahead_is_no_arrival() {
        let course = course(&[(1, 0..1 << 30), (2, 0..10)]);
        course.read(NodeId(2), &(0..10));
        assert_eq!(*course.reached.lock(), LEAD_BYTES);
    }
}
