//! Compresses chunks, on all cores if they are not busy anyway, and writes them to the native file in the order they were cut.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::compress::{Compressor, Compressors, Job, Packed, Streaming};
use super::cut::ChunkSink;
use crate::extent::PackedOffset;
use crate::layer::table::{Chunk, ChunkIndex, TableWriter};
use crate::sys::disk::begin_writing;

/// Chunks smaller than this are gathered before they are written; larger ones, which are most of the bytes, pass uncopied.
const GATHERED_BYTES: usize = 16 << 10;

/// The disk hears of the file in portions of this size while it is written, so that sealing it has little left to wait for: the
/// program that waits for the image waits for that, too.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// A native file that is being written. Its bytes do not depend on which thread was faster.
pub(super) struct OrderedFile {
    file: BufWriter<File>,
    written: u64,
    /// Up to where the disk has heard of it.
    announced: u64,
    jobs: Sender<Job>,
    reply: Sender<Packed>,
    packed: Receiver<Packed>,
    /// Which table place the chunk of each sequence number has, from `next_written` on.
    places: BTreeMap<u64, ChunkIndex>,
    early: BTreeMap<u64, Packed>,
    next_sequence: u64,
    next_written: u64,
    /// Chunks that may wait for compression or for a slower one before them.
    in_flight_limit: u64,
    streaming: Arc<Streaming>,
    /// For chunks that no other thread is asked to compress.
    compressor: Option<Compressor>,
}

impl OrderedFile {
    pub fn new(file: File, compressors: &Compressors, streaming: Arc<Streaming>) -> Self {
        let in_flight_limit = compressors.in_flight_limit();
        let (reply, packed) = bounded(in_flight_limit as usize);
        Self {
            file: BufWriter::with_capacity(GATHERED_BYTES, file),
            written: 0,
            announced: 0,
            jobs: compressors.jobs(),
            reply,
            packed,
            places: BTreeMap::new(),
            early: BTreeMap::new(),
            next_sequence: 0,
            next_written: 0,
            in_flight_limit,
            streaming,
            compressor: None,
        }
    }

    fn wait(&mut self, table: &mut TableWriter) -> io::Result<()> {
        let packed = self.packed.recv().expect("this file holds a sender itself");
        self.land(table, packed)
    }

    fn land_what_came(&mut self, table: &mut TableWriter) -> io::Result<()> {
        while let Ok(packed) = self.packed.try_recv() {
            self.land(table, packed)?;
        }
        Ok(())
    }

    fn land(&mut self, table: &mut TableWriter, packed: Packed) -> io::Result<()> {
        self.early.insert(packed.sequence, packed);
        while let Some(packed) = self.early.remove(&self.next_written) {
            let place = self
                .places
                .remove(&self.next_written)
                .expect("every sent chunk has a place");
            self.next_written += 1;
            table.set_chunk(
                place,
                &Chunk {
                    packed_at: PackedOffset(self.written),
                    packed_len: packed.bytes.len() as u32,
                    skip: 0,
                    plain_len: packed.plain_len,
                    codec: packed.codec,
                    digest: packed.digest,
                },
            );
            self.file.write_all(&packed.bytes)?;
            self.written += packed.bytes.len() as u64;
        }
        if self.written - self.announced >= WRITEBACK_BYTES {
            begin_writing(self.file.get_ref(), self.announced..self.written);
            self.announced = self.written;
        }
        Ok(())
    }

    /// Waits for the last chunks; gives the file, positioned after them, and how many bytes they take.
    pub fn finish(mut self, table: &mut TableWriter) -> io::Result<(BufWriter<File>, u64)> {
        while self.next_written < self.next_sequence {
            self.wait(table)?;
        }
        Ok((self.file, self.written))
    }
}

impl ChunkSink for OrderedFile {
    fn put(
        &mut self,
        table: &mut TableWriter,
        place: ChunkIndex,
        plain: Vec<u8>,
    ) -> io::Result<()> {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.places.insert(sequence, place);
        if self.streaming.fills_cores() {
            let compressor = self.compressor.get_or_insert_with(Compressor::new);
            let packed = compressor.packed(sequence, plain);
            self.land(table, packed)?;
            return self.land_what_came(table);
        }
        let job = Job {
            sequence,
            plain,
            reply: self.reply.clone(),
        };
        self.jobs
            .send(job)
            .expect("compressors live as long as somebody can send to them");
        self.land_what_came(table)?;
        // Waiting for half of them at once spares most of the waking up.
        if self.next_sequence - self.next_written >= self.in_flight_limit {
            while self.next_sequence - self.next_written > self.in_flight_limit / 2 {
                self.wait(table)?;
            }
        }
        Ok(())
    }
}
