//! What a tree shows; this file has the layers that the tests are made of.

mod damage;
mod extraction;
mod model;
mod rules;

use super::*;
use crate::digest::{ChunkDigest, Digest};
use crate::extent::PackedOffset;
use crate::layer::entry::{Entry, Kind};
use crate::layer::table::{self, Chunk, Codec, Piece, Table, TableWriter};
use crate::sys::Sealed;

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 5,
        gid: 6,
        mtime: Timestamp { secs: 7, nanos: 8 },
        xattrs: Vec::new(),
    }
}

fn dir(path: &str) -> Entry {
    entry(path, Kind::Directory)
}

fn file(path: &str) -> Entry {
    entry(path, Kind::Regular { size: 1 })
}

fn symlink(path: &str, target: &str) -> Entry {
    let target = target.into();
    entry(path, Kind::Symlink { target })
}

fn hard_link(path: &str, target: &str) -> Entry {
    let target = target.into();
    entry(path, Kind::Hardlink { target })
}

fn whiteout(path: &str) -> Entry {
    entry(path, Kind::Whiteout)
}

fn opaque(path: &str) -> Entry {
    entry(path, Kind::Opaque)
}

fn owned_by(uid: u32, entry: Entry) -> Entry {
    Entry { uid, ..entry }
}

/// The table of a layer; each file's bytes are one piece, in a chunk of its own.
fn table(name: &str, entries: &[Entry]) -> Table {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    for entry in entries {
        let pieces = match entry.kind {
            Kind::Regular { size } => {
                let chunk = writer.chunk(&chunk(size)).unwrap();
                writer.pieces(&[Piece::in_chunk(0, chunk, 0)]).unwrap()
            }
            _ => PieceRange::default(),
        };
        writer.entry(entry, pieces).unwrap();
    }
    let mut bytes = Vec::new();
    writer.finish(digest(name), &mut bytes).unwrap();
    table::from_reader(&bytes[..]).unwrap()
}

fn chunk(size: u64) -> Chunk<'static> {
    Chunk {
        packed_at: PackedOffset(0),
        packed_len: size as u32,
        skip: 0,
        plain_len: size as u32,
        codec: Codec::Raw,
        digest: ChunkDigest::blake3_of(b""),
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn merged(layers: &[Vec<Entry>]) -> Result<Vec<u8>, MergeError> {
    let named = layers.iter().enumerate();
    let tables: Vec<_> = named
        .map(|(place, entries)| table(&format!("layer {place}"), entries))
        .collect();
    let mut bytes = Vec::new();
    merge(&tables.iter().collect::<Vec<_>>(), &mut bytes)?;
    Ok(bytes)
}

fn tree(layers: &[Vec<Entry>]) -> Tree {
    Tree::open(Sealed::in_memory(merged(layers).unwrap())).unwrap()
}

/// The names that a tree shows: those of directories end in a slash, links tell their target.
fn names(layers: &[Vec<Entry>]) -> Vec<String> {
    let tree = tree(layers);
    let shown = tree.walk().skip(1).map(|step| {
        let (path, id) = step.unwrap();
        let path = text(&path);
        match tree.node(id).unwrap().kind {
            NodeKind::Directory => path + "/",
            NodeKind::Symlink => format!("{path} -> {}", text(tree.link_target(id).unwrap())),
            _ => path,
        }
    });
    shown.collect()
}

fn at(tree: &Tree, path: &str) -> NodeId {
    match tree.resolve(path.as_bytes()).unwrap() {
        Resolved::Found(id) => id,
        other => panic!("{path}: {other:?}"),
    }
}

fn node_at(tree: &Tree, path: &str) -> Node {
    tree.node(at(tree, path)).unwrap()
}

fn refusal(layers: &[Vec<Entry>]) -> String {
    merged(layers).unwrap_err().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the tests' names are UTF-8")
}
