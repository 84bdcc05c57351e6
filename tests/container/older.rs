//! Linux 4.18, as far as a newer kernel can play it: system calls that came later do not exist.

use std::fs;
use std::path::Path;
use std::process::Output;

use rustix::io::Errno;
use rustix::process::PidfdFlags;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::directory::RootFiles;
use crate::image::ImageBuilder;
use crate::machine::{Machine, complaint, machines};
use crate::overlay::is_here;

/// Every architecture numbers what came after Linux 4.18 in the same way, from here on: pidfd_send_signal (5.1), open_tree, move_mount (5.2),
/// pidfd_open (5.3), close_range (5.9), openat2 (5.6), faccessat2 (5.8), mount_setattr (5.12) and all others.
const NEWER: std::ops::Range<i64> = 424..512;

/// Does something in a thread that has none of these, and whose processes have none.
fn on_linux_4_18<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        NEWER.map(|number| (number, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(Errno::NOSYS.raw_os_error().cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    std::thread::scope(|scope| {
        let older = scope.spawn(move || {
            apply_filter(&program).unwrap();
            let process = rustix::process::getpid();
            let opened = rustix::process::pidfd_open(process, PidfdFlags::empty());
            assert_eq!(opened.unwrap_err(), Errno::NOSYS);
            run()
        });
        older.join().unwrap()
    })
}

impl Machine {
    /// `sifon` with these words there.
    fn older(&self, words: &[&str]) -> Output {
        let mut command = self.program(env!("CARGO_BIN_EXE_sifon"));
        command
            .args(words)
            .env("SIFON_CONFIGDIR", self.directory().join("config"));
        on_linux_4_18(|| command.output().unwrap())
    }

    fn older_says(&self, words: &[&str]) -> String {
        let output = self.older(words);
        assert!(output.status.success(), "{words:?}: {}", complaint(&output));
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

#[test]
fn programs_find_what_is_bound_and_cannot_write_where_they_must_not() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("of/image", b"image", 0o644);
    let image = image.finish();
    for machine in machines() {
        let reference = image.reference();
        let bound = machine.own_directory("bound");
        let bound = bound.to_str().unwrap();
        let writable = format!("{bound}:/missing/place");
        let read_only = format!("{bound}:/of/more:ro");
        let script = "cat of/image && echo ' kept' > /missing/place/kept && cat /of/more/kept && \
                      (touch /of/more/x 2>/dev/null || echo refused)";
        for options in [&["--pwd", "/"][..], &["--pwd", "/", "-C"]] {
            let binds = ["-B", &writable, "-B", &read_only, &reference];
            let words = [&["exec"], options, &binds, &["sh", "-c", script]].concat();
            assert_eq!(
                machine.older_says(&words),
                "image kept\nrefused",
                "{options:?}"
            );
        }
        // No overlay is in front of the image.
        let mounted = ["exec", &reference, "cat", "/proc/self/mountinfo"];
        assert!(machine.older_says(&mounted).contains(" fuse.sifon sifon "));
        // A missing name below one that is bound.
        let below = format!("{bound}:/missing/place/below");
        let words = [
            "exec",
            "-B",
            &writable,
            "-B",
            &below,
            &reference,
            "cat",
            "/missing/place/below/kept",
        ];
        assert_eq!(machine.older_says(&words), " kept");
        machine.wait_for_all();
    }
}

#[test]
fn a_directory_is_read_and_written_to() {
    for machine in machines() {
        let Some(root) = RootFiles::with_link(&machine, ("link", "/opt/place")) else {
            return;
        };
        let path = root.path().to_str().unwrap();
        let bind = format!("{}:/link/deep", machine.own_directory("bound").display());
        let script = "touch /opt/place/deep/x /x; ls /link/deep";
        let words = ["exec", "-B", &bind, path, "sh", "-c", script];
        assert_eq!(machine.older_says(&words), "x");
        assert!(root.is_as_it_was());
        let words = ["exec", "--writable", path, "sh", "-c", "echo x >/x; cat /x"];
        assert_eq!(machine.older_says(&words), "x");
        assert!(root.path().join("x").is_file());
        machine.wait_for_all();
    }
}

#[test]
fn what_is_written_over_an_image_is_there_the_next_time() {
    if !is_here(&["mke2fs", "fuse2fs", "fuse-overlayfs"]) {
        return;
    }
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("of/image", b"image", 0o644);
    let image = image.finish();
    for machine in machines() {
        let reference = image.reference();
        let script = "echo ' kept' > /of/kept; cat /of/image /of/kept";
        let words = ["exec", "--writable-tmpfs", &reference, "sh", "-c", script];
        assert_eq!(machine.older_says(&words), "image kept");
        let directory = machine.own_directory("over").display().to_string();
        for over in [directory, machine.ext3()] {
            let words = ["exec", "--overlay", &over, &reference, "sh", "-c", script];
            assert_eq!(machine.older_says(&words), "image kept", "{over}");
            let over = format!("{over}:ro");
            let words = [
                "exec",
                "--overlay",
                &over,
                &reference,
                "cat",
                "/of/image",
                "/of/kept",
            ];
            assert_eq!(machine.older_says(&words), "image kept", "{over}");
        }
        machine.wait_for_all();
    }
}

#[test]
fn an_image_cannot_lie_over_another_and_the_way_around_is_named_and_works() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("of/image", b"image", 0o644);
    let image = image.finish();
    for machine in machines() {
        let reference = image.reference();
        let from = machine.own_directory("from");
        fs::create_dir(from.join("of")).unwrap();
        fs::write(from.join("of/above"), " above").unwrap();
        let sif = machine.directory().join("above.sif").display().to_string();
        machine.older_says(&["build", &sif, from.to_str().unwrap()]);
        let words = ["exec", "--overlay", &sif, &reference, "cat", "/of/above"];
        let refused = machine.older(&words);
        assert_eq!(refused.status.code(), Some(255));
        let said = complaint(&refused);
        assert!(
            said.contains("Linux 5.2") && said.contains("build --sandbox"),
            "{said}"
        );
        let over = machine.own_directory("over");
        let upper = over.join("upper");
        machine.older_says(&["build", "--sandbox", upper.to_str().unwrap(), &sif]);
        let over = format!("{}:ro", over.display());
        let words = [
            "exec",
            "--overlay",
            &over,
            &reference,
            "cat",
            "/of/image",
            "/of/above",
        ];
        assert_eq!(machine.older_says(&words), "image above");
        machine.wait_for_all();
    }
}

#[test]
fn an_instance_is_joined_and_ends_on_request() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        machine.own_directory("config");
        machine.older_says(&["instance", "start", &image.reference(), "one"]);
        assert_eq!(
            machine.older_says(&["exec", "instance://one", "sh", "-c", "echo in"]),
            "in"
        );
        machine.older_says(&["instance", "stop", "one"]);
        machine.wait_for_all();
    }
}

#[test]
fn an_image_is_packed_and_the_file_mounted() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("of/image", b"image", 0o644);
    let image = image.finish();
    for machine in machines().iter().filter(|machine| machine.is_root()) {
        let sif = machine.directory().join("x.sif").display().to_string();
        let directory = machine.own_directory("mounted");
        let on = directory.to_str().unwrap();
        machine.older_says(&["compact", &image.reference(), &sif]);
        machine.older_says(&["mount", &sif, on]);
        let read = fs::read(Path::new(on).join("of/image"));
        machine.older_says(&["umount", on]);
        assert_eq!(read.unwrap(), b"image");
        machine.wait_for_all();
    }
}
