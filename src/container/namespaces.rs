//! The namespaces around an image: made for a server, entered by its clients.
//!
//! The image's file system is mounted on top of the new mount namespace's root directory. That place
//! exists on every host, and nothing is hidden there: paths of processes that are in already, or that
//! go back to the host's root by a descriptor, still start below it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::WaitOptions;
use rustix::thread::{CapabilitySet, LinkNameSpaceType};
use serde::{Deserialize, Serialize};
use sifon_mount::sys::mount::FuseOptions;
use sifon_mount::sys::{namespace, process};

use super::error::Error;
use super::subids::Ranges;
use super::wire;

/// Longest that the process which makes namespaces may take: it makes some twenty system calls.
const CREATION_LIMIT: Duration = Duration::from_secs(20);

/// Who owns an image's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Privilege {
    /// The caller is the machine's root: a mount namespace is enough.
    Root,
    /// Any other user: a user namespace in which only the caller's own ids exist.
    User,
}

impl Privilege {
    /// What this process may do.
    pub fn of_caller() -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let may_mount = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if is_root && may_mount {
            Self::Root
        } else {
            Self::User
        }
    }
}

/// Namespaces that processes can join. They live as long as one of these descriptors or a process in
/// them, and so does what is mounted there.
#[derive(Debug)]
pub struct Joinable {
    /// None where the caller is root.
    pub user: Option<OwnedFd>,
    /// The mount namespace.
    pub mounts: OwnedFd,
    /// The host's root directory in it, below the image.
    pub host: OwnedFd,
}

impl Joinable {
    /// The descriptors, in the order that [`Joinable::from_descriptors`] expects.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let always = [&self.mounts, &self.host];
        always
            .into_iter()
            .chain(&self.user)
            .map(AsFd::as_fd)
            .collect()
    }

    /// Once more, with the user namespace `user` if there is one; none if this process can have no more descriptors.
    pub fn again(&self, user: Option<&OwnedFd>) -> Option<Self> {
        Some(Self {
            user: user.map(OwnedFd::try_clone).transpose().ok()?,
            mounts: self.mounts.try_clone().ok()?,
            host: self.host.try_clone().ok()?,
        })
    }

    /// What a server sent; none if it is not two or three descriptors.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let joinable = Self {
            mounts: descriptors.next()?,
            host: descriptors.next()?,
            user: descriptors.next(),
        };
        descriptors.next().is_none().then_some(joinable)
    }
}

/// Makes namespaces and lets `mount` put a file system on top of their root directory, `/`, from
/// inside. Gives them with the descriptor that `mount` returned. This process stays in its own, and
/// must have a single thread.
pub fn create(
    privilege: Privilege,
    mount: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<(Joinable, OwnedFd), Error> {
    let made = in_another_process(|| {
        let user = match privilege {
            Privilege::Root => {
                namespace::unshare_mounts()
                    .map_err(|err| Error::system("new mount namespace", err))?;
                None
            }
            Privilege::User => {
                let numbers = own_numbers();
                namespace::unshare_user_and_mounts()
                    .map_err(|err| forbidden("new user namespace", err))?;
                map(numbers, numbers)?;
                Some(namespace_file("/proc/self/ns/user")?)
            }
        };
        let (Joinable { user, mounts, host }, connection) = mounted(user, mount)?;
        let always = [connection, mounts, host];
        Ok(always.into_iter().chain(user).collect())
    })?;
    let mut made = made.into_iter();
    let connection = made.next();
    connection
        .and_then(|connection| Some((Joinable::from_descriptors(made.collect())?, connection)))
        .ok_or_else(|| Error::Refused("namespaces: the process that makes them died".into()))
}

/// The descriptors that `make` gives in a copy of this process, which is gone then.
pub(super) fn in_another_process(
    make: impl FnOnce() -> Result<Vec<OwnedFd>, Error>,
) -> Result<Vec<OwnedFd>, Error> {
    let (here, there) = wire::pair().map_err(|err| Error::system("socket pair", err))?;
    let limit = Some(CREATION_LIMIT);
    rustix::net::sockopt::set_socket_timeout(&here, rustix::net::sockopt::Timeout::Recv, limit)
        .map_err(|err| Error::system("socket's time limit", err))?;
    let child = process::fork(|| match make().and_then(|made| report(&there, &made)) {
        Ok(()) => 0,
        Err(error) => {
            u8::from(wire::send(there.as_fd(), &Some(Failure::from(&error)), &[]).is_err()) + 1
        }
    })
    .map_err(|err| Error::system("start of a process that makes namespaces", err))?;
    drop(there);
    let received = wire::receive::<Option<Failure>>(here.as_fd());
    drop(here);
    let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
    match received.map_err(|err| Error::system("namespaces", err))? {
        Some((None, descriptors)) => Ok(descriptors),
        Some((Some(failure), _)) => Err(failure.into()),
        _ => Err(Error::Refused(
            "namespaces: the process that makes them died".into(),
        )),
    }
}

/// A new user namespace in which the caller has the numbers `inside`, and nobody else exists; none for root. This process stays in its own, and must
/// have a single thread.
pub fn new_user_namespace(
    privilege: Privilege,
    inside: (u32, u32),
) -> Result<Option<OwnedFd>, Error> {
    match privilege {
        Privilege::Root => Ok(None),
        Privilege::User => {
            let made = in_another_process(|| {
                let numbers = own_numbers();
                namespace::unshare_user().map_err(|err| forbidden("new user namespace", err))?;
                map(inside, numbers)?;
                Ok(vec![namespace_file("/proc/self/ns/user")?])
            })?;
            Ok(made.into_iter().next())
        }
    }
}

/// A new user namespace in which the caller is root, and the numbers of `ranges` follow. The programs that the site has for this make
/// the map, from outside. This process stays in its own, and must have a single thread.
pub fn new_user_namespace_with(ranges: &Ranges) -> Result<OwnedFd, Error> {
    let failed = |err: io::Error| Error::system("user namespace with a range of numbers", err);
    let (here, there) = wire::pair().map_err(failed)?;
    let limit = Some(CREATION_LIMIT);
    rustix::net::sockopt::set_socket_timeout(&here, rustix::net::sockopt::Timeout::Recv, limit)
        .map_err(|err| failed(err.into()))?;
    let child = process::fork(|| {
        let made = namespace::unshare_user().map_err(|err| forbidden("new user namespace", err));
        let failure = made.as_ref().err().map(Failure::from);
        let told = wire::send(there.as_fd(), &failure, &[]);
        // Until the other end has what it needs, or is gone.
        let _ = wire::receive::<Option<Failure>>(there.as_fd());
        u8::from(made.is_err() || told.is_err())
    })
    .map_err(failed)?;
    let received = wire::receive::<Option<Failure>>(here.as_fd());
    let made = match received.map_err(failed) {
        Ok(Some((None, _))) => ranges
            .map(child)
            .map_err(failed)
            .and_then(|()| namespace_file(&format!("/proc/{}/ns/user", child.as_raw_nonzero()))),
        Ok(Some((Some(failure), _))) => Err(failure.into()),
        Ok(None) => Err(Error::Refused(
            "user namespace: the process that makes it died".into(),
        )),
        Err(err) => Err(err),
    };
    // It hears that by the end of the connection.
    let _ = rustix::net::shutdown(&here, rustix::net::Shutdown::Both);
    let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
    made
}

/// Enters `user`, if there is one, and there a new mount namespace, and lets `mount` put a file system on top of its root directory.
/// Gives the namespaces with the descriptor that `mount` returned. This process must have a single thread; its root directory stays
/// the host's.
pub fn enter_and_mount(
    user: Option<OwnedFd>,
    mount: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<(Joinable, OwnedFd), Error> {
    process::require_single_thread("new mount namespace")
        .map_err(|err| Error::system("namespaces", err))?;
    if let Some(user) = user {
        rustix::thread::move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(|err| Error::system("joining the server's user namespace", err))?;
    }
    namespace::unshare_mounts().map_err(|err| forbidden("new mount namespace", err))?;
    mounted(None, mount)
}

/// An [`Error`] on its way between two processes.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    action: String,
    errno: Option<i32>,
    hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        match error {
            Error::System {
                action,
                source,
                hint,
            } => Self {
                action: action.clone(),
                errno: source.raw_os_error(),
                hint: hint.clone(),
            },
            Error::Reported { message, hint } => Self {
                action: message.clone(),
                errno: None,
                hint: hint.clone(),
            },
            Error::Refused(text) => Self {
                action: text.clone(),
                errno: None,
                hint: None,
            },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure {
            action,
            errno,
            hint,
        } = failure;
        match errno {
            Some(errno) => Self::System {
                action,
                source: io::Error::from_raw_os_error(errno),
                hint,
            },
            None => Self::Reported {
                message: action,
                hint,
            },
        }
    }
}

/// In a new mount namespace: mounts, and gives what is needed to join. `user` is passed on.
fn mounted(
    user: Option<OwnedFd>,
    mount: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<(Joinable, OwnedFd), Error> {
    // The host's later mounts arrive here, ours never there.
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave)
        .map_err(|err| Error::system("propagation of mounts in the new namespace", err))?;
    let host = directory("/")?;
    let connection = mount()?;
    let mounts = namespace_file("/proc/self/ns/mnt")?;
    Ok((Joinable { user, mounts, host }, connection))
}

fn report(socket: &OwnedFd, made: &[OwnedFd]) -> Result<(), Error> {
    let descriptors: Vec<BorrowedFd<'_>> = made.iter().map(AsFd::as_fd).collect();
    wire::send(socket.as_fd(), &None::<Failure>, &descriptors)
        .map_err(|err| Error::system("namespaces", err))
}

/// Who this process runs as, in the numbers of its user namespace.
pub fn own_numbers() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

/// In a new user namespace: user and group of the numbers `outside` have the numbers `inside`, and nobody else exists.
fn map(inside: (u32, u32), outside: (u32, u32)) -> Result<(), Error> {
    // A user without privileges may map groups only after giving up setgroups(2); the caller's
    // supplementary groups stay as they are.
    for (file, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        (
            "/proc/self/uid_map",
            format!("{} {} 1", inside.0, outside.0),
        ),
        (
            "/proc/self/gid_map",
            format!("{} {} 1", inside.1, outside.1),
        ),
    ] {
        fs::write(file, content).map_err(|err| forbidden(file, err))?;
    }
    Ok(())
}

/// A failure that a site's setting usually causes, with that setting and the ways around it.
fn forbidden(action: &str, source: io::Error) -> Error {
    Error::System {
        action: action.to_owned(),
        source,
        hint: Some(hint(setting)),
    }
}

fn setting(path: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(path))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Which setting forbids user namespaces, read by `setting`, and what to do then.
fn hint(setting: impl Fn(&str) -> Option<String>) -> String {
    let is = |path, value: &str| setting(path).as_deref() == Some(value);
    let cause = if is("user/max_user_namespaces", "0") {
        "the sysctl user.max_user_namespaces is 0: the administrator can raise it"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "the sysctl kernel.unprivileged_userns_clone is 0: the administrator can set it to 1"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor restricts user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns is 1): \
         the administrator can install the profile that `sifon doctor --apparmor-profile` prints"
    } else {
        "user namespaces may be forbidden here (container, seccomp or security module), or used up \
         (sysctl user.max_user_namespaces)"
    };
    format!(
        "{cause}; without them `sifon mount` shows images through fusermount3, and `sifon pull` \
         makes a SIF for an Apptainer that the site has installed; `sifon doctor` says more"
    )
}

/// Moves this process, which must have a single thread, into `joinable`, as [`enter_mounts`] does.
pub fn enter(joinable: &Joinable) -> Result<(), Error> {
    process::require_single_thread("joining namespaces")
        .map_err(|err| Error::system("namespaces", err))?;
    if let Some(user) = &joinable.user {
        rustix::thread::move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(|err| Error::system("joining the image's user namespace", err))?;
    }
    enter_mounts(&joinable.mounts)
}

/// Moves this process into a mount namespace: what is mounted uppermost there is its root directory and its current directory then.
pub fn enter_mounts(mounts: &OwnedFd) -> Result<(), Error> {
    rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(in_mounts)
}

fn in_mounts(err: Errno) -> Error {
    Error::system("joining the image's mount namespace", err)
}

/// Moves this process, which must have a single thread, into `joinable`, and there into a mount namespace of its own. Its root directory
/// stays the host's. Gives the root directory of what is mounted uppermost, if that `suits`, else of what is mounted below.
pub fn join(joinable: Joinable, suits: impl FnOnce(&OwnedFd) -> bool) -> Result<OwnedFd, Error> {
    enter(&joinable)?;
    // Root directory and current directory, and only they, follow into the copy.
    rustix::process::fchdir(&joinable.host).map_err(in_mounts)?;
    drop(joinable);
    namespace::unshare_mounts().map_err(|err| Error::system("new mount namespace", err))?;
    let host = directory(".")?;
    let own = namespace_file("proc/self/ns/mnt")?;
    // Something may have been mounted meanwhile.
    enter_mounts(&own)?;
    if !suits(&directory("/")?) {
        rustix::mount::unmount("/", UnmountFlags::DETACH).map_err(in_mounts)?;
        enter_mounts(&own)?;
    }
    let image = directory("/")?;
    rustix::process::fchdir(&host).map_err(in_mounts)?;
    rustix::process::chroot(".").map_err(in_mounts)?;
    rustix::process::fchdir(&image).map_err(in_mounts)?;
    Ok(image)
}

/// Makes `image` the root directory, current directory included, and takes the host's away.
pub fn change_root(image: &OwnedFd) -> Result<(), Error> {
    let failed = |err: Errno| Error::system("change of the root directory", err);
    let host = directory("/")?;
    rustix::process::fchdir(image).map_err(failed)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The host's root lies on top of the image now, perhaps with something on top of itself, which goes first.
            rustix::process::fchdir(&host).map_err(failed)?;
            rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed)?;
            while rustix::mount::unmount(".", UnmountFlags::DETACH).is_ok() {}
            require_that_nothing_lies_above()?;
        }
        // A host that runs from its initial RAM file system has no mount to exchange. The image is
        // on top of it already.
        Err(Errno::INVAL) => rustix::process::chroot(".").map_err(failed)?,
        Err(err) => return Err(failed(err)),
    }
    rustix::process::chdir("/").map_err(failed)
}

/// Fails if the way up from the root directory leads anywhere else.
fn require_that_nothing_lies_above() -> Result<(), Error> {
    let of = |path: &str| {
        rustix::fs::stat(path)
            .map(|found| (found.st_dev, found.st_ino))
            .map_err(|err| Error::system("the new root directory", err))
    };
    match of("/")? == of("/..")? {
        true => Ok(()),
        false => Err(Error::Refused(
            "change of the root directory: the host's is still there".into(),
        )),
    }
}

/// Mounts a FUSE file system on `target` for the programs of this caller, and gives its connection.
/// Opens /dev/fuse in the user namespace in which it mounts, because the kernel demands that.
pub fn mount_fuse(target: &str, privilege: Privilege) -> Result<OwnedFd, Error> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.map_err(|source| Error::System {
        action: "/dev/fuse".into(),
        source,
        hint: Some(
            "the kernel module fuse must be loaded, and /dev/fuse readable and writable for all; \
             inside a container the device must be passed in"
                .into(),
        ),
    })?;
    let options = FuseOptions {
        // In a namespace of one user there is nobody else.
        allow_other: privilege == Privilege::Root,
        checks_permissions: true,
        ..FuseOptions::default()
    };
    sifon_mount::sys::mount::mount_fuse(Path::new(target), &options).map_err(|err| {
        match (privilege, err.kind()) {
            (Privilege::User, io::ErrorKind::PermissionDenied) => {
                forbidden("mount of the image", err)
            }
            _ => Error::system("mount of the image", err),
        }
    })
}

/// What lies at `path` for a process whose root directory is the image's, `root`.
pub fn path_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).map_err(|err| Error::System {
        action: format!("{} in the image", path.display()),
        source: err.into(),
        hint: matches!(err, Errno::NOSYS | Errno::PERM).then(|| {
            "that needs Linux 5.6; where it is older, bind all of the file: image-src=/".into()
        }),
    })
}

fn directory(path: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|err| Error::system(format!("directory {path}"), err))
}

fn namespace_file(path: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|err| Error::system(path, err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_the_setting_that_forbids_user_namespaces() {
        let with = |name: &'static str, value: &'static str| {
            hint(move |path| (path == name).then(|| value.to_owned()))
        };
        assert!(with("user/max_user_namespaces", "0").contains("user.max_user_namespaces is 0"));
        let debian = "kernel/unprivileged_userns_clone";
        assert!(with(debian, "0").contains("unprivileged_userns_clone is 0"));
        let ubuntu = "kernel/apparmor_restrict_unprivileged_userns";
        assert!(with(ubuntu, "1").contains("AppArmor"));
        assert!(with(ubuntu, "0").contains("may be forbidden"));
    }
}
