//! One image in every format and place: the same files, byte for byte.

use std::path::PathBuf;

use crate::fixture::{self, Fixture};
use crate::layers::model::Model;
use crate::layout::{Layout, Packing, all, docker_archive};
use crate::place::{Place, can_mount, complaint, is_mounted};
use crate::support::real::RealRegistry;
use crate::tricky;
use crate::view::{View, assert_random_reads};

const STREAMED: [(&str, Packing); 5] = [
    ("tar", Packing::Tar),
    ("gzip", Packing::Gzip),
    ("gzip-members", Packing::GzipMembers),
    ("zstd", Packing::Zstd),
    ("zstd-seekable", Packing::ZstdSeekable),
];

/// Those with a table of contents, in JSON.
const LAZY: [(&str, Packing); 3] = [
    ("zstd-chunked", Packing::ZstdChunked),
    ("estargz", Packing::Estargz),
    ("estargz-shared", Packing::EstargzShared),
];

/// The tricky image, once for each way of packing it.
fn layout(place: &Place) -> Layout {
    let mut layout = Layout::new(place.path("layout"));
    let layers = tricky::layers();
    for (tag, packing) in STREAMED {
        layout.add(tag, &all(&layers, packing));
    }
    for (tag, packing) in LAZY {
        layout.add(tag, &all(&tricky::chunkable_layers(), packing));
    }
    layout
}

/// Mounts it, reads at random, mounts it again, without what the kernel then knows, and compares everything.
#[track_caller]
fn assert_shows(place: &Place, reference: &str, model: &Model) {
    let mounted = place.mount(reference);
    assert_random_reads(mounted.path(), model);
    drop(mounted);
    let mounted = place.mount(reference);
    View::of(mounted.path()).assert_is(&View::expected(model));
}

#[test]
fn a_layout_shows_the_same_files_however_it_is_packed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layout = layout(&place);
    let model = tricky::model(&tricky::layers());
    for (tag, _) in STREAMED {
        assert_shows(&place, &layout.reference(tag), &model);
    }
    let model = tricky::model(&tricky::chunkable_layers());
    for (tag, _) in LAZY {
        assert_shows(&place, &layout.reference(tag), &model);
    }
}

#[test]
fn archives_show_what_the_layout_shows() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layers = tricky::layers();
    let model = tricky::model(&layers);
    let mut layout = Layout::new(place.path("layout"));
    layout.add("gzip", &all(&layers, Packing::Gzip));
    let file = place.path("image.tar");
    layout.archived(&file);
    assert_shows(
        &place,
        &format!("oci-archive:{}:gzip", file.display()),
        &model,
    );
    let file = place.path("saved.tar");
    docker_archive(&file, "example.org/tricky:1", &all(&layers, Packing::Tar));
    assert_shows(
        &place,
        &format!("docker-archive:{}", file.display()),
        &model,
    );
}

#[test]
fn a_real_registry_shows_what_the_layout_shows() {
    if !can_mount() {
        return;
    }
    let Some(registry) = RealRegistry::open() else {
        return;
    };
    let place = Place::new();
    let layout = layout(&place);
    registry.push_layout("some/tricky", layout.path());
    let reference = |tag: &str| format!("docker://{}/some/tricky:{tag}", registry.address());
    let model = tricky::model(&tricky::layers());
    for (tag, _) in STREAMED {
        assert_shows(&place, &reference(tag), &model);
    }
    let model = tricky::model(&tricky::chunkable_layers());
    for (tag, _) in LAZY {
        assert_shows(&place, &reference(tag), &model);
    }
}

/// Looks at a mount as whoever runs this.
#[test]
#[ignore = "the role of another user"]
fn plays_visitor() {
    let Some(root) = std::env::var_os("SIFON_TEST_LOOKS_AT").map(PathBuf::from) else {
        return;
    };
    let model = tricky::model(&tricky::layers());
    assert_random_reads(&root, &model);
    View::of(&root).assert_is(&View::expected(&model));
}

#[test]
fn a_plain_user_sees_the_same_files() {
    if !can_mount() {
        return;
    }
    let place = Place::of_plain_user();
    let layout = layout(&place);
    let target = place.own_directory("mount");
    // Where that user can reach it.
    let visitor = place.path("visitor");
    std::fs::copy("/proc/self/exe", &visitor).unwrap();
    for tag in ["gzip", "zstd"] {
        place.says(["mount", &layout.reference(tag), target.to_str().unwrap()]);
        let mut visit = place.program(&visitor);
        visit.args([
            "--exact",
            "formats::plays_visitor",
            "--ignored",
            "--nocapture",
        ]);
        let seen = visit.env("SIFON_TEST_LOOKS_AT", &target).output().unwrap();
        let said = String::from_utf8_lossy(&seen.stdout);
        assert!(said.contains("1 passed"), "{said}{}", complaint(&seen));
        place.says(["umount".as_ref(), target.as_os_str()]);
        assert!(!is_mounted(&target));
    }
}

#[test]
fn the_tricky_fixture_is_shown_as_it_expects() {
    let Some(fixture) = Fixture::beside().filter(|_| can_mount()) else {
        return;
    };
    let place = Place::new();
    for tag in ["gzip", "zstd"].iter().chain(&fixture::LAZY) {
        let mounted = place.mount(&format!("oci:{}:{tag}", fixture.layout().display()));
        fixture.assert_is_shown(tag, mounted.path());
    }
}
