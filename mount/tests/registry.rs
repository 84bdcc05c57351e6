//! The registry client and the sources, against a real `docker-registry` and against files.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use sifon_mount::blob::Patience;
use sifon_mount::digest::Digest;
use sifon_mount::extent::PackedOffset;
use sifon_mount::reference::Reference;
use sifon_mount::registry::{Credentials, Platform, Secret, Settings};
use sifon_mount::source::{Source, SourceError};
use support::faulty::{Faulty, Reply};
use support::http::asked;
use support::real::{PASSWORD, RealRegistry, USERNAME, digest_of};

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes that differ everywhere, cheap to make.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..len.div_ceil(4))
        .flat_map(|_| next())
        .take(len)
        .collect()
}

fn settings() -> Settings {
    Settings {
        platform: Platform::linux("amd64", None),
        ..Settings::default()
    }
}

fn open(reference: &str, settings: &Settings) -> Source {
    Source::open(&reference.parse::<Reference>().unwrap(), settings).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Reads the image as a mount would: all of its single layer, and a range of it.
fn layer_of(source: &Source) -> Vec<u8> {
    let image = source.image(source.resolve().unwrap()).unwrap();
    source.config(&image.manifest.config).unwrap();
    let blob = source.blob(&image.manifest.layers[0]);
    let mut content = Vec::new();
    blob.stream().unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(Digest::of(&content), blob.digest());
    let middle = content.len() / 2;
    let range = blob.read(PackedOffset(middle as u64), 100, soon()).unwrap();
    assert_eq!(range, content[middle..middle + 100]);
    content
}

#[test]
fn an_image_is_read_from_a_real_registry() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let content = noise(19 << 20);
    let digest = registry.push_image("team/app", "v1", b"{}", &[(&content, LAYER)]);
    let address = registry.address();
    let by_tag = open(&format!("docker://{address}/team/app:v1"), &settings());
    assert_eq!(by_tag.resolve().unwrap().to_string(), digest);
    assert!(layer_of(&by_tag) == content);
    let by_digest = open(
        &format!("docker://{address}/team/app@{digest}"),
        &settings(),
    );
    assert!(layer_of(&by_digest) == content);
}

#[test]
fn indexes_in_oci_and_docker_words_lead_to_the_machines_image() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let layer = noise(1000);
    let layer_digest = registry.push_blob("app", &layer);
    let config = registry.push_blob("app", b"{}");
    for (tag, config_kind, manifest_kind, index_kind) in [
        ("oci", OCI_CONFIG, OCI_MANIFEST, OCI_INDEX),
        ("docker", DOCKER_CONFIG, DOCKER_MANIFEST, DOCKER_LIST),
    ] {
        let entries = ["arm64", "amd64"].map(|architecture| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": manifest_kind,
                "config": {"mediaType": config_kind, "digest": config, "size": 2},
                "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer.len()}],
                "annotations": {"for": architecture},
            });
            let bytes = manifest.to_string();
            let digest = digest_of(bytes.as_bytes());
            registry.push_manifest("app", &digest, manifest_kind, bytes.as_bytes());
            json!({"mediaType": manifest_kind, "digest": digest, "size": bytes.len(),
                "platform": {"os": "linux", "architecture": architecture}})
        });
        let index = json!({"schemaVersion": 2, "mediaType": index_kind, "manifests": entries});
        registry.push_manifest("app", tag, index_kind, index.to_string().as_bytes());

        let source = open(
            &format!("docker://{}/app:{tag}", registry.address()),
            &settings(),
        );
        let image = source.image(source.resolve().unwrap()).unwrap();
        assert_eq!(image.manifest.annotations["for"], "amd64");
        assert!(layer_of(&source) == layer);
    }
}

#[test]
fn a_password_opens_a_real_registry_and_its_absence_is_told() {
    let Some(registry) = RealRegistry::with_users() else {
        return;
    };
    let content = noise(100_000);
    registry.push_image("app", "latest", b"{}", &[(&content, LAYER)]);
    let reference = format!("docker://{}/app", registry.address());

    let given = Settings {
        credentials: Some(Credentials {
            username: USERNAME.into(),
            password: Secret(PASSWORD.into()),
        }),
        ..settings()
    };
    assert!(layer_of(&open(&reference, &given)) == content);

    let authfile = tempfile::NamedTempFile::new().unwrap();
    // user:secret
    let auths = json!({"auths": {registry.address(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(authfile.path(), auths.to_string()).unwrap();
    let from_file = Settings {
        authfile: Some(authfile.path().into()),
        ..settings()
    };
    assert!(layer_of(&open(&reference, &from_file)) == content);

    let empty = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(empty.path(), "{}").unwrap();
    let without = Settings {
        authfile: Some(empty.path().into()),
        ..settings()
    };
    let error = open(&reference, &without).resolve().unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert!(
        error
            .to_string()
            .contains(&empty.path().display().to_string()),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--docker-username"));
}

#[test]
fn what_is_missing_is_named() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let error = open(
        &format!("docker://{}/none:v2", registry.address()),
        &settings(),
    );
    let error = error.resolve().unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/none:v2") && text.contains("404") && text.contains("manifest unknown"),
        "{text}"
    );
}

#[test]
fn a_stream_survives_a_restart_of_the_registry() {
    let Some(mut registry) = RealRegistry::open() else {
        return;
    };
    let content = noise(70 << 20);
    registry.push_image("app", "v1", b"{}", &[(&content, LAYER)]);
    let source = open(
        &format!("docker://{}/app:v1", registry.address()),
        &settings(),
    );
    let image = source.image(source.resolve().unwrap()).unwrap();
    let mut stream = source.blob(&image.manifest.layers[0]).stream().unwrap();
    let mut got = vec![0; 1 << 20];
    stream.read_exact(&mut got).unwrap();
    registry.stop();
    assert!(registry.resume());
    stream.read_to_end(&mut got).unwrap();
    assert!(got == content);
}

/// An OCI layout with `images` of (tag, annotations of the manifest).
fn layout(directory: &Path, images: &[(Option<&str>, &str)], layer: &[u8]) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8]| {
        let digest = digest_of(content);
        std::fs::write(blobs.join(&digest[7..]), content).unwrap();
        digest
    };
    let entries: Vec<_> = images
        .iter()
        .map(|(tag, name)| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": put(b"{}"), "size": 2},
                "layers": [{"mediaType": LAYER, "digest": put(layer), "size": layer.len()}],
                "annotations": {"name": name},
            });
            let bytes = manifest.to_string();
            let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": put(bytes.as_bytes()), "size": bytes.len(),
                "platform": {"os": "linux", "architecture": name}});
            if let Some(tag) = tag {
                entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
            }
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

fn name_of(source: &Source) -> String {
    let image = source.image(source.resolve().unwrap()).unwrap();
    image.manifest.annotations["name"].clone()
}

/// `directory` as a tar file beside it.
fn packed(directory: &Path) -> PathBuf {
    let path = directory.with_extension("tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    builder.append_dir_all(".", directory).unwrap();
    builder.finish().unwrap();
    path
}

#[test]
fn layouts_are_read_from_directories_archives_and_after_a_push() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("layout");
    let layer = noise(200_000);
    layout(
        &directory,
        &[
            (Some("one"), "amd64"),
            (Some("docker.io/library/two:v2"), "arm64"),
        ],
        &layer,
    );
    let archive = packed(&directory);
    for place in [
        format!("oci:{}", directory.display()),
        format!("oci-archive:{}", archive.display()),
    ] {
        let one = open(&format!("{place}:one"), &settings());
        assert_eq!(name_of(&one), "amd64");
        assert!(layer_of(&one) == layer);
        for tag in ["docker.io/library/two:v2", "v2"] {
            assert_eq!(
                name_of(&open(&format!("{place}:{tag}"), &settings())),
                "arm64"
            );
        }
        for tag in ["", ":three"] {
            let reference = format!("{place}{tag}").parse().unwrap();
            let error = Source::open(&reference, &settings()).err().unwrap();
            assert!(
                error
                    .hint()
                    .unwrap()
                    .contains("one, docker.io/library/two:v2"),
                "{error}"
            );
        }
    }
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    layout(&directory, &[(Some("one"), "amd64")], &layer);
    registry.push_layout("app", &directory);
    let source = open(
        &format!("docker://{}/app:one", registry.address()),
        &settings(),
    );
    assert!(layer_of(&source) == layer);
}

#[test]
fn a_layout_of_unnamed_builds_is_chosen_from_by_platform() {
    let scratch = tempfile::tempdir().unwrap();
    layout(scratch.path(), &[(None, "arm64"), (None, "amd64")], b"");
    let source = open(&format!("oci:{}", scratch.path().display()), &settings());
    assert_eq!(name_of(&source), "amd64");
}

#[test]
fn a_damaged_layout_is_an_error_that_names_the_blob() {
    let scratch = tempfile::tempdir().unwrap();
    let layer = noise(5000);
    layout(scratch.path(), &[(None, "amd64")], &layer);
    let source = open(&format!("oci:{}", scratch.path().display()), &settings());
    let image = source.image(source.resolve().unwrap()).unwrap();
    let digest = image.manifest.layers[0].digest;
    let file = scratch.path().join("blobs/sha256").join(digest.hex());
    std::fs::write(&file, b"short").unwrap();
    let blob = source.blob(&image.manifest.layers[0]);
    let error = blob.read(PackedOffset(0), 5, soon()).unwrap_err();
    assert!(error.to_string().contains(&digest.to_string()), "{error}");
    assert!(
        error
            .to_string()
            .contains("5 bytes, the manifest says 5000"),
        "{error}"
    );
    std::fs::remove_file(&file).unwrap();
    assert!(source.blob(&image.manifest.layers[0]).stream().is_err());
    let manifest = scratch.path().join("blobs/sha256").join(image.digest.hex());
    std::fs::write(&manifest, b"{}").unwrap();
    let error = source.manifest(image.digest).unwrap_err();
    assert!(error.to_string().contains("do not match"), "{error}");
    assert!(matches!(error, SourceError::File { .. }));
}

/// What `docker save` of old wrote: a directory per layer, with a link where a layer comes twice.
fn docker_archive(path: &Path, layer: &[u8], tags: &[&str]) {
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut gzipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzipped.write_all(b"second layer").unwrap();
    let gzipped = gzipped.finish().unwrap();
    add("one/layer.tar", layer);
    add("two/layer.tar", &gzipped);
    let mut images = Vec::new();
    for tag in tags {
        let diff_ids = [
            digest_of(layer),
            digest_of(b"second layer"),
            digest_of(layer),
        ];
        let config = json!({"os": "linux", "architecture": "amd64", "config": {"Env": [format!("T={tag}")]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let name = format!("{}.json", &digest_of(tag.as_bytes())[7..]);
        add(&name, config.to_string().as_bytes());
        images.push(json!({"Config": name, "RepoTags": [tag],
            "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"]}));
    }
    add(
        "manifest.json",
        serde_json::Value::from(images).to_string().as_bytes(),
    );
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder
        .append_link(&mut link, "three/layer.tar", "../one/layer.tar")
        .unwrap();
    builder.finish().unwrap();
}

#[test]
fn a_docker_archive_gets_a_manifest_and_its_layers() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("saved.tar");
    let layer = noise(300_000);
    docker_archive(&path, &layer, &["app:v1"]);
    let source = open(&format!("docker-archive:{}", path.display()), &settings());
    let top = source.resolve().unwrap();
    assert!(layer_of(&source) == layer);
    let image = source.image(top).unwrap();
    let kinds: Vec<_> = image
        .manifest
        .layers
        .iter()
        .map(|layer| layer.media_type.as_str())
        .collect();
    assert_eq!(
        kinds,
        [LAYER, "application/vnd.oci.image.layer.v1.tar+gzip", LAYER]
    );
    for layer in &image.manifest.layers {
        let mut content = Vec::new();
        source
            .blob(layer)
            .stream()
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        assert_eq!(Digest::of(&content), layer.digest);
    }
    // Another process finds the same, and may ask for a blob first.
    let again = open(&format!("docker-archive:{}", path.display()), &settings());
    assert!(
        again
            .blob(&image.manifest.layers[2])
            .read(PackedOffset(0), 10, soon())
            .unwrap()
            == layer[..10]
    );
    assert_eq!(again.resolve().unwrap(), top);
}

#[test]
fn several_images_in_a_docker_archive_are_told_apart_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("saved.tar");
    docker_archive(&path, b"layer", &["app:v1", "docker.io/me/tool:v2"]);
    let place = format!("docker-archive:{}", path.display());
    let env = |tag: &str| {
        let source = open(&format!("{place}:{tag}"), &settings());
        let image = source.image(source.resolve().unwrap()).unwrap();
        let config = source.config(&image.manifest.config).unwrap();
        sifon_mount::source::config::ImageConfig::parse(config)
            .unwrap()
            .env
    };
    assert_eq!(env("app:v1"), ["T=app:v1"]);
    assert_eq!(env("docker.io/library/app:v1"), ["T=app:v1"]);
    assert_eq!(env("me/tool:v2"), ["T=docker.io/me/tool:v2"]);
    assert_eq!(env("v2"), ["T=docker.io/me/tool:v2"]);
    let error = Source::open(&place.parse().unwrap(), &settings())
        .err()
        .unwrap();
    assert!(
        error
            .hint()
            .unwrap()
            .contains("app:v1, docker.io/me/tool:v2"),
        "{error}"
    );
}

/// Everything that a mirror was asked, at a place where nothing of the image's own registry is.
fn mirrored(mirror: &str) -> (Settings, &'static str) {
    let settings = Settings {
        mirrors: vec![mirror.to_owned()],
        backoff: Duration::from_millis(10),
        timeout: Duration::from_secs(5),
        ..settings()
    };
    // Nobody listens on port 1.
    (settings, "docker://127.0.0.1:1/team/app:v1")
}

#[test]
fn a_mirror_stands_for_a_registry_that_is_away() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let content = noise(17 << 20);
    registry.push_image("hub/team/app", "v1", b"{}", &[(&content, LAYER)]);
    let (settings, image) = mirrored(&format!("http://{}/hub", registry.address()));
    assert!(layer_of(&open(image, &settings)) == content);
}

#[test]
fn where_a_mirror_fails_the_registry_goes_on_from_the_byte_reached_and_is_asked_first_from_then_on()
{
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let content = noise(17 << 20);
    registry.push_image("team/app", "v1", b"{}", &[(&content, LAYER)]);
    let address = registry.address().to_owned();
    let mirror = Faulty::start(move |request, _| {
        let kept: Vec<_> = request
            .headers
            .iter()
            .filter(|(name, _)| ["accept", "range"].contains(&&**name))
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let answer = asked(&address, "GET", request.second(), &kept, b"").unwrap();
        let mut reply = Reply::status(answer.second().parse().unwrap()).body(answer.body.clone());
        for (name, value) in &answer.headers {
            if ["content-type", "content-range", "docker-content-digest"].contains(&&**name) {
                reply = reply.header(name, value.clone());
            }
        }
        match request.second().contains("/blobs/") && answer.body.len() > 10_000 {
            true => reply.cut_after(10_000),
            false => reply,
        }
    });
    let settings = Settings {
        mirrors: vec![format!("http://{}", mirror.address())],
        ..settings()
    };
    let source = open(
        &format!("docker://{}/team/app:v1", registry.address()),
        &settings,
    );
    assert!(layer_of(&source) == content);
    let image = source.image(source.resolve().unwrap()).unwrap();
    let blob = source.blob(&image.manifest.layers[0]);
    for _ in 0..2 {
        let mut poured = Vec::new();
        let patience = Patience::Until(soon());
        blob.pour(1_000_000..3_000_000, patience, &mut |bytes| {
            poured.extend_from_slice(&bytes)
        })
        .unwrap();
        assert!(poured == content[1_000_000..3_000_000]);
    }
    let before = mirror.seen().len();
    assert!(layer_of(&source) == content);
    assert_eq!(mirror.seen().len(), before, "it is asked last for a while");
}

#[test]
fn a_mirror_is_not_told_the_password_of_the_registry() {
    let seen =
        Faulty::start(|_, _| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let (mut settings, image) = mirrored(&format!("http://{}", seen.address()));
    settings.credentials = Some(Credentials {
        username: USERNAME.into(),
        password: Secret(PASSWORD.into()),
    });
    assert!(open(image, &settings).resolve().is_err());
    assert!(seen.count("/manifests/") > 0);
    assert!(
        seen.seen()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}
