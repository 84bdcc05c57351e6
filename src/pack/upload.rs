//! A SIF file as an artifact in a registry (ORAS), as Singularity and Apptainer store it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use sifon_mount::blob::BlobError;
use sifon_mount::digest::{Digest, Hasher};
use sifon_mount::reference::{DEFAULT_TAG, RegistryReference};
use sifon_mount::registry::{Destination, OnSent, Settings};
use sifon_mount::source::elsewhere::{SIF_CONFIG, SIF_LAYER};
use sifon_mount::source::sif::{Sif, SifError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The only configuration that such an artifact has.
const CONFIG: &[u8] = b"{}";

/// What was pushed.
pub struct Pushed {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The file's length.
    pub bytes: u64,
    /// Whether the registry had the file already.
    pub was_there: bool,
}

/// Why a file was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The file cannot be read.
    #[error("{path:?}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no SIF.
    #[error("{path:?}: only SIF files are pushed")]
    NotSif {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SifError,
    },
    /// A digest names what is there; it can be no name for what is pushed.
    #[error("{place}: a file is pushed under a tag, not under a digest")]
    Digest {
        /// Where it was to be pushed.
        place: String,
    },
    /// The registry did not take it.
    #[error("{place}: the file was not pushed")]
    Refused {
        /// Where it was to be pushed.
        place: String,
        /// Why.
        #[source]
        source: BlobError,
    },
}

impl UploadError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::NotSif { .. } => Some("make one of it: sifon build x.sif IMAGE".into()),
            Self::Digest { .. } => Some("write oras://HOST/NAME:TAG".into()),
            Self::Refused {
                source:
                    BlobError::Refused {
                        status: Some(401 | 403),
                        ..
                    },
                ..
            } => Some(
                "pushing needs the right to write to the repository: sifon registry login, or give --docker-username and \
                 --docker-password"
                    .into(),
            ),
            Self::Refused {
                source:
                    BlobError::Refused {
                        status: Some(405), ..
                    },
                ..
            } => Some("the registry is for reading only: push to one that is not".into()),
            Self::Refused { source, .. } => source.hint(),
        }
    }
}

/// Pushes the SIF at `path`. It is read twice: for its digest, and, if the registry does not have it, to be sent.
pub fn push(
    path: &Path,
    place: &RegistryReference,
    settings: &Settings,
    sent: OnSent,
) -> Result<Pushed, UploadError> {
    let unread = |source| UploadError::Read {
        path: path.to_owned(),
        source,
    };
    if place.digest.is_some() {
        let place = format!("oras://{place}");
        return Err(UploadError::Digest { place });
    }
    let file = File::open(path).map_err(unread)?;
    Sif::open(&file).map_err(|source| match source {
        SifError::Io(source) => unread(source),
        source => UploadError::NotSif {
            path: path.to_owned(),
            source,
        },
    })?;
    let (digest, bytes) = hashed(&file).map_err(unread)?;
    let refused = |source| UploadError::Refused {
        place: format!("oras://{place}"),
        source,
    };
    let destination = Destination::new(place, settings);
    let config = destination
        .blob(&Bytes::from_static(CONFIG))
        .map_err(refused)?;
    let was_sent = destination.file(digest, bytes, Arc::new(file), sent);
    let was_there = !was_sent.map_err(refused)?;
    let title = path.file_name().unwrap_or_default().to_string_lossy();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": SIF_CONFIG, "digest": config, "size": CONFIG.len()},
        "layers": [{
            "mediaType": SIF_LAYER,
            "digest": digest,
            "size": bytes,
            "annotations": {"org.opencontainers.image.title": title},
        }],
    });
    let manifest = Bytes::from(manifest.to_string());
    let tag = place.tag.as_deref().unwrap_or(DEFAULT_TAG);
    destination
        .manifest(Some(tag), MANIFEST, &manifest)
        .map_err(refused)?;
    Ok(Pushed {
        manifest: Digest::of(&manifest),
        bytes,
        was_there,
    })
}

/// The digest of a file from its beginning to its end, and its length.
fn hashed(mut file: &File) -> io::Result<(Digest, u64)> {
    io::Seek::rewind(&mut file)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.finish(), len)),
            read => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
}
