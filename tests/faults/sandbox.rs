//! Running sifon on bad input, and everything that must be true afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What each wait of the program may take.
pub const TIMEOUT: &str = "2";

/// What a whole run may take: a few waits one after another, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory that a run may have for itself.
pub const MEMORY_BYTES: u64 = 512 << 20;

/// A store, and a place for output, that a run must leave as they were.
pub struct Sandbox {
    directory: TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store/v1")
    }

    /// The program with these arguments, and `bytes` of memory at most.
    pub fn command(&self, arguments: &[&str], bytes: u64) -> Command {
        let mut command = Command::new("sh");
        let limit = format!("ulimit -d {}; exec \"$@\"", bytes >> 10);
        command
            .args(["-c", &limit, "sh", env!("CARGO_BIN_EXE_sifon")])
            .args(["--store".as_ref(), self.path("store").as_os_str()])
            .args(["--timeout", TIMEOUT])
            .args(arguments)
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path())
            .env("SIFON_LINGER", "0")
            .env_remove("SIFON_STORE");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments, MEMORY_BYTES).output().unwrap()
    }

    /// Packs an image, which must succeed; gives the bytes.
    pub fn packed(&self, reference: &str) -> Vec<u8> {
        let output = self.run(&["-q", "compact", "-F", reference, "out.sif"]);
        assert!(output.status.success(), "{}", complaint(&output));
        let bytes = fs::read(self.path("out.sif")).unwrap();
        fs::remove_file(self.path("out.sif")).unwrap();
        bytes
    }

    /// Every way to use this image fails, twice, with one error that has all of `words`, and leaves nothing behind.
    pub fn refuses(&self, what: &str, reference: &str, words: &[&str]) {
        let mut messages = Vec::new();
        for arguments in self.ways(reference) {
            for _ in 0..2 {
                let began = Instant::now();
                let output = self.run(&arguments);
                let took = began.elapsed();
                let verb = arguments[0];
                assert!(took < PATIENCE, "{what}: {verb} took {took:?}");
                messages.push(self.one_error(&format!("{what}: {verb}"), &output, words));
                self.assert_clean(&format!("{what}: {verb}"));
            }
        }
        println!("{what}\n{}", messages[0]);
    }

    /// Packing this image fails, with one error that has all of `words`, and leaves nothing behind.
    pub fn refuses_to_pack(&self, what: &str, reference: &str, words: &[&str]) {
        self.refuses_to_pack_within(PATIENCE, what, reference, words);
    }

    /// The same, where that takes longer.
    pub fn refuses_to_pack_within(
        &self,
        patience: Duration,
        what: &str,
        reference: &str,
        words: &[&str],
    ) {
        let began = Instant::now();
        let output = self.run(&["compact", reference, "out.sif"]);
        let took = began.elapsed();
        assert!(took < patience, "{what} took {took:?}");
        println!("{what}\n{}", self.one_error(what, &output, words));
        self.assert_clean(what);
    }

    fn ways<'a>(&self, reference: &'a str) -> Vec<Vec<&'a str>> {
        let mut ways = vec![vec!["compact", reference, "out.sif"]];
        if rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists() {
            ways.push(vec!["mount", reference, "target"]);
            ways.push(vec!["exec", reference, "/bin/true"]);
        }
        ways
    }

    /// The text of the only error, which is a line of its own and ends the run with 255.
    pub fn one_error(&self, what: &str, output: &Output, words: &[&str]) -> String {
        let said = complaint(output);
        assert_eq!(output.status.code(), Some(255), "{what}: {said}");
        assert!(output.stdout.is_empty(), "{what}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        let errors = said.lines().filter(|line| line.starts_with("FATAL:"));
        assert_eq!(errors.count(), 1, "{what}: {said}");
        let known = ["FATAL:   ", "INFO:    ", "WARNING: "];
        for line in said.lines() {
            assert!(
                known.iter().any(|start| line.starts_with(start)),
                "{what}: {line:?}"
            );
            assert!(!line.chars().any(char::is_control), "{what}: {line:?}");
        }
        for word in words {
            assert!(said.contains(word), "{what}: no {word:?} in:\n{said}");
        }
        said
    }

    /// Nothing half-written, no mount, no directory that was not there before.
    pub fn assert_clean(&self, what: &str) {
        for name in ["out.sif", "target"] {
            let path = self.path(name);
            assert!(
                fs::symlink_metadata(&path).is_err(),
                "{what}: {name} is there"
            );
        }
        for directory in ["tmp", "leases"] {
            let left = names(&self.store().join(directory));
            assert!(left.is_empty(), "{what}: {directory} has {left:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.directory.path().to_str().unwrap();
        assert!(!mounts.contains(here), "{what}: a mount is left");
        let here: Vec<_> = names(self.directory.path());
        assert!(
            here.iter().all(|name| !name.contains("out.sif")),
            "{what}: {here:?}"
        );
    }

    /// Files of the store in this directory.
    pub fn stored(&self, directory: &str) -> Vec<PathBuf> {
        let directory = self.store().join(directory);
        let names = names(&directory);
        names.iter().map(|name| directory.join(name)).collect()
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// stderr of a run, as text.
pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
