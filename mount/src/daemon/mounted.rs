//! A mounted image, from mount(2) until nothing of it is left.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::select;

use super::control::{self, Answers};
use super::respawn::Respawn;
use super::stop::Stop;
use super::target::{Made, Target, TargetError};
use super::watcher::{Watched, Watcher};
use crate::fuse::{self, Served, View};
use crate::image::Image;
use crate::sys::mount::{self, FuseOptions, FusermountError};
use crate::sys::mountinfo;

/// How long requests may still be answered after the mount was detached because we were stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How an image is mounted.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the kernel is told, and others see in mountinfo; make its source with [`super::source_of`].
    pub fuse: FuseOptions,
    /// How files look.
    pub view: View,
    /// How the watcher process is started: its hidden verb calls [`super::watch`].
    pub watcher: Respawn,
    /// What is answered to those who ask about the mount.
    pub answers: Option<Answers>,
}

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory cannot take it.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The kernel refused.
    #[error("mount point {}: mount(2) failed", path.display())]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A plain user's way failed.
    #[error("mount point {}: a plain user mounts through fusermount3, which failed", path.display())]
    Fusermount {
        /// The directory.
        path: PathBuf,
        /// How.
        source: FusermountError,
    },
    /// The kernel and we do not understand each other, or a process or thread cannot be started.
    #[error("mount point {}: the image cannot be served", path.display())]
    Serve {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl MountError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Target(err) => err.hint(),
            Self::Mount { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("/dev/fuse is missing; as root: modprobe fuse".into())
            }
            Self::Fusermount {
                source: FusermountError::Missing,
                ..
            } => Some(
                "install the package fuse3, or mount as root, or in a user namespace \
                 (unshare -Urm); `sifon exec` needs none of these"
                    .into(),
            ),
            Self::Fusermount {
                source: FusermountError::Refused(said),
                ..
            } if said.contains("user_allow_other") => {
                Some("root must allow it: a line user_allow_other in /etc/fuse.conf".into())
            }
            _ => None,
        }
    }
}

/// A mounted image that this process serves. Dropping it unmounts.
pub struct Mount {
    // In the order of ending: the mount, its directory, then the watcher, which finds nothing to do.
    attached: Attached,
    made: Made,
    served: Served,
    stop: Stop,
    _watcher: Watcher,
}

impl Mount {
    /// Mounts `image` on `target`; when this returns it can be read. As root, and as root of a user namespace, by
    /// mount(2); for a plain user through fusermount3. A directory that is missing is made, and removed at the end.
    /// From its beginning on `stop` is an event for [`Mount::wait`].
    pub fn start(
        image: Arc<Image>,
        target: Target,
        options: Options,
        stop: Stop,
    ) -> Result<Self, MountError> {
        stop.take_over();
        let made = target.made()?;
        let path = made.path.clone();
        let failed = |source| MountError::Serve {
            path: path.clone(),
            source,
        };
        let mut watcher = Watcher::start(
            options.watcher,
            Watched {
                target: path.clone(),
                source: options.fuse.source.clone(),
                device: None,
                remove_target: made.is_ours,
            },
        )
        .map_err(failed)?;
        let connection = connected(&path, &options.fuse)?;
        let attached = Attached::found(&path).map_err(failed)?;
        watcher.found(attached.device);
        let served = fuse::serve(image, connection, options.view).map_err(failed)?;
        if let Err(err) = mount::raise_readahead(attached.device) {
            tracing::debug!(%err, "read-ahead stays as it is");
        }
        if let Err(err) = control::listen(attached.device, options.answers) {
            tracing::warn!(%err, "umount will not find this process");
        }
        watcher.wait_until_up().map_err(failed)?;
        // The first request, so that later looks at the mount point need none.
        rustix::fs::stat(&path).map_err(|err| failed(err.into()))?;
        Ok(Self {
            attached,
            made,
            served,
            stop,
            _watcher: watcher,
        })
    }

    /// Where it is mounted, absolute.
    pub fn path(&self) -> &Path {
        &self.made.path
    }

    /// Serves until the image is unmounted, or we are stopped: then unmounts it. What uses it then
    /// gets errors. Nothing is left behind, except a directory that is in use again.
    pub fn wait(mut self) -> io::Result<()> {
        let ended = self.served.ended();
        select! {
            recv(ended) -> result => {
                self.attached.has_ended = true;
                result.unwrap_or_else(|err| Err(io::Error::other(err)))
            }
            recv(self.stop.take_over()) -> _ => {
                tracing::info!(path = %self.path().display(), "stopped, unmounting");
                self.attached.detach();
                // Nobody else uses it, or they lose it now.
                let _ = ended.recv_timeout(LAST_ANSWERS);
                Ok(())
            }
        }
    }
}

fn connected(path: &Path, options: &FuseOptions) -> Result<OwnedFd, MountError> {
    let path = path.to_owned();
    match mount::mount_fuse(&path, options) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            mount::fusermount(&path, options)
                .map_err(|source| MountError::Fusermount { path, source })
        }
        done => done.map_err(|source| MountError::Mount { path, source }),
    }
}

/// A mount in the tree, to be taken out again.
struct Attached {
    path: PathBuf,
    device: (u32, u32),
    /// Whether the connection has ended. As long as it has not, nothing else has our device number.
    has_ended: bool,
}

impl Attached {
    fn found(path: &Path) -> io::Result<Self> {
        let detached = |err| {
            let _ = mount::detach(path);
            err
        };
        let mount = mountinfo::mounted_on(path).map_err(detached)?;
        let mount = mount.filter(|mount| mount.file_system == mount::FILE_SYSTEM);
        let mount =
            mount.ok_or_else(|| detached(io::Error::other("mountinfo does not show the mount")))?;
        Ok(Self {
            path: path.to_owned(),
            device: mount.device,
            has_ended: false,
        })
    }

    /// Takes it out if it is (still) what is seen there.
    fn detach(&self) {
        let seen = mountinfo::mounted_on(&self.path);
        let is_seen = seen.is_ok_and(|seen| seen.is_some_and(|seen| seen.device == self.device));
        let is_ours = is_seen && (!self.has_ended || control::is_dead(&self.path));
        if is_ours && let Err(err) = mount::detach(&self.path) {
            tracing::warn!(
                path = %self.path.display(),
                error = &err as &dyn std::error::Error,
                "cannot be unmounted"
            );
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
    }
}
