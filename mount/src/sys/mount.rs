//! Mounting and unmounting: mount(2) where the kernel lets us, fusermount3 for a plain user.

use std::ffi::{CString, OsStr};
use std::io;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt,
};

/// What our mounts are called in mountinfo, in `mount` and in `findmnt`.
pub const FILE_SYSTEM: &str = "fuse.sifon";

/// Bytes in one read request at most: what the kernel's `fs.fuse.max_pages_limit` allows by default (256 pages).
pub const MAX_READ: u32 = 1 << 20;

/// How long fusermount3 may take: it only reads a configuration file and calls mount(2), but on a
/// sick network file system it may hang on the mount point.
const FUSERMOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// How an image is mounted. Always read-only.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// What mountinfo shows as the mount's source. The kernel refuses an empty one.
    pub source: String,
    /// Whether other users may look into the mount; the kernel then checks the image's permission bits.
    pub allow_other: bool,
    /// Whether the kernel checks the image's permission bits for the only user of the mount too.
    pub checks_permissions: bool,
    /// Whether setuid programs of the image change the user.
    pub suid: bool,
    /// Whether device files of the image can be opened.
    pub dev: bool,
}

impl Default for FuseOptions {
    fn default() -> Self {
        Self {
            source: "sifon".into(),
            allow_other: false,
            checks_permissions: false,
            suid: false,
            dev: false,
        }
    }
}

/// Mounts a FUSE file system at `target` by mount(2). The connection must be served before anything
/// looks into the mount. Works as root and as root of a user namespace; others get `PermissionDenied`.
pub fn mount_fuse(target: &Path, options: &FuseOptions) -> io::Result<OwnedFd> {
    let connection = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let root = rustix::fs::stat(target)?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},max_read={MAX_READ}",
        connection.as_raw_fd(),
        root.st_mode,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.allow_other || options.checks_permissions {
        data.push_str(",default_permissions");
    }
    let data = CString::new(data).expect("made of numbers and words");
    rustix::mount::mount(
        options.source.as_str(),
        target,
        FILE_SYSTEM,
        flags(options),
        data.as_c_str(),
    )?;
    Ok(connection)
}

/// `FUSE_DEV_IOC_CLONE` of linux/fuse.h.
const CLONE_CONNECTION: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// Whether this process can open further descriptors of a connection. Before Linux 6.6 or so it must be in the
/// user namespace in which the connection was opened; and it needs /dev/fuse.
pub fn can_clone(connection: &OwnedFd) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(device) = rustix::fs::open("/dev/fuse", flags, Mode::empty()) else {
        return false;
    };
    let number = connection.as_raw_fd().unsigned_abs();
    // SAFETY: the call reads a number of 32 bits, which outlives it.
    let cloned = unsafe { libc::ioctl(device.as_raw_fd(), CLONE_CONNECTION, &raw const number) };
    cloned == 0
}

fn flags(options: &FuseOptions) -> MountFlags {
    let mut flags = MountFlags::RDONLY | MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags
}

/// Why fusermount3 did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum FusermountError {
    /// The program is not installed.
    #[error("neither fusermount3 nor fusermount is installed")]
    Missing,
    /// It ended without success.
    #[error("{0}")]
    Refused(String),
    /// It could not be talked to.
    #[error("fusermount3 cannot be run")]
    Io(#[from] io::Error),
}

/// Mounts as [`mount_fuse`] does, through the setuid program that lets a plain user do so on a directory
/// of their own.
pub fn fusermount(target: &Path, options: &FuseOptions) -> Result<OwnedFd, FusermountError> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(FUSERMOUNT_TIMEOUT))?;
    let arguments = [
        "-o".as_ref(),
        fusermount_options(options).as_ref(),
        "--".as_ref(),
        target.as_os_str(),
    ]
    .map(OsStr::to_owned);
    // The program sends the connection over the descriptor that this variable names. As its standard
    // input it is inherited without taking part in any other descriptor's close-on-exec flag.
    let child = start_fusermount(|command| {
        command
            .args(&arguments)
            .env("_FUSE_COMMFD", "0")
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
        Ok(())
    })?;
    drop(theirs);
    let connection = received_descriptor(&ours);
    let (_, said) = ended(child)?;
    match connection {
        Ok(connection) => Ok(connection),
        Err(_) if !said.is_empty() => Err(FusermountError::Refused(said)),
        Err(err) => Err(err.into()),
    }
}

/// Options as fusermount3 reads them: commas and backslashes of a value escaped.
fn fusermount_options(options: &FuseOptions) -> String {
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut text = format!("ro,noatime,subtype=sifon,fsname={source},max_read={MAX_READ}");
    if !options.suid {
        text.push_str(",nosuid");
    }
    if !options.dev {
        text.push_str(",nodev");
    }
    if options.allow_other {
        text.push_str(",allow_other");
    }
    if options.allow_other || options.checks_permissions {
        text.push_str(",default_permissions");
    }
    text
}

/// The program through which a plain user mounts: fusermount3, or the one of FUSE 2 where only that is in PATH.
pub fn fusermount_program() -> Option<PathBuf> {
    // What execvp(3) searches where nothing is said.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    fusermount_in(&path)
}

fn fusermount_in(path: &OsStr) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
    };
    let named = |program| {
        let directories = std::env::split_paths(path);
        let mut paths = directories.map(|directory| directory.join(program));
        paths.find(is_program)
    };
    named("fusermount3").or_else(|| named("fusermount"))
}

fn start_fusermount(
    prepare: impl Fn(&mut Command) -> io::Result<()>,
) -> Result<Child, FusermountError> {
    let program = fusermount_program().ok_or(FusermountError::Missing)?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    prepare(&mut command)?;
    Ok(command.spawn()?)
}

/// Waits until the program ends; tells whether it succeeded, and what it said on stderr. The deadline
/// is for stderr: a program that closes it ends right after, and one that hangs has it open.
fn ended(mut child: Child) -> Result<(bool, String), FusermountError> {
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take()
        && let Err(err) = readable_until_end(&mut stderr, &mut said)
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(err.into());
    }
    let status = child.wait()?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok((status.success(), said))
}

fn readable_until_end(pipe: &mut std::process::ChildStderr, into: &mut Vec<u8>) -> io::Result<()> {
    const SAID_LIMIT: usize = 64 << 10;
    let deadline = std::time::Instant::now() + FUSERMOUNT_TIMEOUT;
    let mut buffer = [0; 4096];
    while into.len() < SAID_LIMIT {
        if !readable(pipe.as_fd(), deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match pipe.read(&mut buffer)? {
            0 => break,
            read => into.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(())
}

/// Waits until `from` has bytes or has ended, or until `deadline`: then the answer is no.
pub fn readable(
    from: rustix::fd::BorrowedFd<'_>,
    deadline: std::time::Instant,
) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left =
            rustix::time::Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut polled = [rustix::event::PollFd::from_borrowed_fd(
            from,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut polled, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// The descriptor that comes with the next message on `socket`.
fn received_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = loop {
        match recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more than one descriptor came"));
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Unmounts `target`, its topmost mount only. Fails with `ResourceBusy` while it is in use.
pub fn unmount(target: &Path) -> Result<(), FusermountError> {
    unmount_with(target, UnmountFlags::NOFOLLOW, "-u")
}

/// Takes `target`'s topmost mount out of the tree at once; it ends when its last user is gone.
pub fn detach(target: &Path) -> Result<(), FusermountError> {
    unmount_with(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH, "-uz")
}

fn unmount_with(target: &Path, flags: UnmountFlags, option: &str) -> Result<(), FusermountError> {
    match rustix::mount::unmount(target, flags) {
        Err(rustix::io::Errno::PERM) => {}
        done => return Ok(done.map_err(io::Error::from)?),
    }
    let child = start_fusermount(|command| {
        command.arg(option).arg("--").arg(target);
        Ok(())
    })?;
    match ended(child)? {
        (true, _) => Ok(()),
        (false, said) => Err(FusermountError::Refused(said)),
    }
}

/// Lets the kernel read `MAX_READ` bytes ahead on the mount with this device number. INIT cannot ask
/// for more than 128 KiB; this file can, for those who may write it.
pub fn raise_readahead((major, minor): (u32, u32)) -> io::Result<()> {
    std::fs::write(
        format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
        (MAX_READ >> 10).to_string(),
    )
}

/// The process at the other end of a connected socket: its id (0 if it is in another pid namespace)
/// and its user.
pub fn peer(socket: &UnixStream) -> io::Result<(u32, u32)> {
    let credentials = sockopt::socket_peercred(socket)?;
    let pid = credentials.pid.as_raw_nonzero().get();
    Ok((u32::try_from(pid).unwrap_or(0), credentials.uid.as_raw()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_source_with_commas_stays_one_option() {
        let options = FuseOptions {
            source: "oci:/a,b\\c".into(),
            allow_other: true,
            ..FuseOptions::default()
        };
        assert_eq!(
            fusermount_options(&options),
            "ro,noatime,subtype=sifon,fsname=oci:/a\\,b\\\\c,max_read=1048576,nosuid,nodev,\
             allow_other,default_permissions"
        );
    }

    #[test]
    fn the_first_fusermount3_that_can_be_run_is_taken_else_that_of_fuse_2() {
        let place = tempfile::tempdir().unwrap();
        let put = |name: &str, mode| {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let path = std::env::join_paths(["a", "b", "c"].map(|it| place.path().join(it))).unwrap();
        assert_eq!(fusermount_in(&path), None);
        let older = put("a/fusermount", 0o755);
        put("b/fusermount3", 0o644);
        assert_eq!(fusermount_in(&path), Some(older));
        let newer = put("c/fusermount3", 0o755);
        assert_eq!(fusermount_in(&path), Some(newer));
    }

    #[test]
    fn mounting_on_what_is_not_there_is_an_error() {
        let missing = Path::new("/nonexistent/mountpoint");
        assert!(mount_fuse(missing, &FuseOptions::default()).is_err());
        assert!(unmount(missing).is_err());
    }
}
