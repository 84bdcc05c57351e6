//! What programs see of the machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};

#[test]
fn the_program_is_the_caller_and_owns_what_it_writes() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let uid = machine.uid();
        assert_eq!(machine.says(&image, &[], "id -u"), uid.to_string());
        assert_eq!(
            machine.says(&image, &[], "stat -c %u /bin/busybox"),
            uid.to_string()
        );
        let line = machine.says(&image, &[], "cat /etc/passwd");
        let known = line
            .lines()
            .filter(|line| line.split(':').nth(2) == Some(&uid.to_string()));
        let is_known_here = machine
            .program("getent")
            .args(["passwd", &uid.to_string()])
            .output();
        if is_known_here.unwrap().status.success() {
            assert_eq!(known.count(), 1, "{line}");
        }
        let file = machine.directory().join("made");
        machine.says(&image, &[], &format!("echo here > {}", file.display()));
        assert_eq!(fs::metadata(&file).unwrap().uid(), uid);
        let refused = machine
            .exec(&image, &[], &["touch", "/bin/new"])
            .output()
            .unwrap();
        assert!(
            complaint(&refused).contains("Read-only file system"),
            "{}",
            complaint(&refused)
        );
    }
}

#[test]
fn an_image_without_passwd_and_group_gets_none() {
    let Some(image) = ImageBuilder::empty() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        assert_eq!(
            machine.says(&image, &[], "ls /etc | grep -e passwd -e group; true"),
            ""
        );
    }
}

#[test]
fn the_machines_directories_are_there_though_the_image_has_none_of_them() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let script = "test -e /proc/self/exe && test -d /sys/kernel && test -c /dev/null && pwd";
        let here = machine.directory().display().to_string();
        assert_eq!(machine.says(&image, &[], script), here);
        // Nothing of the host but what is bound, and nothing of ours but what Singularity has too.
        let names = machine.says(&image, &[], "ls -A / | grep -v -e home -e root");
        let expected = ".exec .run .shell .singularity.d .test bin dev environment etc proc singularity sys tmp var";
        let expected: Vec<&str> = expected.split(' ').collect();
        assert_eq!(names.lines().collect::<Vec<_>>(), expected);
        let mounts = machine.says(&image, &[], "cat /proc/self/mountinfo");
        let images = |kind: &str| mounts.lines().filter(|line| line.contains(kind)).count();
        // The kernel's overlay in front of the image, which is the only one that knows it.
        assert_eq!(images(" overlay overlay "), 1, "{mounts}");
        assert_eq!(images(" fuse.sifon sifon "), 0, "{mounts}");
    }
}

#[test]
fn the_program_starts_in_the_current_directory_or_where_it_is_told() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.directory("srv/app", 0o755);
    let image = image.finish();
    for machine in machines() {
        assert_eq!(
            machine.says(&image, &["--pwd", "/srv/app"], "pwd; echo $PWD"),
            "/srv/app\n/srv/app"
        );
        let output = machine
            .exec(&image, &["--cwd", "/nonesuch"], &["pwd"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        assert!(
            complaint(&output).contains("/nonesuch"),
            "{}",
            complaint(&output)
        );
        // The image's own, not the host's: the program starts at home or at the root, with a warning.
        let output = machine
            .exec(&image, &["--no-home"], &["pwd"])
            .current_dir("/usr")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(
            complaint(&output).contains("/usr"),
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}

#[test]
fn a_current_directory_that_was_removed_is_no_obstacle() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let gone = machine.own_directory("gone");
        let script = format!("cd {0} && rmdir {0} && exec \"$@\"", gone.display());
        let mut command = machine.program("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_sifon"), "exec"]);
        let output = command
            .arg(image.reference())
            .args(["true"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn binds_show_files_and_directories_where_the_user_wants_them() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.link("mnt", "var/mnt");
    let image = image.finish();
    for machine in machines() {
        let source = machine.own_directory("source");
        fs::write(source.join("file"), "content").unwrap();
        let source = source.display();
        for (bind, script, expected) in [
            (
                format!("{source}:/data/deep"),
                "cat /data/deep/file",
                "content",
            ),
            (format!("{source}:/mnt/x"), "cat /var/mnt/x/file", "content"),
            (
                format!("{source}/file:/etc/new/name"),
                "cat /etc/new/name",
                "content",
            ),
            (
                format!("{source}:/rw,{source}:/ro:ro"),
                "touch /rw/a; touch /ro/b 2>&1; ls /ro",
                READ_ONLY,
            ),
            (format!("{source}:/bin/sub"), "cat /bin/sub/file", "content"),
            (
                "/:/host".into(),
                "test -e /host/proc/1/status && test -d /host/etc && echo yes",
                "yes",
            ),
        ] {
            assert_eq!(
                machine.says(&image, &["-B", &bind], script),
                expected,
                "{bind}"
            );
        }
        let mut command = machine.exec(&image, &[], &["cat", "/by/environment/file"]);
        command.env("SINGULARITY_BINDPATH", format!("{source}:/by/environment"));
        assert_eq!(command.output().unwrap().stdout, b"content");
        machine.wait_for_all();
    }
}

const READ_ONLY: &str = "touch: /ro/b: Read-only file system\na\nfile";

#[test]
fn binds_that_cannot_be_made_are_fatal_and_say_why() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("plain", b"", 0o644);
    image.link("loop", "loop");
    let image = image.finish();
    for machine in machines() {
        for (bind, words) in [
            ("/nonesuch:/data", "mount source /nonesuch doesn't exist"),
            ("/tmp:relative", "must be an absolute path"),
            (
                "/tmp:/plain",
                "the source is a directory, the target is not",
            ),
            (
                "/etc/passwd:/bin",
                "the target is a directory, the source is not",
            ),
            ("/tmp:/plain/below", "/plain/below"),
            ("/tmp:/loop/x", "/loop/x"),
        ] {
            let output = machine
                .exec(&image, &["-B", bind], &["true"])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(255), "{bind}");
            assert!(
                complaint(&output).contains(words),
                "{bind}: {}",
                complaint(&output)
            );
        }
        machine.wait_for_all();
    }
}

#[test]
fn what_programs_of_singularitys_look_for_is_in_every_container() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config("Entrypoint", json!(["echo", "entry"]));
    image.config("Cmd", json!(["cmd"]));
    image.config("Env", json!(["OURS=it's $HOME", "PATH=/bin"]));
    image.config("Labels", json!({"maintainer": "ada"}));
    // None of these may be kept: the first two lead elsewhere, the third is no directory.
    image.link(".singularity.d", "tmp/elsewhere");
    image.link(".exec", "nowhere");
    image.file("environment", b"the image's own\n", 0o644);
    let image = image.finish();
    for machine in machines() {
        let says = |script: &str| machine.says(&image, &[], script);
        let script = "cd /.singularity.d && ls . actions env && for link in /singularity /.run /.exec; do readlink $link; done && cat /environment";
        assert_eq!(
            says(script),
            ".:\nSingularity\nactions\nenv\nlabels.json\nlibs\nrunscript\nstartscript\n\n\
             actions:\nexec\nrun\nshell\nstart\ntest\n\n\
             env:\n01-base.sh\n10-docker2singularity.sh\n90-environment.sh\n94-appsbase.sh\n95-apps.sh\n99-base.sh\n99-runtimevars.sh\n\
             .singularity.d/runscript\n.singularity.d/actions/run\n.singularity.d/actions/exec\nthe image's own"
        );
        // As somebody does who starts containers in containers, or a script that an older Singularity made.
        assert_eq!(says("/singularity"), "entry cmd");
        assert_eq!(says("/.run a 'b c'"), "entry a b c");
        let exec = "env -i PATH=/bin /.singularity.d/actions/exec sh -c 'echo $OURS'";
        assert_eq!(says(exec), "it's $HOME");
        let labels: Value = serde_json::from_str(&says("cat /.singularity.d/labels.json")).unwrap();
        assert_eq!(labels["maintainer"], "ada");
        assert_eq!(
            labels["org.label-schema.usage.singularity.deffile.bootstrap"],
            "oci"
        );
        let deffile = says("cat /.singularity.d/Singularity");
        assert!(deffile.starts_with("bootstrap: oci\nfrom: /"), "{deffile}");
    }
}
