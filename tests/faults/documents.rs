//! Blobs, manifests and configurations that are not what their names say.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sifon_mount::digest::Digest;

use crate::layout::{Layer, Layout};
use crate::sandbox::Sandbox;
use crate::tar_stream::{archive, file};

fn layer() -> Layer {
    Layer::gzip(&archive(&[
        file("a", &vec![b'x'; 300_000]),
        file("b", b"y"),
    ]))
}

/// What becomes of a file.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x01;
    fs::write(path, bytes).unwrap();
}

fn lengthen(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.extend_from_slice(b" ");
    fs::write(path, bytes).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn replace_by_pipe(path: &Path) {
    fs::remove_file(path).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn replace_by_device(path: &Path) {
    fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path).unwrap();
}

type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 6] = [
    ("cut short", cut),
    ("with a flipped bit", flip),
    ("with a byte more", lengthen),
    ("missing", remove),
    ("a named pipe", replace_by_pipe),
    ("a device", replace_by_device),
];

#[test]
fn a_damaged_file_of_a_layout_is_refused_by_its_name() {
    for (how, damage) in DAMAGES {
        for what in ["layer", "manifest", "configuration"] {
            let layout = Layout::of(&[layer()]);
            let digest = match what {
                "layer" => layout.layers[0],
                "manifest" => layout.manifest,
                _ => layout.config,
            };
            damage(&layout.blob(digest));
            let name = digest.hex();
            let what = format!("{what} {how}");
            Sandbox::new().refuses(&what, &layout.reference(), &[&name, "INFO"]);
        }
        let layout = Layout::of(&[layer()]);
        let index = layout.directory.path().join("index.json");
        // A byte more than JSON needs is no fault, and a bit of the free text neither.
        if !["with a byte more", "with a flipped bit"].contains(&how) {
            damage(&index);
            let what = format!("index {how}");
            Sandbox::new().refuses(&what, &layout.reference(), &["index.json", "INFO"]);
        }
    }
}

#[test]
fn a_blob_in_the_place_of_another_is_refused() {
    let other = Layer::gzip(&archive(&[
        file("a", &vec![b'z'; 300_000]),
        file("b", b"y"),
    ]));
    let layout = Layout::of(&[layer()]);
    fs::write(layout.blob(layout.layers[0]), &other.packed).unwrap();
    let name = layout.layers[0].to_string();
    Sandbox::new().refuses("another layer", &layout.reference(), &[&name, "INFO"]);

    // Of the same length, so that only the digest can tell.
    let layout = Layout::of(&[Layer::plain(archive(&[file("a", b"right")]))]);
    let wrong = archive(&[file("a", b"wrong")]);
    fs::write(layout.blob(layout.layers[0]), &wrong).unwrap();
    let (name, found) = (layout.layers[0].to_string(), Digest::of(&wrong).to_string());
    let reference = layout.reference();
    Sandbox::new().refuses(
        "another layer of this length",
        &reference,
        &[&name, &found, "INFO"],
    );

    let layout = Layout::of(&[layer()]);
    fs::write(layout.blob(layout.config), b"{}").unwrap();
    let name = layout.config.to_string();
    Sandbox::new().refuses(
        "another configuration",
        &layout.reference(),
        &[&name, "INFO"],
    );
}

#[test]
fn a_document_that_makes_no_image_is_refused_with_the_reason() {
    let sandbox = Sandbox::new();
    let diff_id = layer().diff_id;
    let config = |diff_ids: &[Digest]| json!({"rootfs": {"diff_ids": diff_ids}});
    for (what, layout, words) in [
        (
            "too few diffIDs",
            Layout::with_config(&[layer(), layer()], &config(&[diff_id])),
            &["names 1 layers, the manifest 2"][..],
        ),
        (
            "no diffIDs",
            Layout::with_config(&[layer()], &json!({})),
            &["names 0 layers"],
        ),
        (
            "a diffID that is none",
            Layout::with_config(
                &[layer()],
                &json!({"rootfs": {"diff_ids": ["md5:0\u{1b}[2J"]}}),
            ),
            &["md5:0", "expected sha256"],
        ),
        (
            "a configuration that is a list",
            Layout::with_config(&[layer()], &json!([1])),
            &["configuration cannot be read"],
        ),
    ] {
        let words: Vec<_> = words.iter().copied().chain(["INFO"]).collect();
        sandbox.refuses(what, &layout.reference(), &words);
    }
    for (what, index, words) in [
        ("no JSON", "{\"manifests\": [", &["index.json"][..]),
        ("no list", "{\"manifests\": 5}", &["index.json"]),
        ("a deep nest", &"[".repeat(100_000), &["index.json"]),
        (
            "nothing in it",
            "{\"manifests\": []}",
            &["there is no image \"v1\""],
        ),
        (
            "a tag that a terminal would obey",
            "{\"manifests\":[{\"digest\":\"sha256:00\",\"size\":1,\"annotations\":\
             {\"org.opencontainers.image.ref.name\":\"\\u001b]0;owned\\u0007\"}}]}",
            &["there is no image \"v1\""],
        ),
        (
            "a digest that is a path",
            "{\"manifests\":[{\"digest\":\"sha256:../../../etc/passwd\",\"size\":1,\"annotations\":\
             {\"org.opencontainers.image.ref.name\":\"v1\"}}]}",
            &["there is no image \"v1\""],
        ),
    ] {
        let layout = Layout::of(&[layer()]);
        fs::write(layout.directory.path().join("index.json"), index).unwrap();
        let words: Vec<_> = words.iter().copied().chain(["INFO"]).collect();
        sandbox.refuses(what, &layout.reference(), &words);
    }
}

#[test]
fn an_archive_that_is_none_is_refused_by_its_name() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("image.tar");
    let manifest =
        r#"[{"Config":"c.json","RepoTags":["\u001b[2Jx:1"],"Layers":["l\u001b[2J.tar"]}]"#;
    let config = json!({"rootfs": {"diff_ids": [layer().diff_id]}}).to_string();
    let member = |name: &str, text: &str| file(name, text.as_bytes());
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("noise", vec![7; 5000]),
        ("no manifest", archive(&[member("x", "y")])),
        ("no JSON", archive(&[member("manifest.json", "[{")])),
        (
            "no configuration",
            archive(&[member("manifest.json", manifest)]),
        ),
        (
            "no layer",
            archive(&[member("manifest.json", manifest), member("c.json", &config)]),
        ),
        (
            "a layer longer than the archive",
            [
                member("manifest.json", manifest),
                crate::tar_stream::sized(b'0', "l", 1 << 30),
            ]
            .concat(),
        ),
    ] {
        fs::write(&path, bytes).unwrap();
        for scheme in ["docker-archive", "oci-archive"] {
            let reference = format!("{scheme}:{}", path.display());
            let what = format!("{scheme}: {what}");
            sandbox.refuses(&what, &reference, &["image.tar", "INFO"]);
        }
    }
    replace_by_pipe(&path);
    for scheme in ["docker-archive", "oci-archive"] {
        let reference = format!("{scheme}:{}", path.display());
        sandbox.refuses("a named pipe", &reference, &["image.tar", "INFO"]);
    }
}
