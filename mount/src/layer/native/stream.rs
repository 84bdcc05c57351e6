//! One pass over a packed tar layer: verified, unpacked, read as tar, cut, compressed, written.
//!
//! Two or three threads for each layer, joined by short queues, besides the compressors that all layers share:
//! one waits for the source and hashes what is packed, the caller's hashes what is plain, reads tar and cuts. Decompressing
//! and compressing are the caller's, too, while other layers keep the other cores busy; else other threads'. A thread that
//! stops drops its end of the queue, which ends its neighbours.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::{Buf, Bytes};
use crossbeam_channel::bounded;
use zerocopy::IntoBytes;

use super::blocks::{BLOCKS_WAITING, Blocks, Buffers};
use super::compress::Compressors;
use super::cut::{ChunkSink, Cutter};
use super::decompress::Decompressed;
use super::headers::{Footer, HeaderWriter};
use super::ordered::OrderedFile;
use crate::blob::BlobError;
use crate::digest::{Digest, Hasher};
use crate::layer::entry::Kind;
use crate::layer::landmark::Landmarks;
use crate::layer::table::{Excess, PieceRange, TableWriter};
use crate::layer::tar::{Content, TarError, TarReader};

/// A layer may unpack to this many times its packed size, or to [`PLAIN_BYTES_ALWAYS`]: gzip reaches
/// 1,032 on zeros, real layers rarely 20.
const PLAIN_RATIO_LIMIT: u64 = 200;

/// What any layer may unpack to, however small it is packed.
const PLAIN_BYTES_ALWAYS: u64 = 4 << 30;

/// What a manifest and a config promise about a layer.
#[derive(Clone, Copy, Debug)]
pub struct Blueprint {
    /// The digest of the packed bytes.
    pub layer: Digest,
    /// How many packed bytes there are.
    pub packed_len: u64,
    /// The digest of the tar stream.
    pub diff_id: Digest,
}

/// Why a layer could not be converted. Nothing of it may be used.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The packed bytes are not those that the manifest names.
    #[error("layer {layer}: the bytes that came have digest {found}")]
    Digest {
        /// The layer's blob.
        layer: Digest,
        /// What its bytes hash to.
        found: Digest,
    },
    /// The tar stream is not the one that the config names.
    #[error(
        "layer {layer}: its tar stream has digest {found}, but the image's config says {diff_id}"
    )]
    DiffId {
        /// The layer's blob.
        layer: Digest,
        /// What the config says.
        diff_id: Digest,
        /// What the tar stream hashes to.
        found: Digest,
    },
    /// More or fewer bytes than the manifest says.
    #[error("layer {layer}: {found} bytes came, but the manifest says {expected}")]
    Size {
        /// The layer's blob.
        layer: Digest,
        /// How many the manifest says.
        expected: u64,
        /// How many came; when there were too many, how many had come when that was noticed.
        found: u64,
    },
    /// It would fill the disk.
    #[error(
        "layer {layer}: {packed_len} packed bytes unpack to more than {limit}, a decompression bomb"
    )]
    Bomb {
        /// The layer's blob.
        layer: Digest,
        /// Its packed size.
        packed_len: u64,
        /// The most it could unpack to.
        limit: u64,
    },
    /// It has more of something than we take.
    #[error("layer {layer}: {excess}")]
    Excess {
        /// The layer's blob.
        layer: Digest,
        /// What there is too much of.
        excess: Excess,
    },
    /// The source failed.
    #[error("layer {layer}: cannot be read")]
    Read {
        /// The layer's blob.
        layer: Digest,
        /// What the source or the decompressor said.
        #[source]
        source: io::Error,
    },
    /// The tar stream is not well-formed, or the packed bytes do not decompress.
    #[error("layer {layer}")]
    Tar {
        /// The layer's blob.
        layer: Digest,
        /// What is wrong, and where.
        #[source]
        source: TarError,
    },
    /// The store's disk failed or is full.
    #[error("layer {layer}: cannot be written")]
    Write {
        /// The layer's blob.
        layer: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ConvertError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Digest { .. } | Self::Size { .. } => {
                "the bytes were changed where they are kept or on the way: try again; if it stays so, the image \
                 must be pushed or copied again"
            }
            Self::DiffId { .. } | Self::Tar { .. } | Self::Excess { .. } | Self::Bomb { .. } => {
                "the image was built wrongly, or to do harm: ask its publisher, or name another tag"
            }
            Self::Read { source, .. } => {
                let cause = source.get_ref();
                return cause?.downcast_ref::<BlobError>()?.hint();
            }
            Self::Write { .. } => {
                "name a directory with room: --store DIR or SIFON_STORE, or --tmpdir DIR where nothing is to be kept"
            }
        };
        Some(hint.into())
    }

    /// A table or a file of `layer` that was not written: for want of room, or because it would be too long.
    pub(in crate::layer) fn unwritten(layer: Digest, source: io::Error) -> Self {
        match Excess::of(&source) {
            Some(excess) => Self::Excess { layer, excess },
            None => Self::Write { layer, source },
        }
    }
}

/// Reads `packed` once, to its end, and writes the layer's native file to `native`; gives its table, to be
/// finished by the caller. Temporary files without names go to `scratch`. After an error `native` holds
/// rubbish.
pub fn convert(
    blueprint: Blueprint,
    packed: Box<dyn Read + Send>,
    native: File,
    scratch: &Path,
    compressors: &Compressors,
) -> Result<TableWriter, ConvertError> {
    let layer = blueprint.layer;
    let write = |source| ConvertError::unwritten(layer, source);
    let table = TableWriter::in_directory(scratch);
    let headers = HeaderWriter::in_directory(scratch).map_err(write)?;
    let streaming = compressors.streaming();
    let chunks = OrderedFile::new(native, compressors, Arc::clone(&streaming));
    let cutter = Cutter::new(table, chunks);

    let (packed_blocks, hashing) = hashed(blueprint, packed);
    let plain_blocks = Decompressed::new(packed_blocks, streaming);
    let mut plain = PlainStream::new(blueprint, plain_blocks);

    let cut = cut_all(&mut plain, cutter, headers, layer);
    match cut {
        Err(err @ (ConvertError::Write { .. } | ConvertError::Excess { .. })) => {
            plain.abandon();
            Err(err)
        }
        Err(_) if plain.has_exceeded => {
            let limit = plain.limit;
            plain.abandon();
            Err(ConvertError::Bomb {
                layer,
                packed_len: blueprint.packed_len,
                limit,
            })
        }
        Err(err) => {
            // Substituted bytes rarely decompress: then the digest is the reason worth telling.
            plain.finish();
            Err(verified(hashing).err().unwrap_or(err))
        }
        Ok((cutter, headers)) => {
            let found = plain.finish();
            verified(hashing)?;
            if found != blueprint.diff_id {
                return Err(ConvertError::DiffId {
                    layer,
                    diff_id: blueprint.diff_id,
                    found,
                });
            }
            finished(cutter, headers, blueprint.diff_id).map_err(write)
        }
    }
}

/// Reads the tar stream to its end.
pub(super) fn cut_all<S: ChunkSink>(
    plain: &mut PlainStream,
    mut cutter: Cutter<S>,
    mut headers: HeaderWriter,
    layer: Digest,
) -> Result<(Cutter<S>, HeaderWriter), ConvertError> {
    let write = |source| ConvertError::unwritten(layer, source);
    let damaged = |source| ConvertError::Tar { layer, source };
    let mut tar = TarReader::new(plain);
    let mut landmarks = Landmarks::default();
    while let Some(mut entry) = tar.next_entry().map_err(damaged)? {
        let header = tar.take_literal();
        landmarks.hide_in_place(&mut entry);
        let (pieces, stretches) = match entry.kind {
            Kind::Regular { .. } | Kind::Hidden { .. } => {
                let stretches = cut_content(&mut tar, &mut cutter, layer)?;
                (cutter.end_file().map_err(write)?, stretches)
            }
            _ => (PieceRange::default(), Vec::new()),
        };
        headers.record(&header, &stretches).map_err(write)?;
        cutter.table.entry(&entry, pieces).map_err(write)?;
    }
    headers.record(&tar.take_literal(), &[]).map_err(write)?;
    Ok((cutter, headers))
}

/// Cuts the content of the entry that was just read; where in the file its bytes stood in the archive.
/// An empty file still has one stretch, so that it counts as a file when the stream is rebuilt.
fn cut_content<S: ChunkSink>(
    tar: &mut TarReader<&mut PlainStream>,
    cutter: &mut Cutter<S>,
    layer: Digest,
) -> Result<Vec<(u64, u64)>, ConvertError> {
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    loop {
        let content = tar
            .next_content()
            .map_err(|source| ConvertError::Tar { layer, source })?;
        let cut = match content {
            None => break,
            Some(Content::Data(bytes)) => {
                let len = bytes.len() as u64;
                match stretches.last_mut() {
                    Some((start, stretch)) if *start + *stretch == at => *stretch += len,
                    _ => stretches.push((at, len)),
                }
                at += len;
                cutter.data(bytes)
            }
            Some(Content::Hole(len)) => {
                at += len;
                cutter.hole(len)
            }
        };
        cut.map_err(|source| ConvertError::unwritten(layer, source))?;
    }
    if stretches.is_empty() {
        stretches.push((0, 0));
    }
    Ok(stretches)
}

/// Writes what follows the chunks.
fn finished(
    cutter: Cutter<OrderedFile>,
    headers: HeaderWriter,
    diff_id: Digest,
) -> io::Result<TableWriter> {
    let (mut table, chunks) = cutter.finish()?;
    let (mut file, headers_at) = chunks.finish(&mut table)?;
    let headers_len = headers.copy_into(&mut file)?;
    file.write_all(Footer::new(headers_at, headers_len, diff_id).as_bytes())?;
    file.flush()?;
    Ok(table)
}

/// Hashes and counts the packed bytes on a thread of their own, which passes them on.
fn hashed(
    blueprint: Blueprint,
    mut packed: Box<dyn Read + Send>,
) -> (Blocks, JoinHandle<Result<(), ConvertError>>) {
    let (blocks, received) = bounded(BLOCKS_WAITING);
    let Blueprint {
        layer,
        packed_len: expected,
        ..
    } = blueprint;
    let thread = thread::spawn(move || {
        let mut hasher = Hasher::default();
        let mut found = 0;
        let buffers = Buffers::new();
        loop {
            let block = match buffers.next_block(&mut packed) {
                Ok(block) => block,
                Err(source) => {
                    let said = io::Error::new(source.kind(), source.to_string());
                    let _ = blocks.send(Err(said));
                    return Err(ConvertError::Read { layer, source });
                }
            };
            if block.is_empty() {
                break;
            }
            hasher.update(&block);
            found += block.len() as u64;
            if found > expected {
                return Err(ConvertError::Size {
                    layer,
                    expected,
                    found,
                });
            }
            if blocks.send(Ok(block)).is_err() {
                // Nobody wants the rest, so nobody will ask whether it was right.
                return Ok(());
            }
        }
        match hasher.finish() {
            _ if found != expected => Err(ConvertError::Size {
                layer,
                expected,
                found,
            }),
            digest if digest != layer => Err(ConvertError::Digest {
                layer,
                found: digest,
            }),
            _ => Ok(()),
        }
    });
    (received, thread)
}

fn verified(hashing: JoinHandle<Result<(), ConvertError>>) -> Result<(), ConvertError> {
    hashing.join().expect("hashing does not panic")
}

/// The tar stream, hashed and counted as it comes.
pub(super) struct PlainStream {
    blocks: Decompressed,
    current: Bytes,
    hasher: Hasher,
    left: u64,
    limit: u64,
    /// Set when the stream went over the limit.
    has_exceeded: bool,
}

impl PlainStream {
    pub fn new(blueprint: Blueprint, blocks: impl Into<Decompressed>) -> Self {
        let limit =
            (blueprint.packed_len.saturating_mul(PLAIN_RATIO_LIMIT)).max(PLAIN_BYTES_ALWAYS);
        Self {
            blocks: blocks.into(),
            current: Bytes::new(),
            hasher: Hasher::default(),
            left: limit,
            limit,
            has_exceeded: false,
        }
    }

    /// The digest of all that was read; the packed bytes it came from can be verified then.
    pub fn finish(self) -> Digest {
        self.blocks.finish();
        self.hasher.finish()
    }

    /// Ends it where nothing more is asked.
    fn abandon(self) {
        self.blocks.abandon();
    }
}

impl BufRead for PlainStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.blocks.next()?;
            self.hasher.update(&self.current);
            match self.left.checked_sub(self.current.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.has_exceeded = true;
                    self.current.clear();
                    return Err(io::Error::other("too many plain bytes"));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, len: usize) {
        self.current.advance(len);
    }
}

impl Read for PlainStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}
