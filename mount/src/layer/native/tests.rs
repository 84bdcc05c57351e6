use std::io::{Read, Seek, Write};
use std::os::unix::fs::FileExt;

use super::*;
use crate::digest::Digest;
use crate::extent::CHUNK_BYTES;
use crate::layer::decode::Decoder;
use crate::layer::entry::Kind;
use crate::layer::table::{self, ChunkIndex, Table};

/// Bytes that zstd cannot shrink, different for each seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn text(len: usize) -> Vec<u8> {
    b"all work and no play "
        .iter()
        .copied()
        .cycle()
        .take(len)
        .collect()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for (index, len) in [
        0,
        1,
        511,
        512,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES + 7,
    ]
    .into_iter()
    .enumerate()
    {
        files.push((format!("noise-{len}"), noise(len, index as u64)));
        files.push((format!("text-{len}"), text(len)));
        files.push((format!("zeros-{len}"), vec![0; len]));
    }
    let mut holes = noise(CHUNK_BYTES, 99);
    holes.resize(9 * CHUNK_BYTES, 0);
    holes.extend(text(CHUNK_BYTES + 5));
    files.push(("holes".into(), holes));
    files.extend((0..500).map(|index| (format!("small-{index}"), noise(index * 7, index as u64))));
    files
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn blueprint(packed: &[u8], plain: &[u8]) -> Blueprint {
    Blueprint {
        layer: Digest::of(packed),
        packed_len: packed.len() as u64,
        diff_id: Digest::of(plain),
    }
}

fn converted(blueprint: Blueprint, packed: &[u8]) -> Result<(Table, std::fs::File), ConvertError> {
    let scratch = tempfile::tempdir().unwrap();
    let native = tempfile::tempfile().unwrap();
    let compressors = Compressors::start();
    let packed = Box::new(std::io::Cursor::new(packed.to_vec()));
    let file = native.try_clone().unwrap();
    let mut writer = convert(blueprint, packed, file, scratch.path(), &compressors)?;
    let mut bytes = Vec::new();
    writer.finish(blueprint.layer, &mut bytes).unwrap();
    Ok((table::from_reader(&bytes[..]).unwrap(), native))
}

fn rebuilt(table: &Table, native: &std::fs::File) -> Result<Digest, RebuildError> {
    let mut stream = Vec::new();
    rebuild(table, native, &mut stream)?;
    Ok(Digest::of(&stream))
}

fn chunk(table: &Table, native: &std::fs::File, index: ChunkIndex) -> bytes::Bytes {
    let chunk = table.chunk(index).unwrap();
    let mut packed = vec![0; chunk.packed_len as usize];
    native
        .read_exact_at(&mut packed, chunk.packed_at.0)
        .unwrap();
    Decoder::default().plain(&chunk, &packed).unwrap()
}

/// What a reader of the pieces sees.
fn content(table: &Table, native: &std::fs::File, entry: u64) -> Vec<u8> {
    let (entry, pieces) = table.entry(entry).unwrap();
    let Kind::Regular { size } = entry.kind else {
        panic!("not a file")
    };
    let pieces = table.pieces(pieces).unwrap();
    let mut content = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let end = pieces.get(index + 1).map_or(size, |next| next.at());
        let len = (end - piece.at()) as usize;
        assert_eq!(piece.at(), content.len() as u64);
        match piece.chunk() {
            None => content.resize(content.len() + len, 0),
            Some((index, skip)) => {
                let plain = chunk(table, native, index);
                content.extend_from_slice(&plain[skip as usize..skip as usize + len]);
            }
        }
    }
    content
}

#[test]
fn every_file_reads_back_whatever_the_compression() {
    let files = files();
    let plain = archive(&files);
    for packed in [
        plain.clone(),
        gzip(&plain),
        zstd::encode_all(&plain[..], 1).unwrap(),
    ] {
        let (table, native) = converted(blueprint(&packed, &plain), &packed).unwrap();
        assert_eq!(table.entry_count(), files.len() as u64);
        for (index, (name, expected)) in files.iter().enumerate() {
            assert!(
                content(&table, &native, index as u64) == *expected,
                "{name}"
            );
        }
    }
}

#[test]
fn chunks_are_squashfs_blocks_and_fragments() {
    let plain = archive(&files());
    let (table, _) = converted(blueprint(&plain, &plain), &plain).unwrap();
    for (entry, pieces) in table.entries().map(Result::unwrap) {
        let Kind::Regular { size } = entry.kind else {
            panic!("not a file")
        };
        for piece in table.pieces(pieces).unwrap() {
            assert_eq!(piece.at() % CHUNK_BYTES as u64, 0);
            let Some((index, skip)) = piece.chunk() else {
                continue;
            };
            let chunk = table.chunk(index).unwrap();
            assert!(chunk.plain_len as usize <= CHUNK_BYTES);
            let is_whole_block = size - piece.at() >= CHUNK_BYTES as u64;
            assert!(!is_whole_block || (chunk.plain_len as usize, skip) == (CHUNK_BYTES, 0));
        }
    }
}

#[test]
fn a_chunk_is_one_zstd_frame_with_its_size_and_a_small_window() {
    let plain = archive(&files());
    let (table, native) = converted(blueprint(&plain, &plain), &plain).unwrap();
    for index in 0..table.chunk_count() {
        let chunk = table.chunk(ChunkIndex(index as u32)).unwrap();
        if chunk.codec == table::Codec::Raw {
            assert_eq!(chunk.packed_len, chunk.plain_len);
            continue;
        }
        let mut packed = vec![0; chunk.packed_len as usize];
        native
            .read_exact_at(&mut packed, chunk.packed_at.0)
            .unwrap();
        let frame = zstd::zstd_safe::find_frame_compressed_size(&packed).unwrap();
        assert_eq!(frame, packed.len());
        let size = zstd::zstd_safe::get_frame_content_size(&packed).unwrap();
        assert_eq!(size, Some(chunk.plain_len.into()));
        assert!(is_frame(&packed, chunk.plain_len as usize));
        assert!(!is_frame(&packed, chunk.plain_len as usize + 1));
        assert!(!is_frame(
            &[&packed[..], b"more"].concat(),
            chunk.plain_len as usize
        ));
        assert!(chunk.packed_len < chunk.plain_len);
    }
}

#[test]
fn whole_blocks_of_zeros_take_no_chunks() {
    let plain = archive(&[("zeros".into(), vec![0; 100 * CHUNK_BYTES + 1])]);
    let (table, _) = converted(blueprint(&plain, &plain), &plain).unwrap();
    assert_eq!(table.chunk_count(), 1);
    assert_eq!(table.chunk(ChunkIndex(0)).unwrap().plain_len, 1);
    let (_, pieces) = table.entry(0).unwrap();
    assert_eq!(table.pieces(pieces).unwrap().len(), 2);
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let plain = archive(&files());
    let packed = gzip(&plain);
    let bytes = || {
        let (_, mut native) = converted(blueprint(&packed, &plain), &packed).unwrap();
        let mut bytes = Vec::new();
        native.rewind().unwrap();
        native.read_to_end(&mut bytes).unwrap();
        Digest::of(&bytes)
    };
    assert_eq!(bytes(), bytes());
}

#[test]
fn the_tar_stream_can_be_rebuilt_and_damage_is_noticed() {
    let plain = archive(&files());
    let (table, native) = converted(blueprint(&plain, &plain), &plain).unwrap();
    assert_eq!(
        Footer::of(&native).unwrap().unwrap().diff_id(),
        Digest::of(&plain)
    );
    assert_eq!(rebuilt(&table, &native).unwrap(), Digest::of(&plain));

    let chunk = table.chunk(ChunkIndex(3)).unwrap();
    native
        .write_all_at(b"damage", chunk.packed_at.0 + 8)
        .unwrap();
    assert!(rebuilt(&table, &native).is_err());
}

#[test]
fn a_sparse_archive_can_be_rebuilt_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("sparse")).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(&noise(CHUNK_BYTES, 1), 5 << 20).unwrap();
    file.set_len(9 << 20).unwrap();
    std::fs::write(directory.path().join("after"), b"after").unwrap();
    let expected = std::fs::read(directory.path().join("sparse")).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = std::process::Command::new("tar")
            .args(format)
            .args(["--sparse", "-cf", "-", "sparse", "after"])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(tar.status.success());
        let plain = tar.stdout;
        assert!(plain.len() < 1 << 20);
        let (table, native) = converted(blueprint(&plain, &plain), &plain).unwrap();
        assert!(content(&table, &native, 0) == expected, "{format:?}");
        assert_eq!(content(&table, &native, 1), b"after");
        assert_eq!(
            rebuilt(&table, &native).unwrap(),
            Digest::of(&plain),
            "{format:?}"
        );
    }
}

#[test]
fn bytes_that_are_not_what_was_promised_are_refused_by_the_reason_that_matters() {
    let plain = archive(&files()[..20]);
    let packed = gzip(&plain);
    let right = blueprint(&packed, &plain);

    let other = Blueprint {
        layer: Digest::of(b"other"),
        ..right
    };
    assert!(matches!(
        converted(other, &packed),
        Err(ConvertError::Digest { .. })
    ));

    let other = Blueprint {
        diff_id: Digest::of(b"other"),
        ..right
    };
    assert!(matches!(
        converted(other, &packed),
        Err(ConvertError::DiffId { .. })
    ));

    let short = &packed[..packed.len() / 2];
    assert!(matches!(
        converted(right, short),
        Err(ConvertError::Size { .. })
    ));

    let long = [&packed[..], b"more"].concat();
    assert!(matches!(
        converted(right, &long),
        Err(ConvertError::Size { .. })
    ));

    let mut damaged = packed.clone();
    damaged[packed.len() / 2] ^= 0x10;
    assert!(matches!(
        converted(right, &damaged),
        Err(ConvertError::Digest { .. })
    ));

    let garbage = noise(10_000, 5);
    let promised = blueprint(&garbage, &plain);
    assert!(matches!(
        converted(promised, &garbage),
        Err(ConvertError::Tar { .. })
    ));
}

#[test]
fn a_strangers_layer_is_accepted_with_a_table_of_our_own() {
    let plain = archive(&files());
    let promised = blueprint(&plain, &plain);
    let (theirs, native) = converted(promised, &plain).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut writer = accepted(promised, &theirs, &native, scratch.path()).unwrap();
    let mut bytes = Vec::new();
    writer.finish(promised.layer, &mut bytes).unwrap();
    let ours = table::from_reader(&bytes[..]).unwrap();
    for index in 0..ours.entry_count() {
        assert_eq!(ours.entry(index).unwrap(), theirs.entry(index).unwrap());
    }
    for index in 0..ours.chunk_count() as u32 {
        let index = ChunkIndex(index);
        assert_eq!(ours.chunk(index).unwrap(), theirs.chunk(index).unwrap());
    }

    let other = Blueprint {
        diff_id: Digest::of(b"other"),
        ..promised
    };
    assert!(accepted(other, &theirs, &native, scratch.path()).is_err());
    let chunk = theirs.chunk(ChunkIndex(5)).unwrap();
    native
        .write_all_at(b"damage", chunk.packed_at.0 + 8)
        .unwrap();
    assert!(accepted(promised, &theirs, &native, scratch.path()).is_err());
}

#[test]
fn what_a_strangers_table_says_of_a_file_is_not_believed() {
    let plain = archive(&[("etc/shadow".into(), b"secret".to_vec())]);
    let promised = blueprint(&plain, &plain);
    let (_, native) = converted(promised, &plain).unwrap();
    // The same content under another name and mode: only the tar headers tell.
    let forged = archive(&[("etc/public".into(), b"secret".to_vec())]);
    let (forged_table, _) = converted(blueprint(&forged, &forged), &forged).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut writer = accepted(promised, &forged_table, &native, scratch.path()).unwrap();
    let mut bytes = Vec::new();
    writer.finish(promised.layer, &mut bytes).unwrap();
    let ours = table::from_reader(&bytes[..]).unwrap();
    assert_eq!(ours.entry(0).unwrap().0.path, b"etc/shadow");
}

#[test]
fn a_frame_with_a_window_of_its_own_is_no_block() {
    // A streaming writer does not know the size, and names a window instead.
    let streamed = zstd::stream::encode_all(&b"plain"[..], 1).unwrap();
    assert!(!is_frame(&streamed, 5));
    assert!(!is_frame(b"no frame at all", 5));
}

#[test]
fn a_file_says_that_its_chunks_are_packed_as_now() {
    let plain = archive(&files());
    let (_, native) = converted(blueprint(&plain, &plain), &plain).unwrap();
    assert!(Footer::of(&native).unwrap().unwrap().is_packed_as_now());
}
