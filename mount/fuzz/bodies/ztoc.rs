//! Any bytes as a SOCI zTOC: an error, or a table whose every record can be read and lies in the layer.

use sifon_mount::layer::soci::{self, Trust};
use sifon_mount::layer::table::stretches;

use crate::written::{chunks, written};

/// How long the seeds' layer is.
const PACKED_BYTES: u64 = 596;

pub fn run(ztoc: &[u8]) {
    let parse = |writer: &mut _| soci::table(ztoc, PACKED_BYTES, Trust::Unsigned, writer);
    let Some(table) = written(parse) else {
        return;
    };
    for entry in table.entries() {
        let (_, pieces) = entry.expect("every entry is sound");
        if pieces.count == 0 {
            continue;
        }
        let proof = table.proof(pieces.first).expect("every file has a proof");
        let header = table.pieces(proof.header).expect("its pieces are there");
        let header = stretches(header, 0, proof.header_len.into());
        assert!(proof.header_len == 0 || header.is_some());
        let pieces = table.pieces(pieces).expect("its pieces are there");
        assert!(pieces.windows(2).all(|pair| pair[0].at() <= pair[1].at()));
        for (chunk, _) in pieces.iter().filter_map(|piece| piece.chunk()) {
            assert!(u64::from(chunk.0) < table.chunk_count());
        }
    }
    for chunk in chunks(&table) {
        assert!(chunk.packed_at.0 + u64::from(chunk.packed_len) <= PACKED_BYTES);
    }
}
