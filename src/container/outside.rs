//! File systems that other programs serve, and how they end with the container.
//!
//! Such a program must not live in the container's mount namespace, which would then never end. It is started in a copy of it. What
//! it mounts there, on a stage that both share (mount_namespaces(7), "shared subtrees"), appears here too, is bound where it belongs,
//! and taken away from the stage. With the container's namespace the mount goes, and with that the program, which has written all it
//! had to.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::CapabilitySets;
use sifon_mount::sys::answer::answer_of;
use sifon_mount::sys::{descriptor, namespace};

use super::error::Error;
use super::ext::{DIRECTORIES, Ext};
use super::namespaces::in_another_process;
use super::subids::found;

/// Longest that a program may take to mount: one that replays a journal reads a few megabytes.
const MOUNT_LIMIT: Duration = Duration::from_secs(15);

/// A directory that every host has, that holds no files of users, and that these programs do not look into.
const STAGE: &str = "/sys";

/// Where writes go that a program of ours does not take.
#[derive(Debug)]
pub enum Upper<'a> {
    /// Into memory.
    Memory,
    /// `upper` and `work` in a directory.
    Directory(&'a Path),
    /// The same in an ext2, ext3 or ext4 file system.
    Ext(&'a Ext),
}

/// Shows a file system, only to be read, on the directory `onto`.
pub fn ext(from: &Ext, onto: &Path) -> Result<(), Error> {
    let stage = Stage::new()?;
    let target = stage.directory("ext")?;
    stage.elsewhere(|| fuse2fs(from, &target, true))?;
    stage.show(&target, onto)
}

/// Sees to it that `names` are directories of the file system `from`, which is shown at `place`: a symlink there would lead to
/// the host's, and what programs write would go there.
pub fn require_directories(from: &Ext, place: &Path, names: &[&str]) -> Result<(), Error> {
    for name in names {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(place.join(name), flags, Mode::empty()).map_err(|err| {
            let action = format!("overlay in {from}: {name} is no directory in it");
            Error::system(action, err)
        })?;
    }
    Ok(())
}

/// Shows what fuse-overlayfs makes of `lower`, the topmost first, with `upper`, if there is one, for writing, on the directory `onto`.
pub fn overlay(lower: &[PathBuf], upper: Option<&Upper<'_>>, onto: &Path) -> Result<(), Error> {
    let stage = Stage::new()?;
    let mut places = Vec::new();
    for (number, path) in lower.iter().enumerate() {
        let place = stage.directory(&format!("lower-{number}"))?;
        bind(path, &place)?;
        places.push(escaped(&place));
    }
    let merged = stage.directory("merged")?;
    let mut options = OsString::from("lowerdir=");
    options.push(places.join(OsStr::new(":")));
    let writes = match upper {
        Some(Upper::Memory) => Some(stage.directory("memory")?),
        Some(Upper::Directory(path)) => Some(path.to_path_buf()),
        Some(Upper::Ext(_)) => Some(stage.directory("ext")?),
        None => None,
    };
    if let Some(above) = &writes {
        for (option, name) in [(",upperdir=", "upper"), (",workdir=", "work")] {
            options.push(option);
            options.push(escaped(&above.join(name)));
        }
    }
    stage.elsewhere(|| {
        match (upper, &writes) {
            (Some(Upper::Ext(from)), Some(above)) => {
                fuse2fs(from, above, false)?;
                directories_of_an_overlay(above).map_err(|source| Error::System {
                    action: format!("directories upper and work in {from}"),
                    source,
                    hint: Some(
                        "the file's root directory is another user's: install e2fsprogs, which has debugfs, or make the file with \
                         `sifon overlay create`"
                            .into(),
                    ),
                })?;
                require_directories(from, above, &DIRECTORIES)?;
            }
            (Some(Upper::Memory), Some(above)) => directories_of_an_overlay(above)
                .map_err(|err| Error::system("directory in memory", err))?,
            _ => {}
        }
        mounted_by("fuse-overlayfs", |command| {
            command.arg("-o").arg(options).arg(&merged);
        })
    })?;
    stage.show(&merged, onto)
}

fn directories_of_an_overlay(above: &Path) -> io::Result<()> {
    DIRECTORIES
        .into_iter()
        .try_for_each(|name| fs::create_dir_all(above.join(name)))
}

/// A copy of the mount at `path`, attached nowhere.
pub fn tree(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).map_err(|err| Error::System {
        action: "mount of what a file holds".into(),
        source: err.into(),
        // EPERM is what filters of system calls answer that do not know this one.
        hint: matches!(err, Errno::NOSYS | Errno::PERM).then(|| {
            "that needs Linux 5.2; where it is older, bind the directory that `sifon build --sandbox DIR FILE` unpacks, or lay \
             it over the image as DIR/upper of `--overlay DIR:ro`"
                .into()
        }),
    })
}

/// Attaches such a copy at the directory `path`.
pub fn attach(tree: &OwnedFd, path: &Path) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, path, flags)
        .map_err(|err| Error::system(format!("mount on {}", path.display()), err))
}

/// An empty file system in memory, for mounts only; it goes with this value, and what is still mounted there.
struct Stage;

impl Stage {
    fn new() -> Result<Self, Error> {
        let failed = |err: Errno| Error::system("place for a file system's program", err);
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", STAGE, "tmpfs", flags, c"mode=0755").map_err(failed)?;
        let stage = Self;
        rustix::mount::mount_change(STAGE, MountPropagationFlags::SHARED).map_err(failed)?;
        Ok(stage)
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = Path::new(STAGE).join(name);
        DirBuilder::new()
            .create(&path)
            .map_err(|err| Error::system("directory in memory", err))?;
        Ok(path)
    }

    /// Does something in a copy of this process's mount namespace, with rights that programs inherit. What is mounted on
    /// the stage there is seen here.
    fn elsewhere(&self, make: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let failed =
            |err: io::Error| Error::system("mount namespace of a file system's program", err);
        in_another_process(|| {
            descriptor::keep_descriptors_from_children().map_err(failed)?;
            namespace::unshare_mounts().map_err(failed)?;
            pass_rights_on().map_err(failed)?;
            make()?;
            Ok(Vec::new())
        })
        .map(drop)
    }

    /// Shows what is mounted at `place` on the directory `onto` too.
    fn show(&self, place: &Path, onto: &Path) -> Result<(), Error> {
        bind(place, onto)?;
        // What is mounted below it is nobody else's business, and a root directory must not be shared.
        rustix::mount::mount_change(onto, MountPropagationFlags::PRIVATE)
            .map_err(|err| Error::system(format!("mount on {}", onto.display()), err))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A program that had begun to serve something ends with its mount, also if another one failed.
        let _ = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
    }
}

/// Shows the topmost mount at `path` on the directory `onto` too, without the mounts below it.
fn bind(path: &Path, onto: &Path) -> Result<(), Error> {
    rustix::mount::mount_bind(path, onto)
        .map_err(|err| Error::system(format!("mount on {}", onto.display()), err))
}

/// What this process may do in its user namespace, the programs that it starts may do there: they mount.
fn pass_rights_on() -> io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    let all = sets.permitted;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            inheritable: all,
            ..sets
        },
    )?;
    for capability in all.iter() {
        // One that the kernel has no ambient set for is not passed on.
        let _ = rustix::thread::configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}

fn fuse2fs(from: &Ext, target: &Path, is_read_only: bool) -> Result<(), Error> {
    mounted_by("fuse2fs", |command| {
        command.arg(from.file()).arg(target);
        // Others are those in this user namespace; who may do what there, overlays and the kernel see to.
        let access = if is_read_only { "ro" } else { "rw" };
        command
            .arg("-o")
            .arg(format!("{access},allow_other,fakeroot{}", from.option()));
    })
}

/// Runs a program that goes to the background when it has mounted.
fn mounted_by(program: &'static str, arguments: impl FnOnce(&mut Command)) -> Result<(), Error> {
    let path = found(program).ok_or_else(|| Error::System {
        action: format!("overlay: {program}"),
        source: io::ErrorKind::NotFound.into(),
        hint: Some(format!(
            "install {program} (Debian's package of this name), or use --writable-tmpfs"
        )),
    })?;
    let mut command = Command::new(path);
    arguments(&mut command);
    let answer = answer_of(&mut command, b"", Instant::now() + MOUNT_LIMIT);
    let problem = match answer {
        Ok((status, _)) if status.success() => return Ok(()),
        Ok((status, _)) => io::Error::other(format!("it ended with {status}")),
        Err(err) => err,
    };
    let words = command.get_args().map(|word| word.to_string_lossy());
    let words: Vec<_> = words.collect();
    let action = format!("overlay: {program} {}", words.join(" "));
    Err(Error::system(action, problem))
}

/// A path in a list of options that commas and colons separate.
fn escaped(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}
