//! Every object of a SIF lies inside the file that tells of it.

use std::io::Cursor;

use sifon_mount::source::sif::Sif;

pub fn run(bytes: &[u8]) {
    if let Ok(sif) = Sif::open(Cursor::new(bytes)) {
        let primary = sif.primary_partition();
        for object in sif.objects.iter().chain(primary) {
            assert!(object.at + object.len <= bytes.len() as u64);
        }
    }
}
