//! A tar stream as entries and content, read once from front to back.
//!
//! Understood: version 7, ustar, GNU (long names, sparse files), PAX (local and global headers, sparse
//! files in formats 0.0, 0.1 and 1.0, attributes as star and libarchive write them). Where the formats'
//! readers differ, this one sees what Go's archive/tar sees, because that is what unpacks images elsewhere.
//!
//! `tar::Archive` is not used: it reads extended headers of any length into memory, does not apply global
//! ones, knows one sparse format of four, and does not tell which bytes of the stream were not data.

mod header;
mod member;
mod pax;
mod sparse;
mod stream;

use std::io::{self, BufRead};
use std::vec;

use self::header::{BLOCK_BYTES, Header, is_header, until_nul};
use self::member::Member;
use self::pax::Records;
use self::sparse::{Map, Stretch};
use self::stream::Stream;
use super::entry::{Entry, Kind, NameError, PATH_BYTES_LIMIT};
use crate::extent::PlainOffset;

/// Bytes in one extended header at most. Linux takes 64 KiB for an attribute; nothing else is large.
const PAX_BYTES_LIMIT: u64 = 8 << 20;

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It is no tar, or a damaged one.
    #[error("tar stream, byte {}: {problem}", at.0)]
    Malformed {
        /// Where the wrong header or record begins.
        at: PlainOffset,
        /// What is wrong, with the member's name where it is known.
        problem: String,
    },
    /// A name that no image may have.
    #[error("tar stream, byte {}: a member that cannot be shown", at.0)]
    Name {
        /// Where the member's header lies.
        at: PlainOffset,
        /// Which name, and why.
        source: NameError,
    },
    /// It ends inside a header or a file.
    #[error("tar stream, byte {}: the stream ends inside a member", at.0)]
    Truncated {
        /// Its length.
        at: PlainOffset,
    },
    /// What carries the stream failed; a damaged compressed layer ends here too.
    #[error("tar stream, byte {}: cannot be read on", at.0)]
    Read {
        /// How many bytes had come.
        at: PlainOffset,
        /// Why no more come.
        source: io::Error,
    },
}

/// A part of a regular file.
#[derive(Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes, at least one.
    Data(&'a [u8]),
    /// This many zeros, at least one, that the stream does not contain: a hole of a sparse file.
    Hole(u64),
}

/// Reads a tar stream member by member. Holds the current member's extended
/// headers (at most 8 MiB) and the literal bytes since the last take (at most 64 MiB, see
/// [`TarReader::take_literal`]). After an error the place in the stream is undefined.
pub struct TarReader<R> {
    stream: Stream<R>,
    global: Records,
    body: Body,
    has_ended: bool,
}

/// What is left of the current regular file.
#[derive(Default)]
struct Body {
    data_left: u64,
    more: vec::IntoIter<Stretch>,
    padding: u64,
}

impl<R: BufRead> TarReader<R> {
    /// Reads `stream` from its current place. Nothing is read yet.
    pub fn new(stream: R) -> Self {
        Self {
            stream: Stream::new(stream),
            global: Records::default(),
            body: Body::default(),
            has_ended: false,
        }
    }

    /// The next member, or `None` after the end of the archive; the rest of the stream is then read too.
    /// AUFS whiteouts are understood; AUFS bookkeeping, volume labels and global headers are passed over.
    /// Content of the last file that was not read is skipped, and is then missing from the literal.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        while self.next_content()?.is_some() {}
        while !self.has_ended {
            let Some(member) = self.next_member()? else {
                self.has_ended = true;
                break;
            };
            if let Some(entry) = self.understood(member)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The next stretch of the current regular file, in order, data as long as the stream's buffer at most; `None` at
    /// its end and for whatever is no regular file. The stretches' lengths add up to the file's size.
    pub fn next_content(&mut self) -> Result<Option<Content<'_>>, TarError> {
        while self.body.data_left == 0 {
            match self.body.more.next() {
                Some(Stretch::Hole(len)) => return Ok(Some(Content::Hole(len))),
                Some(Stretch::Data(len)) => self.body.data_left = len,
                None => {
                    let padding = std::mem::take(&mut self.body.padding);
                    self.stream.literal_at_most(padding)?;
                    return Ok(None);
                }
            }
        }
        let data = self.stream.data(self.body.data_left)?;
        self.body.data_left -= data.len() as u64;
        Ok(Some(Content::Data(data)))
    }

    /// Where in the stream the next byte is: after an entry its content, after the content its padding.
    pub fn at(&self) -> PlainOffset {
        self.stream.at()
    }

    /// What is read from; it may be ahead of [`TarReader::at`].
    pub fn source(&self) -> &R {
        self.stream.source()
    }

    /// What was read from.
    pub fn into_source(self) -> R {
        self.stream.into_source()
    }

    /// Every byte of the stream that was read since the last call and not returned as
    /// [`Content::Data`]: headers, padding, sparse maps, the end marker and what follows it. Taken after
    /// each entry and after each file's content, these and the data, in order, are the stream. Who never
    /// takes it gets an error after 64 MiB.
    pub fn take_literal(&mut self) -> Vec<u8> {
        self.stream.take_literal()
    }

    /// Reads headers up to one that is a member's own.
    fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let (mut records, mut long_name, mut long_link) = (None, None, None);
        let mut is_extended = false;
        loop {
            let at = self.stream.at();
            let Some(header) = self.next_header()? else {
                return match is_extended {
                    true => Err(malformed(at, "the archive ends after an extended header")),
                    false => Ok(None),
                };
            };
            is_extended |= matches!(header.flag(), b'L' | b'K' | b'x' | b'X');
            match header.flag() {
                b'L' => long_name = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                // `X` is what Sun called it. The last one counts, not their sum.
                b'x' | b'X' => {
                    let mut local = self.global.clone();
                    self.read_records(&header, &mut local)?;
                    records = Some(local);
                }
                b'g' => {
                    let mut global = std::mem::take(&mut self.global);
                    self.read_records(&header, &mut global)?;
                    self.global = global
                        .made_global()
                        .map_err(|problem| malformed(at, problem))?;
                }
                _ => {
                    return Ok(Some(Member {
                        at,
                        header,
                        records: records.unwrap_or_else(|| self.global.clone()),
                        long_name,
                        long_link,
                    }));
                }
            }
        }
    }

    /// The next header; `None` at the end of the archive, or where the stream ends without a mark, as
    /// umoci's layers do, which lack the padding of the last file, too.
    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.stream.at();
        let Some(block) = self.stream.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK_BYTES] {
            let problem = match at.0 {
                0 => "this is no tar archive: the first header's checksum is wrong",
                _ => "a header's checksum is wrong",
            };
            let header = Header::new(block).ok_or_else(|| malformed(at, problem))?;
            return Ok(Some(header));
        }
        match self.stream.block()? {
            Some(block) if block != [0; BLOCK_BYTES] => {
                Err(malformed(at, "a block of zeros inside the archive"))
            }
            _ => {
                self.stream.literal_rest()?;
                Ok(None)
            }
        }
    }

    /// The body of a `L` or `K` header: a name that ends with a NUL.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let limit = PATH_BYTES_LIMIT as u64 + 1;
        let body = self.extension(header, limit, "a long name")?;
        Ok(until_nul(body).to_vec())
    }

    fn read_records(&mut self, header: &Header, records: &mut Records) -> Result<(), TarError> {
        let at = self.stream.at();
        let body = self.extension(header, PAX_BYTES_LIMIT, "an extended header")?;
        records.read(body).map_err(|err| {
            let at = PlainOffset(at.0 + err.at as u64);
            malformed(at, err.problem)
        })
    }

    /// The body of a header that is about another one, at most `limit` bytes long.
    fn extension(&mut self, header: &Header, limit: u64, what: &str) -> Result<&[u8], TarError> {
        let size = header
            .size()
            .map_err(|problem| self.stream.malformed(problem))?;
        if size > limit {
            let problem = format!("{what} of {size} bytes; at most {limit} are read");
            return Err(self.stream.malformed(problem));
        }
        let padded = self.stream.literal(size + padding(size))?;
        Ok(&padded[..size as usize])
    }

    /// The member as an entry, with its content ready to be read; `None` for what describes the archive.
    fn understood(&mut self, member: Member) -> Result<Option<Entry>, TarError> {
        let size = member.size()?;
        let kind = match member.header.flag() {
            // GNU's volume label; Solaris's access control list.
            b'V' | b'A' => {
                self.body.start(size, vec![Stretch::Data(size)]);
                None
            }
            // GNU's incremental directory: its body lists what was in it.
            b'D' => {
                self.body.start(size, vec![Stretch::Data(size)]);
                Some(Kind::Directory)
            }
            b'M' => return Err(member.malformed("continues a file that began in another archive")),
            // Types that nobody defined are regular files, says POSIX.
            _ => match member.kind_without_content(size)? {
                None => Some(Kind::Regular {
                    size: self.start_regular(&member, size)?,
                }),
                bare => {
                    if size > 0 && !self.is_at_header()? {
                        self.body.start(size, vec![Stretch::Data(size)]);
                    }
                    bare
                }
            },
        };
        let entry = match kind {
            Some(kind) => member.entry(kind)?,
            None => None,
        };
        let is_regular = |entry: &Entry| matches!(entry.kind, Kind::Regular { .. });
        if !entry.as_ref().is_some_and(is_regular) {
            self.pass_body()?;
        }
        Ok(entry)
    }

    /// Whether a member that has no use for a body has none, whatever its size says. Links of ustar
    /// tell the size of what they link to, POSIX lets them bring a copy of it; the next block decides.
    fn is_at_header(&mut self) -> Result<bool, TarError> {
        let next = self.stream.peek()?;
        Ok(match next.try_into() {
            Ok(block) => block == &[0; BLOCK_BYTES] || is_header(block),
            Err(_) => next.is_empty(),
        })
    }

    /// Sets up the body of a regular file with `stored` bytes in the stream. Returns its size.
    fn start_regular(&mut self, member: &Member, stored: u64) -> Result<u64, TarError> {
        let wrong = |problem| member.malformed(problem);
        let Some((map, size, stored_data)) = self.sparse_map(member, stored)? else {
            self.body.start(stored, Vec::new());
            self.body.data_left = stored;
            return Ok(stored);
        };
        let stretches = map.stretches(size, stored_data).map_err(wrong)?;
        self.body.start(stored, stretches);
        Ok(size)
    }

    /// If the member is sparse: its map, its size, and how many of `stored` bytes are data.
    fn sparse_map(
        &mut self,
        member: &Member,
        mut stored: u64,
    ) -> Result<Option<(Map, u64, u64)>, TarError> {
        let sparse = &member.records.sparse;
        if member.header.flag() == b'S' {
            let (map, size) = Map::in_blocks(&member.header, &mut self.stream)?;
            return Ok(Some((map, size, stored)));
        }
        match (sparse.version, sparse.size) {
            ((None | Some(0), _), None) => Ok(None),
            ((None | Some(0), _), Some(size)) => Ok(Some((sparse.map.clone(), size, stored))),
            ((Some(1), Some(0)), Some(size)) => {
                let map = Map::in_body(&mut self.stream, &mut stored)?;
                Ok(Some((map, size, stored)))
            }
            _ => Err(member.malformed("a sparse file in a format that is not known")),
        }
    }

    /// Makes what is left of the body, and its padding, literal.
    fn pass_body(&mut self) -> Result<(), TarError> {
        let body = std::mem::take(&mut self.body);
        self.stream.literal(body.stored_left())?;
        self.stream.literal_at_most(body.padding)
    }
}

impl Body {
    /// `stored` bytes in the stream, of which `stretches` are still to be read.
    fn start(&mut self, stored: u64, stretches: Vec<Stretch>) {
        *self = Self {
            data_left: 0,
            more: stretches.into_iter(),
            padding: padding(stored),
        };
    }

    fn stored_left(&self) -> u64 {
        let stored = |stretch: &Stretch| match stretch {
            Stretch::Data(len) => *len,
            Stretch::Hole(_) => 0,
        };
        let later: u64 = self.more.as_slice().iter().map(stored).sum();
        self.data_left + later
    }
}

fn malformed(at: PlainOffset, problem: impl Into<String>) -> TarError {
    TarError::Malformed {
        at,
        problem: problem.into(),
    }
}

/// How many bytes follow a body of `size` bytes up to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests;
