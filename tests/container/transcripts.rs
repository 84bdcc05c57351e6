//! The tables of Apptainer's own suites, as transcripts.

use serde_json::json;

use crate::enter::root;
use crate::image::{Image, ImageBuilder};
use crate::overlay::is_here;
use crate::transcript::{Form, Place, Program};

/// An image with nothing special, whose program is a shell.
fn busybox() -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    image.config("Cmd", json!(["/bin/sh", "-c", "echo run"]));
    Some(image.finish())
}

/// Both programs, with the image in each form.
fn hold(place: &Place, transcript: &str) {
    place.holds(transcript, Program::Ours, Form::Layout);
    for form in [Form::Sif, Form::Directory] {
        place.holds(transcript, Program::Ours, form);
        place.holds(transcript, Program::Apptainer, form);
    }
}

#[test]
fn programs_start_as_in_the_suite_of_the_original() {
    let Some(image) = busybox() else { return };
    let Some(place) = Place::new(vec![("busybox", image)]) else {
        return;
    };
    place.file("x.txt", "one\ntwo  words\n");
    hold(&place, "actions.txt");
}

/// An image with variables that are hard to quote.
fn custom() -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    image.config(
        "Env",
        json!([
            "PATH=/go/bin:/bin",
            "CGO_ENABLED=0",
            "FOO=img",
            "EMPTY=",
            "QUOTED=it's \"$HOME\" `id` \\n",
            "LINES_=one\ntwo",
        ]),
    );
    image.config("Cmd", json!(["/bin/true"]));
    Some(image.finish())
}

#[test]
fn the_environment_is_as_in_the_suite_of_the_original() {
    let (Some(busybox), Some(custom)) = (busybox(), custom()) else {
        return;
    };
    let Some(place) = Place::new(vec![("busybox", busybox), ("custom", custom)]) else {
        return;
    };
    hold(&place, "environment.txt");
}

/// An image with symlinks to bind onto.
fn linked() -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    image.directory("links/target", 0o755);
    image.link("links/absolute", "/links/target");
    image.link("links/relative", "target");
    image.link("links/dangling", "nonesuch/deep");
    image.link("links/loop", "loop");
    Some(image.finish())
}

#[test]
fn binds_and_overlays_are_as_in_the_suite_of_the_original() {
    let Some(image) = linked() else { return };
    let Some(place) = Place::new(vec![("busybox", image)]) else {
        return;
    };
    for program in [Program::Ours, Program::Apptainer] {
        place.holds("binds.txt", program, Form::Sif);
        place.holds("binds.txt", program, Form::Directory);
    }
}

/// Prints its name and each of its arguments.
const SHOW: &[u8] = b"#!/bin/sh\nfor word; do printf '<%s>' \"$word\"; done; echo\n";

/// An image with these two parts of what it runs.
fn runs(entrypoint: &[&str], cmd: &[&str]) -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    image.file("bin/show", SHOW, 0o755);
    image.config("Env", json!(["FOO=img", "PATH=/bin"]));
    if !entrypoint.is_empty() {
        image.config("Entrypoint", json!(entrypoint));
    }
    if !cmd.is_empty() {
        image.config("Cmd", json!(cmd));
    }
    Some(image.finish())
}

#[test]
fn run_is_as_in_the_suite_of_the_original() {
    let tricky = [
        "/bin/show",
        "it's",
        "\"q\"",
        "$FOO",
        "`id -u`",
        "a  b",
        "x\ny",
        "back\\slash",
    ];
    let images = [
        ("entry", runs(&["show", "entry"], &[])),
        ("cmd", runs(&[], &["show", "cmd", "two words"])),
        ("both", runs(&["show", "entry"], &["cmd", "two words"])),
        (
            "shellform",
            runs(&["/bin/sh", "-c", "show \"$FOO\" \"$@\"", "sh"], &[]),
        ),
        ("tricky", runs(&tricky, &["cmd $FOO", "'q'"])),
        ("none", runs(&[], &[])),
        ("missing", runs(&["nonesuch"], &[])),
    ];
    let images: Option<Vec<_>> = images
        .into_iter()
        .map(|(name, image)| Some((name, image?)))
        .collect();
    let Some(place) = images.and_then(Place::new) else {
        return;
    };
    hold(&place, "run.txt");
    for program in [Program::Ours, Program::Apptainer] {
        place.holds("evaluated.txt", program, Form::Sif);
        place.holds("evaluated.txt", program, Form::Directory);
    }
}

#[test]
fn instances_are_as_in_the_suite_of_the_original() {
    let Some(image) = busybox() else { return };
    let Some(place) = Place::new(vec![("busybox", image)]) else {
        return;
    };
    for program in [Program::Ours, Program::Apptainer] {
        place.holds("instances.txt", program, Form::Sif);
        place.holds("instances.txt", program, Form::Directory);
    }
}

/// Shows its arguments without a shell.
fn noshell() -> Option<Image> {
    let mut image = ImageBuilder::without_shell()?;
    image.config("Env", json!(["FOO=img"]));
    image.config("Entrypoint", json!(["/bin/echo", "entry $FOO"]));
    image.config("Cmd", json!(["cmd"]));
    Some(image.finish())
}

fn with_links() -> Option<Image> {
    let mut image = ImageBuilder::empty()?;
    image.directory("scratch", 0o1777);
    image.link("tmp", "scratch");
    image.link("etc/resolv.conf", "../run/nonesuch/stub.conf");
    image.link("etc/hosts", "/nonesuch/hosts");
    image.link("etc/localtime", "/usr/share/zoneinfo/nonesuch");
    image.directory("opt/real", 0o755);
    image.link("opt/link", "/opt/real");
    Some(image.finish())
}

#[test]
fn unusual_images_and_places_do_as_under_the_original() {
    let images = [
        ("noshell", noshell()),
        ("bare", ImageBuilder::empty().map(ImageBuilder::finish)),
        ("links", with_links()),
    ];
    let images: Option<Vec<_>> = images
        .into_iter()
        .map(|(name, image)| Some((name, image?)))
        .collect();
    let Some(place) = images.and_then(Place::new) else {
        return;
    };
    hold(&place, "unusual.txt");
}

#[test]
fn overlays_in_files_and_in_sifs_are_as_in_the_suite_of_the_original() {
    let programs = ["mke2fs", "debugfs", "fuse2fs", "fuse-overlayfs"];
    if !is_here(&programs) {
        return;
    }
    let Some(image) = busybox() else { return };
    let Some(place) = Place::new(vec![("busybox", image)]) else {
        return;
    };
    place.holds("overlay.txt", Program::Ours, Form::Sif);
    if root().is_some_and(|root| {
        root.join("usr/sbin/mke2fs").exists() && root.join("usr/bin/fuse2fs").exists()
    }) {
        place.holds("overlay.txt", Program::Apptainer, Form::Sif);
    } else {
        eprintln!("without Apptainer: it needs e2fsprogs and fuse2fs for this");
    }
}

#[test]
fn directories_in_the_place_of_images_are_as_in_the_suite_of_the_original() {
    let Some(image) = busybox() else { return };
    let Some(place) = Place::new(vec![("busybox", image)]) else {
        return;
    };
    place.file("x.txt", "one\ntwo  words\n");
    for program in [Program::Ours, Program::Apptainer] {
        place.holds("directories.txt", program, Form::Sif);
    }
}
