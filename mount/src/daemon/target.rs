//! The directory that an image is to be mounted on.

use std::io;
use std::path::{Path, PathBuf};

use super::control::{self, Mounted};
use crate::sys::mount::{self, FILE_SYSTEM, FusermountError};
use crate::sys::mountinfo::{self, MountEntry};

/// Dead mounts upon each other that are cleared at most.
const DEAD_MOUNTS_LIMIT: usize = 16;

/// A directory that was looked at and can take a mount.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    is_missing: bool,
}

/// Why nothing can be mounted there.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It, or the directory it would be made in, cannot be reached or made.
    #[error("mount point {}: cannot be used", path.display())]
    Inaccessible {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A mount needs a directory.
    #[error("mount point {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A mount would hide what is there.
    #[error("mount point {}: not empty", .0.display())]
    NotEmpty(PathBuf),
    /// An image is mounted there.
    #[error("mount point {}: shows {} already", path.display(), mounted.source)]
    Taken {
        /// The directory.
        path: PathBuf,
        /// What it shows.
        mounted: Box<Mounted>,
    },
    /// What an ended process left there cannot be cleared.
    #[error("mount point {}: the dead mount on it cannot be detached", path.display())]
    Dead {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: FusermountError,
    },
}

impl TargetError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Inaccessible { path, source } => match source.kind() {
                io::ErrorKind::NotFound => {
                    let parent = path.parent().unwrap_or(path);
                    Some(format!(
                        "make its directory first: mkdir -p {}",
                        parent.display()
                    ))
                }
                _ => None,
            },
            Self::NotADirectory(_) | Self::NotEmpty(_) => {
                Some("name an empty directory, or one that does not exist yet".into())
            }
            Self::Taken { path, .. } => {
                Some(format!("unmount it first: sifon umount {}", path.display()))
            }
            Self::Dead { path, .. } => Some(format!(
                "the one who mounted it, or root, can: umount --lazy {}",
                path.display()
            )),
        }
    }
}

impl Target {
    /// Looks at `path` without changing it, but for dead mounts of ours on it, which are detached.
    pub fn look(path: &Path) -> Result<Self, TargetError> {
        let inaccessible = |source| TargetError::Inaccessible {
            path: path.to_owned(),
            source,
        };
        let path = control::absolute(path).map_err(inaccessible)?;
        for _ in 0..DEAD_MOUNTS_LIMIT {
            match mountinfo::mounted_on(&path).map_err(inaccessible)? {
                Some(mount) if mount.file_system == FILE_SYSTEM => {
                    if !control::is_dead(&path) {
                        return Err(taken(path, mount));
                    }
                    tracing::info!(path = %path.display(), "detaching the dead mount there");
                    mount::detach(&path).map_err(|source| TargetError::Dead {
                        path: path.clone(),
                        source,
                    })?;
                }
                _ => break,
            }
        }
        Self::looked_at(path)
    }

    fn looked_at(path: PathBuf) -> Result<Self, TargetError> {
        let inaccessible = |source| TargetError::Inaccessible {
            path: path.clone(),
            source,
        };
        match std::fs::read_dir(&path) {
            Ok(mut entries) => match entries.next() {
                None => Ok(Self {
                    path,
                    is_missing: false,
                }),
                Some(_) => Err(TargetError::NotEmpty(path)),
            },
            Err(err) if err.kind() == io::ErrorKind::NotADirectory => {
                Err(TargetError::NotADirectory(path))
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().ok_or(err).map_err(inaccessible)?;
                std::fs::metadata(parent).map_err(inaccessible)?;
                Ok(Self {
                    path,
                    is_missing: true,
                })
            }
            Err(err) => Err(inaccessible(err)),
        }
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory if it was missing. What comes back removes it again when dropped.
    pub(super) fn made(self) -> Result<Made, TargetError> {
        if self.is_missing {
            std::fs::create_dir(&self.path).map_err(|source| TargetError::Inaccessible {
                path: self.path.clone(),
                source,
            })?;
        }
        Ok(Made {
            path: self.path,
            is_ours: self.is_missing,
        })
    }
}

fn taken(path: PathBuf, mount: MountEntry) -> TargetError {
    TargetError::Taken {
        path,
        mounted: Box::new(control::described(mount)),
    }
}

/// A directory that exists for a mount.
pub(super) struct Made {
    pub(super) path: PathBuf,
    /// Whether it did not exist before.
    pub(super) is_ours: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_ours {
            remove(&self.path);
        }
    }
}

/// Removes a directory that was made for a mount, unless it is in use again.
pub(super) fn remove(path: &Path) {
    if let Err(err) = std::fs::remove_dir(path)
        && err.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %err, "the mount point stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_take_a_mount_is_refused_with_a_hint() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = |path: &Path| {
            let refused = Target::look(path).unwrap_err();
            assert!(refused.hint().is_some(), "{refused}");
            refused
        };
        assert!(matches!(refused(&file), TargetError::NotADirectory(_)));
        assert!(matches!(refused(scratch.path()), TargetError::NotEmpty(_)));
        let deep = scratch.path().join("a/b");
        assert!(matches!(refused(&deep), TargetError::Inaccessible { .. }));
        assert!(matches!(
            refused(&file.join("below")),
            TargetError::NotADirectory(_) | TargetError::Inaccessible { .. }
        ));
    }

    #[test]
    fn a_missing_directory_is_made_and_removed_again() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new");
        let made = Target::look(&path).unwrap().made().unwrap();
        assert!(path.is_dir());
        drop(made);
        assert!(!path.exists());
        drop(Target::look(scratch.path()).unwrap().made().unwrap());
        assert!(scratch.path().is_dir());
    }
}
