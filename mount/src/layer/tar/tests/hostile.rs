//! Damage and malice end in an error that says what and where.

use std::error::Error as _;

use super::*;
use crate::layer::entry::PATH_BYTES_LIMIT;

/// The error's message with its causes.
fn refused(archive: &[u8]) -> String {
    let err = read(archive).unwrap_err();
    match err.source() {
        Some(source) => format!("{err}: {source}"),
        None => err.to_string(),
    }
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
        let mut reader = TarReader::new(io::BufReader::new(
            io::Cursor::new(start.to_vec()).chain(io::repeat(0)),
        ));
        reader.next_entry().unwrap_err().to_string()
    };
    let label = header(b'V', b"label", 1 << 30);
    for start in [&END[..], label.as_bytes()] {
        assert!(endless(start).contains("more than 64 MiB that belong to no file"));
    }
}

#[test]
fn a_truncated_archive_is_an_error_except_behind_a_members_content() {
    let parts = [
        member(b'0', "a", &[1; 700]),
        pax(b'x', &[("SCHILY.xattr.user.a", b"value")]),
        member(b'0', "b", &[2; 10]),
    ];
    let whole = archive(&parts);
    let first = parts[0].len();
    let second = parts.concat().len();
    // Not all programs that write layers fill the last block of the last file.
    let ends = [
        0..=0,
        512 + 700..=first,
        second - 512 + 10..=second,
        second + 512..=second + 512,
    ];
    for len in 0..whole.len() - 512 {
        let result = read(&whole[..len]);
        let is_end = ends.iter().any(|range| range.contains(&len));
        assert_eq!(result.is_ok(), is_end, "{len}: {result:?}");
        if let Err(TarError::Truncated { at }) = result {
            assert_eq!(at.0, len as u64);
        }
    }
}

#[test]
fn a_failing_stream_is_told_apart_from_a_damaged_one() {
    let stream = crate::layer::inflate::plain(&b"\x1f\x8b\x08 and no more"[..]).unwrap();
    let err = TarReader::new(io::BufReader::new(stream))
        .next_entry()
        .unwrap_err();
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
