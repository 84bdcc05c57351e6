//! Any bytes as the TOC of a layer: an error, or a table whose every record can be read.

use sifon_mount::digest::Digest;
use sifon_mount::extent::PackedOffset;
use sifon_mount::layer::table::{ChunkIndex, Codec, TableWriter, from_reader};
use sifon_mount::layer::toc::{self, Layout};

pub fn run(json: &[u8]) {
    let directory = std::env::temp_dir();
    let mut writer = TableWriter::in_directory(&directory).expect("a temporary file");
    let layout = Layout {
        end: PackedOffset(3 << 20),
        codec: Codec::Gzip,
    };
    if toc::read(json, layout, &mut writer).is_err() {
        return;
    }
    let mut bytes = Vec::new();
    writer
        .finish(Digest::of(b""), &mut bytes)
        .expect("memory takes all");
    let table = from_reader(&bytes[..]).expect("what was written is sound");
    for entry in table.entries() {
        let (_, pieces) = entry.expect("every entry is sound");
        let pieces = table.pieces(pieces).expect("its pieces are there");
        assert!(pieces.windows(2).all(|pair| pair[0].at() < pair[1].at()));
        for (chunk, _) in pieces.iter().filter_map(|piece| piece.chunk()) {
            assert!(u64::from(chunk.0) < table.chunk_count());
        }
    }
    let mut end = 0;
    for index in 0..table.chunk_count() {
        let chunk = table.chunk(ChunkIndex(index as u32)).expect("sound");
        assert!(chunk.packed_at.0 >= end);
        end = chunk.packed_at.0 + u64::from(chunk.packed_len);
        assert!(end <= layout.end.0);
    }
}
