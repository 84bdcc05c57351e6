//! The way into a system on which the original programs are installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::namespace::own_mounts;

/// Mounts what a program needs below `$ORACLE`, makes it the root directory (user namespaces are refused after a
/// mere chroot) with the current directory at `/host`, and becomes the program, as `$BECOME` says.
const ENTER: &str = include_str!("enter.sh");

/// The root directory of a system on which Apptainer is installed, as `SIFON_ORACLE` names it; says so if there is none.
pub fn root() -> Option<PathBuf> {
    let root = named(std::env::var_os("SIFON_ORACLE"));
    if root.is_none() {
        eprintln!("without Apptainer: SIFON_ORACLE names no root directory with it");
    }
    root
}

/// A variable that is empty names nothing.
fn named(variable: Option<OsString>) -> Option<PathBuf> {
    let root = variable.filter(|root| !root.is_empty())?;
    Some(PathBuf::from(root).canonicalize().unwrap())
}

/// A program, which is yet to be added with its arguments, in the system at `root`; `here` is its current directory.
pub fn inside(root: &Path, here: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(own_mounts(ENTER))
        .env("ORACLE", root)
        .current_dir(here);
    command
}

#[test]
fn an_empty_variable_names_no_original() {
    assert_eq!(named(None), None);
    assert_eq!(named(Some("".into())), None);
    assert_eq!(named(Some("/".into())), Some("/".into()));
}
