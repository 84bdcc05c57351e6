//! How often a registry is asked: as a real one in front of which we count sees it.

use std::fs;

use serde_json::{Value, json};
use sifon_mount::digest::Digest;

use crate::layers::{file, noise};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, can_mount};
use crate::server::{before, reference, requests_since};
use crate::support::faulty::Faulty;
use crate::support::real::RealRegistry;

/// An image of three layers in a real registry, seen through a server that counts.
struct Counted {
    place: Place,
    server: Faulty,
    manifest: Digest,
    blobs: Vec<Digest>,
    _registry: RealRegistry,
}

const REPOSITORY: &str = "some/image";

impl Counted {
    fn new(packing: Packing) -> Option<Self> {
        let registry = RealRegistry::open().filter(|_| can_mount())?;
        let place = Place::new();
        let layers: Vec<_> = (0..3)
            .map(|seed| {
                let content = noise(400_000, seed);
                Layer::new(vec![file(format!("file-{seed}"), content).mode(0o644)])
            })
            .collect();
        let mut layout = Layout::new(place.path("layout"));
        let layers = all(&layers, packing);
        let manifest = layout.add("latest", &layers);
        registry.push_layout(REPOSITORY, layout.path());
        Some(Self {
            place,
            server: before(&registry),
            manifest,
            blobs: layers
                .iter()
                .map(|layer| Digest::of(&layer.bytes))
                .collect(),
            _registry: registry,
        })
    }

    fn reference(&self) -> String {
        reference(&self.server, "latest")
    }

    fn head(&self) -> String {
        format!("HEAD /v2/{REPOSITORY}/manifests/latest")
    }

    /// What is asked when the image is mounted so, all of it is read, and it is unmounted.
    fn asked(&self, reference: &str, flags: &[&str]) -> Vec<String> {
        self.asked_in_job(reference, flags, None)
    }

    fn asked_in_job(&self, reference: &str, flags: &[&str], job: Option<&str>) -> Vec<String> {
        let before = self.server.seen().len();
        let mounted = self.place.mount_with(reference, |command| {
            command.args(flags);
            if let Some(job) = job {
                command.env("SLURM_JOB_ID", job);
            }
        });
        for seed in 0..3 {
            assert!(mounted.read(&format!("file-{seed}")).unwrap() == noise(400_000, seed));
        }
        drop(mounted);
        requests_since(&self.server, before)
    }

    /// Makes what is remembered of tags older than it is believed.
    fn age_tags(&self) {
        for file in self.place.stored("tags") {
            let mut tag: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            tag["at"] = json!(tag["at"].as_u64().unwrap() - 601);
            fs::write(&file, tag.to_string()).unwrap();
        }
    }
}

fn assert_later_mounts_ask_for_the_tag_at_most(counted: &Counted) {
    let latest = counted.reference();
    let nothing: [String; 0] = [];
    let head = [counted.head()];
    assert_eq!(counted.asked(&latest, &[]), nothing, "within ten minutes");
    counted.age_tags();
    assert_eq!(counted.asked(&latest, &[]), head, "after ten minutes");
    assert_eq!(
        counted.asked(&latest, &[]),
        nothing,
        "within ten minutes of that"
    );
    assert_eq!(counted.asked(&latest, &["--refresh"]), head, "when told to");
    let digest = latest.replace(":latest", &format!("@{}", counted.manifest));
    assert_eq!(counted.asked(&digest, &[]), nothing, "by digest");
    assert_eq!(
        counted.asked(&digest, &["--refresh"]),
        nothing,
        "by digest, always"
    );
    counted.age_tags();
    assert_eq!(counted.asked(&latest, &["--offline"]), nothing, "offline");
    assert_eq!(
        counted.asked(&latest, &["--offline", "--refresh"]),
        nothing,
        "offline"
    );
    assert_eq!(
        counted.asked_in_job(&latest, &[], Some("7")),
        head,
        "in a new job"
    );
    counted.age_tags();
    assert_eq!(
        counted.asked_in_job(&latest, &[], Some("7")),
        nothing,
        "in the same job"
    );
    assert_eq!(
        counted.asked_in_job(&latest, &[], Some("8")),
        head,
        "in another job"
    );
}

#[test]
fn an_image_that_is_streamed_is_asked_for_once() {
    let Some(counted) = Counted::new(Packing::Gzip) else {
        return;
    };
    let asked = counted.asked(&counted.reference(), &[]);
    let by_tag = asked
        .iter()
        .filter(|request| request.contains("/manifests/latest"));
    let get = counted.head().replace("HEAD ", "GET ");
    assert_eq!(by_tag.collect::<Vec<_>>(), [&get]);
    for blob in &counted.blobs {
        let once = format!("GET /v2/{REPOSITORY}/blobs/{blob}");
        assert_eq!(
            asked.iter().filter(|request| **request == once).count(),
            1,
            "{asked:?}"
        );
    }
    // The manifest by its tag, the config and three layers.
    assert_eq!(asked.len(), 5, "{asked:?}");
    assert_later_mounts_ask_for_the_tag_at_most(&counted);
}

#[test]
fn a_lazy_image_is_asked_for_once_for_each_layer_and_once_for_what_is_read() {
    for packing in [Packing::ZstdChunked, Packing::Estargz] {
        let Some(counted) = Counted::new(packing) else {
            return;
        };
        assert_asks_for_tables_and_what_is_read(&counted);
    }
}

fn assert_asks_for_tables_and_what_is_read(counted: &Counted) {
    let before = counted.server.seen().len();
    let mounted = counted.place.mount(&counted.reference());
    // The manifest by its tag, the config and three tables of contents.
    let at_mount = requests_since(&counted.server, before);
    assert_eq!(at_mount.len(), 5, "{at_mount:?}");
    mounted.read("file-1").unwrap();
    let with_read = requests_since(&counted.server, before);
    assert_eq!(with_read.len(), 6, "{with_read:?}");
    for seed in [0, 2] {
        mounted.read(&format!("file-{seed}")).unwrap();
    }
    drop(mounted);
    assert_later_mounts_ask_for_the_tag_at_most(counted);
}

#[test]
fn offline_with_an_empty_store_is_a_clear_error_without_a_request() {
    let Some(counted) = Counted::new(Packing::Gzip) else {
        return;
    };
    let target = counted.place.target();
    let latest = counted.reference();
    let digest = latest.replace(":latest", &format!("@{}", counted.manifest));
    for reference in [latest, digest] {
        let mut command = counted.place.sifon(["mount", "--offline", &reference]);
        let said = counted.place.refusal(command.arg(&target));
        assert!(said.contains("offline"), "{said}");
        assert!(!target.exists());
    }
    assert_eq!(counted.server.seen().len(), 0);
}

#[test]
fn offline_with_a_part_of_a_lazy_image_says_which_part_is_missing() {
    let Some(counted) = Counted::new(Packing::ZstdChunked) else {
        return;
    };
    let mounted = counted.place.mount(&counted.reference());
    mounted.read("file-1").unwrap();
    drop(mounted);
    let before = counted.server.seen().len();
    let offline = |command: &mut std::process::Command| _ = command.arg("--offline");
    let mounted = counted.place.mount_with(&counted.reference(), offline);
    assert!(mounted.read("file-1").unwrap() == noise(400_000, 1));
    let missing = mounted.read("file-2").unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::EIO));
    drop(mounted);
    assert_eq!(counted.server.seen().len(), before);
}
