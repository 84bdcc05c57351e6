//! Indexes for everyone: what was made here of an image goes to its registry, where SOCI's own programs find it too.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::documents::Opener;
use super::indexing::Outcome;
use super::open::{Description, OpenError, Options};
use crate::blob::BlobError;
use crate::digest::Digest;
use crate::layer::soci::{self, Version};
use crate::reference::Reference;
use crate::registry::Destination;
use crate::source::SourceError;
use crate::source::manifest::{Descriptor, Document, ManifestError};
use crate::store::Store;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Media types of Docker's that cannot stand beside annotations, and OCI's for the same bytes.
const OCI_TYPES: [(&str, &str); 5] = [
    (
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.image.config.v1+json",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.oci.image.layer.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// Which way others find the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Attached to the image, which stays as it is (SOCI's version 1).
    Attached,
    /// Named by a copy of the image under another tag (SOCI's version 2).
    Named {
        /// The copy's tag.
        tag: String,
    },
}

/// What stands in the registry now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The index's manifest.
    pub index: Digest,
    /// How many layers it covers.
    pub layers: usize,
    /// Bytes of all its zTOCs.
    pub bytes: u64,
    /// What `tag` means now, for an image that names its index.
    pub image: Option<Digest>,
    /// The tag of the copy; for an attached index, the tag that lists it where the registry does not do that itself.
    pub tag: Option<String>,
}

/// Why it does not.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The image cannot be looked at.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something did not go to the registry.
    #[error(transparent)]
    Push(BlobError),
    /// There is nowhere to push to.
    #[error("{reference}: indexes can be pushed to a registry only")]
    NotARegistry {
        /// The image.
        reference: String,
    },
    /// There is nothing to push.
    #[error("{reference}: none of its layers can have a zTOC that is smaller than it")]
    Nothing {
        /// The image.
        reference: String,
    },
}

impl ShareError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::Push(BlobError::Refused {
                status: Some(401 | 403),
                ..
            }) => Some(
                "pushing needs the right to write to the repository: log in with apptainer, docker or podman, or give \
                 --docker-username and --docker-password"
                    .into(),
            ),
            Self::Push(BlobError::Refused {
                status: Some(405), ..
            }) => Some("the registry is for reading only: copy the image to one that is not".into()),
            Self::Push(error) => error.hint(),
            Self::NotARegistry { .. } => Some("copy the image to a registry first".into()),
            Self::Nothing { .. } => Some(
                "layers in zstd:chunked or eStargz need none; of plain gzip layers, those with sparse files can have none"
                    .into(),
            ),
        }
    }
}

/// Pushes the zTOCs in `outcomes`, those of the layers of the image that `description` tells of, and an index of them.
pub fn share(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
    description: &Description,
    outcomes: &[Outcome],
    way: &Way,
) -> Result<Shared, ShareError> {
    let Reference::Registry(repository) = reference else {
        let reference = reference.to_string();
        return Err(ShareError::NotARegistry { reference });
    };
    let opener = Opener::new(reference, options, store)?;
    let sharing = Sharing {
        destination: Destination::new(repository, &options.registry),
        opener,
        description,
    };
    let ztocs = sharing.ztocs(outcomes)?;
    match way {
        Way::Attached => sharing.attached(&ztocs),
        Way::Named { tag } => sharing.named(&ztocs, tag),
    }
}

struct Sharing<'a> {
    destination: Destination,
    opener: Opener<'a>,
    description: &'a Description,
}

impl Sharing<'_> {
    /// Pushes the zTOCs; each layer that has one, with its descriptor.
    fn ztocs(&self, outcomes: &[Outcome]) -> Result<Vec<(&Descriptor, Descriptor)>, ShareError> {
        let mut ztocs: Vec<(&Descriptor, Descriptor)> = Vec::new();
        for (layer, outcome) in self.description.manifest.layers.iter().zip(outcomes) {
            let is_done = ztocs.iter().any(|(done, _)| done.digest == layer.digest);
            let Outcome::Made {
                ztoc: Some(ztoc), ..
            } = outcome
            else {
                continue;
            };
            // What is not smaller than its layer costs more than it saves.
            if is_done || ztoc.len() as u64 >= layer.size {
                continue;
            }
            let bytes = Bytes::copy_from_slice(ztoc);
            let digest = self.destination.blob(&bytes).map_err(ShareError::Push)?;
            let described = Descriptor::new(soci::ZTOC, digest, bytes.len() as u64);
            ztocs.push((layer, described));
        }
        match ztocs.is_empty() {
            true => Err(ShareError::Nothing {
                reference: self.opener.reference.to_string(),
            }),
            false => Ok(ztocs),
        }
    }

    /// An index that says which image it is about.
    fn attached(&self, ztocs: &[(&Descriptor, Descriptor)]) -> Result<Shared, ShareError> {
        let manifest = self.document(self.description.manifest_digest)?;
        let media_type = match self.description.manifest.media_type.as_str() {
            "" => MANIFEST,
            media_type => media_type,
        };
        let digest = self.description.manifest_digest;
        let subject = Descriptor::new(media_type, digest, manifest.len() as u64);
        let document = soci::index_manifest(Version::V1, Some(&subject), ztocs);
        let (index, is_listed) = self.index(&document)?;
        let tag = match is_listed {
            true => None,
            false => {
                let mut entry = json!(index);
                entry["artifactType"] = json!(soci::INDEX_V1);
                let tag = self.destination.refer(digest, &entry);
                Some(tag.map_err(ShareError::Push)?)
            }
        };
        Ok(Shared {
            tag,
            image: None,
            ..shared(&index, ztocs)
        })
    }

    /// An index, and a copy of the image that names it.
    fn named(&self, ztocs: &[(&Descriptor, Descriptor)], tag: &str) -> Result<Shared, ShareError> {
        let layers: Vec<Descriptor> = ztocs
            .iter()
            .map(|(layer, _)| in_oci_words((*layer).clone()))
            .collect();
        let ztocs = ztocs.iter().map(|(_, ztoc)| ztoc.clone());
        let ztocs: Vec<_> = layers.iter().zip(ztocs).collect();
        let document = soci::index_manifest(Version::V2, None, &ztocs);
        let (index, _) = self.index(&document)?;
        let before = self.description.manifest_digest;
        let mut manifest = self.json(before)?;
        manifest["mediaType"] = json!(MANIFEST);
        rename(&mut manifest["config"]);
        let layers = manifest["layers"].as_array_mut().into_iter().flatten();
        layers.for_each(rename);
        annotate(&mut manifest, soci::INDEX_DIGEST, index.digest);
        let image = self.pushed(None, MANIFEST, &manifest)?;
        let top = self.image_index(&image, &index, tag)?;
        Ok(Shared {
            tag: Some(tag.to_owned()),
            image: Some(top.digest),
            ..shared(&index, &ztocs)
        })
    }

    /// Pushes the image index with `image` in the place of the one that was indexed, and `index` beside it; with those
    /// that lead to it, if there are several.
    fn image_index(
        &self,
        image: &Descriptor,
        index: &Descriptor,
        tag: &str,
    ) -> Result<Descriptor, ShareError> {
        let mut before = self.description.manifest_digest;
        let mut path = self.path()?;
        if path.is_empty() {
            path.push((before, alone(before, self.platform())));
        }
        let mut after = image.clone();
        while let Some((digest, mut above)) = path.pop() {
            if after == *image {
                beside(&mut above, before, image.digest, index);
            }
            replace(&mut above, before, &after, index.digest);
            above["mediaType"] = json!(INDEX);
            let is_top = path.is_empty();
            after = self.pushed(is_top.then_some(tag), INDEX, &above)?;
            before = digest;
        }
        Ok(after)
    }

    /// The indexes from what the reference names down to the manifest.
    fn path(&self) -> Result<Vec<(Digest, Value)>, ShareError> {
        let platform = &self.opener.options.registry.platform;
        let (mut path, mut digest) = (Vec::new(), self.description.top);
        while digest != self.description.manifest_digest {
            path.push((digest, self.json(digest)?));
            let bytes = self.document(digest)?;
            let chosen = match Document::parse(&bytes) {
                Ok(Document::Index(index)) => index.choose(platform).map(|chosen| chosen.digest),
                Ok(Document::Manifest(_)) => Err(ManifestError::Malformed {
                    what: "the index",
                    problem: "it is the manifest of another image".into(),
                }),
                Err(error) => Err(error),
            };
            digest = chosen.map_err(|source| unusable(digest, source))?;
        }
        Ok(path)
    }

    /// The platform of an image that is in no index.
    fn platform(&self) -> Value {
        let config = serde_json::from_slice(&self.description.config.json);
        let config: Value = config.unwrap_or_default();
        let mut platform = json!({});
        for key in ["os", "architecture", "variant", "os.version", "os.features"] {
            if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                platform[key] = value.clone();
            }
        }
        platform
    }

    /// Pushes the manifest of an index, with the empty config that its type is told by.
    fn index(&self, document: &Value) -> Result<(Descriptor, bool), ShareError> {
        let config = Bytes::from_static(b"{}");
        self.destination.blob(&config).map_err(ShareError::Push)?;
        let bytes = Bytes::from(document.to_string());
        let pushed = self.destination.manifest(None, MANIFEST, &bytes);
        let is_listed = pushed.map_err(ShareError::Push)?;
        Ok((
            Descriptor::new(MANIFEST, Digest::of(&bytes), bytes.len() as u64),
            is_listed,
        ))
    }

    fn pushed(
        &self,
        tag: Option<&str>,
        kind: &str,
        document: &Value,
    ) -> Result<Descriptor, ShareError> {
        let bytes = Bytes::from(document.to_string());
        let pushed = self.destination.manifest(tag, kind, &bytes);
        pushed.map_err(ShareError::Push)?;
        Ok(Descriptor::new(
            kind,
            Digest::of(&bytes),
            bytes.len() as u64,
        ))
    }

    fn document(&self, digest: Digest) -> Result<Bytes, ShareError> {
        let bytes = self.opener.document(digest).map_err(OpenError::from)?;
        Ok(bytes)
    }

    fn json(&self, digest: Digest) -> Result<Value, ShareError> {
        serde_json::from_slice(&self.document(digest)?).map_err(|error| {
            let problem = error.to_string();
            let what = "the manifest";
            unusable(digest, ManifestError::Malformed { what, problem })
        })
    }
}

fn unusable(digest: Digest, source: ManifestError) -> ShareError {
    let object = format!("manifest {digest}");
    OpenError::from(SourceError::Manifest { object, source }).into()
}

fn shared(index: &Descriptor, ztocs: &[(&Descriptor, Descriptor)]) -> Shared {
    Shared {
        index: index.digest,
        layers: ztocs.len(),
        bytes: ztocs.iter().map(|(_, ztoc)| ztoc.size).sum(),
        image: None,
        tag: None,
    }
}

/// OCI's name for what Docker calls `media_type`, if that is one of Docker's.
fn oci_type(media_type: &str) -> Option<&'static str> {
    let known = OCI_TYPES.iter().find(|(docker, _)| *docker == media_type);
    known.map(|(_, oci)| *oci)
}

fn in_oci_words(mut descriptor: Descriptor) -> Descriptor {
    if let Some(oci) = oci_type(&descriptor.media_type) {
        descriptor.media_type = oci.into();
    }
    descriptor
}

fn rename(descriptor: &mut Value) {
    if let Some(oci) = descriptor["mediaType"].as_str().and_then(oci_type) {
        descriptor["mediaType"] = json!(oci);
    }
}

fn annotate(object: &mut Value, key: &str, digest: Digest) {
    if !object["annotations"].is_object() {
        object["annotations"] = json!({});
    }
    object["annotations"][key] = json!(digest);
}

/// An index of one image.
fn alone(digest: Digest, platform: Value) -> Value {
    let image = json!({"digest": digest, "platform": platform});
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]})
}

/// Adds `index`, for the image that was `before` and is `after`, of the same platform, and removes what others made for
/// `before`.
fn beside(top: &mut Value, before: Digest, after: Digest, index: &Descriptor) {
    let Some(entries) = top["manifests"].as_array_mut() else {
        return;
    };
    let is_for_before = |entry: &Value| entry["annotations"][soci::IMAGE_DIGEST] == json!(before);
    entries.retain(|entry| !is_for_before(entry));
    let image = entries
        .iter()
        .find(|entry| entry["digest"] == json!(before));
    let platform = image.map(|image| image["platform"].clone());
    let mut entry = json!(index);
    entry["artifactType"] = json!(soci::INDEX_V2);
    if let Some(platform) = platform.filter(|platform| !platform.is_null()) {
        entry["platform"] = platform;
    }
    annotate(&mut entry, soci::IMAGE_DIGEST, after);
    entries.push(entry);
}

/// Puts `after` in the place of `before`; that of an image says which index it has.
fn replace(top: &mut Value, before: Digest, after: &Descriptor, index: Digest) {
    let entries = top["manifests"].as_array_mut().into_iter().flatten();
    for entry in entries.filter(|entry| entry["digest"] == json!(before)) {
        entry["mediaType"] = json!(after.media_type);
        entry["digest"] = json!(after.digest);
        entry["size"] = json!(after.size);
        if after.media_type == MANIFEST {
            annotate(entry, soci::INDEX_DIGEST, index);
        }
    }
}
