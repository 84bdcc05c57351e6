use std::io::Write;

use super::*;
use crate::layer::decode::Decoder;
use crate::layer::entry::Kind;
use crate::layer::native::{Blueprint, ConvertError};
use crate::layer::table::{ChunkIndex, PieceRange, Table, TableWriter, from_reader, stretches};
use crate::layer::tar::TarReader;

const SPACING: u64 = 100_000;

/// Text that deflates to many blocks.
fn text(len: usize, mut seed: u32) -> Vec<u8> {
    let mut byte = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (seed >> 28) as u8
    };
    (0..len).map(|_| byte()).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a", text(900_000, 1)),
        ("empty", Vec::new()),
        ("d/small", b"small".to_vec()),
        ("d/b", text(1_300_000, 2)),
    ]
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, "d/", &b""[..]).unwrap();
    for (name, content) in files() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4711);
        header.set_size(content.len() as u64);
        header.set_uid(70_000);
        header.set_gid(3);
        header.set_mtime(1_600_000_000);
        builder
            .append_pax_extensions([("SCHILY.xattr.user.x", &b"\xff\x00"[..])])
            .unwrap();
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    header.set_path("l").unwrap();
    header.as_gnu_mut().unwrap().linkname[..2].copy_from_slice(b"\xe6x");
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The archive as one member, as many, and with an empty one and padding.
fn packings() -> [Vec<u8>; 3] {
    let plain = archive();
    let members: Vec<u8> = plain.chunks(333_333).flat_map(gzip).collect();
    let odd = [
        gzip(b""),
        gzip(&plain[..700_000]),
        gzip(&plain[700_000..]),
        vec![0; 1000],
    ];
    [gzip(&plain), members, odd.concat()]
}

fn blueprint(packed: &[u8]) -> Blueprint {
    Blueprint {
        layer: Digest::of(packed),
        packed_len: packed.len() as u64,
        diff_id: Digest::of(&archive()),
    }
}

fn finished(mut writer: TableWriter) -> Table {
    let mut bytes = Vec::new();
    writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
    from_reader(&bytes[..]).unwrap()
}

/// Our own table of a layer, and a zTOC of it.
fn indexes(packed: &[u8]) -> (Table, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let indexed = indexed(blueprint(packed), packed, SPACING, true, directory.path()).unwrap();
    (finished(indexed.table), indexed.ztoc.unwrap())
}

fn by_ztoc(ztoc: &[u8], blob_size: usize, trust: Trust) -> Result<Table, ZtocError> {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    table(ztoc, blob_size as u64, trust, &mut writer)?;
    Ok(finished(writer))
}

fn content(table: &Table, packed: &[u8], pieces: PieceRange, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for stretch in stretches(table.pieces(pieces).unwrap(), 0, size).unwrap() {
        let (index, from) = stretch.chunk.unwrap();
        let chunk = table.chunk(index).unwrap();
        let packed = &packed[chunk.packed_at.0 as usize..][..chunk.packed_len as usize];
        let plain = Decoder::new().plain(&chunk, packed).unwrap();
        bytes.extend_from_slice(&plain[from..from + stretch.len as usize]);
    }
    bytes
}

#[track_caller]
fn assert_shows_the_archive(table: &Table, packed: &[u8]) {
    let mut told = TarReader::new(&archive()[..]).clone_entries();
    let mut contents = files().into_iter();
    assert!(table.chunk_count() > 8, "{}", table.chunk_count());
    for entry in table.entries() {
        let (entry, pieces) = entry.unwrap();
        let expected = told.remove(0);
        assert_eq!(entry.path, expected.path);
        assert_eq!(
            (entry.mode, entry.uid, entry.gid),
            (expected.mode, expected.uid, expected.gid)
        );
        assert_eq!(entry.mtime, expected.mtime);
        assert_eq!(entry.xattrs.len(), expected.xattrs.len());
        match (&entry.kind, &expected.kind) {
            (Kind::Regular { size }, Kind::Regular { .. }) => {
                let (_, expected) = contents.next().unwrap();
                assert!(
                    content(table, packed, pieces, *size) == expected,
                    "{:?}",
                    entry.path
                );
            }
            (Kind::Symlink { target }, Kind::Symlink { target: expected }) => {
                assert_eq!(target, expected);
            }
            (Kind::Directory, Kind::Directory) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(told.is_empty() && contents.next().is_none());
}

impl<R: std::io::BufRead> TarReader<R> {
    fn clone_entries(mut self) -> Vec<crate::layer::entry::Entry> {
        std::iter::from_fn(|| self.next_entry().unwrap()).collect()
    }
}

#[test]
fn what_is_read_by_our_index_is_what_was_packed() {
    for packed in packings() {
        assert_shows_the_archive(&indexes(&packed).0, &packed);
    }
}

#[test]
fn a_ztoc_that_we_write_reads_back() {
    for packed in packings() {
        let (_, ztoc) = indexes(&packed);
        for trust in [Trust::Signed, Trust::Unsigned] {
            let table = by_ztoc(&ztoc, packed.len(), trust).unwrap();
            assert_shows_the_archive(&table, &packed);
        }
    }
}

#[test]
fn an_unsigned_index_says_where_the_headers_are() {
    let [packed, ..] = packings();
    let (_, ztoc) = indexes(&packed);
    let signed = by_ztoc(&ztoc, packed.len(), Trust::Signed).unwrap();
    let unsigned = by_ztoc(&ztoc, packed.len(), Trust::Unsigned).unwrap();
    let mut proofs = 0;
    for index in 0..unsigned.entry_count() {
        let (entry, pieces) = unsigned.entry(index).unwrap();
        let (_, others) = signed.entry(index).unwrap();
        if pieces.count == 0 {
            continue;
        }
        assert_eq!(signed.proof(others.first), None);
        let proof = unsigned.proof(pieces.first).unwrap();
        assert_eq!(proof.entry, index);
        let header = content(&unsigned, &packed, proof.header, proof.header_len.into());
        let told = TarReader::new(&header[..]).next_entry().unwrap().unwrap();
        assert_eq!(told.path, entry.path);
        proofs += 1;
    }
    assert_eq!(proofs, 3, "empty files have no bytes to prove");
}

#[test]
fn windows_take_less_than_their_share_of_the_layer() {
    let plain = archive();
    let packed = gzip(&plain);
    let directory = tempfile::tempdir().unwrap();
    let indexed = indexed(
        blueprint(&packed),
        &packed[..],
        SPACING,
        false,
        directory.path(),
    )
    .unwrap();
    let windows = plain.len() as u64 / SPACING;
    assert!(indexed.ztoc.is_none() && indexed.window_bytes < windows * (24 << 10));
}

#[test]
fn bytes_that_are_not_the_layer_give_no_index() {
    let [packed, ..] = packings();
    let directory = tempfile::tempdir().unwrap();
    let made = |blueprint, packed: &[u8]| {
        let made = indexed(blueprint, packed, SPACING, true, directory.path());
        made.err().unwrap()
    };
    let right = blueprint(&packed);
    let other = Digest::of(b"other");
    let layer = Blueprint {
        layer: other,
        ..right
    };
    assert!(matches!(made(layer, &packed), ConvertError::Digest { .. }));
    let diff_id = Blueprint {
        diff_id: other,
        ..right
    };
    assert!(matches!(
        made(diff_id, &packed),
        ConvertError::DiffId { .. }
    ));
    let longer = [&packed[..], &[0]].concat();
    assert!(matches!(made(right, &longer), ConvertError::Size { .. }));
    assert!(matches!(
        made(right, &packed[..packed.len() / 2]),
        ConvertError::Tar { .. }
    ));
    let mut damaged = packed.clone();
    damaged[packed.len() / 2] ^= 1;
    made(right, &damaged);
    made(right, b"no gzip");
}

#[test]
fn a_ztoc_of_another_blob_is_refused() {
    let [packed, ..] = packings();
    let (_, ztoc) = indexes(&packed);
    let refused = by_ztoc(&ztoc, packed.len() + 1, Trust::Signed)
        .err()
        .unwrap();
    assert!(matches!(refused, ZtocError::Size { .. }), "{refused}");
}

#[test]
fn a_damaged_ztoc_is_an_error_and_never_a_crash() {
    let [packed, ..] = packings();
    let (_, ztoc) = indexes(&packed);
    // Windows are of no interest: the tables before them and the files behind.
    let ends = (0..2000).chain(ztoc.len() - 2500..ztoc.len());
    for at in ends.step_by(13) {
        let _ = by_ztoc(&ztoc[..at], packed.len(), Trust::Unsigned);
        for bit in [0x01, 0x80] {
            let mut damaged = ztoc.clone();
            damaged[at] ^= bit;
            if let Ok(table) = by_ztoc(&damaged, packed.len(), Trust::Unsigned) {
                for index in 0..table.chunk_count() {
                    let chunk = table.chunk(ChunkIndex(index as u32)).unwrap();
                    let end = chunk.packed_at.0 + u64::from(chunk.packed_len);
                    assert!(end <= packed.len() as u64, "byte {at}");
                }
            }
        }
    }
}

#[test]
fn an_index_names_the_ztoc_of_each_layer() {
    let descriptor = |digest: &[u8], media_type: &str| Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(digest),
        size: 7,
        annotations: Default::default(),
        artifact_type: None,
        platform: None,
    };
    let image = descriptor(b"image", "application/vnd.oci.image.manifest.v1+json");
    let layer = descriptor(b"layer", "application/vnd.oci.image.layer.v1.tar+gzip");
    let layers = [(&layer, descriptor(b"ztoc", ZTOC))];
    for (version, subject) in [(Version::V1, Some(&image)), (Version::V2, None)] {
        let written = index_manifest(version, subject, &layers).to_string();
        let index = index(written.as_bytes()).unwrap();
        assert_eq!(
            index.subject.as_ref().map(|subject| subject.digest),
            subject.map(|it| it.digest)
        );
        assert_eq!(
            part(&index, layer.digest).unwrap().ztoc.digest,
            Digest::of(b"ztoc")
        );
        assert!(part(&index, image.digest).is_none());
    }
    let image = br#"{"config":{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}}"#;
    assert!(index(image).is_none());
    assert!(index(b"<html>").is_none());
}
