//! A directory of this machine: the documents of an image without layers, because the kernel shows what is in it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use super::made_up::{self, MadeUp};
use super::manifest::Descriptor;
use super::{Origin, SourceError};
use crate::blob::{Blob, OfflineBlob};
use crate::digest::Digest;

/// Documents that tell directories apart by their names. The directory is not looked at.
pub(super) struct Directory(MadeUp);

impl Directory {
    /// The directory that is called `name`.
    pub(super) fn new(name: &str) -> Self {
        let mut config = made_up::config("unknown", json!({}), &[]);
        config["directory"] = name.into();
        Self(MadeUp::new(name.to_owned(), config.to_string(), &[]))
    }
}

impl Origin for Directory {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(self.0.digest())
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.0.manifest(digest)
    }

    fn config(&self, _: &Descriptor, _: Instant) -> Result<Bytes, SourceError> {
        Ok(self.0.config())
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
