//! `--overlay` with file systems in files.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::image::{Image, ImageBuilder};
use crate::machine::{Machine, complaint, machines};
use crate::namespace::own_mounts;

fn small() -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    image.file("of/image", b"image", 0o644);
    Some(image.finish())
}

pub fn is_here(programs: &[&str]) -> bool {
    let is_here = |program: &&str| {
        let places = ["/usr/bin", "/usr/sbin", "/sbin", "/bin"];
        let found = places
            .iter()
            .any(|place| Path::new(place).join(program).exists());
        if !found {
            eprintln!("skipped: {program} is not installed");
        }
        found
    };
    programs.iter().all(is_here)
}

impl Machine {
    /// An ext3 file system of the caller's in a file.
    pub fn ext3(&self) -> String {
        let file = self.directory().join("overlay.img");
        let owner = format!("root_owner={0}:{0}", self.uid());
        // As `apptainer overlay create` makes it; root's gets the directories on first use.
        let from = self.own_directory("made-from");
        for name in ["upper", "work"].into_iter().filter(|_| !self.is_root()) {
            let path = from.join(name);
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(self.uid()), Some(self.uid())).unwrap();
        }
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext3", "-E", &owner, "-d"])
            .arg(&from)
            .arg(&file)
            .arg("8M")
            .status();
        assert!(made.unwrap().success());
        std::os::unix::fs::chown(&file, Some(self.uid()), None).unwrap();
        file.display().to_string()
    }
}

#[test]
fn what_is_written_into_an_ext3_file_is_there_the_next_time() {
    if !is_here(&["mke2fs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let file = machine.ext3();
        let script = "echo kept > /of/kept && rm -f /of/image; mkdir /new; cat /of/kept; ls /of";
        assert_eq!(
            machine.says(&image, &["--overlay", &file], script),
            "kept\nkept"
        );
        machine.wait_for_all();
        let again = "cat /of/kept; ls -d /new /of/image 2>/dev/null; touch /of/x && echo written";
        assert_eq!(
            machine.says(&image, &["--overlay", &file], again),
            "kept\n/new\nwritten"
        );
        let read_only = format!("{file}:ro");
        let script = "cat /of/kept; touch /of/y 2>/dev/null || echo refused";
        assert_eq!(
            machine.says(&image, &["--overlay", &read_only], script),
            "kept\nrefused"
        );
        // With something to write to above it.
        let options = ["--overlay", &read_only, "--writable-tmpfs"];
        let script = "cat /of/kept; echo more > /of/y && cat /of/y";
        assert_eq!(machine.says(&image, &options, script), "kept\nmore");
        // However the program ends, nothing of what served the file is left.
        let killed = machine
            .exec(&image, &["--overlay", &file], &["sh", "-c", "kill -9 $$"])
            .output();
        assert!(!killed.unwrap().status.success());
        machine.wait_for_all();
        assert_eq!(
            machine.says(&image, &["--overlay", &file], "cat /of/kept"),
            "kept"
        );
        machine.wait_for_all();
    }
}

#[test]
fn a_file_of_mke2fs_is_given_what_an_overlay_needs() {
    if !is_here(&["mke2fs", "debugfs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        for options in [&["--overlay"][..], &["--fakeroot", "--overlay"]] {
            let file = machine.directory().join("plain.img");
            let made = Command::new("/sbin/mke2fs")
                .args(["-q", "-F", "-t", "ext3"])
                .arg(&file)
                .arg("8M")
                .status();
            assert!(made.unwrap().success());
            std::os::unix::fs::chown(&file, Some(machine.uid()), None).unwrap();
            let file = file.display().to_string();
            let options = [options, &[&*file]].concat();
            for _ in 0..2 {
                let script = "echo more >> /of/kept && cat /of/kept";
                machine.says(&image, &options, script);
                machine.wait_for_all();
            }
            assert_eq!(machine.says(&image, &options, "cat /of/kept"), "more\nmore");
            machine.wait_for_all();
        }
    }
}

/// Such a file may come from somebody else, as an image does.
#[test]
fn links_in_a_file_for_overlays_never_lead_to_the_hosts_files() {
    if !is_here(&["mke2fs", "debugfs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let canary = machine.own_directory("canary");
        fs::write(canary.join("secret"), "secret").unwrap();
        let file = machine.directory().join("linked.img");
        for (name, other) in [("upper", "work"), ("work", "upper")] {
            let from = machine.own_directory(&format!("linked-{name}"));
            std::os::unix::fs::symlink(&canary, from.join(name)).unwrap();
            fs::create_dir(from.join(other)).unwrap();
            std::os::unix::fs::chown(from.join(other), Some(machine.uid()), None).unwrap();
            let made = Command::new("/sbin/mke2fs")
                .args(["-q", "-F", "-t", "ext3", "-E"])
                .arg(format!("root_owner={0}:{0}", machine.uid()))
                .arg("-d")
                .args([&from, &file])
                .arg("8M")
                .status();
            assert!(made.unwrap().success());
            std::os::unix::fs::chown(&file, Some(machine.uid()), None).unwrap();
            for access in ["", ":ro"] {
                let option = format!("{}{access}", file.display());
                let script = "cat /secret; echo written > /new; rm -f /secret";
                let output = machine
                    .exec(&image, &["--overlay", &option], &["sh", "-c", script])
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(!said.contains("secret"), "{name} {option}: {said}");
                let is_used = (name, access) != ("work", ":ro");
                if is_used {
                    let words = format!("{name} is no directory in it");
                    assert_eq!(output.status.code(), Some(255));
                    assert!(
                        complaint(&output).contains(&words),
                        "{}",
                        complaint(&output)
                    );
                }
                let left: Vec<_> = fs::read_dir(&canary).unwrap().collect();
                assert_eq!(left.len(), 1, "{name} {option}: {left:?}");
                assert_eq!(fs::read(canary.join("secret")).unwrap(), b"secret");
                machine.wait_for_all();
            }
        }
    }
}

#[test]
fn files_for_overlays_are_made_as_apptainer_makes_them() {
    if !is_here(&["mke2fs", "debugfs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let create = |words: &[&str]| {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.args(["overlay", "create"]).args(words);
            let output = command.output().unwrap();
            (output.status.code(), complaint(&output))
        };
        let there = |file: &str| fs::metadata(machine.directory().join(file));
        let made = (Some(0), String::new());
        for (options, file, fakeroot) in [
            (
                &["--size", "64", "--create-dir", "/opt/a b/c"][..],
                "a.img",
                None,
            ),
            (
                &["-s", "64", "-S", "-f", "--create-dir", "/opt/a b/c"],
                "f.img",
                Some("-f"),
            ),
        ] {
            assert_eq!(create(&[options, &[file]].concat()), made);
            let options: Vec<&str> = fakeroot.into_iter().chain(["--overlay", file]).collect();
            let script = "echo x > '/opt/a b/c/x' && cat '/opt/a b/c/x' && ls /of";
            assert_eq!(machine.says(&image, &options, script), "x\nimage");
            machine.wait_for_all();
        }
        use std::os::unix::fs::MetadataExt;
        let blocks = |file: &str| there(file).unwrap().blocks();
        assert_eq!(there("a.img").unwrap().len(), 64 << 20);
        assert!(blocks("f.img") < blocks("a.img") / 2);
        for (words, complaint) in [
            (
                &["--size", "63", "b.img"][..],
                "equal or greater than 64 MiB",
            ),
            (&["a.img"], "is there already"),
            (&["--create-dir", "../x", "b.img"], "leads out of the image"),
            (&["nonesuch/b.img"], "nonesuch/b.img"),
            (&["b?.img"], "question mark"),
        ] {
            let (status, said) = create(words);
            assert_eq!(status, Some(255), "{said}");
            assert!(said.contains(complaint), "{said}");
            assert!(there("b.img").is_err(), "{words:?}");
        }
    }
}

#[test]
fn a_sif_or_squashfs_lies_over_the_image() {
    if !is_here(&["mksquashfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let from = machine.own_directory("from");
        fs::create_dir(from.join("of")).unwrap();
        fs::write(from.join("of/squashfs"), "squashfs").unwrap();
        fs::write(from.join("of/image"), "covered").unwrap();
        let file = machine
            .directory()
            .join("without-suffix")
            .display()
            .to_string();
        let made = Command::new("mksquashfs")
            .arg(&from)
            .args([&file, "-quiet", "-no-progress"])
            .status();
        assert!(made.unwrap().success());
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let script = "cat /of/squashfs /of/image; touch /of/x 2>/dev/null || echo ' refused'";
        for option in [file.clone(), format!("{file}:ro")] {
            assert_eq!(
                machine.says(&image, &["--overlay", &option], script),
                "squashfscovered refused"
            );
        }
        let kept = machine.own_directory("kept").display().to_string();
        let options = ["--overlay", &file, "--overlay", &kept];
        let script = "echo ' written' >> /of/squashfs; cat /of/squashfs";
        assert_eq!(machine.says(&image, &options, script), "squashfs written");
        assert!(Path::new(&kept).join("upper/of/squashfs").exists());
        let sif = machine.directory().join("x.sif").display().to_string();
        let mut build = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let built = build.args(["build", &sif]).arg(&from).output().unwrap();
        assert!(built.status.success(), "{}", complaint(&built));
        assert_eq!(
            machine.says(&image, &["--overlay", &sif], "cat /of/squashfs"),
            "squashfs"
        );
        let text = machine.directory().join("text").display().to_string();
        fs::write(&text, "neither").unwrap();
        let refused = machine
            .exec(&image, &["--overlay", &text], &["true"])
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(255));
        assert!(
            complaint(&refused).contains("neither a directory nor"),
            "{}",
            complaint(&refused)
        );
        machine.wait_for_all();
    }
}

/// As on NFS, Lustre or GPFS: here it is a file system that a program serves.
#[test]
fn where_the_kernel_refuses_a_directory_fuse_overlayfs_takes_it_or_the_file_system_is_named() {
    if !is_here(&["mke2fs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines().iter().filter(|machine| machine.is_root()) {
        let (file, on) = (machine.ext3(), machine.own_directory("on"));
        let run = |before: &str, script: &str| {
            let served = format!(
                "fuse2fs \"$1\" \"$2\" && {{ shift; {before} \"$@\"; status=$?; umount \"$1\"; exit $status; }}"
            );
            let served =
                served.replace("\"$@\"", "\"$2\" exec --overlay \"$1\" \"$3\" sh -c \"$4\"");
            let mut command = machine.program("unshare");
            command
                .args(own_mounts(&served))
                .args([file.as_ref(), on.as_os_str()])
                .args([env!("CARGO_BIN_EXE_sifon"), &image.reference(), script]);
            command.output().unwrap()
        };
        let written = run("", "echo kept > /of/kept; cat /of/kept");
        assert_eq!(
            String::from_utf8_lossy(&written.stdout),
            "kept\n",
            "{}",
            complaint(&written)
        );
        machine.wait_for_all();
        // A machine that does not have it.
        let without = "mount -t tmpfs none /usr/local/bin; for place in /usr/bin /bin; do test -e $place/fuse-overlayfs && mount --bind /dev/null $place/fuse-overlayfs; done; ";
        let refused = run(without, "true");
        let said = complaint(&refused);
        assert_eq!(refused.status.code(), Some(255), "{said}");
        assert!(
            said.contains("fuse") && said.contains("--writable-tmpfs"),
            "{said}"
        );
        machine.wait_for_all();
    }
}

/// As before Linux 5.11, and on NFS for a directory: here because overlays lie over overlays already.
#[test]
fn where_the_kernel_refuses_writing_into_memory_fuse_overlayfs_does_it() {
    if !is_here(&["fuse-overlayfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines().iter().filter(|machine| machine.is_root()) {
        let on = machine.own_directory("on");
        let stacked = r#"place=$1; mount -t tmpfs none $place; cd $place; mkdir -p a/upper/of u w v x once twice
            echo over > a/upper/of/over
            mount -t overlay -o lowerdir=a,upperdir=u,workdir=w none once &&
            mount -t overlay -o lowerdir=once,upperdir=v,workdir=x none twice &&
            "$2" exec --overlay $place/twice:ro $4 "$3" sh -c "$5"; status=$?; umount twice once; cd /; umount $place; exit $status"#;
        let run = |option: &str, script: &str| {
            let mut command = machine.program("unshare");
            command.args(own_mounts(stacked)).arg(&on).args([
                env!("CARGO_BIN_EXE_sifon"),
                &image.reference(),
                option,
                script,
            ]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", complaint(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        let script = "cat /of/image /of/over; echo new > /of/new; cat /of/new";
        assert_eq!(run("--writable-tmpfs", script), "imageover\nnew\n");
        let script = "cat /of/image /of/over; touch /of/new 2>/dev/null || echo refused";
        assert_eq!(run("", script), "imageover\nrefused\n");
        machine.wait_for_all();
    }
}
