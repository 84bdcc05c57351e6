//! Plain chunks in memory, within a budget, so that one `cp -a` does not flush what programs use.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::decode::fine::Cut;
use crate::layer::table::ChunkIndex;

/// A chunk of an image: the layer's place in it, from the bottom, and the chunk's in the layer.
pub(super) type Key = (u16, ChunkIndex);

/// A chunk, or one of the pieces into which it was cut.
type Part = (Key, Option<u32>);

/// What is known of how chunks are cut may take so much.
const CUTS_BYTES: usize = 24 << 20;

const SHARDS: usize = 16;

/// Chunks that were asked for twice take this part of the budget at most; the rest are on probation.
const PROTECTED_SHARE: (usize, usize) = (3, 4);

/// Large chunks are those of others' formats, in so far as they cannot be cut, and pieces of what packs to next to nothing, where
/// deflate blocks are long. They have half of the budget, less what is known of cuts.
const SMALL_BYTES: usize = 1 << 20;

/// A segmented LRU: a chunk comes in on probation, is protected when it is asked for again, and falls back to
/// probation before it is forgotten. Its locks are held for a look-up only.
pub(super) struct Memory {
    shards: Vec<Mutex<Shard>>,
    /// For chunks of more than [`SMALL_BYTES`], which are few: a shard of the others would have room for one or two.
    large: Mutex<Shard>,
    /// Chunks that were cut, the one that was used last first, and the memory that these take.
    cuts: Mutex<(LruCache<Key, Arc<Cut>>, usize)>,
    hasher: RandomState,
}

struct Shard {
    probation: Segment,
    protected: Segment,
    budget: usize,
}

struct Segment {
    chunks: LruCache<Part, Bytes>,
    bytes: usize,
}

impl Memory {
    pub fn with_budget(bytes: usize) -> Self {
        let shard = |budget| {
            Mutex::new(Shard {
                probation: Segment::default(),
                protected: Segment::default(),
                budget,
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard(bytes / 2 / SHARDS)).collect(),
            large: shard((bytes / 2).saturating_sub(CUTS_BYTES)),
            cuts: Mutex::new((LruCache::unbounded(), 0)),
            hasher: RandomState::new(),
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
        let part = (key, None);
        self.shard(part).lock().has(part) || self.large.lock().has(part)
    }

    pub fn keep(&self, key: Key, chunk: Bytes) {
        self.keep_part((key, None), chunk);
    }

    fn get_part(&self, part: Part) -> Option<Bytes> {
        let small = self.shard(part).lock().get(part);
        small.or_else(|| self.large.lock().get(part))
    }

    fn keep_part(&self, part: Part, plain: Bytes) {
        let shard = match plain.len() > SMALL_BYTES {
            true => &self.large,
            false => self.shard(part),
        };
        shard.lock().keep(part, plain);
    }

    fn shard(&self, part: Part) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(part) as usize % SHARDS]
    }
}

impl Shard {
    fn has(&self, key: Part) -> bool {
        self.protected.chunks.contains(&key) || self.probation.chunks.contains(&key)
    }

    fn get(&mut self, key: Part) -> Option<Bytes> {
        if let Some(chunk) = self.protected.chunks.get(&key) {
            return Some(chunk.clone());
        }
        let chunk = self.probation.take(key)?;
        self.protected.put(key, chunk.clone());
        while self.protected.bytes > self.budget * PROTECTED_SHARE.0 / PROTECTED_SHARE.1 {
            let Some((key, fallen)) = self.protected.pop() else {
                break;
            };
            self.probation.put(key, fallen);
        }
        Some(chunk)
    }

    fn keep(&mut self, key: Part, chunk: Bytes) {
        if self.protected.chunks.contains(&key) {
            return;
        }
        self.probation.put(key, chunk);
        while self.probation.bytes + self.protected.bytes > self.budget {
            if self.probation.pop().is_none() {
                break;
            }
        }
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
    fn put(&mut self, key: Part, chunk: Bytes) {
        self.bytes += chunk.len();
        if let Some(old) = self.chunks.put(key, chunk) {
            self.bytes -= old.len();
        }
    }

    fn take(&mut self, key: Part) -> Option<Bytes> {
        let chunk = self.chunks.pop(&key)?;
        self.bytes -= chunk.len();
        Some(chunk)
    }

    fn pop(&mut self) -> Option<(Part, Bytes)> {
        let (key, chunk) = self.chunks.pop_lru()?;
        self.bytes -= chunk.len();
        Some((key, chunk))
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

    fn shard(budget: usize) -> Shard {
        Shard {
            probation: Segment::default(),
            protected: Segment::default(),
            budget,
        }
    }

    #[test]
    fn a_scan_does_not_flush_what_was_asked_for_twice() {
        let mut shard = shard(100);
        shard.keep(key(0), vec![0; 10].into());
        assert!(shard.get(key(0)).is_some());
        for chunk in 1..1000 {
            shard.keep(key(chunk), vec![0; 10].into());
        }
        assert!(shard.get(key(0)).is_some());
        assert!(shard.get(key(1)).is_none());
    }

    #[test]
    fn the_budget_holds_whatever_is_kept_and_asked_for() {
        let mut shard = shard(100);
        for chunk in 0..500 {
            shard.keep(key(chunk % 37), vec![0; (chunk % 23) as usize].into());
            shard.get(key(chunk * 7 % 37));
            assert!(shard.probation.bytes + shard.protected.bytes <= 100);
            let counted =
                |segment: &Segment| segment.chunks.iter().map(|(_, it)| it.len()).sum::<usize>();
            assert_eq!(shard.probation.bytes, counted(&shard.probation));
            assert_eq!(shard.protected.bytes, counted(&shard.protected));
        }
    }

    #[test]
    fn a_chunk_larger_than_a_shard_is_kept() {
        let memory = Memory::with_budget(128 << 20);
        for chunk in 0..3 {
            memory.keep(key(chunk).0, vec![0; 12 << 20].into());
        }
        assert!((0..3).all(|chunk| memory.get(key(chunk).0).is_some()));
    }

    #[test]
    fn a_piece_larger_than_a_shard_is_kept() {
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
        let memory = Memory::with_budget(96 << 20);
        memory.keep_cut(key(0).0, Arc::new(cut));
        memory.keep_piece(key(0).0, 0, pieces[0].clone());
        assert!(memory.piece(key(0).0, 3 << 20).is_some());
    }

    #[test]
    fn a_chunk_larger_than_the_budget_is_not_kept() {
        let mut shard = shard(100);
        shard.keep(key(0), vec![0; 101].into());
        assert!(shard.get(key(0)).is_none());
    }
}
