//! The process that shows images to programs: one for each user, job and node, started by the first client.
//!
//! It stays in the host's namespaces, so that the store, credential helpers and the network are the user's, and owns the user
//! namespace in which all clients meet. It keeps nothing of the one that started it.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};
use sifon_mount::daemon::Answers;
use sifon_mount::fuse::{self, Served, View};
use sifon_mount::image::{Owners, ThroughMount};
use sifon_mount::sys::{descriptor, process};

use super::ahead::ReadsAhead;
use super::attended::{Ended, while_connected};
use super::clients::{self, Client};
use super::error::Error;
use super::images::{Images, Opening, Outcome, Shown, Teller};
use super::meeting;
use super::namespaces::{self, Joinable, Privilege};
use super::subids::Ranges;
use super::targets;
use super::wire::{
    self, Ask, ImageStatus, Joined, MountedHere, Placed, Ready, Reply, Request, Status,
};

/// Longest that a client may take to say what it wants or to mount: it has nothing to wait for.
const CLIENT_LIMIT: Duration = Duration::from_secs(20);

/// How often clients are looked at on kernels that do not tell when they end.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Connections at once. Starts beyond that wait for their turn in the kernel's queue.
const CONNECTIONS_LIMIT: usize = 1024;

/// What runs a server.
pub struct Serving {
    /// Opens images.
    pub images: Box<dyn Images>,
    /// Where warnings are written.
    pub log: Option<PathBuf>,
    /// Whose images they are, for people.
    pub job: String,
    /// Who the user is in the user namespace.
    pub inside: Inside,
}

/// Who the user is in a server's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Who they are outside.
    Caller,
    /// Root, and nobody else is there.
    Root,
    /// Root, with the numbers that the site gives the user for others.
    RootAndOthers,
}

struct Server {
    images: Box<dyn Images>,
    log: Option<PathBuf>,
    job: String,
    privilege: Privilege,
    /// User and group that the user is there.
    inside: (u32, u32),
    /// In which clients mount and run; or why there is none.
    user: Result<Option<OwnedFd>, Error>,
    started: Instant,
    /// Written to when `state` has changed in a way that the first thread must know of.
    waker: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    images: HashMap<String, Slot>,
    /// Being answered.
    connections: usize,
    /// File systems that exist, perhaps no longer in `images`: somebody may still be in there.
    sessions: usize,
    /// How many there were.
    sessions_begun: u64,
    /// What is dropped with each of them.
    kept: HashMap<u64, Box<dyn Any + Send>>,
    /// Whether a client came yet.
    was_asked: bool,
    must_stop: bool,
    /// Connections of those who wait for the end.
    farewells: Vec<UnixStream>,
}

enum Slot {
    Opening(Arc<Opening>),
    Mounted(Mounted),
}

struct Mounted {
    session: u64,
    shared: Arc<Shared>,
    clients: Vec<Client>,
    idle_since: Option<Instant>,
    linger: Duration,
}

/// What joining an image takes.
struct Shared {
    image: String,
    digest: String,
    about: Ready,
    joinable: Joinable,
    served: Served,
    answers: Answers,
    ahead: Arc<ReadsAhead>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It is in the image's namespaces, which go with this.
        self.ahead.over();
    }
}

/// The first lines of the server's process, with a single thread: leaves everything behind that it inherited but standard
/// input, which is the socket where clients come.
pub fn begin() -> io::Result<UnixListener> {
    process::close_inherited(3)?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    descriptor::let_go_of_input_and_output()?;
    descriptor::let_go_of_stderr()?;
    rustix::process::chdir("/")?;
    process::detach()?;
    let _ = rustix::thread::set_name(c"sifon-server");
    let files = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    // Each program takes one while it runs; with the limit as it is there may be fewer.
    let _ = rustix::process::setrlimit(Resource::Nofile, most);
    Ok(listener)
}

/// Serves until nobody needs it any more.
pub fn serve(listener: UnixListener, serving: Serving) -> io::Result<()> {
    let privilege = Privilege::of_caller();
    // While there is one thread.
    let inside = match serving.inside {
        Inside::Root | Inside::RootAndOthers => (0, 0),
        Inside::Caller => namespaces::own_numbers(),
    };
    let user = match (privilege, serving.inside) {
        (Privilege::User, Inside::RootAndOthers) => with_others(),
        _ => namespaces::new_user_namespace(privilege, inside),
    };
    let (wake, waker) = rustix::pipe::pipe_with(
        rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
    )?;
    listener.set_nonblocking(true)?;
    let server = Arc::new(Server {
        images: serving.images,
        log: serving.log,
        job: serving.job,
        privilege,
        inside,
        user,
        started: Instant::now(),
        waker,
        state: Mutex::default(),
    });
    loop {
        let wait = server.looked_after();
        if wait == Wait::Leave {
            // Those who wait for their turn find it closed, and start another server.
            drop(listener);
            // Sessions that are cut short: what was read is still recorded.
            let kept = std::mem::take(&mut server.state().kept);
            drop(kept);
            return Ok(());
        }
        server.wait(&wake, &listener, wait)?;
    }
}

/// A user namespace with all numbers that the site gives the user.
fn with_others() -> Result<Option<OwnedFd>, Error> {
    let ranges = Ranges::of_caller().map_err(|err| Error::Refused(err.to_string()))?;
    namespaces::new_user_namespace_with(&ranges).map(Some)
}

/// How long the first thread may do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    ForEvents,
    Until(Instant),
    Leave,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        // A full pipe wakes as well.
        let _ = rustix::io::write(&self.waker, b"!");
    }

    /// Forgets clients that have gone and images that nobody used for long enough.
    fn looked_after(&self) -> Wait {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut sooner = |time: Instant| next = Some(next.map_or(time, |next| next.min(time)));
        let mut state = self.state();
        let mut unused = Vec::new();
        for (key, slot) in &mut state.images {
            let Slot::Mounted(mounted) = slot else {
                continue;
            };
            clients::forget_empty(&mut mounted.clients);
            if mounted.clients.iter().any(Client::must_be_looked_at) {
                sooner(now + LOOK_INTERVAL);
            }
            if !mounted.clients.is_empty() {
                mounted.idle_since = None;
                continue;
            }
            let end = *mounted.idle_since.get_or_insert(now) + mounted.linger;
            if end <= now {
                unused.push(key.clone());
            } else {
                sooner(end);
            }
        }
        // Dropping the last descriptor of a namespace unmounts what is mounted in it, which takes a while.
        let dropped: Vec<Slot> = unused
            .iter()
            .filter_map(|key| state.images.remove(key))
            .collect();
        let is_idle = state.images.is_empty() && state.sessions == 0 && state.connections == 0;
        if !state.was_asked && !state.must_stop {
            let limit = self.started + CLIENT_LIMIT;
            sooner(limit);
            if now < limit {
                return next.map_or(Wait::ForEvents, Wait::Until);
            }
        }
        if state.must_stop || is_idle {
            return Wait::Leave;
        }
        drop(state);
        drop(dropped);
        next.map_or(Wait::ForEvents, Wait::Until)
    }

    /// Waits for clients that come or go; takes those that come.
    fn wait(
        self: &Arc<Self>,
        wake: &OwnedFd,
        listener: &UnixListener,
        wait: Wait,
    ) -> io::Result<()> {
        let (handles, is_full) = {
            let state = self.state();
            let clients = state.images.values().flat_map(|slot| match slot {
                Slot::Mounted(mounted) => mounted.clients.as_slice(),
                Slot::Opening(_) => &[],
            });
            // Copies, because clients come and go while this thread waits.
            let handles: Vec<OwnedFd> = clients
                .filter_map(|client| client.handle()?.try_clone_to_owned().ok())
                .collect();
            (handles, state.connections >= CONNECTIONS_LIMIT)
        };
        let mut watched = vec![PollFd::new(wake, PollFlags::IN)];
        if !is_full {
            watched.push(PollFd::new(listener, PollFlags::IN));
        }
        watched.extend(
            handles
                .iter()
                .map(|handle| PollFd::new(handle, PollFlags::IN)),
        );
        let limit = match wait {
            Wait::Until(time) => {
                let left = time.saturating_duration_since(Instant::now());
                // A millisecond more than is left: not to look again too early.
                Timespec::try_from(left + Duration::from_millis(1)).ok()
            }
            Wait::ForEvents | Wait::Leave => None,
        };
        match rustix::event::poll(&mut watched, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
        let mut drained = [0; 64];
        while rustix::io::read(wake, &mut drained).is_ok_and(|count| count == drained.len()) {}
        while !is_full && let Ok((stream, _)) = listener.accept() {
            self.take(stream);
        }
        Ok(())
    }

    /// Answers one client in a thread of its own.
    fn take(self: &Arc<Self>, stream: UnixStream) {
        let server = Arc::clone(self);
        {
            let mut state = self.state();
            state.connections += 1;
            state.was_asked = true;
        }
        let left = OnDrop(Some(move || {
            server.state().connections -= 1;
            server.wake();
        }));
        let server = Arc::clone(self);
        let answering = thread::Builder::new().name("client".into()).spawn(move || {
            let _left = left;
            if let Err(err) = server.answer(stream) {
                tracing::warn!("a client: {err}");
            }
        });
        if let Err(err) = answering {
            tracing::warn!("a client could not be answered: {err}");
        }
    }

    fn answer(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let pid = wire::require_same_user(&stream)?;
        meeting::require_same_place(pid)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_LIMIT))?;
        stream.set_write_timeout(Some(CLIENT_LIMIT))?;
        wire::send(stream.as_fd(), &Reply::Welcome, &[])?;
        let mut ask = wire::receive::<Ask>(stream.as_fd())?;
        while let Some(reply) = ask.as_ref().and_then(|(ask, _)| self.told(ask)) {
            wire::send(stream.as_fd(), &reply, &[])?;
            ask = wire::receive::<Ask>(stream.as_fd())?;
        }
        match ask {
            None | Some((Ask::Status | Ask::Question { .. }, _)) => Ok(()),
            Some((Ask::Stop { even_if_used }, _)) => {
                let status = self.status();
                let is_used = status.images.iter().any(|image| !image.clients.is_empty());
                wire::send(stream.as_fd(), &Reply::Status(status), &[])?;
                let mut state = self.state();
                state.must_stop |= even_if_used;
                for slot in state.images.values_mut() {
                    if let Slot::Mounted(mounted) = slot {
                        mounted.linger = Duration::ZERO;
                    }
                }
                if even_if_used || !is_used {
                    // The other end sees when this process is gone.
                    state.farewells.push(stream);
                }
                Ok(())
            }
            Some((Ask::Start(request), _)) => {
                let socket = Arc::new(Mutex::new(stream.try_clone()?));
                let client = Client::of(pid);
                match self.start(&stream, &request, client, Teller::new(socket)) {
                    Ok(()) => Ok(()),
                    Err(Ended::Refused { message, hint }) => {
                        wire::send(stream.as_fd(), &Reply::Failed { message, hint }, &[])
                    }
                    Err(Ended::ClientIsGone) => Ok(()),
                    Err(Ended::Failed(err)) => Err(err),
                }
            }
        }
    }

    /// The answer to a question that changes nothing.
    fn told(&self, ask: &Ask) -> Option<Reply> {
        match ask {
            Ask::Status => Some(Reply::Status(self.status())),
            Ask::Question { digest, question } => {
                let answer = self
                    .showing(digest)
                    .and_then(|shared| shared.answers.0(question))
                    .and_then(|answer| String::from_utf8(answer).ok());
                Some(Reply::Answer(answer))
            }
            Ask::Start(_) | Ask::Stop { .. } => None,
        }
    }

    /// An image of this manifest that can be joined.
    fn showing(&self, digest: &str) -> Option<Arc<Shared>> {
        let state = self.state();
        state.images.values().find_map(|slot| match slot {
            Slot::Mounted(mounted) if mounted.shared.digest == digest => {
                Some(Arc::clone(&mounted.shared))
            }
            Slot::Mounted(_) | Slot::Opening(_) => None,
        })
    }

    /// Lets a client into the image that it asks for.
    fn start(
        self: &Arc<Self>,
        stream: &UnixStream,
        request: &Request,
        client: Client,
        teller: Teller,
    ) -> Result<(), Ended> {
        let user = self.user.as_ref().map_err(|error| Ended::Refused {
            message: error.in_one_line(),
            hint: error.hint().map(str::to_owned),
        })?;
        let (server, asked) = (Arc::clone(self), request.clone());
        let key = while_connected(stream, move || server.images.key(&asked))?()?;
        let pid = client.pid();
        let mut client = Some(client);
        loop {
            match self.turn(&key, request, &mut client) {
                Turn::Join(shared) => return self.join(stream, request, &key, &shared, user, pid),
                Turn::Wait(opening) => match opening.outcome(&teller) {
                    Outcome::Shown | Outcome::Abandoned => {}
                    Outcome::Refused { message, hint } => {
                        return Err(Ended::Refused { message, hint });
                    }
                },
                Turn::Open(opening) => {
                    let opened = self.open(stream, request, &key, &opening, &teller, &mut client);
                    if opened.is_err() {
                        self.state().images.remove(&key);
                    }
                    opening.over(match &opened {
                        Ok(()) => Outcome::Shown,
                        Err(Ended::Refused { message, hint }) => Outcome::Refused {
                            message: message.clone(),
                            hint: hint.clone(),
                        },
                        Err(_) => Outcome::Abandoned,
                    });
                    opened?;
                }
            }
        }
    }

    /// What a client has to do now. With `Turn::Join` it is one of the image's clients.
    fn turn(&self, key: &str, request: &Request, client: &mut Option<Client>) -> Turn {
        let mut state = self.state();
        match state.images.get_mut(key) {
            Some(Slot::Mounted(mounted)) => {
                mounted.clients.extend(client.take());
                mounted.idle_since = None;
                mounted.linger = request.linger;
                Turn::Join(Arc::clone(&mounted.shared))
            }
            Some(Slot::Opening(opening)) => Turn::Wait(Arc::clone(opening)),
            None => {
                let opening = Arc::new(Opening::default());
                let slot = Slot::Opening(Arc::clone(&opening));
                state.images.insert(key.to_owned(), slot);
                Turn::Open(opening)
            }
        }
    }

    /// Tells a client where everything is, and hears where it went.
    fn join(
        &self,
        stream: &UnixStream,
        request: &Request,
        key: &str,
        shared: &Shared,
        user: &Option<OwnedFd>,
        pid: Pid,
    ) -> Result<(), Ended> {
        // The first thread has a new client to watch.
        self.wake();
        let placed: Vec<Placed> = request
            .targets
            .iter()
            .map(|target| targets::placed(&shared.served, target))
            .collect();
        let ready = Ready {
            targets: placed,
            ..shared.about.clone()
        };
        let mut descriptors = shared.joinable.descriptors();
        descriptors.extend(user.as_ref().map(AsFd::as_fd));
        wire::send(stream.as_fd(), &Reply::Ready(ready), &descriptors)?;
        let Some((Joined { mount_namespace }, _)) = wire::receive(stream.as_fd())? else {
            return Ok(());
        };
        if let Some(Slot::Mounted(mounted)) = self.state().images.get_mut(key) {
            for client in &mut mounted.clients {
                if client.pid() == pid {
                    client.is_in(mount_namespace);
                }
            }
        }
        Ok(wire::send(stream.as_fd(), &Reply::Welcome, &[])?)
    }

    /// Opens an image and serves it, with the client's help.
    fn open(
        self: &Arc<Self>,
        stream: &UnixStream,
        request: &Request,
        key: &str,
        opening: &Arc<Opening>,
        teller: &Teller,
        client: &mut Option<Client>,
    ) -> Result<(), Ended> {
        opening.tell_also(teller);
        let (server, asked, told) = (Arc::clone(self), request.clone(), Arc::clone(opening));
        let shown = while_connected(stream, move || server.images.open(&asked, &told))?;
        let user = self.user.iter().flatten();
        let inside: Vec<BorrowedFd<'_>> = user.map(AsFd::as_fd).collect();
        wire::send(stream.as_fd(), &Reply::Mount, &inside)?;
        let Some((MountedHere, mut descriptors)) = wire::receive(stream.as_fd())? else {
            return Err(Ended::ClientIsGone);
        };
        if descriptors.len() != 3 {
            return Err(Ended::Failed(io::ErrorKind::InvalidData.into()));
        }
        let connection = descriptors.remove(0);
        let joinable = Joinable::from_descriptors(descriptors).ok_or(Ended::ClientIsGone)?;
        let shown = shown()?;
        let view = self.view(shown.timeout);
        let served = fuse::serve(Arc::clone(&shown.image), connection, view)?;
        if !request.is_bare {
            wire::send(stream.as_fd(), &Reply::Answering, &[])?;
            if wire::receive::<MountedHere>(stream.as_fd())?.is_none() {
                return Err(Ended::ClientIsGone);
            }
        }
        self.show(request, key, shown, served, joinable, client)
    }

    fn view(&self, timeout: Duration) -> View {
        let owners = match self.privilege {
            Privilege::Root => Owners::AsInImage,
            Privilege::User => Owners::Caller {
                uid: self.inside.0,
                gid: self.inside.1,
            },
        };
        View {
            owners,
            timeout,
            ..View::default()
        }
    }

    /// Lets others join what is served.
    fn show(
        self: &Arc<Self>,
        request: &Request,
        key: &str,
        shown: Shown,
        served: Served,
        joinable: Joinable,
        client: &mut Option<Client>,
    ) -> Result<(), Ended> {
        let ended = served.ended().clone();
        let inside = self.user.iter().flatten().next();
        let inside = inside.map(OwnedFd::try_clone).transpose()?;
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = Weak::clone(shared);
            let ahead = ReadsAhead::new(move || shared.upgrade()?.joinable.again(inside.as_ref()));
            Shared {
                image: shown.name,
                digest: shown.digest,
                about: shown.about,
                joinable,
                served,
                answers: shown.answers,
                ahead: Arc::new(ahead),
            }
        });
        let through: Arc<dyn ThroughMount> = Arc::clone(&shared.ahead) as _;
        shared.served.image().read_ahead_through(through);
        let session = {
            let mut state = self.state();
            state.sessions += 1;
            state.sessions_begun += 1;
            let session = state.sessions_begun;
            let mounted = Mounted {
                session,
                shared,
                // From the first moment on: without one it may go before the client that mounted it has joined.
                clients: client.take().into_iter().collect(),
                idle_since: None,
                linger: request.linger,
            };
            state.images.insert(key.to_owned(), Slot::Mounted(mounted));
            state.kept.insert(session, shown.kept);
            session
        };
        let (server, key) = (Arc::clone(self), key.to_owned());
        let over = OnDrop(Some(move || {
            // While the session still counts: the process does not end before what was read is recorded.
            let kept = server.state().kept.remove(&session);
            drop(kept);
            let dropped = {
                let mut state = server.state();
                state.sessions -= 1;
                let is_this = |slot: &Slot| match slot {
                    Slot::Mounted(mounted) => mounted.session == session,
                    Slot::Opening(_) => false,
                };
                match state.images.get(&key).is_some_and(is_this) {
                    true => state.images.remove(&key),
                    false => None,
                }
            };
            drop(dropped);
            server.wake();
        }));
        thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let _over = over;
                // An error means that the connection was cut; whoever reads from it is told.
                let _ = ended.recv();
            })?;
        Ok(())
    }

    fn status(&self) -> Status {
        let mut state = self.state();
        let images = state.images.values_mut().filter_map(|slot| match slot {
            Slot::Mounted(mounted) => Some(ImageStatus {
                image: mounted.shared.image.clone(),
                digest: mounted.shared.digest.clone(),
                clients: {
                    clients::find_others(&mut mounted.clients);
                    let pids = mounted.clients.iter().map(Client::pid);
                    pids.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
                        .collect()
                },
                idle: mounted.idle_since.map(|since| since.elapsed()),
            }),
            Slot::Opening(_) => None,
        });
        Status {
            pid: std::process::id(),
            job: self.job.clone(),
            age: self.started.elapsed(),
            memory_bytes: own_memory_bytes(),
            log: self.log.clone(),
            images: images.collect(),
        }
    }
}

enum Turn {
    Join(Arc<Shared>),
    Wait(Arc<Opening>),
    Open(Arc<Opening>),
}

/// Bytes of this process's memory that no file is behind.
fn own_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Does something when it is dropped, however that comes.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}
