//! Any text as a table of mounts: those lines that are as proc(5) says.

use std::path::Path;

use sifon_mount::sys::mountinfo::{lies_in, parsed};

pub fn run(bytes: &[u8]) {
    let mounts = parsed(bytes);
    assert!(mounts.len() <= bytes.split(|&byte| byte == b'\n').count());
    for mount in mounts {
        let _ = mount.user();
        assert!(mount.target.as_os_str().len() <= bytes.len());
        assert!(lies_in(&mount.target, &mount.target));
        let _ = lies_in(Path::new("/a/b"), &mount.target);
    }
}
