//! Processes that split: forks of a single thread, descriptors that were inherited.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::Pid;

/// Runs `run` in a copy of this process, which ends with what `run` returns as its exit status. The
/// caller waits for it. Fails where this process has more than one thread, because the copy would
/// have only the calling one, and locks that the others held for ever.
pub fn fork(run: impl FnOnce() -> u8) -> io::Result<Pid> {
    require_single_thread("fork")?;
    // SAFETY: the child of a process with several threads may call only what is safe in a signal
    // handler; this process has one thread, as was just checked, and only it could start another.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Nothing may unwind into the copy of the caller's frames, nor run its exit handlers.
            let status = catch_unwind(AssertUnwindSafe(run)).unwrap_or(101);
            leave(status)
        }
        child => Ok(Pid::from_raw(child).expect("fork gives the parent a positive number")),
    }
}

/// Goes on as a process that nobody waits for, in a session of its own, without a terminal: forks,
/// and the process that was started ends with status 0. Fails where there is more than one thread.
pub fn detach() -> io::Result<()> {
    require_single_thread("fork")?;
    // SAFETY: as in `fork` above: this is the only thread.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => rustix::process::setsid().map(drop).map_err(io::Error::from),
        _ => leave(0),
    }
}

/// Fails where this process has more than one thread; `what` names what must not be done then.
pub fn require_single_thread(what: &str) -> io::Result<()> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{what}: the process has {threads} threads, and must have one"
    )))
}

/// Closes every descriptor from `first` on. For the first lines of `main`, where everything that is
/// open was inherited and no value of this program owns a descriptor from `first` on.
pub fn close_inherited(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: close_range takes no pointers. Closing a descriptor that an `OwnedFd` holds would let
    // that close a stranger later; the caller promises that there is none yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    close_one_by_one(first)
}

/// For kernels before 5.9, which have no close_range.
fn close_one_by_one(first: libc::c_uint) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for descriptor in open {
        if descriptor.unsigned_abs() >= first {
            // SAFETY: takes no pointers, and fails harmlessly for the directory's own descriptor,
            // which is closed by now; for all others the caller's promise holds.
            let _ = unsafe { libc::close(descriptor) };
        }
    }
    Ok(())
}

/// Ends this process without running exit handlers or flushing what its parent will flush.
fn leave(status: u8) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(i32::from(status)) }
}
