//! A seekable blob: its blocks come from its source, and the store keeps them at their own offsets.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::activity::{Begun, Why};
use super::ahead::Ahead;
use super::blocks::{BLOCK_BYTES, Blocks, Flight, blocks_of};
use super::copy::{PackedCopy, is_hole};
use super::fetcher::{Fetcher, Job, Outcome, Shared};
use super::spare::Spare;
use crate::blob::{Blob, BlobError, Patience};
use crate::digest::{Digest, Hasher};
use crate::extent::PackedOffset;

/// What comes is written in pieces of this size: readers wait for a block, not for the range it came with.
const WRITTEN_BYTES: usize = 128 << 10;

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
    /// Behind it are no chunks: tables of contents and the like, which nobody reads as a part of a file.
    chunks_end: u64,
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
            chunks_end: blob.size(),
            blob,
            copy,
            blocks: Mutex::default(),
            landed: Condvar::new(),
            ahead: Ahead::default(),
            spare: Spare::default(),
            unkept: Mutex::default(),
        }
    }

    /// The same for a blob whose chunks end before it does.
    pub fn with_chunks_until(self, end: u64) -> Self {
        let chunks_end = end.min(self.blob.size());
        Self { chunks_end, ..self }
    }

    pub fn layer(&self) -> Digest {
        self.blob.digest()
    }

    /// How long the blob is: every place that is asked for must lie in it.
    pub fn blob_size(&self) -> u64 {
        self.blob.size()
    }

    /// What is here of this place, verified or not.
    pub fn kept(&self, at: PackedOffset, len: usize) -> Option<Vec<u8>> {
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

    /// How many bytes of the blob are here.
    pub fn kept_bytes(&self) -> u64 {
        let (mut kept, size) = (0, self.blob.size());
        for start in (0..size).step_by(BLOCK_BYTES as usize) {
            let bytes = start..(start + BLOCK_BYTES).min(size);
            kept += if self.has(&bytes) {
                bytes.end - bytes.start
            } else {
                0
            };
        }
        kept
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
                let around = self.around(&blocks, &wanted, fetcher.shared().pace.worth_blocks());
                drop(blocks);
                let patience = Patience::Until(deadline);
                own = Some(fetcher.bring(self, around, Why::Read, patience));
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
        let end = self.chunks_end.div_ceil(BLOCK_BYTES);
        let is_lacking = |block: &u64| {
            blocks.is_present(*block) != Some(true) && blocks.flight(*block).is_none()
        };
        let before = (wanted.start - wanted.start % worth..wanted.start).rev();
        let after = wanted.end..wanted.end.next_multiple_of(worth).min(end);
        let first = before.take_while(is_lacking).last();
        let last = after.take_while(is_lacking).last();
        first.unwrap_or(wanted.start)..last.map_or(wanted.end, |last| last + 1)
    }

    /// Somebody reads these bytes: has what comes next brought, if that can be told.
    pub fn read_ahead(self: &Arc<Self>, bytes: &Range<u64>, fetcher: &Fetcher) {
        if let Some(ahead) = self.ahead.read(bytes) {
            let until = ahead.end.min(self.chunks_end);
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

    /// Waits until none of these bytes is on its way, whose flights have deadlines of their own.
    pub fn await_flights(&self, bytes: &Range<u64>) {
        let awaited = blocks_of(bytes);
        let is_flying =
            |blocks: &mut Blocks| awaited.clone().any(|block| blocks.flight(block).is_some());
        let mut blocks = self.blocks.lock();
        self.landed.wait_while(&mut blocks, is_flying);
    }

    /// Does a job: asks for what is lacking of it when its turn has come.
    pub fn fly(&self, job: &Job, shared: &Shared) -> Result<(), BlobError> {
        self.look(&job.blocks);
        let gap = shared.pace.worth_blocks() - 1;
        let mut left = job.blocks.clone();
        loop {
            let flight = Arc::new(Flight::default());
            let mut blocks = self.blocks.lock();
            let Some(planned) = blocks.planned(&left, gap) else {
                return Ok(());
            };
            blocks.take_off(&planned, &flight);
            drop(blocks);
            let flown = Flown {
                remote: self,
                blocks: planned.clone(),
                flight,
            };
            if job.why == Why::Read {
                flown.flight.hurry();
            }
            self.pour(&flown, job, shared)?;
            left.start = planned.end;
        }
    }

    fn pour(&self, flown: &Flown<'_>, job: &Job, shared: &Shared) -> Result<(), BlobError> {
        let from = flown.blocks.start * BLOCK_BYTES;
        let until = (flown.blocks.end * BLOCK_BYTES).min(self.blob.size());
        let mut begun = Begun::now();
        let (mut at, mut buffer) = (from, Vec::with_capacity(2 * WRITTEN_BYTES));
        let poured = self.blob.pour(from..until, job.patience, &mut |bytes| {
            begun.came(bytes.len() as u64);
            buffer.extend_from_slice(&bytes);
            if buffer.len() >= WRITTEN_BYTES {
                let whole = buffer.len() - buffer.len() % BLOCK_BYTES as usize;
                self.land(at, &buffer[..whole]);
                at += whole as u64;
                buffer.drain(..whole);
                shared.make_way(job.why, &flown.flight);
            }
        });
        let whole = match poured {
            Ok(()) => buffer.len(),
            Err(_) => buffer.len() - buffer.len() % BLOCK_BYTES as usize,
        };
        self.land(at, &buffer[..whole]);
        if let Some(first_byte) = begun.first_byte
            && poured.is_ok()
        {
            shared
                .pace
                .measured(first_byte, begun.elapsed(), begun.bytes);
        }
        let layer = self.blob.digest();
        shared
            .activity
            .ended(&begun, layer, from, job.why, poured.is_err());
        poured
    }

    /// Keeps whole blocks that came, and tells those who wait for them.
    fn land(&self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let first = at / BLOCK_BYTES;
        if let Err(err) = self.copy.write(bytes, at) {
            tracing::debug!(layer = %self.blob.digest(), error = %err, "not kept");
            *self.unkept.lock() = Some(err.to_string());
            let gone = self.spare.keep(first, bytes);
            let mut blocks = self.blocks.lock();
            for block in gone {
                blocks.set(block, false);
            }
        }
        let mut blocks = self.blocks.lock();
        for block in first..(at + bytes.len() as u64).div_ceil(BLOCK_BYTES) {
            blocks.land(block);
        }
        drop(blocks);
        self.landed.notify_all();
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
            .map(|block| (block, self.copy.has(block)))
            .collect();
        let mut blocks = self.blocks.lock();
        for (block, is_present) in looked {
            if blocks.is_present(block).is_none() {
                blocks.set(block, is_present);
            }
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

/// A request on its way. Dropping it leaves what it has not brought to others, however it ended.
struct Flown<'a> {
    remote: &'a Remote,
    blocks: Range<u64>,
    flight: Arc<Flight>,
}

impl Drop for Flown<'_> {
    fn drop(&mut self) {
        self.remote.blocks.lock().end(&self.blocks, &self.flight);
        self.remote.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::fetch::Limits;

    /// A blob that remembers what was asked of it.
    struct Asked {
        content: Bytes,
        ranges: Mutex<Vec<Range<u64>>>,
        /// Requests that are to fail before others do not.
        failures: Mutex<u32>,
    }

    impl Blob for Asked {
        fn digest(&self) -> Digest {
            Digest::of(b"")
        }

        fn size(&self) -> u64 {
            self.content.len() as u64
        }

        fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
            let range = at.0 as usize..at.0 as usize + len;
            Ok(self.content.slice(range))
        }

        fn pour(
            &self,
            range: Range<u64>,
            _: Patience,
            each: &mut (dyn FnMut(Bytes) + Send),
        ) -> Result<(), BlobError> {
            {
                let mut failures = self.failures.lock();
                if *failures > 0 {
                    *failures -= 1;
                    let object = "blob".into();
                    return Err(BlobError::Offline { object });
                }
            }
            self.ranges.lock().push(range.clone());
            for start in range.clone().step_by(30_000) {
                let end = (start + 30_000).min(range.end);
                each(self.content.slice(start as usize..end as usize));
            }
            Ok(())
        }

        fn stream(&self) -> Result<Box<dyn std::io::Read + Send>, BlobError> {
            unimplemented!("not asked for here")
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    const CHUNK: usize = 100_000;

    fn blob() -> Arc<Asked> {
        let content: Vec<u8> = (0..(40 << 20) + 12_345u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        Arc::new(Asked {
            content: content.into(),
            ranges: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    fn copied(blob: &Arc<Asked>) -> (Arc<Remote>, Fetcher) {
        let copy = tempfile::tempfile().unwrap();
        copy.set_len(blob.size()).unwrap();
        let remote = Remote::new(blob.clone(), PackedCopy::plain(copy, blob.size()));
        (Arc::new(remote), Fetcher::new(Limits::default()))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// As a caller does: what the store has if it is right, else what is fetched.
    fn chunk(remote: &Arc<Remote>, fetcher: &Fetcher, blob: &Asked, at: usize) {
        let expected = &blob.content[at..(at + CHUNK).min(blob.content.len())];
        let bytes = at as u64..(at + expected.len()) as u64;
        remote.read_ahead(&bytes, fetcher);
        let came = remote.bring(&bytes, soon(), fetcher).unwrap();
        assert_eq!(came, Came::InTime);
        let kept = remote.kept(PackedOffset(at as u64), expected.len());
        assert!(kept.as_deref() == Some(expected), "at {at}");
    }

    fn fetched(blob: &Asked) -> u64 {
        let ranges = blob.ranges.lock();
        ranges.iter().map(|range| range.end - range.start).sum()
    }

    #[test]
    fn a_sequential_reader_fetches_no_byte_twice_and_in_long_ranges() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        for at in (0..blob.content.len()).step_by(CHUNK) {
            chunk(&remote, &fetcher, &blob, at);
        }
        remote.await_flights(&(0..blob.size()));
        assert_eq!(fetched(&blob), blob.size());
        let ranges = blob.ranges.lock();
        assert!(ranges.len() < 80, "{}: {ranges:?}", ranges.len());
    }

    #[test]
    fn what_the_store_has_is_not_fetched_again_whatever_the_order() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        let chunks = blob.content.len() / CHUNK;
        for number in 0..chunks {
            chunk(&remote, &fetcher, &blob, number * 37 % chunks * CHUNK);
        }
        remote.await_flights(&(0..blob.size()));
        assert!(fetched(&blob) <= blob.size());
        let copy = remote.copy.again();
        let before = blob.ranges.lock().len();
        let again = Arc::new(Remote::new(blob.clone(), copy));
        chunk(&again, &fetcher, &blob, 7 * CHUNK);
        assert_eq!(blob.ranges.lock().len(), before);
    }

    #[test]
    fn many_who_wait_for_the_same_make_one_request() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| chunk(&remote, &fetcher, &blob, 3 << 20));
            }
        });
        assert_eq!(blob.ranges.lock().len(), 1);
    }

    #[test]
    fn what_is_forgotten_is_fetched_again() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        remote.copy.write(&[7; 2 << 20], 0).unwrap();
        assert!(remote.has(&(0..CHUNK as u64)));
        assert_eq!(blob.ranges.lock().len(), 0);
        remote.forget(&(0..CHUNK as u64));
        chunk(&remote, &fetcher, &blob, 0);
        assert_eq!(blob.ranges.lock().len(), 1);
    }

    #[test]
    fn a_failure_reaches_the_one_who_waits_and_the_next_one_tries_again() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        *blob.failures.lock() = 1;
        let failed = remote.bring(&(0..10), soon(), &fetcher);
        assert!(failed.is_err(), "{failed:?}");
        chunk(&remote, &fetcher, &blob, 0);
    }

    #[test]
    fn what_cannot_be_written_is_shown_from_memory() {
        let blob = blob();
        let scratch = tempfile::NamedTempFile::new().unwrap();
        scratch.as_file().set_len(blob.size()).unwrap();
        let copy = File::open(scratch.path()).unwrap();
        let copy = PackedCopy::plain(copy, blob.size());
        let remote = Arc::new(Remote::new(blob.clone(), copy));
        let fetcher = Fetcher::new(Limits::default());
        for at in (0..blob.content.len()).step_by(CHUNK) {
            chunk(&remote, &fetcher, &blob, at);
        }
        assert!(remote.has(&(blob.size() - 1..blob.size())));
        assert!(!remote.has(&(0..1)), "memory has an end");
    }

    #[test]
    fn one_who_waits_gives_up_at_the_deadline() {
        let blob = blob();
        let (remote, fetcher) = copied(&blob);
        let flight = Arc::default();
        remote.blocks.lock().take_off(&(0..2), &flight);
        let late = remote.bring(&(0..10), Instant::now(), &fetcher).unwrap();
        assert_eq!(late, Came::Late);
        assert!(flight.is_urgent());
    }
}
