//! Leaving the namespaces that a process was born in, and what it may do to mounts then.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::thread::UnshareFlags;

/// Moves this process into a new user namespace and a new mount namespace that it owns.
pub fn unshare_user_and_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
}

/// Moves this process into a new user namespace.
pub fn unshare_user() -> io::Result<()> {
    unshare(UnshareFlags::NEWUSER)
}

/// Moves this process into a copy of its mount namespace.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)
}

fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    debug_assert!(!namespaces.contains(UnshareFlags::FILES));
    // SAFETY: only a descriptor table of one's own (`FILES`) would break the promises of `OwnedFd`,
    // and neither caller asks for that.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(io::Error::from)
}

/// Makes the mount whose root directory or file `mount` is, and every mount below it, read-only; all
/// other flags stay. Kernels before 5.12 answer with `ErrorKind::Unsupported`.
pub fn make_read_only(mount: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string, the attributes are as long as is said, and both outlive the call.
    let changed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if changed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
