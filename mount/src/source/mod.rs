//! Where an image's bytes come from, whatever kind of reference names it.
//!
//! Blocking calls for ordinary threads. Manifests are verified here; blobs by those who read them, except
//! configurations.

mod archive;
pub mod config;
mod directory;
mod docker;
pub mod elsewhere;
mod file;
mod layout;
mod made_up;
pub mod manifest;
pub mod sif;
mod squashfs;

pub use squashfs::is_image_file;
pub(crate) use squashfs::place_in;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::reference::Reference;
use crate::registry::{Platform, Registry, Settings};

use self::config::CONFIG_BYTES_LIMIT;
use self::directory::Directory;
use self::docker::{DaemonImage, DockerArchive};
use self::elsewhere::{Oras, Web};
use self::file::Place;
use self::layout::Layout;
use self::manifest::{Descriptor, Document, Manifest, ManifestError};
use self::squashfs::FileSystem;

/// Indexes within indexes that are followed from the top.
const LEVELS: usize = 3;

/// One image, or one index of images, at its place.
pub struct Source {
    kind: Box<dyn Origin>,
    settings: Settings,
}

/// What every kind of place can do.
trait Origin: Send + Sync {
    fn resolve(&self) -> Result<Digest, SourceError>;

    /// The same for one who will ask for the document itself next.
    fn resolve_anew(&self) -> Result<Digest, SourceError> {
        self.resolve()
    }

    /// Whether anything was asked for over the network.
    fn is_connected(&self) -> bool {
        false
    }

    /// A name that nothing else ever has, where that is told sooner than what it resolves to.
    fn exact_name(&self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// Whether [`Origin::resolve`] must come before anything else: its answer is needed to read from there at all.
    fn resolves_first(&self) -> bool {
        false
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError>;
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob>;

    /// The bytes of a configuration of this size, perhaps wrong ones.
    fn config(&self, descriptor: &Descriptor, deadline: Instant) -> Result<Bytes, SourceError> {
        let blob = self.blob(descriptor);
        Ok(blob.read(PackedOffset(0), descriptor.size as usize, deadline)?)
    }

    /// Manifests of type `kind` that say something about `subject`.
    fn referrers(&self, _subject: Digest, _kind: &str) -> Result<Vec<Digest>, SourceError> {
        Ok(Vec::new())
    }
}

/// Why a place did not give what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The bytes did not come, or not as they should be.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The same, from a daemon on this machine.
    #[error(transparent)]
    Daemon(BlobError),
    /// They came, and are of no use.
    #[error("{object} cannot be used")]
    Manifest {
        /// Which manifest, index or configuration.
        object: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A layout or archive is not what it should be.
    #[error("{place}: {problem}")]
    File {
        /// Its path.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// What the user can do, where we know it.
        hint: Option<String>,
        /// The system's error, where there was one.
        #[source]
        source: Option<io::Error>,
    },
}

/// An image of the platform that was asked for.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name.
    pub digest: Digest,
    /// What it says.
    pub manifest: Manifest,
    /// The bytes that it was read from.
    pub bytes: Bytes,
}

impl Source {
    /// The place that `reference` names. No request is made yet; a layout or archive is opened.
    pub fn open(reference: &Reference, settings: &Settings) -> Result<Self, SourceError> {
        let kind: Box<dyn Origin> = match reference {
            Reference::Registry(reference) => Box::new(Registry::new(reference, settings)),
            Reference::OciLayout { directory, tag } => {
                Box::new(Layout::open(Place::directory(directory), tag.as_deref())?)
            }
            Reference::OciArchive { file, tag } => {
                Box::new(Layout::open(Place::archive(file)?, tag.as_deref())?)
            }
            Reference::DockerArchive { file, tag } => {
                Box::new(DockerArchive::open(Place::archive(file)?, tag.as_deref())?)
            }
            Reference::DockerDaemon { name } => Box::new(DaemonImage::new(name, settings)),
            Reference::File(path) => file(path, settings)?,
            Reference::Directory(_) => Box::new(Directory::new(&reference.to_string())),
            Reference::Oras(reference) => Box::new(Oras::new(reference, settings)),
            Reference::Web(address) => Box::new(Web::new(address, settings)),
        };
        Ok(Self {
            kind,
            settings: settings.clone(),
        })
    }

    /// The digest of the manifest or index that the reference means. For a registry: one HEAD, or nothing when the
    /// reference has a digest.
    pub fn resolve(&self) -> Result<Digest, SourceError> {
        self.kind.resolve()
    }

    /// The same for one who has none of it and will ask for the document itself next: that comes with the answer.
    pub fn resolve_anew(&self) -> Result<Digest, SourceError> {
        self.kind.resolve_anew()
    }

    /// Whether anything was asked for over the network, so that connections and permissions are there.
    pub fn is_connected(&self) -> bool {
        self.kind.is_connected()
    }

    /// A name that nothing else ever has: what it resolves to can be remembered. Only of places where that saves something.
    pub fn exact_name(&self) -> Result<Option<String>, SourceError> {
        self.kind.exact_name()
    }

    /// Whether [`Source::resolve`] must come before anything else, so that remembering what it said saves nothing.
    pub fn resolves_first(&self) -> bool {
        self.kind.resolves_first()
    }

    /// The bytes of a manifest or index; they match `digest`.
    pub fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.kind.manifest(digest)
    }

    /// The image of the wanted platform below `top`, with requests for what is on the way to it.
    pub fn image(&self, top: Digest) -> Result<Chosen, SourceError> {
        image(top, &self.settings.platform, |digest| self.manifest(digest))
    }

    /// The bytes of a configuration; they match the descriptor.
    pub fn config(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        let object = format!("configuration {}", descriptor.digest);
        let wrong = |problem: String| BlobError::Wrong {
            object: object.clone(),
            problem,
        };
        let len = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        if len > CONFIG_BYTES_LIMIT {
            return Err(wrong(format!("{len} bytes are more than any has")).into());
        }
        let deadline = Instant::now() + self.settings.timeout;
        let bytes = self.kind.config(descriptor, deadline)?;
        match Digest::of(&bytes) == descriptor.digest {
            true => Ok(bytes),
            false => Err(wrong("its bytes do not match its digest".into()).into()),
        }
    }

    /// Manifests of type `kind` that somebody attached to `subject`. Nobody vouches for them.
    pub fn referrers(&self, subject: Digest, kind: &str) -> Result<Vec<Digest>, SourceError> {
        self.kind.referrers(subject, kind)
    }

    /// A blob of the image. Nothing is asked before it is read.
    pub fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        self.kind.blob(descriptor)
    }
}

/// A SIF or a squashfs; or a SIF whose objects are those of a layout.
fn file(path: &Path, settings: &Settings) -> Result<Box<dyn Origin>, SourceError> {
    if let Some(place) = Place::sif(path) {
        return Ok(Box::new(Layout::open(place, None)?));
    }
    Ok(Box::new(FileSystem::open(path, settings.timeout)?))
}

/// The image for `platform` below `top`, with `document` giving the bytes of manifests and indexes by their digest,
/// from a store or a [`Source`].
pub fn image(
    top: Digest,
    platform: &Platform,
    mut document: impl FnMut(Digest) -> Result<Bytes, SourceError>,
) -> Result<Chosen, SourceError> {
    let mut digest = top;
    for _ in 0..LEVELS {
        let bytes = document(digest)?;
        let unusable = |source| SourceError::Manifest {
            object: format!("manifest {digest}"),
            source,
        };
        match Document::parse(&bytes).map_err(unusable)? {
            Document::Index(index) => digest = index.choose(platform).map_err(unusable)?.digest,
            Document::Manifest(manifest) => {
                manifest.image_config().map_err(unusable)?;
                return Ok(Chosen {
                    digest,
                    manifest,
                    bytes,
                });
            }
        }
    }
    Err(SourceError::Manifest {
        object: format!("index {top}"),
        source: ManifestError::Malformed {
            what: "the index",
            problem: format!("it points to indexes more than {} deep", LEVELS - 1),
        },
    })
}

impl Origin for Registry {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(Self::resolve(self)?)
    }

    fn resolve_anew(&self) -> Result<Digest, SourceError> {
        Ok(Self::resolve_anew(self)?)
    }

    fn is_connected(&self) -> bool {
        Self::is_connected(self)
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        Ok(Self::manifest(self, digest)?)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Self::blob(self, descriptor.digest, descriptor.size)
    }

    fn referrers(&self, subject: Digest, kind: &str) -> Result<Vec<Digest>, SourceError> {
        let answer = Self::referrers(self, subject, kind)?;
        let Some(Ok(Document::Index(index))) = answer.map(|bytes| Document::parse(&bytes)) else {
            return Ok(Vec::new());
        };
        // Under the tag all kinds stand together; who wrote it may have left out what a manifest's own type says.
        let is_kind =
            |entry: &&Descriptor| entry.artifact_type.as_deref().is_none_or(|own| own == kind);
        let entries = index.manifests.iter().filter(is_kind);
        Ok(entries.map(|entry| entry.digest).collect())
    }
}

impl SourceError {
    fn file(place: &Path, problem: impl Into<String>) -> Self {
        Self::File {
            place: place.display().to_string(),
            problem: problem.into(),
            hint: None,
            source: None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Blob(error) => error.hint(),
            Self::Daemon(BlobError::Refused { status: Some(404), .. }) => Some("docker images shows which there are; docker://NAME takes one from a registry".into()),
            Self::Daemon(_) => Some("see whether Docker runs here and whether you may use its socket, which DOCKER_HOST=unix:///… names".into()),
            Self::Manifest {
                source:
                    ManifestError::NotAnImage { hint, .. } | ManifestError::NotAFile { hint, .. },
                ..
            } => hint.map(Into::into),
            Self::Manifest {
                source: ManifestError::NoPlatform { .. },
                ..
            } => Some("choose another one with --arch".into()),
            Self::Manifest { .. } => {
                Some("the image was built wrongly: ask its publisher, or name another tag".into())
            }
            Self::File {
                hint: Some(hint), ..
            } => Some(hint.clone()),
            Self::File { source, .. } => {
                let hint = match source.as_ref().map(io::Error::kind) {
                    Some(io::ErrorKind::NotFound) => "check the path",
                    Some(io::ErrorKind::PermissionDenied) => {
                        "it is closed to you: ask its owner to let you read it, and all directories above it"
                    }
                    _ => "check the path; if it is right, the file is damaged: make it again",
                };
                Some(hint.into())
            }
        }
    }
}
