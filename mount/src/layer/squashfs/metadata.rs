//! Streams of metadata blocks, read at any place.

use std::marker::PhantomData;
use std::num::NonZeroUsize;

use bytes::Bytes;
use lru::LruCache;
use zerocopy::FromBytes;

use super::format::{METADATA_BYTES, STORED_METADATA};
use super::{Input, SquashfsError, decoded};
use crate::layer::decode::Decoder;
use crate::layer::table::Codec;

/// Blocks kept at most, 32 MiB: listings and inodes are read side by side, nearly in their order.
const KEPT_BLOCKS: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// All metadata of a file system.
pub(super) struct Metadata<'a> {
    input: &'a Input<'a>,
    /// Bytes of the file system; what follows is padding.
    used: u64,
    codec: Codec<'static>,
    decoder: Decoder,
    kept: LruCache<u64, Block>,
}

/// A decoded block, and where the next one begins.
#[derive(Clone)]
struct Block {
    plain: Bytes,
    next: u64,
}

/// A place in a stream: where its block begins in the file system, and the byte in the plain block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub block: u64,
    pub offset: usize,
}

impl<'a> Metadata<'a> {
    pub fn new(input: &'a Input<'a>, used: u64, codec: Codec<'static>) -> Self {
        Self {
            input,
            used,
            codec,
            decoder: Decoder::new(),
            kept: LruCache::new(KEPT_BLOCKS),
        }
    }

    /// Bytes of the file system.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The next record; `at` moves behind it.
    pub fn record<T: FromBytes>(&mut self, at: &mut Position) -> Result<T, SquashfsError> {
        let bytes = self.bytes(at, size_of::<T>())?;
        Ok(T::read_from_bytes(&bytes).expect("as many bytes as it has were read"))
    }

    /// The next `len` bytes, which the caller has checked to be few; `at` moves behind them.
    pub fn bytes(&mut self, at: &mut Position, len: usize) -> Result<Vec<u8>, SquashfsError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let block = self.block(at.block)?;
            let Some(rest) = block.plain.get(at.offset..) else {
                let problem = "something begins behind its end";
                return Err(SquashfsError::damaged("metadata block", at.block, problem));
            };
            let taken = rest.len().min(len - bytes.len());
            bytes.extend_from_slice(&rest[..taken]);
            at.offset += taken;
            if at.offset == block.plain.len() {
                *at = Position {
                    block: block.next,
                    offset: 0,
                };
            }
        }
        Ok(bytes)
    }

    /// A number that stands in the file system as it is.
    pub fn plain_number(&self, at: u64) -> Result<u64, SquashfsError> {
        let bytes = self.plain(at, size_of::<u64>())?;
        Ok(u64::from_le_bytes(
            bytes[..].try_into().expect("eight bytes were read"),
        ))
    }

    /// Bytes that stand in the file system as they are.
    pub fn plain(&self, at: u64, len: usize) -> Result<Bytes, SquashfsError> {
        let is_inside = at
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.used);
        if !is_inside {
            let problem = "it lies outside the file system";
            return Err(SquashfsError::damaged("table", at, problem));
        }
        (self.input.read)(at, len).map_err(SquashfsError::Read)
    }

    fn block(&mut self, at: u64) -> Result<Block, SquashfsError> {
        if let Some(block) = self.kept.get(&at) {
            return Ok(block.clone());
        }
        let wrong = |problem| SquashfsError::damaged("metadata block", at, problem);
        let left = self.used.saturating_sub(at);
        let len = left.min(2 + METADATA_BYTES as u64) as usize;
        if len < 2 {
            return Err(wrong("it lies outside the file system"));
        }
        let bytes = (self.input.read)(at, len).map_err(SquashfsError::Read)?;
        let header = u16::from_le_bytes([bytes[0], bytes[1]]);
        let end = 2 + usize::from(header & !STORED_METADATA);
        let packed = bytes
            .get(2..end)
            .ok_or_else(|| wrong("it is longer than a block may be"))?;
        let plain = match header & STORED_METADATA {
            0 => decoded(&mut self.decoder, self.codec, packed, METADATA_BYTES)
                .ok_or_else(|| wrong("it cannot be decompressed"))?
                .into(),
            _ => Bytes::copy_from_slice(packed),
        };
        if plain.is_empty() {
            return Err(wrong("it is empty"));
        }
        let block = Block {
            plain,
            next: at + end as u64,
        };
        self.kept.put(at, block.clone());
        Ok(block)
    }
}

/// Records in metadata blocks, found by their number: a list of the blocks' places stands behind them.
pub(super) struct Lookup<T> {
    places_at: u64,
    pub count: u64,
    records: PhantomData<T>,
}

impl<T: FromBytes> Lookup<T> {
    pub fn new(places_at: u64, count: u64) -> Self {
        Self {
            places_at,
            count,
            records: PhantomData,
        }
    }

    /// The record at `index`.
    pub fn get(&self, metadata: &mut Metadata<'_>, index: u64) -> Result<T, SquashfsError> {
        if index >= self.count {
            let problem = "something refers to a place that it does not have";
            return Err(SquashfsError::damaged("table", self.places_at, problem));
        }
        let byte = index * size_of::<T>() as u64;
        let place = byte / METADATA_BYTES as u64 * size_of::<u64>() as u64;
        let block = metadata.plain_number(self.places_at.saturating_add(place))?;
        metadata.record(&mut Position {
            block,
            offset: (byte % METADATA_BYTES as u64) as usize,
        })
    }
}
