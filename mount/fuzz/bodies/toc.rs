//! Any bytes as the TOC of a layer: an error, or a table whose every record can be read.

use sifon_mount::extent::PackedOffset;
use sifon_mount::layer::table::Codec;
use sifon_mount::layer::toc::{self, Layout};

use crate::written::{chunks, written};

pub fn run(json: &[u8]) {
    let layout = Layout {
        end: PackedOffset(3 << 20),
        codec: Codec::Gzip,
    };
    let Some(table) = written(|writer| toc::read(json, layout, writer)) else {
        return;
    };
    for entry in table.entries() {
        let (_, pieces) = entry.expect("every entry is sound");
        let pieces = table.pieces(pieces).expect("its pieces are there");
        assert!(pieces.windows(2).all(|pair| pair[0].at() < pair[1].at()));
        for (chunk, _) in pieces.iter().filter_map(|piece| piece.chunk()) {
            assert!(u64::from(chunk.0) < table.chunk_count());
        }
    }
    let mut end = 0;
    for chunk in chunks(&table) {
        assert!(chunk.packed_at.0 >= end);
        end = chunk.packed_at.0 + u64::from(chunk.packed_len);
        assert!(end <= layout.end.0);
    }
}
