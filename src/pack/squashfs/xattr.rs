//! Extended attributes: files with the same ones share a set, sets with the same value share that.

use std::collections::HashMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::Lost;
use super::compressor::Compressor;
use super::format::{NONE, Reference, XATTR_ELSEWHERE, XATTR_PREFIXES, XattrSet, XattrTable};
use super::metadata::{LookupTable, Metadata};

/// All sets of attributes, in the order of their first files.
#[derive(Default)]
pub(super) struct Xattrs {
    stream: Metadata,
    sets: Vec<XattrSet>,
    /// What was asked for before, in one piece.
    known: HashMap<Vec<u8>, u32>,
    /// Where a value stands with its length before it.
    values: HashMap<Vec<u8>, Reference>,
}

/// A value of this length takes no more room than a reference to it.
const REFERENCE_BYTES: usize = size_of::<u64>();
/// A name after its prefix at most, so that its length fits wherever it is read.
const NAME_BYTES_LIMIT: usize = 255;
/// Bytes of a value at most: `XATTR_SIZE_MAX` of linux/limits.h.
const VALUE_BYTES_LIMIT: usize = 64 << 10;

/// The family of an attribute and the rest of its name, if squashfs can hold it.
fn family<'n>(name: &'n [u8], value: &[u8]) -> Option<(u16, &'n [u8])> {
    let (number, rest) = XATTR_PREFIXES
        .iter()
        .enumerate()
        .find_map(|(number, prefix)| Some((number as u16, name.strip_prefix(*prefix)?)))?;
    let fits = (1..=NAME_BYTES_LIMIT).contains(&rest.len()) && value.len() <= VALUE_BYTES_LIMIT;
    fits.then_some((number, rest))
}

impl Xattrs {
    /// The number of the set with these attributes, or [`NONE`] if none of them can be kept.
    pub fn set(
        &mut self,
        attributes: &[(Vec<u8>, Vec<u8>)],
        lost: &mut Lost,
        compressor: &mut Compressor,
    ) -> u32 {
        let kept: Vec<_> = attributes
            .iter()
            .filter_map(|(name, value)| Some((family(name, value)?, value)))
            .collect();
        lost.xattrs += (attributes.len() - kept.len()) as u64;
        if kept.is_empty() {
            return NONE;
        }
        let mut key = Vec::new();
        for ((family, name), value) in &kept {
            key.extend_from_slice(&family.to_le_bytes());
            key.extend_from_slice(&(name.len() as u32).to_le_bytes());
            key.extend_from_slice(name);
            key.extend_from_slice(&(value.len() as u32).to_le_bytes());
            key.extend_from_slice(value);
        }
        if let Some(&set) = self.known.get(&key) {
            return set;
        }
        let reference = self.stream.position();
        let mut len = 0;
        for ((family, name), value) in &kept {
            len += self.attribute(*family, name, value, compressor);
        }
        let set = self.sets.len() as u32;
        self.sets.push(XattrSet {
            reference: reference.packed().into(),
            count: (kept.len() as u32).into(),
            len: len.into(),
        });
        self.known.insert(key, set);
        set
    }

    /// Appends one attribute; how many bytes it takes.
    fn attribute(
        &mut self,
        family: u16,
        name: &[u8],
        value: &[u8],
        compressor: &mut Compressor,
    ) -> u32 {
        let elsewhere = self.values.get(value).copied();
        let family = family | elsewhere.map_or(0, |_| XATTR_ELSEWHERE);
        let stream = &mut self.stream;
        stream.put(&[U16::new(family), U16::new(name.len() as u16)], compressor);
        stream.write(name, compressor);
        let value_len = match elsewhere {
            Some(reference) => {
                stream.put(&U32::new(REFERENCE_BYTES as u32), compressor);
                stream.put(&U64::new(reference.packed()), compressor);
                REFERENCE_BYTES
            }
            None => {
                if value.len() > REFERENCE_BYTES {
                    self.values.insert(value.to_vec(), stream.position());
                }
                stream.put(&U32::new(value.len() as u32), compressor);
                stream.write(value, compressor);
                value.len()
            }
        };
        (8 + name.len() + value_len) as u32
    }

    /// The attributes and their table as they will stand at byte `at` of the file, and where in that the superblock
    /// must point. `None` if there are no attributes.
    pub fn finish(self, at: u64, compressor: &mut Compressor) -> Option<(Vec<u8>, u64)> {
        if self.sets.is_empty() {
            return None;
        }
        let (mut bytes, _) = self.stream.finish(compressor);
        let table_at = at + bytes.len() as u64;
        let table = LookupTable::of(self.sets.as_bytes(), table_at, compressor);
        let (blocks, places) = table.bytes.split_at(table.places_at as usize);
        bytes.extend_from_slice(blocks);
        let header_at = at + bytes.len() as u64;
        let header = XattrTable {
            attributes_at: at.into(),
            sets: (self.sets.len() as u32).into(),
            unused: 0.into(),
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(places);
        Some((bytes, header_at))
    }
}
