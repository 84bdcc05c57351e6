//! One record of a table of contents, and the entry that it tells of.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::NaiveDate;
use serde::Deserialize;

use super::Problem;
use crate::digest::{ChunkDigest, Digest};
use crate::layer::entry::{Entry, Kind, Timestamp, normalised};

/// One record as JSON has it. Absent fields are zero or empty; others that we do not use are ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub link_name: Cow<'a, str>,
    /// A tar header's: some writers leave the type's bits in it.
    #[serde(default)]
    pub mode: i64,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(borrow, default)]
    pub modtime: Cow<'a, str>,
    #[serde(default)]
    pub dev_major: u32,
    #[serde(default)]
    pub dev_minor: u32,
    /// Values in base64.
    #[serde(default)]
    pub xattrs: Option<BTreeMap<String, String>>,
    #[serde(borrow, default)]
    pub digest: Cow<'a, str>,
    /// Where in the blob its first frame or member begins.
    #[serde(default)]
    pub offset: u64,
    /// Where the last frame of the file's last chunk ends; only containers/storage writes it.
    #[serde(default)]
    pub end_offset: u64,
    /// How many plain bytes of the frame or member come before the chunk's.
    #[serde(default)]
    pub inner_offset: u64,
    #[serde(default)]
    pub chunk_offset: u64,
    /// Zero means up to the end of the file.
    #[serde(default)]
    pub chunk_size: u64,
    #[serde(borrow, default)]
    pub chunk_digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub chunk_type: Cow<'a, str>,
}

/// Names and values.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl Record<'_> {
    pub fn entry(&self) -> Result<Entry, Problem> {
        if [&self.name, &self.link_name]
            .iter()
            .any(|name| !name.is_ascii() && name.contains(char::REPLACEMENT_CHARACTER))
        {
            return Err(Problem::Field("a name that is not UTF-8 was lost"));
        }
        let path = normalised(self.name.as_bytes())?;
        let kind = self.kind()?;
        if path.is_empty() && kind != Kind::Directory {
            return Err(Problem::Field("the root is not a directory"));
        }
        Ok(Entry {
            path,
            kind,
            mode: (self.mode & 0o7777) as u16,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime()?,
            xattrs: self.xattrs()?,
        })
    }

    fn kind(&self) -> Result<Kind, Problem> {
        let (major, minor) = (self.dev_major, self.dev_minor);
        Ok(match &*self.kind {
            "dir" => Kind::Directory,
            "reg" => Kind::Regular { size: self.size },
            "symlink" => Kind::Symlink {
                target: self.link_name.as_bytes().to_vec(),
            },
            "hardlink" => Kind::Hardlink {
                target: normalised(self.link_name.as_bytes())?,
            },
            "char" => Kind::CharDevice { major, minor },
            "block" => Kind::BlockDevice { major, minor },
            "fifo" => Kind::Fifo,
            _ => return Err(Problem::Field("a type that is not known")),
        })
    }

    /// Unset times are 1970: absent, or Go's zero, the first second of year 1.
    fn mtime(&self) -> Result<Timestamp, Problem> {
        if let Some(secs) = whole_seconds(self.modtime.as_bytes()) {
            return Ok(Timestamp { secs, nanos: 0 });
        }
        match &*self.modtime {
            "" | "0001-01-01T00:00:00Z" => Ok(Timestamp::default()),
            text => chrono::DateTime::parse_from_rfc3339(text)
                .map(|time| Timestamp {
                    secs: time.timestamp(),
                    nanos: time.timestamp_subsec_nanos().min(999_999_999),
                })
                .map_err(|_| Problem::Field("its modtime is no RFC 3339 time")),
        }
    }

    /// Attributes that are not empty: an empty PAX record deletes, and what is read from the table of contents
    /// should be what is read from the tar.
    fn xattrs(&self) -> Result<Attributes, Problem> {
        self.xattrs
            .iter()
            .flatten()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| {
                let value = BASE64
                    .decode(value)
                    .map_err(|_| Problem::Field("an extended attribute is no base64"))?;
                Ok((name.clone().into_bytes(), value))
            })
            .collect()
    }

    /// The digest of its chunk of `len` bytes: its own, or the file's if that is all of it.
    pub fn chunk_digest(&self, len: u64) -> Result<ChunkDigest, Problem> {
        let text = match &*self.chunk_digest {
            "" if len == self.size && self.kind == "reg" => &*self.digest,
            text => text,
        };
        text.parse::<Digest>()
            .map(|digest| ChunkDigest::Sha256(*digest.as_bytes()))
            .map_err(|_| Problem::Field("its chunk has no SHA-256 digest"))
    }
}

/// The seconds since 1970 until `2026-11-30T20:51:02Z`, for a time that is written like this one, as nearly all are; any other may be
/// one, too.
fn whole_seconds(text: &[u8]) -> Option<i64> {
    let &[
        y0,
        y1,
        y2,
        y3,
        b'-',
        m0,
        m1,
        b'-',
        d0,
        d1,
        b'T',
        h0,
        h1,
        b':',
        n0,
        n1,
        b':',
        s0,
        s1,
        b'Z',
    ] = text
    else {
        return None;
    };
    let number = |digits: [u8; 2]| {
        let [tens, ones] = digits.map(|digit| digit.wrapping_sub(b'0'));
        (tens < 10 && ones < 10).then(|| u32::from(tens) * 10 + u32::from(ones))
    };
    let year = number([y0, y1])? * 100 + number([y2, y3])?;
    if year < 1970 {
        return None;
    }
    let day = NaiveDate::from_ymd_opt(year as i32, number([m0, m1])?, number([d0, d1])?)?;
    let time = day.and_hms_opt(number([h0, h1])?, number([n0, n1])?, number([s0, s1])?)?;
    Some(time.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_usual_form_are_what_chrono_makes_of_them() {
        for text in [
            "2026-11-30T20:51:02Z",
            "2024-02-29T23:59:59Z",
            "1970-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
        ] {
            let expected = chrono::DateTime::parse_from_rfc3339(text).unwrap();
            let found = whole_seconds(text.as_bytes());
            assert_eq!(found, Some(expected.timestamp()), "{text}");
        }
        for text in [
            "",
            "2023-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-30T24:00:00Z",
            "2026-11-30T20:60:02Z",
            "2026-11-30T20:51:60Z",
            "2026-11-30 20:51:02Z",
            "2026-11-3xT20:51:02Z",
            "2026-11-30T20:51:02+01:00",
            "2026-11-30T20:51:02.5Z",
            "1969-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
        ] {
            assert_eq!(whole_seconds(text.as_bytes()), None, "{text}");
        }
    }
}
