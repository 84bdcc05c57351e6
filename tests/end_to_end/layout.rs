//! Images in files: layers packed in each way there is, in layouts and archives.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sifon::pack::zstd_chunked::{self, LayerWriter};
use sifon_mount::digest::Digest;
use sifon_mount::layer::native::Blueprint;
use sifon_mount::layer::soci;
use sifon_mount::source::manifest::Descriptor;

use crate::estargz::estargz;
use crate::layers::Member;
use crate::layers::archive::{Dialect, archive};

/// One layer before it is packed.
#[derive(Clone, Debug)]
pub struct Layer {
    pub members: Vec<Member>,
    pub dialect: Dialect,
}

impl Layer {
    pub fn new(members: Vec<Member>) -> Self {
        Self {
            members,
            dialect: Dialect::Pax,
        }
    }
}

/// How a layer's blob is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Tar,
    Gzip,
    /// Several members, as `pigz -i` and stargz write them.
    GzipMembers,
    Zstd,
    /// Frames of their own, with a table of them at the end that nothing vouches for.
    ZstdSeekable,
    ZstdChunked,
    Estargz,
    /// Eight kilobytes of small files share a gzip member.
    EstargzShared,
}

/// A layer's blob and what a manifest says of it.
#[derive(Clone, Debug)]
pub struct Packed {
    pub bytes: Vec<u8>,
    pub media_type: &'static str,
    pub annotations: BTreeMap<String, String>,
    pub diff_id: Digest,
}

pub fn packed(layer: &Layer, packing: Packing) -> Packed {
    match packing {
        Packing::ZstdChunked => return chunked(&layer.members),
        Packing::Estargz => return estargz(&layer.members, 0),
        Packing::EstargzShared => return estargz(&layer.members, 8 << 10),
        _ => {}
    }
    let plain = archive(&layer.members, layer.dialect);
    let diff_id = Digest::of(&plain);
    let (bytes, media_type) = match packing {
        Packing::Tar => (plain, "application/vnd.oci.image.layer.v1.tar"),
        Packing::Gzip => (gzip(&plain), "application/vnd.oci.image.layer.v1.tar+gzip"),
        Packing::GzipMembers => (
            plain.chunks(300_000).flat_map(gzip).collect(),
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
        Packing::ZstdSeekable => (
            zstd_seekable(&plain),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        _ => (
            zstd::encode_all(&plain[..], 1).unwrap(),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    };
    Packed {
        bytes,
        media_type,
        annotations: BTreeMap::new(),
        diff_id,
    }
}

/// The blobs of an image's layers.
pub fn all(layers: &[Layer], packing: Packing) -> Vec<Packed> {
    layers.iter().map(|layer| packed(layer, packing)).collect()
}

pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// As zstd's `contrib/seekable_format` writes it.
fn zstd_seekable(plain: &[u8]) -> Vec<u8> {
    let (mut blob, mut entries) = (Vec::new(), Vec::new());
    for part in plain.chunks(300_000) {
        let frame = zstd::encode_all(part, 1).unwrap();
        entries.extend((frame.len() as u32).to_le_bytes());
        entries.extend((part.len() as u32).to_le_bytes());
        blob.extend(frame);
    }
    blob.extend(0x184d_2a5e_u32.to_le_bytes());
    blob.extend((entries.len() as u32 + 9).to_le_bytes());
    let frames = entries.len() as u32 / 8;
    blob.extend(entries);
    blob.extend(frames.to_le_bytes());
    blob.push(0);
    blob.extend(0x8f92_eab1_u32.to_le_bytes());
    blob
}

fn chunked(members: &[Member]) -> Packed {
    let mut writer = LayerWriter::new(Vec::new(), 1).unwrap();
    for member in members {
        writer
            .append(&member.entry, &mut &member.content[..])
            .unwrap();
    }
    let (bytes, written) = writer.finish().unwrap();
    Packed {
        bytes,
        media_type: zstd_chunked::MEDIA_TYPE,
        annotations: written.annotations,
        diff_id: written.diff_id,
    }
}

/// The name that images have for this machine's processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn config(architecture: &str, layers: &[Packed]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Labels": {"made": "by a test"}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// An OCI layout in a directory; it grows by images.
pub struct Layout {
    path: PathBuf,
    manifests: Vec<Value>,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Layout {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            path,
            manifests: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to call one of its images on the command line.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path.display())
    }

    /// Adds an image of these layers, bottom first; gives its manifest's digest.
    pub fn add(&mut self, tag: &str, layers: &[Packed]) -> Digest {
        let described = self.manifest(architecture(), layers);
        self.named(tag, described)
    }

    /// Adds an image of gzip layers with a SOCI index: one that the image names, or one that is attached to it and found
    /// under the tag that stands for a registry's answer.
    pub fn add_soci(&mut self, tag: &str, layers: &[Packed], version: soci::Version) -> Digest {
        self.add_soci_with(tag, layers, version, |layer| (ztoc(layer), None))
    }

    /// The same with the zTOC that `part` makes of each layer, and with what it says is worth fetching ahead.
    pub fn add_soci_with(
        &mut self,
        tag: &str,
        layers: &[Packed],
        version: soci::Version,
        part: impl Fn(&Packed) -> (Vec<u8>, Option<&'static str>),
    ) -> Digest {
        let mut ztocs = Vec::new();
        let mut prefetches = Vec::new();
        for layer in layers {
            let (ztoc, prefetch) = part(layer);
            let ztoc = self.blob(soci::ZTOC, &ztoc);
            let layer = self.blob(layer.media_type, &layer.bytes);
            if let Some(prefetch) = prefetch {
                let mut prefetch = self.blob(soci::PREFETCH, prefetch.as_bytes());
                prefetch["annotations"] = json!({soci::LAYER_DIGEST: layer["digest"]});
                prefetches.push(prefetch);
            }
            let [layer, ztoc] = [layer, ztoc].map(|it| serde_json::from_value(it).unwrap());
            ztocs.push((layer, ztoc));
        }
        let ztocs: Vec<_> = ztocs
            .iter()
            .map(|(layer, ztoc): &(Descriptor, Descriptor)| (layer, ztoc.clone()))
            .collect();
        self.blob("", b"{}");
        if version == soci::Version::V2 {
            let mut index = soci::index_manifest(version, None, &ztocs);
            index["layers"].as_array_mut().unwrap().extend(prefetches);
            let index = self.blob(MANIFEST, index.to_string().as_bytes());
            let annotations = json!({soci::INDEX_DIGEST: index["digest"]});
            let described = self.annotated_manifest(architecture(), layers, annotations);
            self.manifests.push(index);
            return self.named(tag, described);
        }
        let image = self.manifest(architecture(), layers);
        let subject: Descriptor = serde_json::from_value(image.clone()).unwrap();
        let mut index = soci::index_manifest(version, Some(&subject), &ztocs);
        index["layers"].as_array_mut().unwrap().extend(prefetches);
        let mut index = self.blob(MANIFEST, index.to_string().as_bytes());
        index["artifactType"] = json!(soci::INDEX_V1);
        let referrers = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});
        let referrers = self.blob(INDEX, referrers.to_string().as_bytes());
        self.manifests.push(index);
        let subject = subject.digest.to_string().replace(':', "-");
        self.named(&subject, referrers);
        self.named(tag, image)
    }

    /// Adds an index of one image for each architecture.
    pub fn add_index(&mut self, tag: &str, images: &[(&str, &[Packed])]) -> Digest {
        let described = |(architecture, layers): &(&str, &[Packed])| {
            let mut described = self.manifest(architecture, layers);
            described["platform"] = json!({"os": "linux", "architecture": architecture});
            described
        };
        let images: Vec<Value> = images.iter().map(described).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": images});
        let described = self.blob(INDEX, index.to_string().as_bytes());
        self.named(tag, described)
    }

    fn named(&mut self, tag: &str, mut described: Value) -> Digest {
        let digest = described["digest"].as_str().unwrap().parse().unwrap();
        described["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(described);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
        digest
    }

    fn manifest(&self, architecture: &str, layers: &[Packed]) -> Value {
        self.annotated_manifest(architecture, layers, json!({}))
    }

    fn annotated_manifest(
        &self,
        architecture: &str,
        layers: &[Packed],
        annotations: Value,
    ) -> Value {
        let config = config(architecture, layers).to_string();
        let described = |layer: &Packed| {
            let mut described = self.blob(layer.media_type, &layer.bytes);
            if !layer.annotations.is_empty() {
                described["annotations"] = json!(layer.annotations);
            }
            described
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob("application/vnd.oci.image.config.v1+json", config.as_bytes()),
            "layers": layers.iter().map(described).collect::<Vec<_>>(),
            "annotations": annotations,
        });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// The whole layout as one tar.
    pub fn archived(&self, file: &Path) {
        let mut builder = tar::Builder::new(fs::File::create(file).unwrap());
        builder.append_dir_all(".", &self.path).unwrap();
        builder.finish().unwrap();
    }
}

/// The zTOC of a gzip layer, with spans of 64 KiB.
pub fn ztoc(layer: &Packed) -> Vec<u8> {
    let blueprint = Blueprint {
        layer: Digest::of(&layer.bytes),
        packed_len: layer.bytes.len() as u64,
        diff_id: layer.diff_id,
    };
    let indexed = soci::indexed(
        blueprint,
        &layer.bytes[..],
        64 << 10,
        true,
        &std::env::temp_dir(),
    );
    indexed.unwrap().ztoc.unwrap()
}

/// An image as `docker save` writes it; its layers must be plain tars.
pub fn docker_archive(file: &Path, name: &str, layers: &[Packed]) {
    let mut builder = tar::Builder::new(fs::File::create(file).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let config = config(architecture(), layers).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    add(&config_name, config.as_bytes());
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", layer.diff_id.hex());
        add(&name, &layer.bytes);
        names.push(name);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    builder.finish().unwrap();
}
