//! A seekable blob: its blocks come from its source, and the store keeps them at their own offsets.

mod flight;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::activity::Why;
use super::ahead::Ahead;
use super::blocks::{BLOCK_BYTES, Blocks, blocks_of};
use super::copy::{PackedCopy, is_hole};
use super::fetcher::{Fetcher, Outcome};
use super::spare::Spare;
use crate::blob::{Blob, BlobError, Patience};
use crate::digest::{Digest, Hasher};
use crate::extent::PackedOffset;
use crate::scratch::Scratch;

/// What nobody waits for is fetched in ranges of this length: long enough to reach the rate of a download, short enough to share
/// a window of read-ahead among connections.
const LONG_BLOCKS: u64 = (4 << 20) / BLOCK_BYTES;

/// Packed ranges of one blob, fetched where the store has none.
pub(super) struct Remote {
    blob: Arc<dyn Blob>,
    /// Sparse, at the blob's own offsets; what it holds is unverified.
    copy: PackedCopy,
    blocks: Mutex<Blocks>,
    landed: Condvar,
    ahead: Ahead,
    /// Outside of it are no chunks, but the head of an archive, a table of contents and the like, which nobody reads as a part of a
    /// file: of blocks at its ends only this is fetched.
    chunks: Range<u64>,
    /// Whether all of the blob is wanted all the same.
    is_wanted_whole: AtomicBool,
    /// What could not be written.
    spare: Spare,
    /// Why the last of it could not.
    unkept: Mutex<Option<String>>,
}

/// Whether what a reader waited for came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    InTime,
    Late,
}

impl Remote {
    pub fn new(blob: Arc<dyn Blob>, copy: PackedCopy) -> Self {
        Self {
            chunks: 0..blob.size(),
            is_wanted_whole: AtomicBool::new(false),
            blob,
            copy,
            blocks: Mutex::default(),
            landed: Condvar::new(),
            ahead: Ahead::default(),
            spare: Spare::default(),
            unkept: Mutex::default(),
        }
    }

    /// The same for a blob whose chunks all lie in `chunks`.
    pub fn with_chunks_in(self, chunks: Range<u64>) -> Self {
        let end = chunks.end.min(self.blob.size());
        Self {
            chunks: chunks.start.min(end)..end,
            ..self
        }
    }

    /// The bytes that are to be fetched of these blocks.
    fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let from = blocks.start * BLOCK_BYTES;
        let until = (blocks.end * BLOCK_BYTES).min(self.blob.size());
        // Seals are those of whole blocks.
        if self.is_wanted_whole.load(Ordering::Relaxed) || self.copy.knows_zeros() {
            return from..until;
        }
        let within = from.max(self.chunks.start)..until.min(self.chunks.end);
        match within.is_empty() {
            true => from..until,
            false => within,
        }
    }

    /// From now on all of the blob is wanted: blocks of which only a part is here are not here.
    pub fn want_whole(&self) {
        self.is_wanted_whole.store(true, Ordering::Relaxed);
        // What is missing of the blocks at its ends begins there.
        let first = self.chunks.start - self.chunks.start % BLOCK_BYTES;
        let outside = [first, self.chunks.end];
        let lacking = outside.into_iter().filter(|&at| {
            let is_missing = || !self.copy.has_bytes_at(at);
            !self.chunks.contains(&at) && at < self.blob.size() && is_missing()
        });
        for at in lacking {
            self.forget(&(at..at + 1));
        }
    }

    pub fn layer(&self) -> Digest {
        self.blob.digest()
    }

    /// How long the blob is: every place that is asked for must lie in it.
    pub fn blob_size(&self) -> u64 {
        self.blob.size()
    }

    /// What is here of this place, verified or not.
    pub fn kept(&self, at: PackedOffset, len: usize) -> Option<Scratch> {
        let packed = self.copy.read(at.0, len, &self.spare)?;
        // A hole reads as zeros, which no chunk's packed bytes begin with; the rest is up to the digest.
        (self.copy.knows_zeros() || !is_hole(&packed)).then_some(packed)
    }

    /// Whether all of these bytes seem to be here.
    pub fn has(&self, bytes: &Range<u64>) -> bool {
        let blocks = blocks_of(bytes);
        self.look(&blocks);
        self.blocks.lock().are_present(&blocks)
    }

    /// How many bytes of the blob seem to be here. Looks only at what may be missing, so of a blob of which all is here, however long it
    /// is, nothing is read.
    pub fn kept_bytes(&self) -> u64 {
        let mut doubtful = self.copy.doubtful_blocks();
        doubtful.extend(self.blocks.lock().absent());
        doubtful.sort_unstable();
        doubtful.dedup();
        let size = self.blob.size();
        let missing = doubtful.into_iter().map(|block| {
            let bytes = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(size);
            let is_here = self.has(&bytes);
            if is_here { 0 } else { bytes.end - bytes.start }
        });
        size - missing.sum::<u64>()
    }

    /// How many bytes of the blob are here, as the disk counts them: one question, however long it is.
    pub fn stored_bytes(&self) -> u64 {
        self.copy.stored_bytes()
    }

    /// What the source sent is wrong.
    pub fn doubt(&self) {
        self.blob.doubt();
    }

    /// What is here of these bytes is wrong.
    pub fn forget(&self, bytes: &Range<u64>) {
        let wrong = blocks_of(bytes);
        let mut blocks = self.blocks.lock();
        for block in wrong.clone() {
            blocks.set(block, false);
        }
        drop(blocks);
        self.spare.forget(&wrong);
    }

    /// Sees to it that all of these bytes are here, or are no longer awaited.
    pub fn bring(
        self: &Arc<Self>,
        bytes: &Range<u64>,
        deadline: Instant,
        fetcher: &Fetcher,
    ) -> Result<Came, BlobError> {
        let wanted = blocks_of(bytes);
        self.look(&wanted);
        let mut own: Option<Arc<Outcome>> = None;
        loop {
            let mut blocks = self.blocks.lock();
            if blocks.are_present(&wanted) {
                return Ok(Came::InTime);
            }
            for flight in wanted.clone().filter_map(|block| blocks.flight(block)) {
                if !flight.is_urgent() {
                    fetcher.shared().hurry(flight);
                }
            }
            if let Some(outcome) = &own {
                match outcome.take() {
                    Some(Err(err)) => return Err(err),
                    Some(Ok(())) => own = None,
                    None => {}
                }
            }
            if own.is_none() && blocks.lacks(&wanted) {
                let pace = &fetcher.shared().pace;
                let around = self.around(&blocks, &wanted, pace.worth_blocks());
                drop(blocks);
                let beyond = around.end..around.end + pace.blocks_beyond_a_wait();
                let patience = Patience::Until(deadline);
                own = Some(fetcher.bring(self, around, Why::Read, patience));
                self.fetch_ahead(self.chunks_in(&beyond), Why::ReadAhead, fetcher);
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(Came::Late);
            }
            self.landed.wait_until(&mut blocks, deadline);
        }
    }

    /// Asks for what is lacking of these bytes, for which somebody will wait until `deadline`.
    pub fn begin(self: &Arc<Self>, bytes: Range<u64>, deadline: Instant, fetcher: &Fetcher) {
        let wanted = blocks_of(&bytes);
        self.look(&wanted);
        let blocks = self.blocks.lock();
        if blocks.lacks(&wanted) {
            let around = self.around(&blocks, &wanted, fetcher.shared().pace.worth_blocks());
            drop(blocks);
            let patience = Patience::Until(deadline);
            drop(fetcher.bring(self, around, Why::Read, patience));
        }
    }

    /// `wanted` and what is lacking around it, out to places that are multiples of `worth`: what comes in the time that
    /// asking for it later would cost.
    fn around(&self, blocks: &Blocks, wanted: &Range<u64>, worth: u64) -> Range<u64> {
        let end = self.chunks.end.div_ceil(BLOCK_BYTES);
        let is_lacking = |block: &u64| {
            blocks.is_present(*block) != Some(true) && blocks.flight(*block).is_none()
        };
        let before = (wanted.start - wanted.start % worth..wanted.start).rev();
        let after = wanted.end..wanted.end.next_multiple_of(worth).min(end);
        let first = before.take_while(is_lacking).last();
        let last = after.take_while(is_lacking).last();
        first.unwrap_or(wanted.start)..last.map_or(wanted.end, |last| last + 1)
    }

    /// The bytes of these blocks that may belong to chunks.
    fn chunks_in(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = self.chunks.end;
        (blocks.start * BLOCK_BYTES).min(end)..(blocks.end * BLOCK_BYTES).min(end)
    }

    /// Somebody reads these bytes: has what comes next brought, if that can be told.
    pub fn read_ahead(self: &Arc<Self>, bytes: &Range<u64>, fetcher: &Fetcher) {
        if let Some(ahead) = self.ahead.read(bytes) {
            let until = ahead.end.min(self.chunks.end);
            self.fetch_ahead(ahead.start..until, Why::ReadAhead, fetcher);
        }
    }

    /// Has bytes brought that nobody waits for yet, in long ranges.
    pub fn fetch_ahead(self: &Arc<Self>, bytes: Range<u64>, why: Why, fetcher: &Fetcher) {
        drop(self.pieces(bytes, why, fetcher));
    }

    /// The same; gives the ends of what was begun.
    pub fn pieces(
        self: &Arc<Self>,
        bytes: Range<u64>,
        why: Why,
        fetcher: &Fetcher,
    ) -> Vec<Arc<Outcome>> {
        // Also so that the look at its blocks waits for the disk once, not at each of them.
        self.copy.announce(&bytes);
        let blocks = blocks_of(&bytes);
        self.look(&blocks);
        let patience = Patience::While(fetcher.shared().limits.timeout);
        let starts = blocks.clone().step_by(LONG_BLOCKS as usize);
        starts
            .map(|start| start..(start + LONG_BLOCKS).min(blocks.end))
            .filter(|piece| self.blocks.lock().lacks(piece))
            .map(|piece| fetcher.bring(self, piece, why, patience))
            .collect()
    }

    /// Waits until all of these bytes seem to be here, whoever has them brought. Whether they are, by the deadline.
    pub fn await_here(&self, bytes: &Range<u64>, deadline: Instant) -> bool {
        let wanted = blocks_of(bytes);
        self.look(&wanted);
        let mut blocks = self.blocks.lock();
        while !blocks.are_present(&wanted) {
            if self.landed.wait_until(&mut blocks, deadline).timed_out() {
                return blocks.are_present(&wanted);
            }
        }
        true
    }

    /// Waits until none of these bytes is on its way, whose flights have deadlines of their own.
    pub fn await_flights(&self, bytes: &Range<u64>) {
        let awaited = blocks_of(bytes);
        let is_flying =
            |blocks: &mut Blocks| awaited.clone().any(|block| blocks.flight(block).is_some());
        let mut blocks = self.blocks.lock();
        self.landed.wait_while(&mut blocks, is_flying);
    }

    /// Wakes those who wait, because a job is over.
    pub fn wake(&self) {
        // So that nobody is between looking and waiting.
        drop(self.blocks.lock());
        self.landed.notify_all();
    }

    /// Finds out which of these blocks the store has; each is looked at once.
    fn look(&self, blocks: &Range<u64>) {
        let unknown = self.blocks.lock().unknown(blocks);
        if unknown.is_empty() {
            return;
        }
        let looked: Vec<_> = unknown
            .into_iter()
            .map(|block| (block, self.seems_here(block)))
            .collect();
        let mut blocks = self.blocks.lock();
        for (block, is_present) in looked {
            if blocks.is_present(block).is_none() {
                blocks.set(block, is_present);
            }
        }
    }

    fn seems_here(&self, block: u64) -> bool {
        match self.copy.knows_zeros() {
            true => self.copy.has(block),
            false => self
                .copy
                .has_bytes_at(self.bytes_of(&(block..block + 1)).start),
        }
    }

    /// Fails if something that came could not be written: then all of it can never be here.
    pub fn is_kept(&self) -> Result<(), BlobError> {
        match &*self.unkept.lock() {
            None => Ok(()),
            Some(problem) => Err(BlobError::Wrong {
                object: format!("blob {}", self.blob.digest()),
                problem: format!("the store cannot keep all of it: {problem}"),
            }),
        }
    }

    /// Whether the blob's digest is that of its bytes.
    pub fn is_named_by_its_bytes(&self) -> bool {
        self.blob.is_named_by_its_bytes()
    }

    /// Hands all that is here to `each`, in order, and gives its digest. `None` if some of it is not right, as far as that can
    /// be told, or if `each` wants no more.
    pub fn kept_digest(&self, each: &mut dyn FnMut(&[u8], u64) -> bool) -> Option<Digest> {
        let mut hasher = Hasher::default();
        let mut at = 0;
        while at < self.blob.size() {
            let len = (self.blob.size() - at).min(1 << 20) as usize;
            let bytes = self.copy.read(at, len, &self.spare)?;
            if !each(&bytes, at) {
                return None;
            }
            hasher.update(&bytes);
            at += len as u64;
        }
        Some(hasher.finish())
    }
}
