//! Whatever a squashfs says, its table is an error, or one whose files can be read or refused, in bounded time.

use std::io;

use sifon_mount::layer::decode::Decoder;
use sifon_mount::layer::squashfs::{self, Input};

use crate::written::{chunks, written};

/// Chunks to decode at most.
const CHUNKS_LIMIT: usize = 100;

pub fn run(bytes: &[u8]) {
    let outside = || io::Error::other("asked for bytes outside the file system");
    let part = |at: u64, len: usize| {
        let from = usize::try_from(at).ok()?;
        bytes.get(from..from.checked_add(len)?)
    };
    let read = |at: u64, len: usize| {
        let part = part(at, len).ok_or_else(outside);
        assert!(part.is_ok());
        part.map(|part| part.to_vec().into())
    };
    let input = Input {
        at: 0,
        hides_lower: false,
        len: bytes.len() as u64,
        read: &read,
    };
    let Some(table) = written(|writer| squashfs::table(&input, writer)) else {
        return;
    };
    for entry in table.entries() {
        let (_, pieces) = entry.expect("what was just written can be read");
        table.pieces(pieces).expect("they were written before");
    }
    let mut decoder = Decoder::new();
    for chunk in chunks(&table).take(CHUNKS_LIMIT) {
        let packed = part(chunk.packed_at.0, chunk.packed_len as usize);
        let packed = packed.expect("chunks lie inside the file system");
        if let Ok(plain) = decoder.plain(&chunk, packed) {
            assert_eq!(plain.len(), chunk.plain_len as usize);
        }
    }
}
