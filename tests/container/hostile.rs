//! Images that point out of themselves.

use std::fs;
use std::path::Path;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};
use crate::namespace::own_mounts;

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

/// What no archive of an honest builder has: each must be harmless, whether or not it is shown.
#[test]
fn devices_odd_names_and_setuid_files_of_an_image_change_nothing_on_the_host() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    // The host's memory, its first disk, and its null device, all for everybody.
    image.device("dev/mem", tar::EntryType::Char, (1, 1));
    image.device("disk", tar::EntryType::Block, (8, 0));
    image.device("null", tar::EntryType::Char, (1, 3));
    image.device("etc/resolv.conf", tar::EntryType::Char, (1, 3));
    image.device("etc/passwd", tar::EntryType::Char, (1, 5));
    let busybox = fs::read("/bin/busybox").unwrap();
    image.file("bin/busybox-root", &busybox, 0o6755);
    image.file("odd/a\nb", b"newline", 0o644);
    image.file("odd/-rf", b"option", 0o644);
    image.file("odd/\u{1b}[31m", b"escape", 0o644);
    image.directory("scratch\n", 0o755);
    let image = image.finish();
    for machine in machines() {
        let says = |script: &str| machine.says(&image, &[], script);
        assert_eq!(
            says("cd /odd && cat a*b ./-rf *31m; ls | cat -v | wc -l").replace('\n', " "),
            "newlineoptionescape3"
        );
        for device in ["/disk", "/null"] {
            let opened = format!(
                "cat {device} 2>/dev/null && echo opened; echo x 2>/dev/null > {device} && echo written; true"
            );
            // Root can do without us what it likes; nobody else can by a name that an image made up.
            if !machine.is_root() {
                assert_eq!(says(&opened), "", "{device}");
            }
        }
        if !machine.is_root() {
            assert_eq!(
                says("/bin/busybox-root id -u; grep -c NoNewPrivs:.1 /proc/self/status"),
                format!("{}\n1", machine.uid())
            );
        }
        let bind = format!("{}:/odd/b\nc", machine.own_directory("bound").display());
        let output = machine
            .exec(&image, &["-B", &bind], &["ls", "/odd"])
            .output()
            .unwrap();
        assert!(
            matches!(output.status.code(), Some(0 | 255)),
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}

#[test]
fn a_home_behind_links_one_that_is_read_only_and_a_closed_stdin_are_no_obstacles() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let real = machine.own_directory("real");
        fs::create_dir(real.join("ada")).unwrap();
        fs::write(real.join("ada/mine"), "mine").unwrap();
        std::os::unix::fs::symlink("real", machine.directory().join("homes")).unwrap();
        std::os::unix::fs::symlink(
            machine.directory().join("homes"),
            machine.directory().join("linked"),
        )
        .unwrap();
        let home = machine.directory().join("linked/ada").display().to_string();
        assert_eq!(
            machine.says(&image, &["--home", &home], "cat ~/mine"),
            "mine"
        );
        let mut command = machine.exec(&image, &["--home", &home], &["cat", "mine"]);
        let output = command.current_dir(&home).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "mine",
            "{}",
            complaint(&output)
        );
        // Neither the store nor anything else can be written below it.
        let sealed = machine.directory().join("sealed");
        fs::create_dir(&sealed).unwrap();
        fs::set_permissions(&sealed, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
        let mut command = machine.program("sh");
        command.args([
            "-c",
            "exec <&-; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_sifon"),
            "exec",
            &image.reference(),
            "sh",
            "-c",
            "echo $((6 * 7))",
        ]);
        let output = command
            .env("HOME", &sealed)
            .env_remove("SIFON_STORE")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "42\n",
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}

#[test]
fn four_megabytes_of_temporary_space_are_enough() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines().iter().filter(|machine| machine.is_root()) {
        let small = machine.own_directory("small");
        let script = r#"mount -t tmpfs -o size=4m none "$1" && shift && exec "$@""#;
        let mut command = machine.program("unshare");
        command.args(own_mounts(script));
        command.arg(&small).args([
            env!("CARGO_BIN_EXE_sifon"),
            "exec",
            &image.reference(),
            "cat",
            "/etc/group",
        ]);
        // The store is there too, and has no room for the image.
        let output = command
            .env("TMPDIR", &small)
            .env("SIFON_STORE", small.join("store"))
            .output()
            .unwrap();
        assert!(
            String::from_utf8_lossy(&output.stdout).starts_with("root:"),
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}
