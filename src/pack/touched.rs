//! What of an image its programs have read: the files that a slim SIF keeps.

use std::collections::{BTreeMap, HashSet};
use std::io;

use serde::Serialize;
use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::layer::entry::shown;

use super::node::{PackKind, PackNode, Source, Standing};
use super::path::{Resolved, resolved};
use super::singularity::Config;
use super::without::Patterns;

/// What a program needs before it reads anything of its own, or what the one who starts it looks into.
const TO_START: [&str; 8] = [
    ".singularity.d/**",
    "etc/passwd",
    "etc/group",
    "etc/nsswitch.conf",
    "etc/ld.so.*",
    "etc/ld.so.conf.d/**",
    "{lib,lib32,lib64,usr/lib,usr/lib32,usr/lib64}/ld-*",
    "{lib,usr/lib}/*/ld-*",
];

/// As many directories are named that lack most.
const DIRECTORIES_SHOWN: usize = 5;

/// Where a directory's name ends that is worth naming: below these levels all is counted together.
const LEVELS: usize = 3;

/// The files that stay. Directories and symbolic links stay anyway, and what takes no room.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    paths: HashSet<Vec<u8>>,
    /// Who is gone, for those who read the SIF.
    pub summary: Summary,
}

/// What a slim SIF tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Files that stay because they were read, or are needed to start.
    pub kept_files: u64,
    /// Files that are not there.
    pub missing_files: u64,
    /// Their bytes.
    pub missing_bytes: u64,
    /// Of the paths of those that stay.
    pub kept_paths: Option<Digest>,
    /// Where most bytes are missing, those with most first.
    #[serde(skip)]
    pub missing_most: Vec<(String, u64)>,
}

impl Kept {
    /// Of `source`, the files at `touched`, under all their names, and what starts the program that `config` names.
    pub fn of(
        source: &dyn Source,
        touched: &HashSet<Vec<u8>>,
        config: &Config,
    ) -> io::Result<Self> {
        let patterns = TO_START.map(str::to_owned);
        let to_start = Patterns::parse(&patterns).expect("our own patterns are well-formed");
        let programs = programs(source, config)?;
        let is_wanted = |node: &PackNode| {
            touched.contains(&node.path)
                || programs.contains(&node.path)
                || to_start.covers(&node.path)
        };
        let mut linked = HashSet::new();
        for node in source.nodes() {
            let node = node?;
            linked.extend(node.linked.filter(|_| is_wanted(&node)));
        }
        let mut kept = Self::default();
        let mut hasher = Hasher::default();
        let mut missing: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for node in source.nodes() {
            let node = node?;
            let size = match node.kind {
                PackKind::Directory | PackKind::Symlink { .. } => continue,
                PackKind::Regular { size, .. } => size,
                _ => 0,
            };
            let is_linked = node.linked.is_some_and(|id| linked.contains(&id));
            if size > 0 && !is_linked && !is_wanted(&node) {
                kept.summary.missing_files += 1;
                kept.summary.missing_bytes += size;
                *missing.entry(directory(&node.path)).or_default() += size;
                continue;
            }
            kept.summary.kept_files += u64::from(size > 0);
            hasher.update(&node.path);
            hasher.update(b"\0");
            kept.paths.insert(node.path);
        }
        kept.summary.kept_paths = Some(hasher.finish());
        let mut most: Vec<_> = missing.into_iter().collect();
        most.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        most.truncate(DIRECTORIES_SHOWN);
        kept.summary.missing_most = most
            .into_iter()
            .map(|(path, bytes)| (shown(&path), bytes))
            .collect();
        Ok(kept)
    }

    /// Whether a file that is neither directory nor symbolic link stays.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }
}

/// The directory that a file is counted in.
fn directory(path: &[u8]) -> Vec<u8> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let ends: Vec<usize> = slashes.map(|(at, _)| at).take(LEVELS).collect();
    path[..ends.last().copied().unwrap_or(0)].to_vec()
}

/// A shell, and the program that `run` starts.
fn programs(source: &dyn Source, config: &Config) -> io::Result<HashSet<Vec<u8>>> {
    let mut names = vec!["bin/sh".to_owned()];
    if let Some(program) = config.entrypoint.iter().chain(&config.cmd).next() {
        match program.contains('/') {
            true => names.push(program.clone()),
            false => {
                let path = config.env.iter().find_map(|set| set.strip_prefix("PATH="));
                let path = path.unwrap_or("/usr/local/bin:/usr/bin:/bin");
                names.extend(path.split(':').map(|place| format!("{place}/{program}")));
            }
        }
    }
    let mut found = HashSet::new();
    for name in names {
        let name = name.trim_matches('/');
        if let Resolved::Found(path, Standing::File) =
            resolved(&|path| source.standing(path), name.as_bytes())?
        {
            found.insert(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::super::without::Without;
    use super::*;

    fn image() -> Sample {
        Sample::new()
            .directory("bin")
            .file("bin/busybox", b"shell")
            .link("bin/sh", "busybox")
            .directory("etc")
            .file("etc/passwd", b"root")
            .file("etc/other", b"123")
            .directory("usr")
            .directory("usr/lib")
            .file("usr/lib/empty", b"")
            .file("usr/lib/first", b"12345")
            .but("usr/lib/first", |node| node.linked = Some(9))
            .file("usr/lib/second", b"12345")
            .but("usr/lib/second", |node| node.linked = Some(9))
            .file("usr/lib/unread", b"1234567")
            .file("usr/tool", b"tool")
            .with("usr/fifo", PackKind::Fifo)
    }

    fn left(touched: &[&str], excluded: &[&str]) -> (Vec<String>, Summary) {
        let source = image();
        let excluded: Vec<String> = excluded.iter().map(|&text| text.into()).collect();
        let patterns = Patterns::parse(&excluded).unwrap();
        let without = Without::new(&source, &patterns);
        let touched = touched
            .iter()
            .map(|path| path.as_bytes().to_vec())
            .collect();
        let config = Config {
            entrypoint: vec!["tool".into()],
            env: vec!["PATH=/bin:/usr".into()],
            ..Config::default()
        };
        let kept = Kept::of(&without, &touched, &config).unwrap();
        let summary = kept.summary.clone();
        let only = without.only(kept);
        let paths = only.nodes().map(|node| node.unwrap().path);
        let names: Vec<String> = paths.map(|path| String::from_utf8(path).unwrap()).collect();
        assert!(only.standing(b"etc/other").unwrap().is_none());
        assert!(only.standing(b"usr/fifo").unwrap().is_some());
        (names, summary)
    }

    #[test]
    fn what_was_read_stays_with_what_is_needed_to_start() {
        let (names, summary) = left(&["usr/lib/second"], &[]);
        let expected = [
            "",
            "bin",
            "bin/busybox",
            "bin/sh",
            "etc",
            "etc/passwd",
            "usr",
            "usr/fifo",
            "usr/lib",
            "usr/lib/empty",
            "usr/lib/first",
            "usr/lib/second",
            "usr/tool",
        ];
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, expected);
        assert_eq!((summary.missing_files, summary.missing_bytes), (2, 10));
        assert_eq!(summary.kept_files, 5);
        let most = [("usr/lib".to_owned(), 7), ("etc".to_owned(), 3)];
        assert_eq!(summary.missing_most, most);
    }

    #[test]
    fn what_is_excluded_goes_even_if_it_was_read() {
        let (names, summary) = left(&["usr/lib/second"], &["usr/lib"]);
        assert!(!names.iter().any(|name| name.starts_with("usr/lib")));
        assert_eq!(summary.missing_bytes, 3);
    }

    #[test]
    fn other_reads_make_another_file() {
        let digest = |touched: &[&str]| left(touched, &[]).1.kept_paths;
        assert_eq!(
            digest(&["usr/lib/second"]),
            digest(&["usr/lib/first", "no/such"])
        );
        assert_ne!(digest(&["usr/lib/second"]), digest(&["usr/lib/unread"]));
    }
}
