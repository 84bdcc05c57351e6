//! Merging, opening and reading large trees.
#![allow(missing_docs)]

use std::fs::File;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
use sifon_mount::layer::table::{self, PieceRange, Table, TableWriter};
use sifon_mount::sys::Sealed;
use sifon_mount::tree::{NodeId, Resolved, Tree, merge};

/// A layer of `directories` with `files` empty files in each.
fn layer(directories: usize, files: usize) -> Table {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let mut writer = TableWriter::in_directory(spool.path());
    for package in 0..directories {
        let directory = format!("usr/lib/python3/site-packages/package-{package:06}");
        for module in 0..files {
            let path = format!("{directory}/a-module-with-a-rather-long-name-{module:06}.py");
            let entry = Entry {
                path: path.into(),
                kind: Kind::Regular { size: 0 },
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                xattrs: Vec::new(),
            };
            let written = writer.entry(&entry, PieceRange::default());
            written.expect("the spool has room");
        }
    }
    let mut bytes = Vec::new();
    let finished = writer.finish(Digest::of(b"layer"), &mut bytes);
    finished.expect("memory takes all");
    table::from_reader(&bytes[..]).expect("a table just written")
}

fn merged(layers: &[&Table]) -> Vec<u8> {
    let mut bytes = Vec::new();
    merge(layers, &mut bytes).expect("nothing stands in the way");
    bytes
}

fn found(tree: &Tree, path: &str) -> NodeId {
    match tree.resolve(path.as_bytes()) {
        Ok(Resolved::Found(id)) => id,
        other => panic!("{path}: {other:?}"),
    }
}

fn merging(criterion: &mut Criterion) {
    let lower = layer(5000, 19);
    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10);
    group.bench_function("100,000 names", |bencher| {
        bencher.iter(|| merged(&[&lower]));
    });
    group.bench_function("100,000 names over themselves", |bencher| {
        bencher.iter(|| merged(&[&lower, &lower]));
    });
}

fn opening(criterion: &mut Criterion) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    merge(&[&layer(50_000, 19)], &mut file).expect("nothing stands in the way");
    let open = |file: &File| {
        let mapped = Sealed::map(file).expect("the file can be mapped");
        Tree::open(mapped).expect("a tree just written")
    };
    criterion.bench_function("open 1,000,000 nodes and read the root", |bencher| {
        bencher.iter(|| open(&file).node(black_box(NodeId::ROOT)));
    });
    let tree = open(&file);
    let path =
        "usr/lib/python3/site-packages/package-040000/a-module-with-a-rather-long-name-000007.py";
    criterion.bench_function("resolve a path of six names", |bencher| {
        bencher.iter(|| tree.resolve(black_box(path.as_bytes())));
    });
}

fn reading(criterion: &mut Criterion) {
    let bytes = merged(&[&layer(1, 20_000)]);
    let tree = Tree::open(Sealed::in_memory(bytes)).expect("a tree just written");
    let directory = found(&tree, "usr/lib/python3/site-packages/package-000000");
    let name = b"a-module-with-a-rather-long-name-012345.py";
    let mut group = criterion.benchmark_group("directory of 20,000 names");
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| tree.lookup(black_box(directory), black_box(name)));
    });
    group.bench_function("lookup of a missing name", |bencher| {
        bencher.iter(|| tree.lookup(black_box(directory), black_box(b"b")));
    });
    group.bench_function("list", |bencher| {
        bencher.iter(|| tree.children(directory, 0).map(Iterator::count));
    });
}

criterion_group!(benches, merging, opening, reading);
criterion_main!(benches);
