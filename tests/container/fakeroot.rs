//! Being root in a container.

use std::path::Path;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};

#[test]
fn root_in_a_container_has_the_users_that_the_site_gives_and_says_so() {
    if !Path::new("/usr/bin/newuidmap").exists() {
        return eprintln!("skipped: no newuidmap (Debian package uidmap)");
    }
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines().iter().filter(|machine| !machine.is_root()) {
        let map = |options: &[&str]| {
            let script = ["cat", "/proc/self/uid_map", "/proc/self/gid_map"];
            let output = machine.exec(&image, options, &script).output().unwrap();
            assert!(output.status.success(), "{}", complaint(&output));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let words: Vec<&str> = text.split_whitespace().collect();
            (words.join(" "), complaint(&output))
        };
        machine.cover(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/tmp:/bin/sh\n",
        );
        for file in ["/etc/subuid", "/etc/subgid"] {
            machine.cover(file, "bob:100000:65536\n");
        }
        let (alone, said) = map(&["--fakeroot", "-v"]);
        assert_eq!(alone, "0 1000 1 0 1000 1");
        assert!(
            said.contains("root alone, no other user") && said.contains("/etc/subuid"),
            "{said}"
        );
        // Who has no numbers but one's own needs none to be oneself.
        assert_eq!(map(&[]).0, "1000 1000 1 1000 1000 1");
        machine.wait_for_all();
        machine.cover("/etc/subuid", "ada:200000:65536\n");
        machine.cover("/etc/subgid", "1000:300000:65537\n");
        let (others, said) = map(&["--fakeroot", "-v"]);
        assert_eq!(others, "0 1000 1 1 200000 65536 0 1000 1 1 300000 65537");
        assert!(said.contains("65536 users from 200000"), "{said}");
        // The others can be: whose files they own is whose they are.
        let script = "touch /tmp/x && busybox chown 33:44 /tmp/x && stat -c '%u %g' /tmp/x; id -u";
        assert_eq!(
            machine.says(&image, &["--fakeroot", "-c"], script),
            "33 44\n0"
        );
        assert_eq!(map(&[]).0, "1000 1000 1 1000 1000 1");
        machine.wait_for_all();
    }
}
