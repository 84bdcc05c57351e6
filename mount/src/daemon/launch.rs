//! Starting a daemon and hearing from it: the two ends of one socket.
//!
//! The one who launches sends its request as a line of JSON; the daemon answers with lines of JSON:
//! progress, then that it is ready, or why not. The socket is the daemon's stdin, so nothing about
//! the request is seen in its arguments. When the launcher ends before the daemon is ready, the daemon ends too.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::respawn::Respawn;
use super::stop::Stop;
use crate::sys::descriptor;

/// Bytes of one line at most. A request holds settings, and perhaps a few certificates.
const LINE_LIMIT: u64 = 16 << 20;

/// What the daemon says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Progress(serde_json::Value),
    Ready,
    Failed(Failure),
}

/// What went wrong in the daemon, as its error's chain of causes told it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    message: String,
    cause: Option<Box<Failure>>,
    hint: Option<String>,
}

impl Failure {
    fn of(error: &dyn std::error::Error, hint: Option<String>) -> Self {
        Self {
            message: error.to_string(),
            cause: error.source().map(|cause| Box::new(Self::of(cause, None))),
            hint,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Why no daemon runs after [`launch`].
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be started, or its answers could not be read.
    #[error("the mount's process cannot be started")]
    Start(#[source] io::Error),
    /// It said why.
    #[error(transparent)]
    Failed(Failure),
    /// It ended without a word.
    #[error("the mount's process ended before the image could be read: {0}")]
    Died(ExitStatus),
}

impl LaunchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Failed(failure) => failure.hint(),
            Self::Start(_) | Self::Died(_) => None,
        }
    }
}

/// Starts `daemon` with `request` and waits until it is ready; gives its process id. `progress` hears
/// what it reports meanwhile. Waits as long as the daemon lives: each of its own waits has a deadline.
pub fn launch<P: DeserializeOwned>(
    daemon: &Respawn,
    request: &impl Serialize,
    progress: impl FnMut(P),
) -> Result<u32, LaunchError> {
    let (mut child, mut socket) = started(daemon).map_err(LaunchError::Start)?;
    let sent = send(&mut socket, request);
    let answer = sent.and_then(|()| last_answer(&socket, progress));
    match answer {
        Ok(Some(Answer::Ready)) => Ok(child.id()),
        Ok(Some(Answer::Failed(failure))) => {
            let _ = child.wait();
            Err(LaunchError::Failed(failure))
        }
        Ok(Some(Answer::Progress(_)) | None) | Err(_) => {
            drop(socket);
            let status = child.wait().map_err(LaunchError::Start)?;
            Err(LaunchError::Died(status))
        }
    }
}

fn started(daemon: &Respawn) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = daemon
        .command()?
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    Ok((child, ours))
}

fn last_answer<P: DeserializeOwned>(
    socket: &UnixStream,
    mut progress: impl FnMut(P),
) -> io::Result<Option<Answer>> {
    let mut lines = BufReader::new(socket);
    loop {
        match line(&mut lines)? {
            Some(Answer::Progress(value)) => {
                // A line of another form comes from another version of this program: not worth failing for.
                if let Ok(value) = serde_json::from_value(value) {
                    progress(value);
                }
            }
            answer => return Ok(answer),
        }
    }
}

fn send(mut socket: impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    socket.write_all(&line)
}

fn line<T: DeserializeOwned>(lines: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    lines.take(LINE_LIMIT).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// The daemon's voice towards the one who launched it.
#[derive(Clone)]
pub struct Announcer(Arc<Mutex<UnixStream>>);

/// Makes this process, which [`launch`] started, a daemon: in its own session, without the launcher's
/// stdin and stdout. To be called first thing, before the process starts threads. stderr and the current directory
/// stay until [`Announcer::ready`], for messages and for relative paths in the request.
pub fn begin<T: DeserializeOwned>() -> io::Result<(T, Announcer, Stop)> {
    let stop = Stop::on_signals()?;
    // Fails only for the leader of a process group, which a child of `launch` is not.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"sifon");
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    descriptor::let_go_of_input_and_output()?;
    let mut lines = BufReader::new(socket.try_clone()?);
    let request = line(&mut lines)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    stop.when(move || {
        // The launcher says nothing more: this returns when it is gone.
        let _ = lines.read(&mut [0]);
    })?;
    Ok((request, Announcer(Arc::new(Mutex::new(socket))), stop))
}

impl Announcer {
    /// Reports how far the work is. Lost when the launcher does not keep up (it may be stopped).
    pub fn progress(&self, progress: &impl Serialize) {
        let Ok(value) = serde_json::to_value(progress) else {
            return;
        };
        let socket = self.0.lock();
        if is_writable(&socket) {
            let _ = send(&*socket, &Answer::Progress(value));
        }
    }

    /// Lets go of the launcher's terminal and directory and tells it to go on. An error means that the launcher
    /// is gone: nobody knows of this daemon, so it should end.
    pub fn ready(&self) -> io::Result<()> {
        descriptor::let_go_of_stderr()?;
        rustix::process::chdir("/")?;
        send(&*self.0.lock(), &Answer::Ready)
    }

    /// Tells the launcher why there will be nothing.
    pub fn failed(&self, error: &dyn std::error::Error, hint: Option<String>) {
        let _ = send(&*self.0.lock(), &Answer::Failed(Failure::of(error, hint)));
    }
}

/// Whether a short line can be written without waiting: the kernel says so while three quarters of
/// the socket's buffer are free.
fn is_writable(socket: &UnixStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_the_chain_of_causes() {
        let cause = io::Error::from_raw_os_error(2);
        let failure = Failure::of(&LaunchError::Start(cause), Some("try again".into()));
        let told = serde_json::to_string(&Answer::Failed(failure)).unwrap();
        let Ok(Answer::Failed(failure)) = serde_json::from_str(&told) else {
            panic!("{told}");
        };
        assert_eq!(failure.to_string(), "the mount's process cannot be started");
        let cause = std::error::Error::source(&failure).unwrap();
        assert_eq!(cause.to_string(), "No such file or directory (os error 2)");
        assert_eq!(failure.hint(), Some("try again"));
    }

    #[test]
    fn progress_is_lost_rather_than_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let announcer = Announcer(Arc::new(Mutex::new(theirs)));
        for bytes in 0..100_000 {
            announcer.progress(&bytes);
        }
        drop(announcer);
        let mut told = 0;
        let answer = last_answer(&ours, |bytes: u32| {
            assert_eq!(bytes, told);
            told += 1;
        });
        assert!(answer.unwrap().is_none());
        assert!(told > 10 && told < 100_000);
    }
}
