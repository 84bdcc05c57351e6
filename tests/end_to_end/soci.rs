//! SOCI indexes: images of plain gzip layers that are read lazily.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use sifon_mount::layer::soci::Version;

use crate::layers::{file, noise, text};
use crate::layout::{Layer, Layout, Packed, Packing, all};
use crate::place::{Place, can_mount};
use crate::server::{before, reference, requests_since, serving};
use crate::support::real::RealRegistry;
use crate::tricky;
use crate::view::{View, assert_random_reads};

/// The tricky layers without sparse files, of which zTOCs cannot tell.
pub fn tricky_layers() -> Vec<Layer> {
    let mut layers = tricky::layers();
    for member in layers.iter_mut().flat_map(|layer| &mut layer.members) {
        member.is_sparse = false;
    }
    layers
}

pub fn with_v1(command: &mut Command) {
    command.arg("--soci-v1");
}

#[test]
fn an_image_with_an_index_shows_the_same_files_as_without() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layers = tricky_layers();
    let model = tricky::model(&layers);
    for packing in [Packing::Gzip, Packing::GzipMembers] {
        let mut layout = Layout::new(place.path(format!("layout-{packing:?}")));
        let layers = all(&layers, packing);
        layout.add_soci("v1", &layers, Version::V1);
        layout.add_soci("v2", &layers, Version::V2);
        for tag in ["v1", "v2"] {
            let mounted = place.mount_with(&layout.reference(tag), with_v1);
            assert_random_reads(mounted.path(), &model);
            drop(mounted);
            let mounted = place.mount_with(&layout.reference(tag), with_v1);
            View::of(mounted.path()).assert_is(&View::expected(&model));
            drop(mounted);
            assert_eq!(extensions(&place), ["marks", "table"]);
        }
    }
}

/// What kinds of files the store has of layers.
fn extensions(place: &Place) -> Vec<String> {
    let files = place.stored("layers").into_iter();
    let all = files.map(|file| file.extension().unwrap().to_str().unwrap().to_owned());
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Two layers, so that spans are many and most are not needed.
pub fn large_layers() -> Vec<Packed> {
    large_layers_in(Packing::Gzip)
}

pub fn large_layers_in(packing: Packing) -> Vec<Packed> {
    let members = |seed| {
        let name = |part: &str| format!("{part}-{seed}");
        vec![
            file(name("before"), noise(3 << 20, seed)),
            file(name("file"), text(5000)),
            file(name("after"), noise(3 << 20, seed + 10)),
        ]
    };
    all(&[Layer::new(members(0)), Layer::new(members(1))], packing)
}

#[test]
fn an_index_costs_one_request_for_itself_and_one_for_each_layer_and_none_the_next_time() {
    let Some(registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers = large_layers();
    layout.add_soci("v2", &layers, Version::V2);
    layout.add_soci("v1", &layers, Version::V1);
    registry.push_layout("some/image", layout.path());
    let server = before(&registry);
    for (tag, flags, extra) in [("v2", &[][..], 1), ("v1", &["--soci-v1"][..], 3)] {
        let place = Place::new();
        let asked = |expected: &str| {
            let before = server.seen().len();
            let mounted = place.mount_with(&reference(&server, tag), |command| {
                command.args(flags);
            });
            let at_mount = requests_since(&server, before).len();
            assert!(
                mounted.read("file-1").unwrap() == text(5000),
                "{tag} {expected}"
            );
            drop(mounted);
            at_mount
        };
        // The manifest by its tag, the config, the index (and where it is: a question and a tag), and two zTOCs.
        assert_eq!(asked("first"), 2 + extra + 2, "{tag}");
        assert_eq!(asked("again"), 0, "{tag}");
    }
}

#[test]
fn an_attached_index_is_not_used_unless_the_user_says_so() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add_soci("v1", &large_layers(), Version::V1);
    let mounted = place.mount(&layout.reference("v1"));
    assert!(mounted.read("file-1").unwrap() == text(5000));
    drop(mounted);
    assert_eq!(extensions(&place), ["native", "table"]);
}

/// An index that somebody attached tells of two files of the same length, each with the other's bytes.
#[test]
fn an_attached_index_cannot_pass_one_file_off_as_another() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let members = |names: [&str; 2]| {
        let [first, second] = names;
        let files = vec![
            file(first, text(9000)),
            file(second, noise(9000, 1)),
            file("honest", text(77)),
        ];
        all(&[Layer::new(files)], Packing::Gzip)
    };
    let mut layout = Layout::new(place.path("layout"));
    let layers = members(["bin/su", "bin/id"]);
    let honest = crate::layout::ztoc(&layers[0]);
    let swapped = |bytes: &[u8], from: &[u8], to: &[u8]| {
        let at = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let lie = swapped(&honest, b"bin/su", b"bin/xx");
    let lie = swapped(&swapped(&lie, b"bin/id", b"bin/su"), b"bin/xx", b"bin/id");
    layout.add_soci_with("v1", &layers, Version::V1, |_| (lie.clone(), None));
    let mounted = place.mount_with(&layout.reference("v1"), with_v1);
    for name in ["bin/su", "bin/id"] {
        let refused = mounted.read(name).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO), "{name}");
    }
    assert!(mounted.read("honest").unwrap() == text(77));
}

#[test]
fn a_layer_whose_index_is_damaged_is_streamed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add_soci_with("v2", &large_layers(), Version::V2, |layer| {
        let mut ztoc = crate::layout::ztoc(layer);
        ztoc.truncate(ztoc.len() / 2);
        (ztoc, None)
    });
    let mounted = place.mount(&layout.reference("v2"));
    assert!(mounted.read("file-1").unwrap() == text(5000));
    drop(mounted);
    assert_eq!(extensions(&place), ["native", "table"]);
}

#[test]
fn an_image_that_was_indexed_once_is_read_lazily_from_then_on() {
    let Some(registry) = RealRegistry::open().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers = large_layers();
    layout.add("latest", &layers);
    registry.push_layout("some/image", layout.path());
    let server = before(&registry);
    let reference = reference(&server, "latest");
    let told = place.says(["index", "--json", "--spacing", "64K", &reference]);
    let told: Vec<Value> = serde_json::from_str(&told).unwrap();
    assert!(
        told.iter().all(|layer| layer["index"] == "made"),
        "{told:?}"
    );
    assert_eq!(place.says(["index", &reference]).matches("had").count(), 2);
    let is_lazy = |layer: &Value| layer["is_lazy"] == true && layer["is_stored"] == true;
    let inspected = place.says(["inspect", "--json", &reference]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert!(
        inspected["layers"].as_array().unwrap().iter().all(is_lazy),
        "{inspected}"
    );

    let before = server.seen().len();
    let mounted = place.mount(&reference);
    assert!(requests_since(&server, before).is_empty());
    assert!(mounted.read("file-1").unwrap() == text(5000));
    assert!(mounted.read("after-0").unwrap() == noise(3 << 20, 10));
    drop(mounted);
    assert_eq!(extensions(&place), ["index", "marks"]);
}

#[test]
fn what_is_read_by_our_own_index_is_what_the_layers_hold() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers = tricky::layers();
    let model = tricky::model(&layers);
    for (tag, packing) in [("one", Packing::Gzip), ("many", Packing::GzipMembers)] {
        layout.add(tag, &all(&layers, packing));
        place.says(["index", "--spacing", "64K", &layout.reference(tag)]);
        let mounted = place.mount(&layout.reference(tag));
        assert_random_reads(mounted.path(), &model);
        drop(mounted);
        let mounted = place.mount(&layout.reference(tag));
        View::of(mounted.path()).assert_is(&View::expected(&model));
    }
    layout.add("zstd", &all(&layers, Packing::Zstd));
    let told = place.says(["index", &layout.reference("zstd")]);
    assert_eq!(told.matches("not gzip").count(), 3, "{told}");
}

#[test]
fn inspect_tells_by_which_index_each_layer_is_read_and_what_is_trusted() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers = large_layers();
    layout.add_soci("v1", &layers, Version::V1);
    layout.add_soci("v2", &layers[..1], Version::V2);
    let chunked = [Layer::new(vec![file("f", text(10))])];
    layout.add("estargz", &all(&chunked, Packing::Estargz));
    layout.add("zstd-chunked", &all(&chunked, Packing::ZstdChunked));
    layout.add("zstd", &all(&chunked, Packing::Zstd));
    layout.add("zstd-seekable", &all(&chunked, Packing::ZstdSeekable));
    let told = |tag: &str, flags: &[&str]| {
        let reference = layout.reference(tag);
        let words = ["inspect", "--json", &reference].into_iter();
        let told = place.says(words.chain(flags.iter().copied()));
        let told: Value = serde_json::from_str(&told).unwrap();
        let layer = &told["layers"][0];
        let word = |key: &str| layer[key].as_str().unwrap_or("none").to_owned();
        (
            word("format"),
            layer["is_lazy"] == true,
            word("index"),
            word("trust"),
        )
    };
    for (tag, flags, format, index, trust) in [
        ("v2", &[][..], "gzip", "SOCI v2", "manifest names the index"),
        ("v1", &["--soci-v1"][..], "gzip", "SOCI v1", "nobody signs"),
        (
            "estargz",
            &[],
            "eStargz",
            "table of contents",
            "manifest names the table",
        ),
        (
            "zstd-chunked",
            &[],
            "zstd:chunked",
            "table of contents",
            "manifest names the table",
        ),
    ] {
        let seen = told(tag, flags);
        assert_eq!((&*seen.0, seen.1), (format, true));
        assert!(seen.2.contains(index) && seen.3.contains(trust), "{seen:?}");
    }
    let plain = told("zstd", &[]);
    assert_eq!((&*plain.0, plain.1, &*plain.2), ("zstd", false, "none"));
    let hint = told("zstd-seekable", &[]);
    assert_eq!(
        (&*hint.0, hint.1, &*hint.2),
        ("zstd:seekable", false, "none")
    );
    assert!(hint.3.contains("none of its table"), "{hint:?}");
    let plain = told("v1", &[]);
    assert_eq!((&*plain.0, plain.1, &*plain.2), ("gzip", false, "none"));
    assert!(plain.3.contains("whole layer"), "{plain:?}");
}

#[test]
fn an_attached_index_belongs_to_the_image_in_the_store() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add_soci("v1", &large_layers(), Version::V1);
    let server = serving(&layout);
    let reference = reference(&server, "v1");
    drop(place.mount_with(&reference, with_v1));
    let stored = || {
        let parts = ["manifests", "layers", "packed", "trees"].into_iter();
        parts
            .flat_map(|part| place.stored(part))
            .collect::<BTreeSet<_>>()
    };
    // So old that it goes unless it belongs to an image.
    let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    for file in stored() {
        let file = fs::File::open(file).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let before = stored();
    place.says(["cache", "clean", "--to", "1T"]);
    assert_eq!(stored(), before);
    let offline = place.mount_with(&reference, |command| {
        command.args(["--soci-v1", "--offline"]);
    });
    let file = fs::metadata(offline.path().join("file-1")).unwrap();
    assert_eq!(file.len(), 5000);
}
