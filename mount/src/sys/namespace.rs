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

/// What a process may leave behind of the machine beside its mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Process numbers: for the processes that this one starts from now on.
    pub processes: bool,
    /// Shared memory, semaphores and message queues.
    pub communication: bool,
    /// The machine's name.
    pub name: bool,
    /// Network interfaces.
    pub network: bool,
}

/// Moves this process into new namespaces for these parts.
pub fn unshare_parts(parts: Parts) -> io::Result<()> {
    let mut namespaces = UnshareFlags::empty();
    namespaces.set(UnshareFlags::NEWPID, parts.processes);
    namespaces.set(UnshareFlags::NEWIPC, parts.communication);
    namespaces.set(UnshareFlags::NEWUTS, parts.name);
    namespaces.set(UnshareFlags::NEWNET, parts.network);
    match namespaces.is_empty() {
        true => Ok(()),
        false => unshare(namespaces),
    }
}

/// Switches the loopback interface of this process's network namespace on; see netdevice(7).
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: all zeros is a value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the call reads a `struct ifreq`, which outlives it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
