//! What is left when something is killed: nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines, started};
use crate::namespace::WITHOUT_USER_NAMESPACES;

#[test]
fn the_server_goes_when_the_last_process_of_the_program_does() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        // The program ends, its child stays, and so does the image.
        let script = "sh -c 'read x; cat /etc/group > grown; exec true' <&3 & echo started";
        let wrapper = format!("exec 3<&0; {script}");
        let (mut child, said) = started(&mut machine.exec(&image, &[], &["sh", "-c", &wrapper]));
        assert_eq!(said, "started");
        let mut stdin = child.stdin.take().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(machine.servers().len(), 1);
        stdin.write_all(b"go on\n").unwrap();
        machine.wait_for_all();
        assert!(
            fs::read_to_string(machine.directory().join("grown"))
                .unwrap()
                .starts_with("root:")
        );
    }
}

#[test]
fn a_killed_program_takes_everything_with_it() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let (mut child, _) =
            started(&mut machine.exec(&image, &[], &["sh", "-c", "echo up; exec cat"]));
        let servers = machine.servers();
        assert_eq!(servers.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        servers[0].wait();
        machine.wait_for_all();
    }
}

#[test]
fn readers_of_a_killed_servers_image_get_an_error_at_once() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.file("late", b"never read", 0o644);
    let image = image.finish();
    for machine in machines() {
        let script = "echo up; read x; cat /late";
        let mut command = machine.exec(&image, &[], &["sh", "-c", script]);
        let (mut child, _) = started(command.stderr(Stdio::piped()));
        for server in machine.servers() {
            server.kill();
            server.wait();
        }
        // Fails if the shell needed a page of its own file in the meantime, and died of that.
        let _ = child.stdin.take().unwrap().write_all(b"\n");
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(!child.wait().unwrap().success());
        machine.wait_for_all();
    }
}

#[test]
fn a_client_that_is_killed_while_it_waits_takes_its_server_with_it() {
    // A registry that accepts and never answers.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = registry.local_addr().unwrap();
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        command.args(["exec", &format!("docker://{address}/some/image"), "true"]);
        let mut child = command.spawn().unwrap();
        let _asked = registry.accept().unwrap();
        let servers = machine.servers();
        assert_eq!(servers.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        servers[0].wait();
        machine.wait_for_all();
    }
}

#[test]
fn a_server_that_dies_while_it_opens_the_image_is_an_error() {
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = registry.local_addr().unwrap();
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        command.args(["exec", &format!("docker://{address}/some/image"), "true"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let _asked = registry.accept().unwrap();
        for server in machine.servers() {
            server.kill();
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(255));
        assert!(
            complaint(&output).contains("server ended"),
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}

#[test]
fn an_image_that_cannot_be_opened_is_fatal_and_leaves_nothing() {
    for machine in machines() {
        let mut command = machine.program(env!("CARGO_BIN_EXE_sifon"));
        let output = command
            .args(["exec", "oci:/nonesuch", "true"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        let said = complaint(&output);
        assert!(
            said.starts_with("FATAL:   ") && said.contains("/nonesuch"),
            "{said}"
        );
        machine.wait_for_all();
    }
}

#[test]
fn where_user_namespaces_are_off_the_error_names_the_setting() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines().into_iter().filter(|machine| !machine.is_root()) {
        let mut command = machine.program("unshare");
        command.args(WITHOUT_USER_NAMESPACES);
        command.args([
            env!("CARGO_BIN_EXE_sifon"),
            "exec",
            &image.reference(),
            "true",
        ]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(255), "{output:?}");
        let said = complaint(&output);
        assert!(said.contains("new user namespace"), "{said}");
        assert!(said.contains("user.max_user_namespaces is 0"), "{said}");
        machine.wait_for_all();
    }
}

/// Takes a minute or two, so on request only: `tests/run --run-ignored all a_thousand_starts`.
#[test]
#[ignore = "takes minutes"]
fn a_thousand_starts_leave_nothing_and_the_server_does_not_grow() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let run = |count: u32| {
            for number in 0..count {
                let output = machine
                    .exec(&image, &["--linger", "60"], &["echo", "x"])
                    .output()
                    .unwrap();
                assert_eq!(output.stdout, b"x\n", "{number}: {}", complaint(&output));
            }
        };
        let resident = || {
            let server = machine.servers().pop().expect("it lingers");
            server.resident_kibibytes()
        };
        let files = || fs::read_dir(machine.directory()).unwrap().count();
        run(100);
        let (before, files_before) = (resident(), files());
        let began = std::time::Instant::now();
        run(1000);
        let after = resident();
        eprintln!(
            "{:?} for each start; the server had {before} KiB, now {after}",
            began.elapsed() / 1000
        );
        assert!(after < before + 4096, "{before} KiB, then {after}");
        assert_eq!(machine.processes().len(), 1, "{:?}", machine.processes());
        assert_eq!(files(), files_before);
        let mut stop = machine.program(env!("CARGO_BIN_EXE_sifon"));
        assert!(stop.arg("stop").status().unwrap().success());
        machine.wait_for_all();
    }
}
