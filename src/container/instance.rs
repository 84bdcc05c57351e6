//! Containers that stay: named, found again by other commands, ended on request.
//!
//! Each is a file in the user's home that names its first process. The kernel's start time of that process tells it from another one
//! that got the same number; a file whose process is gone is forgotten.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};
use sifon_mount::sys::process as processes;

use super::app;
use super::environment::{self, Sources, Variables};
use super::error::Error;
use super::namespaces::Privilege;
use super::process;
use super::supervise;
use super::wire::{self, Ready};

/// How often one looks whether an instance has ended where nothing tells of it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A container that stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// What it is called.
    pub name: String,
    /// The first of its processes.
    pub pid: i32,
    /// When that started, in the kernel's ticks since the machine did.
    pub started: u64,
    /// The image as the user named it.
    pub image: String,
    /// Where what it says is kept.
    pub out: PathBuf,
    /// Where its complaints are kept.
    pub err: PathBuf,
    /// Whether its user is root inside.
    pub is_root_inside: bool,
    /// Home in it, if it is not the caller's own.
    #[serde(default)]
    pub home: Option<PathBuf>,
    /// What the image says of itself.
    pub about: Ready,
}

/// Where instances of this user on this machine are kept.
#[derive(Clone, Debug)]
pub struct Register {
    states: PathBuf,
    logs: PathBuf,
}

impl Register {
    /// Below `directory`, one for each machine: process numbers mean nothing elsewhere.
    pub fn below(directory: &Path) -> Self {
        let machine = rustix::system::uname();
        let machine = machine.nodename().to_string_lossy().into_owned();
        let of = |kind: &str| directory.join("instances").join(kind).join(&machine);
        Self {
            states: of("app"),
            logs: of("logs"),
        }
    }

    /// Files for what an instance says, emptied; and their paths.
    pub fn logs(&self, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        fs::create_dir_all(&self.logs)?;
        let of = |kind: &str| self.logs.join(format!("{name}.{kind}"));
        Ok((of("out"), of("err")))
    }

    /// Remembers an instance.
    pub fn add(&self, instance: &Instance) -> io::Result<()> {
        fs::create_dir_all(&self.states)?;
        let temporary = self
            .states
            .join(format!(".{}-{}", instance.name, instance.pid));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(instance)?)?;
        fs::rename(temporary, self.path(&instance.name))
    }

    /// The instance of this name, if it lives.
    pub fn find(&self, name: &str) -> Option<Instance> {
        let text = fs::read(self.path(name)).ok()?;
        let instance: Instance = serde_json::from_slice(&text).ok()?;
        match started(instance.pid) {
            Some(started) if started == instance.started => Some(instance),
            _ => {
                // A damaged file stays; what is gone need not be remembered.
                let _ = fs::remove_file(self.path(name));
                None
            }
        }
    }

    /// All that live, by name.
    pub fn all(&self) -> Vec<Instance> {
        let entries = fs::read_dir(&self.states).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect();
        names.sort();
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// Forgets one.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.states.join(format!("{name}.json"))
    }
}

/// Whether it can be the name of an instance, and of its files.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// When the process started, in ticks.
pub fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// State and start of a process; see proc_pid_stat(5), fields 3 and 22.
fn stat(pid: i32) -> Option<(String, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    let mut after = text.rsplit_once(')')?.1.split_whitespace();
    let state = after.next()?.to_owned();
    Some((state, after.nth(18)?.parse().ok()?))
}

impl Instance {
    /// Sends a signal to its first process, which passes it on; SIGKILL ends all. Waits until it is over, or `limit`. Tells whether it is.
    pub fn stop(&self, signal: Signal, limit: Duration) -> Result<bool, Error> {
        let failed = |err: Errno| Error::system(format!("instance {}", self.name), err);
        let pid = Pid::from_raw(self.pid).ok_or_else(|| failed(Errno::SRCH))?;
        let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Before Linux 5.3, or behind a filter that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return self.stop_by_number(pid, signal, limit),
            // It was waited for already.
            Err(Errno::SRCH) => return Ok(true),
            opened => opened.map_err(failed)?,
        };
        if self.has_ended() {
            return Ok(true);
        }
        rustix::process::pidfd_send_signal(&handle, signal).map_err(failed)?;
        let mut watched = [rustix::event::PollFd::new(
            &handle,
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec::try_from(limit).ok();
        let ready = rustix::event::poll(&mut watched, limit.as_ref()).map_err(failed)?;
        Ok(ready > 0)
    }

    /// The same where a process has no descriptor: between the last look and the signal its number could become another one's, which
    /// takes a machine that starts as many processes as it has numbers in that time.
    fn stop_by_number(&self, pid: Pid, signal: Signal, limit: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + limit;
        if self.has_ended() {
            return Ok(true);
        }
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(err) => return Err(Error::system(format!("instance {}", self.name), err)),
        }
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(true)
    }

    /// Whether its first process is gone, or only waits for being asked how it ended.
    fn has_ended(&self) -> bool {
        match stat(self.pid) {
            Some((state, started)) => started != self.started || state == "Z",
            None => true,
        }
    }

    /// Becomes a program in it, below this process, which ends as the program does. This process must have a single thread.
    pub fn become_program(
        &self,
        environment: Sources,
        directories: &[PathBuf],
        words: impl FnOnce(&Ready, &Variables) -> Result<Vec<OsString>, Error>,
        report: &dyn Fn(Error),
    ) -> Result<Infallible, Error> {
        processes::require_single_thread("joining an instance")
            .map_err(|err| Error::system("namespaces", err))?;
        let privilege = Privilege::of_caller();
        let mounts = self.enter(privilege)?;
        supervise::below(
            || {
                self.enter_mounts(&mounts)?;
                let directory = process::enter_directory(directories)?;
                process::drop_privileges(privilege, self.is_root_inside)?;
                let sources = Sources {
                    image: app::environment(environment.app.as_deref(), &self.about.environment)?,
                    instance: Some(self.name.clone().into_bytes()),
                    ..environment
                };
                let mut variables = environment::variables(&sources);
                variables.retain(|(name, _)| name != b"PWD");
                let pwd = directory.as_os_str().as_bytes().to_vec();
                variables.push((b"PWD".to_vec(), pwd));
                let words = words(&self.about, &variables)?;
                Err(process::become_program(&words, variables))
            },
            report,
        )
    }

    /// Enters all its namespaces but that of its mounts, which it gives: from there, /proc does not show this process.
    fn enter(&self, privilege: Privilege) -> Result<OwnedFd, Error> {
        let failed = |what: &str| {
            let what = format!("instance {}: its {what}", self.name);
            move |err: Errno| Error::system(what.clone(), err)
        };
        let mut kinds = vec![
            ("user", LinkNameSpaceType::User),
            ("ipc", LinkNameSpaceType::InterProcessCommunication),
            ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
            ("net", LinkNameSpaceType::Network),
            ("pid", LinkNameSpaceType::ProcessID),
        ];
        if privilege == Privilege::Root {
            kinds.remove(0);
        }
        // What it shares with the machine, this process is in already, and may not enter from a user namespace.
        let of =
            |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).ok();
        let pid = self.pid.to_string();
        kinds.retain(|(name, _)| of(&pid, name) != of("self", name));
        // All before the first is entered: afterwards /proc may be another one.
        let opened: Vec<(&str, LinkNameSpaceType, OwnedFd)> = kinds
            .into_iter()
            .map(|(name, kind)| {
                let path = format!("/proc/{}/ns/{name}", self.pid);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty())
                    .map(|opened| (name, kind, opened))
                    .map_err(failed(name))
            })
            .collect::<Result<_, _>>()?;
        let path = format!("/proc/{}/ns/mnt", self.pid);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mounts = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("mnt"))?;
        if started(self.pid) != Some(self.started) {
            return Err(Error::Refused(format!("instance {} has ended", self.name)));
        }
        for (name, kind, namespace) in &opened {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))
                .map_err(failed(name))?;
        }
        Ok(mounts)
    }

    fn enter_mounts(&self, mounts: &OwnedFd) -> Result<(), Error> {
        rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(|err| Error::system(format!("instance {}: its mounts", self.name), err))
    }
}

/// What the one who starts an instance and the instance say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    /// The first process has this number.
    Pid(i32),
    /// The program is about to begin.
    Ready(Ready),
}

/// For a container that goes on by itself.
#[derive(Debug)]
pub struct Detached {
    /// To the one who waits for the beginning.
    pub socket: OwnedFd,
    /// What it says from then on.
    pub out: fs::File,
    /// What it complains of.
    pub err: fs::File,
}

impl Detached {
    /// The same for another process.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let failed = |err| Error::system("the instance's output", err);
        Ok(Self {
            socket: self.socket.try_clone().map_err(failed)?,
            out: self.out.try_clone().map_err(failed)?,
            err: self.err.try_clone().map_err(failed)?,
        })
    }

    /// Tells the first process's number.
    pub fn pid(&self, pid: Pid) -> Result<(), Error> {
        self.tell(&News::Pid(pid.as_raw_nonzero().get()))
    }

    /// Tells that all is made, and lets go of the terminal.
    pub fn ready(&self, ready: &Ready) -> Result<(), Error> {
        self.let_go()?;
        self.tell(&News::Ready(ready.clone()))
    }

    /// Lets go of the terminal.
    pub fn let_go(&self) -> Result<(), Error> {
        let failed = |err| Error::system("the instance's output", err);
        rustix::stdio::dup2_stdout(&self.out).map_err(failed)?;
        rustix::stdio::dup2_stderr(&self.err).map_err(failed)
    }

    fn tell(&self, news: &News) -> Result<(), Error> {
        wire::send(self.socket.as_fd(), news, &[])
            .map_err(|err| Error::system("the instance's start", err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files_in_one_directory() {
        for name in ["a", "web-1", "my_db.2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".a", "..", "a/b", "a b", "a\n", "ü"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn an_instance_is_remembered_until_its_process_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let register = Register::below(scratch.path());
        let pid = i32::try_from(std::process::id()).unwrap();
        let instance = Instance {
            name: "a".into(),
            pid,
            started: started(pid).unwrap(),
            image: "oci:x".into(),
            out: "/x".into(),
            err: "/y".into(),
            is_root_inside: false,
            home: None,
            about: Ready::default(),
        };
        register.add(&instance).unwrap();
        assert_eq!(register.find("a").unwrap().pid, pid);
        assert_eq!(register.all().len(), 1);
        let another = Instance {
            started: instance.started + 1,
            ..instance
        };
        register.add(&another).unwrap();
        assert!(register.find("a").is_none() && register.all().is_empty());
    }
}
