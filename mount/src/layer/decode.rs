//! The packed bytes of a chunk become its plain ones.

pub mod fine;

use bytes::Bytes;
use liblzma::stream::{Action, Status, Stream};
use zstd::zstd_safe::{
    DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, find_frame_compressed_size,
    get_error_name,
};

use super::table::{Checkpoint, Chunk, Codec};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::scratch::Scratch;
use crate::sys::inflate::{Inflater, Stop, WINDOW_BYTES, Wrapping};

/// Decodes chunks one after another. It keeps the contexts of zstd and zlib, which cost more to make than a small
/// chunk to decode: one per thread, for as long as the thread lives.
pub struct Decoder {
    zstd: DCtx<'static>,
    inflater: Inflater,
    zlib: libdeflater::Decompressor,
}

/// Why packed bytes are not the chunk that the layer's table promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed byte {}: {problem}", at.0)]
pub struct DecodeError {
    /// Where in the blob the chunk begins.
    pub at: PackedOffset,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("a chunk of {0} bytes is larger than we decode")]
    TooLarge(u64),
    #[error("the chunk is no zstd frame: {0}")]
    Zstd(&'static str),
    #[error("the chunk is no deflate stream")]
    Deflate,
    #[error("the chunk is no {0} block")]
    Block(&'static str),
    #[error("the checkpoint before the chunk is damaged")]
    Checkpoint,
    #[error("the chunk ends after {has} of {needs} bytes")]
    Short { has: usize, needs: usize },
    #[error("the chunk's digest does not match")]
    Digest,
}

/// Plain bytes in a block of squashfs at most: `SQUASHFS_FILE_MAX_SIZE` of squashfs_fs.h.
const BLOCK_BYTES_LIMIT: usize = 1 << 20;

/// What decoding a block of xz may take: eight times the largest dictionary that a block has any use for.
const XZ_MEMORY_BYTES: u64 = 8 << 20;

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
        Self {
            zstd: context,
            inflater: Inflater::new(),
            zlib: libdeflater::Decompressor::new(),
        }
    }

    /// The plain bytes of `chunk`, exactly as many as it promises and with the digest it promises.
    /// `packed` begins where the chunk does; bytes after the chunk's own are ignored, but for a chunk whose packed bytes
    /// are what is hashed. Allocates the plain bytes and those before them that share the frame or member, and for a zstd
    /// frame with a large window up to 128 MiB until it returns.
    pub fn plain(&mut self, chunk: &Chunk<'_>, packed: &[u8]) -> Result<Bytes, DecodeError> {
        let plain = match self.decoded(chunk, end_of(chunk), packed) {
            Ok(plain) if chunk.skip > 0 => part(chunk, &plain),
            Ok(plain) if chunk.digest.matches(&plain) => Ok(Scratch::from(plain).into()),
            Ok(_) => Err(Problem::Digest),
            Err(problem) => Err(problem),
        };
        plain.map_err(|problem| failed(chunk, problem))
    }

    /// The plain bytes of `chunks`, which share one frame or member; those of the `wanted` one, and of each other one whose
    /// digest matches.
    pub fn siblings(
        &mut self,
        chunks: &[Chunk<'_>],
        wanted: usize,
        packed: &[u8],
    ) -> Result<Vec<Option<Bytes>>, DecodeError> {
        let chunk = &chunks[wanted];
        let until = chunks.iter().map(end_of).max().unwrap_or(0);
        let plain = self
            .decoded(chunk, until, packed)
            .map_err(|problem| failed(chunk, problem))?;
        part(chunk, &plain).map_err(|problem| failed(chunk, problem))?;
        let parts = chunks.iter().map(|chunk| part(chunk, &plain).ok());
        Ok(parts.collect())
    }

    /// The first `needs` plain bytes of the frame or member that `chunk` is in.
    fn decoded(
        &mut self,
        chunk: &Chunk<'_>,
        needs: u64,
        packed: &[u8],
    ) -> Result<Vec<u8>, Problem> {
        if needs > CHUNK_BYTES_LIMIT as u64 {
            return Err(Problem::TooLarge(needs));
        }
        let needs = needs as usize;
        if !chunk.digest.matches_packed(packed) {
            return Err(Problem::Digest);
        }
        match chunk.codec {
            Codec::Raw => Ok(raw(packed, needs)?.to_vec()),
            Codec::Zstd => self.zstd(packed, needs),
            Codec::Gzip => {
                self.inflater.reset(Wrapping::Gzip);
                self.inflated(packed, needs, Wrapping::Gzip)
            }
            Codec::Deflate(checkpoint) => self.resumed(checkpoint, packed, needs),
            Codec::Zlib | Codec::Xz | Codec::Lz4 => self.block(chunk.codec, packed, needs),
        }
    }

    /// The first `needs` plain bytes of a block of squashfs.
    fn block(&mut self, codec: Codec<'_>, packed: &[u8], needs: usize) -> Result<Vec<u8>, Problem> {
        // A fragment has more bytes than the files in it that are shown, and only a whole one can be decoded.
        let whole = || needs.max(BLOCK_BYTES_LIMIT);
        let plain = self.whole(codec, packed, needs);
        let mut plain = plain.or_else(|_| self.whole(codec, packed, whole()))?;
        let has = plain.len();
        if has < needs {
            return Err(Problem::Short { has, needs });
        }
        plain.truncate(needs);
        Ok(plain)
    }

    /// All plain bytes that `packed` decodes to, if they are not more than `limit`; of xz and zstd the first `limit`.
    pub(super) fn whole(
        &mut self,
        codec: Codec<'_>,
        packed: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, Problem> {
        if codec == Codec::Zstd {
            let filled = self.filled(limit, packed);
            self.recover();
            return filled;
        }
        let mut plain = vec![0; limit];
        let has = match codec {
            Codec::Zlib => self
                .zlib
                .zlib_decompress(packed, &mut plain)
                .map_err(|_| Problem::Block("zlib"))?,
            Codec::Lz4 => {
                let room = i32::try_from(limit).map_err(|_| Problem::TooLarge(limit as u64))?;
                lz4::block::decompress_to_buffer(packed, Some(room), &mut plain)
                    .map_err(|_| Problem::Block("lz4"))?
            }
            Codec::Xz => unxz(packed, &mut plain)?,
            _ => return Err(Problem::Block("squashfs")),
        };
        plain.truncate(has);
        Ok(plain)
    }

    /// The first `needs` plain bytes after the checkpoint.
    fn resumed(
        &mut self,
        checkpoint: Checkpoint<'_>,
        packed: &[u8],
        needs: usize,
    ) -> Result<Vec<u8>, Problem> {
        let window = match checkpoint.window {
            [] => Vec::new(),
            window => {
                zstd::bulk::decompress(window, WINDOW_BYTES).map_err(|_| Problem::Checkpoint)?
            }
        };
        let (first, packed) = match (checkpoint.bits, packed) {
            (0, packed) => (0, packed),
            (_, [first, packed @ ..]) => (*first, packed),
            (_, []) => return Err(Problem::Short { has: 0, needs }),
        };
        self.inflater
            .resume(checkpoint.bits, first, &window)
            .map_err(|_| Problem::Checkpoint)?;
        self.inflated(packed, needs, Wrapping::Raw)
    }

    /// Inflates through the ends of members until there are `needs` bytes.
    fn inflated(
        &mut self,
        mut packed: &[u8],
        needs: usize,
        mut wrapping: Wrapping,
    ) -> Result<Vec<u8>, Problem> {
        let mut plain = vec![0; needs];
        let mut has = 0;
        while has < needs {
            let step = self
                .inflater
                .inflate(packed, &mut plain[has..], false)
                .map_err(|_| Problem::Deflate)?;
            has += step.produced;
            packed = &packed[step.consumed..];
            if step.stop == Stop::StreamEnd {
                // A raw stream knows nothing of the member's trailer, CRC-32 and length.
                let trailer = if wrapping == Wrapping::Raw { 8 } else { 0 };
                packed = packed.get(trailer..).unwrap_or_default();
                wrapping = Wrapping::Gzip;
                self.inflater.reset(wrapping);
            } else if step.consumed + step.produced == 0 {
                break;
            }
            if packed.is_empty() && step.produced == 0 {
                break;
            }
        }
        match has < needs {
            true => Err(Problem::Short { has, needs }),
            false => Ok(plain),
        }
    }

    /// The first `needs` bytes of the frames in `packed`.
    fn zstd(&mut self, packed: &[u8], needs: usize) -> Result<Vec<u8>, Problem> {
        let outcome = self.filled(needs, packed);
        self.recover();
        let plain = outcome?;
        match plain.len() {
            has if has < needs => Err(Problem::Short { has, needs }),
            _ => Ok(plain),
        }
    }

    /// Decodes frames until there are `limit` plain bytes or `packed` is at its end.
    fn filled(&mut self, limit: usize, packed: &[u8]) -> Result<Vec<u8>, Problem> {
        // Written to before it is read, so it need not be zeros.
        let mut plain = Scratch::with_room(limit);
        if self.is_filled_at_once(&mut plain, limit, packed) {
            plain.truncate(limit);
            return Ok(plain);
        }
        plain.clear();
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(&mut plain);
        while output.pos() < limit && input.pos() < packed.len() {
            self.zstd
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| Problem::Zstd(get_error_name(code)))?;
        }
        plain.truncate(limit);
        Ok(plain)
    }

    /// Whether the first frame is all that is wanted or all that there is, and has room in `plain`: then `plain` has it. It is decoded
    /// where it belongs; as a stream, a frame that does not tell its size (Go's encoder makes such) is decoded into a window of some
    /// megabytes first.
    fn is_filled_at_once(&mut self, plain: &mut Vec<u8>, limit: usize, packed: &[u8]) -> bool {
        let frame = find_frame_compressed_size(packed);
        let frame = frame.ok().and_then(|len| packed.get(..len));
        frame.is_some_and(|frame| {
            let decoded = self.zstd.decompress(plain, frame);
            decoded.is_ok_and(|has| has >= limit || frame.len() == packed.len())
        })
    }

    /// Ready for the next chunk, whatever became of the last one.
    fn recover(&mut self) {
        let reset = self.zstd.reset(ResetDirective::SessionOnly);
        if reset.is_err() || self.zstd.sizeof() > KEPT_CONTEXT_BYTES {
            *self = Self::new();
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Where in its frame or member the chunk ends.
fn end_of(chunk: &Chunk<'_>) -> u64 {
    u64::from(chunk.skip) + u64::from(chunk.plain_len)
}

/// The chunk's own bytes among those of its frame or member, if they are what was promised.
fn part(chunk: &Chunk<'_>, plain: &[u8]) -> Result<Bytes, Problem> {
    let own = &plain[chunk.skip as usize..end_of(chunk) as usize];
    match chunk.digest.matches(own) {
        true => Ok(Bytes::copy_from_slice(own)),
        false => Err(Problem::Digest),
    }
}

/// Decodes until `plain` is full or the stream ends; how many bytes came.
fn unxz(packed: &[u8], plain: &mut [u8]) -> Result<usize, Problem> {
    let wrong = |_| Problem::Block("xz");
    let mut stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES, 0).map_err(wrong)?;
    loop {
        let before = (stream.total_in(), stream.total_out());
        let status = stream
            .process(
                &packed[before.0 as usize..],
                &mut plain[before.1 as usize..],
                Action::Finish,
            )
            .map_err(wrong)?;
        let has = stream.total_out() as usize;
        let stands_still = before == (stream.total_in(), stream.total_out());
        if status == Status::StreamEnd || has == plain.len() || stands_still {
            return Ok(has);
        }
    }
}

fn failed(chunk: &Chunk<'_>, problem: Problem) -> DecodeError {
    DecodeError {
        at: chunk.packed_at,
        problem,
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

    fn chunk<'a>(plain: &[u8], codec: Codec<'a>) -> Chunk<'a> {
        Chunk {
            packed_at: PackedOffset(40_960),
            packed_len: 0,
            skip: 0,
            plain_len: plain.len() as u32,
            codec,
            digest: ChunkDigest::sha256_of(plain),
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
        assert!(decoder.zstd.sizeof() < KEPT_CONTEXT_BYTES);
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn chunks_that_share_a_member_come_together_and_each_is_checked() {
        let plain = text(10_000);
        let member = [gzip(&plain), b"the next member".to_vec()].concat();
        let within = |from: usize, to: usize| Chunk {
            skip: from as u32,
            ..chunk(&plain[from..to], Codec::Gzip)
        };
        let mut damaged = within(700, 900);
        damaged.digest = ChunkDigest::sha256_of(b"other");
        let chunks = [within(0, 500), damaged, within(9000, 10_000)];
        let mut decoder = Decoder::new();
        let plains = decoder.siblings(&chunks, 2, &member).unwrap();
        assert_eq!(plains[0].as_deref(), Some(&plain[..500]));
        assert_eq!(plains[1], None);
        assert_eq!(plains[2].as_deref(), Some(&plain[9000..]));
        assert!(decoder.siblings(&chunks, 1, &member).is_err());
        assert_eq!(decoder.plain(&chunks[2], &member).unwrap(), plain[9000..]);
        let beyond = within(9000, 10_000);
        let beyond = Chunk {
            skip: 9001,
            ..beyond
        };
        assert!(message(decoder.plain(&beyond, &gzip(&plain))).contains("ends after 10000"));
        assert!(message(decoder.plain(&chunks[0], b"no member")).contains("no deflate"));
    }

    #[test]
    fn a_stream_resumes_at_a_checkpoint_and_goes_on_through_members() {
        let (first, second) = (text(50_000), text(30_000));
        let packed = [gzip(&first), gzip(b""), gzip(&second)].concat();
        let plain = [&first[..], &second].concat();
        // A gzip header of ten bytes, then a deflate stream: a checkpoint at its start has no window.
        let packed = &packed[10..];
        let window = &[][..];
        let checkpoint = Codec::Deflate(Checkpoint { bits: 0, window });
        let mut whole = chunk(&plain, checkpoint);
        whole.digest = ChunkDigest::PackedSha256(*crate::digest::Digest::of(packed).as_bytes());
        let mut decoder = Decoder::new();
        assert_eq!(decoder.plain(&whole, packed).unwrap(), plain);
        assert!(message(decoder.plain(&whole, &packed[..packed.len() - 1])).contains("digest"));
        let longer = Chunk {
            plain_len: whole.plain_len + 1,
            ..whole
        };
        assert!(message(decoder.plain(&longer, packed)).contains("ends after 80000"));
        for checkpoint in [
            Checkpoint {
                bits: 0,
                window: b"no frame",
            },
            Checkpoint { bits: 8, window },
        ] {
            let codec = Codec::Deflate(checkpoint);
            assert!(
                message(decoder.plain(&Chunk { codec, ..whole }, packed)).contains("checkpoint")
            );
        }
    }

    #[test]
    fn an_empty_chunk_decodes_to_nothing() {
        let empty = chunk(b"", Codec::Zstd);
        assert_eq!(Decoder::new().plain(&empty, b"").unwrap(), "");
    }
}
