//! What Linux and squashfs-tools see in our files. Needs root, loop devices and `unsquashfs`; skipped without.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::*;
use crate::pack::layout::{Sized, Stored};
use crate::pack::node::{Source, Standing};

#[path = "../../../../mount/tests/support/xattrs.rs"]
mod host;

use host::xattrs;

/// A squashfs mounted by the kernel, until this is dropped.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    fn new(file: &tempfile::NamedTempFile) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a squashfs");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "squashfs", "-o", &format!("loop,ro,offset={AT}")])
            .args([file.path(), directory.path()])
            .output()
            .unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
            let is_unable = ["loop", "unknown filesystem", "permitted"];
            assert!(is_unable.iter().any(|word| why.contains(word)), "{why}");
            eprintln!("skipped: {why}");
            return None;
        }
        Some(Self { directory })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}

/// A squashfs mounted by squashfuse, until this is dropped.
struct Fused {
    directory: tempfile::TempDir,
}

impl Fused {
    fn new(file: &tempfile::NamedTempFile) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root sees what belongs to others");
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: no /dev/fuse");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("squashfuse")
            .args(["-o", &format!("ro,offset={AT}")])
            .args([file.path(), directory.path()])
            .output();
        let Ok(mounted) = mounted else {
            eprintln!("skipped: no squashfuse");
            return None;
        };
        let complaints = String::from_utf8_lossy(&mounted.stderr).into_owned();
        assert!(mounted.status.success(), "{complaints}");
        Some(Self { directory })
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}

/// A squashfs unpacked by `unsquashfs`.
fn unpacked(file: &tempfile::NamedTempFile) -> Option<(tempfile::TempDir, PathBuf)> {
    if !rustix::process::geteuid().is_root() || Command::new("unsquashfs").output().is_err() {
        eprintln!("skipped: no unsquashfs, or not root");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let output = Command::new("unsquashfs")
        .args(["-o", &AT.to_string(), "-quiet", "-no-progress", "-d"])
        .args([&root, file.path()])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{complaints}");
    Some((directory, root))
}

/// Holds every node of `source` against what is at its path in `root`.
fn compare(source: &Sample, root: &Path) {
    compare_but(source, root, |name| name);
}

/// The same, of the names of attributes only what `part` leaves.
fn compare_but(source: &Sample, root: &Path, part: impl Fn(Vec<u8>) -> Vec<u8>) {
    let mut seen = 0;
    for node in &source.nodes {
        let shown = String::from_utf8_lossy(&node.path).into_owned();
        let path = root.join(OsStr::from_bytes(&node.path));
        let at = fs::symlink_metadata(&path).unwrap_or_else(|err| panic!("{shown}: {err}"));
        let mode = at.mode() as u16 & 0o7777;
        if !at.is_symlink() {
            assert_eq!(mode, node.mode, "{shown}");
        }
        assert_eq!((at.uid(), at.gid()), (node.uid, node.gid), "{shown}");
        assert_eq!(at.mtime(), i64::from(clamped(node.mtime)), "{shown}");
        let parts = |xattrs: Vec<(Vec<u8>, Vec<u8>)>| {
            let mut parts: Vec<_> = xattrs
                .into_iter()
                .map(|(name, value)| (part(name), value))
                .collect();
            parts.sort();
            parts
        };
        assert_eq!(
            parts(xattrs(&path).unwrap()),
            parts(node.xattrs.clone()),
            "{shown}"
        );
        let kind = at.file_type();
        match &node.kind {
            PackKind::Directory => assert!(kind.is_dir(), "{shown}"),
            PackKind::Regular { size, content } => {
                assert_eq!(at.len(), *size, "{shown}");
                if let Content::InImage(number) = content {
                    assert!(
                        fs::read(&path).unwrap() == source.contents[*number as usize],
                        "{shown}"
                    );
                }
            }
            PackKind::Symlink { target } => {
                let found = fs::read_link(&path).unwrap();
                assert_eq!(found.as_os_str().as_bytes(), target, "{shown}");
            }
            PackKind::CharDevice { major, minor } => {
                assert!(kind.is_char_device(), "{shown}");
                assert_eq!(at.rdev(), rustix::fs::makedev(*major, *minor), "{shown}");
            }
            PackKind::BlockDevice { major, minor } => {
                assert!(kind.is_block_device(), "{shown}");
                assert_eq!(at.rdev(), rustix::fs::makedev(*major, *minor), "{shown}");
            }
            PackKind::Fifo => assert!(kind.is_fifo(), "{shown}"),
            PackKind::Socket => assert!(kind.is_socket(), "{shown}"),
        }
        if let Some(linked) = node.linked {
            let names = source.nodes.iter();
            let names = names.filter(|other| other.linked == Some(linked)).count();
            assert_eq!(at.nlink(), names as u64, "{shown}");
        }
        seen += 1;
    }
    assert_eq!(seen, source.nodes.len());
}

/// [`every_kind`], and what backhand cannot read.
fn everything() -> Sample {
    let capability = || {
        let name = b"security.capability".to_vec();
        (
            name,
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        )
    };
    let user = |value: &[u8]| (b"user.note".to_vec(), value.to_vec());
    let mut source = every_kind()
        .link("longest-link", "y".repeat(4095))
        .file("d/ping", b"capable")
        .file("d/ping6", b"capable, too")
        .file("linked-1", b"three names")
        .but("d/ping", |node| node.xattrs = vec![capability()])
        .but("d/ping6", |node| {
            node.xattrs = vec![capability(), user(b"short")];
        })
        .but("d/e", |node| node.xattrs = vec![user(&[b'v'; 2000])])
        .but("d/e/small", |node| node.xattrs = vec![user(&[b'v'; 2000])])
        .but("linked-1", |node| node.linked = Some(7));
    let first = source.nodes.iter().find(|node| node.path == b"linked-1");
    let first = first.unwrap().clone();
    for path in ["d/linked-2", "linked-3"] {
        source.nodes.push(PackNode {
            path: path.into(),
            ..first.clone()
        });
    }
    let root = source.nodes[0].clone();
    let mut path = String::from("deep");
    for _ in 0..1_000 {
        source.nodes.push(PackNode {
            path: path.clone().into(),
            ..root.clone()
        });
        path += "/d";
    }
    let order = crate::pack::path::walk_order;
    source
        .nodes
        .sort_by(|one, other| order(&one.path, &other.path));
    source
}

#[test]
fn linux_sees_every_node_as_it_was() {
    for compression in ["zstd", "gzip", "xz", "lz4", "lz4:12", "none"] {
        let source = everything();
        let (file, written) = packed(&source, compression.parse().unwrap());
        assert_eq!(written.lost, Lost::default());
        let Some(mounted) = Mounted::new(&file) else {
            continue;
        };
        compare(&source, mounted.path());
        // Through the export table.
        let open = File::open(mounted.path().join("d/e/small")).unwrap();
        assert_eq!(open.metadata().unwrap().len(), 5);
    }
}

#[test]
fn unsquashfs_unpacks_every_node_as_it_was() {
    for compression in ["zstd:19", "gzip:9", "xz:0", "lz4:3", "none"] {
        let source = everything();
        let (file, _) = packed(&source, compression.parse().unwrap());
        if let Some((_directory, root)) = unpacked(&file) {
            compare(&source, &root);
        }
    }
}

#[test]
fn squashfuse_shows_every_node_as_it_was() {
    for compression in ["zstd", "gzip:1", "xz:0", "lz4", "none"] {
        let source = everything();
        let (file, _) = packed(&source, compression.parse().unwrap());
        if let Some(fused) = Fused::new(&file) {
            // squashfuse 0.1 mistakes the families security and trusted for each other; Linux and unsquashfs do not.
            compare_but(&source, fused.directory.path(), |name| {
                let dot = name.iter().position(|&byte| byte == b'.');
                name[dot.unwrap_or(0)..].to_vec()
            });
        }
    }
}

#[test]
fn a_directory_of_half_a_million_names_is_searched_by_its_index() {
    let mut source = Sample::new().directory("many");
    let like = source.nodes[0].clone();
    let name = |index: u32| format!("many/{index:07}-a-longer-name");
    let count = 500_000;
    source.nodes.extend((0..count).map(|index| PackNode {
        path: name(index).into(),
        kind: PackKind::Fifo,
        ..like.clone()
    }));
    let (file, _) = packed(&source, Compression::default());
    let Some(mounted) = Mounted::new(&file) else {
        return;
    };
    for index in (0..count).step_by(9_999).chain([count - 1]) {
        let path = mounted.path().join(name(index));
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_fifo());
    }
    assert!(!mounted.path().join("many/0000000-and-nothing").exists());
    let listed = fs::read_dir(mounted.path().join("many")).unwrap().count();
    assert_eq!(listed, count as usize);
}

/// One file, `size` bytes long: zeros but for a byte at each MiB from `data_at` to `data_at` and 3 MiB.
struct Large {
    size: u64,
    data_at: u64,
    is_sparse: bool,
}

impl Large {
    fn byte(&self, at: u64) -> u8 {
        let is_marked = (self.data_at..self.data_at + (3 << 20)).contains(&at);
        u8::from(is_marked && at.is_multiple_of(1 << 20))
    }
}

impl Source for Large {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        let mut sample = Sample::new().file("large", b"").nodes;
        sample[1].kind = PackKind::Regular {
            size: self.size,
            content: Content::InImage(0),
        };
        Box::new(sample.into_iter().map(Ok))
    }

    fn standing(&self, _: &[u8]) -> io::Result<Option<Standing>> {
        Ok(None)
    }

    fn read(&self, _: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min((self.size - offset) as usize);
        for (place, byte) in into[..len].iter_mut().enumerate() {
            *byte = self.byte(offset + place as u64);
        }
        Ok(len)
    }

    fn hole(&self, _: u64, offset: u64) -> io::Result<u64> {
        let hole = match self.is_sparse {
            _ if !self.is_sparse => 0,
            _ if offset < self.data_at => self.data_at - offset,
            _ if offset >= self.data_at + (3 << 20) => u64::MAX - offset,
            _ => 0,
        };
        Ok(hole)
    }

    fn block(&self, file: u64, offset: u64) -> io::Result<Stored> {
        Stored::read(BLOCK_BYTES, |at, into| self.read(file, offset + at, into))
    }
}

#[test]
fn files_beyond_four_gigabytes_and_their_holes_read_as_they_were() {
    let cases = [
        (true, (9 << 30) + 5, 6 << 30),
        (true, 1 << 40, 1 << 39),
        (false, (4 << 20) + 7, 1 << 20),
    ];
    for (is_sparse, size, data_at) in cases {
        let large = Large {
            size,
            data_at,
            is_sparse,
        };
        assert_eq!(
            large
                .layout(&[Sized { file: 0, size }])
                .unwrap()
                .order
                .len(),
            1
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        let settings = Settings {
            compression: Compression::default(),
            created: 0,
            progress: &|_| {},
        };
        let contents = Contents::new(&large, Vec::new(), Timestamp::default());
        let written = write(&contents, file.as_file(), AT, settings).unwrap();
        // The sizes of 2^23 blocks are 32 MiB of zeros, which is all that a file of 1 TiB takes.
        assert!(written.len < 4 << 20, "{}", written.len);
        let Some(mounted) = Mounted::new(&file) else {
            return;
        };
        let open = File::open(mounted.path().join("large")).unwrap();
        let at = open.metadata().unwrap();
        assert_eq!(at.len(), size);
        assert!(at.blocks() * 512 < 8 << 20, "{}", at.blocks());
        let mut seen = [0; 5];
        for from in [0, data_at - 3, data_at, data_at + (2 << 20) - 2, size - 5] {
            open.read_exact_at(&mut seen, from).unwrap();
            let expected: Vec<u8> = (from..from + 5).map(|at| large.byte(at)).collect();
            assert_eq!(seen[..], expected, "{from}");
        }
    }
}
