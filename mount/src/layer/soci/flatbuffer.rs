//! FlatBuffers as far as zTOCs need them, with strings as the bytes that they are: generated readers insist on UTF-8, which
//! names in images are not. Every access is checked; what lies outside is `None`.

/// A table in a buffer (FlatBuffers internals, "Tables").
#[derive(Clone, Copy)]
pub struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where its fields' places stand, and how many bytes of them there are.
    fields_at: usize,
    fields_len: usize,
}

/// A vector of tables.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    bytes: &'a [u8],
    at: usize,
    len: usize,
}

impl<'a> Table<'a> {
    /// The table that the buffer holds.
    pub fn root(bytes: &'a [u8]) -> Option<Self> {
        Self::at(bytes, follow(bytes, 0)?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let back = i32::from_le_bytes(array(bytes, at)?);
        let fields_at = i64::try_from(at).ok()?.checked_sub(back.into())?;
        let fields_at = usize::try_from(fields_at).ok()?;
        let len = u16::from_le_bytes(array(bytes, fields_at)?);
        Some(Self {
            bytes,
            at,
            fields_at: fields_at.checked_add(4)?,
            fields_len: usize::from(len).checked_sub(4)?,
        })
    }

    /// Where the field of this number is; `None` if it is absent.
    fn field(&self, number: usize) -> Option<usize> {
        let place = number * 2;
        if place + 2 > self.fields_len {
            return None;
        }
        match u16::from_le_bytes(array(self.bytes, self.fields_at.checked_add(place)?)?) {
            0 => None,
            offset => self.at.checked_add(offset.into()),
        }
    }

    /// A number of `N` bytes; zero if the field is absent, `None` if it lies outside.
    fn number<const N: usize>(&self, field: usize) -> Option<[u8; N]> {
        match self.field(field) {
            None => Some([0; N]),
            Some(at) => array(self.bytes, at),
        }
    }

    /// A `long`.
    pub fn i64(&self, field: usize) -> Option<i64> {
        self.number(field).map(i64::from_le_bytes)
    }

    /// A `long` that must not be negative.
    pub fn length(&self, field: usize) -> Option<u64> {
        u64::try_from(self.i64(field)?).ok()
    }

    /// An `int`.
    pub fn i32(&self, field: usize) -> Option<i32> {
        self.number(field).map(i32::from_le_bytes)
    }

    /// A `uint`.
    pub fn u32(&self, field: usize) -> Option<u32> {
        self.number(field).map(u32::from_le_bytes)
    }

    /// A `byte`.
    pub fn i8(&self, field: usize) -> Option<i8> {
        self.number(field).map(i8::from_le_bytes)
    }

    /// A string, or a vector of bytes; empty if it is absent.
    pub fn bytes(&self, field: usize) -> Option<&'a [u8]> {
        match self.field(field) {
            None => Some(&[]),
            Some(at) => string(self.bytes, follow(self.bytes, at)?),
        }
    }

    /// A table; `None` if it is absent, too.
    pub fn table(&self, field: usize) -> Option<Self> {
        Self::at(self.bytes, follow(self.bytes, self.field(field)?)?)
    }

    /// A vector of tables or strings; empty if it is absent.
    pub fn tables(&self, field: usize) -> Option<Tables<'a>> {
        let Some(at) = self.field(field) else {
            let bytes = self.bytes;
            return Some(Tables {
                bytes,
                at: 0,
                len: 0,
            });
        };
        let at = follow(self.bytes, at)?;
        let len = u32::from_le_bytes(array(self.bytes, at)?) as usize;
        let at = at.checked_add(4)?;
        let end = at.checked_add(len.checked_mul(4)?)?;
        (end <= self.bytes.len()).then_some(Tables {
            bytes: self.bytes,
            at,
            len,
        })
    }
}

impl<'a> Tables<'a> {
    /// How many there are: no more than the buffer has room for places of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All of them; `None` where one lies outside.
    pub fn iter(self) -> impl Iterator<Item = Option<Table<'a>>> {
        (0..self.len).map(move |index| {
            let at = follow(self.bytes, self.at + index * 4)?;
            Table::at(self.bytes, at)
        })
    }

    /// All of them as strings.
    pub fn strings(self) -> impl Iterator<Item = Option<&'a [u8]>> {
        (0..self.len).map(move |index| {
            let at = follow(self.bytes, self.at + index * 4)?;
            string(self.bytes, at)
        })
    }
}

/// Where the offset at `at` leads.
fn follow(bytes: &[u8], at: usize) -> Option<usize> {
    let offset = u32::from_le_bytes(array(bytes, at)?);
    at.checked_add(offset as usize)
}

fn string(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let len = u32::from_le_bytes(array(bytes, at)?) as usize;
    let at = at.checked_add(4)?;
    bytes.get(at..at.checked_add(len)?)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
