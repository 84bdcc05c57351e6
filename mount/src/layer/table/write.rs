//! A table on its way into a file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::format::*;
use super::read::key;
use super::shapes::{Chunk, ChunkIndex, Codec, Piece, PieceRange};
use crate::digest::{ChunkDigest, Digest};
use crate::layer::entry::{Entry, Kind};

/// Writes a table part by part into temporary files without names, so that memory does not grow with the layer.
pub struct TableWriter {
    pub(super) entries: Part,
    pieces: Part,
    /// In memory, because places are taken before the chunks are known: 450 bytes for each MiB of a layer.
    chunks: Vec<ChunkRecord>,
    proofs: Part,
    windows: Part,
    leads: Vec<LeadRecord>,
    index: Option<Digest>,
    pub(super) names: Part,
}

/// What a layer has too much of. It comes as the source of an [`io::Error`]; [`Excess::of`] finds it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Excess(&'static str);

impl Excess {
    /// The excess that `err` is about, if it is not the disk that failed.
    pub fn of(err: &io::Error) -> Option<Self> {
        err.get_ref()?.downcast_ref().copied()
    }
}

fn excess(what: &'static str) -> io::Error {
    io::Error::other(Excess(what))
}

/// Chunks in one layer at most: 512 GiB in native ones.
const CHUNKS_LIMIT: usize = 4 << 20;

/// Stretches of chunks that are worth fetching ahead at most: beyond that it is everything.
const LEADS_LIMIT: usize = 1024;

/// Entries in one layer at most. The largest images people run have about two million files; a
/// gzip bomb of empty entries must end before it fills the disk, and merging takes memory for each name.
pub(super) const ENTRIES_LIMIT: u64 = 4_000_000;

/// Bytes of names, link targets and attributes in one layer at most: a global PAX header repeats its own in every entry.
pub(super) const NAMES_BYTES_LIMIT: u64 = 1 << 30;

/// Bytes of a part in memory at most: layers of 60,000 files, which nearly all are below, need no files.
const PART_BYTES_IN_MEMORY: usize = 4 << 20;

pub(super) struct Part {
    directory: Arc<Path>,
    /// What no longer had room in memory.
    file: Option<File>,
    /// What follows that.
    recent: Vec<u8>,
    pub(super) records: u64,
}

impl Part {
    fn in_directory(directory: &Arc<Path>) -> Self {
        Self {
            directory: Arc::clone(directory),
            file: None,
            recent: Vec::new(),
            records: 0,
        }
    }

    fn push(&mut self, record: &(impl IntoBytes + Immutable)) -> io::Result<u64> {
        self.append(record.as_bytes())?;
        self.records += 1;
        Ok(self.records - 1)
    }

    /// Appends bytes, where the "records" are bytes.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(bytes)?;
        self.records += bytes.len() as u64;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.recent.len() + bytes.len() > PART_BYTES_IN_MEMORY {
            self.spill()?;
        }
        self.recent.extend_from_slice(bytes);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.directory)?),
        };
        file.write_all(&self.recent)?;
        self.recent.clear();
        Ok(())
    }

    fn copy_into(&mut self, to: &mut impl Write) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.rewind()?;
            io::copy(file, to)?;
        }
        to.write_all(&self.recent)
    }
}

impl TableWriter {
    /// A table whose parts are spooled in `directory`, which must be on a local or roomy file system.
    pub fn in_directory(directory: &Path) -> Self {
        let directory = Arc::from(directory);
        let part = || Part::in_directory(&directory);
        Self {
            entries: part(),
            pieces: part(),
            chunks: Vec::new(),
            proofs: part(),
            windows: part(),
            leads: Vec::new(),
            index: None,
            names: part(),
        }
    }

    /// Adds a chunk; pieces refer to it by the returned index.
    pub fn chunk(&mut self, chunk: &Chunk<'_>) -> io::Result<ChunkIndex> {
        let index = self.reserve_chunk()?;
        self.set_chunk(index, chunk);
        if let Codec::Deflate(checkpoint) = chunk.codec {
            let record = &mut self.chunks[index.0 as usize];
            record.bits = checkpoint.bits;
            record.window_at = self.windows.records.into();
            record.window_len = (checkpoint.window.len() as u32).into();
            self.windows.bytes(checkpoint.window)?;
        }
        Ok(index)
    }

    /// Says that these chunks are worth fetching before anybody asks, after those that were named before; of too many
    /// stretches the last ones are left out.
    pub fn lead(&mut self, chunks: Range<u32>) {
        if self.leads.len() < LEADS_LIMIT {
            self.leads.push(LeadRecord {
                first: chunks.start.into(),
                end: chunks.end.into(),
            });
        }
    }

    /// Says that the table was made from the layer's index of this digest. The same layer may have others.
    pub fn made_from(&mut self, index: Digest) {
        self.index = Some(index);
    }

    /// Says that the table was made from the blob itself, and is named for its chunks: others may be cut otherwise.
    pub fn made_from_chunks(&mut self) {
        self.index = Some(Digest::of(self.chunks.as_bytes()));
    }

    /// Takes the next place for a chunk that is still being made; [`TableWriter::set_chunk`] fills it.
    pub fn reserve_chunk(&mut self) -> io::Result<ChunkIndex> {
        if self.chunks.len() == CHUNKS_LIMIT {
            return Err(excess("more than 4 million chunks"));
        }
        self.chunks.push(ChunkRecord::new_zeroed());
        Ok(ChunkIndex(self.chunks.len() as u32 - 1))
    }

    /// Fills a place that [`TableWriter::reserve_chunk`] gave, of a chunk without a checkpoint.
    pub fn set_chunk(&mut self, index: ChunkIndex, chunk: &Chunk<'_>) {
        let (algorithm, digest) = match chunk.digest {
            ChunkDigest::Sha256(digest) => (DIGEST_SHA256, digest),
            ChunkDigest::PackedBlake3(digest) => (DIGEST_PACKED_BLAKE3, digest),
            ChunkDigest::PackedSha256(digest) => (DIGEST_PACKED_SHA256, digest),
            ChunkDigest::Unknown => (DIGEST_UNKNOWN, [0; 32]),
        };
        let codec = match chunk.codec {
            Codec::Raw => CODEC_RAW,
            Codec::Zstd => CODEC_ZSTD,
            Codec::Gzip => CODEC_GZIP,
            Codec::Deflate(_) => CODEC_DEFLATE,
            Codec::Zlib => CODEC_ZLIB,
            Codec::Xz => CODEC_XZ,
            Codec::Lz4 => CODEC_LZ4,
        };
        self.chunks[index.0 as usize] = ChunkRecord {
            packed_at: chunk.packed_at.0.into(),
            packed_len: chunk.packed_len.into(),
            plain_len: chunk.plain_len.into(),
            skip: chunk.skip.into(),
            codec,
            algorithm,
            digest,
            ..ChunkRecord::new_zeroed()
        };
    }

    /// What the finished table of `layer` will be called, see [`key`].
    pub fn key(&self, layer: Digest) -> Digest {
        key(layer, self.index)
    }

    /// Adds the pieces of one file, in the order of their offsets.
    pub fn pieces(&mut self, pieces: &[Piece]) -> io::Result<PieceRange> {
        let first = self.pieces.records;
        for piece in pieces {
            self.pieces.push(piece)?;
        }
        let count = u32::try_from(pieces.len())
            .map_err(|_| excess("more than 4 billion pieces in one file"))?;
        Ok(PieceRange { first, count })
    }

    /// Says where the tar headers of the next entry are, whose `pieces` are not empty: `len` bytes. Nobody vouches for the
    /// table, so they are to be compared before the file's bytes are shown.
    pub fn proof(&mut self, pieces: PieceRange, header: PieceRange, len: u32) -> io::Result<()> {
        self.proofs.push(&ProofRecord {
            first_piece: pieces.first.into(),
            entry: self.entries.records.into(),
            header: header.first.into(),
            header_pieces: header.count.into(),
            header_len: len.into(),
        })?;
        Ok(())
    }

    /// Adds an entry. `pieces` are empty for all but regular files.
    pub fn entry(&mut self, entry: &Entry, pieces: PieceRange) -> io::Result<()> {
        if self.entries.records == ENTRIES_LIMIT {
            return Err(excess("more than 4 million entries"));
        }
        let names_at = self.names.records;
        let (kind, size, target): (u8, u64, &[u8]) = match &entry.kind {
            Kind::Directory => (KIND_DIRECTORY, 0, &[]),
            Kind::Regular { size } => (KIND_REGULAR, *size, &[]),
            Kind::Symlink { target } => (KIND_SYMLINK, target.len() as u64, target),
            Kind::Hardlink { target } => (KIND_HARDLINK, 0, target),
            Kind::CharDevice { major, minor } => (KIND_CHAR_DEVICE, device(*major, *minor), &[]),
            Kind::BlockDevice { major, minor } => (KIND_BLOCK_DEVICE, device(*major, *minor), &[]),
            Kind::Fifo => (KIND_FIFO, 0, &[]),
            Kind::Socket => (KIND_SOCKET, 0, &[]),
            Kind::Whiteout => (KIND_WHITEOUT, 0, &[]),
            Kind::Opaque => (KIND_OPAQUE, 0, &[]),
            Kind::Hidden { size } => (KIND_HIDDEN, *size, &[]),
        };
        let path_len = self.name(&entry.path)?;
        let target_len = self.name(target)?;
        let mut xattrs_len = 0u32;
        for (name, value) in &entry.xattrs {
            self.name(U32::new(name.len() as u32).as_bytes())?;
            self.name(U32::new(value.len() as u32).as_bytes())?;
            xattrs_len += 8 + self.name(name)? + self.name(value)?;
        }
        self.entries.push(&EntryRecord {
            names_at: names_at.into(),
            path_len: path_len.into(),
            target_len: target_len.into(),
            xattrs_len: xattrs_len.into(),
            kind,
            _reserved: 0,
            mode: (entry.mode & 0o7777).into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            mtime_secs: entry.mtime.secs.into(),
            mtime_nanos: entry.mtime.nanos.into(),
            pieces: pieces.count.into(),
            first_piece: pieces.first.into(),
            size: size.into(),
        })?;
        Ok(())
    }

    /// Appends to the names, whose "records" are bytes.
    fn name(&mut self, name: &[u8]) -> io::Result<u32> {
        let len = u32::try_from(name.len()).map_err(|_| excess("a name of more than 4 GiB"))?;
        if self.names.records + u64::from(len) > NAMES_BYTES_LIMIT {
            return Err(excess("more than a gigabyte of names and attributes"));
        }
        self.names.bytes(name)?;
        Ok(len)
    }

    /// Writes the finished table of `layer` to `to`; after a failure it can be written again, elsewhere.
    pub fn finish(&mut self, layer: Digest, to: &mut impl Write) -> io::Result<()> {
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            leads: (self.leads.len() as u32).into(),
            layer: *layer.as_bytes(),
            index: self.index.map_or([0; 32], |index| *index.as_bytes()),
            entries: self.entries.records.into(),
            pieces: self.pieces.records.into(),
            chunks: (self.chunks.len() as u64).into(),
            proofs: self.proofs.records.into(),
            windows_len: self.windows.records.into(),
            names_len: self.names.records.into(),
        };
        to.write_all(header.as_bytes())?;
        self.entries.copy_into(to)?;
        self.pieces.copy_into(to)?;
        to.write_all(self.chunks.as_bytes())?;
        self.proofs.copy_into(to)?;
        to.write_all(self.leads.as_bytes())?;
        self.windows.copy_into(to)?;
        self.names.copy_into(to)
    }
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}
