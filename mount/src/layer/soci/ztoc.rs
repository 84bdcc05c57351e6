//! A zTOC (soci-snapshotter `ztoc/fbs/ztoc.fbs`, `ztoc/compression/gzip_zinfo.c`) becomes a layer's table.

use std::io;

use super::flatbuffer::{self, Tables};
use crate::digest::{ChunkDigest, Digest};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::layer::entry::{Entry, Kind, NameError, PATH_BYTES_LIMIT, Timestamp, normalised, shown};
use crate::layer::landmark::Landmarks;
use crate::layer::table::{Checkpoint, Chunk, ChunkIndex, Codec, Piece, PieceRange, TableWriter};
use crate::sys::inflate::WINDOW_BYTES;

/// Bytes in a zTOC at most: 32 KiB for each 4 MiB of a layer of 32 GiB.
pub const ZTOC_BYTES_LIMIT: u64 = 256 << 20;

/// Attributes of one file at most.
const XATTRS_LIMIT: usize = 1024;

/// Bytes of a file's tar headers at most, where they are to be checked.
const HEADER_BYTES_LIMIT: u64 = 8 << 20;

/// `gzip_zinfo.c`, `PACKED_CHECKPOINT_SIZE`: two offsets, bits, a window.
const CHECKPOINT_BYTES: usize = 8 + 8 + 1 + WINDOW_BYTES;

/// `gzip_zinfo.c`, `BLOB_HEADER_SIZE`: how many checkpoints, and how far apart.
const CHECKPOINTS_HEADER_BYTES: usize = 4 + 8;

/// Who vouches for what a zTOC says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The image names it by its digest.
    Signed,
    /// Nobody: each file is to be compared with its header in the layer when it is first read.
    Unsigned,
}

/// Why a layer cannot be read through its zTOC. The layer may still be read as one stream.
#[derive(Debug, thiserror::Error)]
pub enum ZtocError {
    /// Not the FlatBuffer that it should be.
    #[error("zTOC: {0}")]
    Malformed(&'static str),
    /// It is of another blob.
    #[error("zTOC: made for a blob of {says} bytes, the layer has {has}")]
    Size {
        /// What it says.
        says: u64,
        /// How many the layer has.
        has: u64,
    },
    /// A part of the layer is described so that it cannot be read.
    #[error("zTOC, span {index}: {problem}")]
    Span {
        /// Its number.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file that makes no sense.
    #[error("zTOC, file {index} ({name:?}): {problem}")]
    File {
        /// Its number.
        index: usize,
        /// Its name, shortened.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A name that no image may have.
    #[error("zTOC, file {index}: cannot be shown")]
    Name {
        /// The file's number.
        index: usize,
        /// Which name, and why.
        #[source]
        source: NameError,
    },
    /// The table could not be written.
    #[error("the layer's table cannot be written")]
    Write(#[from] io::Error),
}

/// Parses `ztoc`, whose digest has been checked, and adds the entries, pieces and chunks of the layer, a blob of
/// `blob_size`, to `writer`. On an error the writer has a part of the layer and can only be dropped.
pub fn table(
    ztoc: &[u8],
    blob_size: u64,
    trust: Trust,
    writer: &mut TableWriter,
) -> Result<(), ZtocError> {
    let malformed = ZtocError::Malformed;
    let root = flatbuffer::Table::root(ztoc).ok_or(malformed("not a FlatBuffer"))?;
    let says = root.length(2).ok_or(malformed("no packed size"))?;
    if says != blob_size {
        let has = blob_size;
        return Err(ZtocError::Size { says, has });
    }
    let plain_size = root.length(3).ok_or(malformed("no plain size"))?;
    let compression = root.table(5).ok_or(malformed("no compression"))?;
    let spans = spans(compression, blob_size, plain_size, writer)?;
    let toc = root.table(4).ok_or(malformed("no table of contents"))?;
    let files = toc.tables(0).ok_or(malformed("no files"))?;
    Files {
        spans,
        plain_size,
        trust,
        landmarks: Landmarks::default(),
        header_at: 0,
        writer,
    }
    .add_all(files)
}

/// Where the plain bytes of each chunk begin.
type Spans = Vec<u64>;

/// A place to resume at, as a zTOC has it.
struct RawCheckpoint<'a> {
    packed_at: u64,
    plain_at: u64,
    bits: u8,
    window: &'a [u8],
}

/// Adds the chunks.
fn spans(
    compression: flatbuffer::Table<'_>,
    blob_size: u64,
    plain_size: u64,
    writer: &mut TableWriter,
) -> Result<Spans, ZtocError> {
    let malformed = ZtocError::Malformed;
    let digests = compression.tables(2).ok_or(malformed("no span digests"))?;
    let last = compression.i32(1).ok_or(malformed("no last span"))?;
    if i64::from(last) + 1 != digests.len() as i64 || digests.len() == 0 {
        return Err(malformed("not as many digests as spans"));
    }
    let packed = compression.bytes(3).ok_or(malformed("no checkpoints"))?;
    let (checkpoints, codec) = match compression.i8(0) {
        // Gzip is the default of its field, and writers leave that out.
        Some(0 | 1) => (gzip_checkpoints(packed), None),
        Some(2) => (tar_checkpoints(packed, plain_size), Some(Codec::Raw)),
        _ => return Err(malformed("a compression that is not known")),
    };
    let checkpoints = checkpoints.ok_or(malformed("its checkpoints are damaged"))?;
    if checkpoints.len() != digests.len() {
        return Err(malformed("not as many checkpoints as spans"));
    }
    let mut spans = Spans::with_capacity(checkpoints.len());
    for (index, (checkpoint, digest)) in checkpoints.iter().zip(digests.strings()).enumerate() {
        let next = checkpoints.get(index + 1);
        let end = next.map_or((blob_size, plain_size), |next| {
            (next.packed_at, next.plain_at)
        });
        let wrong = |problem| ZtocError::Span { index, problem };
        if index == 0 && checkpoint.plain_at != 0 {
            return Err(wrong("does not begin at the start of the layer"));
        }
        let digest = digest.and_then(|digest| str::from_utf8(digest).ok()?.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| wrong("its digest is none"))?;
        let chunk = chunk(checkpoint, end, digest).map_err(wrong)?;
        let window = packed_window(checkpoint);
        let codec = codec.unwrap_or(Codec::Deflate(Checkpoint {
            bits: checkpoint.bits,
            window: &window,
        }));
        writer.chunk(&Chunk { codec, ..chunk })?;
        spans.push(checkpoint.plain_at);
    }
    Ok(spans)
}

/// The span from `checkpoint` to `end`, packed and plain.
fn chunk(
    checkpoint: &RawCheckpoint<'_>,
    end: (u64, u64),
    digest: Digest,
) -> Result<Chunk<'static>, &'static str> {
    // Where a byte is shared with the span before, it belongs to both.
    let shared = u64::from(checkpoint.bits > 0);
    let packed_at = checkpoint.packed_at.checked_sub(shared);
    let lens = packed_at.and_then(|at| {
        let packed_len = end.0.checked_sub(at)?;
        Some((at, packed_len, end.1.checked_sub(checkpoint.plain_at)?))
    });
    let (packed_at, packed_len, plain_len) = lens.ok_or("it ends before it begins")?;
    if plain_len > CHUNK_BYTES_LIMIT as u64 || packed_len > 2 * CHUNK_BYTES_LIMIT as u64 {
        return Err("it is larger than we decode");
    }
    Ok(Chunk {
        packed_at: PackedOffset(packed_at),
        packed_len: packed_len as u32,
        skip: 0,
        plain_len: plain_len as u32,
        codec: Codec::Raw,
        digest: ChunkDigest::PackedSha256(*digest.as_bytes()),
    })
}

/// The window as a table keeps it: not compressed, because a large image has a thousand of them, and who mounts it for the first
/// time would wait longer for that than for all else that its tables take.
fn packed_window(checkpoint: &RawCheckpoint<'_>) -> Vec<u8> {
    let reach = checkpoint.plain_at.min(WINDOW_BYTES as u64) as usize;
    match checkpoint.window.len().checked_sub(reach) {
        Some(unused) if reach > 0 => stored(&checkpoint.window[unused..]),
        _ => Vec::new(),
    }
}

/// A zstd frame with a window's bytes as they are (RFC 8878, 3.1.1): a single segment whose length is told, in one block.
fn stored(window: &[u8]) -> Vec<u8> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    const SINGLE_SEGMENT: u8 = 1 << 5;
    const LENGTH_IN_TWO_BYTES: u8 = 1 << 6;
    const LAST_BLOCK: u32 = 1;
    let mut frame = Vec::with_capacity(window.len() + 10);
    frame.extend(MAGIC);
    match window.len().checked_sub(256) {
        // Two bytes count from there.
        Some(above) => {
            frame.push(SINGLE_SEGMENT | LENGTH_IN_TWO_BYTES);
            frame.extend((above as u16).to_le_bytes());
        }
        None => frame.extend([SINGLE_SEGMENT, window.len() as u8]),
    }
    let block = (window.len() as u32) << 3 | LAST_BLOCK;
    frame.extend(&block.to_le_bytes()[..3]);
    frame.extend(window);
    frame
}

/// `gzip_zinfo.c`, `blob_to_zinfo`. In the first version of the format the first checkpoint, after a header of ten bytes, is
/// not told.
fn gzip_checkpoints(blob: &[u8]) -> Option<Vec<RawCheckpoint<'_>>> {
    let (header, rest) = blob.split_at_checked(CHECKPOINTS_HEADER_BYTES)?;
    let count = i32::from_le_bytes(header[..4].try_into().ok()?);
    let count = usize::try_from(count).ok()?;
    if rest.len() % CHECKPOINT_BYTES != 0 {
        return None;
    }
    let mut checkpoints = Vec::with_capacity(rest.len() / CHECKPOINT_BYTES + 1);
    if rest.len() / CHECKPOINT_BYTES + 1 == count {
        checkpoints.push(RawCheckpoint {
            packed_at: 10,
            plain_at: 0,
            bits: 0,
            window: &[],
        });
    }
    for raw in rest.chunks_exact(CHECKPOINT_BYTES) {
        let number = |at: usize| {
            i64::from_le_bytes(raw[at..at + 8].try_into().ok()?)
                .try_into()
                .ok()
        };
        checkpoints.push(RawCheckpoint {
            packed_at: number(0)?,
            plain_at: number(8)?,
            bits: Some(raw[16]).filter(|&bits| bits < 8)?,
            window: &raw[17..],
        });
    }
    (checkpoints.len() == count).then_some(checkpoints)
}

/// `tar_zinfo.fbs`: spans of one size.
fn tar_checkpoints(blob: &[u8], plain_size: u64) -> Option<Vec<RawCheckpoint<'static>>> {
    let root = flatbuffer::Table::root(blob)?;
    let span = root.length(1).filter(|&span| span >= 4096)?;
    (root.length(2)? == plain_size).then_some(())?;
    let at = |index: u64| RawCheckpoint {
        packed_at: index * span,
        plain_at: index * span,
        bits: 0,
        window: &[],
    };
    let count = plain_size.div_ceil(span);
    (count <= 4 << 20).then(|| (0..count).map(at).collect())
}

/// Turns files, in their order, into entries and pieces.
struct Files<'w> {
    spans: Spans,
    plain_size: u64,
    trust: Trust,
    landmarks: Landmarks,
    /// Where the next file's tar headers begin.
    header_at: u64,
    writer: &'w mut TableWriter,
}

/// What keeps a file from being shown.
enum Stop {
    Field(&'static str),
    Name(NameError),
    Write(io::Error),
}

impl From<NameError> for Stop {
    fn from(err: NameError) -> Self {
        Self::Name(err)
    }
}

impl From<io::Error> for Stop {
    fn from(err: io::Error) -> Self {
        Self::Write(err)
    }
}

impl Files<'_> {
    fn add_all(mut self, files: Tables<'_>) -> Result<(), ZtocError> {
        for (index, file) in files.iter().enumerate() {
            let file = file.ok_or(ZtocError::Malformed("a file lies outside"))?;
            self.add(file).map_err(|stop| match stop {
                Stop::Name(source) => ZtocError::Name { index, source },
                Stop::Write(err) => ZtocError::Write(err),
                Stop::Field(problem) => ZtocError::File {
                    index,
                    name: shown(file.bytes(0).unwrap_or_default()),
                    problem,
                },
            })?;
        }
        Ok(())
    }

    fn add(&mut self, file: flatbuffer::Table<'_>) -> Result<(), Stop> {
        let outside = Stop::Field("its bytes lie outside the layer");
        let (Some(at), Some(size)) = (file.length(2), file.length(3)) else {
            return Err(outside);
        };
        let entry = entry(&file, size)?;
        let stored = match entry.kind {
            Kind::Regular { .. } => size,
            _ => 0,
        };
        let end = at.checked_add(stored).filter(|&end| end <= self.plain_size);
        let end = end.ok_or(outside)?;
        let header_at = std::mem::replace(&mut self.header_at, end.next_multiple_of(512));
        if at < header_at {
            return Err(Stop::Field(
                "its bytes begin before those of the file before it end",
            ));
        }
        if self.landmarks.hide(&entry) {
            return Ok(());
        }
        let Some(entry) = entry.with_whiteouts_understood()? else {
            return Ok(());
        };
        if !matches!(entry.kind, Kind::Regular { .. }) || stored == 0 {
            return Ok(self.writer.entry(&entry, PieceRange::default())?);
        }
        let pieces = self.writer.pieces(&pieces(&self.spans, at, stored))?;
        if self.trust == Trust::Unsigned {
            let header_len = at - header_at;
            if header_len > HEADER_BYTES_LIMIT {
                return Err(Stop::Field("its headers are longer than any"));
            }
            let header = self
                .writer
                .pieces(&self::pieces(&self.spans, header_at, header_len))?;
            self.writer.proof(pieces, header, header_len as u32)?;
        }
        Ok(self.writer.entry(&entry, pieces)?)
    }
}

/// Where the `len` plain bytes from `at` lie in chunks that begin at `spans`.
pub(crate) fn pieces(spans: &[u64], at: u64, len: u64) -> Vec<Piece> {
    let first = spans
        .partition_point(|&start| start <= at)
        .saturating_sub(1);
    spans[first..]
        .iter()
        .enumerate()
        .take_while(|&(_, &start)| start < at + len)
        .map(|(index, &start)| {
            let from = at.max(start);
            let chunk = ChunkIndex((first + index) as u32);
            Piece::in_chunk(from - at, chunk, (from - start) as u32)
        })
        .collect()
}

fn entry(file: &flatbuffer::Table<'_>, size: u64) -> Result<Entry, Stop> {
    let text = |field: usize| file.bytes(field).ok_or(Stop::Field("a text lies outside"));
    let number = |field: usize| file.u32(field).ok_or(Stop::Field("a number lies outside"));
    let (name, target) = (text(0)?, text(4)?);
    if target.len() > PATH_BYTES_LIMIT || target.contains(&0) {
        return Err(Stop::Field("a link to what no path can be"));
    }
    let path = normalised(name)?;
    let device = |field: usize| u32::try_from(file.i64(field).unwrap_or(-1)).ok();
    let (major, minor) = (device(11), device(12));
    let devices = || {
        major
            .zip(minor)
            .ok_or(Stop::Field("a device number that is none"))
    };
    let kind = match text(1)? {
        b"dir" => Kind::Directory,
        b"reg" => Kind::Regular { size },
        b"symlink" => Kind::Symlink {
            target: target.to_vec(),
        },
        b"hardlink" => Kind::Hardlink {
            target: normalised(target)?,
        },
        b"char" => {
            let (major, minor) = devices()?;
            Kind::CharDevice { major, minor }
        }
        b"block" => {
            let (major, minor) = devices()?;
            Kind::BlockDevice { major, minor }
        }
        b"fifo" => Kind::Fifo,
        _ => return Err(Stop::Field("a type that is not known")),
    };
    if path.is_empty() && kind != Kind::Directory {
        return Err(Stop::Field("the root is not a directory"));
    }
    Ok(Entry {
        path,
        kind,
        mode: (file.i64(5).unwrap_or(0) & 0o7777) as u16,
        uid: number(6)?,
        gid: number(7)?,
        mtime: mtime(text(10)?)?,
        xattrs: xattrs(file)?,
    })
}

/// RFC 3339 with what fraction there is; Go's zero is 1970.
fn mtime(text: &[u8]) -> Result<Timestamp, Stop> {
    if text.is_empty() || text == b"0001-01-01T00:00:00Z" {
        return Ok(Timestamp::default());
    }
    let time = str::from_utf8(text)
        .ok()
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    let time = time.ok_or(Stop::Field("its time is no RFC 3339 time"))?;
    Ok(Timestamp {
        secs: time.timestamp(),
        nanos: time.timestamp_subsec_nanos().min(999_999_999),
    })
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Among a member's PAX records those that are attributes; empty ones delete.
fn xattrs(file: &flatbuffer::Table<'_>) -> Result<Attributes, Stop> {
    let outside = Stop::Field("its attributes lie outside");
    let Some(records) = file.tables(13) else {
        return Err(outside);
    };
    if records.len() > XATTRS_LIMIT {
        return Err(Stop::Field("more attributes than any file has"));
    }
    let mut xattrs = Vec::new();
    for record in records.iter() {
        let pair = record.and_then(|record| Some((record.bytes(0)?, record.bytes(1)?)));
        let Some((key, value)) = pair else {
            return Err(outside);
        };
        if key.starts_with(b"GNU.sparse.") {
            return Err(Stop::Field("a sparse file, whose bytes zTOCs do not tell"));
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
            && !value.is_empty()
        {
            xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    // Go's maps have no order; as records of a tar come, most writers sort them.
    xattrs.sort();
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_kept_as_it_is_in_a_frame_that_any_decoder_reads() {
        for len in [1, 255, 256, 257, WINDOW_BYTES] {
            let window: Vec<u8> = (0..len).map(|at| (at * at / 7) as u8).collect();
            let frame = stored(&window);
            assert!(frame.len() <= len + 10 && frame.ends_with(&window));
            let plain = zstd::bulk::decompress(&frame, WINDOW_BYTES).unwrap();
            assert!(plain == window, "{len}");
        }
    }
}
