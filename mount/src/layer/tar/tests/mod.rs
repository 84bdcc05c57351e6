//! Archives made here and by GNU tar, whole and damaged.

mod gnu_tar;
mod hostile;
mod random;

use std::io::Read;

use super::header::BLOCK_BYTES;
use super::*;
use crate::layer::entry::Timestamp;

/// Gives at most `step` bytes at once.
struct Stepwise<'a>(&'a [u8], usize);

impl Read for Stepwise<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.1);
        self.0.read(&mut into[..len])
    }
}

impl BufRead for Stepwise<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(self.1)])
    }

    fn consume(&mut self, len: usize) {
        self.0.consume(len);
    }
}

type Members = Vec<(Entry, Vec<u8>)>;

/// All members with their content, holes filled in, and the stream put together again.
fn read_stepwise(archive: &[u8], step: usize) -> Result<(Members, Vec<u8>), TarError> {
    let mut reader = TarReader::new(Stepwise(archive, step));
    let (mut members, mut rebuilt) = (Vec::new(), Vec::new());
    while let Some(entry) = reader.next_entry()? {
        rebuilt.extend(reader.take_literal());
        let mut content = Vec::new();
        while let Some(stretch) = reader.next_content()? {
            match stretch {
                Content::Data(data) => {
                    assert!(!data.is_empty());
                    content.extend_from_slice(data);
                    rebuilt.extend_from_slice(data);
                }
                Content::Hole(len) => {
                    assert!(len > 0);
                    content.resize(content.len() + len as usize, 0);
                }
            }
        }
        rebuilt.extend(reader.take_literal());
        if let Kind::Regular { size } = entry.kind {
            assert_eq!(size, content.len() as u64);
        }
        members.push((entry, content));
    }
    rebuilt.extend(reader.take_literal());
    Ok((members, rebuilt))
}

fn read(archive: &[u8]) -> Result<Members, TarError> {
    let (members, rebuilt) = read_stepwise(archive, usize::MAX)?;
    assert!(rebuilt == archive, "the stream is not what it was");
    Ok(members)
}

fn header(flag: u8, name: &[u8], size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn changed(mut header: tar::Header, change: impl FnOnce(&mut tar::OldHeader)) -> Vec<u8> {
    change(header.as_old_mut());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

fn member(flag: u8, name: &str, body: &[u8]) -> Vec<u8> {
    let header = header(flag, name.as_bytes(), body.len() as u64);
    [header.as_bytes(), &padded(body.to_vec())[..]].concat()
}

fn link(flag: u8, name: &str, target: &str) -> Vec<u8> {
    changed(header(flag, name.as_bytes(), 0), |old| {
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    })
}

fn pax(flag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let written = |(keyword, value): &(&str, &[u8])| pax::tests::written(keyword, value);
    member(
        flag,
        "pax",
        &records.iter().flat_map(written).collect::<Vec<_>>(),
    )
}

const END: [u8; 1024] = [0; 1024];

fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    [&parts.concat(), &END[..]].concat()
}

fn names(members: &Members) -> Vec<String> {
    let name = |(entry, _): &(Entry, _)| String::from_utf8_lossy(&entry.path).into_owned();
    members.iter().map(name).collect()
}

#[test]
fn each_type_becomes_its_kind() {
    let device = |flag| {
        let mut header = header(flag, b"dev", 0);
        header.set_device_major(8).unwrap();
        header.set_device_minor(300).unwrap();
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let regular = Kind::Regular { size: 3 };
    let large = [
        ("SCHILY.devmajor", &b"4095"[..]),
        ("SCHILY.devminor", b"1048575"),
    ];
    for (parts, path, kind) in [
        (member(b'0', "f", b"abc"), "f", regular.clone()),
        (member(0, "f", b"abc"), "f", regular.clone()),
        (member(b'7', "/f", b"abc"), "f", regular.clone()),
        (member(b'Q', "./f", b"abc"), "f", regular.clone()),
        (member(b'0', "d/", b""), "d", Kind::Directory),
        (member(0, "d/", b""), "d", Kind::Directory),
        (member(b'0', "f/", b"abc"), "f", regular),
        (member(b'5', ".", b""), "", Kind::Directory),
        (member(b'6', "p", b""), "p", Kind::Fifo),
        (member(b'D', "d", b"Yfile\0\0"), "d", Kind::Directory),
        (
            link(b'2', "l", "../x"),
            "l",
            Kind::Symlink {
                target: b"../x".to_vec(),
            },
        ),
        (
            link(b'1', "h", "/a//./b"),
            "h",
            Kind::Hardlink {
                target: b"a/b".to_vec(),
            },
        ),
        (
            device(b'3'),
            "dev",
            Kind::CharDevice {
                major: 8,
                minor: 300,
            },
        ),
        (
            device(b'4'),
            "dev",
            Kind::BlockDevice {
                major: 8,
                minor: 300,
            },
        ),
        (
            [pax(b'x', &large), device(b'3')].concat(),
            "dev",
            Kind::CharDevice {
                major: 4095,
                minor: 1_048_575,
            },
        ),
        (member(b'0', "a/.wh.b", b"passed"), "a/b", Kind::Whiteout),
        (member(b'0', "a/.wh..wh..opq", b""), "a", Kind::Opaque),
    ] {
        let members = read(&archive(&[parts, member(b'5', "next", b"")])).unwrap();
        assert_eq!(names(&members), [path, "next"]);
        assert_eq!(members[0].0.kind, kind);
    }
}

#[test]
fn what_describes_the_archive_is_passed_over_and_stays_in_the_literal() {
    let members = read(&archive(&[
        member(b'V', "label", b"body of a label"),
        member(b'5', ".wh..wh.plnk", b""),
        member(b'0', ".wh..wh.plnk/12.34", &[1; 600]),
        member(b'0', "a/.wh..wh.aufs", b"x"),
        pax(b'g', &[("comment", b"made by git")]),
        member(b'0', "f", b"abc"),
    ]));
    assert_eq!(names(&members.unwrap()), ["f"]);
}

#[test]
fn a_link_has_a_body_only_if_no_header_follows_it() {
    let mut sized = header(b'1', b"h", 600);
    sized.as_old_mut().linkname[0] = b'f';
    sized.set_cksum();
    let sized = sized.as_bytes().to_vec();
    let next = member(b'0', "next", b"abc");
    for parts in [
        vec![sized.clone(), next.clone()],
        vec![sized.clone(), vec![1; 1024], next.clone()],
        vec![sized.clone(), link(b'2', "l", "x"), next],
    ] {
        let members = read(&archive(&parts)).unwrap();
        assert_eq!(names(&members).last().unwrap(), "next");
        assert_eq!(
            members[0].0.kind,
            Kind::Hardlink {
                target: b"f".to_vec()
            }
        );
    }
    assert_eq!(
        read(&archive(std::slice::from_ref(&sized))).unwrap().len(),
        1
    );
    assert_eq!(read(&sized).unwrap().len(), 1);
}

#[test]
fn global_headers_count_until_they_are_overridden() {
    let members = read(&archive(&[
        pax(
            b'g',
            &[
                ("uid", b"7"),
                ("mtime", b"5.5"),
                ("SCHILY.xattr.user.g", b"1"),
            ],
        ),
        member(b'0', "a", b""),
        pax(
            b'x',
            &[("uid", b""), ("gid", b"9"), ("SCHILY.xattr.user.x", b"\0")],
        ),
        member(b'0', "b", b""),
        pax(b'g', &[("uid", b"8")]),
        member(b'0', "c", b""),
    ]))
    .unwrap();
    let owners: Vec<_> = members
        .iter()
        .map(|(entry, _)| (entry.uid, entry.gid))
        .collect();
    assert_eq!(owners, [(7, 0), (0, 9), (8, 0)]);
    let half = Timestamp {
        secs: 5,
        nanos: 500_000_000,
    };
    assert!(members.iter().all(|(entry, _)| entry.mtime == half));
    let counts: Vec<_> = members
        .iter()
        .map(|(entry, _)| entry.xattrs.len())
        .collect();
    assert_eq!(counts, [1, 2, 1]);
}

#[test]
fn the_most_particular_name_and_size_count() {
    let records = [
        ("path", &b"from/pax"[..]),
        ("size", b"5"),
        ("linkpath", b"unused"),
    ];
    let file = |records: &[u8]| [records, header(b'0', b"short", 0).as_bytes()].concat();
    let body = padded(b"12345".to_vec());
    let members = read(&archive(&[
        file(&pax(b'x', &records)),
        body.clone(),
        file(&[pax(b'x', &[("path", b"ignored")]), pax(b'x', &records)].concat()),
        body.clone(),
        file(
            &[
                member(b'L', "././@LongLink", b"from/gnu\0"),
                pax(b'x', &records),
            ]
            .concat(),
        ),
        body.clone(),
        member(b'K', "././@LongLink", b"long/target\0"),
        link(b'2', "l", "short"),
    ]))
    .unwrap();
    assert_eq!(names(&members), ["from/pax", "from/pax", "from/gnu", "l"]);
    assert!(members[..3].iter().all(|(_, content)| content == b"12345"));
    let target = b"long/target".to_vec();
    assert_eq!(members[3].0.kind, Kind::Symlink { target });
}

#[test]
fn an_archive_ends_at_two_blocks_of_zeros_or_with_its_stream() {
    let file = member(b'0', "f", b"abc");
    for end in [
        vec![],
        vec![0; 512],
        vec![0; 1024],
        vec![0; 10240],
        [&END[..], b"garbage"].concat(),
        [&END[..], &file].concat(),
    ] {
        assert_eq!(read(&[&file[..], &end].concat()).unwrap().len(), 1);
    }
    assert_eq!(read(b"").unwrap(), []);
    let mut reader = TarReader::new(&END[..]);
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_content().unwrap().is_none());
}

#[test]
fn unread_content_is_skipped() {
    let large = vec![7; 1_000_000];
    let archive = archive(&[member(b'0', "a", &large), member(b'0', "b", b"abc")]);
    let mut reader = TarReader::new(&archive[..]);
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
    assert!(matches!(reader.next_content(), Ok(Some(Content::Data(_)))));
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
    assert_eq!(reader.next_content().unwrap(), Some(Content::Data(b"abc")));
}
