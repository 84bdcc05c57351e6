//! Image configurations as values. Bytes in, values out.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::manifest::{ManifestError, or_default};
use crate::digest::Digest;

/// Configurations are never longer.
pub const CONFIG_BYTES_LIMIT: usize = 8 << 20;

/// What an image says about running it.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// As the builder wrote it; empty where it is missing.
    pub architecture: String,
    /// As the builder wrote it; empty where it is missing.
    pub os: String,
    /// Digests of the layers' tar streams, bottom first.
    pub diff_ids: Vec<Digest>,
    /// What always runs.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program if there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`, by name or number; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// Free text for people and tools.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`, …
    pub exposed_ports: Vec<String>,
    /// Directories that were meant to be mounted.
    pub volumes: Vec<String>,
    /// When it was built, as RFC 3339.
    pub created: Option<String>,
    /// The bytes all this was read from.
    pub json: Bytes,
}

impl ImageConfig {
    /// Reads an image configuration; fields that are missing or null are empty.
    pub fn parse(json: Bytes) -> Result<Self, ManifestError> {
        let raw: RawConfig = serde_json::from_slice(&json)
            .map_err(|error| ManifestError::malformed("the configuration", error))?;
        let run = raw.config.unwrap_or_default();
        Ok(Self {
            architecture: raw.architecture,
            os: raw.os,
            diff_ids: raw.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default(),
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            user: run.user,
            working_dir: run.working_dir,
            labels: run.labels,
            exposed_ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            created: raw.created,
            json,
        })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    created: Option<String>,
    config: Option<RawRun>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    #[serde(deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, Value>,
}

/// A list, or as old builders wrote it, one word.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_may_leave_out_what_is_empty() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}},
               "config":{{"Entrypoint":null,"Cmd":"sh","Env":["A=b"],"ExposedPorts":{{"80/tcp":{{}}}},"Labels":null}}}}"#,
            Digest::of(b"plain")
        );
        let config = ImageConfig::parse(text.into()).unwrap();
        assert_eq!(config.diff_ids.len(), 1);
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.env, ["A=b"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert!(config.entrypoint.is_empty() && config.labels.is_empty());
        assert!(ImageConfig::parse("{}".into()).unwrap().diff_ids.is_empty());
        assert!(ImageConfig::parse("nonsense".into()).is_err());
    }
}
