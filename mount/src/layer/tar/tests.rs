//! Archives made here and by GNU tar, whole and damaged.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::layer::entry::Timestamp;

/// Gives at most `step` bytes at once.
struct Stepwise<'a>(&'a [u8], usize);

impl Read for Stepwise<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.1);
        self.0.read(&mut into[..len])
    }
}

type Members = Vec<(Entry, Vec<u8>)>;

/// All members with their content, holes filled in, and the stream put together again.
fn read_stepwise(archive: &[u8], step: usize) -> Result<(Members, Vec<u8>), TarError> {
    let mut reader = TarReader::new(Stepwise(archive, step));
    let (mut members, mut rebuilt) = (Vec::new(), Vec::new());
    while let Some(entry) = reader.next_entry()? {
        rebuilt.extend(reader.take_literal());
        let mut content = Vec::new();
        while let Some(stretch) = reader.next_content()? {
            match stretch {
                Content::Data(data) => {
                    assert!(!data.is_empty());
                    content.extend_from_slice(data);
                    rebuilt.extend_from_slice(data);
                }
                Content::Hole(len) => {
                    assert!(len > 0);
                    content.resize(content.len() + len as usize, 0);
                }
            }
        }
        rebuilt.extend(reader.take_literal());
        if let Kind::Regular { size } = entry.kind {
            assert_eq!(size, content.len() as u64);
        }
        members.push((entry, content));
    }
    rebuilt.extend(reader.take_literal());
    Ok((members, rebuilt))
}

fn read(archive: &[u8]) -> Result<Members, TarError> {
    let (members, rebuilt) = read_stepwise(archive, usize::MAX)?;
    assert!(rebuilt == archive, "the stream is not what it was");
    Ok(members)
}

/// The error's message with its causes.
fn refused(archive: &[u8]) -> String {
    let err = read(archive).unwrap_err();
    match err.source() {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    }
}

fn header(flag: u8, name: &[u8], size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn changed(mut header: tar::Header, change: impl FnOnce(&mut tar::OldHeader)) -> Vec<u8> {
    change(header.as_old_mut());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

fn member(flag: u8, name: &str, body: &[u8]) -> Vec<u8> {
    let header = header(flag, name.as_bytes(), body.len() as u64);
    [header.as_bytes(), &padded(body.to_vec())[..]].concat()
}

fn link(flag: u8, name: &str, target: &str) -> Vec<u8> {
    changed(header(flag, name.as_bytes(), 0), |old| {
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    })
}

fn pax(flag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let written = |(keyword, value): &(&str, &[u8])| pax::tests::written(keyword, value);
    member(
        flag,
        "pax",
        &records.iter().flat_map(written).collect::<Vec<_>>(),
    )
}

const END: [u8; 1024] = [0; 1024];

fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    [&parts.concat(), &END[..]].concat()
}

fn names(members: &Members) -> Vec<String> {
    let name = |(entry, _): &(Entry, _)| String::from_utf8_lossy(&entry.path).into_owned();
    members.iter().map(name).collect()
}

/// What `tar` with `args` makes of `directory`.
fn packed(directory: &Path, args: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.current_dir(directory)
        .args(["-c", "--sort=name"])
        .args(args)
        .arg(".");
    let output = tar.output().expect("GNU tar is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar {args:?}: {said}");
    output.stdout
}

#[test]
fn archives_of_gnu_tar_in_every_format_show_what_was_packed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("directory/empty")).unwrap();
    fs::write(root.join("directory/file"), vec![b'x'; 700_000]).unwrap();
    fs::write(root.join("zero"), b"").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), b"latin").unwrap();
    fs::set_permissions(root.join("zero"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("../else/where", root.join("symlink")).unwrap();
    fs::hard_link(root.join("zero"), root.join("zzz-link")).unwrap();
    let fifo = Command::new("mkfifo")
        .arg(root.join("fifo"))
        .status()
        .unwrap();
    assert!(fifo.success());
    let long = ["long", &"n".repeat(90), &"m".repeat(90)].join("/");
    fs::create_dir_all(root.join(&long).parent().unwrap()).unwrap();
    fs::write(root.join(&long), b"long").unwrap();
    let longer = format!("{}/{}", "d".repeat(200), "e".repeat(255));
    let formats = [
        ("v7", false, false),
        ("oldgnu", true, true),
        ("gnu", true, true),
        ("ustar", true, false),
        ("pax", true, true),
    ];
    for (format, has_long, has_longer) in formats {
        if has_longer {
            fs::create_dir_all(root.join(&longer).parent().unwrap()).unwrap();
            fs::write(root.join(&longer), b"longer").unwrap();
            let _ = symlink("t".repeat(300), root.join("long-target"));
        } else {
            let _ = fs::remove_dir_all(root.join(&longer).parent().unwrap());
            let _ = fs::remove_file(root.join("long-target"));
        }
        // Version 7 has no fifos either.
        let exclude: &[&str] = match has_long {
            true => &[],
            false => &["--exclude=./long", "--exclude=./fifo"],
        };
        let format_arg = format!("--format={format}");
        let members = read(&packed(root, &[&[&format_arg[..]], exclude].concat())).unwrap();
        let expected = 8 + 4 * usize::from(has_long) + 3 * usize::from(has_longer);
        assert!(members.len() >= expected, "{format}: {:?}", names(&members));
        for (entry, content) in &members {
            check_against_disk(root, entry, content, format == "pax");
        }
    }
}

fn check_against_disk(root: &Path, entry: &Entry, content: &[u8], has_nanos: bool) {
    let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
    let on_disk = fs::symlink_metadata(&path).expect("what was packed exists");
    let kind = on_disk.file_type();
    match &entry.kind {
        Kind::Directory => assert!(kind.is_dir()),
        Kind::Regular { .. } => assert!(fs::read(&path).unwrap() == content, "{path:?}"),
        Kind::Symlink { target } => {
            assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
        }
        Kind::Hardlink { target } => {
            let target = root.join(std::ffi::OsStr::from_bytes(target));
            assert_eq!(fs::metadata(target).unwrap().ino(), on_disk.ino());
        }
        Kind::Fifo => assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind)),
        other => panic!("{path:?} became {other:?}"),
    }
    assert_eq!(u32::from(entry.mode), on_disk.mode() & 0o7777, "{path:?}");
    assert_eq!((entry.uid, entry.gid), (on_disk.uid(), on_disk.gid()));
    assert_eq!(entry.mtime.secs, on_disk.mtime());
    let nanos = if has_nanos {
        on_disk.mtime_nsec() as u32
    } else {
        0
    };
    assert_eq!(entry.mtime.nanos, nanos);
}

#[test]
fn sparse_files_of_gnu_tar_in_every_format_have_their_holes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let file = |name: &str, size: u64, data: &[(u64, &[u8])]| {
        let file = fs::File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        data.iter()
            .for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    };
    file("a-hole", 1 << 20, &[]);
    file(
        "begins-with-data",
        300_001,
        &[(0, b"start"), (200_000, b"middle")],
    );
    file("ends-with-data", 300_000, &[(299_990, b"0123456789")]);
    // More segments than the header and several blocks behind it hold.
    let many: Vec<_> = (0..100).map(|n| (n * 8192, &b"segment"[..])).collect();
    file("many", 1 << 20, &many);
    file("x-next", 10, &[(0, b"not sparse")]);
    for args in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let args = [&["--sparse", "--hole-detection=raw"], args].concat();
        let archive = packed(root, &args);
        assert!(archive.len() < 1 << 20, "{args:?}: nothing was sparse");
        let members = read(&archive).unwrap();
        let expected = [
            "",
            "a-hole",
            "begins-with-data",
            "ends-with-data",
            "many",
            "x-next",
        ];
        assert_eq!(names(&members), expected, "{args:?}");
        for (entry, content) in &members {
            check_against_disk(root, entry, content, args.contains(&"--format=pax"));
        }
    }
}

#[test]
fn attributes_and_times_of_gnu_tar_are_exact() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (name, time) in [
        ("fraction", "@1700000000.123456789"),
        ("negative", "@-1.25"),
        ("zero", "@0"),
    ] {
        fs::write(root.join(name), b"").unwrap();
        let touch = Command::new("touch")
            .args(["-d", time])
            .arg(root.join(name))
            .status();
        assert!(touch.unwrap().success());
    }
    let xattrs: BTreeMap<&str, &[u8]> = [
        ("user.binary", &b"\0=\n\xff 9 a=b\n\0"[..]),
        ("user.empty", b""),
        ("user.odd=%name", b"1"),
    ]
    .into();
    let has_xattrs = xattrs.iter().all(|(name, value)| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("zero"), *name, value, flags).is_ok()
    });
    let members = read(&packed(root, &["--format=pax", "--xattrs"])).unwrap();
    let times: Vec<_> = members[1..].iter().map(|(entry, _)| entry.mtime).collect();
    let time = |secs, nanos| Timestamp { secs, nanos };
    assert_eq!(
        times,
        [
            time(1_700_000_000, 123_456_789),
            time(-2, 750_000_000),
            time(0, 0)
        ]
    );
    if !has_xattrs {
        eprintln!("not checked: this file system keeps no user attributes");
        return;
    }
    let read = members[3].0.xattrs.iter();
    let read: BTreeMap<&str, &[u8]> = read
        .map(|(name, value)| (std::str::from_utf8(name).unwrap(), &value[..]))
        .collect();
    assert_eq!(read, xattrs);
}

#[test]
fn negative_times_and_large_numbers_of_gnu_headers_are_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("f"), b"").unwrap();
    let args = [
        "--format=gnu",
        "--mtime=@-5",
        "--owner=x:4000000000",
        "--group=y:2097152",
    ];
    let members = read(&packed(directory.path(), &args)).unwrap();
    let entry = &members[1].0;
    assert_eq!(entry.mtime, Timestamp { secs: -5, nanos: 0 });
    assert_eq!((entry.uid, entry.gid), (4_000_000_000, 2_097_152));
}

#[test]
fn each_type_becomes_its_kind() {
    let device = |flag| {
        let mut header = header(flag, b"dev", 0);
        header.set_device_major(8).unwrap();
        header.set_device_minor(300).unwrap();
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let regular = Kind::Regular { size: 3 };
    let large = [
        ("SCHILY.devmajor", &b"4095"[..]),
        ("SCHILY.devminor", b"1048575"),
    ];
    for (parts, path, kind) in [
        (member(b'0', "f", b"abc"), "f", regular.clone()),
        (member(0, "f", b"abc"), "f", regular.clone()),
        (member(b'7', "/f", b"abc"), "f", regular.clone()),
        (member(b'Q', "./f", b"abc"), "f", regular.clone()),
        (member(b'0', "d/", b""), "d", Kind::Directory),
        (member(0, "d/", b""), "d", Kind::Directory),
        (member(b'0', "f/", b"abc"), "f", regular),
        (member(b'5', ".", b""), "", Kind::Directory),
        (member(b'6', "p", b""), "p", Kind::Fifo),
        (member(b'D', "d", b"Yfile\0\0"), "d", Kind::Directory),
        (
            link(b'2', "l", "../x"),
            "l",
            Kind::Symlink {
                target: b"../x".to_vec(),
            },
        ),
        (
            link(b'1', "h", "/a//./b"),
            "h",
            Kind::Hardlink {
                target: b"a/b".to_vec(),
            },
        ),
        (
            device(b'3'),
            "dev",
            Kind::CharDevice {
                major: 8,
                minor: 300,
            },
        ),
        (
            device(b'4'),
            "dev",
            Kind::BlockDevice {
                major: 8,
                minor: 300,
            },
        ),
        (
            [pax(b'x', &large), device(b'3')].concat(),
            "dev",
            Kind::CharDevice {
                major: 4095,
                minor: 1_048_575,
            },
        ),
        (member(b'0', "a/.wh.b", b"passed"), "a/b", Kind::Whiteout),
        (member(b'0', "a/.wh..wh..opq", b""), "a", Kind::Opaque),
    ] {
        let members = read(&archive(&[parts, member(b'5', "next", b"")])).unwrap();
        assert_eq!(names(&members), [path, "next"]);
        assert_eq!(members[0].0.kind, kind);
    }
}

#[test]
fn what_describes_the_archive_is_passed_over_and_stays_in_the_literal() {
    let members = read(&archive(&[
        member(b'V', "label", b"body of a label"),
        member(b'5', ".wh..wh.plnk", b""),
        member(b'0', ".wh..wh.plnk/12.34", &[1; 600]),
        member(b'0', "a/.wh..wh.aufs", b"x"),
        pax(b'g', &[("comment", b"made by git")]),
        member(b'0', "f", b"abc"),
    ]));
    assert_eq!(names(&members.unwrap()), ["f"]);
}

#[test]
fn a_link_has_a_body_only_if_no_header_follows_it() {
    let mut sized = header(b'1', b"h", 600);
    sized.as_old_mut().linkname[0] = b'f';
    sized.set_cksum();
    let sized = sized.as_bytes().to_vec();
    let next = member(b'0', "next", b"abc");
    for parts in [
        vec![sized.clone(), next.clone()],
        vec![sized.clone(), vec![1; 1024], next.clone()],
        vec![sized.clone(), link(b'2', "l", "x"), next],
    ] {
        let members = read(&archive(&parts)).unwrap();
        assert_eq!(names(&members).last().unwrap(), "next");
        assert_eq!(
            members[0].0.kind,
            Kind::Hardlink {
                target: b"f".to_vec()
            }
        );
    }
    assert_eq!(
        read(&archive(std::slice::from_ref(&sized))).unwrap().len(),
        1
    );
    assert_eq!(read(&sized).unwrap().len(), 1);
}

#[test]
fn global_headers_count_until_they_are_overridden() {
    let members = read(&archive(&[
        pax(
            b'g',
            &[
                ("uid", b"7"),
                ("mtime", b"5.5"),
                ("SCHILY.xattr.user.g", b"1"),
            ],
        ),
        member(b'0', "a", b""),
        pax(
            b'x',
            &[("uid", b""), ("gid", b"9"), ("SCHILY.xattr.user.x", b"\0")],
        ),
        member(b'0', "b", b""),
        pax(b'g', &[("uid", b"8")]),
        member(b'0', "c", b""),
    ]))
    .unwrap();
    let owners: Vec<_> = members
        .iter()
        .map(|(entry, _)| (entry.uid, entry.gid))
        .collect();
    assert_eq!(owners, [(7, 0), (0, 9), (8, 0)]);
    let half = Timestamp {
        secs: 5,
        nanos: 500_000_000,
    };
    assert!(members.iter().all(|(entry, _)| entry.mtime == half));
    let counts: Vec<_> = members
        .iter()
        .map(|(entry, _)| entry.xattrs.len())
        .collect();
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn the_most_particular_name_and_size_count() {
    let records = [
        ("path", &b"from/pax"[..]),
        ("size", b"5"),
        ("linkpath", b"unused"),
    ];
    let file = |records: &[u8]| [records, header(b'0', b"short", 0).as_bytes()].concat();
    let body = padded(b"12345".to_vec());
    let members = read(&archive(&[
        file(&pax(b'x', &records)),
        body.clone(),
        file(&[pax(b'x', &[("path", b"ignored")]), pax(b'x', &records)].concat()),
        body.clone(),
        file(
            &[
                member(b'L', "././@LongLink", b"from/gnu\0"),
                pax(b'x', &records),
            ]
            .concat(),
        ),
        body.clone(),
        member(b'K', "././@LongLink", b"long/target\0"),
        link(b'2', "l", "short"),
    ]))
    .unwrap();
    assert_eq!(names(&members), ["from/pax", "from/pax", "from/gnu", "l"]);
    assert!(members[..3].iter().all(|(_, content)| content == b"12345"));
    let target = b"long/target".to_vec();
    assert_eq!(members[3].0.kind, Kind::Symlink { target });
}

#[test]
fn an_archive_ends_at_two_blocks_of_zeros_or_with_its_stream() {
    let file = member(b'0', "f", b"abc");
    for end in [
        vec![],
        vec![0; 512],
        vec![0; 1024],
        vec![0; 10240],
        [&END[..], b"garbage"].concat(),
        [&END[..], &file].concat(),
    ] {
        assert_eq!(read(&[&file[..], &end].concat()).unwrap().len(), 1);
    }
    assert_eq!(read(b"").unwrap(), []);
    let mut reader = TarReader::new(&END[..]);
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_content().unwrap().is_none());
}

#[test]
fn unread_content_is_skipped() {
    let large = vec![7; 1_000_000];
    let archive = archive(&[member(b'0', "a", &large), member(b'0', "b", b"abc")]);
    let mut reader = TarReader::new(&archive[..]);
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
    assert!(matches!(reader.next_content(), Ok(Some(Content::Data(_)))));
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
    assert_eq!(reader.next_content().unwrap(), Some(Content::Data(b"abc")));
}

#[test]
fn hostile_and_damaged_archives_are_refused_with_place_and_reason() {
    let sized = |size: &'static [u8; 12]| {
        changed(header(b'0', b"f", 0), |old| old.size.copy_from_slice(size))
    };
    let extended = |flag, size| header(flag, b"x", size).as_bytes().to_vec();
    let sparse = |records: &[(&str, &[u8])], body: &[u8]| {
        [pax(b'x', records), member(b'0', "s", body)].concat()
    };
    let v1 = |body: &[u8]| {
        let version: [(&str, &[u8]); 3] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10"),
        ];
        sparse(&version, body)
    };
    let name = "n".repeat(256);
    let long_path = vec![b'/'; PATH_BYTES_LIMIT + 1];
    for (archive, place, reason) in [
        (
            sized(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
            0,
            "size is no number below 2^63",
        ),
        (
            sized(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            0,
            "size is no number",
        ),
        (
            sized(b"\x80\0\0\x01\0\0\0\0\0\0\0\x05"),
            0,
            "size is no number",
        ),
        (
            sized(b"0000000009\0\0"),
            0,
            "member \"f\": its size is no number",
        ),
        (
            sized(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            512,
            "ends inside a member",
        ),
        (
            extended(b'x', 4 << 30),
            512,
            "extended header of 4294967296 bytes",
        ),
        (
            extended(b'g', 4 << 30),
            512,
            "extended header of 4294967296 bytes",
        ),
        (extended(b'L', 1 << 20), 512, "long name of 1048576 bytes"),
        (extended(b'x', 1000), 512, "ends inside a member"),
        (
            pax(b'x', &[("path", b"f")]),
            1024,
            "ends after an extended header",
        ),
        (
            pax(b'x', &[("size", b"9223372036854775808")]),
            512,
            "record size: not a number",
        ),
        (
            pax(b'g', &[("SCHILY.xattr.user.a", &[0; 20_000])]),
            0,
            "attributes for all files",
        ),
        (member(b'0', "../etc/passwd", b""), 0, "a component is `..`"),
        (member(b'0', "a/../../b", b""), 0, "a component is `..`"),
        (
            link(b'1', "h", "../../etc/passwd"),
            0,
            "a component is `..`",
        ),
        (link(b'1', "h", ""), 0, "a link to nothing"),
        (link(b'1', "h", "./"), 0, "a link to nothing"),
        (link(b'2', "l", ""), 0, "a link to nothing"),
        (
            member(b'0', "./", b"abc"),
            0,
            "only a directory can be the root",
        ),
        (member(b'0', ".wh..", b""), 0, "a whiteout of no file"),
        (member(b'M', "f", b""), 0, "began in another archive"),
        (member(b'S', "f", b""), 512, "without a GNU header"),
        (
            [member(b'L', "", name.as_bytes()), member(b'0', "f", b"")].concat(),
            1024,
            "255 bytes",
        ),
        (
            [member(b'L', "", &long_path), member(b'0', "f", b"")].concat(),
            17408,
            "16384 bytes",
        ),
        (
            [pax(b'x', &[("path", b"a\0b")]), member(b'0', "f", b"")].concat(),
            1024,
            "NUL byte",
        ),
        (
            [member(b'0', "f", b"a"), vec![0; 512], vec![1; 512]].concat(),
            1024,
            "block of zeros",
        ),
        (b"hello".to_vec(), 5, "ends inside a member"),
        (vec![b'x'; 512], 0, "this is no tar archive"),
        (
            [member(b'0', "f", b"a"), vec![b'x'; 512]].concat(),
            1024,
            "a header's checksum",
        ),
        (
            sparse(
                &[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,6")],
                b"123456",
            ),
            1024,
            "sparse map goes beyond",
        ),
        (
            sparse(
                &[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,5")],
                b"123456",
            ),
            1024,
            "do not agree",
        ),
        (
            sparse(&[("GNU.sparse.major", b"2")], b""),
            1024,
            "format that is not known",
        ),
        (v1(b""), 1536, "map is longer than its data"),
        (v1(&padded(b"1\n0\n".to_vec())), 2048, "map is damaged"),
        (
            v1(&padded(b"99999999999999999999\n".to_vec())),
            2048,
            "map is damaged",
        ),
        (v1(&[b'1'; 512]), 2048, "map is damaged"),
        (v1(&padded(b"1\n0\n5\n".to_vec())), 1024, "do not agree"),
    ] {
        let message = refused(&archive);
        let start = format!("tar stream, byte {place}: ");
        assert!(
            message.starts_with(&start) && message.contains(reason),
            "{message}"
        );
    }
}

#[test]
fn endless_literal_is_refused() {
    let endless = |start: &[u8]| {
        let mut reader = TarReader::new(io::Cursor::new(start.to_vec()).chain(io::repeat(0)));
        reader.next_entry().unwrap_err().to_string()
    };
    let label = header(b'V', b"label", 1 << 30);
    for start in [&END[..], label.as_bytes()] {
        assert!(endless(start).contains("more than 64 MiB that belong to no file"));
    }
}

#[test]
fn a_truncated_archive_is_an_error_except_between_members() {
    let parts = [
        member(b'0', "a", &[1; 700]),
        pax(b'x', &[("SCHILY.xattr.user.a", b"value")]),
        member(b'0', "b", &[2; 10]),
    ];
    let whole = archive(&parts);
    let ends = [
        0,
        parts[0].len(),
        parts.concat().len(),
        parts.concat().len() + 512,
    ];
    for len in 0..whole.len() - 512 {
        let result = read(&whole[..len]);
        assert_eq!(result.is_ok(), ends.contains(&len), "{len}: {result:?}");
        if let Err(TarError::Truncated { at }) = result {
            assert_eq!(at.0, len as u64);
        }
    }
}

#[test]
fn a_failing_stream_is_told_apart_from_a_damaged_one() {
    let stream = crate::layer::inflate::plain(&b"\x1f\x8b\x08 and no more"[..]).unwrap();
    let err = TarReader::new(stream).next_entry().unwrap_err();
    assert!(
        matches!(
            err,
            TarError::Read {
                at: PlainOffset(0),
                ..
            }
        ),
        "{err}"
    );
    assert!(
        err.source()
            .unwrap()
            .to_string()
            .starts_with("gzip stream, packed byte")
    );
}

/// A member of a random archive: what to write, and what must be read.
fn any_member() -> impl Strategy<Value = (Vec<u8>, Entry, Vec<u8>)> {
    let name = prop::collection::vec("[a-z\u{80}-\u{ff}]{1,40}", 1..8).prop_map(|c| c.join("/"));
    let value = prop::collection::vec(any::<u8>(), 0..600);
    let xattrs = prop::collection::btree_map("user\\.[a-z]{1,9}", value, 0..3);
    let content = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..2000),
        1 => (any::<u8>(), 0usize..600_000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let time = (-4_000_000_000i64..4_000_000_000, 0u32..1_000_000_000);
    let owner = (any::<u32>(), any::<u32>());
    (name, content, xattrs, time, owner, 0u16..0o10000).prop_map(
        |(name, content, xattrs, (secs, nanos), (uid, gid), mode)| {
            let entry = Entry {
                path: name.into_bytes(),
                kind: Kind::Regular {
                    size: content.len() as u64,
                },
                mode,
                uid,
                gid,
                mtime: Timestamp { secs, nanos },
                xattrs: xattrs
                    .into_iter()
                    .map(|(n, v)| (n.into_bytes(), v))
                    .collect(),
            };
            (written(&entry, &content), entry, content)
        },
    )
}

fn written(entry: &Entry, content: &[u8]) -> Vec<u8> {
    let Timestamp { secs, nanos } = entry.mtime;
    let (sign, secs, nanos) = match (secs, nanos) {
        (secs, 0) if secs < 0 => ("-", -secs, 0),
        (secs, nanos) if secs < 0 => ("-", -secs - 1, 1_000_000_000 - nanos),
        (secs, nanos) => ("", secs, nanos),
    };
    let mtime = format!("{sign}{secs}.{nanos:09}");
    let (uid, gid) = (entry.uid.to_string(), entry.gid.to_string());
    let mut records: Vec<(String, &[u8])> = vec![
        ("path".into(), &entry.path),
        ("mtime".into(), mtime.as_bytes()),
        ("uid".into(), uid.as_bytes()),
        ("gid".into(), gid.as_bytes()),
    ];
    for (name, value) in &entry.xattrs {
        let name = std::str::from_utf8(name).unwrap();
        records.push((format!("SCHILY.xattr.{name}"), value));
    }
    let records: Vec<_> = records.iter().map(|(k, v)| (&k[..], *v)).collect();
    let mut header = header(b'0', b"x", content.len() as u64);
    header.set_mode(u32::from(entry.mode));
    header.set_cksum();
    [
        pax(b'x', &records),
        header.as_bytes().to_vec(),
        padded(content.to_vec()),
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is written is read, and literal and data are the stream, however it arrives.
    #[test]
    fn what_is_written_is_read(
        members in prop::collection::vec(any_member(), 0..6),
        step in prop_oneof![1usize..2000, Just(usize::MAX)],
    ) {
        let stream: Vec<_> = members.iter().map(|(bytes, ..)| bytes.clone()).collect();
        let stream = archive(&stream);
        let (read, rebuilt) = read_stepwise(&stream, step).unwrap();
        prop_assert!(rebuilt == stream);
        let expected: Members = members.into_iter().map(|(_, entry, content)| (entry, content)).collect();
        prop_assert!(read == expected);
    }

    /// Whatever the bytes: no panic, and what was read in full rebuilds its stream.
    #[test]
    fn damaged_headers_never_panic(
        members in prop::collection::vec(any_member(), 1..3),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut stream = members.iter().flat_map(|(bytes, ..)| bytes.clone()).collect::<Vec<_>>();
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
            // A right checksum, so that the damage is looked at.
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            let mut header = tar::Header::from_byte_slice(&stream[block..block + BLOCK_BYTES]).clone();
            if header.as_bytes()[257..].starts_with(b"ustar") {
                header.set_cksum();
                stream[block..block + BLOCK_BYTES].copy_from_slice(header.as_bytes());
            }
        }
        if let Ok((_, rebuilt)) = read_stepwise(&stream, usize::MAX) {
            prop_assert!(rebuilt == stream);
        }
    }
}
