//! Which images are mounted: small files that name an image and the process that shows it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::directory::Owner;
use super::{Directory, Store};
use crate::digest::Digest;

/// How often a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(3600);

/// A lease of another machine that was not renewed for this long is void.
const VOID_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Says that an image is in use, until it is dropped or its process is gone. It keeps nobody from
/// deleting anything: it only tells `evict` what to spare, and when an image was last used.
pub struct Lease {
    path: PathBuf,
    record: PathBuf,
    /// Dropped with the lease, which ends the thread that renews it.
    _renewing: mpsc::Sender<()>,
}

impl Lease {
    pub(super) fn take(store: &Store, image: Digest) -> io::Result<Self> {
        let directory = store.own.path();
        let name = format!("{}-{}", image.hex(), Owner::this_process());
        let path = directory.join("leases").join(name);
        // What a process with our number left. A link that others put there is not followed.
        let _ = fs::remove_file(&path);
        File::create_new(&path)?;
        let (renewing, dropped) = mpsc::channel::<()>();
        let renewed = path.clone();
        thread::spawn(move || {
            while dropped.recv_timeout(RENEWAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                touched(&renewed);
            }
        });
        let record = directory.join("images").join(image.hex());
        Ok(Self {
            path,
            record,
            _renewing: renewing,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        touched(&self.record);
        let _ = fs::remove_file(&self.path);
    }
}

/// Marks a file as used now; whether that could be done.
pub(super) fn touched(path: &Path) -> bool {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    file.is_ok_and(|file| file.set_modified(SystemTime::now()).is_ok())
}

/// The images that are in use; leases of processes that are gone are removed.
pub(super) fn leased(directory: &Directory) -> Vec<String> {
    let mut images = Vec::new();
    for entry in fs::read_dir(directory.path().join("leases"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let parsed = name.to_str().and_then(|name| {
            let (image, owner) = name.split_once('-')?;
            Some((image.to_owned(), Owner::parse(owner)?))
        });
        let Some((image, owner)) = parsed else {
            continue;
        };
        let is_fresh = || {
            let renewed = entry.metadata().and_then(|metadata| metadata.modified());
            renewed.is_ok_and(|at| {
                SystemTime::now().duration_since(at).unwrap_or_default() < VOID_AFTER
            })
        };
        let is_valid = if owner.is_here() {
            owner.is_alive()
        } else {
            is_fresh()
        };
        if is_valid {
            images.push(image);
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    images
}
