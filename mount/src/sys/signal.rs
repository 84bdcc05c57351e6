//! Signals as something to wait for, instead of something that interrupts.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Some signals, SIGINT, SIGTERM and SIGHUP among them, kept from interrupting this thread and those that it starts later.
pub struct Signals(OwnedFd);

impl Signals {
    /// Must be called before the process starts a second thread: another thread would still be
    /// ended by a signal.
    pub fn caught() -> io::Result<Self> {
        Self::of(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])
    }

    /// The same of those that one process passes on to another: all that can be caught but those of job control and faults.
    pub fn to_pass_on() -> io::Result<Self> {
        Self::of(&PASSED_ON)
    }

    fn of(numbers: &[i32]) -> io::Result<Self> {
        let set = set_of(numbers);
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
        self.next().map(|(number, _)| number)
    }

    /// The same; with it whether the kernel sent it, as a terminal does to all processes in the foreground.
    pub fn next(&self) -> io::Result<(i32, bool)> {
        let mut told = [0u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.0, &mut told) {
                // signalfd(2): the number is the first field, the code the third, in the machine's byte order.
                Ok(read) if read == told.len() => {
                    let number = [told[0], told[1], told[2], told[3]];
                    let code = i32::from_ne_bytes([told[8], told[9], told[10], told[11]]);
                    return Ok((i32::from_ne_bytes(number), code == libc::SI_KERNEL));
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

const PASSED_ON: [i32; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGWINCH,
    libc::SIGXCPU,
    libc::SIGPWR,
];

/// Lets the signals of [`Signals::to_pass_on`] through again, for a program that is about to be started.
pub fn release() -> io::Result<()> {
    let set = set_of(&PASSED_ON);
    // SAFETY: `set` is a valid signal set, and a null pointer means that the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Ends this process by a signal, as it would end one that does nothing about it.
pub fn die_of(number: i32) -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid action for any signal; numbers that are none are refused.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    let set = set_of(&[number]);
    // SAFETY: as in `release`.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    // SAFETY: takes numbers only.
    unsafe { libc::raise(number) };
    Err(io::Error::last_os_error())
}

fn set_of(numbers: &[i32]) -> libc::sigset_t {
    // SAFETY: all zeros is a value of this plain structure, and the next call overwrites it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writing.
    unsafe { libc::sigemptyset(&raw mut set) };
    for &signal in numbers {
        // SAFETY: `set` was initialised above; a number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
