//! Memory and time for large images.

use std::time::{Duration, Instant};

use super::*;

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
    let mut writer = TableWriter::in_directory(spool.path()).unwrap();
    for package in 0..50_000 {
        let directory = format!(
            "usr/lib/python3/site-packages-{:03}/a-package-with-a-long-name-{package:06}",
            package % 100
        );
        writer
            .entry(&dir(&directory), PieceRange::default())
            .unwrap();
        for module in 0..19 {
            let path = format!("{directory}/a-module-with-a-rather-long-name-{module:03}.py");
            writer.entry(&file(&path), PieceRange::default()).unwrap();
        }
    }
    let mut bytes = Vec::new();
    writer.finish(digest("million"), &mut bytes).unwrap();
    table::from_reader(&bytes[..]).unwrap()
}

/// Run alone and optimised: `cargo test --release -p sifon-mount --lib a_million -- --ignored --nocapture`.
#[test]
#[ignore = "needs a release build and measures the whole process"]
fn a_million_names_merge_within_150_mb_and_open_at_once() {
    let table = million();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = kib("VmRSS");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tree");
    let start = processor_time();
    merge(&[&table], &mut std::fs::File::create(&path).unwrap()).unwrap();
    let merging = processor_time() - start;
    let used = (kib("VmHWM") - before) / 1024;
    let file = std::fs::File::open(&path).unwrap();
    let start = Instant::now();
    let tree = Tree::open(Sealed::map(&file).unwrap()).unwrap();
    let opening = start.elapsed();
    let start = Instant::now();
    assert_eq!(tree.walk().count() as u64, tree.node_count());
    println!(
        "{used} MiB, merged in {merging:?} of processor time, opened in {opening:?}, walked in {:?}",
        start.elapsed()
    );
    assert!(tree.node_count() > 1_000_000 && used < 150 && opening.as_millis() < 20);
}
