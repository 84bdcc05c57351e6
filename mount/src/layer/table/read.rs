//! A table read in place.

use std::cmp::Ordering;
use std::io::{self, Read};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::format::*;
use super::shapes::{Checkpoint, Chunk, ChunkIndex, Codec, Piece, PieceRange};
use crate::digest::{ChunkDigest, Digest};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::layer::entry::{Entry, Kind, Timestamp};
use crate::sys::Sealed;

/// What is wrong with a table file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layer table {layer}, {part} {at}: {problem}")]
pub struct TableError {
    layer: String,
    part: &'static str,
    at: u64,
    problem: &'static str,
}

/// What a layer's table is called in the store and in what is made of it: pieces and chunks are other ones when the
/// same layer is read by another index. Without one the table was made from the blob, and goes with its native file.
pub fn key(layer: Digest, index: Option<Digest>) -> Digest {
    match index {
        None => layer,
        Some(index) => Digest::of(format!("table of {layer} by {index}\n").as_bytes()),
    }
}

/// Chunks before and after one that are decoded with it at most: a member of eStargz holds 64 KiB of small files.
const SIBLINGS_LIMIT: usize = 1024;

/// Where a file's tar headers are, and the entry that must agree with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The entry's place in the table.
    pub entry: u64,
    /// What the headers consist of, extended ones first.
    pub header: PieceRange,
    /// How many bytes they have.
    pub header_len: u32,
}

/// A sealed table, read in place. Every access is checked: a damaged file is an error, never a crash.
pub struct Table {
    bytes: Sealed,
    layer: Digest,
    index: Option<Digest>,
    lead: u32,
    entries: Span,
    pieces: Span,
    chunks: Span,
    proofs: Span,
    windows: Span,
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
                part(header.proofs, size_of::<ProofRecord>())?,
                part(header.windows_len, 1)?,
                part(header.names_len, 1)?,
            ))
        })();
        match spans {
            Some((entries, pieces, chunks, proofs, windows, names)) if at == bytes.len() => {
                Ok(Self {
                    layer: Digest::from_bytes(header.layer),
                    index: (header.index != [0; 32]).then(|| Digest::from_bytes(header.index)),
                    lead: header
                        .lead
                        .get()
                        .min(u32::try_from(chunks.count).unwrap_or(u32::MAX)),
                    bytes,
                    entries,
                    pieces,
                    chunks,
                    proofs,
                    windows,
                    names,
                })
            }
            _ => Err(wrong("its parts do not fill the file")),
        }
    }

    /// The chunks that are worth fetching before anybody asks, as the layer's builder thinks: so many from the first on.
    pub fn lead(&self) -> u32 {
        self.lead
    }

    /// The blob that the packed offsets of chunks count in.
    pub fn layer(&self) -> Digest {
        self.layer
    }

    /// The name of this table: of the layer, or of the layer read by a certain index. See [`key`].
    pub fn key(&self) -> Digest {
        key(self.layer, self.index)
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
            KIND_HIDDEN => Kind::Hidden {
                size: record.size.get(),
            },
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

    /// Where the layer itself tells of the file whose pieces begin at `first_piece`, if that must be looked at before its bytes
    /// are shown, because nobody vouches for this table.
    pub fn proof(&self, first_piece: u64) -> Option<Proof> {
        let at = |index| self.record::<ProofRecord>(self.proofs, index);
        let (mut from, mut to) = (0, self.proofs.count);
        while from < to {
            let middle = from + (to - from) / 2;
            let proof = at(middle)?;
            match proof.first_piece.get().cmp(&first_piece) {
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
                Ordering::Equal => {
                    return Some(Proof {
                        entry: proof.entry.get(),
                        header: PieceRange {
                            first: proof.header.get(),
                            count: proof.header_pieces.get(),
                        },
                        header_len: proof.header_len.get(),
                    });
                }
            }
        }
        None
    }

    /// The chunk at `index`.
    pub fn chunk(&self, index: ChunkIndex) -> Result<Chunk<'_>, TableError> {
        let wrong = |problem| self.wrong("chunk", index.0.into(), problem);
        let record: &ChunkRecord = self
            .record(self.chunks, index.0.into())
            .ok_or_else(|| wrong("no such chunk"))?;
        let codec = match record.codec {
            CODEC_RAW => Codec::Raw,
            CODEC_ZSTD => Codec::Zstd,
            CODEC_GZIP => Codec::Gzip,
            CODEC_ZLIB => Codec::Zlib,
            CODEC_XZ => Codec::Xz,
            CODEC_LZ4 => Codec::Lz4,
            CODEC_DEFLATE => Codec::Deflate(Checkpoint {
                bits: record.bits & 7,
                window: self
                    .window(record)
                    .ok_or_else(|| wrong("its window lies outside the file"))?,
            }),
            _ => return Err(wrong("an unknown codec")),
        };
        let digest = match record.algorithm {
            DIGEST_SHA256 => ChunkDigest::Sha256(record.digest),
            DIGEST_BLAKE3 => ChunkDigest::Blake3(record.digest),
            DIGEST_PACKED_SHA256 => ChunkDigest::PackedSha256(record.digest),
            DIGEST_UNKNOWN => ChunkDigest::Unknown,
            _ => return Err(wrong("an unknown digest")),
        };
        let largest = CHUNK_BYTES_LIMIT as u32;
        if record.plain_len.get() > largest || record.packed_len.get() > 2 * largest {
            return Err(wrong("larger than a chunk may be"));
        }
        Ok(Chunk {
            packed_at: PackedOffset(record.packed_at.get()),
            packed_len: record.packed_len.get(),
            skip: record.skip.get(),
            plain_len: record.plain_len.get(),
            codec,
            digest,
        })
    }

    /// The chunks that share their frame or member with the one at `index`, itself among them: one decoding gives them all.
    pub fn siblings(&self, index: ChunkIndex) -> std::ops::Range<u32> {
        let alone = index.0..index.0.saturating_add(1);
        let place = |index| {
            let chunk = self.chunk(ChunkIndex(index)).ok()?;
            matches!(chunk.codec, Codec::Gzip | Codec::Zstd).then_some(chunk.packed_at)
        };
        let Some(own) = place(index.0) else {
            return alone;
        };
        let is_sibling = |index: &u32| place(*index) == Some(own);
        let before = (0..index.0).rev().take(SIBLINGS_LIMIT);
        let after = (alone.end..u32::MAX).take(SIBLINGS_LIMIT);
        let first = before.take_while(is_sibling).last();
        let last = after.take_while(is_sibling).last();
        first.unwrap_or(alone.start)..last.map_or(alone.end, |last| last + 1)
    }

    fn window(&self, record: &ChunkRecord) -> Option<&[u8]> {
        let (at, len) = (record.window_at.get(), record.window_len.get());
        let end = at.checked_add(len.into())?;
        let inside = end <= self.windows.count;
        inside.then(|| &self.bytes[self.windows.at + at as usize..self.windows.at + end as usize])
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
