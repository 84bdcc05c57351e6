//! Indexes that are pushed: one user makes an image lazy for all.

use std::process::Command;

use serde_json::{Value, json};
use sifon_mount::digest::Digest;
use sifon_mount::layer::soci;

use crate::layers::{noise, text};
use crate::layout::{Layout, Packed, Packing, architecture};
use crate::place::{Place, can_mount};
use crate::server::{before, bytes_asked, reference};
use crate::soci::{large_layers, large_layers_in, with_v1};
use crate::support::faulty::{Faulty, Reply};
use crate::support::http::asked;
use crate::support::real::{PASSWORD, RealRegistry, USERNAME};

const REPOSITORY: &str = "some/image";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry with an image of two layers, `latest`.
fn registry_with_image(registry: &RealRegistry, place: &Place) -> Vec<Packed> {
    // What compresses fast makes blocks so large that there are few places to resume at; a member ends them.
    let layers = large_layers_in(Packing::GzipMembers);
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &layers);
    registry.push_layout(REPOSITORY, layout.path());
    layers
}

fn image(registry: &RealRegistry, tag: &str) -> String {
    format!("docker://{}/{REPOSITORY}:{tag}", registry.address())
}

/// What a registry has under a tag or digest, if it has something.
fn document(registry: &RealRegistry, name: &str) -> Option<Value> {
    let path = format!("/v2/{REPOSITORY}/manifests/{name}");
    let accept = format!("application/vnd.oci.image.manifest.v1+json, {INDEX}, {DOCKER_MANIFEST}");
    let headers = [("Accept", accept.as_str())];
    let answer = asked(registry.address(), "GET", &path, &headers, b"").unwrap();
    (answer.second() == "200").then(|| serde_json::from_slice(&answer.body).unwrap())
}

fn pushed(place: &Place, words: &[&str]) -> Value {
    let index = ["index", "--push", "--json", "--spacing", "64K"];
    let told = place.says(index.iter().chain(words));
    let told: Value = serde_json::from_str(&told).unwrap();
    told["pushed"].clone()
}

#[test]
fn what_one_user_indexed_is_read_lazily_by_another() {
    let Some(registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let layers = registry_with_image(&registry, &place);
    let latest = image(&registry, "latest");
    let attached = pushed(&place, &[&latest]);
    assert_eq!(attached["layers"], 2, "{attached}");
    assert_eq!(attached["image"], Value::Null, "{attached}");
    let named = pushed(&place, &["--tag", "lazy", &latest]);
    assert_eq!(named["tag"], "lazy", "{named}");

    for tag in ["latest", "lazy"] {
        let server = before(&registry);
        let another = Place::new();
        let mounted = another.mount_with(&reference(&server, tag), with_v1);
        assert!(mounted.read("file-1").unwrap() == text(5000));
        assert!(mounted.read("file-0").unwrap() == text(5000));
        for layer in &layers {
            let (digest, size) = (Digest::of(&layer.bytes).to_string(), layer.bytes.len());
            let bytes = bytes_asked(&server, 0, &digest, size);
            assert!((1..size / 4).contains(&bytes), "{tag}: {bytes} of {size}");
        }
        assert!(mounted.read("after-0").unwrap() == noise(3 << 20, 10));
    }
}

#[test]
fn what_others_attached_to_an_image_stays_attached() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    registry_with_image(&registry, &place);
    let latest = image(&registry, "latest");
    let subject = Digest::of(
        document(&registry, "latest")
            .unwrap()
            .to_string()
            .as_bytes(),
    );
    let tag = subject.to_string().replace(':', "-");
    let signature = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
    let signature_digest =
        registry.push_manifest(REPOSITORY, "signature", INDEX, signature.as_bytes());
    let theirs = json!({"mediaType": INDEX, "digest": signature_digest, "size": signature.len(),
        "artifactType": "application/x-signature", "unknown": {"to": "us"}});
    let there = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [theirs],
        "annotations": {"kept": "too"}});
    registry.push_manifest(REPOSITORY, &tag, INDEX, there.to_string().as_bytes());

    let first = pushed(&place, &[&latest]);
    assert_eq!(first["tag"], tag.as_str());
    let after = document(&registry, &tag).unwrap();
    assert_eq!(after["manifests"][0], theirs);
    assert_eq!(after["manifests"][1]["digest"], first["index"]);
    assert_eq!(after["manifests"][1]["artifactType"], soci::INDEX_V1);
    assert_eq!(after["annotations"], there["annotations"]);

    assert_eq!(pushed(&place, &[&latest]), first);
    assert_eq!(document(&registry, &tag).unwrap(), after);

    // What is no list is not written over.
    registry.push_manifest(
        REPOSITORY,
        &tag,
        DOCKER_MANIFEST,
        &docker_manifest(&registry, architecture(), &large_layers()),
    );
    let said = place.refusal(&mut place.sifon(["index", "--push", &latest]));
    assert!(said.contains(&tag) && said.contains("no index"), "{said}");
}

/// One that lists referrers itself says so when it takes one.
#[test]
fn a_registry_that_lists_referrers_itself_gets_no_tag_for_them() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    registry_with_image(&registry, &place);
    let address = registry.address().to_owned();
    let server = Faulty::start(move |request, _| {
        let is_for_it = |name: &str| ["accept", "content-type", "range"].contains(&name);
        let headers = request.headers.iter().filter(|(name, _)| is_for_it(name));
        let headers: Vec<_> = headers.map(|(name, value)| (&**name, &**value)).collect();
        let (method, path) = (request.method(), request.second());
        let method = if method == "HEAD" { "GET" } else { method };
        let answer = asked(&address, method, path, &headers, &request.body).unwrap();
        let mut reply = Reply::status(answer.second().parse().unwrap()).body(answer.body);
        let is_manifest = method == "PUT" && path.contains("/manifests/");
        for (name, value) in answer.headers {
            if [
                "content-type",
                "content-range",
                "docker-content-digest",
                "location",
            ]
            .contains(&&*name)
            {
                reply = reply.header(&name, value);
            }
        }
        match is_manifest && request.body.windows(9).any(|word| word == b"\"subject\"") {
            true => reply.header("OCI-Subject", "sha256:whatever"),
            false => reply,
        }
    });
    let told = pushed(&place, &[&reference(&server, "latest")]);
    assert_eq!(told["tag"], Value::Null, "{told}");
    assert!(document(&registry, told["index"].as_str().unwrap()).is_some());
    let puts = server
        .seen()
        .into_iter()
        .filter(|request| request.method() == "PUT");
    assert_eq!(
        puts.filter(|put| put.second().contains("/manifests/"))
            .count(),
        1
    );
}

#[test]
fn pushing_needs_a_password_where_the_registry_wants_one() {
    let Some(registry) = RealRegistry::with_users() else {
        return;
    };
    let place = Place::new();
    registry_with_image(&registry, &place);
    let latest = image(&registry, "latest");
    let words = [
        "index",
        "--push",
        "--docker-username",
        USERNAME,
        "--docker-password",
    ];
    let told = place.says(words.into_iter().chain([PASSWORD, &latest]));
    assert!(
        told.contains("pushed index") && told.contains("2 layers"),
        "{told}"
    );
    let said = place.refusal(&mut place.sifon(["index", "--push", &latest]));
    assert!(
        said.contains("401") && said.contains("--docker-username"),
        "{said}"
    );
    assert!(!said.contains(PASSWORD), "{said}");
}

#[test]
fn what_cannot_be_pushed_is_refused_before_anything_is_read() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &large_layers());
    let said = place.refusal(&mut place.sifon(["index", "--push", &layout.reference("latest")]));
    assert!(said.contains("to a registry only"), "{said}");
    let nowhere = "docker://127.0.0.1:1/some/image";
    for tag in ["two words", "a/b", "x@sha256:00", ""] {
        let said = place.refusal(&mut place.sifon(["index", "--push", "--tag", tag, nowhere]));
        assert!(said.contains("tag"), "{said}");
    }
    assert!(place.stored("layers").is_empty());
}

/// An image in Docker's words.
fn docker_manifest(registry: &RealRegistry, architecture: &str, layers: &[Packed]) -> Vec<u8> {
    let config = crate::layout::config(architecture, layers).to_string();
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let digest = registry.push_blob(REPOSITORY, &layer.bytes);
            json!({"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": digest, "size": layer.bytes.len()})
        })
        .collect();
    let described = json!({"mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": registry.push_blob(REPOSITORY, config.as_bytes()), "size": config.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": described, "layers": layers});
    manifest.to_string().into_bytes()
}

#[test]
fn a_copy_that_names_its_index_keeps_the_images_of_other_machines() {
    let Some(registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let [other, ours] = ["riscv64", architecture()].map(|architecture| {
        let manifest = docker_manifest(&registry, architecture, &large_layers());
        let digest = Digest::of(&manifest).to_string();
        registry.push_manifest(REPOSITORY, &digest, DOCKER_MANIFEST, &manifest);
        json!({"mediaType": DOCKER_MANIFEST, "digest": digest, "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    });
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let listing = |entries: Value| {
        json!({"schemaVersion": 2, "mediaType": list, "manifests": entries}).to_string()
    };
    let all = listing(json!([other, ours]));
    let digest = registry.push_manifest(REPOSITORY, "latest", list, all.as_bytes());
    let above = listing(json!([{"mediaType": list, "digest": digest, "size": all.len()}]));
    registry.push_manifest(REPOSITORY, "above", list, above.as_bytes());

    let told = pushed(&place, &["--tag", "lazy", &image(&registry, "latest")]);
    let copy = document(&registry, "lazy").unwrap();
    assert_eq!(copy["mediaType"], INDEX);
    assert_eq!(copy["manifests"][0], other);
    let (named, index) = (&copy["manifests"][1], &copy["manifests"][2]);
    assert_eq!(named["annotations"][soci::INDEX_DIGEST], told["index"]);
    assert_eq!(index["digest"], told["index"]);
    assert_eq!(index["artifactType"], soci::INDEX_V2);
    assert_eq!(index["platform"], named["platform"]);
    assert_eq!(index["annotations"][soci::IMAGE_DIGEST], named["digest"]);
    let manifest = document(&registry, named["digest"].as_str().unwrap()).unwrap();
    assert_eq!(manifest["annotations"][soci::INDEX_DIGEST], told["index"]);
    assert!(!manifest.to_string().contains("docker"), "{manifest}");

    let above = pushed(&place, &["--tag", "lazy-above", &image(&registry, "above")]);
    assert_eq!(above["index"], told["index"]);
    let above = document(&registry, "lazy-above").unwrap();
    assert_eq!(above["manifests"][0]["digest"], told["image"]);
    assert_eq!(above["manifests"].as_array().unwrap().len(), 1);

    // Copied again, only the index of the image that it has now stays.
    let again = image(&registry, "lazy");
    pushed(&place, &["--tag", "lazier", "--refresh", &again]);
    assert_eq!(document(&registry, "lazier").unwrap(), copy);
    let another = Place::new();
    let mounted = another.mount(&image(&registry, "lazy-above"));
    assert!(mounted.read("file-1").unwrap() == text(5000));
}

#[test]
fn other_programs_take_what_was_pushed() {
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("skipped: skopeo is not installed");
        return;
    }
    let place = Place::new();
    registry_with_image(&registry, &place);
    let latest = image(&registry, "latest");
    let attached = pushed(&place, &[&latest]);
    pushed(&place, &["--tag", "lazy", &latest]);
    let skopeo = |words: &[&str]| {
        let output = place.program("skopeo").args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let repository = format!("docker://{}/{REPOSITORY}", registry.address());
    let by_digest = format!("{repository}@{}", attached["index"].as_str().unwrap());
    for name in [&by_digest, &image(&registry, "lazy")] {
        let raw = skopeo(&["inspect", "--tls-verify=false", "--raw", name]);
        serde_json::from_slice::<Value>(&raw).unwrap();
    }
    for (tag, how) in [
        ("latest", "system"),
        ("lazy", "system"),
        ("lazy", "index-only"),
    ] {
        let target = format!("oci:{}:{tag}", place.path(format!("{tag}-{how}")).display());
        let how = format!("--multi-arch={how}");
        let from = image(&registry, tag);
        let policy = ["--insecure-policy", "copy", "--src-tls-verify=false", &how];
        skopeo(&[&policy[..], &[&from, &target]].concat());
    }
    let all = format!("oci:{}:all", place.path("all").display());
    let words = [
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--all",
    ];
    skopeo(&[&words[..], &[&image(&registry, "lazy"), &all]].concat());
    let shown: Value = serde_json::from_str(&place.says(["inspect", "--json", &all])).unwrap();
    assert_eq!(shown["layers"][0]["is_lazy"], true, "{shown}");
}
