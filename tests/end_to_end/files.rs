//! SIF and squashfs files as images.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use sifon_mount::source::sif::Sif;

use crate::layers::{file, noise};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, can_mount};
use crate::tricky;
use crate::view::View;

/// The file system of a SIF as `unsquashfs` unpacks it.
fn unpacked(place: &Place, sif: &Path) -> Option<View> {
    let at = Sif::open(File::open(sif).unwrap()).unwrap();
    let at = at.primary_partition().unwrap().at;
    let root = place.path("unpacked");
    let _ = fs::remove_dir_all(&root);
    let output = Command::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-o", &at.to_string(), "-d"])
        .args([&root, sif])
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: no unsquashfs");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(View::of(&root))
}

#[test]
fn a_sif_shows_what_unsquashfs_unpacks_whatever_compressed_it() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: owners and devices need root");
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add("tricky", &all(&tricky::layers(), Packing::Gzip));
    for compression in ["zstd", "gzip", "xz", "lz4", "none"] {
        let name = format!("{compression}.sif");
        let option = format!("--compression={compression}");
        place.says(["build", &option, &name, &layout.reference("tricky")]);
        let sif = place.path(&name);
        let Some(expected) = unpacked(&place, &sif) else {
            return;
        };
        let mounted = place.mount(sif.to_str().unwrap());
        let seen = View::of(mounted.path());
        seen.assert_is(&expected);
        // Again, by the table in the store; by a path that counts from the current directory.
        drop(mounted);
        let mounted = place.mount(&name);
        View::of(mounted.path()).assert_is(&expected);
    }
}

#[test]
fn a_file_without_a_suffix_is_an_image_by_its_magic_and_any_other_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("from")).unwrap();
    fs::write(place.path("from/said"), "from a file").unwrap();
    let made = Command::new("mksquashfs")
        .args([place.path("from"), place.path("image")])
        .args(["-quiet", "-no-progress"])
        .status();
    if made.is_err() {
        eprintln!("skipped: no mksquashfs");
        return;
    }
    assert_eq!(place.mount("image").read("said").unwrap(), b"from a file");
    let told = place.says(["inspect", "image"]);
    assert!(
        told.contains("squashfs") && told.contains("blocks have no digests"),
        "{told}"
    );

    fs::write(place.path("text"), "no image at all").unwrap();
    fs::write(place.path("empty.sif"), "").unwrap();
    let bytes = fs::read(place.path("image")).unwrap();
    fs::write(place.path("short.sqsh"), &bytes[..150]).unwrap();
    for (name, problem) in [
        ("text", "neither a SIF nor a squashfs"),
        ("empty.sif", "neither a SIF nor a squashfs"),
        ("missing.sif", "cannot be read"),
        ("short.sqsh", "cut short"),
    ] {
        let mut command = place.sifon(["mount", name]);
        let said = place.refusal(command.arg(place.target()));
        assert!(
            said.contains(problem) && said.contains(name),
            "{name}: {said}"
        );
    }
}

#[test]
fn a_file_that_is_written_to_fails_reads_until_it_is_mounted_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    let content = noise(3 << 20, 7);
    let layer = Layer::new(vec![
        file("first", content.clone()),
        file("second", content[1..].to_vec()),
    ]);
    layout.add("noise", &all(&[layer], Packing::Gzip));
    place.says(["build", "x.sif", &layout.reference("noise")]);
    let sif = place.path("x.sif");
    let mounted = place.mount("x.sif");
    assert!(mounted.read("first").unwrap() == content);
    // One byte of the padding before the root file system: the content stays, the file is another one.
    let at = Sif::open(File::open(&sif).unwrap()).unwrap();
    let at = at.primary_partition().unwrap().at;
    let file = File::options().write(true).open(&sif).unwrap();
    file.write_all_at(b"\0", at - 1).unwrap();
    drop(file);
    let err = mounted.read("second").unwrap_err();
    assert_eq!(
        err.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    drop(mounted);
    assert!(place.mount("x.sif").read("second").unwrap() == content[1..]);
    // A file that took its place by rename does not disturb who has the old one open.
    let mounted = place.mount("x.sif");
    fs::rename(&sif, place.path("old.sif")).unwrap();
    fs::write(&sif, "another").unwrap();
    assert!(mounted.read("first").unwrap() == content);
}

#[test]
fn a_file_that_is_packed_again_keeps_its_scripts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let scripts = place.path("from/.singularity.d/env");
    fs::create_dir_all(&scripts).unwrap();
    fs::write(scripts.join("90-environment.sh"), "export A=1\n").unwrap();
    let own = "#!/bin/sh\necho its own\n";
    fs::write(place.path("from/.singularity.d/runscript"), own).unwrap();
    fs::write(place.path("from/said"), "twice").unwrap();
    place.says(["build", "x.sif", "from"]);
    let mounted = place.mount("./x.sif");
    place.says(["compact", mounted.path().to_str().unwrap(), "y.sif"]);
    place.says(["build", "--sandbox", "z", "y.sif"]);
    let again = place.mount("y.sif");
    let paths = [
        "said",
        ".singularity.d/runscript",
        ".singularity.d/env/90-environment.sh",
    ];
    for path in paths {
        let expected = fs::read(place.path("from").join(path)).unwrap();
        assert_eq!(again.read(path).unwrap(), expected, "{path}");
        assert_eq!(
            fs::read(place.path("z").join(path)).unwrap(),
            expected,
            "{path}"
        );
    }
}

#[test]
fn a_mount_shows_what_singularity_needs_only_if_asked_and_the_file_is_the_same_then() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add(
        "1",
        &all(&[Layer::new(vec![file("said", "image\n")])], Packing::Gzip),
    );
    let reference = layout.reference("1");
    let plain = place.mount(&reference);
    let names = |root: &Path| -> Vec<String> {
        let names = fs::read_dir(root).unwrap();
        let mut names: Vec<_> = names
            .map(|name| name.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(plain.path()), ["said"]);
    // Beside it, and again from what the store has.
    for _ in 0..2 {
        let mounted = place.mount_with(&reference, |command| {
            command.arg("--singularity");
        });
        let seen = names(mounted.path());
        for name in [
            ".singularity.d",
            "dev",
            "environment",
            "said",
            "singularity",
        ] {
            assert!(seen.iter().any(|seen| seen == name), "{name}: {seen:?}");
        }
        let runscript = mounted.read("singularity").unwrap();
        assert!(runscript.ends_with(b"\nexec \"$@\"\n"));
        assert_eq!(mounted.read("said").unwrap(), b"image\n");
    }
    // A SIF has it, and nothing is laid over that.
    place.says(["build", "x.sif", &reference]);
    let sif = place.mount_with("x.sif", |command| {
        command.arg("--singularity");
    });
    let labels = |root: &Path| fs::read(root.join(".singularity.d/labels.json")).unwrap();
    assert_eq!(labels(sif.path()), labels(place.mount("x.sif").path()));
}
