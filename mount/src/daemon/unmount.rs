//! Ending a mount from outside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::control::{self, Lifeline, Mounted};
use crate::sys::mount::{self, FusermountError};
use crate::sys::mountinfo::{self, MountEntry};

/// How long the process behind a mount may take to end after it.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a mount that nobody is seen to use may stay busy: a process that is just ending holds it
/// for a moment longer than it is seen in /proc.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the mount is still there, or its process.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The path or the table of mounts cannot be read.
    #[error("mount point {}: cannot be looked at", path.display())]
    Inaccessible {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing of ours is mounted there.
    #[error("mount point {}: no image is mounted there", .0.display())]
    NotMounted(PathBuf),
    /// Somebody uses it.
    #[error("mount point {}: busy, {}", path.display(), listed(users))]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Those that could be seen; perhaps none.
        users: Vec<User>,
    },
    /// The system refused.
    #[error("mount point {}: cannot be unmounted", path.display())]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: FusermountError,
    },
    /// The mount is gone, its process is not.
    #[error("mount point {}: unmounted, but its process{} has not ended within {END_TIMEOUT:?}",
        path.display(), pid.map(|pid| format!(" {pid}")).unwrap_or_default())]
    StillRuns {
        /// The directory.
        path: PathBuf,
        /// The process, if it can be named.
        pid: Option<u32>,
    },
}

impl UnmountError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { path, .. } => Some(format!(
                "end what uses it, or detach it now and let it end later: sifon umount --lazy {}",
                path.display()
            )),
            Self::NotMounted(_) => Some("findmnt -t fuse.sifon lists the mounted images".into()),
            _ => None,
        }
    }
}

/// Who keeps a mount busy, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its command's name.
        name: String,
        /// What of it lies in the mount, for example `current directory`.
        by: &'static str,
    },
    /// Something mounted below.
    Mount(PathBuf),
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { pid, name, by } => write!(f, "process {pid} ({name}, by its {by})"),
            Self::Mount(path) => write!(f, "the mount on {}", path.display()),
        }
    }
}

fn listed(users: &[User]) -> String {
    if users.is_empty() {
        return "used by a process that this user cannot see".into();
    }
    let users: Vec<String> = users.iter().map(User::to_string).collect();
    format!("used by {}", users.join(", "))
}

/// A mount that has ended, here at least.
#[derive(Debug)]
pub struct Unmounted {
    /// What was mounted.
    pub mounted: Mounted,
    /// Processes with a mount namespace of their own that still have the mount, because they were started while it was
    /// there. The process behind it ends with them.
    pub kept_by: Vec<User>,
}

/// Unmounts the image at `path` and waits until its process has ended, unless others keep that.
pub fn unmount(path: &Path) -> Result<Unmounted, UnmountError> {
    let mount = ours_at(path)?;
    let lifeline = Lifeline::to(&mount);
    let pid = lifeline.as_ref().and_then(|lifeline| lifeline.pid);
    let mounted = control::described(mount.clone());
    unmount_when_free(&mount)?;
    let ended = |kept_by| Unmounted { mounted, kept_by };
    let Some(mut lifeline) = lifeline else {
        return Ok(ended(Vec::new()));
    };
    if lifeline.ended_within(END_TIMEOUT) {
        return Ok(ended(Vec::new()));
    }
    let kept_by = keepers(&mount);
    if kept_by.is_empty() {
        let path = mount.target;
        return Err(UnmountError::StillRuns { path, pid });
    }
    Ok(ended(kept_by))
}

/// Takes the image at `path` out of the tree at once. Its process ends when its last user is gone.
pub fn detach(path: &Path) -> Result<Mounted, UnmountError> {
    let mount = ours_at(path)?;
    let mounted = control::described(mount.clone());
    mount::detach(&mount.target).map_err(|source| UnmountError::Refused {
        path: mount.target,
        source,
    })?;
    Ok(mounted)
}

fn ours_at(path: &Path) -> Result<MountEntry, UnmountError> {
    control::entry_at(path)
        .map_err(|source| UnmountError::Inaccessible {
            path: path.to_owned(),
            source,
        })?
        .ok_or_else(|| UnmountError::NotMounted(path.to_owned()))
}

fn unmount_when_free(mount: &MountEntry) -> Result<(), UnmountError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        let Err(source) = mount::unmount(&mount.target) else {
            return Ok(());
        };
        let users = users(mount);
        let is_busy = is_busy(&source) || !users.is_empty();
        let path = mount.target.clone();
        if !is_busy {
            return Err(UnmountError::Refused { path, source });
        }
        if !users.is_empty() || Instant::now() > deadline {
            return Err(UnmountError::Busy { path, users });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_busy(error: &FusermountError) -> bool {
    match error {
        FusermountError::Io(err) => err.kind() == io::ErrorKind::ResourceBusy,
        // strerror(EBUSY); the program never translates it.
        FusermountError::Refused(said) => said.contains("busy"),
        FusermountError::Missing => false,
    }
}

/// Processes that this user may look at, and mounts, that use `mount`.
fn users(mount: &MountEntry) -> Vec<User> {
    let below = mountinfo::mounts().unwrap_or_default().into_iter();
    let below = below.filter(|other| other.parent == mount.id);
    let below = below.map(|other| User::Mount(other.target));
    below
        .chain(processes(|process| use_by(process, mount)))
        .collect()
}

/// Processes that this user may look at and that have what was `mount` in namespaces of their own. In ours it is gone, and the
/// kernel may have given its number to the next mount.
fn keepers(mount: &MountEntry) -> Vec<User> {
    let ours = fs::read_link("/proc/self/ns/mnt").ok();
    let has_it = |process: &Path| {
        if fs::read_link(process.join("ns/mnt")).ok() == ours {
            // A server of containers has the namespace that they are made from open, and is in ours itself.
            return holds_another(process, ours.as_deref()?).then_some("mount namespaces");
        }
        let mounts = mountinfo::parsed(&fs::read(process.join("mountinfo")).ok()?);
        let is_it = |other: &MountEntry| {
            other.device == mount.device
                && other.file_system == mount.file_system
                && other.source == mount.source
        };
        mounts.iter().any(is_it).then_some("mount namespace")
    };
    processes(has_it).collect()
}

/// Whether a process of this program has a mount namespace open that is not `ours`.
fn holds_another(process: &Path, ours: &Path) -> bool {
    let program = |process: &Path| fs::read_link(process.join("exe")).ok();
    let is_another =
        |name: &Path| name != ours && name.to_str().is_some_and(|name| name.starts_with("mnt:["));
    program(process).is_some_and(|theirs| program(Path::new("/proc/self")) == Some(theirs))
        && fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|name| is_another(&name))
}

/// The processes for which there is something to say.
fn processes(said_of: impl Fn(&Path) -> Option<&'static str>) -> impl Iterator<Item = User> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(move |process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let by = said_of(&process.path())?;
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(User::Process {
            pid,
            name: name.trim_end().to_owned(),
            by,
        })
    })
}

/// What of the process at `process` lies in `mount`. Links are read, never followed: following one
/// into a dead or hanging mount would hang us too.
fn use_by(process: &Path, mount: &MountEntry) -> Option<&'static str> {
    for (link, by) in [
        ("cwd", "current directory"),
        ("root", "root directory"),
        ("exe", "program"),
    ] {
        let is_inside = fs::read_link(process.join(link))
            .is_ok_and(|path| mountinfo::lies_in(&path, &mount.target));
        if is_inside {
            return Some(by);
        }
    }
    if has_open_file(process, mount.id) {
        return Some("open files");
    }
    maps_file(process, mount.device).then_some("mapped files")
}

fn has_open_file(process: &Path, mount_id: u32) -> bool {
    let files = fs::read_dir(process.join("fdinfo")).into_iter().flatten();
    files.flatten().any(|file| {
        let told = fs::read_to_string(file.path()).unwrap_or_default();
        let id = told.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        id.is_some_and(|id| id.trim().parse() == Ok(mount_id))
    })
}

/// proc(5): the fourth field of a line in maps is the device, both numbers in hexadecimal.
fn maps_file(process: &Path, (major, minor): (u32, u32)) -> bool {
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let device = format!("{major:02x}:{minor:02x}");
    maps.split(|&byte| byte == b'\n').any(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        fields.nth(3) == Some(device.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_no_mount() {
        let directory = tempfile::tempdir().unwrap();
        let refused = unmount(directory.path()).unwrap_err();
        assert!(matches!(refused, UnmountError::NotMounted(_)), "{refused}");
        assert!(matches!(
            unmount(Path::new("/nonexistent/a")).unwrap_err(),
            UnmountError::Inaccessible { .. }
        ));
    }

    #[test]
    fn this_process_is_seen_to_use_the_root_mount() {
        let root = mountinfo::mounted_on(Path::new("/")).unwrap().unwrap();
        let users = users(&root);
        let me = std::process::id();
        assert!(users.iter().any(
            |user| matches!(user, User::Process { pid, name, .. } if *pid == me && !name.is_empty())
        ));
        let shown = listed(&users[..1]);
        assert!(shown.starts_with("used by "), "{shown}");
    }
}
