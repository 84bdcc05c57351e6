//! Memory and time for large images.

use std::time::Instant;

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

fn million() -> Vec<Entry> {
    let directories = (0..50_000).map(|n| {
        dir(&format!(
            "usr/lib/python3/site-packages-{:03}/a-package-with-a-long-name-{n:06}",
            n % 100
        ))
    });
    let directories: Vec<_> = directories.collect();
    let files = directories.iter().flat_map(|directory| {
        let directory = text(&directory.path);
        (0..19).map(move |n| {
            file(&format!(
                "{directory}/a-module-with-a-rather-long-name-{n:03}.py"
            ))
        })
    });
    let files: Vec<_> = files.collect();
    directories.into_iter().chain(files).collect()
}

/// Run alone and optimised: `cargo test --release -p sifon-mount --lib a_million -- --ignored --nocapture`.
#[test]
#[ignore = "needs a release build and measures the whole process"]
fn a_million_names_merge_within_150_mb_and_open_at_once() {
    let table = table("million", &million());
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = kib("VmRSS");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tree");
    let start = Instant::now();
    merge(&[&table], &mut std::fs::File::create(&path).unwrap()).unwrap();
    let merging = start.elapsed();
    let used = (kib("VmHWM") - before) / 1024;
    let file = std::fs::File::open(&path).unwrap();
    let start = Instant::now();
    let tree = Tree::open(Sealed::map(&file).unwrap()).unwrap();
    let opening = start.elapsed();
    let start = Instant::now();
    assert_eq!(tree.walk().count() as u64, tree.node_count());
    println!(
        "{used} MiB, merged in {merging:?}, opened in {opening:?}, walked in {:?}",
        start.elapsed()
    );
    assert!(tree.node_count() > 1_000_000 && used < 150 && opening.as_millis() < 20);
}
