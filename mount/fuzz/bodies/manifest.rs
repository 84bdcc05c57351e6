//! Any bytes as a manifest, index or configuration: an error, or values within their bounds.

use sifon_mount::registry::Platform;
use sifon_mount::source::config::ImageConfig;
use sifon_mount::source::manifest::{BLOB_BYTES_LIMIT, Document};

pub fn run(bytes: &[u8]) {
    match Document::parse(bytes) {
        Ok(Document::Index(index)) => {
            for architecture in ["amd64", "arm64", "arm"] {
                if let Ok(chosen) = index.choose(&Platform::linux(architecture, None)) {
                    assert!(chosen.is_image());
                    assert!(index.manifests.contains(chosen));
                }
            }
        }
        Ok(Document::Manifest(manifest)) => {
            let sizes = manifest.layers.iter().map(|layer| layer.size);
            assert!(sizes.max() <= Some(BLOB_BYTES_LIMIT));
            let _ = manifest.image_config();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = ImageConfig::parse(bytes.to_vec().into());
}
