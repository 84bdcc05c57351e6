//! Images that point out of themselves.

use std::fs;
use std::path::Path;

use crate::image::ImageBuilder;
use crate::machine::machines;

/// Everything below `directory`, with what files contain.
fn snapshot(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() {
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            found.push((path.display().to_string(), content));
            if path.is_dir() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn symlinks_where_something_is_bound_change_nothing_on_the_host() {
    let mounts_before = mounts();
    for machine in machines() {
        let canary = machine.own_directory("canary");
        fs::write(canary.join("passwd"), "host's").unwrap();
        fs::write(canary.join("hosts"), "host's").unwrap();
        let before = snapshot(&canary);
        let canary_path = canary.display().to_string();
        let up = format!("../../../../../..{canary_path}");
        let links: [&[(&str, &str)]; 9] = [
            &[(".singularity.d", &canary_path)],
            &[(".singularity.d/libs", &up), ("scratch", &canary_path)],
            &[("etc", &canary_path)],
            &[("proc", "../../.."), ("sys", &up), ("dev", &canary_path)],
            &[("tmp", &canary_path), ("var/tmp", "/tmp")],
            &[
                ("etc/resolv.conf", "/run/nonesuch/stub.conf"),
                ("etc/hosts", &up),
            ],
            &[
                ("etc/passwd", &up),
                ("etc/group", "/etc/shadow"),
                ("etc/localtime", &up),
            ],
            &[
                ("root", &canary_path),
                ("home", &canary_path),
                ("mnt", "mnt"),
            ],
            &[("tmp", "tmp"), ("proc", "sys"), ("sys", "proc")],
        ];
        for links in links {
            let Some(mut image) = ImageBuilder::empty() else {
                return;
            };
            for (path, target) in links {
                image.link(path, target);
            }
            let image = image.finish();
            for options in [
                &["-B", "/usr:/mnt/usr"][..],
                &[
                    "-C",
                    "-S",
                    "/scratch/deep",
                    "-B",
                    "/usr:/tmp/usr",
                    "--hostname",
                    "x",
                ],
                &["--writable-tmpfs", "-S", "/scratch"],
            ] {
                // It may refuse to start, but it must end.
                let output = machine.exec(&image, options, &["true"]).output().unwrap();
                assert!(
                    matches!(output.status.code(), Some(0 | 255)),
                    "{links:?}: {output:?}"
                );
                assert_eq!(snapshot(&canary), before, "{links:?} {options:?}");
            }
        }
        machine.wait_for_all();
    }
    assert_eq!(mounts(), mounts_before);
}

/// Mounts of the tests' own namespace that are ours.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.contains(" fuse.sifon sifon "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_dangling_resolv_conf_is_answered_inside_the_image() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    image.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC");
    image.file("usr/share/zoneinfo/Etc/UTC", b"UTC", 0o644);
    let image = image.finish();
    for machine in machines() {
        let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(
            machine.says(&image, &[], "cat /etc/resolv.conf"),
            resolver.trim_end()
        );
        // The zone's own file says what it said, whatever zone the host is in.
        assert_eq!(
            machine.says(&image, &[], "cat /usr/share/zoneinfo/Etc/UTC"),
            "UTC"
        );
    }
}

#[test]
fn setuid_programs_and_devices_of_an_image_give_nobody_rights() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file(
        "bin/busybox-suid",
        &fs::read("/bin/busybox").unwrap(),
        0o4755,
    );
    let image = image.finish();
    for machine in machines().into_iter().filter(|machine| !machine.is_root()) {
        let script =
            "grep -e NoNewPrivs -e CapEff -e CapPrm /proc/self/status; /bin/busybox-suid id -u";
        let uid = machine.uid();
        let said = machine.says(
            &image,
            &[],
            &format!("cat /proc/self/status; {script}; true"),
        );
        assert!(said.contains("NoNewPrivs:\t1"), "{said}");
        assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
        assert!(said.ends_with(&uid.to_string()), "{said}");
    }
}
