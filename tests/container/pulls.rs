//! Apptainer's own pull of an image beside ours: both files, run by Apptainer and by us, say the same. As uid 1000, when `SIFON_ORACLE`
//! names the root directory of a system on which Apptainer is installed.
//!
//! Differences, and why:
//! - A variable of the image with a dollar sign, a double quote or a backslash in it has another value when Apptainer runs its own
//!   file: its pull escapes such values twice. In our file, and when we run either, it has the image's.
//! - A variable with a backtick costs Apptainer's file all variables of the image, for the same reason. Ours has them all.
//! - An image without ENTRYPOINT and CMD: `run` of Apptainer's file prints the variables of its shell. Ours says that there is nothing to run.
//! - A directory that no layer has an entry for has, in Apptainer's file, the mode that its caller's umask leaves; in ours 0755.
//! - Files that are not root's belong to root in Apptainer's file, devices are empty files, and both have attributes that say so
//!   (`user.rootlesscontainers`): it unpacks as a user. In a container all belongs to the caller either way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::enter::{inside, root};
use crate::image::{ImageBuilder, readable_for_all};
use crate::machine::{Machine, complaint, machines};
use crate::oracle::said;

/// Whose file it is.
const FILES: [&str; 2] = ["theirs", "ours"];

/// One image as two files, each `x.sif` in a directory of its own.
pub struct Pulled {
    oracle: PathBuf,
    shared: TempDir,
    machine: Machine,
}

/// Output and status.
pub type Said = (String, i32);

impl Pulled {
    pub fn new(image: Option<ImageBuilder>) -> Option<Self> {
        let oracle = root()?;
        let machine = machines().into_iter().find(|machine| !machine.is_root())?;
        let image = image?.finish();
        let shared = tempfile::tempdir().unwrap();
        readable_for_all(shared.path());
        for name in ["", "theirs", "ours"] {
            let directory = shared.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            std::os::unix::fs::chown(&directory, Some(1000), Some(1000)).unwrap();
        }
        let copied = std::process::Command::new("cp")
            .args(["-rL", image.directory().to_str().unwrap()])
            .arg(shared.path().join("layout"))
            .status();
        assert!(copied.unwrap().success());
        let pulled = Self {
            oracle,
            shared,
            machine,
        };
        let mut theirs = inside(&pulled.oracle, pulled.shared.path());
        let cache = [
            "APPTAINER_CACHEDIR=/host/theirs/cache",
            "APPTAINER_TMPDIR=/host/theirs",
        ];
        theirs.arg("env").args(cache);
        theirs.args(["apptainer", "pull", "theirs/x.sif", "oci:layout"]);
        let output = theirs.output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        let mut ours = pulled.machine.program(env!("CARGO_BIN_EXE_sifon"));
        ours.args(["pull", "ours/x.sif", "oci:layout"]);
        let output = ours.current_dir(pulled.shared.path()).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        Some(pulled)
    }

    /// Where the files' directories are.
    pub fn path(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// Runs one of the original programs, there.
    pub fn original(&self, words: &[&str]) -> Said {
        let mut command = inside(&self.oracle, self.shared.path());
        let (output, status, complaint) = said(command.args(words));
        (output + &complaint, status)
    }

    /// What Apptainer makes of a file.
    pub fn by_apptainer(&self, file: &str, verb: &str, words: &[&str]) -> Said {
        let mut command = inside(&self.oracle, self.shared.path());
        command.args(["env", "FROM=host", "apptainer", "-q", verb]);
        command.arg(format!("{file}/x.sif")).args(words);
        let (output, status, _) = said(&mut command);
        (output.replace(&format!("/host/{file}/"), "/"), status)
    }

    /// What we make of it.
    pub fn by_us(&self, file: &str, verb: &str, words: &[&str]) -> Said {
        let mut command = self.machine.program(env!("CARGO_BIN_EXE_sifon"));
        command.arg(verb).arg(format!("{file}/x.sif")).args(words);
        command.env("FROM", "host").current_dir(self.shared.path());
        let (output, status, _) = said(&mut command);
        let place = self.shared.path().join(file);
        (
            output.replace(&format!("{}/", place.display()), "/"),
            status,
        )
    }

    /// What all four say.
    #[track_caller]
    fn agree(&self, verb: &str, words: &[&str]) -> Said {
        let [theirs, ours] = FILES.map(|file| self.by_apptainer(file, verb, words));
        assert_eq!(ours, theirs, "our file under Apptainer, {verb} {words:?}");
        let [theirs_here, ours_here] = FILES.map(|file| self.by_us(file, verb, words));
        assert_eq!(ours_here, theirs_here, "the files here, {verb} {words:?}");
        assert_eq!(ours_here, ours, "the programs, {verb} {words:?}");
        ours
    }
}

/// The lines of `env`, by name.
fn variables(said: &Said) -> BTreeMap<String, String> {
    assert_eq!(said.1, 0, "{said:?}");
    let lines = said.0.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn each_entrypoint_and_command_runs_from_our_file_as_from_apptainers_own() {
    let entrypoints: [&[&str]; 3] = [
        &[],
        &["/bin/echo", "entry"],
        &["/bin/echo", "two words", "it's $FROM"],
    ];
    let commands: [&[&str]; 3] = [
        &[],
        &["/bin/echo", "cmd"],
        &["echo", "two words", "`echo $FROM`"],
    ];
    for entrypoint in entrypoints {
        for command in commands {
            if entrypoint.is_empty() && command.is_empty() {
                continue;
            }
            let Some(mut image) = ImageBuilder::new() else {
                return;
            };
            image.config("Entrypoint", json!(entrypoint));
            image.config("Cmd", json!(command));
            let Some(pulled) = Pulled::new(Some(image)) else {
                return;
            };
            let arguments: [&[&str]; 4] = [
                &[],
                &["echo", "a b"],
                &["echo", "x'y", "$FROM"],
                &["--", "-n", ""],
            ];
            for words in arguments {
                let (_, status) = pulled.agree("run", words);
                let is_known = !entrypoint.is_empty() || words.first() != Some(&"--");
                assert!(
                    status == 0 || !is_known,
                    "{entrypoint:?} {command:?} {words:?}"
                );
            }
        }
    }
}

#[test]
fn an_image_with_nothing_to_run_says_so_and_runs_what_it_is_given() {
    let Some(pulled) = Pulled::new(ImageBuilder::new()) else {
        return;
    };
    pulled.agree("run", &["echo", "given"]);
    let (dumped, status) = pulled.by_apptainer("theirs", "run", &[]);
    assert_eq!(status, 0);
    assert!(dumped.contains("IFS="), "{dumped}");
    let (said, status) = pulled.by_apptainer("ours", "run", &[]);
    assert_eq!((said.as_str(), status), ("", 0));
}

#[test]
fn the_environment_of_our_file_is_that_of_apptainers_own() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    let same = [
        "FOO=img",
        "EMPTY=",
        "SPACED=a  b",
        "ACCENT=äö",
        "APOSTROPHE=it's",
        "FROM=image",
    ];
    let escaped = [
        ("DOLLAR", "a $HOME"),
        ("QUOTE", "a \"b\""),
        ("BACKSLASH", "a\\b"),
    ];
    let mut all: Vec<String> = same.map(str::to_owned).to_vec();
    all.extend(escaped.map(|(name, value)| format!("{name}={value}")));
    all.push("PATH=/opt/bin:/bin".to_owned());
    image.config("Env", json!(all));
    image.config("Labels", json!({"maintainer": "ada"}));
    let Some(pulled) = Pulled::new(Some(image)) else {
        return;
    };
    let mut of_ours = Vec::new();
    for (program, garbles) in [
        (
            Pulled::by_apptainer as fn(&Pulled, &str, &str, &[&str]) -> Said,
            true,
        ),
        (Pulled::by_us, false),
    ] {
        let [mut theirs, mut ours] =
            FILES.map(|file| variables(&program(&pulled, file, "exec", &["env"])));
        for (name, value) in escaped {
            let [theirs, ours] = [&mut theirs, &mut ours].map(|all| all.remove(name).unwrap());
            assert_eq!(ours, value);
            assert_eq!(theirs != value, garbles, "{name}: {theirs}");
        }
        let differs = |name: &&String| ours.get(*name) != theirs.get(*name);
        let different: Vec<_> = ours.keys().chain(theirs.keys()).filter(differs).collect();
        assert_eq!(different, Vec::<&String>::new(), "{ours:?} {theirs:?}");
        let names = same.map(|variable| variable.split_once('=').unwrap().0);
        let wanted = |(name, _): &(&String, &String)| {
            names.contains(&name.as_str()) || ["PATH", "LD_LIBRARY_PATH"].contains(&name.as_str())
        };
        let named: BTreeMap<_, _> = ours
            .iter()
            .filter(wanted)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        assert_eq!(named.len(), same.len() + 2, "{named:?}");
        of_ours.push(named);
    }
    assert_eq!(of_ours[0], of_ours[1]);
}

#[test]
fn a_backtick_costs_apptainers_file_its_variables_and_ours_none() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config("Env", json!(["FOO=img", "TICK=a `id`"]));
    let Some(pulled) = Pulled::new(Some(image)) else {
        return;
    };
    let theirs = variables(&pulled.by_apptainer("theirs", "exec", &["env"]));
    assert_eq!(theirs.get("FOO"), None, "Apptainer has mended this");
    for said in [
        pulled.by_apptainer("ours", "exec", &["env"]),
        pulled.by_us("ours", "exec", &["env"]),
    ] {
        let ours = variables(&said);
        assert_eq!(
            (ours["FOO"].as_str(), ours["TICK"].as_str()),
            ("img", "a `id`")
        );
    }
}

#[test]
fn our_file_has_the_tree_of_apptainers_own() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.directory("data", 0o755);
    image.file("data/plain", b"plain\n", 0o640);
    image.file("data/closed", b"nobody's\n", 0);
    image.file("data/special", b"#!/bin/sh\n", 0o4755);
    image.link("data/link", "plain");
    image.link("data/dangling", "/nowhere/at all");
    image.directory("data/sticky", 0o1777);
    image.device("data/null", tar::EntryType::Char, (1, 3));
    image.device("data/pipe", tar::EntryType::Fifo, (0, 0));
    let Some(pulled) = Pulled::new(Some(image)) else {
        return;
    };
    // What a container mounts over is not the image's; dates and sizes of what both make differ.
    let list = "cd / && for it in $(busybox find bin data .singularity.d etc/hosts etc/resolv.conf environment singularity .run .exec .test .shell); \
                do busybox stat -c '%A %N' $it; done | busybox sort";
    let scripts = "cd /.singularity.d && cat actions/run actions/exec env/01-base.sh env/90-environment.sh >/dev/null && ls -A env actions . && test -x runscript";
    let list_of = |(said, status): Said| {
        assert_eq!(status, 0, "{said}");
        said.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for program in [Pulled::by_apptainer, Pulled::by_us] {
        let [theirs, ours] =
            FILES.map(|file| list_of(program(&pulled, file, "exec", &["sh", "-c", list])));
        let is_device = |line: &&String| line.ends_with(" data/null");
        assert_eq!(ours.iter().filter(is_device).count(), 1, "{ours:#?}");
        let is_made = |line: &str| line.ends_with(" data/null") || line.ends_with("r-x bin");
        let others = |lines: Vec<String>| {
            let lines = lines.into_iter().filter(|line| !is_made(line));
            lines.collect::<BTreeSet<_>>()
        };
        let [theirs, ours] = [theirs, ours].map(others);
        let different: Vec<_> = ours.symmetric_difference(&theirs).collect();
        assert_eq!(different, Vec::<&String>::new());
        let [theirs, ours] =
            FILES.map(|file| program(&pulled, file, "exec", &["sh", "-c", scripts]));
        assert_eq!(ours, theirs);
    }
}
