//! The file system without the kernel.
#![allow(clippy::unwrap_used)]

mod sample;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use sample::{Layer, MANY, Stretch, everything};
use sifon_mount::fetch::{ChunkSource, ReadError};
use sifon_mount::image::{AddError, AdditionKind, Enough, Image, Owners};
use sifon_mount::layer::entry::Kind;
use sifon_mount::layer::table::{ChunkIndex, Piece};
use sifon_mount::tree::{NodeId, NodeKind};

fn id(image: &Image, path: &str) -> NodeId {
    image.resolved(path.as_bytes()).unwrap().unwrap()
}

fn names(image: &Image, directory: NodeId) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut from = 0;
    // In small parts, as the kernel asks.
    loop {
        let before = names.len();
        let start = from;
        let each = |name: &[u8], _, next| {
            if names.len() == before + 7 {
                return Enough::Yes;
            }
            names.push(name.to_vec());
            from = next;
            Enough::No
        };
        image.children(directory, start, each).unwrap();
        if names.len() == before {
            return names;
        }
    }
}

proptest! {
    /// However a file is cut into chunks, bundles and holes, what is read is what was put in.
    #[test]
    fn any_range_of_any_file_reads_as_its_model(
        stretches in prop::collection::vec((0u64..50, prop::option::of(0u32..3)), 0..12),
        ranges in prop::collection::vec((0u64..500, 0u32..500), 1..8),
    ) {
        let mut layer = Layer::new();
        let texts: Vec<Vec<u8>> = (0..3u8).map(|text| (0..60).map(|at| text * 60 + at + 1).collect()).collect();
        let chunks: Vec<ChunkIndex> = texts.iter().map(|text| layer.chunk(text.clone())).collect();
        let mut model = Vec::new();
        let mut cut: Vec<Stretch> = Vec::new();
        for (len, text) in stretches {
            let place = text.map(|text| (chunks[text as usize], text + 1));
            match text {
                Some(text) => model.extend_from_slice(&texts[text as usize][text as usize + 1..][..len as usize]),
                None => model.extend(std::iter::repeat_n(0, len as usize)),
            }
            cut.push((len, place));
        }
        layer.file(b"f", &cut);
        let image = layer.image();
        let file = id(&image, "f");
        for (from, len) in ranges {
            let start = (from as usize).min(model.len());
            let end = (start + len as usize).min(model.len());
            let cached = image.read_cached(file, from, len).unwrap();
            prop_assert_eq!(cached.as_deref(), Some(&model[start..end]));
            let waited = image.read(file, from, len, Instant::now()).unwrap();
            prop_assert_eq!(&waited[..], &model[start..end]);
        }
    }
}

#[test]
fn a_cached_read_asks_for_nothing_that_is_not_in_memory() {
    struct Cold;
    impl ChunkSource for Cold {
        fn cached(&self, _: u16, chunk: ChunkIndex) -> Option<Bytes> {
            (chunk.0 == 0).then(|| Bytes::from_static(b"aaa"))
        }
        fn chunk(&self, _: u16, _: ChunkIndex, _: Instant) -> Result<Bytes, ReadError> {
            Ok(Bytes::from_static(b"bbb"))
        }
    }
    let mut layer = Layer::new();
    let (warm, cold) = (layer.chunk(&b"aaa"[..]), layer.chunk(&b"bbb"[..]));
    layer.file(
        b"f",
        &[(3, Some((warm, 0))), (4, None), (3, Some((cold, 0)))],
    );
    let (tree, tables, _) = layer.tree();
    let image = Image::new(tree, tables, Arc::new(Cold));
    let file = id(&image, "f");
    assert_eq!(
        image.read_cached(file, 0, 7).unwrap().as_deref(),
        Some(&b"aaa\0\0\0\0"[..])
    );
    assert_eq!(
        image.read_cached(file, 3, 4).unwrap().as_deref(),
        Some(&[0; 4][..])
    );
    assert_eq!(image.read_cached(file, 0, 8).unwrap(), None);
    assert_eq!(
        image.read_cached(file, 10, 8).unwrap().as_deref(),
        Some(&b""[..])
    );
}

#[test]
fn damaged_pieces_are_an_error_and_never_other_bytes() {
    let at = |at, skip| Piece::in_chunk(at, ChunkIndex(0), skip);
    let damaged: [&[Piece]; 6] = [
        &[],
        &[at(1, 0)],
        &[at(0, 8)],
        &[at(0, u32::MAX)],
        &[at(0, 0), at(9, 0), at(4, 0)],
        &[Piece::in_chunk(0, ChunkIndex(7), 0)],
    ];
    for pieces in damaged {
        let mut layer = Layer::new();
        layer.chunk(&b"0123456789"[..]);
        let pieces_of = layer.pieces(pieces);
        layer.entry_with_pieces(b"f", Kind::Regular { size: 10 }, pieces_of, |_| {});
        let image = layer.image();
        let file = id(&image, "f");
        let read = image.read(file, 0, 10, Instant::now());
        assert!(read.is_err(), "{pieces:?}: {read:?}");
    }
}

#[test]
fn only_regular_files_can_be_read() {
    let image = everything(false).image();
    for path in ["bin", "device", "pipe"] {
        assert!(image.read_cached(id(&image, path), 0, 1).is_err(), "{path}");
    }
    assert!(image.read_cached(NodeId(u64::MAX), 0, 1).is_err());
}

#[test]
fn owners_are_the_images_or_the_callers() {
    let image = everything(false).image();
    let secret = id(&image, "secret");
    let shown = |owners: Owners| {
        let shown = owners.shown(secret, image.node(secret).unwrap());
        (shown.uid, shown.gid, shown.blocks())
    };
    assert_eq!(shown(Owners::AsInImage), (70_000, 70_001, 1));
    assert_eq!(shown(Owners::Caller { uid: 7, gid: 8 }), (7, 8, 1));
    let sparse = image.node(id(&image, "sparse")).unwrap();
    assert_eq!((sparse.size, sparse.allocated), (1 << 40, 0));
}

#[test]
fn a_listing_continues_where_it_stopped() {
    let image = everything(false).image();
    let many = id(&image, "many");
    image.add(b"many/zz", AdditionKind::File).unwrap();
    image.add(b"many/0", AdditionKind::Directory).unwrap();
    let names = names(&image, many);
    assert_eq!(names.len(), MANY + 2);
    assert_eq!(names[MANY - 1], b"2999");
    assert_eq!(names[MANY..], [b"zz".to_vec(), b"0".to_vec()]);
}

#[test]
fn an_addition_is_beside_the_tree_and_never_in_it() {
    let image = everything(false).image();
    let (count, root) = (image.file_count(), image.node(NodeId(1)).unwrap());
    let added = image.add(b"/a/b/c", AdditionKind::File).unwrap();
    assert_eq!(added.path, b"a/b/c");
    assert_eq!(added.news, Some((NodeId(1), b"a".to_vec())));
    assert_eq!(image.file_count(), count + 3);
    assert_eq!(image.tree().node_count(), count);
    assert_eq!(image.node(NodeId(1)).unwrap().nlink, root.nlink + 1);
    let directory = image.node(id(&image, "a")).unwrap();
    assert_eq!((directory.kind, directory.nlink), (NodeKind::Directory, 3));
    let file = image.node(added.id).unwrap();
    assert!(matches!(file.kind, NodeKind::Regular { .. }));
    assert_eq!((file.nlink, file.size), (1, 0));
    assert_eq!(
        image.read_cached(added.id, 0, 10).unwrap().as_deref(),
        Some(&b""[..])
    );
    assert_eq!(image.xattrs(added.id).unwrap(), []);
    assert_eq!(names(&image, id(&image, "a")), [b"b".to_vec()]);
    assert_eq!(image.parent(id(&image, "a/b")).unwrap(), id(&image, "a"));
    let again = image.add(b"a/b/../b/c", AdditionKind::File).unwrap();
    assert_eq!((again.id, again.news), (added.id, None));
}

#[test]
fn an_addition_follows_the_images_links_inside_the_image() {
    let image = everything(false).image();
    for (path, resolved) in [
        ("absolute/new", "bin/sub/new"),
        ("absolute/../new", "bin/new"),
        ("../../../new", "new"),
        ("gone/../other", "other"),
        ("link", "bin/run"),
        ("absolute", "bin/sub"),
        ("/", ""),
    ] {
        let added = image.add(path.as_bytes(), AdditionKind::File).unwrap();
        assert_eq!(added.path, resolved.as_bytes(), "{path}");
        assert_eq!(added.id, id(&image, resolved), "{path}");
    }
    assert_eq!(image.resolved(b"gone").unwrap(), None);
}

#[test]
fn a_path_that_leads_nowhere_is_refused() {
    let image = everything(false).image();
    let refused = |path: &[u8]| image.add(path, AdditionKind::File).unwrap_err();
    assert!(matches!(refused(b"hello/x"), AddError::NotADirectory(_)));
    assert!(matches!(refused(b"loop/x"), AddError::Loop(_)));
    assert!(matches!(refused(&[b'x'; 256]), AddError::Long(_)));
    assert!(matches!(refused(b"a\0b"), AddError::Long(_)));
    image.add(b"file", AdditionKind::File).unwrap();
    assert!(matches!(refused(b"file/x"), AddError::NotADirectory(_)));
    assert_eq!(image.file_count(), image.tree().node_count() + 1);
}

#[test]
fn threads_that_add_the_same_name_get_the_same_file() {
    let image = everything(false).image();
    let ids: Vec<NodeId> = std::thread::scope(|scope| {
        let adders: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| image.add(b"x/y", AdditionKind::File).unwrap().id))
            .collect();
        adders
            .into_iter()
            .map(|adder| adder.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(image.file_count(), image.tree().node_count() + 2);
}
