//! What packing copies from a streamed layer, and that nobody can tell.

// clippy sees test functions only, not what they share.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sifon::pack::image::TreeSource;
use sifon::pack::layout::{BLOCK_BYTES, Packing, Sized, Tail, tail_len};
use sifon::pack::node::{Content, PackKind, Source};
use sifon::pack::singularity::{Config, Origin};
use sifon::pack::{Compression, Options, pack};
use sifon_mount::digest::Digest;
use sifon_mount::fetch::{self, ChunkSource, Chunks, LayerChunks, Limits, ReadError};
use sifon_mount::image::Image;
use sifon_mount::layer::native::{Blueprint, Compressors, convert};
use sifon_mount::layer::table::{ChunkIndex, Table, from_reader};
use sifon_mount::sys::Sealed;
use sifon_mount::tree::{self, Tree};

type File = (String, Vec<u8>);

fn archive(files: &[File]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn streamed(files: &[File]) -> Arc<LayerChunks> {
    let plain = archive(files);
    let digest = Digest::of(&plain);
    let blueprint = Blueprint {
        layer: digest,
        packed_len: plain.len() as u64,
        diff_id: digest,
    };
    let scratch = tempfile::tempdir().unwrap();
    let native = tempfile::tempfile().unwrap();
    let stream = Box::new(std::io::Cursor::new(plain));
    let compressors = Compressors::start();
    let file = native.try_clone().unwrap();
    let mut writer = convert(blueprint, stream, file, scratch.path(), &compressors).unwrap();
    let mut bytes = Vec::new();
    writer.finish(digest, &mut bytes).unwrap();
    let table = Arc::new(from_reader(&bytes[..]).unwrap());
    let restream = Box::new(|| Err("nothing streams it again".into()));
    let origin = fetch::Origin::Native(native, restream);
    Arc::new(LayerChunks::new(table, origin))
}

/// The same chunks, of which nothing is known but the plain bytes, as of a layer that is read lazily.
struct Plain(Arc<dyn ChunkSource>);

impl ChunkSource for Plain {
    fn cached(&self, layer: u16, chunk: ChunkIndex) -> Option<Bytes> {
        self.0.cached(layer, chunk)
    }

    fn chunk(&self, layer: u16, chunk: ChunkIndex, deadline: Instant) -> Result<Bytes, ReadError> {
        self.0.chunk(layer, chunk, deadline)
    }
}

fn image(layers: &[Arc<LayerChunks>], is_plain: bool) -> Image {
    let tables: Vec<&Table> = layers.iter().map(|layer| &**layer.table()).collect();
    let mut bytes = Vec::new();
    tree::merge(&tables, &mut bytes).unwrap();
    let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();
    let tables = layers.iter().map(|layer| Arc::clone(layer.table()));
    let mut chunks: Arc<dyn ChunkSource> =
        Arc::new(Chunks::new(layers.to_vec(), Limits::default()));
    if is_plain {
        chunks = Arc::new(Plain(chunks));
    }
    Image::new(tree, tables.collect(), chunks)
}

fn text(len: usize, seed: usize) -> Vec<u8> {
    let words = ["all", "work", "and", "no", "play", "makes", "jack", "dull"];
    let mut text = Vec::new();
    for at in 0.. {
        if text.len() >= len {
            break;
        }
        text.extend_from_slice(words[(at * at + seed * at + seed) % words.len()].as_bytes());
    }
    text.truncate(len);
    text
}

/// Two layers; the upper one hides a small file and a large one of the lower.
fn layers() -> Vec<Arc<LayerChunks>> {
    let file = |name: &str, len, seed| (name.to_owned(), text(len, seed));
    let mut lower = vec![
        file("large", 5 * BLOCK_BYTES + 100, 1),
        file("hidden", 3 * BLOCK_BYTES + 9, 2),
        ("zeros".into(), vec![0; 2 * BLOCK_BYTES + 7]),
    ];
    lower.extend((0..300).map(|index| file(&format!("small/{index:03}"), 20 * index, index)));
    lower.push(file("large-again", 5 * BLOCK_BYTES + 100, 1));
    // Half as long when it is packed; the text nearly vanishes.
    let various =
        (0..2 * BLOCK_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 28) as u8);
    lower.push(("various".into(), various.collect()));
    let mut upper = vec![
        file("hidden", 11, 3),
        file("small/150", 12, 4),
        file("new", 70_000, 5),
    ];
    upper.extend((0..50).map(|index| file(&format!("copy/{index:03}"), 20 * index, index)));
    vec![streamed(&lower), streamed(&upper)]
}

fn packed(image: &Image, compression: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("x.sif");
    let options = Options {
        compression: compression.parse().unwrap(),
        ..Options::default()
    };
    let source = TreeSource::new(image, Duration::from_secs(60));
    let origin = Origin::of("docker://test");
    pack(&source, &[], &Config::default(), &origin, &out, options).unwrap();
    fs::read(out).unwrap()
}

#[test]
fn copied_chunks_are_byte_for_byte_what_compressing_gives() {
    let layers = layers();
    for compression in ["zstd", "zstd:5", "gzip:1", "none"] {
        let copied = packed(&image(&layers, false), compression);
        assert!(
            copied == packed(&image(&layers, true), compression),
            "{compression}"
        );
    }
}

/// All blocks, and those bundles that hold nothing hidden.
#[test]
fn what_a_streamed_layer_has_compressed_is_not_compressed_again() {
    assert_eq!(Compression::default(), "zstd:1".parse().unwrap());
    let image = image(&layers(), false);
    let source = TreeSource::new(&image, Duration::from_secs(60));
    let files: Vec<_> = source
        .nodes()
        .filter_map(|node| match node.unwrap().kind {
            PackKind::Regular {
                size,
                content: Content::InImage(file),
            } if size > 0 => Some(Sized { file, size }),
            _ => None,
        })
        .collect();
    let layout = source.layout(&files).unwrap();
    assert_eq!(layout.order.len(), files.len());
    let mut copied = 0;
    for (bundle, is_whole) in layout.is_whole.iter().enumerate() {
        let tails: Vec<_> = layout
            .order
            .iter()
            .filter(|placed| placed.bundle == Some(bundle as u32))
            .map(|placed| files[placed.index])
            .map(|Sized { file, size }| Tail {
                file,
                at: size - tail_len(size) as u64,
                len: tail_len(size),
            })
            .collect();
        let is_packed = source.bundle(&tails).unwrap().packing.is_some();
        assert_eq!(is_packed, *is_whole, "bundle {bundle}");
        copied += usize::from(is_packed);
    }
    let hiding = layout.is_whole.len() - copied;
    assert!(copied > 3 && (1..=2).contains(&hiding), "{copied} {hiding}");
    let mut undecoded = 0;
    for Sized { file, size } in files {
        for at in (0..size - tail_len(size) as u64).step_by(BLOCK_BYTES) {
            let block = source.block(file, at).unwrap();
            let is_hole = source.hole(file, at).unwrap() > 0;
            let is_compressed = |packing: &Packing| packing.compressed.is_some();
            assert!(is_hole || block.packing.as_ref().is_some_and(is_compressed));
            // Nor is it decoded, unless it may be all zeros.
            let packed = source.packed_block(file, at).unwrap();
            undecoded += usize::from(packed.is_some());
            assert!(packed.is_none() || packed == block.packing);
        }
    }
    assert!(undecoded > 0);
}

/// A byte of a file that an upper layer hides must not travel.
#[test]
fn hidden_bytes_are_not_packed() {
    let secret: Vec<u8> = (0..2_000u32).map(|at| ((at * at) >> 3) as u8).collect();
    let lower = streamed(&[
        ("a".into(), text(500, 1)),
        ("secret".into(), secret.clone()),
        ("z".into(), text(500, 2)),
    ]);
    let upper = streamed(&[("secret".into(), b"nothing".to_vec())]);
    let found = |layers: &[Arc<LayerChunks>]| {
        let bytes = packed(&image(layers, false), "none");
        bytes.windows(secret.len()).any(|window| window == secret)
    };
    assert!(found(std::slice::from_ref(&lower)));
    assert!(!found(&[lower, upper]));
}
