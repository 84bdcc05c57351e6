//! `sifon demo` from the outside, as each user who can run containers here.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};
use serde_json::Value;

#[allow(dead_code, reason = "shared with the tests of exec")]
#[path = "container/image.rs"]
mod image;
#[allow(dead_code, reason = "shared with the tests of exec")]
#[path = "container/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the tests of exec")]
#[path = "../mount/tests/support/namespace.rs"]
mod namespace;

use machine::{Machine, complaint, machines};
use namespace::WITHOUT_USER_NAMESPACES;

/// Large enough beside the program that much of the image is never read.
const LARGE: &str = "--data-size=32000000";

/// Where that does not matter.
const SMALL: &str = "--data-size=1000000";

/// A demonstration whose temporary files go to a directory that is otherwise empty.
struct Demo {
    machine: Machine,
    scratch: PathBuf,
}

fn demos() -> Vec<Demo> {
    let with_scratch = |machine: Machine| Demo {
        scratch: machine.own_directory("tmp"),
        machine,
    };
    machines().into_iter().map(with_scratch).collect()
}

impl Demo {
    fn command(&self, size: &str, options: &[&str]) -> Command {
        let mut command = self.machine.program(env!("CARGO_BIN_EXE_sifon"));
        command
            .args(["demo", size])
            .args(options)
            .env("TMPDIR", &self.scratch)
            // Neither a stranger's proxy nor settings for other images have a say.
            .env("http_proxy", "http://127.0.0.1:1")
            .env("APPTAINER_BIND", "/nonesuch:/nonesuch");
        command
    }

    fn assert_nothing_is_left(&self) {
        self.machine.wait_for_all();
        let left: Vec<_> = fs::read_dir(&self.scratch).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let store = self
            .machine
            .directory()
            .join(format!("store-{}", self.machine.uid()));
        assert!(!store.exists(), "the user's own store was used");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("sifon-demo"), "{mounts}");
    }
}

fn number(json: &Value, of: &str, field: &str) -> f64 {
    json[of][field].as_f64().unwrap()
}

#[test]
fn little_of_the_image_is_fetched_and_nothing_is_left() {
    for demo in demos() {
        let output = demo.command(LARGE, &["--json"]).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        assert_eq!(complaint(&output), "");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let image = number(&json, "image", "packed_bytes");
        let first = number(&json, "first_start", "fetched_bytes");
        assert!(first > 0.0 && first < image * 0.6, "{json:#}");
        // The kernel reads ahead; what it no longer waited for at the end of the first program may come now.
        let second = number(&json, "second_start", "fetched_bytes");
        assert!(second < image * 0.1, "{json:#}");
        let packing = number(&json, "packing", "fetched_bytes");
        assert!(first + second + packing < image * 1.1, "{json:#}");
        assert_eq!(number(&json, "start_from_sif", "fetched_bytes"), 0.0);
        assert!(
            json["sif_bytes"].as_f64().unwrap() > image / 2.0,
            "{json:#}"
        );
        demo.assert_nothing_is_left();
    }
}

#[test]
fn what_happens_is_told_and_the_sif_can_be_kept() {
    for demo in demos() {
        let output = demo
            .command(SMALL, &["--keep", "kept.sif"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        let told = String::from_utf8(output.stdout).unwrap();
        for words in [
            "$ sifon exec docker://127.0.0.1:",
            "| hello from ",
            "line 15624 of /data/lines",
            "first start, from the registry",
            "apptainer exec ",
        ] {
            assert!(told.contains(words), "{words:?} in {told}");
        }
        let kept = demo.machine.directory().join("kept.sif");
        let magic = &fs::read(&kept).unwrap()[32..41];
        assert_eq!(magic, b"SIF_MAGIC");
        demo.assert_nothing_is_left();

        let output = demo
            .command(SMALL, &["--keep", "kept.sif"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        assert!(complaint(&output).contains("kept.sif"));
        assert!(
            output.stdout.is_empty(),
            "it is known before anything is done"
        );
        demo.assert_nothing_is_left();
    }
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    for demo in demos() {
        for signal in [Signal::INT, Signal::TERM] {
            // Dies while it runs a program, or shortly before or after that.
            let mut child = demo
                .command(SMALL, &[])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let said = stdout
                .lines()
                .map(Result::unwrap)
                .find(|line| line.contains("$ sifon exec"));
            assert!(said.is_some());
            // The kernel knows it under the number that it was started with: nothing between forks.
            rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(128 + signal.as_raw()), "{status}");
            demo.assert_nothing_is_left();
        }
    }
}

#[test]
fn nothing_is_left_even_of_one_that_is_killed() {
    for demo in demos() {
        let mut child = demo
            .command(SMALL, &[])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lines = stdout.lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("$ sifon exec")));
        rustix::process::kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        demo.assert_nothing_is_left();
    }
}

#[test]
fn where_it_cannot_work_it_says_why_and_leaves_nothing() {
    for demo in demos() {
        let output = demo
            .command(SMALL, &[])
            .env("TMPDIR", "/nonesuch")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        let said = complaint(&output);
        assert!(
            said.contains("/nonesuch") && said.contains("TMPDIR"),
            "{said}"
        );

        if demo.machine.is_root() {
            continue;
        }
        let mut command = demo.machine.program("unshare");
        command
            .args(WITHOUT_USER_NAMESPACES)
            .args([env!("CARGO_BIN_EXE_sifon"), "demo", SMALL])
            .env("TMPDIR", &demo.scratch);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(255));
        let said = complaint(&output);
        assert!(said.contains("FATAL:   new user namespace"), "{said}");
        assert!(said.contains("user.max_user_namespaces is 0"), "{said}");
        demo.assert_nothing_is_left();
    }
}
