//! Pulls that are interrupted, and many at once: nothing is fetched twice that came once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sifon_mount::digest::Digest;

use crate::layers::{file, noise, text};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{PATIENCE, Place, complaint};
use crate::server::{answer, bytes_asked, reference, serving};
use crate::support::faulty::{Faulty, Reply};

/// What must have come before the interruption.
const CAME: u64 = 6 << 20;

/// What the disk has of it that counts for nothing at most: a kill comes between the bytes and their seals.
const UNSEALED: u64 = 4 << 20;

/// Waits until the store has so much of a blob that is on its way.
#[track_caller]
fn wait_for(place: &Place, bytes: u64) {
    let until = Instant::now() + PATIENCE;
    let kept = || {
        let files = place.stored("packed").into_iter();
        files
            .filter_map(|file| fs::metadata(file).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum::<u64>()
    };
    while kept() < bytes {
        assert!(Instant::now() < until, "{} bytes are here", kept());
        thread::sleep(Duration::from_millis(20));
    }
}

/// A layer of 24 MB, packed so, in a registry that is far away: what comes of it is waited for. Of its last part nothing comes
/// until the registry is well.
fn far_away(place: &Place, packing: Packing) -> (Faulty, Arc<AtomicBool>, String, usize) {
    let mut layout = Layout::new(place.path("layout"));
    let layers = [Layer::new(vec![file("noise", noise(24 << 20, 1))])];
    let blobs = all(&layers, packing);
    layout.add("1", &blobs);
    let (digest, size) = (
        Digest::of(&blobs[0].bytes).to_string(),
        blobs[0].bytes.len(),
    );
    let is_well = Arc::new(AtomicBool::new(false));
    let (path, healed, layer) = (layout.path().to_owned(), is_well.clone(), digest.clone());
    let line = Mutex::new(());
    let server = Faulty::start(move |request, _| {
        let reply = answer(&path, request);
        let is_layer = request.second().ends_with(&layer) && request.method() == "GET";
        if !is_layer || healed.load(Ordering::SeqCst) {
            return reply;
        }
        match request.range() {
            Some((_, last)) if last < 20 << 20 => {
                let _alone = line.lock().unwrap();
                thread::sleep(Duration::from_millis(300));
                reply
            }
            _ => reply.stall_after(0),
        }
    });
    (server, is_well, digest, size)
}

fn assert_only_the_rest_comes(place: &Place, server: &Faulty, digest: &str, size: usize) {
    let before = server.seen().len();
    let again = place
        .sifon(["pull", "out.sif", &reference(server, "1")])
        .output()
        .unwrap();
    let said = complaint(&again);
    assert!(again.status.success(), "{said}");
    assert!(said.contains("are here already"), "{said}");
    let asked = bytes_asked(server, before, digest, size);
    assert!(asked + CAME as usize <= size, "{asked} of {size} bytes");
    for part in ["packed", "tmp"] {
        assert_eq!(place.stored(part), Vec::<PathBuf>::new(), "{part}");
    }
}

#[test]
fn what_came_before_a_pull_was_killed_is_not_fetched_again() {
    for packing in [Packing::Gzip, Packing::Zstd] {
        let place = Place::new();
        let (server, is_well, digest, size) = far_away(&place, packing);
        let mut pull = place.sifon(["pull", "out.sif", &reference(&server, "1")]);
        let mut pull = pull.stderr(Stdio::null()).spawn().unwrap();
        wait_for(&place, CAME + UNSEALED);
        pull.kill().unwrap();
        pull.wait().unwrap();
        assert!(!place.path("out.sif").exists());
        assert_eq!(place.stored("layers"), Vec::<PathBuf>::new());
        is_well.store(true, Ordering::SeqCst);
        assert_only_the_rest_comes(&place, &server, &digest, size);
        // It is the file that comes without an interruption.
        let other = Place::new();
        other.says(["pull", "out.sif", &reference(&server, "1")]);
        let read = |place: &Place| fs::read(place.path("out.sif")).unwrap();
        assert!(read(&place) == read(&other));
    }
}

#[test]
fn what_came_before_the_network_was_cut_is_not_fetched_again() {
    let place = Place::new();
    let (server, is_well, digest, size) = far_away(&place, Packing::Gzip);
    let image = reference(&server, "1");
    let said = place.refusal(&mut place.sifon(["--timeout", "3", "pull", "out.sif", &image]));
    assert!(said.contains("no answer"), "{said}");
    assert!(!place.path("out.sif").exists());
    is_well.store(true, Ordering::SeqCst);
    assert_only_the_rest_comes(&place, &server, &digest, size);
}

#[test]
fn what_came_wrong_is_fetched_again() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers = [Layer::new(vec![file("noise", noise(9 << 20, 1))])];
    let blobs = all(&layers, Packing::Gzip);
    layout.add("1", &blobs);
    let layer = Digest::of(&blobs[0].bytes).to_string();
    let is_wrong = Arc::new(AtomicBool::new(true));
    let (path, wrong) = (layout.path().to_owned(), is_wrong.clone());
    let server = Faulty::start(move |request, _| {
        let is_layer = request.second().ends_with(&layer) && request.method() == "GET";
        match (request.range(), wrong.load(Ordering::SeqCst)) {
            (Some((first, last)), true) if is_layer => {
                let mut content =
                    fs::read(path.join("blobs").join(layer.replace(':', "/"))).unwrap();
                // Within a stored block of gzip, which decompresses all the same.
                content[5 << 20] ^= 1;
                Reply::status(206)
                    .header(
                        "Content-Range",
                        format!("bytes {first}-{last}/{}", content.len()),
                    )
                    .body(&content[first..=last])
            }
            _ => answer(&path, request),
        }
    });
    let image = reference(&server, "1");
    let said = place.refusal(&mut place.sifon(["pull", "out.sif", &image]));
    assert!(said.contains("digest"), "{said}");
    is_wrong.store(false, Ordering::SeqCst);
    place.says(["pull", "out.sif", &image]);
}

#[test]
fn many_pulls_at_once_fetch_each_blob_once() {
    const PULLS: usize = 64;
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let layers: Vec<_> = (0..3)
        .map(|n| {
            Layer::new(vec![
                file(format!("noise-{n}"), noise(400_000, n)),
                file("text", text(9_000)),
            ])
        })
        .collect();
    layout.add("1", &all(&layers, Packing::Gzip));
    let server = serving(&layout);
    let image = reference(&server, "1");
    let pulls: Vec<_> = (0..PULLS)
        .map(|n| {
            let mut pull = place.sifon(["pull", &format!("{n}.sif"), &image]);
            pull.stderr(Stdio::piped()).stdout(Stdio::null());
            pull.spawn().unwrap()
        })
        .collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
    }
    let first = fs::read(place.path("0.sif")).unwrap();
    assert!((1..PULLS).all(|n| fs::read(place.path(format!("{n}.sif"))).unwrap() == first));
    let mut asked: Vec<_> = server
        .seen()
        .iter()
        .filter(|request| request.method() == "GET" && request.second() != "/v2/")
        .map(|request| request.second().to_owned())
        .collect();
    asked.sort();
    let all = asked.clone();
    asked.dedup();
    // Three layers, the config and the manifest.
    assert_eq!((asked.len(), all.len()), (5, 5), "{all:#?}");
    for part in ["packed", "tmp", "leases"] {
        assert_eq!(place.stored(part), Vec::<PathBuf>::new(), "{part}");
    }
}
