//! Where the data of a GNU sparse file lies in it (GNU tar manual, "Storing Sparse Files").

use std::io::BufRead;

use super::TarError;
use super::header::{BLOCK_BYTES, Block, Header, number};
use super::stream::Stream;

/// Segments in one map at most: far more than file systems hand out for a file, and 8 MiB of memory.
const SEGMENTS_LIMIT: usize = 512 << 10;

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// This many bytes follow in the stream.
    Data(u64),
    /// This many zeros follow in the file, and nothing in the stream.
    Hole(u64),
}

/// Which parts of a file are stored, as offset and length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<(u64, u64)>);

impl Map {
    /// The next stored part.
    pub fn push(&mut self, offset: u64, len: u64) -> Result<(), &'static str> {
        if self.0.len() == SEGMENTS_LIMIT {
            return Err("its sparse map has too many segments");
        }
        self.0.push((offset, len));
        Ok(())
    }

    /// What a file of `size` bytes consists of, if the map describes one with `stored` bytes of data.
    pub fn stretches(&self, size: u64, stored: u64) -> Result<Vec<Stretch>, &'static str> {
        let mut stretches = Vec::new();
        let (mut end, mut data) = (0, 0);
        for &(offset, len) in self.0.iter().filter(|(_, len)| *len > 0) {
            if offset < end {
                return Err("its sparse map goes backwards");
            }
            let next_end = offset.checked_add(len).filter(|next| *next <= size);
            let next_end = next_end.ok_or("its sparse map goes beyond its size")?;
            if offset > end {
                stretches.push(Stretch::Hole(offset - end));
            }
            stretches.push(Stretch::Data(len));
            end = next_end;
            data += len;
        }
        if end < size {
            stretches.push(Stretch::Hole(size - end));
        }
        if data != stored {
            return Err("its sparse map and its stored size do not agree");
        }
        Ok(stretches)
    }

    /// The old format: four segments in the header, more in blocks behind it. Also the file's size.
    pub fn in_blocks<R: BufRead>(
        header: &Header,
        stream: &mut Stream<R>,
    ) -> Result<(Self, u64), TarError> {
        let damaged = "its sparse map is damaged";
        let Some(gnu) = header.gnu() else {
            return Err(stream.malformed("a sparse file without a GNU header"));
        };
        let size = unsigned(&gnu.realsize).ok_or_else(|| stream.malformed(damaged))?;
        let mut map = Self::default();
        map.push_fields(&gnu.sparse)
            .map_err(|problem| stream.malformed(problem))?;
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let Some(block) = stream.block()? else {
                return Err(TarError::Truncated { at: stream.at() });
            };
            let mut more = tar::GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&block);
            map.push_fields(more.sparse())
                .map_err(|problem| stream.malformed(problem))?;
            is_extended = more.is_extended();
        }
        Ok((map, size))
    }

    fn push_fields(&mut self, segments: &[tar::GnuSparseHeader]) -> Result<(), &'static str> {
        for segment in segments.iter().take_while(|segment| !segment.is_empty()) {
            let place = unsigned(&segment.offset).zip(unsigned(&segment.numbytes));
            let (offset, len) = place.ok_or("its sparse map is damaged")?;
            self.push(offset, len)?;
        }
        Ok(())
    }

    /// Format 0.1: `offset,length,offset,length…` in a PAX record.
    pub fn in_record(text: &[u8]) -> Result<Self, &'static str> {
        let damaged = "its sparse map is damaged";
        let mut map = Self::default();
        let mut numbers = text.split(|&byte| byte == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            let len = numbers.next().flatten();
            let (offset, len) = offset.zip(len).ok_or(damaged)?;
            map.push(offset, len)?;
        }
        Ok(map)
    }

    /// Format 1.0: in the first blocks of the `body_left` bytes of data, one number per line, their
    /// count first.
    pub fn in_body<R: BufRead>(
        stream: &mut Stream<R>,
        body_left: &mut u64,
    ) -> Result<Self, TarError> {
        let mut lines = Lines {
            stream,
            body_left,
            block: [0; BLOCK_BYTES],
            used: BLOCK_BYTES,
        };
        let mut map = Self::default();
        for _ in 0..lines.number()? {
            let (offset, len) = (lines.number()?, lines.number()?);
            map.push(offset, len)
                .map_err(|problem| lines.stream.malformed(problem))?;
        }
        Ok(map)
    }
}

/// Takes numbers, one per line, from blocks of a body.
struct Lines<'a, R> {
    stream: &'a mut Stream<R>,
    body_left: &'a mut u64,
    block: Block,
    used: usize,
}

impl<R: BufRead> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, TarError> {
        let (mut value, mut digits) = (0u64, 0);
        loop {
            match self.byte()? {
                // Nineteen digits always fit.
                digit @ b'0'..=b'9' if digits < 19 => {
                    value = value * 10 + u64::from(digit - b'0');
                    digits += 1;
                }
                b'\n' if digits > 0 => return Ok(value),
                _ => return Err(self.stream.malformed("its sparse map is damaged")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, TarError> {
        if self.used == BLOCK_BYTES {
            let left = self.body_left.checked_sub(BLOCK_BYTES as u64);
            let problem = "its sparse map is longer than its data";
            *self.body_left = left.ok_or_else(|| self.stream.malformed(problem))?;
            let Some(block) = self.stream.block()? else {
                return Err(TarError::Truncated {
                    at: self.stream.at(),
                });
            };
            self.block = block;
            self.used = 0;
        }
        self.used += 1;
        Ok(self.block[self.used - 1])
    }
}

fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|value| u64::try_from(value).ok())
}

/// Decimal digits only, below 2^63.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_becomes_data_and_holes() {
        use Stretch::{Data, Hole};
        for (map, size, expected) in [
            ("0,0", 0, Ok(vec![])),
            ("10,0", 10, Ok(vec![Hole(10)])),
            ("0,4,4,6", 10, Ok(vec![Data(4), Data(6)])),
            (
                "2,3,9,1",
                12,
                Ok(vec![Hole(2), Data(3), Hole(4), Data(1), Hole(2)]),
            ),
            ("2,3,4,1", 12, Err("its sparse map goes backwards")),
            ("2,11", 12, Err("its sparse map goes beyond its size")),
            (
                "2,9223372036854775807",
                12,
                Err("its sparse map goes beyond its size"),
            ),
        ] {
            let map = Map::in_record(map.as_bytes()).unwrap();
            let stored = map.0.iter().map(|(_, len)| len).sum();
            assert_eq!(map.stretches(size, stored), expected, "{map:?}");
        }
        assert!(Map::in_record(b"0,4").unwrap().stretches(10, 5).is_err());
    }

    #[test]
    fn a_damaged_map_is_refused() {
        for text in [
            "",
            "1",
            "1,",
            "1,2,3",
            "a,b",
            "-1,2",
            "1,9223372036854775808",
            "1;2",
        ] {
            assert!(Map::in_record(text.as_bytes()).is_err(), "{text}");
        }
    }
}
