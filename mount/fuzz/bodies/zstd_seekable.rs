//! Any bytes as the end of a zstd blob: a table of frames that it claims lies in the blob.

use sifon_mount::layer::zstd_seekable::{FOOTER_BYTES, SeekTable};

pub fn run(blob: &[u8]) {
    let Some(table) = SeekTable::at_end_of(blob) else {
        return;
    };
    let size = blob.len() as u64;
    let Some(start) = table.start(size) else {
        return;
    };
    assert!(start + 8 + FOOTER_BYTES <= size);
    let header = blob[start as usize..start as usize + 8].try_into();
    table.is_begun_by(header.expect("eight bytes are eight bytes"));
}
