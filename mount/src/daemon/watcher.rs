//! The second process of a mount: detaches it when the first has died, however it died.
//!
//! It waits for the end of a pipe that only the daemon holds open, so it needs no process ids and
//! misses no death. If the watcher dies, the daemon starts a new one; only both at once leave a dead mount,
//! which the next `mount` there replaces.

use std::fs::File;
use std::io::{self, BufRead, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::respawn::Respawn;
use super::{control, target};
use crate::sys::mount::{self, FILE_SYSTEM};
use crate::sys::{descriptor, mountinfo};

/// How long the watcher may take to see that there is nothing left to do.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a watcher may take to start, on a machine that is very busy.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// What a watcher says on stdout when it is on its own.
const UP: u8 = 0;

/// A watcher that dies sooner than this after its start is not replaced at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// What to detach. Told as a line of JSON, again whenever more is known.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Watched {
    pub(super) target: PathBuf,
    pub(super) source: String,
    /// Known once the mount exists.
    pub(super) device: Option<(u32, u32)>,
    /// Whether the directory was made for the mount.
    pub(super) remove_target: bool,
}

/// The daemon's hold on its watcher.
pub(super) struct Watcher {
    state: Arc<Mutex<State>>,
    /// Dropped at the end, which wakes a thread that is about to start another watcher.
    going_on: Option<Sender<()>>,
    ended: Receiver<()>,
    first_words: Option<ChildStdout>,
}

struct State {
    watched: Watched,
    /// `None` at the end: no further watcher is started.
    pipe: Option<PipeWriter>,
}

impl Watcher {
    pub(super) fn start(program: Respawn, watched: Watched) -> io::Result<Self> {
        let (mut child, pipe) = started(&program, &watched)?;
        let first_words = child.stdout.take();
        let state = Arc::new(Mutex::new(State {
            watched,
            pipe: Some(pipe),
        }));
        let (end, ended) = bounded(1);
        let (going_on, is_over) = bounded(0);
        let kept = Arc::clone(&state);
        thread::Builder::new()
            .name("watcher".into())
            .spawn(move || {
                keep_one_running(child, &program, &kept, &is_over);
                let _ = end.send(());
            })?;
        Ok(Self {
            state,
            going_on: Some(going_on),
            ended,
            first_words,
        })
    }

    /// Waits until the first watcher is on its own: from then on the daemon may die.
    pub(super) fn wait_until_up(&mut self) -> io::Result<()> {
        let Some(mut words) = self.first_words.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + START_TIMEOUT;
        let mut heard = [0; 256];
        while mount::readable(words.as_fd(), deadline)? {
            match words.read(&mut heard)? {
                0 => return Err(io::Error::other("the watcher process ended at once")),
                len if heard[..len].contains(&UP) => return Ok(()),
                _ => {}
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Tells which mount it is.
    pub(super) fn found(&self, device: (u32, u32)) {
        let mut state = self.state.lock();
        state.watched.device = Some(device);
        let State { watched, pipe } = &mut *state;
        if let Some(pipe) = pipe {
            // A watcher that is gone hears it at its next start.
            let _ = tell(pipe, watched);
        }
    }
}

impl Drop for Watcher {
    /// The mount is gone by now, and so is its directory: whatever is there later is not ours.
    fn drop(&mut self) {
        {
            let mut state = self.state.lock();
            state.watched.remove_target = false;
            let State { watched, pipe } = &mut *state;
            if let Some(mut pipe) = pipe.take() {
                let _ = tell(&mut pipe, watched);
            }
        }
        self.going_on = None;
        if self.ended.recv_timeout(END_TIMEOUT).is_err() {
            tracing::warn!("the watcher process has not ended");
        }
    }
}

/// What to detach is in the pipe before the watcher exists: if the daemon dies right after, it knows.
fn started(program: &Respawn, watched: &Watched) -> io::Result<(Child, PipeWriter)> {
    let (theirs, mut ours) = io::pipe()?;
    tell(&mut ours, watched)?;
    let child = program
        .command()?
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()?;
    Ok((child, ours))
}

fn tell(pipe: &mut PipeWriter, watched: &Watched) -> io::Result<()> {
    let mut line = serde_json::to_vec(watched)?;
    line.push(b'\n');
    pipe.write_all(&line)
}

/// Waits for each watcher's death and starts the next, until the daemon closes the pipe.
fn keep_one_running(
    mut child: Child,
    program: &Respawn,
    state: &Mutex<State>,
    is_over: &Receiver<()>,
) {
    loop {
        let since = Instant::now();
        let _ = child.wait();
        let mut delay = SHORT_LIFE.saturating_sub(since.elapsed());
        loop {
            let _ = is_over.recv_timeout(delay);
            let mut state = state.lock();
            if state.pipe.is_none() {
                return;
            }
            match started(program, &state.watched) {
                Ok((next, pipe)) => {
                    tracing::warn!("the watcher process had died; there is a new one");
                    state.pipe = Some(pipe);
                    child = next;
                    break;
                }
                Err(err) => {
                    tracing::error!(error = &err as &dyn std::error::Error, "no watcher");
                    delay = SHORT_LIFE;
                }
            }
        }
    }
}

/// The watcher's whole life, in a process that [`Respawn`] started. Never fails: there is nobody to tell.
pub fn watch() {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"sifon-watch");
    let _ = rustix::process::chdir("/");
    let _ = say_up();
    let mut watched = None;
    // Until the end of the pipe.
    for line in io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { break };
        watched = serde_json::from_slice(&line).ok().or(watched);
    }
    if let Some(watched) = watched {
        clear(&watched);
    }
}

fn say_up() -> io::Result<()> {
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    descriptor::let_go_of_output()?;
    stdout.write_all(&[UP])
}

fn clear(watched: &Watched) {
    // More than one when the mount was bound or moved elsewhere; topmost first.
    let mounts = mountinfo::mounts().unwrap_or_default();
    for mount in mounts.iter().rev() {
        let is_like_ours = mount.file_system == FILE_SYSTEM
            && mount.source == *watched.source
            && match watched.device {
                Some(device) => mount.device == device,
                None => mount.target == watched.target,
            };
        // If ours was unmounted already, the kernel may have given its number to a mount that lives.
        let is_ours = is_like_ours && control::is_dead(&mount.target);
        let is_topmost = mountinfo::mounted_on(&mount.target)
            .is_ok_and(|top| top.is_some_and(|top| top.id == mount.id));
        if is_ours && is_topmost {
            let _ = mount::detach(&mount.target);
        }
    }
    if watched.remove_target {
        target::remove(&watched.target);
    }
}
