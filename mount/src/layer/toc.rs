//! The table of contents that zstd:chunked and eStargz layers carry: JSON, one record for each file and
//! one for each further chunk of it (stargz-snapshotter `estargz/types.go`; containers/storage
//! `pkg/chunked/internal/minimal/compression.go`). Here records become entries and chunks.

mod files;
mod json;
mod record;

use std::io::{self, Read};

use serde::de::Error as _;

use files::Files;
use json::Json;
use record::Record;

use super::entry::NameError;
use super::table::{Codec, TableWriter};
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

/// So many plain bytes for each packed one are made room for at once: tables of contents shrink to a fourth or a tenth.
const TRUSTED_RATIO: u64 = 64;

/// The JSON of `plain_len` bytes in the zstd frame `packed`; `None` if that is not what it holds.
pub(super) fn decompressed(packed: &[u8], plain_len: u64) -> Option<Vec<u8>> {
    if plain_len > PLAIN_LIMIT {
        return None;
    }
    let mut json = Vec::new();
    // As it stands there, neither longer nor shorter.
    if plain_len <= TRUSTED_RATIO * packed.len() as u64 {
        // Into its place at once, without a window beside it.
        json.reserve_exact(plain_len as usize);
        let read = zstd::bulk::Decompressor::new()
            .ok()?
            .decompress_to_buffer(packed, &mut json);
        return (read.ok()? as u64 == plain_len).then_some(json);
    }
    let mut frame = zstd::stream::read::Decoder::new(packed).ok()?;
    let read = frame.by_ref().take(plain_len + 1).read_to_end(&mut json);
    (read.ok()? as u64 == plain_len).then_some(json)
}

/// Why a layer cannot be read through its TOC. The blob itself may still be a sound layer that can be
/// read from its start.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Not the JSON that a TOC is.
    #[error("table of contents: not valid")]
    Json(#[from] serde_json::Error),
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

/// Parses `json`, one TOC and nothing after it, and adds its entries, pieces and chunks to `writer`. Records are handled one by
/// one as they are parsed, so that memory does not grow with their number.
pub fn read(json: &[u8], layout: Layout, writer: &mut TableWriter) -> Result<(), TocError> {
    let text = str::from_utf8(json).map_err(serde_json::Error::custom)?;
    let mut json = Json::new(text);
    let mut files = Files::new(layout, writer);
    let (mut version, mut has_entries) = (None, false);
    json.object(|json, key| {
        match key {
            "version" if version.is_some() => return Err(wrong("two versions")),
            "entries" if has_entries => return Err(wrong("entries twice")),
            "version" => version = Some(json.number()?),
            "entries" => {
                has_entries = true;
                // How Go writes a list that nothing was added to.
                if !json.null() {
                    json.array(|json| files.record(&Record::next(json)?))?;
                }
            }
            _ => json.skip()?,
        }
        Ok(())
    })?;
    json.end()?;
    match version {
        _ if !has_entries => Err(wrong("no entries")),
        None => Err(wrong("no version")),
        Some(1) => files.finish(),
        Some(version) => Err(TocError::Version(version)),
    }
}

fn wrong(problem: &'static str) -> TocError {
    TocError::Json(serde_json::Error::custom(problem))
}

#[cfg(test)]
mod tests;
