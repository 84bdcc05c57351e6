//! Writes layers as zstd:chunked in the dialect of Podman, Buildah and skopeo (containers/storage,
//! `pkg/chunked/compressor`), so that they can be mounted before they are fetched.
//!
//! ```text
//! frames: header | chunk | chunk | padding, header | chunk | … | end of archive      together a tar
//! skippable frames: TOC | tar-split | footer
//! ```
//!
//! Everyone else sees an ordinary `tar.zst`. Memory grows with what describes the files, not with
//! their contents.

mod cut;
mod header;
mod tar_split;
mod toc;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::layer::entry::{Entry, Kind, shown};

use self::cut::{Cut, Cutter, LONGEST_CHUNK};
use self::header::Member;
use self::tar_split::{Crc64, TarSplit};
use self::toc::{Content, TocWriter, ToldChunk};

/// What a layer's descriptor says about a finished blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The blob's digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// The digest of the tar inside, for the image's configuration.
    pub diff_id: Digest,
    /// Where the TOC lies and what it hashes to. Empty when the TOC is larger than readers take; the
    /// layer is then fetched whole, as any other.
    pub annotations: BTreeMap<String, String>,
}

/// The media type of layers that this module writes.
pub const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A TOC is JSON, which has no other names.
    #[error("{:?}: its name, link target or an attribute's name is not UTF-8, which zstd:chunked cannot say", shown(.0))]
    NotUtf8(Vec<u8>),
    /// Tar has no sockets.
    #[error("{:?}: a tar cannot hold a socket", shown(.0))]
    Socket(Vec<u8>),
    /// A file that was cut while it was read, for example.
    #[error("{:?}: ends after {has} of {needs} bytes", shown(.path))]
    Short {
        /// The file.
        path: Vec<u8>,
        /// How many bytes it had.
        has: u64,
        /// How many its entry promises.
        needs: u64,
    },
    /// Its content could not be read, or the blob not written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Readers refuse larger TOCs (containers/storage, `pkg/chunked/compression_linux.go`, `maxTocSize`).
const TOC_LIMIT: u64 = 150 << 20;

/// Tar bytes between contents that wait for their frame at most; more get a frame of their own.
const BETWEEN_BYTES: usize = 1 << 20;

/// Writes one layer, entry by entry, to `W`.
pub struct LayerWriter<W> {
    blob: Counted<W>,
    compressor: zstd::bulk::Compressor<'static>,
    tar: Hasher,
    /// Headers and padding that are in no frame yet.
    between: Vec<u8>,
    tar_split: TarSplit,
    toc: TocWriter,
}

impl<W: Write> LayerWriter<W> {
    /// A layer without entries so far, to be compressed at zstd's `level`.
    pub fn new(to: W, level: i32) -> io::Result<Self> {
        Ok(Self {
            blob: Counted::new(to),
            compressor: zstd::bulk::Compressor::new(level)?,
            tar: Hasher::default(),
            between: Vec::new(),
            tar_split: TarSplit::new(level)?,
            toc: TocWriter::new(level)?,
        })
    }

    /// Adds `entry`; of a regular file, exactly as many bytes of `content` as it says. A path may come
    /// once only (containers/storage refuses others), parents before what they contain.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), WriteError> {
        let member = Member::of(entry)?;
        self.literal(&member.header)?;
        let content = match member.size() {
            0 => Content::default(),
            size => self.content(&entry.path, size, content)?,
        };
        self.toc.add(&member, &content)?;
        self.tar_split
            .file(&member.name, member.size(), content.crc)?;
        let padding = member.size().next_multiple_of(512) - member.size();
        Ok(self.literal(&[0; 512][..padding as usize])?)
    }

    /// Ends the layer; gives back where it was written, flushed.
    pub fn finish(mut self) -> Result<(W, Written), WriteError> {
        self.literal(&[0; 1024])?;
        self.end_frame()?;
        let tar_split = self.tar_split.finish()?;
        let toc = self.toc.finish(Digest::of(&tar_split.packed))?;
        let toc_at = self.blob.skippable_frame(&toc.packed)?;
        let split_at = self.blob.skippable_frame(&tar_split.packed)?;
        let place = |at: u64, part: &Packed| [at, part.packed.len() as u64, part.plain_len];
        let (toc_place, split_place) = (place(toc_at, &toc), place(split_at, &tar_split));
        self.blob.skippable_frame(&footer(toc_place, split_place))?;
        self.blob.to.flush()?;
        let annotations = match toc.plain_len {
            0..=TOC_LIMIT => annotations(Digest::of(&toc.packed), toc_place, split_place),
            _ => BTreeMap::new(),
        };
        let written = Written {
            digest: self.blob.hasher.finish(),
            size: self.blob.count,
            diff_id: self.tar.finish(),
            annotations,
        };
        Ok((self.blob.to, written))
    }

    /// Tar bytes that belong to no file's content.
    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tar.update(bytes);
        self.tar_split.literal(bytes);
        self.between.extend_from_slice(bytes);
        if self.between.len() > BETWEEN_BYTES {
            self.end_frame()?;
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if !self.between.is_empty() {
            let frame = self.compressor.compress(&self.between)?;
            self.blob.write(&frame)?;
            self.between.clear();
        }
        Ok(())
    }

    /// Writes a file's bytes as chunks, each a frame of its own.
    fn content(
        &mut self,
        path: &[u8],
        size: u64,
        content: &mut dyn Read,
    ) -> Result<Content, WriteError> {
        self.end_frame()?;
        let mut chunks = Chunks::default();
        let (mut whole, mut crc) = (Hasher::default(), Crc64::default());
        let mut cutter = Cutter::default();
        let mut window = Window::new(content.take(size));
        let mut has = 0;
        while let Some(bytes) = window.filled()? {
            let cut = cutter.cut(bytes);
            let plain = &bytes[..cut.len];
            self.tar.update(plain);
            whole.update(plain);
            crc.update(plain);
            chunks.push(self.blob.count, has, &cut, plain);
            self.blob.write(&self.compressor.compress(plain)?)?;
            has += cut.len as u64;
            window.consume(cut.len);
        }
        if has < size {
            let (path, needs) = (path.to_vec(), size);
            return Err(WriteError::Short { path, has, needs });
        }
        Ok(Content {
            chunks: chunks.finish(),
            digest: Some(whole.finish()),
            end: self.blob.count,
            crc: Some(crc.finish()),
        })
    }
}

/// The stretch of a file that chunks are cut from.
struct Window<R> {
    content: R,
    bytes: Vec<u8>,
    /// How many of them are in chunks already.
    consumed: usize,
    at_end: bool,
}

impl<R: Read> Window<R> {
    fn new(content: R) -> Self {
        Self {
            content,
            bytes: Vec::new(),
            consumed: 0,
            at_end: false,
        }
    }

    /// The next bytes: at least as many as the longest chunk has, unless the content ends before. `None` at its end.
    fn filled(&mut self) -> io::Result<Option<&[u8]>> {
        if !self.at_end && self.bytes.len() - self.consumed < LONGEST_CHUNK {
            self.bytes.drain(..self.consumed);
            self.consumed = 0;
            let missing = 2 * LONGEST_CHUNK - self.bytes.len();
            let mut more = self.content.by_ref().take(missing as u64);
            self.at_end = more.read_to_end(&mut self.bytes)? < missing;
        }
        Ok(Some(&self.bytes[self.consumed..]).filter(|bytes| !bytes.is_empty()))
    }

    fn consume(&mut self, len: usize) {
        self.consumed += len;
    }
}

/// The chunks of one file so far. Stretches of zeros that follow each other become one.
#[derive(Default)]
struct Chunks {
    done: Vec<ToldChunk>,
    last: Option<(ToldChunk, Hasher)>,
}

impl Chunks {
    fn push(&mut self, packed_at: u64, at: u64, cut: &Cut, plain: &[u8]) {
        match &mut self.last {
            Some((zeros, hasher)) if zeros.is_zeros && cut.is_zeros => {
                hasher.update(plain);
                zeros.len += cut.len as u64;
            }
            _ => {
                self.end_last();
                let mut hasher = Hasher::default();
                hasher.update(plain);
                let chunk = ToldChunk {
                    packed_at,
                    at,
                    len: cut.len as u64,
                    is_zeros: cut.is_zeros,
                    digest: Digest::from_bytes([0; 32]),
                };
                self.last = Some((chunk, hasher));
            }
        }
    }

    fn end_last(&mut self) {
        if let Some((mut chunk, hasher)) = self.last.take() {
            chunk.digest = hasher.finish();
            self.done.push(chunk);
        }
    }

    fn finish(mut self) -> Vec<ToldChunk> {
        self.end_last();
        self.done
    }
}

/// Something that was compressed as it was written.
struct Packed {
    packed: Vec<u8>,
    plain_len: u64,
}

/// Compresses text and counts it.
struct Packer {
    encoder: zstd::stream::Encoder<'static, Vec<u8>>,
    plain_len: u64,
}

impl Packer {
    fn new(level: i32) -> io::Result<Self> {
        Ok(Self {
            encoder: zstd::stream::Encoder::new(Vec::new(), level)?,
            plain_len: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.plain_len += bytes.len() as u64;
        self.encoder.write_all(bytes)
    }

    fn finish(self) -> io::Result<Packed> {
        Ok(Packed {
            packed: self.encoder.finish()?,
            plain_len: self.plain_len,
        })
    }
}

/// The blob, with its length and digest so far.
struct Counted<W> {
    to: W,
    count: u64,
    hasher: Hasher,
}

impl<W: Write> Counted<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            count: 0,
            hasher: Hasher::default(),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
        Ok(())
    }

    /// A frame that decoders ignore (RFC 8878, 3.1.2); where `bytes` themselves begin.
    fn skippable_frame(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let len = u32::try_from(bytes.len())
            .map_err(|_| io::Error::other("the layer has too many files for zstd:chunked"))?;
        self.write(&[0x50, 0x2a, 0x4d, 0x18])?;
        self.write(&len.to_le_bytes())?;
        let at = self.count;
        self.write(bytes)?;
        Ok(at)
    }
}

/// Only a table of contents like CRFS's is defined (`minimal/compression.go`, `ManifestTypeCRFS`).
const TOC_TYPE: u64 = 1;

/// The last frame's content: both places and the format's magic number (`footerDataToBlob`).
fn footer(toc: [u64; 3], tar_split: [u64; 3]) -> Vec<u8> {
    toc.iter()
        .chain(&[TOC_TYPE])
        .chain(&tar_split)
        .flat_map(|number| number.to_le_bytes())
        .chain(*b"GNUlInUx")
        .collect()
}

fn annotations(digest: Digest, toc: [u64; 3], tar_split: [u64; 3]) -> BTreeMap<String, String> {
    let prefix = "io.github.containers.zstd-chunked";
    let place = |[at, packed_len, plain_len]: [u64; 3]| format!("{at}:{packed_len}:{plain_len}");
    BTreeMap::from([
        (format!("{prefix}.manifest-checksum"), digest.to_string()),
        (
            format!("{prefix}.manifest-position"),
            format!("{}:{TOC_TYPE}", place(toc)),
        ),
        (format!("{prefix}.tarsplit-position"), place(tar_split)),
    ])
}

#[cfg(test)]
mod tests;
