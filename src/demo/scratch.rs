//! A directory for the demonstration, and the processes that use it: none of them outlives it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use sifon_mount::sys::signal::Signals;
use tempfile::TempDir;

use super::cleaner::Cleaner;

/// How long processes may go on that outlive the one that was run; it is milliseconds if nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often they are looked at then.
const PAUSE: Duration = Duration::from_millis(2);

/// Variables that would make the program do something else than the demonstration says. Those for the
/// registry's proxy are among them: no proxy knows our loopback address.
const PREFIXES_LEFT_OUT: [&str; 3] = ["SIFON", "APPTAINER", "SINGULARITY"];
const SUFFIX_LEFT_OUT: &str = "_PROXY";

/// A temporary directory. It goes when this is dropped, or a signal ends the process, together with every
/// process that [`Scratch::run`] has led to.
pub struct Scratch {
    shared: Arc<Mutex<State>>,
    path: PathBuf,
    /// Whether stderr of what is run is kept for an error, or passed on.
    is_quiet: bool,
}

struct State {
    directory: Option<TempDir>,
    /// For the end that nothing in this process survives.
    cleaner: Option<Cleaner>,
    running: Option<Child>,
    /// Children that this process was born with: none of our business.
    strangers: HashSet<Pid>,
}

/// A program that was run.
pub struct Ran {
    /// From its start to its first byte on stdout.
    pub first_output: Duration,
    /// From its start to its end.
    pub whole: Duration,
    /// Its stdout.
    pub said: Vec<u8>,
}

/// Why a step of the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no room for it.
    #[error("{}: the demonstration needs a directory here", path.display())]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process cannot be started or heard.
    #[error("the demonstration's processes")]
    System(#[from] io::Error),
    /// The program said so, and what can be done about it.
    #[error("{message}")]
    Failed {
        /// Its message.
        message: String,
        /// Its hint.
        hint: Option<String>,
    },
}

impl RunError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Failed { hint, .. } => hint.clone(),
            Self::Directory { .. } => {
                Some("set TMPDIR to a directory with 300 MB of free space".into())
            }
            Self::System(_) => None,
        }
    }
}

impl Scratch {
    /// Makes the directory where temporary files go. To be called before this process starts threads,
    /// because signals are caught from now on. What is run passes its messages on unless `is_quiet`.
    pub fn new(is_quiet: bool) -> Result<Self, RunError> {
        let signals = Signals::caught()?;
        // Processes whose parent has ended become our children, and can be waited for.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(io::Error::from)?;
        let directory = tempfile::Builder::new()
            .prefix("sifon-demo.")
            .tempdir()
            .map_err(|source| RunError::Directory {
                path: std::env::temp_dir(),
                source,
            })?;
        let path = directory.path().to_owned();
        let cleaner = Cleaner::start(&path)?;
        let shared = Arc::new(Mutex::new(State {
            directory: Some(directory),
            cleaner: Some(cleaner),
            running: None,
            strangers: children(),
        }));
        let told = Arc::clone(&shared);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let Ok(signal) = signals.wait() else { return };
                let mut state = locked(&told);
                let _ = state.end();
                // Still locked: nothing is started any more.
                std::process::exit(128 + signal);
            })?;
        Ok(Self {
            shared,
            path,
            is_quiet,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs this program with `arguments` and `input` on stdin until it and everything that it has
    /// started is over. It must be a success.
    pub fn run(&self, arguments: &[OsString], input: &[u8]) -> Result<Ran, RunError> {
        let mut stdin = tempfile::tempfile_in(&self.path)?;
        stdin.write_all(input)?;
        stdin.rewind()?;
        let mut stderr = tempfile::tempfile_in(&self.path)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("sifon")
            .args(arguments)
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(match self.is_quiet {
                true => Stdio::from(stderr.try_clone()?),
                false => Stdio::inherit(),
            });
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_left_out(name)) {
            command.env_remove(name);
        }
        let started = Instant::now();
        let mut state = locked(&self.shared);
        let mut child = command.spawn()?;
        let id = Pid::from_child(&child);
        let stdout = child.stdout.take();
        state.running = Some(child);
        drop(state);
        let (first_output, said) = heard(stdout, started)?;
        // Not reaped before the lock is held: until then the number belongs to nobody else.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(id), ended) {}
        let whole = started.elapsed();
        let status = locked(&self.shared).finish()?;
        if status.is_none_or(|status| status.success()) {
            return Ok(Ran {
                first_output,
                whole,
                said,
            });
        }
        let mut complaint = String::new();
        stderr.rewind()?;
        // Whatever is not text is not ours.
        let _ = stderr.read_to_string(&mut complaint);
        Err(understood(&complaint))
    }

    /// Removes the directory, and says so if that fails.
    pub fn close(self) -> Result<(), RunError> {
        Ok(locked(&self.shared).end()?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Something else went wrong already, and is told.
        let _ = locked(&self.shared).end();
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("never held across a panic")
}

impl State {
    /// Reaps what is running, waits for what that has left running, and gives the former's status.
    fn finish(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        let status = self.running.take().map(|mut child| child.wait());
        self.wait_for_descendants();
        status.transpose()
    }

    /// Ends what is running, and removes the directory.
    fn end(&mut self) -> io::Result<()> {
        if let Some(child) = &mut self.running {
            // Fails if it has ended.
            let _ = child.kill();
        }
        let finished = self.finish();
        let removed = match self.directory.take() {
            Some(directory) => finished.and(directory.close()),
            None => Ok(()),
        };
        self.cleaner = None;
        removed
    }

    /// Servers of images end by themselves when their programs do. One that does not is killed.
    fn wait_for_descendants(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut left = children();
            left.retain(|child| !self.strangers.contains(child) && is_running(*child));
            if left.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                for child in left {
                    // Fails if it has ended just now.
                    let _ = rustix::process::kill_process(child, Signal::KILL);
                }
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Reaps the child if it has ended.
fn is_running(child: Pid) -> bool {
    matches!(
        rustix::process::waitpid(Some(child), WaitOptions::NOHANG),
        Ok(None)
    )
}

/// This process's children. None are seen on a kernel without CONFIG_PROC_CHILDREN.
fn children() -> HashSet<Pid> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let mut children = HashSet::new();
    for task in tasks {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let numbers = text.split_whitespace().flat_map(str::parse);
        children.extend(numbers.filter_map(Pid::from_raw));
    }
    children
}

fn is_left_out(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    name.ends_with(SUFFIX_LEFT_OUT)
        || PREFIXES_LEFT_OUT
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// When the first byte came, and all of them.
fn heard(stdout: Option<impl Read>, started: Instant) -> io::Result<(Duration, Vec<u8>)> {
    let mut said = vec![0; 4096];
    let Some(mut stdout) = stdout else {
        return Ok((started.elapsed(), Vec::new()));
    };
    let len = stdout.read(&mut said)?;
    let first_output = started.elapsed();
    said.truncate(len);
    stdout.read_to_end(&mut said)?;
    Ok((first_output, said))
}

/// The error that this program has printed in another process.
fn understood(complaint: &str) -> RunError {
    let after = |label: &str| {
        let mut lines = complaint.lines();
        lines.find_map(|line| Some(line.strip_prefix(label)?.trim().to_owned()))
    };
    RunError::Failed {
        message: after("FATAL:").unwrap_or_else(|| match complaint.trim() {
            "" => "a step of the demonstration failed".into(),
            said => format!("a step of the demonstration failed: {said}"),
        }),
        hint: after("INFO:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_another_process_is_passed_on_with_its_hint() {
        for (said, message, hint) in [
            (
                "FATAL:   /dev/fuse: no\nINFO:    load it\n",
                "/dev/fuse: no",
                Some("load it"),
            ),
            ("WARNING: x\nFATAL:   y\n", "y", None),
            ("", "a step of the demonstration failed", None),
            (
                "killed\n",
                "a step of the demonstration failed: killed",
                None,
            ),
        ] {
            let error = understood(said);
            assert_eq!(
                (error.to_string().as_str(), error.hint().as_deref()),
                (message, hint)
            );
        }
    }

    #[test]
    fn variables_that_change_what_is_shown_are_left_out() {
        for (name, expected) in [
            ("SIFON_STORE", true),
            ("APPTAINERENV_PATH", true),
            ("https_proxy", true),
            ("HOME", false),
            ("LD_LIBRARY_PATH", false),
        ] {
            assert_eq!(is_left_out(name.as_ref()), expected, "{name}");
        }
    }
}
