//! Files that are read from start to end: what such a reader asks for next has been decoded when it asks, on cores that it leaves. It
//! goes on a little ahead of the reader only, and what the reader has passed is forgotten: that is in the kernel's page cache.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::fetch::ChunkSource;
use crate::layer::table::ChunkIndex;
use crate::tree::NodeId;

/// The kernel sends several requests of a reader at a time, each of so many bytes at most, and they come here in any order.
const SLACK_BYTES: u64 = 1 << 20;

/// Who has read so much in a row goes on, as it seems: programs whose pages are needed here and there seldom do.
const FIRST_BYTES: u64 = 512 << 10;

/// Plain bytes between a reader and what is decoded for it at most: some milliseconds of reading.
const LEAD_BYTES: u64 = 2 << 20;

/// Readers that are followed: what is decoded for all of them is a part of what stays in memory.
const READERS: usize = 4;

/// Threads that decode at most; one core is left to the readers.
const DECODERS_LIMIT: usize = 4;

/// Chunks that wait to be decoded at most. More are passed over.
const STEPS_LIMIT: usize = 1024;

/// A part of a file in one chunk: the layer's place, the chunk, and which of its bytes.
pub(super) type InChunk = (u16, ChunkIndex, Range<usize>);

/// The same, with its end in the file.
pub(super) type Ending = (u64, InChunk);

/// The readers of one image, the one that read last in front.
pub(super) struct Sequences {
    readers: Mutex<Vec<Reader>>,
    chunks: Arc<dyn ChunkSource>,
    /// They end when this is dropped.
    steps: Sender<Step>,
    queue: Receiver<Step>,
    decoders: std::sync::Once,
}

struct Reader {
    id: NodeId,
    /// Where it goes on.
    next: Arc<AtomicU64>,
    /// How much it has read in a row.
    read: u64,
    /// How far is decoded for it, or will be.
    until: u64,
    lead: u64,
    /// What was decoded and not passed yet.
    ahead: VecDeque<Ending>,
}

struct Step {
    part: InChunk,
    /// Where it ends in the file.
    end: u64,
    /// Where its reader is.
    reached: Arc<AtomicU64>,
}

impl Sequences {
    pub fn of(chunks: &Arc<dyn ChunkSource>) -> Self {
        let (steps, queue) = bounded(STEPS_LIMIT);
        Self {
            readers: Mutex::default(),
            chunks: Arc::clone(chunks),
            steps,
            queue,
            decoders: std::sync::Once::new(),
        }
    }

    /// Somebody reads `bytes` of a file, of which `parts` tells where they lie.
    pub fn read(&self, id: NodeId, bytes: &Range<u64>, parts: impl Fn(&Range<u64>) -> Vec<Ending>) {
        let (passed, wanted, reached) = {
            let mut readers = self.readers.lock();
            let is_its = |reader: &Reader| reader.id == id && reader.is_near(bytes.start);
            let (mut reader, mut passed) = match readers.iter().position(is_its) {
                Some(place) => (readers.remove(place), Vec::new()),
                None if readers.len() == READERS => {
                    let last = readers.pop();
                    let given_up = last.into_iter().flat_map(|reader| reader.ahead);
                    let given_up = given_up.map(|(_, part)| part).collect();
                    (Reader::at(id, bytes.start), given_up)
                }
                None => (Reader::at(id, bytes.start), Vec::new()),
            };
            reader.read(bytes);
            passed.extend(reader.passed());
            let wanted = reader.wanted().map(|wanted| parts(&wanted));
            for part in wanted.iter().flatten() {
                reader.expect(part.clone());
            }
            let reached = Arc::clone(&reader.next);
            readers.insert(0, reader);
            (passed, wanted, reached)
        };
        for (layer, chunk, bytes) in passed {
            self.chunks.forget(layer, chunk, &bytes);
        }
        for (end, part) in wanted.into_iter().flatten() {
            self.begin();
            let reached = Arc::clone(&reached);
            if self.steps.try_send(Step { part, end, reached }).is_err() {
                break;
            }
        }
    }

    /// Starts the threads that decode, the first time.
    fn begin(&self) {
        self.decoders.call_once(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            for _ in 0..cores.saturating_sub(1).clamp(1, DECODERS_LIMIT) {
                let (queue, chunks) = (self.queue.clone(), Arc::clone(&self.chunks));
                let decode = move || {
                    for step in queue {
                        step.decode(&*chunks);
                    }
                };
                let started = thread::Builder::new().name("sequence".into()).spawn(decode);
                if let Err(err) = started {
                    tracing::warn!(error = %err, "nothing is decoded ahead of readers");
                }
            }
        });
    }
}

impl Step {
    fn decode(self, chunks: &dyn ChunkSource) {
        // Whoever is there already does it alone.
        if self.reached.load(Ordering::Relaxed) < self.end {
            let (layer, chunk, bytes) = self.part;
            chunks.decode_ahead(layer, chunk, &bytes);
        }
    }
}

impl Reader {
    fn at(id: NodeId, at: u64) -> Self {
        Self {
            id,
            next: Arc::new(at.into()),
            read: 0,
            until: at,
            lead: FIRST_BYTES / 2,
            ahead: VecDeque::new(),
        }
    }

    fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn is_near(&self, at: u64) -> bool {
        self.next().abs_diff(at) <= SLACK_BYTES
    }

    fn read(&mut self, bytes: &Range<u64>) {
        self.read += bytes.end.saturating_sub(bytes.start);
        self.next.fetch_max(bytes.end, Ordering::Relaxed);
    }

    /// What is to be decoded next, if anything is: as much again as before, whenever half of that is used.
    fn wanted(&mut self) -> Option<Range<u64>> {
        let next = self.next();
        if self.read < FIRST_BYTES || self.until.saturating_sub(next) > self.lead / 2 {
            return None;
        }
        self.lead = (self.lead * 2).min(LEAD_BYTES);
        let from = self.until.max(next);
        self.until = next.saturating_add(self.lead);
        Some(from..self.until)
    }

    /// It will ask for this part. A chunk of which it was to get a part already is one.
    fn expect(&mut self, (end, part): Ending) {
        if let Some((last_end, (layer, chunk, bytes))) = self.ahead.back_mut()
            && (*layer, *chunk, bytes.end) == (part.0, part.1, part.2.start)
        {
            (*last_end, bytes.end) = (end, part.2.end);
            return;
        }
        self.ahead.push_back((end, part));
    }

    /// What it will not ask for again.
    fn passed(&mut self) -> Vec<InChunk> {
        let passed = self.next().saturating_sub(SLACK_BYTES);
        let count = self.ahead.partition_point(|(end, _)| *end <= passed);
        self.ahead.drain(..count).map(|(_, part)| part).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use parking_lot::Condvar;

    use super::*;
    use crate::fetch::ReadError;

    const CHUNK: u64 = 100_000;
    const FILE: u64 = 200 << 20;

    /// Remembers what it is told.
    #[derive(Default)]
    struct Told {
        ahead: Mutex<Vec<u32>>,
        forgotten: Mutex<Vec<u32>>,
        came: Condvar,
    }

    impl Told {
        fn await_ahead(&self, chunk: u32) {
            let is_missing = |ahead: &mut Vec<u32>| !ahead.contains(&chunk);
            let waited = self.came.wait_while_for(
                &mut self.ahead.lock(),
                is_missing,
                Duration::from_secs(30),
            );
            assert!(!waited.timed_out(), "chunk {chunk}");
        }
    }

    impl ChunkSource for Told {
        fn cached(&self, _: u16, _: ChunkIndex) -> Option<Bytes> {
            None
        }

        fn chunk(&self, _: u16, _: ChunkIndex, _: Instant) -> Result<Bytes, ReadError> {
            Ok(Bytes::new())
        }

        fn decode_ahead(&self, _: u16, chunk: ChunkIndex, _: &Range<usize>) {
            self.ahead.lock().push(chunk.0);
            self.came.notify_all();
        }

        fn forget(&self, _: u16, chunk: ChunkIndex, bytes: &Range<usize>) {
            if *bytes == (0..CHUNK as usize) {
                self.forgotten.lock().push(chunk.0);
            }
        }
    }

    /// A file in chunks of one size.
    fn parts(bytes: &Range<u64>) -> Vec<Ending> {
        let until = bytes.end.min(FILE);
        let chunks = bytes.start / CHUNK..until.div_ceil(CHUNK);
        let parts = chunks.map(|chunk| {
            let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
            let (from, to) = (bytes.start.max(start), until.min(end));
            let within = (from - start) as usize..(to - start) as usize;
            (to, (0, ChunkIndex(chunk as u32), within))
        });
        parts.collect()
    }

    fn sequences() -> (Arc<Told>, Sequences) {
        let told = Arc::new(Told::default());
        let source = Arc::clone(&told) as Arc<dyn ChunkSource>;
        (told, Sequences::of(&source))
    }

    #[test]
    fn what_a_sequential_reader_asks_for_next_is_decoded_and_what_it_passed_is_forgotten() {
        let (told, sequences) = sequences();
        let request = 128 << 10;
        for at in (0..20 << 20).step_by(request as usize) {
            sequences.read(NodeId(1), &(at..at + request), parts);
            if at >= 2 << 20 {
                told.await_ahead(((at + request) / CHUNK + 1) as u32);
            }
        }
        let (ahead, forgotten) = (told.ahead.lock(), told.forgotten.lock());
        let furthest = u64::from(*ahead.iter().max().unwrap()) * CHUNK;
        assert!(furthest <= (20 << 20) + LEAD_BYTES, "{furthest}");
        let last = u64::from(*forgotten.last().unwrap());
        assert!((last + 1) * CHUNK + SLACK_BYTES <= 20 << 20);
        assert!((last + 2) * CHUNK + SLACK_BYTES > 20 << 20);
        assert!(forgotten.is_sorted());
    }

    #[test]
    fn nothing_is_decoded_for_readers_here_and_there() {
        let (told, sequences) = sequences();
        for number in 0..1000 {
            let at = number * 37 % 1000 * (4 << 20);
            sequences.read(NodeId(1), &(at..at + 4096), parts);
        }
        drop(sequences);
        assert!(told.ahead.lock().is_empty());
    }

    #[test]
    fn requests_may_come_in_another_order_and_readers_together() {
        let (told, sequences) = sequences();
        for step in 0..40 {
            for reader in 1..=READERS as u64 {
                let at = (step ^ 1) * (128 << 10);
                sequences.read(NodeId(reader), &(at..at + (128 << 10)), parts);
            }
        }
        told.await_ahead(((40 * (128 << 10)) / CHUNK + 1) as u32);
        // What was decoded for one who is not followed any more is forgotten.
        let before = told.forgotten.lock().len();
        sequences.read(NodeId(99), &(0..4096), parts);
        assert!(told.forgotten.lock().len() > before);
    }
}
