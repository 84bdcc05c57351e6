//! The part of a file from some byte on, written from its beginning to its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sifon_mount::sys::disk::begin_writing;

/// Bytes that are gathered before they go to the file.
const BUFFER_BYTES: usize = 1 << 20;

/// So many bytes are enough for the disk to begin with.
const WRITEBACK_BYTES: u64 = 32 << 20;

/// Where a squashfs grows. Positions count from its first byte.
pub(super) struct Output<'a> {
    file: &'a File,
    start: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    /// What is before it is on its way to the disk.
    sent: u64,
}

impl<'a> Output<'a> {
    /// Grows from byte `start` of `file` on, and there from `position` on: what is before comes last.
    pub fn new(file: &'a File, start: u64, position: u64) -> Self {
        Self {
            file,
            start,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffer_at: position,
            sent: position,
        }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes back what was written from `position` on.
    pub fn rewind(&mut self, position: u64) {
        match position.checked_sub(self.buffer_at) {
            Some(kept) => self.buffer.truncate(kept as usize),
            None => {
                self.buffer.clear();
                self.buffer_at = position;
                self.sent = self.sent.min(position);
            }
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_all_at(&self.buffer, self.start + self.buffer_at)?;
        self.buffer_at += self.buffer.len() as u64;
        self.buffer.clear();
        if self.buffer_at - self.sent >= WRITEBACK_BYTES {
            // The file is synced at its end: the disk need not wait until then.
            begin_writing(
                self.file,
                self.start + self.sent..self.start + self.buffer_at,
            );
            self.sent = self.buffer_at;
        }
        Ok(())
    }

    /// Writes bytes at a place that was passed before.
    pub fn write_before(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.start + position)
    }
}
