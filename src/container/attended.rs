//! Work for a client that may go at any moment.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::images::Refusal;

/// How answering a client ended, other than well.
pub(super) enum Ended {
    Refused {
        message: String,
        hint: Option<String>,
    },
    ClientIsGone,
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::ClientIsGone,
            _ => Self::Failed(error),
        }
    }
}

impl From<Refusal> for Ended {
    fn from(Refusal { message, hint }: Refusal) -> Self {
        Self::Refused { message, hint }
    }
}

/// Begins `work` in a thread of its own. What is given waits for it, or for the client's end, whichever comes first; nobody waits
/// for the work then.
pub(super) fn while_connected<T: Send + 'static>(
    client: &UnixStream,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> io::Result<impl FnOnce() -> Result<T, Ended>> {
    let (wake, waker) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (give, take) = mpsc::channel();
    thread::Builder::new().name("open".into()).spawn(move || {
        let _ = give.send(work());
        drop(waker);
    })?;
    Ok(move || {
        wait_for_either(&wake, client)?;
        let done = take.recv();
        Ok(done.map_err(|_| io::Error::other("opening the image ended in a panic"))??)
    })
}

/// Waits for the end of `wake`'s other end, or of the client.
fn wait_for_either(wake: &OwnedFd, client: &UnixStream) -> Result<(), Ended> {
    loop {
        let mut watched = [
            PollFd::new(wake, PollFlags::IN),
            // Nothing is said on the socket until the reply: whatever happens there is its end.
            PollFd::new(client, PollFlags::IN | PollFlags::RDHUP),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(Ended::Failed(err.into())),
        }
        if !watched[0].revents().is_empty() {
            return Ok(());
        }
        if !watched[1].revents().is_empty() {
            return Err(Ended::ClientIsGone);
        }
    }
}
