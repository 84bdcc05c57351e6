//! The store under everything that can happen to it: what is shown stays right, and nothing half-written is used.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use sifon_mount::digest::Digest;

use crate::layers::model::Model;
use crate::layers::{directory, file, hard_link, noise, text};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{PATIENCE, Place, can_mount, complaint};
use crate::server::{answer, reference, requests_since, serving};
use crate::support::faulty::Faulty;
use crate::tricky;
use crate::view::View;

const PACKINGS: [(&str, Packing); 2] =
    [("streamed", Packing::Gzip), ("lazy", Packing::ZstdChunked)];

fn layers() -> Vec<Layer> {
    vec![
        Layer::new(vec![
            directory("usr"),
            file("usr/noise", noise(700_000, 1)),
            file("usr/text", text(300_000)),
            file("usr/hidden-name", "kept").mode(0o600),
        ]),
        Layer::new(vec![
            file("usr/more", noise(200_000, 2)),
            hard_link("usr/linked", "usr/noise"),
        ]),
    ]
}

/// An image of two layers in a registry, once streamed and once lazy.
struct Shelf {
    place: Place,
    server: Faulty,
    expected: View,
}

impl Shelf {
    fn new(place: Place) -> Self {
        let layers = layers();
        let mut layout = Layout::new(place.path("layout"));
        for (tag, packing) in PACKINGS {
            layout.add(tag, &all(&layers, packing));
        }
        Self {
            server: serving(&layout),
            expected: View::expected(&tricky::model(&layers)),
            place,
        }
    }

    /// Mounts, compares everything; gives what the command said.
    #[track_caller]
    fn assert_shows(&self, tag: &str) -> String {
        let mounted = self.place.mount(&reference(&self.server, tag));
        View::of(mounted.path()).assert_is(&self.expected);
        mounted.said.clone()
    }

    /// How many requests for blobs `what` makes.
    fn blobs_asked(&self, what: impl FnOnce()) -> usize {
        let before = self.server.seen().len();
        what();
        let asked = requests_since(&self.server, before);
        asked
            .iter()
            .filter(|request| request.contains("/blobs/"))
            .count()
    }
}

#[test]
fn a_daemon_killed_in_mid_stream_leaves_nothing_that_is_ever_used() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layers = [Layer::new(vec![
        file("large", noise(3 << 20, 1)),
        file("small", "s"),
    ])];
    let mut layout = Layout::new(place.path("layout"));
    let blobs = all(&layers, Packing::Gzip);
    layout.add("latest", &blobs);
    let (layer, len) = (
        Digest::of(&blobs[0].bytes).to_string(),
        blobs[0].bytes.len(),
    );
    let stalls = Arc::new(AtomicBool::new(true));
    let (came, has_come) = mpsc::channel();
    let server = {
        let (path, stalls) = (layout.path().to_owned(), Arc::clone(&stalls));
        Faulty::start(move |request, _| {
            let reply = answer(&path, request);
            if request.second().contains(&layer) && stalls.load(Ordering::SeqCst) {
                let _ = came.send(());
                return reply.stall_after(len * 2 / 3);
            }
            reply
        })
    };
    let target = place.target();
    let mut command = place.sifon(["mount", &reference(&server, "latest")]);
    let launcher = command
        .arg(&target)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let launcher = launcher.spawn().unwrap();
    has_come.recv_timeout(PATIENCE).unwrap();
    let is_launcher =
        |pid: rustix::process::Pid| pid.as_raw_nonzero().get() as u32 == launcher.id();
    let daemons = place.processes();
    let daemons: Vec<_> = daemons
        .iter()
        .filter(|process| !is_launcher(process.pid))
        .collect();
    assert!(!daemons.is_empty());
    daemons.iter().for_each(|process| process.kill());
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert!(complaint(&output).contains("FATAL:   "), "{output:?}");
    daemons.iter().for_each(|process| process.wait());
    for part in ["layers", "trees"] {
        assert_eq!(place.stored(part), Vec::<std::path::PathBuf>::new());
    }
    stalls.store(false, Ordering::SeqCst);
    let mounted = place.mount(&reference(&server, "latest"));
    View::of(mounted.path()).assert_is(&View::expected(&Model::of([&layers[0].members[..]])));
    drop(mounted);
    assert_eq!(place.stored("tmp"), Vec::<std::path::PathBuf>::new());
    assert_eq!(place.stored("leases"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_store_can_be_deleted_while_its_images_are_mounted() {
    if !can_mount() {
        return;
    }
    let shelf = Shelf::new(Place::new());
    for (tag, _) in PACKINGS {
        let mounted = shelf.place.mount(&reference(&shelf.server, tag));
        mounted.read("usr/text").unwrap();
        fs::remove_dir_all(shelf.place.path("store")).unwrap();
        View::of(mounted.path()).assert_is(&shelf.expected);
        shelf.assert_shows(tag);
    }
}

#[test]
fn an_image_that_is_not_there_yet_can_be_mounted_twice_at_once() {
    if !can_mount() {
        return;
    }
    let shelf = Shelf::new(Place::new());
    for (tag, _) in PACKINGS {
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    start.wait();
                    shelf.assert_shows(tag);
                });
            }
        });
    }
    assert_eq!(shelf.place.stored("tmp"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_store_that_is_read_only_serves_what_it_has_and_the_rest_comes_without_it() {
    if !can_mount() {
        return;
    }
    let setup = "mount --bind store store";
    let test = "store::a_store_that_is_read_only_serves_what_it_has_and_the_rest_comes_without_it";
    let Some(place) = Place::in_own_namespace(test, setup) else {
        return;
    };
    let shelf = Shelf::new(place);
    let remount = |how: &str| {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,bind,{how}")])
            .arg(shelf.place.path("store"));
        assert!(mount.status().unwrap().success());
    };
    remount("ro");
    for (tag, _) in PACKINGS {
        let said = shelf.assert_shows(tag);
        assert!(said.contains("cannot be written to"), "{said}");
    }
    remount("rw");
    shelf.assert_shows("streamed");
    remount("ro");
    assert_eq!(shelf.blobs_asked(|| _ = shelf.assert_shows("streamed")), 0);
}

#[test]
fn a_store_that_is_full_does_without() {
    if !can_mount() {
        return;
    }
    // Room for the documents, and for a part of the layers.
    let setup = "mount -t tmpfs -o size=300k,mode=755 store store";
    let test = "store::a_store_that_is_full_does_without";
    let Some(place) = Place::in_own_namespace(test, setup) else {
        return;
    };
    let shelf = Shelf::new(place);
    for (tag, _) in PACKINGS {
        shelf.assert_shows(tag);
        shelf.assert_shows(tag);
    }
    // No room at all, not even for a table.
    let filler = fs::File::create(shelf.place.path("store/filler")).unwrap();
    let mut at = 0;
    while filler.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    for (tag, _) in PACKINGS {
        shelf.assert_shows(tag);
    }
}

#[test]
fn a_strangers_store_is_used_as_far_as_it_can_be_checked() {
    if !can_mount() {
        return;
    }
    let shelf = Shelf::new(Place::new());
    for (tag, _) in PACKINGS {
        shelf.assert_shows(tag);
    }
    // What the stranger changed, where nothing but the owner tells that it is wrong: a name.
    for part in ["layers", "trees"] {
        for file in shelf.place.stored(part) {
            replace(&file, b"hidden-name", b"shown--name");
        }
    }
    let store = shelf.place.path("store");
    let theirs = || {
        let mut chown = Command::new("chown");
        chown.args(["-R", "1000:1000"]).arg(&store);
        assert!(chown.status().unwrap().success());
    };
    theirs();
    let asked = shelf.blobs_asked(|| {
        let said = shelf.assert_shows("streamed");
        assert!(said.contains("its tables are not used"), "{said}");
    });
    assert_eq!(asked, 0, "the layers are accepted by what they are");
    theirs();
    // The two tables of contents come again, the chunks need not.
    assert_eq!(shelf.blobs_asked(|| _ = shelf.assert_shows("lazy")), 2);
}

fn replace(file: &Path, from: &[u8], to: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let places: Vec<usize> = (0..bytes.len().saturating_sub(from.len()))
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    // Tables and trees end with a checksum, which a stranger can compute as well as we.
    if file.extension().is_none_or(|suffix| suffix != "native") {
        let (content, checksum) = bytes.split_last_chunk_mut::<8>().unwrap();
        *checksum = twox_hash::XxHash3_64::oneshot(content).to_le_bytes();
    }
    fs::write(file, bytes).unwrap();
}

/// What a disk, a crash or a person does to a file: gives its new bytes.
type Damage = fn(Vec<u8>) -> Vec<u8>;

const DAMAGES: [(&str, Damage); 5] = [
    ("garbage", |bytes| noise(bytes.len(), 7)),
    ("zeros", |bytes| vec![0; bytes.len()]),
    ("cut in half", |bytes| bytes[..bytes.len() / 2].to_vec()),
    ("empty", |_| Vec::new()),
    ("longer", |bytes| [&bytes[..], b"more"].concat()),
];

/// Damages every file whose name ends so, in one directory of the store.
fn damage(place: &Place, (part, suffix): (&str, &str), damage: Damage) {
    let files = place.stored(part);
    let files: Vec<_> = files
        .iter()
        .filter(|file| file.to_string_lossy().ends_with(suffix))
        .collect();
    assert!(!files.is_empty(), "{part}");
    for file in files {
        fs::write(file, damage(fs::read(file).unwrap())).unwrap();
    }
}

#[test]
fn a_damaged_file_of_the_store_never_shows_wrong_bytes() {
    if !can_mount() {
        return;
    }
    std::thread::scope(|scope| {
        for (tag, parts) in [
            (
                "streamed",
                &[("layers", ".native"), ("layers", ".table"), ("trees", "")][..],
            ),
            (
                "lazy",
                &[
                    ("packed", ""),
                    ("layers", ".table"),
                    ("trees", ""),
                    ("manifests", ""),
                    ("tags", ""),
                    ("images", ""),
                ],
            ),
        ] {
            scope.spawn(move || {
                let shelf = Shelf::new(Place::new());
                shelf.assert_shows(tag);
                for &part in parts {
                    for (name, what) in DAMAGES {
                        eprintln!("{tag}: {part:?}: {name}");
                        damage(&shelf.place, part, what);
                        shelf.assert_shows(tag);
                    }
                }
            });
        }
    });
}

#[test]
fn a_byte_that_changed_in_kept_chunks_is_noticed() {
    if !can_mount() {
        return;
    }
    let shelf = Shelf::new(Place::new());
    for (tag, part, suffix) in [("streamed", "layers", ".native"), ("lazy", "packed", "")] {
        shelf.assert_shows(tag);
        for seed in 0..4 {
            for file in shelf.place.stored(part) {
                if !file.to_string_lossy().ends_with(suffix) {
                    continue;
                }
                let mut bytes = fs::read(&file).unwrap();
                for place in noise(64, seed).chunks(8) {
                    let place = u64::from_le_bytes(place.try_into().unwrap());
                    let at = place as usize % bytes.len();
                    bytes[at] ^= 1 << (place >> 61);
                }
                fs::write(&file, bytes).unwrap();
            }
            shelf.assert_shows(tag);
        }
    }
}

#[test]
fn damage_while_an_image_is_mounted_is_mended() {
    if !can_mount() {
        return;
    }
    let shelf = Shelf::new(Place::new());
    for (tag, part, suffix) in [("streamed", "layers", ".native"), ("lazy", "packed", "")] {
        shelf.assert_shows(tag);
        let mounted = shelf.place.mount(&reference(&shelf.server, tag));
        damage(&shelf.place, (part, suffix), |bytes| noise(bytes.len(), 9));
        View::of(mounted.path()).assert_is(&shelf.expected);
    }
}
