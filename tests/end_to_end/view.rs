//! What a directory shows, and what it should.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::layer::entry::Kind;

use crate::layers::model::Model;
use crate::support::xattrs::xattrs;

/// One name.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    pub kind: FileType,
    pub mode: u32,
    pub owner: (u32, u32),
    pub nlink: Option<u64>,
    /// Seconds and nanoseconds; none where any will do.
    pub mtime: Option<(i64, i64)>,
    /// Of a regular file: its size and the digest of its bytes.
    pub content: Option<(u64, Digest)>,
    pub target: Vec<u8>,
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of the names of this file.
    pub first_name: Vec<u8>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:o} {:?}", self.kind, self.mode, self.owner)?;
        write!(f, " nlink {:?} mtime {:?}", self.nlink, self.mtime)?;
        write!(
            f,
            " content {:?} target {}",
            self.content,
            self.target.escape_ascii()
        )?;
        write!(f, " device {:?} xattrs", self.device)?;
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        write!(f, " first name {}", self.first_name.escape_ascii())
    }
}

/// Everything below a directory by path; the directory itself is the empty one.
#[derive(Clone, Debug)]
pub struct View(pub BTreeMap<Vec<u8>, Shown>);

impl View {
    /// What is in a directory.
    pub fn of(root: &Path) -> Self {
        let mut names: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut shown = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let full = if path.as_os_str().is_empty() {
                root.to_owned()
            } else {
                root.join(&path)
            };
            let seen = look(&full).unwrap_or_else(|err| panic!("{}: {err}", full.display()));
            if seen.kind == FileType::Directory {
                for entry in fs::read_dir(&full).unwrap() {
                    waiting.push(path.join(entry.unwrap().file_name()));
                }
            }
            let path = path.as_os_str().as_bytes().to_vec();
            names.insert(path.clone(), fs::symlink_metadata(&full).unwrap().ino());
            shown.insert(path, seen);
        }
        let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (path, ino) in names {
            let first = first.entry(ino).or_insert_with(|| path.clone()).clone();
            shown.get_mut(&path).unwrap().first_name = first;
        }
        Self(shown)
    }

    /// What extracting left in a model.
    pub fn expected(model: &Model) -> Self {
        let shown = model.files.iter().map(|(path, file)| {
            let entry = &file.member.entry;
            let (kind, device) = match entry.kind {
                Kind::Directory => (FileType::Directory, (0, 0)),
                Kind::Regular { .. } => (FileType::RegularFile, (0, 0)),
                Kind::Symlink { .. } => (FileType::Symlink, (0, 0)),
                Kind::CharDevice { major, minor } => (FileType::CharacterDevice, (major, minor)),
                Kind::BlockDevice { major, minor } => (FileType::BlockDevice, (major, minor)),
                Kind::Fifo => (FileType::Fifo, (0, 0)),
                _ => panic!("not in a model: {:?}", file.member),
            };
            let target = match &entry.kind {
                Kind::Symlink { target } => target.clone(),
                _ => Vec::new(),
            };
            let content = &file.member.content;
            let content = || (content.len() as u64, Digest::of(content));
            let shown = Shown {
                kind,
                mode: entry.mode.into(),
                owner: (entry.uid, entry.gid),
                nlink: Some(model.nlink(path)),
                mtime: (!file.is_implied).then_some((entry.mtime.secs, entry.mtime.nanos.into())),
                content: (kind == FileType::RegularFile).then(content),
                target,
                device,
                xattrs: entry.xattrs.iter().cloned().collect(),
                first_name: model.first_name(path).to_vec(),
            };
            (path.clone(), shown)
        });
        Self(shown.collect())
    }

    /// Without what a directory on a disk need not have as the image says: the times of directories, which change
    /// when something in them is removed, and their links, which not every file system counts.
    pub fn on_disk(mut self) -> Self {
        for shown in self.0.values_mut() {
            if shown.kind == FileType::Directory {
                (shown.nlink, shown.mtime) = (None, None);
            }
        }
        self
    }

    /// Fails with every difference.
    #[track_caller]
    pub fn assert_is(&self, expected: &Self) {
        let mut differences = Vec::new();
        for (path, expected) in &expected.0 {
            let name = path.escape_ascii();
            match self.0.get(path) {
                None => differences.push(format!("{name}: missing")),
                Some(seen) => {
                    let mut seen = seen.clone();
                    seen.mtime = expected.mtime.and(seen.mtime);
                    seen.nlink = expected.nlink.and(seen.nlink);
                    if seen != *expected {
                        differences.push(format!("{name}: {seen:?}\n  expected: {expected:?}"));
                    }
                }
            }
        }
        let extra = self.0.keys().filter(|path| !expected.0.contains_key(*path));
        differences.extend(extra.map(|path| format!("{}: not expected", path.escape_ascii())));
        assert!(differences.is_empty(), "\n{}\n", differences.join("\n"));
    }
}

/// Everything but the first name.
fn look(path: &Path) -> io::Result<Shown> {
    let stat = fs::symlink_metadata(path)?;
    let kind = FileType::from_raw_mode(stat.mode());
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    Ok(Shown {
        kind,
        mode: stat.mode() & 0o7777,
        owner: (stat.uid(), stat.gid()),
        nlink: Some(stat.nlink()),
        mtime: Some((stat.mtime(), stat.mtime_nsec())),
        content: match kind {
            FileType::RegularFile => Some((stat.len(), digest(path)?)),
            _ => None,
        },
        target: match kind {
            FileType::Symlink => fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        },
        device: match is_device {
            true => (
                rustix::fs::major(stat.rdev()),
                rustix::fs::minor(stat.rdev()),
            ),
            false => (0, 0),
        },
        xattrs: xattrs(path)?.into_iter().collect(),
        first_name: Vec::new(),
    })
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hasher.finish()),
            len => hasher.update(&buffer[..len]),
        }
    }
}

/// Reads at random places of all files, by several threads at once, and compares.
#[track_caller]
pub fn assert_random_reads(root: &Path, model: &Model) {
    let files: Vec<_> = model
        .files
        .iter()
        .filter(|(_, file)| matches!(file.member.entry.kind, Kind::Regular { .. }))
        .map(|(path, file)| {
            (
                root.join(std::ffi::OsStr::from_bytes(path)),
                file.member.content.clone(),
            )
        })
        .collect();
    let files = Arc::new(files);
    let readers: Vec<_> = (0..4u64)
        .map(|reader| {
            let files = Arc::clone(&files);
            std::thread::spawn(move || read_randomly(&files, 0x9e37_79b9 + reader))
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
}

fn read_randomly(files: &[(PathBuf, bytes::Bytes)], mut state: u64) {
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let largest_first = |files: &[(PathBuf, bytes::Bytes)]| {
        let mut places: Vec<usize> = (0..files.len()).collect();
        places.sort_by_key(|&place| std::cmp::Reverse(files[place].1.len()));
        places
    };
    let places = largest_first(files);
    for turn in 0..250 {
        // Every other read is in one of the large files, which have most of the bytes.
        let place = if turn % 2 == 0 {
            places[random(8.min(places.len()))]
        } else {
            random(files.len())
        };
        let (path, content) = &files[place];
        let from = random(content.len() + 2);
        let mut buffer = vec![0; 1 + random(300_000)];
        let file = File::open(path).unwrap();
        let mut len = 0;
        while len < buffer.len() {
            match file
                .read_at(&mut buffer[len..], (from + len) as u64)
                .unwrap()
            {
                0 => break,
                read => len += read,
            }
        }
        let end = content.len().min(from + buffer.len());
        let expected = content.get(from..end).unwrap_or_default();
        assert!(
            buffer[..len] == *expected,
            "{}: {} bytes from {from}",
            path.display(),
            expected.len()
        );
    }
}
