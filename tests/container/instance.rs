//! Containers that stay.

use std::fs;

use serde_json::{Value, json};

use crate::image::ImageBuilder;
use crate::machine::{Machine, complaint, machines};

impl Machine {
    /// `sifon` with these words, its instances in this machine's directory.
    fn instance(&self, words: &[&str]) -> std::process::Output {
        let home = self.directory().join("config");
        if !home.exists() {
            self.own_directory("config");
        }
        let mut command = self.program(env!("CARGO_BIN_EXE_sifon"));
        command.args(words).env("SIFON_CONFIGDIR", home);
        command.output().unwrap()
    }

    fn instance_says(&self, words: &[&str]) -> String {
        let output = self.instance(words);
        assert!(output.status.success(), "{words:?}: {}", complaint(&output));
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

#[test]
fn an_instance_stays_is_joined_and_ends_on_request() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config("Env", json!(["OURS=image"]));
    let image = image.finish();
    for machine in machines() {
        let reference = image.reference();
        machine.instance_says(&[
            "instance",
            "start",
            "--hostname",
            "inst",
            "-c",
            &reference,
            "one",
        ]);
        let again = machine.instance(&["instance", "start", &reference, "one"]);
        assert_eq!(again.status.code(), Some(255));
        assert!(
            complaint(&again).contains("already exists"),
            "{}",
            complaint(&again)
        );
        let script = "id -u; echo $OURS; cat /proc/sys/kernel/hostname; echo kept > /tmp/kept";
        let said = machine.instance_says(&["exec", "instance://one", "sh", "-c", script]);
        assert_eq!(said, format!("{}\nimage\ninst", machine.uid()));
        // What one program writes the next one sees; nothing of the host's directory is there.
        let said = machine.instance_says(&["exec", "instance://one", "cat", "/tmp/kept"]);
        assert_eq!(said, "kept");
        let status = machine.instance(&["exec", "instance://one", "sh", "-c", "exit 9"]);
        assert_eq!(status.status.code(), Some(9));
        let listed = machine.instance_says(&["instance", "list", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["instances"][0]["instance"], "one");
        assert_eq!(listed["instances"][0]["img"], reference.as_str());
        let used = machine.instance_says(&["instance", "stats", "--json", "one"]);
        let used: Value = serde_json::from_str(&used).unwrap();
        assert!(used["memory_bytes"].as_u64().unwrap() > 0);
        machine.instance_says(&["instance", "stop", "one"]);
        machine.wait_for_all();
        let gone = machine.instance(&["exec", "instance://one", "true"]);
        assert_eq!(gone.status.code(), Some(255));
        assert!(complaint(&gone).contains("no instance found with name one"));
    }
}

#[test]
fn an_instance_can_run_the_images_program_and_what_it_says_is_kept() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    let script = "echo begun; trap 'echo told; exit 0' TERM; while :; do sleep 1 & wait; done";
    image.config("Cmd", json!(["sh", "-c", script]));
    let image = image.finish();
    for machine in machines() {
        machine.instance_says(&["instance", "run", &image.reference(), "two"]);
        let logs = machine.directory().join("config/instances/logs");
        let host = fs::read_dir(logs).unwrap().next().unwrap().unwrap().path();
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fs::read(host.join("two.out")).unwrap().is_empty() {
            assert!(std::time::Instant::now() < limit, "it said nothing");
            std::thread::yield_now();
        }
        machine.instance_says(&["instance", "stop", "--signal", "TERM", "two"]);
        machine.wait_for_all();
        assert_eq!(
            fs::read_to_string(host.join("two.out")).unwrap(),
            "begun\ntold\n"
        );
    }
}

#[test]
fn an_instance_that_cannot_begin_says_why_and_leaves_nothing() {
    for machine in machines() {
        let output = machine.instance(&["instance", "start", "oci:/nonesuch", "three"]);
        assert_eq!(output.status.code(), Some(255));
        assert!(
            complaint(&output).contains("/nonesuch"),
            "{}",
            complaint(&output)
        );
        assert_eq!(
            machine.instance_says(&["instance", "list"]).lines().count(),
            1
        );
        machine.wait_for_all();
    }
}

#[test]
fn without_a_home_directory_instances_are_kept_where_nobody_else_can_put_anything() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let temporary = machine.own_directory("temporary");
        let strangers = machine.own_directory("strangers");
        let own = temporary.join(format!("sifon-{}", machine.uid()));
        let sifon = |words: &[&str]| {
            let mut command = machine.program("env");
            command.args(["-u", "HOME", env!("CARGO_BIN_EXE_sifon")]);
            command.args(words).env("TMPDIR", &temporary);
            command.output().unwrap()
        };
        let start = ["instance", "start", &image.reference(), "homeless"];
        std::os::unix::fs::symlink(&strangers, &own).unwrap();
        let refused = sifon(&start);
        assert_eq!(refused.status.code(), Some(255));
        let said = complaint(&refused);
        assert!(
            said.contains("$HOME is not set") && said.contains("not this user's own"),
            "{said}"
        );
        assert!(fs::read_dir(&strangers).unwrap().next().is_none());
        fs::remove_file(&own).unwrap();
        let started = sifon(&start);
        assert!(started.status.success(), "{}", complaint(&started));
        let listed = sifon(&["instance", "list"]);
        assert!(String::from_utf8_lossy(&listed.stdout).contains("homeless"));
        assert!(sifon(&["instance", "stop", "homeless"]).status.success());
        machine.wait_for_all();
    }
}

#[test]
fn an_instance_outlives_a_start_script_that_does_nothing_more() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let packed = command
            .args(["compact", &image.reference(), "x.sif"])
            .output();
        assert!(packed.unwrap().status.success());
        machine.instance_says(&["instance", "start", "x.sif", "quiet"]);
        assert_eq!(
            machine.instance_says(&["exec", "instance://quiet", "echo", "there"]),
            "there"
        );
        machine.instance_says(&["instance", "stop", "quiet"]);
        machine.wait_for_all();
    }
}
