//! Registries in trouble under several readers: every read is right or fails by its deadline, and who is killed is gone.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::layers::{file, noise};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{PATIENCE, Place, can_mount};
use crate::server::{answer, reference};
use crate::support::faulty::{Faulty, Reply};
use crate::support::http::Message;

const FILES: u64 = 24;
const FILE_BYTES: usize = 300_000;

fn name(seed: u64) -> String {
    format!("file-{seed:02}")
}

fn layout(place: &Place) -> Layout {
    let mut layout = Layout::new(place.path("layout"));
    let files = (0..FILES).map(|seed| file(name(seed), noise(FILE_BYTES, seed)).mode(0o644));
    layout.add(
        "latest",
        &all(&[Layer::new(files.collect())], Packing::ZstdChunked),
    );
    layout
}

/// Whether this is a request for a part of the layer, rather than for its table or for a document.
fn is_for_files(request: &Message) -> bool {
    let range = request.range();
    // In whole blocks, but for what the first one has before the layer's first chunk.
    let is_block = |first| first % 65_536 == 0 || first < 65_536;
    range.is_some_and(|(first, last)| last - first > 30_000 && is_block(first))
}

/// One of the things that go wrong, another one each time.
fn trouble(request: &Message, good: Reply, body: &[u8], number: usize) -> Reply {
    let mut hasher = DefaultHasher::new();
    (number, request.range()).hash(&mut hasher);
    let (first, last) = request.range().expect("asked for a range");
    match hasher.finish() % 16 {
        0 => good.cut_after(20_000),
        1 => good.cut_after(0),
        2 => Reply::status(500),
        3 => Reply::status(503).header("Retry-After", "0"),
        4 => Reply::status(429).header("Retry-After", "1"),
        5 => Reply::status(206)
            .header(
                "Content-Range",
                format!("bytes {}-{last}/{}", first + 1, body.len()),
            )
            .body(&body[first + 1..=last]),
        6 => Reply::status(206)
            .header(
                "Content-Range",
                format!("bytes {first}-{last}/{}", body.len()),
            )
            .body(vec![7; last - first + 1]),
        7 => Reply::status(403),
        8 => good.stall_after(10_000),
        _ => good,
    }
}

#[test]
fn under_any_trouble_reads_are_right_or_fail_in_time_and_afterwards_all_are_right() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layout = layout(&place);
    let path = layout.path().to_owned();
    let is_troubled = Arc::new(AtomicBool::new(true));
    let troubled = Arc::clone(&is_troubled);
    let requests = AtomicUsize::new(0);
    let server = Faulty::start(move |request, _| {
        let good = answer(&path, request);
        if !troubled.load(Ordering::Relaxed) || !is_for_files(request) {
            return good;
        }
        let digest = request
            .second()
            .rsplit('/')
            .next()
            .unwrap()
            .replace(':', "/");
        let body = std::fs::read(path.join("blobs").join(digest)).unwrap();
        trouble(
            request,
            good,
            &body,
            requests.fetch_add(1, Ordering::Relaxed),
        )
    });
    let image = reference(&server, "latest");
    let mounted = place.mount_with(&image, |command| _ = command.args(["--timeout", "3"]));
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for reader in 0..8 {
            let (mounted, failed) = (&mounted, &failed);
            scope.spawn(move || {
                for step in 0..FILES {
                    let seed = (step * 5 + reader * 3) % FILES;
                    let began = Instant::now();
                    match mounted.read(&name(seed)) {
                        Ok(content) => assert!(content == noise(FILE_BYTES, seed), "{seed}"),
                        Err(err) => {
                            assert_eq!(err.raw_os_error(), Some(libc::EIO));
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    // Three reads of the kernel's at most, each with its own deadline.
                    assert!(
                        began.elapsed() < Duration::from_secs(20),
                        "{:?}",
                        began.elapsed()
                    );
                }
            });
        }
    });
    is_troubled.store(false, Ordering::Relaxed);
    for seed in 0..FILES {
        assert!(
            mounted.read(&name(seed)).unwrap() == noise(FILE_BYTES, seed),
            "{seed}"
        );
    }
    let failed = failed.into_inner();
    assert!(failed < 8 * FILES as usize / 2, "{failed} reads failed");
}

#[test]
fn a_reader_that_waits_for_a_silent_registry_can_be_killed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let layout = layout(&place);
    let path = layout.path().to_owned();
    let (asked, was_asked) = crossbeam_channel::unbounded();
    let server = Faulty::start(move |request, _| {
        let good = answer(&path, request);
        if !is_for_files(request) {
            return good;
        }
        let _ = asked.send(());
        good.stall_after(100)
    });
    let image = reference(&server, "latest");
    let mounted = place.mount_with(&image, |command| _ = command.args(["--timeout", "15"]));
    let mut reader = Command::new("cat")
        .arg(mounted.path().join(name(3)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    was_asked.recv_timeout(PATIENCE).unwrap();
    let killed = Instant::now();
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(
        killed.elapsed() < Duration::from_secs(5),
        "{:?}",
        killed.elapsed()
    );
}
