//! Any bytes as the end of an eStargz blob: what the footer says lies in the blob, and what is there is a table of contents
//! or an error.

use sifon_mount::digest::Digest;
use sifon_mount::layer::estargz::{footer, place, table};
use sifon_mount::layer::table::TableWriter;
use sifon_mount::layer::toc::Unpacked;

pub fn run(tail: &[u8]) {
    let Some(footer) = footer(tail) else {
        return;
    };
    let size = tail.len() as u64;
    let Some(place) = place(footer, size) else {
        return;
    };
    assert!(place.start < place.end && place.end <= size);
    let packed = &tail[place.start as usize..place.end as usize];
    let mut writer = TableWriter::in_directory(&std::env::temp_dir());
    let mut unpacked = Unpacked::default();
    let read = table(Digest::of(b""), footer, packed, &mut unpacked, &mut writer);
    // Nobody finds bytes that hash to this.
    assert!(read.is_err());
}
