//! Cuts files into chunks, sends them to be compressed and writes what comes back in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::compress::{Compressors, Job, Packed};
use crate::extent::{CHUNK_BYTES, PackedOffset};
use crate::layer::table::{Chunk, ChunkIndex, Piece, PieceRange, TableWriter};

/// Chunks of one layer that may wait for compression or for a slower one before them: 8 MiB.
const IN_FLIGHT_LIMIT: u64 = 64;

/// The chunks of one layer on their way into its native file and its table.
pub(super) struct Cutter {
    pub table: TableWriter,
    file: BufWriter<File>,
    written: u64,
    jobs: Sender<Job>,
    reply: Sender<Packed>,
    packed: Receiver<Packed>,
    /// Which table place the chunk of each sequence number has, from `next_written` on.
    places: BTreeMap<u64, ChunkIndex>,
    early: BTreeMap<u64, Packed>,
    next_sequence: u64,
    next_written: u64,
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

impl Cutter {
    pub fn new(table: TableWriter, file: File, compressors: &Compressors) -> Self {
        let (reply, packed) = bounded(IN_FLIGHT_LIMIT as usize);
        Self {
            table,
            file: BufWriter::with_capacity(1 << 20, file),
            written: 0,
            jobs: compressors.jobs(),
            reply,
            packed,
            places: BTreeMap::new(),
            early: BTreeMap::new(),
            next_sequence: 0,
            next_written: 0,
            bundle: Vec::new(),
            bundle_at: None,
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
        self.send(place, block)
    }

    /// Ends the current file: its remainder joins the bundle, its pieces go to the table.
    pub fn end_file(&mut self) -> io::Result<PieceRange> {
        let mut block = std::mem::take(&mut self.current.block);
        if !block.is_empty() {
            if is_zero(&block) {
                self.current.push_hole(block.len() as u64);
            } else {
                let (place, skip) = self.bundled(&block)?;
                self.current
                    .pieces
                    .push(Piece::in_chunk(self.current.cut, place, skip));
            }
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
                self.send(place, bundle)
            }
            None => Ok(()),
        }
    }

    fn send(&mut self, place: ChunkIndex, plain: Vec<u8>) -> io::Result<()> {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.places.insert(sequence, place);
        let job = Job {
            sequence,
            plain,
            reply: self.reply.clone(),
        };
        self.jobs
            .send(job)
            .expect("compressors live as long as somebody can send to them");
        while let Ok(packed) = self.packed.try_recv() {
            self.land(packed)?;
        }
        while self.next_sequence - self.next_written >= IN_FLIGHT_LIMIT {
            self.wait()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let packed = self
            .packed
            .recv()
            .expect("this cutter holds a sender itself");
        self.land(packed)
    }

    /// Writes what is next in order; the file's bytes must not depend on which thread was faster.
    fn land(&mut self, packed: Packed) -> io::Result<()> {
        self.early.insert(packed.sequence, packed);
        while let Some(packed) = self.early.remove(&self.next_written) {
            let place = self
                .places
                .remove(&self.next_written)
                .expect("every sent chunk has a place");
            self.next_written += 1;
            self.table.set_chunk(
                place,
                &Chunk {
                    packed_at: PackedOffset(self.written),
                    packed_len: packed.bytes.len() as u32,
                    plain_len: packed.plain_len,
                    codec: packed.codec,
                    digest: packed.digest,
                },
            );
            self.file.write_all(&packed.bytes)?;
            self.written += packed.bytes.len() as u64;
        }
        Ok(())
    }

    /// Waits for the last chunks; gives the table and the file, positioned after them.
    pub fn finish(mut self) -> io::Result<(TableWriter, BufWriter<File>, u64)> {
        self.send_bundle()?;
        while self.next_written < self.next_sequence {
            self.wait()?;
        }
        Ok((self.table, self.file, self.written))
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
