//! Processes that stay above a program which has process numbers of its own.
//!
//! The first process of a process namespace takes all others with it when it ends, and has to see off those whose parents are
//! gone; signals without a handler do not reach it. So the program is not that process but its child, and outside waits
//! the one that the user started, which passes signals on and ends as the program does.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use sifon_mount::sys::process::fork;
use sifon_mount::sys::signal::{self, Signals};

use super::error::Error;
use super::process;

/// Runs `program`, which becomes one, as a process of a new process namespace, for which this process has called unshare(2), and
/// ends as it does; where it `stays`, not if that was an exit of its own, but when a signal comes. `report` prints why `program`
/// returned; `begun` is called in each process that stays above the program: in this one with the number of the other. Returns
/// only if no process can be made; this one must have a single thread.
pub fn supervised(
    program: impl FnOnce() -> Result<Infallible, Error>,
    stays: bool,
    report: &dyn Fn(Error),
    begun: &dyn Fn(Option<Pid>) -> Result<(), Error>,
) -> Result<Infallible, Error> {
    let failed = |err| Error::system("processes of the container's own", err);
    let (tell, told) = {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|err| failed(err.into()))?;
        (write, read)
    };
    let signals = Signals::to_pass_on().map_err(failed)?;
    let first = fork(
        || match first_process(program, stays, report, begun, &signals, &tell) {
            Ok(()) => 0,
            Err(err) => {
                report(failed(err));
                255
            }
        },
    )
    .map_err(failed)?;
    drop(tell);
    begun(Some(first))?;
    let status = pass_signals_until_the_end(&signals, first).map_err(failed)?;
    end_as(&told, status).map_err(failed)
}

/// Runs `program` as a child of this process, which passes signals on and ends as it does.
pub fn below(
    program: impl FnOnce() -> Result<Infallible, Error>,
    report: &dyn Fn(Error),
) -> Result<Infallible, Error> {
    let failed = |err| Error::system("a process in the container", err);
    let signals = Signals::to_pass_on().map_err(failed)?;
    let child = released(program, report).map_err(failed)?;
    let status = pass_signals_until_the_end(&signals, child).map_err(failed)?;
    End::of(status).follow().map_err(failed)
}

/// Starts `program`, without the signals that are waited for here, as a process that goes with this one.
fn released(
    program: impl FnOnce() -> Result<Infallible, Error>,
    report: &dyn Fn(Error),
) -> io::Result<Pid> {
    fork(|| {
        let released = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(io::Error::from)
            .and_then(|()| signal::release())
            .map_err(|err| Error::system("signals", err));
        match released.and_then(|()| program()) {
            Ok(never) => match never {},
            Err(error) => {
                report(error);
                255
            }
        }
    })
}

/// The namespace's first process: starts the program, and sees to its orphans until it has ended.
fn first_process(
    program: impl FnOnce() -> Result<Infallible, Error>,
    stays: bool,
    report: &dyn Fn(Error),
    begun: &dyn Fn(Option<Pid>) -> Result<(), Error>,
    signals: &Signals,
    tell: &OwnedFd,
) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let _ = rustix::thread::set_name(c"sifon-init");
    // Others of the user can join its namespaces.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    let program = released(program, report)?;
    begun(None).map_err(io::Error::other)?;
    let mut status = pass_signals_until_the_end(signals, program)?;
    // Ours, if the program could not be started; a script that ended, however, leaves its instance.
    const FAILED: i32 = 255;
    if stays && status.exit_status().is_some_and(|code| code != FAILED) {
        // Those that it started go on, and others can join.
        let waiting = released(|| Err(process::wait_for_a_signal()), report)?;
        status = pass_signals_until_the_end(signals, waiting)?;
    }
    let end = End::of(status);
    rustix::io::write(tell, &[u8::from(end.is_signal), end.number])?;
    Ok(())
}

/// Passes signals on to `child` until that has ended, and gives its status. Other children are seen off.
fn pass_signals_until_the_end(signals: &Signals, child: Pid) -> io::Result<WaitStatus> {
    loop {
        // Before the first signal too: it may have ended already.
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == child => return Ok(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(err) => return Err(err.into()),
            }
        }
        let (number, is_from_kernel) = signals.next()?;
        // What a terminal sends, the program gets from there, too.
        if let Some(signal) = Signal::from_named_raw(number)
            && signal != Signal::CHILD
            && !is_from_kernel
        {
            // It may have ended just now.
            let _ = rustix::process::kill_process(child, signal);
        }
    }
}

/// How a process ended.
struct End {
    is_signal: bool,
    number: u8,
}

impl End {
    fn of(status: WaitStatus) -> Self {
        let signal = status.terminating_signal();
        let number = signal.or(status.exit_status()).unwrap_or(255);
        Self {
            is_signal: signal.is_some(),
            number: u8::try_from(number).unwrap_or(255),
        }
    }

    /// Ends this process in the same way.
    fn follow(self) -> io::Result<Infallible> {
        if self.is_signal {
            signal::die_of(self.number.into())?;
        }
        std::process::exit(self.number.into())
    }
}

/// Ends this process as the program ended, of which its first process told; `status` is that of the first process.
fn end_as(told: &OwnedFd, status: WaitStatus) -> io::Result<Infallible> {
    let mut bytes = [0; 2];
    let end = match rustix::io::read(told, &mut bytes)? {
        2 => End {
            is_signal: bytes[0] == 1,
            number: bytes[1],
        },
        // It was killed, or could not begin.
        _ => End::of(status),
    };
    end.follow()
}
