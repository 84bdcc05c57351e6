//! File systems that other programs serve, and how they end with the container.
//!
//! Such a program must not live in the container's mount namespace, which would then never end. It is started in a copy of it; what
//! it mounts there is brought over as a descriptor, and taken away in the copy. With the container's namespace the mount
//! goes, and with that the program, which has written all it had to.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::CapabilitySets;
use sifon_mount::sys::answer::answer_of;
use sifon_mount::sys::{descriptor, namespace};

use super::error::Error;
use super::ext::DIRECTORIES;
use super::namespaces::in_another_process;
use super::subids::found;

/// Longest that a program may take to mount: one that replays a journal reads a few megabytes.
const MOUNT_LIMIT: Duration = Duration::from_secs(15);

/// A directory that every host has, that holds no files of users, and that these programs do not look into.
const STAGE: &str = "/sys";

/// Where writes go that a program of ours does not take.
#[derive(Debug)]
pub enum Upper<'a> {
    /// `upper` and `work` in a directory.
    Directory(&'a Path),
    /// The same in an ext2, ext3 or ext4 file system in this file.
    Ext(&'a Path),
}

/// The file system in `file`, only to be read.
pub fn ext(file: &Path) -> Result<OwnedFd, Error> {
    brought(Vec::new(), |_| {
        let target = directory("ext")?;
        fuse2fs(file, &target, true)?;
        Ok(target)
    })
}

/// What fuse-overlayfs shows of `lower`, the topmost first, with `upper` for writing.
pub fn overlay(lower: &[PathBuf], upper: &Upper<'_>) -> Result<OwnedFd, Error> {
    let lower = lower
        .iter()
        .map(|path| tree(path))
        .collect::<Result<_, _>>()?;
    brought(lower, |lower| {
        let mut places = Vec::new();
        for (number, tree) in lower.iter().enumerate() {
            let place = directory(&format!("lower-{number}"))?;
            attach(tree, &place)?;
            places.push(place);
        }
        let above = match upper {
            Upper::Directory(path) => path.to_path_buf(),
            Upper::Ext(file) => {
                let place = directory("ext")?;
                fuse2fs(file, &place, false)?;
                for name in DIRECTORIES {
                    let path = place.join(name);
                    fs::create_dir_all(&path).map_err(|source| Error::System {
                        action: format!("directory {name} in {}", file.display()),
                        source,
                        hint: Some(
                            "the file's root directory is another user's: install e2fsprogs, which has debugfs, or make the file with \
                             `sifon overlay create`"
                                .into(),
                        ),
                    })?;
                }
                place
            }
        };
        let merged = directory("merged")?;
        let places: Vec<_> = places.iter().map(|place| escaped(place)).collect();
        let mut options = OsString::from("lowerdir=");
        options.push(places.join(OsStr::new(":")));
        for (option, name) in [(",upperdir=", "upper"), (",workdir=", "work")] {
            options.push(option);
            options.push(escaped(&above.join(name)));
        }
        mounted_by("fuse-overlayfs", |command| {
            command.arg("-o").arg(options).arg(&merged);
        })?;
        Ok(merged)
    })
}

/// A copy of the mount at `path`, attached nowhere.
pub fn tree(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags)
        .map_err(|err| Error::system(format!("mount at {}", path.display()), err))
}

/// Attaches such a copy at the directory `path`.
pub fn attach(tree: &OwnedFd, path: &Path) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, path, flags)
        .map_err(|err| Error::system(format!("mount on {}", path.display()), err))
}

/// A copy of what `make` mounts at the place that it gives, on an empty stage in a mount namespace of its own.
fn brought(
    trees: Vec<OwnedFd>,
    make: impl FnOnce(&[OwnedFd]) -> Result<PathBuf, Error>,
) -> Result<OwnedFd, Error> {
    let failed = |err: io::Error| Error::system("mount namespace of a file system's program", err);
    let made = in_another_process(|| {
        descriptor::keep_descriptors_from_children().map_err(failed)?;
        namespace::unshare_mounts().map_err(failed)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(|err| failed(err.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", STAGE, "tmpfs", flags, c"mode=0755")
            .map_err(|err| failed(err.into()))?;
        pass_rights_on().map_err(failed)?;
        let made = make(&trees).and_then(|place| tree(&place));
        // A program that had begun to serve something ends with its mount, also if another one failed.
        rustix::mount::unmount(STAGE, UnmountFlags::DETACH).map_err(|err| failed(err.into()))?;
        Ok(vec![made?])
    })?;
    let mut made = made.into_iter();
    made.next()
        .ok_or_else(|| Error::Refused("a file system's program died".into()))
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

fn fuse2fs(file: &Path, target: &Path, is_read_only: bool) -> Result<(), Error> {
    mounted_by("fuse2fs", |command| {
        command.arg(file).arg(target);
        // Others are those in this user namespace; who may do what there, overlays and the kernel see to.
        let access = if is_read_only { "ro" } else { "rw" };
        command
            .arg("-o")
            .arg(format!("{access},allow_other,fakeroot"));
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

fn directory(name: &str) -> Result<PathBuf, Error> {
    let path = Path::new(STAGE).join(name);
    DirBuilder::new()
        .create(&path)
        .map_err(|err| Error::system("directory in memory", err))?;
    Ok(path)
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
