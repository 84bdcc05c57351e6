//! A table read in place.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::ops::Range;

use zerocopy::FromBytes;

use super::format::*;
use super::records::{Records, Stretches, xattrs};
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

/// How many bytes an entry has besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lens {
    /// Of a regular file.
    pub file: u64,
    /// Of a symbolic link's target.
    pub target: u32,
    /// Of extended attributes, with the lengths that stand before names and values.
    pub xattrs: u32,
}

/// A sealed table, read in place. Every access is checked: a damaged file is an error, never a crash.
pub struct Table {
    bytes: Sealed,
    layer: Digest,
    index: Option<Digest>,
    parts: Parts,
}

/// What follows the header.
struct Parts {
    entries: Records<EntryRecord>,
    pieces: Records<Piece>,
    chunks: Records<ChunkRecord>,
    proofs: Records<ProofRecord>,
    leads: Records<LeadRecord>,
    windows: Records<u8>,
    names_at: usize,
    end: usize,
}

impl Parts {
    fn after(header: &Header) -> Option<Self> {
        let (entries, at) = Records::from(size_of::<Header>(), header.entries.get())?;
        let (pieces, at) = Records::from(at, header.pieces.get())?;
        let (chunks, at) = Records::from(at, header.chunks.get())?;
        let (proofs, at) = Records::from(at, header.proofs.get())?;
        let (leads, at) = Records::from(at, header.leads.get().into())?;
        let (windows, names_at) = Records::from(at, header.windows_len.get())?;
        let (_, end) = Records::<u8>::from(names_at, header.names_len.get())?;
        Some(Self {
            entries,
            pieces,
            chunks,
            proofs,
            leads,
            windows,
            names_at,
            end,
        })
    }
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
        let Some(parts) = Parts::after(&header).filter(|parts| parts.end == bytes.len()) else {
            return Err(wrong("its parts do not fill the file"));
        };
        Ok(Self {
            layer: Digest::from_bytes(header.layer),
            index: (header.index != [0; 32]).then(|| Digest::from_bytes(header.index)),
            bytes,
            parts,
        })
    }

    /// Stretches of chunks that are worth fetching before anybody asks, as the layer's builder thinks; the most urgent ones
    /// first.
    pub fn leads(&self) -> impl Iterator<Item = Range<u32>> {
        let chunks = u32::try_from(self.chunk_count()).unwrap_or(u32::MAX);
        let leads = &self.parts.leads;
        let records = leads.range(&self.bytes, 0, leads.count());
        let records = records.unwrap_or_default().iter();
        records.map(move |lead| lead.first.get()..lead.end.get().min(chunks))
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
        self.parts.entries.count()
    }

    /// How many chunks it has.
    pub fn chunk_count(&self) -> u64 {
        self.parts.chunks.count()
    }

    /// All entries with their pieces, in the order of the layer.
    pub fn entries(&self) -> impl Iterator<Item = Result<(Entry<&[u8]>, PieceRange), TableError>> {
        (0..self.entry_count()).map(|index| self.entry(index))
    }

    /// The whiteouts and opaque directories among the entries, by their places, without a look at the others' names.
    pub fn hiding(&self) -> impl Iterator<Item = u64> {
        let entries = &self.parts.entries;
        let records = entries.range(&self.bytes, 0, entries.count());
        let records = records.unwrap_or_default().iter().enumerate();
        records
            .filter(|(_, record)| matches!(record.kind, KIND_WHITEOUT | KIND_OPAQUE))
            .map(|(index, _)| index as u64)
    }

    /// How much an entry has, without a look at its names.
    pub fn lens(&self, index: u64) -> Result<Lens, TableError> {
        let record = self.parts.entries.get(&self.bytes, index);
        let record = record.ok_or_else(|| self.wrong("entry", index, "no such entry"))?;
        let only_of = |kind, len| if record.kind == kind { len } else { 0 };
        Ok(Lens {
            file: only_of(KIND_REGULAR, record.size.get()),
            target: only_of(KIND_SYMLINK, record.target_len.get().into()) as u32,
            xattrs: record.xattrs_len.get(),
        })
    }

    /// The entry at `index`, and its pieces.
    pub fn entry(&self, index: u64) -> Result<(Entry<&[u8]>, PieceRange), TableError> {
        let wrong = |problem| self.wrong("entry", index, problem);
        let record = self.parts.entries.get(&self.bytes, index);
        let record = record.ok_or_else(|| wrong("no such entry"))?;
        let names = &self.bytes[self.parts.names_at..];
        let mut names = Stretches::from(names, record.names_at.get());
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
        let pieces = self
            .parts
            .pieces
            .range(&self.bytes, range.first, range.count.into());
        pieces.ok_or_else(|| self.wrong("piece", range.first, "no such pieces"))
    }

    /// Where the layer itself tells of the file whose pieces begin at `first_piece`, if that must be looked at before its bytes
    /// are shown, because nobody vouches for this table.
    pub fn proof(&self, first_piece: u64) -> Option<Proof> {
        let at = |index| self.parts.proofs.get(&self.bytes, index);
        let (mut from, mut to) = (0, self.parts.proofs.count());
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
        let record = self.parts.chunks.get(&self.bytes, index.0.into());
        let record = record.ok_or_else(|| wrong("no such chunk"))?;
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
            DIGEST_PACKED_BLAKE3 => ChunkDigest::PackedBlake3(record.digest),
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

    /// Where the chunks lie in their blob; anywhere, where that cannot be told.
    pub fn packed_extent(&self) -> Range<u64> {
        let chunks = &self.parts.chunks;
        let records = chunks.range(&self.bytes, 0, chunks.count());
        let extent = records.and_then(|records| {
            records
                .iter()
                .try_fold((u64::MAX, 0), |(first, last), record| {
                    let (at, len) = (record.packed_at.get(), record.packed_len.get());
                    let end = at.checked_add(len.into())?;
                    Some((at.min(first), end.max(last)))
                })
        });
        match extent {
            Some((first, last)) if first < last => first..last,
            _ => 0..u64::MAX,
        }
    }

    /// The chunks that share their frame or member with the one at `index`, itself among them: one decoding gives them all.
    pub fn siblings(&self, index: ChunkIndex) -> Range<u32> {
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
        self.parts.windows.range(&self.bytes, at, len.into())
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

/// Reads a whole table from `from` into memory; for tests and for tables that came over a pipe.
pub fn from_reader(mut from: impl Read) -> io::Result<Table> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Table::open(Sealed::in_memory(bytes)).map_err(io::Error::other)
}
