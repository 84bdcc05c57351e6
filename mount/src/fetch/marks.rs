//! What was found right once. A chunk of others' formats has a SHA-256 digest, which takes a third of the time of reading it again
//! from the store. Whoever has checked it leaves a mark: 32 bytes of BLAKE3 of the packed bytes, of which there are fewer, and which
//! is several times as fast. A chunk whose packed bytes have their mark decodes to the bytes that were right then.
//!
//! Marks are believed, as tables are, so they are kept where nobody writes whom the user does not trust. A mark that is missing, torn
//! or another chunk's has the chunk checked by its digest again.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::digest::ChunkDigest;
use crate::layer::decode::{DecodeError, Decoder};
use crate::layer::table::{Chunk, ChunkIndex};

const MARK_BYTES: usize = 32;

type Mark = [u8; MARK_BYTES];

/// The marks of one layer's chunks, as one table counts them.
pub struct Marks(File);

impl Marks {
    /// Whether a chunk with this digest is read sooner by its mark.
    pub fn help(digest: &ChunkDigest) -> bool {
        matches!(
            digest,
            ChunkDigest::Sha256(_) | ChunkDigest::PackedSha256(_)
        )
    }

    /// Bytes that those of so many chunks take.
    pub fn len(chunks: u64) -> u64 {
        chunks.saturating_mul(MARK_BYTES as u64)
    }

    /// Those in `file`, which has zeros where none was left yet.
    pub fn of(file: File) -> Self {
        Self(file)
    }

    /// The chunk's plain bytes, known to be right by its mark or checked now.
    pub(super) fn plain(
        &self,
        decoder: &mut Decoder,
        index: ChunkIndex,
        chunk: &Chunk<'_>,
        packed: &[u8],
    ) -> Result<Bytes, DecodeError> {
        if !Self::help(&chunk.digest) {
            return decoder.plain(chunk, packed);
        }
        let (mark, at) = (mark(chunk, packed), Self::len(index.0.into()));
        let mut kept = Mark::default();
        if self.0.read_exact_at(&mut kept, at).is_ok() && kept == mark {
            let digest = ChunkDigest::Unknown;
            return decoder.plain(&Chunk { digest, ..*chunk }, packed);
        }
        let plain = decoder.plain(chunk, packed)?;
        // Without it the chunk is only checked again.
        let _ = self.0.write_all_at(&mark, at);
        Ok(plain)
    }
}

/// Of these packed bytes as this chunk.
fn mark(chunk: &Chunk<'_>, packed: &[u8]) -> Mark {
    let mut hasher = blake3::Hasher::new();
    hasher.update(packed);
    hasher.update(&chunk.skip.to_le_bytes());
    hasher.update(&chunk.plain_len.to_le_bytes());
    if let ChunkDigest::Sha256(digest) | ChunkDigest::PackedSha256(digest) = &chunk.digest {
        hasher.update(digest);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::PackedOffset;
    use crate::layer::table::Codec;

    fn marks() -> Marks {
        Marks::of(tempfile::tempfile().unwrap())
    }

    fn chunk(digest: ChunkDigest) -> Chunk<'static> {
        Chunk {
            packed_at: PackedOffset(0),
            packed_len: 5,
            skip: 0,
            plain_len: 5,
            codec: Codec::Raw,
            digest,
        }
    }

    fn read(marks: &Marks, index: u32, chunk: &Chunk<'_>, packed: &[u8]) -> Option<Bytes> {
        let plain = marks.plain(&mut Decoder::new(), ChunkIndex(index), chunk, packed);
        plain.ok()
    }

    #[test]
    fn what_was_right_once_is_right_again_and_nothing_else_is() {
        let right = chunk(ChunkDigest::sha256_of(b"right"));
        let marks = marks();
        assert_eq!(read(&marks, 3, &right, b"wrong"), None);
        for _ in 0..2 {
            assert_eq!(read(&marks, 3, &right, b"right").unwrap(), "right");
            assert_eq!(read(&marks, 3, &right, b"wrong"), None);
        }
        // Neither other bytes nor another chunk at the same place.
        let other = chunk(ChunkDigest::sha256_of(b"other"));
        assert_eq!(read(&marks, 3, &other, b"right"), None);
        assert_eq!(read(&marks, 3, &other, b"other").unwrap(), "other");
        let shorter = Chunk {
            plain_len: 4,
            ..other
        };
        assert_eq!(read(&marks, 3, &shorter, b"other"), None);
    }

    #[test]
    fn a_mark_takes_the_place_of_the_digest() {
        let marks = marks();
        // As if it had been checked: its digest is none of these bytes.
        let checked = chunk(ChunkDigest::sha256_of(b"other"));
        marks
            .0
            .write_all_at(&mark(&checked, b"right"), Marks::len(7))
            .unwrap();
        assert_eq!(read(&marks, 7, &checked, b"right").unwrap(), "right");
        assert_eq!(read(&marks, 6, &checked, b"right"), None);
        marks.0.write_all_at(&[0; 5], Marks::len(7) + 9).unwrap();
        assert_eq!(read(&marks, 7, &checked, b"right"), None);
    }
}
