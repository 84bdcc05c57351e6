//! The store's copy of a seekable blob: sparse, at the blob's own offsets, written by anybody who has the image open.
//!
//! Of most layers every chunk has a digest, and what the copy holds is checked by that whenever it is read. For those that
//! have none, *seals* stand behind the blob's end: 16 bytes of BLAKE3 for each block, written after it. So a hole, a block that
//! was torn by a crash and a flipped bit are found there, too. Who writes on purpose can write seals as well, so such a copy is
//! taken only from directories in which nobody but the user, or somebody the user trusts, can write.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::blocks::{BLOCK_BYTES, blocks_of};
use super::spare::Spare;
use crate::blob::Blob;
use crate::scratch::Scratch;
use crate::store::Store;
use crate::sys::disk::{begin_reading, holes, stored_bytes};

/// So many bytes of zeros are taken for a hole: nearly no packed bytes look like that, and those that do are only
/// fetched again.
const SAMPLE_BYTES: usize = 64;

const SEAL_BYTES: usize = 16;

/// A block's bytes by their hash, and its number, so that one block is not taken for another.
type Seal = [u8; SEAL_BYTES];

/// What no block has: nothing was written there.
const NO_SEAL: Seal = [0; SEAL_BYTES];

/// The packed bytes of one blob that are here.
pub struct PackedCopy {
    file: File,
    /// The blob's size.
    size: u64,
    /// Where the seals begin, if it has any.
    seals_at: Option<u64>,
}

impl PackedCopy {
    /// The store's copy of a blob whose chunks have digests.
    pub fn of(store: &Store, blob: &dyn Blob) -> io::Result<Self> {
        let file = store.packed(blob.digest(), blob.size())?;
        Ok(Self::plain(file, blob.size()))
    }

    /// The store's copy of a blob whose chunks have none.
    pub fn sealed(store: &Store, blob: &dyn Blob) -> io::Result<Self> {
        let size = blob.size();
        let (seals_at, len) = sealed_len(size)?;
        Ok(Self {
            file: store.packed_by_trusted(blob.digest(), len)?,
            size,
            seals_at: Some(seals_at),
        })
    }

    /// The store's copy of a blob that is streamed, for as long as that takes: `None` where none can be kept, or where it
    /// would keep room from what becomes of it.
    pub(super) fn passing(store: &Store, blob: &dyn Blob) -> Option<Self> {
        let size = blob.size();
        let (seals_at, len) = sealed_len(size).ok()?;
        let file = store.passing_packed(blob.digest(), len)?;
        Some(Self {
            file,
            size,
            seals_at: Some(seals_at),
        })
    }

    pub(super) fn plain(file: File, size: u64) -> Self {
        Self {
            file,
            size,
            seals_at: None,
        }
    }

    /// The same file, as another process has it.
    #[cfg(test)]
    pub(super) fn again(&self) -> Self {
        Self {
            file: self.file.try_clone().unwrap(),
            ..*self
        }
    }

    /// One with seals that nobody else has.
    #[cfg(test)]
    pub(super) fn with_seals(size: u64) -> Self {
        let (seals_at, len) = sealed_len(size).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Self {
            file,
            size,
            seals_at: Some(seals_at),
        }
    }

    /// Changes a byte, behind the seals' back.
    #[cfg(test)]
    pub(super) fn damage(&self, at: u64) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, at).unwrap();
        self.file.write_all_at(&[!byte[0]], at).unwrap();
    }

    /// Where the block begins in which a byte at `at` is kept: what is to be kept of a range begins there.
    pub fn block_start(at: u64) -> u64 {
        at - at % BLOCK_BYTES
    }

    /// Keeps the end of the blob, which came for another reason: from the start of a block on, all that there is.
    pub fn keep_end(&self, bytes: &[u8]) -> io::Result<()> {
        match self.size.checked_sub(bytes.len() as u64) {
            Some(at) if at % BLOCK_BYTES == 0 => self.write(bytes, at),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Writes blocks that came: whole ones from a block's start on, the blob's last one perhaps shorter.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        let Some(seals_at) = self.seals_at else {
            return Ok(());
        };
        let first = at / BLOCK_BYTES;
        let blocks = bytes.chunks(BLOCK_BYTES as usize);
        let seals: Vec<u8> = (first..)
            .zip(blocks)
            .flat_map(|(block, bytes)| seal(block, bytes))
            .collect();
        self.file
            .write_all_at(&seals, seals_at + first * SEAL_BYTES as u64)
    }

    /// The bytes from `at` on, those in `spare` from there; `None` where they are known not to be right.
    pub(super) fn read(&self, at: u64, len: usize, spare: &Spare) -> Option<Scratch> {
        if self.seals_at.is_some() {
            return self.unsealed(at, len, spare);
        }
        let mut bytes = Scratch::of(len);
        self.file.read_exact_at(&mut bytes, at).ok()?;
        spare.overlay(&mut bytes, at);
        Some(bytes)
    }

    /// The same, after a look at the seals of all blocks that have a byte in it.
    fn unsealed(&self, at: u64, len: usize, spare: &Spare) -> Option<Scratch> {
        let end = at.checked_add(len as u64).filter(|&end| end <= self.size)?;
        let blocks = blocks_of(&(at..end));
        let start = blocks.start * BLOCK_BYTES;
        let until = (blocks.end * BLOCK_BYTES).min(self.size);
        let mut bytes = vec![0; (until - start) as usize];
        self.file.read_exact_at(&mut bytes, start).ok()?;
        spare.overlay(&mut bytes, start);
        let seals = self.seals(&blocks)?;
        let pieces = bytes.chunks(BLOCK_BYTES as usize);
        let is_right = |((block, piece), expected): ((u64, &[u8]), &Seal)| {
            (*expected != NO_SEAL && seal(block, piece) == *expected) || spare.has(block)
        };
        blocks.zip(pieces).zip(&seals).all(is_right).then(|| {
            bytes.truncate((end - start) as usize);
            bytes.drain(..(at - start) as usize);
            bytes.into()
        })
    }

    fn seals(&self, blocks: &Range<u64>) -> Option<Vec<Seal>> {
        let mut bytes = vec![0; (blocks.end - blocks.start) as usize * SEAL_BYTES];
        let at = self.seals_at? + blocks.start * SEAL_BYTES as u64;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        let (seals, _) = bytes.as_chunks();
        Some(seals.to_vec())
    }

    /// For each block of a copy with seals whether it was written. Reading it tells whether it is right.
    pub(super) fn sealed_blocks(&self) -> Vec<bool> {
        let blocks = blocks_of(&(0..self.size));
        let seals = self.seals(&blocks).unwrap_or_default();
        seals.iter().map(|seal| *seal != NO_SEAL).collect()
    }

    /// Whether all zeros are bytes that were fetched, and no hole.
    pub(super) fn knows_zeros(&self) -> bool {
        self.seals_at.is_some()
    }

    /// Whether the block is here, by its seal.
    pub(super) fn has(&self, block: u64) -> bool {
        let start = block * BLOCK_BYTES;
        let len = self.size.saturating_sub(start).min(BLOCK_BYTES) as usize;
        self.unsealed(start, len, &Spare::default()).is_some()
    }

    /// What is here of these bytes will be read soon.
    pub(super) fn announce(&self, bytes: &Range<u64>) {
        begin_reading(&self.file, bytes);
    }

    /// Whether something seems to be here from `at` on. What is written begins at such a place and reaches to the end of its block,
    /// or of what is of use in it.
    pub(super) fn has_bytes_at(&self, at: u64) -> bool {
        let mut sample = [0; SAMPLE_BYTES];
        let len = self.size.saturating_sub(at).min(SAMPLE_BYTES as u64) as usize;
        let read = self.file.read_exact_at(&mut sample[..len], at);
        read.is_ok() && !is_hole(&sample)
    }

    /// How many of the blob's bytes are here, as the disk counts them: one question, however long it is.
    pub(super) fn stored_bytes(&self) -> u64 {
        stored_bytes(&self.file).min(self.size)
    }

    /// The blocks of which something may be missing, in order: all others were written, as their seals or the file system say, and no
    /// block is read to find that out. Where a file system keeps more than a block together, such as a record of ZFS, a
    /// block that is missing beside one that is here can be passed over: this is for telling people, not for readers.
    pub(super) fn doubtful_blocks(&self) -> Vec<u64> {
        if self.seals_at.is_some() {
            let blocks = (0..).zip(self.sealed_blocks());
            let unsealed = blocks.filter(|(_, is_written)| !is_written);
            return unsealed.map(|(block, _)| block).collect();
        }
        let all = 0..self.size;
        let holes = holes(&self.file, self.size);
        let holes = holes.as_deref().unwrap_or(std::slice::from_ref(&all));
        let mut doubtful: Vec<u64> = holes.iter().flat_map(blocks_of).collect();
        doubtful.dedup();
        doubtful
    }
}

/// Whether bytes look like those of a hole.
pub(super) fn is_hole(bytes: &[u8]) -> bool {
    bytes.iter().take(SAMPLE_BYTES).all(|&byte| byte == 0)
}

/// Where the seals of a blob of this size begin, and where they end.
fn sealed_len(size: u64) -> io::Result<(u64, u64)> {
    let seals_at = size.checked_next_multiple_of(BLOCK_BYTES);
    let end = seals_at.and_then(|at| at.checked_add(at / BLOCK_BYTES * SEAL_BYTES as u64));
    seals_at.zip(end).ok_or(io::ErrorKind::FileTooLarge.into())
}

fn seal(block: u64, bytes: &[u8]) -> Seal {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&block.to_le_bytes()).update(bytes);
    let (seal, _) = hasher
        .finalize()
        .as_bytes()
        .split_first_chunk()
        .map(|(seal, rest)| (*seal, rest.len()))
        .expect("a hash is longer than a seal");
    seal
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 * BLOCK_BYTES + 1000;

    fn copy() -> PackedCopy {
        PackedCopy::with_seals(SIZE)
    }

    fn read(copy: &PackedCopy, at: u64, len: usize) -> Option<Vec<u8>> {
        copy.read(at, len, &Spare::default())
            .map(|bytes| bytes.to_vec())
    }

    #[test]
    fn what_was_written_is_there_and_zeros_are_too() {
        let copy = copy();
        assert!((0..4).all(|block| !copy.has(block)));
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at / 1000 % 7) as u8).collect();
        copy.write(&bytes[..2 * BLOCK_BYTES as usize], 0).unwrap();
        copy.write(&bytes[3 * BLOCK_BYTES as usize..], 3 * BLOCK_BYTES)
            .unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|block| copy.has(block)),
            [true, true, false, true]
        );
        assert_eq!(read(&copy, 500, 100_000).unwrap(), bytes[500..100_500]);
        let last = SIZE - 10;
        assert_eq!(read(&copy, last, 10).unwrap(), bytes[last as usize..]);
        assert_eq!(read(&copy, 2 * BLOCK_BYTES - 1, 2), None);
        copy.write(&vec![0; BLOCK_BYTES as usize], 2 * BLOCK_BYTES)
            .unwrap();
        let zeros = read(&copy, 2 * BLOCK_BYTES, BLOCK_BYTES as usize).unwrap();
        assert!(zeros.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_torn_block_a_flipped_bit_and_a_moved_block_are_not_there() {
        let copy = copy();
        let block = vec![5; BLOCK_BYTES as usize];
        for at in [0, BLOCK_BYTES, 2 * BLOCK_BYTES] {
            copy.write(&block, at).unwrap();
        }
        copy.file.write_all_at(&[0; 4096], 8192).unwrap();
        copy.file.write_all_at(&[4], BLOCK_BYTES + 77).unwrap();
        let seals_at = copy.seals_at.unwrap();
        let mut seal = NO_SEAL;
        copy.file.read_exact_at(&mut seal, seals_at).unwrap();
        copy.file.write_all_at(&seal, seals_at + 32).unwrap();
        assert_eq!([0, 1, 2].map(|block| copy.has(block)), [false; 3]);
        assert_eq!(read(&copy, 0, 1), None);
    }

    #[test]
    fn what_only_memory_has_is_there() {
        let copy = copy();
        let spare = Spare::default();
        spare.keep(1, &vec![9; BLOCK_BYTES as usize]);
        let bytes = copy.read(BLOCK_BYTES + 5, 10, &spare).unwrap();
        assert_eq!(*bytes, [9; 10]);
        assert_eq!(copy.read(BLOCK_BYTES - 1, 2, &spare), None);
    }

    #[test]
    fn a_size_that_no_file_has_is_refused() {
        assert!(sealed_len(u64::MAX).is_err());
        assert!(sealed_len(u64::MAX - BLOCK_BYTES).is_err());
        assert_eq!(sealed_len(0).unwrap(), (0, 0));
    }
}
