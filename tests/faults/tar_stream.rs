//! Tar streams as no builder writes them, block by block.

use std::io::Write;

/// The start of a member of this type flag, name, and size field; everything else as usual.
pub fn header(flag: u8, name: &[u8], size: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header.set_entry_type(tar::EntryType::new(flag));
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name);
    bytes[124..124 + size.len()].copy_from_slice(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A member of so many bytes, without them.
pub fn sized(flag: u8, name: &str, size: u64) -> Vec<u8> {
    header(flag, name.as_bytes(), format!("{size:011o}").as_bytes())
}

/// A whole regular file.
pub fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut member = sized(b'0', name, content.len() as u64);
    member.extend_from_slice(content);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

/// A directory.
pub fn directory(name: &str) -> Vec<u8> {
    sized(b'5', name, 0)
}

/// A hard link (`1`) or a symbolic link (`2`).
pub fn link(flag: u8, name: &str, target: &str) -> Vec<u8> {
    let mut header = tar::Header::from_byte_slice(&sized(flag, name, 0)).clone();
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// Extended headers for the next member.
pub fn extended(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        write!(body, "{len} {key}=").unwrap();
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    let mut member = file("pax", &body);
    member[156] = b'x';
    let mut header = tar::Header::from_byte_slice(&member[..512]).clone();
    header.set_cksum();
    member[..512].copy_from_slice(header.as_bytes());
    member
}

/// Members, then the mark of the archive's end.
pub fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// Bytes that do not shrink, so that a blob has as many as its content.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let byte = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(byte).collect()
}
