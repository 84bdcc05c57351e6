//! The bodies of the fuzz targets for this package's parsers, over their seeds, over beginnings of them and with each
//! byte changed.

use std::os::fd::AsFd;
use std::panic::catch_unwind;

#[path = "../mount/fuzz/bodies/sif.rs"]
mod sif;
#[path = "../mount/fuzz/bodies/wire.rs"]
mod wire;

/// Runs `body` over the seed and its neighbours.
fn run_near(seed: &[u8], body: fn(&[u8])) {
    for len in 0..=seed.len() {
        let result = catch_unwind(|| body(&seed[..len]));
        assert!(result.is_ok(), "cut at {len}");
    }
    for at in 0..seed.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = seed.to_vec();
            changed[at] ^= flip;
            let result = catch_unwind(|| body(&changed));
            assert!(result.is_ok(), "changed at {at}");
        }
    }
}

fn seed(name: &str) -> Vec<u8> {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/mount/fuzz/seeds");
    std::fs::read(format!("{seeds}/{name}")).expect("the target has a seed")
}

#[test]
fn a_sif_near_the_seed_is_read_or_refused() {
    let seed = seed("sif/small");
    assert!(sifon::pack::sif::Sif::open(std::io::Cursor::new(&seed)).is_ok());
    run_near(&seed, sif::run);
}

#[test]
fn messages_near_the_seeds_are_understood_or_refused() {
    let (here, there) = sifon::container::wire::pair().expect("a socket pair");
    rustix::io::write(&here, &seed("wire/request")).expect("room in its buffer");
    let request = sifon::container::wire::receive::<sifon::container::wire::Ask>(there.as_fd());
    assert!(request.is_ok_and(|request| request.is_some()));
    for name in ["wire/request", "wire/replies"] {
        run_near(&seed(name), wire::run);
    }
}
