//! What is read of an opened image: which parts of which files, in which order, and how long that took.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::tree::NodeId;

/// Parts of files are told apart in pieces of this size: the kernel reads ahead by as much.
pub const PIECE_BYTES: u64 = 128 << 10;

/// Pieces that are remembered; what is read after that is only counted.
const PIECES_LIMIT: usize = 1 << 20;

/// Files of which is remembered what they cost.
const FILES_LIMIT: usize = 1 << 18;

/// Reads, as programs asked for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCount {
    /// All of them.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were answered from memory, at once.
    pub from_memory: u64,
    /// Those that failed.
    pub failures: u64,
    /// How long the others waited for store and source, all together.
    pub waited_us: u64,
}

/// Remembers reads. Its lock is held for a moment only.
#[derive(Default)]
pub struct Reads(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    count: ReadCount,
    seen: HashSet<(u64, u64)>,
    /// Parts in the order of their first reads.
    order: Vec<(NodeId, Range<u64>)>,
    files: HashMap<NodeId, ReadCount>,
}

/// How a read was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// From memory.
    AtOnce,
    /// After so long.
    After(Duration),
    /// Not at all, after so long.
    Failed(Duration),
}

impl Reads {
    /// `bytes` of a file were read.
    pub fn read(&self, id: NodeId, bytes: Range<u64>, answered: Answered) {
        let mut inner = self.0.lock();
        inner.count.add(&bytes, answered);
        let has_room = inner.files.len() < FILES_LIMIT;
        if let Some(file) = inner.files.get_mut(&id) {
            file.add(&bytes, answered);
        } else if has_room {
            inner.files.entry(id).or_default().add(&bytes, answered);
        }
        if matches!(answered, Answered::Failed(_)) {
            return;
        }
        for piece in bytes.start / PIECE_BYTES..bytes.end.div_ceil(PIECE_BYTES) {
            if inner.seen.len() == PIECES_LIMIT || !inner.seen.insert((id.0, piece)) {
                continue;
            }
            let part = piece * PIECE_BYTES..(piece + 1) * PIECE_BYTES;
            match inner.order.last_mut() {
                Some((last, before)) if *last == id && before.end == part.start => {
                    before.end = part.end;
                }
                _ => inner.order.push((id, part)),
            }
        }
    }

    /// The parts in the order of their first reads, from the `from`-th on. They end at multiples of [`PIECE_BYTES`], if need be
    /// beyond their files.
    pub fn parts(&self) -> Vec<(NodeId, Range<u64>)> {
        self.0.lock().order.clone()
    }

    /// How many pieces were read; rises whenever there is something new.
    pub fn pieces(&self) -> usize {
        self.0.lock().seen.len()
    }

    /// All reads together.
    pub fn count(&self) -> ReadCount {
        self.0.lock().count
    }

    /// The files for which programs waited longest, up to `limit`.
    pub fn costly(&self, limit: usize) -> Vec<(NodeId, ReadCount)> {
        let mut files: Vec<_> = {
            let inner = self.0.lock();
            inner
                .files
                .iter()
                .map(|(&id, &count)| (id, count))
                .collect()
        };
        files.sort_by_key(|(id, count)| (std::cmp::Reverse((count.waited_us, count.bytes)), *id));
        files.truncate(limit);
        files
    }
}

impl ReadCount {
    fn add(&mut self, bytes: &Range<u64>, answered: Answered) {
        self.reads += 1;
        let waited = match answered {
            Answered::AtOnce => {
                self.from_memory += 1;
                Duration::ZERO
            }
            Answered::After(waited) => waited,
            Answered::Failed(waited) => {
                self.failures += 1;
                self.waited_us += waited.as_micros() as u64;
                return;
            }
        };
        self.waited_us += waited.as_micros() as u64;
        self.bytes += bytes.end - bytes.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_the_order_of_their_first_reads_and_once() {
        let reads = Reads::default();
        let (one, two) = (NodeId(1), NodeId(2));
        for (id, bytes) in [
            (two, 200_000..200_010),
            (one, 0..10),
            (one, 10..300_000),
            (two, 0..10),
            (two, 131_072..262_144),
            (one, 0..300_000),
        ] {
            reads.read(id, bytes, Answered::AtOnce);
        }
        let piece = PIECE_BYTES;
        assert_eq!(
            reads.parts(),
            [
                (two, piece..2 * piece),
                (one, 0..3 * piece),
                (two, 0..piece)
            ]
        );
    }

    #[test]
    fn the_files_that_were_waited_for_longest_come_first() {
        let reads = Reads::default();
        for (id, waited) in [(1, 5), (2, 50), (3, 0), (1, 20)] {
            let answered = Answered::After(Duration::from_micros(waited));
            reads.read(NodeId(id), 0..1, answered);
        }
        let costly = reads.costly(2);
        let ids: Vec<_> = costly
            .iter()
            .map(|(id, count)| (id.0, count.waited_us))
            .collect();
        assert_eq!(ids, [(2, 50), (1, 25)]);
        assert_eq!(reads.count().reads, 4);
    }
}
