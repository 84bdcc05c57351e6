//! An OCI image layout, in a directory, in a tar file (image-spec, image-layout.md), or in an OCI-SIF.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::file::{FileBlob, Place};
use super::manifest::{Descriptor, Document, Index};
use super::{Origin, SourceError};
use crate::blob::Blob;
use crate::digest::Digest;
use crate::registry::MANIFEST_BYTES_LIMIT;

/// How writers name images in `index.json`: the specification's way, and containerd's.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];

pub(super) struct Layout {
    place: Arc<Place>,
    top: Digest,
    /// `index.json` itself, when the layout as a whole is the image.
    index: Option<Bytes>,
    /// What else stands in `index.json`: no images.
    others: Vec<Digest>,
}

impl Layout {
    pub(super) fn open(place: Place, tag: Option<&str>) -> Result<Self, SourceError> {
        let wrong = |problem: String, hint: Option<String>| SourceError::File {
            place: place.path().display().to_string(),
            problem,
            hint,
            source: None,
        };
        place.is_layout()?;
        let bytes = place.small("index.json", MANIFEST_BYTES_LIMIT)?;
        let index = match Document::parse(&bytes) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_)) => return Err(wrong("index.json is no index".into(), None)),
            Err(source) => {
                return Err(SourceError::Manifest {
                    object: format!("index.json of {}", place.path().display()),
                    source,
                });
            }
        };
        let others = index.manifests.iter().filter(|entry| !entry.is_image());
        let others = others.map(|entry| entry.digest).collect();
        let (top, index) = match choice(&index, tag) {
            Choice::One(entry) => (entry.digest, None),
            Choice::All => (Digest::of(&bytes), Some(bytes)),
            Choice::None(tags) => {
                let problem = match tag {
                    Some(tag) => format!("there is no image {tag:?}"),
                    None if tags.is_empty() => "there is no image in it".into(),
                    None => "there are several images in it".into(),
                };
                let hint = (!tags.is_empty())
                    .then(|| format!("append a colon and one of these tags: {}", tags.join(", ")));
                return Err(wrong(problem, hint));
            }
        };
        Ok(Self {
            place: Arc::new(place),
            top,
            index,
            others,
        })
    }
}

enum Choice<'a> {
    One(&'a Descriptor),
    /// The entries have no names: they are builds of one image.
    All,
    /// With the names that there are.
    None(Vec<String>),
}

fn choice<'a>(index: &'a Index, tag: Option<&str>) -> Choice<'a> {
    let images: Vec<_> = index
        .manifests
        .iter()
        .filter(|entry| entry.is_image())
        .collect();
    let mut tags: Vec<String> = images
        .iter()
        .flat_map(|entry| names(entry))
        .map(Into::into)
        .collect();
    tags.dedup();
    let named: Vec<_> = match tag {
        None => images.clone(),
        Some(tag) => {
            let fitting = |is_it: &dyn Fn(&str) -> bool| -> Vec<&'a Descriptor> {
                let fits = |entry: &&&Descriptor| names(entry).any(is_it);
                images.iter().filter(fits).copied().collect()
            };
            let exact = fitting(&|name| name == tag);
            match exact.is_empty() {
                true => fitting(&|name| name.ends_with(&format!(":{tag}"))),
                false => exact,
            }
        }
    };
    match named[..] {
        [one] => Choice::One(one),
        // The same image under several names, or twice.
        [first, ..] if named.iter().all(|entry| entry.digest == first.digest) => Choice::One(first),
        [_, ..] if tags.is_empty() => Choice::All,
        _ => Choice::None(tags),
    }
}

fn names(entry: &Descriptor) -> impl Iterator<Item = &str> {
    NAMES
        .into_iter()
        .filter_map(|name| entry.annotations.get(name))
        .map(String::as_str)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Origin for Layout {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(self.top)
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        if let Some(index) = self.index.as_ref().filter(|_| digest == self.top) {
            return Ok(index.clone());
        }
        let bytes = self.place.small(&blob_name(digest), MANIFEST_BYTES_LIMIT)?;
        match Digest::of(&bytes) == digest {
            true => Ok(bytes),
            false => {
                let problem = format!("the bytes of manifest {digest} do not match this digest");
                Err(SourceError::file(self.place.path(), problem))
            }
        }
    }

    fn referrers(&self, subject: Digest, kind: &str) -> Result<Vec<Digest>, SourceError> {
        let refers = |digest: &Digest| {
            let bytes = self.manifest(*digest).ok()?;
            let Ok(Document::Manifest(manifest)) = Document::parse(&bytes) else {
                return None;
            };
            let own = manifest.artifact_type.unwrap_or(manifest.config.media_type);
            Some(own == kind && manifest.subject?.digest == subject)
        };
        let others = self.others.iter().copied();
        Ok(others
            .filter(|digest| refers(digest) == Some(true))
            .collect())
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let (place, name) = (self.place.clone(), blob_name(descriptor.digest));
        let path = place.path().to_owned();
        let find = move || -> io::Result<_> { place.part(&name) };
        Arc::new(FileBlob::new(
            descriptor.digest,
            descriptor.size,
            path,
            find,
        ))
    }
}
