//! SIF and squashfs files that were cut short, damaged, or made to do harm.

use std::fs;
use std::time::{Duration, Instant};

use crate::layout::{Layer, Layout};
use crate::sandbox::{MEMORY_BYTES, Sandbox, complaint};
use crate::tar_stream::{archive, directory, file, link};

/// Fields of a SIF's header and of a descriptor (`RawHeader`, `RawDescriptor`), and of a squashfs's superblock (`Superblock`).
const TOTAL: usize = 88;
const TABLE_AT: usize = 96;
const OBJECT_AT: usize = 17;
const OBJECT_LEN: usize = 25;
const INODES: usize = 4;
const FRAGMENTS: usize = 16;
const FLAGS: usize = 24;
const IDS: usize = 26;
const ROOT: usize = 32;
const USED: usize = 40;
const IDS_AT: usize = 48;
const XATTRS_AT: usize = 56;
const INODES_AT: usize = 64;
const DIRECTORIES_AT: usize = 72;
const FRAGMENTS_AT: usize = 80;

/// How long the file in the image is, so that it is found in its inode; a block and a tail.
const FILE_BYTES: u32 = 131_072 + 4_321;

const DESCRIPTOR_BYTES: usize = 585;
const PARTITION: [u8; 4] = 0x4004_i32.to_le_bytes();

/// A SIF that is not compressed, so that what is changed is what is read.
struct Sound {
    bytes: Vec<u8>,
    /// Where the partition's descriptor is.
    descriptor: usize,
    /// Where its squashfs begins.
    squashfs: usize,
}

impl Sound {
    fn new() -> Self {
        let members = [
            directory("bin"),
            file("bin/true", b"#!/bin/sh\n"),
            file("large", &vec![b'x'; FILE_BYTES as usize]),
            link(b'2', "link", "large"),
        ];
        let layout = Layout::of(&[Layer::plain(archive(&members))]);
        let sandbox = Sandbox::new();
        let packed = ["-q", "compact", "--compression=none"];
        let output = sandbox.run(&[&packed[..], &[&layout.reference(), "x.sif"]].concat());
        assert!(output.status.success(), "{}", complaint(&output));
        let bytes = fs::read(sandbox.path("x.sif")).unwrap();
        let table = number(&bytes, TABLE_AT);
        let descriptor = (table..)
            .step_by(DESCRIPTOR_BYTES)
            .find(|&at| bytes[at..at + 4] == PARTITION)
            .unwrap();
        let squashfs = number(&bytes, descriptor + OBJECT_AT);
        Self {
            bytes,
            descriptor,
            squashfs,
        }
    }

    /// The file with other bytes at a place.
    fn with(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut changed = self.bytes.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    }

    /// The same in its squashfs.
    fn with_inside(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        self.with(self.squashfs + at, bytes)
    }

    /// Where the length of the large file stands, behind the place of its first block, its fragment and the tail's place.
    fn file_len(&self) -> usize {
        let len = FILE_BYTES.to_le_bytes();
        let inodes = self.squashfs + number(&self.bytes, self.squashfs + INODES_AT);
        let found = self.bytes[inodes..]
            .windows(len.len())
            .position(|window| window == len);
        inodes + found.unwrap()
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// The file is refused by all that reads images, and by what looks at SIFs nothing worse happens than an error.
#[track_caller]
fn refused(what: &str, bytes: &[u8], words: &[&str]) {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x.sif"), bytes).unwrap();
    let words: Vec<_> = words.iter().copied().chain(["x.sif"]).collect();
    sandbox.refuses(what, "x.sif", &words);
    looked_at(what, &sandbox);
}

/// What only looks at a file ends well or with an error.
#[track_caller]
fn looked_at(what: &str, sandbox: &Sandbox) {
    for arguments in [
        &["inspect", "x.sif"][..],
        &["inspect", "--json", "--all", "x.sif"],
        &["sif", "list", "x.sif"],
        &["sif", "header", "x.sif"],
        &["sif", "info", "1", "x.sif"],
        &["sif", "dump", "5", "x.sif"],
        &["verify", "x.sif"],
    ] {
        let began = Instant::now();
        let output = sandbox.run(arguments);
        let (said, took) = (complaint(&output), began.elapsed());
        let is_known = matches!(output.status.code(), Some(0 | 1 | 255));
        assert!(is_known, "{what}: {arguments:?}: {output:?}");
        assert!(!said.contains("panicked"), "{what}: {arguments:?}: {said}");
        assert!(took < Duration::from_secs(20), "{what}: {arguments:?}");
        assert_eq!(
            output.status.success(),
            !said.contains("FATAL"),
            "{what}: {said}"
        );
    }
}

#[test]
fn a_sif_whose_table_leads_out_of_it_or_asks_for_memory_is_refused() {
    let sound = Sound::new();
    let [at, len] = [OBJECT_AT, OBJECT_LEN].map(|field| sound.descriptor + field);
    let huge = i64::MAX.to_le_bytes();
    for (what, bytes) in [
        ("a table at the end of time", sound.with(TABLE_AT, &huge)),
        ("a table before the file", sound.with(TABLE_AT, &[0xff; 8])),
        ("a table with 2^63 - 1 places", sound.with(TOTAL, &huge)),
        ("a table with less than none", sound.with(TOTAL, &[0xff; 8])),
        ("a file system beyond the file", sound.with(at, &huge)),
        ("a file system before it", sound.with(at, &[0xff; 8])),
        ("a file system of 2^63 - 1 bytes", sound.with(len, &huge)),
        ("one of less than none", sound.with(len, &[0xff; 8])),
        ("no file system", sound.with(sound.descriptor, &[1, 0x40])),
        ("a version to come", sound.with(42, b"99\0")),
    ] {
        refused(what, &bytes, &[]);
    }
}

#[test]
fn a_file_that_was_cut_short_is_refused_wherever_that_was() {
    let sound = Sound::new();
    let table = number(&sound.bytes, TABLE_AT);
    for len in [
        0,
        31,
        127,
        table,
        table + 100,
        sound.squashfs,
        sound.squashfs + 95,
        sound.squashfs + 96,
        sound.squashfs + 10_000,
        sound.bytes.len() - 5_000,
    ] {
        refused(&format!("{len} bytes"), &sound.bytes[..len], &[]);
    }
}

#[test]
fn a_file_system_with_numbers_that_cannot_be_is_refused() {
    let sound = Sound::new();
    let [ones, huge] = [[0xff; 8], i64::MAX.to_le_bytes()];
    let file_len = sound.file_len();
    for (what, bytes) in [
        ("2^64 - 1 bytes", sound.with_inside(USED, &ones)),
        ("a root behind all", sound.with_inside(ROOT, &huge)),
        ("a root in a data block", {
            let at = 200_u64.wrapping_sub(number(&sound.bytes, sound.squashfs + INODES_AT) as u64);
            sound.with_inside(ROOT, &(at << 16).to_le_bytes())
        }),
        ("owners nowhere", sound.with_inside(IDS_AT, &huge)),
        ("65,535 owners", sound.with_inside(IDS, &[0xff; 2])),
        ("attributes nowhere", {
            let mut bytes = sound.with_inside(XATTRS_AT, &huge);
            // Without the flag that says that there are none.
            bytes[sound.squashfs + FLAGS + 1] &= !2;
            bytes
        }),
        ("inodes nowhere", sound.with_inside(INODES_AT, &huge)),
        ("names nowhere", sound.with_inside(DIRECTORIES_AT, &huge)),
        ("tails nowhere", sound.with_inside(FRAGMENTS_AT, &huge)),
        ("no tails at all", sound.with_inside(FRAGMENTS, &[0; 4])),
        ("a file of 4 GiB", sound.with(file_len, &[0xff; 4])),
        (
            "a tail in fragment 2^31",
            sound.with(file_len - 8, &[0, 0, 0, 0x80]),
        ),
        (
            "a tail at byte 2^32 - 1",
            sound.with(file_len - 4, &[0xff; 4]),
        ),
        (
            "a block of 16 MiB",
            sound.with(file_len + 4, &[0xff, 0xff, 0xff, 1]),
        ),
        (
            "blocks that begin at the end of the file",
            sound.with(file_len - 12, &[0xff; 4]),
        ),
    ] {
        refused(what, &bytes, &[]);
    }
}

/// The number is of no use, so a file that lies about it is shown all the same, without room for so many.
#[test]
fn a_file_system_that_says_it_has_four_billion_inodes_gets_no_memory_for_them() {
    let sound = Sound::new();
    let sandbox = Sandbox::new();
    let bytes = sound.with_inside(INODES, &[0xff; 4]);
    fs::write(sandbox.path("x.sif"), bytes).unwrap();
    let packed = ["-q", "compact", "x.sif", "out.sif"];
    let output = sandbox.command(&packed, 128 << 20).output().unwrap();
    assert!(output.status.success(), "{}", complaint(&output));
    looked_at("four billion inodes", &sandbox);
}

/// A bit here and there, in every part of the file: an error, or another image.
#[test]
fn a_bit_that_changed_is_an_error_or_another_image() {
    let sound = Sound::new();
    let metadata = sound.squashfs + number(&sound.bytes, sound.squashfs + INODES_AT);
    let parts = [
        (0, 128),
        (number(&sound.bytes, TABLE_AT), 5 * DESCRIPTOR_BYTES),
        (sound.squashfs, 96),
        (metadata, sound.bytes.len() - 4096 - metadata),
    ];
    let sandbox = Sandbox::new();
    for (from, len) in parts {
        for step in 0..12 {
            let at = from + (len * step / 12 + step * 7) % len;
            let bit = 1 << (step % 8);
            let bytes = sound.with(at, &[sound.bytes[at] ^ bit]);
            fs::write(sandbox.path("x.sif"), bytes).unwrap();
            let output = sandbox.run(&["-q", "compact", "-F", "x.sif", "out.sif"]);
            let said = complaint(&output);
            match output.status.success() {
                true => fs::remove_file(sandbox.path("out.sif")).unwrap(),
                false => _ = sandbox.one_error(&format!("byte {at}"), &output, &[]),
            }
            assert!(!said.contains("panicked"), "byte {at}: {said}");
            sandbox.assert_clean(&format!("byte {at}"));
        }
    }
}

/// Directories that share one listing, which costs their maker a few bytes each: 48 million names in 3 MB.
#[test]
fn forty_eight_million_names_of_one_listing_end_by_the_limit() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("x.sqsh"), sharing(10_000, 4_800)).unwrap();
    let began = Instant::now();
    let output = sandbox
        .command(&["compact", "x.sqsh", "out.sif"], MEMORY_BYTES)
        .output()
        .unwrap();
    let what = "names without end";
    assert!(began.elapsed() < Duration::from_secs(300));
    sandbox.one_error(what, &output, &["more than 4 million entries", "x.sqsh"]);
    sandbox.assert_clean(what);
}

/// A squashfs, not compressed, of so many directories, all with one listing of so many names of one fifo.
fn sharing(directories: u32, names: u32) -> Vec<u8> {
    const BLOCK: usize = 8192;
    let metadata = |plain: &[u8]| {
        let blocks = plain.chunks(BLOCK).map(|block| {
            let header = (block.len() as u16 | 0x8000).to_le_bytes();
            [&header[..], block].concat()
        });
        blocks.collect::<Vec<_>>().concat()
    };
    // Where a byte of plain metadata lies: its block, and the byte in that.
    let place = |at: usize| ((at / BLOCK * (BLOCK + 2)) as u32, (at % BLOCK) as u16);
    let header = |kind: u16| {
        let mut inode = [kind, 0o755, 0, 0].map(u16::to_le_bytes).concat();
        inode.extend([0, 1].map(u32::to_le_bytes).concat());
        inode
    };
    let listing = |count: u32, named: &dyn Fn(u32) -> (u32, u16)| {
        let mut listing = Vec::new();
        for first in (0..count).step_by(256) {
            // Of one name each where the inodes lie in several blocks.
            let together = (first..count.min(first + 256)).collect::<Vec<_>>();
            let is_one_block = together.iter().all(|&name| named(name).0 == named(first).0);
            for group in together.chunks(if is_one_block { 256 } else { 1 }) {
                let block = named(group[0]).0;
                listing.extend(
                    [group.len() as u32 - 1, block, 1]
                        .map(u32::to_le_bytes)
                        .concat(),
                );
                for &name in group {
                    listing.extend([named(name).1, 0, 1, 4].map(u16::to_le_bytes).concat());
                    listing.extend(format!("{name:05}").as_bytes());
                }
            }
        }
        listing
    };
    // A fifo, then the directories of 32 bytes, then the root.
    let mut inodes = [header(6), 1_u32.to_le_bytes().to_vec(), vec![0; 12]].concat();
    let inner = listing(names, &|_| place(0));
    let outer = listing(directories, &|name| place(32 + 32 * name as usize));
    let directory = |at: usize, len: usize| {
        let (block, offset) = place(at);
        let mut inode = header(8);
        inode.extend([2, len as u32 + 3, block, 0].map(u32::to_le_bytes).concat());
        inode.extend([0, offset].map(u16::to_le_bytes).concat());
        inode.extend(u32::MAX.to_le_bytes());
        inode
    };
    for _ in 0..directories {
        let mut inode = header(1);
        inode.extend([0, 2].map(u32::to_le_bytes).concat());
        inode.extend(
            [u16::try_from(inner.len()).unwrap() + 3, 0]
                .map(u16::to_le_bytes)
                .concat(),
        );
        inode.extend(0_u32.to_le_bytes());
        inodes.extend(inode);
    }
    let root = place(inodes.len());
    inodes.extend(directory(inner.len(), outer.len()));
    let [inodes, listings, ids] =
        [inodes, [inner, outer].concat(), vec![0; 4]].map(|plain| metadata(&plain));
    let inodes_at = 96_u64;
    let directories_at = inodes_at + inodes.len() as u64;
    let id_block_at = directories_at + listings.len() as u64;
    let ids_at = id_block_at + ids.len() as u64;
    let used = ids_at + 8;
    let none = u64::MAX;
    let mut bytes = b"hsqs".to_vec();
    bytes.extend([1, 0, 131_072, 0].map(u32::to_le_bytes).concat());
    bytes.extend([1, 17, 0x0a0b, 1, 4, 0].map(u16::to_le_bytes).concat());
    let root = u64::from(root.0) << 16 | u64::from(root.1);
    for number in [
        root,
        used,
        ids_at,
        none,
        inodes_at,
        directories_at,
        none,
        none,
    ] {
        bytes.extend(number.to_le_bytes());
    }
    for part in [inodes, listings, ids, id_block_at.to_le_bytes().to_vec()] {
        bytes.extend(part);
    }
    bytes
}
