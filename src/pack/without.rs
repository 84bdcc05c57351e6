//! An image without some of its files.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::layout::{Layout, Packing, Sized, Stored, Tail};
use super::node::{PackKind, PackNode, Source, Standing};
use super::touched::Kept;

/// What to leave out: patterns of paths from the image's root. `*` and `?` stay within one name, `**` stands for any
/// names; a directory that matches goes with all that is in it.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    set: GlobSet,
    texts: Vec<String>,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pattern {text:?}: {problem}")]
pub struct PatternError {
    text: String,
    problem: String,
}

impl Patterns {
    /// Those that `texts` say; a slash in front changes nothing.
    pub fn parse(texts: &[String]) -> Result<Self, PatternError> {
        let mut set = GlobSetBuilder::new();
        for text in texts {
            let wrong = |problem: String| PatternError {
                text: text.clone(),
                problem,
            };
            let pattern = text.trim_matches('/');
            if pattern.is_empty() {
                return Err(wrong("it would leave out everything".into()));
            }
            let glob = GlobBuilder::new(pattern)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|err| wrong(err.kind().to_string()))?;
            set.add(glob);
        }
        let set = set.build().map_err(|err| PatternError {
            text: texts.join(" "),
            problem: err.kind().to_string(),
        })?;
        Ok(Self {
            set,
            texts: texts.to_vec(),
        })
    }

    /// As they were said.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    fn matches(&self, path: &[u8]) -> bool {
        self.set.is_match(Path::new(OsStr::from_bytes(path)))
    }

    /// Whether `path` or a directory above it matches.
    pub(super) fn covers(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut prefixes = slashes.map(|(at, _)| at).chain([path.len()]);
        !path.is_empty() && prefixes.any(|len| self.matches(&path[..len]))
    }
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Names, directories included.
    pub names: u64,
    /// Bytes of regular files.
    pub bytes: u64,
}

/// An image without what some patterns match, and without what does not stay.
pub struct Without<'a> {
    source: &'a dyn Source,
    patterns: &'a Patterns,
    /// If only some files stay, these.
    kept: Option<Kept>,
    names: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Without<'a> {
    /// All of `source` that the patterns do not match.
    pub fn new(source: &'a dyn Source, patterns: &'a Patterns) -> Self {
        Self {
            source,
            patterns,
            kept: None,
            names: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// The same with these files only, besides directories and symbolic links.
    pub fn only(self, kept: Kept) -> Self {
        Self {
            kept: Some(kept),
            ..self
        }
    }

    /// What stays, if that is not everything.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    fn stays(&self, node: &PackNode) -> bool {
        let is_file = !matches!(node.kind, PackKind::Directory | PackKind::Symlink { .. });
        !is_file || self.kept.as_ref().is_none_or(|kept| kept.has(&node.path))
    }

    /// What the last walk left out.
    pub fn left_out(&self) -> LeftOut {
        LeftOut {
            names: self.names.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn leave_out(&self, node: &PackNode) {
        self.names.fetch_add(1, Ordering::Relaxed);
        if let PackKind::Regular { size, .. } = node.kind {
            self.bytes.fetch_add(size, Ordering::Relaxed);
        }
    }
}

impl Source for Without<'_> {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        self.names.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let mut hidden: Option<Vec<u8>> = None;
        Box::new(self.source.nodes().filter(move |node| {
            let Ok(node) = node else { return true };
            let is_below = hidden.as_ref().is_some_and(|directory| {
                let rest = node.path.strip_prefix(directory.as_slice());
                rest.is_some_and(|rest| rest.first() == Some(&b'/'))
            });
            let is_matched =
                is_below || (!node.path.is_empty() && self.patterns.matches(&node.path));
            if !is_matched && self.stays(node) {
                return true;
            }
            if is_matched && !is_below && node.kind == PackKind::Directory {
                hidden = Some(node.path.clone());
            }
            self.leave_out(node);
            false
        }))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        match self.patterns.covers(path) {
            true => Ok(None),
            false => {
                let standing = self.source.standing(path)?;
                let stays = |found: &Standing| {
                    *found != Standing::File || self.kept.as_ref().is_none_or(|kept| kept.has(path))
                };
                Ok(standing.filter(stays))
            }
        }
    }

    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.source.read(file, offset, into)
    }

    fn layout(&self, files: &[Sized]) -> io::Result<Layout> {
        self.source.layout(files)
    }

    fn hole(&self, file: u64, offset: u64) -> io::Result<u64> {
        self.source.hole(file, offset)
    }

    fn block(&self, file: u64, offset: u64) -> io::Result<Stored> {
        self.source.block(file, offset)
    }

    fn packed_block(&self, file: u64, offset: u64) -> io::Result<Option<Packing>> {
        self.source.packed_block(file, offset)
    }

    fn bundle(&self, tails: &[Tail]) -> io::Result<Stored> {
        self.source.bundle(tails)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    fn left(patterns: &[&str]) -> (Vec<String>, LeftOut) {
        let source = Sample::new()
            .directory("usr")
            .directory("usr/share")
            .directory("usr/share/doc")
            .file("usr/share/doc/a", b"12345")
            .file("usr/share/docs", b"1")
            .file("usr/x.pyc", b"123")
            .file("x.pyc", b"12");
        let texts: Vec<String> = patterns.iter().map(|&text| text.into()).collect();
        let patterns = Patterns::parse(&texts).unwrap();
        let without = Without::new(&source, &patterns);
        let names = without
            .nodes()
            .map(|node| String::from_utf8(node.unwrap().path).unwrap())
            .collect();
        assert_eq!(without.standing(b"usr/share/doc/a").unwrap().is_some(), {
            let names: &Vec<String> = &names;
            names.iter().any(|name| name == "usr/share/doc/a")
        });
        (names, without.left_out())
    }

    #[test]
    fn a_pattern_takes_a_directory_with_all_that_is_in_it() {
        let (names, left_out) = left(&["/usr/share/doc"]);
        let rest = [
            "",
            "usr",
            "usr/share",
            "usr/share/docs",
            "usr/x.pyc",
            "x.pyc",
        ];
        assert_eq!(names, rest);
        assert_eq!(left_out, LeftOut { names: 2, bytes: 5 });
    }

    #[test]
    fn a_star_stays_within_a_name_and_two_do_not() {
        for (pattern, bytes) in [
            ("*.pyc", 2),
            ("**/*.pyc", 5),
            ("usr/*/doc", 5),
            ("usr/**", 9),
        ] {
            assert_eq!(left(&[pattern]).1.bytes, bytes, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["", "/", "a[", "{a"] {
            assert!(Patterns::parse(&[text.into()]).is_err(), "{text}");
        }
    }
}
