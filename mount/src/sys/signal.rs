//! Signals as something to wait for, instead of something that interrupts.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// SIGINT, SIGTERM and SIGHUP, kept from interrupting this thread and those that it starts later.
pub struct Signals(OwnedFd);

impl Signals {
    /// Must be called before the process starts a second thread: another thread would still be
    /// ended by a signal.
    pub fn caught() -> io::Result<Self> {
        let set = stopping();
        // SAFETY: `set` is a valid signal set, and a null pointer means that the old mask is not asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: -1 asks for a new descriptor, `set` is a valid signal set.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and nobody else has seen it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Waits for one of them, without a deadline: for a thread that does nothing else.
    pub fn wait(&self) -> io::Result<i32> {
        let mut told = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.0, &mut told) {
                // signalfd(2): the number is the first field, in the machine's byte order.
                Ok(read) if read == told.len() => {
                    let number = [told[0], told[1], told[2], told[3]];
                    return Ok(i32::from_ne_bytes(number));
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signals({})", self.0.as_raw_fd())
    }
}

fn stopping() -> libc::sigset_t {
    // SAFETY: all zeros is a value of this plain structure, and the next call overwrites it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writing.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `set` was initialised above, and the number is one of the system's.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
