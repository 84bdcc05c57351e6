//! The side of a program's own process in talking to its server.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sifon_mount::registry::Credentials;

use super::clients::own_mount_namespace;
use super::error::Error;
use super::front;
use super::meeting::{Group, Met};
use super::namespaces::{self, Joinable, Privilege};
use super::outside;
use super::wire::{self, Ask, Joined, MountedHere, Ready, Reply, Request, Status};

/// How long a server may take to say a word to a new client: it has a thread that does nothing else.
const WELCOME_LIMIT: Duration = Duration::from_secs(30);

/// How often a server is looked for that is just leaving.
const TRIES: u32 = 8;

/// The variable that tells a server of which kind it is to be.
pub const KIND: &str = "SIFON_SERVER_KIND";

/// A connection to a server.
#[derive(Debug)]
pub struct Server {
    stream: UnixStream,
    /// The process that became the server by splitting, if this client started it.
    starter: Option<Child>,
}

/// Hears how the opening of an image goes. Must start no thread.
pub trait Hears {
    /// One step, for those who draw bars.
    fn step(&self, step: serde_json::Value);
    /// A line for the user.
    fn message(&self, line: &str);
}

impl Server {
    /// Connects to the server of `group`; if there is none, starts this program again with `verb`, whose implementation serves; `kind`
    /// is in its environment.
    pub fn reach(group: &Group, verb: &str, kind: &str) -> Result<Self, Error> {
        let failed = |err| Error::system("the images' server", err);
        for _ in 0..TRIES {
            let (stream, starter) = match group.meet().map_err(failed)? {
                Met::Server(stream) => (stream, None),
                Met::Nobody(listener) => {
                    let address = listener.local_addr().map_err(failed)?;
                    let starter = start(verb, kind, listener.into())?;
                    let stream = UnixStream::connect_addr(&address).map_err(failed)?;
                    (stream, Some(starter))
                }
            };
            if let Some(server) = Self::welcomed(stream, starter)? {
                return Ok(server);
            }
        }
        Err(Error::Refused(format!(
            "the images' server ended before it answered, {TRIES} times"
        )))
    }

    /// None if the server is about to leave.
    fn welcomed(stream: UnixStream, starter: Option<Child>) -> Result<Option<Self>, Error> {
        let failed = |err| Error::system("the images' server does not answer", err);
        stream
            .set_read_timeout(Some(WELCOME_LIMIT))
            .map_err(failed)?;
        let welcome = match wire::receive::<Reply>(stream.as_fd()) {
            Ok(welcome) => welcome,
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => None,
            Err(err) => return Err(failed(err)),
        };
        // What it does from here on has limits of its own.
        stream.set_read_timeout(None).map_err(failed)?;
        let mut server = Self { stream, starter };
        match welcome {
            Some((Reply::Welcome, _)) => Ok(Some(server)),
            Some(_) => Err(Error::Refused(
                "the images' server speaks another language".into(),
            )),
            None => {
                server.let_go_of_starter()?;
                Ok(None)
            }
        }
    }

    /// A server that is already there; see [`super::meeting::servers`].
    pub fn at(stream: UnixStream) -> Result<Option<Self>, Error> {
        Self::welcomed(stream, None)
    }

    /// The server goes on as another process, so that the program never has a child it did not start.
    fn let_go_of_starter(&mut self) -> Result<(), Error> {
        let Some(mut starter) = self.starter.take() else {
            return Ok(());
        };
        let status = starter
            .wait()
            .map_err(|err| Error::system("start of the images' server", err))?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::Refused(format!(
                "start of the images' server: it ended with {status}"
            ))),
        }
    }

    /// Asks for an image, mounts it if nobody has yet, and waits until it can be read. Gives where it can be joined, and the
    /// connection on which [`Joining::done`] is to be said. This process must have a single thread, and may be in the image's
    /// namespaces afterwards.
    pub fn ask(
        mut self,
        request: Request,
        privilege: Privilege,
        hears: &dyn Hears,
    ) -> Result<(Ready, Joinable, Joining), Error> {
        self.let_go_of_starter()?;
        let failed = |err| Error::system("the images' server", err);
        let socket = self.stream.as_fd();
        wire::send(socket, &Ask::Start(request), &[]).map_err(failed)?;
        let mut own: Option<Joinable> = None;
        loop {
            match wire::receive::<Reply>(socket).map_err(failed)? {
                Some((Reply::Progress(step), _)) => hears.step(step),
                Some((Reply::Message(line), _)) => hears.message(&line),
                Some((Reply::Mount, descriptors)) => {
                    let user = descriptors.into_iter().next();
                    let mount = || namespaces::mount_fuse("/", privilege);
                    let (joinable, connection) = namespaces::enter_and_mount(user, mount)?;
                    let mut descriptors = vec![connection.as_fd()];
                    descriptors.extend(joinable.descriptors());
                    wire::send(socket, &MountedHere, &descriptors).map_err(failed)?;
                    own = Some(joinable);
                }
                Some((Reply::Answering, _)) => {
                    if let Some(Err(err)) = own.as_ref().map(front::put) {
                        tracing::debug!("{}: programs see the image itself", err.in_one_line());
                    }
                    wire::send(socket, &MountedHere, &[]).map_err(failed)?;
                }
                Some((Reply::Ready(ready), descriptors)) => {
                    let mut joinable =
                        Joinable::from_descriptors(descriptors).ok_or_else(|| {
                            Error::Refused("the images' server sent no namespaces".into())
                        })?;
                    if own.is_some() {
                        joinable.user = None;
                    }
                    return Ok((ready, joinable, Joining(self.stream)));
                }
                Some((Reply::Failed { message, hint }, _)) => {
                    return Err(Error::Reported { message, hint });
                }
                Some((Reply::Welcome | Reply::Answer(_) | Reply::Status(_), _)) => {}
                None => {
                    let problem = "the images' server ended before the image could be read";
                    return Err(Error::Refused(problem.into()));
                }
            }
        }
    }

    /// A mount of what lies at `part` in an image that the server of `group` shows, attached nowhere. The image is there as long as the
    /// mount. Symlinks of the image lead to its own files only.
    pub fn tree(
        group: &Group,
        verb: &str,
        kind: &str,
        request: Request,
        part: &Path,
        hears: &dyn Hears,
    ) -> Result<OwnedFd, Error> {
        let made = namespaces::in_another_process(|| {
            let server = Self::reach(group, verb, kind)?;
            let (_, joinable, joining) = server.ask(request, Privilege::of_caller(), hears)?;
            let image = namespaces::join(joinable, |root| !front::is_one(root))?;
            joining.done()?;
            let shown = match part == Path::new("/") {
                true => image,
                false => namespaces::path_in(&image, part)?,
            };
            let path = format!("/proc/self/fd/{}", shown.as_raw_fd());
            Ok(vec![outside::tree(Path::new(&path))?])
        })?;
        let mut made = made.into_iter();
        made.next()
            .ok_or_else(|| Error::Refused("the images' server sent no mount".into()))
    }

    /// What it shows; none if it left meanwhile.
    pub fn status(&self) -> Result<Option<Status>, Error> {
        Ok(status_in(self.asked(&Ask::Status)?))
    }

    /// What it knows of the image of this manifest; none if it does not show it.
    pub fn question(&self, digest: &str, question: &str) -> Result<Option<String>, Error> {
        let (digest, question) = (digest.to_owned(), question.to_owned());
        match self.asked(&Ask::Question { digest, question })? {
            Some(Reply::Answer(answer)) => Ok(answer),
            _ => Ok(None),
        }
    }

    /// Asks it to go, and waits until it has if it does. Gives what it showed.
    pub fn stop(&self, even_if_used: bool) -> Result<Option<Status>, Error> {
        let status = status_in(self.asked(&Ask::Stop { even_if_used })?);
        // The end of the connection comes with the answer's end, or the server's.
        let _ = wire::receive::<Reply>(self.stream.as_fd());
        Ok(status)
    }

    /// The server's next word; none if it left.
    fn asked(&self, ask: &Ask) -> Result<Option<Reply>, Error> {
        let failed = |err| Error::system("the images' server", err);
        self.stream
            .set_read_timeout(Some(WELCOME_LIMIT))
            .map_err(failed)?;
        wire::send(self.stream.as_fd(), ask, &[]).map_err(failed)?;
        let reply = wire::receive(self.stream.as_fd()).map_err(failed)?;
        Ok(reply.map(|(reply, _)| reply))
    }
}

fn status_in(reply: Option<Reply>) -> Option<Status> {
    match reply {
        Some(Reply::Status(status)) => Some(status),
        _ => None,
    }
}

/// Tells the server that this process has joined.
#[derive(Debug)]
pub struct Joining(UnixStream);

impl Joining {
    /// To be called in the mount namespace in which the program will run; returns when the server has taken note.
    pub fn done(self) -> Result<(), Error> {
        let failed = |err| Error::system("the images' server", err);
        let mount_namespace = own_mount_namespace().map_err(failed)?;
        let joined = Joined { mount_namespace };
        wire::send(self.0.as_fd(), &joined, &[]).map_err(failed)?;
        wire::receive::<Reply>(self.0.as_fd()).map_err(failed)?;
        Ok(())
    }
}

/// Starts this program again, as the server that listens at `listener`.
fn start(verb: &str, kind: &str, listener: OwnedFd) -> Result<Child, Error> {
    let mut command = Command::new("/proc/self/exe");
    // They come with each request; in /proc they would be seen as long as the server lives.
    for variable in Credentials::variables() {
        command.env_remove(variable);
    }
    command
        .arg0("sifon")
        .arg(verb)
        .env(KIND, kind)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|err| Error::system("start of the images' server", err))
}
