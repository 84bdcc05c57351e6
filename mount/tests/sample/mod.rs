//! A small image made in memory, with something of everything.
#![allow(dead_code)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sifon_mount::digest::{ChunkDigest, Digest};
use sifon_mount::extent::PackedOffset;
use sifon_mount::fetch::{ChunkSource, ReadError};
use sifon_mount::image::Image;
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
use sifon_mount::layer::table::{
    Chunk, ChunkIndex, Codec, Piece, PieceRange, Table, TableWriter, from_reader,
};
use sifon_mount::sys::Sealed;
use sifon_mount::tree::{Tree, merge};

/// Chunks that are all in memory.
pub struct Memory(pub Vec<Bytes>);

impl ChunkSource for Memory {
    fn cached(&self, _: u16, chunk: ChunkIndex) -> Option<Bytes> {
        self.0.get(chunk.0 as usize).cloned()
    }

    fn chunk(&self, layer: u16, chunk: ChunkIndex, _: Instant) -> Result<Bytes, ReadError> {
        self.cached(layer, chunk)
            .ok_or_else(|| ReadError::Tree("no such chunk".into()))
    }
}

/// One layer being written.
pub struct Layer {
    writer: TableWriter,
    _scratch: tempfile::TempDir,
    chunks: Vec<Bytes>,
}

/// A stretch of a file: its length, and where its bytes lie.
pub type Stretch = (u64, Option<(ChunkIndex, u32)>);

impl Layer {
    pub fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self {
            writer: TableWriter::in_directory(scratch.path()),
            _scratch: scratch,
            chunks: Vec::new(),
        }
    }

    pub fn chunk(&mut self, plain: impl Into<Bytes>) -> ChunkIndex {
        let plain = plain.into();
        let index = self
            .writer
            .chunk(&Chunk {
                packed_at: PackedOffset(0),
                packed_len: plain.len() as u32,
                skip: 0,
                plain_len: plain.len() as u32,
                codec: Codec::Raw,
                digest: ChunkDigest::blake3_of(&plain),
            })
            .unwrap();
        self.chunks.push(plain);
        index
    }

    /// Whatever `change` does not change is a directory's, of root, mode 0755.
    pub fn entry(&mut self, path: &[u8], kind: Kind, change: impl FnOnce(&mut Entry)) {
        self.entry_with_pieces(path, kind, PieceRange::default(), change);
    }

    pub fn entry_with_pieces(
        &mut self,
        path: &[u8],
        kind: Kind,
        pieces: PieceRange,
        change: impl FnOnce(&mut Entry),
    ) {
        let mut entry = Entry {
            path: path.to_vec(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp {
                secs: 1_000_000_000,
                nanos: 5,
            },
            xattrs: Vec::new(),
        };
        change(&mut entry);
        self.writer.entry(&entry, pieces).unwrap();
    }

    pub fn pieces(&mut self, pieces: &[Piece]) -> PieceRange {
        self.writer.pieces(pieces).unwrap()
    }

    /// A file of stretches that follow each other.
    pub fn file(&mut self, path: &[u8], stretches: &[Stretch]) {
        let mut at = 0;
        let mut pieces = Vec::new();
        for (len, place) in stretches {
            pieces.push(match place {
                Some((chunk, skip)) => Piece::in_chunk(at, *chunk, *skip),
                None => Piece::hole(at),
            });
            at += len;
        }
        let pieces = self.pieces(&pieces);
        self.entry_with_pieces(path, Kind::Regular { size: at }, pieces, |entry| {
            entry.mode = 0o644;
        });
    }

    /// A file with a chunk of its own.
    pub fn text(&mut self, path: &str, text: &str) {
        let chunk = self.chunk(text.as_bytes().to_vec());
        self.file(path.as_bytes(), &[(text.len() as u64, Some((chunk, 0)))]);
    }

    pub fn tree(mut self) -> (Tree, Vec<Arc<Table>>, Vec<Bytes>) {
        let mut bytes = Vec::new();
        self.writer
            .finish(Digest::of(b"layer"), &mut bytes)
            .unwrap();
        let table = from_reader(&bytes[..]).unwrap();
        let mut tree = Vec::new();
        merge(&[&table], &mut tree).unwrap();
        let tree = Tree::open(Sealed::in_memory(tree)).unwrap();
        (tree, vec![Arc::new(table)], self.chunks)
    }

    pub fn image(self) -> Arc<Image> {
        let (tree, tables, chunks) = self.tree();
        Arc::new(Image::new(tree, tables, Arc::new(Memory(chunks))))
    }
}

/// What the file `big` of [`everything`] holds.
pub fn big() -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in 0..20u32 {
        let byte = |at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8;
        bytes.extend((0..131_072).map(|at| byte(at + block * 131_072)));
    }
    bytes[3 * 131_072..7 * 131_072].fill(0);
    bytes.truncate(20 * 131_072 - 5);
    bytes
}

/// Names in the directory `many` of [`everything`].
pub const MANY: usize = 3000;

/// Something of everything; with extended attributes only if asked for.
pub fn everything(with_xattrs: bool) -> Layer {
    let mut layer = Layer::new();
    layer.entry(b"", Kind::Directory, |_| {});
    layer.text("hello", "hello, image\n");
    layer.entry(b"bin", Kind::Directory, |_| {});
    let program = layer.chunk(&b"#!/bin/sh\necho ran\n"[..]);
    let pieces = layer.pieces(&[Piece::in_chunk(0, program, 0)]);
    layer.entry_with_pieces(b"bin/run", Kind::Regular { size: 19 }, pieces, |entry| {
        entry.mode = 0o4755;
    });
    layer.entry(b"bin/sub", Kind::Directory, |entry| entry.mode = 0o1777);
    let pieces = layer.pieces(&[Piece::in_chunk(0, program, 0)]);
    layer.entry_with_pieces(b"secret", Kind::Regular { size: 19 }, pieces, |entry| {
        (entry.mode, entry.uid, entry.gid) = (0o600, 70_000, 70_001);
        entry.mtime = Timestamp {
            secs: -2,
            nanos: 750_000_000,
        };
        if with_xattrs {
            entry.xattrs = vec![
                (b"user.empty".to_vec(), vec![]),
                (b"user.key".to_vec(), b"value".to_vec()),
            ];
        }
    });
    big_file(&mut layer);
    let bundle = layer.chunk(&b"onetwothree"[..]);
    layer.file(b"one", &[(3, Some((bundle, 0)))]);
    layer.file(b"three", &[(5, Some((bundle, 6)))]);
    layer.file(b"empty", &[]);
    layer.file(b"sparse", &[(1 << 40, None)]);
    let to = |target: &[u8]| Kind::Symlink {
        target: target.to_vec(),
    };
    layer.entry(b"link", to(b"bin/run"), |_| {});
    layer.entry(b"absolute", to(b"/bin/sub"), |_| {});
    layer.entry(b"loop", to(b"loop"), |_| {});
    let target = b"hello".to_vec();
    layer.entry(b"second name", Kind::Hardlink { target }, |_| {});
    let (major, minor) = (300, 70_000);
    layer.entry(b"device", Kind::CharDevice { major, minor }, |_| {});
    layer.entry(b"pipe", Kind::Fifo, |_| {});
    layer.entry(b"not utf8 \xff", Kind::Directory, |_| {});
    layer.entry(b"many", Kind::Directory, |_| {});
    for number in 0..MANY {
        layer.file(format!("many/{number:04}").as_bytes(), &[]);
    }
    layer
}

fn big_file(layer: &mut Layer) {
    let stretches: Vec<Stretch> = big()
        .chunks(131_072)
        .map(|block| {
            let place =
                (block.iter().any(|&byte| byte != 0)).then(|| (layer.chunk(block.to_vec()), 0));
            (block.len() as u64, place)
        })
        .collect();
    layer.file(b"big", &stretches);
}
