//! `--bind` of what file systems in files hold: data sets.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::{Image, ImageBuilder};
use crate::machine::{Machine, complaint, machines};
use crate::overlay::is_here;

fn small() -> Option<Image> {
    Some(ImageBuilder::new()?.finish())
}

impl Machine {
    /// A directory with data, and a link that leads out of it.
    fn data(&self) -> PathBuf {
        let from = self.own_directory("data");
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::write(from.join("deep/numbers"), "1 2 3").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", from.join("out")).unwrap();
        std::os::unix::fs::symlink("/deep", from.join("in")).unwrap();
        from
    }

    fn squashfs(&self, from: &Path) -> String {
        let file = self.directory().join("data.squashfs");
        let made = Command::new("mksquashfs")
            .args([from, &file])
            .args(["-quiet", "-no-progress"])
            .status();
        assert!(made.unwrap().success());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        file.display().to_string()
    }

    fn sif(&self, from: &Path, name: &str) -> String {
        let file = self.directory().join(name).display().to_string();
        let mut build = self.program(env!("CARGO_BIN_EXE_sifon"));
        let built = build.args(["build", &file]).arg(from).output().unwrap();
        assert!(built.status.success(), "{}", complaint(&built));
        file
    }
}

/// Makes the partition of a SIF's one system to one of data, as `apptainer sif add --parttype 3` adds it: descriptors of 585 bytes
/// begin at 4096, with their type; the role of a partition is at 205.
fn make_data_of_system(sif: &str) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(sif)
        .unwrap();
    let number = |at| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        i32::from_le_bytes(bytes)
    };
    let mut descriptors = (0..48).map(|index| 4096 + 585 * index);
    let partition = descriptors.find(|&at| number(at) == 0x4004).unwrap();
    assert_eq!(number(partition + 205), 2);
    file.write_all_at(&3_i32.to_le_bytes(), partition + 205)
        .unwrap();
}

#[test]
fn what_a_sif_or_squashfs_holds_is_bound_like_a_directory() {
    if !is_here(&["mksquashfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let from = machine.data();
        let (squashfs, sif) = (machine.squashfs(&from), machine.sif(&from, "data.sif"));
        let only_data = machine.sif(&from, "only-data.sif");
        make_data_of_system(&only_data);
        // All of it, and nothing else.
        let all = |file: &str| format!("{file}:/set:image-src=/");
        let list = "ls -A /set; cat /set/deep/numbers; touch /set/x 2>/dev/null || echo ' refused'";
        assert_eq!(
            machine.says(&image, &["-B", &all(&squashfs)], list),
            "deep\nin\nout\n1 2 3 refused"
        );
        for file in [&sif, &only_data] {
            let said = machine.says(&image, &["-B", &all(file)], "cat /set/deep/numbers");
            assert_eq!(said, "1 2 3", "{file}");
        }
        // A part, a file, through a link, where the image has nothing, and under another bind.
        let below = machine.own_directory("below");
        fs::write(below.join("host"), "host").unwrap();
        let words = format!("type=bind,src={squashfs},dst=/a/b,image-src=/in/");
        let binds = format!(
            "{squashfs}:/one:image-src=/deep/numbers,ro,{squashfs}:/set:image-src=/deep,{}:/set/er",
            below.display()
        );
        let script = "cat /a/b/numbers /one /set/er/host";
        assert_eq!(
            machine.says(&image, &["--mount", &words, "-B", &binds], script),
            "1 2 31 2 3host"
        );
        machine.wait_for_all();
    }
}

#[test]
fn what_a_file_does_not_hold_cannot_be_bound_from_it() {
    if !is_here(&["mksquashfs"]) {
        return;
    }
    let Some(image) = small() else { return };
    for machine in machines() {
        let squashfs = machine.squashfs(&machine.data());
        let text = machine.directory().join("text");
        fs::write(&text, "text").unwrap();
        for (file, part, words) in [
            (
                &*squashfs,
                "/nonesuch",
                "/nonesuch in the image: No such file",
            ),
            // The host has this file.
            (&squashfs, "/out", "/out in the image: No such file"),
            (text.to_str().unwrap(), "/", "neither a SIF nor a squashfs"),
            ("/nonesuch.sif", "/", "/nonesuch.sif: No such file"),
        ] {
            let bind = format!("{file}:/set:image-src={part}");
            let output = machine.exec(&image, &["-B", &bind], &["true"]).output();
            let output = output.unwrap();
            let said = complaint(&output);
            assert_eq!(output.status.code(), Some(255), "{bind}: {said}");
            assert!(said.contains(words), "{bind}: {said}");
        }
        machine.wait_for_all();
    }
}
