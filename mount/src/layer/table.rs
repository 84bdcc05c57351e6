//! A layer's table: its entries, and the chunks that hold their bytes, as one sealed file.
//!
//! ```text
//! header | entries | pieces | chunks | names      fixed records, then bytes they point into
//! ```
//!
//! A file's bytes are its *pieces*: each starts at an offset in the file and lies in one chunk, or is a hole,
//! and lasts until the next piece or the end of the file. A chunk is what is verified and cached.

use std::io::{self, BufWriter, Read, Seek, Write};

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::{Entry, Kind, Timestamp};
use crate::digest::{ChunkDigest, Digest};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::sys::Sealed;

/// Rises whenever an older reader would misread a table.
const VERSION: u32 = 1;

/// The start of a table file. Integers are little-endian; positions count from byte 0 of the file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    /// `b"SIFNLAYR"`.
    magic: [u8; 8],
    version: U32,
    _reserved: U32,
    /// The blob that the packed offsets of chunks count in.
    layer: [u8; 32],
    entries: U64,
    pieces: U64,
    chunks: U64,
    /// Length of the part with names, link targets and attributes, which ends the file.
    names_len: U64,
}

/// One entry. Its names lie together in the names part: path, target, then attributes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryRecord {
    names_at: U64,
    path_len: U32,
    target_len: U32,
    /// Attributes: for each, the lengths of name and value as u32, then both.
    xattrs_len: U32,
    /// One of the `KIND_` numbers.
    kind: u8,
    _reserved: u8,
    mode: U16,
    uid: U32,
    gid: U32,
    mtime_secs: I64,
    mtime_nanos: U32,
    pieces: U32,
    first_piece: U64,
    /// Bytes of a regular file; of a device, `major << 32 | minor`.
    size: U64,
}

/// Where a stretch of a file begins.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Piece {
    at: U64,
    chunk: U32,
    skip: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct ChunkRecord {
    packed_at: U64,
    packed_len: U32,
    plain_len: U32,
    /// One of the `CODEC_` numbers.
    codec: u8,
    /// One of the `DIGEST_` numbers.
    algorithm: u8,
    _reserved: [u8; 6],
    digest: [u8; 32],
}

const _: () = assert!(size_of::<Header>() == 80 && size_of::<EntryRecord>() == 64);
const _: () = assert!(size_of::<Piece>() == 16 && size_of::<ChunkRecord>() == 56);

const MAGIC: [u8; 8] = *b"SIFNLAYR";
const HOLE: u32 = u32::MAX;

/// The place of a chunk in its layer's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkIndex(pub u32);

/// A run of a layer's pieces: what one file consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PieceRange {
    /// The first one's place in the table.
    pub first: u64,
    /// How many follow each other.
    pub count: u32,
}

impl Piece {
    /// A stretch that begins at byte `at` of the file and at byte `skip` of the chunk's plain bytes.
    pub fn in_chunk(at: u64, chunk: ChunkIndex, skip: u32) -> Self {
        Self {
            at: at.into(),
            chunk: chunk.0.into(),
            skip: skip.into(),
        }
    }

    /// A stretch of zeros that nothing stores.
    pub fn hole(at: u64) -> Self {
        Self {
            at: at.into(),
            chunk: HOLE.into(),
            skip: 0.into(),
        }
    }

    /// Where in the file it begins.
    pub fn at(&self) -> u64 {
        self.at.get()
    }

    /// The chunk it lies in and where in the chunk's plain bytes it begins; `None` for a hole.
    pub fn chunk(&self) -> Option<(ChunkIndex, u32)> {
        (self.chunk.get() != HOLE).then_some((ChunkIndex(self.chunk.get()), self.skip.get()))
    }
}

/// A part of a file that lies in one chunk, from a byte of its plain bytes on, or in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// `None` for a hole.
    pub chunk: Option<(ChunkIndex, usize)>,
    /// At least one byte.
    pub len: u64,
}

/// Where bytes `from..to` of a file that consists of `pieces` lie. `None` if the pieces do not tell, because the
/// table is damaged.
pub fn stretches(pieces: &[Piece], from: u64, to: u64) -> Option<Vec<Stretch>> {
    let mut next = pieces.partition_point(|piece| piece.at() <= from);
    let mut at = from;
    let mut stretches = Vec::new();
    while at < to {
        let piece = pieces.get(next.checked_sub(1)?)?;
        let until = pieces.get(next).map_or(to, Piece::at).min(to);
        let len = until.checked_sub(at)?;
        let inside = at.checked_sub(piece.at())?;
        let chunk = match piece.chunk() {
            Some((chunk, skip)) => {
                let from = inside.checked_add(skip.into())?;
                Some((chunk, usize::try_from(from).ok()?))
            }
            None => None,
        };
        if len > 0 {
            stretches.push(Stretch { chunk, len });
        }
        at = until;
        next += 1;
    }
    Some(stretches)
}

/// How a chunk's packed bytes become plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// They are the plain bytes.
    Raw = 0,
    /// Zstd frames, in most formats one, until there are enough plain bytes; what follows is ignored.
    Zstd = 1,
}

/// One chunk: where its packed bytes lie, and what they must become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the blob (of a native layer: in its file) the packed bytes begin.
    pub packed_at: PackedOffset,
    /// How many packed bytes there are at most.
    pub packed_len: u32,
    /// How many plain bytes they become, exactly.
    pub plain_len: u32,
    /// How.
    pub codec: Codec,
    /// What the plain bytes hash to.
    pub digest: ChunkDigest,
}

const KIND_DIRECTORY: u8 = 1;
const KIND_REGULAR: u8 = 2;
const KIND_SYMLINK: u8 = 3;
const KIND_HARDLINK: u8 = 4;
const KIND_CHAR_DEVICE: u8 = 5;
const KIND_BLOCK_DEVICE: u8 = 6;
const KIND_FIFO: u8 = 7;
const KIND_SOCKET: u8 = 8;
const KIND_WHITEOUT: u8 = 9;
const KIND_OPAQUE: u8 = 10;

const DIGEST_SHA256: u8 = 1;
const DIGEST_BLAKE3: u8 = 2;

/// What is wrong with a table file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layer table {layer}, {part} {at}: {problem}")]
pub struct TableError {
    layer: String,
    part: &'static str,
    at: u64,
    problem: &'static str,
}

/// Writes a table part by part into temporary files without names, so that memory does not grow with the layer.
pub struct TableWriter {
    entries: Part,
    pieces: Part,
    /// In memory, because places are taken before the chunks are known: 450 bytes for each MiB of a layer.
    chunks: Vec<ChunkRecord>,
    names: Part,
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

/// Entries in one layer at most. The largest images people run have about two million files; a
/// gzip bomb of empty entries must end before it fills the disk, and merging takes memory for each name.
const ENTRIES_LIMIT: u64 = 4_000_000;

/// Bytes of names, link targets and attributes in one layer at most: a global PAX header repeats its own in every entry.
const NAMES_BYTES_LIMIT: u64 = 1 << 30;

struct Part {
    file: BufWriter<std::fs::File>,
    records: u64,
}

impl Part {
    fn in_directory(directory: &std::path::Path) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::new(tempfile::tempfile_in(directory)?),
            records: 0,
        })
    }

    fn push(&mut self, record: &(impl IntoBytes + Immutable)) -> io::Result<u64> {
        self.file.write_all(record.as_bytes())?;
        self.records += 1;
        Ok(self.records - 1)
    }

    fn copy_into(&mut self, to: &mut impl Write) -> io::Result<()> {
        self.file.flush()?;
        let mut file = self.file.get_ref();
        file.rewind()?;
        io::copy(&mut file, to)?;
        Ok(())
    }
}

impl TableWriter {
    /// A table whose parts are spooled in `directory`, which must be on a local or roomy file system.
    pub fn in_directory(directory: &std::path::Path) -> io::Result<Self> {
        let part = || Part::in_directory(directory);
        Ok(Self {
            entries: part()?,
            pieces: part()?,
            chunks: Vec::new(),
            names: part()?,
        })
    }

    /// Adds a chunk; pieces refer to it by the returned index.
    pub fn chunk(&mut self, chunk: &Chunk) -> io::Result<ChunkIndex> {
        let index = self.reserve_chunk()?;
        self.set_chunk(index, chunk);
        Ok(index)
    }

    /// Takes the next place for a chunk that is still being made; [`TableWriter::set_chunk`] fills it.
    pub fn reserve_chunk(&mut self) -> io::Result<ChunkIndex> {
        if self.chunks.len() == CHUNKS_LIMIT {
            return Err(excess("more than 4 million chunks"));
        }
        self.chunks.push(ChunkRecord::new_zeroed());
        Ok(ChunkIndex(self.chunks.len() as u32 - 1))
    }

    /// Fills a place that [`TableWriter::reserve_chunk`] gave.
    pub fn set_chunk(&mut self, index: ChunkIndex, chunk: &Chunk) {
        let (algorithm, digest) = match chunk.digest {
            ChunkDigest::Sha256(digest) => (DIGEST_SHA256, digest),
            ChunkDigest::Blake3(digest) => (DIGEST_BLAKE3, digest),
        };
        self.chunks[index.0 as usize] = ChunkRecord {
            packed_at: chunk.packed_at.0.into(),
            packed_len: chunk.packed_len.into(),
            plain_len: chunk.plain_len.into(),
            codec: chunk.codec as u8,
            algorithm,
            _reserved: [0; 6],
            digest,
        };
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
        self.names.records += u64::from(len);
        if self.names.records > NAMES_BYTES_LIMIT {
            return Err(excess("more than a gigabyte of names and attributes"));
        }
        self.names.file.write_all(name)?;
        Ok(len)
    }

    /// Writes the finished table of `layer` to `to`; after a failure it can be written again, elsewhere.
    pub fn finish(&mut self, layer: Digest, to: &mut impl Write) -> io::Result<()> {
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            _reserved: 0.into(),
            layer: *layer.as_bytes(),
            entries: self.entries.records.into(),
            pieces: self.pieces.records.into(),
            chunks: (self.chunks.len() as u64).into(),
            names_len: self.names.records.into(),
        };
        to.write_all(header.as_bytes())?;
        self.entries.copy_into(to)?;
        self.pieces.copy_into(to)?;
        to.write_all(self.chunks.as_bytes())?;
        self.names.copy_into(to)
    }
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

/// A sealed table, read in place. Every access is checked: a damaged file is an error, never a crash.
pub struct Table {
    bytes: Sealed,
    layer: Digest,
    entries: Span,
    pieces: Span,
    chunks: Span,
    names: Span,
}

/// A part of the file: where it begins and how many records (for names: bytes) it has.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    count: u64,
}

impl Table {
    /// Checks the header and that the parts it promises fill the file; nothing is read beyond that.
    pub fn open(bytes: Sealed) -> Result<Self, TableError> {
        let wrong = |problem| TableError {
            layer: "file".into(),
            part: "byte",
            at: 0,
            problem,
        };
        let (header, _) =
            Header::read_from_prefix(&bytes).map_err(|_| wrong("shorter than its header"))?;
        if header.magic != MAGIC {
            return Err(wrong("not a layer table"));
        }
        if header.version.get() != VERSION {
            return Err(wrong("written by another version of sifon"));
        }
        let mut at = size_of::<Header>();
        let mut part = |count: U64, record: usize| {
            let span = Span {
                at,
                count: count.get(),
            };
            at = usize::try_from(count.get())
                .ok()?
                .checked_mul(record)?
                .checked_add(at)?;
            Some(span)
        };
        let spans = (|| {
            Some((
                part(header.entries, size_of::<EntryRecord>())?,
                part(header.pieces, size_of::<Piece>())?,
                part(header.chunks, size_of::<ChunkRecord>())?,
                part(header.names_len, 1)?,
            ))
        })();
        match spans {
            Some((entries, pieces, chunks, names)) if at == bytes.len() => Ok(Self {
                layer: Digest::from_bytes(header.layer),
                bytes,
                entries,
                pieces,
                chunks,
                names,
            }),
            _ => Err(wrong("its parts do not fill the file")),
        }
    }

    /// The blob that the packed offsets of chunks count in.
    pub fn layer(&self) -> Digest {
        self.layer
    }

    /// How many entries it has.
    pub fn entry_count(&self) -> u64 {
        self.entries.count
    }

    /// How many chunks it has.
    pub fn chunk_count(&self) -> u64 {
        self.chunks.count
    }

    /// All entries with their pieces, in the order of the layer.
    pub fn entries(&self) -> impl Iterator<Item = Result<(Entry<&[u8]>, PieceRange), TableError>> {
        (0..self.entries.count).map(|index| self.entry(index))
    }

    /// The entry at `index`, and its pieces.
    pub fn entry(&self, index: u64) -> Result<(Entry<&[u8]>, PieceRange), TableError> {
        let wrong = |problem| self.wrong("entry", index, problem);
        let record: &EntryRecord = self
            .record(self.entries, index)
            .ok_or_else(|| wrong("no such entry"))?;
        let mut names = NameBytes {
            bytes: self.name_bytes(),
            at: usize::try_from(record.names_at.get()).unwrap_or(usize::MAX),
        };
        let outside = || wrong("its names lie outside the file");
        let path = names.next(record.path_len).ok_or_else(outside)?;
        let target = names.next(record.target_len).ok_or_else(outside)?;
        let attributes = names.next(record.xattrs_len).ok_or_else(outside)?;
        let (major, minor) = ((record.size.get() >> 32) as u32, record.size.get() as u32);
        let kind = match record.kind {
            KIND_DIRECTORY => Kind::Directory,
            KIND_REGULAR => Kind::Regular {
                size: record.size.get(),
            },
            KIND_SYMLINK => Kind::Symlink { target },
            KIND_HARDLINK => Kind::Hardlink { target },
            KIND_CHAR_DEVICE => Kind::CharDevice { major, minor },
            KIND_BLOCK_DEVICE => Kind::BlockDevice { major, minor },
            KIND_FIFO => Kind::Fifo,
            KIND_SOCKET => Kind::Socket,
            KIND_WHITEOUT => Kind::Whiteout,
            KIND_OPAQUE => Kind::Opaque,
            _ => return Err(wrong("an unknown kind")),
        };
        let entry = Entry {
            path,
            kind,
            mode: record.mode.get() & 0o7777,
            uid: record.uid.get(),
            gid: record.gid.get(),
            mtime: Timestamp {
                secs: record.mtime_secs.get(),
                nanos: record.mtime_nanos.get().min(999_999_999),
            },
            xattrs: xattrs(attributes).ok_or_else(|| wrong("its attributes are damaged"))?,
        };
        Ok((
            entry,
            PieceRange {
                first: record.first_piece.get(),
                count: record.pieces.get(),
            },
        ))
    }

    /// The pieces in `range`.
    pub fn pieces(&self, range: PieceRange) -> Result<&[Piece], TableError> {
        let end = range.first.checked_add(u64::from(range.count));
        match end {
            Some(end) if end <= self.pieces.count => {
                let at = self.pieces.at + range.first as usize * size_of::<Piece>();
                let len = range.count as usize * size_of::<Piece>();
                <[Piece]>::ref_from_bytes(&self.bytes[at..at + len])
                    .map_err(|_| self.wrong("piece", range.first, "damaged"))
            }
            _ => Err(self.wrong("piece", range.first, "no such pieces")),
        }
    }

    /// The chunk at `index`.
    pub fn chunk(&self, index: ChunkIndex) -> Result<Chunk, TableError> {
        let wrong = |problem| self.wrong("chunk", index.0.into(), problem);
        let record: &ChunkRecord = self
            .record(self.chunks, index.0.into())
            .ok_or_else(|| wrong("no such chunk"))?;
        let codec = match record.codec {
            codec if codec == Codec::Raw as u8 => Codec::Raw,
            codec if codec == Codec::Zstd as u8 => Codec::Zstd,
            _ => return Err(wrong("an unknown codec")),
        };
        let digest = match record.algorithm {
            DIGEST_SHA256 => ChunkDigest::Sha256(record.digest),
            DIGEST_BLAKE3 => ChunkDigest::Blake3(record.digest),
            _ => return Err(wrong("an unknown digest")),
        };
        let largest = CHUNK_BYTES_LIMIT as u32;
        if record.plain_len.get() > largest || record.packed_len.get() > 2 * largest {
            return Err(wrong("larger than a chunk may be"));
        }
        Ok(Chunk {
            packed_at: PackedOffset(record.packed_at.get()),
            packed_len: record.packed_len.get(),
            plain_len: record.plain_len.get(),
            codec,
            digest,
        })
    }

    fn name_bytes(&self) -> &[u8] {
        &self.bytes[self.names.at..]
    }

    fn record<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        part: Span,
        index: u64,
    ) -> Option<&T> {
        if index >= part.count {
            return None;
        }
        let at = part.at + index as usize * size_of::<T>();
        T::ref_from_bytes(self.bytes.get(at..at + size_of::<T>())?).ok()
    }

    fn wrong(&self, part: &'static str, at: u64, problem: &'static str) -> TableError {
        TableError {
            layer: self.layer.to_string(),
            part,
            at,
            problem,
        }
    }
}

/// Takes names one after another.
struct NameBytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> NameBytes<'a> {
    fn next(&mut self, len: U32) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len.get() as usize)?;
        let name = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(name)
    }
}

/// Attributes as a table (and a tree) keeps them: for each, two lengths as u32, then name and value.
pub(crate) fn xattrs(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut names = NameBytes { bytes, at: 0 };
    let mut attributes = Vec::new();
    while names.at < bytes.len() {
        let name_len = U32::read_from_bytes(names.next(4.into())?).ok()?;
        let value_len = U32::read_from_bytes(names.next(4.into())?).ok()?;
        attributes.push((names.next(name_len)?, names.next(value_len)?));
    }
    Some(attributes)
}

/// Reads a whole table from `from` into memory; for tests and for tables that came over a pipe.
pub fn from_reader(mut from: impl Read) -> io::Result<Table> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Table::open(Sealed::in_memory(bytes)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path()).unwrap();
        let chunk = writer
            .chunk(&Chunk {
                packed_at: PackedOffset(7),
                packed_len: 3,
                plain_len: 5,
                codec: Codec::Zstd,
                digest: ChunkDigest::blake3_of(b"plain"),
            })
            .unwrap();
        let pieces = writer
            .pieces(&[Piece::in_chunk(0, chunk, 0), Piece::hole(5)])
            .unwrap();
        for (entry, pieces) in entries().iter().zip([PieceRange::default(), pieces]) {
            writer.entry(entry, pieces).unwrap();
        }
        let mut bytes = Vec::new();
        writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
        bytes
    }

    fn entries() -> [Entry; 2] {
        let entry = |path: &[u8], kind| Entry {
            path: path.to_vec(),
            kind,
            mode: 0o4755,
            uid: 70_000,
            gid: u32::MAX,
            mtime: Timestamp { secs: -1, nanos: 5 },
            xattrs: vec![
                (b"user.a".to_vec(), vec![0, 255]),
                (b"user.empty".to_vec(), vec![]),
            ],
        };
        [
            entry(
                b"l",
                Kind::Symlink {
                    target: b"\xff/x".to_vec(),
                },
            ),
            entry(b"d/f\xe6", Kind::Regular { size: 1 << 40 }),
        ]
    }

    #[test]
    fn a_table_reads_back_as_written() {
        let bytes = sample();
        let table = from_reader(&bytes[..]).unwrap();
        assert_eq!(table.layer(), Digest::of(b"layer"));
        let read: Vec<_> = table.entries().map(Result::unwrap).collect();
        for ((entry, _), expected) in read.iter().zip(entries()) {
            assert_eq!(entry.path, expected.path);
            assert_eq!(
                (entry.mode, entry.uid, entry.gid),
                (0o4755, 70_000, u32::MAX)
            );
            assert_eq!(entry.mtime, expected.mtime);
            assert_eq!(entry.xattrs[0], (&b"user.a"[..], &[0, 255][..]));
            assert_eq!(entry.xattrs[1], (&b"user.empty"[..], &[][..]));
        }
        let pieces = table.pieces(read[1].1).unwrap();
        assert_eq!(pieces[0].chunk(), Some((ChunkIndex(0), 0)));
        assert_eq!((pieces[1].at(), pieces[1].chunk()), (5, None));
        assert!(table.chunk(ChunkIndex(0)).unwrap().digest.matches(b"plain"));
        assert!(table.chunk(ChunkIndex(1)).is_err());
    }

    #[test]
    fn an_excess_is_told_from_a_disk_that_failed() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path()).unwrap();
        let [entry, _] = entries();
        writer.entries.records = ENTRIES_LIMIT - 1;
        writer.entry(&entry, PieceRange::default()).unwrap();
        let refused = writer.entry(&entry, PieceRange::default()).unwrap_err();
        assert_eq!(
            Excess::of(&refused).unwrap().to_string(),
            "more than 4 million entries"
        );
        writer.names.records = NAMES_BYTES_LIMIT;
        writer.entries.records = 0;
        let refused = writer.entry(&entry, PieceRange::default()).unwrap_err();
        assert!(Excess::of(&refused).is_some());
        assert!(Excess::of(&io::ErrorKind::StorageFull.into()).is_none());
    }

    #[test]
    fn bytes_of_a_file_are_found_in_its_pieces_or_the_pieces_are_damaged() {
        let chunk = |at, index, skip| Piece::in_chunk(at, ChunkIndex(index), skip);
        let pieces = [chunk(0, 0, 7), Piece::hole(10), chunk(30, 1, 0)];
        let lie = |from, to| {
            stretches(&pieces, from, to).map(|stretches| {
                let told = |stretch: Stretch| (stretch.chunk.map(|(c, at)| (c.0, at)), stretch.len);
                stretches.into_iter().map(told).collect::<Vec<_>>()
            })
        };
        assert_eq!(lie(0, 0), Some(vec![]));
        assert_eq!(lie(3, 5), Some(vec![(Some((0, 10)), 2)]));
        let all = vec![(Some((0, 9)), 8), (None, 20), (Some((1, 0)), 4)];
        assert_eq!(lie(2, 34), Some(all));
        assert_eq!(stretches(&[], 0, 1), None);
        assert_eq!(stretches(&[Piece::hole(5)], 0, 1), None);
        for backwards in [[9, 3, 7], [0, 9, 3], [0, u64::MAX, 2]] {
            let pieces = backwards.map(|at| chunk(at, 0, u32::MAX));
            let _ = stretches(&pieces, 0, u64::MAX);
            let _ = stretches(&pieces, 4, 8);
        }
    }

    #[test]
    fn a_damaged_table_is_an_error_and_never_a_crash() {
        let bytes = sample();
        for len in 0..bytes.len() {
            assert!(from_reader(&bytes[..len]).is_err());
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x80;
            if let Ok(table) = from_reader(&damaged[..]) {
                for (_, pieces) in table.entries().flatten() {
                    let _ = table.pieces(pieces);
                }
                let _ = table.chunk(ChunkIndex(0));
            }
        }
    }
}
