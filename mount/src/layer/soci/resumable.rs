//! A gzip stream that is read once, and on the way gives the checkpoints at which it can be resumed.

use std::io::{self, Read};

use crate::digest::{Digest, Hasher};
use crate::sys::inflate::{Inflater, Stop, WINDOW_BYTES, Wrapping};

/// Packed bytes read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A place at which the stream can be resumed.
#[derive(Clone, Debug)]
pub struct Resumption {
    /// Packed bytes before it; the last of them is shared if `bits` is not 0.
    pub packed_at: u64,
    /// Plain bytes before it.
    pub plain_at: u64,
    /// How many bits of the byte before come first.
    pub bits: u8,
    /// The plain bytes before it as one zstd frame; empty at the start.
    pub window: Vec<u8>,
}

/// The plain bytes of a gzip stream. Holds 32 KiB of them, and a packed window for each checkpoint.
pub struct Resumable<R> {
    packed: R,
    inflater: Inflater,
    buffer: Vec<u8>,
    /// Where in the buffer the next packed byte is.
    from: usize,
    has_ended: bool,
    packed_at: u64,
    plain_at: u64,
    /// At least as many of the last plain bytes as a window has.
    recent: Vec<u8>,
    spacing: u64,
    resumptions: Vec<Resumption>,
    /// Packed bytes since the last checkpoint.
    span: Hasher,
    digests: Vec<Digest>,
    whole: Hasher,
    last_byte: u8,
}

impl<R: Read> Resumable<R> {
    /// Reads `packed` to its end; checkpoints are at least `spacing` plain bytes apart.
    pub fn new(packed: R, spacing: u64) -> Self {
        Self {
            packed,
            inflater: Inflater::new(),
            buffer: Vec::new(),
            from: 0,
            has_ended: false,
            packed_at: 0,
            plain_at: 0,
            recent: Vec::new(),
            spacing,
            resumptions: Vec::new(),
            span: Hasher::default(),
            digests: Vec::new(),
            whole: Hasher::default(),
            last_byte: 0,
        }
    }

    /// The checkpoints so far, all that lie before the next plain byte.
    pub fn resumptions(&self) -> &[Resumption] {
        &self.resumptions
    }

    /// The digests of the packed bytes from one checkpoint to the next; of the last one only at the end of the stream.
    pub fn span_digests(&self) -> &[Digest] {
        &self.digests
    }

    /// How many plain bytes are between two checkpoints at least.
    pub fn spacing(&self) -> u64 {
        self.spacing
    }

    /// How many packed bytes came, and how many plain ones.
    pub fn lens(&self) -> (u64, u64) {
        (self.packed_at, self.plain_at)
    }

    /// The digest of all packed bytes that came.
    pub fn packed_digest(&self) -> Digest {
        self.whole.clone().finish()
    }

    /// Whether the buffer has a packed byte, after reading if it was empty.
    fn fill(&mut self) -> io::Result<bool> {
        if self.from == self.buffer.len() {
            self.buffer.clear();
            self.from = 0;
            let limit = BUFFER_BYTES as u64;
            self.packed
                .by_ref()
                .take(limit)
                .read_to_end(&mut self.buffer)?;
        }
        Ok(self.from < self.buffer.len())
    }

    fn consume(&mut self, len: usize) {
        let bytes = &self.buffer[self.from..self.from + len];
        self.span.update(bytes);
        self.whole.update(bytes);
        self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
        self.packed_at += len as u64;
        self.from += len;
    }

    /// A block begins here, with `bits` of the last byte.
    fn at_block(&mut self, bits: u8) -> io::Result<()> {
        let is_far = |last: &Resumption| self.plain_at - last.plain_at >= self.spacing;
        if !self.resumptions.last().is_none_or(is_far) {
            return Ok(());
        }
        let window = match self.recent.len() {
            0 => Vec::new(),
            len => {
                let unused = len.saturating_sub(WINDOW_BYTES);
                zstd::bulk::compress(&self.recent[unused..], WINDOW_LEVEL)?
            }
        };
        let span = std::mem::take(&mut self.span);
        if !self.resumptions.is_empty() {
            self.digests.push(span.finish());
        }
        if bits > 0 {
            self.span.update(&[self.last_byte]);
        }
        self.resumptions.push(Resumption {
            packed_at: self.packed_at,
            plain_at: self.plain_at,
            bits,
            window,
        });
        Ok(())
    }

    fn remember(&mut self, plain: &[u8]) {
        if self.recent.len() + plain.len() > 8 * WINDOW_BYTES {
            let unused = self.recent.len().saturating_sub(WINDOW_BYTES);
            self.recent.drain(..unused);
        }
        let unused = plain.len().saturating_sub(WINDOW_BYTES);
        self.recent.extend_from_slice(&plain[unused..]);
    }

    /// After the end of a member: another one, zeros up to the end, or nothing.
    fn next_member(&mut self) -> io::Result<()> {
        if self.fill()? && self.buffer[self.from] != 0 {
            self.inflater.reset(Wrapping::Gzip);
            return Ok(());
        }
        while self.fill()? {
            if self.buffer[self.from..].iter().any(|&byte| byte != 0) {
                return Err(invalid("other bytes among the zeros after the last member"));
            }
            self.consume(self.buffer.len() - self.from);
        }
        self.has_ended = true;
        let span = std::mem::take(&mut self.span);
        self.digests.push(span.finish());
        Ok(())
    }
}

/// Windows are kept for long and read once each; the levels above cost more time than they save.
const WINDOW_LEVEL: i32 = 12;

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("gzip stream: {problem}"),
    )
}

impl<R: Read> Read for Resumable<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.has_ended && !into.is_empty() {
            if !self.fill()? {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "gzip stream: it ends before its last member is complete",
                ));
            }
            let packed = &self.buffer[self.from..];
            let step = self
                .inflater
                .inflate(packed, into, true)
                .map_err(|_| invalid("it is damaged"))?;
            self.consume(step.consumed);
            self.plain_at += step.produced as u64;
            self.remember(&into[..step.produced]);
            match step.stop {
                Stop::BlockEnd { bits } => self.at_block(bits)?,
                Stop::StreamEnd => self.next_member()?,
                Stop::Exhausted if step.consumed + step.produced == 0 => {
                    return Err(invalid("it goes nowhere"));
                }
                Stop::Exhausted => {}
            }
            if step.produced > 0 {
                return Ok(step.produced);
            }
        }
        Ok(0)
    }
}
