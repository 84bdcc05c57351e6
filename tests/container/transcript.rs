//! Command lines with what they print and the status they end with, as transcripts in files. Each line is given to our program,
//! under the name `apptainer`, and what it says compared with the transcript; where `SIFON_ORACLE` names the root directory of a
//! system with Apptainer on it, the same lines are given to Apptainer.
//!
//! A transcript has, for each case:
//!
//! ```text
//! # anything
//! $ a command for sh; `$busybox` is the image of that name
//! > its second line, if any
//! | what it prints to stdout
//! ? words that are in what it prints to stderr
//! [its status, if not 0]
//! ! why Apptainer says something else here
//! ~ what Apptainer prints to stdout
//! ~[its status]
//! ```

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::enter::root;
use crate::image::{Image, readable_for_all};
use crate::machine::{complaint, machines};

const PLACE: &str = include_str!("transcripts/place.sh");
const ENTER: &str = include_str!("../oracle/enter.sh");

/// What a command line printed, and its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    stdout: String,
    status: i32,
}

struct Case {
    script: String,
    ours: Said,
    /// What Apptainer says, where it is something else; empty without a reason.
    reason: String,
    theirs: Said,
    stderr: Vec<String>,
}

/// Who runs the command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Ours,
    Apptainer,
}

/// What an image's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The image as it came, in a directory.
    Layout,
    /// The SIF that we packed.
    Sif,
    /// A directory with what is in that.
    Directory,
}

fn cases(transcript: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in transcript.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            cases.push(Case {
                script: format!("{command}\n"),
                ours: Said::default(),
                reason: String::new(),
                theirs: Said::default(),
                stderr: Vec::new(),
            });
            continue;
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let case = cases.last_mut().expect("a command comes first");
        if let Some(more) = line.strip_prefix("> ") {
            writeln!(case.script, "{more}").unwrap();
        } else if let Some(reason) = line.strip_prefix("! ") {
            case.reason = reason.to_owned();
        } else if let Some(words) = line.strip_prefix("? ") {
            case.stderr.push(words.to_owned());
        } else if let Some(theirs) = line.strip_prefix('~') {
            assert!(!case.reason.is_empty(), "no reason: {line}");
            case.theirs.add(theirs);
        } else {
            case.ours.add(line.strip_prefix('|').unwrap_or(line));
        }
    }
    for case in &mut cases {
        if case.reason.is_empty() {
            case.theirs = case.ours.clone();
        }
    }
    cases
}

impl Said {
    fn add(&mut self, line: &str) {
        let status = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match status.and_then(|status| status.parse().ok()) {
            Some(status) => self.status = status,
            None => {
                let line = line.strip_prefix(' ').unwrap_or(line);
                writeln!(self.stdout, "{line}").unwrap();
            }
        }
    }
}

/// A directory with images in it, and all that runs see.
pub struct Place {
    directory: TempDir,
    images: Vec<&'static str>,
}

impl Place {
    /// None, with a word about it, where this machine does not let a user run containers or the tests are not root's.
    pub fn new(images: Vec<(&'static str, Image)>) -> Option<Self> {
        let machine = machines().into_iter().find(|machine| !machine.is_root())?;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can make a place with a user of its own");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let place = Self {
            directory,
            images: images.iter().map(|(name, _)| *name).collect(),
        };
        place.make_directory("template");
        for (name, image) in &images {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.arg("compact").arg(image.reference());
            command.arg(place.path(&format!("template/{name}.sif")));
            let packed = command.output().unwrap();
            assert!(packed.status.success(), "{}", complaint(&packed));
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.args(["build", "--sandbox"]);
            command.arg(place.path(&format!("template/{name}.dir")));
            command.arg(place.path(&format!("template/{name}.sif")));
            let unpacked = command.output().unwrap();
            assert!(unpacked.status.success(), "{}", complaint(&unpacked));
            let copied = Command::new("cp")
                .args(["-r", "--no-target-directory"])
                .arg(image.directory())
                .arg(place.path(&format!("template/{name}")))
                .status();
            assert!(copied.unwrap().success());
        }
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn make_directory(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        readable_for_all(self.directory.path());
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    }

    /// A file in the directory where the command lines run.
    pub fn file(&self, name: &str, content: &str) {
        fs::write(self.path(&format!("template/{name}")), content).unwrap();
    }

    /// Everything as it was at first: the files, an empty home, these cases.
    fn prepare(&self, cases: &[Case], form: Form) {
        for name in ["work", "home", "cases"] {
            let _ = fs::remove_dir_all(self.path(name));
            self.make_directory(name);
        }
        self.make_directory("home/run");
        let copied = Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(self.path("template/."))
            .arg(self.path("work"))
            .status();
        assert!(copied.unwrap().success());
        let directory = self.path("cases");
        let mut images = String::new();
        for name in &self.images {
            match form {
                Form::Layout => writeln!(images, "{name}=oci:{name}:latest").unwrap(),
                Form::Sif => writeln!(images, "{name}={name}.sif").unwrap(),
                Form::Directory => writeln!(images, "{name}={name}.dir/").unwrap(),
            }
        }
        for (index, case) in cases.iter().enumerate() {
            let script = format!("{images}{}", case.script);
            fs::write(directory.join(format!("{index:03}.sh")), script).unwrap();
        }
    }

    /// Runs what is in `cases`.
    fn run(&self, program: Program) -> bool {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        match program {
            Program::Ours => command.args([PLACE, "sh"]).arg(env!("CARGO_BIN_EXE_sifon")),
            Program::Apptainer => {
                let Some(oracle) = root() else { return false };
                fs::write(self.path("place.sh"), PLACE).unwrap();
                command
                    .args([ENTER, "enter", ""])
                    .env("BECOME", "sh ./place.sh")
                    .env("ORACLE", oracle)
            }
        };
        let command = command.current_dir(self.directory.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        true
    }

    fn said(&self, index: usize) -> (Said, String) {
        let read = |end: &str| {
            let path = self.path(&format!("cases/{index:03}.sh.{end}"));
            let bytes = fs::read(path).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut stdout = read("out");
        if !stdout.is_empty() && !stdout.ends_with('\n') {
            stdout.push('\n');
        }
        let status = read("status").trim().parse().unwrap();
        (Said { stdout, status }, read("err"))
    }

    /// Gives the command lines of the transcript of that name to the program; every difference is told.
    pub fn holds(&self, transcript: &str, program: Program, form: Form) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/transcripts");
        let cases = cases(&fs::read_to_string(path.join(transcript)).unwrap());
        assert!(!cases.is_empty());
        self.prepare(&cases, form);
        if !self.run(program) {
            return;
        }
        let mut differences = String::new();
        for (index, case) in cases.iter().enumerate() {
            let expected = match program {
                Program::Ours => &case.ours,
                Program::Apptainer => &case.theirs,
            };
            let (said, stderr) = self.said(index);
            let has_words = case.stderr.iter().all(|words| stderr.contains(words));
            if said != *expected || !has_words {
                let Case { script, .. } = case;
                writeln!(
                    differences,
                    "$ {script}{}[{}]\n? {stderr}expected {expected:?}\n",
                    said.stdout, said.status
                )
                .unwrap();
            }
        }
        assert!(
            differences.is_empty(),
            "{program:?} with {form:?}:\n{differences}"
        );
    }
}
