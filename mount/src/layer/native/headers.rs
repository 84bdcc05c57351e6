//! What a tar stream holds besides its files' content, kept so that the stream can be rebuilt.
//!
//! A zstd stream of records: `literal length (u32) | literal | stretches (u32) | stretch …`. A stretch is
//! `offset (u64) | length (u64)` in the next regular file of the table; a record without stretches
//! belongs to no file. Written in order, literals and stretches are the tar stream again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::digest::Digest;
use crate::layer::decode::Decoder;
use crate::layer::entry::Kind;
use crate::layer::table::{ChunkIndex, Piece, PieceRange, Stretch, Table, TableError, stretches};

/// The last 64 bytes of a native file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Footer {
    /// `b"SIFNNATV"`.
    magic: [u8; 8],
    version: U32,
    /// What compressed the chunks: [`packer`]; 0 in files of older versions of this program.
    packer: U32,
    /// Where the tar headers start: the end of the packed chunks.
    headers_at: U64,
    headers_len: U64,
    /// What the rebuilt tar stream hashes to.
    diff_id: [u8; 32],
}

const _: () = assert!(size_of::<Footer>() == 64);

/// The version of zstd and the level: together they decide about every byte of a chunk.
fn packer() -> u32 {
    zstd::zstd_safe::version_number() << 8 | super::LEVEL as u32
}

const MAGIC: [u8; 8] = *b"SIFNNATV";
const VERSION: u32 = 1;

/// A literal in one record at most; the tar reader bounds what lies between two contents more tightly.
const LITERAL_BYTES_LIMIT: u32 = 256 << 20;

impl Footer {
    /// A footer for chunks that end at `headers_at`.
    pub(super) fn new(headers_at: u64, headers_len: u64, diff_id: Digest) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION.into(),
            packer: packer().into(),
            headers_at: headers_at.into(),
            headers_len: headers_len.into(),
            diff_id: *diff_id.as_bytes(),
        }
    }

    /// The footer of a native file, if it has one that fits its length.
    pub fn of(native: &File) -> io::Result<Option<Self>> {
        let len = native.metadata()?.len();
        let Some(at) = len.checked_sub(size_of::<Self>() as u64) else {
            return Ok(None);
        };
        let mut bytes = [0; size_of::<Self>()];
        native.read_exact_at(&mut bytes, at)?;
        let footer = Self::read_from_bytes(&bytes).expect("the array has the footer's size");
        let fits = footer.magic == MAGIC
            && footer.version.get() == VERSION
            && footer
                .headers_at
                .get()
                .checked_add(footer.headers_len.get())
                == Some(at);
        Ok(fits.then_some(footer))
    }

    /// Whether chunks are, byte for byte, what this program would make of them now.
    pub fn is_packed_as_now(&self) -> bool {
        self.packer.get() == packer()
    }

    /// The digest of the tar stream that the layer was made from.
    pub fn diff_id(&self) -> Digest {
        Digest::from_bytes(self.diff_id)
    }
}

/// Spools the records of one layer into a temporary file without a name.
pub(super) struct HeaderWriter(zstd::stream::write::Encoder<'static, BufWriter<File>>);

impl HeaderWriter {
    pub fn in_directory(scratch: &Path) -> io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile_in(scratch)?);
        Ok(Self(zstd::stream::write::Encoder::new(file, super::LEVEL)?))
    }

    pub fn record(&mut self, literal: &[u8], stretches: &[(u64, u64)]) -> io::Result<()> {
        if literal.is_empty() && stretches.is_empty() {
            return Ok(());
        }
        self.0
            .write_all(U32::new(literal.len() as u32).as_bytes())?;
        self.0.write_all(literal)?;
        self.0
            .write_all(U32::new(stretches.len() as u32).as_bytes())?;
        for &(at, len) in stretches {
            self.0.write_all(U64::new(at).as_bytes())?;
            self.0.write_all(U64::new(len).as_bytes())?;
        }
        Ok(())
    }

    /// Copies the finished stream to `to`; gives its length.
    pub fn copy_into(self, to: &mut impl Write) -> io::Result<u64> {
        let mut file = self
            .0
            .finish()?
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        io::copy(&mut file, to)
    }
}

/// Why a native layer does not give its tar stream back.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The file ends early or is no native layer.
    #[error("native layer {layer}: {problem}")]
    Damaged {
        /// The layer's blob.
        layer: Digest,
        /// What does not fit.
        problem: &'static str,
    },
    /// Reading it failed.
    #[error("native layer: cannot be read")]
    Io(#[from] io::Error),
    /// Its table does not fit.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Writes the tar stream that `table` and its `native` file hold to `to`. Every chunk is decoded and checked.
pub fn rebuild(table: &Table, native: &File, to: &mut impl Write) -> Result<(), RebuildError> {
    let damaged = |problem| RebuildError::Damaged {
        layer: table.layer(),
        problem,
    };
    let footer = Footer::of(native)?.ok_or_else(|| damaged("its footer is missing"))?;
    let headers = At {
        file: native,
        at: footer.headers_at.get(),
        left: footer.headers_len.get(),
    };
    let mut records = BufReader::new(zstd::stream::read::Decoder::new(headers)?);
    let mut files = table.entries().filter_map(|entry| match entry {
        Ok((entry, pieces)) => match entry.kind {
            Kind::Regular { size } | Kind::Hidden { size } => Some(Ok((size, pieces))),
            _ => None,
        },
        Err(err) => Some(Err(err)),
    });
    let mut content = Content::new(table, native);
    while let Some(literal_len) = next_u32(&mut records)? {
        // Every record brings at least one byte, so that who reads the stream can end this by its length.
        if literal_len == 0 || literal_len > LITERAL_BYTES_LIMIT {
            return Err(damaged("a header is empty or too long"));
        }
        let copied = io::copy(&mut records.by_ref().take(literal_len.into()), to)?;
        if copied != u64::from(literal_len) {
            return Err(damaged("its headers end early"));
        }
        let stretches = next_u32(&mut records)?.ok_or_else(|| damaged("its headers end early"))?;
        if stretches == 0 {
            continue;
        }
        let (size, pieces) = files
            .next()
            .ok_or_else(|| damaged("it has more contents than files"))??;
        for _ in 0..stretches {
            let mut stretch = [U64::ZERO; 2];
            records.read_exact(stretch.as_mut_bytes())?;
            let [at, len] = stretch.map(U64::get);
            if at.checked_add(len).is_none_or(|end| end > size) {
                return Err(damaged("a content lies outside its file"));
            }
            if len == 0 && stretches > 1 {
                return Err(damaged("a content is empty"));
            }
            content.write_stretch(pieces, at, len, to)?;
        }
    }
    Ok(())
}

/// `None` at the end of the stream.
fn next_u32(from: &mut impl Read) -> io::Result<Option<u32>> {
    let mut number = U32::ZERO;
    let bytes = number.as_mut_bytes();
    let mut filled = 0;
    while filled < bytes.len() {
        match from.read(&mut bytes[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => filled += len,
        }
    }
    Ok(Some(number.get()))
}

/// Reads files of a native layer in order; keeps the last chunk, because bundles follow each other.
struct Content<'a> {
    table: &'a Table,
    native: &'a File,
    decoder: Decoder,
    last: Option<(ChunkIndex, Bytes)>,
}

impl<'a> Content<'a> {
    fn new(table: &'a Table, native: &'a File) -> Self {
        Self {
            table,
            native,
            decoder: Decoder::default(),
            last: None,
        }
    }

    fn write_stretch(
        &mut self,
        pieces: PieceRange,
        at: u64,
        len: u64,
        to: &mut impl Write,
    ) -> Result<(), RebuildError> {
        let table = self.table;
        let pieces: &[Piece] = table.pieces(pieces)?;
        let stretches = stretches(pieces, at, at + len).ok_or_else(|| self.damaged())?;
        for Stretch { chunk, len } in stretches {
            match chunk {
                None => write_zeros(len, to)?,
                Some((chunk, from)) => {
                    let plain = self.chunk(chunk)?;
                    let bytes = usize::try_from(len)
                        .ok()
                        .and_then(|len| plain.get(from..from.checked_add(len)?));
                    match bytes {
                        Some(bytes) => to.write_all(bytes)?,
                        None => return Err(self.damaged()),
                    }
                }
            }
        }
        Ok(())
    }

    fn chunk(&mut self, index: ChunkIndex) -> Result<&[u8], RebuildError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != index) {
            let chunk = self.table.chunk(index)?;
            let mut packed = vec![0; chunk.packed_len as usize];
            self.native.read_exact_at(&mut packed, chunk.packed_at.0)?;
            let plain = self
                .decoder
                .plain(&chunk, &packed)
                .map_err(|_| self.damaged())?;
            self.last = Some((index, plain));
        }
        Ok(&self.last.as_ref().expect("it was put there above").1)
    }

    fn damaged(&self) -> RebuildError {
        RebuildError::Damaged {
            layer: self.table.layer(),
            problem: "a chunk is damaged",
        }
    }
}

fn write_zeros(mut len: u64, to: &mut impl Write) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    while len > 0 {
        let now = len.min(zeros.len() as u64);
        to.write_all(&zeros[..now as usize])?;
        len -= now;
    }
    Ok(())
}

/// A part of a file, read without moving the file's position, which readers share.
struct At<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.left.min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
