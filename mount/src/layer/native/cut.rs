//! Cuts files into chunks: blocks of whole files, bundles of what is left.

use std::io;

use crate::extent::CHUNK_BYTES;
use crate::layer::table::{ChunkIndex, Piece, PieceRange, TableWriter};

/// Where cut chunks go.
pub(super) trait ChunkSink {
    /// Takes the plain bytes of the chunk that will stand at `place`, and sees to it that the table learns of it.
    fn put(&mut self, table: &mut TableWriter, place: ChunkIndex, plain: Vec<u8>)
    -> io::Result<()>;
}

/// The chunks of one layer on their way into its table.
pub(super) struct Cutter<S> {
    pub table: TableWriter,
    sink: S,
    /// Small files and tails; its place in the table is taken when its first bytes come.
    bundle: Vec<u8>,
    bundle_at: Option<ChunkIndex>,
    current: Current,
}

/// The file that is being cut.
#[derive(Default)]
struct Current {
    pieces: Vec<Piece>,
    /// Bytes of the file that are in pieces already: a multiple of [`CHUNK_BYTES`].
    cut: u64,
    block: Vec<u8>,
}

impl<S: ChunkSink> Cutter<S> {
    pub fn new(table: TableWriter, sink: S) -> Self {
        let (bundle, bundle_at) = (Vec::new(), None);
        Self {
            table,
            sink,
            bundle,
            bundle_at,
            current: Current::default(),
        }
    }

    /// The next bytes of the current file.
    pub fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let block = &mut self.current.block;
            if block.capacity() == 0 {
                block.reserve_exact(CHUNK_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - block.len()));
            block.extend_from_slice(now);
            bytes = later;
            self.cut_full_block()?;
        }
        Ok(())
    }

    /// The next `len` bytes of the current file are zeros that its archive does not hold.
    pub fn hole(&mut self, mut len: u64) -> io::Result<()> {
        while len > 0 {
            if self.current.block.is_empty() && len >= CHUNK_BYTES as u64 {
                let whole_blocks = len - len % CHUNK_BYTES as u64;
                self.current.push_hole(whole_blocks);
                len -= whole_blocks;
                continue;
            }
            let filled = self.current.block.len();
            let now = len.min((CHUNK_BYTES - filled) as u64);
            self.current.block.resize(filled + now as usize, 0);
            len -= now;
            self.cut_full_block()?;
        }
        Ok(())
    }

    fn cut_full_block(&mut self) -> io::Result<()> {
        if self.current.block.len() < CHUNK_BYTES {
            return Ok(());
        }
        if is_zero(&self.current.block) {
            self.current.block.clear();
            self.current.push_hole(CHUNK_BYTES as u64);
            return Ok(());
        }
        let place = self.table.reserve_chunk()?;
        self.current
            .pieces
            .push(Piece::in_chunk(self.current.cut, place, 0));
        self.current.cut += CHUNK_BYTES as u64;
        let block = std::mem::take(&mut self.current.block);
        self.sink.put(&mut self.table, place, block)
    }

    /// Ends the current file: its remainder joins the bundle, its pieces go to the table.
    pub fn end_file(&mut self) -> io::Result<PieceRange> {
        let mut block = std::mem::take(&mut self.current.block);
        if !block.is_empty() {
            // Zeros, too: so which files share a bundle is plain from their sizes, also to one who packs a layer
            // without having streamed it.
            let (place, skip) = self.bundled(&block)?;
            self.current
                .pieces
                .push(Piece::in_chunk(self.current.cut, place, skip));
            block.clear();
        }
        let pieces = self.table.pieces(&self.current.pieces)?;
        self.current.pieces.clear();
        self.current.cut = 0;
        self.current.block = block;
        Ok(pieces)
    }

    /// Puts a remainder into the bundle: which chunk that is and where in it the remainder begins.
    fn bundled(&mut self, remainder: &[u8]) -> io::Result<(ChunkIndex, u32)> {
        if self.bundle.len() + remainder.len() > CHUNK_BYTES {
            self.send_bundle()?;
        }
        let place = match self.bundle_at {
            Some(place) => place,
            None => *self.bundle_at.insert(self.table.reserve_chunk()?),
        };
        let skip = self.bundle.len() as u32;
        self.bundle.extend_from_slice(remainder);
        Ok((place, skip))
    }

    fn send_bundle(&mut self) -> io::Result<()> {
        match self.bundle_at.take() {
            Some(place) => {
                let bundle = std::mem::take(&mut self.bundle);
                self.sink.put(&mut self.table, place, bundle)
            }
            None => Ok(()),
        }
    }

    /// Sends the last bundle; gives the table and the sink, which may still be busy.
    pub fn finish(mut self) -> io::Result<(TableWriter, S)> {
        self.send_bundle()?;
        Ok((self.table, self.sink))
    }
}

impl Current {
    fn push_hole(&mut self, len: u64) {
        let continues = self
            .pieces
            .last()
            .is_some_and(|piece| piece.chunk().is_none());
        if !continues {
            self.pieces.push(Piece::hole(self.cut));
        }
        self.cut += len;
    }
}

/// Compares against itself shifted by one byte, which the C library's memcmp does at memory speed.
fn is_zero(block: &[u8]) -> bool {
    block.first().is_none_or(|&first| first == 0)
        && block[..block.len().saturating_sub(1)] == block[1.min(block.len())..]
}
