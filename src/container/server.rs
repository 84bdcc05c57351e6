//! The process that serves an image to programs: started by a client, gone when the programs are.
//!
//! It stays in the host's namespaces, so that the store, credential helpers and the network are the
//! user's. It keeps nothing that it inherited but, until the image can be read, standard error.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use sifon_mount::sys::process;

use super::error::{Error, in_one_line};
use super::namespaces::{self, Joinable, Privilege};
use super::wire::{self, Ready, Reply, Request};

/// Longest that a client may take to say what it wants: it has it ready.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

/// A server that this process started, not asked for anything yet.
pub struct Server(OwnedFd);

impl Server {
    /// Starts this program again with `verb`, whose implementation calls [`serve`].
    pub fn start(verb: &str) -> Result<Self, Error> {
        let failed = |err| Error::system("start of the image's server", err);
        let (here, there) = wire::pair().map_err(failed)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("sifon")
            .arg(verb)
            .stdin(Stdio::from(there))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        // It goes on as another process, so that the program never has a child it did not start.
        let status = child.wait().map_err(failed)?;
        if !status.success() {
            return Err(Error::Refused(format!(
                "start of the image's server: it ended with {status}"
            )));
        }
        Ok(Self(here))
    }

    /// Asks for an image, and waits until it can be read; the server's own limits end the wait.
    pub fn ask(self, request: &Request) -> Result<(Ready, Joinable), Error> {
        let failed = |err| Error::system("the image's server", err);
        wire::send(self.0.as_fd(), request, &[]).map_err(failed)?;
        match wire::receive::<Reply>(self.0.as_fd()).map_err(failed)? {
            Some((Reply::Ready(ready), descriptors)) => Joinable::from_descriptors(descriptors)
                .map(|joinable| (ready, joinable))
                .ok_or_else(|| Error::Refused("the image's server sent no namespaces".into())),
            Some((Reply::Failed { message, hint }, _)) => Err(Error::Reported { message, hint }),
            None => Err(Error::Refused(
                "the image's server ended before the image could be read".into(),
            )),
        }
    }
}

/// An image that is mounted and answers.
pub struct Prepared {
    /// What the client is told.
    pub ready: Ready,
    /// Returns when the image is unmounted everywhere.
    pub session: Box<dyn FnOnce() + Send>,
}

/// What opens and serves the image of a request: it gets the connection to /dev/fuse of a file system
/// that is mounted, and for whom that is. It runs in a thread of its own.
pub type Prepare = Box<dyn FnOnce(Request, OwnedFd, Privilege) -> Result<Prepared, Refusal> + Send>;

/// Why an image cannot be served, and what the user can do about it.
pub struct Refusal {
    /// The error, with its causes.
    pub error: Box<dyn std::error::Error + Send + Sync>,
    /// The hint, if there is one.
    pub hint: Option<String>,
}

/// The server: to be called in the first lines of the process that [`Server::start`] starts, with a
/// single thread and nothing opened. Returns when the image is unmounted, or when the client is gone
/// before it could be read.
pub fn serve(prepare: Prepare) -> Result<(), Error> {
    let socket = begin().map_err(|err| Error::system("start of the image's server", err))?;
    let result = answer(&socket, prepare);
    if let Err(error) = &result {
        let reply = Reply::Failed {
            message: error.in_one_line(),
            hint: error.hint().map(str::to_owned),
        };
        let _ = wire::send(socket.as_fd(), &reply, &[]);
    }
    // The client, if it is still there, has been told.
    Ok(())
}

/// Leaves everything inherited behind but standard error; gives the socket that is standard input.
fn begin() -> io::Result<OwnedFd> {
    process::close_inherited(3)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = null()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    process::detach()?;
    let _ = rustix::thread::set_name(c"sifon-server");
    wire::require_same_user(&socket)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(REQUEST_LIMIT))?;
    Ok(socket)
}

fn answer(socket: &OwnedFd, prepare: Prepare) -> Result<(), Error> {
    let failed = |err| Error::system("the client of the image's server", err);
    let Some((request, _)) = wire::receive::<Request>(socket.as_fd()).map_err(failed)? else {
        return Ok(());
    };
    let privilege = Privilege::of_caller();
    let (joinable, connection) = namespaces::create(privilege, || {
        namespaces::mount_fuse("/", &namespaces::fuse_options(privilege))
    })?;
    let prepared = match prepared(socket, move || prepare(request, connection, privilege)) {
        Outcome::Prepared(prepared) => prepared,
        Outcome::ClientIsGone => return Ok(()),
        Outcome::Refused(Refusal { error, hint }) => {
            return Err(Error::Reported {
                message: in_one_line(error.as_ref()),
                hint,
            });
        }
    };
    let _ = null().map(|null| rustix::stdio::dup2_stderr(&null));
    let descriptors = joinable.descriptors();
    wire::send(socket.as_fd(), &Reply::Ready(prepared.ready), &descriptors).map_err(failed)?;
    // From here on the namespaces are the client's alone: they end when its last process does, the
    // image is unmounted then, and the session with it.
    drop(joinable);
    (prepared.session)();
    Ok(())
}

enum Outcome {
    Prepared(Prepared),
    Refused(Refusal),
    ClientIsGone,
}

/// What `prepare` gives, in a thread of its own; this one waits for that, or for the client's end,
/// whichever comes first.
fn prepared(
    socket: &OwnedFd,
    prepare: impl FnOnce() -> Result<Prepared, Refusal> + Send + 'static,
) -> Outcome {
    let refused = |error: io::Error| {
        Outcome::Refused(Refusal {
            error: error.into(),
            hint: None,
        })
    };
    let (wake, waker) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
        Ok(pipe) => pipe,
        Err(err) => return refused(err.into()),
    };
    let (give, take) = mpsc::channel();
    let worker = thread::Builder::new().name("open".into()).spawn(move || {
        let _ = give.send(prepare());
        drop(waker);
    });
    if let Err(err) = worker {
        return refused(err);
    }
    loop {
        let mut watched = [
            PollFd::new(&wake, PollFlags::IN),
            // Nothing is said on the socket until the reply: whatever happens there is its end.
            PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return refused(err.into()),
        }
        if !watched[0].revents().is_empty() {
            return match take.recv() {
                Ok(Ok(prepared)) => Outcome::Prepared(prepared),
                Ok(Err(refusal)) => Outcome::Refused(refusal),
                Err(_) => refused(io::Error::other("opening the image ended in a panic")),
            };
        }
        if !watched[1].revents().is_empty() {
            return Outcome::ClientIsGone;
        }
    }
}

fn null() -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty()).map(File::from)?)
}
