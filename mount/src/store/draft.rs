//! A file on its way into the store.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

/// A file that is being written. Without a name it vanishes with its last descriptor, kill -9 included; where the
/// file system knows no nameless files it has a temporary name, which goes when the draft is dropped.
#[derive(Debug)]
pub struct Draft {
    file: File,
    temporary: Option<PathBuf>,
    /// It may lie on another file system, so that it cannot get a name in the store.
    is_outside: bool,
}

impl Draft {
    pub(super) fn nameless(file: File) -> Self {
        Self {
            file,
            temporary: None,
            is_outside: false,
        }
    }

    pub(super) fn outside(file: File) -> Self {
        let mut draft = Self::nameless(file);
        draft.is_outside = true;
        draft
    }

    pub(super) fn named(file: File, temporary: PathBuf) -> Self {
        Self {
            file,
            temporary: Some(temporary),
            is_outside: false,
        }
    }

    /// Another descriptor of the same file.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(super) fn as_file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_outside(&self) -> bool {
        self.is_outside
    }

    pub(super) fn temporary(&self) -> Option<&PathBuf> {
        self.temporary.as_ref()
    }

    /// The file has got its final name, so nothing is to be removed.
    pub(super) fn keep(mut self) -> io::Result<File> {
        self.temporary = None;
        self.file.try_clone()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for Draft {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
