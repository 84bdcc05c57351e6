//! Memory and time for large images.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io;
use std::time::{Duration, Instant};

use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};
use sifon_mount::layer::table::{self, PieceRange, Table, TableWriter};
use sifon_mount::store::{Name, Settings, Store, tree_key};
use sifon_mount::tree::{MergeError, merge};

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        xattrs: Vec::new(),
    }
}

fn kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.trim_matches([':', ' ', '\t', 'k', 'B'])
        .parse()
        .unwrap()
}

/// Nanoseconds that this thread has had a processor: what merging costs, however busy the machine is.
fn processor_time() -> Duration {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(spent.split(' ').next().unwrap().parse().unwrap())
}

/// A layer of 50,000 directories with 19 files each, written name by name.
fn million() -> Table {
    let spool = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(spool.path());
    for package in 0..50_000 {
        let directory = format!(
            "usr/lib/python3/site-packages-{:03}/a-package-with-a-long-name-{package:06}",
            package % 100
        );
        writer
            .entry(&entry(&directory, Kind::Directory), PieceRange::default())
            .unwrap();
        for module in 0..19 {
            let path = format!("{directory}/a-module-with-a-rather-long-name-{module:03}.py");
            let file = entry(&path, Kind::Regular { size: 0 });
            writer.entry(&file, PieceRange::default()).unwrap();
        }
    }
    let mut bytes = Vec::new();
    writer.finish(Digest::of(b"million"), &mut bytes).unwrap();
    table::from_reader(&bytes[..]).unwrap()
}

/// Run alone and optimised: `cargo test --release -p sifon-mount --test size -- --ignored --nocapture`.
#[test]
#[ignore = "needs a release build and measures the whole process"]
fn a_million_names_merge_within_150_mb_and_open_at_once() {
    let table = million();
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&Settings {
        directory: directory.path().join("store"),
        ..Settings::default()
    });
    let key = tree_key(&[table.layer()]);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = kib("VmRSS");
    let start = processor_time();
    let sealed = store.sealed_with(Name::Tree(key), |to| match merge(&[&table], to) {
        Err(MergeError::Write(err)) => Err(err),
        Err(err) => Err(io::Error::other(err)),
        Ok(()) => Ok(()),
    });
    let merging = processor_time() - start;
    let used = (kib("VmHWM") - before) / 1024;
    drop(sealed.unwrap());
    let opening = (0..5).map(|_| {
        let start = Instant::now();
        let tree = store.tree(key).unwrap();
        (start.elapsed(), tree.node_count())
    });
    let (opening, nodes) = opening.min().unwrap();
    let tree = store.tree(key).unwrap();
    let start = Instant::now();
    assert_eq!(tree.walk().count() as u64, nodes);
    println!(
        "{used} MiB, merged and written in {merging:?} of processor time, opened in {opening:?}, walked in {:?}",
        start.elapsed()
    );
    assert!(nodes > 1_000_000 && used < 150 && opening.as_millis() < 20);
}
