//! Bytes of a file that will never change again.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Deref;

use memmap2::{Mmap, MmapOptions};

/// The bytes of a sealed file: mapped, or read into memory where another machine could cut the file short.
pub struct Sealed {
    bytes: Bytes,
    /// How many of them count.
    len: usize,
}

enum Bytes {
    Mapped(Mmap),
    Memory(Vec<u8>),
}

impl Sealed {
    /// Maps `file`, which [`crate::store`] sealed: written under a temporary name, renamed when it was
    /// complete, mode 0444, never opened for writing again. On a network file system use
    /// [`Sealed::read`], because there a truncation by another machine would raise SIGBUS here. All of it is made present at
    /// once, since its checksum is looked at first: page by page that takes several times as long.
    pub fn map(file: &File) -> io::Result<Self> {
        // SAFETY: mapped bytes must not change, nor the file shrink (reads would raise SIGBUS). The
        // caller hands in a sealed file: nothing of ours opens it for writing, and its directory
        // belongs to the user or to one that the user trusts (the store checks that on opening).
        let mapped = unsafe { MmapOptions::new().populate().map(file) }?;
        let len = mapped.len();
        Ok(Self {
            bytes: Bytes::Mapped(mapped),
            len,
        })
    }

    /// Reads `file` whole.
    pub fn read(mut file: &File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(Self::in_memory(bytes))
    }

    /// Bytes that never were in a file, or are no longer needed there.
    pub fn in_memory(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self {
            bytes: Bytes::Memory(bytes),
            len,
        }
    }

    /// The same without its last `count` bytes, or empty if it has fewer.
    pub fn without_last(self, count: usize) -> Self {
        Self {
            len: self.len.saturating_sub(count),
            ..self
        }
    }
}

impl Deref for Sealed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(mapped) => &mapped[..self.len],
            Bytes::Memory(bytes) => &bytes[..self.len],
        }
    }
}
