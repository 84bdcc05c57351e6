//! Memory for pieces of work, used again and again: fresh memory costs the kernel as much time as inflating a fifth of what is
//! written into it, and what was used last is still in the processor's cache.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use parking_lot::Mutex;

/// From this size on memory that is given back goes to the kernel at once, see
/// [`keep_no_large_blocks`](crate::sys::memory::keep_no_large_blocks); smaller pieces are the allocator's business, but for blocks.
const LARGE_BYTES: usize = 1 << 20;

/// The room of a block, which is what chunks have that are packed as squashfs packs them, plain and packed.
const BLOCK_BYTES: usize = 128 << 10;

/// What has less is no block: it may be kept for long, and would keep the room of one.
const FEW_BYTES: usize = BLOCK_BYTES / 2;

/// So much lies ready at most: of large pieces, and of blocks, of which each thread that reads needs two at a time.
const LARGE_KEPT_BYTES: usize = 16 << 20;
const BLOCKS_KEPT: usize = 32;

static READY: Mutex<Ready> = Mutex::new(Ready {
    large: Vec::new(),
    bytes: 0,
    blocks: Vec::new(),
});

struct Ready {
    large: Vec<Vec<u8>>,
    /// Of the large pieces.
    bytes: usize,
    /// The one that was used last is the last.
    blocks: Vec<Vec<u8>>,
}

/// Bytes of which nobody knows what they were before, until they are written.
#[derive(Debug, PartialEq, Eq)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// `len` bytes.
    pub fn of(len: usize) -> Self {
        let mut bytes = ready(len).unwrap_or_default();
        match bytes.capacity() < len {
            // The kernel has zeros.
            true => bytes = vec![0; len],
            false => bytes.resize(len, 0),
        }
        Self(bytes)
    }

    /// None yet, but room for `len` bytes.
    pub fn with_room(len: usize) -> Vec<u8> {
        let mut bytes = ready(len).unwrap_or_default();
        bytes.clear();
        bytes.reserve_exact(len);
        bytes
    }
}

/// The memory that `len` bytes take in which chunks are decoded.
pub fn room_of(len: usize) -> usize {
    match len {
        FEW_BYTES..=BLOCK_BYTES => BLOCK_BYTES,
        len => len,
    }
}

/// One of those that lie ready that has room for `len` bytes, or a new block.
fn ready(len: usize) -> Option<Vec<u8>> {
    match len {
        LARGE_BYTES.. => large(len),
        FEW_BYTES..=BLOCK_BYTES => {
            let ready = READY.lock().blocks.pop();
            Some(ready.unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES)))
        }
        _ => None,
    }
}

/// One of the large ones, the smallest that has room for `len` bytes.
fn large(len: usize) -> Option<Vec<u8>> {
    let mut ready = READY.lock();
    let fitting = ready.large.iter().enumerate();
    let fitting = fitting.filter(|(_, piece)| piece.capacity() >= len);
    let (place, _) = fitting.min_by_key(|(_, piece)| piece.capacity())?;
    let piece = ready.large.swap_remove(place);
    ready.bytes -= piece.capacity();
    Some(piece)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.0);
        match piece.capacity() {
            BLOCK_BYTES => {
                let mut ready = READY.lock();
                if ready.blocks.len() < BLOCKS_KEPT {
                    ready.blocks.push(piece);
                }
            }
            room @ LARGE_BYTES.. => {
                let mut ready = READY.lock();
                if ready.bytes + room <= LARGE_KEPT_BYTES {
                    ready.bytes += room;
                    ready.large.push(piece);
                }
            }
            _ => {}
        }
    }
}

/// The memory lies ready again once nobody has the bytes any more.
impl From<Scratch> for Bytes {
    fn from(bytes: Scratch) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<Vec<u8>> for Scratch {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for Scratch {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_never_more_is_kept_than_is_said() {
        let sizes = [
            0,
            1,
            FEW_BYTES,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            LARGE_BYTES - 1,
            LARGE_BYTES,
            5 * LARGE_BYTES,
        ];
        for len in sizes {
            assert_eq!(Scratch::of(len).len(), len);
            let room = Scratch::with_room(len);
            assert!(room.is_empty() && room.capacity() >= len);
        }
        for len in [BLOCK_BYTES, LARGE_BYTES] {
            let many: Vec<_> = (0..100).map(|_| Bytes::from(Scratch::of(len))).collect();
            drop(many);
        }
        let ready = READY.lock();
        let counted: usize = ready.large.iter().map(Vec::capacity).sum();
        assert_eq!(counted, ready.bytes);
        assert!((LARGE_BYTES..=LARGE_KEPT_BYTES).contains(&ready.bytes));
        assert!((1..=BLOCKS_KEPT).contains(&ready.blocks.len()));
    }
}
