//! Making the binds of a plan, below the image's root directory.
//!
//! A target is opened as a process with the image as its root would see it, and the mount goes onto
//! the descriptor: a symlink of the image, wherever it points, never leads to a path of the host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use sifon_mount::sys::namespace;

use super::error::Error;
use super::identity::{self, Identity};
use super::plan::{Bind, Source, TargetKind};
use super::wire::Placed;

/// Bytes in an image's /etc/passwd or /etc/group at most; beyond that the file is left as it is.
const IDENTITY_BYTES_LIMIT: u64 = 4 << 20;

/// How often a lookup is tried again while somebody renames directories on its way.
const LOOKUP_TRIES: usize = 64;

/// Makes `binds` below `image`, the root directory of an image in this process's own mount namespace.
/// `placed` says where the server sees each target. One that is not required and cannot be made is
/// left out, with a warning.
pub fn make(
    image: &OwnedFd,
    binds: &[Bind],
    placed: &[Placed],
    identity: &Identity,
) -> Result<(), Error> {
    if binds.len() != placed.len() {
        return Err(Error::Refused(
            "the server answered for other binds than were asked for".into(),
        ));
    }
    let with_places = || binds.iter().zip(placed);
    if let Err(error) = show_identity(image, with_places(), identity) {
        tracing::warn!(
            "user's entries in the image's /etc/passwd: {}",
            error.in_one_line()
        );
    }
    for (bind, placed) in with_places() {
        let Source::Host(source) = &bind.source else {
            continue;
        };
        match attach(image, bind, source, placed) {
            Ok(()) => {}
            Err(error) if bind.is_required => return Err(error),
            Err(error) => tracing::warn!("{}", error.in_one_line()),
        }
    }
    Ok(())
}

/// Binds one path of the host.
fn attach(image: &OwnedFd, bind: &Bind, source: &Path, placed: &Placed) -> Result<(), Error> {
    let failed = |problem: &str| {
        format!(
            "bind of {} to {}: {problem}",
            source.display(),
            bind.target.display()
        )
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let from = rustix::fs::open(source, flags, Mode::empty())
        .map_err(|err| Error::system(failed("the source cannot be opened"), err))?;
    let target = Target {
        image: image.as_fd(),
        bind,
        placed,
    };
    let onto = target
        .open()
        .map_err(|err| target_error(failed, placed, err))?;
    require_same_kind(&from, &onto).map_err(|problem| Error::Refused(failed(problem)))?;
    rustix::mount::mount_bind_recursive(by_descriptor(&from), by_descriptor(&onto))
        .map_err(|err| Error::system(failed("mount refused"), err))?;
    uncover_host(&from, &target).map_err(|err| Error::system(failed("host's root"), err))?;
    if bind.is_read_only {
        make_read_only(&target).map_err(|err| Error::system(failed("read-only"), err))?;
    }
    Ok(())
}

fn target_error(failed: impl Fn(&str) -> String, placed: &Placed, err: Errno) -> Error {
    match placed {
        Placed::Impossible(problem) => Error::Refused(failed(problem)),
        Placed::At(_) | Placed::Absent => {
            Error::system(failed("the target cannot be opened in the container"), err)
        }
    }
}

fn require_same_kind(from: &OwnedFd, onto: &OwnedFd) -> Result<(), &'static str> {
    let is_directory = |descriptor: &OwnedFd| {
        rustix::fs::fstat(descriptor)
            .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    match (is_directory(from), is_directory(onto)) {
        (Ok(true), Ok(false)) => Err("the source is a directory, the target is not"),
        (Ok(false), Ok(true)) => Err("the target is a directory, the source is not"),
        (Ok(_), Ok(_)) => Ok(()),
        (Err(_), _) | (_, Err(_)) => Err("the target cannot be examined"),
    }
}

/// The host's root directory comes with what is mounted on it: the image, on top. Takes that away
/// from the copy at `target`, so that the host is seen there.
fn uncover_host(from: &OwnedFd, target: &Target<'_>) -> Result<(), Errno> {
    let of =
        |descriptor: &OwnedFd| rustix::fs::fstat(descriptor).map(|stat| (stat.st_dev, stat.st_ino));
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if of(from)? != of(&root)? {
        return Ok(());
    }
    let seen = target.open()?;
    if of(&seen)? == of(from)? {
        return Ok(());
    }
    rustix::mount::unmount(by_descriptor(&seen), UnmountFlags::DETACH)
}

/// Makes what is now mounted at `target` read-only, with the mounts below it where the kernel can.
fn make_read_only(target: &Target<'_>) -> io::Result<()> {
    let mounted = target.open()?;
    match namespace::make_read_only(&mounted) {
        Err(err) if err.kind() == io::ErrorKind::Unsupported => {}
        done => return done,
    }
    // Flags that the source's mount has may not be dropped in a user namespace.
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let present = rustix::fs::fstatvfs(&mounted)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (has, flag) in kept {
        if present.contains(has) {
            flags |= flag;
        }
    }
    Ok(rustix::mount::mount_remount(
        by_descriptor(&mounted),
        flags,
        c"",
    )?)
}

/// The image's /etc/passwd and /etc/group with the caller in them, on the image's own.
fn show_identity<'a>(
    image: &OwnedFd,
    binds: impl Iterator<Item = (&'a Bind, &'a Placed)> + Clone,
    identity: &Identity,
) -> Result<(), Error> {
    let failed = |err| Error::system("private file system for it", err);
    // Somewhere for files that are only the program's: a file system of their own on a directory
    // that the host's will cover. It goes away at once, what is bound from it stays.
    let Some((bind, placed)) = binds
        .clone()
        .find(|(bind, _)| bind.kind == TargetKind::Directory)
    else {
        return Ok(());
    };
    let place = Target {
        image: image.as_fd(),
        bind,
        placed,
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let below = place.open().map_err(failed)?;
    rustix::mount::mount(
        "tmpfs",
        by_descriptor(&below),
        "tmpfs",
        flags,
        c"mode=0755,size=16m",
    )
    .map_err(failed)?;
    let stage = place.open().map_err(failed)?;
    let mut result = Ok(());
    for (bind, placed) in binds {
        let target = Target {
            image: image.as_fd(),
            bind,
            placed,
        };
        let shown = match bind.source {
            Source::Passwd => show_file(&target, &stage, "passwd", |own| {
                identity::passwd(own, identity)
            }),
            Source::Group => show_file(&target, &stage, "group", |own| {
                identity::group(own, identity)
            }),
            Source::Host(_) => continue,
        };
        result = result.and(shown);
    }
    rustix::mount::unmount(by_descriptor(&stage), UnmountFlags::DETACH).map_err(failed)?;
    result
}

/// Covers the image's file at `target` with one on `stage` whose content `changed` makes from it.
fn show_file(
    target: &Target<'_>,
    stage: &OwnedFd,
    name: &str,
    changed: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<(), Error> {
    if matches!(target.placed, Placed::Absent) {
        return Ok(());
    }
    let path = target.bind.target.display();
    let failed = |err: io::Error| Error::system(path.to_string(), err);
    let Some(own) = regular_content(target).map_err(failed)? else {
        return Ok(());
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(
        rustix::fs::openat(stage, name, flags, Mode::from_raw_mode(0o644))
            .map_err(|err| failed(err.into()))?,
    );
    file.write_all(&changed(&own)).map_err(failed)?;
    let onto = target.open().map_err(|err| failed(err.into()))?;
    rustix::mount::mount_bind(by_descriptor(&OwnedFd::from(file)), by_descriptor(&onto))
        .map_err(|err| failed(err.into()))
}

/// The bytes of a regular file of the image; none if it is something else or too long.
fn regular_content(target: &Target<'_>) -> io::Result<Option<Vec<u8>>> {
    let file = target.open()?;
    let stat = rustix::fs::fstat(&file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_regular || u64::try_from(stat.st_size).is_ok_and(|size| size > IDENTITY_BYTES_LIMIT) {
        return Ok(None);
    }
    let file = rustix::fs::open(
        by_descriptor(&file),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut content = Vec::new();
    File::from(file)
        .take(IDENTITY_BYTES_LIMIT)
        .read_to_end(&mut content)?;
    Ok(Some(content))
}

/// The target of a bind, which can be opened before and after something is mounted on it.
struct Target<'a> {
    image: BorrowedFd<'a>,
    bind: &'a Bind,
    placed: &'a Placed,
}

impl Target<'_> {
    /// What a process in the container finds at the target now.
    fn open(&self) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if self.bind.covers_link {
            flags |= OFlags::NOFOLLOW;
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..LOOKUP_TRIES {
            let target = self.bind.target.as_path();
            match rustix::fs::openat2(self.image, target, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Before Linux 5.6, or behind a filter that does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => return self.open_stepwise(),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The path that the server resolved, component by component: a symlink on it is an error.
    fn open_stepwise(&self) -> Result<OwnedFd, Errno> {
        let resolved = match self.placed {
            Placed::At(resolved) => resolved.as_slice(),
            Placed::Absent | Placed::Impossible(_) => self.bind.target.as_os_str().as_bytes(),
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(self.image, ".", flags, Mode::empty())?;
        let mut components = resolved
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .peekable();
        while let Some(name) = components.next() {
            if matches!(name, b"." | b"..") {
                return Err(Errno::INVAL);
            }
            at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
            let is_link =
                FileType::from_raw_mode(rustix::fs::fstat(&at)?.st_mode) == FileType::Symlink;
            if is_link && !(components.peek().is_none() && self.bind.covers_link) {
                return Err(Errno::LOOP);
            }
        }
        Ok(at)
    }
}

/// A path that leads to what a descriptor of this process refers to, wherever that lies.
fn by_descriptor(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}
