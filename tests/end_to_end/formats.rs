//! One image in every format and place: the same files, byte for byte.

use std::path::Path;

use crate::layers::model::Model;
use crate::layout::{Layer, Layout, Packed, Packing, docker_archive, packed};
use crate::place::{Place, can_mount};
use crate::support::real::RealRegistry;
use crate::tricky;
use crate::view::{View, assert_random_reads};

const STREAMED: [(&str, Packing); 4] = [
    ("tar", Packing::Tar),
    ("gzip", Packing::Gzip),
    ("gzip-members", Packing::GzipMembers),
    ("zstd", Packing::Zstd),
];

fn all(layers: &[Layer], packing: Packing) -> Vec<Packed> {
    layers.iter().map(|layer| packed(layer, packing)).collect()
}

/// The tricky image, once for each way of packing it.
fn layout(place: &Place) -> Layout {
    let mut layout = Layout::new(place.path("layout"));
    let layers = tricky::layers();
    for (tag, packing) in STREAMED {
        layout.add(tag, &all(&layers, packing));
    }
    layout.add(
        "zstd-chunked",
        &all(&tricky::chunkable_layers(), Packing::ZstdChunked),
    );
    layout
}

/// Mounts it, compares, reads at random.
#[track_caller]
fn assert_shows(place: &Place, reference: &str, model: &Model) {
    let mounted = place.mount(reference);
    assert_random_reads(mounted.path(), model);
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
    assert_shows(&place, &layout.reference("zstd-chunked"), &model);
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
    // Nobody has it, then the store has what was read, then it has everything.
    for _ in 0..2 {
        assert_shows(&place, &reference("zstd-chunked"), &model);
    }
}
