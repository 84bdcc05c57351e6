//! What is packed, as a directory of this machine instead: a sandbox, in Singularity's words.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use sifon_mount::layer::entry::shown;

use super::contents::Contents;
use super::hidden::HiddenDirectory;
use super::node::{Content, PackKind, PackNode};

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Why there is no directory. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Something has the name. The words are Singularity's; scripts look for them.
    #[error("Image file already exists: {path:?} - will not overwrite")]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// One file cannot be read or written.
    #[error("{path:?}, /{}: cannot be written", shown(name))]
    File {
        /// The directory.
        path: PathBuf,
        /// The file's path in it.
        name: Vec<u8>,
        /// Why.
        source: io::Error,
    },
    /// The directory itself cannot be made.
    #[error("{path:?}: cannot be made")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the directory has not though the image does: a plain user cannot make it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Devices, which became empty files.
    pub devices: u64,
    /// Files whose owner became the caller.
    pub owners: u64,
    /// Extended attributes.
    pub xattrs: u64,
}

/// Whether there may be a directory `out`, before work is done that would be for nothing.
pub fn check_place(out: &Path, overwrite: bool) -> Result<(), SandboxError> {
    match !overwrite && out.symlink_metadata().is_ok() {
        true => Err(SandboxError::Exists {
            path: out.to_owned(),
        }),
        false => Ok(()),
    }
}

/// Writes `contents` into the new directory `out`, which appears when it is whole. With `overwrite`, what has the name
/// is removed then. `progress` is told how many more bytes of files were written.
pub fn unpack(
    contents: &Contents<'_>,
    out: &Path,
    overwrite: bool,
    progress: &dyn Fn(u64),
) -> Result<Withheld, SandboxError> {
    let failed = |source| SandboxError::Io {
        path: out.to_owned(),
        source,
    };
    check_place(out, overwrite)?;
    let hidden = HiddenDirectory::beside(out).map_err(failed)?;
    let root = hidden.path().join("root");
    let mut writer = Writer::new(contents, &root, progress).map_err(failed)?;
    for node in contents.nodes() {
        let node = node.map_err(failed)?;
        let name = node.path.clone();
        writer.write(node).map_err(|source| SandboxError::File {
            path: out.to_owned(),
            name,
            source,
        })?;
    }
    let withheld = writer.finish().map_err(failed)?;
    if overwrite && out.symlink_metadata().is_ok() {
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            &root,
            rustix::fs::CWD,
            out,
            RenameFlags::EXCHANGE,
        ) {
            // What was there goes with the hidden directory.
            Ok(()) => return Ok(withheld),
            Err(err) => return Err(failed(err.into())),
        }
    }
    match rustix::fs::renameat_with(
        rustix::fs::CWD,
        &root,
        rustix::fs::CWD,
        out,
        RenameFlags::NOREPLACE,
    ) {
        Err(Errno::EXIST) => Err(SandboxError::Exists {
            path: out.to_owned(),
        }),
        Err(Errno::INVAL | Errno::NOSYS) => {
            // NFS has no such rename; an ordinary one replaces empty directories only.
            fs::rename(&root, out).map_err(failed)?;
            Ok(withheld)
        }
        renamed => {
            renamed.map_err(|err| failed(err.into()))?;
            Ok(withheld)
        }
    }
}

struct Writer<'a> {
    contents: &'a Contents<'a>,
    root: OwnedFd,
    progress: &'a dyn Fn(u64),
    is_root: bool,
    /// Files with several names, by the number that the image has for them.
    linked: HashMap<u64, Vec<u8>>,
    /// Directories, whose modes and times come when everything is in them.
    directories: Vec<PackNode>,
    withheld: Withheld,
}

impl<'a> Writer<'a> {
    fn new(contents: &'a Contents<'a>, root: &Path, progress: &'a dyn Fn(u64)) -> io::Result<Self> {
        fs::create_dir(root)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            contents,
            root: rustix::fs::open(root, flags, Mode::empty())?,
            progress,
            is_root: rustix::process::geteuid().is_root(),
            linked: HashMap::new(),
            directories: Vec::new(),
            withheld: Withheld::default(),
        })
    }

    /// Every directory on the way to a name is one that this made: `mkdir` and the others take no name twice, and a walk
    /// goes into directories only. So no symbolic link of the image is ever followed.
    fn write(&mut self, node: PackNode) -> io::Result<()> {
        let name = OsStr::from_bytes(&node.path).to_owned();
        let name = name.as_os_str();
        if let Some(first) = node.linked.and_then(|linked| self.linked.get(&linked)) {
            let first = OsStr::from_bytes(first);
            rustix::fs::linkat(&self.root, first, &self.root, name, AtFlags::empty())?;
            return Ok(());
        }
        match &node.kind {
            PackKind::Directory if node.path.is_empty() => {
                self.directories.push(node);
                return Ok(());
            }
            PackKind::Directory => {
                rustix::fs::mkdirat(&self.root, name, Mode::RWXU)?;
                self.directories.push(node);
                return Ok(());
            }
            PackKind::Regular { size, content } => self.regular(name, *size, content)?,
            PackKind::Symlink { target } => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), &self.root, name)?;
            }
            PackKind::CharDevice { major, minor } => {
                let number = rustix::fs::makedev(*major, *minor);
                self.device(name, FileType::CharacterDevice, number)?;
            }
            PackKind::BlockDevice { major, minor } => {
                let number = rustix::fs::makedev(*major, *minor);
                self.device(name, FileType::BlockDevice, number)?;
            }
            PackKind::Fifo => self.special(name, FileType::Fifo, 0)?,
            PackKind::Socket => self.special(name, FileType::Socket, 0)?,
        }
        if let Some(linked) = node.linked {
            self.linked.insert(linked, node.path.clone());
        }
        self.attributes(name, &node)
    }

    fn special(&self, name: &OsStr, kind: FileType, number: Dev) -> io::Result<()> {
        Ok(rustix::fs::mknodat(
            &self.root,
            name,
            kind,
            Mode::RUSR | Mode::WUSR,
            number,
        )?)
    }

    /// A device, or, for one who cannot make it, an empty file, as Singularity does it.
    fn device(&mut self, name: &OsStr, kind: FileType, number: Dev) -> io::Result<()> {
        if self.is_root {
            return self.special(name, kind, number);
        }
        self.withheld.devices += 1;
        self.created(name).map(drop)
    }

    fn created(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::openat(&self.root, name, flags, mode)?.into())
    }

    fn regular(&self, name: &OsStr, size: u64, content: &Content) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = self.created(name)?;
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(size).unwrap_or(READ_BYTES))];
        let mut at = 0;
        // What is not written is a hole.
        file.set_len(size)?;
        while at < size {
            let hole = self.contents.hole(content, at)?.min(size - at);
            if hole > 0 {
                at += hole;
                continue;
            }
            let wanted = (size - at).min(buffer.len() as u64) as usize;
            let len = self.contents.read(content, at, &mut buffer[..wanted])?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&buffer[..len], at)?;
            at += len as u64;
            (self.progress)(len as u64);
        }
        Ok(())
    }

    /// Owner, mode, attributes and time, in the order in which one does not undo the other.
    fn attributes(&mut self, name: &OsStr, node: &PackNode) -> io::Result<()> {
        let is_link = matches!(node.kind, PackKind::Symlink { .. });
        if self.is_root {
            let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&self.root, name, Some(uid), Some(gid), flags)?;
        } else {
            self.withheld.owners += u64::from(node.uid != rustix::process::geteuid().as_raw());
        }
        if !is_link {
            let mode = Mode::from_raw_mode(node.mode.into());
            rustix::fs::chmodat(&self.root, name, mode, AtFlags::empty())?;
        }
        self.xattrs(name, node)?;
        let time = Timespec {
            tv_sec: node.mtime.secs,
            tv_nsec: node.mtime.nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        Ok(rustix::fs::utimensat(
            &self.root,
            name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Attributes are set through /proc, which has no way around names below a descriptor.
    fn xattrs(&mut self, name: &OsStr, node: &PackNode) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        for (attribute, value) in &node.xattrs {
            let below = PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()));
            let path = below.join(name);
            match rustix::fs::lsetxattr(&path, attribute.as_slice(), value, XattrFlags::empty()) {
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS | Errno::NOSPC) => {
                    self.withheld.xattrs += 1;
                }
                set => set?,
            }
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<Withheld> {
        for node in std::mem::take(&mut self.directories).into_iter().rev() {
            let name = match node.path.as_slice() {
                b"" => b".",
                path => path,
            };
            self.attributes(OsStr::from_bytes(name), &node)?;
        }
        Ok(self.withheld)
    }
}

impl Withheld {
    /// A sentence for each thing that is missing.
    pub fn warnings(&self) -> Vec<String> {
        [
            (
                self.devices,
                "devices became empty files: only root can make them",
            ),
            (self.owners, "files belong to you and not to their owners"),
            (self.xattrs, "extended attributes could not be set"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use sifon_mount::layer::entry::Timestamp;

    use super::super::directory::DirectorySource;
    use super::super::node::Source;
    use super::super::sample::Sample;
    use super::*;

    fn sample() -> Sample {
        Sample::new()
            .directory("closed")
            .but("closed", |node| (node.mode, node.mtime.secs) = (0o555, 77))
            .file("closed/file", b"inside")
            .but("closed/file", |node| {
                (node.mode, node.mtime.secs) = (0o4711, 1_000_000_000);
                node.linked = Some(1);
            })
            .link("absolute", "/etc")
            .with("fifo", PackKind::Fifo)
            .file("large", &[7; 3 << 20])
            .but("", |node| node.mode = 0o755)
    }

    fn unpacked(source: &Sample, out: &Path, overwrite: bool) -> Result<Withheld, SandboxError> {
        let contents = Contents::new(source, Vec::new(), Timestamp::default());
        unpack(&contents, out, overwrite, &|_| {})
    }

    #[test]
    fn a_sandbox_is_read_back_as_it_was_packed() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("box");
        unpacked(&sample(), &out, false).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let read = DirectorySource::open(&out).unwrap();
        let read: Vec<_> = read.nodes().map(Result::unwrap).collect();
        let source = sample();
        assert_eq!(read.len(), source.nodes.len());
        for (read, node) in read.iter().zip(&source.nodes) {
            let name = String::from_utf8_lossy(&node.path).into_owned();
            assert_eq!(read.path, node.path);
            if !matches!(node.kind, PackKind::Symlink { .. }) {
                assert_eq!(read.mode, node.mode, "{name}");
            }
            assert_eq!(read.mtime, node.mtime, "{name}");
        }
        assert_eq!(fs::read(out.join("large")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(fs::metadata(out.join("closed")).unwrap().mtime(), 77);
        // Otherwise a plain user's directory cannot be removed.
        let open = PermissionsExt::from_mode(0o755);
        fs::set_permissions(out.join("closed"), open).unwrap();
    }

    #[test]
    fn what_is_there_is_replaced_only_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("box");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), "old").unwrap();
        let source = Sample::new().file("new", b"new");
        let err = unpacked(&source, &out, false).unwrap_err();
        assert!(err.to_string().starts_with("Image file already exists"));
        assert!(out.join("old").exists());
        unpacked(&source, &out, true).unwrap();
        assert!(out.join("new").exists() && !out.join("old").exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
