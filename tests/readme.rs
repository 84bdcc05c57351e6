//! The README, done as it says: its session against a real registry, and the tests that it names.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

#[allow(dead_code, reason = "shared with the tests of exec")]
#[path = "container/image.rs"]
mod image;
#[allow(dead_code, reason = "shared with the tests of exec")]
#[path = "container/machine.rs"]
mod machine;

use image::{Image, ImageBuilder};
use machine::{complaint, machines};

const README: &str = include_str!("../README.md");

/// Whatever happens, nothing goes on afterwards.
const AT_THE_END: &str = "trap 'kill $registry; test ! -e py || sifon umount --lazy py' EXIT\n";

/// Longest that the session may take, in seconds: it takes one or two.
const PATIENCE: &str = "100";

/// The session's commands, in order.
fn session() -> String {
    let mut blocks = README.split("```sh\n").skip(1);
    let mut commands = String::new();
    while let Some((block, _)) = blocks.next().and_then(|rest| rest.split_once("```")) {
        commands.push_str(block);
    }
    assert!(commands.lines().count() >= 10, "{commands}");
    commands
}

fn is_here(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .output();
    found.is_ok_and(|found| found.status.success())
}

/// In place of python:3.11: an image with something that answers as Python would to the one thing it is asked.
fn small_image() -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    let python = b"#!/bin/sh\ntest \"$*\" = '-c print(\"hello\")' && echo hello\n";
    image.file("usr/bin/python3", python, 0o755);
    image.config("Env", serde_json::json!(["PATH=/usr/bin:/bin"]));
    Some(image.finish())
}

/// What the README says, with another image, on a port that nobody uses.
fn adapted(session: &str, image: &Image) -> String {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let mut script = String::from("set -eu\n");
    for line in session.lines() {
        let line = line
            .replace("127.0.0.1:5000", &format!("127.0.0.1:{port}"))
            .replace(
                "docker://python:3.11 docker:",
                &format!("{} docker:", image.reference()),
            );
        if line.starts_with("apptainer ") && !is_here("apptainer") {
            continue;
        }
        script.push_str(&line);
        script.push('\n');
        if line.ends_with('&') {
            script.push_str("registry=$!\n");
            script.push_str(AT_THE_END);
        }
    }
    script
}

#[test]
fn the_first_session_works_as_it_is_written() {
    for program in ["docker-registry", "skopeo", "fusermount3"] {
        if !is_here(program) {
            return eprintln!("skipped: {program} is not installed");
        }
    }
    let Some(image) = small_image() else { return };
    let programs = Path::new(env!("CARGO_BIN_EXE_sifon")).parent().unwrap();
    for machine in machines() {
        let script = adapted(&session(), &image);
        let path = std::env::join_paths(
            [programs.to_owned()]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let here = machine.own_directory("session");
        let mut command = machine.program("timeout");
        let output = command
            .args([PATIENCE, "sh", "-c", &script])
            .current_dir(&here)
            .env("HOME", &here)
            .env("SIFON_LINGER", "0")
            .env("PATH", path.unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        let problem = complaint(&output);
        assert!(output.status.success(), "{script}\n{said}\n{problem}");
        for expected in [
            "/python:3.11",
            "usr/bin/python3",
            "\nhello\n",
            " used in ",
            "2 images removed",
        ] {
            assert!(said.contains(expected), "{expected:?}: {said}\n{problem}");
        }
        let sif = fs::read(here.join("python.sif")).unwrap();
        assert_eq!(&sif[32..41], b"SIF_MAGIC");
        // It was made by `mount`, and goes with it.
        assert!(!here.join("py").exists());
        machine.wait_for_all();
    }
}

#[test]
fn the_two_commands_are_there() {
    assert!(README.contains("\ncargo run --release -- demo "));
    assert!(README.contains("\ntests/run "));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run");
    assert!(script.is_file());
}

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = README.split("| Promise | Test |").nth(1).unwrap();
    let mut count = 0;
    for line in promises
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
    {
        let mut quoted = line.split('`').skip(1).step_by(2);
        let (file, test) = (quoted.next().unwrap(), quoted.next().unwrap());
        let source = fs::read_to_string(root.join(file)).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "{file}: {test}");
        count += 1;
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn links_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for link in README.split("](").skip(1) {
        let (target, _) = link.split_once(')').unwrap();
        assert!(root.join(target).exists(), "{target}");
    }
}
