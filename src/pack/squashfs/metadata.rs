//! Streams of metadata blocks, and the tables that find records in them.

use zerocopy::{Immutable, IntoBytes};

use super::compressor::Compressor;
use super::format::{METADATA_BYTES, Reference, STORED_METADATA};

/// A stream of metadata blocks in memory, already packed.
#[derive(Default)]
pub(super) struct Metadata {
    packed: Vec<u8>,
    plain: Vec<u8>,
    /// Where each block begins in the packed bytes.
    blocks: Vec<u64>,
}

impl Metadata {
    /// Where the next byte is going to be.
    pub fn position(&self) -> Reference {
        Reference {
            block: self.packed.len() as u64,
            offset: self.plain.len() as u16,
        }
    }

    pub fn write(&mut self, mut bytes: &[u8], compressor: &mut Compressor) {
        while !bytes.is_empty() {
            let room = METADATA_BYTES - self.plain.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.plain.extend_from_slice(now);
            bytes = later;
            if self.plain.len() == METADATA_BYTES {
                self.end_block(compressor);
            }
        }
    }

    pub fn put(&mut self, record: &(impl IntoBytes + Immutable), compressor: &mut Compressor) {
        self.write(record.as_bytes(), compressor);
    }

    fn end_block(&mut self, compressor: &mut Compressor) {
        self.blocks.push(self.packed.len() as u64);
        push_block(&mut self.packed, &self.plain, compressor);
        self.plain.clear();
    }

    /// The packed stream, and where in it each block begins.
    pub fn finish(mut self, compressor: &mut Compressor) -> (Vec<u8>, Vec<u64>) {
        if !self.plain.is_empty() {
            self.end_block(compressor);
        }
        (self.packed, self.blocks)
    }
}

/// Appends one metadata block with its length.
pub(super) fn push_block(to: &mut Vec<u8>, plain: &[u8], compressor: &mut Compressor) {
    match compressor.packed(plain) {
        Some(packed) => {
            to.extend_from_slice(&(packed.len() as u16).to_le_bytes());
            to.extend_from_slice(&packed);
        }
        None => {
            to.extend_from_slice(&(plain.len() as u16 | STORED_METADATA).to_le_bytes());
            to.extend_from_slice(plain);
        }
    }
}

/// A table: its records in metadata blocks, and after them, where each block begins in the file.
pub(super) struct LookupTable {
    /// The blocks and the places.
    pub bytes: Vec<u8>,
    /// Where in `bytes` the places begin, which is what the superblock tells.
    pub places_at: u64,
}

impl LookupTable {
    /// The table of `records`, all of one type, that will stand at byte `at` of the file.
    pub fn of(records: &[u8], at: u64, compressor: &mut Compressor) -> Self {
        let mut stream = Metadata::default();
        stream.write(records, compressor);
        let (mut bytes, blocks) = stream.finish(compressor);
        let places_at = bytes.len() as u64;
        for block in blocks {
            bytes.extend_from_slice(&(at + block).to_le_bytes());
        }
        Self { bytes, places_at }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compressor::Compression;
    use super::*;

    #[test]
    fn a_position_is_the_place_of_its_block_and_the_byte_in_it() {
        let mut compressor = Compressor::new(Compression::None);
        let mut stream = Metadata::default();
        stream.write(&[1; METADATA_BYTES - 1], &mut compressor);
        let offset = METADATA_BYTES as u16 - 1;
        assert_eq!(stream.position(), Reference { block: 0, offset });
        stream.write(&[2; 3], &mut compressor);
        let block = METADATA_BYTES as u64 + 2;
        assert_eq!(stream.position(), Reference { block, offset: 2 });
        assert_eq!(stream.position().packed(), block << 16 | 2);
        let (packed, blocks) = stream.finish(&mut compressor);
        assert_eq!(blocks, [0, block]);
        assert_eq!(packed[block as usize..], [2, 0x80, 2, 2]);
    }

    #[test]
    fn a_table_ends_with_the_places_of_its_blocks() {
        let mut compressor = Compressor::new(Compression::None);
        let table = LookupTable::of(&[7; METADATA_BYTES + 4], 1000, &mut compressor);
        assert_eq!(table.places_at, METADATA_BYTES as u64 + 2 + 4 + 2);
        let places = &table.bytes[table.places_at as usize..];
        assert_eq!(places[..8], 1000u64.to_le_bytes());
        assert_eq!(
            places[8..],
            (1000 + METADATA_BYTES as u64 + 2).to_le_bytes()
        );
    }
}
