//! The table of contents that zstd:chunked and eStargz layers carry: JSON, one record for each file and
//! one for each further chunk of it (stargz-snapshotter `estargz/types.go`; containers/storage
//! `pkg/chunked/internal/minimal/compression.go`). Here records become entries and chunks.

mod files;
mod record;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use files::Files;
use record::Record;

use super::entry::NameError;
use super::table::{Codec, TableWriter};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::sys::memory::zeros_in_large_pages;

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

/// So many plain bytes for each packed one are made room for at once: tables of contents shrink to a fourth or a tenth.
const TRUSTED_RATIO: u64 = 64;

/// Memory in which one table of contents after another is unpacked: what is fresh costs the kernel about as much time as unpacking
/// costs us.
#[derive(Default)]
pub struct Unpacked(Vec<u8>);

impl Unpacked {
    /// `len` bytes, whatever they were.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            // Not both at a time.
            self.0 = Vec::new();
            self.0 = zeros_in_large_pages(len);
        }
        &mut self.0[..len]
    }

    /// The JSON of `plain_len` bytes in the zstd frame `packed`; `None` if that is not what it holds.
    pub(super) fn frame(&mut self, packed: &[u8], plain_len: u64) -> Option<&[u8]> {
        if plain_len > PLAIN_LIMIT {
            return None;
        }
        // As it stands there, neither longer nor shorter.
        if plain_len <= TRUSTED_RATIO * packed.len() as u64 {
            // Into its place at once, without a window beside it.
            let json = self.bytes(plain_len as usize);
            let mut decompressor = zstd::bulk::Decompressor::new().ok()?;
            let read = decompressor.decompress_to_buffer(packed, json);
            return (read.ok()? == json.len()).then_some(json);
        }
        self.0.clear();
        let mut frame = zstd::stream::read::Decoder::new(packed).ok()?;
        let read = frame.by_ref().take(plain_len + 1).read_to_end(&mut self.0);
        (read.ok()? as u64 == plain_len).then_some(&self.0)
    }

    /// What the gzip member `packed` holds, `limit` bytes at most.
    pub(super) fn member(&mut self, packed: &[u8], limit: u64) -> io::Result<&[u8]> {
        // Unless it is not as long as its end says: at once, which takes half the time.
        let told = packed
            .last_chunk()
            .map_or(0, |len| u32::from_le_bytes(*len));
        let len = u64::from(told);
        if len <= limit && len <= TRUSTED_RATIO * packed.len() as u64 {
            let len = told as usize;
            let plain = self.bytes(len);
            let read = libdeflater::Decompressor::new().gzip_decompress(packed, plain);
            if read == Ok(len) {
                return Ok(&self.0[..len]);
            }
        }
        self.0.clear();
        GzDecoder::new(packed)
            .take(limit)
            .read_to_end(&mut self.0)?;
        Ok(&self.0)
    }
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
    let seed = TocSeed {
        files: &mut files,
        failure: &mut failure,
    };
    // Looked at once as a whole, its strings need not be looked at one by one.
    let parsed = match str::from_utf8(json) {
        Ok(text) => parsed(serde_json::Deserializer::from_str(text), seed),
        Err(_) => parsed(serde_json::Deserializer::from_slice(json), seed),
    };
    if let Some(failure) = failure {
        return Err(failure);
    }
    parsed.map_err(TocError::Json)?;
    files.finish()
}

fn parsed<'de>(
    mut parser: serde_json::Deserializer<impl serde_json::de::Read<'de>>,
    seed: TocSeed<'_, '_>,
) -> serde_json::Result<()> {
    seed.deserialize(&mut parser)?;
    parser.end()
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
