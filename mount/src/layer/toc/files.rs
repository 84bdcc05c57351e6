//! Records, one after another, as files with their pieces and chunks.

use std::io;

use super::record::Record;
use super::{Layout, Problem, TocError};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::layer::entry::{Entry, Kind, shown};
use crate::layer::landmark::Landmarks;
use crate::layer::table::{Chunk, ChunkIndex, Piece, PieceRange, TableWriter};

/// Turns records, in their order, into entries, pieces and chunks.
pub struct Files<'w> {
    layout: Layout,
    landmarks: Landmarks,
    writer: &'w mut TableWriter,
    records: u64,
    /// The file whose chunks are being told.
    file: Option<File>,
    /// Its name as its record has it; the records of its chunks repeat it.
    name: String,
    /// Where its bytes are, as far as that has been told.
    pieces: Vec<Piece>,
    /// The chunks of the last frame or member, which ends where the next one begins.
    last: Vec<Chunk<'static>>,
    /// Chunks in the table already.
    written: u32,
    /// Nothing further begins before it.
    from: u64,
}

struct File {
    /// `None` for a file that is not shown.
    entry: Option<Entry>,
    size: u64,
    end_offset: u64,
    /// How many bytes, from the start, have a place.
    covered: u64,
}

impl<'w> Files<'w> {
    pub fn new(layout: Layout, writer: &'w mut TableWriter) -> Self {
        Self {
            layout,
            landmarks: Landmarks::default(),
            writer,
            records: 0,
            file: None,
            name: String::new(),
            pieces: Vec::new(),
            last: Vec::new(),
            written: 0,
            from: 1,
        }
    }

    pub fn record(&mut self, record: &Record<'_>) -> Result<(), TocError> {
        let outcome = if record.kind == "chunk" {
            self.further_chunk(record)
        } else {
            self.end_file()?;
            self.begin_file(record)
        };
        outcome.map_err(|stop| stop.at(self.records, &record.name))?;
        self.records += 1;
        Ok(())
    }

    /// The end of the TOC.
    pub fn finish(mut self) -> Result<(), TocError> {
        self.end_file()?;
        Ok(self.end_chunks(self.layout.end.0)?)
    }

    fn begin_file(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        let entry = record.entry()?;
        let entry = if self.landmarks.hide(&entry) {
            if Landmarks::ends_lead(&entry) {
                self.writer.lead(0..self.written + self.last.len() as u32);
            }
            None
        } else {
            entry.with_whiteouts_understood().map_err(Problem::Name)?
        };
        if record.kind == "reg" && record.size > 0 {
            self.name.clear();
            self.name.push_str(&record.name);
            self.pieces.clear();
            self.file = Some(File {
                entry,
                size: record.size,
                end_offset: record.end_offset,
                covered: 0,
            });
            self.chunk(record)
        } else if let Some(entry) = entry {
            Ok(self.writer.entry(&entry, PieceRange::default())?)
        } else {
            Ok(())
        }
    }

    fn further_chunk(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        match &self.file {
            Some(_) if self.name == record.name => self.chunk(record),
            _ => Err(Problem::Field("a chunk that follows no chunk of its file").into()),
        }
    }

    /// The stretch of the current file that `record` tells.
    fn chunk(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        let file = self.file.as_mut().expect("both callers have a file");
        let (starts, covered) = (record.chunk_offset, file.covered);
        if starts != covered {
            return Err(Problem::Gap { starts, covered }.into());
        }
        let rest = file.size - covered;
        let len = match record.chunk_size {
            0 => rest,
            len => len,
        };
        if len == 0 || len > rest {
            return Err(Problem::Field("its chunks are longer than the file").into());
        }
        file.covered += len;
        let piece = match &*record.chunk_type {
            "zeros" => {
                self.place(record.offset)?;
                Piece::hole(starts)
            }
            "" => Piece::in_chunk(starts, self.begin_chunk(record, len)?, 0),
            _ => return Err(Problem::Field("a chunkType that is not known").into()),
        };
        self.pieces.push(piece);
        Ok(())
    }

    /// Notes a chunk, whose packed length the next one will tell.
    fn begin_chunk(&mut self, record: &Record<'_>, len: u64) -> Result<ChunkIndex, Stop> {
        if len > CHUNK_BYTES_LIMIT as u64 {
            return Err(Problem::LargeChunk(len).into());
        }
        let (skip, end) = (record.inner_offset, record.inner_offset.checked_add(len));
        if end.is_none_or(|end| end > CHUNK_BYTES_LIMIT as u64) {
            return Err(Problem::LargeChunk(skip).into());
        }
        let digest = record.chunk_digest(len)?;
        match self.last.last() {
            Some(last) if last.packed_at.0 == record.offset && skip > 0 => {
                if skip < u64::from(last.skip) + u64::from(last.plain_len) {
                    return Err(Problem::Field("its chunk overlaps the one before").into());
                }
            }
            _ => self.place(record.offset)?,
        }
        self.last.push(Chunk {
            packed_at: PackedOffset(record.offset),
            packed_len: 0,
            skip: skip as u32,
            plain_len: len as u32,
            codec: self.layout.codec,
            digest,
        });
        Ok(ChunkIndex(self.written + self.last.len() as u32 - 1))
    }

    /// Checks that `at` follows what came before, which thereby ends.
    fn place(&mut self, at: u64) -> Result<(), Stop> {
        let (from, end) = (self.from, self.layout.end.0);
        if at < from || at >= end {
            return Err(Problem::Misplaced { at, from, end }.into());
        }
        self.end_chunks(at)?;
        self.from = at + 1;
        Ok(())
    }

    /// Writes the chunks of the last frame or member; its packed bytes end at `end`, or before.
    fn end_chunks(&mut self, end: u64) -> io::Result<()> {
        for mut chunk in self.last.drain(..) {
            let longest = 2 * CHUNK_BYTES_LIMIT as u64;
            chunk.packed_len = (end - chunk.packed_at.0).min(longest) as u32;
            let index = self.writer.chunk(&chunk)?;
            assert_eq!(
                index.0, self.written,
                "pieces refer to chunks by their order"
            );
            self.written += 1;
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), TocError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        if file.covered != file.size {
            let problem = Problem::Field("its chunks end before the file does");
            return Err(Stop::Problem(problem).at(self.records - 1, &self.name));
        }
        // The member may go on with other files' chunks; only containers/storage tells an end, and shares no frame.
        if file.end_offset >= self.from && file.end_offset <= self.layout.end.0 {
            self.end_chunks(file.end_offset)?;
            self.from = file.end_offset;
        }
        if let Some(entry) = file.entry {
            let pieces = match entry.kind {
                Kind::Regular { .. } => self.writer.pieces(&self.pieces)?,
                _ => PieceRange::default(),
            };
            self.writer.entry(&entry, pieces)?;
        }
        Ok(())
    }
}

/// Why a record ends the reading, before anyone has said which record it was.
enum Stop {
    Problem(Problem),
    Write(io::Error),
}

impl Stop {
    fn at(self, index: u64, name: &str) -> TocError {
        match self {
            Self::Problem(problem) => TocError::Record {
                index,
                name: shown(name.as_bytes()),
                problem,
            },
            Self::Write(err) => TocError::Write(err),
        }
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Stop {
    fn from(err: io::Error) -> Self {
        Self::Write(err)
    }
}
