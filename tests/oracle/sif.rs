//! `sif`, `inspect`, `sign` and `verify`: Apptainer's words for our files, and ours for its.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use sifon::pack::Compression;

use super::{Image, Oracle, config};

/// Our program on what the original program has in front of it.
fn ours(oracle: &Oracle, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sifon"))
        .args(args)
        .current_dir(oracle.shared.path())
        .env("SIFON_STORE", oracle.shared.path().join("store"))
        .env("APPTAINER_CONFIGDIR", oracle.shared.path().join("config"))
        .output()
        .unwrap()
}

/// What both print; `expected` is the status of both.
fn both_say(oracle: &Oracle, args: &[&str], expected: i32) -> String {
    let mine = ours(oracle, args);
    let theirs = oracle.try_run(&[&["apptainer"], args].concat());
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text(&mine), text(&theirs), "{args:?}: {mine:?} {theirs:?}");
    let statuses = [&mine, &theirs].map(|output| output.status.code());
    assert_eq!(statuses, [Some(expected); 2], "{args:?}: {mine:?}");
    text(&mine)
}

fn packed(oracle: &Oracle, name: &str) {
    let image = Image::busybox();
    oracle.pack(name, &image, &config(), Compression::default());
    let file = oracle.shared.path().join(name);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o777)).unwrap();
}

/// Something to put into a SIF.
fn written(oracle: &Oracle, name: &str, bytes: &[u8]) {
    let file = oracle.shared.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
}

#[test]
fn our_listing_of_a_sif_is_apptainers_word_for_word() {
    let Some(oracle) = Oracle::new() else { return };
    packed(&oracle, "ours.sif");
    for args in [
        &["sif", "list", "ours.sif"][..],
        &["sif", "header", "ours.sif"],
        &["sif", "info", "1", "ours.sif"],
        &["sif", "info", "5", "ours.sif"],
        &["sif", "dump", "3", "ours.sif"],
    ] {
        both_say(&oracle, args, 0);
    }

    oracle.run(&["apptainer", "sif", "new", "theirs.sif"]);
    both_say(&oracle, &["sif", "list", "theirs.sif"], 0);
    both_say(&oracle, &["sif", "header", "theirs.sif"], 0);
    written(&oracle, "text", b"{\"a\": 1}\n");
    let entity = "433FE984155206BD962725E20E8713472A879943";
    for options in [
        &["--datatype", "1", "--groupid", "1"][..],
        &[
            "--datatype",
            "2",
            "--groupid",
            "2",
            "--filename",
            "variables",
        ],
        &["--datatype", "3"],
        &[
            "--datatype",
            "4",
            "--parttype",
            "2",
            "--partfs",
            "1",
            "--partarch",
            "2",
        ],
        &[
            "--datatype",
            "4",
            "--parttype",
            "4",
            "--partfs",
            "2",
            "--partarch",
            "12",
        ],
        &[
            "--datatype",
            "5",
            "--signentity",
            entity,
            "--signhash",
            "5",
            "--link",
            "1",
        ],
        &["--datatype", "6"],
        &["--datatype", "7"],
        &["--datatype", "8", "--link", "4"],
        &["--datatype", "9", "--sbomformat", "spdx-tag-value"],
        &["--datatype", "10"],
        &["--datatype", "11"],
    ] {
        oracle.run(&[&["apptainer", "sif", "add", "theirs.sif", "text"], options].concat());
    }
    both_say(&oracle, &["sif", "list", "theirs.sif"], 0);
    both_say(&oracle, &["sif", "header", "theirs.sif"], 0);
    for id in 1..=12 {
        let id = id.to_string();
        both_say(&oracle, &["sif", "info", &id, "theirs.sif"], 0);
        both_say(&oracle, &["sif", "dump", &id, "theirs.sif"], 0);
    }
    for missing in [&["sif", "info", "13"][..], &["sif", "dump", "99"]] {
        let output = ours(&oracle, &[missing, &["theirs.sif"]].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("object not found"), "{said}");
    }
}

/// A definition with everything that has a section.
const DEFINITION: &[u8] = b"bootstrap: localimage
from: base.sif
%labels
  Zeta last
  alpha \"a <b> & c\"
%environment
  export FOO=bar
%help
  some help
%runscript
  echo hello \"$@\"
%startscript
  echo start
%test
  exit 0
%apprun one
  echo app one
%applabels one
  X y
%appenv one
  export ONE=1
%apphelp one
  help of one
%apprun two
  echo app two
";

#[test]
fn inspect_answers_as_apptainer_does() {
    let Some(oracle) = Oracle::new() else { return };
    packed(&oracle, "base.sif");
    written(&oracle, "definition", DEFINITION);
    oracle.run(&[
        "apptainer",
        "build",
        "--fakeroot",
        "built.sif",
        "definition",
    ]);
    for file in ["base.sif", "built.sif"] {
        for options in [
            &[][..],
            &["--labels"],
            &["-d"],
            &["--runscript"],
            &["-s"],
            &["--test"],
            &["-e"],
            &["--helpfile"],
            &["--list-apps"],
            &["--app", "one"],
            &["--app", "one", "-r", "-e", "-H", "-l"],
            &["--app", "none", "-r"],
            &["-l", "-r", "-e", "-d"],
            &["--json"],
            &["--json", "-e", "-d"],
            &["--json", "--list-apps"],
            &["--json", "--app", "one", "-t", "-l"],
            &["--all"],
        ] {
            let args = [&["inspect"], options, &[file]].concat();
            both_say(&oracle, &args, 0);
        }
    }
}

/// A private key and its public one, for both programs.
fn key_pair(oracle: &Oracle, name: &str, options: &[&str]) -> [String; 2] {
    let [private, public] = [format!("{name}.key"), format!("{name}.pub")];
    let make = [&["openssl", "genpkey", "-out", &private], options].concat();
    oracle.run(&make);
    oracle.run(&[
        "openssl", "pkey", "-in", &private, "-pubout", "-out", &public,
    ]);
    [private, public]
}

#[test]
fn a_signature_with_a_pem_key_holds_in_both_programs() {
    let Some(oracle) = Oracle::new() else { return };
    for (name, options, signs_here) in [
        ("ed25519", &["-algorithm", "ed25519"][..], true),
        (
            "rsa",
            &["-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048"],
            true,
        ),
        (
            "p256",
            &["-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            true,
        ),
        (
            "p384",
            &["-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            false,
        ),
    ] {
        let [private, public] = key_pair(&oracle, name, options);
        let (theirs, mine) = (format!("{name}.theirs.sif"), format!("{name}.ours.sif"));
        packed(&oracle, &theirs);
        oracle.run(&["apptainer", "sign", "--key", &private, &theirs]);
        both_say(&oracle, &["verify", "--key", &public, &theirs], 0);
        both_say(&oracle, &["verify", "--json", "--key", &public, &theirs], 0);
        if !signs_here {
            continue;
        }
        packed(&oracle, &mine);
        let signed = ours(&oracle, &["sign", "--key", &private, &mine]);
        assert!(signed.status.success(), "{signed:?}");
        let said = both_say(&oracle, &["verify", "--key", &public, &mine], 0);
        assert!(said.contains("5   |1       |NONE    |FS\n"), "{said}");
        both_say(&oracle, &["sif", "list", &mine], 0);
        // Another's signature beside it.
        oracle.run(&["apptainer", "sign", "--key", &private, &mine]);
        both_say(&oracle, &["verify", "--key", &public, &mine], 0);
        assert_eq!(
            oracle.run(&["apptainer", "run", &mine, "signed"]),
            "[signed]"
        );
    }
}

#[test]
fn a_signature_with_a_pgp_key_holds_here_too() {
    let Some(oracle) = Oracle::new() else { return };
    packed(&oracle, "x.sif");
    let config = oracle.shared.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o777)).unwrap();
    let apptainer = |args: &[&str]| {
        let set = ["env", "APPTAINER_CONFIGDIR=/host/config", "apptainer"];
        oracle.run(&[&set, args].concat())
    };
    apptainer(&[
        "key",
        "newpair",
        "--name",
        "One",
        "--email",
        "one@example.org",
        "--comment",
        "",
        "--password",
        "",
        "--push=false",
    ]);
    let unsigned = ours(&oracle, &["verify", "x.sif"]);
    assert_eq!(unsigned.status.code(), Some(255), "{unsigned:?}");
    let words = String::from_utf8_lossy(&unsigned.stderr).into_owned();
    assert!(
        words.contains("signature not found for object group 1"),
        "{words}"
    );
    apptainer(&["sign", "x.sif"]);
    for options in [&["verify", "--local"][..], &["verify", "--local", "--json"]] {
        let args = [options, &["x.sif"]].concat();
        let mine = ours(&oracle, &args);
        assert!(mine.status.success(), "{mine:?}");
        assert_eq!(String::from_utf8_lossy(&mine.stdout), apptainer(&args));
    }
}
