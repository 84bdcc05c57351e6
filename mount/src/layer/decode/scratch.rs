//! Memory for large pieces of work, used again and again: fresh memory costs the kernel as much time as inflating a fifth of what
//! is written into it.

use std::ops::{Deref, DerefMut};

use parking_lot::Mutex;

/// From this size on memory that is given back goes to the kernel at once, see
/// [`keep_no_large_blocks`](crate::sys::memory::keep_no_large_blocks); smaller pieces are the allocator's business.
const LARGE_BYTES: usize = 1 << 20;

/// So much lies ready at most.
const KEPT_BYTES: usize = 32 << 20;

static READY: Mutex<Ready> = Mutex::new(Ready {
    pieces: Vec::new(),
    bytes: 0,
});

struct Ready {
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

/// Bytes of which nobody knows what they were before, until they are written.
#[derive(Debug, PartialEq, Eq)]
pub struct Scratch(Vec<u8>);

impl Scratch {
    /// `len` bytes.
    pub fn of(len: usize) -> Self {
        let mut bytes = match len < LARGE_BYTES {
            true => Vec::new(),
            false => large(len).unwrap_or_default(),
        };
        match bytes.capacity() < len {
            // The kernel has zeros.
            true => bytes = vec![0; len],
            false => bytes.resize(len, 0),
        }
        Self(bytes)
    }
}

/// One of those that lie ready, the smallest that has room for `len` bytes.
fn large(len: usize) -> Option<Vec<u8>> {
    let mut ready = READY.lock();
    let fitting = ready.pieces.iter().enumerate();
    let fitting = fitting.filter(|(_, piece)| piece.capacity() >= len);
    let (place, _) = fitting.min_by_key(|(_, piece)| piece.capacity())?;
    let piece = ready.pieces.swap_remove(place);
    ready.bytes -= piece.capacity();
    Some(piece)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let piece = std::mem::take(&mut self.0);
        if piece.capacity() < LARGE_BYTES {
            return;
        }
        let mut ready = READY.lock();
        if ready.bytes + piece.capacity() <= KEPT_BYTES {
            ready.bytes += piece.capacity();
            ready.pieces.push(piece);
        }
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
        for len in [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 5 * LARGE_BYTES] {
            assert_eq!(Scratch::of(len).len(), len);
        }
        let many: Vec<_> = (0..100).map(|_| Scratch::of(LARGE_BYTES)).collect();
        drop(many);
        let ready = READY.lock();
        let counted: usize = ready.pieces.iter().map(Vec::capacity).sum();
        assert_eq!(counted, ready.bytes);
        assert!((LARGE_BYTES..=KEPT_BYTES).contains(&ready.bytes));
    }
}
