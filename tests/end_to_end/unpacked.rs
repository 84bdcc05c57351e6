//! What is mounted is what other programs unpack.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use sifon_mount::layer::entry::Kind;

use crate::layers::Member;
use crate::layers::archive::{Dialect, archive};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, can_mount};
use crate::tricky;
use crate::view::View;

/// An image in a layout, and what a mount of it shows.
fn mounted(place: &Place, layers: &[Layer]) -> (Layout, View) {
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &all(layers, Packing::Gzip));
    let mounted = place.mount(&layout.reference("latest"));
    let view = View::of(mounted.path()).on_disk();
    (layout, view)
}

/// Runs a program; says that the test is skipped if it is not installed.
#[track_caller]
fn ran(command: &mut Command) -> bool {
    let Ok(output) = command.output() else {
        eprintln!("skipped: {:?} is not installed", command.get_program());
        return false;
    };
    assert!(output.status.success(), "{output:?}");
    true
}

#[test]
fn a_mount_shows_what_gnu_tar_unpacks() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let root = place.path("unpacked");
    fs::create_dir(&root).unwrap();
    let layers = tricky::layers();
    for layer in &layers {
        for member in &layer.members {
            make_way(&root, member);
        }
        let file = place.path("layer.tar");
        fs::write(&file, archive(&layer.members, layer.dialect)).unwrap();
        let mut tar = place.program("tar");
        tar.args([
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--exclude=.wh.*",
            "-xpf",
        ]);
        if !ran(tar.arg(&file).arg("-C").arg(&root)) {
            return;
        }
    }
    let (_, view) = mounted(&place, &layers);
    view.assert_is(&View::of(&root).on_disk());
}

#[test]
fn a_copy_of_a_sandbox_is_the_sandbox() {
    let place = Place::new();
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &all(&tricky::layers(), Packing::Gzip));
    place.says(["build", "--sandbox", "box", &layout.reference("latest")]);
    place.says(["build", "--sandbox", "copy", "box"]);
    let of = |name: &str| View::of(&place.path(name)).on_disk();
    of("copy").assert_is(&of("box"));
    // Scripts are added where there are none, also to the directory itself.
    fs::create_dir(place.path("plain")).unwrap();
    fs::write(place.path("plain/said"), "said\n").unwrap();
    place.says(["build", "--sandbox", "with/", "plain"]);
    assert_eq!(fs::read(place.path("with/said")).unwrap(), b"said\n");
    assert!(place.path("with/.singularity.d/runscript").exists());
    assert_eq!(fs::read_dir(place.path("plain")).unwrap().count(), 1);
    place.says(["build", "-F", "--sandbox", "plain", "plain"]);
    assert!(place.path("plain/.singularity.d/runscript").exists());
    std::os::unix::fs::symlink("plain", place.path("link")).unwrap();
    let before = of("plain");
    for (options, out, why) in [
        (&["--sandbox"][..], "with", "already exists"),
        (&["--sandbox"], "none/new", "none/new"),
        (&["--sandbox"], "link/etc/new", "lies in plain"),
        (&["-F", "--sandbox"], "plain/etc", "lies in plain"),
        (&["-F", "--sandbox"], ".", "would go with it"),
        (&["-F", "--sandbox"], "plain/..", "would go with it"),
    ] {
        let words = [&["build"], options, &[out, "plain"]].concat();
        let said = place.refusal(&mut place.sifon(words));
        assert!(said.contains(why), "{out}: {said}");
        of("plain").assert_is(&before);
    }
}

/// Does what tar does not: whiteouts, and directories that become files or the other way round.
fn make_way(root: &Path, member: &Member) {
    let path = root.join(OsStr::from_bytes(&member.entry.path));
    let is_directory = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    match member.entry.kind {
        Kind::Opaque => {
            fs::remove_dir_all(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
        Kind::Directory if is_directory => {}
        _ if is_directory => fs::remove_dir_all(&path).unwrap(),
        _ => _ = fs::remove_file(&path),
    }
}

#[test]
fn a_mount_shows_what_umoci_unpacks() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut layers = tricky::layers();
    // It knows sparse files as PAX has them, but not GNU's old ones.
    for layer in layers
        .iter_mut()
        .filter(|layer| layer.dialect == Dialect::Gnu)
    {
        layer
            .members
            .iter_mut()
            .for_each(|member| member.is_sparse = false);
    }
    let (layout, view) = mounted(&place, &layers);
    let image = format!("{}:latest", layout.path().display());
    let bundle = place.path("bundle");
    let mut umoci = place.program("umoci");
    if !ran(umoci.args(["unpack", "--image", &image]).arg(&bundle)) {
        return;
    }
    view.assert_is(&View::of(&bundle.join("rootfs")).on_disk());
}
