//! `--app` and `--dns`.

use std::process::Output;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};

#[test]
fn an_app_brings_its_programs_its_variables_and_what_run_starts() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file(
        "scif/apps/foo/bin/tool",
        b"#!/bin/sh\necho tool $SCIF_APPNAME $OF_APP\n",
        0o755,
    );
    image.file(
        "scif/apps/foo/scif/env/90-environment.sh",
        b"export OF_APP=$SCIF_APPROOT/x\n",
        0o644,
    );
    image.file(
        "scif/apps/foo/scif/runscript",
        b"#!/bin/sh\necho run of foo \"$@\"\n",
        0o755,
    );
    image.directory("scif/apps/bare", 0o755);
    let image = image.finish();
    for machine in machines() {
        let run = |verb: &str, app: &str, words: &[&str]| -> Output {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command
                .args([verb, "--app", app, &image.reference()])
                .args(words);
            command.output().unwrap()
        };
        let said = |verb: &str, words: &[&str]| {
            let output = run(verb, "foo", words);
            assert!(output.status.success(), "{}", complaint(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(said("exec", &["tool"]), "tool foo /scif/apps/foo/x\n");
        assert_eq!(
            said(
                "exec",
                &["sh", "-c", "echo $APPTAINER_APPNAME $SCIF_APPDATA"]
            ),
            "foo /scif/data/foo\n"
        );
        assert_eq!(said("run", &["a", "b c"]), "run of foo a b c\n");
        for (verb, app, problem) in [
            ("exec", "bar", "no app bar"),
            ("exec", "../apps/foo", "no app ../apps/foo"),
            ("run", "bare", "nothing that it runs"),
        ] {
            let refused = run(verb, app, &["true"]);
            assert_eq!(refused.status.code(), Some(255));
            assert!(
                complaint(&refused).contains(problem),
                "{}",
                complaint(&refused)
            );
        }
    }
}

#[test]
fn name_servers_can_be_named() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let script = "cat /etc/resolv.conf";
        let expected = "nameserver 192.0.2.1\nnameserver 2001:db8::1";
        assert_eq!(
            machine.says(&image, &["--dns", "192.0.2.1,2001:db8::1"], script),
            expected
        );
        let mut command = machine.exec(&image, &[], &["sh", "-c", script]);
        let output = command
            .env("APPTAINER_DNS", "192.0.2.1, 2001:db8::1")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), expected);
        let refused = machine
            .exec(&image, &["--dns", "a.example"], &["true"])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(1));
    }
}
