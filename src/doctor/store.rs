//! Whether a directory can be a store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use sifon_mount::sys::mountinfo;

use super::Finding;
use crate::output::bytes;

/// Below this much free space an image of usual size does not fit.
const ROOM_BYTES: u64 = 2_000_000_000;

/// Looks at the store in `directory`, which need not be there yet.
pub fn store(directory: &Path) -> Finding {
    const SUBJECT: &str = "store";
    let shown = directory.display();
    let advice = "name a directory of your own with room in it: --store DIR or SIFON_STORE; where nothing can be \
                  written images are read without being kept";
    let (kind, free) = (file_system(directory), free_bytes(directory));
    let kind = kind.as_deref().unwrap_or("an unknown file system");
    if let Err(err) = written_and_renamed(directory) {
        return Finding::fails(SUBJECT, format!("{shown} ({kind}): {err}"), advice);
    }
    let found = |free: &str| {
        format!(
            "{shown} ({kind}): files can be written and renamed, which is all it needs (no locks){free}"
        )
    };
    match free {
        Some(free) if free < ROOM_BYTES => Finding::limited(
            SUBJECT,
            found(&format!("; only {} are free", bytes(free))),
            "an image that does not fit is read without being kept: make room (sifon cache clean), or name another \
             directory (--store DIR or SIFON_STORE)",
        ),
        Some(free) => Finding::works(SUBJECT, found(&format!("; {} are free", bytes(free)))),
        None => Finding::works(SUBJECT, found("")),
    }
}

/// What a store does with each file that it keeps: writes it under another name, and renames it over an older one.
fn written_and_renamed(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let scratch = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempdir_in(directory)?;
    let (first, last) = (scratch.path().join("first"), scratch.path().join("last"));
    fs::write(&last, "older")?;
    let mut file = File::create(&first)?;
    file.write_all(b"newer")?;
    file.sync_all()?;
    fs::rename(&first, &last)?;
    match fs::read(&last)?.as_slice() {
        b"newer" => scratch.close(),
        _ => Err(io::Error::other(
            "a renamed file has the older one's content",
        )),
    }
}

/// The kind of file system that a path lies on, by the longest mount above it.
fn file_system(path: &Path) -> Option<String> {
    let path = existing(path)?;
    let mounts = mountinfo::mounts().ok()?;
    let above = mounts
        .into_iter()
        .filter(|mount| path.starts_with(&mount.target));
    let nearest = above.max_by_key(|mount| mount.target.as_os_str().len())?;
    Some(nearest.file_system)
}

fn free_bytes(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(existing(path)?).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// The part of a path that is there, without symbolic links.
fn existing(path: &Path) -> Option<std::path::PathBuf> {
    path.ancestors()
        .find_map(|ancestor| ancestor.canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_store_that_can_be_written_to_works_and_is_left_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let finding = store(&scratch.path().join("a/b"));
        assert_ne!(finding.state, State::Fails, "{finding:?}");
        assert!(
            fs::read_dir(scratch.path().join("a/b"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn a_store_that_cannot_be_made_says_where() {
        let finding = store(Path::new("/proc/self/store"));
        assert_eq!(finding.state, State::Fails);
        assert!(
            finding.found.starts_with("/proc/self/store (proc): "),
            "{}",
            finding.found
        );
    }
}
