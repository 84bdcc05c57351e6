//! Extended attributes: files with the same ones share a set, attributes with the same value share that.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::format::{NONE, XATTR_ELSEWHERE, XATTR_PREFIXES, XattrSet, XattrTable};
use super::metadata::{Lookup, Position};
use super::{Reader, SquashfsError};

/// All sets of attributes.
pub(super) struct Sets {
    attributes_at: u64,
    sets: Lookup<XattrSet>,
}

/// Names and values of one file at most: sixteen times what a name lists, and what a value has, in Linux.
const BYTES_LIMIT: usize = 1 << 20;

/// Bytes of a value at most: `XATTR_SIZE_MAX` of linux/limits.h.
const VALUE_BYTES_LIMIT: usize = 64 << 10;

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl Reader<'_> {
    pub(super) fn xattr_sets(&mut self) -> Result<Sets, SquashfsError> {
        let at = self.superblock.xattrs_at.get();
        let bytes = self.metadata.plain(at, size_of::<XattrTable>())?;
        let table = XattrTable::read_from_bytes(&bytes).expect("as many bytes as it has");
        let places_at = at.saturating_add(table.as_bytes().len() as u64);
        Ok(Sets {
            attributes_at: table.attributes_at.get(),
            sets: Lookup::new(places_at, table.sets.get().into()),
        })
    }

    /// The attributes of the set `number`, with their full names.
    pub(super) fn xattrs(&mut self, number: u32) -> Result<Attributes, SquashfsError> {
        let Some(sets) = self.xattrs.as_ref().filter(|_| number != NONE) else {
            return Ok(Vec::new());
        };
        let attributes_at = sets.attributes_at;
        let set = sets.sets.get(&mut self.metadata, number.into())?;
        let place = |reference: u64| Position {
            block: attributes_at.saturating_add(reference >> 16),
            offset: (reference & 0xffff) as usize,
        };
        let mut at = place(set.reference.get());
        let mut attributes = Attributes::new();
        let mut len = 0;
        for _ in 0..set.count.get() {
            let begin = at.block;
            let wrong = |problem| SquashfsError::damaged("attributes in block", begin, problem);
            let [family, name_len]: [U16; 2] = self.metadata.record(&mut at)?;
            let name = self.metadata.bytes(&mut at, name_len.get().into())?;
            let mut value_len: U32 = self.metadata.record(&mut at)?;
            let mut value_at = at;
            let is_elsewhere = family.get() & XATTR_ELSEWHERE != 0;
            if is_elsewhere {
                let reference: U64 = self.metadata.record(&mut at)?;
                value_at = place(reference.get());
                value_len = self.metadata.record(&mut value_at)?;
            }
            let value_len = value_len.get() as usize;
            // Each attribute costs at least its eight bytes, so that a count is no promise of memory.
            len += 8 + name.len() + value_len;
            if value_len > VALUE_BYTES_LIMIT || len > BYTES_LIMIT {
                return Err(wrong("longer than attributes may be"));
            }
            let value = self.metadata.bytes(&mut value_at, value_len)?;
            if !is_elsewhere {
                at = value_at;
            }
            // Families of later times are left out, as Linux does.
            if let Some(prefix) = XATTR_PREFIXES.get(usize::from(family.get() & 0xff)) {
                attributes.push(([*prefix, &name].concat(), value));
            }
        }
        Ok(attributes)
    }
}
