//! Bytes on their way from one thread to the next.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes that pass from thread to thread at once: few enough that they are in a core's cache still when the next thread takes
/// them. With 512 KiB, streaming a layer costs 4 % more.
const BLOCK_BYTES: usize = 128 << 10;

/// Blocks that may wait between two threads.
pub const BLOCKS_WAITING: usize = 6;

/// What another thread reads, or why it could not.
pub type Blocks = Receiver<io::Result<Bytes>>;

/// Buffers of one thread, which come back to it when the next one has used what is in them: fresh memory costs as
/// much as what is done with it.
pub struct Buffers {
    back: Sender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
}

/// A buffer on its way.
struct Filled {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl Buffers {
    pub fn new() -> Self {
        // One is being filled, one is being used.
        let (back, free) = bounded(BLOCKS_WAITING + 2);
        Self { back, free }
    }

    /// As many bytes as fill a block; fewer at the end of the stream, none after it.
    pub fn next_block(&self, from: &mut impl Read) -> io::Result<Bytes> {
        let fresh = |_| vec![0; BLOCK_BYTES];
        let mut bytes = self.free.try_recv().unwrap_or_else(fresh);
        bytes.resize(BLOCK_BYTES, 0);
        let mut len = 0;
        while len < BLOCK_BYTES {
            match from.read(&mut bytes[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        bytes.truncate(len);
        let back = self.back.clone();
        Ok(Bytes::from_owner(Filled { bytes, back }))
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // Nobody fills it again once the stream has ended.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}

/// Blocks of another thread as a stream.
pub struct BlockReader {
    blocks: Blocks,
    current: Bytes,
}

impl BlockReader {
    pub fn new(blocks: Blocks) -> Self {
        Self {
            blocks,
            current: Bytes::new(),
        }
    }

    /// The next block, when all of the current one is used; empty at the end of the stream.
    fn next(&mut self) -> io::Result<&Bytes> {
        self.current = self.blocks.recv().unwrap_or_else(|_| Ok(Bytes::new()))?;
        Ok(&self.current)
    }
}

impl BufRead for BlockReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.next()?;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, len: usize) {
        self.current.advance(len);
    }
}

impl Read for BlockReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}
