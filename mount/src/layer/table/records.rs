//! Records of one length, one after another, and the bytes that they point into: how a table, and a tree, lies in its file.

use std::marker::PhantomData;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A part of a file: where it begins and how many records `T` it promises. Every access is checked.
pub(crate) struct Records<T> {
    at: usize,
    count: u64,
    of: PhantomData<fn() -> T>,
}

impl<T: FromBytes + KnownLayout + Immutable + Unaligned> Records<T> {
    /// `count` records from the byte `at` on, and the byte after them; nothing if there can be no such file.
    pub fn from(at: usize, count: u64) -> Option<(Self, usize)> {
        let len = usize::try_from(count).ok()?.checked_mul(size_of::<T>())?;
        let records = Self {
            at,
            count,
            of: PhantomData,
        };
        Some((records, at.checked_add(len)?))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The one at `index` of those in `file`.
    pub fn get<'a>(&self, file: &'a [u8], index: u64) -> Option<&'a T> {
        self.range(file, index, 1)?.first()
    }

    /// `count` of them from `first` on.
    pub fn range<'a>(&self, file: &'a [u8], first: u64, count: u64) -> Option<&'a [T]> {
        let end = first.checked_add(count)?;
        if end > self.count {
            return None;
        }
        let place = |index: u64| {
            self.at
                .checked_add((index as usize).checked_mul(size_of::<T>())?)
        };
        <[T]>::ref_from_bytes(file.get(place(first)?..place(end)?)?).ok()
    }
}

/// Takes stretches of bytes one after another.
pub(crate) struct Stretches<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Stretches<'a> {
    /// From the byte `at` on.
    pub fn from(bytes: &'a [u8], at: u64) -> Self {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        Self { bytes, at }
    }

    /// The next `len` bytes, if they are there.
    pub fn next(&mut self, len: U32) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len.get() as usize)?;
        let stretch = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(stretch)
    }
}

/// Attributes: for each, two lengths as u32, then name and value.
pub(crate) fn xattrs(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut parts = Stretches { bytes, at: 0 };
    let mut attributes = Vec::new();
    while parts.at < bytes.len() {
        let name_len = U32::read_from_bytes(parts.next(4.into())?).ok()?;
        let value_len = U32::read_from_bytes(parts.next(4.into())?).ok()?;
        attributes.push((parts.next(name_len)?, parts.next(value_len)?));
    }
    Some(attributes)
}
