//! A layer's packed bytes as its tar stream: gzip with any number of members, zstd with any number of
//! frames, or plain. What it is, the first bytes tell; media types are known to be wrong at times.

use std::io::{self, BufRead, Read};

use crate::extent::PackedOffset;
use crate::sys::inflate::{Inflater, Stop, Wrapping};

/// A frame may ask for a window of 128 MiB at most, which is what `zstd` itself takes without being
/// told otherwise; `zstd --ultra -22` needs it.
const ZSTD_WINDOW_LOG_LIMIT: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, as far as we know.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// What a blob that begins with `first_bytes` is compressed with; four bytes tell.
pub fn sniffed(first_bytes: &[u8]) -> Compression {
    match first_bytes {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or one of sixteen kinds of skippable frames.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Why packed bytes cannot be decompressed. Reads of the stream carry it inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{format} stream, packed byte {}: {problem}", at.0)]
pub struct InflateError {
    format: &'static str,
    at: PackedOffset,
    problem: String,
}

/// The plain bytes of `packed`, from its current place to its end. Its first bytes are read at once, the rest as it is
/// asked for. Errors of `packed` pass through unchanged; after any error every further
/// read fails. Memory is bounded (a zstd window of 128 MiB at most), the number of plain bytes is not. Trailers of gzip
/// members are not looked at: what the whole must hash to, the caller knows.
pub fn plain<R: BufRead + Send + 'static>(mut packed: R) -> io::Result<Box<dyn Read + Send>> {
    let mut first = Vec::with_capacity(4);
    packed.by_ref().take(4).read_to_end(&mut first)?;
    let compression = sniffed(&first);
    let packed = io::Cursor::new(first).chain(packed);
    Ok(match compression {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(Plain::new(Gzip::new(Packed::new(packed)))),
        Compression::Zstd => Box::new(Plain::new(Zstd::new(Packed::new(packed))?)),
    })
}

/// Packed bytes, counted as they are used.
struct Packed<R> {
    stream: R,
    at: u64,
    /// An error came from the stream, not from what it holds.
    has_failed: bool,
}

impl<R: BufRead> Packed<R> {
    fn new(stream: R) -> Self {
        Self {
            stream,
            at: 0,
            has_failed: false,
        }
    }
}

impl<R: BufRead> BufRead for Packed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        // Decoders would lose their place if they were interrupted.
        loop {
            match self.stream.fill_buf() {
                Ok([]) => return Ok(&[]),
                Ok(_) => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => {
                    self.has_failed = true;
                    return Err(err);
                }
            }
        }
        self.stream.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        self.stream.consume(len);
        self.at += len as u64;
    }
}

impl<R: BufRead> Read for Packed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(into)?;
        self.consume(len);
        Ok(len)
    }
}

/// A decoder over packed bytes, whose errors need a place.
trait Decoder: Read {
    const FORMAT: &'static str;
    type Stream: BufRead;
    fn packed(&self) -> &Packed<Self::Stream>;
}

/// Adds format and place to a decoder's errors, and repeats that there was one: a decoder that is asked
/// again after an error may well answer that all is over.
struct Plain<D> {
    decoder: D,
    has_failed: bool,
}

impl<D: Decoder> Plain<D> {
    fn new(decoder: D) -> Self {
        Self {
            decoder,
            has_failed: false,
        }
    }

    fn explained(&self, err: io::Error) -> io::Error {
        if self.decoder.packed().has_failed {
            return err;
        }
        let problem = match err.kind() {
            io::ErrorKind::UnexpectedEof => {
                "the stream ends before its last part is complete".into()
            }
            _ => err.to_string(),
        };
        io::Error::new(err.kind(), self.error(problem))
    }

    fn error(&self, problem: String) -> InflateError {
        InflateError {
            format: D::FORMAT,
            at: PackedOffset(self.decoder.packed().at),
            problem,
        }
    }
}

impl<D: Decoder> Read for Plain<D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.has_failed {
            let problem = "not read on after an error".to_owned();
            return Err(io::Error::other(self.error(problem)));
        }
        self.decoder.read(into).map_err(|err| {
            self.has_failed = true;
            self.explained(err)
        })
    }
}

/// Members one after another, and the zeros that tapes and some builders leave behind the last one.
struct Gzip<R> {
    packed: Packed<R>,
    inflater: Inflater,
    has_ended: bool,
}

impl<R: BufRead> Gzip<R> {
    fn new(packed: Packed<R>) -> Self {
        let mut inflater = Inflater::new();
        inflater.reset(Wrapping::GzipUnchecked);
        Self {
            packed,
            inflater,
            has_ended: false,
        }
    }

    /// Goes on to the next member, if there is one.
    fn next_member(&mut self) -> io::Result<()> {
        match self.packed.fill_buf()?.first() {
            None => self.has_ended = true,
            Some(0) => {
                pass_zeros(&mut self.packed)?;
                self.has_ended = true;
            }
            Some(0x1f) => self.inflater.reset(Wrapping::GzipUnchecked),
            Some(_) => return Err(invalid("neither a member nor zeros follow the last member")),
        }
        Ok(())
    }
}

/// Reads zeros up to the end of the stream; anything else is an error.
fn pass_zeros(packed: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = packed.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let is_padding = zeros == bytes.len();
        packed.consume(zeros);
        if !is_padding {
            return Err(invalid("other bytes among the zeros after the last member"));
        }
    }
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while !self.has_ended {
            let packed = self.packed.fill_buf()?;
            let step = self.inflater.inflate(packed, into, false);
            let step = step.map_err(|_| invalid("no gzip member"))?;
            self.packed.consume(step.consumed);
            if step.stop == Stop::StreamEnd {
                self.next_member()?;
            } else if step.consumed + step.produced == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if step.produced > 0 {
                return Ok(step.produced);
            }
        }
        Ok(0)
    }
}

impl<R: BufRead> Decoder for Gzip<R> {
    const FORMAT: &'static str = "gzip";
    type Stream = R;
    fn packed(&self) -> &Packed<R> {
        &self.packed
    }
}

/// Frames one after another; skippable ones, such as the tables of zstd:chunked, are skipped.
struct Zstd<R: BufRead>(zstd::stream::read::Decoder<'static, Packed<R>>);

impl<R: BufRead> Zstd<R> {
    fn new(packed: Packed<R>) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_LIMIT)?;
        Ok(Self(decoder))
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl<R: BufRead> Decoder for Zstd<R> {
    const FORMAT: &'static str = "zstd";
    type Stream = R;
    fn packed(&self) -> &Packed<R> {
        self.0.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        zstd::encode_all(plain, 1).unwrap()
    }

    fn skippable(content: &[u8]) -> Vec<u8> {
        let len = (content.len() as u32).to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18], &len[..], content].concat()
    }

    fn read(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        plain(io::Cursor::new(packed.to_vec()))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn message(packed: &[u8]) -> String {
        read(packed).unwrap_err().to_string()
    }

    #[test]
    fn every_sequence_of_members_and_frames_is_read_to_its_end() {
        let (a, b) = (vec![b'a'; 300_000], b"b".to_vec());
        let whole = [a.clone(), b.clone()].concat();
        for (packed, expected) in [
            (vec![], vec![]),
            (b"plain".to_vec(), b"plain".to_vec()),
            (b"\x1f".to_vec(), b"\x1f".to_vec()),
            (gzip(b""), vec![]),
            ([gzip(&a), gzip(b""), gzip(&b)].concat(), whole.clone()),
            (
                [gzip(&a), gzip(&b), vec![0; 200_000]].concat(),
                whole.clone(),
            ),
            (zstd(b""), vec![]),
            ([zstd(&a), zstd(b""), zstd(&b)].concat(), whole.clone()),
            (
                [skippable(b"toc"), zstd(&a), zstd(&b)].concat(),
                whole.clone(),
            ),
            (
                [
                    zstd(&a),
                    zstd(&b),
                    skippable(&[7; 1000]),
                    skippable(b""),
                    skippable(b"footer"),
                ]
                .concat(),
                whole.clone(),
            ),
            (skippable(b"only"), vec![]),
        ] {
            assert!(
                read(&packed).unwrap() == expected,
                "{:?}",
                &packed[..packed.len().min(9)]
            );
        }
    }

    #[test]
    fn a_damaged_stream_is_an_error_that_says_what_and_where() {
        let member = gzip(b"member");
        let len = member.len();
        for (packed, expected) in [
            (
                [&member[..], b"garbage"].concat(),
                format!("gzip stream, packed byte {len}: neither a member nor zeros"),
            ),
            (
                [&member[..], b"\0\0\0x"].concat(),
                format!(
                    "gzip stream, packed byte {}: other bytes among the zeros",
                    len + 3
                ),
            ),
            (
                [&member[..], b"\0\0\0", &member].concat(),
                format!(
                    "gzip stream, packed byte {}: other bytes among the zeros",
                    len + 3
                ),
            ),
            (
                member[..len - 1].to_vec(),
                format!("gzip stream, packed byte {}: the stream ends", len - 1),
            ),
            (
                [0x1f, 0x8b].to_vec(),
                "gzip stream, packed byte 2: the stream ends".into(),
            ),
            (
                [zstd(b"frame"), b"garbage".to_vec()].concat(),
                "zstd stream, packed byte".into(),
            ),
        ] {
            let message = message(&packed);
            assert!(message.starts_with(&expected), "{message}");
        }
        let mut corrupt = member.clone();
        // Blocks of type 3 there are none (RFC 1951, 3.2.3).
        corrupt[10] |= 0b110;
        let message = message(&corrupt);
        assert!(message.contains("no gzip member"), "{message}");
    }

    #[test]
    fn a_cut_stream_is_never_complete() {
        let text: Vec<u8> = (0..500u32).flat_map(u32::to_le_bytes).collect();
        let members = [gzip(&text), gzip(b"second")];
        let frames = [zstd(&text), zstd(b"second"), skippable(b"table")];
        for parts in [&members[..], &frames[..]] {
            let packed = parts.concat();
            let ends: Vec<usize> = parts
                .iter()
                .scan(0, |end, part| {
                    *end += part.len();
                    Some(*end)
                })
                .collect();
            for len in (4..packed.len()).filter(|len| !ends.contains(len)) {
                assert!(read(&packed[..len]).is_err(), "{len} of {}", packed.len());
            }
        }
    }

    #[test]
    fn after_an_error_the_stream_does_not_seem_to_end() {
        let packed = gzip(&vec![b'x'; 1000]);
        let mut stream = plain(io::Cursor::new(packed[..packed.len() - 4].to_vec())).unwrap();
        assert!(stream.read_to_end(&mut Vec::new()).is_err());
        assert!(stream.read(&mut [0; 10]).is_err());
    }

    #[test]
    fn a_window_over_128_mib_is_refused() {
        // Frame header without content size: window descriptor with exponent 18, which is 2^28.
        let packed = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 0x01, 0x00, 0x00];
        assert!(
            message(&packed).starts_with("zstd stream"),
            "{}",
            message(&packed)
        );
        let fitting = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x01, 0x00, 0x00];
        assert_eq!(read(&fitting).unwrap(), b"");
    }

    /// Gives a few bytes at a time, or an error after `left`.
    struct Slow {
        bytes: Vec<u8>,
        used: usize,
        step: usize,
        interrupted: bool,
    }

    impl Read for Slow {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = self.step.min(into.len()).min(self.bytes.len() - self.used);
            into[..len].copy_from_slice(&self.bytes[self.used..self.used + len]);
            self.used += len;
            Ok(len)
        }
    }

    #[test]
    fn errors_of_what_carries_the_stream_pass_unchanged() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
            }
        }
        for packed in [gzip(b"text"), zstd(b"text"), b"text text".to_vec()] {
            let half = packed[..packed.len() - 2].to_vec();
            let stream = io::Cursor::new(half).chain(io::BufReader::new(Broken));
            let err = plain(stream)
                .unwrap()
                .read_to_end(&mut Vec::new())
                .unwrap_err();
            assert_eq!(
                (err.kind(), err.to_string()),
                (io::ErrorKind::TimedOut, "no answer".into())
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out_however_it_arrives(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..5),
            step in 1usize..700,
        ) {
            for pack in [gzip, zstd] {
                let bytes = parts.iter().map(|part| pack(part)).collect::<Vec<_>>().concat();
                let slow = io::BufReader::new(Slow { bytes, used: 0, step, interrupted: false });
                let mut read = Vec::new();
                plain(slow).unwrap().read_to_end(&mut read).unwrap();
                prop_assert_eq!(read, parts.concat());
            }
        }
    }
}
