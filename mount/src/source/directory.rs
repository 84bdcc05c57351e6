//! A directory of this machine: the documents of an image without layers, because the kernel shows what is in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use super::manifest::Descriptor;
use super::{Origin, SourceError};
use crate::blob::{Blob, OfflineBlob};
use crate::digest::Digest;

/// Documents that tell directories apart by their names. The directory is not looked at.
pub(super) struct Directory {
    name: String,
    config: Bytes,
    manifest: Bytes,
}

impl Directory {
    /// The directory that is called `name`.
    pub(super) fn new(name: &str) -> Self {
        let config = json!({
            "os": "linux",
            "architecture": "unknown",
            "directory": name,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config),
                "size": config.len(),
            },
            "layers": [],
        });
        Self {
            name: name.to_owned(),
            config,
            manifest: manifest.to_string().into(),
        }
    }
}

impl Origin for Directory {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(Digest::of(&self.manifest))
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        match digest == Digest::of(&self.manifest) {
            true => Ok(self.manifest.clone()),
            false => Err(SourceError::file(
                Path::new(&self.name),
                format!("a directory has no manifest {digest}"),
            )),
        }
    }

    fn config(&self, _: &Descriptor, _: Instant) -> Result<Bytes, SourceError> {
        Ok(self.config.clone())
    }

    /// No manifest of its own names one.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        Arc::new(OfflineBlob::new(descriptor.digest, descriptor.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_told_apart_by_their_names() {
        let digest = |name| Directory::new(name).resolve().unwrap();
        assert_eq!(digest("/a/"), digest("/a/"));
        assert_ne!(digest("/a/"), digest("/b/"));
    }
}
