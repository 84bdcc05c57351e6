//! File systems of the ext family, in files, for what programs write over an image: made, and made usable.
//!
//! An overlay needs two directories in it that belong to the user. A user who mounts such a file cannot make them, because its root
//! directory is root's; programs of e2fsprogs write them into the file while it is not mounted.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sifon_mount::sys::answer::answer_of;

use super::error::Error;
use super::subids::found;

/// What an overlay needs: what was written, and a place for the kernel's own use.
pub const DIRECTORIES: [&str; 2] = ["upper", "work"];

/// Longest that a program may take that looks at a file system, or changes some of its directories.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest that making a file system may take: on a slow network its tables are some hundred megabytes for each terabyte.
const CREATION_LIMIT: Duration = Duration::from_secs(3600);

const HINT: &str = "install e2fsprogs, which has mke2fs and debugfs, or make the file with `apptainer overlay create`";

/// Where such a file system is.
#[derive(Clone, Debug)]
pub struct Ext {
    file: PathBuf,
    at: u64,
}

impl Ext {
    /// The one that begins at the byte `at` of `file`. Programs of e2fsprogs take what follows a question mark in a name for options,
    /// and would open another file.
    pub fn new(file: PathBuf, at: u64) -> Result<Self, Error> {
        if file.as_os_str().as_bytes().contains(&b'?') {
            let problem =
                "a name or directory has a question mark in it, which e2fsprogs does not take";
            return Err(Error::Refused(format!("{}: {problem}", file.display())));
        }
        Ok(Self { file, at })
    }

    /// The file that it is in.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// How fuse2fs and mke2fs are told where it begins: an option more. Old ones do not know it.
    pub(super) fn option(&self) -> String {
        match self.at {
            0 => String::new(),
            at => format!(",offset={at}"),
        }
    }

    /// How debugfs is told where it is.
    fn place(&self) -> OsString {
        let mut place = self.file.clone().into_os_string();
        if self.at > 0 {
            place.push(format!("?offset={}", self.at));
        }
        place
    }
}

impl fmt::Display for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.display().fmt(f)
    }
}

/// Makes a file system of `bytes`, a multiple of 1024, at `place`, with what lies in the directory `from`. All of it will belong to the
/// numbers `owner`, user and group.
pub fn create(place: &Ext, bytes: u64, from: &Path, owner: (u32, u32)) -> Result<(), Error> {
    let failed = |source| failure(place, "no file system could be made", source);
    let program = found("mke2fs").ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let (uid, gid) = owner;
    let mut command = Command::new(program);
    command
        .args(["-q", "-F", "-t", "ext3", "-E"])
        .arg(format!(
            "root_owner={uid}:{gid},nodiscard{}",
            place.option()
        ))
        .arg("-d")
        .args([from, &place.file])
        .arg(format!("{}k", bytes / 1024));
    let answer = answer_of(&mut command, b"", Instant::now() + CREATION_LIMIT);
    match answer.map_err(failed)? {
        (status, _) if status.success() => Ok(()),
        (status, _) => Err(failed(io::Error::other(format!("mke2fs: {status}")))),
    }
}

/// Sees to it that an overlay's directories are in the file system at `place`, which is mounted nowhere. Those that are missing are made,
/// for user and group `owner`. Where debugfs is not installed all stays as it is.
pub fn give_directories(place: &Ext, owner: (u32, u32)) -> Result<(), Error> {
    let Some(debugfs) = found("debugfs") else {
        return Ok(());
    };
    let missing = || -> Result<Vec<&str>, Error> {
        let mut command = Command::new(&debugfs);
        command.args(["-R", "ls -p /"]).arg(place.place());
        let (_, listed) = answer_of(&mut command, b"", Instant::now() + LIMIT)
            .map_err(|err| failure(place, "its directories cannot be listed", err))?;
        let is_missing = |name: &&str| !is_listed(&listed, name);
        Ok(DIRECTORIES.into_iter().filter(is_missing).collect())
    };
    let wanted = missing()?;
    if wanted.is_empty() {
        return Ok(());
    }
    let script: Vec<_> = wanted
        .iter()
        .map(|name| format!("mkdir /{name}\n"))
        .collect();
    written(place, script.concat().as_bytes())?;
    own(place, &wanted, owner)?;
    match missing()?.first() {
        None => Ok(()),
        Some(name) => {
            let problem = format!("the directory {name} cannot be made");
            let source = io::Error::other("debugfs has not written it");
            Err(failure(place, &problem, source))
        }
    }
}

/// Gives the directories at `paths`, in the file system at `place`, to user and group `owner`. No path has a control character in it.
pub fn own(place: &Ext, paths: &[impl AsRef<Path>], owner: (u32, u32)) -> Result<(), Error> {
    let mut script = Vec::new();
    for path in paths {
        for (field, number) in [("uid", owner.0), ("gid", owner.1)] {
            script.extend_from_slice(b"set_inode_field \"/");
            for &byte in path.as_ref().as_os_str().as_bytes() {
                // Doubled, a quote stands for itself.
                script.extend(std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
            }
            script.extend_from_slice(format!("\" {field} {number}\n").as_bytes());
        }
    }
    written(place, &script)
}

/// Has debugfs do what `script` says. It does not tell whether it could.
fn written(place: &Ext, script: &[u8]) -> Result<(), Error> {
    let failed = |source| failure(place, "its directories cannot be written", source);
    let debugfs = found("debugfs").ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let mut command = Command::new(debugfs);
    command.args(["-w", "-f", "-"]).arg(place.place());
    answer_of(&mut command, script, Instant::now() + LIMIT)
        .map(drop)
        .map_err(failed)
}

/// Whether `name` is in what debugfs lists: `/inode/mode/uid/gid/name/size/` in each line.
fn is_listed(listed: &[u8], name: &str) -> bool {
    listed.split(|&byte| byte == b'\n').any(|line| {
        let mut fields = line.split(|&byte| byte == b'/');
        fields.nth(5) == Some(name.as_bytes())
    })
}

fn failure(place: &Ext, problem: &str, source: io::Error) -> Error {
    Error::System {
        action: format!("ext3 file system in {place}: {problem}"),
        source,
        hint: Some(HINT.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_listing_of_debugfs_are_found_whole() {
        let listed =
            b"/2/040755/0/0/./\n/2/040755/0/0/../\n/11/040700/0/0/lost+found/\n/12/040755/1000/1000/upper/\n";
        assert!(is_listed(listed, "upper"));
        assert!(!is_listed(listed, "work") && !is_listed(listed, "up"));
        assert!(!is_listed(b"", "upper"));
    }
}
