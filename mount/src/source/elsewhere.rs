//! Files with a file system that are on other machines: SIFs in registries, and what web servers have.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use super::manifest::{Descriptor, Document, Manifest, ManifestError};
use super::squashfs::FileSystem;
use super::{LEVELS, Origin, SourceError};
use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::reference::{Reference, RegistryReference, WebAddress};
use crate::registry::{Registry, Settings, WebFile, web_file};

/// The configuration of a SIF in a registry, which is always `{}`.
pub const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";

/// A SIF in a registry.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";

/// The same, as the first programs wrote it.
const OLD_SIF_LAYER: &str = "appliciation/vnd.sylabs.sif.layer.tar";

/// A file on another machine, as it is there.
pub struct RemoteFile {
    /// Its bytes.
    pub blob: Arc<dyn Blob>,
    /// Whether parts of it can be had.
    pub does_ranges: bool,
}

/// The file that `reference` names, if that is one on another machine. A request or two are made.
pub fn remote_file(
    reference: &Reference,
    settings: &Settings,
) -> Option<Result<RemoteFile, SourceError>> {
    match reference {
        Reference::Oras(repository) => {
            let registry = Registry::of_files(repository, settings);
            let layer = sif_in(&registry, repository, settings);
            Some(layer.map(|layer| RemoteFile {
                blob: registry.blob(layer.digest, layer.size),
                does_ranges: true,
            }))
        }
        Reference::Web(address) => {
            let file = asked(address, settings);
            Some(file.map(|file| RemoteFile {
                blob: file.blob,
                does_ranges: file.does_ranges,
            }))
        }
        _ => None,
    }
}

/// The layer that is the SIF under a name in a registry. Of several, the one for the wanted platform.
fn sif_in(
    registry: &Registry,
    reference: &RegistryReference,
    settings: &Settings,
) -> Result<Descriptor, SourceError> {
    let mut digest = registry.resolve()?;
    for _ in 0..LEVELS {
        let unusable = |source| SourceError::Manifest {
            object: format!("manifest {digest} of oras://{reference}"),
            source,
        };
        match Document::parse(&registry.manifest(digest)?).map_err(unusable)? {
            Document::Index(index) => {
                digest = index.choose(&settings.platform).map_err(unusable)?.digest;
            }
            Document::Manifest(manifest) => return sif(manifest).map_err(unusable),
        }
    }
    Err(SourceError::Manifest {
        object: format!("index oras://{reference}"),
        source: ManifestError::Malformed {
            what: "the index",
            problem: format!("it points to indexes more than {} deep", LEVELS - 1),
        },
    })
}

fn sif(manifest: Manifest) -> Result<Descriptor, ManifestError> {
    let is_sif = |layer: &Descriptor| [SIF_LAYER, OLD_SIF_LAYER].contains(&&*layer.media_type);
    if let [layer] = &manifest.layers[..]
        && is_sif(layer)
    {
        return Ok(layer.clone());
    }
    Err(match manifest.image_config() {
        Ok(_) => ManifestError::NotAFile {
            what: "a container image in layers".into(),
            hint: Some("write docker:// instead of oras://"),
        },
        Err(_) => ManifestError::NotAFile {
            what: format!(
                "something of {} layers that are no SIF",
                manifest.layers.len()
            ),
            hint: None,
        },
    })
}

/// A SIF in a registry.
pub(super) struct Oras {
    reference: RegistryReference,
    registry: Registry,
    settings: Settings,
    opened: OnceLock<FileSystem>,
}

impl Oras {
    pub(super) fn new(reference: &RegistryReference, settings: &Settings) -> Self {
        Self {
            reference: reference.clone(),
            registry: Registry::of_files(reference, settings),
            settings: settings.clone(),
            opened: OnceLock::new(),
        }
    }

    fn opened(&self) -> Result<&FileSystem, SourceError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let layer = sif_in(&self.registry, &self.reference, &self.settings)?;
        let blob = self.registry.blob(layer.digest, layer.size);
        let place = format!("oras://{}", self.reference);
        let opened = FileSystem::of(place, blob, Bytes::new(), self.settings.timeout)?;
        Ok(self.opened.get_or_init(|| opened))
    }
}

impl Origin for Oras {
    fn resolve(&self) -> Result<Digest, SourceError> {
        self.opened()?.resolve()
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.opened()?.manifest(digest)
    }

    fn config(&self, descriptor: &Descriptor, deadline: Instant) -> Result<Bytes, SourceError> {
        self.opened()?.config(descriptor, deadline)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        self.registry.blob(descriptor.digest, descriptor.size)
    }
}

/// A file at a web server.
pub(super) struct Web {
    address: WebAddress,
    settings: Settings,
    opened: OnceLock<FileSystem>,
}

impl Web {
    pub(super) fn new(address: &WebAddress, settings: &Settings) -> Self {
        Self {
            address: address.clone(),
            settings: settings.clone(),
            opened: OnceLock::new(),
        }
    }

    fn opened(&self) -> Result<&FileSystem, SourceError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let WebFile {
            blob,
            head,
            does_ranges,
        } = asked(&self.address, &self.settings)?;
        let place = self.address.without_query().to_owned();
        if !does_ranges {
            return Err(SourceError::File {
                problem: format!(
                    "{} sends the whole file when asked for a part of it, so that it cannot be read bit by bit",
                    self.address.host()
                ),
                hint: Some(format!("get all of it first: sifon pull {place}")),
                place,
                source: None,
            });
        }
        let opened = FileSystem::of(place, blob, head, self.settings.timeout)?;
        Ok(self.opened.get_or_init(|| opened))
    }
}

impl Origin for Web {
    fn resolve(&self) -> Result<Digest, SourceError> {
        self.opened()?.resolve()
    }

    /// What it has is told by the answer with the file's first bytes.
    fn resolves_first(&self) -> bool {
        true
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.opened()?.manifest(digest)
    }

    fn config(&self, descriptor: &Descriptor, deadline: Instant) -> Result<Bytes, SourceError> {
        self.opened()?.config(descriptor, deadline)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let opened = self.opened.get();
        opened.expect("it resolves first").blob(descriptor)
    }
}

/// What the server says, in words that fit a file.
fn asked(address: &WebAddress, settings: &Settings) -> Result<WebFile, SourceError> {
    if address.is_incomplete() {
        return Err(SourceError::File {
            place: address.to_string(),
            problem: "what follows the question mark was kept nowhere, because it may be a secret"
                .into(),
            hint: Some("write the whole address".into()),
            source: None,
        });
    }
    web_file(address, settings).map_err(|error| {
        let hint = match &error {
            BlobError::Refused {
                status: Some(401 | 403),
                ..
            } => "the server wants to know who asks: download the file with a program that can tell it",
            BlobError::Refused {
                status: Some(404 | 410),
                ..
            } => "check the address",
            BlobError::Unreachable { .. }
                if error
                    .hint()
                    .is_some_and(|hint| hint.contains("--no-https")) =>
            {
                "if the server speaks plain HTTP, write http://"
            }
            _ => return SourceError::Blob(error),
        };
        SourceError::File {
            place: address.without_query().to_owned(),
            problem: "it cannot be had".into(),
            hint: Some(hint.into()),
            source: Some(std::io::Error::other(error)),
        }
    })
}
