//! Any bytes as a gzip layer that is to be indexed, and as a chunk of one: an error, or what the layer's own decoder makes
//! of them.

use std::io::{Cursor, Read};

use sifon_mount::digest::{ChunkDigest, Digest};
use sifon_mount::extent::PackedOffset;
use sifon_mount::layer::decode::Decoder;
use sifon_mount::layer::inflate::{Compression, plain, sniffed};
use sifon_mount::layer::native::Blueprint;
use sifon_mount::layer::soci;
use sifon_mount::layer::table::{Checkpoint, Chunk, Codec};

pub fn run(packed: &[u8]) {
    if sniffed(packed) != Compression::Gzip {
        return;
    }
    let mut expected = Vec::new();
    let stream = plain(Cursor::new(packed.to_vec())).expect("nothing is read yet but four bytes");
    let is_sound = stream.take(1 << 20).read_to_end(&mut expected).is_ok();
    let blueprint = Blueprint {
        layer: Digest::of(packed),
        packed_len: packed.len() as u64,
        diff_id: Digest::of(&expected),
    };
    let indexed = soci::indexed(blueprint, packed, 1, true, &std::env::temp_dir());
    assert!(is_sound || indexed.is_err());
    let digest = ChunkDigest::PackedSha256(*Digest::of(packed).as_bytes());
    for codec in [
        Codec::Gzip,
        Codec::Deflate(Checkpoint {
            bits: packed[0] & 7,
            window: packed,
        }),
        Codec::Deflate(Checkpoint {
            bits: packed[packed.len() - 1] & 7,
            window: &[],
        }),
    ] {
        let chunk = Chunk {
            packed_at: PackedOffset(0),
            packed_len: packed.len() as u32,
            skip: 0,
            plain_len: expected.len() as u32,
            codec,
            digest,
        };
        if let Ok(plain) = Decoder::new().plain(&chunk, packed) {
            assert!(plain.len() == expected.len());
            assert!(codec != Codec::Gzip || plain == expected);
        }
    }
}
