//! What a client and its server say to each other: frames of JSON on a socket, with descriptors.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::{IfMissing, TargetKind};

/// What a client asks of a server, first thing.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// To show an image.
    Start(Request),
    /// What it shows, and to whom.
    Status,
    /// What it knows of an image that it shows.
    Question {
        /// The image's manifest.
        digest: String,
        /// As [`sifon_mount::daemon::Answers`] understands it.
        question: String,
    },
    /// To go.
    Stop {
        /// Even if programs run in its images.
        even_if_used: bool,
    },
}

/// The image that a client wants to run a program in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The client's settings, as the command that opens the image understands them.
    pub settings: serde_json::Value,
    /// The image in words that do not depend on a directory.
    pub image: OsString,
    /// Where the client will bind something.
    pub targets: Vec<Target>,
    /// How long the image stays mounted when nobody uses it any more.
    pub linger: Duration,
    /// Whether it is wanted for its files only, without what Singularity looks for in an image.
    pub is_bare: bool,
    /// How the user calls the program that is going to run, if that is known: what it reads can be fetched ahead.
    pub program: Option<OsString>,
}

/// What a client says when it has done what [`Reply::Mount`] told it to; the descriptors of its mount come along: the connection to
/// /dev/fuse, then those of [`super::namespaces::Joinable`] without a user namespace. It says so, too, after [`Reply::Answering`].
#[derive(Debug, Serialize, Deserialize)]
pub struct MountedHere;

/// What a client says last, in the mount namespace in which its program is going to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The namespace's inode number.
    pub mount_namespace: u64,
}

/// A path in the image on which the client will bind something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Absolute, as it stands in the plan.
    pub path: Vec<u8>,
    /// What will cover it.
    pub kind: TargetKind,
    /// What to do if the image does not have it.
    pub if_missing: IfMissing,
    /// Whether a symlink at the path itself is the target.
    pub covers_link: bool,
}

/// What a server answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// There is somebody: comes first, and after [`Joined`].
    Welcome,
    /// How far the opening of the image is; any number of these come before one of the others.
    Progress(serde_json::Value),
    /// A message about that for the user, one line, likewise.
    Message(String),
    /// The client is the first with this image, and is to mount it: a server has threads, and so cannot enter namespaces. The
    /// user namespace to do so in comes along, unless the caller is root.
    Mount,
    /// What the client has mounted can be looked into: it is to put in front of it what others are to see ([`super::front`]). Nobody else knows of
    /// it yet.
    Answering,
    /// The image can be read; the descriptors of [`super::namespaces::Joinable`] come along.
    Ready(Ready),
    /// It cannot.
    Failed {
        /// Why, with all causes.
        message: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
    /// The answer to [`Ask::Question`], if there is one.
    Answer(Option<String>),
    /// The answer to [`Ask::Status`], and to [`Ask::Stop`] before the server goes.
    Status(Status),
}

/// A server and what it shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Whose images they are: the job, or the login session.
    pub job: String,
    /// How long it has been there.
    pub age: Duration,
    /// Bytes of memory that are its own.
    pub memory_bytes: u64,
    /// Where it writes warnings, if it can.
    pub log: Option<PathBuf>,
    /// What is mounted.
    pub images: Vec<ImageStatus>,
}

/// An image that a server shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageStatus {
    /// As a user named it first.
    pub image: String,
    /// The chosen manifest.
    pub digest: String,
    /// Processes by which each container in it is known.
    pub clients: Vec<u32>,
    /// How long it has had none.
    pub idle: Option<Duration>,
}

/// An image that can be joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// For each target of the request, in order.
    pub targets: Vec<Placed>,
    /// `Env` of the image's configuration.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// `Entrypoint`.
    pub entrypoint: Vec<Vec<u8>>,
    /// `Cmd`.
    pub command: Vec<Vec<u8>>,
    /// `WorkingDir`.
    pub working_directory: Vec<u8>,
    /// `User`.
    pub user: Vec<u8>,
    /// Whether the image is a file of Singularity's and brings scripts, in place of what a configuration says.
    #[serde(default)]
    pub has_own_scripts: bool,
}

/// Where a target of a bind lies in the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placed {
    /// At this path, absolute and free of symlinks (but for its last component, where a link is to
    /// be covered itself).
    At(Vec<u8>),
    /// Nowhere, and it was not to be added.
    Absent,
    /// Nowhere, and it could not be added; why.
    Impossible(String),
}

/// Bytes in a frame at most: an image's configuration is at most 4 MiB, written as numbers.
const FRAME_BYTES_LIMIT: usize = 32 << 20;

/// Descriptors that come with one frame at most.
const DESCRIPTORS_LIMIT: usize = 4;

/// Sends `message`, and copies of `descriptors` with it.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|len| *len as usize <= FRAME_BYTES_LIMIT);
    let len = len.ok_or_else(|| io::Error::other("message: too long to send"))?;
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("message: too many descriptors to send"));
    }
    let mut sent = 0;
    while sent < frame.len() {
        let part = [IoSlice::new(&frame[sent..])];
        match rustix::net::sendmsg(socket, &part, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => {
                sent += count;
                // They went with the first byte.
                control.clear();
            }
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// The next message with its descriptors; none if the other end is gone. Waits as long as the socket
/// is set to.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut descriptors = Vec::new();
    let mut head = [0; 4];
    if !fill(socket, &mut head, &mut descriptors)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes(head) as usize;
    if len > FRAME_BYTES_LIMIT {
        return Err(io::Error::other("message: longer than any of ours"));
    }
    let mut body = vec![0; len];
    if !fill(socket, &mut body, &mut descriptors)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((serde_json::from_slice(&body)?, descriptors)))
}

/// Fills `buffer`; false if the stream ended before its first byte.
fn fill(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_LIMIT))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut part = [IoSliceMut::new(&mut buffer[filled..])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = match rustix::net::recvmsg(socket, &mut part, &mut control, flags) {
            Ok(received) => received.bytes,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => 0,
            Err(err) => return Err(err.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        match count {
            0 if filled == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(true)
}

/// A pair of connected sockets that no program inherits.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Fails unless the process at the other end belongs to this process's user; gives that process.
pub fn require_same_user(socket: impl AsFd) -> io::Result<Pid> {
    let peer = rustix::net::sockopt::socket_peercred(socket.as_fd())?;
    if peer.uid == rustix::process::geteuid() {
        return Ok(peer.pid);
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "the process at the other end belongs to user {}",
            peer.uid.as_raw()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::thread;

    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_with_their_descriptors() {
        let (here, there) = pair().unwrap();
        let long = vec![7_u8; 1 << 20];
        let sender = {
            let long = long.clone();
            thread::spawn(move || {
                let file = File::open("/proc/self/comm").unwrap();
                send(here.as_fd(), &"first", &[file.as_fd()]).unwrap();
                send(here.as_fd(), &long, &[]).unwrap();
            })
        };
        let (text, descriptors) = receive::<String>(there.as_fd()).unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("first", 1));
        let mut comm = String::new();
        File::from(descriptors.into_iter().next().unwrap())
            .read_to_string(&mut comm)
            .unwrap();
        assert!(!comm.is_empty());
        let (body, descriptors) = receive::<Vec<u8>>(there.as_fd()).unwrap().unwrap();
        assert!(body == long && descriptors.is_empty());
        sender.join().unwrap();
        assert!(receive::<String>(there.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_frame_that_is_cut_or_too_long_is_an_error() {
        for bytes in [
            &[1_u8, 0, 0][..],
            &[4, 0, 0, 0, b'"'],
            &[255, 255, 255, 255],
            &[1, 0, 0, 0, b'{'],
        ] {
            let (here, there) = pair().unwrap();
            rustix::io::write(&here, bytes).unwrap();
            drop(here);
            assert!(receive::<String>(there.as_fd()).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_other_end_of_a_pair_is_of_the_same_user() {
        let (here, _there) = pair().unwrap();
        require_same_user(&here).unwrap();
    }
}
