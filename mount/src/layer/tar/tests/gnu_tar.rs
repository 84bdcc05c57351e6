//! What GNU tar packs is what we read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{names, read};
use crate::layer::entry::{Entry, Kind, Timestamp};

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
    let xattrs: BTreeMap<_, _> = xattrs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
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
