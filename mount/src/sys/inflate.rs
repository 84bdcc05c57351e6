//! zlib's inflate with what its safe wrappers leave out: resuming a stream in its middle, and stopping between blocks.

use std::ffi::c_int;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_,
    inflatePrime, inflateReset2, inflateSetDictionary, inflateValidate, z_stream, zlibVersion,
};

/// How far back a deflate stream refers at most (RFC 1951, 2).
pub const WINDOW_BYTES: usize = 32 << 10;

/// What the next packed byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// A deflate stream (RFC 1951).
    Raw,
    /// The header of a gzip member (RFC 1952); its trailer is checked.
    Gzip,
    /// The same, but what the trailer says is not looked at: whoever reads knows what the plain bytes must hash to.
    GzipUnchecked,
}

/// A decompressor. It keeps a window of 32 KiB.
pub struct Inflater(Box<z_stream>);

// SAFETY: all that the stream points to is its own state, which no thread has a hold on but through `&mut self`;
// pointers to input and output do not outlive the call that sets them.
unsafe impl Send for Inflater {}

/// Why a call came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The input is used up, or the output full.
    Exhausted,
    /// A block has ended that is not the stream's last, and the next one begins with this many bits, the topmost, of the
    /// last byte that was used.
    BlockEnd {
        /// From 0 to 7.
        bits: u8,
    },
    /// The stream, or the gzip member, has ended.
    StreamEnd,
}

/// What one call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Packed bytes that were used.
    pub consumed: usize,
    /// Plain bytes that were written.
    pub produced: usize,
    /// Why it came back.
    pub stop: Stop,
}

/// The packed bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a deflate stream")]
pub struct NotDeflate;

impl Inflater {
    /// One that stands at the beginning of a gzip member.
    pub fn new() -> Self {
        let mut stream = Box::new(z_stream::default());
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: the stream is zeroed but for its allocators, as `inflateInit2_` wants it, stays where it is in its
        // box, and `size` is its own.
        let code = unsafe {
            inflateInit2_(
                &raw mut *stream,
                window_bits(Wrapping::Gzip),
                zlibVersion(),
                size,
            )
        };
        assert_eq!(code, Z_OK, "only memory could be lacking");
        Self(stream)
    }

    /// Forgets everything; the next byte belongs to `wrapping`.
    pub fn reset(&mut self, wrapping: Wrapping) {
        // SAFETY: `new` initialised the stream.
        let code = unsafe { inflateReset2(&raw mut *self.0, window_bits(wrapping)) };
        assert_eq!(code, Z_OK, "the stream is sound and the window size valid");
        if wrapping == Wrapping::GzipUnchecked {
            // SAFETY: `new` initialised the stream.
            unsafe { inflateValidate(&raw mut *self.0, 0) };
        }
    }

    /// Stands in the middle of a deflate stream: `window`, at most [`WINDOW_BYTES`], came before, and `bits` bits, the topmost of
    /// the byte `first`, are next.
    pub fn resume(&mut self, bits: u8, first: u8, window: &[u8]) -> Result<(), NotDeflate> {
        self.reset(Wrapping::Raw);
        if bits > 7 || window.len() > WINDOW_BYTES {
            return Err(NotDeflate);
        }
        if bits > 0 {
            let value = c_int::from(first >> (8 - bits));
            // SAFETY: `new` initialised the stream.
            let code = unsafe { inflatePrime(&raw mut *self.0, bits.into(), value) };
            assert_eq!(code, Z_OK, "seven bits fit into an empty bit buffer");
        }
        // SAFETY: `new` initialised the stream; pointer and length are of the same slice, which is only read.
        let code =
            unsafe { inflateSetDictionary(&raw mut *self.0, window.as_ptr(), window.len() as u32) };
        (code == Z_OK).then_some(()).ok_or(NotDeflate)
    }

    /// Decompresses from `packed` to `plain` until one is used up or the stream ends; also until the end of a block, if
    /// `stops_at_blocks`.
    pub fn inflate(
        &mut self,
        packed: &[u8],
        plain: &mut [u8],
        stops_at_blocks: bool,
    ) -> Result<Step, NotDeflate> {
        let given = u32::try_from(packed.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        let stream = &mut *self.0;
        stream.next_in = packed.as_ptr();
        stream.avail_in = given;
        stream.next_out = plain.as_mut_ptr();
        stream.avail_out = room;
        let flush = if stops_at_blocks { Z_BLOCK } else { Z_NO_FLUSH };
        // SAFETY: `new` initialised the stream; input and output are pointers to slices that live through the call, with
        // lengths that do not exceed theirs, and the output is exclusively ours.
        let code = unsafe { inflate(stream, flush) };
        let (left, room_left, data_type) = (stream.avail_in, stream.avail_out, stream.data_type);
        // Nothing may be left to point to.
        stream.next_in = std::ptr::null();
        stream.next_out = std::ptr::null_mut();
        (stream.avail_in, stream.avail_out) = (0, 0);
        let stop = match code {
            Z_STREAM_END => Stop::StreamEnd,
            // zlib.h, `inflate`: 128 says that a block's end or a header was passed, 64 that the block is the last.
            Z_OK if stops_at_blocks && data_type & (128 | 64) == 128 => Stop::BlockEnd {
                bits: (data_type & 7) as u8,
            },
            Z_OK | Z_BUF_ERROR => Stop::Exhausted,
            _ => return Err(NotDeflate),
        };
        Ok(Step {
            consumed: (given - left) as usize,
            produced: (room - room_left) as usize,
            stop,
        })
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: `new` initialised the stream, and nobody can use it after this.
        unsafe { inflateEnd(&raw mut *self.0) };
    }
}

/// What zlib calls `windowBits`: a window of 2^15 bytes, negative for raw streams, 16 more for gzip.
fn window_bits(wrapping: Wrapping) -> c_int {
    match wrapping {
        Wrapping::Raw => -15,
        Wrapping::Gzip | Wrapping::GzipUnchecked => 15 + 16,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text() -> Vec<u8> {
        let mut seed = 7u32;
        (0..600_000)
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

    /// Every block's end: packed bytes used, bits left of the last, plain bytes so far.
    fn block_ends(packed: &[u8], plain: &mut [u8]) -> Vec<(usize, u8, usize)> {
        let mut inflater = Inflater::new();
        let (mut from, mut to, mut ends) = (0, 0, Vec::new());
        loop {
            let step = inflater
                .inflate(&packed[from..], &mut plain[to..], true)
                .unwrap();
            (from, to) = (from + step.consumed, to + step.produced);
            match step.stop {
                Stop::BlockEnd { bits } => ends.push((from, bits, to)),
                Stop::StreamEnd => return ends,
                Stop::Exhausted => assert!(step.consumed + step.produced > 0),
            }
        }
    }

    #[test]
    fn a_stream_resumes_at_the_end_of_every_block() {
        let (text, mut plain) = (text(), vec![0; 600_000]);
        let packed = gzip(&text);
        let ends = block_ends(&packed, &mut plain);
        assert!(plain == text);
        assert!(ends.len() > 5, "{ends:?}");
        assert!(ends.iter().any(|&(_, bits, _)| bits > 0), "{ends:?}");
        let mut inflater = Inflater::new();
        for (from, bits, to) in ends {
            let window = &text[to.saturating_sub(WINDOW_BYTES)..to];
            inflater.resume(bits, packed[from - 1], window).unwrap();
            let mut rest = vec![0; text.len() - to];
            let step = inflater.inflate(&packed[from..], &mut rest, false).unwrap();
            assert!(
                step.produced == rest.len() && rest == text[to..],
                "at {from}"
            );
        }
    }

    #[test]
    fn a_trailer_is_checked_if_that_is_wanted() {
        let mut packed = gzip(b"text");
        let checksum_at = packed.len() - 8;
        packed[checksum_at] ^= 1;
        let mut inflater = Inflater::new();
        for (wrapping, is_read) in [
            (Wrapping::Gzip, false),
            (Wrapping::GzipUnchecked, true),
            (Wrapping::Gzip, false),
        ] {
            inflater.reset(wrapping);
            let step = inflater.inflate(&packed, &mut [0; 100], false);
            assert_eq!(step.is_ok(), is_read, "{wrapping:?}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused_and_the_next_one_is_read() {
        let mut inflater = Inflater::new();
        let mut plain = [0; 100];
        assert_eq!(
            inflater.inflate(b"no gzip", &mut plain, false),
            Err(NotDeflate)
        );
        assert_eq!(inflater.resume(8, 0, b""), Err(NotDeflate));
        assert_eq!(
            inflater.resume(0, 0, &[0; WINDOW_BYTES + 1]),
            Err(NotDeflate)
        );
        inflater.reset(Wrapping::Gzip);
        let step = inflater.inflate(&gzip(b"text"), &mut plain, false).unwrap();
        assert_eq!(
            (&plain[..step.produced], step.stop),
            (&b"text"[..], Stop::StreamEnd)
        );
    }
}
