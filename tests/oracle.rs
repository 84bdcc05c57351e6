//! Our files under the original programs. Runs when `SIFON_ORACLE` names the root directory of a system on which
//! Apptainer, containerd and SOCI are installed; they are then run with that directory as their root, Apptainer as uid 1000.

// clippy sees test functions only, not what they share.
#![allow(clippy::unwrap_used)]

#[path = "oracle/enter.rs"]
mod enter;
#[path = "oracle/sif.rs"]
mod sif;
#[path = "../mount/tests/support/mod.rs"]
mod support;

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sifon::pack::node::{Content, PackKind, PackNode, Source, Standing};
use sifon::pack::singularity::{Config, Origin};
use sifon::pack::{Compression, Options, pack};
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::Timestamp;
use support::namespace;
use support::real::RealRegistry;

/// The original program, and a directory that it and we can write.
struct Oracle {
    root: PathBuf,
    shared: tempfile::TempDir,
}

impl Oracle {
    fn new() -> Option<Self> {
        let root = enter::root()?;
        let shared = tempfile::tempdir().unwrap();
        std::fs::set_permissions(shared.path(), PermissionsExt::from_mode(0o777)).unwrap();
        Some(Self { root, shared })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = enter::inside(&self.root, self.shared.path());
        command.args(args).stdin(Stdio::null());
        command
    }

    fn try_run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.try_run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Packs a small image into `name`.
    fn pack(&self, name: &str, image: &Image, config: &Config, compression: Compression) {
        let origin = Origin {
            bootstrap: "docker".into(),
            from: "example.org/busybox:1".into(),
            manifest: None,
        };
        let options = Options {
            compression,
            ..Options::default()
        };
        let out = self.shared.path().join(name);
        pack(
            image,
            &[Digest::of(b"busybox")],
            config,
            &origin,
            &out,
            options,
        )
        .unwrap();
    }
}

/// Files by path, directories made as needed.
struct Image(Vec<(Vec<u8>, PackKind)>);

impl Image {
    fn busybox() -> Self {
        let program = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find_map(|path| std::fs::read(path).ok())
            .expect("busybox-static is installed where the original program is tried");
        let mut image = Self(vec![(Vec::new(), PackKind::Directory)]);
        image.add("bin", PackKind::Directory);
        image.file("bin/busybox", &program);
        for name in [
            "cat", "echo", "env", "id", "ls", "printf", "sh", "stat", "test",
        ] {
            image.link(&format!("bin/{name}"), "busybox");
        }
        image.add("etc", PackKind::Directory);
        image.link("etc/resolv.conf", "/tmp/never-opened");
        image.file("etc/text", b"text of the image\n");
        image
    }

    fn add(&mut self, path: &str, kind: PackKind) {
        self.0.push((path.into(), kind));
        self.0
            .sort_by(|one, other| sifon::pack::path::walk_order(&one.0, &other.0));
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        let size = bytes.len() as u64;
        let content = Content::Here(bytes.into());
        self.add(path, PackKind::Regular { size, content });
    }

    fn link(&mut self, path: &str, target: &str) {
        let target = target.into();
        self.add(path, PackKind::Symlink { target });
    }
}

impl Source for Image {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        Box::new(self.0.iter().map(|(path, kind)| {
            Ok(PackNode {
                path: path.clone(),
                kind: kind.clone(),
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: Timestamp {
                    secs: 1_600_000_000,
                    nanos: 0,
                },
                xattrs: Vec::new(),
                linked: None,
            })
        }))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        let found = self.0.iter().find(|(there, _)| there == path);
        Ok(found.map(|(_, kind)| match kind {
            PackKind::Directory => Standing::Directory,
            PackKind::Symlink { target } => Standing::Symlink(target.clone()),
            _ => Standing::File,
        }))
    }

    fn read(&self, _: u64, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("all contents are in the nodes"))
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn config() -> Config {
    Config {
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            other => other.into(),
        },
        created: 1_700_000_000,
        entrypoint: words(&["/bin/printf", "[%s]"]),
        cmd: words(&["$HOME `id`", "it's"]),
        env: words(&[
            "PATH=/bin:/image",
            "QUOTED=it's \"$HOME\" `id`\nline",
            "EMPTY=",
            "KEPT=image",
        ]),
        labels: [("maintainer".to_owned(), "somebody".to_owned())].into(),
        oci_config: serde_json::json!({"Entrypoint": ["/bin/printf", "[%s]"]}),
    }
}

#[test]
fn a_directory_is_copied_as_by_apptainer() {
    let Some(oracle) = Oracle::new() else { return };
    let made = "mkdir -p old/bin old/etc old/open && cd old && echo hi >etc/file && ln etc/file bin/same &&
        ln -s /etc abs && mkfifo fifo && chmod 711 etc/file && chmod 2775 open && chmod 1777 bin &&
        touch -d 2001-02-03 etc/file open";
    oracle.run(&["sh", "-c", made]);
    oracle.run(&["apptainer", "build", "--sandbox", "theirs", "old"]);
    let copied = Command::new(env!("CARGO_BIN_EXE_sifon"))
        .args(["build", "--sandbox", "ours", "old"])
        .env("SIFON_STORE", oracle.shared.path().join("store"))
        .current_dir(oracle.shared.path())
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    // What is added is dated when it is added, and its texts are not Apptainer's. One of its files is there for images with a
    // configuration only.
    let listed = |name: &str| {
        let list = "cd $0 && find . ! -name 10-docker2singularity.sh -printf '%P %y %m %U %G %n %l\\n' | sort &&
            stat -c %Y etc/file open && cat etc/file";
        oracle.run(&["sh", "-c", list, name])
    };
    assert_eq!(listed("ours"), listed("theirs"));
    // And it can be copied on.
    oracle.run(&["apptainer", "build", "--sandbox", "again", "ours"]);
}

#[test]
fn apptainer_runs_what_we_packed() {
    let Some(oracle) = Oracle::new() else { return };
    for compression in [Compression::default(), Compression::Gzip(6)] {
        let name = format!("{compression:?}.sif");
        oracle.pack(&name, &Image::busybox(), &config(), compression);
        let exec = |args: &[&str]| oracle.run(&[&["apptainer", "exec", &name], args].concat());
        assert_eq!(exec(&["cat", "/etc/text"]), "text of the image\n");
        let quoted = exec(&["sh", "-c", "printf '%s\\n' \"$QUOTED\""]);
        assert_eq!(quoted, "it's \"$HOME\" `id`\nline\n");
        let run = |args: &[&str]| oracle.run(&[&["apptainer", "run", &name], args].concat());
        assert_eq!(run(&[]), "[$HOME `id`][it's]");
        assert_eq!(run(&["$HOME", "b c"]), "[/home/user][b c]");
        assert_eq!(exec(&["sh", "-c", "exit 0"]), "");
        let status = oracle
            .try_run(&["apptainer", "exec", &name, "sh", "-c", "exit 42"])
            .status;
        assert_eq!(status.code(), Some(42));
    }
}

/// What Apptainer's own tests look for in each image that they pulled.
#[test]
fn a_packed_image_has_what_every_pulled_image_has() {
    let Some(oracle) = Oracle::new() else { return };
    oracle.pack(
        "x.sif",
        &Image::busybox(),
        &config(),
        Compression::default(),
    );
    for (test, path) in [
        ("-f", "/.singularity.d/runscript"),
        ("-f", "/.singularity.d/env/01-base.sh"),
        ("-f", "/.singularity.d/actions/shell"),
        ("-f", "/.singularity.d/actions/exec"),
        ("-f", "/.singularity.d/actions/run"),
        ("-L", "/environment"),
        ("-L", "/singularity"),
        ("-x", "/singularity"),
        ("-d", "/var/tmp"),
    ] {
        oracle.run(&["apptainer", "exec", "x.sif", "test", test, path]);
    }
}

#[test]
fn an_image_without_a_shell_runs_too() {
    let Some(oracle) = Oracle::new() else { return };
    let mut image = Image::busybox();
    image.0.retain(|(path, _)| path != b"bin/sh");
    oracle.pack("x.sif", &image, &config(), Compression::default());
    assert_eq!(oracle.run(&["apptainer", "run", "x.sif", "a b"]), "[a b]");
    let output = oracle.run(&["apptainer", "run", "--no-eval", "x.sif", "$HOME"]);
    assert_eq!(output, "[$HOME]");
}

#[test]
fn inspect_shows_what_we_wrote() {
    let Some(oracle) = Oracle::new() else { return };
    oracle.pack(
        "x.sif",
        &Image::busybox(),
        &config(),
        Compression::default(),
    );
    let inspect = |option: &str| oracle.run(&["apptainer", "inspect", option, "x.sif"]);
    assert!(inspect("--labels").contains("maintainer: somebody\n"));
    assert!(inspect("--deffile").contains("bootstrap: docker\nfrom: example.org/busybox:1\n"));
    assert!(inspect("--runscript").contains("\neval \"set ${SINGULARITY_OCI_RUN}\"\n"));
    assert!(inspect("--environment").contains("export PATH='/bin:/image'"));
    assert!(inspect("--startscript").starts_with("#!/bin/sh"));
    inspect("--test");
    inspect("--helpfile");
    inspect("--list-apps");
    inspect("--all");
    let json: Value =
        serde_json::from_str(&oracle.run(&["apptainer", "inspect", "--json", "--labels", "x.sif"]))
            .unwrap();
    assert_eq!(json["type"], "container");
    let labels = &json["data"]["attributes"]["labels"];
    assert_eq!(labels["org.label-schema.schema-version"], "1.0");
    let list = oracle.run(&["apptainer", "sif", "list", "x.sif"]);
    for part in ["Def.FILE", "JSON.Generic", "FS (Squashfs/*System/"] {
        assert!(list.contains(part), "{list}");
    }
    oracle.run(&["apptainer", "sif", "header", "x.sif"]);
}

#[test]
fn a_packed_image_can_be_signed() {
    let Some(oracle) = Oracle::new() else { return };
    oracle.pack(
        "x.sif",
        &Image::busybox(),
        &config(),
        Compression::default(),
    );
    let file = oracle.shared.path().join("x.sif");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o777)).unwrap();
    oracle.run(&[
        "openssl",
        "genpkey",
        "-algorithm",
        "ed25519",
        "-out",
        "key.pem",
    ]);
    oracle.run(&[
        "openssl",
        "pkey",
        "-in",
        "key.pem",
        "-pubout",
        "-out",
        "public.pem",
    ]);
    let unsigned = oracle.try_run(&["apptainer", "verify", "--key", "public.pem", "x.sif"]);
    assert_eq!(unsigned.status.code(), Some(255));
    oracle.run(&["apptainer", "sign", "--key", "key.pem", "x.sif"]);
    oracle.run(&["apptainer", "verify", "--key", "public.pem", "x.sif"]);
    assert_eq!(
        oracle.run(&["apptainer", "run", "x.sif", "signed"]),
        "[signed]"
    );
}

/// With containerd for the image and SOCI's store for what we pushed, all of it in memory, runs SOCI's commands. Its store
/// is the directory `content`; `image` is the reference.
const WITH_SOCI: &str = r#"
set -e
image=$1; shift
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir -p /var/lib/soci-snapshotter-grpc
cp -r content /var/lib/soci-snapshotter-grpc/content
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >/run/containerd.toml
containerd -c /run/containerd.toml >/dev/null 2>/run/log & server=$!
trap 'kill $server; wait $server' EXIT
tries=0
until ctr version >/dev/null 2>&1; do
    tries=$((tries + 1))
    test $tries -lt 300 || { cat /run/log >&2; exit 1; }
    sleep 0.1
done
ctr content fetch --plain-http "$image" >/dev/null
soci rebuild-db >/dev/null
eval "$1"
"#;

/// A layer of files among which one is large, with blocks that end often.
fn gzip_layer(large: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("etc/first", &b"first"[..]),
        ("usr/large", large),
        ("usr/last", b"last"),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    let plain = builder.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).unwrap();
    (plain, encoder.finish().unwrap())
}

#[test]
fn soci_reads_files_by_what_we_pushed() {
    let Some(oracle) = Oracle::new() else { return };
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let large: Vec<u8> = (0..900_000u32)
        .flat_map(|n| n.wrapping_mul(n).to_le_bytes())
        .collect();
    let (plain, layer) = gzip_layer(&large);
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&plain)]}});
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    registry.push_image(
        "some/image",
        "v1",
        config.to_string().as_bytes(),
        &[(&layer, kind)],
    );
    let image = format!("{}/some/image:v1", registry.address());

    let store = tempfile::tempdir().unwrap();
    let pushed = Command::new(env!("CARGO_BIN_EXE_sifon"))
        .args([
            "index",
            "--push",
            "--json",
            "--spacing",
            "256K",
            "--arch",
            "amd64",
        ])
        .arg(format!("docker://{image}"))
        .env("SIFON_STORE", store.path())
        .output()
        .unwrap();
    assert!(pushed.status.success(), "{pushed:?}");
    let pushed: Value = serde_json::from_slice(&pushed.stdout).unwrap();
    let index = pushed["pushed"]["index"].as_str().unwrap();
    let ztoc = stored_by_soci(&registry, index, oracle.shared.path());

    let soci = |commands: &str| {
        let words = ["sh", "-c", WITH_SOCI, "sh", &image, commands];
        let output = oracle.command(&words).env("BECOME", "").output().unwrap();
        assert!(output.status.success(), "{commands}: {output:?}");
        output.stdout
    };
    let listed = String::from_utf8(soci("soci index list; soci ztoc list")).unwrap();
    for word in [index, &image, &ztoc, "linux/amd64"] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let shown: Value = serde_json::from_slice(&soci(&format!("soci index info {index}"))).unwrap();
    assert_eq!(shown["layers"][0]["digest"], ztoc.as_str());
    let told = String::from_utf8(soci(&format!("soci ztoc info {ztoc}"))).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["num_files"], 3, "{told}");
    assert!(
        told["num_spans"].as_u64().unwrap() > 3,
        "{}",
        told["num_spans"]
    );
    for (name, bytes) in [
        ("etc/first", &b"first"[..]),
        ("usr/large", &large),
        ("usr/last", b"last"),
    ] {
        let read = soci(&format!(
            "soci ztoc get-file -o /run/file {ztoc} {name}; cat /run/file"
        ));
        assert!(read == bytes, "{name}: {} bytes", read.len());
    }
}

/// Fetches an index into `content`, SOCI's store, below a directory; gives the digest of its only zTOC.
fn stored_by_soci(registry: &RealRegistry, index: &str, directory: &Path) -> String {
    let blobs = directory.join("content/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let fetch = |kind: &str, digest: &str| {
        let path = format!("/v2/some/image/{kind}/{digest}");
        let accept = ("Accept", "application/vnd.oci.image.manifest.v1+json");
        let answer =
            support::http::asked(registry.address(), "GET", &path, &[accept], b"").unwrap();
        assert_eq!(answer.second(), "200", "{path}");
        let name = digest.strip_prefix("sha256:").unwrap();
        std::fs::write(blobs.join(name), &answer.body).unwrap();
        answer.body
    };
    let manifest: Value = serde_json::from_slice(&fetch("manifests", index)).unwrap();
    fetch("blobs", manifest["config"]["digest"].as_str().unwrap());
    let ztocs = manifest["layers"].as_array().unwrap();
    assert_eq!(ztocs.len(), 1);
    let ztoc = ztocs[0]["digest"].as_str().unwrap();
    fetch("blobs", ztoc);
    let content = directory.join("content");
    std::fs::write(
        content.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    std::fs::write(
        content.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .unwrap();
    ztoc.to_owned()
}

#[test]
fn sifs_go_through_a_registry_both_ways() {
    let Some(oracle) = Oracle::new() else { return };
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    oracle.pack("x.sif", &Image::busybox(), &config(), Compression::Gzip(6));
    let file = |name: &str| std::fs::read(oracle.shared.path().join(name)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let sifon = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sifon"))
            .args(words)
            .current_dir(oracle.shared.path())
            .env("SIFON_STORE", home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let ours = format!("oras://{}/ours/x:1", registry.address());
    sifon(&["push", "x.sif", &ours]);
    oracle.run(&["apptainer", "pull", "--no-https", "theirs.sif", &ours]);
    assert!(file("theirs.sif") == file("x.sif"));

    let theirs = format!("oras://{}/theirs/x:1", registry.address());
    oracle.run(&["apptainer", "push", "--no-https", "x.sif", &theirs]);
    sifon(&["pull", "ours.sif", &theirs]);
    assert!(file("ours.sif") == file("x.sif"));
    let told: Value = serde_json::from_str(&sifon(&["inspect", "--json", &theirs])).unwrap();
    assert_eq!(told["layers"][0]["format"], "squashfs");

    // What both wrote says the same.
    let manifest = |name: &str| -> Value {
        let path = format!("/v2/{name}/x/manifests/1");
        let accept = ("Accept", "application/vnd.oci.image.manifest.v1+json");
        let answer = support::http::asked(registry.address(), "GET", &path, &[accept], b"");
        serde_json::from_slice(&answer.unwrap().body).unwrap()
    };
    assert_eq!(manifest("ours"), manifest("theirs"));
}
