//! The squashfs read back by `backhand`, an implementation that is not ours, and held against the image.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::thread;

use backhand::{FilesystemReader, InnerNode, Node, SquashfsFileReader};
use sifon_mount::layer::entry::shown;

use super::contents::Contents;
use super::node::{PackKind, PackNode};
use super::path::walk_order;
use super::squashfs::{clamped, device};

/// Why the file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Something is not what it was.
    #[error("check, /{}: {problem}", shown(path))]
    Different {
        /// The file.
        path: Vec<u8>,
        /// What is not the same.
        problem: &'static str,
    },
    /// It cannot be read back.
    #[error("check: the squashfs cannot be read back: {0}")]
    Unreadable(String),
    /// The image cannot be read again.
    #[error("check: the image cannot be read again")]
    Image(#[from] io::Error),
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Names whose kind, mode, owner, time and content are the same.
    pub names: u64,
    /// Why nothing was compared, where the other implementation cannot read such a file system.
    pub unchecked: Option<&'static str>,
}

/// It panics on longer ones.
const SYMLINK_BYTES_LIMIT: usize = 255;
/// Its time grows with the cube of the depth, its stack with the depth.
const DEPTH_LIMIT: usize = 256;
/// Room for that depth.
const STACK_BYTES: usize = 64 << 20;

/// Compares every name of `contents` with the squashfs at byte `at` of `file`.
pub fn check(contents: &Contents<'_>, file: &File, at: u64) -> Result<Checked, CheckError> {
    if let Some(unchecked) = unreadable(contents)? {
        return Ok(Checked {
            names: 0,
            unchecked: Some(unchecked),
        });
    }
    thread::scope(|scope| {
        let checking = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || compared(contents, file, at))?;
        let given_up = |_| Err(CheckError::Unreadable("the reader gave up".into()));
        checking.join().unwrap_or_else(given_up)
    })
}

/// What the other implementation cannot read.
fn unreadable(contents: &Contents<'_>) -> io::Result<Option<&'static str>> {
    for node in contents.nodes() {
        let node = node?;
        match node.kind {
            PackKind::Symlink { target } if target.len() > SYMLINK_BYTES_LIMIT => {
                return Ok(Some("a symbolic link to more than 255 bytes"));
            }
            _ if node.path.split(|&byte| byte == b'/').count() > DEPTH_LIMIT => {
                return Ok(Some("more than 256 levels of directories"));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn compared(contents: &Contents<'_>, file: &File, at: u64) -> Result<Checked, CheckError> {
    let refused = |err: backhand::BackhandError| CheckError::Unreadable(err.to_string());
    let reader = BufReader::new(file.try_clone()?);
    let reader = FilesystemReader::from_reader_with_offset(reader, at).map_err(refused)?;
    let mut found: Vec<_> = reader.files().collect();
    let path = |node: &Node<SquashfsFileReader>| {
        let path = node.fullpath.as_os_str().as_bytes();
        path.strip_prefix(b"/").unwrap_or(path).to_vec()
    };
    found.sort_by(|one, other| walk_order(&path(one), &path(other)));
    let mut found = found.into_iter();
    let mut names = 0;
    for node in contents.nodes() {
        let node = node?;
        let different = |problem| CheckError::Different {
            path: node.path.clone(),
            problem,
        };
        if is_left_out(&node) {
            continue;
        }
        let Some(other) = found.next().filter(|other| path(other) == node.path) else {
            return Err(different("is missing, or something stands before it"));
        };
        attributes(&node, other).map_err(different)?;
        if let (PackKind::Regular { .. }, InnerNode::File(file)) = (&node.kind, &other.inner) {
            let mut bytes = reader.file(file).reader();
            if !same(contents, &node, &mut bytes)? {
                return Err(different("its content is not the image's"));
            }
        }
        names += 1;
    }
    match found.next() {
        Some(other) => Err(CheckError::Different {
            path: path(other),
            problem: "is not in the image",
        }),
        None => Ok(Checked {
            names,
            unchecked: None,
        }),
    }
}

/// Whether squashfs has no room for it, which is told elsewhere.
fn is_left_out(node: &PackNode) -> bool {
    match &node.kind {
        PackKind::Symlink { target } => target.is_empty(),
        PackKind::CharDevice { major, minor } | PackKind::BlockDevice { major, minor } => {
            device(*major, *minor).is_none()
        }
        _ => false,
    }
}

/// Compares all but contents.
fn attributes(node: &PackNode, other: &Node<SquashfsFileReader>) -> Result<(), &'static str> {
    let header = other.header;
    if header.permissions & 0o7777 != node.mode & 0o7777 {
        return Err("its mode is not the image's");
    }
    if (header.uid, header.gid) != (node.uid, node.gid) {
        return Err("its owner is not the image's");
    }
    if header.mtime != clamped(node.mtime) {
        return Err("its time is not the image's");
    }
    let is_same = match (&node.kind, &other.inner) {
        (PackKind::Directory, InnerNode::Dir(_))
        | (PackKind::Regular { .. }, InnerNode::File(_))
        | (PackKind::Fifo, InnerNode::NamedPipe)
        | (PackKind::Socket, InnerNode::Socket) => true,
        (PackKind::Symlink { target }, InnerNode::Symlink(link)) => {
            link.link.as_os_str().as_bytes() == target
        }
        (PackKind::CharDevice { major, minor }, InnerNode::CharacterDevice(found)) => {
            device(*major, *minor) == Some(found.device_number)
        }
        (PackKind::BlockDevice { major, minor }, InnerNode::BlockDevice(found)) => {
            device(*major, *minor) == Some(found.device_number)
        }
        _ => false,
    };
    match is_same {
        true => Ok(()),
        false => Err("it is something else than in the image"),
    }
}

/// Whether `other` gives the content of `node` and nothing more.
fn same(contents: &Contents<'_>, node: &PackNode, other: &mut dyn Read) -> io::Result<bool> {
    let PackKind::Regular { size, content } = &node.kind else {
        return Ok(true);
    };
    let mut ours = vec![0; 1 << 20];
    let mut theirs = vec![0; 1 << 20];
    let mut at = 0;
    while at < *size {
        let wanted = (size - at).min(ours.len() as u64) as usize;
        let len = contents.read(content, at, &mut ours[..wanted])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match other.read_exact(&mut theirs[..len]) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        if ours[..len] != theirs[..len] {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(other.read(&mut theirs[..1])? == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use sifon_mount::layer::entry::Timestamp;

    use super::super::sample::Sample;
    use super::super::squashfs::{Compression, Settings, write};
    use super::*;

    fn sample() -> Sample {
        Sample::new()
            .directory("d")
            .file("d/f", &vec![7; 300_000])
            .file("d/g", b"small")
            .link("l", "d/f")
            .with("c", PackKind::CharDevice { major: 1, minor: 3 })
            .with("p", PackKind::Fifo)
    }

    fn packed(source: &Sample, compression: Compression) -> File {
        let file = tempfile::tempfile().unwrap();
        let contents = Contents::new(source, Vec::new(), Timestamp::default());
        let settings = Settings {
            compression,
            created: 0,
            progress: &|_| {},
        };
        write(&contents, &file, 4096, settings).unwrap();
        file
    }

    fn checked(source: &Sample, file: &File) -> Result<Checked, CheckError> {
        let contents = Contents::new(source, Vec::new(), Timestamp::default());
        check(&contents, file, 4096)
    }

    #[test]
    fn what_was_packed_is_found_the_same() {
        for compression in ["zstd", "gzip", "xz", "lz4", "none"] {
            let file = packed(&sample(), compression.parse().unwrap());
            assert_eq!(checked(&sample(), &file).unwrap().names, 7, "{compression}");
        }
    }

    #[test]
    fn every_difference_is_found() {
        let file = packed(&sample(), Compression::None);
        for changed in [
            sample().but("d/f", |node| node.mode = 0o600),
            sample().but("d/g", |node| node.uid = 5),
            sample().but("p", |node| node.mtime.secs = 5),
            sample().file("d/h", b""),
            sample().but("l", |node| {
                node.kind = PackKind::Symlink {
                    target: b"d/g".to_vec(),
                };
            }),
            sample().but("c", |node| {
                node.kind = PackKind::BlockDevice { major: 1, minor: 3 };
            }),
        ] {
            assert!(checked(&changed, &file).is_err());
        }
        let mut fewer = sample();
        fewer.nodes.pop();
        let err = checked(&fewer, &file).unwrap_err();
        assert_eq!(err.to_string(), "check, /p: is not in the image");
        // The first block of the large file begins behind the superblock.
        file.write_all_at(b"x", 4096 + 96 + 50).unwrap();
        let err = checked(&sample(), &file).unwrap_err();
        assert_eq!(
            err.to_string(),
            "check, /d/f: its content is not the image's"
        );
    }

    #[test]
    fn what_the_other_cannot_read_is_said() {
        let source = sample().link("long", "x".repeat(256));
        let file = packed(&source, Compression::default());
        let checked = checked(&source, &file).unwrap();
        assert_eq!((checked.names, checked.unchecked.is_some()), (0, true));
    }
}
