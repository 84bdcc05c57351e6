//! A whole blob in order, of which nothing is fetched again that came before an interruption.
//!
//! Whoever streams a blob needs its bytes once, and a fast network brings them again sooner than a disk takes them. So they are
//! kept only while the reader waits for the network anyway, in a copy with seals that goes when all of it came. What is read
//! from there is what was written; whether that was right the blob's digest tells at the end, as for what comes.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocks::{BLOCK_BYTES, blocks_of};
use super::copy::PackedCopy;
use super::spare::Spare;
use crate::blob::{Blob, BlobError};
use crate::scratch::Scratch;
use crate::store::Store;

/// What is kept at once: so much of each stream is in memory.
const PIECE_BYTES: usize = 1 << 20;

/// Keeping takes at most this part of the time that was waited for the network.
const SHARE_OF_WAITING: u32 = 8;

/// Waiting takes at least this part of all time while something is kept. Where it takes less, what comes has to be computed
/// with, and a machine that is busy has no time to write it down.
const SHARE_OF_ALL: u32 = 2;

/// Of larger blobs nothing is kept: what tells which blocks are here would take much memory.
const SIZE_LIMIT: u64 = 64 << 30;

/// Nothing of smaller blobs is kept, and the network is asked for what is here, too, where that is less: two requests cost more.
const WORTH_BYTES: u64 = 4 << 20;

/// Reads a blob from its first byte to its last: from the store what is there, the rest from its source.
pub struct Resumed {
    blob: Arc<dyn Blob>,
    copy: Option<PackedCopy>,
    /// Stretches that were not begun.
    stretches: VecDeque<Stretch>,
    current: Current,
    at: u64,
    kept_bytes: u64,
    keeping: Keeping,
}

/// Whole blocks that follow each other, the blob's last one perhaps shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    bytes: Range<u64>,
    is_here: bool,
}

enum Current {
    Nothing,
    Here(io::Cursor<Scratch>),
    Coming {
        stream: Box<dyn Read + Send>,
        end: u64,
    },
}

/// What is on its way into the copy, and what it costs.
struct Keeping {
    began: Instant,
    piece: Vec<u8>,
    /// Where the piece begins, if this one is kept.
    piece_at: Option<u64>,
    waited: Duration,
    spent: Duration,
    has_failed: bool,
}

impl Resumed {
    /// Of `blob`; the store is asked only if that is elsewhere.
    pub fn new(blob: Arc<dyn Blob>, store: &Store) -> Result<Self, BlobError> {
        let is_worth_keeping = blob.is_remote() && blob.is_named_by_its_bytes();
        let copy = match is_worth_keeping && (WORTH_BYTES..=SIZE_LIMIT).contains(&blob.size()) {
            true => PackedCopy::passing(store, &*blob),
            false => None,
        };
        Self::with(blob, copy)
    }

    fn with(blob: Arc<dyn Blob>, copy: Option<PackedCopy>) -> Result<Self, BlobError> {
        let whole = Stretch {
            bytes: 0..blob.size(),
            is_here: false,
        };
        let stretches = match &copy {
            Some(copy) => stretches(&copy.sealed_blocks(), blob.size()),
            None => vec![whole],
        };
        let here = stretches.iter().filter(|stretch| stretch.is_here);
        let here = here.map(|stretch| stretch.bytes.end - stretch.bytes.start);
        let mut resumed = Self {
            kept_bytes: here.sum(),
            stretches: stretches.into(),
            blob,
            copy,
            current: Current::Nothing,
            at: 0,
            keeping: Keeping::new(),
        };
        resumed.begin()?;
        Ok(resumed)
    }

    /// How many of its bytes seem to be here.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Begins with the next stretch, or a piece of it; `false` at the end.
    fn begin(&mut self) -> Result<bool, BlobError> {
        let Some(Stretch { mut bytes, is_here }) = self.stretches.pop_front() else {
            return Ok(false);
        };
        self.at = bytes.start;
        if let Some(copy) = self.copy.as_ref().filter(|_| is_here) {
            let end = bytes.end.min(bytes.start + PIECE_BYTES as u64);
            if end < bytes.end {
                let rest = Stretch {
                    bytes: end..bytes.end,
                    is_here,
                };
                self.stretches.push_front(rest);
                bytes.end = end;
            }
            let len = (bytes.end - bytes.start) as usize;
            if let Some(read) = copy.read(bytes.start, len, &Spare::default()) {
                self.current = Current::Here(io::Cursor::new(read));
                return Ok(true);
            }
        }
        self.current = Current::Coming {
            stream: self.blob.stream_of(bytes.clone())?,
            end: bytes.end,
        };
        Ok(true)
    }
}

impl Read for Resumed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = match &mut self.current {
                Current::Nothing => 0,
                Current::Here(bytes) => bytes.read(buffer)?,
                Current::Coming { stream, end } => {
                    let left = usize::try_from(*end - self.at).unwrap_or(usize::MAX);
                    let room = buffer.len().min(left);
                    let before = Instant::now();
                    let len = stream.read(&mut buffer[..room])?;
                    self.keeping.waited += before.elapsed();
                    if let Some(copy) = &self.copy {
                        self.keeping.take(copy, &buffer[..len], self.at, *end);
                    }
                    len
                }
            };
            self.at += len as u64;
            if len > 0 || buffer.is_empty() || !self.begin().map_err(io::Error::other)? {
                return Ok(len);
            }
        }
    }
}

impl Keeping {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            piece: Vec::new(),
            piece_at: None,
            waited: Duration::ZERO,
            spent: Duration::ZERO,
            has_failed: false,
        }
    }

    /// Whether the network lets us wait long enough.
    fn is_cheap(&self) -> bool {
        self.spent * SHARE_OF_WAITING <= self.waited
            && self.waited * SHARE_OF_ALL >= self.began.elapsed()
    }

    /// Takes what came for `at`, of a stretch that ends at `end`, and writes each piece that is whole.
    fn take(&mut self, copy: &PackedCopy, mut bytes: &[u8], mut at: u64, end: u64) {
        while !bytes.is_empty() && !self.has_failed {
            let piece_end = (at / PIECE_BYTES as u64 + 1) * PIECE_BYTES as u64;
            let piece_end = piece_end.min(end);
            let (now, later) = bytes.split_at(bytes.len().min((piece_end - at) as usize));
            // Stretches begin where a block does, and so does each piece of one.
            if at.is_multiple_of(BLOCK_BYTES) && self.piece.is_empty() {
                self.piece_at = self.is_cheap().then_some(at);
            }
            if let Some(piece_at) = self.piece_at {
                self.piece.extend_from_slice(now);
                if at + now.len() as u64 == piece_end {
                    self.write(copy, piece_at);
                }
            }
            at += now.len() as u64;
            bytes = later;
        }
    }

    fn write(&mut self, copy: &PackedCopy, at: u64) {
        let before = Instant::now();
        if let Err(error) = copy.write(&self.piece, at) {
            tracing::debug!(%error, "what comes is not kept");
            self.has_failed = true;
        }
        self.spent += before.elapsed();
        self.piece.clear();
        self.piece_at = None;
    }
}

/// A blob of `size` bytes in stretches; `is_here` tells of each of its blocks. Stretches are used that begin or end the blob, or are
/// worth a request.
fn stretches(is_here: &[bool], size: u64) -> Vec<Stretch> {
    let blocks = blocks_of(&(0..size)).end;
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut start = 0;
    for run in is_here.chunk_by(|one, next| one == next) {
        let len = run.len() as u64;
        let end = start + len;
        let is_here = run[0] && (start == 0 || end == blocks || len * BLOCK_BYTES >= WORTH_BYTES);
        let until = (end * BLOCK_BYTES).min(size);
        match stretches.last_mut() {
            Some(last) if last.is_here == is_here => last.bytes.end = until,
            _ => stretches.push(Stretch {
                bytes: start * BLOCK_BYTES..until,
                is_here,
            }),
        }
        start = end;
    }
    stretches
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::{Buf, Bytes};
    use parking_lot::Mutex;

    use super::*;
    use crate::digest::Digest;
    use crate::extent::PackedOffset;

    const SIZE: u64 = (20 << 20) + 77;

    /// A blob elsewhere that remembers what it was asked for.
    struct Asked(Bytes, Mutex<Vec<Range<u64>>>);

    impl Asked {
        fn new() -> Arc<Self> {
            let noise = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            let content: Vec<u8> = (0..SIZE).map(noise).collect();
            Arc::new(Self(content.into(), Mutex::default()))
        }

        /// From where to where since the last time.
        fn asked(&self) -> Vec<(u64, u64)> {
            let asked = std::mem::take(&mut *self.1.lock());
            asked.iter().map(|range| (range.start, range.end)).collect()
        }
    }

    impl Blob for Asked {
        fn digest(&self) -> Digest {
            Digest::of(b"")
        }

        fn size(&self) -> u64 {
            SIZE
        }

        fn read(&self, _: PackedOffset, _: usize, _: Instant) -> Result<Bytes, BlobError> {
            unimplemented!("not asked for here")
        }

        fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
            self.1.lock().push(range.clone());
            let bytes = self.0.slice(range.start as usize..range.end as usize);
            Ok(Box::new(bytes.reader()))
        }

        fn is_remote(&self) -> bool {
            true
        }
    }

    /// A try, over a network that was waited for long.
    fn begun(blob: &Arc<Asked>, copy: &PackedCopy) -> Resumed {
        let mut resumed = Resumed::with(blob.clone(), Some(copy.again())).unwrap();
        resumed.keeping.waited = Duration::from_secs(3600);
        resumed
    }

    fn read(resumed: &mut Resumed, bytes: u64) -> Vec<u8> {
        let mut read = Vec::new();
        // In pieces of no round length.
        let mut piece = vec![0; 70_001];
        while (read.len() as u64) < bytes {
            let left = (bytes - read.len() as u64).min(piece.len() as u64);
            match resumed.read(&mut piece[..left as usize]).unwrap() {
                0 => break,
                len => read.extend_from_slice(&piece[..len]),
            }
        }
        read
    }

    #[test]
    fn what_came_before_an_interruption_is_not_asked_for_again() {
        let (blob, copy) = (Asked::new(), PackedCopy::with_seals(SIZE));
        let interrupted = (10 << 20) + 5;
        assert!(read(&mut begun(&blob, &copy), interrupted) == blob.0[..interrupted as usize]);
        assert_eq!(blob.asked(), [(0, SIZE)]);
        let mut again = begun(&blob, &copy);
        assert_eq!(again.kept_bytes(), 10 << 20);
        assert!(read(&mut again, u64::MAX) == blob.0);
        assert_eq!(blob.asked(), [(10 << 20, SIZE)]);
        let mut all = begun(&blob, &copy);
        assert_eq!(all.kept_bytes(), SIZE);
        assert!(read(&mut all, u64::MAX) == blob.0);
        assert_eq!(blob.asked(), []);
    }

    #[test]
    fn what_was_damaged_meanwhile_is_asked_for() {
        let (blob, copy) = (Asked::new(), PackedCopy::with_seals(SIZE));
        read(&mut begun(&blob, &copy), u64::MAX);
        blob.asked();
        copy.damage((3 << 20) + 9);
        copy.damage(SIZE - 1);
        assert!(read(&mut begun(&blob, &copy), u64::MAX) == blob.0);
        assert_eq!(blob.asked(), [(3 << 20, 4 << 20), (20 << 20, SIZE)]);
        assert!(read(&mut begun(&blob, &copy), u64::MAX) == blob.0);
        assert_eq!(blob.asked(), []);
    }

    #[test]
    fn nothing_is_kept_where_that_takes_longer_than_the_network() {
        let (blob, copy) = (Asked::new(), PackedCopy::with_seals(SIZE));
        let mut fast = Resumed::with(blob.clone(), Some(copy.again())).unwrap();
        fast.keeping.spent = Duration::from_secs(3600);
        assert!(read(&mut fast, u64::MAX) == blob.0);
        assert!(copy.sealed_blocks().iter().all(|is_here| !is_here));
        let mut slow = begun(&blob, &copy);
        slow.keeping.spent = slow.keeping.waited / (SHARE_OF_WAITING + 1);
        read(&mut slow, u64::MAX);
        assert!(copy.sealed_blocks().iter().all(|&is_here| is_here));
    }

    #[test]
    fn stretches_follow_the_blocks_that_are_here() {
        let worth = (WORTH_BYTES / BLOCK_BYTES) as usize;
        let size = |blocks: usize| blocks as u64 * BLOCK_BYTES;
        let told = |is_here: &[bool], size| {
            let all = stretches(is_here, size);
            let all = all.into_iter();
            all.map(|stretch| (stretch.bytes, stretch.is_here))
                .collect::<Vec<_>>()
        };
        let run = |here: bool, len: usize| vec![here; len];
        assert_eq!(told(&[], 0), []);
        assert_eq!(told(&[true], 5), [(0..5, true)]);
        assert_eq!(
            told(&[false, false], size(2) - 1),
            [(0..size(2) - 1, false)]
        );
        let short = [run(false, 2), run(true, worth - 1), run(false, 1)].concat();
        assert_eq!(
            told(&short, size(short.len())),
            [(0..size(short.len()), false)]
        );
        let long = [
            run(true, 1),
            run(false, 2),
            run(true, worth),
            run(false, 1),
            run(true, 1),
        ]
        .concat();
        assert_eq!(
            told(&long, size(long.len())),
            [
                (0..size(1), true),
                (size(1)..size(3), false),
                (size(3)..size(3 + worth), true),
                (size(3 + worth)..size(4 + worth), false),
                (size(4 + worth)..size(5 + worth), true),
            ]
        );
    }
}
