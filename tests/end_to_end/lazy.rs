//! What lazy reading is for: everything that can be seen is right, and what cannot be seen is not fetched.

use std::ops::Range;

use sifon_mount::digest::Digest;
use sifon_mount::layer::soci::Version;

use crate::fetching::{fetched, until};
use crate::layers::model::Model;
use crate::layers::{file, noise};
use crate::layout::{Layer, Layout, Packed, Packing, all};
use crate::place::{Place, can_mount};
use crate::server::{before, ranges_asked, reference};
use crate::soci::tricky_layers;
use crate::support::faulty::Faulty;
use crate::support::real::RealRegistry;
use crate::tricky;
use crate::view::View;

/// Bytes at the end of the bottom layer that an upper layer hides.
const HIDDEN_BYTES: usize = 6 << 20;

fn with_hidden(mut layers: Vec<Layer>) -> Vec<Layer> {
    let bottom = &mut layers[0].members;
    bottom.push(file("hidden", noise(HIDDEN_BYTES, 99)));
    layers[1].members.push(file("hidden", "in a few bytes"));
    layers
}

/// An image in a registry that sees what is asked.
struct Shelf {
    _registry: RealRegistry,
    server: Faulty,
    place: Place,
    layers: Vec<Packed>,
    expected: View,
}

impl Shelf {
    fn new(
        layers: &[Layer],
        packing: Packing,
        add: impl FnOnce(&mut Layout, &[Packed]),
    ) -> Option<Self> {
        let registry = RealRegistry::open().filter(|_| can_mount())?;
        let place = Place::new();
        let mut layout = Layout::new(place.path("layout"));
        let packed = all(layers, packing);
        add(&mut layout, &packed);
        registry.push_layout("some/image", layout.path());
        let model: Model = tricky::model(layers);
        Some(Self {
            server: before(&registry),
            _registry: registry,
            expected: View::expected(&model),
            layers: packed,
            place,
        })
    }

    fn image(&self) -> String {
        reference(&self.server, "latest")
    }

    /// Looks at all that is there, twice; less than the bottom layer holds is fetched of it, and nothing once more. (How far is read
    /// ahead of readers depends on the order in which the kernel asks.)
    #[track_caller]
    fn assert_is_read_lazily(&self) {
        let bottom = &self.layers[0].bytes;
        let ranges = |layer: &Packed, before| {
            let digest = Digest::of(&layer.bytes).to_string();
            ranges_asked(&self.server, before, &digest, layer.bytes.len())
        };
        let bytes = |ranges: &[Range<usize>]| ranges.iter().map(Range::len).sum::<usize>();
        let asked_for_all = || {
            let before = self.server.seen().len();
            let mounted = self.place.mount_with(&self.image(), |command| {
                // Without a profile what programs start with is fetched ahead.
                command.args(["--soci-v1", "--no-profile"]);
            });
            let with_tables = self.server.seen().len();
            View::of(mounted.path()).assert_is(&self.expected);
            // What is read ahead may still be coming; without it the next mount would ask again.
            until(|| {
                let of_files = self.layers.iter();
                let of_files = of_files.map(|layer| bytes(&ranges(layer, with_tables)));
                fetched(&self.place, mounted.path()) == of_files.sum::<usize>() as u64
            });
            ranges(&self.layers[0], before)
        };
        let mut asked = asked_for_all();
        assert!(!asked.is_empty());
        asked.extend(asked_for_all());
        let limit = bottom.len() - HIDDEN_BYTES / 2;
        assert!(bytes(&asked) < limit, "{asked:?} of {}", bottom.len());
        asked.sort_unstable_by_key(|range| range.start);
        let are_apart = asked.windows(2).all(|pair| pair[0].end <= pair[1].start);
        assert!(are_apart, "{asked:?}");
    }
}

#[test]
fn layers_with_a_table_of_contents_are_read_lazily() {
    let layers = with_hidden(tricky::chunkable_layers());
    for packing in [
        Packing::ZstdChunked,
        Packing::Estargz,
        Packing::EstargzShared,
    ] {
        let add = |layout: &mut Layout, layers: &[Packed]| {
            layout.add("latest", layers);
        };
        let Some(shelf) = Shelf::new(&layers, packing, add) else {
            return;
        };
        shelf.assert_is_read_lazily();
    }
}

#[test]
fn gzip_layers_are_read_lazily_by_either_kind_of_soci_index() {
    let layers = with_hidden(tricky_layers());
    for version in [Version::V1, Version::V2] {
        let add = |layout: &mut Layout, layers: &[Packed]| {
            layout.add_soci("latest", layers, version);
        };
        let Some(shelf) = Shelf::new(&layers, Packing::GzipMembers, add) else {
            return;
        };
        shelf.assert_is_read_lazily();
    }
}

#[test]
fn gzip_layers_are_read_lazily_by_an_index_of_our_own() {
    let layers = with_hidden(tricky::layers());
    let add = |layout: &mut Layout, layers: &[Packed]| {
        layout.add("latest", layers);
    };
    let Some(shelf) = Shelf::new(&layers, Packing::GzipMembers, add) else {
        return;
    };
    let index = ["index", "--spacing", "64K", &shelf.image()].map(str::to_owned);
    shelf.place.says(index);
    shelf.assert_is_read_lazily();
}
