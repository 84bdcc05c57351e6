//! Who uses an image: processes in the mount namespaces of its containers.
//!
//! A container is known by one of its processes, first the one that its client became. When that ends, another one is looked for.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags};

/// How often /proc is read before a namespace is believed to be empty: one look can miss a process whose parent was gone by then and
/// that was not there yet.
const LOOKS: usize = 2;

/// A container.
#[derive(Debug)]
pub struct Client {
    pid: Pid,
    /// None on kernels before 5.3.
    handle: Option<OwnedFd>,
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

    /// What becomes readable when the process ends; none if it has to be looked at now and then.
    pub fn handle(&self) -> Option<BorrowedFd<'_>> {
        self.handle.as_ref().map(AsFd::as_fd)
    }

    /// Whether the container still has processes. If the known one has ended, another is found.
    pub fn lives(&mut self) -> bool {
        if self.is_running() {
            return true;
        }
        let Some(namespace) = self.mount_namespace else {
            return false;
        };
        for _ in 0..LOOKS {
            if let Some(pid) = process_in(namespace) {
                *self = Self {
                    mount_namespace: Some(namespace),
                    held: self.held.take(),
                    ..Self::of(pid)
                };
                return true;
            }
        }
        self.held = None;
        false
    }

    /// Whether the process it is known by has not ended.
    fn is_running(&self) -> bool {
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

/// A process in the mount namespace of this inode number.
fn process_in(mount_namespace: u64) -> Option<Pid> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A zombie's cannot be looked at.
        let namespace = fs::metadata(entry.path().join("ns/mnt"));
        if namespace.is_ok_and(|of| of.ino() == mount_namespace) {
            return Pid::from_raw(pid);
        }
    }
    None
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
        let mut alone = Client::of(Pid::from_child(&child));
        let mut shared = Client::of(Pid::from_child(&child));
        shared.is_in(here);
        assert!(alone.lives() && shared.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!alone.lives());
        assert!(shared.lives(), "this process is in the namespace");
        assert_ne!(shared.pid(), Pid::from_child(&child));
    }
}
