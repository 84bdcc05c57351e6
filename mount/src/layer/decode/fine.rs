//! A large gzip chunk can be resumed only where its format says. While it is decoded for the first time, more such places are
//! noted, so that from then on a reader of a part of it waits for a part.

use bytes::Bytes;

use super::{DecodeError, Decoder, Problem, failed};
use crate::digest::ChunkDigest;
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::layer::table::{Checkpoint, Chunk, Codec};
use crate::scratch::Scratch;
use crate::sys::inflate::{Stop, WINDOW_BYTES, Wrapping};

/// Plain bytes of a piece at least: each takes a window, which has a twentieth of that when packed.
const SPACING_BYTES: usize = 512 << 10;

/// Windows are kept for a while and used a few times.
const WINDOW_LEVEL: i32 = 1;

/// What a chunk begins with that is cut: in less there is nothing to gain.
pub const CUT_BYTES: u32 = 1 << 20;

/// The pieces of one chunk, as far as it was decoded.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    pieces: Vec<Piece>,
    /// Where it goes on, if it does.
    rest: Option<Start>,
}

/// A stretch of a chunk.
#[derive(Clone, Debug)]
struct Piece {
    start: Start,
    packed_len: u32,
    plain_len: u32,
    /// Of its packed bytes: the chunk was right when it was cut.
    digest: ChunkDigest,
}

/// A place at which decoding can begin.
#[derive(Clone, Debug)]
struct Start {
    /// From the chunk's first packed byte on.
    packed_at: u32,
    plain_at: u32,
    /// `None` at the chunk's beginning.
    checkpoint: Option<(u8, Vec<u8>)>,
}

impl Cut {
    /// Which piece has the plain byte `at`.
    pub fn place(&self, at: u32) -> Option<usize> {
        let after = self
            .pieces
            .partition_point(|piece| piece.start.plain_at <= at);
        let place = after.checked_sub(1)?;
        let piece = &self.pieces[place];
        (at - piece.start.plain_at < piece.plain_len).then_some(place)
    }

    /// Where in the chunk the piece begins.
    pub fn plain_at(&self, place: usize) -> u32 {
        self.pieces[place].start.plain_at
    }

    /// Where it ends there.
    pub fn plain_end(&self, place: usize) -> u32 {
        self.plain_at(place) + self.pieces[place].plain_len
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Whether nothing was decoded yet.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let starts = self
            .pieces
            .iter()
            .map(|piece| &piece.start)
            .chain(&self.rest);
        let windows = starts.filter_map(|start| start.checkpoint.as_ref());
        let windows: usize = windows.map(|(_, window)| window.len()).sum();
        windows + self.pieces.len() * size_of::<Piece>()
    }

    /// The piece as a chunk of its own, of those that `whole` consists of.
    pub fn piece<'a>(&'a self, place: usize, whole: &Chunk<'a>) -> Chunk<'a> {
        let piece = &self.pieces[place];
        Chunk {
            packed_at: PackedOffset(whole.packed_at.0 + u64::from(piece.start.packed_at)),
            packed_len: piece.packed_len,
            skip: 0,
            plain_len: piece.plain_len,
            codec: match &piece.start.checkpoint {
                None => whole.codec,
                Some((bits, window)) => Codec::Deflate(Checkpoint {
                    bits: *bits,
                    window,
                }),
            },
            digest: piece.digest,
        }
    }
}

/// Whether a chunk is one to cut.
pub fn is_to_cut(chunk: &Chunk<'_>) -> bool {
    let is_gzip = matches!(chunk.codec, Codec::Gzip | Codec::Deflate(_));
    is_gzip && chunk.skip == 0 && chunk.plain_len > CUT_BYTES
}

impl Decoder {
    /// Decodes `chunk`, which [is to be cut](is_to_cut), from where `cut` ends until the plain byte `until` has come, or, where only
    /// all of it can be checked, to its end. Adds the pieces to `cut` and gives their plain bytes.
    pub fn cut(
        &mut self,
        chunk: &Chunk<'_>,
        packed: &[u8],
        cut: &mut Cut,
        until: u32,
    ) -> Result<Vec<Bytes>, DecodeError> {
        let cutting = self.cut_on(chunk, packed, cut, until);
        cutting.map_err(|problem| failed(chunk, problem))
    }

    fn cut_on(
        &mut self,
        chunk: &Chunk<'_>,
        packed: &[u8],
        cut: &mut Cut,
        until: u32,
    ) -> Result<Vec<Bytes>, Problem> {
        if chunk.plain_len > CHUNK_BYTES_LIMIT as u32 {
            return Err(Problem::TooLarge(chunk.plain_len.into()));
        }
        if !chunk.digest.matches_packed(packed) {
            return Err(Problem::Digest);
        }
        let is_checked = matches!(
            chunk.digest,
            ChunkDigest::PackedSha256(_) | ChunkDigest::PackedBlake3(_)
        );
        let until = if is_checked { until } else { chunk.plain_len };
        let start = match (&cut.rest, cut.is_empty()) {
            (Some(rest), _) => rest.clone(),
            (None, true) => Start {
                packed_at: 0,
                plain_at: 0,
                checkpoint: None,
            },
            (None, false) => return Ok(Vec::new()),
        };
        let mut wrapping = self.begin(chunk, packed, &start)?;
        let bits = match (&start.checkpoint, chunk.codec) {
            (Some((bits, _)), _) => *bits,
            (None, Codec::Deflate(checkpoint)) => checkpoint.bits,
            (None, _) => 0,
        };
        let first = start.plain_at as usize;
        let needs = chunk.plain_len as usize - first;
        let mut plain = Scratch::of(needs);
        let mut has = 0;
        let mut at = start.packed_at as usize + usize::from(bits > 0);
        let (mut starts, mut ends) = (vec![start], Vec::new());
        let mut rest = None;
        while has < needs {
            let step = self
                .inflater
                .inflate(
                    packed.get(at..).unwrap_or_default(),
                    &mut plain[has..],
                    true,
                )
                .map_err(|_| Problem::Deflate)?;
            has += step.produced;
            at += step.consumed;
            match step.stop {
                Stop::BlockEnd { bits } => {
                    let since =
                        first + has - starts.last().map_or(0, |last| last.plain_at as usize);
                    if since < SPACING_BYTES || has == needs {
                        continue;
                    }
                    let from = has.saturating_sub(WINDOW_BYTES);
                    let window = zstd::bulk::compress(&plain[from..has], WINDOW_LEVEL);
                    let next = Start {
                        packed_at: (at - usize::from(bits > 0)) as u32,
                        plain_at: (first + has) as u32,
                        checkpoint: Some((bits, window.map_err(|_| Problem::Checkpoint)?)),
                    };
                    ends.push(at);
                    if first + has >= until as usize {
                        rest = Some(next);
                        break;
                    }
                    starts.push(next);
                }
                Stop::StreamEnd => {
                    // A raw stream knows nothing of the member's trailer, CRC-32 and length.
                    at += if wrapping == Wrapping::Raw { 8 } else { 0 };
                    wrapping = Wrapping::Gzip;
                    self.inflater.reset(wrapping);
                    if at >= packed.len() {
                        break;
                    }
                }
                Stop::Exhausted if step.consumed + step.produced == 0 => break,
                Stop::Exhausted => {}
            }
        }
        if rest.is_none() && has < needs {
            let has = first + has;
            let needs = chunk.plain_len as usize;
            return Err(Problem::Short { has, needs });
        }
        if rest.is_none() {
            ends.push(packed.len());
        }
        let plain = &plain[..has];
        if !is_checked && !chunk.digest.matches(plain) {
            return Err(Problem::Digest);
        }
        let plain_ends: Vec<usize> = starts[1..]
            .iter()
            .map(|start| start.plain_at as usize - first)
            .chain([has])
            .collect();
        let mut plains = Vec::new();
        for ((start, end), plain_end) in starts.into_iter().zip(ends).zip(plain_ends) {
            let plain_start = start.plain_at as usize - first;
            let own = &packed[start.packed_at as usize..end.min(packed.len())];
            cut.pieces.push(Piece {
                packed_len: own.len() as u32,
                plain_len: (plain_end - plain_start) as u32,
                digest: ChunkDigest::blake3_of(own),
                start,
            });
            // On their own, so that one that is kept does not keep the others.
            plains.push(Bytes::copy_from_slice(&plain[plain_start..plain_end]));
        }
        cut.rest = rest;
        Ok(plains)
    }

    /// Stands at `start` in `chunk`.
    fn begin(
        &mut self,
        chunk: &Chunk<'_>,
        packed: &[u8],
        start: &Start,
    ) -> Result<Wrapping, Problem> {
        let (bits, window) = match (&start.checkpoint, chunk.codec) {
            (Some((bits, window)), _) => (*bits, &window[..]),
            (None, Codec::Deflate(checkpoint)) => (checkpoint.bits, checkpoint.window),
            (None, _) => {
                self.inflater.reset(Wrapping::Gzip);
                return Ok(Wrapping::Gzip);
            }
        };
        let window = match window {
            [] => Vec::new(),
            window => {
                zstd::bulk::decompress(window, WINDOW_BYTES).map_err(|_| Problem::Checkpoint)?
            }
        };
        let first = match bits {
            0 => 0,
            _ => *packed
                .get(start.packed_at as usize)
                .ok_or(Problem::Checkpoint)?,
        };
        self.inflater
            .resume(bits, first, &window)
            .map_err(|_| Problem::Checkpoint)?;
        Ok(Wrapping::Raw)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::digest::Digest;

    fn text() -> Vec<u8> {
        let mut seed = 7u32;
        (0..5 << 20)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b'a' + (seed >> 28) as u8
            })
            .collect()
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn chunk(plain: &[u8], codec: Codec<'static>, digest: ChunkDigest) -> Chunk<'static> {
        Chunk {
            packed_at: PackedOffset(1000),
            packed_len: 0,
            skip: 0,
            plain_len: plain.len() as u32,
            codec,
            digest,
        }
    }

    /// Each piece by itself gives its bytes of `plain`, and all of them are all.
    fn assert_pieces_are(cut: &Cut, whole: &Chunk<'_>, packed: &[u8], plain: &[u8]) {
        let mut decoder = Decoder::new();
        let mut at = 0;
        while let Some(place) = cut.place(at) {
            let piece = cut.piece(place, whole);
            let from = (piece.packed_at.0 - whole.packed_at.0) as usize;
            let own = &packed[from..from + piece.packed_len as usize];
            let decoded = decoder.plain(&piece, own).unwrap();
            assert!(decoded == plain[at as usize..][..decoded.len()], "at {at}");
            let mut damaged = own.to_vec();
            damaged[own.len() / 2] ^= 1;
            assert!(decoder.plain(&piece, &damaged).is_err());
            at += decoded.len() as u32;
        }
        assert_eq!(at as usize, plain.len());
    }

    #[test]
    fn a_member_that_was_decoded_can_be_decoded_in_pieces() {
        let plain = text();
        let packed = gzip(&plain);
        let whole = chunk(&plain, Codec::Gzip, ChunkDigest::sha256_of(&plain));
        let mut cut = Cut::default();
        let mut decoder = Decoder::new();
        let plains = decoder.cut(&whole, &packed, &mut cut, 1).unwrap();
        assert!(plains.len() > 4, "{}", plains.len());
        assert_eq!(plains.concat(), plain);
        assert_pieces_are(&cut, &whole, &packed, &plain);
        let other = chunk(&plain, Codec::Gzip, ChunkDigest::sha256_of(b"other"));
        assert!(
            decoder
                .cut(&other, &packed, &mut Cut::default(), 1)
                .is_err()
        );
    }

    #[test]
    fn a_span_is_decoded_as_far_as_it_is_needed_and_goes_on_through_members() {
        let plain = text();
        let (first, second) = plain.split_at(3 << 20);
        let packed = [gzip(first), gzip(second)].concat();
        // A gzip header of ten bytes, then a deflate stream: a checkpoint at its start has no window.
        let packed = &packed[10..];
        let window = &[][..];
        let codec = Codec::Deflate(Checkpoint { bits: 0, window });
        let digest = ChunkDigest::PackedSha256(*Digest::of(packed).as_bytes());
        let whole = chunk(&plain, codec, digest);
        let (mut cut, mut decoder) = (Cut::default(), Decoder::new());
        let mut came = Vec::new();
        for until in [100, 1 << 20, plain.len() as u32] {
            for plain in decoder.cut(&whole, packed, &mut cut, until).unwrap() {
                came.extend_from_slice(&plain);
            }
            assert!(came.len() >= until as usize);
            if until == 100 {
                assert!(came.len() < 1 << 20, "{}", came.len());
            }
        }
        assert!(came == plain);
        assert_pieces_are(&cut, &whole, packed, &plain);
        assert!(decoder.cut(&whole, packed, &mut cut, 1).unwrap().is_empty());
        let truncated = &packed[..packed.len() - 1];
        assert!(
            decoder
                .cut(&whole, truncated, &mut Cut::default(), 1)
                .is_err()
        );
    }
}
