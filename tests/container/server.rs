//! One server for all programs of a job: shared, found, left behind, ended.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::image::{Image, ImageBuilder};
use crate::machine::{Machine, Process, complaint, machines, started};

/// `sifon exec` whose server stays.
const STAYS: [&str; 2] = ["--linger", "600"];

/// What a program says before it ends. None if it has not after ten seconds, because it waits for a server that stands still.
fn ends_soon(child: &mut Child) -> Option<String> {
    let ended = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(100));
        child.try_wait().unwrap().is_some()
    });
    ended.then(|| {
        let mut said = String::new();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        said
    })
}

fn small() -> Option<Image> {
    Some(ImageBuilder::new()?.finish())
}

impl Machine {
    fn ps(&self) -> Value {
        let mut command = self.program(env!("CARGO_BIN_EXE_sifon"));
        let output = command.args(["ps", "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", complaint(&output));
        let mut listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        // Other tests run at the same time.
        let job = format!("Slurm job {}", self.mark());
        let servers = listed["servers"].as_array_mut().unwrap();
        servers.retain(|server| server["job"] == job.as_str());
        listed["servers"].take()
    }

    /// Ends this machine's server, and waits until everything is gone.
    fn stop(&self) {
        for server in self.servers() {
            server.kill();
        }
        self.wait_for_all();
    }
}

#[test]
fn programs_of_one_job_share_a_server_a_mount_and_a_user_namespace() {
    let (Some(image), Some(mut other)) = (small(), ImageBuilder::new()) else {
        return;
    };
    other.file("other", b"", 0o644);
    let other = other.finish();
    for machine in machines() {
        let script = "stat -c %d /; readlink /proc/self/ns/user";
        let first = machine.says(&image, &STAYS, script);
        assert_eq!(machine.says(&image, &STAYS, script), first);
        let elsewhere = machine.says(&other, &STAYS, script);
        let namespace = |said: &str| said.lines().nth(1).unwrap().to_owned();
        assert_eq!(namespace(&elsewhere), namespace(&first));
        assert_ne!(elsewhere, first);
        assert_eq!(machine.servers().len(), 1);
        let servers = machine.ps();
        let images = servers[0]["images"].as_array().unwrap();
        assert_eq!(images.len(), 2, "{servers}");
        assert_eq!(images[0]["clients"], Value::Array(vec![]));
        assert!(servers[0]["memory_bytes"].as_u64().unwrap() > 0);
        machine.stop();
    }
}

/// Says where a text lies in its memory, and waits; others may look, as MPI's libraries say.
const TASK: &str = r#"
    $| = 1;
    syscall($ARGV[0], 0x59616d61, -1, 0, 0, 0);
    $text = "memory of a task";
    printf "%d %d %d\n", $$, unpack("J", pack("p", $text)), length $text;
    <STDIN>;"#;

/// Reads what lies there in another task's memory, by process_vm_readv(2).
const READER: &str = r#"
    ($call, $pid, $at, $len) = map { $_ + 0 } @ARGV;
    $buffer = "\0" x $len;
    $here = pack("J2", unpack("J", pack("p", $buffer)), $len);
    $there = pack("J2", $at, $len);
    print syscall($call, $pid, $here, 1, $there, 1, 0) < 0 ? "error $!" : $buffer;"#;

/// What MPI does between the tasks of a node (CMA), which the kernel allows in one user namespace only.
#[test]
fn tasks_of_one_job_read_each_others_memory() {
    // Debian has perl everywhere, and it can say any system call.
    if !Path::new("/usr/bin/perl").exists() {
        return eprintln!("skipped: no perl");
    }
    let Some(image) = small() else { return };
    let (control, read) = match cfg!(target_arch = "aarch64") {
        true => ("167", "270"),
        false => ("157", "310"),
    };
    let libraries = ["/lib", "/lib64"]
        .into_iter()
        .filter(|path| Path::new(path).exists());
    let binds: Vec<&str> = ["/usr"].into_iter().chain(libraries).collect();
    let binds = binds.join(",");
    for machine in machines() {
        let perl = |script, arguments: &[&str]| {
            let words = ["/usr/bin/perl", "-e", script];
            machine.exec(&image, &["-B", &binds], &[&words, arguments].concat())
        };
        let (mut task, place) = started(&mut perl(TASK, &[control]));
        let place: Vec<&str> = [read].into_iter().chain(place.split(' ')).collect();
        let reader = perl(READER, &place).output().unwrap();
        let said = String::from_utf8_lossy(&reader.stdout);
        assert_eq!(said, "memory of a task", "{}", complaint(&reader));
        if !machine.is_root() {
            // Another job's programs are strangers.
            let mut stranger = perl(READER, &place);
            let stranger = stranger.env("SLURM_JOB_ID", "another").output().unwrap();
            let said = String::from_utf8_lossy(&stranger.stdout);
            assert!(said.contains("not permitted"), "{said}");
        }
        task.kill().unwrap();
        task.wait().unwrap();
        machine.wait_for_all();
    }
}

/// What MPI's libraries do where processes may not read each other's memory.
#[test]
fn tasks_of_one_job_meet_in_shared_memory() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let name = format!("/dev/shm/sifon-{}", machine.mark());
        let task = format!(
            "echo of a task > {name}; stat -c %d:%i {name}; cat; readlink /proc/self/ns/ipc; cat {name}; rm {name}"
        );
        let (mut task, file) = started(&mut machine.exec(&image, &[], &["sh", "-c", &task]));
        let other = format!(
            "cat {name}; stat -c %d:%i {name}; readlink /proc/self/ns/ipc; echo of the other >> {name}"
        );
        let ours = fs::read_link("/proc/self/ns/ipc").unwrap();
        let ours = ours.display();
        assert_eq!(
            machine.says(&image, &[], &other),
            format!("of a task\n{file}\n{ours}")
        );
        drop(task.stdin.take());
        let output = task.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("{ours}\nof a task\nof the other\n")
        );
        assert!(!Path::new(&name).exists());
        machine.wait_for_all();
    }
}

#[test]
fn starts_at_the_same_moment_make_one_server_and_one_mount() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let children: Vec<_> = (0..64)
            .map(|_| {
                machine
                    .exec(&image, &STAYS, &["stat", "-c", "%d", "/"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let mut said: Vec<String> = children
            .into_iter()
            .map(|child| {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{}", complaint(&output));
                String::from_utf8(output.stdout).unwrap()
            })
            .collect();
        said.dedup();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(machine.servers().len(), 1);
        machine.stop();
    }
}

#[test]
fn a_server_shows_who_uses_it_and_goes_when_it_is_told() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let (mut child, _) =
            started(&mut machine.exec(&image, &STAYS, &["sh", "-c", "echo up; exec cat"]));
        let servers = machine.ps();
        let clients = &servers[0]["images"][0]["clients"];
        assert_eq!(clients.as_array().unwrap().len(), 1, "{servers}");
        let stop = |options: &[&str]| {
            let mut command = machine.program("env");
            command.arg(format!("SLURM_JOB_ID={}", machine.mark()));
            command.arg(env!("CARGO_BIN_EXE_sifon")).arg("stop");
            command.args(["--job", &format!("Slurm job {}", machine.mark())]);
            command.args(options).output().unwrap()
        };
        let refused = stop(&[]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            complaint(&refused).contains("run in it"),
            "{}",
            complaint(&refused)
        );
        assert_eq!(machine.servers().len(), 1);
        drop(child.stdin.take());
        child.wait().unwrap();
        let done = stop(&[]);
        assert!(done.status.success(), "{}", complaint(&done));
        machine.wait_for_all();
    }
}

#[test]
fn what_reading_an_image_costs_is_told_while_programs_run_in_it_and_after_its_server_was_made_to_leave()
 {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    // Other tests' servers do not show it.
    image.file("counted", b"", 0o644);
    let image = image.finish();
    for machine in machines() {
        let (mut child, _) =
            started(&mut machine.exec(&image, &STAYS, &["sh", "-c", "echo up; exec cat"]));
        let reads = || {
            let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
            command.args(["stats", "--json", &image.reference()]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", complaint(&output));
            let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
            stats["reads"]["reads"].as_u64().unwrap()
        };
        let so_far = reads();
        assert!(so_far > 0);
        let mut stop = machine.program(env!("CARGO_BIN_EXE_sifon"));
        assert!(stop.args(["stop", "--force"]).status().unwrap().success());
        assert!(reads() >= so_far);
        drop(child.stdin.take());
        child.wait().unwrap();
        machine.wait_for_all();
    }
}

#[test]
fn a_private_program_has_a_server_of_its_own_that_goes_with_it() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let shared = machine.says(&image, &STAYS, "readlink /proc/self/ns/user; stat -c %d /");
        let options = [&STAYS[..], &["--private"]].concat();
        let alone = machine.says(
            &image,
            &options,
            "readlink /proc/self/ns/user; stat -c %d /",
        );
        assert_ne!(alone, shared);
        machine.stop();
    }
}

#[test]
fn the_start_after_a_servers_end_makes_a_new_one() {
    let Some(image) = small() else { return };
    for machine in machines() {
        machine.says(&image, &STAYS, "true");
        for server in machine.servers() {
            server.kill();
            server.wait();
        }
        assert_eq!(machine.says(&image, &STAYS, "echo here"), "here");
        assert_eq!(machine.servers().len(), 1);
        machine.stop();
    }
}

#[test]
fn a_name_that_one_container_missed_is_there_for_the_next_that_binds_it() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let source = machine.own_directory("source");
        fs::write(source.join("file"), "content").unwrap();
        let bind = |target: &str| format!("{}:{target}", source.display());
        // The kernel now remembers that there is no /second, nor anything in it.
        let missed = "cat /second/deep/file 2>/dev/null || ls / | grep second || cat /first/file";
        let (first, second) = (bind("/first"), bind("/second/deep"));
        let options = [&STAYS[..], &["-B", &first]].concat();
        let (mut child, said) = started(&mut machine.exec(
            &image,
            &options,
            &[
                "sh",
                "-c",
                &format!("{missed}; echo; read x; ls /second/deep 2>/dev/null; true"),
            ],
        ));
        assert_eq!(said, "content");
        let options = [&STAYS[..], &["-B", &second]].concat();
        assert_eq!(
            machine.says(&image, &options, "cat /second/deep/file"),
            "content"
        );
        // A name may be shared, what is bound is not.
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "");
        machine.stop();
    }
}

/// Python asks that of each file that it opens; FUSE would hand the question on to the server each time.
#[test]
fn whether_a_file_is_a_terminal_is_no_question_for_the_server() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("of/image", b"image", 0o644);
    let image = image.finish();
    for machine in machines() {
        machine.says(&image, &STAYS, "true");
        let script = "ask() { test -t 0 </of/image || cat /of/image; }; ask; echo; read x; ask";
        let (mut child, said) =
            started(&mut machine.exec(&image, &STAYS, &["busybox", "sh", "-c", script]));
        assert_eq!(said, "image");
        for server in machine.servers() {
            server.stop();
        }
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let said = ends_soon(&mut child);
        machine.stop();
        assert_eq!(said.as_deref(), Some("image"));
    }
}

/// So many files of a mebibyte, `/of/00` and so on.
fn large(files: u8) -> Option<Image> {
    let mut image = ImageBuilder::new()?;
    for number in 0..files {
        image.file(&format!("of/{number:02}"), &vec![number; 1 << 20], 0o644);
    }
    Some(image.finish())
}

#[test]
fn what_programs_read_last_time_is_there_before_they_ask() {
    const FILES: u8 = 40;
    let Some(image) = large(FILES) else { return };
    for machine in machines() {
        machine.says(&image, &["--linger", "0"], "cat /of/* >/dev/null");
        machine.wait_for_all();
        // More than a short program reads, and less than would be the first part of what is read ahead.
        let script =
            "cat /of/[01]* /of/2[0-5] >/dev/null; echo; read x; cat /of/38 >/dev/null && echo read";
        let (mut child, _) = started(&mut machine.exec(&image, &STAYS, &["sh", "-c", script]));
        let all_is_read = || {
            let mut command = machine.program("env");
            command.arg(format!("SLURM_JOB_ID={}", machine.mark()));
            command.arg(env!("CARGO_BIN_EXE_sifon"));
            command.args(["stats", "--json", &image.reference()]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", complaint(&output));
            let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
            stats["reads"]["bytes"].as_u64().unwrap() >= u64::from(FILES) << 20
        };
        // By a process that ends then.
        assert!((0..600).any(|_| {
            thread::sleep(Duration::from_millis(50));
            all_is_read()
        }));
        let servers = machine.servers();
        servers.iter().for_each(Process::stop);
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let said = ends_soon(&mut child);
        servers.iter().for_each(Process::kill);
        machine.wait_for_all();
        assert_eq!(said.as_deref(), Some("read\n"));
    }
}

#[test]
fn a_server_that_stays_keeps_nothing_of_its_first_client() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let place = machine.own_directory("place");
        let mut command = machine.program("sh");
        let script = r#"cd "$1"; shift; exec 7<"$1"; shift; x=$("$@" 2>&1); echo "[$x]""#;
        command
            .args(["-c", script, "sh"])
            .arg(&place)
            .arg("/etc/passwd");
        command
            .args([env!("CARGO_BIN_EXE_sifon"), "exec"])
            .args(STAYS);
        let output = command
            .arg(image.reference())
            .args(["echo", "here"])
            .output()
            .unwrap();
        // A warning may come before it, when somebody else's program tries to meet this server.
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with('[') && said.ends_with("here]\n"), "{said}");
        let servers = machine.servers();
        assert_eq!(servers.len(), 1);
        assert_eq!(servers[0].link("cwd"), "/");
        for link in servers[0].descriptors() {
            let is_own = [
                "/dev/null",
                "/dev/fuse",
                "socket:",
                "anon_inode:",
                "pipe:",
                "net:",
            ];
            let is_own = is_own.iter().any(|own| link.starts_with(own))
                || ["user:", "mnt:"].iter().any(|own| link.starts_with(own))
                || link == "/"
                // Where it looks for processes.
                || link.starts_with("/proc")
                || link.ends_with(".log")
                || link.contains("/store-");
            assert!(is_own, "{link}");
        }
        machine.stop();
    }
}

#[test]
fn a_program_in_a_container_cannot_use_the_server_to_get_out() {
    let Some(image) = small() else { return };
    for machine in machines() {
        let program = env!("CARGO_BIN_EXE_sifon");
        let bind = format!("{program}:/bin/sifon");
        let options = [
            &STAYS[..],
            &["-B", &bind, "-B", "/lib", "-B", "/lib64", "-B", "/usr/lib"],
        ]
        .concat();
        let said = machine.says(&image, &options, "sifon ps --json");
        let listed: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(listed["servers"], Value::Array(vec![]), "{said}");
        machine.stop();
    }
}

/// It lives in the image's own mount namespace, where the host's files are behind the image, and longest where there is much left to read.
#[test]
fn root_in_a_container_cannot_look_into_the_process_that_reads_ahead() {
    let Some(image) = large(96) else { return };
    for machine in machines().iter().filter(|machine| !machine.is_root()) {
        machine.says(&image, &["--linger", "0"], "cat /of/* >/dev/null");
        machine.wait_for_all();
        let script = "cat /of/[0-2]* >/dev/null; for n in $(busybox seq 100); do
            for comm in /proc/[0-9]*/comm; do
                case $(cat $comm 2>/dev/null) in sifon-ahead)
                    process=${comm%/comm}; id -u
                    ls $process/root/ 2>/dev/null; cat $process/maps 2>/dev/null; exit 0;;
                esac
            done; busybox sleep 0.1
        done";
        let said = machine.says(&image, &["--fakeroot", "--linger", "0"], script);
        assert_eq!(said, "0");
        machine.wait_for_all();
    }
}

#[test]
fn many_starts_in_a_row_leave_the_server_as_it_was() {
    let Some(image) = small() else { return };
    let Some(machine) = machines().into_iter().next() else {
        return;
    };
    machine.says(&image, &STAYS, "true");
    // An answer to `ps` comes when the last client was seen off.
    let files = || {
        machine.ps();
        machine.servers()[0].descriptors()
    };
    let memory = || machine.ps()[0]["memory_bytes"].as_u64().unwrap();
    for _ in 0..20 {
        machine.says(&image, &STAYS, "true");
    }
    let before = (files(), memory());
    for _ in 0..60 {
        machine.says(&image, &STAYS, "true");
    }
    let after = files();
    assert!(
        after.len() <= before.0.len() + 2,
        "{after:?} {:?}",
        before.0
    );
    assert!(memory() < before.1 + (2 << 20), "{} {}", memory(), before.1);
    machine.stop();
}
