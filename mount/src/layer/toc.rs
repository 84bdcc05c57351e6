//! The table of contents that zstd:chunked and eStargz layers carry: JSON, one record for each file and
//! one for each further chunk of it (stargz-snapshotter `estargz/types.go`; containers/storage
//! `pkg/chunked/internal/minimal/compression.go`). Here records become entries and chunks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::entry::{Entry, Kind, NameError, Timestamp, normalised, shown};
use super::landmark::Landmarks;
use super::table::{Chunk, ChunkIndex, Codec, Piece, PieceRange, TableWriter};
use crate::digest::{ChunkDigest, Digest};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};

/// What a TOC's records say about the blob around them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Where the files' packed bytes end: nothing of them lies at or after it.
    pub end: PackedOffset,
    /// What the records' bytes are packed with.
    pub codec: Codec<'static>,
}

/// Packed bytes in a TOC at most.
pub(super) const PACKED_LIMIT: u64 = 64 << 20;

/// Plain bytes in a TOC at most: what containers/storage takes (`pkg/chunked/compression_linux.go`, `maxTocSize`).
pub(super) const PLAIN_LIMIT: u64 = 150 << 20;

/// The JSON of `plain_len` bytes in the zstd frame `packed`; `None` if that is not what it holds.
pub(super) fn decompressed(packed: &[u8], plain_len: u64) -> Option<Vec<u8>> {
    if plain_len > PLAIN_LIMIT {
        return None;
    }
    let mut json = Vec::new();
    let mut frame = zstd::stream::read::Decoder::new(packed).ok()?;
    // As it stands there, neither longer nor shorter.
    let read = frame.by_ref().take(plain_len + 1).read_to_end(&mut json);
    (read.ok()? as u64 == plain_len).then_some(json)
}

/// Why a layer cannot be read through its TOC. The blob itself may still be a sound layer that can be
/// read from its start.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Not the JSON that a TOC is.
    #[error("table of contents: not valid")]
    Json(#[source] serde_json::Error),
    /// Made by something newer than we know.
    #[error("table of contents: version {0}, only 1 is known")]
    Version(u64),
    /// A record that makes no sense.
    #[error("table of contents, record {index} ({name:?}): {problem}")]
    Record {
        /// Its place among all records.
        index: u64,
        /// The file's name, shortened.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The table could not be written.
    #[error("the layer's table cannot be written")]
    Write(#[from] io::Error),
}

/// What is wrong with one record.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The name or the target of a hard link.
    #[error(transparent)]
    Name(#[from] NameError),
    /// One of its fields.
    #[error("{0}")]
    Field(&'static str),
    /// Bytes of the file are told twice or not at all.
    #[error("its chunk starts at byte {starts}, the bytes before end at {covered}")]
    Gap {
        /// Where the chunk starts.
        starts: u64,
        /// Where the chunks before it end.
        covered: u64,
    },
    /// Chunks are not in the order of the blob, or lie outside it.
    #[error("its bytes are at {at} of the blob, expected between {from} and {end}")]
    Misplaced {
        /// Where the record says its bytes are.
        at: u64,
        /// Where the bytes of the record before begin or end.
        from: u64,
        /// Where the files' bytes end.
        end: u64,
    },
    /// A chunk that would have to be held in memory whole.
    #[error("a chunk of {0} bytes is larger than {CHUNK_BYTES_LIMIT}")]
    LargeChunk(u64),
}

/// Parses `json`, one TOC and nothing after it, and adds its entries, pieces and chunks to `writer`.
pub fn read(json: &[u8], layout: Layout, writer: &mut TableWriter) -> Result<(), TocError> {
    let mut files = Files::new(layout, writer);
    let mut failure = None;
    let mut parser = serde_json::Deserializer::from_slice(json);
    let parsed = TocSeed {
        files: &mut files,
        failure: &mut failure,
    }
    .deserialize(&mut parser)
    .and_then(|()| parser.end());
    if let Some(failure) = failure {
        return Err(failure);
    }
    parsed.map_err(TocError::Json)?;
    files.finish()
}

/// One record as JSON has it. Absent fields are zero or empty; others that we do not use are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    link_name: Cow<'a, str>,
    /// A tar header's: some writers leave the type's bits in it.
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(borrow, default)]
    modtime: Cow<'a, str>,
    #[serde(default)]
    dev_major: u32,
    #[serde(default)]
    dev_minor: u32,
    /// Values in base64.
    #[serde(default)]
    xattrs: Option<BTreeMap<String, String>>,
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    /// Where in the blob its first frame or member begins.
    #[serde(default)]
    offset: u64,
    /// Where the last frame of the file's last chunk ends; only containers/storage writes it.
    #[serde(default)]
    end_offset: u64,
    /// How many plain bytes of the frame or member come before the chunk's.
    #[serde(default)]
    inner_offset: u64,
    #[serde(default)]
    chunk_offset: u64,
    /// Zero means up to the end of the file.
    #[serde(default)]
    chunk_size: u64,
    #[serde(borrow, default)]
    chunk_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    chunk_type: Cow<'a, str>,
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl Record<'_> {
    fn entry(&self) -> Result<Entry, Problem> {
        if [&self.name, &self.link_name]
            .iter()
            .any(|name| name.contains(char::REPLACEMENT_CHARACTER))
        {
            return Err(Problem::Field("a name that is not UTF-8 was lost"));
        }
        let path = normalised(self.name.as_bytes())?;
        let kind = self.kind()?;
        if path.is_empty() && kind != Kind::Directory {
            return Err(Problem::Field("the root is not a directory"));
        }
        Ok(Entry {
            path,
            kind,
            mode: (self.mode & 0o7777) as u16,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime()?,
            xattrs: self.xattrs()?,
        })
    }

    fn kind(&self) -> Result<Kind, Problem> {
        let (major, minor) = (self.dev_major, self.dev_minor);
        Ok(match &*self.kind {
            "dir" => Kind::Directory,
            "reg" => Kind::Regular { size: self.size },
            "symlink" => Kind::Symlink {
                target: self.link_name.as_bytes().to_vec(),
            },
            "hardlink" => Kind::Hardlink {
                target: normalised(self.link_name.as_bytes())?,
            },
            "char" => Kind::CharDevice { major, minor },
            "block" => Kind::BlockDevice { major, minor },
            "fifo" => Kind::Fifo,
            _ => return Err(Problem::Field("a type that is not known")),
        })
    }

    /// Unset times are 1970: absent, or Go's zero, the first second of year 1.
    fn mtime(&self) -> Result<Timestamp, Problem> {
        match &*self.modtime {
            "" | "0001-01-01T00:00:00Z" => Ok(Timestamp::default()),
            text => chrono::DateTime::parse_from_rfc3339(text)
                .map(|time| Timestamp {
                    secs: time.timestamp(),
                    nanos: time.timestamp_subsec_nanos().min(999_999_999),
                })
                .map_err(|_| Problem::Field("its modtime is no RFC 3339 time")),
        }
    }

    /// Attributes that are not empty: an empty PAX record deletes, and what is read from the table of contents
    /// should be what is read from the tar.
    fn xattrs(&self) -> Result<Attributes, Problem> {
        self.xattrs
            .iter()
            .flatten()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| {
                let value = BASE64
                    .decode(value)
                    .map_err(|_| Problem::Field("an extended attribute is no base64"))?;
                Ok((name.clone().into_bytes(), value))
            })
            .collect()
    }

    /// The digest of its chunk of `len` bytes: its own, or the file's if that is all of it.
    fn chunk_digest(&self, len: u64) -> Result<ChunkDigest, Problem> {
        let text = match &*self.chunk_digest {
            "" if len == self.size && self.kind == "reg" => &*self.digest,
            text => text,
        };
        text.parse::<Digest>()
            .map(|digest| ChunkDigest::Sha256(*digest.as_bytes()))
            .map_err(|_| Problem::Field("its chunk has no SHA-256 digest"))
    }
}

/// Turns records, in their order, into entries, pieces and chunks.
struct Files<'w> {
    layout: Layout,
    landmarks: Landmarks,
    writer: &'w mut TableWriter,
    records: u64,
    /// The file whose chunks are being told.
    file: Option<File>,
    /// The chunks of the last frame or member, which ends where the next one begins.
    last: Vec<Chunk<'static>>,
    /// Chunks in the table already.
    written: u32,
    /// Nothing further begins before it.
    from: u64,
}

struct File {
    /// As the record has it; the records of its chunks repeat it.
    name: String,
    /// `None` for a file that is not shown.
    entry: Option<Entry>,
    size: u64,
    end_offset: u64,
    /// How many bytes, from the start, have a place.
    covered: u64,
    pieces: Vec<Piece>,
}

impl<'w> Files<'w> {
    fn new(layout: Layout, writer: &'w mut TableWriter) -> Self {
        Self {
            layout,
            landmarks: Landmarks::default(),
            writer,
            records: 0,
            file: None,
            last: Vec::new(),
            written: 0,
            from: 1,
        }
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), TocError> {
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
    fn finish(mut self) -> Result<(), TocError> {
        self.end_file()?;
        Ok(self.end_chunks(self.layout.end.0)?)
    }

    fn begin_file(&mut self, record: &Record<'_>) -> Result<(), Stop> {
        let entry = record.entry()?;
        let entry = if self.landmarks.hide(&entry) {
            if Landmarks::ends_lead(&entry) {
                self.writer.lead(self.written + self.last.len() as u32);
            }
            None
        } else {
            entry.with_whiteouts_understood().map_err(Problem::Name)?
        };
        if record.kind == "reg" && record.size > 0 {
            self.file = Some(File {
                name: record.name.to_string(),
                entry,
                size: record.size,
                end_offset: record.end_offset,
                covered: 0,
                pieces: Vec::new(),
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
            Some(file) if file.name == record.name => self.chunk(record),
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
        let file = self.file.as_mut().expect("it was there above");
        file.pieces.push(piece);
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
        for mut chunk in std::mem::take(&mut self.last) {
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
            return Err(Stop::Problem(problem).at(self.records - 1, &file.name));
        }
        // The member may go on with other files' chunks; only containers/storage tells an end, and shares no frame.
        if file.end_offset >= self.from && file.end_offset <= self.layout.end.0 {
            self.end_chunks(file.end_offset)?;
            self.from = file.end_offset;
        }
        if let Some(entry) = file.entry {
            let pieces = match entry.kind {
                Kind::Regular { .. } => self.writer.pieces(&file.pieces)?,
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

/// The outermost object. Records are handled one by one as they are parsed, so that memory does not
/// grow with their number; what stopped them is kept beside serde's error, which takes only text.
struct TocSeed<'s, 'w> {
    files: &'s mut Files<'w>,
    failure: &'s mut Option<TocError>,
}

impl<'de> DeserializeSeed<'de> for TocSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TocSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with version and entries")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut entries) = (None, None);
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "version" if version.is_some() => {
                    return Err(de::Error::duplicate_field("version"));
                }
                "entries" if entries.is_some() => {
                    return Err(de::Error::duplicate_field("entries"));
                }
                "version" => version = Some(map.next_value::<u64>()?),
                "entries" => entries = Some(map.next_value_seed(Records(&mut self))?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        entries.ok_or_else(|| de::Error::missing_field("entries"))?;
        match version {
            Some(1) => Ok(()),
            Some(version) => Err(self.stopped(TocError::Version(version))),
            None => Err(de::Error::missing_field("version")),
        }
    }
}

impl TocSeed<'_, '_> {
    fn stopped<E: de::Error>(&mut self, failure: TocError) -> E {
        *self.failure = Some(failure);
        de::Error::custom("stopped")
    }
}

struct Records<'r, 's, 'w>(&'r mut TocSeed<'s, 'w>);

impl<'de> DeserializeSeed<'de> for Records<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Records<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(record) = seq.next_element::<Record<'de>>()? {
            self.0
                .files
                .record(&record)
                .map_err(|failure| self.0.stopped(failure))?;
        }
        Ok(())
    }

    /// How Go writes a list that nothing was added to.
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
