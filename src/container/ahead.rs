//! A process that reads ahead in an image, through its mount: what programs are known to ask for is in the kernel's memory when they do.
//!
//! It cannot be the server. Who waits for an answer of its own cannot be killed: the kernel closes the connection that would end the wait
//! when the last thread is gone.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::{Advice, CWD, Mode, OFlags};
use rustix::net::Shutdown;
use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};
use sifon_mount::image::ThroughMount;
use sifon_mount::sys::process;

use super::namespaces::{self, Joinable};
use super::wire;

/// The hidden verb of this process.
pub const VERB: &str = "read-ahead";

/// The kernel reads no more of a FUSE file when it is told to read ahead, whatever it is told (`VM_READAHEAD_PAGES`).
const STEP_BYTES: usize = 128 << 10;

/// What the process hears first; the descriptors of [`Joinable`] come along.
#[derive(Serialize, Deserialize)]
struct Begin;

/// What it hears then, any number of times.
#[derive(Serialize, Deserialize)]
struct Stretch {
    /// From the image's root, without a slash in front.
    path: Vec<u8>,
    bytes: Range<u64>,
}

/// The process, seen by the server: started when it is needed first.
pub(super) struct ReadsAhead {
    image: Box<dyn Fn() -> Option<Joinable> + Send + Sync>,
    state: Mutex<State>,
}

enum State {
    NotBegun,
    Begun(Arc<OwnedFd>),
    Over,
}

impl ReadsAhead {
    /// In the image that `image` gives, as long as it is there.
    pub(super) fn new(image: impl Fn() -> Option<Joinable> + Send + Sync + 'static) -> Self {
        Self {
            image: Box::new(image),
            state: Mutex::new(State::NotBegun),
        }
    }

    fn socket(&self) -> io::Result<Arc<OwnedFd>> {
        let mut state = self.state.lock().expect("starting does not panic");
        if let State::NotBegun = &*state {
            // Once only, whatever comes of it.
            *state = State::Over;
            let image = (self.image)().ok_or(io::ErrorKind::NotFound)?;
            *state = State::Begun(Arc::new(begin(&image)?));
        }
        match &*state {
            State::Begun(socket) => Ok(Arc::clone(socket)),
            State::NotBegun | State::Over => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl ThroughMount for ReadsAhead {
    fn read(&self, path: &[u8], bytes: &Range<u64>) -> io::Result<()> {
        let stretch = Stretch {
            path: path.to_vec(),
            bytes: bytes.clone(),
        };
        wire::send(self.socket()?.as_fd(), &stretch, &[])
    }

    /// The process ends, and with it its hold on the mount.
    fn over(&self) {
        let mut state = self.state.lock().expect("starting does not panic");
        if let State::Begun(socket) = std::mem::replace(&mut *state, State::Over) {
            // Whoever is just sending is not waited for.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
    }
}

fn begin(image: &Joinable) -> io::Result<OwnedFd> {
    let (here, there) = wire::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("sifon")
        .arg(VERB)
        .stdin(Stdio::from(there))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    thread::Builder::new()
        .name("ahead-end".into())
        .spawn(move || child.wait())?;
    wire::send(here.as_fd(), &Begin, &image.descriptors())?;
    Ok(here)
}

/// Reads ahead until the server has no more to say; to be called in the first lines of the process.
pub fn run() -> ExitCode {
    match process::close_inherited(3).and_then(|()| read_all()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read_all() -> io::Result<()> {
    let _ = rustix::thread::set_name(c"sifon-ahead");
    // Programs in the image may have all rights in its user namespace, but none to look into this process, which is outside of it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let Some((Begin, descriptors)) = wire::receive(socket.as_fd())? else {
        return Ok(());
    };
    let image = Joinable::from_descriptors(descriptors).ok_or(io::ErrorKind::InvalidData)?;
    namespaces::enter(&image).map_err(io::Error::other)?;
    drop(image);
    let mut before: Option<(File, u64)> = None;
    while let Some((Stretch { path, bytes }, _)) = wire::receive(socket.as_fd())? {
        // What cannot be read ahead is read when somebody asks.
        let begun = begun(&path, &bytes);
        if let Some((file, last)) = before.take() {
            // So that there are never more than two on their way, and what a program asks for is soon answered.
            let _ = file.read_at(&mut [0], last);
        }
        before = begun.ok().zip(bytes.end.checked_sub(1));
    }
    Ok(())
}

/// Tells the kernel to read bytes of a file of the image, which is root directory and current directory.
fn begun(path: &[u8], bytes: &Range<u64>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    for from in bytes.clone().step_by(STEP_BYTES) {
        let len = (bytes.end - from).min(STEP_BYTES as u64);
        rustix::fs::fadvise(&file, from, NonZero::new(len), Advice::WillNeed)?;
    }
    Ok(file.into())
}
