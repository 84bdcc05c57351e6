//! Files that lie where root may not go, as on NFS: here it is a file system that a program of the user's serves.

use std::path::Path;
use std::process::Command;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};
use crate::overlay::is_here;

/// Home, current directory, store and what is bound lie in the file system in `$1`, mounted on `$2`, a home directory, by the user who
/// says this. It runs `$3` with the image `$4`.
const FROM_THERE: &str = r#"
    fuse2fs "$1" "$2" -o rw,fakeroot >&2 || exit 9
    trap 'cd / && fusermount3 -uz "$2"' EXIT
    mkdir "$2/data" && echo inner > "$2/data/inner" && echo mine > "$2/mine" || exit 8
    cd "$2/data"
    export HOME=$2 SIFON_STORE=$2/store
    for option in --ipc --fakeroot --writable-tmpfs; do
        "$3" exec $option -B "$2/data:/set" "$4" sh -c 'cat ~/mine /set/inner; pwd; id -u > /set/said' || echo failed
        cat "$2/data/said"
    done"#;

#[test]
fn a_home_and_a_store_that_root_may_not_enter_are_no_obstacle() {
    if !is_here(&["mke2fs", "fuse2fs", "fusermount3"]) {
        return;
    }
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    for machine in machines().iter().filter(|machine| !machine.is_root()) {
        let file = machine.directory().join("homes.img");
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext3", "-E", "root_owner=1000:1000"])
            .arg(&file)
            .arg("16M")
            .status();
        assert!(made.unwrap().success());
        std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
        let home = machine.own_directory("home");
        std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
        let shown = home.display();
        machine.cover(
            "/etc/passwd",
            &format!("root:x:0:0::/root:/bin/sh\nada:x:1000:1000::{shown}:/bin/sh\n"),
        );
        let mut command = machine.program("sh");
        command.args(["-c", FROM_THERE, "sh"]).args([&file, &home]);
        command.args([
            Path::new(env!("CARGO_BIN_EXE_sifon")),
            Path::new(&image.reference()),
        ]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let at_home = format!("mine\ninner\n{shown}/data\n");
        let expected = format!("{at_home}1000\n{at_home}0\n{at_home}1000\n");
        assert_eq!(said, expected, "{}", complaint(&output));
        machine.wait_for_all();
    }
}
