//! Random layers, streamed, merged and opened as an image, and random questions to it, answered as a simple model of
//! extraction answers them. No kernel, no network.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod layers;

use std::fs::File;
use std::io::{Cursor, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use layers::archive::{Dialect, archive};
use layers::model::{Model, is_directory};
use layers::{Member, directory, file, hard_link, noise, opaque, symlink, text, whiteout};
use proptest::prelude::*;
use proptest::sample::Index;
use sifon_mount::digest::Digest;
use sifon_mount::fetch::{Chunks, LayerChunks, Limits, Origin};
use sifon_mount::image::{Enough, Image};
use sifon_mount::layer::entry::Kind;
use sifon_mount::layer::native::{Blueprint, Compressors, convert};
use sifon_mount::layer::table;
use sifon_mount::sys::Sealed;
use sifon_mount::tree::{NodeId, NodeKind, Tree, merge};

#[derive(Clone, Copy, Debug)]
enum Compression {
    None,
    Gzip,
    GzipMembers,
    Zstd,
}

#[derive(Clone, Debug)]
struct Layer {
    members: Vec<Member>,
    dialect: Dialect,
    compression: Compression,
}

/// A question to the image. Which directory, file or place is meant depends on how many there are.
#[derive(Clone, Debug)]
enum Question {
    Lookup(Index, String),
    List(Index, Index, usize),
    Read(Index, Index, u32),
    ReadCached(Index, Index, u32),
    Attributes(Index),
    Parent(Index),
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a.b")];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

/// Pieces of zeros, text and noise, around the lengths at which layers are cut into chunks.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![4 => 0usize..600, 2 => 4000usize..9000, 1 => 131_070usize..131_075, 1 => 100_000usize..400_000];
    let stretch = (len, 0u64..9).prop_map(|(len, kind)| match kind {
        0..3 => vec![0; len],
        3..6 => text(len),
        seed => noise(len, seed),
    });
    prop::collection::vec(stretch, 0..4).prop_map(|stretches| stretches.concat())
}

fn any_member() -> impl Strategy<Value = Member> {
    let member = prop_oneof![
        4 => any_path().prop_map(directory),
        8 => (any_path(), any_content()).prop_map(|(path, content)| file(path, content)),
        2 => (any_path(), any_content()).prop_map(|(path, content)| file(path, content).sparse()),
        2 => (any_path(), "[a-z./]{1,150}").prop_map(|(path, target)| symlink(path + ".link", target)),
        3 => (any_path(), any_path()).prop_map(|(path, target)| hard_link(path, target)),
        1 => any_path().prop_map(|path| Member::new(path, Kind::Fifo)),
        1 => any_path().prop_map(|path| Member::new(path, Kind::CharDevice { major: 259, minor: 3 })),
        2 => any_path().prop_map(whiteout),
        1 => any_path().prop_map(opaque),
    ];
    let xattrs = prop::collection::btree_map(
        "user\\.[a-d]{1,3}",
        prop::collection::vec(any::<u8>(), 1..40),
        0..3,
    );
    let times = (
        -5i64..5_000_000_000,
        prop_oneof![Just(0), 0u32..1_000_000_000],
    );
    let prefix = prop_oneof![Just(""), Just("./"), Just("/")];
    let mode = 0..0o10000u16;
    let owners = (any::<u32>(), 0u32..70_000);
    (member, mode, owners, times, xattrs, prefix).prop_map(
        |(mut member, mode, (uid, gid), (secs, nanos), xattrs, prefix)| {
            if matches!(member.entry.kind, Kind::Hardlink { .. }) {
                return member.prefix(prefix);
            }
            member.entry.xattrs = xattrs
                .into_iter()
                .map(|(name, value)| (name.into_bytes(), value))
                .collect();
            member
                .mode(mode)
                .owner(uid, gid)
                .mtime(secs, nanos)
                .prefix(prefix)
        },
    )
}

fn any_layer() -> impl Strategy<Value = Layer> {
    let dialect = prop_oneof![Just(Dialect::Pax), Just(Dialect::Gnu)];
    let compression = prop_oneof![
        Just(Compression::None),
        Just(Compression::Gzip),
        Just(Compression::GzipMembers),
        Just(Compression::Zstd),
    ];
    let members = prop::collection::vec(any_member(), 0..14);
    (members, dialect, compression).prop_map(|(members, dialect, compression)| Layer {
        // An old GNU header has room for few extents.
        members: members
            .into_iter()
            .map(|member| Member {
                is_sparse: member.is_sparse && dialect == Dialect::Pax,
                ..member
            })
            .collect(),
        dialect,
        compression,
    })
}

fn any_question() -> impl Strategy<Value = Question> {
    let (which, place) = (any::<Index>(), any::<Index>());
    let len = prop_oneof![0u32..300, 0u32..200_000, Just(1 << 20), Just(u32::MAX)];
    let name = prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just("a.b"),
        Just("a.link"),
        Just("no")
    ];
    prop_oneof![
        2 => (which.clone(), name).prop_map(|(which, name)| Question::Lookup(which, name.into())),
        2 => (which.clone(), place.clone(), 1usize..5).prop_map(|(which, from, most)| Question::List(which, from, most)),
        6 => (which.clone(), place.clone(), len.clone()).prop_map(|(which, from, len)| Question::Read(which, from, len)),
        3 => (which.clone(), place, len).prop_map(|(which, from, len)| Question::ReadCached(which, from, len)),
        3 => which.clone().prop_map(Question::Attributes),
        1 => which.prop_map(Question::Parent),
    ]
}

/// The layers without what cannot be extracted, and the model of what they leave.
fn extractable(mut layers: Vec<Layer>) -> (Model, Vec<Layer>) {
    loop {
        let mut model = Model::new();
        let mut is_complete = true;
        for layer in &mut layers {
            let accepted = model.extract(&layer.members);
            is_complete &= accepted.len() == layer.members.len();
            layer.members = accepted;
        }
        if is_complete {
            return (model, layers);
        }
    }
}

fn packed(plain: &[u8], compression: Compression) -> Vec<u8> {
    let gzip = |plain: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    };
    match compression {
        Compression::None => plain.to_vec(),
        Compression::Gzip => gzip(plain),
        Compression::GzipMembers => plain.chunks(100_000).flat_map(gzip).collect(),
        Compression::Zstd => zstd::encode_all(plain, 1).unwrap(),
    }
}

fn streamed(layer: &Layer, compressors: &Compressors) -> Arc<LayerChunks> {
    let plain = archive(&layer.members, layer.dialect);
    let packed = packed(&plain, layer.compression);
    let blueprint = Blueprint {
        layer: Digest::of(&packed),
        packed_len: packed.len() as u64,
        diff_id: Digest::of(&plain),
    };
    let native: File = tempfile::tempfile().unwrap();
    let to = native.try_clone().unwrap();
    let stream = Box::new(Cursor::new(packed));
    let mut writer = convert(blueprint, stream, to, &std::env::temp_dir(), compressors).unwrap();
    let mut bytes = Vec::new();
    writer.finish(blueprint.layer, &mut bytes).unwrap();
    let table = Arc::new(table::from_reader(&bytes[..]).unwrap());
    let origin = Origin::Native(
        native,
        Box::new(|| Err("what was just written is damaged".into())),
    );
    Arc::new(LayerChunks::new(table, origin))
}

fn opened(layers: &[Layer]) -> Image {
    let compressors = Compressors::start();
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| streamed(layer, &compressors))
        .collect();
    let tables: Vec<_> = layers
        .iter()
        .map(|layer| Arc::clone(layer.table()))
        .collect();
    let mut tree = Vec::new();
    merge(
        &tables.iter().map(|table| &**table).collect::<Vec<_>>(),
        &mut tree,
    )
    .unwrap();
    let tree = Tree::open(Sealed::in_memory(tree)).unwrap();
    Image::new(
        tree,
        tables,
        Arc::new(Chunks::new(layers, Limits::default())),
    )
}

/// An image and what it should be, with the files to ask about.
struct Pair<'a> {
    image: &'a Image,
    model: &'a Model,
    paths: Vec<&'a [u8]>,
    directories: Vec<&'a [u8]>,
}

impl<'a> Pair<'a> {
    fn new(image: &'a Image, model: &'a Model) -> Self {
        let named = |wanted: fn(&layers::model::File) -> bool| {
            let files = model.files.iter().filter(move |(_, file)| wanted(file));
            files.map(|(path, _)| &path[..]).collect()
        };
        Self {
            image,
            model,
            paths: named(|_| true),
            directories: named(is_directory),
        }
    }

    fn path(&self, which: &Index) -> &'a [u8] {
        self.paths[which.index(self.paths.len())]
    }

    fn directory(&self, which: &Index) -> &'a [u8] {
        self.directories[which.index(self.directories.len())]
    }

    fn id(&self, path: &[u8]) -> NodeId {
        let names = path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty());
        names.fold(NodeId(1), |directory, name| {
            let found = self.image.lookup(directory, name).unwrap();
            found.unwrap_or_else(|| panic!("{:?} is missing", String::from_utf8_lossy(path)))
        })
    }

    fn answer(&self, question: &Question) -> Result<(), TestCaseError> {
        match question {
            Question::Lookup(which, name) => self.lookup(self.directory(which), name),
            Question::List(which, from, most) => self.list(self.directory(which), from, *most),
            Question::Read(which, from, len) => self.read(self.path(which), from, *len, false),
            Question::ReadCached(which, from, len) => self.read(self.path(which), from, *len, true),
            Question::Attributes(which) => self.attributes(self.path(which)),
            Question::Parent(which) => self.parent(self.directory(which)),
        }
    }

    fn lookup(&self, directory: &[u8], name: &str) -> Result<(), TestCaseError> {
        let found = self
            .image
            .lookup(self.id(directory), name.as_bytes())
            .unwrap();
        let mut children = self.model.children(directory);
        let expected = children.any(|(child, _)| child == name.as_bytes());
        prop_assert_eq!(found.is_some(), expected);
        Ok(())
    }

    /// At most `most` names from any place on, as a directory is read in parts.
    fn list(&self, directory: &[u8], from: &Index, most: usize) -> Result<(), TestCaseError> {
        let all: Vec<&[u8]> = self
            .model
            .children(directory)
            .map(|(name, _)| name)
            .collect();
        let from = from.index(all.len() + 1);
        let mut names = Vec::new();
        let id = self.id(directory);
        self.image
            .children(id, from as u64, |name, child, next| {
                if names.len() == most {
                    return Enough::Yes;
                }
                assert_eq!(next, (from + names.len() + 1) as u64);
                assert_eq!(self.image.lookup(id, name).unwrap(), Some(child));
                names.push(name.to_vec());
                Enough::No
            })
            .unwrap();
        prop_assert_eq!(names, &all[from..all.len().min(from + most)]);
        Ok(())
    }

    fn read(
        &self,
        path: &[u8],
        from: &Index,
        len: u32,
        is_cached: bool,
    ) -> Result<(), TestCaseError> {
        let member = &self.model.files[path].member;
        let id = self.id(path);
        let from = from.index(member.content.len() + 10);
        let read = match is_cached {
            true => self.image.read_cached(id, from as u64, len),
            false => {
                let soon = Instant::now() + Duration::from_secs(30);
                self.image.read(id, from as u64, len, soon).map(Some)
            }
        };
        let Kind::Regular { .. } = member.entry.kind else {
            prop_assert!(read.is_err());
            return Ok(());
        };
        let end = member.content.len().min(from.saturating_add(len as usize));
        let expected = member.content.get(from..end).unwrap_or_default();
        if let Some(read) = read.unwrap() {
            prop_assert!(read == expected, "{} bytes from {from}", expected.len());
        } else {
            prop_assert!(is_cached);
        }
        Ok(())
    }

    fn attributes(&self, path: &[u8]) -> Result<(), TestCaseError> {
        let file = &self.model.files[path];
        let (entry, id) = (&file.member.entry, self.id(path));
        let node = self.image.node(id).unwrap();
        prop_assert_eq!(node.mode, entry.mode);
        prop_assert_eq!((node.uid, node.gid), (entry.uid, entry.gid));
        prop_assert!(file.is_implied || node.mtime == entry.mtime);
        prop_assert_eq!(u64::from(node.nlink), self.model.nlink(path));
        prop_assert_eq!(id, self.id(self.model.first_name(path)));
        let shown: Vec<_> = self.image.xattrs(id).unwrap();
        let expected: Vec<_> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .collect();
        prop_assert_eq!(shown, expected);
        match &entry.kind {
            Kind::Symlink { target } => {
                prop_assert_eq!(node.kind, NodeKind::Symlink);
                prop_assert_eq!(self.image.link_target(id).unwrap(), &target[..]);
            }
            Kind::Regular { size } => {
                let is_regular = matches!(node.kind, NodeKind::Regular { .. });
                prop_assert!(is_regular && node.size == *size && node.allocated <= *size);
            }
            Kind::Directory => prop_assert_eq!(node.kind, NodeKind::Directory),
            Kind::Fifo => prop_assert_eq!(node.kind, NodeKind::Fifo),
            Kind::CharDevice { .. } => {
                prop_assert_eq!(
                    node.kind,
                    NodeKind::CharDevice {
                        major: 259,
                        minor: 3
                    }
                );
            }
            other => panic!("the model has a {other:?}"),
        }
        Ok(())
    }

    fn parent(&self, directory: &[u8]) -> Result<(), TestCaseError> {
        let slash = directory.iter().rposition(|&byte| byte == b'/');
        let above = &directory[..slash.unwrap_or(0)];
        let parent = self.image.parent(self.id(directory)).unwrap();
        prop_assert_eq!(parent, self.id(above));
        Ok(())
    }
}

#[test]
fn a_chunk_that_was_read_whole_is_not_kept_and_one_that_was_read_in_part_is() {
    let content = text(300_000);
    let image = opened(&[Layer {
        members: vec![file("f", content.clone())],
        dialect: Dialect::Pax,
        compression: Compression::Zstd,
    }]);
    let id = image.resolved(b"f").unwrap().unwrap();
    let read = |from: u32, len: u32| {
        let soon = Instant::now() + Duration::from_secs(30);
        let read = image.read(id, from.into(), len, soon).unwrap();
        assert!(read == content[from as usize..(from + len) as usize]);
    };
    let chunk = 128 << 10;
    read(0, chunk);
    assert_eq!(image.read_cached(id, 0, 10).unwrap(), None);
    read(chunk, 4096);
    let end = u64::from(2 * chunk - 10);
    assert!(image.read_cached(id, end, 10).unwrap().is_some());
    // Whole, from memory.
    read(chunk, chunk);
    read(0, 2 * chunk);
    assert_eq!(image.read_cached(id, 0, 10).unwrap(), None);
}

proptest! {
    /// What an image answers is what extracting its layers in order leaves, byte for byte.
    #[test]
    fn an_image_answers_as_the_extracted_layers_do(
        layers in prop::collection::vec(any_layer(), 1..4),
        questions in prop::collection::vec(any_question(), 1..60),
    ) {
        let (model, layers) = extractable(layers);
        let image = opened(&layers);
        let pair = Pair::new(&image, &model);
        prop_assert_eq!(image.file_count(), pair.paths.iter().filter(|path| model.first_name(path) == **path).count() as u64);
        for question in &questions {
            pair.answer(question)?;
        }
        for path in &pair.paths {
            pair.attributes(path)?;
        }
    }
}
