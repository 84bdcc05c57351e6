use std::io::Cursor;

use proptest::prelude::*;
use serde_json::Value;
use sifon_mount::layer::decode::Decoder;
use sifon_mount::layer::entry::Timestamp;
use sifon_mount::layer::table::{Table, TableWriter, from_reader};
use sifon_mount::layer::toc::Unpacked;
use sifon_mount::layer::zstd_chunked::{promised, table};

use super::*;

const LEVEL: i32 = 3;

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp {
            secs: 1_600_000_000,
            nanos: 0,
        },
        xattrs: Vec::new(),
    }
}

fn file(path: &str, content: &[u8]) -> (Entry, Vec<u8>) {
    let size = content.len() as u64;
    (entry(path, Kind::Regular { size }), content.to_vec())
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 58) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// One of each kind, with names and numbers that ustar cannot say.
fn everything() -> Vec<(Entry, Vec<u8>)> {
    let none = |path: &str, kind| (entry(path, kind), Vec::new());
    let long = format!("d/{}", "x".repeat(120));
    let mut odd = file(&long, b"odd");
    odd.0.mtime = Timestamp {
        secs: -2,
        nanos: 250_000_000,
    };
    (odd.0.uid, odd.0.gid, odd.0.mode) = (u32::MAX - 1, 3_000_000, 0o4755);
    odd.0.xattrs = vec![(b"security.capability".to_vec(), vec![1, 0, 255, 10])];
    let target = long.clone().into_bytes();
    vec![
        none("", Kind::Directory),
        none("d", Kind::Directory),
        odd,
        none(
            "s",
            Kind::Symlink {
                target: target.clone(),
            },
        ),
        none("h", Kind::Hardlink { target }),
        none(
            "c",
            Kind::CharDevice {
                major: 4,
                minor: 300,
            },
        ),
        none("b", Kind::BlockDevice { major: 8, minor: 0 }),
        none("f", Kind::Fifo),
        file("empty", b""),
        file("noise", &noise(600_001)),
        file("sparse", &[&[1; 5][..], &vec![0; 5 << 19], b"end"].concat()),
        file("zeros", &vec![0; 5 << 19]),
        file("block", &[b'b'; 512]),
        none("d/gone", Kind::Whiteout),
        none("d", Kind::Opaque),
        none("new\nline \"æ\"", Kind::Directory),
    ]
}

fn written(files: &[(Entry, Vec<u8>)]) -> (Vec<u8>, Written) {
    let mut writer = LayerWriter::new(Vec::new(), LEVEL).unwrap();
    for (entry, content) in files {
        writer.append(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn table_of(blob: &[u8], written: &Written) -> Table {
    let toc = promised(&written.annotations).unwrap().unwrap();
    let at = toc.position.0 as usize;
    let packed = &blob[at..at + toc.packed_len as usize];
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    let mut unpacked = Unpacked::default();
    table(&toc, packed, blob.len() as u64, &mut unpacked, &mut writer).unwrap();
    let mut bytes = Vec::new();
    writer.finish(written.digest, &mut bytes).unwrap();
    from_reader(&bytes[..]).unwrap()
}

/// What a reader of the table alone finds: entries, and contents from the blob's chunks.
fn read_back(blob: &[u8], written: &Written) -> Vec<(Entry, Vec<u8>)> {
    let table = table_of(blob, written);
    let mut decoder = Decoder::new();
    let mut content = |pieces, size: u64| {
        let mut content = vec![0; size as usize];
        for piece in table.pieces(pieces).unwrap() {
            let Some((index, 0)) = piece.chunk() else {
                continue;
            };
            let chunk = table.chunk(index).unwrap();
            let packed = &blob[chunk.packed_at.0 as usize..][..chunk.packed_len as usize];
            let plain = decoder.plain(&chunk, packed).unwrap();
            content[piece.at() as usize..][..plain.len()].copy_from_slice(&plain);
        }
        content
    };
    let owned = |bytes: &[u8]| bytes.to_vec();
    let entries = table.entries().map(Result::unwrap);
    entries
        .map(|(entry, pieces)| {
            let (kind, bytes) = match entry.kind {
                Kind::Regular { size } => (Kind::Regular { size }, content(pieces, size)),
                Kind::Symlink { target } => (
                    Kind::Symlink {
                        target: owned(target),
                    },
                    vec![],
                ),
                Kind::Hardlink { target } => (
                    Kind::Hardlink {
                        target: owned(target),
                    },
                    vec![],
                ),
                Kind::CharDevice { major, minor } => (Kind::CharDevice { major, minor }, vec![]),
                Kind::BlockDevice { major, minor } => (Kind::BlockDevice { major, minor }, vec![]),
                Kind::Directory => (Kind::Directory, vec![]),
                Kind::Fifo => (Kind::Fifo, vec![]),
                Kind::Socket => (Kind::Socket, vec![]),
                Kind::Whiteout => (Kind::Whiteout, vec![]),
                Kind::Opaque => (Kind::Opaque, vec![]),
                Kind::Hidden { size } => (Kind::Hidden { size }, vec![]),
            };
            let xattrs = entry.xattrs.iter();
            let owned = Entry {
                path: owned(entry.path),
                kind,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                xattrs: xattrs
                    .map(|(name, value)| (owned(name), owned(value)))
                    .collect(),
            };
            (owned, bytes)
        })
        .collect()
}

fn part(blob: &[u8], written: &Written, key: &str) -> Vec<u8> {
    let key = format!("io.github.containers.zstd-chunked.{key}-position");
    let place: Vec<usize> = written.annotations[&key]
        .split(':')
        .map(|number| number.parse().unwrap())
        .collect();
    let plain = zstd::decode_all(&blob[place[0]..place[0] + place[1]]).unwrap();
    assert_eq!(plain.len(), place[2]);
    plain
}

#[test]
fn a_layer_reads_back_through_its_toc_as_it_was_written() {
    let files = everything();
    let (blob, written) = written(&files);
    assert_eq!(written.digest, Digest::of(&blob));
    assert_eq!(written.size, blob.len() as u64);
    assert_eq!(read_back(&blob, &written), files);
    assert!(blob.len() < 800_000, "zeros and repetitions shrink");
}

#[test]
fn zeros_are_never_fetched() {
    let content = [&[1; 5][..], &vec![0; 5 << 19], b"end"].concat();
    let (blob, written) = written(&[file("sparse", &content)]);
    let table = table_of(&blob, &written);
    let pieces = table.pieces(table.entry(0).unwrap().1).unwrap();
    let holes: Vec<_> = pieces.iter().map(|piece| piece.chunk().is_none()).collect();
    assert_eq!(holes, [false, true, false]);
}

#[test]
fn decompressed_it_is_a_tar_that_others_read() {
    let (blob, written) = written(&everything());
    let tar = zstd::decode_all(&blob[..]).unwrap();
    assert_eq!(Digest::of(&tar), written.diff_id);
    assert_eq!(tar.len() % 512, 0);
    let mut archive = tar::Archive::new(Cursor::new(&tar));
    let members: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|member| {
            let mut member = member.unwrap();
            let mut content = Vec::new();
            member.read_to_end(&mut content).unwrap();
            let name = String::from_utf8(member.path_bytes().into_owned()).unwrap();
            (name, member.header().mode().unwrap(), content)
        })
        .collect();
    let found = |name: &str| members.iter().find(|member| member.0 == name).unwrap();
    assert_eq!(members.len(), everything().len());
    assert_eq!(found("noise").2, noise(600_001));
    assert_eq!(found(&format!("d/{}", "x".repeat(120))).1, 0o4755);
    for name in [
        "./",
        "d/",
        "d/.wh.gone",
        "d/.wh..wh..opq",
        "new\nline \"æ\"/",
    ] {
        assert_eq!(found(name).2, b"");
    }
}

#[test]
fn the_tar_split_and_the_contents_rebuild_the_tar() {
    let files = everything();
    let (blob, written) = written(&files);
    let lines = part(&blob, &written, "tarsplit");
    let mut contents = files.iter().map(|(_, content)| content);
    let mut tar = Vec::new();
    for (position, line) in lines.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let line: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(line["position"], position);
        let payload = line["payload"].as_str().map(|text| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        });
        if line["type"] == 2 {
            tar.extend_from_slice(&payload.unwrap());
            continue;
        }
        let content = contents.next().unwrap();
        assert_eq!(line["size"].as_u64().unwrap_or(0), content.len() as u64);
        let mut crc = Crc64::default();
        crc.update(content);
        let crc = Some(crc.finish().to_be_bytes().to_vec()).filter(|_| !content.is_empty());
        assert_eq!(payload, crc);
        tar.extend_from_slice(content);
    }
    assert_eq!(Digest::of(&tar), written.diff_id);
    let toc: Value = serde_json::from_slice(&part(&blob, &written, "manifest")).unwrap();
    let place = &written.annotations["io.github.containers.zstd-chunked.tarsplit-position"];
    let place: Vec<usize> = place
        .split(':')
        .map(|number| number.parse().unwrap())
        .collect();
    let digest = Digest::of(&blob[place[0]..place[0] + place[1]]);
    assert_eq!(toc["tarSplitDigest"], digest.to_string());
}

#[test]
fn the_footer_says_what_the_annotations_say() {
    let (blob, written) = written(&[file("a", b"a")]);
    let footer = &blob[blob.len() - 72..];
    assert_eq!(footer[..8], [0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0]);
    assert_eq!(&footer[64..], b"GNUlInUx");
    let numbers: Vec<_> = footer[8..64]
        .chunks(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()).to_string())
        .collect();
    let said = ["manifest", "tarsplit"].map(|part| {
        written.annotations[&format!("io.github.containers.zstd-chunked.{part}-position")].clone()
    });
    assert_eq!(numbers.join(":"), said.join(":"));
}

#[test]
fn the_same_files_give_the_same_bytes() {
    assert_eq!(written(&everything()).0, written(&everything()).0);
}

#[test]
fn what_the_format_cannot_say_is_refused_by_name() {
    let mut writer = LayerWriter::new(Vec::new(), LEVEL).unwrap();
    let mut refused = |entry: &Entry, content: &[u8]| {
        let err = writer.append(entry, &mut &content[..]).unwrap_err();
        err.to_string()
    };
    let mut latin = entry("x", Kind::Fifo);
    latin.path = b"caf\xe9".to_vec();
    assert!(refused(&latin, b"").contains("not UTF-8"));
    let target = b"\xff".to_vec();
    assert!(refused(&entry("l", Kind::Symlink { target }), b"").contains("not UTF-8"));
    assert!(refused(&entry("s", Kind::Socket), b"").contains("socket"));
    let short = refused(&entry("a", Kind::Regular { size: 9 }), b"four");
    assert_eq!(short, "\"a\": ends after 4 of 9 bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_contents_read_back(
        contents in prop::collection::vec(
            prop::collection::vec((any::<u8>(), 1usize..70_000), 0..5), 0..6)
    ) {
        let files: Vec<_> = contents.iter().enumerate().map(|(at, runs)| {
            let content: Vec<u8> = runs.iter().flat_map(|&(byte, len)| vec![byte & 1; len]).collect();
            file(&at.to_string(), &content)
        }).collect();
        let (blob, written) = written(&files);
        prop_assert_eq!(Digest::of(&zstd::decode_all(&blob[..]).unwrap()), written.diff_id);
        prop_assert_eq!(read_back(&blob, &written), files);
    }
}
