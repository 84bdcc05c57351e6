use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use backhand::{FilesystemReader, InnerNode};

use super::*;
use crate::pack::layout::BLOCK_BYTES;
use crate::pack::node::{PackKind, PackNode};
use crate::pack::sample::Sample;

mod others;

/// Where the squashfs begins, as in a SIF.
const AT: u64 = 8192;

fn packed(source: &Sample, compression: Compression) -> (tempfile::NamedTempFile, Written) {
    try_packed(source, compression).unwrap()
}

fn try_packed(
    source: &Sample,
    compression: Compression,
) -> Result<(tempfile::NamedTempFile, Written), SquashfsError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let settings = Settings {
        compression,
        created: 1_700_000_000,
        progress: &|_| {},
    };
    let contents = Contents::new(source, Vec::new(), Timestamp::default());
    let written = write(&contents, file.as_file(), AT, settings)?;
    file.as_file().set_len(AT + written.len).unwrap();
    Ok((file, written))
}

/// Path, mode with type, owner, group, mtime; then target, device number or content.
type Seen = (Vec<u8>, u16, u32, u32, u32, Vec<u8>);

fn read_back(file: &File) -> Vec<Seen> {
    let file = BufReader::new(file.try_clone().unwrap());
    let reader = FilesystemReader::from_reader_with_offset(file, AT).unwrap();
    let mut nodes: Vec<Seen> = reader
        .files()
        .map(|node| {
            let what = match &node.inner {
                InnerNode::File(file) => {
                    let mut bytes = Vec::new();
                    reader.file(file).reader().read_to_end(&mut bytes).unwrap();
                    bytes
                }
                InnerNode::Symlink(link) => link.link.as_os_str().as_bytes().to_vec(),
                InnerNode::CharacterDevice(device) => device.device_number.to_le_bytes().to_vec(),
                InnerNode::BlockDevice(device) => device.device_number.to_le_bytes().to_vec(),
                InnerNode::Dir(_) => b"/".to_vec(),
                InnerNode::NamedPipe => b"|".to_vec(),
                InnerNode::Socket => b"=".to_vec(),
            };
            let path = node.fullpath.as_os_str().as_bytes()[1..].to_vec();
            let header = node.header;
            (
                path,
                header.permissions,
                header.uid,
                header.gid,
                header.mtime,
                what,
            )
        })
        .collect();
    nodes.sort_by(|one, other| crate::pack::path::walk_order(&one.0, &other.0));
    nodes
}

fn expected(source: &Sample) -> Vec<Seen> {
    let seen = |node: &PackNode| {
        let what = match &node.kind {
            PackKind::Directory => b"/".to_vec(),
            PackKind::Regular {
                content: Content::InImage(file),
                ..
            } => source.contents[*file as usize].clone(),
            PackKind::Regular {
                content: Content::Here(bytes),
                ..
            } => bytes.to_vec(),
            PackKind::Symlink { target } => target.clone(),
            PackKind::CharDevice { major, minor } | PackKind::BlockDevice { major, minor } => {
                device(*major, *minor).unwrap().to_le_bytes().to_vec()
            }
            PackKind::Fifo => b"|".to_vec(),
            PackKind::Socket => b"=".to_vec(),
        };
        let mtime = clamped(node.mtime);
        (
            node.path.clone(),
            node.mode,
            node.uid,
            node.gid,
            mtime,
            what,
        )
    };
    source.nodes.iter().map(seen).collect()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn every_kind() -> Sample {
    let mut sparse = vec![0; 3 * BLOCK_BYTES];
    sparse[2 * BLOCK_BYTES] = 1;
    let mut many = Sample::new().directory("many");
    for index in 0..600 {
        many = many.file(format!("many/{index:04}"), format!("{index}").as_bytes());
    }
    many.directory("d")
        .directory("d/e")
        .directory("d-")
        .file("d/e/empty", b"")
        .file("d/e/small", b"small")
        .file("d/block", &noise(BLOCK_BYTES, 1))
        .file("d/block+1", &noise(BLOCK_BYTES + 1, 2))
        .file("d/block-1", &noise(BLOCK_BYTES - 1, 3))
        .file("d/large", &noise(5 * BLOCK_BYTES + 77, 4))
        .file("d/large-again", &noise(5 * BLOCK_BYTES + 77, 4))
        .file(
            "d/text",
            "the same line over and over\n".repeat(20_000).as_bytes(),
        )
        .file("sparse", &sparse)
        .file(b"bytes\xff\xfe", b"no utf-8")
        .file("x".repeat(255), b"long name")
        .link("link", "d/e/small")
        .link("long-link", "y".repeat(255))
        .link(b"link\xff", b"\xfe")
        .with("null", PackKind::CharDevice { major: 1, minor: 3 })
        .with(
            "big",
            PackKind::BlockDevice {
                major: 300,
                minor: 70_000,
            },
        )
        .with("fifo", PackKind::Fifo)
        .with("socket", PackKind::Socket)
        .but("d", |node| node.mode = 0o1777)
        .but("d/e/small", |node| node.mode = 0o4755)
        .but("d/text", |node| {
            (node.uid, node.gid) = (70_000, 4_000_000_000);
            node.mtime.secs = 1_234_567_890;
        })
        .but("fifo", |node| node.mtime.secs = -5)
        .but("socket", |node| node.mtime.secs = 1 << 33)
        .but("", |node| {
            (node.mode, node.uid) = (0o750, 70_000);
        })
}

#[test]
fn every_kind_of_node_reads_back_as_it_was() {
    let source = every_kind();
    for compression in ["zstd", "zstd:9", "gzip", "gzip:9", "xz", "lz4", "lz4:9"] {
        let (file, written) = packed(&source, compression.parse().unwrap());
        assert_eq!(written.lost, Lost::default());
        let (read, expected) = (read_back(file.as_file()), expected(&source));
        assert_eq!(read.len(), expected.len());
        for (read, expected) in read.iter().zip(&expected) {
            assert!(
                read == expected,
                "{:?}",
                String::from_utf8_lossy(&expected.0)
            );
        }
    }
}

/// squashfs-tools, where they are installed.
#[test]
fn unsquashfs_finds_every_node_as_it_was() {
    if Command::new("unsquashfs").arg("-version").output().is_err() {
        eprintln!("skipped: unsquashfs is not installed");
        return;
    }
    let source = every_kind();
    let (file, _) = packed(&source, Compression::default());
    let tool = |args: &[&OsStr]| {
        let mut command = Command::new("unsquashfs");
        command
            .args(["-o", &AT.to_string()])
            .args(args)
            .env("TZ", "UTC");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let path = file.path().as_os_str();
    let listing = tool(&["-lln".as_ref(), "-d".as_ref(), "".as_ref(), path]);
    let lines: HashSet<&[u8]> = listing.split(|&byte| byte == b'\n').collect();
    for line in [
        "drwxrwxrwt 0/0               125 1970-01-01 00:00 /d",
        "-rwsr-xr-x 0/0                 5 1970-01-01 00:00 /d/e/small",
        "-rw-r--r-- 70000/4000000000            560000 2009-02-13 23:31 /d/text",
        "lrw-r--r-- 0/0                 9 1970-01-01 00:00 /link -> d/e/small",
        "crw-r--r-- 0/0             1,  3 1970-01-01 00:00 /null",
        "prw-r--r-- 0/0                 0 1970-01-01 00:00 /fifo",
        "srw-r--r-- 0/0                 0 2106-02-07 06:28 /socket",
    ] {
        let fields = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let found = lines.iter().any(|seen| {
            // The size of a directory is the tool's own business.
            let mut seen = fields(&String::from_utf8_lossy(seen));
            let mut line = fields(line);
            if line[0].starts_with('d') && seen.len() == line.len() {
                (seen[2], line[2]) = Default::default();
            }
            seen == line
        });
        assert!(found, "{line}\n{}", String::from_utf8_lossy(&listing));
    }
    for node in &source.nodes {
        if let PackKind::Regular {
            content: Content::InImage(number),
            ..
        } = &node.kind
            && !node.path.starts_with(b"many")
        {
            let bytes = tool(&["-cat".as_ref(), path, OsStr::from_bytes(&node.path)]);
            assert!(
                bytes == source.contents[*number as usize],
                "{:?}",
                node.path
            );
        }
    }
}

#[test]
fn the_same_image_gives_the_same_bytes_on_the_same_length() {
    let bytes = || {
        let (file, written) = packed(&every_kind(), Compression::default());
        assert_eq!(written.len % 4096, 0);
        std::fs::read(file.path()).unwrap()
    };
    assert!(bytes() == bytes());
}

#[test]
fn what_squashfs_cannot_keep_is_counted() {
    let far = PackKind::CharDevice {
        major: 1 << 12,
        minor: 0,
    };
    let source = Sample::new()
        .file("a", b"a")
        .link("far", "z".repeat(4096))
        .with("device", far)
        .but("a", |node| {
            let access = b"system.posix_acl_access".to_vec();
            node.xattrs = vec![(access, b"x".to_vec()), (b"user.a".to_vec(), Vec::new())];
        });
    let (file, written) = packed(&source, Compression::default());
    let lost = Lost {
        xattrs: 1,
        symlinks: 1,
        devices: 1,
    };
    assert_eq!(written.lost, lost);
    assert_eq!(lost.warnings().len(), 3);
    let names: Vec<_> = read_back(file.as_file())
        .into_iter()
        .map(|seen| seen.0)
        .collect();
    assert_eq!(names, [&b""[..], b"a"]);
}

#[test]
fn files_with_the_same_bytes_are_stored_once() {
    let twice = Sample::new()
        .file("a", &noise(1 << 20, 1))
        .file("b", &noise(1 << 20, 1));
    let (_, written) = packed(&twice, Compression::default());
    assert!(written.len < 3 << 19, "{}", written.len);
}

#[test]
fn tails_that_are_there_already_share_their_place() {
    let mut source = Sample::new().file("0", &noise(BLOCK_BYTES + 70_000, 1));
    for index in 1..40 {
        source = source.file(format!("{index}"), &noise(BLOCK_BYTES + 70_000, 1));
    }
    let (file, written) = packed(&source, Compression::default());
    assert!(written.len < 2 * BLOCK_BYTES as u64, "{}", written.len);
    assert!(read_back(file.as_file()) == expected(&source));
}

#[test]
fn ids_beyond_what_a_superblock_counts_are_an_error() {
    let mut source = Sample::new();
    for id in 0..33_000u32 {
        source = with_owner(source, id);
    }
    let err = try_packed(&source, Compression::default()).unwrap_err();
    assert!(
        err.to_string()
            .ends_with("more than 65,533 owners and groups")
    );
}

fn with_owner(mut source: Sample, id: u32) -> Sample {
    source.nodes.push(PackNode {
        path: format!("{id:05}").into(),
        kind: PackKind::Fifo,
        uid: 2 * id,
        gid: 2 * id + 1,
        ..source.nodes[0].clone()
    });
    source
}

#[test]
fn a_content_that_cannot_be_read_names_its_file() {
    let missing = PackKind::Regular {
        size: 5,
        content: Content::InImage(99),
    };
    let short = PackKind::Regular {
        size: 5,
        content: Content::Here(b"1234".as_slice().into()),
    };
    for kind in [missing, short] {
        let source = Sample::new().directory("d").with("d/f", kind);
        let err = try_packed(&source, Compression::default()).unwrap_err();
        assert_eq!(err.to_string(), "image, /d/f: its content cannot be read");
    }
}

#[test]
fn what_the_format_has_no_room_for_is_an_error() {
    let content = Content::InImage(0);
    let source = Sample::new().with(
        "huge",
        PackKind::Regular {
            size: (1 << 44) + 1,
            content,
        },
    );
    let err = try_packed(&source, Compression::default()).unwrap_err();
    assert_eq!(err.to_string(), "image, /huge: larger than 16 TiB");
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let source = every_kind();
    let contents = Contents::new(&source, Vec::new(), Timestamp::default());
    let settings = Settings {
        compression: Compression::default(),
        created: 0,
        progress: &|_| {},
    };
    let err = write(&contents, &full, AT, settings).unwrap_err();
    assert!(matches!(&err, SquashfsError::Write(err) if err.kind() == io::ErrorKind::StorageFull));
}
