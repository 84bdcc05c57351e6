//! Making the binds of a plan, below the image's root directory.
//!
//! A target is opened as a process with the image as its root would see it, and the mount goes onto
//! the descriptor: a symlink of the image, wherever it points, never leads to a path of the host.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags};
use sifon_mount::sys::namespace;

use super::devices;
use super::error::Error;
use super::identity::{self, Identity};
use super::plan::{Bind, IfMissing, Source, TargetKind};
use super::wire::Placed;

/// Bytes in an image's /etc/passwd or /etc/group at most; beyond that the file is left as it is.
const IDENTITY_BYTES_LIMIT: u64 = 4 << 20;

/// How often a lookup is tried again while somebody renames directories on its way.
const LOOKUP_TRIES: usize = 64;

/// Where what is shown comes from, beside the host's paths.
pub struct Sources<'a> {
    /// For [`Source::FromImage`].
    pub from_images: &'a [OwnedFd],
    /// Who is added to the image's lists of users and groups.
    pub identity: &'a Identity,
}

/// The directory that is going to be the container's root, in this process's own mount namespace.
pub struct Root {
    /// Itself.
    pub directory: OwnedFd,
    /// Where in it the targets of a plan's binds lie, in their order.
    pub placed: Vec<Placed>,
    /// A directory in memory for what only this container has; without one it is mounted in the root, where the plan says.
    pub stage: Option<OwnedFd>,
    /// Whether it is the user's own and nothing may be made in it.
    pub is_kept: bool,
}

/// Makes `binds` below `root`. One that is not required and cannot be made is left out, with a warning.
pub fn make(root: &Root, binds: &[Bind], sources: &Sources<'_>) -> Result<(), Error> {
    let identity = sources.identity;
    let placed = &root.placed;
    if binds.len() != placed.len() {
        return Err(Error::Refused(
            "the server answered for other binds than were asked for".into(),
        ));
    }
    let stage = Stage::make(root, binds)?;
    for (bind, placed) in binds.iter().zip(placed) {
        let target = Target { root, bind, placed };
        if target.is_left_out() {
            continue;
        }
        let made = match &bind.source {
            Source::Host(_) | Source::FromImage(_) | Source::Processes | Source::Stage => continue,
            Source::Passwd => show_file(&target, &stage, |own| identity::passwd(own, identity)),
            Source::Group => show_file(&target, &stage, |own| identity::group(own, identity)),
            Source::Text(text) => show_text(&target, &stage, text),
            Source::Memory(mode) => show_memory(&target, &stage, *mode),
            Source::Devices(more) => devices::show(&target, &stage, more),
        };
        settle(bind, made)?;
    }
    stage.leave()?;
    for (bind, placed) in binds.iter().zip(placed) {
        let target = Target { root, bind, placed };
        if target.is_left_out() {
            continue;
        }
        match &bind.source {
            Source::Host(source) => settle(bind, attach(&target, source, &stage))?,
            Source::FromImage(number) => {
                settle(
                    bind,
                    show_tree(&target, &sources.from_images[*number], &stage),
                )?;
            }
            Source::Processes => settle(bind, show_processes(&target))?,
            _ => {}
        }
    }
    Ok(())
}

fn settle(bind: &Bind, made: Result<(), Error>) -> Result<(), Error> {
    match made {
        Err(error) if !bind.is_required => {
            tracing::warn!("{}", error.in_one_line());
            Ok(())
        }
        made => made,
    }
}

/// Binds one path of the host.
fn attach(target: &Target<'_>, source: &Path, stage: &Stage) -> Result<(), Error> {
    let Target { bind, .. } = target;
    let failed = |problem: &str| {
        format!(
            "bind of {} to {}: {problem}",
            source.display(),
            bind.target.display()
        )
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let from = rustix::fs::open(source, flags, Mode::empty())
        .map_err(|err| Error::system(failed("the source cannot be opened"), err))?;
    let onto = stage
        .target(target)
        .map_err(|err| target_error(failed, target, err))?;
    require_same_kind(&from, &onto).map_err(|problem| Error::Refused(failed(problem)))?;
    let again = || stage.target(target);
    mounted(onto, again, |onto| {
        rustix::mount::mount_bind_recursive(by_descriptor(&from), by_descriptor(onto))
    })
    .map_err(|err| Error::system(failed("mount refused"), err))?;
    uncover_host(&from, target).map_err(|err| Error::system(failed("host's root"), err))?;
    if bind.is_read_only {
        make_read_only(target).map_err(|err| Error::system(failed("read-only"), err))?;
    }
    Ok(())
}

/// Attaches a mount that is attached nowhere.
fn show_tree(target: &Target<'_>, tree: &OwnedFd, stage: &Stage) -> Result<(), Error> {
    let path = target.bind.target.display();
    let failed = |problem: &str| format!("bind of an image to {path}: {problem}");
    let again = || stage.target(target);
    let onto = again().map_err(|err| target_error(failed, target, err))?;
    require_same_kind(tree, &onto).map_err(|problem| Error::Refused(failed(problem)))?;
    mounted(onto, again, |onto| {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", onto, "", flags)
    })
    .map_err(|err| Error::system(failed("mount refused"), err))
}

/// How often a target is opened anew.
const TRIES: usize = 8;

/// Mounts on `onto`. When another start adds a name to the image, the kernel is told to forget what it knows of that name;
/// who had just opened it cannot mount there any more, and opens it again.
fn mounted(
    mut onto: OwnedFd,
    again: impl Fn() -> Result<OwnedFd, Errno>,
    mount: impl Fn(&OwnedFd) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for _ in 1..TRIES {
        match mount(&onto) {
            Err(Errno::NOENT) => onto = again()?,
            done => return done,
        }
    }
    mount(&onto)
}

fn target_error(failed: impl Fn(&str) -> String, target: &Target<'_>, err: Errno) -> Error {
    match target.placed {
        Placed::Impossible(problem) => Error::Refused(failed(problem)),
        // The words are Singularity's.
        Placed::Absent if target.root.is_kept => Error::Reported {
            message: failed(&format!(
                "{} doesn't exist in container",
                target.bind.target.display()
            )),
            hint: Some(
                "with --writable the directory is shown as it is: make what is missing in it, or leave --writable out".into(),
            ),
        },
        Placed::At(_) | Placed::Absent => {
            Error::system(failed("the target cannot be opened in the container"), err)
        }
    }
}

fn require_same_kind(from: &OwnedFd, onto: &OwnedFd) -> Result<(), &'static str> {
    let is_directory = |descriptor: &OwnedFd| {
        rustix::fs::fstat(descriptor)
            .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    match (is_directory(from), is_directory(onto)) {
        (Ok(true), Ok(false)) => Err("the source is a directory, the target is not"),
        (Ok(false), Ok(true)) => Err("the target is a directory, the source is not"),
        (Ok(_), Ok(_)) => Ok(()),
        (Err(_), _) | (_, Err(_)) => Err("the target cannot be examined"),
    }
}

/// The host's root directory comes with what is mounted on it: the image, and perhaps something in front of it. Takes that away
/// from the copy at `target`, so that the host is seen there.
fn uncover_host(from: &OwnedFd, target: &Target<'_>) -> Result<(), Errno> {
    let of =
        |descriptor: &OwnedFd| rustix::fs::fstat(descriptor).map(|stat| (stat.st_dev, stat.st_ino));
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if of(from)? != of(&root)? {
        return Ok(());
    }
    loop {
        let seen = target.open()?;
        if of(&seen)? == of(from)? {
            return Ok(());
        }
        rustix::mount::unmount(by_descriptor(&seen), UnmountFlags::DETACH)?;
    }
}

/// The number of the mount that a descriptor leads to; see proc_pid_fdinfo(5).
fn mount_of(descriptor: &OwnedFd) -> Result<String, Errno> {
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()));
    let told = told.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    let number = told.lines().find(|line| line.starts_with("mnt_id:"));
    number.map(str::to_owned).ok_or(Errno::IO)
}

/// Makes what is now mounted at `target` read-only, with the mounts below it where the kernel can.
fn make_read_only(target: &Target<'_>) -> io::Result<()> {
    let mounted = target.open()?;
    match namespace::make_read_only(&mounted) {
        Err(err) if err.kind() == io::ErrorKind::Unsupported => {}
        done => return done,
    }
    Ok(restrict(&mounted, MountFlags::RDONLY)?)
}

/// Adds `flags` to those of the mount that `mounted` is the root of.
pub(super) fn restrict(mounted: &OwnedFd, flags: MountFlags) -> Result<(), Errno> {
    // Flags that it has may not be dropped in a user namespace.
    let kept = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let present = rustix::fs::fstatvfs(mounted)?.f_flag;
    let mut all = MountFlags::BIND | flags;
    for (has, flag) in kept {
        if present.contains(has) {
            all |= flag;
        }
    }
    rustix::mount::mount_remount(by_descriptor(mounted), all, c"")
}

/// Covers the image's file at `target` with one on `stage` whose content `changed` makes from it.
fn show_file(
    target: &Target<'_>,
    stage: &Stage,
    changed: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<(), Error> {
    let path = target.bind.target.display();
    let own = regular_content(target).map_err(|err| Error::system(path.to_string(), err))?;
    match own {
        Some(own) => show_text(target, stage, &changed(&own)),
        None => Ok(()),
    }
}

/// Covers the file at `target` with one that has this content.
fn show_text(target: &Target<'_>, stage: &Stage, text: &[u8]) -> Result<(), Error> {
    let path = target.bind.target.display();
    let failed = |err: io::Error| Error::system(path.to_string(), err);
    let mut file = File::from(stage.file(0o644).map_err(|err| failed(err.into()))?);
    file.write_all(text).map_err(failed)?;
    let file = OwnedFd::from(file);
    let again = || target.open();
    again()
        .and_then(|onto| {
            mounted(onto, again, |onto| {
                rustix::mount::mount_bind(by_descriptor(&file), by_descriptor(onto))
            })
        })
        .map_err(|err| failed(err.into()))
}

/// Covers the directory at `target` with an empty one in memory.
fn show_memory(target: &Target<'_>, stage: &Stage, mode: u32) -> Result<(), Error> {
    let path = target.bind.target.display();
    let failed = |err: Errno| Error::system(format!("directory {path} in memory"), err);
    let directory = stage.directory(mode).map_err(failed)?;
    let again = || stage.target(target);
    let at_target = |problem: &str| format!("directory {path} in memory: {problem}");
    let onto = again().map_err(|err| target_error(at_target, target, err))?;
    mounted(onto, again, |onto| {
        rustix::mount::mount_bind_recursive(by_descriptor(&directory), by_descriptor(onto))
    })
    .map_err(failed)
}

/// A new /proc: this process must be in the process namespace that it is to show.
fn show_processes(target: &Target<'_>) -> Result<(), Error> {
    let failed = |err: Errno| Error::system("/proc of the container's own processes", err);
    let onto = target.open().map_err(failed)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", by_descriptor(&onto), "proc", flags, c"").map_err(failed)
}

/// The bytes of a regular file of the image; none if it is something else or too long.
fn regular_content(target: &Target<'_>) -> io::Result<Option<Vec<u8>>> {
    let file = target.open()?;
    let stat = rustix::fs::fstat(&file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_regular || u64::try_from(stat.st_size).is_ok_and(|size| size > IDENTITY_BYTES_LIMIT) {
        return Ok(None);
    }
    let file = rustix::fs::open(
        by_descriptor(&file),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut content = Vec::new();
    File::from(file)
        .take(IDENTITY_BYTES_LIMIT)
        .read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Somewhere for files that are only the program's: a file system in memory.
pub(super) struct Stage {
    root: Option<OwnedFd>,
    device: u64,
    made: Cell<u32>,
    /// Whether it is mounted where something else is going to be.
    is_in_the_way: bool,
}

impl Stage {
    fn make(root: &Root, binds: &[Bind]) -> Result<Self, Error> {
        let failed = |err| Error::system("private file system", err);
        let mut stage = Self {
            root: None,
            device: 0,
            made: Cell::new(0),
            is_in_the_way: false,
        };
        if let Some(given) = &root.stage {
            stage.device = rustix::fs::fstat(given).map_err(failed)?.st_dev;
            stage.root = Some(
                given
                    .try_clone()
                    .map_err(|err| Error::system("private file system", err))?,
            );
            return Ok(stage);
        }
        let place = binds
            .iter()
            .zip(&root.placed)
            .find(|(bind, _)| bind.source == Source::Stage);
        let Some((bind, placed)) = place else {
            return Ok(stage);
        };
        let place = Target { root, bind, placed };
        let below = place.open().map_err(failed)?;
        rustix::mount::mount(
            "tmpfs",
            by_descriptor(&below),
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755",
        )
        .map_err(failed)?;
        let mounted = place.open().map_err(failed)?;
        stage.device = rustix::fs::fstat(&mounted).map_err(failed)?.st_dev;
        stage.root = Some(mounted);
        stage.is_in_the_way = true;
        Ok(stage)
    }

    fn root(&self) -> Result<&OwnedFd, Errno> {
        self.root.as_ref().ok_or(Errno::NOENT)
    }

    fn name(&self) -> String {
        self.made.set(self.made.get() + 1);
        self.made.get().to_string()
    }

    /// A new file that nobody else sees, open for writing.
    fn file(&self, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.root()?, self.name(), flags, Mode::from_raw_mode(mode))
    }

    /// A new directory that nobody else sees.
    pub(super) fn directory(&self, mode: u32) -> Result<OwnedFd, Errno> {
        let name = self.name();
        rustix::fs::mkdirat(self.root()?, &name, Mode::from_raw_mode(0o700))?;
        // Whatever the caller's umask says.
        let directory = Self::opened(self.root()?, &name)?;
        rustix::fs::chmodat(
            self.root()?,
            &name,
            Mode::from_raw_mode(mode),
            rustix::fs::AtFlags::empty(),
        )?;
        Ok(directory)
    }

    pub(super) fn opened(above: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(above, name, flags, Mode::empty())
    }

    /// The target, made if it is missing where the server cannot add it: in a directory of ours, or in one of the host's that
    /// another bind shows. A symlink never leads to such a place, because it would be the image that says what is made.
    pub(super) fn target(&self, target: &Target<'_>) -> Result<OwnedFd, Errno> {
        match target.open() {
            Err(Errno::NOENT) => {
                self.make_below(target)?;
                target.open()
            }
            opened => opened,
        }
    }

    fn make_below(&self, target: &Target<'_>) -> Result<(), Errno> {
        let mut missing = Vec::new();
        let mut path = target.bind.target.as_path();
        let mut at = loop {
            missing.push(path.file_name().ok_or(Errno::NOENT)?);
            path = path.parent().ok_or(Errno::NOENT)?;
            match target.open_path(path) {
                Err(Errno::NOENT) => {}
                opened => break opened?,
            }
        };
        if rustix::fs::fstat(&at)?.st_dev != self.device {
            if !target.bind.is_required {
                return Err(Errno::NOENT);
            }
            at = target.open_without_links(path)?;
            if target.root.is_kept && mount_of(&at)? == mount_of(&target.root.directory)? {
                return Err(Errno::NOENT);
            }
        }
        while let Some(name) = missing.pop() {
            if missing.is_empty() && target.bind.kind == TargetKind::File {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644))?;
                return Ok(());
            }
            rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
        }
        Ok(())
    }

    /// Takes it away from its place, before something else is mounted there. What was bound from it stays.
    fn leave(&self) -> Result<(), Error> {
        match self.root.as_ref().filter(|_| self.is_in_the_way) {
            Some(root) => rustix::mount::unmount(by_descriptor(root), UnmountFlags::DETACH)
                .map_err(|err| Error::system("private file system", err)),
            None => Ok(()),
        }
    }
}

/// The target of a bind, which can be opened before and after something is mounted on it.
pub(super) struct Target<'a> {
    root: &'a Root,
    bind: &'a Bind,
    placed: &'a Placed,
}

impl Target<'_> {
    /// Whether it is not there, which is nothing to speak of.
    fn is_left_out(&self) -> bool {
        matches!(self.placed, Placed::Absent) && self.bind.if_missing == IfMissing::Skip
    }

    /// What a process in the container finds at the target now.
    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        self.open_path(&self.bind.target)
    }

    /// What it finds at another path.
    fn open_path(&self, target: &Path) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if self.bind.covers_link {
            flags |= OFlags::NOFOLLOW;
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..LOOKUP_TRIES {
            match rustix::fs::openat2(&self.root.directory, target, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Before Linux 5.6, or behind a filter that does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => return self.open_stepwise(target),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What it finds at another path on which there is no symlink.
    fn open_without_links(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&self.root.directory, path, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => {
                self.open_components(path.as_os_str().as_bytes(), false)
            }
            opened => opened,
        }
    }

    /// The path that the server resolved, component by component: a symlink on it is an error.
    fn open_stepwise(&self, target: &Path) -> Result<OwnedFd, Errno> {
        let resolved = match self.placed {
            Placed::At(resolved) if target == self.bind.target => resolved.as_slice(),
            _ => target.as_os_str().as_bytes(),
        };
        self.open_components(resolved, self.bind.covers_link)
    }

    /// A path on which only the last component, and only if `may_end_in_link` says so, may be a symlink.
    fn open_components(&self, resolved: &[u8], may_end_in_link: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(&self.root.directory, ".", flags, Mode::empty())?;
        let mut components = resolved
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
            .peekable();
        while let Some(name) = components.next() {
            if matches!(name, b"." | b"..") {
                return Err(Errno::INVAL);
            }
            at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
            let is_link =
                FileType::from_raw_mode(rustix::fs::fstat(&at)?.st_mode) == FileType::Symlink;
            if is_link && !(components.peek().is_none() && may_end_in_link) {
                return Err(Errno::LOOP);
            }
        }
        Ok(at)
    }
}

/// A path that leads to what a descriptor of this process refers to, wherever that lies.
pub(super) fn by_descriptor(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}
