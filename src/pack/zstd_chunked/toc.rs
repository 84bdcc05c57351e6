//! The table of contents, as containers/storage writes it (`minimal/compression.go`, `FileMetadata`).

use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::Timestamp;

use super::header::Member;
use super::{Packed, Packer};

/// Where a file's bytes went; nothing for a file without any.
#[derive(Default)]
pub struct Content {
    /// Its chunks, in their order.
    pub chunks: Vec<ToldChunk>,
    /// The digest of all of it.
    pub digest: Option<Digest>,
    /// Where in the blob its last frame ends.
    pub end: u64,
    /// The checksum that a tar-split has of it.
    pub crc: Option<u64>,
}

/// One chunk as the TOC tells it.
pub struct ToldChunk {
    /// Where in the blob its first frame begins.
    pub packed_at: u64,
    /// Where in the file it begins.
    pub at: u64,
    /// How many bytes of the file it is.
    pub len: u64,
    /// Whether all of them are zero.
    pub is_zeros: bool,
    /// What they hash to.
    pub digest: Digest,
}

/// Writes a TOC record by record.
pub struct TocWriter {
    packer: Packer,
    records: u64,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    r#type: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    modtime: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
    #[serde(skip_serializing_if = "str::is_empty")]
    chunk_type: &'a str,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TocWriter {
    /// Without records so far.
    pub fn new(level: i32) -> io::Result<Self> {
        let mut packer = Packer::new(level)?;
        packer.write(br#"{"version":1,"entries":["#)?;
        Ok(Self { packer, records: 0 })
    }

    /// The records of one member.
    pub fn add(&mut self, member: &Member<'_>, content: &Content) -> io::Result<()> {
        let first = content.chunks.first();
        let whole = Record {
            offset: first.map_or(0, |chunk| chunk.packed_at),
            digest: content.digest,
            end_offset: content.end,
            ..described(member)
        };
        // Chunks are told only where there are several (`compressor.go`).
        let [first, further @ ..] = &content.chunks[..] else {
            return self.record(&whole);
        };
        if further.is_empty() {
            return self.record(&whole);
        }
        self.record(&with_chunk(whole, first))?;
        for chunk in further {
            let record = Record {
                r#type: "chunk",
                name: &member.name,
                ..Record::default()
            };
            self.record(&with_chunk(record, chunk))?;
        }
        Ok(())
    }

    /// All records, compressed. `tar_split` is the digest of the compressed tar-split.
    pub fn finish(mut self, tar_split: Digest) -> io::Result<Packed> {
        let end = format!(r#"],"tarSplitDigest":"{tar_split}"}}"#);
        self.packer.write(end.as_bytes())?;
        self.packer.finish()
    }

    fn record(&mut self, record: &Record<'_>) -> io::Result<()> {
        if self.records > 0 {
            self.packer.write(b",")?;
        }
        self.records += 1;
        self.packer.write(&serde_json::to_vec(record)?)
    }
}

fn described<'a>(member: &'a Member<'_>) -> Record<'a> {
    let (major, minor) = member.device();
    Record {
        r#type: member.kind().1,
        name: &member.name,
        link_name: member.target,
        mode: member.entry.mode.into(),
        size: member.size(),
        uid: member.entry.uid.into(),
        gid: member.entry.gid.into(),
        modtime: rfc3339(member.entry.mtime),
        dev_major: major.into(),
        dev_minor: minor.into(),
        xattrs: xattrs(&member.entry.xattrs),
        ..Record::default()
    }
}

fn with_chunk<'a>(record: Record<'a>, chunk: &ToldChunk) -> Record<'a> {
    Record {
        offset: chunk.packed_at,
        chunk_offset: chunk.at,
        chunk_size: chunk.len,
        chunk_digest: Some(chunk.digest),
        chunk_type: if chunk.is_zeros { "zeros" } else { "" },
        ..record
    }
}

/// `None` for times that no calendar has.
fn rfc3339(time: Timestamp) -> Option<String> {
    let time = chrono::DateTime::from_timestamp(time.secs, time.nanos)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

fn xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> BTreeMap<String, String> {
    xattrs
        .iter()
        .map(|(name, value)| {
            let name = String::from_utf8_lossy(name).into_owned();
            (name, BASE64.encode(value))
        })
        .collect()
}
