//! Our own index of a gzip layer that nobody indexed: one pass gives a table whose chunks are the spans between checkpoints,
//! and, where it is to be shared, a zTOC.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::resumable::Resumable;
use super::write::ZtocWriter;
use super::ztoc::pieces;
use crate::blob::BlobError;
use crate::digest::{ChunkDigest, Digest, Hasher};
use crate::extent::{CHUNK_BYTES_LIMIT, PackedOffset};
use crate::layer::entry::{Entry, Kind};
use crate::layer::landmark::Landmarks;
use crate::layer::native::{Blueprint, ConvertError};
use crate::layer::table::{Checkpoint, Chunk, Codec, Piece, PieceRange, TableWriter};
use crate::layer::tar::{Content, TarError, TarReader};

/// Plain bytes between two checkpoints, as SOCI has them: one window of 32 KiB for so many is less than a hundredth.
pub const SPACING_BYTES: u64 = 4 << 20;

/// Plain bytes decompressed at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What one pass over a layer gives.
pub struct Indexed {
    /// Its table, named for its chunks.
    pub table: TableWriter,
    /// The same for others; `None` for a layer that a zTOC cannot tell of, because it has sparse files.
    pub ztoc: Option<Vec<u8>>,
    /// How many bytes all windows take in the table.
    pub window_bytes: u64,
}

/// Reads the gzip stream `packed` once, to its end, and checks it against the blueprint. Temporary files without names go to
/// `scratch`. A zTOC is made only where `shares`, since it is held in memory.
pub fn indexed(
    blueprint: Blueprint,
    packed: impl Read,
    spacing: u64,
    shares: bool,
    scratch: &Path,
) -> Result<Indexed, ConvertError> {
    let layer = blueprint.layer;
    let write = |source| ConvertError::unwritten(layer, source);
    let mut files = Files {
        layer,
        table: TableWriter::in_directory(scratch),
        ztoc: shares.then(ZtocWriter::default),
        landmarks: Landmarks::default(),
        starts: Vec::new(),
    };
    let packed = packed.take(blueprint.packed_len.saturating_add(1));
    let plain = Hashed {
        plain: Resumable::new(packed, spacing),
        hasher: Hasher::default(),
    };
    let mut tar = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, plain));
    let read = files.add_all(&mut tar);
    let Hashed { plain, hasher } = tar.into_source().into_inner();
    read?;
    let (found, plain_len) = plain.lens();
    if found != blueprint.packed_len {
        let expected = blueprint.packed_len;
        return Err(ConvertError::Size {
            layer,
            expected,
            found,
        });
    }
    if plain.packed_digest() != layer {
        let found = plain.packed_digest();
        return Err(ConvertError::Digest { layer, found });
    }
    let (diff_id, found) = (blueprint.diff_id, hasher.finish());
    if found != diff_id {
        return Err(ConvertError::DiffId {
            layer,
            diff_id,
            found,
        });
    }
    let mut table = files.table;
    add_chunks(&plain, plain_len, &mut table).map_err(write)?;
    table.made_from_chunks();
    let window_bytes = plain.resumptions().iter().map(|at| at.window.len() as u64);
    Ok(Indexed {
        window_bytes: window_bytes.sum(),
        table,
        ztoc: files
            .ztoc
            .map(|ztoc| ztoc.finish(&plain))
            .transpose()
            .map_err(write)?,
    })
}

fn is_of_source(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<BlobError>())
}

/// Adds the spans as chunks, in their order: pieces refer to them by it.
fn add_chunks<R: Read>(
    plain: &Resumable<R>,
    plain_len: u64,
    table: &mut TableWriter,
) -> io::Result<()> {
    let (packed_end, _) = plain.lens();
    let resumptions = plain.resumptions();
    for (index, (at, digest)) in resumptions.iter().zip(plain.span_digests()).enumerate() {
        let next = resumptions.get(index + 1);
        let (packed_end, plain_end) = next.map_or((packed_end, plain_len), |next| {
            (next.packed_at, next.plain_at)
        });
        let packed_at = at.packed_at - u64::from(at.bits > 0);
        let (packed_len, plain_len) = (packed_end - packed_at, plain_end - at.plain_at);
        if plain_len > CHUNK_BYTES_LIMIT as u64 || packed_len > CHUNK_BYTES_LIMIT as u64 {
            return Err(io::Error::other("a deflate block of more than 64 MiB"));
        }
        table.chunk(&Chunk {
            packed_at: PackedOffset(packed_at),
            packed_len: packed_len as u32,
            skip: 0,
            plain_len: plain_len as u32,
            codec: Codec::Deflate(Checkpoint {
                bits: at.bits,
                window: &at.window,
            }),
            digest: ChunkDigest::PackedSha256(*digest.as_bytes()),
        })?;
    }
    Ok(())
}

/// The plain bytes, hashed as they pass.
struct Hashed<R> {
    plain: Resumable<R>,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.plain.read(into)?;
        self.hasher.update(&into[..len]);
        Ok(len)
    }
}

/// Entries on their way into the table and the zTOC.
struct Files {
    layer: Digest,
    table: TableWriter,
    ztoc: Option<ZtocWriter>,
    landmarks: Landmarks,
    /// Where the spans begin that are known.
    starts: Vec<u64>,
}

impl Files {
    fn add_all<R: Read>(
        &mut self,
        tar: &mut TarReader<BufReader<Hashed<R>>>,
    ) -> Result<(), ConvertError> {
        let layer = self.layer;
        let damaged = |error| match error {
            // The layer is as good as before: its source failed.
            TarError::Read { source, .. } if is_of_source(&source) => {
                ConvertError::Read { layer, source }
            }
            source => ConvertError::Tar { layer, source },
        };
        while let Some(mut entry) = tar.next_entry().map_err(damaged)? {
            tar.take_literal();
            let at = tar.at().0;
            let extents = match entry.kind {
                Kind::Regular { .. } => extents(tar).map_err(damaged)?,
                _ => Vec::new(),
            };
            let is_whole = matches!(extents[..], [] | [(_, Some(_), _)]);
            if !is_whole {
                self.ztoc = None;
            }
            if let Some(ztoc) = &mut self.ztoc {
                ztoc.file(&entry, at);
            }
            self.landmarks.hide_in_place(&mut entry);
            self.add(&entry, &extents, &tar.source().get_ref().plain)
                .map_err(|source| ConvertError::unwritten(layer, source))?;
        }
        Ok(())
    }

    fn add<R: Read>(
        &mut self,
        entry: &Entry,
        extents: &[Extent],
        plain: &Resumable<R>,
    ) -> io::Result<()> {
        // All of the file has come, so every checkpoint in it is known.
        let known = self.starts.len();
        let new = plain.resumptions()[known..].iter().map(|at| at.plain_at);
        self.starts.extend(new);
        let starts = &self.starts;
        let lie = |&(at, from, len): &Extent| match from {
            None => vec![Piece::hole(at)],
            Some(from) => pieces(starts, from, len)
                .iter()
                .map(|piece| piece.moved_by(at))
                .collect(),
        };
        let pieces: Vec<Piece> = extents.iter().flat_map(lie).collect();
        let range = match pieces[..] {
            [] => PieceRange::default(),
            _ => self.table.pieces(&pieces)?,
        };
        self.table.entry(entry, range)
    }
}

/// A part of a file: where in it it begins, where in the tar stream its bytes do (`None` for a hole), and its length.
type Extent = (u64, Option<u64>, u64);

/// Reads the content of the current file, and tells where it is.
fn extents<R: BufRead>(tar: &mut TarReader<R>) -> Result<Vec<Extent>, TarError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = 0;
    loop {
        let (is_data, len) = match tar.next_content()? {
            None => break,
            Some(Content::Data(bytes)) => (true, bytes.len() as u64),
            Some(Content::Hole(len)) => (false, len),
        };
        let from = is_data.then(|| tar.at().0 - len);
        match (extents.last_mut(), from) {
            (Some((_, Some(start), before)), Some(from)) if *start + *before == from => {
                *before += len
            }
            _ => extents.push((at, from, len)),
        }
        at += len;
    }
    tar.take_literal();
    Ok(extents)
}
