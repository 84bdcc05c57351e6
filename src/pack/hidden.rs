//! A directory under a hidden name that goes when nobody works in it any more, killed or not.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The file in it that is locked as long as somebody works there.
const LOCK: &str = "lock";

/// As often as others may take our directory for a leftover before its lock is taken.
const TRIES: usize = 100;

/// A directory beside the place that something in it is going to have. It goes when this is dropped, whatever modes
/// directories in it have; if that never happens, the next one for the same place removes it.
#[derive(Debug)]
pub(super) struct HiddenDirectory {
    directory: tempfile::TempDir,
    _lock: File,
}

impl HiddenDirectory {
    /// A new one beside `out`, where those that were left behind for `out` are removed.
    pub(super) fn beside(out: &Path) -> io::Result<Self> {
        let beside = match out.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let prefix = prefix(out);
        remove_leftovers(beside, &prefix);
        for _ in 0..TRIES {
            let directory = tempfile::Builder::new()
                .prefix(&prefix)
                .tempdir_in(beside)?;
            if let Some(lock) = locked(directory.path())? {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Where something can be made.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for HiddenDirectory {
    fn drop(&mut self) {
        make_removable(self.directory.path());
    }
}

/// `.NAME.sifon-sandbox-`, within the 255 bytes that a name may have.
fn prefix(out: &Path) -> OsString {
    let name = out.file_name().unwrap_or_default().as_bytes();
    let name = &name[..name.len().min(200)];
    OsString::from_vec([b".", name, b".sifon-sandbox-"].concat())
}

/// The lock of a new directory. `None` if another run has just taken that for a leftover.
fn locked(directory: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file: File = match rustix::fs::open(directory.join(LOCK), flags, mode) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened?.into(),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        // Where there are no locks nothing is ever taken for a leftover.
        Ok(()) | Err(_) => {
            use std::os::unix::fs::MetadataExt;
            let is_there = file.metadata()?.nlink() > 0;
            Ok(is_there.then_some(file))
        }
    }
}

/// Removes directories of runs that were killed: those whose lock nobody holds.
fn remove_leftovers(beside: &Path, prefix: &OsString) {
    for entry in fs::read_dir(beside).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            remove_leftover(&entry.path());
        }
    }
}

fn remove_leftover(directory: &Path) {
    if !directory
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir())
    {
        return;
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(directory.join(LOCK), flags, Mode::empty()) {
        Ok(lock) => {
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                make_removable(directory);
                let _ = fs::remove_dir_all(directory);
            }
        }
        // Killed, or on the way to its lock: then it makes another one.
        Err(rustix::io::Errno::NOENT) => {
            let _ = fs::remove_dir(directory);
        }
        Err(_) => {}
    }
}

/// Lets a plain user remove what is in directories that the image had closed. No symbolic link is followed.
fn make_removable(directory: &Path) {
    let mut closed: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = closed.pop() {
        let open = PermissionsExt::from_mode(0o700);
        let _ = fs::set_permissions(&directory, open);
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        closed.extend(directories.map(|entry| entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    /// As if its process were killed: the lock goes with it, the files stay.
    fn killed(hidden: HiddenDirectory) -> PathBuf {
        let path = hidden.path().to_owned();
        let lock = hidden._lock.try_clone().unwrap();
        rustix::fs::flock(&lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(hidden);
        path
    }

    #[test]
    fn what_a_killed_run_left_goes_with_the_next_for_the_same_place() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("box");
        let left = killed(HiddenDirectory::beside(&out).unwrap());
        fs::create_dir_all(left.join("root/closed/deep")).unwrap();
        fs::set_permissions(left.join("root/closed"), PermissionsExt::from_mode(0o000)).unwrap();
        // Another place's is not touched, nor one that somebody works in, nor a link.
        let other = killed(HiddenDirectory::beside(&place.path().join("other")).unwrap());
        let alive = HiddenDirectory::beside(&out).unwrap();
        assert!(!left.exists());
        std::os::unix::fs::symlink(&other, place.path().join(".box.sifon-sandbox-x")).unwrap();
        let second = HiddenDirectory::beside(&out).unwrap();
        assert!(alive.path().exists() && other.exists() && second.path() != alive.path());
        assert_eq!(names(place.path()), 4);
        drop((alive, second));
        assert_eq!(names(place.path()), 2);
    }

    #[test]
    fn one_that_was_killed_before_it_had_its_lock_goes_too() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join(".box.sifon-sandbox-early")).unwrap();
        drop(HiddenDirectory::beside(&place.path().join("box")).unwrap());
        assert_eq!(names(place.path()), 0);
    }
}
