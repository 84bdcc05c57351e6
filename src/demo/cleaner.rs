//! A second process that removes the demonstration's directory, however the first one ends.

use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The hidden verb that it runs.
pub const VERB: &str = "demo-cleaner";

/// How long programs in the image may still write to the directory when the demonstration has been killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that was just being started makes the directory anew when it opens its store: it is gone for good once it has
/// been gone for this long.
const GONE_FOR: Duration = Duration::from_secs(5);

/// How often it is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// The demonstration's hold on its cleaner, which starts when this is gone.
pub(super) struct Cleaner {
    process: Child,
    /// Only this process holds it.
    pipe: Option<PipeWriter>,
}

impl Cleaner {
    /// Starts the process; it removes `directory` after this process.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (theirs, mut ours) = io::pipe()?;
        ours.write_all(directory.as_os_str().as_bytes())?;
        let process = Command::new("/proc/self/exe")
            .arg0("sifon")
            .arg(VERB)
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            process,
            pipe: Some(ours),
        })
    }
}

impl Drop for Cleaner {
    /// The directory is gone by now, so this takes no time.
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.process.wait();
    }
}

/// The process's whole life. Never fails: there is nobody to tell.
pub fn run() {
    // What ends the demonstration's process group must not end this.
    let _ = rustix::process::setsid();
    let mut path = Vec::new();
    if io::stdin().read_to_end(&mut path).is_err() {
        return;
    }
    let directory = PathBuf::from(OsString::from_vec(path));
    if !directory.exists() {
        return;
    }
    let killed = Instant::now();
    let mut seen = killed;
    while killed.elapsed() < PATIENCE && seen.elapsed() < GONE_FOR {
        let removed = fs::remove_dir_all(&directory);
        if !removed.is_err_and(|err| err.kind() == io::ErrorKind::NotFound) {
            seen = Instant::now();
        }
        thread::sleep(PAUSE);
    }
}
