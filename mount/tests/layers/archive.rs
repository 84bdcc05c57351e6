//! Members as a tar archive, written from POSIX and the manual of GNU tar, not from what reads it.

use sifon_mount::layer::entry::{Kind, Timestamp};

use super::Member;

/// How what ustar cannot say is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PAX records; sparse files of version 1.0.
    Pax,
    /// GNU's long names and old sparse files. What GNU has no words for is still a PAX record.
    Gnu,
}

const BLOCK: usize = 512;

/// Places of holes and data in sparse files, as GNU tar finds them.
const GRAIN: usize = 4096;

/// The whole archive.
pub fn archive(members: &[Member], dialect: Dialect) -> Vec<u8> {
    let mut tar = Vec::new();
    for member in members {
        append(&mut tar, member, dialect);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// What stands in a header block.
struct Header<'a> {
    name: &'a [u8],
    target: &'a [u8],
    flag: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    device: (u32, u32),
}

fn append(tar: &mut Vec<u8>, member: &Member, dialect: Dialect) {
    let entry = &member.entry;
    let name = [member.prefix.as_bytes(), &name(member)].concat();
    let target = match &entry.kind {
        Kind::Symlink { target } => target.clone(),
        Kind::Hardlink { target } => [member.prefix.as_bytes(), target].concat(),
        _ => Vec::new(),
    };
    let extents = member.is_sparse.then(|| extents(&member.content));
    let mut stored = match &extents {
        None => member.content.to_vec(),
        Some(extents) => {
            let parts: Vec<&[u8]> = extents
                .iter()
                .map(|&(at, len)| &member.content[at..at + len])
                .collect();
            parts.concat()
        }
    };
    let mut records = Vec::new();
    let is_pax = dialect == Dialect::Pax;
    if is_pax && (name.len() > 100 || !name.is_ascii()) {
        record(&mut records, "path", &name);
    }
    if is_pax && target.len() > 100 {
        record(&mut records, "linkpath", &target);
    }
    if entry.mtime.nanos != 0 || entry.mtime.secs < 0 {
        record(&mut records, "mtime", decimal(entry.mtime).as_bytes());
    }
    for (key, number) in [("uid", entry.uid), ("gid", entry.gid)] {
        if number > 0o7_777_777 {
            record(&mut records, key, number.to_string().as_bytes());
        }
    }
    for (key, value) in &entry.xattrs {
        let key = String::from_utf8(key.clone()).unwrap();
        record(&mut records, &format!("SCHILY.xattr.{key}"), value);
    }
    if is_pax && let Some(extents) = &extents {
        let size = member.content.len().to_string();
        record(&mut records, "GNU.sparse.major", b"1");
        record(&mut records, "GNU.sparse.minor", b"0");
        record(&mut records, "GNU.sparse.name", &name);
        record(&mut records, "GNU.sparse.realsize", size.as_bytes());
        stored = [sparse_map(extents), stored].concat();
    }
    if !records.is_empty() {
        extension(tar, b"PaxHeaders/x", b'x', &records);
    }
    if !is_pax && target.len() > 100 {
        extension(tar, b"././@LongLink", b'K', &[&target[..], b"\0"].concat());
    }
    if !is_pax && name.len() > 100 {
        extension(tar, b"././@LongLink", b'L', &[&name[..], b"\0"].concat());
    }
    let mut block = block(&Header {
        name: &name,
        target: &target,
        flag: flag(member, dialect),
        mode: entry.mode,
        uid: entry.uid & 0o7_777_777,
        gid: entry.gid & 0o7_777_777,
        size: stored.len() as u64,
        mtime: entry.mtime.secs,
        device: match entry.kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                (major, minor)
            }
            _ => (0, 0),
        },
    });
    if !is_pax && let Some(extents) = &extents {
        old_sparse(&mut block, extents, member.content.len());
    }
    seal(&mut block);
    tar.extend_from_slice(&block);
    padded(tar, &stored);
}

fn name(member: &Member) -> Vec<u8> {
    let path = &member.entry.path;
    let start = path.iter().rposition(|&byte| byte == b'/');
    let (above, last) = path.split_at(start.map_or(0, |slash| slash + 1));
    match member.entry.kind {
        Kind::Directory => [&path[..], b"/"].concat(),
        Kind::Whiteout => [above, b".wh.", last].concat(),
        Kind::Opaque => [&path[..], b"/.wh..wh..opq"].concat(),
        _ => path.clone(),
    }
}

fn flag(member: &Member, dialect: Dialect) -> u8 {
    match member.entry.kind {
        Kind::Regular { .. } if member.is_sparse && dialect == Dialect::Gnu => b'S',
        Kind::Regular { .. } | Kind::Whiteout | Kind::Opaque => b'0',
        Kind::Hardlink { .. } => b'1',
        Kind::Symlink { .. } => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
        Kind::Socket | Kind::Hidden { .. } => panic!("a tar cannot say that"),
    }
}

fn block(header: &Header<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, limit: usize, bytes: &[u8]| {
        let len = bytes.len().min(limit);
        block[at..at + len].copy_from_slice(&bytes[..len]);
    };
    let octal = |number: u64, digits: usize| format!("{number:0digits$o}\0").into_bytes();
    put(0, 100, header.name);
    put(100, 8, &octal(header.mode.into(), 7));
    put(108, 8, &octal(header.uid.into(), 7));
    put(116, 8, &octal(header.gid.into(), 7));
    put(124, 12, &octal(header.size, 11));
    put(136, 12, &octal(header.mtime.max(0) as u64, 11));
    put(156, 1, &[header.flag]);
    put(157, 100, header.target);
    put(257, 8, b"ustar\x0000");
    put(329, 8, &octal(header.device.0.into(), 7));
    put(337, 8, &octal(header.device.1.into(), 7));
    block
}

/// Writes the checksum, which counts itself as spaces.
fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A member that describes the next one.
fn extension(tar: &mut Vec<u8>, name: &[u8], flag: u8, content: &[u8]) {
    let mut block = block(&Header {
        name,
        target: b"",
        flag,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: content.len() as u64,
        mtime: 0,
        device: (0, 0),
    });
    seal(&mut block);
    tar.extend_from_slice(&block);
    padded(tar, content);
}

fn padded(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// `LENGTH KEY=VALUE\n`; the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    records.extend_from_slice(format!("{len} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn decimal(time: Timestamp) -> String {
    match (time.secs, time.nanos) {
        (secs, 0) => secs.to_string(),
        (secs @ 0.., nanos) => format!("{secs}.{nanos:09}"),
        // Time counts away from zero here, and forward in a timestamp.
        (secs, nanos) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
    }
}

/// Where data is: runs that are not zeros. One of no bytes at the end tells the size, as GNU tar writes it.
fn extents(content: &[u8]) -> Vec<(usize, usize)> {
    let mut extents: Vec<(usize, usize)> = Vec::new();
    for (index, grain) in content.chunks(GRAIN).enumerate() {
        let at = index * GRAIN;
        if grain.iter().all(|&byte| byte == 0) {
            continue;
        }
        match extents.last_mut() {
            Some((start, len)) if *start + *len == at => *len += grain.len(),
            _ => extents.push((at, grain.len())),
        }
    }
    extents.push((content.len(), 0));
    extents
}

fn sparse_map(extents: &[(usize, usize)]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len());
    for (at, len) in extents {
        map.push_str(&format!("{at}\n{len}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// The four places that an old GNU header has.
fn old_sparse(block: &mut [u8; BLOCK], extents: &[(usize, usize)], size: usize) {
    assert!(extents.len() <= 4, "more extents than the header holds");
    let mut put = |at: usize, number: usize| {
        block[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    };
    for (index, &(at, len)) in extents.iter().enumerate() {
        put(386 + 24 * index, at);
        put(398 + 24 * index, len);
    }
    put(483, size);
    // Only headers with this magic have these places.
    block[257..265].copy_from_slice(b"ustar  \0");
}
