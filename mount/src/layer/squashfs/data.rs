//! Blocks and fragments of regular files become chunks and pieces.

use std::collections::HashMap;

use zerocopy::little_endian::U32;

use super::format::{Fragment, NONE, STORED_BLOCK};
use super::inode::FilePlace;
use super::metadata::Lookup;
use super::{Reader, SquashfsError};
use crate::digest::ChunkDigest;
use crate::extent::PackedOffset;
use crate::layer::table::{Chunk, ChunkIndex, Codec, Piece, TableWriter};

/// Blocks of all files at most, holes and those that files share among them: 8 TiB of files with blocks of 128 KiB.
const BLOCKS_LIMIT: u64 = 64 << 20;

/// The chunks that there are so far.
pub(super) struct Data {
    /// By the place where the block begins: equal files share theirs.
    blocks: HashMap<u64, (ChunkIndex, u32, u32)>,
    fragments: HashMap<u32, (ChunkIndex, Chunk<'static>)>,
    table: Lookup<Fragment>,
    blocks_left: u64,
}

impl Data {
    pub fn of(reader: &Reader<'_>) -> Self {
        let superblock = &reader.superblock;
        Self {
            blocks: HashMap::new(),
            fragments: HashMap::new(),
            table: Lookup::new(
                superblock.fragments_at.get(),
                superblock.fragments.get().into(),
            ),
            blocks_left: BLOCKS_LIMIT,
        }
    }

    /// The pieces of a file.
    pub fn pieces(
        &mut self,
        reader: &mut Reader<'_>,
        file: &FilePlace,
        writer: &mut TableWriter,
    ) -> Result<Vec<Piece>, SquashfsError> {
        let block_bytes = u64::from(reader.superblock.block_bytes.get());
        let has_tail = file.fragment != NONE;
        let count = match has_tail {
            true => file.size / block_bytes,
            false => file.size.div_ceil(block_bytes),
        };
        self.blocks_left = self.blocks_left.checked_sub(count).ok_or_else(|| {
            SquashfsError::Unsupported("its files have more than 64 million blocks".into())
        })?;
        let mut pieces = Vec::new();
        let mut is_hole = false;
        let mut sizes = file.sizes;
        let mut packed_at = file.start;
        for number in 0..count {
            let at = number * block_bytes;
            let size = reader.metadata.record::<U32>(&mut sizes)?.get();
            if size == 0 {
                if !is_hole {
                    pieces.push(Piece::hole(at));
                }
                is_hole = true;
                continue;
            }
            is_hole = false;
            let plain_len = (file.size - at).min(block_bytes) as u32;
            let chunk = self.block(reader, packed_at, size, plain_len, writer)?;
            pieces.push(Piece::in_chunk(at, chunk, 0));
            packed_at += u64::from(size & !STORED_BLOCK);
        }
        let tail = file.size - (count * block_bytes).min(file.size);
        if has_tail && tail > 0 {
            let end = u64::from(file.offset) + tail;
            if end > block_bytes {
                return Err(SquashfsError::damaged(
                    "inode in block",
                    file.sizes.block,
                    "its tail lies outside its fragment",
                ));
            }
            let chunk = self.fragment(reader, file.fragment, end as u32, writer)?;
            pieces.push(Piece::in_chunk(count * block_bytes, chunk, file.offset));
        }
        Ok(pieces)
    }

    fn block(
        &mut self,
        reader: &Reader<'_>,
        at: u64,
        size: u32,
        plain_len: u32,
        writer: &mut TableWriter,
    ) -> Result<ChunkIndex, SquashfsError> {
        if let Some(&(index, known, len)) = self.blocks.get(&at)
            && (known, len) == (size, plain_len)
        {
            return Ok(index);
        }
        let chunk = chunk(reader, at, size, plain_len)?;
        let index = writer.chunk(&chunk).map_err(SquashfsError::Write)?;
        self.blocks.insert(at, (index, size, plain_len));
        Ok(index)
    }

    /// The chunk of a fragment of which somebody needs the bytes up to `end`.
    fn fragment(
        &mut self,
        reader: &mut Reader<'_>,
        number: u32,
        end: u32,
        writer: &mut TableWriter,
    ) -> Result<ChunkIndex, SquashfsError> {
        if let Some((index, chunk)) = self.fragments.get_mut(&number) {
            if chunk.plain_len < end {
                is_long_enough(chunk, end)?;
                chunk.plain_len = end;
                writer.set_chunk(*index, chunk);
            }
            return Ok(*index);
        }
        let fragment = self.table.get(&mut reader.metadata, number.into())?;
        let chunk = chunk(reader, fragment.at.get(), fragment.len.get(), end)?;
        let index = writer.chunk(&chunk).map_err(SquashfsError::Write)?;
        self.fragments.insert(number, (index, chunk));
        Ok(index)
    }
}

/// The chunk at this place with this size as the format writes it.
fn chunk(
    reader: &Reader<'_>,
    at: u64,
    size: u32,
    plain_len: u32,
) -> Result<Chunk<'static>, SquashfsError> {
    let wrong = |problem| SquashfsError::damaged("block", at, problem);
    let packed_len = size & !STORED_BLOCK;
    if packed_len > reader.superblock.block_bytes.get() {
        return Err(wrong("it is longer than a block may be"));
    }
    let end = at.checked_add(packed_len.into());
    if end.is_none_or(|end| end > reader.metadata.used()) {
        return Err(wrong("it lies outside the file system"));
    }
    let codec = match size & STORED_BLOCK {
        0 => reader.codec,
        _ => Codec::Raw,
    };
    let chunk = Chunk {
        packed_at: PackedOffset(reader.begins.saturating_add(at)),
        packed_len,
        skip: 0,
        plain_len,
        codec,
        digest: ChunkDigest::Unknown,
    };
    is_long_enough(&chunk, plain_len)?;
    Ok(chunk)
}

/// Whether a block that is stored as it is has so many bytes.
fn is_long_enough(chunk: &Chunk<'_>, needs: u32) -> Result<(), SquashfsError> {
    match chunk.codec == Codec::Raw && chunk.packed_len < needs {
        true => Err(SquashfsError::damaged(
            "block",
            chunk.packed_at.0,
            "a file has more bytes in it than it has",
        )),
        false => Ok(()),
    }
}
