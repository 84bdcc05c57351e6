//! A zTOC as SOCI writes it, and the manifest that names it.

use std::io::{self, Read};

use serde_json::{Value, json};

use super::resumable::Resumable;
use super::{INDEX_V1, INDEX_V2, LAYER_DIGEST, LAYER_MEDIA_TYPE, ZTOC};
use crate::digest::Digest;
use crate::layer::entry::{Entry, Kind, Timestamp};
use crate::source::manifest::Descriptor;
use crate::sys::inflate::WINDOW_BYTES;

/// Collects what a zTOC tells; all of it in memory.
#[derive(Default)]
pub struct ZtocWriter {
    /// The part of the buffer with the files.
    files: Vec<u8>,
    /// Where in it each one is.
    places: Vec<usize>,
}

impl ZtocWriter {
    /// Adds a file whose bytes begin at `plain_at` of the tar stream, or would if it had any.
    pub fn file(&mut self, entry: &Entry, plain_at: u64) {
        let (kind, size, target): (&[u8], u64, &[u8]) = match &entry.kind {
            Kind::Directory => (b"dir", 0, b""),
            Kind::Regular { size } | Kind::Hidden { size } => (b"reg", *size, b""),
            Kind::Symlink { target } => (b"symlink", 0, target),
            Kind::Hardlink { target } => (b"hardlink", 0, target),
            Kind::CharDevice { .. } => (b"char", 0, b""),
            Kind::BlockDevice { .. } => (b"block", 0, b""),
            Kind::Fifo | Kind::Socket => (b"fifo", 0, b""),
            Kind::Whiteout | Kind::Opaque => (b"reg", 0, b""),
        };
        let (major, minor) = match entry.kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                (major, minor)
            }
            _ => (0, 0),
        };
        let mut file = Tables(&mut self.files);
        let number = |number: u32| u64::from(number).to_le_bytes();
        let fields: [Field; 14] = [
            Field::Place,
            Field::Place,
            Field::Long(plain_at.to_le_bytes()),
            Field::Long(size.to_le_bytes()),
            Field::Place,
            Field::Long(u64::from(entry.mode).to_le_bytes()),
            Field::Int(entry.uid.to_le_bytes()),
            Field::Int(entry.gid.to_le_bytes()),
            Field::Absent,
            Field::Absent,
            Field::Place,
            Field::Long(number(major)),
            Field::Long(number(minor)),
            match entry.xattrs[..] {
                [] => Field::Absent,
                _ => Field::Place,
            },
        ];
        let (at, places) = file.table(&fields);
        self.places.push(at);
        file.string(places[0], &name_of(entry));
        file.string(places[1], kind);
        file.string(places[2], target);
        file.string(places[3], time(entry.mtime).as_bytes());
        if let Some(&place) = places.get(4) {
            let attributes = file.vector(place, entry.xattrs.len());
            for (place, (name, value)) in attributes.into_iter().zip(&entry.xattrs) {
                let (at, places) = file.table(&[Field::Place, Field::Place]);
                file.refer(place, at);
                file.string(places[0], &[b"SCHILY.xattr.", &name[..]].concat());
                file.string(places[1], value);
            }
        }
    }

    /// The zTOC of the layer whose stream `plain` has come to its end.
    pub fn finish<R: Read>(self, plain: &Resumable<R>) -> io::Result<Vec<u8>> {
        let (packed_len, plain_len) = plain.lens();
        let digests = plain.span_digests();
        let mut bytes = vec![0; 4];
        let mut top = Tables(&mut bytes);
        let (root, places) = top.table(&[
            Field::Place,
            Field::Place,
            Field::Long(packed_len.to_le_bytes()),
            Field::Long(plain_len.to_le_bytes()),
            Field::Place,
            Field::Place,
        ]);
        top.refer(0, root);
        let (toc, files) = top.table(&[Field::Place]);
        top.refer(places[2], toc);
        let last = (digests.len() as u32).wrapping_sub(1);
        let (compression, spans) = top.table(&[
            Field::Byte(1),
            Field::Int(last.to_le_bytes()),
            Field::Place,
            Field::Place,
        ]);
        top.refer(places[3], compression);
        top.string(places[0], b"0.9");
        let tool = concat!("sifon ", env!("CARGO_PKG_VERSION"));
        top.string(places[1], tool.as_bytes());
        let names = top.vector(spans[0], digests.len());
        for (place, digest) in names.into_iter().zip(digests) {
            top.string(place, digest.to_string().as_bytes());
        }
        top.string(spans[1], &checkpoints(plain)?);
        let entries = top.vector(files[0], self.places.len());
        top.align(8);
        let base = top.0.len();
        top.0.extend_from_slice(&self.files);
        for (place, file) in entries.into_iter().zip(&self.places) {
            top.refer(place, base + file);
        }
        Ok(bytes)
    }
}

/// `gzip_zinfo.c`, `zinfo_to_blob`: windows as they are, what no byte preceded filled with zeros.
fn checkpoints<R: Read>(plain: &Resumable<R>) -> io::Result<Vec<u8>> {
    let resumptions = plain.resumptions();
    let mut blob = (resumptions.len() as u32).to_le_bytes().to_vec();
    blob.extend(plain.spacing().to_le_bytes());
    for at in resumptions {
        blob.extend(at.packed_at.to_le_bytes());
        blob.extend(at.plain_at.to_le_bytes());
        blob.push(at.bits);
        let window = match &at.window[..] {
            [] => Vec::new(),
            window => zstd::bulk::decompress(window, WINDOW_BYTES)?,
        };
        blob.resize(blob.len() + WINDOW_BYTES - window.len(), 0);
        blob.extend(window);
    }
    Ok(blob)
}

/// What stands in a table.
enum Field {
    /// Where something else is, told later.
    Place,
    Long([u8; 8]),
    Int([u8; 4]),
    Byte(u8),
    Absent,
}

/// A FlatBuffer that is written from front to back: places are filled in when what they lead to is written.
struct Tables<'a>(&'a mut Vec<u8>);

impl Tables<'_> {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    /// Appends a table; where it is, and where the places in it are, in their order.
    fn table(&mut self, fields: &[Field]) -> (usize, Vec<usize>) {
        let size = |field: &Field| match field {
            Field::Long(_) => 8,
            Field::Place | Field::Int(_) => 4,
            Field::Byte(_) => 1,
            Field::Absent => 0,
        };
        // The largest first, behind four bytes, so that each lies at a multiple of its size.
        let mut offsets = vec![0u16; fields.len()];
        let mut end = 4u16;
        for wanted in [8, 4, 1] {
            for (field, offset) in fields.iter().zip(&mut offsets) {
                if size(field) == wanted {
                    *offset = end;
                    end += wanted;
                }
            }
        }
        self.align(8);
        let fields_at = self.0.len();
        self.0.extend((4 + 2 * fields.len() as u16).to_le_bytes());
        self.0.extend(end.to_le_bytes());
        self.0
            .extend(offsets.iter().flat_map(|offset| offset.to_le_bytes()));
        self.0.resize(self.0.len().next_multiple_of(8) + 4, 0);
        let at = self.0.len();
        self.0.extend(((at - fields_at) as i32).to_le_bytes());
        self.0.resize(at + usize::from(end), 0);
        let mut places = Vec::new();
        for (field, &offset) in fields.iter().zip(&offsets) {
            let place = at + usize::from(offset);
            match field {
                Field::Place => places.push(place),
                Field::Long(bytes) => self.0[place..place + 8].copy_from_slice(bytes),
                Field::Int(bytes) => self.0[place..place + 4].copy_from_slice(bytes),
                Field::Byte(byte) => self.0[place] = *byte,
                Field::Absent => {}
            }
        }
        (at, places)
    }

    /// Makes `place` lead to `at`, which comes after it.
    fn refer(&mut self, place: usize, at: usize) {
        let offset = (at - place) as u32;
        self.0[place..place + 4].copy_from_slice(&offset.to_le_bytes());
    }

    /// Appends a string or a vector of bytes, to which `place` then leads.
    fn string(&mut self, place: usize, bytes: &[u8]) {
        self.align(4);
        self.refer(place, self.0.len());
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self.0.push(0);
    }

    /// Appends a vector of `len` places, to which `place` then leads.
    fn vector(&mut self, place: usize, len: usize) -> Vec<usize> {
        self.align(4);
        self.refer(place, self.0.len());
        self.0.extend((len as u32).to_le_bytes());
        let first = self.0.len();
        self.0.resize(first + 4 * len, 0);
        (0..len).map(|index| first + 4 * index).collect()
    }
}

/// The name as an archive has it.
fn name_of(entry: &Entry) -> Vec<u8> {
    let path = &entry.path;
    let start = path.iter().rposition(|&byte| byte == b'/');
    let (above, last) = path.split_at(start.map_or(0, |slash| slash + 1));
    match entry.kind {
        Kind::Directory => [&path[..], b"/"].concat(),
        Kind::Whiteout => [above, b".wh.", last].concat(),
        Kind::Opaque if path.is_empty() => b".wh..wh..opq".to_vec(),
        Kind::Opaque => [&path[..], b"/.wh..wh..opq"].concat(),
        _ => path.clone(),
    }
}

/// As Go's RFC3339Nano.
fn time(at: Timestamp) -> String {
    let time = chrono::DateTime::from_timestamp(at.secs, at.nanos).unwrap_or_default();
    time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Which of SOCI's manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Attached to the image of this descriptor, which it does not change.
    V1,
    /// Named by the image.
    V2,
}

/// The manifest of an index: for each layer, its descriptor and that of its zTOC. With version 1 it says that it is about
/// `subject`.
pub fn index_manifest(
    version: Version,
    subject: Option<&Descriptor>,
    layers: &[(&Descriptor, Descriptor)],
) -> Value {
    let ztocs: Vec<Value> = layers
        .iter()
        .map(|(layer, ztoc)| {
            json!({
                "mediaType": ZTOC,
                "digest": ztoc.digest,
                "size": ztoc.size,
                "annotations": {
                    LAYER_DIGEST: layer.digest,
                    LAYER_MEDIA_TYPE: layer.media_type,
                },
            })
        })
        .collect();
    let kind = match version {
        Version::V1 => INDEX_V1,
        Version::V2 => INDEX_V2,
    };
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": kind, "digest": Digest::of(b"{}"), "size": 2},
        "layers": ztocs,
        "annotations": {
            "com.amazon.soci.build-tool-identifier": concat!("sifon ", env!("CARGO_PKG_VERSION")),
        },
    });
    if let Some(subject) = subject {
        manifest["subject"] = json!({
            "mediaType": subject.media_type,
            "digest": subject.digest,
            "size": subject.size,
        });
    }
    manifest
}
