//! From a layer's bytes to a tree that answers: `cargo bench -p sifon-mount`.
//!
//! The input is made here, always the same: files that compress about as well as a Python image's, small ones in
//! large numbers. Whole commands on a real image are compared in `benches/peers`.
#![allow(missing_docs, reason = "criterion's macros write functions without")]
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark ends where its input is wrong"
)]

use std::hint::black_box;
use std::io::{self, Cursor, Write};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
use sifon_mount::layer::inflate::plain;
use sifon_mount::layer::native::{Blueprint, Compressors, convert};
use sifon_mount::layer::table::{PieceRange, Table, TableWriter};
use sifon_mount::layer::tar::TarReader;
use sifon_mount::sys::Sealed;
use sifon_mount::tree::{NodeId, Tree, merge};

criterion_group! {
    name = benches;
    // A conversion takes a good part of a second.
    config = Criterion::default().sample_size(10);
    targets = streams, tables, trees
}
criterion_main!(benches);

/// Small files and what they are in a real layer's proportion to the large ones.
const SMALL_FILES: u64 = 4_000;
const LARGE_FILES: u64 = 8;
const SMALL_BYTES: usize = 6_000;
const LARGE_BYTES: usize = 3 << 20;

/// Directories in the tree that is merged, and files in each.
const DIRECTORIES: u32 = 500;
const FILES: u32 = 100;

fn streams(criterion: &mut Criterion) {
    let tar = archive();
    let packed = gzipped(&tar);
    let blueprint = Blueprint {
        layer: Digest::of(&packed),
        packed_len: packed.len() as u64,
        diff_id: Digest::of(&tar),
    };
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Bytes(tar.len() as u64));
    group.bench_function("read a tar stream", |bencher| {
        bencher.iter(|| read_through(&tar))
    });
    group.bench_function("inflate", |bencher| {
        bencher.iter(|| {
            io::copy(
                &mut plain(Cursor::new(packed.clone())).unwrap(),
                &mut io::sink(),
            )
            .unwrap()
        });
    });
    let compressors = Compressors::start();
    let scratch = tempfile::tempdir().unwrap();
    group.bench_function("convert a gzip layer", |bencher| {
        bencher.iter(|| {
            let packed = Box::new(Cursor::new(packed.clone()));
            let native = tempfile::tempfile_in(scratch.path()).unwrap();
            convert(blueprint, packed, native, scratch.path(), &compressors).unwrap()
        });
    });
    group.finish();
}

fn tables(criterion: &mut Criterion) {
    let bytes = table(&bottom_entries());
    let table = Table::open(Sealed::in_memory(bytes)).unwrap();
    let mut group = criterion.benchmark_group("table");
    group.throughput(Throughput::Elements(table.entry_count()));
    group.bench_function("read all entries", |bencher| {
        bencher.iter(|| {
            table
                .entries()
                .map(|entry| entry.unwrap().0.path.len())
                .sum::<usize>()
        });
    });
    group.finish();
}

fn trees(criterion: &mut Criterion) {
    let tables = [table(&bottom_entries()), table(&top_entries())];
    let tables = tables.map(|bytes| Table::open(Sealed::in_memory(bytes)).unwrap());
    let layers: Vec<&Table> = tables.iter().collect();
    let mut bytes = Vec::new();
    merge(&layers, &mut bytes).unwrap();
    let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();

    let mut group = criterion.benchmark_group("tree");
    group.throughput(Throughput::Elements(tree.node_count()));
    group.bench_function("merge two layers", |bencher| {
        bencher.iter(|| merge(&layers, &mut io::sink()).unwrap());
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("look a name up", |bencher| {
        let directory = tree.lookup(NodeId(1), &directory_name(7)).unwrap().unwrap();
        let name = b"file-0042".as_slice();
        bencher.iter(|| {
            tree.lookup(black_box(directory), black_box(name))
                .unwrap()
                .unwrap()
        });
    });
    group.finish();
}

fn read_through(tar: &[u8]) -> usize {
    let mut reader = TarReader::new(tar);
    let mut bytes = 0;
    while reader.next_entry().unwrap().is_some() {
        bytes += reader.take_literal().len();
        while let Some(content) = reader.next_content().unwrap() {
            black_box(content);
        }
    }
    bytes
}

fn archive() -> Vec<u8> {
    let sizes = (0..SMALL_FILES)
        .map(|_| SMALL_BYTES)
        .chain((0..LARGE_FILES).map(|_| LARGE_BYTES));
    let mut builder = tar::Builder::new(Vec::new());
    for (seed, size) in (0..).zip(sizes) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(size as u64);
        let name = format!("usr/lib/python3/module-{seed}.py");
        builder
            .append_data(&mut header, name, content(seed, size).as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// Words in no order, with some noise between them: gzip makes a third of it.
fn content(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = [
        "    return ",
        "self.",
        "import ",
        "array",
        "(",
        "def value(",
        "):\n",
        " = None\n",
    ];
    let mut noise = vec![0; len / 4 + 1];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut noise);
    let mut bytes = Vec::with_capacity(len + 16);
    for byte in noise.into_iter().cycle() {
        bytes.extend(WORDS[usize::from(byte % 8)].as_bytes());
        bytes.push(byte);
        if bytes.len() >= len {
            break;
        }
    }
    bytes.truncate(len);
    bytes
}

fn gzipped(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn table(entries: &[Entry]) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(scratch.path());
    for entry in entries {
        writer.entry(entry, PieceRange::default()).unwrap();
    }
    let mut bytes = Vec::new();
    writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
    bytes
}

fn bottom_entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    for directory in 0..DIRECTORIES {
        entries.push(entry(directory_name(directory), Kind::Directory));
        entries.extend((0..FILES).map(|file| entry(file_name(directory, file), EMPTY)));
    }
    entries
}

/// Every second file is there again, every tenth directory is hidden.
fn top_entries() -> Vec<Entry> {
    let again = (0..DIRECTORIES).flat_map(|directory| {
        (0..FILES)
            .step_by(2)
            .map(move |file| entry(file_name(directory, file), EMPTY))
    });
    let hidden = (1..DIRECTORIES)
        .step_by(10)
        .map(|directory| entry(directory_name(directory), Kind::Whiteout));
    again.chain(hidden).collect()
}

const EMPTY: Kind = Kind::Regular { size: 0 };

fn directory_name(directory: u32) -> Vec<u8> {
    format!("directory-{directory:04}").into_bytes()
}

fn file_name(directory: u32, file: u32) -> Vec<u8> {
    format!("directory-{directory:04}/file-{file:04}").into_bytes()
}

fn entry(path: Vec<u8>, kind: Kind) -> Entry {
    let mtime = Timestamp::default();
    Entry {
        path,
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime,
        xattrs: Vec::new(),
    }
}
