//! How programs start and end.

use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, Signal};

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines, started, with_input};

#[test]
fn the_programs_status_is_the_commands() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        for (script, code, signal) in [
            ("exit 0", Some(0), None),
            ("exit 1", Some(1), None),
            ("exit 77", Some(77), None),
            ("kill -ABRT $$", None, Some(6)),
            ("kill -KILL $$", None, Some(9)),
            ("kill -SEGV $$", None, Some(11)),
        ] {
            let status = machine
                .exec(&image, &[], &["sh", "-c", script])
                .status()
                .unwrap();
            assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
        }
        machine.wait_for_all();
    }
}

#[test]
fn a_program_that_is_missing_or_not_executable_is_fatal_in_singularitys_words() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("bin/plain", b"text", 0o644);
    let image = image.finish();
    for machine in machines() {
        for (program, words) in [
            (
                "nonesuch",
                "FATAL:   \"nonesuch\": executable file not found in $PATH\n",
            ),
            (
                "plain",
                "FATAL:   \"plain\": executable file not found in $PATH\n",
            ),
            (
                "/bin/nonesuch",
                "FATAL:   stat /bin/nonesuch: no such file or directory\n",
            ),
            (
                "/bin/plain",
                "FATAL:   exec /bin/plain: permission denied\n",
            ),
        ] {
            let output = machine.exec(&image, &[], &[program]).output().unwrap();
            assert_eq!(output.status.code(), Some(255), "{program}");
            assert!(complaint(&output).contains(words), "{}", complaint(&output));
        }
        machine.wait_for_all();
    }
}

#[test]
fn input_and_output_are_the_programs_own() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let input = b"\0binary\n".repeat(100_000);
        let output = with_input(&mut machine.exec(&image, &[], &["cat"]), &input);
        assert!(output.stdout == input && output.status.success());
        assert_eq!(complaint(&output), "");
    }
}

#[test]
fn other_descriptors_of_the_caller_reach_the_program() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let script = r#"exec 7<<END
inherited
END
exec "$@""#;
        let mut command = machine.program("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_sifon"), "exec"]);
        let output = command
            .arg(image.reference())
            .args(["sh", "-c", "cat <&7"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "inherited\n",
            "{output:?}"
        );
    }
}

#[test]
fn signals_reach_the_program_itself() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let script = "trap 'exit 9' TERM; echo ready; while :; do read x || sleep 60 & wait; done";
        let (mut child, said) = started(&mut machine.exec(&image, &[], &["sh", "-c", script]));
        assert_eq!(said, "ready");
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(9));
        for process in machine.processes() {
            process.kill();
        }
        machine.wait_for_all();
    }
}

#[test]
fn arguments_after_the_image_are_the_programs() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let said = machine.stdout(&image, &[], &["echo", "-e", "--env", "x", "--", "--help"]);
        assert_eq!(said, "--env x -- --help\n");
    }
}

#[test]
fn output_of_a_command_substitution_ends_with_the_program() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let mut command = machine.program("sh");
        command.args([
            "-c",
            r#"x=$("$@" 2>&1); echo "[$x]""#,
            "sh",
            env!("CARGO_BIN_EXE_sifon"),
            "exec",
        ]);
        let output = command
            .arg(image.reference())
            .args(["echo", "here"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "[here]\n");
    }
}
