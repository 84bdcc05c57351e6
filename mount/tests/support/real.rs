//! A real `docker-registry` process, filled through its API.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::http::{Message, asked};

/// `user` with the password `secret`, as `htpasswd -Bbn` prints it.
const HTPASSWD: &str = "user:$2b$04$/6jx7lh2ml6FvT5vBVtJuOUdbrsdo79jqeR6saxvlN49tFQM2OW62\n";
pub const USERNAME: &str = "user";
pub const PASSWORD: &str = "secret";

/// Runs until it is dropped; its data goes with it.
pub struct RealRegistry {
    address: String,
    directory: tempfile::TempDir,
    has_users: bool,
    /// Its certificate and key, if it speaks TLS.
    tls: Option<(PathBuf, PathBuf)>,
    /// What the configuration says besides.
    also: String,
    child: Option<Child>,
}

impl RealRegistry {
    /// A registry for everyone on a free port; `None`, with a word about it, if the program is not installed.
    pub fn open() -> Option<Self> {
        Self::start(false)
    }

    /// A registry that wants [`USERNAME`] and [`PASSWORD`].
    pub fn with_users() -> Option<Self> {
        Self::start(true)
    }

    fn start(has_users: bool) -> Option<Self> {
        let mut registry = Self {
            address: "127.0.0.1:0".into(),
            directory: tempfile::tempdir().unwrap(),
            has_users,
            tls: None,
            also: String::new(),
            child: None,
        };
        registry.resume().then_some(registry)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Kills the process; connections to it end, later ones are refused.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Restarts the process with more lines in its configuration, such as those of another way to authenticate.
    pub fn restart_with(&mut self, also: String) {
        self.stop();
        self.also = also;
        assert!(self.resume());
    }

    /// Restarts the process, which speaks nothing but TLS from now on.
    pub fn restart_with_tls(&mut self, certificate: PathBuf, key: PathBuf) {
        self.stop();
        self.tls = Some((certificate, key));
        assert!(self.resume());
    }

    /// Starts the process again on the same port and data; false if it is not installed.
    pub fn resume(&mut self) -> bool {
        let directory = self.directory.path();
        let tls = self.tls.as_ref().map(|(certificate, key)| {
            let (certificate, key) = (certificate.display(), key.display());
            format!(", tls: {{certificate: {certificate}, key: {key}}}")
        });
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{}\"{}}}\n",
            directory.join("data").display(),
            self.address,
            tls.unwrap_or_default()
        );
        if self.has_users {
            let users = directory.join("htpasswd");
            std::fs::write(&users, HTPASSWD).unwrap();
            let users = users.display();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {users}}}}}\n"
            ));
        }
        config.push_str(&self.also);
        let file = directory.join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: docker-registry is not installed");
            return false;
        };
        let mut log = BufReader::new(child.stderr.take().unwrap());
        self.child = Some(child);
        self.address = loop {
            let mut line = String::new();
            assert_ne!(
                log.read_line(&mut line).unwrap(),
                0,
                "docker-registry ended"
            );
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest
                    .split(['"', ' ', ','])
                    .next()
                    .unwrap()
                    .trim()
                    .to_owned();
            }
        };
        // It must never wait for somebody to read what it logs.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        true
    }

    /// Pushes the images of an OCI layout directory, each under its tag; those without a tag by digest only.
    pub fn push_layout(&self, repository: &str, layout: &Path) {
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        for entry in index["manifests"].as_array().unwrap() {
            let digest = entry["digest"].as_str().unwrap();
            let tag = entry["annotations"]["org.opencontainers.image.ref.name"].as_str();
            let blob = |digest: &str| std::fs::read(blob_path(layout, digest)).unwrap();
            let kind = entry["mediaType"].as_str().unwrap();
            self.push_document(repository, tag.unwrap_or(digest), digest, kind, &blob);
        }
    }

    fn push_document(
        &self,
        repository: &str,
        name: &str,
        digest: &str,
        kind: &str,
        blob: &dyn Fn(&str) -> Vec<u8>,
    ) {
        let bytes = blob(digest);
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        for entry in document["manifests"].as_array().into_iter().flatten() {
            let digest = entry["digest"].as_str().unwrap();
            let kind = entry["mediaType"].as_str().unwrap();
            self.push_document(repository, digest, digest, kind, blob);
        }
        let layers = document["layers"].as_array().into_iter().flatten();
        for entry in layers.chain(document.get("config")) {
            self.push_blob(repository, &blob(entry["digest"].as_str().unwrap()));
        }
        self.push_manifest(repository, name, kind, &bytes);
    }

    /// Pushes a blob; gives its digest.
    pub fn push_blob(&self, repository: &str, content: &[u8]) -> String {
        let digest = digest_of(content);
        let start = self.ask(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            &[],
            b"",
        );
        assert_eq!(start.second(), "202", "{start:?}");
        let location = start.header("location").unwrap();
        let path = &location[location.find("/v2/").unwrap()..];
        let joint = if path.contains('?') { '&' } else { '?' };
        let kind = ("Content-Type", "application/octet-stream");
        let end = self.ask(
            "PUT",
            &format!("{path}{joint}digest={digest}"),
            &[kind],
            content,
        );
        assert_eq!(end.second(), "201", "{end:?}");
        digest
    }

    /// Pushes a manifest or index under a tag or its digest; gives its digest.
    pub fn push_manifest(
        &self,
        repository: &str,
        name: &str,
        kind: &str,
        content: &[u8],
    ) -> String {
        let path = format!("/v2/{repository}/manifests/{name}");
        let answer = self.ask("PUT", &path, &[("Content-Type", kind)], content);
        assert_eq!(
            answer.second(),
            "201",
            "{answer:?} {}",
            String::from_utf8_lossy(&answer.body)
        );
        digest_of(content)
    }

    /// Pushes an image of these layers (content, media type) under a tag; gives its manifest's digest.
    pub fn push_image(
        &self,
        repository: &str,
        tag: &str,
        config: &[u8],
        layers: &[(&[u8], &str)],
    ) -> String {
        let described = |content: &[u8], kind: &str| {
            let digest = self.push_blob(repository, content);
            serde_json::json!({"mediaType": kind, "digest": digest, "size": content.len()})
        };
        let layers: Vec<_> = layers
            .iter()
            .map(|(content, kind)| described(content, kind))
            .collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        });
        self.push_manifest(repository, tag, kind, manifest.to_string().as_bytes())
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Message {
        let engine = base64::engine::general_purpose::STANDARD;
        let basic = format!("Basic {}", engine.encode(format!("{USERNAME}:{PASSWORD}")));
        let mut headers = headers.to_vec();
        if self.has_users {
            headers.push(("Authorization", &basic));
        }
        asked(&self.address, method, path, &headers, body).unwrap()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

pub fn digest_of(content: &[u8]) -> String {
    format!(
        "sha256:{}",
        data_encoding::HEXLOWER.encode(&Sha256::digest(content))
    )
}
