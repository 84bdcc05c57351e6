//! Small images, all of whose files are looked at and read to the last byte: even then fewer bytes come than their layers hold.
//! What nobody reads is not fetched (heads of archives, what builders keep for themselves, tables of other readers), and nothing
//! is fetched twice, not even where a table of contents had to be looked for at a layer's end.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sifon_mount::layer::soci::Version;

use crate::fetching::{fetched, until};
use crate::fixture::{self, Fixture};
use crate::layout::{Layout, Packing, all};
use crate::place::{Place, can_mount};
use crate::server::{before, reference};
use crate::soci::tricky_layers;
use crate::support::faulty::Faulty;
use crate::support::real::RealRegistry;
use crate::tricky;
use crate::view::View;

const REPOSITORY: &str = "some/image";

/// A real registry behind a server that counts.
struct Shelf {
    registry: RealRegistry,
    server: Faulty,
    place: Place,
}

impl Shelf {
    fn open() -> Option<Self> {
        let registry = RealRegistry::open().filter(|_| can_mount())?;
        Some(Self {
            server: before(&registry),
            registry,
            place: Place::new(),
        })
    }

    /// Shows an image of `layout` where nobody has seen it, and has all of it compared; a look at the files' names and attributes
    /// alone costs nothing but the tables. Gives what was asked for of the layers.
    #[track_caller]
    fn asked(&self, layout: &Path, tag: &str, compare: impl Fn(&Path)) -> Asked {
        let place = Place::new();
        let layers = layers_of(layout, tag);
        let before = self.server.seen().len();
        let mounted = place.mount_with(&reference(&self.server, tag), |command| {
            // Without a profile what programs start with is fetched ahead.
            command.args(["--soci-v1", "--no-profile"]);
        });
        let of_tables = Asked::since(&self.server, before, &layers);
        assert!(names_below(mounted.path()) > 50, "{tag}");
        assert_eq!(fetched(&place, mounted.path()), 0, "{tag}");
        compare(mounted.path());
        // What is read ahead may still be coming.
        let asked = || Asked::since(&self.server, before, &layers);
        until(|| fetched(&place, mounted.path()) + of_tables.bytes() == asked().bytes());
        drop(mounted);
        asked()
    }
}

/// How many names are below a directory, all of which are looked at.
fn names_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let each = entries.map(|entry| {
        let is_directory = fs::symlink_metadata(entry.path()).unwrap().is_dir();
        1 + if is_directory {
            names_below(&entry.path())
        } else {
            0
        }
    });
    each.sum()
}

/// The layers of an image in a layout: digests and sizes.
fn layers_of(layout: &Path, tag: &str) -> Vec<(String, u64)> {
    let read = |path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = read(layout.join("index.json"));
    let mut manifests = index["manifests"].as_array().unwrap().iter();
    let is_it = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let digest = manifests.find(is_it).unwrap()["digest"].as_str().unwrap();
    let manifest = read(layout.join("blobs").join(digest.replace(':', "/")));
    let layers = manifest["layers"].as_array().unwrap().iter();
    let told = |layer: &Value| {
        let digest = layer["digest"].as_str().unwrap().to_owned();
        (digest, layer["size"].as_u64().unwrap())
    };
    layers.map(told).collect()
}

/// What was asked for of each layer: its size, and the ranges.
#[derive(Debug)]
struct Asked(Vec<(u64, Vec<(usize, usize)>)>);

impl Asked {
    fn since(server: &Faulty, before: usize, layers: &[(String, u64)]) -> Self {
        let seen = server.seen();
        let of_layer = |(digest, size): &(String, u64)| {
            let of_it = seen[before..].iter().filter(|request| {
                request.method() == "GET" && request.second().ends_with(&format!("/blobs/{digest}"))
            });
            let ranges =
                of_it.map(|request| request.range().expect("all of a layer was asked for"));
            (*size, ranges.collect())
        };
        Self(layers.iter().map(of_layer).collect())
    }

    fn bytes(&self) -> u64 {
        let ranges = self.0.iter().flat_map(|(_, ranges)| ranges);
        ranges.map(|(first, last)| (last + 1 - first) as u64).sum()
    }

    /// How many bytes the layers hold.
    fn held(&self) -> u64 {
        self.0.iter().map(|(size, _)| size).sum()
    }

    /// Fewer bytes than the layers hold were asked for, tables included, and no byte twice.
    #[track_caller]
    fn assert_is_thrifty(&self, tag: &str) {
        for (_, ranges) in &self.0 {
            let mut sorted = ranges.clone();
            sorted.sort_unstable();
            let are_apart = sorted.windows(2).all(|pair| pair[0].1 < pair[1].0);
            assert!(are_apart, "{tag}: {sorted:?}");
        }
        let (asked, held) = (self.bytes(), self.held());
        assert!(asked < held, "{tag}: {asked} of {held}");
    }
}

#[test]
fn images_with_tables_of_contents_are_read_whole_for_fewer_bytes_than_their_layers_hold() {
    let Some(shelf) = Shelf::open() else { return };
    let mut layout = Layout::new(shelf.place.path("layout"));
    let layers = tricky::chunkable_layers();
    let tags = [
        ("zstd-chunked", Packing::ZstdChunked),
        ("estargz", Packing::Estargz),
        ("estargz-shared", Packing::EstargzShared),
    ];
    for (tag, packing) in tags {
        layout.add(tag, &all(&layers, packing));
    }
    shelf.registry.push_layout(REPOSITORY, layout.path());
    let expected = View::expected(&tricky::model(&layers));
    for (tag, _) in tags {
        let compare = |shown: &Path| View::of(shown).assert_is(&expected);
        shelf
            .asked(layout.path(), tag, compare)
            .assert_is_thrifty(tag);
    }
}

/// Their zTOCs are blobs of their own, beside the layers. Spans are all that can be asked for, and every one of these has a byte of
/// a file: what remains are the heads of gzip, ten bytes of a layer (RFC 1952).
#[test]
fn images_with_soci_indexes_are_read_whole_for_fewer_bytes_than_their_layers_hold() {
    let Some(shelf) = Shelf::open() else { return };
    let mut layout = Layout::new(shelf.place.path("layout"));
    let layers = tricky_layers();
    let packed = all(&layers, Packing::Gzip);
    layout.add_soci("v1", &packed, Version::V1);
    layout.add_soci("v2", &packed, Version::V2);
    shelf.registry.push_layout(REPOSITORY, layout.path());
    let expected = View::expected(&tricky::model(&layers));
    for tag in ["v1", "v2"] {
        let compare = |shown: &Path| View::of(shown).assert_is(&expected);
        let asked = shelf.asked(layout.path(), tag, compare);
        asked.assert_is_thrifty(tag);
        assert_eq!(asked.held() - asked.bytes(), 10 * layers.len() as u64);
    }
}

#[test]
fn the_tricky_fixture_is_read_whole_for_fewer_bytes_than_its_layers_hold() {
    let Some(fixture) = Fixture::beside() else {
        return;
    };
    let Some(shelf) = Shelf::open() else { return };
    let layout = fixture.layout();
    shelf.registry.push_layout(REPOSITORY, &layout);
    attach_soci_index(&shelf.registry, &layout);
    // The gzip image is lazy by the index that is attached to it.
    for tag in fixture::LAZY.iter().chain(&["gzip"]) {
        let compare = |shown: &Path| fixture.assert_is_shown(tag, shown);
        shelf.asked(&layout, tag, compare).assert_is_thrifty(tag);
    }
}

/// The index that the original `soci` made of the fixture's gzip image stands in its layout without a name: gives it the tag by
/// which registries that know no referrers tell them.
fn attach_soci_index(registry: &RealRegistry, layout: &Path) {
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        let digest = entry["digest"].as_str().unwrap();
        let manifest = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let Some(subject) = manifest["subject"]["digest"].as_str() else {
            continue;
        };
        let kind = "application/vnd.oci.image.index.v1+json";
        let mut described =
            json!({"mediaType": entry["mediaType"], "digest": digest, "size": entry["size"]});
        described["artifactType"] = manifest["config"]["mediaType"].clone();
        let referrers = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [described]});
        let tag = subject.replace(':', "-");
        registry.push_manifest(REPOSITORY, &tag, kind, referrers.to_string().as_bytes());
    }
}
