//! What `docker save` writes: a tar file with `manifest.json`, configurations and layers as tar files.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use serde::Deserialize;

use super::config::{CONFIG_BYTES_LIMIT, ImageConfig};
use super::file::{FileBlob, Part, Place};
use super::made_up::MadeUp;
use super::manifest::Descriptor;
use super::{Origin, SourceError};
use crate::blob::Blob;
use crate::digest::{Digest, Hasher};
use crate::reference::RegistryReference;
use crate::registry::{MANIFEST_BYTES_LIMIT, Settings, engine_image_id};

pub(super) struct DockerArchive(Arc<Shared>);

struct Shared {
    place: Place,
    image: Image,
    made_up: OnceLock<Layers>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// What is made up for the image, and which members its layers are.
struct Layers {
    documents: MadeUp,
    members: Vec<(Digest, String)>,
}

impl DockerArchive {
    pub(super) fn open(place: Place, tag: Option<&str>) -> Result<Self, SourceError> {
        let bytes = place.small("manifest.json", MANIFEST_BYTES_LIMIT)?;
        let images: Vec<Image> = serde_json::from_slice(&bytes).map_err(|error| {
            SourceError::file(
                place.path(),
                format!("manifest.json cannot be read: {error}"),
            )
        })?;
        let image = chosen(images, tag).map_err(|(problem, hint)| SourceError::File {
            place: place.path().display().to_string(),
            problem,
            hint,
            source: None,
        })?;
        Ok(Self(Arc::new(Shared {
            place,
            image,
            made_up: OnceLock::new(),
        })))
    }
}

/// An image of the daemon on this machine. It is handed out as an archive, all of it, when something of it is missing.
pub(super) struct DaemonImage(Arc<Daemons>);

struct Daemons {
    name: String,
    settings: Settings,
    archive: OnceLock<DockerArchive>,
}

impl DaemonImage {
    pub(super) fn new(name: &str, settings: &Settings) -> Self {
        Self(Arc::new(Daemons {
            name: name.to_owned(),
            settings: settings.clone(),
            archive: OnceLock::new(),
        }))
    }
}

impl Daemons {
    fn archive(&self) -> Result<&DockerArchive, SourceError> {
        if let Some(archive) = self.archive.get() {
            return Ok(archive);
        }
        let archive = DockerArchive::open(Place::daemon(&self.name, &self.settings)?, None)?;
        Ok(self.archive.get_or_init(|| archive))
    }
}

impl Origin for DaemonImage {
    fn exact_name(&self) -> Result<Option<String>, SourceError> {
        let Daemons { name, settings, .. } = &*self.0;
        let id = engine_image_id(name, settings).map_err(SourceError::Daemon)?;
        Ok(Some(format!("docker-daemon's image {id:.200}")))
    }

    fn resolve(&self) -> Result<Digest, SourceError> {
        self.0.archive()?.resolve()
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.0.archive()?.manifest(digest)
    }

    fn config(&self, descriptor: &Descriptor, deadline: Instant) -> Result<Bytes, SourceError> {
        self.0.archive()?.config(descriptor, deadline)
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let (daemons, digest) = (Arc::clone(&self.0), descriptor.digest);
        let path = format!("docker-daemon:{}", self.0.name).into();
        let find = move || daemons.archive().map_err(io::Error::other)?.0.part(digest);
        Arc::new(FileBlob::new(digest, descriptor.size, path, find))
    }
}

fn chosen(mut images: Vec<Image>, tag: Option<&str>) -> Result<Image, (String, Option<String>)> {
    let tags: Vec<&str> = images.iter().flat_map(Image::tags).collect();
    let hint = (!tags.is_empty())
        .then(|| format!("append a colon and one of these names: {}", tags.join(", ")));
    let fits = |image: &Image| tag.is_none_or(|tag| image.tags().any(|name| names(name, tag)));
    let fitting: Vec<usize> = (0..images.len())
        .filter(|&image| fits(&images[image]))
        .collect();
    match (&fitting[..], tag) {
        (&[one], _) => Ok(images.swap_remove(one)),
        ([], Some(tag)) => Err((format!("there is no image {tag:?}"), hint)),
        ([], None) => Err(("there is no image in it".into(), None)),
        _ => Err(("there are several images in it".into(), hint)),
    }
}

impl Image {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

/// Whether `wanted` means the image `name`: the same name in any spelling, or its tag alone.
fn names(name: &str, wanted: &str) -> bool {
    let full = |text: &str| text.parse::<RegistryReference>().ok();
    name == wanted
        || name.ends_with(&format!(":{wanted}"))
        || full(wanted).is_some_and(|wanted| full(name) == Some(wanted))
}

impl Shared {
    /// The manifest; compressed layers are hashed for it once.
    fn made_up(&self) -> Result<&Layers, SourceError> {
        if let Some(made_up) = self.made_up.get() {
            return Ok(made_up);
        }
        let made_up = self.make_up()?;
        Ok(self.made_up.get_or_init(|| made_up))
    }

    fn make_up(&self) -> Result<Layers, SourceError> {
        let config = self.place.small(&self.image.config, CONFIG_BYTES_LIMIT)?;
        let diff_ids = ImageConfig::parse(config.clone())
            .map_err(|source| SourceError::Manifest {
                object: format!("configuration {} of {}", self.image.config, self.path()),
                source,
            })?
            .diff_ids;
        if diff_ids.len() != self.image.layers.len() {
            let (layers, ids) = (self.image.layers.len(), diff_ids.len());
            let problem = format!("it has {layers} layers, but its configuration names {ids}");
            return Err(SourceError::file(self.place.path(), problem));
        }
        let (mut members, mut layers) = (Vec::new(), Vec::new());
        for (name, diff_id) in self.image.layers.iter().zip(diff_ids) {
            let layer = self
                .layer(name, diff_id)
                .map_err(|source| SourceError::File {
                    place: self.path(),
                    problem: format!("layer {name:.200} cannot be read"),
                    hint: None,
                    source: Some(source),
                })?;
            members.push((layer.digest, name.clone()));
            layers.push(layer);
        }
        Ok(Layers {
            documents: MadeUp::new(self.path(), config, &layers),
            members,
        })
    }

    /// A plain tar is what its diffID says, or will be found out when it is read; a compressed one is hashed.
    fn layer(&self, name: &str, diff_id: Digest) -> io::Result<Descriptor> {
        let part = self.place.part(name)?;
        let head = part.bytes(0, part.len.min(4) as usize)?;
        let (kind, digest) = match head[..] {
            [0x1f, 0x8b, ..] => (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                hashed(&part)?,
            ),
            [0x28, 0xb5, 0x2f, 0xfd] => (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                hashed(&part)?,
            ),
            _ => ("application/vnd.oci.image.layer.v1.tar", diff_id),
        };
        Ok(Descriptor::new(kind, digest, part.len))
    }

    fn part(&self, digest: Digest) -> io::Result<Part> {
        let made_up = self.made_up().map_err(io::Error::other)?;
        let member = made_up.members.iter().find(|(member, _)| *member == digest);
        let (_, name) = member.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.place.part(name)
    }

    fn path(&self) -> String {
        self.place.path().display().to_string()
    }
}

fn hashed(part: &Part) -> io::Result<Digest> {
    let mut reader = part.reader(0..part.len);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

impl Origin for DockerArchive {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(self.0.made_up()?.documents.digest())
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.0.made_up()?.documents.manifest(digest)
    }

    fn config(&self, _: &Descriptor, _: Instant) -> Result<Bytes, SourceError> {
        Ok(self.0.made_up()?.documents.config())
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        let (shared, digest) = (self.0.clone(), descriptor.digest);
        let path = shared.place.path().to_owned();
        let find = move || shared.part(digest);
        Arc::new(FileBlob::new(digest, descriptor.size, path, find))
    }
}
