//! The options of `exec`, `run` and `shell`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use serde_json::json;

use crate::image::{Image, ImageBuilder};
use crate::machine::{complaint, machines, started, with_input};

fn small() -> Option<Image> {
    Some(ImageBuilder::new()?.finish())
}

/// ENTRYPOINT, CMD, arguments and what is run.
#[test]
fn run_joins_entrypoint_command_and_arguments_as_docker_does() {
    let echo = ["/bin/echo", "entry"];
    for (entrypoint, command, arguments, expected) in [
        (&echo[..], &[][..], &[][..], "entry"),
        (&echo, &["cmd"], &[], "entry cmd"),
        (&echo, &["cmd"], &["a b", "c"], "entry a b c"),
        (&[], &["echo", "cmd"], &[], "cmd"),
        (&[], &["echo", "cmd"], &["echo", "-n", "$OURS"], "here"),
    ] {
        let Some(mut image) = ImageBuilder::new() else {
            return;
        };
        image.config("Entrypoint", json!(entrypoint));
        image.config("Cmd", json!(command));
        image.config("Env", json!(["OURS=here"]));
        let image = image.finish();
        for machine in machines() {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.arg("run").arg(image.reference()).args(arguments);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.trim_end(), expected, "{}", complaint(&output));
        }
    }
}

#[test]
fn an_image_that_names_nothing_to_run_does_nothing_without_arguments() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let run = |arguments: &[&str]| {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.arg("run").arg(image.reference()).args(arguments);
            command.output().unwrap()
        };
        let nothing = run(&[]);
        assert_eq!(nothing.status.code(), Some(0));
        assert!(complaint(&nothing).contains("neither ENTRYPOINT nor CMD"));
        assert_eq!(run(&["echo", "x"]).stdout, b"x\n");
    }
}

#[test]
fn a_shell_reads_what_comes_in() {
    let Some(image) = small() else { return };
    for machine in machines() {
        for (options, input, expected) in [
            (&[][..], "echo $0 $PS1", "/bin/sh Apptainer>"),
            (&["--shell", "/bin/busybox"], "", ""),
        ] {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.arg("shell").args(options).arg(image.reference());
            if !options.is_empty() {
                command.args(["echo"]);
            }
            let output = with_input(&mut command, input.as_bytes());
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.trim_end(), expected, "{}", complaint(&output));
        }
    }
}

#[test]
fn a_contained_program_has_home_temporary_files_and_devices_of_its_own() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let script = "ls /tmp /var/tmp; ls ~; touch ~/x /tmp/x /dev/shm/x && pwd; \
            echo > /dev/null; test -e /dev/fuse || echo no fuse; ls -d /dev/pts";
        let said = machine.says(&image, &["--contain", "--env", "X=1"], script);
        let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines[..2], ["/tmp:", "/var/tmp:"], "{said}");
        assert!(lines.ends_with(&["no fuse", "/dev/pts"]), "{said}");
        // Again: nothing of it has stayed.
        assert_eq!(machine.says(&image, &["--contain"], "ls /tmp"), "");
        let source = machine.own_directory("source");
        fs::write(source.join("file"), "content").unwrap();
        let bind = format!("{}:/tmp/deep/in/memory", source.display());
        let said = machine.says(&image, &["-c", "-B", &bind], "cat /tmp/deep/in/memory/file");
        assert_eq!(said, "content");
    }
}

#[test]
fn a_program_with_process_numbers_of_its_own_ends_as_it_would_without() {
    let Some(image) = small() else { return };
    for machine in machines() {
        for (script, code, signal) in [
            ("exit 0", Some(0), None),
            ("exit 77", Some(77), None),
            ("kill -TERM $$", None, Some(15)),
            ("kill -KILL $$", None, Some(9)),
        ] {
            let mut command = machine.exec(&image, &["--pid"], &["sh", "-c", script]);
            let status = command.status().unwrap();
            assert_eq!((status.code(), status.signal()), (code, signal), "{script}");
        }
        let said = machine.says(&image, &["-p"], "echo $$; ls /proc");
        let numbers = said
            .lines()
            .skip(1)
            .filter(|name| name.parse::<u32>().is_ok());
        assert!(numbers.count() <= 3, "{said}");
        let output = machine
            .exec(&image, &["-p"], &["nonesuch"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        let words = "FATAL:   \"nonesuch\": executable file not found in $PATH\n";
        assert!(complaint(&output).contains(words), "{}", complaint(&output));
        machine.wait_for_all();
    }
}

#[test]
fn descendants_end_with_a_program_that_has_its_own_process_numbers() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let script = "sleep 600 & echo up; cat";
        let (mut child, _) = started(&mut machine.exec(&image, &["-p"], &["sh", "-c", script]));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        machine.wait_for_all();
        // Also when the one that the user started is killed.
        let (mut child, _) = started(&mut machine.exec(&image, &["-p"], &["sh", "-c", script]));
        child.kill().unwrap();
        child.wait().unwrap();
        machine.wait_for_all();
    }
}

#[test]
fn signals_reach_a_program_that_has_its_own_process_numbers() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 1 & wait; done";
        let (mut child, said) = started(&mut machine.exec(&image, &["-p"], &["sh", "-c", script]));
        assert_eq!(said, "ready");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9));
        machine.wait_for_all();
    }
}

#[test]
fn what_is_written_into_an_image_is_gone_or_kept_as_asked() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let script = "echo new > /etc/new && cat /etc/new && ls -a /.. | grep -c -x boot";
        let output = machine
            .exec(&image, &["--writable-tmpfs"], &["sh", "-c", script])
            .output()
            .unwrap();
        // grep is no applet here; the way up leads to the image itself.
        assert!(
            output.stdout.starts_with(b"new\n"),
            "{}",
            complaint(&output)
        );
        let up = machine.says(&image, &["--writable-tmpfs"], "stat -c %d:%i / /.. /etc/..");
        let mut lines: Vec<&str> = up.lines().collect();
        lines.dedup();
        assert_eq!(lines.len(), 1, "{up}");
        assert_eq!(
            machine.says(&image, &[], "ls /etc/new 2>/dev/null; true"),
            ""
        );
        let kept = machine.own_directory("kept");
        if machine.is_root() {
            fs::set_permissions(&kept, fs::Permissions::from_mode(0o755)).unwrap();
        } else {
            std::os::unix::fs::chown(&kept, Some(1000), Some(1000)).unwrap();
        }
        let kept = kept.display().to_string();
        machine.says(&image, &["--overlay", &kept], "echo kept > /kept");
        let read_only = format!("{kept}:ro");
        let script = "cat /kept; echo x > /kept 2>/dev/null || echo read-only";
        let said = machine.says(&image, &["--overlay", &read_only], script);
        assert_eq!(said, "kept\nread-only");
        machine.wait_for_all();
    }
}

#[test]
fn the_caller_can_be_root_inside() {
    let Some(image) = small() else { return };
    for machine in machines().into_iter().filter(|machine| !machine.is_root()) {
        let made = machine.own_directory("made").join("file");
        let script = format!("id -u; touch {0}; stat -c %u {0} /bin", made.display());
        let said = machine.says(&image, &["--fakeroot"], &script);
        assert_eq!(said, "0\n0\n0");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&made).unwrap().uid(), machine.uid());
        // Another server: users have other numbers there.
        assert_eq!(
            machine.says(&image, &[], "id -u"),
            machine.uid().to_string()
        );
    }
}

#[test]
fn the_machines_name_network_and_memory_can_be_the_containers_own() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let name = "cat /etc/hostname /proc/sys/kernel/hostname";
        assert_eq!(
            machine.says(&image, &["--hostname", "other"], name),
            "other\nother"
        );
        let options = ["--net", "--network", "none"];
        let said = machine.says(
            &image,
            &options,
            "ls /sys/class/net >/dev/null; cat /proc/net/dev",
        );
        assert_eq!(said.lines().count(), 3, "{said}");
        let refused = machine
            .exec(&image, &["--net"], &["true"])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(255));
        let of = |options: &[&str]| machine.says(&image, options, "readlink /proc/self/ns/ipc");
        assert_ne!(of(&["--ipc"]), of(&[]));
    }
}

#[test]
fn directories_can_be_chosen_and_left_out() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let home = machine.own_directory("home");
        fs::write(home.join("mine"), "").unwrap();
        let spec = format!("{}:/my/home", home.display());
        let said = machine.says(&image, &["--home", &spec], "echo $HOME; ls ~");
        assert_eq!(said, "/my/home\nmine");
        let work = machine.own_directory("work");
        let options = ["-c", "-W", work.to_str().unwrap(), "-S", "/scratch"];
        machine.says(&image, &options, "touch /scratch/a /tmp/b");
        assert!(work.join("scratch/scratch/a").exists() && work.join("tmp/b").exists());
        let options = ["--no-mount", "tmp,/etc/hosts,cwd", "--no-home"];
        let script = "cat /etc/hosts; ls /tmp 2>/dev/null; true";
        assert_eq!(machine.says(&image, &options, script), "");
        let source = format!("type=bind,src={},dst=/there,ro", home.display());
        assert_eq!(
            machine.says(&image, &["--mount", &source], "ls /there"),
            "mine"
        );
    }
}

#[test]
fn variables_stand_for_options_and_files_for_variables() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let mut command = machine.exec(&image, &[], &["ls", "/tmp"]);
        let output = command.env("SINGULARITY_CONTAIN", "1").output().unwrap();
        assert_eq!(output.stdout, b"", "{}", complaint(&output));
        let file = machine.directory().join("variables");
        fs::write(&file, "export A=1\nB=\"$A 2\"\n").unwrap();
        let options = ["--env-file", file.to_str().unwrap(), "--env", "A=3"];
        assert_eq!(machine.says(&image, &options, "echo $A-$B"), "3-1 2");
        assert_eq!(
            machine.says(&image, &["--no-eval", "--env", "A=$HOME"], "echo \"$A\""),
            "$HOME"
        );
        let mut command = machine.exec(&image, &["--no-umask"], &["sh", "-c", "umask"]);
        assert_eq!(command.output().unwrap().stdout, b"0022\n");
    }
}

#[test]
fn the_images_directory_is_entered_on_request_only() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.directory("srv/app", 0o755);
    image.config("WorkingDir", json!("/srv/app"));
    let image = image.finish();
    for machine in machines() {
        let here = machine.directory().display().to_string();
        assert_eq!(machine.says(&image, &[], "pwd"), here);
        assert_eq!(machine.says(&image, &["--oci-defaults"], "pwd"), "/srv/app");
    }
}

#[test]
fn programs_share_what_sharens_promises_or_are_told_how_to() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let script = "readlink /proc/self/ns/user /proc/self/ns/ipc; stat -c %d /";
        let options = ["--sharens", "--linger", "600"];
        let first = machine.says(&image, &options, script);
        assert_eq!(machine.says(&image, &options, script), first);
        assert_eq!(machine.says(&image, &[], script), first);
        for options in [
            &["--sharens", "--pid"][..],
            &["--sharens", "--containall"],
            &["--sharens", "--hostname", "x"],
        ] {
            let refused = machine.exec(&image, options, &["true"]).output().unwrap();
            assert_eq!(refused.status.code(), Some(255), "{options:?}");
            assert!(
                complaint(&refused).contains("sifon instance start"),
                "{}",
                complaint(&refused)
            );
        }
        let refused = machine.exec(&image, &["--sharens", "--private"], &["true"]);
        assert!(!{ refused }.output().unwrap().status.success());
        machine.wait_for_all();
    }
}

#[test]
fn limits_of_resources_are_refused_with_the_ways_to_have_them() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let output = |option: &str, value: &str| {
            let mut command = machine.exec(&image, &[option, value], &["true"]);
            let output = command.output().unwrap();
            (output.status.code(), complaint(&output))
        };
        for option in ["--memory", "--cpus", "--pids-limit", "--apply-cgroups"] {
            let (status, said) = output(option, "1");
            assert_eq!(status, Some(255), "{said}");
            assert!(
                said.contains(option) && said.contains("systemd-run"),
                "{said}"
            );
        }
        let mut command = machine.exec(&image, &[], &["true"]);
        let refused = command.env("APPTAINER_MEMORY", "1G").output().unwrap();
        assert_eq!(refused.status.code(), Some(255));
        machine.wait_for_all();
    }
}

#[test]
fn it_answers_to_singularitys_names() {
    for (name, arguments, code, said) in [
        (
            "singularity",
            &["--version"][..],
            0,
            "apptainer version 1.4.5 (sifon ",
        ),
        (
            "apptainer",
            &["--version"],
            0,
            "apptainer version 1.4.5 (sifon ",
        ),
        ("apptainer", &["version"], 0, "1.4.5\n"),
        ("apptainer", &["exec", "--nonesuch"], 1, ""),
        ("sifon", &["--version"], 0, "sifon "),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sifon"))
            .arg0(format!("/usr/bin/{name}"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(said), "{name} {arguments:?}: {text}");
    }
    let _ = std::io::stdout().flush();
}
