//! The fuzz targets' bodies over their seeds, over beginnings of them and with each byte changed:
//! what a fuzzer finds in its first minute, in every test run and without a fuzzer.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[path = "../fuzz/bodies/archive.rs"]
mod archive;
#[path = "../fuzz/bodies/digest.rs"]
mod digest;
#[path = "../fuzz/bodies/estargz.rs"]
mod estargz;
#[path = "../fuzz/bodies/gzip.rs"]
mod gzip;
#[path = "../fuzz/bodies/inflate.rs"]
mod inflate;
#[path = "../fuzz/bodies/manifest.rs"]
mod manifest;
#[path = "../fuzz/bodies/mountinfo.rs"]
mod mountinfo;
#[path = "../fuzz/bodies/name.rs"]
mod name;
#[path = "../fuzz/bodies/native.rs"]
mod native;
#[path = "../fuzz/bodies/prefetch.rs"]
mod prefetch;
#[path = "../fuzz/bodies/profile.rs"]
mod profile;
#[path = "../fuzz/bodies/reference.rs"]
mod reference;
#[path = "../fuzz/bodies/squashfs.rs"]
mod squashfs;
#[path = "../fuzz/bodies/table.rs"]
mod table;
#[path = "../fuzz/bodies/tar.rs"]
mod tar;
#[path = "../fuzz/bodies/toc.rs"]
mod toc;
#[path = "../fuzz/bodies/tree.rs"]
mod tree;
#[path = "../fuzz/bodies/written.rs"]
mod written;
#[path = "../fuzz/bodies/zstd_seekable.rs"]
mod zstd_seekable;
#[path = "../fuzz/bodies/ztoc.rs"]
mod ztoc;

/// Runs `body` over the seeds of the fuzz target `target` and their neighbours.
fn run_near_seeds(target: &str, body: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut seeds = 0;
    for file in fs::read_dir(&directory).expect("every target has seeds") {
        let path = file.expect("the directory can be listed").path();
        let seed = fs::read(&path).expect("a seed can be read");
        assert!(
            seed.len() <= 10 << 10,
            "{path:?} is too large to try all its neighbours"
        );
        let near = |what: &str, at: usize, bytes: &[u8]| {
            let result = catch_unwind(|| body(bytes));
            assert!(result.is_ok(), "{path:?} {what} {at}");
        };
        near("as it is,", seed.len(), &seed);
        // In a large seed some: a step that shares no factor with the formats' blocks.
        let step = if seed.len() > 1 << 10 { 7 } else { 1 };
        for len in (0..seed.len()).step_by(step) {
            near("cut at", len, &seed[..len]);
        }
        for at in 0..seed.len() {
            let mut changed = seed.clone();
            changed[at] ^= if at % 2 == 0 { 0x01 } else { 0x80 };
            near("changed at", at, &changed);
        }
        seeds += 1;
    }
    assert!(seeds > 0, "{directory:?} is empty");
}

#[test]
fn no_neighbour_of_a_digest_seed_breaks_the_parser() {
    run_near_seeds("digest", digest::run);
}

#[test]
fn no_neighbour_of_an_inflate_seed_breaks_the_decoders() {
    run_near_seeds("inflate", inflate::run);
}

#[test]
fn no_neighbour_of_a_name_seed_breaks_the_parser() {
    run_near_seeds("name", name::run);
}

#[test]
fn no_neighbour_of_a_tar_seed_breaks_the_reader() {
    run_near_seeds("tar", tar::run);
}

#[test]
fn no_neighbour_of_a_tree_seed_breaks_the_reader() {
    run_near_seeds("tree", tree::run);
}

#[test]
fn profiles_near_the_seeds_are_read_or_refused() {
    run_near_seeds("profile", profile::run);
}

#[test]
fn no_neighbour_of_a_reference_seed_breaks_the_parser() {
    run_near_seeds("reference", reference::run);
}

#[test]
fn no_neighbour_of_a_manifest_seed_breaks_the_parsers() {
    run_near_seeds("manifest", manifest::run);
}

#[test]
fn no_neighbour_of_an_archive_seed_breaks_its_readers() {
    run_near_seeds("archive", archive::run);
}

#[test]
fn no_neighbour_of_a_mountinfo_seed_breaks_the_reader() {
    run_near_seeds("mountinfo", mountinfo::run);
}

#[test]
fn no_neighbour_of_a_native_seed_breaks_the_reader() {
    run_near_seeds("native", native::run);
}

#[test]
fn no_neighbour_of_a_table_seed_breaks_the_reader() {
    run_near_seeds("table", table::run);
}

#[test]
fn no_neighbour_of_a_squashfs_seed_breaks_the_reader() {
    run_near_seeds("squashfs", squashfs::run);
}

#[test]
fn no_neighbour_of_a_toc_seed_breaks_the_reader() {
    run_near_seeds("toc", toc::run);
}

#[test]
fn no_neighbour_of_a_ztoc_seed_breaks_the_reader() {
    run_near_seeds("ztoc", ztoc::run);
}

#[test]
fn no_neighbour_of_a_prefetch_seed_breaks_the_reader() {
    run_near_seeds("prefetch", prefetch::run);
}

#[test]
fn no_neighbour_of_an_estargz_seed_breaks_the_reader() {
    run_near_seeds("estargz", estargz::run);
}

#[test]
fn no_neighbour_of_a_gzip_seed_breaks_the_indexer() {
    run_near_seeds("gzip", gzip::run);
}

#[test]
fn no_neighbour_of_a_seek_tables_seed_breaks_the_reader() {
    run_near_seeds("zstd_seekable", zstd_seekable::run);
}
