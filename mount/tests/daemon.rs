//! The processes around mounts: as root, in a user namespace, as a plain user, and what is left behind.
//!
//! The roles of other processes are played by this test binary itself: tests that are ignored unless
//! a process is started to run exactly one of them.
#![allow(clippy::unwrap_used)]

mod place;
mod sample;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use place::{Place, can_mount, mounted};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, kill_process};
use sample::everything;
use serde::{Deserialize, Serialize};
use sifon_mount::daemon::{
    self, LaunchError, Mount, Options, Respawn, Target, UnmountError, User, mounted_at,
};
use sifon_mount::digest::Digest;
use sifon_mount::fuse::View;
use sifon_mount::sys::mount::FuseOptions;
use sifon_mount::sys::mountinfo;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a daemon of these tests is asked to do.
#[derive(Serialize, Deserialize)]
struct Request {
    target: PathBuf,
    allow_other: bool,
    /// Whether opening the image takes for ever.
    hangs: bool,
}

const SOURCE: &str = "docker://localhost:5000/a,b:1";

fn role(name: &str) -> Respawn {
    Respawn::with_arguments(role_arguments(name))
}

/// With one thread the test harness runs a test in the main thread, without starting others.
fn role_arguments(name: &str) -> [OsString; 5] {
    [
        "--exact",
        name,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]
    .map(OsString::from)
}

#[test]
#[ignore = "the role of a daemon"]
fn plays_daemon() {
    let Ok((request, announcer, stop)) = daemon::begin::<Request>() else {
        return;
    };
    announcer.progress(&"opening");
    if request.hangs {
        wait_forever();
    }
    let target = match Target::look(&request.target) {
        Ok(target) => target,
        Err(err) => return announcer.failed(&err, err.hint()),
    };
    let options = Options {
        fuse: FuseOptions {
            source: daemon::source_of(SOURCE, Digest::of(b"manifest")),
            allow_other: request.allow_other,
            ..FuseOptions::default()
        },
        view: View::default(),
        watcher: role("plays_watcher"),
        answers: None,
    };
    match Mount::start(everything(false).image(), target, options, stop) {
        Ok(mount) => {
            if announcer.ready().is_ok() {
                let _ = mount.wait();
            }
        }
        Err(err) => announcer.failed(&err, err.hint()),
    }
}

fn wait_forever() -> ! {
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "the role of a watcher"]
fn plays_watcher() {
    daemon::watch();
}

/// Mounts, looks, unmounts; as whoever runs this. The directory comes in the environment.
#[test]
#[ignore = "the role of a user"]
fn plays_user() {
    let Some(target) = std::env::var_os("MOUNT_TARGET").map(PathBuf::from) else {
        return;
    };
    let pid = launched(&target).unwrap();
    assert_eq!(fs::read(target.join("hello")).unwrap(), b"hello, image\n");
    let found = mounted_at(&target).unwrap().unwrap();
    assert_eq!(found.pid, Some(pid));
    assert_eq!(found.reference, SOURCE);
    let secret = fs::metadata(target.join("secret")).unwrap();
    assert_eq!(secret.mode() & 0o7777, 0o600);
    // The kernel checks no permissions in a mount for one user.
    assert_eq!(fs::read(target.join("secret")).unwrap().len(), 19);
    let executable = |name: &str| {
        let access = rustix::fs::Access::EXEC_OK;
        rustix::fs::access(target.join(name), access).is_ok()
    };
    assert!(executable("bin/run") && !executable("hello"));
    daemon::unmount(&target).unwrap();
    assert!(mounted_at(&target).unwrap().is_none());
}

fn launched(target: &Path) -> Result<u32, LaunchError> {
    launched_for(target, false)
}

fn launched_for(target: &Path, allow_other: bool) -> Result<u32, LaunchError> {
    let request = Request {
        target: target.to_owned(),
        allow_other,
        hangs: false,
    };
    let mut heard = Vec::new();
    let launched = daemon::launch(&role("plays_daemon"), &request, |progress: String| {
        heard.push(progress);
    });
    assert_eq!(heard, ["opening"]);
    launched
}

#[test]
fn a_daemon_mounts_and_umount_ends_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let target = place.target();
    let pid = launched(&target).unwrap();
    let found = mounted_at(&target).unwrap().unwrap();
    assert_eq!(found.pid, Some(pid));
    assert_eq!(found.digest, Some(Digest::of(b"manifest")));
    assert_eq!(fs::read(target.join("hello")).unwrap(), b"hello, image\n");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    for process in [pid, watcher_of(pid).unwrap()] {
        assert_lets_go(process);
    }
    let taken = launched(&target).unwrap_err();
    assert!(taken.to_string().contains(SOURCE), "{taken}");
    assert!(taken.hint().unwrap().contains("umount"), "{taken}");
    let unmounted = daemon::unmount(&target).unwrap();
    assert_eq!(unmounted.mounted.reference, SOURCE);
    // Programs that another test started meanwhile may have a copy of the mount.
    wait_until(|| has_ended(pid));
    assert!(target.is_dir());
}

/// The process has no descriptor of a terminal, a pipe of ours or a file that we have open, and a session of its own.
fn assert_lets_go(pid: u32) {
    for number in 0..3 {
        let file = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        let is_own_pipe = number == 0 && file.to_string_lossy().starts_with("pipe:");
        assert!(file == Path::new("/dev/null") || is_own_pipe, "{file:?}");
    }
    let pid = Pid::from_raw(pid as i32);
    assert_eq!(rustix::process::getsid(pid).ok(), pid);
}

fn watcher_of(daemon: u32) -> Option<u32> {
    fs::read_dir("/proc").unwrap().find_map(|process| {
        let process = process.ok()?.path();
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // proc(5): the fourth field is the parent; the second, in parentheses, may contain spaces.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        let is_child = state != "Z" && parent == daemon.to_string();
        is_child.then(|| process.file_name()?.to_str()?.parse().ok())?
    })
}

/// Whether the watcher is on its own. Before that the test runner in its process still writes a line of its own to the
/// daemon's pipe, and gives up if the daemon is gone.
fn is_up(watcher: u32) -> bool {
    let watcher = Pid::from_raw(watcher as i32);
    rustix::process::getsid(watcher).ok() == watcher
}

/// Whether the process is gone, or a zombie that nobody but this test's process could collect.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Waits for a change of the table of mounts until `is_so`.
fn wait_for_mounts(mut is_so: impl FnMut() -> bool) {
    let table = fs::File::open("/proc/self/mountinfo").unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the mounts did not become as expected");
        let mut polled = [PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI)];
        rustix::event::poll(&mut polled, Some(&Timespec::try_from(left).unwrap())).unwrap();
        let _ = (&table).read(&mut [0]);
    }
}

fn is_mounted(target: &Path) -> bool {
    mountinfo::mounted_on(target).unwrap().is_some()
}

#[test]
fn a_killed_daemon_leaves_no_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let pid = launched(&place.target()).unwrap();
    let _in_use = fs::File::open(place.target().join("hello")).unwrap();
    kill(pid, Signal::KILL);
    wait_for_mounts(|| !is_mounted(&place.target()));
    assert!(fs::read_dir(place.target()).unwrap().next().is_none());
}

#[test]
fn a_signal_unmounts_even_what_is_in_use() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let place = Place::new();
        let pid = launched(&place.target()).unwrap();
        let _in_use = fs::File::open(place.target().join("hello")).unwrap();
        kill(pid, signal);
        wait_for_mounts(|| !is_mounted(&place.target()));
    }
}

#[test]
fn a_dead_mount_is_replaced() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let target = place.target();
    let pid = launched(&target).unwrap();
    // Both at once, as the end of a batch job does; stopped first, so that neither sees the other die.
    let watcher = watcher_of(pid).unwrap();
    kill(pid, Signal::STOP);
    kill(watcher, Signal::KILL);
    kill(pid, Signal::KILL);
    wait_until(|| has_ended(pid));
    let dead = fs::metadata(&target).unwrap_err();
    let gone = [libc::ENOTCONN, libc::ECONNABORTED];
    assert!(gone.contains(&dead.raw_os_error().unwrap()), "{dead}");
    launched(&target).unwrap();
    assert_eq!(fs::read(target.join("one")).unwrap(), b"one");
    daemon::unmount(&target).unwrap();
    assert!(!is_mounted(&target));
}

/// For what the kernel gives no event to one who is not the parent.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_watcher_is_replaced() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let pid = launched(&place.target()).unwrap();
    let first = watcher_of(pid).unwrap();
    kill(first, Signal::KILL);
    wait_until(|| watcher_of(pid).is_some_and(|watcher| watcher != first && is_up(watcher)));
    kill(pid, Signal::KILL);
    wait_for_mounts(|| !is_mounted(&place.target()));
}

#[test]
fn a_watcher_leaves_a_mount_that_lives() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _served = mounted(&place, everything(false).image(), View::default());
    let mount = mountinfo::mounted_on(&place.target()).unwrap().unwrap();
    // As if the watched mount had been unmounted, and its device number given to this one.
    let watched = serde_json::json!({
        "target": place.target(),
        "source": mount.source.to_str(),
        "device": mount.device,
        "remove_target": true,
    });
    let (read, mut write) = io::pipe().unwrap();
    let mut watcher = Command::new("/proc/self/exe")
        .args(role_arguments("plays_watcher"))
        .stdin(read)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(write, "{watched}").unwrap();
    drop(write);
    assert!(watcher.wait().unwrap().success());
    assert!(is_mounted(&place.target()));
}

#[test]
fn umount_says_which_other_namespace_keeps_the_server() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let pid = launched(&place.target()).unwrap();
    // A program whose mounts were copied while the image was mounted, as other container programs' are.
    let mut other = Command::new("unshare")
        .args(["-r", "-m", "sh", "-c", "echo; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut its_stdout = other.stdout.take().unwrap();
    assert_eq!(
        its_stdout.read(&mut [0]).unwrap(),
        1,
        "no user namespaces here"
    );
    let unmounted = daemon::unmount(&place.target()).unwrap();
    assert!(!is_mounted(&place.target()));
    // Where mounts are shared, the end of one is the end of its copies.
    let is_shared = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .any(|line| line.contains(" shared:"));
    let keeps = |user: &User| matches!(user, User::Process { pid, .. } if *pid == other.id());
    assert_eq!(
        unmounted.kept_by.iter().any(keeps),
        !is_shared,
        "{unmounted:?}"
    );
    drop(other.stdin.take());
    other.wait().unwrap();
    wait_until(|| has_ended(pid));
}

#[test]
fn a_daemon_whose_launcher_is_gone_ends() {
    let place = Place::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = Command::new("/proc/self/exe")
        .args(role_arguments("plays_daemon"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let request = Request {
        target: place.target(),
        allow_other: false,
        hangs: true,
    };
    writeln!(ours, "{}", serde_json::to_string(&request).unwrap()).unwrap();
    let mut said = [0; 8];
    ours.read_exact(&mut said).unwrap();
    drop(ours);
    assert_eq!(daemon.wait().unwrap().code(), Some(1));
}

#[test]
fn a_missing_mount_point_is_made_and_removed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let target = place.target();
    fs::remove_dir(&target).unwrap();
    launched(&target).unwrap();
    daemon::unmount(&target).unwrap();
    assert!(!target.exists());
    let pid = launched(&target).unwrap();
    kill(pid, Signal::KILL);
    wait_until(|| !target.exists());
}

#[test]
fn a_mount_that_cannot_be_says_why() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.target().join("file"), "").unwrap();
    let refused = launched(&place.target()).unwrap_err();
    assert!(refused.to_string().contains("not empty"), "{refused}");
    let below = place.0.path().join("no/such");
    let refused = launched(&below).unwrap_err();
    assert!(refused.hint().unwrap().contains("mkdir"), "{refused}");
}

#[test]
fn umount_says_who_keeps_a_mount_busy() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let target = place.target();
    let pid = launched(&target).unwrap();
    let me = std::process::id();
    let mut sleeper = Command::new("sleep")
        .arg("60")
        .current_dir(target.join("bin"))
        .spawn()
        .unwrap();
    let open = fs::File::open(target.join("hello")).unwrap();
    let refused = daemon::unmount(&target).unwrap_err();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let UnmountError::Busy { users, .. } = &refused else {
        panic!("{refused}");
    };
    let uses = |who: u32, what: &str| {
        let is_it = |user: &User| matches!(user, User::Process { pid, by, .. } if *pid == who && *by == what);
        users.iter().any(is_it)
    };
    assert!(uses(sleeper.id(), "current directory"), "{refused}");
    assert!(uses(me, "open files"), "{refused}");
    assert!(refused.to_string().contains("(sleep, by its"), "{refused}");
    assert!(refused.hint().unwrap().contains("--lazy"));
    daemon::detach(&target).unwrap();
    assert!(!is_mounted(&target));
    // Who has it open keeps it until they close it.
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello, image\n");
    drop(open);
    wait_until(|| has_ended(pid));
}

#[test]
fn others_see_a_mount_only_if_they_are_allowed_to_and_then_by_its_permissions() {
    if !can_mount() {
        return;
    }
    for allow_other in [false, true] {
        let place = Place::new();
        launched_for(&place.target(), allow_other).unwrap();
        let cat = |file: &str| {
            let path = place.target().join(file);
            as_user().arg("cat").arg(path).output().unwrap()
        };
        assert_eq!(cat("hello").status.success(), allow_other);
        assert!(!cat("secret").status.success());
        daemon::unmount(&place.target()).unwrap();
    }
}

fn as_user() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]);
    command
}

/// Runs [`plays_user`] by `command`, on a directory that belongs to `owner`.
fn play_user(mut command: Command, owner: u32) -> (Place, Output) {
    let place = Place::new();
    std::os::unix::fs::chown(place.target(), Some(owner), Some(owner)).unwrap();
    // Where every user can reach it.
    let program = place.0.path().join("program");
    fs::copy("/proc/self/exe", &program).unwrap();
    let output = command
        .arg(program)
        .args(role_arguments("plays_user"))
        .env("MOUNT_TARGET", place.target())
        .output()
        .unwrap();
    (place, output)
}

fn assert_succeeded((_place, output): (Place, Output)) {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
    assert!(said(&output.stdout).contains("1 passed"));
}

#[test]
fn a_plain_user_mounts_through_fusermount3() {
    if !can_mount() {
        return;
    }
    assert_succeeded(play_user(as_user(), 1000));
}

#[test]
fn root_of_a_user_namespace_mounts_without_fusermount3() {
    if !can_mount() {
        return;
    }
    let mut command = Command::new("unshare");
    // Nothing can be found, so nothing can be called.
    command.args(["-Urm", "--", "env", "PATH=/nonexistent"]);
    assert_succeeded(play_user(command, 0));
}
