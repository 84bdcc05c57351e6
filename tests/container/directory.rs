//! Directories in the place of images.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::image::readable_for_all;
use crate::machine::{Machine, complaint, machines};

const BUSYBOX: &str = "/bin/busybox";

/// A directory with busybox in it, of the machine's user; gone with the value.
pub struct RootFiles {
    directory: TempDir,
    before: Vec<String>,
}

impl RootFiles {
    /// With empty directories and files for all that is bound usually; none if this machine has no busybox.
    pub fn new(machine: &Machine) -> Option<Self> {
        Self::made(machine, &[])
    }

    /// With a symlink from the one path to the other in place of what is there otherwise.
    pub fn with_link(machine: &Machine, link: (&str, &str)) -> Option<Self> {
        Self::made(machine, &[link])
    }

    fn made(machine: &Machine, links: &[(&str, &str)]) -> Option<Self> {
        let Ok(busybox) = fs::read(BUSYBOX) else {
            eprintln!("skipped: {BUSYBOX} is missing (Debian package busybox-static)");
            return None;
        };
        let directory = TempDir::new_in(machine.directory()).unwrap();
        let root = directory.path();
        readable_for_all(root);
        fs::create_dir(root.join("bin")).unwrap();
        let file = root.join("bin/busybox");
        fs::write(&file, busybox).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        for name in [
            "sh", "cat", "ls", "id", "echo", "touch", "mkdir", "rm", "true", "stat", "test",
        ] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        for name in [
            "dev", "proc", "sys", "tmp", "var/tmp", "etc", "root", "home",
        ] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["passwd", "group", "hosts", "localtime", "resolv.conf"] {
            fs::write(root.join("etc").join(name), "").unwrap();
        }
        for (path, target) in links {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            symlink(target, path).unwrap();
        }
        let owner =
            Some(machine.uid()).filter(|_| machine.uid() != rustix::process::geteuid().as_raw());
        for path in everything(root) {
            lchown(path, owner, owner).unwrap();
        }
        let before = names(root);
        Some(Self { directory, before })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether nothing was made in it or taken away.
    pub fn is_as_it_was(&self) -> bool {
        names(self.path()) == self.before
    }

    /// `sifon exec` with `options` before the directory and `words` after it.
    pub fn exec(&self, machine: &Machine, options: &[&str], words: &[&str]) -> Command {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        command
            .arg("exec")
            .args(options)
            .arg(self.path())
            .args(words);
        command
    }

    /// What a shell in it says to `script`.
    fn says(&self, machine: &Machine, options: &[&str], script: &str) -> String {
        let output = self
            .exec(machine, options, &["sh", "-c", script])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{options:?}: {}",
            complaint(&output)
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

/// Itself and all that is in it; links are not followed.
fn everything(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            let entries = fs::read_dir(path).unwrap();
            found.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// What there is, with its kind, permissions and time of change.
fn names(root: &Path) -> Vec<String> {
    let line = |path: PathBuf| {
        let found = path.symlink_metadata().unwrap();
        format!(
            "{} {:o} {}.{}",
            path.display(),
            found.mode(),
            found.mtime(),
            found.mtime_nsec()
        )
    };
    let mut names: Vec<String> = everything(root).into_iter().map(line).collect();
    names.sort();
    names
}

#[test]
fn a_directory_is_only_read_whatever_is_shown_in_it() {
    for machine in machines() {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        let over = machine.own_directory("over").display().to_string();
        for options in [
            &[][..],
            &["--contain", "--scratch", "/new/scratch"],
            &["-C", "--hostname", "x", "--dns", "1.2.3.4"],
            &[
                "--bind",
                "/usr/lib:/new/deep",
                "--bind",
                "/etc/hosts:/new/file",
            ],
            &["--home", "/tmp:/home/of/ada", "--pwd", "/home/of/ada"],
            &["--writable-tmpfs"],
            &["--overlay", &over],
            &["--nv"],
            &["--private"],
        ] {
            let said = root.says(
                &machine,
                options,
                "touch /bin/new 2>/dev/null; rm /bin/cat 2>/dev/null; echo ran; ls /bin/sh",
            );
            assert_eq!(said, "ran\n/bin/sh", "{options:?}");
            assert!(root.is_as_it_was(), "{options:?}");
        }
        machine.wait_for_all();
    }
}

#[test]
fn what_changes_in_a_directory_is_seen_by_the_next_program_and_one_that_runs() {
    for machine in machines() {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        let linger = ["--linger", "60"];
        assert_eq!(
            root.says(&machine, &linger, "cat /word 2>/dev/null; echo $WORD"),
            ""
        );
        fs::create_dir_all(root.path().join(".singularity.d/env")).unwrap();
        fs::write(root.path().join("word"), "later").unwrap();
        fs::write(
            root.path().join(".singularity.d/env/90-environment.sh"),
            "export WORD=set\n",
        )
        .unwrap();
        assert_eq!(
            root.says(&machine, &linger, "cat /word; echo $WORD"),
            "laterset"
        );
        // Programs of one directory share a server, and see it by its path.
        assert_eq!(machine.servers().len(), 1);
        let mut listing = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let listing = listing.arg("ps").output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        let path = root.path().display().to_string();
        assert!(listing.contains(&format!("{path}/")), "{listing}");
        let mut stats = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let stats = stats.arg("stats").arg(root.path()).output().unwrap();
        let stats = String::from_utf8(stats.stdout).unwrap();
        assert!(stats.starts_with(&path), "{stats}");
        for server in machine.servers() {
            server.kill();
        }
        machine.wait_for_all();
    }
}

#[test]
fn of_a_directory_nothing_is_kept_in_the_store() {
    for machine in machines() {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        for options in [&[][..], &["--writable-tmpfs"], &["--writable"]] {
            assert_eq!(root.says(&machine, options, "echo ran"), "ran");
        }
        // Nor is there a need for a directory that is not there.
        let mut nowhere = root.exec(&machine, &["--private"], &["true"]);
        let ran = nowhere.env("TMPDIR", "/nowhere").output().unwrap();
        assert!(ran.status.success(), "{}", complaint(&ran));
        machine.wait_for_all();
        let mut listing = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let listing = listing.args(["cache", "list", "--json"]).output().unwrap();
        let listing: serde_json::Value = serde_json::from_slice(&listing.stdout).unwrap();
        assert_eq!(listing["images"], serde_json::json!([]), "{listing}");
        assert_eq!(listing["used_bytes"], 0, "{listing}");
    }
}

#[test]
fn with_writable_a_directory_is_written_to_and_nothing_else_is_made_in_it() {
    for machine in machines() {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        let inside = |name: &str| root.path().join(name);
        for name in ["resolv.conf", "hosts"] {
            fs::remove_file(inside("etc").join(name)).unwrap();
        }
        root.says(
            &machine,
            &["--writable"],
            "echo text >/etc/new; mkdir /made; rm /bin/test",
        );
        assert_eq!(fs::read(inside("etc/new")).unwrap(), b"text\n");
        assert_eq!(fs::metadata(inside("made")).unwrap().uid(), machine.uid());
        assert!(!inside("bin/test").exists());
        let before = names(root.path());
        let words = ["true"];
        let options = ["--writable", "--bind", "/usr/lib:/new/deep"];
        let refused = root.exec(&machine, &options, &words).output().unwrap();
        assert_eq!(refused.status.code(), Some(255));
        let said = complaint(&refused);
        assert!(
            said.contains("/new/deep doesn't exist in container"),
            "{said}"
        );
        assert!(said.contains("leave --writable out"), "{said}");
        let ran = root
            .exec(&machine, &["--writable", "--hostname", "x"], &words)
            .output()
            .unwrap();
        assert!(
            ran.status.success() && complaint(&ran).contains("/etc/hosts"),
            "{ran:?}"
        );
        assert_eq!(names(root.path()), before);
        machine.wait_for_all();
    }
}

#[test]
fn root_in_a_container_installs_into_a_directory_of_the_users_own() {
    for machine in machines() {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        let options = ["--fakeroot", "--writable"];
        assert_eq!(
            root.says(&machine, &options, "touch /made; id -u; stat -c %u /made"),
            "0\n0"
        );
        let made = fs::metadata(root.path().join("made")).unwrap();
        assert_eq!(made.uid(), machine.uid());
        machine.wait_for_all();
    }
}

#[test]
fn over_a_directory_with_mounts_in_it_the_kernels_refusal_says_what_to_do() {
    for machine in machines().into_iter().filter(|machine| !machine.is_root()) {
        let Some(root) = RootFiles::new(&machine) else {
            return;
        };
        let below = root.path().join("home").display().to_string();
        machine.prepare(
            "mount -t tmpfs none \"$2\" && touch \"$2/there\"",
            &[&below],
        );
        let refused = root.exec(&machine, &[], &["true"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(255));
        let said = complaint(&refused);
        let path = root.path().display().to_string();
        for words in [
            &*path,
            "is on ",
            "fuse-overlayfs",
            "sifon build",
            "--writable",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let options = ["--writable", "--no-home"];
        assert_eq!(root.says(&machine, &options, "ls /home"), "there");
        machine.prepare("umount \"$2\"", &[&below]);
        machine.wait_for_all();
    }
}
