//! A directory of the host as a container's root directory: what Singularity calls a sandbox.
//!
//! It is looked up component by component, as a process with it as its root directory would see it: no symlink in it leads to a path
//! of the host.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::Error;
use super::plan::{Bind, IfMissing, Source, TargetKind};
use super::scripts;
use super::wire::{Placed, Ready};

/// Symlinks on the way to one target at most, as in path_resolution(7).
const LINKS_LIMIT: usize = 40;

/// A directory with a root file system in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// `--writable`: programs write into it, and nothing is shown in it that it has no place for. Else it is only read.
    pub is_written: bool,
}

impl Directory {
    /// The directory, in this process's mount namespace.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty())
            .map_err(|err| Error::system(format!("image {}", self.path.display()), err))
    }
}

/// What the image says of itself: its scripts, in place of a configuration. To be called inside the container, so that they are
/// what programs find there now.
pub fn about(ready: &Ready) -> Ready {
    Ready {
        environment: scripts::of_container(),
        has_own_scripts: true,
        ..ready.clone()
    }
}

/// Where the targets of `binds` lie in `directory`. Those that it lacks are made below `points`, a directory of ours that will be
/// shown with it; without one they are nowhere.
pub fn placed(directory: &OwnedFd, points: Option<&OwnedFd>, binds: &[Bind]) -> Vec<Placed> {
    let place = |bind: &Bind| -> Result<Placed, Errno> {
        if bind.source == Source::Stage {
            return Ok(Placed::Absent);
        }
        let place = Place::of(directory, &bind.target, bind.covers_link)?;
        let points = points.filter(|_| bind.if_missing == IfMissing::Add);
        match (place.is_there, points) {
            (false, None) => return Ok(Placed::Absent),
            (false, Some(points)) => place.make(points, bind.kind)?,
            (true, _) => {}
        }
        Ok(Placed::At([b"/", &*place.names.join(&b'/')].concat()))
    };
    let placed = binds.iter().map(|bind| match place(bind) {
        Ok(placed) => placed,
        Err(err) => Placed::Impossible(std::io::Error::from(err).to_string()),
    });
    placed.collect()
}

/// Where a path leads.
struct Place {
    /// On the way there from the root directory, without symlinks.
    names: Vec<Vec<u8>>,
    /// Whether there is anything.
    is_there: bool,
}

impl Place {
    /// With `covers_link` a symlink at the path's end is the place itself.
    fn of(root: &OwnedFd, path: &Path, covers_link: bool) -> Result<Self, Errno> {
        let mut pending = Vec::new();
        push(&mut pending, path.as_os_str().as_bytes());
        let mut names: Vec<Vec<u8>> = Vec::new();
        // What exists of them.
        let mut open: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                names.pop();
                open.truncate(names.len());
                continue;
            }
            // Nothing is below what is missing.
            let is_open = open.len() == names.len();
            let above = open.last().unwrap_or(root);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match is_open {
                true => rustix::fs::openat(above, &*name, flags, Mode::empty()),
                false => Err(Errno::NOENT),
            };
            let found = match found {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    names.push(name);
                    continue;
                }
                Err(err) => return Err(err),
            };
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
            if kind == FileType::Symlink && !(covers_link && pending.is_empty()) {
                links += 1;
                if links > LINKS_LIMIT {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(above, &*name, Vec::new())?;
                if target.as_bytes().starts_with(b"/") {
                    names.clear();
                    open.clear();
                }
                push(&mut pending, target.as_bytes());
                continue;
            }
            names.push(name);
            open.push(found);
        }
        Ok(Self {
            is_there: open.len() == names.len(),
            names,
        })
    }

    /// Makes it below `points`, with all directories on the way.
    fn make(&self, points: &OwnedFd, kind: TargetKind) -> Result<(), Errno> {
        let Some((last, above)) = self.names.split_last() else {
            return Ok(());
        };
        let mut at = points.try_clone().map_err(|_| Errno::MFILE)?;
        for name in above {
            at = made_directory(&at, name)?;
        }
        match kind {
            TargetKind::Directory => made_directory(&at, last).map(drop),
            TargetKind::File => {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&at, &**last, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        }
    }
}

/// The components of `path` on top of `pending`, the first one uppermost.
fn push(pending: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|&byte| byte == b'/');
    let names = names.filter(|name| !matches!(*name, b"" | b"."));
    pending.extend(names.rev().map(<[u8]>::to_vec));
}

fn made_directory(above: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(err) => return Err(err),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root file system with links that lead everywhere, and an empty directory.
    fn places() -> (tempfile::TempDir, OwnedFd, OwnedFd) {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("etc/deep")).unwrap();
        fs::write(root.join("etc/file"), "").unwrap();
        for (path, target) in [
            ("up", "../../../../etc"),
            ("absolute", "/etc/deep"),
            ("dangling", "/run/./none/../some"),
            ("etc/dangling", "../var//x"),
            ("loop", "loop"),
        ] {
            symlink(target, root.join(path)).unwrap();
        }
        let points = scratch.path().join("points");
        fs::create_dir(&points).unwrap();
        let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
        let (root, points) = (open(&root), open(&points));
        (scratch, root, points)
    }

    fn bind(target: &str) -> Bind {
        Bind {
            source: Source::Memory(0o755),
            target: target.into(),
            kind: TargetKind::Directory,
            is_read_only: false,
            is_required: true,
            if_missing: IfMissing::Add,
            covers_link: false,
        }
    }

    #[test]
    fn links_are_followed_inside_and_what_is_missing_is_made_beside() {
        let (scratch, root, points) = places();
        let beside = scratch.path().join("points");
        for (target, expected, is_made) in [
            ("/", "/", false),
            ("/etc/deep", "/etc/deep", false),
            ("/up/deep", "/etc/deep", false),
            ("/up/../..", "/", false),
            ("/absolute/new", "/etc/deep/new", true),
            ("/dangling", "/run/some", true),
            ("/dangling/below", "/run/some/below", true),
            ("/etc/dangling", "/var/x", true),
        ] {
            let found = placed(&root, Some(&points), &[bind(target)]);
            assert_eq!(found, [Placed::At(expected.into())], "{target}");
            let made = beside.join(&expected[1..]);
            assert!(!is_made || made.is_dir(), "{target}");
            let nowhere = placed(&root, None, &[bind(target)]);
            assert_eq!(is_made, nowhere == [Placed::Absent], "{target}");
        }
        assert!(!beside.join("etc/deep/deep").exists());
        assert!(!scratch.path().join("root/run").exists());
    }

    #[test]
    fn a_link_can_be_the_target_itself_and_a_file_be_made() {
        let (scratch, root, points) = places();
        let file = |target| Bind {
            kind: TargetKind::File,
            ..bind(target)
        };
        let binds = [
            Bind {
                covers_link: true,
                ..file("/etc/dangling")
            },
            file("/new/file"),
            Bind {
                if_missing: IfMissing::Skip,
                ..file("/none")
            },
        ];
        let at = |path: &str| Placed::At(path.into());
        let expected = [at("/etc/dangling"), at("/new/file"), Placed::Absent];
        assert_eq!(placed(&root, Some(&points), &binds), expected);
        assert!(scratch.path().join("points/new/file").is_file());
        assert!(!scratch.path().join("points/none").exists());
    }

    #[test]
    fn what_cannot_be_says_why() {
        let (_scratch, root, points) = places();
        for (target, why) in [
            ("/loop", "symbolic links"),
            ("/etc/file/below", "Not a directory"),
        ] {
            let found = placed(&root, Some(&points), &[bind(target)]);
            assert!(
                matches!(&found[..], [Placed::Impossible(problem)] if problem.contains(why)),
                "{target}: {found:?}"
            );
        }
    }
}
