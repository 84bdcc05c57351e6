//! Who uses an image: processes in the mount namespaces of its containers.
//!
//! A container is known by one of its processes, first the one that its client became. When that ends, another one is looked for.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags};

/// How often /proc is read before a namespace is believed to be empty: one look can miss a process whose parent was gone by then and
/// that was not there yet.
const LOOKS: usize = 2;

/// Containers whose known process has ended, and that are not looked into while others of the same image run: a look reads all of
/// /proc, and each such container holds two descriptors.
const UNKNOWN_LIMIT: usize = 64;

/// A container.
#[derive(Debug)]
pub struct Client {
    pid: Pid,
    /// None on kernels before 5.3.
    handle: Option<OwnedFd>,
    /// Whether that has been noticed to have ended.
    has_ended: bool,
    /// Inode number of the mount namespace; none while it is not made yet.
    mount_namespace: Option<u64>,
    /// That namespace: as long as this is open, its number is nobody else's. None if it could not be opened.
    held: Option<File>,
}

impl Client {
    /// The one that the process `pid` is about to become.
    pub fn of(pid: Pid) -> Self {
        Self {
            pid,
            handle: rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok(),
            has_ended: false,
            mount_namespace: None,
            held: None,
        }
    }

    /// The process it is known by.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// From now on it is in the mount namespace of this inode number.
    pub fn is_in(&mut self, mount_namespace: u64) {
        self.mount_namespace = Some(mount_namespace);
        let pid = self.pid.as_raw_nonzero();
        let opened = File::open(format!("/proc/{pid}/ns/mnt")).ok();
        let is_it = |file: &File| {
            file.metadata()
                .is_ok_and(|metadata| metadata.ino() == mount_namespace)
        };
        self.held = opened.filter(is_it);
    }

    /// What becomes readable when the process ends; none if that was noticed already, or has to be looked for.
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        let handle = self.handle.as_ref().filter(|_| !self.has_ended);
        handle.map(AsFd::as_fd)
    }

    /// Whether it has to be looked at now and then, because the kernel does not tell when it ends.
    pub fn must_be_looked_at(&self) -> bool {
        self.handle.is_none()
    }

    /// The container, known by another process.
    fn known_by(self, pid: Pid) -> Self {
        Self {
            mount_namespace: self.mount_namespace,
            held: self.held,
            ..Self::of(pid)
        }
    }

    /// Whether the process it is known by has not ended.
    fn is_running(&self) -> bool {
        if self.has_ended {
            return false;
        }
        match &self.handle {
            Some(handle) => {
                let mut watched = [rustix::event::PollFd::new(
                    handle,
                    rustix::event::PollFlags::IN,
                )];
                let now = rustix::event::Timespec::default();
                !rustix::event::poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
            }
            None => {
                let process = Path::new("/proc").join(self.pid.as_raw_nonzero().to_string());
                match self.mount_namespace {
                    Some(namespace) => {
                        fs::metadata(process.join("ns/mnt")).is_ok_and(|of| of.ino() == namespace)
                    }
                    None => process.exists(),
                }
            }
        }
    }
}

/// Forgets those of an image's containers that have no process any more. If the known one has ended, another is found, but not
/// before that matters: while some run, the others may wait.
pub fn forget_empty(clients: &mut Vec<Client>) {
    let mut unknown = 0;
    for client in &mut *clients {
        client.has_ended = !client.is_running();
        unknown += usize::from(client.has_ended);
    }
    if unknown == clients.len() || unknown > UNKNOWN_LIMIT {
        find_others(clients);
    }
}

/// Forgets all that have no process, and knows each of the others by one that runs.
pub fn find_others(clients: &mut Vec<Client>) {
    let (mut known, mut unknown): (Vec<_>, Vec<_>) =
        clients.drain(..).partition(Client::is_running);
    for _ in 0..LOOKS {
        unknown.retain(|client| client.mount_namespace.is_some());
        if unknown.is_empty() {
            break;
        }
        let processes = processes();
        let of = |client: &Client| processes.get(&client.mount_namespace?).copied();
        let (found, not_found) = unknown.into_iter().partition(|client| of(client).is_some());
        unknown = not_found;
        let found: Vec<Client> = found;
        known.extend(found.into_iter().filter_map(|client| {
            let pid = of(&client)?;
            Some(client.known_by(pid))
        }));
    }
    *clients = known;
}

/// A process in each mount namespace, by its inode number.
fn processes() -> HashMap<u64, Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let in_namespace = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // A zombie's cannot be looked at.
        let namespace = fs::metadata(entry.path().join("ns/mnt")).ok()?;
        Some((namespace.ino(), Pid::from_raw(pid)?))
    };
    entries.filter_map(in_namespace).collect()
}

/// The inode number of this process's mount namespace.
pub fn own_mount_namespace() -> std::io::Result<u64> {
    fs::metadata("/proc/self/ns/mnt").map(|of| of.ino())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_container_lives_as_long_as_a_process_in_its_namespace() {
        let here = own_mount_namespace().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let of_child = || Client::of(Pid::from_child(&child));
        let (alone, mut shared) = (of_child(), of_child());
        shared.is_in(here);
        let mut clients = vec![alone, shared];
        forget_empty(&mut clients);
        assert_eq!(clients.len(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
        forget_empty(&mut clients);
        let [client] = clients.as_slice() else {
            panic!("only this process is in the namespace");
        };
        assert_ne!(client.pid(), Pid::from_child(&child));
        assert!(client.handle().is_some());
    }

    #[test]
    fn containers_that_may_be_empty_are_looked_into_when_no_other_runs_or_many_wait() {
        let ended = || {
            let mut child = Command::new("true").spawn().unwrap();
            let client = Client::of(Pid::from_child(&child));
            child.wait().unwrap();
            client
        };
        let running = || Client::of(rustix::process::getpid());
        let mut clients = vec![ended(), running(), ended()];
        forget_empty(&mut clients);
        assert_eq!(clients.len(), 3);
        assert_eq!(clients.iter().filter_map(Client::handle).count(), 1);
        clients.extend((0..UNKNOWN_LIMIT).map(|_| ended()));
        forget_empty(&mut clients);
        assert_eq!(clients.len(), 1);
        let mut clients = vec![ended(), ended()];
        forget_empty(&mut clients);
        assert!(clients.is_empty());
    }
}
