//! What is read of an image, in the order in which it is read first: parts of files, so that of a large library only what is
//! used counts. A text that people can read and send to each other; what it says is a hint, never believed.
//!
//! ```text
//! sifon profile 1
//! manifest sha256:…
//! AGE FROM LEN PATH        one line for each part; AGE counts the mounts since it was read last
//! ```
//!
//! In a path, bytes that are not printable ASCII, and `\`, are written as `\xHH`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use crate::digest::Digest;
use crate::layer::entry::PATH_BYTES_LIMIT;

/// A profile as a file at most.
pub const PROFILE_BYTES_LIMIT: usize = 16 << 20;

/// Parts of a profile at most; those that were read longest ago go first.
pub const PARTS_LIMIT: usize = 1 << 16;

/// What was not read in so many mounts is not fetched ahead any more.
pub const AGE_LIMIT: u32 = 8;

const FIRST_LINE: &str = "sifon profile 1";

/// What is read of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The image's manifest.
    pub manifest: Digest,
    /// In the order of their first reads.
    pub parts: Vec<Part>,
}

/// A part of a file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file, without a leading slash.
    pub path: Vec<u8>,
    /// Its bytes.
    pub bytes: Range<u64>,
    /// Mounts since it was read last.
    pub age: u32,
}

/// Why a text is no profile.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("profile, line {line}: {problem}")]
pub struct ProfileError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

impl Profile {
    /// Nothing was read.
    pub fn empty(manifest: Digest) -> Self {
        Self {
            manifest,
            parts: Vec::new(),
        }
    }

    /// Reads what [`Profile::text`] writes. Parts beyond [`PARTS_LIMIT`] are passed over.
    pub fn parse(text: &[u8]) -> Result<Self, ProfileError> {
        let wrong = |line, problem| ProfileError { line, problem };
        if text.len() > PROFILE_BYTES_LIMIT {
            return Err(wrong(1, "longer than we read"));
        }
        let text = std::str::from_utf8(text).map_err(|_| wrong(1, "no ASCII text"))?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(wrong(1, "no profile that this version understands"));
        }
        let manifest = lines
            .next()
            .and_then(|line| line.strip_prefix("manifest ")?.parse().ok())
            .ok_or(wrong(2, "it does not name a manifest"))?;
        let parts = (3..).zip(lines).take(PARTS_LIMIT);
        let parts =
            parts.map(|(line, text)| part(text).ok_or(wrong(line, "not AGE FROM LEN PATH")));
        Ok(Self {
            manifest,
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// As a file.
    pub fn text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\nmanifest {}\n", self.manifest);
        for part in &self.parts {
            let (from, len) = (part.bytes.start, part.bytes.end - part.bytes.start);
            let line = writeln!(text, "{} {from} {len} {}", part.age, escaped(&part.path));
            line.expect("a string takes everything");
            if text.len() > PROFILE_BYTES_LIMIT - 8 * PATH_BYTES_LIMIT {
                break;
            }
        }
        text
    }

    /// This profile after `now` was read, in that order: it comes first, then what was read before and is not in it. That is
    /// one mount older if `is_new_mount`.
    pub fn after(&self, now: Vec<Part>, is_new_mount: bool) -> Self {
        let mut read: HashMap<&[u8], Vec<Range<u64>>> = HashMap::new();
        for part in &now {
            read.entry(&part.path).or_default().push(part.bytes.clone());
        }
        for ranges in read.values_mut() {
            ranges.sort_by_key(|range| range.start);
        }
        let mut older: Vec<Part> = Vec::new();
        for part in &self.parts {
            let read = read.get(&*part.path).map_or(&[][..], Vec::as_slice);
            older.extend(without(&part.bytes, read).into_iter().map(|bytes| Part {
                path: part.path.clone(),
                bytes,
                age: part.age.saturating_add(u32::from(is_new_mount)),
            }));
        }
        older.sort_by_key(|part| part.age);
        let mut parts = now;
        parts.extend(older);
        parts.truncate(PARTS_LIMIT);
        Self {
            manifest: self.manifest,
            parts,
        }
    }

    /// The parts that are worth fetching ahead.
    pub fn lively(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.age < AGE_LIMIT)
    }
}

/// What is left of `whole` without `taken`, which is sorted.
fn without(whole: &Range<u64>, taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = whole.start;
    for range in taken {
        if range.start > at && at < whole.end {
            left.push(at..range.start.min(whole.end));
        }
        at = at.max(range.end);
    }
    if at < whole.end {
        left.push(at..whole.end);
    }
    left
}

fn part(line: &str) -> Option<Part> {
    let mut words = line.splitn(4, ' ');
    let age = words.next()?.parse().ok()?;
    let from: u64 = words.next()?.parse().ok()?;
    let len: u64 = words.next()?.parse().ok()?;
    let path = unescaped(words.next()?)?;
    let end = from.checked_add(len).filter(|_| len > 0)?;
    (!path.is_empty() && path.len() <= PATH_BYTES_LIMIT).then_some(Part {
        path,
        bytes: from..end,
        age,
    })
}

/// A path in one line of ASCII.
fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        match byte {
            b' '..=b'~' if byte != b'\\' => text.push(byte.into()),
            _ => write!(text, "\\x{byte:02x}").expect("a string takes everything"),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'\\' => {
                let hex = [bytes.next()?, bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(hex.strip_prefix(b"x")?).ok()?;
                if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    return None;
                }
                u8::from_str_radix(digits, 16).ok()?
            }
            b' '..=b'~' => byte,
            _ => return None,
        });
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &str, bytes: Range<u64>, age: u32) -> Part {
        Part {
            path: path.into(),
            bytes,
            age,
        }
    }

    fn profile(parts: Vec<Part>) -> Profile {
        Profile {
            manifest: Digest::of(b"manifest"),
            parts,
        }
    }

    #[test]
    fn a_text_reads_back_as_it_was_written() {
        let mut odd = part("", 0..1, 7);
        odd.path = (0..=255).collect();
        let written = profile(vec![
            part("usr/bin/python3", 0..131_072, 0),
            part("a b\\c\n", u64::MAX - 1..u64::MAX, u32::MAX),
            odd,
        ]);
        assert_eq!(Profile::parse(written.text().as_bytes()), Ok(written));
    }

    #[test]
    fn what_is_no_profile_says_where() {
        let head = format!("sifon profile 1\nmanifest {}\n", Digest::of(b""));
        for (text, line) in [
            (String::new(), 1),
            ("sifon profile 2\n".into(), 1),
            ("sifon profile 1\nmanifest x\n".into(), 2),
            (format!("{head}0 0 1\n"), 3),
            (format!("{head}0 0 1 a\n0 0 0 a\n"), 4),
            (format!("{head}0 {} 1 a\n", u64::MAX), 3),
            (format!("{head}-1 0 1 a\n"), 3),
            (format!("{head}0 0 1 \\x+1\n"), 3),
            (format!("{head}0 0 1 \\x0\n"), 3),
            (format!("{head}0 0 1 \u{e9}\n"), 3),
            (
                format!("{head}0 0 1 {}\n", "a/".repeat(PATH_BYTES_LIMIT)),
                3,
            ),
        ] {
            let refused = Profile::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refused.line, line, "{text:.60}");
        }
    }

    #[test]
    fn what_was_read_now_comes_first_and_once() {
        let before = profile(vec![
            part("a", 0..100, 0),
            part("b", 0..10, 3),
            part("c", 0..10, 0),
        ]);
        let after = before.after(vec![part("c", 0..10, 0), part("a", 20..40, 0)], true);
        assert_eq!(
            after.parts,
            [
                part("c", 0..10, 0),
                part("a", 20..40, 0),
                part("a", 0..20, 1),
                part("a", 40..100, 1),
                part("b", 0..10, 4),
            ]
        );
        let same_mount = before.after(vec![part("c", 0..10, 0)], false);
        assert_eq!(same_mount.parts[1], part("a", 0..100, 0));
    }

    #[test]
    fn what_was_not_read_for_long_is_kept_but_not_fetched() {
        let mut profile = profile(vec![part("a", 0..1, 0)]);
        for _ in 0..AGE_LIMIT {
            assert!(profile.lively().any(|part| part.path == b"a"));
            profile = profile.after(vec![part("b", 0..1, 0)], true);
        }
        assert!(profile.lively().all(|part| part.path == b"b"));
        assert_eq!(profile.parts.len(), 2);
    }

    #[test]
    fn a_profile_has_an_end() {
        let before = profile(
            (0..PARTS_LIMIT as u64)
                .map(|at| part("a", at..at + 1, 0))
                .collect(),
        );
        let after = before.after(vec![part("b", 0..1, 0)], true);
        assert_eq!(after.parts.len(), PARTS_LIMIT);
        assert_eq!(after.parts[0], part("b", 0..1, 0));
    }
}
