//! Plain chunks in memory, within a budget, so that one `cp -a` does not flush what programs use.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::decode::fine::Cut;
use crate::layer::table::ChunkIndex;
use crate::scratch::room_of;

/// A chunk of an image: the layer's place in it, from the bottom, and the chunk's in the layer.
pub(super) type Key = (u16, ChunkIndex);

/// A chunk, or one of the pieces into which it was cut.
type Part = (Key, Option<u32>);

/// What is known of how chunks are cut may take so much.
const CUTS_BYTES: usize = 16 << 20;

/// Chunks that were asked for once take this part of the budget at most, so that the memory of those that nobody asks for again is
/// used for the next ones while it is in the processor's cache.
const PROBATION_SHARE: (usize, usize) = (1, 2);

/// Those that come in last stay on probation, however large they are, if the budget has room for them.
const LAST: usize = 3;

/// A segmented LRU: a chunk comes in on probation, is protected when it is asked for again, and falls back to
/// probation before it is forgotten. Large chunks and small ones share it: an image has mostly the one or the other. Its locks are
/// held for a look-up only.
pub(super) struct Memory {
    chunks: Mutex<Segments>,
    /// Chunks that were cut, the one that was used last first, and the memory that these take.
    cuts: Mutex<(LruCache<Key, Arc<Cut>>, usize)>,
}

struct Segments {
    probation: Segment,
    protected: Segment,
    budget: usize,
}

struct Segment {
    chunks: LruCache<Part, Bytes>,
    bytes: usize,
}

/// What had to go: to be dropped when no lock is held, which takes a while for large ones.
type Gone = Vec<Bytes>;

impl Memory {
    pub fn with_budget(bytes: usize) -> Self {
        Self {
            chunks: Mutex::new(Segments::with_budget(bytes.saturating_sub(CUTS_BYTES))),
            cuts: Mutex::new((LruCache::unbounded(), 0)),
        }
    }

    pub fn get(&self, key: Key) -> Option<Bytes> {
        self.get_part((key, None))
    }

    /// The piece of a chunk that has the plain byte `at`, and where in the chunk it begins.
    pub fn piece(&self, key: Key, at: u32) -> Option<(u32, Bytes)> {
        let cut = self.cut(key)?;
        let place = cut.place(at)?;
        let plain = self.get_part((key, Some(place as u32)))?;
        Some((cut.plain_at(place), plain))
    }

    pub fn keep_piece(&self, key: Key, place: usize, plain: Bytes) {
        self.keep_part((key, Some(place as u32)), plain);
    }

    /// How a chunk was cut.
    pub fn cut(&self, key: Key) -> Option<Arc<Cut>> {
        self.cuts.lock().0.get(&key).cloned()
    }

    pub fn keep_cut(&self, key: Key, cut: Arc<Cut>) {
        let mut cuts = self.cuts.lock();
        let (known, bytes) = &mut *cuts;
        *bytes += cut.bytes();
        if let Some(old) = known.put(key, cut) {
            *bytes -= old.bytes();
        }
        while *bytes > CUTS_BYTES
            && let Some((_, old)) = known.pop_lru()
        {
            *bytes -= old.bytes();
        }
    }

    /// A chunk was not cut as is thought.
    pub fn forget_cut(&self, key: Key) {
        let mut cuts = self.cuts.lock();
        if let Some(old) = cuts.0.pop(&key) {
            cuts.1 -= old.bytes();
        }
    }

    /// Whether it is there; this is no use of it.
    pub fn has(&self, key: Key) -> bool {
        self.chunks.lock().has((key, None))
    }

    pub fn keep(&self, key: Key, chunk: Bytes) {
        self.keep_part((key, None), chunk);
    }

    /// Nobody will ask for it soon.
    pub fn forget(&self, key: Key) {
        let forgotten = self.chunks.lock().forget((key, None));
        drop(forgotten);
    }

    /// The same for the pieces of a chunk that end within its plain bytes `bytes`.
    pub fn forget_pieces(&self, key: Key, bytes: &Range<usize>) {
        let Some(cut) = self.cut(key) else {
            return;
        };
        for place in 0..cut.count() {
            if bytes.contains(&(cut.plain_end(place) as usize - 1)) {
                let forgotten = self.chunks.lock().forget((key, Some(place as u32)));
                drop(forgotten);
            }
        }
    }

    fn get_part(&self, part: Part) -> Option<Bytes> {
        self.chunks.lock().get(part)
    }

    fn keep_part(&self, part: Part, plain: Bytes) {
        let gone = self.chunks.lock().keep(part, plain);
        drop(gone);
    }
}

impl Segments {
    fn with_budget(budget: usize) -> Self {
        Self {
            probation: Segment::default(),
            protected: Segment::default(),
            budget,
        }
    }

    /// Bytes on probation at most.
    fn probation_limit(&self) -> usize {
        self.budget * PROBATION_SHARE.0 / PROBATION_SHARE.1
    }

    fn has(&self, part: Part) -> bool {
        self.protected.chunks.contains(&part) || self.probation.chunks.contains(&part)
    }

    fn get(&mut self, part: Part) -> Option<Bytes> {
        if let Some(chunk) = self.protected.chunks.get(&part) {
            return Some(chunk.clone());
        }
        let chunk = self.probation.take(part)?;
        self.protected.put(part, chunk.clone());
        while self.protected.bytes > self.budget - self.probation_limit() {
            let Some((part, fallen)) = self.protected.pop() else {
                break;
            };
            self.probation.put(part, fallen);
        }
        Some(chunk)
    }

    /// Gives it, if it was there.
    fn forget(&mut self, part: Part) -> Option<Bytes> {
        let probation = self.probation.take(part);
        probation.or_else(|| self.protected.take(part))
    }

    fn keep(&mut self, part: Part, chunk: Bytes) -> Gone {
        if self.protected.chunks.contains(&part) {
            return Gone::new();
        }
        let mut gone = Gone::new();
        gone.extend(self.probation.put(part, chunk));
        let is_over = |segments: &Self| {
            let held = segments.probation.bytes;
            held + segments.protected.bytes > segments.budget
                || (held > segments.probation_limit() && segments.probation.chunks.len() > LAST)
        };
        while is_over(self)
            && let Some((_, chunk)) = self.probation.pop()
        {
            gone.push(chunk);
        }
        gone
    }
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            chunks: LruCache::unbounded(),
            bytes: 0,
        }
    }
}

impl Segment {
    /// Gives the one that was there.
    fn put(&mut self, part: Part, chunk: Bytes) -> Option<Bytes> {
        self.bytes += room_of(chunk.len());
        let old = self.chunks.put(part, chunk);
        self.bytes -= old.as_ref().map_or(0, |old| room_of(old.len()));
        old
    }

    fn take(&mut self, part: Part) -> Option<Bytes> {
        let chunk = self.chunks.pop(&part)?;
        self.bytes -= room_of(chunk.len());
        Some(chunk)
    }

    fn pop(&mut self) -> Option<(Part, Bytes)> {
        let (part, chunk) = self.chunks.pop_lru()?;
        self.bytes -= room_of(chunk.len());
        Some((part, chunk))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::digest::ChunkDigest;
    use crate::extent::PackedOffset;
    use crate::layer::decode::Decoder;
    use crate::layer::table::{Chunk, Codec};

    fn key(chunk: u32) -> Part {
        ((0, ChunkIndex(chunk)), None)
    }

    #[test]
    fn a_scan_does_not_flush_what_was_asked_for_twice() {
        let mut segments = Segments::with_budget(100);
        segments.keep(key(0), vec![0; 10].into());
        assert!(segments.get(key(0)).is_some());
        for chunk in 1..1000 {
            segments.keep(key(chunk), vec![0; 10].into());
        }
        assert!(segments.get(key(0)).is_some());
        assert!(segments.get(key(1)).is_none());
    }

    #[test]
    fn the_budget_holds_whatever_is_kept_and_asked_for() {
        let mut segments = Segments::with_budget(100);
        for chunk in 0..500 {
            segments.keep(key(chunk % 37), vec![0; (chunk % 23) as usize].into());
            segments.get(key(chunk * 7 % 37));
            assert!(segments.probation.bytes + segments.protected.bytes <= 100);
            let counted = |segment: &Segment| {
                segment
                    .chunks
                    .iter()
                    .map(|(_, it)| room_of(it.len()))
                    .sum::<usize>()
            };
            assert_eq!(segments.probation.bytes, counted(&segments.probation));
            assert_eq!(segments.protected.bytes, counted(&segments.protected));
        }
    }

    #[test]
    fn a_few_large_chunks_are_kept() {
        let memory = Memory::with_budget(80 << 20);
        for chunk in 0..3 {
            memory.keep(key(chunk).0, vec![0; 12 << 20].into());
        }
        assert!((0..3).all(|chunk| memory.get(key(chunk).0).is_some()));
    }

    #[test]
    fn a_large_piece_is_kept() {
        let plain = vec![0; 6 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(9));
        encoder.write_all(&plain).unwrap();
        let packed = encoder.finish().unwrap();
        let whole = Chunk {
            packed_at: PackedOffset(0),
            packed_len: packed.len() as u32,
            skip: 0,
            plain_len: plain.len() as u32,
            codec: Codec::Gzip,
            digest: ChunkDigest::sha256_of(&plain),
        };
        let mut cut = Cut::default();
        let pieces = Decoder::new().cut(&whole, &packed, &mut cut, 1).unwrap();
        assert!(pieces[0].len() > 3 << 20, "{}", pieces[0].len());
        let memory = Memory::with_budget(80 << 20);
        memory.keep_cut(key(0).0, Arc::new(cut));
        memory.keep_piece(key(0).0, 0, pieces[0].clone());
        assert!(memory.piece(key(0).0, 3 << 20).is_some());
    }

    #[test]
    fn a_chunk_larger_than_the_budget_is_not_kept() {
        let mut segments = Segments::with_budget(100);
        segments.keep(key(0), vec![0; 101].into());
        assert!(segments.get(key(0)).is_none());
    }
}
