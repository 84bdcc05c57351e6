//! An image served to the kernel over FUSE.

mod attributes;
mod filesystem;
mod workers;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::image::{AddError, Added, AdditionKind, Image, Owners};
use crate::sys;
use filesystem::ImageFileSystem;

/// How an image is shown.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Whom files belong to.
    pub owners: Owners,
    /// Threads that take requests from the kernel. One of them at least answers from memory only, and none
    /// waits for a registry.
    pub threads: usize,
    /// How long a read may wait for store and registry before it fails with EIO.
    pub timeout: Duration,
}

impl Default for View {
    /// Owners as in the image, a few threads, and a minute: longer than a registry's retries, shorter
    /// than the patience of one who thinks that the program hangs.
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            owners: Owners::AsInImage,
            threads: processors.clamp(2, 8) + 1,
            timeout: Duration::from_secs(60),
        }
    }
}

/// An image that is being served. Dropping it does not end that: the mount's end does.
pub struct Served {
    image: Arc<Image>,
    notifier: Notifier,
    /// Held while a name is added and until the kernel knows: whoever finds the name there may mount on it, and the kernel
    /// detaches what is mounted on a name that it is told to forget.
    adding: Mutex<()>,
    ended: Receiver<io::Result<()>>,
}

/// Serves `image` over `connection`, an open /dev/fuse whose file system is already mounted, perhaps in another
/// mount and user namespace. Returns when the kernel has agreed on how to talk: from then on the mount can be used.
pub fn serve(image: Arc<Image>, connection: OwnedFd, view: View) -> io::Result<Served> {
    sys::memory::keep_no_large_blocks();
    let mut config = Config::default();
    // Who may look into the mount is decided by the kernel, from the options it was mounted with.
    config.acl = SessionACL::All;
    config.n_threads = Some(view.threads.max(1));
    // A descriptor for each thread spreads requests better.
    config.clone_fd = sys::mount::can_clone(&connection);
    let file_system = ImageFileSystem::new(Arc::clone(&image), view)?;
    let session = Session::from_fd(file_system, connection, SessionACL::All, config)?;
    let notifier = session.notifier();
    let (end, ended) = bounded(1);
    thread::Builder::new().name("fuse".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = end.send(session.run());
    })?;
    Ok(Served {
        image,
        notifier,
        adding: Mutex::default(),
        ended,
    })
}

impl Served {
    /// Gets one message when the connection has ended: the file system was unmounted and its last user is gone.
    pub fn ended(&self) -> &Receiver<io::Result<()>> {
        &self.ended
    }

    /// Waits for that.
    pub fn join(self) -> io::Result<()> {
        self.ended
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the session's thread panicked")))
    }

    /// What is served.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Adds a name beside the image, see [`Image::add`], and makes the kernel forget that it was missing. When this
    /// returns, the path can be looked up. Never to be called by a thread that answers requests.
    pub fn add(&self, path: &[u8], kind: AdditionKind) -> Result<Added, ServedAddError> {
        let _adding = self.adding.lock();
        let added = self.image.add(path, kind)?;
        if let Some((parent, name)) = &added.news {
            let parent = INodeNo(parent.0);
            let forgotten = self
                .notifier
                .inval_entry(parent, OsStr::from_bytes(name))
                .and_then(|()| self.notifier.inval_inode(parent, 0, 0));
            forgotten.map_err(ServedAddError::Kernel)?;
        }
        Ok(added)
    }
}

/// Why a name was not added to a served image.
#[derive(Debug, thiserror::Error)]
pub enum ServedAddError {
    /// It cannot be.
    #[error(transparent)]
    Image(#[from] AddError),
    /// It was, but the kernel cannot be told.
    #[error("the kernel cannot be told of a new name in the image")]
    Kernel(#[source] io::Error),
}

/// A server hands names to one thread and waits for the end in another.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Served>();
};
