//! The kernel's overlay in front of an image.
//!
//! A program that opens a file often asks with ioctl(2) what it is: Python asks each one whether it is a terminal. The kernel hands
//! that on to a FUSE file system each time, and nothing lets it remember the answer. Overlayfs answers it itself. What is read comes
//! from the same cached pages, through the overlay's own directories, which all programs of an image share: it is put there
//! once, over the image's mount, by the process that mounted that.
//!
//! It never learns of a name that the server added after somebody had looked for it in vain. A container that needs one does without the overlay,
//! as does one that lays its own over the image.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use sifon_mount::sys::namespace;

use super::error::Error;
use super::namespaces::{self, Joinable};
use super::wire::Placed;

/// A directory of every image, relative to its root: a plan makes files of the container's own there, too.
pub const PLACE: &str = ".singularity.d/libs";

/// An empty directory over the image: only of a layer that is not the lowest does the kernel ask whether its directories hide what is below.
/// Inode numbers stay those of the image: programs of 32 bits cannot bear larger ones.
const LAYERS: &CStr = c"lowerdir=.singularity.d/libs:.,userxattr,xino=off";

/// Statfs's word for an overlay.
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;

/// Puts an overlay in front of the image of `joinable`, for everybody who joins later. This process must be in its user namespace, and have a
/// single thread; its root directory is the host's afterwards. Fails where the kernel lets users mount no overlay, which is before Linux
/// 5.11.
pub fn put(joinable: &Joinable) -> Result<(), Error> {
    let put = attach(joinable);
    rustix::process::fchdir(&joinable.host).map_err(failed)?;
    rustix::process::chroot(".").map_err(failed)?;
    put
}

fn failed(err: Errno) -> Error {
    Error::system("overlay in front of the image", err)
}

fn attach(joinable: &Joinable) -> Result<(), Error> {
    namespaces::enter_mounts(&joinable.mounts)?;
    // In a copy: nobody who joins meanwhile gets anything that is half made.
    namespace::unshare_mounts().map_err(|err| Error::system("new mount namespace", err))?;
    let overlay = overlay().map_err(failed)?;
    namespaces::enter_mounts(&joinable.mounts)?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&overlay, c"", CWD, c"/", onto).map_err(failed)
}

/// A mount that is attached nowhere. The image is root directory and current directory.
fn overlay() -> Result<OwnedFd, Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(c"tmpfs", PLACE, c"tmpfs", flags, c"mode=0755")?;
    let mode = rustix::fs::statat(CWD, c".", AtFlags::empty())?.st_mode;
    rustix::fs::chmod(PLACE, Mode::from_raw_mode(mode))?;
    let read_only = flags | MountFlags::RDONLY;
    rustix::mount::mount(c"overlay", PLACE, c"overlay", read_only, LAYERS)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, PLACE, flags)
}

/// Whether `root`, the root directory of what is shown, is that of an overlay.
pub fn is_one(root: &OwnedFd) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|found| found.f_type == OVERLAY)
}

/// Whether all `targets` that the server found or made are seen in `root`, this process's root directory.
pub fn shows(root: &OwnedFd, targets: &[Placed]) -> bool {
    targets.iter().all(|target| match target {
        Placed::At(path) => {
            let path = path.strip_prefix(b"/").unwrap_or(path);
            let found = rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW);
            path.is_empty() || !matches!(found, Err(Errno::NOENT))
        }
        Placed::Absent | Placed::Impossible(_) => true,
    })
}
