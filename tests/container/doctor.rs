//! What `sifon doctor` says of a machine.

use serde_json::Value;

use crate::image::ImageBuilder;
use crate::machine::{Machine, complaint, machines};

impl Machine {
    fn doctor(&self, words: &[&str]) -> (Value, i32) {
        let mut command = self.program(env!("CARGO_BIN_EXE_sifon"));
        let output = command
            .args(["doctor", "--json"])
            .args(words)
            .output()
            .unwrap();
        let said = serde_json::from_slice(&output.stdout);
        (
            said.unwrap_or_else(|err| panic!("{err}: {}", complaint(&output))),
            output.status.code().unwrap(),
        )
    }
}

fn check<'v>(said: &'v Value, subject: &str) -> &'v Value {
    let checks = said["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["subject"] == subject);
    found.unwrap_or_else(|| panic!("{subject}: {said}"))
}

#[test]
fn a_machine_on_which_programs_run_is_well_and_is_left_as_it_was() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let (said, status) = machine.doctor(&[&image.reference()]);
        for subject in ["kernel", "/dev/fuse", "namespaces", "store", "registry"] {
            assert_ne!(check(&said, subject)["state"], "fails", "{said}");
        }
        assert_eq!(said["works"], status == 0);
        assert!(
            check(&said, "store")["found"]
                .as_str()
                .unwrap()
                .contains("renamed")
        );
        assert!(machine.processes().is_empty());
        let (said, status) = machine.doctor(&["oci:/nonesuch"]);
        assert_eq!((&said["works"], status), (&Value::Bool(false), 1));
        assert!(
            check(&said, "registry")["found"]
                .as_str()
                .unwrap()
                .contains("/nonesuch")
        );
        let words = machine
            .program(env!("CARGO_BIN_EXE_sifon"))
            .arg("doctor")
            .output()
            .unwrap();
        let words = String::from_utf8(words.stdout).unwrap();
        assert!(words.contains("\nok  namespaces"), "{words}");
    }
}

/// The limit is each user namespace's own, so a real one can be set.
#[test]
fn where_user_namespaces_are_off_the_setting_and_the_ways_out_are_named() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines().iter().filter(|machine| machine.is_root()) {
        let without = |words: &[&str]| {
            let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\"";
            let mut command = machine.program("unshare");
            command.args([
                "--user",
                "--map-root-user",
                "sh",
                "-c",
                script,
                "sh",
                env!("CARGO_BIN_EXE_sifon"),
            ]);
            command.args(words).output().unwrap()
        };
        let output = without(&["doctor", "--json"]);
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|err| panic!("{err}: {}", complaint(&output)));
        assert_eq!(
            (output.status.code(), &said["works"]),
            (Some(1), &Value::Bool(false))
        );
        let namespaces = check(&said, "namespaces");
        assert_eq!(namespaces["state"], "fails");
        let output = without(&["exec", &image.reference(), "true"]);
        assert_eq!(output.status.code(), Some(255));
        for said in [namespaces["advice"].as_str().unwrap(), &complaint(&output)] {
            for way in [
                "user.max_user_namespaces is 0",
                "fusermount3",
                "sifon pull",
                "Apptainer",
            ] {
                assert!(said.contains(way), "{way}: {said}");
            }
        }
        machine.wait_for_all();
    }
}

#[test]
fn the_profile_that_lifts_apparmors_restriction_is_printed() {
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let output = command
            .args(["doctor", "--apparmor-profile"])
            .output()
            .unwrap();
        let profile = String::from_utf8(output.stdout).unwrap();
        let line = format!(
            "profile sifon \"{}\" flags=(unconfined) {{",
            env!("CARGO_BIN_EXE_sifon")
        );
        assert!(
            profile.contains(&line) && profile.contains("userns,"),
            "{profile}"
        );
    }
}
