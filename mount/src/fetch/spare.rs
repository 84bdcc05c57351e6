//! Blocks that came and could not be written, because the store is full or read-only: reads go on from memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::blocks::BLOCK_BYTES;

/// Blocks of one blob in memory at most.
const BLOCKS_LIMIT: usize = ((32 << 20) / BLOCK_BYTES) as usize;

/// Blocks by their numbers, the oldest first.
#[derive(Default)]
pub(super) struct Spare {
    blocks: Mutex<VecDeque<(u64, Bytes)>>,
    /// Nearly always false, and then nobody takes the lock.
    exist: AtomicBool,
}

impl Spare {
    /// Keeps blocks from number `first` on; gives those that had to go for them.
    pub fn keep(&self, first: u64, bytes: &[u8]) -> Vec<u64> {
        let mut blocks = self.blocks.lock();
        let pieces = bytes.chunks(BLOCK_BYTES as usize);
        for (block, piece) in (first..).zip(pieces) {
            blocks.retain(|(other, _)| *other != block);
            blocks.push_back((block, Bytes::copy_from_slice(piece)));
        }
        self.exist.store(true, Ordering::Release);
        let excess = blocks.len().saturating_sub(BLOCKS_LIMIT);
        blocks.drain(..excess).map(|(block, _)| block).collect()
    }

    /// Whether it has this block.
    pub fn has(&self, block: u64) -> bool {
        self.exist.load(Ordering::Acquire)
            && self.blocks.lock().iter().any(|(kept, _)| *kept == block)
    }

    /// Drops these blocks.
    pub fn forget(&self, wrong: &Range<u64>) {
        self.blocks
            .lock()
            .retain(|(block, _)| !wrong.contains(block));
    }

    /// Puts the blocks over `packed`, the bytes of the blob from `at` on.
    pub fn overlay(&self, packed: &mut [u8], at: u64) {
        if !self.exist.load(Ordering::Acquire) {
            return;
        }
        let end = at + packed.len() as u64;
        for (block, bytes) in self.blocks.lock().iter() {
            let start = block * BLOCK_BYTES;
            let both = start.max(at)..(start + bytes.len() as u64).min(end);
            if !both.is_empty() {
                let from = &bytes[(both.start - start) as usize..(both.end - start) as usize];
                packed[(both.start - at) as usize..(both.end - at) as usize].copy_from_slice(from);
            }
        }
    }
}
