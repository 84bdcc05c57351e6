//! Small images: a busybox and what a test adds, as an OCI layout in a directory.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sifon_mount::digest::Digest;
use tempfile::TempDir;

/// Where Debian's busybox-static puts a program that needs no libraries.
const BUSYBOX: &str = "/bin/busybox";

/// Names under which busybox is called in tests.
const APPLETS: [&str; 16] = [
    "sh", "cat", "ls", "id", "env", "pwd", "echo", "kill", "stat", "test", "touch", "sleep",
    "readlink", "mkdir", "true", "false",
];

/// An image that is being made.
pub struct ImageBuilder {
    layer: tar::Builder<Vec<u8>>,
    config: Value,
}

/// An image in a directory of its own, gone with the value.
pub struct Image(TempDir);

impl ImageBuilder {
    /// Busybox in /bin, an /etc/passwd and an /etc/group with root only, and nothing else; none if
    /// this machine has no busybox.
    pub fn new() -> Option<Self> {
        let mut image = Self::empty()?;
        image.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644);
        image.file("etc/group", b"root:x:0:\n", 0o644);
        Some(image)
    }

    /// Busybox in /bin, and nothing else.
    pub fn empty() -> Option<Self> {
        Self::with_applets(&APPLETS)
    }

    /// The same without a shell.
    pub fn without_shell() -> Option<Self> {
        Self::with_applets(&APPLETS[1..])
    }

    fn with_applets(names: &[&str]) -> Option<Self> {
        let Ok(busybox) = fs::read(BUSYBOX) else {
            eprintln!("skipped: {BUSYBOX} is missing (Debian package busybox-static)");
            return None;
        };
        let mut image = Self {
            layer: tar::Builder::new(Vec::new()),
            config: json!({}),
        };
        image.file("bin/busybox", &busybox, 0o755);
        for name in names {
            image.link(&format!("bin/{name}"), "busybox");
        }
        Some(image)
    }

    pub fn file(&mut self, path: &str, content: &[u8], mode: u32) {
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.layer.append_data(&mut header, path, content).unwrap();
    }

    pub fn directory(&mut self, path: &str, mode: u32) {
        let mut header = header(tar::EntryType::Directory, mode);
        self.layer.append_data(&mut header, path, &[][..]).unwrap();
    }

    pub fn device(&mut self, path: &str, kind: tar::EntryType, (major, minor): (u32, u32)) {
        let mut header = header(kind, 0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.layer.append_data(&mut header, path, &[][..]).unwrap();
    }

    pub fn link(&mut self, path: &str, target: &str) {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        self.layer.append_link(&mut header, path, target).unwrap();
    }

    /// Sets a key of the configuration's `config` object.
    pub fn config(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    pub fn finish(self) -> Image {
        let directory = TempDir::new().unwrap();
        readable_for_all(directory.path());
        let blobs = directory.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            digest
        };
        let layer = self.layer.into_inner().unwrap();
        let layer_digest = blob(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }))
        .unwrap();
        let config_digest = blob(&config);
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer_digest,
                "size": layer.len(),
            }],
        }))
        .unwrap();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": blob(&manifest),
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }],
        });
        let root = directory.path();
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(root.join("index.json"), index.to_string()).unwrap();
        Image(directory)
    }
}

impl Image {
    /// The layout.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// What to call it on the command line.
    pub fn reference(&self) -> String {
        format!("oci:{}:latest", self.0.path().display())
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header
}

/// Temporary directories are their owner's alone; a test's other user must read this one.
pub fn readable_for_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}
