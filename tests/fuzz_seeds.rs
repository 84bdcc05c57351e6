//! The bodies of the fuzz targets for this package's parsers, over their seeds, over beginnings of them and with each
//! byte changed.

use std::panic::catch_unwind;

#[path = "../mount/fuzz/bodies/sif.rs"]
mod sif;

#[test]
fn a_sif_near_the_seed_is_read_or_refused() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/mount/fuzz/seeds/sif/small");
    let seed = std::fs::read(path).expect("the target has a seed");
    assert!(sifon::pack::sif::Sif::open(std::io::Cursor::new(&seed)).is_ok());
    for len in 0..=seed.len() {
        assert!(
            catch_unwind(|| sif::run(&seed[..len])).is_ok(),
            "cut at {len}"
        );
    }
    for at in 0..seed.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = seed.clone();
            changed[at] ^= flip;
            assert!(
                catch_unwind(|| sif::run(&changed)).is_ok(),
                "changed at {at}"
            );
        }
    }
}
