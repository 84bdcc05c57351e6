//! A directory of this machine as the packer sees it: a root file system, or what Singularity calls a sandbox.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::layer::entry::Timestamp;

use super::node::{Content, PackKind, PackNode, Source, Standing};
use super::path::walk_order;

/// What was in a directory when it was opened. Names are in memory, contents are read when they are packed; a file that
/// has become shorter meanwhile is an error. Symbolic links are never followed.
pub struct DirectorySource {
    root: PathBuf,
    /// In walk order; the content of a regular file is its place here.
    nodes: Vec<PackNode>,
}

/// Bytes of names and of one value of extended attributes at most: `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of
/// linux/limits.h.
const XATTR_BYTES_LIMIT: usize = 64 << 10;

impl DirectorySource {
    /// Lists everything in `root`, other file systems that are mounted there included.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mut nodes = Vec::new();
        let mut open = vec![Vec::new()];
        nodes.push(node(root, Vec::new())?);
        while let Some(directory) = open.pop() {
            let path = root.join(std::ffi::OsStr::from_bytes(&directory));
            for entry in fs::read_dir(&path).map_err(|err| at(&path, err))? {
                let entry = entry.map_err(|err| at(&path, err))?;
                let mut inside = directory.clone();
                if !inside.is_empty() {
                    inside.push(b'/');
                }
                inside.extend_from_slice(entry.file_name().as_bytes());
                let node = node(&entry.path(), inside)?;
                if node.kind == PackKind::Directory {
                    open.push(node.path.clone());
                }
                nodes.push(node);
            }
        }
        nodes.sort_by(|one, other| walk_order(&one.path, &other.path));
        for (place, node) in nodes.iter_mut().enumerate() {
            if let PackKind::Regular { content, .. } = &mut node.kind {
                *content = Content::InImage(place as u64);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            nodes,
        })
    }

    /// The sizes of all files together.
    pub fn file_bytes(&self) -> u64 {
        let sizes = self.nodes.iter().map(|node| match node.kind {
            PackKind::Regular { size, .. } => size,
            _ => 0,
        });
        sizes.sum()
    }

    /// When the last of its files changed, in seconds since 1970.
    pub fn changed(&self) -> i64 {
        let changed = self.nodes.iter().map(|node| node.mtime.secs);
        changed.max().unwrap_or(0)
    }

    /// A name for its names, sizes and times.
    pub fn identity(&self) -> Digest {
        let mut hasher = Hasher::default();
        for node in &self.nodes {
            hasher.update(format!("{node:?}\n").as_bytes());
        }
        hasher.finish()
    }

    /// The content of a small regular file, if there is one.
    pub fn text(&self, path: &str) -> io::Result<Option<String>> {
        let found = self.nodes.iter().enumerate();
        let found = found.filter(|(_, node)| node.path == path.as_bytes());
        let Some((place, PackKind::Regular { size, .. })) =
            found.map(|(place, node)| (place, &node.kind)).next()
        else {
            return Ok(None);
        };
        const TEXT_BYTES_LIMIT: u64 = 1 << 20;
        if *size > TEXT_BYTES_LIMIT {
            return Ok(None);
        }
        let mut bytes = vec![0; *size as usize];
        let len = self.read(place as u64, 0, &mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes[..len]).into_owned()))
    }

    fn node(&self, place: u64) -> io::Result<&PackNode> {
        let node = usize::try_from(place).ok();
        let node = node.and_then(|place| self.nodes.get(place));
        node.ok_or_else(|| io::Error::other("no such file"))
    }

    fn file(&self, path: &[u8]) -> io::Result<(PathBuf, File)> {
        let path = self.root.join(std::ffi::OsStr::from_bytes(path));
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(&path)
            .map_err(|err| at(&path, err))?;
        Ok((path, file))
    }
}

/// The error with the path that it is about.
fn at(path: &Path, err: io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

fn node(path: &Path, name: Vec<u8>) -> io::Result<PackNode> {
    let metadata = fs::symlink_metadata(path).map_err(|err| at(path, err))?;
    let kind = kind(path, &metadata).map_err(|err| at(path, err))?;
    let is_linked = metadata.nlink() > 1 && kind != PackKind::Directory;
    Ok(PackNode {
        path: name,
        kind,
        mode: metadata.mode() as u16 & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Timestamp {
            secs: metadata.mtime(),
            nanos: metadata.mtime_nsec() as u32,
        },
        xattrs: xattrs(path).map_err(|err| at(path, err))?,
        // Numbers of files on several file systems are told apart as far as 64 bits go.
        linked: is_linked.then(|| metadata.ino() ^ metadata.dev().rotate_left(48)),
    })
}

fn kind(path: &Path, metadata: &Metadata) -> io::Result<PackKind> {
    let kind = metadata.file_type();
    let (major, minor) = (
        rustix::fs::major(metadata.rdev()),
        rustix::fs::minor(metadata.rdev()),
    );
    Ok(match () {
        () if kind.is_dir() => PackKind::Directory,
        () if kind.is_symlink() => PackKind::Symlink {
            target: fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
        },
        () if kind.is_char_device() => PackKind::CharDevice { major, minor },
        () if kind.is_block_device() => PackKind::BlockDevice { major, minor },
        () if kind.is_fifo() => PackKind::Fifo,
        () if kind.is_socket() => PackKind::Socket,
        () => PackKind::Regular {
            size: metadata.len(),
            // Its place is known when all are sorted.
            content: Content::InImage(0),
        },
    })
}

/// Extended attributes that squashfs knows; those of the machine itself, such as SELinux labels, stay behind.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_BYTES_LIMIT];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(Vec::new()),
        listed => listed?,
    };
    let is_kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
    let mut xattrs = Vec::new();
    for name in names[..len].split(|&byte| byte == 0).filter(is_kept) {
        let mut value = vec![0; XATTR_BYTES_LIMIT];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Err(Errno::NODATA) => {}
            read => {
                value.truncate(read?);
                xattrs.push((name.to_vec(), value));
            }
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

impl Source for DirectorySource {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        Box::new(self.nodes.iter().cloned().map(Ok))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        let found = self
            .nodes
            .binary_search_by(|node| walk_order(&node.path, path));
        Ok(found.ok().map(|place| match &self.nodes[place].kind {
            PackKind::Directory => Standing::Directory,
            PackKind::Symlink { target } => Standing::Symlink(target.clone()),
            _ => Standing::File,
        }))
    }

    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let (path, file) = self.file(&self.node(file)?.path)?;
        file.read_at(into, offset).map_err(|err| at(&path, err))
    }

    fn hole(&self, file: u64, offset: u64) -> io::Result<u64> {
        let node = self.node(file)?;
        let (path, file) = self.file(&node.path)?;
        let len = file.metadata().map_err(|err| at(&path, err))?.len();
        // Behind the end of a file that became shorter is no hole; reading it fails.
        if !matches!(node.kind, PackKind::Regular { size, .. } if size <= len) {
            return Ok(0);
        }
        Ok(match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset),
            Err(Errno::NXIO) => len.saturating_sub(offset),
            Err(_) => 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("bin/deep")).unwrap();
        fs::write(root.join("bin/one"), "content").unwrap();
        fs::hard_link(root.join("bin/one"), root.join("bin-two")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        directory
    }

    #[test]
    fn a_directory_is_walked_as_it_is() {
        let directory = sandbox();
        let source = DirectorySource::open(directory.path()).unwrap();
        let nodes: Vec<_> = source.nodes().map(Result::unwrap).collect();
        let paths: Vec<_> = nodes
            .iter()
            .map(|node| str::from_utf8(&node.path).unwrap())
            .collect();
        assert_eq!(paths, ["", "bin", "bin/deep", "bin/one", "bin-two", "link"]);
        assert!(nodes[3].linked.is_some() && nodes[3].linked == nodes[4].linked);
        assert_eq!(nodes[1].linked, None);
        let mut into = [0; 20];
        assert_eq!(source.read(3, 3, &mut into).unwrap(), 4);
        assert_eq!(&into[..4], b"tent");
        let target = b"/etc/passwd".to_vec();
        let standing = source.standing(b"link").unwrap();
        assert_eq!(standing, Some(Standing::Symlink(target)));
        assert_eq!(source.standing(b"bin/none").unwrap(), None);
        assert_eq!(source.file_bytes(), 14);
    }

    #[test]
    fn holes_are_known_until_the_file_is_cut_short() {
        let directory = sandbox();
        let path = directory.path().join("bin/one");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(b"data", 2 << 20).unwrap();
        let source = DirectorySource::open(directory.path()).unwrap();
        let hole = |at| source.hole(3, at).unwrap();
        assert_eq!([hole(0), hole(1 << 20), hole(2 << 20)], [0, 1 << 20, 0]);
        assert_eq!(hole(3 << 20), 1 << 20);
        file.set_len(3 << 20).unwrap();
        assert_eq!(hole(1 << 20), 0);
    }

    #[test]
    fn a_file_that_became_a_link_is_not_followed() {
        let directory = sandbox();
        let source = DirectorySource::open(directory.path()).unwrap();
        let one = directory.path().join("bin/one");
        fs::remove_file(&one).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &one).unwrap();
        let err = source.read(3, 0, &mut [0; 4]).unwrap_err();
        assert!(
            err.to_string().starts_with(&one.display().to_string()),
            "{err}"
        );
    }

    #[test]
    fn texts_are_those_of_regular_files_only() {
        let directory = sandbox();
        let source = DirectorySource::open(directory.path()).unwrap();
        assert_eq!(source.text("bin/one").unwrap().as_deref(), Some("content"));
        for path in ["link", "bin", "none"] {
            assert_eq!(source.text(path).unwrap(), None, "{path}");
        }
    }
}
