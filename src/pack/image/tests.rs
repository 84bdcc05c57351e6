//! Images made by hand, as the packer sees them.

use std::sync::Arc;

use sifon_mount::digest::{ChunkDigest, Digest};
use sifon_mount::extent::PackedOffset;
use sifon_mount::fetch::{ChunkSource, NativeBytes, ReadError, WholeChunk};
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
use sifon_mount::layer::table::{
    Chunk, ChunkIndex, Codec, Piece, PieceRange, Table, TableWriter, from_reader,
};
use sifon_mount::sys::Sealed;

use super::*;
use crate::pack::layout::Packing;

/// Chunks that are in memory, those of each layer.
#[derive(Default)]
struct InMemory(Vec<Vec<Bytes>>);

impl ChunkSource for InMemory {
    fn cached(&self, _: u16, _: ChunkIndex) -> Option<Bytes> {
        None
    }

    fn chunk(&self, layer: u16, chunk: ChunkIndex, _: Instant) -> Result<Bytes, ReadError> {
        Ok(self.0[usize::from(layer)][chunk.0 as usize].clone())
    }

    fn whole(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        deadline: Instant,
    ) -> Result<WholeChunk, ReadError> {
        let plain = self.chunk(layer, chunk, deadline)?;
        let digest = blake3::hash(&plain).into();
        Ok(WholeChunk {
            plain,
            native: Some(NativeBytes {
                frame: None,
                digest,
            }),
        })
    }
}

/// A file of one layer: its name, size, and where its pieces are: `None` in a hole.
type Filed<'a> = (&'a str, u64, &'a [(u64, Option<(u32, u32)>)]);

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o640,
        uid: 7,
        gid: 8,
        mtime: Timestamp { secs: 9, nanos: 1 },
        xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
    }
}

fn table(chunks: &[Bytes], entries: &[(Entry, &[Piece])]) -> Table {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    for plain in chunks {
        let chunk = Chunk {
            packed_at: PackedOffset(0),
            skip: 0,
            packed_len: 0,
            plain_len: plain.len() as u32,
            codec: Codec::Raw,
            digest: ChunkDigest::blake3_of(plain),
        };
        writer.chunk(&chunk).unwrap();
    }
    for (entry, pieces) in entries {
        let pieces = match pieces {
            [] => PieceRange::default(),
            pieces => writer.pieces(pieces).unwrap(),
        };
        writer.entry(entry, pieces).unwrap();
    }
    let mut bytes = Vec::new();
    writer
        .finish(Digest::of(&(chunks.len() as u64).to_le_bytes()), &mut bytes)
        .unwrap();
    from_reader(&bytes[..]).unwrap()
}

fn image(layers: Vec<(Table, Vec<Bytes>)>) -> Image {
    let (tables, chunks): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let mut bytes = Vec::new();
    let merged: Vec<&Table> = tables.iter().collect();
    sifon_mount::tree::merge(&merged, &mut bytes).unwrap();
    let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();
    let tables = tables.into_iter().map(Arc::new).collect();
    Image::new(tree, tables, Arc::new(InMemory(chunks)))
}

/// A layer of files whose chunks are `chunks`.
fn layer(chunks: Vec<Bytes>, files: &[Filed<'_>]) -> (Table, Vec<Bytes>) {
    let pieces: Vec<Vec<Piece>> = files
        .iter()
        .map(|(_, _, pieces)| {
            let piece = |&(at, place): &(u64, Option<(u32, u32)>)| match place {
                Some((chunk, skip)) => Piece::in_chunk(at, ChunkIndex(chunk), skip),
                None => Piece::hole(at),
            };
            pieces.iter().map(piece).collect()
        })
        .collect();
    let entries: Vec<_> = files
        .iter()
        .zip(&pieces)
        .map(|((path, size, _), pieces)| (entry(path, Kind::Regular { size: *size }), &pieces[..]))
        .collect();
    (table(&chunks, &entries), chunks)
}

fn source(image: &Image) -> TreeSource<'_> {
    TreeSource::new(image, Duration::from_secs(10))
}

fn number(source: &TreeSource<'_>, path: &str) -> u64 {
    source.found(path.as_bytes()).unwrap().unwrap().0
}

fn sample() -> Image {
    let target = |text: &str| text.as_bytes().to_vec();
    let hard = Kind::Hardlink {
        target: target("d/f"),
    };
    let soft = Kind::Symlink {
        target: target("d/f"),
    };
    let entries = [
        ("d", Kind::Directory),
        ("d/f", Kind::Regular { size: 300 }),
        ("d/g", hard),
        ("d-e", Kind::Fifo),
        ("l", soft),
        ("n", Kind::CharDevice { major: 1, minor: 3 }),
    ];
    let pieces = [Piece::in_chunk(0, ChunkIndex(0), 0)];
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(path, kind)| {
            let is_file = matches!(kind, Kind::Regular { .. });
            (entry(path, kind), &pieces[..usize::from(is_file)])
        })
        .collect();
    let chunks = vec![Bytes::from(vec![5; 300])];
    image(vec![(table(&chunks, &entries), chunks)])
}

#[test]
fn a_tree_is_walked_with_everything_that_its_nodes_have() {
    let image = sample();
    let nodes: Vec<_> = source(&image).nodes().map(Result::unwrap).collect();
    let names: Vec<_> = nodes
        .iter()
        .map(|node| str::from_utf8(&node.path).unwrap())
        .collect();
    assert_eq!(names, ["", "d", "d/f", "d/g", "d-e", "l", "n"]);
    let f = &nodes[2];
    assert_eq!((f.mode, f.uid, f.gid), (0o640, 7, 8));
    assert_eq!(f.xattrs, [(b"user.x".to_vec(), b"y".to_vec())]);
    assert_eq!(f.mtime, Timestamp { secs: 9, nanos: 1 });
    assert!(f.linked.is_some() && f.linked == nodes[3].linked);
    assert_eq!((nodes[1].linked, nodes[4].linked), (None, None));
    assert!(matches!(f.kind, PackKind::Regular { size: 300, .. }));
    assert_eq!(nodes[4].kind, PackKind::Fifo);
    assert_eq!(
        nodes[5].kind,
        PackKind::Symlink {
            target: b"d/f".to_vec()
        }
    );
    assert_eq!(nodes[6].kind, PackKind::CharDevice { major: 1, minor: 3 });
}

#[test]
fn what_stands_at_a_path_is_found_without_following_links() {
    let image = sample();
    let link = Standing::Symlink(b"d/f".to_vec());
    for (path, expected) in [
        ("d", Some(Standing::Directory)),
        ("d/f", Some(Standing::File)),
        ("l", Some(link)),
        ("l/x", None),
        ("d/f/x", None),
        ("nowhere", None),
    ] {
        let standing = source(&image).standing(path.as_bytes()).unwrap();
        assert_eq!(standing, expected, "{path}");
    }
}

#[test]
fn bytes_come_from_the_image() {
    let image = sample();
    let source = source(&image);
    let mut into = [0; 8];
    let file = number(&source, "d/f");
    assert_eq!(source.read(file, 295, &mut into).unwrap(), 5);
    assert_eq!(into, [5, 5, 5, 5, 5, 0, 0, 0]);
}

/// Blocks and tails in the chunks that a streamed layer has.
fn bundled() -> (Table, Vec<Bytes>) {
    let block = BLOCK_BYTES as u64;
    let chunks = [vec![1; BLOCK_BYTES], vec![2; 30], vec![3; BLOCK_BYTES - 5]];
    layer(
        chunks.map(Bytes::from).into(),
        &[
            (
                "large",
                3 * block + 10,
                &[(0, Some((0, 0))), (block, None), (3 * block, Some((1, 0)))],
            ),
            ("small", 20, &[(0, Some((1, 10)))]),
            ("empty", 0, &[]),
            ("almost", block - 5, &[(0, Some((2, 0)))]),
        ],
    )
}

fn laid_out(image: &Image, paths: &[&str]) -> (Vec<(String, Option<u32>)>, Vec<bool>) {
    let source = source(image);
    let files: Vec<_> = paths
        .iter()
        .map(|path| {
            let file = number(&source, path);
            let size = image.tree().node(NodeId(file)).unwrap().size;
            Sized { file, size }
        })
        .collect();
    let layout = source.layout(&files).unwrap();
    let order = layout.order.iter();
    let order = order.map(|placed| (paths[placed.index].to_owned(), placed.bundle));
    (order.collect(), layout.is_whole)
}

#[test]
fn contents_lie_as_their_layers_have_them() {
    let top = layer(vec![vec![9; 3].into()], &[("a", 3, &[(0, Some((0, 0)))])]);
    let image = image(vec![bundled(), top]);
    let (order, is_whole) = laid_out(&image, &["a", "almost", "large", "small"]);
    let expected = [("large", 0), ("small", 0), ("almost", 1), ("a", 2)];
    assert_eq!(
        order,
        expected.map(|(path, bundle)| (path.to_owned(), Some(bundle)))
    );
    assert_eq!(is_whole, [true, true, true]);
}

#[test]
fn a_bundle_with_a_file_that_is_not_packed_is_not_whole() {
    let image = image(vec![bundled()]);
    let (order, is_whole) = laid_out(&image, &["large", "almost"]);
    assert_eq!(
        order,
        [("large".into(), Some(0)), ("almost".into(), Some(1))]
    );
    assert_eq!(is_whole, [false, true]);
}

fn stored_as_it_is(plain: &[u8]) -> Packing {
    Packing {
        compressed: None,
        digest: blake3::hash(plain),
    }
}

#[test]
fn whole_chunks_come_with_their_packing_and_parts_without() {
    let image = image(vec![bundled()]);
    let source = source(&image);
    let large = number(&source, "large");
    let block = source.block(large, 0).unwrap();
    assert_eq!(
        (block.plain.len(), block.packing),
        (BLOCK_BYTES, Some(stored_as_it_is(&block.plain)))
    );
    assert_eq!(source.hole(large, 0).unwrap(), 0);
    assert_eq!(source.hole(large, BLOCK_BYTES as u64).unwrap(), 2 << 17);
    let tail = |path: &str, at: u64, len| Tail {
        file: number(&source, path),
        at,
        len,
    };
    let tails = [tail("large", 3 << 17, 10), tail("small", 0, 20)];
    let whole = source.bundle(&tails).unwrap();
    assert_eq!(
        (&whole.plain[..], whole.packing),
        (&[2; 30][..], Some(stored_as_it_is(&[2; 30])))
    );
    for (part, len) in [(&tails[..1], 10), (&tails[1..], 20)] {
        let part = source.bundle(part).unwrap();
        assert_eq!((&part.plain[..], part.packing), (&vec![2; len][..], None));
    }
}
