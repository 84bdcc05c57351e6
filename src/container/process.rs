//! Becoming the program: its directory, its rights, its file, and then execve(2).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Access;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::environment::Variables;
use super::error::Error;
use super::namespaces::Privilege;

/// Enters the first of `directories` that can be entered, and gives it. A single one is a demand.
pub fn enter_directory(directories: &[PathBuf]) -> Result<PathBuf, Error> {
    let mut wanted: Option<(&PathBuf, io::Error)> = None;
    for directory in directories {
        match rustix::process::chdir(directory) {
            Ok(()) => {
                if let Some((wanted, error)) = wanted {
                    let (wanted, directory) = (wanted.display(), directory.display());
                    tracing::warn!(
                        "directory {wanted} in the container: {error}; starting in {directory}"
                    );
                }
                return Ok(directory.clone());
            }
            Err(err) => wanted = wanted.or(Some((directory, err.into()))),
        }
    }
    let (wanted, error) =
        wanted.unwrap_or_else(|| unreachable!("a plan has at least one directory to start in"));
    Err(Error::system(
        format!("directory {} in the container", wanted.display()),
        error,
    ))
}

/// Gives up what joining the namespaces needed. Root keeps its rights on the machine, and the one who is to be root in the
/// container those on the container.
pub fn drop_privileges(privilege: Privilege, is_root_inside: bool) -> Result<(), Error> {
    let failed = |err| Error::system("giving up privileges", err);
    if privilege == Privilege::Root {
        return Ok(());
    }
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    if is_root_inside {
        return Ok(());
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(failed)
}

/// Becomes the program: returns only if that fails. `words` are its name and arguments; a name
/// without a slash is searched for in the PATH of `environment`.
pub fn become_program(words: &[OsString], environment: Variables) -> Error {
    let Some((name, arguments)) = words.split_first() else {
        return Error::Refused("no program was named".into());
    };
    let path = environment
        .iter()
        .find(|(name, _)| name == b"PATH")
        .map(|(_, path)| path.as_slice());
    let program = match found(name, path.unwrap_or_default()) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let variables = environment
        .into_iter()
        .map(|(name, value)| (OsString::from_vec(name), OsString::from_vec(value)));
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(variables)
        .exec();
    Error::system(format!("exec of {}", program.display()), error)
}

/// Waits for what ends it: for a container in which other programs will be started. Nothing comes after that.
pub fn wait_for_a_signal() -> Error {
    let _ = rustix::thread::set_name(c"sifon-instance");
    loop {
        // Nothing is watched: it ends with the process.
        if let Err(err) = rustix::event::poll(&mut [], None)
            && err != rustix::io::Errno::INTR
        {
            return Error::system("waiting", err);
        }
    }
}

/// Where the program lies: as it is named, or in the first directory of `path` that has it. The
/// words of a failure are Singularity's, because scripts look for them.
fn found(name: &OsStr, path: &[u8]) -> Result<PathBuf, Error> {
    if name.as_bytes().contains(&b'/') {
        return match fs::metadata(name) {
            Ok(file) if is_executable(Path::new(name), &file) => Ok(name.into()),
            Ok(_) => Err(Error::Refused(format!(
                "exec {}: permission denied",
                name.display()
            ))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let name = name.display();
                Err(Error::Refused(format!(
                    "stat {name}: no such file or directory"
                )))
            }
            Err(err) => Err(Error::system(format!("stat {}", name.display()), err)),
        };
    }
    for directory in path.split(|&byte| byte == b':') {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        if fs::metadata(&candidate).is_ok_and(|file| is_executable(&candidate, &file)) {
            return Ok(candidate);
        }
    }
    Err(Error::Refused(format!(
        "{name:?}: executable file not found in $PATH"
    )))
}

fn is_executable(path: &Path, file: &fs::Metadata) -> bool {
    file.is_file()
        && file.permissions().mode() & 0o111 != 0
        && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_the_path_or_as_it_is_named() {
        assert_eq!(
            found(OsStr::new("sh"), b"/nonexistent:/bin").unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(
            found(OsStr::new("/bin/sh"), b"").unwrap(),
            Path::new("/bin/sh")
        );
        for (name, message) in [
            (
                "nonesuch",
                r#""nonesuch": executable file not found in $PATH"#,
            ),
            (
                "passwd-not-in-path",
                r#""passwd-not-in-path": executable file not found in $PATH"#,
            ),
            ("/etc/passwd", "exec /etc/passwd: permission denied"),
            ("/nonesuch", "stat /nonesuch: no such file or directory"),
            ("/etc", "exec /etc: permission denied"),
        ] {
            assert_eq!(
                found(OsStr::new(name), b"/bin:/etc")
                    .unwrap_err()
                    .to_string(),
                message
            );
        }
    }

    #[test]
    fn directories_and_plain_files_in_the_path_are_no_programs() {
        assert!(found(OsStr::new("passwd"), b"/etc").is_err());
        assert!(found(OsStr::new("etc"), b"/").is_err());
    }
}
