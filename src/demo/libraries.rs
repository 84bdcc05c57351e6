//! What a program needs beside itself: its interpreter and the libraries that this would load.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sifon_mount::sys::answer::answer_of;

/// How long the interpreter may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why that cannot be said.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Not a file that this machine runs.
    #[error("{}: not an ELF program of this machine", .0.display())]
    NotElf(PathBuf),
    /// The program cannot be read.
    #[error("{}: cannot be read", program.display())]
    Unreadable {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The interpreter does not say.
    #[error("{}: does not list the libraries of {}: {problem}", interpreter.display(), program.display())]
    Interpreter {
        /// The dynamic loader.
        interpreter: PathBuf,
        /// The program.
        program: PathBuf,
        /// What it said instead, shortened.
        problem: String,
    },
}

/// The interpreter of `program` and its libraries, where the interpreter finds them here; nothing for a
/// program that was linked statically. The interpreter itself is asked, so that its search path, its
/// cache and the environment count as they do when it runs the program.
pub fn needed_by(program: &Path) -> Result<Vec<PathBuf>, LibraryError> {
    let interpreter = match interpreter(program) {
        Ok(Some(interpreter)) => interpreter,
        Ok(None) => return Ok(Vec::new()),
        Err(err) if err.kind() == io::ErrorKind::InvalidData => {
            return Err(LibraryError::NotElf(program.to_owned()));
        }
        Err(source) => {
            let program = program.to_owned();
            return Err(LibraryError::Unreadable { program, source });
        }
    };
    let failed = |problem: String| LibraryError::Interpreter {
        interpreter: interpreter.clone(),
        program: program.to_owned(),
        problem,
    };
    let mut list = Command::new(&interpreter);
    list.arg("--list").arg(program);
    let (status, said) = answer_of(&mut list, b"", Instant::now() + PATIENCE)
        .map_err(|err| failed(err.to_string()))?;
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    let mut needed = listed(&said).map_err(failed)?;
    if !needed.contains(&interpreter) {
        needed.push(interpreter.clone());
    }
    Ok(needed)
}

/// The paths in lines like `libc.so.6 => /lib/libc.so.6 (0x00007f…)` and `/lib/ld.so (0x00007f…)`,
/// which glibc's and musl's loaders print.
fn listed(said: &[u8]) -> Result<Vec<PathBuf>, String> {
    let text = String::from_utf8_lossy(said);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(missing.trim().to_owned());
    }
    let path = |line: &str| {
        let (found, _address) = line.trim().rsplit_once(" (0x")?;
        let path = found.rsplit_once(" => ").map_or(found, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    let mut paths: Vec<_> = text.lines().filter_map(path).collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// Longest path that a kernel opens.
const PATH_BYTES: usize = 4096;

/// The program that the kernel starts in place of `program` (System V ABI, "Program Header", `PT_INTERP`).
/// `InvalidData` if it is not a 64-bit ELF file of this machine's byte order.
fn interpreter(program: &Path) -> io::Result<Option<PathBuf>> {
    let file = File::open(program)?;
    let mut header = [0; 64];
    match file.read_exact_at(&mut header, 0) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Err(not_elf()),
        read => read?,
    }
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if header[..6] != [0x7f, b'E', b'L', b'F', 2, order] {
        return Err(not_elf());
    }
    let (at, count) = (u64_at(&header, 32), u16_at(&header, 56));
    for index in 0..u64::from(count) {
        let mut segment = [0; 56];
        let at = at.checked_add(56 * index).ok_or_else(not_elf)?;
        file.read_exact_at(&mut segment, at)?;
        if u32_at(&segment, 0) == PT_INTERP {
            let mut path = vec![0; (u64_at(&segment, 32) as usize).min(PATH_BYTES)];
            file.read_exact_at(&mut path, u64_at(&segment, 8))?;
            path.truncate(
                path.iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(path.len()),
            );
            return Ok(Some(std::ffi::OsStr::from_bytes(&path).into()));
        }
    }
    Ok(None)
}

const PT_INTERP: u32 = 3;

fn not_elf() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_files_that_are_there() {
        let program = std::env::current_exe().unwrap();
        let needed = needed_by(&program).unwrap();
        assert!(needed.iter().all(|path| path.is_file()), "{needed:?}");
        if let Some(interpreter) = interpreter(&program).unwrap() {
            assert!(needed.contains(&interpreter));
        }
    }

    #[test]
    fn what_loaders_print_is_understood() {
        let glibc = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                     \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                     \tlibx.so => /opt/with space/libx.so (0x00007f)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
            "/opt/with space/libx.so",
        ];
        assert_eq!(
            listed(glibc.as_bytes()),
            Ok(paths.map(PathBuf::from).into())
        );
        let musl = "\t/lib/ld-musl-x86_64.so.1 (0x7f)\n\
                    \tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n";
        let path = PathBuf::from("/lib/ld-musl-x86_64.so.1");
        assert_eq!(listed(musl.as_bytes()), Ok(vec![path]));
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let text = "\tlibx.so.1 => not found\n";
        assert_eq!(
            listed(text.as_bytes()),
            Err("libx.so.1 => not found".into())
        );
    }

    #[test]
    fn a_script_is_no_program() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        for text in ["#!/bin/sh\n", &"x".repeat(100)] {
            std::fs::write(&script, text).unwrap();
            assert!(matches!(needed_by(&script), Err(LibraryError::NotElf(_))));
        }
        let missing = directory.path().join("missing");
        assert!(matches!(
            needed_by(&missing),
            Err(LibraryError::Unreadable { .. })
        ));
    }
}
