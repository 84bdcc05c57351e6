//! What mksquashfs packs is what we read, and what is damaged is an error.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;

use super::*;
use crate::layer::entry::{Entry, Kind};
use crate::layer::table::{PieceRange, Table, from_reader, stretches};

#[path = "../../../tests/support/xattrs.rs"]
mod host;

use host::xattrs;

/// The table of the file system `bytes`.
fn read(bytes: &[u8]) -> Result<Table, SquashfsError> {
    let content = Bytes::copy_from_slice(bytes);
    let read = |at: u64, len: usize| Ok(content.slice(at as usize..at as usize + len));
    let input = Input {
        at: 0,
        hides_lower: false,
        len: bytes.len() as u64,
        read: &read,
    };
    let mut writer = TableWriter::in_directory(&std::env::temp_dir());
    table(&input, &mut writer)?;
    let mut written = Vec::new();
    let layer = crate::digest::Digest::of(b"");
    writer.finish(layer, &mut written).unwrap();
    Ok(from_reader(&written[..]).unwrap())
}

/// The bytes of a file, each chunk decoded.
fn content(bytes: &[u8], table: &Table, pieces: PieceRange, size: u64) -> Result<Vec<u8>, String> {
    let pieces = table.pieces(pieces).map_err(|err| err.to_string())?;
    let mut decoder = Decoder::new();
    let mut plain = Vec::new();
    for stretch in stretches(pieces, 0, size).ok_or("no stretches")? {
        match stretch.chunk {
            None => plain.resize(plain.len() + stretch.len as usize, 0),
            Some((index, skip)) => {
                let chunk = table.chunk(index).map_err(|err| err.to_string())?;
                let at = chunk.packed_at.0 as usize;
                let packed = &bytes[at..at + chunk.packed_len as usize];
                let decoded = decoder
                    .plain(&chunk, packed)
                    .map_err(|err| err.to_string())?;
                plain.extend_from_slice(&decoded[skip..skip + stretch.len as usize]);
            }
        }
    }
    Ok(plain)
}

type Entries<'a> = BTreeMap<Vec<u8>, (Entry<&'a [u8]>, PieceRange)>;

/// All entries by path, hard links as what they lead to.
fn entries(table: &Table) -> Entries<'_> {
    let mut entries = Entries::new();
    for entry in table.entries() {
        let (entry, pieces) = entry.unwrap();
        let path = entry.path.to_vec();
        let found = match entry.kind {
            Kind::Hardlink { target } => entries[target].clone(),
            _ => (entry, pieces),
        };
        assert!(entries.insert(path, found).is_none(), "a path stands twice");
    }
    entries
}

fn packed(directory: &Path, options: &[&str]) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    let output = Command::new("mksquashfs")
        .args([directory, &file])
        .args(["-quiet", "-no-progress", "-processors", "1"])
        .args(options)
        .output()
        .expect("squashfs-tools are installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mksquashfs {options:?}: {said}");
    fs::read(file).unwrap()
}

fn text(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * at / 977) as u8 & 15 | b'a')
        .collect()
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(step).collect()
}

/// A directory with what each part of the format is for.
fn sample() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("directory/empty")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..700 {
        let name = format!("many/{number}-{}", "n".repeat(number % 200));
        fs::write(root.join(name), number.to_string()).unwrap();
    }
    fs::write(root.join("directory/file"), text(700_000)).unwrap();
    fs::write(root.join("directory/twin"), text(700_000)).unwrap();
    fs::write(root.join("noise"), noise(300_000)).unwrap();
    fs::write(root.join("one block"), text(1 << 17)).unwrap();
    fs::write(root.join("zero"), b"").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"caf\xe9")), b"latin").unwrap();
    fs::set_permissions(root.join("zero"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("../else/where", root.join("symlink")).unwrap();
    symlink("t".repeat(4000), root.join("long-target")).unwrap();
    fs::hard_link(root.join("noise"), root.join("zzz-link")).unwrap();
    fs::hard_link(root.join("symlink"), root.join("symlink-twin")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(12_345_678).unwrap();
    let fifo = Command::new("mkfifo").arg(root.join("fifo")).status();
    assert!(fifo.unwrap().success());
    for name in ["zero", "directory", "noise", "directory/file"] {
        for (attribute, len) in [("user.small", 3), ("user.large", 9000)] {
            let value = text(len);
            let set = rustix::fs::setxattr(root.join(name), attribute, &value, XattrFlags::empty());
            if let Err(err) = set {
                eprintln!("without attributes: {err}");
            }
        }
    }
    if rustix::process::geteuid().is_root() {
        for (name, kind, major, minor) in [("null", "c", "1", "3"), ("disk", "b", "259", "70000")] {
            let made = Command::new("mknod")
                .arg(root.join(name))
                .args([kind, major, minor])
                .status();
            eprintln!("mknod: {made:?}");
        }
        std::os::unix::fs::chown(root.join("zero"), Some(70_000), Some(80_000)).unwrap();
    }
    directory
}

/// Holds every file below `directory` against the entry of its path; how many there are.
fn compare(directory: &Path, path: &[u8], bytes: &[u8], table: &Table, all: &Entries<'_>) -> usize {
    let at = directory.join(OsStr::from_bytes(path));
    let shown = at.display();
    let metadata = fs::symlink_metadata(&at).unwrap();
    let (entry, pieces) = &all[path];
    assert_eq!(u32::from(entry.mode), metadata.mode() & 0o7777, "{shown}");
    assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()));
    assert_eq!(entry.mtime.secs, metadata.mtime(), "{shown}");
    let mut told: Vec<_> = entry
        .xattrs
        .iter()
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    told.sort();
    assert_eq!(told, xattrs(&at).unwrap(), "{shown}");
    let device = metadata.rdev();
    let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut count = 1;
    match &entry.kind {
        Kind::Directory => {
            for child in fs::read_dir(&at).unwrap() {
                let name = child.unwrap().file_name().into_vec();
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [path, slash, &name].concat();
                count += compare(directory, &path, bytes, table, all);
            }
        }
        Kind::Regular { size } => {
            assert_eq!(*size, metadata.len(), "{shown}");
            let plain = content(bytes, table, *pieces, *size).unwrap();
            assert!(plain == fs::read(&at).unwrap(), "{shown}");
        }
        Kind::Symlink { target } => {
            assert_eq!(*target, fs::read_link(&at).unwrap().as_os_str().as_bytes());
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            assert_eq!((*major, *minor), numbers, "{shown}");
        }
        Kind::Fifo => assert_eq!(metadata.mode() & 0o170_000, 0o010_000),
        other => panic!("{shown}: {other:?}"),
    }
    count
}

#[test]
fn file_systems_of_mksquashfs_show_what_was_packed() {
    let directory = sample();
    for options in [
        &["-comp", "gzip"][..],
        &["-comp", "xz"],
        &["-comp", "xz", "-Xbcj", "x86", "-b", "1M"],
        &["-comp", "lz4"],
        &["-comp", "lz4", "-Xhc", "-b", "4K"],
        &["-comp", "zstd", "-b", "1M"],
        &["-comp", "zstd", "-no-fragments"],
        &["-comp", "gzip", "-always-use-fragments", "-b", "64K"],
        &["-comp", "gzip", "-noI", "-noD", "-noF", "-noX"],
        &[
            "-comp",
            "zstd",
            "-noI",
            "-noId",
            "-no-exports",
            "-no-duplicates",
        ],
        &["-comp", "gzip", "-no-sparse", "-nopad"],
    ] {
        let bytes = packed(directory.path(), options);
        let table = read(&bytes).unwrap_or_else(|err| panic!("{options:?}: {err}"));
        let all = entries(&table);
        let count = compare(directory.path(), b"", &bytes, &table, &all);
        assert_eq!(count, all.len(), "{options:?}");
        let twins = [&b"directory/file"[..], b"directory/twin"].map(|path| all[path].1);
        let chunks = twins.map(|twin| table.pieces(twin).unwrap()[0].chunk());
        let is_shared = !options.contains(&"-no-duplicates");
        assert_eq!(chunks[0] == chunks[1], is_shared, "{options:?}");
    }
}

#[test]
fn a_hole_of_any_size_is_one_piece() {
    let directory = tempfile::tempdir().unwrap();
    let hole = fs::File::create(directory.path().join("hole")).unwrap();
    hole.set_len(256 << 20).unwrap();
    let bytes = packed(directory.path(), &["-no-fragments", "-b", "4K"]);
    let table = read(&bytes).unwrap();
    let all = entries(&table);
    let (entry, pieces) = &all[&b"hole"[..]];
    assert_eq!(entry.kind, Kind::Regular { size: 256 << 20 });
    assert_eq!((pieces.count, table.chunk_count()), (1, 0));
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), text(50_000)).unwrap();
    let message = |bytes: &[u8]| read(bytes).err().expect("not readable").to_string();
    for name in ["lzo", "lzma"] {
        let bytes = packed(directory.path(), &["-comp", name]);
        assert!(message(&bytes).contains(&format!("compressed with {name}, which sifon")));
    }
    let bytes = packed(directory.path(), &[]);
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        message(&bytes)
    };
    assert!(changed(0, b's').contains("magic number"));
    assert!(changed(20, 77).contains("number 77"));
    assert!(changed(28, 3).contains("version 3.0"));
    assert!(changed(22, 63).contains("blocks have a size"));
    assert!(message(&bytes[..50]).contains("shorter than a superblock"));
    let bytes = packed(directory.path(), &["-nopad"]);
    assert!(message(&bytes[..bytes.len() - 1]).contains("cut short"));
}

/// A file system without compression, so that a changed byte is not found by the decompressor.
fn bare() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), text(5000)).unwrap();
    fs::write(root.join("a/tail"), b"tail").unwrap();
    symlink("a", root.join("link")).unwrap();
    fs::hard_link(root.join("a/tail"), root.join("twin")).unwrap();
    let _ = rustix::fs::setxattr(root.join("a"), "user.name", b"value", XattrFlags::empty());
    packed(
        root,
        &[
            "-b", "4K", "-nopad", "-noI", "-noId", "-noD", "-noF", "-noX",
        ],
    )
}

#[test]
fn a_directory_within_itself_is_refused() {
    let bytes = bare();
    // The listing of `a/b` is the last of `a`'s two directories; whichever listing is made to lead to its own directory.
    let superblock = Superblock::read_from_prefix(&bytes).unwrap().0;
    let root = superblock.root.get();
    let from = superblock.directories_at.get() as usize + 2;
    let to = superblock.fragments_at.get().min(superblock.ids_at.get()) as usize;
    let mut refused = 0;
    for at in from..to - 2 {
        let mut looped = bytes.clone();
        looped[at..at + 2].copy_from_slice(&(root as u16).to_le_bytes());
        if let Err(err) = read(&looped) {
            refused += usize::from(err.to_string().contains("within itself"));
        }
    }
    assert!(refused > 0);
}

#[test]
fn damage_is_an_error_or_another_file_system_and_never_a_crash() {
    let bytes = bare();
    let shown = |bytes: &[u8]| {
        let Ok(table) = read(bytes) else {
            return;
        };
        for entry in table.entries() {
            let (entry, pieces) = entry.unwrap();
            if let Kind::Regular { size } = entry.kind
                && size < 1 << 24
            {
                let _ = content(bytes, &table, pieces, size);
            }
        }
    };
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= [0x01, 0x80, 0xff][at % 3];
        shown(&damaged);
    }
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len} bytes");
    }
}
