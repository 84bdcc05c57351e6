//! Random archives, as written and with damage.

use proptest::prelude::*;

use super::*;

/// A member of a random archive: what to write, and what must be read.
fn any_member() -> impl Strategy<Value = (Vec<u8>, Entry, Vec<u8>)> {
    let name = prop::collection::vec("[a-z\u{80}-\u{ff}]{1,40}", 1..8).prop_map(|c| c.join("/"));
    let value = prop::collection::vec(any::<u8>(), 1..600);
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
