//! The process that serves an image to programs: started by a client, gone when the programs are.
//!
//! It stays in the host's namespaces, so that the store, credential helpers and the network are the
//! user's. It keeps nothing that it inherited but, until the image can be read, standard error.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt;
use serde::Serialize;
use sifon_mount::registry::Credentials;
use sifon_mount::sys::{descriptor, process};

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
        let mut command = Command::new("/proc/self/exe");
        // They come with the request's settings; in /proc they would be seen as long as the server lives.
        for variable in Credentials::variables() {
            command.env_remove(variable);
        }
        let mut child = command
            .arg0("sifon")
            .arg(verb)
            .stdin(Stdio::from(there))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
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
    /// `on_progress` hears how far that is.
    pub fn ask(
        self,
        request: &Request,
        on_progress: &dyn Fn(serde_json::Value),
    ) -> Result<(Ready, Joinable), Error> {
        let failed = |err| Error::system("the image's server", err);
        wire::send(self.0.as_fd(), request, &[]).map_err(failed)?;
        loop {
            match wire::receive::<Reply>(self.0.as_fd()).map_err(failed)? {
                Some((Reply::Progress(step), _)) => on_progress(step),
                Some((Reply::Ready(ready), descriptors)) => {
                    let joinable = Joinable::from_descriptors(descriptors);
                    return joinable.map(|joinable| (ready, joinable)).ok_or_else(|| {
                        Error::Refused("the image's server sent no namespaces".into())
                    });
                }
                Some((Reply::Failed { message, hint }, _)) => {
                    return Err(Error::Reported { message, hint });
                }
                None => {
                    let problem = "the image's server ended before the image could be read";
                    return Err(Error::Refused(problem.into()));
                }
            }
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

/// A request for an image, with what is needed to show it.
pub struct Opening {
    /// What the client asked.
    pub request: Request,
    /// The connection to /dev/fuse of a file system that is mounted and waits to be served.
    pub connection: OwnedFd,
    /// For whom that is.
    pub privilege: Privilege,
    /// Where to tell how far the opening is.
    pub teller: Teller,
}

/// What opens and serves an image. It runs in a thread of its own.
pub type Prepare = Box<dyn FnOnce(Opening) -> Result<Prepared, Refusal> + Send>;

/// Tells a client how far the opening of its image is.
#[derive(Clone)]
pub struct Teller(Arc<Mutex<OwnedFd>>);

impl Teller {
    /// Sends one step. It is lost when the client does not keep up, because it may be stopped.
    pub fn tell(&self, step: &impl Serialize) {
        let Ok(step) = serde_json::to_value(step) else {
            return;
        };
        let socket = self.0.lock().expect("sending does not panic");
        // Writable means that a good part of the buffer is free, far more than a step takes.
        let mut watched = [PollFd::new(&*socket, PollFlags::OUT)];
        if rustix::event::poll(&mut watched, Some(&Timespec::default()))
            .is_ok_and(|ready| ready > 0)
        {
            // A client that is gone is noticed elsewhere.
            let _ = wire::send(socket.as_fd(), &Reply::Progress(step), &[]);
        }
    }
}

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
    descriptor::let_go_of_input_and_output()?;
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
    let (joinable, connection) =
        namespaces::create(privilege, || namespaces::mount_fuse("/", privilege))?;
    let teller = Teller(Arc::new(Mutex::new(socket.try_clone().map_err(failed)?)));
    let opening = Opening {
        request,
        connection,
        privilege,
        teller,
    };
    let prepared = match prepared(socket, move || prepare(opening)) {
        Outcome::Prepared(prepared) => prepared,
        Outcome::ClientIsGone => return Ok(()),
        Outcome::Refused(Refusal { error, hint }) => {
            return Err(Error::Reported {
                message: in_one_line(error.as_ref()),
                hint,
            });
        }
    };
    // Nothing of the client's is kept from here on: not its terminal, not its directory.
    descriptor::let_go_of_stderr().map_err(failed)?;
    rustix::process::chdir("/").map_err(|err| failed(err.into()))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_lost_rather_than_waited_for() {
        let (client, server) = wire::pair().unwrap();
        let teller = Teller(Arc::new(Mutex::new(server)));
        for step in 0..50_000 {
            teller.tell(&step);
        }
        drop(teller);
        let mut told = 0;
        while let Some((reply, _)) = wire::receive::<Reply>(client.as_fd()).unwrap() {
            assert!(matches!(reply, Reply::Progress(step) if step == told));
            told += 1;
        }
        assert!(told > 10 && told < 50_000, "{told}");
    }

    #[test]
    fn a_client_hears_of_progress_and_then_the_answer() {
        let (client, server) = wire::pair().unwrap();
        let served = thread::spawn(move || {
            let (request, _) = wire::receive::<Request>(server.as_fd()).unwrap().unwrap();
            Teller(Arc::new(Mutex::new(server.try_clone().unwrap()))).tell(&"half");
            let message = format!("no {}", request.image.display());
            wire::send(
                server.as_fd(),
                &Reply::Failed {
                    message,
                    hint: None,
                },
                &[],
            )
            .unwrap();
        });
        let request = Request {
            settings: serde_json::Value::Null,
            image: "x".into(),
            targets: Vec::new(),
        };
        let heard = std::cell::RefCell::new(Vec::new());
        let error = Server(client)
            .ask(&request, &|step| heard.borrow_mut().push(step))
            .unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), heard.into_inner()),
            ("no x", vec!["half".into()])
        );
        served.join().unwrap();
    }
}
