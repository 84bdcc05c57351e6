//! The commands around a mount's life: what they say, and that nothing outlives it.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use sifon_mount::sys::mountinfo;

use crate::layers::{directory, file};
use crate::layout::{Layer, Layout, Packing, all};
use crate::place::{PATIENCE, Place, Process, can_mount, complaint, is_mounted};

/// Of root and of a plain user: a place, an image in it and a directory to mount it on.
fn small() -> Vec<(Place, String, PathBuf)> {
    if !can_mount() {
        return Vec::new();
    }
    [Place::new(), Place::of_plain_user()]
        .map(with_image)
        .into()
}

fn with_image(place: Place) -> (Place, String, PathBuf) {
    let layer = Layer::new(vec![directory("sub"), file("hello", "hello\n").mode(0o644)]);
    let mut layout = Layout::new(place.path("layout"));
    layout.add("latest", &all(&[layer], Packing::Tar));
    let target = place.own_directory("target");
    (place, layout.reference("latest"), target)
}

/// Waits for a change of the table of mounts until `is_so`.
#[track_caller]
fn wait_for_mounts(is_so: impl Fn() -> bool) {
    let table = fs::File::open("/proc/self/mountinfo").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the mounts did not become as expected");
        let mut polled = [PollFd::from_borrowed_fd(table.as_fd(), PollFlags::PRI)];
        rustix::event::poll(&mut polled, Some(&Timespec::try_from(left).unwrap())).unwrap();
        let _ = (&table).read(&mut [0]);
    }
}

fn mount(place: &Place, reference: &str, target: &Path) {
    place.says(["mount".as_ref(), reference.as_ref(), target.as_os_str()]);
}

#[test]
fn the_table_of_mounts_says_what_is_mounted() {
    for (place, reference, target) in small() {
        mount(&place, &reference, &target);
        let entry = mountinfo::mounted_on(&target.canonicalize().unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(entry.file_system, "fuse.sifon");
        let source = entry.source.to_string_lossy().into_owned();
        assert!(
            source.contains(place.path("layout").to_str().unwrap()),
            "{source}"
        );
        // Anybody can see the arguments of the processes in the background: a verb, and no more.
        for process in place.processes() {
            assert_eq!(
                process.command().split_whitespace().count(),
                2,
                "{}",
                process.command()
            );
        }
        place.says(["umount".as_ref(), target.as_os_str()]);
        assert!(!is_mounted(&target));
        assert!(target.is_dir());
    }
}

#[test]
fn umount_says_what_is_wrong_and_who_is_in_the_way() {
    for (place, reference, target) in small() {
        let umount = |options: &[&str]| {
            let mut command = place.sifon(["umount"]);
            command.args(options).arg(&target);
            command
        };
        let refusal = place.refusal(&mut umount(&[]));
        assert!(refusal.contains("target"), "{refusal}");
        let refusal = place.refusal(&mut place.sifon(["umount", "no/such/directory"]));
        assert!(refusal.contains("no/such/directory"), "{refusal}");

        mount(&place, &reference, &target);
        let inside = target.join("sub");
        let mut user = place.started(&format!("cd {} && echo up && read x; :", inside.display()));
        let refusal = place.refusal(&mut umount(&[]));
        let who = format!("{} (sh, by its", user.id());
        assert!(refusal.contains(&who), "{refusal}");
        assert!(refusal.contains("--lazy"), "{refusal}");
        assert!(is_mounted(&target));
        let output = umount(&["--lazy"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!is_mounted(&target));
        drop(user.stdin.take());
        assert!(user.wait().unwrap().success());
    }
}

#[test]
fn several_mounts_are_ended_by_one_command() {
    for (place, reference, target) in small() {
        let other = place.path("other");
        for target in [&target, &other] {
            mount(&place, &reference, target);
        }
        place.says(["umount".as_ref(), target.as_os_str(), other.as_os_str()]);
        assert!(!is_mounted(&target) && !is_mounted(&other));
        assert!(target.is_dir() && !other.exists());
    }
}

#[test]
fn a_mount_point_that_cannot_be_used_is_told_before_anything_is_fetched() {
    for (place, reference, target) in small() {
        let mount_on = |target: &Path| {
            let mut command = place.sifon(["mount", &reference]);
            place.refusal(command.arg(target))
        };
        let said = mount_on(&place.path("no/such"));
        assert!(said.contains("no/such") || said.contains("/no"), "{said}");
        fs::write(place.path("file"), "").unwrap();
        let said = mount_on(&place.path("file"));
        assert!(said.contains("not a directory"), "{said}");
        fs::write(target.join("file"), "").unwrap();
        let said = mount_on(&target);
        assert!(said.contains("not empty"), "{said}");
        assert!(!place.store("").exists(), "the store was opened");
        fs::remove_file(target.join("file")).unwrap();
        mount(&place, &reference, &target);
        let said = mount_on(&target);
        assert!(said.contains("umount"), "{said}");
        place.says(["umount".as_ref(), target.as_os_str()]);
    }
}

#[test]
fn signals_to_the_daemon_end_the_mount_and_what_belongs_to_it() {
    for (place, reference, _) in small() {
        for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
            let target = place.target();
            mount(&place, &reference, &target);
            let processes = place.processes();
            let is_daemon = |process: &&Process| process.command().contains("serve-mount");
            let daemon = processes.iter().find(is_daemon).unwrap();
            let hello = target.join("hello");
            let mut user = place.started(&format!("exec 3<{}; echo up; read x", hello.display()));
            daemon.signal(signal);
            wait_for_mounts(|| !is_mounted(&target));
            drop(user.stdin.take());
            user.wait().unwrap();
            processes.iter().for_each(|process| process.wait());
            assert!(
                !target.exists(),
                "{signal:?}: the directory that sifon made is still there"
            );
        }
        assert_eq!(place.stored("tmp"), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_mount_whose_processes_died_at_once_is_replaced() {
    for (place, reference, target) in small() {
        mount(&place, &reference, &target);
        let processes = place.processes();
        // The daemon and its watcher, stopped first, so that neither sees the other die.
        assert_eq!(processes.len(), 2);
        processes
            .iter()
            .for_each(|process| process.signal(Signal::STOP));
        processes.iter().for_each(|process| process.kill());
        processes.iter().for_each(|process| process.wait());
        assert!(is_mounted(&target));
        assert!(place.reads(&target.join("hello")).is_err());
        mount(&place, &reference, &target);
        assert_eq!(place.reads(&target.join("hello")).unwrap(), "hello\n");
        place.says(["umount".as_ref(), target.as_os_str()]);
        assert!(!is_mounted(&target));
        // Another one is not replaced but removed.
        mount(&place, &reference, &target);
        let processes = place.processes();
        processes
            .iter()
            .for_each(|process| process.signal(Signal::STOP));
        processes.iter().for_each(|process| process.kill());
        processes.iter().for_each(|process| process.wait());
        place.says(["umount".as_ref(), target.as_os_str()]);
        assert!(!is_mounted(&target));
    }
}

#[test]
fn a_mount_in_the_foreground_lasts_until_a_signal_or_umount() {
    for (place, reference, _) in small() {
        for signal in [Some(Signal::TERM), Some(Signal::INT), None] {
            let target = place.target();
            let mut command = place.sifon(["mount", "--foreground", &reference]);
            let mut child = command.arg(&target).stderr(Stdio::piped()).spawn().unwrap();
            wait_for_mounts(|| mountinfo::mounted_on(&target).unwrap().is_some());
            assert_eq!(place.reads(&target.join("hello")).unwrap(), "hello\n");
            match signal {
                Some(signal) => {
                    let pid = rustix::process::Pid::from_child(&child);
                    rustix::process::kill_process(pid, signal).unwrap();
                }
                None => _ = place.says(["umount".as_ref(), target.as_os_str()]),
            }
            let status = child.wait().unwrap();
            let mut said = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            assert!(status.success(), "{signal:?}: {status}: {said}");
            assert!(!is_mounted(&target));
            assert!(!target.exists());
        }
    }
}

#[test]
fn a_mount_that_fails_leaves_no_directory_and_no_process() {
    for (place, _, _) in small() {
        let target = place.target();
        let reference = format!("oci:{}:missing", place.path("layout").display());
        for flags in [&["mount"][..], &["mount", "--foreground"]] {
            let mut command = place.sifon(flags);
            let output = command.arg(&reference).arg(&target).output().unwrap();
            assert_eq!(output.status.code(), Some(255), "{output:?}");
            assert!(complaint(&output).contains("missing"), "{output:?}");
            assert!(!target.exists());
        }
    }
}
