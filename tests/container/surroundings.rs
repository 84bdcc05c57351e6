//! Where and from what a program is started: closed descriptors, no terminal or one, a home that cannot be written, little room.

use std::fs;
use std::io::Write;

use crate::image::{ImageBuilder, readable_for_all};
use crate::machine::{complaint, machines, started};
use crate::namespace::own_mounts;
use crate::overlay::is_here;

#[test]
fn closed_descriptors_are_no_obstacle_and_no_other_file_takes_their_place() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let said = machine.own_directory("said");
        for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
            // The first start makes a server, the second finds it.
            for linger in ["600", "0"] {
                let script = format!(r#"exec "$@" {closed}"#);
                let mut command = machine.program("sh");
                command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_sifon")]);
                command.args(["exec", "--linger", linger, &image.reference()]);
                let inside = "a=$(readlink /proc/$$/fd/0) b=$(readlink /proc/$$/fd/1) c=$(readlink /proc/$$/fd/2); \
                    echo \"$a $b $c\" > said/links; cat; exit 7";
                let output = command.args(["sh", "-c", inside]).output().unwrap();
                assert_eq!(
                    output.status.code(),
                    Some(7),
                    "{closed}: {}",
                    complaint(&output)
                );
                // Rust opens /dev/null in the place of a closed one, so that nothing that is opened later gets its number.
                let file = said.join("links");
                let links = fs::read_to_string(&file).unwrap();
                fs::remove_file(&file).unwrap();
                let links: Vec<&str> = links.split_whitespace().collect();
                assert_eq!(links.len(), 3, "{closed}: {links:?}");
                for (link, redirection) in links.iter().zip(["<&-", ">&-", "2>&-"]) {
                    let is_closed = closed.split(' ').any(|word| word == redirection);
                    let is_null = is_closed || redirection == "<&-";
                    assert_eq!(*link == "/dev/null", is_null, "{closed}: {links:?}");
                    assert!(is_null || link.starts_with("pipe:"), "{closed}: {links:?}");
                }
            }
        }
        machine.wait_for_all();
    }
}

#[test]
fn a_home_behind_links_and_one_that_is_read_only_are_no_obstacles() {
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
        // Neither the store nor anything else can be written below it, and not by its owner's changing his mind either.
        let sealed = machine.own_directory("sealed");
        let mut command = match machine.is_root() {
            true => {
                let mut command = machine.program("unshare");
                command.args(own_mounts(
                    r#"mount -t tmpfs -o ro none "$1" && shift && exec "$@""#,
                ));
                command.arg(&sealed);
                command
            }
            false => {
                let shown = sealed.display().to_string();
                machine.prepare("mount -t tmpfs -o ro none \"$2\"", &[&shown]);
                machine.program("env")
            }
        };
        command.args([env!("CARGO_BIN_EXE_sifon"), "exec", "--home"]);
        command.arg(&sealed).arg(image.reference());
        command.args([
            "sh",
            "-c",
            "echo $((6 * 7)); touch ~/x 2>/dev/null || echo refused",
        ]);
        let output = command
            .env("HOME", &sealed)
            .env_remove("SIFON_STORE")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "42\nrefused\n",
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}

/// A terminal for the program that is named, made by script(1): what is typed there is what comes in.
#[test]
fn a_terminal_is_the_programs_and_none_is_needed() {
    if !is_here(&["script", "setsid"]) {
        return;
    }
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines() {
        let exec = format!(
            "{} --quiet exec {}",
            env!("CARGO_BIN_EXE_sifon"),
            image.reference()
        );
        // The terminal's process group in front is the program's, or reading would stop it; interrupts go there. The
        // trap stands before the program says that it is there: what is typed after must find it.
        let inside = "trap \"echo interrupted; exit 9\" INT; test -t 0 && test -t 1 && test -t 2 && echo terminal; read line; echo never";
        // script(1) starts whatever shell the caller's SHELL names, and one that stayed would be interrupted as well.
        let mut command = machine.program("script");
        command.args([
            "-qec",
            &format!("exec {exec} sh -c '{inside}'"),
            "/dev/null",
        ]);
        let (mut child, said) = started(&mut command);
        assert_eq!(said, "terminal");
        child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(9), "{said}");
        assert!(
            said.contains("interrupted") && !said.contains("never"),
            "{said}"
        );
        let mut command = machine.program("setsid");
        command.args([
            "--wait",
            "sh",
            "-c",
            &format!("{exec} sh -c 'true < /dev/tty 2>/dev/null || echo none; exit 3'"),
        ]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", complaint(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "none\n");
        machine.wait_for_all();
    }
}

#[test]
fn four_megabytes_in_tmp_are_enough() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    // More than there is room for in /tmp.
    let mut state = 1_u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    let noise: Vec<u8> = (0..6 << 20).map(|_| noise()).collect();
    image.file("large", &noise, 0o644);
    let image = image.finish();
    for machine in machines() {
        let script = r#"cp -r "$1" "$2/image" && mount --bind "$2" /mnt && mount -t tmpfs -o size=4m,mode=1777 none /tmp"#;
        let directory = machine.directory().display().to_string();
        let layout = image.directory().display().to_string();
        let mut command = match machine.is_root() {
            true => {
                let mut command = machine.program("unshare");
                command.args(own_mounts(&format!(r#"{script} && shift 2 && exec "$@""#)));
                command.args([&layout, &directory]);
                command
            }
            false => {
                let script = script.replace("$2", "$3").replace("$1", "$2");
                machine.prepare(&script, &[&layout, &directory]);
                machine.program("env")
            }
        };
        let inside = r#"
            "$1" exec oci:/mnt/image:latest sh -c 'cat /large' | cmp - /mnt/noise && echo same
            "$1" build --force /mnt/x.sif oci:/mnt/image:latest >&2 && echo built
            "$1" exec /mnt/x.sif cat /large | cmp - /mnt/noise && echo same"#;
        fs::write(machine.directory().join("noise"), &noise).unwrap();
        readable_for_all(machine.directory());
        let output = command
            .args(["sh", "-c", inside, "sh", env!("CARGO_BIN_EXE_sifon")])
            .env("HOME", "/mnt")
            .env("SIFON_STORE", "/mnt/store")
            .env_remove("TMPDIR")
            .current_dir("/")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "same\nbuilt\nsame\n",
            "{}",
            complaint(&output)
        );
        machine.wait_for_all();
    }
}
