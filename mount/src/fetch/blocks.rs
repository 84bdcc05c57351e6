//! Which blocks of a blob's copy are there, and which are on their way.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is fetched and kept at once at least: an NFS client writes whole pages, and no page is larger.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;

/// The blocks that have a byte in `bytes`.
pub(super) fn blocks_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)
}

/// One request on its way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    is_urgent: AtomicBool,
}

impl Flight {
    /// A reader waits for it, whatever it was begun for.
    pub fn hurry(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
    }

    pub fn is_urgent(&self) -> bool {
        self.is_urgent.load(Ordering::Relaxed)
    }
}

/// What is known of a blob's blocks. Takes memory for those that were asked about only, however long the blob claims to be.
#[derive(Default)]
pub(super) struct Blocks {
    /// 64 blocks each: those that are known, and those of them that are there.
    words: HashMap<u64, Word>,
    flying: HashMap<u64, Arc<Flight>>,
}

#[derive(Clone, Copy, Default)]
struct Word {
    known: u64,
    present: u64,
}

impl Blocks {
    /// Whether the block is there; `None` if nobody has looked.
    pub fn is_present(&self, block: u64) -> Option<bool> {
        let word = self.words.get(&(block / 64))?;
        let bit = 1 << (block % 64);
        (word.known & bit != 0).then_some(word.present & bit != 0)
    }

    /// Those that are known not to be there, in no order.
    pub fn absent(&self) -> Vec<u64> {
        let words = self.words.iter();
        let absent = words.flat_map(|(number, word)| {
            let bits = (0..64).filter(|bit| word.known & !word.present & (1 << bit) != 0);
            bits.map(move |bit| number * 64 + bit)
        });
        absent.collect()
    }

    pub fn are_present(&self, blocks: &Range<u64>) -> bool {
        blocks
            .clone()
            .all(|block| self.is_present(block) == Some(true))
    }

    pub fn set(&mut self, block: u64, is_present: bool) {
        let word = self.words.entry(block / 64).or_default();
        let bit = 1 << (block % 64);
        word.known |= bit;
        match is_present {
            true => word.present |= bit,
            false => word.present &= !bit,
        }
    }

    /// Those that nobody has looked at.
    pub fn unknown(&self, blocks: &Range<u64>) -> Vec<u64> {
        blocks
            .clone()
            .filter(|&block| self.is_present(block).is_none())
            .collect()
    }

    /// The request that brings a block.
    pub fn flight(&self, block: u64) -> Option<&Arc<Flight>> {
        self.flying.get(&block)
    }

    fn is_wanted(&self, block: u64) -> bool {
        self.is_present(block) != Some(true) && !self.flying.contains_key(&block)
    }

    /// Whether a block of these is neither there nor on its way.
    pub fn lacks(&self, blocks: &Range<u64>) -> bool {
        blocks.clone().any(|block| self.is_wanted(block))
    }

    /// The first range of blocks in `within` that one request should bring: it begins and ends with blocks that are lacking,
    /// in its middle lie at most `gap` in a row that are there, and none that is on its way.
    pub fn planned(&self, within: &Range<u64>, gap: u64) -> Option<Range<u64>> {
        let start = within.clone().find(|&block| self.is_wanted(block))?;
        let mut end = start + 1;
        for block in start + 1..within.end {
            if self.flying.contains_key(&block) || block - end > gap {
                break;
            }
            if self.is_wanted(block) {
                end = block + 1;
            }
        }
        Some(start..end)
    }

    /// `flight` brings the blocks of these that are not there.
    pub fn take_off(&mut self, blocks: &Range<u64>, flight: &Arc<Flight>) {
        for block in blocks.clone() {
            if self.is_wanted(block) {
                self.flying.insert(block, Arc::clone(flight));
            }
        }
    }

    /// A block came.
    pub fn land(&mut self, block: u64) {
        self.flying.remove(&block);
        self.set(block, true);
    }

    /// What `flight` has not brought is not on its way any more.
    pub fn end(&mut self, blocks: &Range<u64>, flight: &Arc<Flight>) {
        for block in blocks.clone() {
            if self
                .flying
                .get(&block)
                .is_some_and(|other| Arc::ptr_eq(other, flight))
            {
                self.flying.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(present: &[u64], flying: &[u64]) -> Blocks {
        let mut blocks = Blocks::default();
        for block in 0..200 {
            blocks.set(block, present.contains(&block));
        }
        for &block in flying {
            blocks.take_off(&(block..block + 1), &Arc::default());
        }
        blocks
    }

    #[test]
    fn a_plan_closes_small_gaps_and_stops_at_large_ones_and_at_what_is_flying() {
        for (present, flying, within, gap, planned) in [
            (&[][..], &[][..], 0..8, 1, Some(0..8)),
            (&[0, 1, 7], &[], 0..8, 1, Some(2..7)),
            (&[3], &[], 0..8, 1, Some(0..8)),
            (&[3, 4], &[], 0..8, 1, Some(0..3)),
            (&[3, 4], &[], 0..8, 2, Some(0..8)),
            (&[], &[5], 0..8, 9, Some(0..5)),
            (&[], &[0, 1], 0..8, 9, Some(2..8)),
            (&[0, 1, 2], &[3], 0..4, 9, None),
            (&[], &[], 60..130, 0, Some(60..130)),
        ] {
            let blocks = blocks(present, flying);
            assert_eq!(
                blocks.planned(&within, gap),
                planned,
                "{present:?} {flying:?} {within:?}"
            );
        }
    }

    #[test]
    fn what_a_failed_flight_did_not_bring_is_lacking_again() {
        let mut blocks = blocks(&[], &[]);
        let flight = Arc::default();
        blocks.take_off(&(0..4), &flight);
        assert!(!blocks.lacks(&(0..4)));
        blocks.land(0);
        blocks.end(&(0..4), &flight);
        assert_eq!(blocks.planned(&(0..4), 0), Some(1..4));
        assert!(blocks.are_present(&(0..1)));
    }
}
