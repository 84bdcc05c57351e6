//! Running `sifon exec` on this machine as one of its users, and watching its processes.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use tempfile::TempDir;

use crate::image::{Image, readable_for_all};

/// Longest that anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Marks the processes of one run, which all inherit it.
const MARK: &str = "SIFON_TEST_MARK";

/// Who calls sifon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The user of the tests.
    Oneself,
    /// User and group 1000, where the tests run as root.
    Plain,
}

/// A directory for the store and for files of a run, and a mark for its processes.
pub struct Machine {
    caller: Caller,
    place: Option<Place>,
    directory: TempDir,
    mark: String,
}

/// The machine as each user who can run containers on it.
pub fn machines() -> Vec<Machine> {
    let mut machines = Vec::new();
    for caller in [Caller::Oneself, Caller::Plain] {
        match obstacle(caller) {
            None => machines.push(Machine::new(caller)),
            Some(obstacle) => eprintln!("skipped for {caller:?}: {obstacle}"),
        }
    }
    machines
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What keeps this user from running containers here.
fn obstacle(caller: Caller) -> Option<String> {
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse".into());
    }
    let scratch = TempDir::new().unwrap();
    readable_for_all(scratch.path());
    let mut probe = match (caller, is_root()) {
        (Caller::Plain, false) => return Some("only root can become another user".into()),
        (Caller::Plain, true) => {
            let place = Place::new(scratch.path());
            let mut probe = place.as_plain_user();
            let probed = probe.args(["env", "unshare", "-Um", "true"]).output();
            return obstacle_in(probed);
        }
        (Caller::Oneself, true) => return None,
        (Caller::Oneself, false) => Command::new("env"),
    };
    obstacle_in(probe.args(["unshare", "-Um", "true"]).output())
}

fn obstacle_in(probed: std::io::Result<Output>) -> Option<String> {
    match probed {
        Ok(probed) if probed.status.success() => None,
        Ok(probed) => Some(String::from_utf8_lossy(&probed.stderr).into_owned()),
        Err(err) => Some(err.to_string()),
    }
}

/// A mount namespace with a /dev/fuse that everybody may open, as on a usual host; the machine's own stays as it is. It lives
/// as long as this process in it.
struct Place(Child);

impl Place {
    fn new(scratch: &Path) -> Self {
        let script = r#"device=$1/fuse
            mknod $device c 10 229 && chmod 666 $device && mount --bind $device /dev/fuse || exit 1
            echo ready; exec cat"#;
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(scratch);
        let (child, said) = started(&mut command);
        assert_eq!(said, "ready");
        Self(child)
    }

    /// A command that becomes user 1000 there, and then what follows.
    fn as_plain_user(&self) -> Command {
        let script = r#"namespace=$1; shift
            exec nsenter --mount=$namespace sh -c 'cd "$0"; exec "$@"' "$PWD" \
                setpriv --reuid 1000 --regid 1000 --clear-groups "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        command.arg(format!("/proc/{}/ns/mnt", self.0.id()));
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    fn new(caller: Caller) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = TempDir::new().unwrap();
        readable_for_all(directory.path());
        if caller == Caller::Plain {
            std::os::unix::fs::chown(directory.path(), Some(1000), Some(1000)).unwrap();
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{count}", std::process::id());
        Self {
            caller,
            place: (caller == Caller::Plain).then(|| Place::new(directory.path())),
            directory,
            mark,
        }
    }

    /// Whether the caller is the machine's root.
    pub fn is_root(&self) -> bool {
        self.caller == Caller::Oneself && is_root()
    }

    /// What this machine's runs are marked with; also their job.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The caller's user number.
    pub fn uid(&self) -> u32 {
        match self.caller {
            Caller::Oneself => rustix::process::geteuid().as_raw(),
            Caller::Plain => 1000,
        }
    }

    /// A directory that only this machine's runs use, writable by the caller, below /tmp.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a directory in it that the caller owns.
    pub fn own_directory(&self, name: &str) -> std::path::PathBuf {
        let path = self.directory().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        path
    }

    /// Covers a file of the machine with one that says something else, for a machine with a place of its own only.
    pub fn cover(&self, file: &str, content: &str) {
        let other = self.directory().join(file.replace('/', "_"));
        fs::write(&other, content).unwrap();
        readable_for_all(&other);
        let other = other.display().to_string();
        self.prepare("mount --bind \"$2\" \"$3\"", &[&other, file]);
    }

    /// Changes what the machine looks like, by a root's shell; `$1` is its directory. For one with a place of its own only.
    pub fn prepare(&self, script: &str, arguments: &[&str]) {
        let place = self.place.as_ref().expect("a plain user's machine");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", place.0.id()))
            .args(["sh", "-ec", script, "sh"])
            .arg(self.directory())
            .args(arguments);
        assert!(
            command.status().unwrap().success(),
            "{script} {arguments:?}"
        );
    }

    /// A program run as the caller, with sifon's store in this machine's directory.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.place {
            None => Command::new("env"),
            Some(place) => place.as_plain_user(),
        };
        readable_for_all(Path::new(env!("CARGO_BIN_EXE_sifon")).parent().unwrap());
        command
            .arg(program)
            .env(MARK, &self.mark)
            // A server of its own for each, gone with its programs.
            .env("SLURM_JOB_ID", &self.mark)
            .env("SIFON_LINGER", "0")
            .env(
                "SIFON_STORE",
                self.directory().join(format!("store-{}", self.uid())),
            )
            .current_dir(self.directory())
            .stdin(Stdio::null());
        command
    }

    /// `sifon exec` with `options` before the image and `words` after it.
    pub fn exec(&self, image: &Image, options: &[&str], words: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_sifon"));
        command
            .arg("exec")
            .args(options)
            .arg(image.reference())
            .args(words);
        command
    }

    /// The same, run to its end, which must be a success; gives stdout.
    pub fn stdout(&self, image: &Image, options: &[&str], words: &[&str]) -> String {
        let output = self.exec(image, options, words).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        assert!(
            status.success(),
            "{:?}: {words:?}: {status}\n{stderr}",
            self.caller
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a shell in the image says to `script`.
    pub fn says(&self, image: &Image, options: &[&str], script: &str) -> String {
        self.stdout(image, options, &["sh", "-c", script])
            .trim_end()
            .to_owned()
    }

    /// Every process that descends from this machine's runs.
    pub fn processes(&self) -> Vec<Process> {
        let mark = format!("{MARK}={}", self.mark);
        let marked = |pid: i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let mut variables = environment.split(|&byte| byte == 0);
            variables
                .any(|variable| variable == mark.as_bytes())
                .then_some(())?;
            Process::open(pid)
        };
        let entries = fs::read_dir("/proc").unwrap();
        let pids = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter_map(marked).collect()
    }

    /// The servers among them.
    pub fn servers(&self) -> Vec<Process> {
        let mut processes = self.processes();
        processes.retain(|process| process.name() == "sifon-server");
        processes
    }

    /// Waits until no process of this machine's runs is left.
    pub fn wait_for_all(&self) {
        for process in self.processes() {
            process.wait();
        }
        let left = self.processes();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// A process that is watched, alive or not.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    handle: OwnedFd,
}

impl Process {
    fn open(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { pid, handle })
    }

    /// The kernel's name for it.
    pub fn name(&self) -> String {
        let pid = self.pid.as_raw_nonzero();
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Where a link in the process's directory of /proc leads.
    pub fn link(&self, name: &str) -> String {
        let pid = self.pid.as_raw_nonzero();
        let target = fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
        target.to_string_lossy().into_owned()
    }

    /// What its descriptors refer to.
    pub fn descriptors(&self) -> Vec<String> {
        let pid = self.pid.as_raw_nonzero();
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        entries
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .collect()
    }

    /// Its memory that no file is behind, in KiB.
    pub fn resident_kibibytes(&self) -> u64 {
        let pid = self.pid.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        rustix::process::pidfd_send_signal(&self.handle, Signal::KILL).unwrap();
    }

    /// Makes it stand still until it is killed.
    pub fn stop(&self) {
        rustix::process::pidfd_send_signal(&self.handle, Signal::STOP).unwrap();
    }

    /// Waits until it is gone.
    pub fn wait(&self) {
        let mut watched = [PollFd::new(&self.handle, PollFlags::IN)];
        let limit = Timespec::try_from(PATIENCE).unwrap();
        let ready = rustix::event::poll(&mut watched, Some(&limit)).unwrap();
        assert!(ready > 0, "{} ({:?}) is still there", self.name(), self.pid);
    }
}

/// Writes `input` to a command's stdin and waits for its end.
pub fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    })
}

/// Starts a command that says something first, waits until it does, and gives what it said.
pub fn started(command: &mut Command) -> (Child, String) {
    use std::io::{BufRead, BufReader};
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    child.stdout = Some(stdout.into_inner());
    (child, line.trim_end().to_owned())
}

/// stderr of a run, as text.
pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
