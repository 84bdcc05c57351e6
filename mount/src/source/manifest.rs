//! Manifests and image indexes as values. Bytes in, values out.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::registry::Platform;

/// No blob is larger (1 TiB); a descriptor that says so is damaged.
pub const BLOB_BYTES_LIMIT: u64 = 1 << 40;

/// More layers than any storage driver stacks.
const LAYERS_LIMIT: usize = 4096;

/// What stands under a manifest's digest.
#[expect(clippy::large_enum_variant, reason = "there are one or two per image")]
#[derive(Clone, Debug)]
pub enum Document {
    /// Several builds to choose from.
    Index(Index),
    /// One image, or something else that is stored as one.
    Manifest(Manifest),
}

/// An image index, or a Docker manifest list.
#[derive(Clone, Debug)]
pub struct Index {
    /// The entries that could be read; others use digests or fields from a future that we do not know.
    pub manifests: Vec<Descriptor>,
    /// Annotations of the index itself.
    pub annotations: BTreeMap<String, String>,
}

/// An image manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Empty where the manifest does not say.
    pub media_type: String,
    /// What it is a manifest of, when that is not an image.
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// The manifest that it says something about, when it is not an image.
    pub subject: Option<Descriptor>,
    /// Annotations of the manifest itself.
    pub annotations: BTreeMap<String, String>,
}

/// Points at a blob or another manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Empty where it was missing.
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length in bytes, at most [`BLOB_BYTES_LIMIT`].
    #[serde(deserialize_with = "blob_size")]
    pub size: u64,
    /// Free text under reverse domain names.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Set when it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Which machines it is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<OfferedPlatform>,
}

/// The platform of an entry, with what only indexes say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPlatform {
    /// System, architecture, variant.
    #[serde(flatten)]
    pub platform: Platform,
    /// What a machine must be able to do beyond that.
    #[serde(
        default,
        rename = "os.features",
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
}

/// Why bytes are no manifest, or none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not what the specification says.
    #[error("{what} cannot be read: {problem}")]
    Malformed {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Where it went wrong.
        problem: String,
    },
    /// It is something else than an image.
    #[error("not a container image but {what}")]
    NotAnImage {
        /// Its type, and in words where we know it.
        what: String,
        /// How to get at it, where we know that.
        hint: Option<&'static str>,
    },
    /// It is something else than a SIF.
    #[error("not a SIF but {what}")]
    NotAFile {
        /// What it is, in words where we know it.
        what: String,
        /// How to get at it, where we know that.
        hint: Option<&'static str>,
    },
    /// There is no build for this machine.
    #[error("no image for {wanted}; there are {offered}")]
    NoPlatform {
        /// What was looked for.
        wanted: String,
        /// What there is, separated by commas.
        offered: String,
    },
}

impl ManifestError {
    pub(super) fn malformed(what: &'static str, problem: impl ToString) -> Self {
        let problem = problem.to_string();
        Self::Malformed { what, problem }
    }
}

impl Document {
    /// Reads an OCI manifest or index, or Docker's schema 2 of either.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: RawDocument = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::malformed("the manifest", error))?;
        if raw.schema_version == Some(1) {
            return Err(ManifestError::NotAnImage {
                what: "an image in Docker's schema 1, which nobody writes since 2017".into(),
                hint: Some("pull it with an old Docker and push it again"),
            });
        }
        let annotations = raw.annotations;
        match (raw.manifests, raw.config) {
            (Some(entries), None) => Ok(Self::Index(Index {
                manifests: entries
                    .into_iter()
                    .filter_map(|entry| serde_json::from_value(entry).ok())
                    .collect(),
                annotations,
            })),
            (None, Some(config)) => {
                let layers = raw.layers.unwrap_or_default();
                if layers.len() > LAYERS_LIMIT {
                    let problem = format!("it has {} layers", layers.len());
                    return Err(ManifestError::malformed("the manifest", problem));
                }
                Ok(Self::Manifest(Manifest {
                    media_type: raw.media_type,
                    artifact_type: raw.artifact_type,
                    config,
                    layers,
                    subject: raw.subject,
                    annotations,
                }))
            }
            (Some(_), Some(_)) => Err(ManifestError::malformed(
                "the manifest",
                "it claims to be both an index and an image",
            )),
            (None, None) => Err(ManifestError::malformed(
                "the manifest",
                "it has neither a config nor manifests",
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "or_default")]
    subject: Option<Descriptor>,
    manifests: Option<Vec<Value>>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

impl Index {
    /// The entry for `wanted`: the best fit among images, the first of equals; one without platform only if it is alone.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let images: Vec<_> = self
            .manifests
            .iter()
            .filter(|entry| entry.is_image())
            .collect();
        let fitting = images.iter().enumerate().filter_map(|(place, entry)| {
            let fit = wanted.fit(&entry.platform.as_ref()?.platform)?;
            Some(((fit, place), *entry))
        });
        if let Some((_, entry)) = fitting.min_by_key(|(rank, _)| *rank) {
            return Ok(entry);
        }
        if let [alone] = images[..]
            && alone.platform.is_none()
        {
            return Ok(alone);
        }
        let foreign = self.manifests.iter().find_map(Descriptor::foreign_format);
        if let (true, Some(format)) = (images.is_empty(), foreign) {
            return Err(ManifestError::NotAnImage {
                what: format!("an image in {format} format alone, which sifon cannot read"),
                hint: Some(
                    "ask its publisher for the plain image, or use the tag that it was converted from",
                ),
            });
        }
        Err(ManifestError::NoPlatform {
            wanted: wanted.to_string(),
            offered: offered(&images),
        })
    }
}

fn offered(images: &[&Descriptor]) -> String {
    let mut names = Vec::new();
    for entry in images {
        let name = match &entry.platform {
            Some(offered) => offered.platform.to_string(),
            None => "one of unknown platform".into(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.is_empty() {
        true => "no images at all".into(),
        false => names.join(", "),
    }
}

impl Descriptor {
    /// Of a blob, with nothing else to say about it.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            annotations: BTreeMap::new(),
            artifact_type: None,
            platform: None,
        }
    }

    /// Whether an index's entry can be an image to run: no artifact, attestation, SOCI index or nydus image.
    pub fn is_image(&self) -> bool {
        let is_document = matches!(
            self.media_type.as_str(),
            "" | "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        );
        let has_artifact_type = self
            .artifact_type
            .as_ref()
            .is_some_and(|kind| !kind.is_empty());
        let is_attached = self.annotations.contains_key("vnd.docker.reference.type")
            || self
                .annotations
                .contains_key("com.amazon.soci.image-manifest-digest");
        let is_for_others = self.platform.as_ref().is_some_and(|offered| {
            offered.platform.os == "unknown"
                || offered
                    .os_features
                    .iter()
                    .any(|feature| feature == "nydus.remoteimage.v1")
        });
        is_document && !has_artifact_type && !is_attached && !is_for_others
    }

    /// The format of an index's entry that is an image, but one that needs another program's file system.
    fn foreign_format(&self) -> Option<&'static str> {
        let features = self
            .platform
            .iter()
            .flat_map(|offered| &offered.os_features);
        let kinds = self.artifact_type.iter().chain(features);
        let names = |format: &&str| kinds.clone().any(|kind| kind.contains(*format));
        ["nydus", "overlaybd"].into_iter().find(names)
    }

    /// Whether it points at an index rather than at a manifest, as far as its media type says.
    pub fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }
}

impl Manifest {
    /// The descriptor of the image's configuration; an error that says what it is when it is not an image.
    pub fn image_config(&self) -> Result<&Descriptor, ManifestError> {
        let kind = self.config.media_type.as_str();
        match kind {
            "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json" => Ok(&self.config),
            _ => Err(not_an_image(kind, self.artifact_type.as_deref())),
        }
    }
}

fn not_an_image(config: &str, artifact_type: Option<&str>) -> ManifestError {
    let kind = match config {
        "" | "application/vnd.oci.empty.v1+json" => artifact_type.unwrap_or(config),
        _ => config,
    };
    let (what, hint) = match kind {
        "application/vnd.sylabs.sif.config.v1+json" => {
            ("a SIF file", Some("write oras:// instead of docker://"))
        }
        "application/vnd.cncf.helm.config.v1+json" => ("a Helm chart", None),
        "application/vnd.docker.plugin.v1+json" => ("a Docker plugin", None),
        "application/vnd.nydus.image.config.v1+json"
        | "application/vnd.nydus.image.manifest.v1+json" => (
            "a nydus image",
            Some("use the tag that it was converted from"),
        ),
        kind if kind.starts_with("application/vnd.amazon.soci.index") => ("a SOCI index", None),
        kind if kind.contains("cosign") || kind.contains("sigstore") => ("a signature", None),
        kind if kind.contains("in-toto") => ("an attestation", None),
        kind if kind.contains("wasm") => ("a WebAssembly module", None),
        _ => ("something else", None),
    };
    ManifestError::NotAnImage {
        what: match kind {
            "" => "something without a type".into(),
            _ => format!("{what} ({:.100})", kind),
        },
        hint,
    }
}

/// Go writes `null` for what is empty.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn blob_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    match size <= BLOB_BYTES_LIMIT {
        true => Ok(size),
        false => Err(serde::de::Error::custom(format!(
            "no blob has {size} bytes"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: u8) -> String {
        format!("sha256:{}", format!("{of:02x}").repeat(32))
    }

    fn entry(of: u8, rest: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":7{rest}}}"#,
            digest(of)
        )
    }

    fn platform(os: &str, architecture: &str, variant: &str) -> String {
        format!(
            r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":{variant}}}"#
        )
    }

    fn index(entries: &[String]) -> Index {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        match Document::parse(text.as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("{text}"),
        }
    }

    fn chosen(entries: &[String], wanted: &Platform) -> Result<u8, ManifestError> {
        let index = index(entries);
        Ok(index.choose(wanted)?.digest.as_bytes()[0])
    }

    #[test]
    fn the_machines_own_build_is_chosen() {
        let entries = [
            entry(1, &platform("windows", "amd64", "null")),
            entry(2, &platform("linux", "arm", "\"v6\"")),
            entry(3, &platform("linux", "arm", "\"v7\"")),
            entry(4, &platform("linux", "amd64", "null")),
            entry(5, &platform("linux", "arm64", "\"v8\"")),
        ];
        for (architecture, variant, expected) in [
            ("amd64", None, 4),
            ("arm64", None, 5),
            ("arm", None, 3),
            ("arm", Some("v7"), 3),
            ("arm", Some("v6"), 2),
        ] {
            let wanted = Platform::linux(architecture, variant);
            assert_eq!(chosen(&entries, &wanted), Ok(expected), "{wanted}");
        }
    }

    #[test]
    fn what_stands_beside_images_is_passed_over() {
        let linux = platform("linux", "amd64", "null");
        let entries = [
            entry(
                1,
                &format!(r#"{linux},"artifactType":"application/vnd.amazon.soci.index.v2+json""#),
            ),
            entry(
                2,
                &format!(
                    r#"{linux},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}"#
                ),
            ),
            entry(3, &platform("unknown", "unknown", "null")),
            entry(
                4,
                r#","platform":{"os":"linux","architecture":"amd64","os.features":["nydus.remoteimage.v1"]}"#,
            ),
            entry(5, &linux),
            entry(6, &linux),
        ];
        assert_eq!(chosen(&entries, &Platform::linux("amd64", None)), Ok(5));
        let error = chosen(&entries[..3], &Platform::linux("amd64", None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no image for linux/amd64; there are no images at all"
        );
    }

    #[test]
    fn the_error_lists_the_platforms_that_there_are() {
        let entries = [
            entry(1, &platform("linux", "arm64", "\"v8\"")),
            entry(2, &platform("linux", "s390x", "null")),
        ];
        let error = chosen(&entries, &Platform::linux("amd64", None)).unwrap_err();
        let text = "no image for linux/amd64; there are linux/arm64/v8, linux/s390x";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn an_entry_without_platform_is_taken_when_it_is_alone() {
        let wanted = Platform::linux("amd64", None);
        assert_eq!(chosen(&[entry(1, "")], &wanted), Ok(1));
        assert!(chosen(&[entry(1, ""), entry(2, "")], &wanted).is_err());
    }

    #[test]
    fn entries_from_the_future_do_not_spoil_an_index() {
        let future = entry(1, "").replace("sha256:", "sha512:");
        let linux = entry(2, &platform("linux", "amd64", "null"));
        assert_eq!(
            chosen(&[future, linux], &Platform::linux("amd64", None)),
            Ok(2)
        );
    }

    fn manifest(config_type: &str, size: &str) -> Result<Document, ManifestError> {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{}","size":{size}}},"layers":[{}],"annotations":null}}"#,
            digest(1),
            entry(2, r#","annotations":{"a":"b"}"#)
        );
        Document::parse(text.as_bytes())
    }

    #[test]
    fn a_manifest_is_read_with_its_annotations() {
        let Ok(Document::Manifest(manifest)) =
            manifest("application/vnd.docker.container.image.v1+json", "12")
        else {
            panic!()
        };
        assert_eq!(manifest.image_config().unwrap().size, 12);
        assert_eq!(manifest.layers[0].annotations["a"], "b");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [
            "-1",
            "1.5",
            "1099511627777",
            "18446744073709551616",
            "\"1\"",
            "null",
        ] {
            assert!(
                manifest("application/vnd.oci.image.config.v1+json", size).is_err(),
                "{size}"
            );
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (kind, name) in [
            ("application/vnd.sylabs.sif.config.v1+json", "a SIF file"),
            ("application/vnd.cncf.helm.config.v1+json", "a Helm chart"),
            ("application/vnd.amazon.soci.index.v1+json", "a SOCI index"),
            ("application/x-own", "something else (application/x-own)"),
        ] {
            let Ok(Document::Manifest(manifest)) = manifest(kind, "2") else {
                panic!()
            };
            let error = manifest.image_config().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        let old = Document::parse(br#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}"#);
        assert!(old.unwrap_err().to_string().contains("schema 1"));
    }

    #[test]
    fn damaged_documents_are_errors() {
        for text in [
            "",
            "[]",
            "{}",
            "null",
            "{\"manifests\":{}}",
            "{\"manifests\":[],\"config\":1}",
        ] {
            assert!(Document::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_in_a_foreign_format_alone_is_named() {
        let nydus = r#","platform":{"os":"linux","architecture":"amd64","os.features":["nydus.remoteimage.v1"]}"#;
        let overlaybd = r#","artifactType":"application/vnd.containerd.overlaybd.native.v1+json","platform":{"os":"linux","architecture":"amd64"}"#;
        let wanted = Platform::linux("amd64", None);
        for (rest, format) in [(nydus, "nydus"), (overlaybd, "overlaybd")] {
            let alone = index(&[entry(1, rest)]);
            let refused = alone.choose(&wanted).unwrap_err().to_string();
            assert!(refused.contains(format), "{refused}");
            let plain = entry(2, &platform("linux", "amd64", "null"));
            let both = index(&[entry(1, rest), plain]);
            assert_eq!(both.choose(&wanted).unwrap().digest.to_string(), digest(2));
        }
    }
}
