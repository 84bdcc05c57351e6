//! Finding the image and the process behind a mount point.
//!
//! mountinfo tells what is mounted. The process listens on an abstract socket named after the mount's device
//! number: the kernel tells who is at its other end, the end of the connection tells that the process is gone,
//! and nothing of it can be left behind. Who is connected may ask, in one line; the answer ends with the writing side.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::digest::Digest;
use crate::sys::mount::{self, FILE_SYSTEM};
use crate::sys::mountinfo::{self, MountEntry};

/// Connections kept open at once: those of `umount` commands that wait, and of those who ask.
const CONNECTIONS_LIMIT: usize = 64;

/// How long a living process may take to answer from memory, on a machine that is very busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to look at all files of an image.
const STATS_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of an answer at most.
const STATS_LIMIT: u64 = 64 << 20;

/// Bytes of a question at most.
const QUESTION_BYTES_LIMIT: u64 = 256;

/// How long the process of an earlier mount with the same device number, which the kernel gives away
/// again at once, may take to end.
const NAME_TIMEOUT: Duration = Duration::from_secs(5);

/// An image mounted on a directory.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// The directory, absolute.
    pub target: PathBuf,
    /// What mountinfo shows: the reference, `@` and the manifest's digest.
    pub source: String,
    /// The reference alone.
    pub reference: String,
    /// The digest of the manifest that was chosen, for the platform of the mount.
    pub digest: Option<Digest>,
    /// The process behind it, where it can be found: not from another pid or network namespace.
    pub pid: Option<u32>,
    /// The file system's device number.
    pub device: (u32, u32),
}

/// What mountinfo is to show for an image.
pub fn source_of(reference: &str, digest: Digest) -> String {
    format!("{reference}@{digest}")
}

/// The image that is mounted on `path` itself (not somewhere above it).
pub fn mounted_at(path: &Path) -> io::Result<Option<Mounted>> {
    Ok(entry_at(path)?.map(described))
}

/// Our mount on `path`.
pub(super) fn entry_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let path = absolute(path)?;
    let mount = mountinfo::mounted_on(&path)?;
    Ok(mount.filter(|mount| mount.file_system == FILE_SYSTEM))
}

/// What is known about a mount of ours.
pub(super) fn described(mount: MountEntry) -> Mounted {
    let source = mount.source.to_string_lossy().into_owned();
    let (reference, digest) = match source.rsplit_once('@') {
        Some((reference, digest)) => match digest.parse() {
            Ok(digest) => (reference.to_owned(), Some(digest)),
            Err(_) => (source.clone(), None),
        },
        None => (source.clone(), None),
    };
    Mounted {
        pid: Lifeline::to(&mount).and_then(|lifeline| lifeline.pid),
        target: mount.target,
        source,
        reference,
        digest,
        device: mount.device,
    }
}

/// Whether the process behind the mount of ours on `path` has ended. Most looks at the mount would not tell: what
/// the kernel remembers of it outlives the process. So it is asked for what the kernel never remembers, from
/// a thread of its own, because a process that is stopped answers nothing: then the answer is no.
pub(super) fn is_dead(path: &Path) -> bool {
    let gone = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];
    let (tell, told) = crossbeam_channel::bounded(1);
    let path = path.to_owned();
    let asking = thread::Builder::new().spawn(move || {
        let _ = tell.send(rustix::fs::statvfs(&path).is_err_and(|err| gone.contains(&err)));
    });
    asking.is_ok() && told.recv_timeout(ANSWER_TIMEOUT) == Ok(true)
}

/// `path` absolute and without symbolic links, the last component included unless a dead mount is
/// there, which cannot be looked at.
pub(super) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return path.canonicalize();
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.canonicalize()?,
        _ => Path::new(".").canonicalize()?,
    };
    let path = parent.join(name);
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => path.canonicalize(),
        _ => Ok(path),
    }
}

fn address((major, minor): (u32, u32)) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("sifon/mount/{major}:{minor}"))
}

/// What a mount's process answers to questions of its own user and of root: a word, without an answer if it is unknown.
#[derive(Clone)]
pub struct Answers(pub Arc<Answer>);

/// Answers one question.
pub type Answer = dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync;

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}

/// Lets others find this process by the mount's device number, as long as it lives, and ask it.
pub(super) fn listen(device: (u32, u32), answers: Option<Answers>) -> io::Result<()> {
    listen_within(device, NAME_TIMEOUT, answers)
}

fn listen_within(
    device: (u32, u32),
    timeout: Duration,
    answers: Option<Answers>,
) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let address = address(device)?;
    let listener = loop {
        match UnixListener::bind_addr(&address) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            bound => break bound?,
        }
    };
    thread::Builder::new()
        .name("control".into())
        .spawn(move || keep_connections(&listener, answers.as_ref()))?;
    Ok(())
}

fn keep_connections(listener: &UnixListener, answers: Option<&Answers>) {
    let us = rustix::process::getuid().as_raw();
    let open = Arc::new(AtomicUsize::new(0));
    for connection in listener.incoming() {
        let Ok(connection) = connection else { continue };
        let is_ours = mount::peer(&connection).is_ok_and(|(_, user)| user == us || user == 0);
        if !is_ours || open.load(Ordering::Relaxed) >= CONNECTIONS_LIMIT {
            continue;
        }
        let kept = Kept::one_more_of(&open);
        let answers = answers.cloned();
        let _ = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                let _kept = kept;
                keep(connection, answers.as_ref())
            });
    }
}

/// One of the connections that are counted.
struct Kept(Arc<AtomicUsize>);

impl Kept {
    fn one_more_of(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a connection open until the other side closes it; answers one question.
fn keep(connection: UnixStream, answers: Option<&Answers>) {
    let _ = connection.set_write_timeout(Some(ANSWER_TIMEOUT));
    let mut question = String::new();
    let mut lines = BufReader::new(&connection).take(QUESTION_BYTES_LIMIT);
    if lines.read_line(&mut question).is_ok_and(|len| len > 0) {
        let answer = answers.and_then(|answers| (answers.0)(question.trim_end()));
        let _ = (&connection).write_all(&answer.unwrap_or_default());
        let _ = connection.shutdown(Shutdown::Write);
        let _ = (&connection).read(&mut [0]);
    }
}

/// What the process behind the mount on `path` answers to a question; `None` if nobody is there who would answer.
pub fn asked(path: &Path, question: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(mount) = entry_at(path)? else {
        return Ok(None);
    };
    let Some(lifeline) = Lifeline::to(&mount) else {
        return Ok(None);
    };
    let mut connection = lifeline.connection;
    connection.set_read_timeout(Some(STATS_TIMEOUT))?;
    connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    connection.write_all(question.as_bytes())?;
    connection.write_all(b"\n")?;
    let mut answer = Vec::new();
    connection.take(STATS_LIMIT).read_to_end(&mut answer)?;
    Ok((!answer.is_empty()).then_some(answer))
}

/// A connection to the process behind a mount, which ends when the process does.
pub(super) struct Lifeline {
    connection: UnixStream,
    /// The process at the other end.
    pub(super) pid: Option<u32>,
    /// The same, to be waited for; none on kernels before 5.3.
    process: Option<OwnedFd>,
}

/// A process that closed its end of a connection closes its other files at once.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);

impl Lifeline {
    /// `None` when nobody answers to the mount's name, or one who is not its owner.
    pub(super) fn to(mount: &MountEntry) -> Option<Self> {
        let connection = UnixStream::connect_addr(&address(mount.device).ok()?).ok()?;
        let (pid, user) = mount::peer(&connection).ok()?;
        let is_owner = user == 0 || Some(user) == mount.user();
        let handle = |pid| {
            pidfd_open(
                Pid::from_raw(i32::try_from(pid).ok()?)?,
                PidfdFlags::empty(),
            )
            .ok()
        };
        is_owner.then(|| Self {
            connection,
            pid: (pid != 0).then_some(pid),
            process: handle(pid),
        })
    }

    /// Waits until the process has ended; tells whether it has, or `timeout` came first.
    pub(super) fn ended_within(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.connection.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            match self.connection.read(&mut [0]) {
                Ok(0) => break,
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        // A handle becomes readable when all files are closed.
        if let Some(process) = &self.process {
            let timeout = Timespec::try_from(CLOSING_TIMEOUT).ok();
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source: &str, device: (u32, u32)) -> MountEntry {
        MountEntry {
            id: 1,
            parent: 0,
            device,
            target: "/mnt".into(),
            file_system: FILE_SYSTEM.into(),
            source: source.into(),
            options: format!("ro,user_id={}", rustix::process::getuid().as_raw()),
        }
    }

    #[test]
    fn the_source_of_a_mount_tells_reference_and_digest() {
        let digest = Digest::of(b"manifest");
        let named = |source: &str| {
            let mounted = described(entry(source, (0, 0)));
            (mounted.reference, mounted.digest)
        };
        let with_port = "docker://localhost:5000/a:1";
        assert_eq!(
            named(&source_of(with_port, digest)),
            (with_port.into(), Some(digest))
        );
        let by_digest = source_of("docker://a", Digest::of(b"index"));
        assert_eq!(
            named(&source_of(&by_digest, digest)),
            (by_digest, Some(digest))
        );
        assert_eq!(named("oci:/a@b"), ("oci:/a@b".into(), None));
    }

    #[test]
    fn the_process_behind_a_mount_is_found_by_the_device_number() {
        let device = (u32::MAX, std::process::id());
        assert!(Lifeline::to(&entry("a", device)).is_none());
        listen(device, None).unwrap();
        assert!(listen_within(device, Duration::ZERO, None).is_err());
        let mut lifeline = Lifeline::to(&entry("a", device)).unwrap();
        assert_eq!(lifeline.pid, Some(std::process::id()));
        assert!(!lifeline.ended_within(Duration::from_millis(1)));
        let stranger = MountEntry {
            options: "user_id=4294967294".into(),
            ..entry("a", device)
        };
        let is_root = rustix::process::getuid().is_root();
        assert_eq!(Lifeline::to(&stranger).is_some(), is_root);
    }

    #[test]
    fn links_and_dots_are_resolved() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().canonicalize().unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(absolute(&link).unwrap(), real);
        assert_eq!(absolute(&link.join("new")).unwrap(), real.join("new"));
        assert_eq!(absolute(&link.join("..")).unwrap(), real.parent().unwrap());
    }
}
