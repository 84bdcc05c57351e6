//! The way into a system on which the original programs are installed.

use std::path::Path;
use std::process::Command;

use crate::namespace::own_mounts;

/// Mounts what a program needs below `$ORACLE`, makes it the root directory (user namespaces are refused after a
/// mere chroot) with the current directory at `/host`, and becomes the program, as `$BECOME` says.
const ENTER: &str = include_str!("enter.sh");

/// A program, which is yet to be added with its arguments, in the system at `root`; `here` is its current directory.
pub fn inside(root: &Path, here: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(own_mounts(ENTER))
        .env("ORACLE", root)
        .current_dir(here);
    command
}
