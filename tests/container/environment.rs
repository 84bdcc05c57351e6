//! What programs find in their environment.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use serde_json::json;

use crate::image::ImageBuilder;
use crate::machine::machines;

#[test]
fn the_environment_is_the_images_the_users_and_the_rest_of_the_hosts() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config(
        "Env",
        json!([
            "PATH=/opt/bin:/bin",
            "FROM=image",
            "EMPTY=",
            "QUOTED=a \"b\" $HOME `id`"
        ]),
    );
    let image = image.finish();
    for machine in machines() {
        let options = ["--env", "ASKED=$FROM/x", "--env", "PREPEND_PATH=/first"];
        let mut command = machine.exec(&image, &options, &["env"]);
        command
            .env("FROM", "host")
            .env("EMPTY", "host")
            .env("SLURM_PROCID", "7")
            .env("APPTAINERENV_OURS", "apptainer")
            .env("SINGULARITYENV_OURS", "singularity")
            .env("LD_LIBRARY_PATH", "/host/lib")
            .env("HOME", "/somewhere/else");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once('='));
            lines
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value)
        };
        for (name, expected) in [
            ("FROM", Some("image")),
            ("EMPTY", None),
            ("QUOTED", Some("a \"b\" $HOME `id`")),
            ("ASKED", Some("image/x")),
            ("OURS", Some("apptainer")),
            ("APPTAINERENV_OURS", None),
            ("SLURM_PROCID", Some("7")),
            ("LD_LIBRARY_PATH", Some("/.singularity.d/libs")),
            ("APPTAINER_COMMAND", Some("exec")),
            ("SINGULARITY_CONTAINER", Some(image.reference().as_str())),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
        let path = value("PATH").unwrap();
        assert!(
            path.starts_with("/first:/opt/bin:/bin:/usr/local/sbin"),
            "{path}"
        );
        assert_ne!(value("HOME"), Some("/somewhere/else"));
    }
}

#[test]
fn a_clean_environment_has_nothing_of_the_host() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let mut command = machine.exec(&image, &["-e"], &["env"]);
        let output = command
            .env("SLURM_PROCID", "7")
            .env("TERM", "vt100")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().any(|line| line == "TERM=vt100"), "{text}");
        assert!(text.lines().any(|line| line == "LANG=C"), "{text}");
        assert!(!text.contains("SLURM_"), "{text}");
    }
}

#[test]
fn a_sif_brings_the_variables_of_its_scripts() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config("Env", json!(["PATH=/opt/bin:/bin", "FROM=it's an image"]));
    let image = image.finish();
    let directory = tempfile::tempdir().unwrap();
    crate::image::readable_for_all(directory.path());
    let build = |words: &[&OsStr]| {
        let built = Command::new(env!("CARGO_BIN_EXE_sifon"))
            .arg("build")
            .args(words)
            .env("SIFON_STORE", directory.path().join("store"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
    };
    let (sandbox, sif) = (
        directory.path().join("sandbox"),
        directory.path().join("x.sif"),
    );
    let reference = image.reference();
    build(&["--sandbox".as_ref(), sandbox.as_ref(), reference.as_ref()]);
    // What a definition file has under %environment.
    let script =
        "#!/bin/sh\n# Custom environment.\nexport TOOL=/opt/tool\nexport PATH=$TOOL/bin:$PATH\n";
    fs::write(sandbox.join(".singularity.d/env/90-environment.sh"), script).unwrap();
    build(&[sif.as_ref(), sandbox.as_ref()]);
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        command.arg("exec").arg(&sif).arg("env").env("FROM", "host");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\nFROM=it's an image\n"), "{text}");
        assert!(text.contains("\nTOOL=/opt/tool\n"), "{text}");
        assert!(
            text.contains("\nPATH=/opt/tool/bin:/opt/bin:/bin:/usr/local/sbin"),
            "{text}"
        );
    }
}
