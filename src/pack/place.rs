//! A file that appears under its name when it is whole, or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Something has the name. The words are Singularity's; scripts look for them.
    #[error("Image file already exists: {path:?} - will not overwrite")]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The name can be no file's.
    #[error("{path:?}: {problem}")]
    Wrong {
        /// The name.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The file system refused.
    #[error("{path:?}: {what}")]
    Io {
        /// The name.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// A file being written beside the place that it is going to have. Dropped without [`NewFile::publish`], it is gone.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    directory: PathBuf,
    file: File,
    /// The name it has meanwhile, where the file system has no files without a name.
    hidden: Option<PathBuf>,
    overwrite: bool,
}

/// `rwxr-xr-x`, less what the umask takes away: a SIF is a program.
const MODE: Mode = Mode::from_raw_mode(0o755);

impl NewFile {
    /// An empty file that will be `path`, without touching what is there; unless `overwrite`, nothing may be.
    pub fn beside(path: &Path, overwrite: bool) -> Result<Self, PlaceError> {
        let wrong = |problem| PlaceError::Wrong {
            path: path.into(),
            problem,
        };
        if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(wrong("not the name of a file"));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => return Err(wrong("is a directory")),
            Ok(_) if !overwrite => return Err(PlaceError::Exists { path: path.into() }),
            _ => {}
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (file, hidden) = match nameless(directory) {
            Ok(file) => (file, None),
            Err(err) if has_no_nameless_files(&err) => {
                remove_leftovers(path, directory);
                let (file, hidden) =
                    hidden_file(path, directory).map_err(failed(path, "cannot be created"))?;
                (file, Some(hidden))
            }
            Err(err) => return Err(failed(path, "cannot be created")(err)),
        };
        Ok(Self {
            path: path.into(),
            directory: directory.into(),
            file,
            hidden,
            overwrite,
        })
    }

    /// The file, empty at first.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes sure that the bytes are on the disk, and gives the file its name.
    pub fn publish(mut self) -> Result<(), PlaceError> {
        self.file
            .sync_all()
            .map_err(failed(&self.path, "writing it to the disk failed"))?;
        self.name().map_err(|err| match err.kind() {
            io::ErrorKind::AlreadyExists => PlaceError::Exists {
                path: self.path.clone(),
            },
            _ => failed(&self.path, "cannot get its name")(err),
        })?;
        // The file is whole; that its name outlives a power failure is not worth failing for.
        if let Ok(directory) = File::open(&self.directory) {
            let _ = directory.sync_all();
        }
        Ok(())
    }

    fn name(&mut self) -> io::Result<()> {
        if self.hidden.is_none() {
            let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let link = |name: &Path| {
                rustix::fs::linkat(CWD, nameless.as_str(), CWD, name, AtFlags::SYMLINK_FOLLOW)
            };
            if !self.overwrite {
                return Ok(link(&self.path)?);
            }
            // A link replaces nothing, a rename does.
            let hidden = hidden_path(&self.path, &self.directory);
            link(&hidden)?;
            self.hidden = Some(hidden);
        }
        let hidden = self.hidden.as_ref().expect("a file without a name got one");
        if self.overwrite {
            fs::rename(hidden, &self.path)?;
        } else {
            rename_to_nothing(hidden, &self.path)?;
        }
        self.hidden = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden {
            let _ = fs::remove_file(hidden);
        }
    }
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Io { path, what, source }
}

/// A file that nothing of is left if we die.
fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, MODE)?.into())
}

/// What file systems and kernels answer that do not know `O_TMPFILE` (open(2)), Lustre and NFS among them.
fn has_no_nameless_files(err: &io::Error) -> bool {
    [
        rustix::io::Errno::OPNOTSUPP,
        rustix::io::Errno::ISDIR,
        rustix::io::Errno::INVAL,
    ]
    .iter()
    .any(|errno| err.raw_os_error() == Some(errno.raw_os_error()))
}

/// Renames, but replaces nothing.
fn rename_to_nothing(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS has no such rename; there a link replaces nothing either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

fn hidden_prefix(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut prefix = OsString::from(".");
    // Within the 255 bytes that a name may have.
    prefix.push(OsStr::from_bytes(&name[..name.len().min(200)]));
    prefix.push(".sifon-");
    prefix
}

/// A name that nobody else in this directory has, unless a process with our number died here.
fn hidden_path(path: &Path, directory: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = hidden_prefix(path);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!("{}-{number}", std::process::id()));
    directory.join(name)
}

/// A file under a hidden name, locked as long as it is open.
fn hidden_file(path: &Path, directory: &Path) -> io::Result<(File, PathBuf)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    for _ in 0..100 {
        let hidden = hidden_path(path, directory);
        let file: File = match rustix::fs::open(&hidden, flags, MODE) {
            Err(rustix::io::Errno::EXIST) => continue,
            opened => opened?.into(),
        };
        // Another run may have taken it for a leftover before it was locked.
        let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        if file.metadata()?.nlink() > 0 {
            return Ok((file, hidden));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes what runs left behind that were killed. Those that still write hold a lock.
fn remove_leftovers(path: &Path, directory: &Path) {
    let prefix = hidden_prefix(path);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(entry.path(), flags, Mode::empty()) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A new file, as on file systems that have files without a name, or not.
    fn new_file(path: &Path, overwrite: bool, is_nameless: bool) -> NewFile {
        if is_nameless {
            return NewFile::beside(path, overwrite).unwrap();
        }
        let directory = path.parent().unwrap().to_owned();
        let (file, hidden) = hidden_file(path, &directory).unwrap();
        NewFile {
            path: path.into(),
            directory,
            file,
            hidden: Some(hidden),
            overwrite,
        }
    }

    fn names(directory: &Path) -> Vec<OsString> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn a_file_appears_whole_and_executable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sif");
        for is_nameless in [true, false] {
            let new = new_file(&path, false, is_nameless);
            new.file().write_all(b"whole").unwrap();
            assert!(!path.exists());
            new.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7700, 0o700);
            assert_eq!(names(directory.path()), ["x.sif"]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        for is_nameless in [true, false] {
            let new = new_file(&directory.path().join("x.sif"), false, is_nameless);
            new.file().write_all(b"half").unwrap();
            drop(new);
        }
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_is_there_is_replaced_only_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sif");
        // Both begin before anything is there, so that only the last step can notice.
        let late = [true, false].map(|is_nameless| new_file(&path, false, is_nameless));
        fs::write(&path, "old").unwrap();
        let message = format!("Image file already exists: {path:?} - will not overwrite");
        assert_eq!(
            NewFile::beside(&path, false).unwrap_err().to_string(),
            message
        );
        for new in late {
            assert_eq!(new.publish().unwrap_err().to_string(), message);
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        for is_nameless in [true, false] {
            let new = new_file(&path, true, is_nameless);
            new.file().write_all(b"new").unwrap();
            new.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            fs::write(&path, "old").unwrap();
        }
        assert_eq!(names(directory.path()), ["x.sif"]);
    }

    #[test]
    fn leftovers_go_unless_somebody_still_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sif");
        fs::write(directory.path().join(".x.sif.sifon-1-0"), "left").unwrap();
        let (_busy, hidden) = hidden_file(&path, directory.path()).unwrap();
        fs::write(directory.path().join(".y.sif.sifon-1-0"), "another's").unwrap();
        remove_leftovers(&path, directory.path());
        let mut left = names(directory.path());
        left.sort();
        assert_eq!(
            left,
            [hidden.file_name().unwrap(), ".y.sif.sifon-1-0".as_ref()]
        );
    }

    #[test]
    fn names_that_can_be_no_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for path in [
            directory.path(),
            Path::new("/"),
            Path::new("a/.."),
            Path::new("nothere/"),
        ] {
            let err = NewFile::beside(path, true).unwrap_err();
            assert!(matches!(err, PlaceError::Wrong { .. }), "{err}");
        }
        let err = NewFile::beside(&directory.path().join("no/x.sif"), false).unwrap_err();
        assert!(matches!(err, PlaceError::Io { .. }), "{err}");
    }
}
