//! Images that point out of themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;

use crate::directory::RootFiles;
use crate::image::ImageBuilder;
use crate::machine::{Machine, complaint, machines};

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

/// Every path of an image where something is bound, made, written, or where a program starts; and what asks for it, if it is not
/// always done. `$HERE` is the machine's directory.
const PLACES: &[(&str, &[&str])] = &[
    ("proc", &["--pid"]),
    ("sys", &[]),
    ("dev", &[]),
    ("dev/shm", &["--contain"]),
    ("dev/pts", &["--contain"]),
    ("dev/null", &["--contain"]),
    ("tmp", &[]),
    ("tmp", &["--contain"]),
    ("var", &["--contain"]),
    ("var/tmp", &[]),
    ("var/tmp", &["--contain", "--workdir", "$HERE/work"]),
    ("etc", &["--hostname", "x", "--dns", "1.2.3.4"]),
    ("etc/passwd", &[]),
    ("etc/group", &[]),
    ("etc/hosts", &[]),
    ("etc/localtime", &[]),
    ("etc/resolv.conf", &[]),
    ("etc/resolv.conf", &["--dns", "1.2.3.4"]),
    ("etc/hostname", &["--hostname", "x"]),
    ("root", &[]),
    ("home", &["--home", "$HERE/work:/home/ada"]),
    ("home/ada", &["--home", "$HERE/work:/home/ada"]),
    ("home/ada", &["--contain", "--home", "/home/ada"]),
    ("own", &["--no-home", "--pwd", "/own"]),
    ("own", &["--oci-defaults"]),
    ("scratch", &["--scratch", "/scratch"]),
    ("scratch", &["--scratch", "/scratch/deep"]),
    (
        "scratch",
        &["--scratch", "/scratch/deep", "--workdir", "$HERE/work"],
    ),
    ("mnt", &["--bind", "/usr/lib:/mnt"]),
    ("mnt", &["--bind", "/usr/lib:/mnt/deep/er"]),
    ("mnt", &["--bind", "/etc/hosts:/mnt"]),
    (
        "mnt",
        &["--mount", "type=bind,src=/etc/hosts,dst=/mnt/file"],
    ),
    ("tmp/made", &["--bind", "/usr/lib:/tmp/made/deep"]),
    (".singularity.d", &[]),
    (".singularity.d/libs", &["--nv"]),
    (".singularity.d/env", &[]),
    (".singularity.d/actions", &[]),
    ("usr/bin", &["--nv", "--contain"]),
    ("singularity", &[]),
    ("environment", &[]),
];

/// Says what is found at place `$1`, and spoils it, if that is a canary's.
const TRY: &str = r#"
    test -f /$1 && cat /$1
    test -f /$1/secret && cat /$1/secret && echo x >> /$1/secret && rm -f /$1/secret
    true"#;

/// Runs these words with these options where a symlink leads from the one path to the other; none where that is not possible.
type Run = fn(&Machine, (&str, &str), &[&str], &[&str]) -> Option<Output>;

#[test]
fn symlinks_where_something_is_bound_change_nothing_on_the_host() {
    nothing_changes_behind_links(|machine, (place, target), options, words| {
        let mut image = ImageBuilder::empty()?;
        image.link(place, target);
        image.config("WorkingDir", serde_json::json!("/own"));
        let image = image.finish();
        Some(machine.exec(&image, options, words).output().unwrap())
    });
}

#[test]
fn symlinks_in_a_directory_where_something_is_bound_change_nothing_outside() {
    nothing_changes_behind_links(|machine, link, options, words| {
        let root = RootFiles::with_link(machine, link)?;
        let output = root.exec(machine, options, words).output().unwrap();
        assert!(root.is_as_it_was(), "{link:?} {options:?}");
        Some(output)
    });
}

#[test]
fn symlinks_in_a_directory_that_is_written_to_change_nothing_outside() {
    nothing_changes_behind_links(|machine, link, options, words| {
        let root = RootFiles::with_link(machine, link)?;
        let options = [&["--writable"], options].concat();
        let output = root.exec(machine, &options, words).output().unwrap();
        Some(output)
    });
}

fn nothing_changes_behind_links(run: Run) {
    let mounts_before = mounts();
    // One where no program of the container's may come, one that it sees at its own name.
    let hidden = Canary::hidden();
    std::thread::scope(|scope| {
        for machine in machines() {
            let hidden = &hidden;
            scope.spawn(move || {
                machine.own_directory("work");
                let seen = Canary::seen(&machine);
                for place in PLACES {
                    nothing_changes_behind(place, &machine, hidden, &seen, run);
                }
                machine.wait_for_all();
            });
        }
    });
    assert_eq!(mounts(), mounts_before);
}

fn nothing_changes_behind(
    (place, options): &(&str, &[&str]),
    machine: &Machine,
    hidden: &Canary,
    seen: &Canary,
    run: Run,
) {
    let here = machine.directory().display().to_string();
    let options = options.iter().map(|option| option.replace("$HERE", &here));
    let options: Vec<String> = options.collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let itself = match place.starts_with("etc/") {
        true => hidden.secret(),
        false => hidden.path(),
    };
    let up = format!("{}{}", "../".repeat(12), hidden.path());
    let below = format!("{}/nonesuch/deep", seen.path());
    for (canary, target) in [(hidden, itself), (hidden, up), (seen, below)] {
        // It may refuse to start, but it must end. Where the container sees the canary as it sees all of /tmp, nothing is tried:
        // the program may do there what its user may.
        let words = match canary.is_seen {
            true => ["true"].as_slice(),
            false => &["sh", "-c", TRY, "sh", place],
        };
        let Some(output) = run(machine, (place, &target), &options, words) else {
            return;
        };
        let what = format!("{place} -> {target} {options:?}: {output:?}");
        assert!(matches!(output.status.code(), Some(0 | 255)), "{what}");
        assert!(canary.is_untouched(), "{what}");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("secret"),
            "{what}"
        );
    }
}

#[test]
fn links_that_lead_in_circles_or_to_each_other_are_refused_or_left_alone() {
    let links: [&[(&str, &str)]; 4] = [
        &[("mnt", "mnt"), ("scratch", "mnt"), ("etc", "etc")],
        &[("tmp", "tmp"), ("proc", "sys"), ("sys", "proc")],
        &[("dev", "proc"), ("var", "tmp"), ("root", "dev")],
        &[("proc", "/proc/self/root"), ("mnt", "/proc/self/fd/0")],
    ];
    for machine in machines() {
        let canary = Canary::seen(&machine);
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
                &["-C", "-S", "/scratch/deep", "--hostname", "x"],
                &["--writable-tmpfs", "-S", "/scratch"],
            ] {
                let output = machine.exec(&image, options, &["true"]).output().unwrap();
                let what = format!("{links:?} {options:?}: {output:?}");
                assert!(matches!(output.status.code(), Some(0 | 255)), "{what}");
                assert!(canary.is_untouched(), "{what}");
            }
        }
        machine.wait_for_all();
    }
}

#[test]
fn what_is_written_over_links_of_an_image_stays_in_the_overlay() {
    let Some(mut image) = ImageBuilder::empty() else {
        return;
    };
    let canary = Canary::hidden();
    image.link("to/directory", &canary.path());
    image.link("to/up", &format!("{}{}", "../".repeat(12), canary.path()));
    image.link("to/file", &canary.secret());
    // Where overlays keep their own things in other formats.
    for name in ["upper", "work", "merged", "memory", "overlay-0"] {
        image.link(name, &canary.path());
        image.link(&format!(".singularity.d/libs/{name}"), &canary.path());
    }
    let image = image.finish();
    let script = "for place in /to/directory /to/up /to/file /upper /work /merged; do
            cat $place $place/secret 2>/dev/null
            { echo x > $place/new; echo x > $place/secret; echo x > $place; mkdir -p $place/made; } 2>/dev/null
            rm -f $place/secret 2>/dev/null
        done; echo kept > /kept && cat /kept";
    for machine in machines() {
        let over = machine.own_directory("over").display().to_string();
        for options in [
            &["--overlay", &over][..],
            &["--writable-tmpfs"],
            &["--writable-tmpfs", "--contain", "--scratch", "/to/own"],
        ] {
            assert_eq!(machine.says(&image, options, script), "kept");
            assert!(canary.is_untouched(), "{options:?}");
            assert_eq!(
                machine.says(&image, options, "cat /to/file 2>/dev/null; true"),
                ""
            );
        }
        assert!(Path::new(&over).join("upper/kept").is_file());
        machine.wait_for_all();
    }
}

/// A directory of the host that no container may change, with a secret.
struct Canary {
    directory: PathBuf,
    before: Vec<(String, Vec<u8>)>,
    is_seen: bool,
    _gone_with_it: Option<TempDir>,
}

impl Canary {
    /// Where nothing that containers see leads, writable for everybody.
    fn hidden() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self::in_directory(directory.path().to_path_buf(), false, Some(directory))
    }

    /// Below /tmp.
    fn seen(machine: &Machine) -> Self {
        Self::in_directory(machine.own_directory("canary"), true, None)
    }

    fn in_directory(directory: PathBuf, is_seen: bool, kept: Option<TempDir>) -> Self {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&directory, mode).unwrap();
        for name in ["secret", "passwd", "hosts", "libcuda.so.1"] {
            let path = directory.join(name);
            fs::write(&path, "secret\n").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            fs::set_permissions(path, mode).unwrap();
        }
        Self {
            before: snapshot(&directory),
            directory,
            is_seen,
            _gone_with_it: kept,
        }
    }

    fn path(&self) -> String {
        self.directory.display().to_string()
    }

    fn secret(&self) -> String {
        format!("{}/secret", self.path())
    }

    fn is_untouched(&self) -> bool {
        snapshot(&self.directory) == self.before
    }
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
