//! The documents of an image that has none in the sense of a registry. They are made up, the same each time for the same image.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use super::SourceError;
use super::manifest::Descriptor;
use crate::digest::Digest;

/// A manifest that is found nowhere, and its configuration.
pub(super) struct MadeUp {
    /// Where the image is, for messages.
    place: String,
    config: Bytes,
    manifest: Bytes,
}

/// A configuration for layers that unpack to `diff_ids`; `inner` is what it says about running the image.
pub(super) fn config(architecture: &str, inner: Value, diff_ids: &[Digest]) -> Value {
    json!({
        "os": "linux",
        "architecture": architecture,
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

impl MadeUp {
    /// For the image at `place`, of these layers, bottom first.
    pub fn new(place: String, config: impl Into<Bytes>, layers: &[Descriptor]) -> Self {
        let config = config.into();
        let digest = Digest::of(&config);
        let kind = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": Descriptor::new(kind, digest, config.len() as u64),
            "layers": layers,
        });
        Self {
            place,
            config,
            manifest: manifest.to_string().into(),
        }
    }

    /// The manifest's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The manifest, if that is what has this digest: else another image was there before.
    pub fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        match digest == self.digest() {
            true => Ok(self.manifest.clone()),
            false => Err(SourceError::file(
                Path::new(&self.place),
                format!("it is no longer the image that was named {digest}"),
            )),
        }
    }

    /// The configuration.
    pub fn config(&self) -> Bytes {
        self.config.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ImageConfig;
    use super::super::manifest::Document;
    use super::*;

    #[test]
    fn made_up_documents_belong_together_and_read_as_those_of_others() {
        let layer = Descriptor::new("application/x", Digest::of(b"packed"), 6);
        let text = config("arm", json!({"Env": ["A=b"]}), &[Digest::of(b"plain")]).to_string();
        let made_up = MadeUp::new("/a".into(), text.clone(), std::slice::from_ref(&layer));
        let bytes = made_up.manifest(made_up.digest()).unwrap();
        let Document::Manifest(manifest) = Document::parse(&bytes).unwrap() else {
            panic!()
        };
        assert_eq!(manifest.layers, [layer]);
        assert_eq!(manifest.config.digest, Digest::of(text.as_bytes()));
        assert_eq!(manifest.config.size, text.len() as u64);
        let config = ImageConfig::parse(made_up.config()).unwrap();
        assert_eq!(config.diff_ids, [Digest::of(b"plain")]);
        assert_eq!(config.env, ["A=b"]);
        let again = MadeUp::new("/a".into(), text, &manifest.layers);
        assert_eq!(again.digest(), made_up.digest());
        let gone = made_up.manifest(Digest::of(b"")).unwrap_err().to_string();
        assert!(gone.starts_with("/a: it is no longer"), "{gone}");
    }
}
