//! A file on another machine, copied as it is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sifon_mount::blob::BlobError;
use sifon_mount::digest::Hasher;
use sifon_mount::fetch::{Download, DownloadError, Limits, PackedCopy};
use sifon_mount::reference::Reference;
use sifon_mount::source::elsewhere::RemoteFile;
use sifon_mount::source::sif::{Sif, SifError};
use sifon_mount::store::Store;

use super::place::{NewFile, PlaceError};
use crate::output::bytes;

/// What a squashfs begins with.
const SQUASHFS_MAGIC: [u8; 4] = *b"hsqs";

/// How a file is copied.
pub struct CopyOptions<'a> {
    /// Whether a file that has the name is replaced.
    pub overwrite: bool,
    /// How long to wait for bytes without progress.
    pub timeout: Duration,
    /// Requests at a time.
    pub connections: usize,
    /// What a SIF must be for, where the user said so.
    pub architecture: Option<&'a String>,
    /// Told how many more bytes came.
    pub progress: &'a dyn Fn(u64),
}

/// Why a file was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It could not be had.
    #[error("{reference}: cannot be downloaded")]
    Download {
        /// What was asked for.
        reference: String,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// It could not be written.
    #[error("{path:?}: cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what was wanted.
    #[error("{reference}: {problem}")]
    Wrong {
        /// What was asked for.
        reference: String,
        /// What it is.
        problem: String,
        /// What the user can do.
        hint: &'static str,
    },
}

impl CopyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Place(PlaceError::Exists { .. }) => Some("--force replaces it".into()),
            Self::Place(_) => None,
            Self::Download { source, .. } => source.hint(),
            Self::Write { .. } => Some("give a name on a file system with more room".into()),
            Self::Wrong { hint, .. } => Some((*hint).into()),
        }
    }
}

/// Copies `remote`, which is at `reference`, to `out`, where it appears when it is whole and, as far as somebody told its digest,
/// right. What came of it stays in the store, so that after an interruption only the rest is asked for. Gives its length.
pub fn copy(
    remote: RemoteFile,
    store: &Arc<Store>,
    reference: &Reference,
    out: &Path,
    options: &CopyOptions<'_>,
) -> Result<u64, CopyError> {
    let new = NewFile::beside(out, options.overwrite)?;
    let unwritten = |source| CopyError::Write {
        path: out.to_owned(),
        source,
    };
    let undone = |error| match error {
        DownloadError::Blob(source) => CopyError::Download {
            reference: reference.to_string(),
            source,
        },
        DownloadError::Write(source) => unwritten(source),
    };
    let size = remote.blob.size();
    // A full disk is known before the download, where the file system can tell.
    reserve(new.file(), size).map_err(unwritten)?;
    match remote.does_ranges {
        true => {
            let copy = PackedCopy::sealed(store, &*remote.blob).map_err(unwritten)?;
            let limits = Limits {
                connections: options.connections,
                timeout: options.timeout,
            };
            let download = Download::new(remote.blob, copy, limits);
            let kept = download.kept_bytes();
            if kept > 0 {
                tracing::info!(
                    "{reference}: {} of {} are here already",
                    bytes(kept),
                    bytes(size)
                );
            }
            let mut write = |bytes: &[u8], at| new.file().write_all_at(bytes, at);
            download.write_to(options.progress, &mut write)
        }
        false => streamed(&remote, new.file(), options),
    }
    .map_err(undone)?;
    check(new.file(), options).map_err(|(problem, hint)| CopyError::Wrong {
        reference: reference.to_string(),
        problem,
        hint,
    })?;
    new.publish()?;
    Ok(size)
}

fn reserve(file: &File, size: u64) -> io::Result<()> {
    let flags = rustix::fs::FallocateFlags::empty();
    match rustix::fs::fallocate(file, flags, 0, size) {
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::FBIG) => {
            Err(io::ErrorKind::StorageFull.into())
        }
        // Those that cannot will fail when it is written.
        _ => Ok(()),
    }
}

/// From the first byte to the last: the server knows no other way.
fn streamed(
    remote: &RemoteFile,
    file: &File,
    options: &CopyOptions<'_>,
) -> Result<(), DownloadError> {
    let mut stream = remote.blob.stream()?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let read = stream.read(&mut buffer).map_err(|error| {
            let problem = error.to_string();
            error.downcast::<BlobError>().unwrap_or(BlobError::Wrong {
                object: "its bytes".into(),
                problem,
            })
        })?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        file.write_all_at(&buffer[..read], at)
            .map_err(DownloadError::Write)?;
        at += read as u64;
        (options.progress)(read as u64);
    }
    let digest = remote.blob.digest();
    match remote.blob.is_named_by_its_bytes() && hasher.finish() != digest {
        true => Err(DownloadError::Blob(BlobError::Wrong {
            object: format!("blob {digest}"),
            problem: "what was fetched does not match its digest".into(),
        })),
        false => Ok(()),
    }
}

/// Whether it is an image at all, such as no page that says that there is none, and one for the wanted machine.
fn check(file: &File, options: &CopyOptions<'_>) -> Result<(), (String, &'static str)> {
    match Sif::open(file) {
        Ok(sif) => match (sif.architecture, options.architecture) {
            (Some(found), Some(wanted)) if found != wanted => {
                let problem = format!("it is for {found}, not for {wanted}");
                Err((problem, "leave --arch out to take it as it is"))
            }
            _ => Ok(()),
        },
        Err(SifError::NotSif(_)) => {
            let mut magic = [0; SQUASHFS_MAGIC.len()];
            match file.read_exact_at(&mut magic, 0) {
                Ok(()) if magic == SQUASHFS_MAGIC => Ok(()),
                _ => Err((
                    "what is there is neither a SIF nor a squashfs".into(),
                    "check the address; an image in a registry is written docker:// or oras://",
                )),
            }
        }
        Err(error) => Err((
            error.to_string(),
            "the file there is damaged: it must be put there again",
        )),
    }
}
