use super::*;
use crate::digest::Digest;
use crate::layer::entry::{Entry, Kind, Timestamp};
use crate::layer::table::{Table, from_reader};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn table_of(json: &str) -> Result<Table, TocError> {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    let layout = Layout {
        end: PackedOffset(1000),
        codec: Codec::Zstd,
    };
    read(json.as_bytes(), layout, &mut writer)?;
    let mut bytes = Vec::new();
    writer.finish(Digest::of(b"blob"), &mut bytes).unwrap();
    Ok(from_reader(&bytes[..]).unwrap())
}

/// The table of a TOC with `records`, where `D` stands for a digest.
fn table(records: &str) -> Result<Table, TocError> {
    let records = records.replace("\"D\"", &format!("{DIGEST:?}"));
    table_of(&format!(r#"{{"version":1,"entries":[{records}]}}"#))
}

fn entries(table: &Table) -> Vec<Entry<&[u8]>> {
    table.entries().map(|entry| entry.unwrap().0).collect()
}

/// Where a chunk lies in the blob, how many bytes it has there and how many plain ones.
type Place = (u64, u32, u32);

/// The pieces of the file at `index`: where each begins, and its chunk.
fn pieces(table: &Table, index: u64) -> Vec<(u64, Option<Place>)> {
    let (_, range) = table.entry(index).unwrap();
    let pieces = table.pieces(range).unwrap();
    let place = |index| {
        let chunk = table.chunk(index).unwrap();
        (chunk.packed_at.0, chunk.packed_len, chunk.plain_len)
    };
    pieces
        .iter()
        .map(|piece| (piece.at(), piece.chunk().map(|(chunk, _)| place(chunk))))
        .collect()
}

#[test]
fn a_chunk_ends_where_the_next_begins_or_its_file_or_the_files_end() {
    let table = table(
        r#"{"type":"reg","name":"a","size":10,"offset":100,"endOffset":150,"digest":"D"},
           {"type":"dir","name":"d"},
           {"type":"reg","name":"b","size":10,"offset":200,"digest":"D"},
           {"type":"symlink","name":"l","linkName":"b"},
           {"type":"reg","name":"c","size":30,"offset":300,"chunkSize":10,"chunkDigest":"D"},
           {"type":"chunk","name":"c","offset":350,"chunkOffset":10,"chunkSize":10,"chunkDigest":"D"},
           {"type":"chunk","name":"c","offset":400,"chunkOffset":20,"chunkDigest":"D"}"#,
    )
    .unwrap();
    assert_eq!(pieces(&table, 0), [(0, Some((100, 50, 10)))]);
    assert_eq!(pieces(&table, 2), [(0, Some((200, 100, 10)))]);
    assert_eq!(
        pieces(&table, 4),
        [
            (0, Some((300, 50, 10))),
            (10, Some((350, 50, 10))),
            (20, Some((400, 600, 10)))
        ]
    );
}

#[test]
fn chunks_of_zeros_are_holes_that_nobody_fetches() {
    let table = table(
        r#"{"type":"reg","name":"a","size":5000,"offset":100,"endOffset":150,"digest":"D",
            "chunkSize":2000,"chunkDigest":"D","chunkType":"zeros"},
           {"type":"chunk","name":"a","offset":110,"chunkOffset":2000,"chunkSize":1000,"chunkDigest":"D"},
           {"type":"chunk","name":"a","offset":140,"chunkOffset":3000,"chunkSize":2000,
            "chunkDigest":"D","chunkType":"zeros"}"#,
    )
    .unwrap();
    assert_eq!(
        pieces(&table, 0),
        [(0, None), (2000, Some((110, 30, 1000))), (3000, None)]
    );
    assert_eq!(table.chunk_count(), 1);
}

#[test]
fn a_zeros_chunk_larger_than_any_chunk_is_no_problem() {
    let records = r#"{"type":"reg","name":"a","size":1099511627776,"offset":100,"chunkSize":1099511627775,"chunkType":"zeros"},
         {"type":"chunk","name":"a","offset":120,"chunkOffset":1099511627775,"chunkSize":1,"chunkDigest":"D"}"#;
    let table = table(records).unwrap();
    assert_eq!(
        pieces(&table, 0),
        [(0, None), ((1 << 40) - 1, Some((120, 880, 1)))]
    );
}

#[test]
fn every_kind_of_file_is_understood() {
    let table = table(
        r#"{"type":"dir","name":"./d/","mode":16877,"uid":70000,"gid":4294967295},
           {"type":"reg","name":"/d/empty","mode":2541,"offset":77},
           {"type":"symlink","name":"l","linkName":"/../x\u00e6"},
           {"type":"hardlink","name":"h","linkName":"./d/empty"},
           {"type":"char","name":"c","devMajor":4,"devMinor":1},
           {"type":"block","name":"b","devMajor":8},
           {"type":"fifo","name":"f","NumLink":3,"userName":"x"},
           {"type":"reg","name":"d/.wh.gone"},
           {"type":"reg","name":"d/.wh..wh..opq"},
           {"type":"reg","name":"d/.wh..wh.plnk"},
           {"type":"dir","name":"./"}"#,
    )
    .unwrap();
    let found: Vec<_> = entries(&table)
        .into_iter()
        .map(|entry| (entry.path, entry.kind))
        .collect();
    let device = |major, minor| Kind::CharDevice { major, minor };
    assert_eq!(
        found,
        [
            (&b"d"[..], Kind::Directory),
            (b"d/empty", Kind::Regular { size: 0 }),
            (
                b"l",
                Kind::Symlink {
                    target: "/../xæ".as_bytes()
                }
            ),
            (b"h", Kind::Hardlink { target: b"d/empty" }),
            (b"c", device(4, 1)),
            (b"b", Kind::BlockDevice { major: 8, minor: 0 }),
            (b"f", Kind::Fifo),
            (b"d/gone", Kind::Whiteout),
            (b"d", Kind::Opaque),
            (b"", Kind::Directory),
        ]
    );
    let directory = &entries(&table)[0];
    assert_eq!(
        (directory.mode, directory.uid, directory.gid),
        (0o755, 70_000, u32::MAX)
    );
    assert_eq!(entries(&table)[1].mode, 0o4755);
}

#[test]
fn times_have_fractions_and_zones_and_may_be_unset() {
    for (text, secs, nanos) in [
        ("2020-09-13T12:26:40Z", 1_600_000_000, 0),
        ("2020-09-13T12:26:40.5Z", 1_600_000_000, 500_000_000),
        (
            "2020-09-13T14:26:40.123456789+02:00",
            1_600_000_000,
            123_456_789,
        ),
        ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
        ("2100-01-01T00:00:00Z", 4_102_444_800, 0),
        ("0001-01-01T00:00:00Z", 0, 0),
        ("", 0, 0),
    ] {
        let record = format!(r#"{{"type":"dir","name":"d","modtime":"{text}"}}"#);
        let table = table(&record).unwrap();
        assert_eq!(
            entries(&table)[0].mtime,
            Timestamp { secs, nanos },
            "{text}"
        );
    }
}

#[test]
fn attributes_are_base64_and_may_be_binary_and_empty_ones_are_none() {
    let table = table(
        r#"{"type":"dir","name":"d","xattrs":{"user.a":"AP8=","user.empty":""}},
           {"type":"dir","name":"e","xattrs":null}"#,
    )
    .unwrap();
    let found = entries(&table);
    assert_eq!(found[0].xattrs, [(&b"user.a"[..], &[0, 255][..])]);
    assert!(found[1].xattrs.is_empty());
}

#[test]
fn landmarks_are_hidden_at_the_root() {
    let record = |name: &str, offset: u32| {
        format!(
            r#"{{"type":"reg","name":"{name}","size":1,"offset":{offset},"digest":"{DIGEST}"}}"#
        )
    };
    let json = format!(
        r#"{{"entries":[{},{},{},{}],"version":1}}"#,
        record(".prefetch.landmark", 10),
        record("./.no.prefetch.landmark", 20),
        record("stargz.index.json", 30),
        record("d/.prefetch.landmark", 40),
    );
    let table = table_of(&json).unwrap();
    let names: Vec<_> = entries(&table).iter().map(|entry| entry.path).collect();
    assert_eq!(names, [b"d/.prefetch.landmark"]);
}

#[test]
fn what_lies_before_the_prefetch_landmark_leads() {
    let record = |name: &str, offset: u32| {
        format!(
            r#"{{"type":"reg","name":"{name}","size":1,"offset":{offset},"digest":"{DIGEST}"}}"#
        )
    };
    for (landmark, expected) in [(".prefetch.landmark", 2), (".no.prefetch.landmark", 0)] {
        let json = format!(
            r#"{{"entries":[{},{},{},{}],"version":1}}"#,
            record("first", 10),
            record("second", 20),
            record(landmark, 30),
            record("rest", 40),
        );
        let table = table_of(&json).unwrap();
        let leads: Vec<u32> = table.leads().flatten().collect();
        assert_eq!(leads, (0..expected).collect::<Vec<_>>(), "{landmark}");
    }
}

#[test]
fn a_name_may_come_twice() {
    let records = r#"{"type":"dir","name":"a"},{"type":"fifo","name":"a"}"#;
    assert_eq!(table(records).unwrap().entry_count(), 2);
}

#[test]
fn records_that_make_no_sense_are_named_and_refused() {
    for (records, problem) in [
        (r#"{"type":"dir","name":"../a"}"#, "a component is `..`"),
        (r#"{"type":"dir","name":"a\u0000"}"#, "NUL"),
        (
            r#"{"type":"fifo","name":"."}"#,
            "the root is not a directory",
        ),
        (
            r#"{"type":"hardlink","name":"a","linkName":"../b"}"#,
            "`..`",
        ),
        (r#"{"type":"socket","name":"a"}"#, "type that is not known"),
        (r#"{"type":"reg","name":"a/.wh."}"#, "a whiteout of no file"),
        (
            r#"{"type":"dir","name":"a","modtime":"yesterday"}"#,
            "no RFC 3339 time",
        ),
        (
            r#"{"type":"dir","name":"a","xattrs":{"user.a":"?"}}"#,
            "no base64",
        ),
        (
            r#"{"type":"chunk","name":"a"}"#,
            "follows no chunk of its file",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":9}"#,
            "no SHA-256 digest",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"digest":"D"}"#,
            "its bytes are at 0",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":1000,"digest":"D"}"#,
            "its bytes are at 1000",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":18446744073709551615,"digest":"D"}"#,
            "its bytes are at",
        ),
        (
            r#"{"type":"reg","name":"a","size":5,"offset":9,"digest":"D"},
               {"type":"reg","name":"b","size":1,"offset":9,"innerOffset":4,"digest":"D"}"#,
            "overlaps",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":9,"innerOffset":67108864,"digest":"D"}"#,
            "larger than",
        ),
        (
            r#"{"type":"reg","name":"a�","size":1,"offset":9,"digest":"D"}"#,
            "was lost",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":9,"chunkType":"ones","digest":"D"}"#,
            "chunkType",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":9,"chunkSize":2,"digest":"D"}"#,
            "longer than the file",
        ),
        (
            r#"{"type":"reg","name":"a","size":1,"offset":9,"chunkOffset":1,"digest":"D"}"#,
            "starts at byte 1",
        ),
        (
            r#"{"type":"reg","name":"a","size":67108865,"offset":9,"digest":"D"}"#,
            "larger than",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"chunkSize":3,"chunkDigest":"D"}"#,
            "(\"a\"): its chunks end before",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"chunkSize":3,"digest":"D"}"#,
            "no SHA-256 digest",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"chunkSize":3,"chunkDigest":"D"},
               {"type":"dir","name":"b"}"#,
            "record 0 (\"a\"): its chunks end before",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"chunkSize":3,"chunkDigest":"D"},
               {"type":"chunk","name":"b","offset":19,"chunkOffset":3,"chunkDigest":"D"}"#,
            "record 1 (\"b\"): a chunk that follows",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"chunkSize":9,"chunkDigest":"D"},
               {"type":"chunk","name":"a","offset":19,"chunkOffset":9,"chunkDigest":"D"}"#,
            "longer than the file",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"digest":"D"},
               {"type":"reg","name":"b","size":9,"offset":9,"digest":"D"}"#,
            "record 1 (\"b\"): its bytes are at 9 of the blob, expected between 10 and 1000",
        ),
        (
            r#"{"type":"reg","name":"a","size":9,"offset":9,"endOffset":90,"digest":"D"},
               {"type":"reg","name":"b","size":9,"offset":89,"digest":"D"}"#,
            "its bytes are at 89",
        ),
    ] {
        let message = table(records).err().unwrap().to_string();
        assert!(message.contains(problem), "{records}: {message}");
    }
}

#[test]
fn json_that_is_no_toc_is_refused() {
    for json in [
        "",
        "[]",
        "{}",
        r#"{"version":1}"#,
        r#"{"entries":[]}"#,
        r#"{"version":2,"entries":[]}"#,
        r#"{"version":1,"entries":[]} {}"#,
        r#"{"version":1,"entries":[]"#,
        r#"{"version":1,"entries":[],"entries":[]}"#,
        r#"{"version":1,"entries":{}}"#,
        r#"{"version":1,"entries":[{"type":"dir"}]}"#,
        r#"{"version":1,"entries":[{"name":"d"}]}"#,
        r#"{"version":1,"entries":[{"type":"reg","name":"d","size":-1}]}"#,
        r#"{"version":1,"entries":[{"type":"dir","name":"d","uid":4294967296}]}"#,
        r#"{"version":1,"entries":[{"type":"dir","name":"a","name":"d"}]}"#,
    ] {
        let err = table_of(json).err();
        assert!(
            matches!(err, Some(TocError::Json(_) | TocError::Version(2))),
            "{json}: {err:?}"
        );
    }
    let nested = format!(r#"{{"x":{}"#, "[".repeat(100_000));
    assert!(table_of(&nested).is_err());
}

#[test]
fn what_is_unpacked_is_as_long_as_promised_and_memory_is_used_again() {
    let mut unpacked = Unpacked::default();
    let mixed = (0..1u32 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes());
    for plain in [vec![b'x'; 3 << 20], b"{}".to_vec(), mixed.collect()] {
        let frame = zstd::bulk::compress(&plain, 3).unwrap();
        let len = plain.len() as u64;
        assert_eq!(unpacked.frame(&frame, len), Some(&plain[..]));
        for wrong in [0, len - 1, len + 1, PLAIN_LIMIT + 1] {
            assert_eq!(unpacked.frame(&frame, wrong), None, "{wrong} for {len}");
        }
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut packer, &plain).unwrap();
        let member = packer.finish().unwrap();
        assert_eq!(unpacked.member(&member, len).unwrap(), plain);
        let short = unpacked.member(&member, len - 1).unwrap();
        assert_eq!(short, &plain[..plain.len() - 1]);
        // What follows a member says nothing of its length.
        let followed = [&member[..], &[7; 9]].concat();
        assert_eq!(unpacked.member(&followed, len).unwrap(), plain);
        assert!(
            unpacked
                .member(&member[..member.len() - 9], len + 1)
                .is_err()
        );
    }
}
