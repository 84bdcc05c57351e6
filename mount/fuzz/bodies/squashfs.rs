//! Whatever a squashfs says, its table is an error, or one whose files can be read or refused, in bounded time.

use std::io;

use sifon_mount::digest::Digest;
use sifon_mount::layer::decode::Decoder;
use sifon_mount::layer::squashfs::{self, Input};
use sifon_mount::layer::table::{ChunkIndex, TableWriter, from_reader};

/// Chunks to decode at most.
const CHUNKS_LIMIT: u64 = 100;

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
    let mut writer = TableWriter::in_directory(&std::env::temp_dir()).expect("there is room");
    if squashfs::table(&input, &mut writer).is_err() {
        return;
    }
    let mut written = Vec::new();
    let layer = Digest::of(b"");
    writer
        .finish(layer, &mut written)
        .expect("memory takes everything");
    let table = from_reader(&written[..]).expect("what was just written can be read");
    for entry in table.entries() {
        let (_, pieces) = entry.expect("what was just written can be read");
        table.pieces(pieces).expect("they were written before");
    }
    let mut decoder = Decoder::new();
    for index in 0..table.chunk_count().min(CHUNKS_LIMIT) {
        let chunk = table
            .chunk(ChunkIndex(index as u32))
            .expect("only sound chunks are written");
        let packed = part(chunk.packed_at.0, chunk.packed_len as usize);
        let packed = packed.expect("chunks lie inside the file system");
        if let Ok(plain) = decoder.plain(&chunk, packed) {
            assert_eq!(plain.len(), chunk.plain_len as usize);
        }
    }
}
