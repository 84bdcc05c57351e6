//! The checksum at the end of a table or a tree.
//!
//! Chunks are checked against digests that tables and trees name, so a flipped bit there would show wrong bytes as right
//! ones. XXH3 notices what disks and memory do; who may write on purpose is decided by the directory's owners. It
//! reads the whole file once, at opening.

use std::hash::Hasher as _;
use std::io::{self, Write};

use twox_hash::XxHash3_64;

use super::draft::Draft;
use crate::sys::Sealed;

const CHECKSUM_BYTES: usize = 8;

/// Writes to a draft what is to be checked when it is read.
pub struct CheckedDraft {
    draft: Draft,
    checksum: XxHash3_64,
}

impl CheckedDraft {
    pub(super) fn new(draft: Draft) -> Self {
        let checksum = XxHash3_64::new();
        Self { draft, checksum }
    }

    /// Adds the checksum of all that was written.
    pub(super) fn finish(mut self) -> io::Result<Draft> {
        let checksum = self.checksum.finish().to_le_bytes();
        self.draft.write_all(&checksum)?;
        Ok(self.draft)
    }
}

impl Write for CheckedDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.draft.write(bytes)?;
        self.checksum.write(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.draft.flush()
    }
}

/// What was written, if that is still what is there.
pub(super) fn checked(sealed: Sealed) -> Option<Sealed> {
    let (content, checksum) = sealed.split_last_chunk::<CHECKSUM_BYTES>()?;
    let is_right = XxHash3_64::oneshot(content) == u64::from_le_bytes(*checksum);
    is_right.then(|| sealed.without_last(CHECKSUM_BYTES))
}
