use std::io;

use super::write::{ENTRIES_LIMIT, NAMES_BYTES_LIMIT};
use super::*;
use crate::digest::{ChunkDigest, Digest};
use crate::extent::PackedOffset;
use crate::layer::entry::{Entry, Kind, Timestamp};

fn sample() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    let chunk = writer
        .chunk(&Chunk {
            packed_at: PackedOffset(7),
            packed_len: 3,
            skip: 0,
            plain_len: 5,
            codec: Codec::Zstd,
            digest: ChunkDigest::blake3_of(b"plain"),
        })
        .unwrap();
    let pieces = writer
        .pieces(&[Piece::in_chunk(0, chunk, 0), Piece::hole(5)])
        .unwrap();
    for (entry, pieces) in entries().iter().zip([PieceRange::default(), pieces]) {
        writer.entry(entry, pieces).unwrap();
    }
    let mut bytes = Vec::new();
    writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
    bytes
}

fn entries() -> [Entry; 2] {
    let entry = |path: &[u8], kind| Entry {
        path: path.to_vec(),
        kind,
        mode: 0o4755,
        uid: 70_000,
        gid: u32::MAX,
        mtime: Timestamp { secs: -1, nanos: 5 },
        xattrs: vec![
            (b"user.a".to_vec(), vec![0, 255]),
            (b"user.empty".to_vec(), vec![]),
        ],
    };
    [
        entry(
            b"l",
            Kind::Symlink {
                target: b"\xff/x".to_vec(),
            },
        ),
        entry(b"d/f\xe6", Kind::Regular { size: 1 << 40 }),
    ]
}

#[test]
fn a_table_reads_back_as_written() {
    let bytes = sample();
    let table = from_reader(&bytes[..]).unwrap();
    assert_eq!(table.layer(), Digest::of(b"layer"));
    let read: Vec<_> = table.entries().map(Result::unwrap).collect();
    for ((entry, _), expected) in read.iter().zip(entries()) {
        assert_eq!(entry.path, expected.path);
        assert_eq!(
            (entry.mode, entry.uid, entry.gid),
            (0o4755, 70_000, u32::MAX)
        );
        assert_eq!(entry.mtime, expected.mtime);
        assert_eq!(entry.xattrs[0], (&b"user.a"[..], &[0, 255][..]));
        assert_eq!(entry.xattrs[1], (&b"user.empty"[..], &[][..]));
    }
    let pieces = table.pieces(read[1].1).unwrap();
    assert_eq!(pieces[0].chunk(), Some((ChunkIndex(0), 0)));
    assert_eq!((pieces[1].at(), pieces[1].chunk()), (5, None));
    assert!(
        table
            .chunk(ChunkIndex(0))
            .unwrap()
            .digest
            .matches_packed(b"plain")
    );
    assert!(table.chunk(ChunkIndex(1)).is_err());
}

#[test]
fn chunks_lie_between_the_first_and_the_last_byte_of_any() {
    let extent = |places: &[(u64, u32)]| {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path());
        for &(at, packed_len) in places {
            let chunk = Chunk {
                packed_at: PackedOffset(at),
                packed_len,
                skip: 0,
                plain_len: 5,
                codec: Codec::Zstd,
                digest: ChunkDigest::Unknown,
            };
            writer.chunk(&chunk).unwrap();
        }
        let mut bytes = Vec::new();
        writer.finish(Digest::of(b"layer"), &mut bytes).unwrap();
        from_reader(&bytes[..]).unwrap().packed_extent()
    };
    let anywhere = 0..u64::MAX;
    assert_eq!(extent(&[(50, 10), (7, 3), (20, 100)]), 7..120);
    assert_eq!(extent(&[]), anywhere);
    assert_eq!(extent(&[(7, 3), (u64::MAX, 1)]), anywhere);
}

#[test]
fn an_excess_is_told_from_a_disk_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = TableWriter::in_directory(directory.path());
    let [entry, _] = entries();
    writer.entries.records = ENTRIES_LIMIT - 1;
    writer.entry(&entry, PieceRange::default()).unwrap();
    let refused = writer.entry(&entry, PieceRange::default()).unwrap_err();
    assert_eq!(
        Excess::of(&refused).unwrap().to_string(),
        "more than 4 million entries"
    );
    writer.names.records = NAMES_BYTES_LIMIT;
    writer.entries.records = 0;
    let refused = writer.entry(&entry, PieceRange::default()).unwrap_err();
    assert!(Excess::of(&refused).is_some());
    assert!(Excess::of(&io::ErrorKind::StorageFull.into()).is_none());
}

#[test]
fn bytes_of_a_file_are_found_in_its_pieces_or_the_pieces_are_damaged() {
    let chunk = |at, index, skip| Piece::in_chunk(at, ChunkIndex(index), skip);
    let pieces = [chunk(0, 0, 7), Piece::hole(10), chunk(30, 1, 0)];
    let lie = |from, to| {
        stretches(&pieces, from, to).map(|stretches| {
            let told = |stretch: Stretch| (stretch.chunk.map(|(c, at)| (c.0, at)), stretch.len);
            stretches.into_iter().map(told).collect::<Vec<_>>()
        })
    };
    assert_eq!(lie(0, 0), Some(vec![]));
    assert_eq!(lie(3, 5), Some(vec![(Some((0, 10)), 2)]));
    let all = vec![(Some((0, 9)), 8), (None, 20), (Some((1, 0)), 4)];
    assert_eq!(lie(2, 34), Some(all));
    assert_eq!(stretches(&[], 0, 1), None);
    assert_eq!(stretches(&[Piece::hole(5)], 0, 1), None);
    for backwards in [[9, 3, 7], [0, 9, 3], [0, u64::MAX, 2]] {
        let pieces = backwards.map(|at| chunk(at, 0, u32::MAX));
        let _ = stretches(&pieces, 0, u64::MAX);
        let _ = stretches(&pieces, 4, 8);
    }
}

#[test]
fn a_damaged_table_is_an_error_and_never_a_crash() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(from_reader(&bytes[..len]).is_err());
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x80;
        if let Ok(table) = from_reader(&damaged[..]) {
            for (_, pieces) in table.entries().flatten() {
                let _ = table.pieces(pieces);
            }
            let _ = table.chunk(ChunkIndex(0));
        }
    }
}
