//! In which order contents are stored, and which tails share a block.
//!
//! Both depend on the image alone, never on what a store holds of it: the order is that of the layers' entries, and
//! tails are bundled as a layer that is streamed bundles them, so that its chunks can be copied.

use std::io;

use bytes::Bytes;
use sifon_mount::extent::CHUNK_BYTES;

/// Plain bytes of a block: what mksquashfs and the kernel take for granted, and what native layers are cut into.
pub const BLOCK_BYTES: usize = CHUNK_BYTES;

/// Bytes of a file of this size after its last whole block.
pub fn tail_len(size: u64) -> usize {
    (size % BLOCK_BYTES as u64) as usize
}

/// A file that has bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sized {
    /// As [`Content::InImage`](super::node::Content::InImage) has it.
    pub file: u64,
    /// More than none.
    pub size: u64,
}

/// A file in the order of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its place in the list that the layout was asked for.
    pub index: usize,
    /// Whose block its tail shares: a number that rises along the order. `None` without a tail.
    pub bundle: Option<u32>,
}

/// The order of storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Every file once.
    pub order: Vec<Placed>,
    /// For each bundle, whether all files that a layer has in it are among those asked for.
    pub is_whole: Vec<bool>,
}

/// Fills bundles one after another as a streamed layer does: a tail that no longer fits begins the next.
#[derive(Debug)]
pub struct Bundler {
    next: u32,
    filled: usize,
}

impl Bundler {
    /// The first bundle will have the number `next`.
    pub fn from(next: u32) -> Self {
        Self { next, filled: 0 }
    }

    /// The bundle that the tail of the next file lies in; `None` if it has none.
    pub fn bundle_of(&mut self, size: u64) -> Option<u32> {
        let tail = tail_len(size);
        if tail == 0 {
            return None;
        }
        if self.filled == 0 || self.filled + tail > BLOCK_BYTES {
            self.next += 1;
            self.filled = 0;
        }
        self.filled += tail;
        Some(self.next - 1)
    }

    /// How many bundles there are now, those before the first counted in.
    pub fn count(&self) -> u32 {
        self.next
    }
}

impl Layout {
    /// Files in the order in which they are given.
    pub fn in_order(files: &[Sized]) -> Self {
        let mut bundler = Bundler::from(0);
        let order = files
            .iter()
            .enumerate()
            .map(|(index, file)| Placed {
                index,
                bundle: bundler.bundle_of(file.size),
            })
            .collect();
        Self {
            order,
            is_whole: vec![true; bundler.count() as usize],
        }
    }
}

/// The tail of a file: the bytes after its last whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// As [`Content::InImage`](super::node::Content::InImage) has it.
    pub file: u64,
    /// Where it begins.
    pub at: u64,
    /// At least one byte, less than a block.
    pub len: usize,
}

/// Bytes that are stored together, in the form in which the image has them.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The bytes.
    pub plain: Bytes,
    /// The same bytes as the default compression packs them, where that is known.
    pub packing: Option<Packing>,
}

/// Bytes packed with the default compression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// What they become, unless they do not shrink.
    pub compressed: Option<Bytes>,
    /// What that hashes to, or the bytes themselves.
    pub digest: blake3::Hash,
}

impl Stored {
    /// Bytes of which nothing else is known.
    pub fn plain(plain: impl Into<Bytes>) -> Self {
        Self {
            plain: plain.into(),
            packing: None,
        }
    }

    /// Exactly `len` bytes that `read` gets from an offset, or as many as it has there at once.
    pub fn read(
        len: usize,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Self> {
        let mut plain = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match read(filled as u64, &mut plain[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => filled += more,
            }
        }
        Ok(Self::plain(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_fill_bundles_in_turn() {
        let block = BLOCK_BYTES as u64;
        let sizes = [1, block, 3 * block + 5, block - 6, 1, block - 1];
        let files: Vec<_> = sizes.map(|size| Sized { file: 0, size }).into();
        let layout = Layout::in_order(&files);
        let bundles: Vec<_> = layout.order.iter().map(|placed| placed.bundle).collect();
        assert_eq!(bundles, [Some(0), None, Some(0), Some(0), Some(1), Some(1)]);
        assert_eq!(layout.is_whole, [true, true]);
    }

    #[test]
    fn a_content_that_ends_early_is_an_error() {
        let short = |at: u64, into: &mut [u8]| Ok(into.len().min(3 - at as usize).min(2));
        assert_eq!(Stored::read(3, short).unwrap().plain, vec![0; 3]);
        assert!(Stored::read(4, short).is_err());
    }
}
