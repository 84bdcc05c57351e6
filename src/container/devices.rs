//! /dev of a contained program: the devices that every program needs, and no other.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::binds::{Stage, Target, by_descriptor};
use super::error::Error;

/// Devices of the host that are shown as they are, as Singularity does.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that programs rely on.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Covers `target` with a directory of such devices and `more`, paths below /dev.
pub(super) fn show(target: &Target<'_>, stage: &Stage, more: &[PathBuf]) -> Result<(), Error> {
    let failed = |err: Errno| Error::system("/dev of the container's own", err);
    let directory = stage.directory(0o755).map_err(failed)?;
    let nodes = NODES.map(PathBuf::from);
    for path in nodes.iter().chain(more) {
        match show_node(&directory, path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(err) => tracing::warn!("/dev/{}: {}", path.display(), io::Error::from(err)),
        }
    }
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, &directory, name).map_err(failed)?;
    }
    for (name, mode) in [("shm", 0o1777), ("mqueue", 0o1777), ("pts", 0o755)] {
        rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(mode)).map_err(failed)?;
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmodat(&directory, name, mode, rustix::fs::AtFlags::empty())
            .map_err(failed)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let terminals = Stage::opened(&directory, "pts").map_err(failed)?;
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    if let Err(err) = rustix::mount::mount(
        "devpts",
        by_descriptor(&terminals),
        "devpts",
        flags,
        options,
    ) {
        tracing::debug!("/dev/pts of the container's own: {}", io::Error::from(err));
    }
    let onto = target.open().map_err(failed)?;
    rustix::mount::mount_bind_recursive(by_descriptor(&directory), by_descriptor(&onto))
        .map_err(failed)
}

/// Shows the host's /dev/`path` in `directory`.
fn show_node(directory: &rustix::fd::OwnedFd, path: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let from = rustix::fs::open(Path::new("/dev").join(path), flags, Mode::empty())?;
    let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&from)?.st_mode)
        == rustix::fs::FileType::Directory;
    let mut above = PathBuf::new();
    for part in path.parent().into_iter().flat_map(Path::components) {
        above.push(part);
        match rustix::fs::mkdirat(directory, &above, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(err),
        }
    }
    match is_directory {
        true => rustix::fs::mkdirat(directory, path, Mode::from_raw_mode(0o755))?,
        false => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(directory, path, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let onto = rustix::fs::openat(directory, path, flags, Mode::empty())?;
    rustix::mount::mount_bind_recursive(by_descriptor(&from), by_descriptor(&onto))
}
