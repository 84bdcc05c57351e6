//! What the command line says, where, and with which status: scripts written for Singularity depend on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Output;

use serde_json::Value;

use crate::layers::file;
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{Place, SIFON, complaint};

fn image(place: &Place) -> String {
    let mut layout = Layout::new(place.path("layout"));
    let layer = Layer::new(vec![file("hello", "hello\n")]);
    layout.add("latest", &all(&[layer], Packing::Gzip));
    layout.reference("latest")
}

fn ran(place: &Place, words: &[&str]) -> Output {
    place.sifon(words).output().unwrap()
}

#[test]
fn a_command_line_that_makes_no_sense_exits_with_1_and_says_so_on_stderr() {
    let place = Place::new();
    for words in [
        &[][..],
        &["nonesuch"],
        &["mount"],
        &["mount", "docker://a"],
        &["umount"],
        &["exec", "oci:x"],
        &["cache"],
        &["cache", "nonesuch"],
        &["inspect", "--nonesuch", "oci:x"],
        &["inspect", "--connections", "0", "oci:x"],
        &["inspect", "--store-size", "much", "oci:x"],
        &["inspect", "--docker-username", "alone", "oci:x"],
        &["inspect", "-q", "-v", "oci:x"],
    ] {
        let output = ran(&place, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{words:?}: {output:?}"
        );
    }
    assert!(!place.store("").exists());
}

#[test]
fn what_cannot_be_done_exits_with_255_and_one_message_on_stderr() {
    let place = Place::new();
    for words in [
        &["inspect", "oci:nonesuch"][..],
        &["mount", "oci:nonesuch", "mnt"],
        &["mount", "-f", "oci-archive:nonesuch.tar", "mnt"],
        &["exec", "docker-archive:nonesuch.tar", "true"],
        &["compact", "oci:nonesuch", "nonesuch.sif"],
        &["umount", "nonesuch"],
    ] {
        let said = place.refusal(&mut place.sifon(words));
        assert!(said.contains("nonesuch"), "{words:?}: {said}");
        assert_eq!(said.matches("FATAL:").count(), 1, "{words:?}: {said}");
        assert!(!place.path("nonesuch.sif").exists() && !place.path("mnt").exists());
    }
}

#[test]
fn a_scheme_that_does_not_work_is_answered_with_those_that_do() {
    let place = Place::new();
    for image in [
        "library://a/b",
        "shub://a",
        "oras:a/b",
        "ftp://a/x.sif",
        "no/such/image",
    ] {
        let said = place.refusal(&mut place.sifon(["inspect", image]));
        for scheme in ["docker://", "oci:", "oci-archive:", "docker-archive:"] {
            assert!(said.contains(scheme), "{image}: {said}");
        }
    }
}

#[test]
fn help_and_version_are_data() {
    let place = Place::new();
    let verbs = [
        "pull", "build", "mount", "umount", "exec", "compact", "inspect", "registry", "cache",
        "sif", "sign", "verify",
    ];
    let help = ran(&place, &["--help"]);
    assert!(help.status.success() && help.stderr.is_empty(), "{help:?}");
    let text = String::from_utf8(help.stdout).unwrap();
    for verb in verbs {
        assert!(text.contains(&format!("\n  {verb} ")), "{verb}: {text}");
        let help = ran(&place, &[verb, "--help"]);
        assert!(help.status.success() && help.stderr.is_empty(), "{help:?}");
        assert!(!help.stdout.is_empty());
    }
    let version = ran(&place, &["--version"]);
    assert!(
        version.status.success() && version.stderr.is_empty(),
        "{version:?}"
    );
    assert!(version.stdout.starts_with(b"sifon "), "{version:?}");
}

#[test]
fn json_on_stdout_parses_however_much_is_said_on_stderr() {
    let place = Place::new();
    let image = image(&place);
    for words in [
        &["inspect", "--json", &image][..],
        &["cache", "list", "--json"],
        &["cache", "clean", "--dry-run", "--json"],
        &["cache", "clean", "-f", "-D", "30", "--json"],
        &["cache", "clean", "--json"],
    ] {
        for flag in [&[][..], &["-q"], &["-v"], &["-d"]] {
            let output = ran(&place, &[words, flag].concat());
            assert!(output.status.success(), "{words:?} {flag:?}: {output:?}");
            let json: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(json.is_object(), "{words:?}: {json}");
        }
    }
    let inspected: Value =
        serde_json::from_str(&place.says(["inspect", "--json", &image])).unwrap();
    assert_eq!(inspected["config"]["labels"]["made"], "by a test");
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 1);
}

#[test]
fn quiet_means_errors_only() {
    let place = Place::new();
    let image = image(&place);
    for flag in ["-q", "--quiet"] {
        let output = ran(&place, &["inspect", flag, &image]);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let output = ran(&place, &["inspect", flag, "oci:nonesuch"]);
        assert_eq!(output.status.code(), Some(255));
        assert!(complaint(&output).contains("FATAL:"), "{output:?}");
    }
}

/// Workflow engines call one of these names.
#[test]
fn the_old_names_work_with_the_old_statuses() {
    let place = Place::new();
    let image = image(&place);
    for name in ["singularity", "apptainer"] {
        let path = place.path(name);
        symlink(SIFON, &path).unwrap();
        let ran = |words: &[&str]| place.program(&path).args(words).output().unwrap();
        assert_eq!(ran(&[]).status.code(), Some(1));
        assert_eq!(ran(&["nonesuch"]).status.code(), Some(1));
        assert_eq!(
            ran(&["exec", "oci:nonesuch", "true"]).status.code(),
            Some(255)
        );
        assert!(ran(&["inspect", "--json", &image]).status.success());
        assert!(ran(&["--version"]).status.success());
    }
}

#[test]
fn shells_complete_the_command_line_and_every_command_has_a_manual_page() {
    let place = Place::new();
    let script = r#"eval "$("$0" completion bash)"
        complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sifon sifon "${!#}" "${@: -2:1}"; echo "${COMPREPLY[*]}"; }
        complete_words sifon ex; complete_words sifon exec --writable"#;
    let completed = place
        .program("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_sifon")])
        .output();
    let completed = completed.unwrap();
    let said = String::from_utf8_lossy(&completed.stdout);
    assert_eq!(
        said,
        "exec\n--writable --writable-tmpfs\n",
        "{}",
        complaint(&completed)
    );
    for (shell, file) in [
        ("bash", "data/bash-completion/completions/sifon"),
        ("zsh", "data/zsh/site-functions/_sifon"),
        ("fish", "config/fish/completions/sifon.fish"),
    ] {
        let mut command = place.sifon(["completion", shell, "--install"]);
        command
            .env("XDG_DATA_HOME", place.path("data"))
            .env("XDG_CONFIG_HOME", place.path("config"));
        let installed = command.output().unwrap();
        assert!(
            complaint(&installed).contains(file),
            "{}",
            complaint(&installed)
        );
        assert_eq!(
            fs::read_to_string(place.path(file)).unwrap(),
            place.says(["completion", shell])
        );
    }
    place.says(["completion", "man", "pages"]);
    let listed = place.says(["help"]);
    let commands = listed.split("\nCommands:\n").nth(1).unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .map_while(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        let page = fs::read_to_string(place.path(format!("pages/sifon-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
}

#[test]
fn what_takes_no_directory_says_what_does() {
    let place = Place::new();
    fs::create_dir(place.path("sandbox")).unwrap();
    for words in [
        &["mount", "sandbox", "place"][..],
        &["pull", "x.sif", "./sandbox"],
        &["complete", "sandbox/"],
    ] {
        let said = place.refusal(&mut place.sifon(words));
        for expected in ["a directory already", "sifon exec", "sifon build"] {
            assert!(said.contains(expected), "{words:?}: {said}");
        }
        assert!(!said.contains("docker://sandbox"), "{said}");
    }
    let said = place.refusal(&mut place.sifon(["complete", "nonesuch/"]));
    assert!(said.contains("nonesuch/: No such file"), "{said}");
}

#[test]
fn a_layer_that_no_store_keeps_is_not_complete() {
    let place = Place::new();
    let image = image(&place);
    let said = place.refusal(&mut place.sifon(["--store", "/dev/null/store", "complete", &image]));
    assert!(said.contains("could not keep it"), "{said}");
    place.says(["complete", &image]);
}

#[test]
fn a_keyring_beside_the_file_is_not_the_users() {
    let place = Place::new();
    let signed = include_bytes!("../../src/signature/samples/pgp.sif.zst");
    fs::write(place.path("x.sif"), zstd::decode_all(&signed[..]).unwrap()).unwrap();
    let keys = place.path(".apptainer/keys");
    fs::create_dir_all(&keys).unwrap();
    let keyring = include_bytes!("../../src/signature/samples/pgp-public");
    fs::write(keys.join("pgp-public"), keyring).unwrap();
    let verified = |home: &str| {
        let mut command = place.sifon(["verify", "x.sif"]);
        command
            .current_dir(place.path(""))
            .env("HOME", home)
            .env_remove("APPTAINER_KEYSDIR");
        command.env_remove("APPTAINER_CONFIGDIR").output().unwrap()
    };
    let output = verified(place.path("").to_str().unwrap());
    assert!(output.status.success(), "{output:?}");
    let output = verified("");
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}
