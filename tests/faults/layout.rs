//! Images as OCI layouts in directories of their own, to be damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sifon_mount::digest::Digest;
use tempfile::TempDir;

pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A layer's blob, and what the configuration says about its tar stream.
#[derive(Clone)]
pub struct Layer {
    pub packed: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: &'static str,
    pub annotations: BTreeMap<String, String>,
}

impl Layer {
    /// A tar stream as it is.
    pub fn plain(tar: Vec<u8>) -> Self {
        Self {
            diff_id: Digest::of(&tar),
            packed: tar,
            media_type: TAR,
            annotations: BTreeMap::new(),
        }
    }

    /// Packed bytes whose tar stream is too long to be hashed, or does not exist.
    pub fn packed(packed: Vec<u8>, media_type: &'static str) -> Self {
        Self {
            packed,
            diff_id: Digest::of(b"never computed"),
            media_type,
            annotations: BTreeMap::new(),
        }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(tar).unwrap();
        Self {
            packed: encoder.finish().unwrap(),
            diff_id: Digest::of(tar),
            media_type: GZIP,
            annotations: BTreeMap::new(),
        }
    }
}

/// An image in a directory, which goes with the value.
pub struct Layout {
    pub directory: TempDir,
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
}

impl Layout {
    pub fn of(layers: &[Layer]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        Self::with_config(
            layers,
            &json!({
                "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        )
    }

    pub fn with_config(layers: &[Layer], config: &Value) -> Self {
        let directory = TempDir::new().unwrap();
        let blobs = directory.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            digest
        };
        let described: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": layer.media_type,
                    "digest": blob(&layer.packed),
                    "size": layer.packed.len(),
                    "annotations": layer.annotations,
                })
            })
            .collect();
        let config = config.to_string();
        let config_digest = blob(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
            "layers": described,
        })
        .to_string();
        let manifest_digest = blob(manifest.as_bytes());
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": manifest_digest,
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": "v1"},
            }],
        });
        let root = directory.path();
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(root.join("index.json"), index.to_string()).unwrap();
        Self {
            manifest: manifest_digest,
            config: config_digest,
            layers: layers
                .iter()
                .map(|layer| Digest::of(&layer.packed))
                .collect(),
            directory,
        }
    }

    /// What to call it on the command line.
    pub fn reference(&self) -> String {
        format!("oci:{}:v1", self.directory.path().display())
    }

    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.directory
            .path()
            .join("blobs/sha256")
            .join(digest.hex())
    }

    pub fn bytes(&self, digest: Digest) -> Vec<u8> {
        fs::read(self.blob(digest)).unwrap()
    }
}
