//! Where a test works: its files, its store, its mounts, its processes. Nothing of it is left at the end.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sifon_mount::sys::{mount, mountinfo};
use tempfile::TempDir;

use crate::support::namespace::own_mounts;

/// Longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program that is tested.
pub const SIFON: &str = env!("CARGO_BIN_EXE_sifon");

/// A directory with everything that a test's programs read and write.
pub struct Place {
    directory: PathBuf,
    mounts: AtomicU32,
    /// Whether its programs run as user and group 1000.
    is_plain_users: bool,
    /// Removes the directory; none inside a namespace of its own.
    _owned: Option<TempDir>,
}

/// Names the directory of the place to a test that runs itself again in its own mount namespace.
const INSIDE: &str = "SIFON_TEST_PLACE";

/// Whether the kernel can be asked to mount here.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

impl Place {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("home")).unwrap();
        fs::create_dir(directory.path().join("store")).unwrap();
        Self {
            directory: directory.path().to_owned(),
            mounts: AtomicU32::new(0),
            is_plain_users: false,
            _owned: Some(directory),
        }
    }

    /// A place whose programs run as user and group 1000, which only root can arrange. They are copied to where
    /// that user can reach them.
    pub fn of_plain_user() -> Self {
        let mut place = Self::new();
        place.is_plain_users = true;
        fs::copy(SIFON, place.path("sifon")).unwrap();
        for path in [place.path(""), place.path("home"), place.path("store")] {
            chown(path, Some(1000), Some(1000)).unwrap();
        }
        place
    }

    /// Makes a directory of the one who runs the programs.
    pub fn own_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        if self.is_plain_users {
            chown(&path, Some(1000), Some(1000)).unwrap();
        }
        path
    }

    /// Runs the calling test, of this full name, once more in its own mount namespace, after `setup`, a shell's
    /// commands, has been done there in the place's directory. There it gets the place, outside `None`.
    #[track_caller]
    pub fn in_own_namespace(test: &str, setup: &str) -> Option<Self> {
        if let Some(directory) = std::env::var_os(INSIDE) {
            return Some(Self {
                directory: directory.into(),
                mounts: AtomicU32::new(0),
                is_plain_users: false,
                _owned: None,
            });
        }
        let place = Self::new();
        // What other tests have mounted would live on in this namespace.
        let alone = "for it in $(awk '/ - fuse\\.sifon /{print $5}' /proc/self/mountinfo); do umount -l \"$it\"; done";
        let script = format!("set -e; {alone}; {setup}; exec \"$@\"");
        let mut command = Command::new("unshare");
        command
            .args(own_mounts(&script))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, &place.directory)
            .current_dir(&place.directory);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", complaint(&output));
        assert!(said.contains("1 passed"), "{said}");
        None
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of the store's files.
    pub fn store(&self, part: &str) -> PathBuf {
        self.path("store/v1").join(part)
    }

    /// Files in a directory of the store.
    pub fn stored(&self, part: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.store(part)).into_iter().flatten();
        files.map(|entry| entry.unwrap().path()).collect()
    }

    /// A program with nothing of this process's environment, at home here.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref();
        let mut command = match self.is_plain_users {
            false => Command::new(program),
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]);
                let is_ours = program == SIFON;
                command.arg(if is_ours {
                    self.path("sifon")
                } else {
                    program.into()
                });
                command
            }
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("SIFON_STORE", self.path("store"))
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        command
    }

    pub fn sifon<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program(SIFON);
        command.args(words);
        command
    }

    /// Runs sifon to a good end; gives what it printed.
    #[track_caller]
    pub fn says<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let output = self.sifon(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the one who runs the programs reads in a file, or why not.
    pub fn reads(&self, file: &Path) -> Result<String, String> {
        let output = self.program("cat").arg(file).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(complaint(&output)),
        }
    }

    /// Starts a shell with these commands, which must say a line when they are ready and end with their input.
    pub fn started(&self, script: &str) -> Child {
        let mut command = self.program("sh");
        command.args(["-c", script]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(!line.is_empty(), "{script}");
        child
    }

    /// Where the next image can be mounted; sifon makes and removes the directory.
    pub fn target(&self) -> PathBuf {
        let count = self.mounts.fetch_add(1, Ordering::Relaxed);
        self.path(format!("mount-{count}"))
    }

    /// Mounts an image.
    #[track_caller]
    pub fn mount(&self, reference: &str) -> Mounted {
        self.mount_with(reference, |_| {})
    }

    /// Mounts an image by a command that a test changes first.
    #[track_caller]
    pub fn mount_with(&self, reference: &str, change: impl FnOnce(&mut Command)) -> Mounted {
        let target = self.target();
        let mut command = self.sifon(["mount", reference]);
        command.arg(&target);
        change(&mut command);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{reference}: {}",
            complaint(&output)
        );
        assert!(output.stdout.is_empty(), "{output:?}");
        Mounted {
            target,
            said: complaint(&output),
        }
    }

    /// Tries what must fail as something that sifon could not do; gives what it said.
    #[track_caller]
    pub fn refusal(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        let said = complaint(&output);
        assert!(said.contains("FATAL:   "), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// The processes of this place: they have its name in their environment.
    pub fn processes(&self) -> Vec<Process> {
        let mark = format!("HOME={}", self.path("home").display());
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let mut variables = environment.split(|&byte| byte == 0);
            variables
                .any(|variable| variable == mark.as_bytes())
                .then_some(pid)
        });
        pids.filter_map(Process::open).collect()
    }

    fn detach_all(&self) {
        let directory = self.directory.canonicalize().unwrap();
        let mounts = mountinfo::mounts().unwrap_or_default();
        for entry in mounts
            .iter()
            .rev()
            .filter(|entry| entry.target.starts_with(&directory))
        {
            let _ = mount::detach(&entry.target);
        }
    }
}

impl Drop for Place {
    /// A test that passed has left nothing; one that failed is tidied up after.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for process in self.processes() {
                process.wait();
            }
            return;
        }
        self.detach_all();
        for process in self.processes() {
            process.kill();
        }
        self.detach_all();
    }
}

/// A mounted image, until it is dropped.
pub struct Mounted {
    target: PathBuf,
    /// What the command wrote to stderr.
    pub said: String,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.target
    }

    pub fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        fs::read(self.target.join(name))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new(SIFON).arg("umount").arg(&self.target).output();
        if std::thread::panicking() {
            return;
        }
        let unmounted = unmounted.unwrap();
        assert!(unmounted.status.success(), "{}", complaint(&unmounted));
        assert!(!is_mounted(&self.target));
        if complaint(&unmounted).contains("still has it") {
            // A container of another test was started meanwhile: its namespace has a copy of the mount until it ends.
            let deadline = Instant::now() + Duration::from_secs(60);
            while self.target.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        assert!(
            !self.target.exists(),
            "the directory that sifon made is still there"
        );
    }
}

pub fn is_mounted(target: &Path) -> bool {
    mountinfo::mounted_on(target).unwrap().is_some()
}

/// A process that is watched.
#[derive(Debug)]
pub struct Process {
    pub pid: Pid,
    handle: std::os::fd::OwnedFd,
}

impl Process {
    pub fn open(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { pid, handle })
    }

    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits until it is gone.
    pub fn wait(&self) {
        let mut watched = [PollFd::new(&self.handle, PollFlags::IN)];
        let limit = Timespec::try_from(PATIENCE).unwrap();
        let ready = rustix::event::poll(&mut watched, Some(&limit)).unwrap();
        assert!(
            ready > 0,
            "{:?} is still there: {}",
            self.pid,
            self.command()
        );
    }

    /// Its arguments, as everybody on the machine can see them.
    pub fn command(&self) -> String {
        let path = format!("/proc/{}/cmdline", self.pid.as_raw_nonzero());
        fs::read_to_string(path)
            .unwrap_or_default()
            .replace('\0', " ")
    }
}

/// What a command wrote to stderr.
pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
