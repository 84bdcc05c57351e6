//! One header block: its fields as numbers and names.
//!
//! The layout is the tar crate's; its numbers are read here, because the crate drops the upper bytes
//! of a base-256 field (a size of 2^64 + 5 would become 5) and refuses fields left blank.

use super::super::entry::Timestamp;

/// Bytes in a block: headers are one, bodies are padded to whole ones.
pub const BLOCK_BYTES: usize = 512;

/// One block of the stream.
pub type Block = [u8; BLOCK_BYTES];

/// A header whose checksum is right.
pub struct Header(Block);

impl Header {
    /// `None` if the checksum does not match.
    pub fn new(block: Block) -> Option<Self> {
        is_header(&block).then_some(Self(block))
    }

    fn fields(&self) -> &tar::OldHeader {
        tar::Header::from_byte_slice(&self.0).as_old()
    }

    /// The type flag.
    pub fn flag(&self) -> u8 {
        self.fields().linkflag[0]
    }

    /// The fields that only GNU's format has.
    pub fn gnu(&self) -> Option<&tar::GnuHeader> {
        tar::Header::from_byte_slice(&self.0).as_gnu()
    }

    /// The name, with its prefix if the format has one.
    pub fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.fields().name);
        match self.prefix() {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    /// What a link points to.
    pub fn link(&self) -> &[u8] {
        until_nul(&self.fields().linkname)
    }

    /// Length of the body.
    pub fn size(&self) -> Result<u64, &'static str> {
        number(&self.fields().size)
            .and_then(|size| u64::try_from(size).ok())
            .ok_or("its size is no number below 2^63")
    }

    /// Permission bits with setuid, setgid and sticky.
    pub fn mode(&self) -> Result<u16, &'static str> {
        number(&self.fields().mode)
            .map(|mode| (mode & 0o7777) as u16)
            .ok_or("its mode is no number")
    }

    /// Owner.
    pub fn uid(&self) -> Result<u32, &'static str> {
        number(&self.fields().uid)
            .and_then(owner)
            .ok_or("its uid is no number below 2^32")
    }

    /// Group.
    pub fn gid(&self) -> Result<u32, &'static str> {
        number(&self.fields().gid)
            .and_then(owner)
            .ok_or("its gid is no number below 2^32")
    }

    /// Last modification, in whole seconds.
    pub fn mtime(&self) -> Result<Timestamp, &'static str> {
        number(&self.fields().mtime)
            .map(|secs| Timestamp { secs, nanos: 0 })
            .ok_or("its mtime is no number")
    }

    /// Major and minor number of a device; zero where the format has none (version 7).
    pub fn device(&self) -> Result<(u32, u32), &'static str> {
        if !self.0[257..].starts_with(b"ustar") {
            return Ok((0, 0));
        }
        let part = |field| number(field).and_then(|part| u32::try_from(part).ok());
        part(&self.0[329..337])
            .zip(part(&self.0[337..345]))
            .ok_or("its device is no pair of numbers below 2^32")
    }

    /// The directory part of a ustar name. The version after the magic is not looked at, as others
    /// do not either: some writers leave it blank.
    fn prefix(&self) -> &[u8] {
        let magic = &self.0[257..265];
        if magic.starts_with(b"ustar\0") {
            // star keeps two times behind a shorter prefix, and signs its headers.
            let end = if self.0.ends_with(b"tar\0") { 476 } else { 500 };
            return until_nul(&self.0[345..end]);
        }
        let prefix = until_nul(&self.0[345..500]);
        if magic == b"ustar  \0" && self.flag() != b'S' && self.has_prefix_for_times() {
            return prefix;
        }
        b""
    }

    /// Go before 1.8, and so Docker of that age, wrote a ustar prefix into GNU headers, where
    /// readers expect two times (golang.org/issue/12594). What is no number there is such a prefix.
    fn has_prefix_for_times(&self) -> bool {
        let broken = |field: &[u8]| field[0] != 0 && number(field).is_none();
        (broken(&self.0[345..357]) || broken(&self.0[357..369]))
            && until_nul(&self.0[345..500]).is_ascii()
    }
}

/// Whether the block carries a header's checksum: the sum of its bytes, the checksum's own taken as
/// spaces. Old writers summed signed bytes.
pub fn is_header(block: &Block) -> bool {
    let written = &block[148..156];
    let own = i64::from(b' ') * 8;
    let (mut unsigned, mut signed) = (own, own);
    for &byte in block[..148].iter().chain(&block[156..]) {
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    let is_sum = |sum| sum == unsigned || sum == signed;
    number(written).is_some_and(is_sum) && written.iter().any(u8::is_ascii_digit)
}

/// The bytes before the first NUL.
pub fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A numeric field: octal digits among spaces and NULs, nothing being zero; or, marked by its highest
/// bit, the remaining bits as a big-endian two's complement. `None` for anything else or beyond i64.
pub fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let signed = i64::from((first << 1) as i8 >> 1);
        return rest.iter().try_fold(signed, |value, &byte| {
            value.checked_mul(256)?.checked_add(i64::from(byte))
        });
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| is_blank(byte));
    digits
        .take_while(|byte| !is_blank(byte))
        .try_fold(0i64, |value, &byte| match byte {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
            _ => None,
        })
}

/// A uid or gid. Writers that hold it in a signed int store 4294967294 (nobody) as -2.
pub fn owner(number: i64) -> Option<u32> {
    u32::try_from(number)
        .or_else(|_| i32::try_from(number).map(|negative| negative as u32))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_fields_of_all_writers_are_understood() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"000644 \0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"644\0junk", Some(0o644)),
            (b"0000648\0", None),
            (b"-0000644", None),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\x05", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(
                number(field),
                value,
                "{:?}",
                field.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn a_checksum_of_signed_bytes_is_taken_too() {
        let mut block = [0; BLOCK_BYTES];
        block[..4].copy_from_slice(b"f\xe9e\xff");
        for signed in [false, true] {
            let sum = |byte: &u8| {
                if signed {
                    i64::from(*byte as i8)
                } else {
                    i64::from(*byte)
                }
            };
            block[148..156].fill(b' ');
            let text = format!("{:06o}\0 ", block.iter().map(sum).sum::<i64>());
            block[148..156].copy_from_slice(text.as_bytes());
            assert!(is_header(&block));
            block[0] ^= 1;
            assert!(!is_header(&block));
            block[0] ^= 1;
        }
        assert!(!is_header(&[0; BLOCK_BYTES]));
    }

    #[test]
    fn each_format_keeps_the_start_of_a_long_name_elsewhere() {
        let named = |magic: &[u8], prefix: &[u8], end: &[u8]| {
            let mut block = [0; BLOCK_BYTES];
            block[..4].copy_from_slice(b"name");
            block[257..257 + magic.len()].copy_from_slice(magic);
            block[345..345 + prefix.len()].copy_from_slice(prefix);
            block[BLOCK_BYTES - end.len()..].copy_from_slice(end);
            String::from_utf8(Header(block).name()).unwrap()
        };
        let long = [b'd'; 155];
        assert_eq!(named(b"ustar\x0000", b"dir", b""), "dir/name");
        assert_eq!(named(b"ustar\0  ", b"dir", b""), "dir/name");
        assert_eq!(named(b"ustar\x0000", &long, b"").len(), 160);
        assert_eq!(named(b"ustar\x0000", &long[..131], b"tar\0").len(), 136);
        assert_eq!(named(b"ustar  \0", b"14543210123\0", b""), "name");
        assert_eq!(
            named(b"ustar  \0", b"usr/share/doc", b""),
            "usr/share/doc/name"
        );
        assert_eq!(named(b"", b"dir", b""), "name");
    }
}
