//! PAX extended headers: records that override fields of the headers after them (POSIX.1-2017, pax,
//! "pax Extended Header"), with the keywords of GNU tar, star and libarchive that say what a file is.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use data_encoding::HEXLOWER_PERMISSIVE;

use super::header::owner;
use super::sparse::{Map, decimal};
use crate::layer::entry::{PATH_BYTES_LIMIT, Timestamp};

/// Attributes of one file at most; Linux lists 64 KiB of names, real files have a handful.
const XATTRS_LIMIT: usize = 512;

/// Bytes in an attribute's name at most, as `XATTR_NAME_MAX` of linux/limits.h.
const XATTR_NAME_LIMIT: usize = 255;

/// libarchive writes no padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What extended headers say about a file; `None` where its own header counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Timestamp>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// The `GNU.sparse.` records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Format 1.0 and later say so.
    pub version: (Option<u64>, Option<u64>),
    pub name: Option<Vec<u8>>,
    /// Length of the file with its holes.
    pub size: Option<u64>,
    /// Formats 0.0 and 0.1; format 1.0 has its map in the data.
    pub map: Map,
    /// Format 0.0 tells a segment in two records.
    offset: Option<u64>,
}

/// What is wrong with a record, and how many bytes into the body.
#[derive(Debug, PartialEq, Eq)]
pub struct RecordError {
    pub at: usize,
    pub problem: String,
}

impl Records {
    /// Reads a body on top of what earlier ones said.
    pub fn read(&mut self, body: &[u8]) -> Result<(), RecordError> {
        let mut at = 0;
        while at < body.len() {
            let wrong = |problem: String| RecordError { at, problem };
            let (keyword, value, len) = record(&body[at..])
                .ok_or_else(|| wrong("an extended header record is damaged".into()))?;
            self.apply(keyword, value).map_err(|problem| {
                wrong(format!(
                    "extended header record {}: {problem}",
                    keyword.escape_ascii()
                ))
            })?;
            at += len;
        }
        Ok(())
    }

    /// Refuses what must not count for every later file: attributes beyond what a name may weigh
    /// would multiply, and a map of segments belongs to one file.
    pub fn made_global(mut self) -> Result<Self, &'static str> {
        self.sparse = Sparse::default();
        let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len();
        if self.xattrs.iter().map(bytes).sum::<usize>() > PATH_BYTES_LIMIT {
            return Err("attributes for all files are longer than 16 KiB");
        }
        Ok(self)
    }

    /// An empty value leaves the field to the file's own header; an empty attribute is none.
    fn apply(&mut self, keyword: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match keyword {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = parsed(value, decimal)?,
            b"uid" => self.uid = parsed(value, |value| integer(value).and_then(owner))?,
            b"gid" => self.gid = parsed(value, |value| integer(value).and_then(owner))?,
            b"mtime" => self.mtime = parsed(value, timestamp)?,
            b"SCHILY.devmajor" => self.major = parsed(value, device)?,
            b"SCHILY.devminor" => self.minor = parsed(value, device)?,
            _ => return self.apply_extension(keyword, value),
        }
        Ok(())
    }

    fn apply_extension(&mut self, keyword: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
            // GNU tar writes the two characters so that would end or start an escape.
            self.push_xattr(unescaped(name, b"=%"), value.to_vec())
        } else if let Some(name) = keyword.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = BASE64
                .decode(value)
                .map_err(|_| "the value is not base64")?;
            self.push_xattr(unescaped(name, &[]), value)
        } else if let Some(keyword) = keyword.strip_prefix(b"GNU.sparse.") {
            self.sparse.apply(keyword, value)
        } else {
            Ok(())
        }
    }

    /// The last value of a name counts, at the place of the first. An empty one deletes what came before (POSIX,
    /// pax, "Extended Header"), so that Go's unpackers show no attribute that is empty, and neither do we.
    fn push_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), &'static str> {
        if name.is_empty() || name.contains(&0) || name.len() > XATTR_NAME_LIMIT {
            return Err("the attribute's name is empty, longer than 255 bytes or contains a NUL");
        }
        if value.is_empty() {
            self.xattrs.retain(|(earlier, _)| *earlier != name);
            return Ok(());
        }
        if let Some(earlier) = self.xattrs.iter_mut().find(|(earlier, _)| *earlier == name) {
            earlier.1 = value;
            return Ok(());
        }
        if self.xattrs.len() == XATTRS_LIMIT {
            return Err("more than 512 attributes on one file");
        }
        self.xattrs.push((name, value));
        Ok(())
    }
}

impl Sparse {
    fn apply(&mut self, keyword: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("not a number below 2^63");
        match keyword {
            b"major" => self.version.0 = Some(number()?),
            b"minor" => self.version.1 = Some(number()?),
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.size = Some(number()?),
            b"map" => self.map = Map::in_record(value)?,
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("a length without an offset")?;
                self.map.push(offset, number()?)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first record of `bytes`, `LENGTH KEYWORD=VALUE\n`, and its length.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    // A length of more digits than this is beyond any body that is read.
    let space = bytes.iter().take(12).position(|&byte| byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let text = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|&byte| byte == b'=')?;
    (equals > 0).then(|| (&text[..equals], &text[equals + 1..], len))
}

fn parsed<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>, &'static str> {
    match value {
        b"" => Ok(None),
        _ => parse(value).map(Some).ok_or("not a number in its range"),
    }
}

fn name(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    match value {
        b"" => Ok(None),
        long if long.len() > PATH_BYTES_LIMIT => Err("longer than 16 KiB"),
        name => Ok(Some(name.to_vec())),
    }
}

fn device(value: &[u8]) -> Option<u32> {
    decimal(value).and_then(|number| u32::try_from(number).ok())
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; beyond nanoseconds the fraction is cut.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (is_negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let dot = value.iter().position(|&byte| byte == b'.');
    let (secs, fraction) = match dot {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let secs = i64::try_from(decimal(secs)?).ok()?;
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(match (is_negative, nanos) {
        (false, _) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos },
        (true, _) => Timestamp {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// `text` with `%XX` replaced where it stands for one of `only`, or for anything if that is empty.
fn unescaped(text: &[u8], only: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let mut escaped = [0];
        let is_escape = byte == b'%'
            && after.len() >= 2
            && HEXLOWER_PERMISSIVE
                .decode_mut(&after[..2], &mut escaped)
                .is_ok()
            && (only.is_empty() || only.contains(&escaped[0]));
        plain.push(if is_escape { escaped[0] } else { byte });
        rest = if is_escape { &after[2..] } else { after };
    }
    plain
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record as writers make it.
    pub fn written(keyword: &str, value: &[u8]) -> Vec<u8> {
        let rest = keyword.len() + value.len() + 3;
        let mut len = rest;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        [format!("{len} {keyword}=").as_bytes(), value, b"\n"].concat()
    }

    fn read(records: &[(&str, &[u8])]) -> Result<Records, RecordError> {
        let bodies = records
            .iter()
            .map(|(keyword, value)| written(keyword, value));
        let mut read = Records::default();
        read.read(&bodies.collect::<Vec<_>>().concat())?;
        Ok(read)
    }

    #[test]
    fn times_have_fractions_and_lie_before_1970_too() {
        for (text, secs, nanos) in [
            ("0", 0, 0),
            ("1700000000.123456789", 1_700_000_000, 123_456_789),
            ("1.5", 1, 500_000_000),
            ("1.", 1, 0),
            ("1.0000000019", 1, 1),
            ("-1", -1, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.000000001", -1, 999_999_999),
        ] {
            let expected = Some(Timestamp { secs, nanos });
            assert_eq!(timestamp(text.as_bytes()), expected, "{text}");
        }
        for text in [
            "",
            "-",
            ".5",
            "1.x",
            "1e9",
            "--1",
            "+1",
            "9223372036854775808",
        ] {
            assert_eq!(timestamp(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn values_are_bytes_and_may_hold_any() {
        let value = b"\0a=b\n7 x=y\n\xff";
        let records = read(&[
            ("path", b"\xff=\n"),
            ("SCHILY.xattr.user.bytes", value),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.a%3Db%25c%20", b"1"),
            ("LIBARCHIVE.xattr.user.%C3%A4", b"AAH/"),
            ("LIBARCHIVE.xattr.user.short", b"AA"),
            ("SCHILY.xattr.user.empty", b"last"),
            ("SCHILY.xattr.user.deleted", b"first"),
            ("SCHILY.xattr.user.deleted", b""),
            ("comment", b"nothing"),
        ])
        .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"\xff=\n"[..]));
        let xattrs: [(&[u8], &[u8]); 5] = [
            (b"user.bytes", value),
            (b"user.a=b%c%20", b"1"),
            (b"user.\xc3\xa4", b"\0\x01\xff"),
            (b"user.short", b"\0"),
            (b"user.empty", b"last"),
        ];
        let read: Vec<_> = records
            .xattrs
            .iter()
            .map(|(n, v)| (&n[..], &v[..]))
            .collect();
        assert_eq!(read, xattrs);
    }

    #[test]
    fn an_empty_value_gives_the_field_back_to_the_header() {
        let records = read(&[("size", b"5"), ("uid", b"-2"), ("size", b"")]).unwrap();
        assert_eq!((records.size, records.uid), (None, Some(u32::MAX - 1)));
    }

    #[test]
    fn a_damaged_record_is_an_error_that_says_where() {
        for (body, at) in [
            (&b"5 a=\n"[..], None),
            (b"5 a=\n5 a=", Some(5)),
            (b"6 a=\n", Some(0)),
            (b"4 a=\n", Some(0)),
            (b"4 =\n", Some(0)),
            (b"5 ab\n", Some(0)),
            (b"0 a=\n", Some(0)),
            (b"1 a=\n", Some(0)),
            (b"a=b\n", Some(0)),
            (b" 5 a=\n", Some(0)),
            (b"99999999999999999999 a=\n", Some(0)),
            (b"5 a=\n9 size=x\n", Some(5)),
            (b"28 size=9223372036854775808\n", Some(0)),
            (b"18 uid=4294967296\n", Some(0)),
            (b"25 GNU.sparse.numbytes=1\n", Some(0)),
            (b"28 LIBARCHIVE.xattr.user.a=*\n", Some(0)),
            (b"\0\0\0", Some(0)),
        ] {
            let result = Records::default().read(body).map_err(|err| err.at).err();
            assert_eq!(result, at, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn attributes_are_bounded() {
        let mut records = Records::default();
        let push = |records: &mut Records, n: usize| {
            records.push_xattr(format!("user.{n:059}").into_bytes(), vec![0; 9])
        };
        (0..XATTRS_LIMIT).for_each(|n| push(&mut records, n).unwrap());
        assert!(push(&mut records, 0).is_ok());
        assert!(push(&mut records, XATTRS_LIMIT).is_err());
        assert!(records.made_global().is_err());
        assert!(read(&[(&format!("SCHILY.xattr.{}", "n".repeat(256)), b"")]).is_err());
    }
}
