//! Descriptors that a process that goes on by itself must not keep.

use std::io;

use rustix::fs::{Mode, OFlags};

/// Keeps every descriptor above stderr from programs that this process starts from now on, those it
/// inherited itself included. Descriptors of ours are close-on-exec anyway.
pub fn keep_descriptors_from_children() -> io::Result<()> {
    // SAFETY: the call takes numbers only. Setting the flag closes nothing here.
    let set = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if set == 0 {
        return Ok(());
    }
    // Linux before 5.11.
    for descriptor in std::fs::read_dir("/proc/self/fd")? {
        let number = descriptor?.file_name();
        let Some(number) = number.to_str().and_then(|number| number.parse().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: setting the flag closes nothing; a number that was closed meanwhile is an error.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Puts /dev/null in the place of stdin.
pub fn let_go_of_input() -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdin(null()?)?)
}

/// Puts /dev/null in the place of stdin and stdout.
pub fn let_go_of_input_and_output() -> io::Result<()> {
    let null = null()?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

/// Puts /dev/null in the place of stdout.
pub fn let_go_of_output() -> io::Result<()> {
    Ok(rustix::stdio::dup2_stdout(null()?)?)
}

/// Puts /dev/null in the place of stderr.
pub fn let_go_of_stderr() -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(null()?)?)
}

fn null() -> io::Result<rustix::fd::OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::FdFlags;

    #[test]
    fn descriptors_stay_open_here_and_close_in_children() {
        let kept = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&kept, FdFlags::empty()).unwrap();
        keep_descriptors_from_children().unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&kept).unwrap(), FdFlags::CLOEXEC);
    }
}
