//! The stream's bytes: data borrowed where the source has it, everything else copied into the literal.

use std::io::{self, BufRead};

use super::TarError;
use super::header::{BLOCK_BYTES, Block};
use crate::extent::PlainOffset;

/// Literal bytes between two takes at most. Headers and attributes of one member need a few
/// megabytes; what exceeds this is a member that no image shows, or padding without end.
pub const LITERAL_LIMIT: u64 = 64 << 20;

/// A reader that knows where in the stream it is and what it did not hand out as data.
pub struct Stream<R> {
    input: Input<R>,
    literal: Vec<u8>,
}

impl<R: BufRead> Stream<R> {
    pub fn new(source: R) -> Self {
        Self {
            input: Input {
                source,
                lent: 0,
                ahead: Vec::new(),
                ahead_used: 0,
                at: 0,
            },
            literal: Vec::new(),
        }
    }

    pub fn source(&self) -> &R {
        &self.input.source
    }

    pub fn into_source(self) -> R {
        self.input.source
    }

    /// Where the next byte lies.
    pub fn at(&self) -> PlainOffset {
        PlainOffset(self.input.at)
    }

    pub fn take_literal(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.literal)
    }

    /// The next block without taking it; shorter only if the stream ends before its end.
    pub fn peek(&mut self) -> Result<&[u8], TarError> {
        self.input.peek()
    }

    /// The next block, which becomes literal; `None` at the end of the stream.
    pub fn block(&mut self) -> Result<Option<Block>, TarError> {
        if self.input.is_at_end()? {
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
        let mut left = count;
        while left > 0 {
            let bytes = self.input.some(left)?;
            self.literal.extend_from_slice(bytes);
            left -= bytes.len() as u64;
        }
        Ok(&self.literal[start..])
    }

    /// The next `count` bytes, or those that there are before the stream ends; they become literal.
    pub fn literal_at_most(&mut self, count: u64) -> Result<(), TarError> {
        let mut left = count;
        while left > 0 && !self.input.is_at_end()? {
            let bytes = self.input.some(left)?;
            self.literal.extend_from_slice(bytes);
            left -= bytes.len() as u64;
        }
        Ok(())
    }

    /// Everything up to the end of the stream, which becomes literal.
    pub fn literal_rest(&mut self) -> Result<(), TarError> {
        while !self.input.is_at_end()? {
            if self.literal.len() as u64 == LITERAL_LIMIT {
                return Err(self.too_much_literal());
            }
            let room = LITERAL_LIMIT - self.literal.len() as u64;
            let bytes = self.input.some(room)?;
            self.literal.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The next stretch of data: at least one byte, at most `limit`, which is not 0.
    pub fn data(&mut self, limit: u64) -> Result<&[u8], TarError> {
        self.input.some(limit)
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
}

/// The source, of which a block can be seen before it is used, even where its buffer ends inside that block.
struct Input<R> {
    source: R,
    /// Bytes at the front of the source's buffer that were handed out, and are used up with the next call.
    lent: usize,
    /// Taken from the source, but not used; at most a block.
    ahead: Vec<u8>,
    ahead_used: usize,
    /// Place in the stream of the next byte to be used.
    at: u64,
}

impl<R: BufRead> Input<R> {
    /// The next bytes, at least one and at most `limit`.
    fn some(&mut self, limit: u64) -> Result<&[u8], TarError> {
        let is_ahead = self.ahead_used < self.ahead.len();
        let found = match is_ahead {
            true => &self.ahead[self.ahead_used..],
            false => filled(&mut self.source, &mut self.lent, self.at)?,
        };
        let len = found
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        if len == 0 {
            let at = PlainOffset(self.at);
            return Err(TarError::Truncated { at });
        }
        self.at += len as u64;
        match is_ahead {
            true => self.ahead_used += len,
            false => self.lent = len,
        }
        Ok(&found[..len])
    }

    fn peek(&mut self) -> Result<&[u8], TarError> {
        self.ahead.drain(..std::mem::take(&mut self.ahead_used));
        while self.ahead.len() < BLOCK_BYTES {
            let at = self.at + self.ahead.len() as u64;
            let found = filled(&mut self.source, &mut self.lent, at)?;
            if found.is_empty() {
                break;
            }
            let len = found.len().min(BLOCK_BYTES - self.ahead.len());
            self.ahead.extend_from_slice(&found[..len]);
            self.lent = len;
        }
        Ok(&self.ahead)
    }

    fn is_at_end(&mut self) -> Result<bool, TarError> {
        let is_ahead = self.ahead_used < self.ahead.len();
        Ok(!is_ahead && filled(&mut self.source, &mut self.lent, self.at)?.is_empty())
    }
}

/// What `source` has in its buffer after the bytes that were `lent`, read if it was empty; nothing at its end.
fn filled<'a>(
    source: &'a mut impl BufRead,
    lent: &mut usize,
    at: u64,
) -> Result<&'a [u8], TarError> {
    source.consume(std::mem::take(lent));
    let read = |source| TarError::Read {
        at: PlainOffset(at),
        source,
    };
    loop {
        match source.fill_buf() {
            Ok([]) => return Ok(&[]),
            Ok(_) => break,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(read(err)),
        }
    }
    source.fill_buf().map_err(read)
}
