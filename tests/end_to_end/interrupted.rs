//! Files that are not finished: where the disk or the quota is full, or somebody kills us, there is no file under the final name,
//! nothing of it is left, and the store serves as before.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use sifon_mount::digest::Digest;

use crate::layers::{file, noise};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{PATIENCE, Place, SIFON, can_mount, complaint, is_mounted};
use crate::server::{answer, reference};
use crate::support::faulty::{Faulty, Reply};

/// What is in a directory, hidden names included.
fn names(place: &Place, directory: &str) -> Vec<OsString> {
    let entries = fs::read_dir(place.path(directory)).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// Blocks of a whole file system that are taken: also by files without a name.
fn taken(place: &Place, directory: &str) -> u64 {
    let stat = rustix::fs::statvfs(place.path(directory)).unwrap();
    stat.f_blocks - stat.f_bfree
}

/// Every way to make a file or a directory of the image `1` of a layout, or of `x.sif` that is in the way of one.
fn commands(image: &str) -> Vec<Vec<String>> {
    let words = |line: &str| {
        line.split(' ')
            .map(|word| word.replace("IMAGE", image))
            .collect()
    };
    [
        "pull small/x.sif IMAGE",
        "pull --disable-cache small/x.sif IMAGE",
        "pull --compression=gzip small/x.sif IMAGE",
        "compact IMAGE small/x.sif",
        "compact --check IMAGE small/x.sif",
        "build small/x.sif IMAGE",
        "build small/x.sif tree",
        "build --sandbox small/box IMAGE",
    ]
    .map(words)
    .into()
}

/// Tries all in `small`, where there is no room, by programs that `program` makes; then where there is.
fn assert_nothing_is_left(place: &Place, program: &dyn Fn() -> Command, expected: &str) {
    let mut layout = Layout::new(place.path("layout"));
    let layers = [Layer::new(vec![
        file("noise", noise(3 << 20, 1)),
        file("small", "said\n"),
    ])];
    layout.add("1", &all(&layers, Packing::Gzip));
    fs::create_dir(place.path("tree")).unwrap();
    fs::write(place.path("tree/noise"), noise(3 << 20, 2)).unwrap();
    let image = layout.reference("1");
    let before = taken(place, "small");
    for words in commands(&image) {
        let output = program().args(&words).output().unwrap();
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(255), "{words:?}: {said}");
        let said = said.to_lowercase();
        assert!(said.contains(expected), "{words:?}: {said}");
        assert_eq!(names(place, "small"), Vec::<OsString>::new(), "{words:?}");
        assert_eq!(taken(place, "small"), before, "{words:?}");
        assert_eq!(place.stored("tmp"), Vec::<PathBuf>::new(), "{words:?}");
    }
    // What is there already stays as it is.
    fs::write(place.path("small/x.sif"), "mine").unwrap();
    let output = program()
        .args(["pull", "-F", "small/x.sif", &image])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(fs::read(place.path("small/x.sif")).unwrap(), b"mine");
    // The store is whole: nothing is made again.
    let read = |file: &str| fs::read(place.path(file)).unwrap();
    for words in [
        ["pull", "large/x.sif", &image],
        ["pull", "large/y.sif", &image],
    ] {
        let output = program().args(words).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
    }
    assert!(read("large/x.sif") == read("large/y.sif"));
}

#[test]
fn a_full_disk_leaves_no_file_and_a_whole_store() {
    if !can_mount() {
        return;
    }
    let setup = "mkdir small large && mount -t tmpfs -o size=1m small small";
    let test = "interrupted::a_full_disk_leaves_no_file_and_a_whole_store";
    let Some(place) = Place::in_own_namespace(test, setup) else {
        return;
    };
    assert!(is_mounted(&place.path("small")));
    assert_nothing_is_left(&place, &|| place.program(SIFON), "no space left on device");
}

#[test]
fn an_exhausted_quota_leaves_no_file_and_a_whole_store() {
    if !can_mount() {
        return;
    }
    // Where the kernel has no quotas for tmpfs there is nothing to see.
    let setup = "mkdir small large && { mount -t tmpfs -o usrquota,usrquota_block_hardlimit=1m,mode=777 small small || touch without; }";
    let test = "interrupted::an_exhausted_quota_leaves_no_file_and_a_whole_store";
    let Some(place) = Place::in_own_namespace(test, setup) else {
        return;
    };
    if place.path("without").exists() {
        eprintln!("skipped: no quotas on tmpfs here");
        return;
    }
    fs::copy(SIFON, place.path("sifon")).unwrap();
    for name in ["home", "store", "large", "small"] {
        chown(place.path(name), Some(1000), Some(1000)).unwrap();
    }
    let as_user = || {
        let mut command = place.program("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]);
        command.arg(place.path("sifon"));
        command
    };
    assert_nothing_is_left(&place, &as_user, "no space left on device");
}

/// An image that is read lazily, and whose registry falls silent when its second megabyte is asked for: the packer waits then, with a
/// part of the file written.
#[test]
fn a_killed_packing_leaves_no_file_and_the_next_goes_on() {
    for verb in ["pull", "compact", "build"] {
        let place = Place::new();
        fs::create_dir(place.path("out")).unwrap();
        let mut layout = Layout::new(place.path("layout"));
        let layers = [Layer::new(vec![file("noise", noise(6 << 20, 1))])];
        let blobs = all(&layers, Packing::ZstdChunked);
        layout.add("1", &blobs);
        let layer = Digest::of(&blobs[0].bytes).to_string();
        let (path, (came, has_come)) = (layout.path().to_owned(), mpsc::channel());
        let is_well = Arc::new(AtomicBool::new(false));
        let healed = Arc::clone(&is_well);
        let server = Faulty::start(move |request, _| {
            let reply = answer(&path, request);
            let is_late = request.range().is_some_and(|(first, last)| {
                request.second().ends_with(&layer) && first < 4 << 20 && last > 2 << 20
            });
            match is_late && !healed.load(Ordering::SeqCst) {
                true => {
                    let _ = came.send(());
                    reply.stall_after(0)
                }
                false => reply,
            }
        });
        let image = reference(&server, "1");
        let words = match verb {
            "compact" => ["compact", &image, "out/x.sif"],
            verb => [verb, "out/x.sif", &image],
        };
        let mut packing = place.sifon(words).stderr(Stdio::null()).spawn().unwrap();
        has_come.recv_timeout(PATIENCE).unwrap();
        packing.kill().unwrap();
        packing.wait().unwrap();
        assert_eq!(names(&place, "out"), Vec::<OsString>::new(), "{verb}");
        is_well.store(true, Ordering::SeqCst);
        place.says(words);
        assert!(fs::metadata(place.path("out/x.sif")).unwrap().size() > 6 << 20);
        assert_eq!(names(&place, "out"), ["x.sif"], "{verb}");
        for part in ["tmp", "leases"] {
            assert_eq!(place.stored(part), Vec::<PathBuf>::new(), "{part}");
        }
    }
}

/// The manifest comes last, so that nobody finds half an image.
#[test]
fn a_killed_push_leaves_no_image() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add(
        "1",
        &all(
            &[Layer::new(vec![file("noise", noise(3 << 20, 1))])],
            Packing::Gzip,
        ),
    );
    place.says(["build", "x.sif", &layout.reference("1")]);
    let before = fs::read(place.path("x.sif")).unwrap();
    let (came, has_come) = mpsc::channel();
    let server = Faulty::start(move |request, _| match request.method() {
        "HEAD" => Reply::status(404),
        "POST" => Reply::status(202).header("Location", "/v2/some/image/blobs/uploads/1"),
        _ => {
            let _ = came.send(());
            Reply::status(201).body("x").stall_after(0)
        }
    });
    let to = format!("oras://{}/some/image:1", server.address());
    let mut push = place
        .sifon(["push", "x.sif", &to])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    has_come.recv_timeout(PATIENCE).unwrap();
    push.kill().unwrap();
    push.wait().unwrap();
    assert_eq!(server.count("/manifests/"), 0);
    assert!(fs::read(place.path("x.sif")).unwrap() == before);
    assert_eq!(place.stored("tmp"), Vec::<PathBuf>::new());
}
