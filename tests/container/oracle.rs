//! The same command lines for Apptainer, with the image as a SIF, and for us: the same output and status. Runs as uid 1000 when
//! `SIFON_ORACLE` names the root directory of a system on which Apptainer is installed.
//!
//! Differences, and why:
//! - The last line of stderr, `FATAL: …`, has the same words for programs that are missing; for other errors it names more.
//! - `$(…)` and backticks in values of `--env` and in arguments of `run` are not evaluated: no shell is involved.
//! - After an option that does not exist, Apptainer prints its help to stdout; we print to stderr. The status is the same.
//! - Arguments after the image of `shell` go to the shell; Apptainer drops them.
//! - An argument of `run` with a double quote in it arrives; Apptainer loses ENTRYPOINT over it.
//! - `/etc/passwd` of the oracle's system has another name for the user.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::enter::{inside, root};
use crate::image::{Image, ImageBuilder, readable_for_all};
use crate::machine::{Machine, complaint, machines};

struct Both {
    oracle: PathBuf,
    shared: TempDir,
    machine: Machine,
    image: Image,
}

impl Both {
    fn new(image: Option<ImageBuilder>) -> Option<Self> {
        let oracle = root()?;
        let machine = machines().into_iter().find(|machine| !machine.is_root())?;
        let image = image?.finish();
        let shared = tempfile::tempdir().unwrap();
        readable_for_all(shared.path());
        std::os::unix::fs::chown(shared.path(), Some(1000), Some(1000)).unwrap();
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        command.arg("compact").arg(image.reference());
        let packed = command.arg(shared.path().join("x.sif")).output().unwrap();
        assert!(packed.status.success(), "{}", complaint(&packed));
        Some(Self {
            oracle,
            shared,
            machine,
            image,
        })
    }

    /// What Apptainer does: stdout, status, the last line of stderr.
    fn original(&self, before: &[&str], after: &[&str]) -> (String, i32, String) {
        let mut command = inside(&self.oracle, self.shared.path());
        command
            .args([
                "env",
                "SINGULARITYENV_FROM_S=s",
                "APPTAINERENV_FROM_A=a",
                "apptainer",
            ])
            .args(before)
            .arg("x.sif")
            .args(after);
        said(&mut command)
    }

    /// What we do.
    fn ours(&self, before: &[&str], after: &[&str]) -> (String, i32, String) {
        let mut command = self.machine.program(env!("CARGO_BIN_EXE_sifon"));
        command
            .args(before)
            .arg(self.image.reference())
            .args(after)
            .env("SINGULARITYENV_FROM_S", "s")
            .env("APPTAINERENV_FROM_A", "a")
            .current_dir(self.shared.path());
        said(&mut command)
    }

    fn agree(&self, before: &[&str], after: &[&str]) {
        let (original, ours) = (self.original(before, after), self.ours(before, after));
        let case = format!("{before:?} {after:?}");
        assert_eq!(
            (&ours.0, ours.1),
            (&original.0, original.1),
            "{case}: {ours:?} {original:?}"
        );
        if original.2.contains("executable file not found") {
            assert_eq!(ours.2, original.2, "{case}");
        }
    }
}

pub fn said(command: &mut Command) -> (String, i32, String) {
    use std::os::unix::process::ExitStatusExt;
    let output = command.stdin(Stdio::null()).output().unwrap();
    let status = output.status;
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap();
    let complaint = complaint(&output);
    let last = complaint.lines().last().unwrap_or_default().to_owned();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        code,
        last,
    )
}

#[test]
fn programs_start_and_end_as_under_the_original() {
    let Some(both) = Both::new(ImageBuilder::new()) else {
        return;
    };
    for (before, after) in [
        (&["exec"][..], &["true"][..]),
        (&["exec"], &["false"]),
        (&["exec"], &["sh", "-c", "exit 134"]),
        (&["exec"], &["sh", "-c", "kill -KILL $$"]),
        (&["exec"], &["sh", "-c", "kill -ABRT $$"]),
        (&["exec", "--pid"], &["sh", "-c", "exit 3"]),
        (&["exec"], &["nonesuch"]),
        (&["exec"], &["/nonesuch"]),
        (&["exec"], &["echo", "-e", "--env", "x", "--", "$HOME"]),
        (&["exec"], &["id", "-u"]),
        (&["exec", "--contain"], &["ls", "/tmp", "/var/tmp"]),
        (
            &["exec", "--contain"],
            &["sh", "-c", "pwd | grep -c . ; test -e /dev/fuse; echo $?"],
        ),
        (
            &["exec", "--containall"],
            &["sh", "-c", "echo ${FROM_A-unset} $LANG"],
        ),
        (&["exec", "--pwd", "/etc"], &["pwd"]),
        (&["exec", "--pwd", "/nonesuch"], &["pwd"]),
        (
            &["exec", "--hostname", "other"],
            &["cat", "/proc/sys/kernel/hostname"],
        ),
        (&["exec", "--no-home", "--no-mount", "tmp"], &["ls", "/tmp"]),
        (
            &["exec", "--writable-tmpfs"],
            &["sh", "-c", "echo x > /etc/new && cat /etc/new"],
        ),
        (
            &["exec", "--compat"],
            &["sh", "-c", "umask; echo x > /etc/new && cat /etc/new"],
        ),
        (
            &["exec", "--scratch", "/scratch"],
            &["sh", "-c", "touch /scratch/x && ls /scratch"],
        ),
        (&["exec", "-B", "/nonesuch"], &["true"]),
        (
            &["exec", "-B", "/usr:/data/deep:ro"],
            &["sh", "-c", "touch /data/deep/x; echo $?"],
        ),
        (
            &["exec", "--mount", "type=bind,src=/usr,dst=/there,ro"],
            &["test", "-d", "/there/bin"],
        ),
        (&["exec", "--mount", "src=/usr,dst=/there"], &["true"]),
    ] {
        both.agree(before, after);
    }
}

#[test]
fn the_environment_is_that_of_the_original() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config(
        "Env",
        json!(["PATH=/opt/bin:/bin", "FOO=img", "EMPTY=", "Q=a \"b\""]),
    );
    let Some(both) = Both::new(Some(image)) else {
        return;
    };
    let show = [
        "sh",
        "-c",
        r#"echo "$PATH|$FOO|${EMPTY-unset}|$Q|$FROM_S|$FROM_A|$X|$LD_LIBRARY_PATH|$APPTAINER_COMMAND|$PS1""#,
    ];
    for before in [
        &["exec"][..],
        &["exec", "--env", "X=1"],
        &["exec", "--env", "X=$FOO/x"],
        &["exec", "--no-eval", "--env", "X=$FOO/x"],
        &["exec", "--env", "FOO=asked,X=2"],
        &["exec", "--env", "PREPEND_PATH=/first"],
        &["exec", "--env", "APPEND_PATH=/last"],
        &["exec", "--env", "PATH=/only:/bin"],
        &["exec", "--env", "LD_LIBRARY_PATH=/mine"],
        &["exec", "-e"],
    ] {
        both.agree(before, &show);
    }
}

#[test]
fn run_is_that_of_the_original() {
    for (entrypoint, cmd) in [
        (&["/bin/echo", "entry"][..], &[][..]),
        (&["/bin/echo", "entry"], &["cmd", "two words"]),
        (&[], &["/bin/echo", "cmd"]),
    ] {
        let Some(mut image) = ImageBuilder::new() else {
            return;
        };
        image.config("Entrypoint", json!(entrypoint));
        image.config("Cmd", json!(cmd));
        let Some(both) = Both::new(Some(image)) else {
            return;
        };
        for arguments in [&[][..], &["echo", "a b"], &["echo", "$FROM_A", "x'y"]] {
            both.agree(&["run"], arguments);
        }
    }
}

/// A directory that root mounted, for all, under the original as a plain user.
#[test]
fn the_original_takes_a_mounted_directory_for_a_container() {
    let image = ImageBuilder::new().map(|mut image| {
        image.config("Entrypoint", json!(["echo", "[entry]"]));
        image.config("Cmd", json!(["[cmd]"]));
        image.config("Env", json!(["OURS=it's $HOME"]));
        image.config("Labels", json!({"maintainer": "ada"}));
        image
    });
    let Some(both) = Both::new(image) else { return };
    let directory = both.shared.path().join("mounted");
    let store = both.machine.directory().join("roots-store");
    let sifon = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sifon"));
        command
            .env("SIFON_STORE", &store)
            .args(words)
            .arg(&directory);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
    };
    sifon(&["mount", "--singularity", &both.image.reference()]);
    let apptainer = |words: &[&str]| {
        let mut command = inside(&both.oracle, both.shared.path());
        let (said, status, complaint) = said(command.arg("apptainer").args(words));
        assert_eq!(status, 0, "{words:?}: {said} {complaint}");
        said
    };
    let script = "echo $OURS; id -u; echo $APPTAINER_NAME";
    let said = apptainer(&["exec", "mounted", "sh", "-c", script]);
    assert_eq!(said, "it's $HOME\n1000\nmounted\n");
    assert_eq!(apptainer(&["run", "mounted"]), "[entry] [cmd]\n");
    assert_eq!(apptainer(&["run", "mounted", "a b"]), "[entry] a b\n");
    assert!(apptainer(&["inspect", "--labels", "mounted"]).contains("maintainer: ada\n"));
    assert!(apptainer(&["inspect", "--runscript", "mounted"]).contains("OCI_ENTRYPOINT"));
    sifon(&["umount"]);
}
