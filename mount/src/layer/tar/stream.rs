//! The stream's bytes through one buffer: borrowed as data, or moved into the literal.

use std::io::{self, Read};

use super::TarError;
use super::header::{BLOCK_BYTES, Block};
use crate::extent::PlainOffset;

/// Large enough that a read of the stream and its bookkeeping cost nothing beside the copy, small
/// enough to stay in a core's second-level cache until the caller has used the bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// Literal bytes between two takes at most. Headers and attributes of one member need a few
/// megabytes; what exceeds this is a member that no image shows, or padding without end.
pub const LITERAL_LIMIT: u64 = 64 << 20;

/// A reader that knows where in the stream it is and what it did not hand out as data.
pub struct Stream<R> {
    source: R,
    buffer: Box<[u8]>,
    /// `buffer[from..to]` was read and not used yet.
    from: usize,
    to: usize,
    /// Place of `buffer[from]` in the stream.
    at: u64,
    has_ended: bool,
    literal: Vec<u8>,
}

impl<R: Read> Stream<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            from: 0,
            to: 0,
            at: 0,
            has_ended: false,
            literal: Vec::new(),
        }
    }

    /// Where the next byte lies.
    pub fn at(&self) -> PlainOffset {
        PlainOffset(self.at)
    }

    pub fn take_literal(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.literal)
    }

    /// The next block without taking it; shorter only if the stream ends before its end.
    pub fn peek(&mut self) -> Result<&[u8], TarError> {
        self.fill(BLOCK_BYTES)?;
        let end = self.to.min(self.from + BLOCK_BYTES);
        Ok(&self.buffer[self.from..end])
    }

    /// The next block, which becomes literal; `None` at the end of the stream.
    pub fn block(&mut self) -> Result<Option<Block>, TarError> {
        if self.peek()?.is_empty() {
            return Ok(None);
        }
        let block = self.literal(BLOCK_BYTES as u64)?;
        Ok(Some(
            block.try_into().expect("a literal is as long as asked"),
        ))
    }

    /// The next `count` bytes, which become literal. Memory grows as they arrive.
    pub fn literal(&mut self, count: u64) -> Result<&[u8], TarError> {
        let start = self.literal.len();
        if count > LITERAL_LIMIT.saturating_sub(start as u64) {
            return Err(self.too_much_literal());
        }
        let mut left = count as usize;
        while left > 0 {
            let len = self.available(left)?;
            self.literal
                .extend_from_slice(&self.buffer[self.from..self.from + len]);
            self.consume(len);
            left -= len;
        }
        Ok(&self.literal[start..])
    }

    /// Everything up to the end of the stream, which becomes literal.
    pub fn literal_rest(&mut self) -> Result<(), TarError> {
        loop {
            self.fill(1)?;
            if self.from == self.to {
                return Ok(());
            }
            self.literal((self.to - self.from) as u64)?;
        }
    }

    /// The next stretch of data: at least one byte, at most `limit`, which is not 0.
    pub fn data(&mut self, limit: u64) -> Result<&[u8], TarError> {
        let len = self.available(usize::try_from(limit).unwrap_or(usize::MAX))?;
        let start = self.from;
        self.consume(len);
        Ok(&self.buffer[start..start + len])
    }

    /// An error at the next byte.
    pub fn malformed(&self, problem: impl Into<String>) -> TarError {
        TarError::Malformed {
            at: self.at(),
            problem: problem.into(),
        }
    }

    fn too_much_literal(&self) -> TarError {
        let limit = LITERAL_LIMIT >> 20;
        self.malformed(format!("more than {limit} MiB that belong to no file"))
    }

    /// How many of `wanted` bytes the buffer holds, after reading if it was empty; at least one.
    fn available(&mut self, wanted: usize) -> Result<usize, TarError> {
        self.fill(1)?;
        match wanted.min(self.to - self.from) {
            0 => Err(TarError::Truncated { at: self.at() }),
            len => Ok(len),
        }
    }

    fn consume(&mut self, len: usize) {
        self.from += len;
        self.at += len as u64;
    }

    /// Reads until the buffer holds `wanted` bytes, which fit in it, or the stream ends.
    fn fill(&mut self, wanted: usize) -> Result<(), TarError> {
        if self.to - self.from >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        while self.to < wanted && !self.has_ended {
            match self.source.read(&mut self.buffer[self.to..]) {
                Ok(len) => {
                    self.to += len;
                    self.has_ended = len == 0;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let at = PlainOffset(self.at + self.to as u64);
                    return Err(TarError::Read { at, source });
                }
            }
        }
        Ok(())
    }
}
