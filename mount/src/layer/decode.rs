//! The packed bytes of a chunk become its plain ones.

use bytes::Bytes;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::table::{Chunk, Codec};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};

/// Decodes chunks one after another. It keeps zstd's context, which costs more to make than a small
/// chunk to decode: one per thread, for as long as the thread lives.
pub struct Decoder(DCtx<'static>);

/// Why packed bytes are not the chunk that the layer's table promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed byte {}: {problem}", at.0)]
pub struct DecodeError {
    /// Where in the blob the chunk begins.
    pub at: PackedOffset,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("a chunk of {0} bytes is larger than we decode")]
    TooLarge(u32),
    #[error("the chunk is no zstd frame: {0}")]
    Zstd(&'static str),
    #[error("the chunk ends after {has} of {needs} bytes")]
    Short { has: usize, needs: usize },
    #[error("the chunk's digest does not match")]
    Digest,
}

/// The largest window that a frame may ask for, as a power of two: what `zstd` itself takes without `--long=28`.
const WINDOW_LOG_LIMIT: u32 = 27;

/// A context that grew beyond this for a large window is not kept. Frames that podman writes have windows of 8 MiB.
const KEPT_CONTEXT_BYTES: usize = 12 << 20;

impl Decoder {
    /// A decoder that has decoded nothing yet.
    pub fn new() -> Self {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_LIMIT))
            .expect("zstd accepts windows of this size everywhere");
        Self(context)
    }

    /// The plain bytes of `chunk`, exactly as many as it promises and with the digest it promises.
    /// `packed` begins where the chunk does; bytes after the chunk's own are ignored. Allocates the
    /// plain bytes, and for a frame with a large window up to 128 MiB until it returns.
    pub fn plain(&mut self, chunk: &Chunk, packed: &[u8]) -> Result<Bytes, DecodeError> {
        self.decoded(chunk, packed).map_err(|problem| DecodeError {
            at: chunk.packed_at,
            problem,
        })
    }

    fn decoded(&mut self, chunk: &Chunk, packed: &[u8]) -> Result<Bytes, Problem> {
        let needs = chunk.plain_len as usize;
        if needs > CHUNK_BYTES_LIMIT {
            return Err(Problem::TooLarge(chunk.plain_len));
        }
        let plain = match chunk.codec {
            Codec::Raw => raw(packed, needs)?.to_vec(),
            Codec::Zstd => self.zstd(packed, needs)?,
        };
        if !chunk.digest.matches(&plain) {
            return Err(Problem::Digest);
        }
        Ok(plain.into())
    }

    /// The first `needs` bytes of the frames in `packed`.
    fn zstd(&mut self, packed: &[u8], needs: usize) -> Result<Vec<u8>, Problem> {
        let mut plain = vec![0; needs];
        let outcome = self.fill(&mut plain, packed);
        self.recover();
        let has = outcome?;
        if has < needs {
            return Err(Problem::Short { has, needs });
        }
        Ok(plain)
    }

    /// Decodes frames until `plain` is full or `packed` at its end; how many bytes came. A frame
    /// that is complete and fits is decoded at once, without zstd's own window (`ZSTD_decompressStream`,
    /// "single-pass optimization").
    fn fill(&mut self, plain: &mut [u8], packed: &[u8]) -> Result<usize, Problem> {
        let mut input = InBuffer::around(packed);
        let needs = plain.len();
        let mut output = OutBuffer::around(plain);
        while output.pos() < needs && input.pos() < packed.len() {
            self.0
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| Problem::Zstd(get_error_name(code)))?;
        }
        Ok(output.pos())
    }

    /// Ready for the next chunk, whatever became of the last one.
    fn recover(&mut self) {
        let reset = self.0.reset(ResetDirective::SessionOnly);
        if reset.is_err() || self.0.sizeof() > KEPT_CONTEXT_BYTES {
            *self = Self::new();
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

fn raw(packed: &[u8], needs: usize) -> Result<&[u8], Problem> {
    let has = packed.len();
    packed.get(..needs).ok_or(Problem::Short { has, needs })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::digest::ChunkDigest;

    fn chunk(plain: &[u8], codec: Codec) -> Chunk {
        Chunk {
            packed_at: PackedOffset(40_960),
            packed_len: 0,
            plain_len: plain.len() as u32,
            codec,
            digest: ChunkDigest::blake3_of(plain),
        }
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| (at * at / 977) as u8 & 15 | b'a')
            .collect()
    }

    /// A frame of unknown length, as a streaming writer leaves it.
    fn streamed(plain: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn message(result: Result<Bytes, DecodeError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_chunk_is_one_frame_or_several_and_what_follows_is_ignored() {
        let plain = text(300_000);
        let (start, end) = plain.split_at(100_000);
        let pledged = |plain: &[u8]| zstd::bulk::compress(plain, 1).unwrap();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
        let mut decoder = Decoder::new();
        for packed in [
            pledged(&plain),
            streamed(&plain),
            [pledged(&plain), b"no frame".to_vec()].concat(),
            [pledged(start), pledged(end), pledged(b"next header")].concat(),
            [streamed(start), skippable, streamed(end)].concat(),
            [streamed(start), pledged(&[end, b"padding"].concat())].concat(),
            streamed(&[&plain[..], &[0; 512]].concat()),
        ] {
            assert_eq!(
                decoder.plain(&chunk(&plain, Codec::Zstd), &packed).unwrap(),
                plain
            );
        }
    }

    #[test]
    fn raw_chunks_are_copied() {
        let mut decoder = Decoder::new();
        let chunk = chunk(b"plain", Codec::Raw);
        assert_eq!(decoder.plain(&chunk, b"plain and more").unwrap(), "plain");
        assert_eq!(
            message(decoder.plain(&chunk, b"pla")),
            "packed byte 40960: the chunk ends after 3 of 5 bytes"
        );
    }

    #[test]
    fn bytes_that_are_not_the_chunk_are_refused_and_the_next_chunk_decodes() {
        let plain = text(5000);
        let packed = streamed(&plain);
        let mut decoder = Decoder::new();
        let chunk = chunk(&plain, Codec::Zstd);
        let mut damaged = packed.clone();
        damaged[packed.len() / 2] ^= 1;
        let other = streamed(&text(5001)[1..]);
        for (wrong, problem) in [
            (&packed[..packed.len() / 2], "the chunk ends after"),
            (&[], "the chunk ends after 0 of 5000 bytes"),
            (b"no frame at all", "the chunk is no zstd frame"),
            (&other, "the chunk's digest does not match"),
            (&damaged, ""),
        ] {
            let message = message(decoder.plain(&chunk, wrong));
            assert!(message.contains(problem), "{message}");
            assert_eq!(decoder.plain(&chunk, &packed).unwrap(), plain);
        }
    }

    #[test]
    fn a_chunk_that_promises_too_much_is_refused_before_anything_is_allocated() {
        let mut chunk = chunk(b"", Codec::Zstd);
        chunk.plain_len = CHUNK_BYTES_LIMIT as u32 + 1;
        assert!(message(Decoder::new().plain(&chunk, b"")).contains("larger than we decode"));
    }

    #[test]
    fn a_frame_with_a_huge_window_is_refused_and_a_large_one_is_not_kept() {
        // Magic, a frame header without content size (RFC 8878, 3.1.1.1), window 2^(10 + 31) or 2^(10 + 14).
        let frame =
            |exponent: u8| [&[0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3][..], &[1, 0, 0]].concat();
        let mut decoder = Decoder::new();
        let some = chunk(b"plain", Codec::Zstd);
        assert!(message(decoder.plain(&some, &frame(31))).contains("too much memory"));
        assert!(message(decoder.plain(&some, &frame(14))).contains("ends after 0"));
        assert!(decoder.0.sizeof() < KEPT_CONTEXT_BYTES);
    }

    #[test]
    fn an_empty_chunk_decodes_to_nothing() {
        let empty = chunk(b"", Codec::Zstd);
        assert_eq!(Decoder::new().plain(&empty, b"").unwrap(), "");
    }
}
