//! Whatever a layer's table says, every question is answered, by an error at worst, and in bounded time.

use sifon_mount::layer::table::{ChunkIndex, Table, stretches};
use sifon_mount::sys::Sealed;

/// Records of a kind to ask for at most.
const RECORDS_LIMIT: u64 = 1000;

/// Bytes of a file to ask for at once, as a read does.
const READ_BYTES: u64 = 1 << 20;

pub fn run(bytes: &[u8]) {
    let Ok(table) = Table::open(Sealed::in_memory(bytes.to_vec())) else {
        return;
    };
    for index in 0..=table.entry_count().min(RECORDS_LIMIT) {
        let Ok((entry, pieces)) = table.entry(index) else {
            continue;
        };
        assert!(entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000);
        let Ok(pieces) = table.pieces(pieces) else {
            continue;
        };
        for at in [0, 1, 1 << 17, u64::MAX - READ_BYTES] {
            let Some(stretches) = stretches(pieces, at, at + READ_BYTES) else {
                continue;
            };
            let len: u64 = stretches.iter().map(|stretch| stretch.len).sum();
            assert_eq!(len, READ_BYTES);
        }
    }
    for index in 0..=table.chunk_count().min(RECORDS_LIMIT) {
        let _ = table.chunk(ChunkIndex(index as u32));
        assert!(
            table
                .siblings(ChunkIndex(index as u32))
                .contains(&(index as u32))
        );
        let _ = table.proof(index);
    }
    assert!(table.chunk(ChunkIndex(u32::MAX)).is_err());
}
