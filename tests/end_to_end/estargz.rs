//! eStargz layers as stargz-snapshotter writes them (`docs/estargz.md`), written from its documentation, not from what
//! reads them.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde_json::{Map, Value, json};
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::{Kind, Timestamp};

use crate::layers::archive::{Dialect, archive};
use crate::layers::{Member, file};
use crate::layout::{Packed, gzip};

/// Bytes of a file in one chunk.
const CHUNK_BYTES: usize = 1 << 20;

/// What ends an archive.
const END_BYTES: usize = 1024;

/// A blob on its way: members that are written, and the plain bytes of the one that is open.
struct Blob {
    packed: Vec<u8>,
    open: Vec<u8>,
    plain: Vec<u8>,
    /// A member that has so many bytes of files is closed.
    member_bytes: usize,
}

impl Blob {
    fn push(&mut self, plain: &[u8]) {
        self.open.extend_from_slice(plain);
        self.plain.extend_from_slice(plain);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.packed.extend(gzip(&std::mem::take(&mut self.open)));
        }
    }

    /// Where the next byte goes: the open member's place, and how many bytes it has. Opens another if that is due.
    fn place(&mut self, is_first: bool) -> (usize, usize) {
        if is_first || self.open.len() >= self.member_bytes {
            self.close();
        }
        (self.packed.len(), self.open.len())
    }
}

/// The members that are worth fetching at once end with this one.
pub fn prefetch_landmark() -> Member {
    file(".prefetch.landmark", &b"\x0f"[..])
}

/// The layer of these members. Chunks share a gzip member until that has `member_bytes`; with 0 none do.
pub fn estargz(members: &[Member], member_bytes: usize) -> Packed {
    let mut blob = Blob {
        packed: Vec::new(),
        open: Vec::new(),
        plain: Vec::new(),
        member_bytes,
    };
    let mut records = Vec::new();
    let landmark = prefetch_landmark();
    let has_one = |member: &Member| member.entry.path == landmark.entry.path;
    let landmark = match members.iter().any(has_one) {
        true => None,
        false => Some(file(".no.prefetch.landmark", &b"\x0f"[..])),
    };
    let mut is_first = true;
    for member in landmark.iter().chain(members) {
        let mut member = member.clone();
        member.is_sparse = false;
        let mut bytes = archive(std::slice::from_ref(&member), Dialect::Pax);
        bytes.truncate(bytes.len() - END_BYTES);
        let content = member.content.len();
        let (header, padded) = bytes.split_at(bytes.len() - content.next_multiple_of(512));
        blob.push(header);
        let mut record = record(&member);
        for (index, chunk) in padded[..content].chunks(CHUNK_BYTES).enumerate() {
            let (offset, inner) = blob.place(std::mem::take(&mut is_first));
            let mut told = match index {
                0 => std::mem::take(&mut record),
                _ => json!({"name": records_name(&member), "type": "chunk"}),
            };
            told["offset"] = json!(offset);
            if inner > 0 {
                told["innerOffset"] = json!(inner);
            }
            if index > 0 {
                told["chunkOffset"] = json!(index * CHUNK_BYTES);
            }
            if index * CHUNK_BYTES + chunk.len() < content {
                told["chunkSize"] = json!(chunk.len());
            }
            told["chunkDigest"] = json!(Digest::of(chunk));
            records.push(told);
            blob.push(chunk);
        }
        if content == 0 {
            records.push(record);
        }
        blob.push(&padded[content..]);
    }
    finished(blob, &records)
}

fn finished(mut blob: Blob, records: &[Value]) -> Packed {
    blob.close();
    let toc = json!({"version": 1, "entries": records});
    let toc = serde_json::to_vec_pretty(&toc).unwrap();
    let at = blob.packed.len();
    blob.push(&archive(
        &[file("stargz.index.json", toc.clone())],
        Dialect::Pax,
    ));
    blob.close();
    blob.packed.extend(footer(at));
    Packed {
        bytes: blob.packed,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        annotations: BTreeMap::from([(
            "containerd.io/snapshot/stargz/toc.digest".to_owned(),
            Digest::of(&toc).to_string(),
        )]),
        diff_id: Digest::of(&blob.plain),
    }
}

fn footer(toc_at: usize) -> Vec<u8> {
    let place = format!("{toc_at:016x}STARGZ");
    [
        &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0"[..],
        place.as_bytes(),
        &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The name with what an archive writes before and after it.
fn records_name(member: &Member) -> String {
    let path = text(&member.entry.path);
    let (above, last) = path.split_at(path.rfind('/').map_or(0, |slash| slash + 1));
    let prefix = member.prefix;
    match member.entry.kind {
        Kind::Directory => format!("{prefix}{path}/"),
        Kind::Whiteout => format!("{prefix}{above}.wh.{last}"),
        Kind::Opaque => format!("{prefix}{path}/.wh..wh..opq"),
        _ => format!("{prefix}{path}"),
    }
}

/// All that is told of a file but where its bytes are.
fn record(member: &Member) -> Value {
    let entry = &member.entry;
    let kind = match entry.kind {
        Kind::Directory => "dir",
        Kind::Regular { .. } | Kind::Whiteout | Kind::Opaque | Kind::Hidden { .. } => "reg",
        Kind::Symlink { .. } => "symlink",
        Kind::Hardlink { .. } => "hardlink",
        Kind::CharDevice { .. } => "char",
        Kind::BlockDevice { .. } => "block",
        Kind::Fifo => "fifo",
        Kind::Socket => panic!("a tar cannot hold a socket"),
    };
    let mut record = Map::new();
    let mut tell = |key: &str, value: Value| {
        // As Go's `omitempty` does.
        if value != json!(0) && value != json!("") && value != json!({}) {
            record.insert(key.to_owned(), value);
        }
    };
    tell("name", json!(records_name(member)));
    tell("type", json!(kind));
    tell("mode", json!(entry.mode));
    tell("uid", json!(entry.uid));
    tell("gid", json!(entry.gid));
    tell("modtime", json!(modtime(entry.mtime)));
    match &entry.kind {
        Kind::Regular { size } => tell("size", json!(size)),
        Kind::Symlink { target } => tell("linkName", json!(text(target))),
        Kind::Hardlink { target } => {
            tell(
                "linkName",
                json!(format!("{}{}", member.prefix, text(target))),
            );
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            tell("devMajor", json!(major));
            tell("devMinor", json!(minor));
        }
        _ => {}
    }
    let xattrs: Map<String, Value> = entry
        .xattrs
        .iter()
        .map(|(name, value)| {
            let value = base64::engine::general_purpose::STANDARD.encode(value);
            (text(name).to_owned(), json!(value))
        })
        .collect();
    tell("xattrs", json!(xattrs));
    Value::Object(record)
}

fn modtime(at: Timestamp) -> String {
    let time = chrono::DateTime::from_timestamp(at.secs, at.nanos).unwrap();
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}
