//! A tar file whose members are read in place. Its headers are walked once; nothing is extracted.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceError;
use super::file::{Part, regular};

const BLOCK_BYTES: u64 = 512;

/// Members of an image's archive: a handful per layer.
const MEMBERS_LIMIT: usize = 1 << 16;

/// Bytes of a member's name or a link's target: what Linux takes for a path.
const NAME_BYTES_LIMIT: usize = 4096;

/// Bytes of a long name or a PAX body, which are read into memory.
const EXTENSION_BYTES_LIMIT: u64 = 1 << 20;

/// Links from one member to the next that are followed.
const LINKS_LIMIT: usize = 16;

pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File {
        at: u64,
        len: u64,
    },
    /// The name of another member, as it stands in the archive.
    Link(Vec<u8>),
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::File {
            place: path.display().to_string(),
            problem: "the archive cannot be read".into(),
            hint: None,
            source: Some(source),
        };
        let (file, _) = regular(path).map_err(failed)?;
        Self::of(file, path)
    }

    /// The archive in a file, which is called `path` in messages.
    pub(super) fn of(file: File, path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::File {
            place: path.display().to_string(),
            problem: "the archive cannot be read".into(),
            hint: None,
            source: Some(source),
        };
        let len = file.metadata().map_err(failed)?.len();
        if let Some(packer) = packer(&file) {
            return Err(SourceError::File {
                place: path.display().to_string(),
                problem: format!(
                    "the archive is compressed with {packer}, and cannot be read in place"
                ),
                hint: Some(format!("decompress it first: {packer} -d")),
                source: None,
            });
        }
        let members = members(&file, len).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The member `name`, through links.
    pub(super) fn part(&self, name: &[u8]) -> io::Result<Part> {
        let mut name = normal(name);
        for _ in 0..LINKS_LIMIT {
            match self.members.get(&name) {
                Some(&Member::File { at, len }) => {
                    let file = self.file.clone();
                    return Ok(Part { file, at, len });
                }
                Some(Member::Link(target)) => name = target.clone(),
                None => {
                    let name = String::from_utf8_lossy(&name);
                    let problem = format!("the archive has no member {name:.200}");
                    return Err(io::Error::new(io::ErrorKind::NotFound, problem));
                }
            }
        }
        Err(io::Error::other("links in the archive lead nowhere"))
    }
}

/// The program that would unpack the file, if it is compressed.
fn packer(file: &File) -> Option<&'static str> {
    let mut magic = [0; 6];
    file.read_exact_at(&mut magic, 0).ok()?;
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        _ => None,
    }
}

/// What a member's extension headers say in place of its own.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

fn members(file: &impl FileExt, file_len: u64) -> io::Result<HashMap<Vec<u8>, Member>> {
    let mut members = HashMap::new();
    let mut extensions = Extensions::default();
    let mut at = 0;
    let mut header = tar::Header::new_old();
    loop {
        let wrong = |problem: &str| io::Error::other(format!("byte {at}: {problem}"));
        if at == file_len && at > 0 {
            return Ok(members);
        }
        file.read_exact_at(header.as_mut_bytes(), at)
            .map_err(|_| wrong("the archive ends within a header"))?;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(members);
        }
        if !checksum_matches(&header) {
            return Err(wrong("no tar header"));
        }
        let own_size = header
            .entry_size()
            .map_err(|_| wrong("a size that is no number"))?;
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        let size = match extensions.size {
            Some(size) if !is_extension => size,
            _ => own_size,
        };
        let content = at + BLOCK_BYTES;
        let end = content
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(BLOCK_BYTES))
            .filter(|&end| end - (end - content - size) <= file_len)
            .ok_or_else(|| wrong("the member is longer than the archive"))?;
        if is_extension {
            if size > EXTENSION_BYTES_LIMIT {
                return Err(wrong("an extension header of more than 1 MiB"));
            }
            let mut body = vec![0; size as usize];
            file.read_exact_at(&mut body, content)?;
            extensions.learn(kind, &body);
        } else {
            if members.len() >= MEMBERS_LIMIT {
                return Err(wrong("more than 65,536 members"));
            }
            let extensions = std::mem::take(&mut extensions);
            let name = normal(
                &extensions
                    .name
                    .unwrap_or_else(|| header.path_bytes().into_owned()),
            );
            let link = || {
                let own = || header.link_name_bytes().map(|link| link.into_owned());
                extensions.link.or_else(own).unwrap_or_default()
            };
            let member = match kind {
                tar::EntryType::Symlink => Some(Member::Link(beside(&name, &link()))),
                tar::EntryType::Link => Some(Member::Link(normal(&link()))),
                kind if kind.is_file() || kind.is_contiguous() => Some(Member::File {
                    at: content,
                    len: size,
                }),
                _ => None,
            };
            let longest = match &member {
                Some(Member::Link(target)) => name.len().max(target.len()),
                _ => name.len(),
            };
            if longest > NAME_BYTES_LIMIT {
                return Err(wrong("a name of more than 4096 bytes"));
            }
            if let Some(member) = member {
                members.insert(name, member);
            }
        }
        at = end.min(file_len);
    }
}

impl Extensions {
    fn learn(&mut self, kind: tar::EntryType, body: &[u8]) {
        let text = || {
            body.split(|&byte| byte == 0)
                .next()
                .unwrap_or(body)
                .to_vec()
        };
        match kind {
            tar::EntryType::GNULongName => self.name = Some(text()),
            tar::EntryType::GNULongLink => self.link = Some(text()),
            tar::EntryType::XHeader => {
                for extension in tar::PaxExtensions::new(body).flatten() {
                    let value = extension.value_bytes();
                    match extension.key_bytes() {
                        b"path" => self.name = Some(value.to_vec()),
                        b"linkpath" => self.link = Some(value.to_vec()),
                        b"size" => {
                            self.size = str::from_utf8(value)
                                .ok()
                                .and_then(|size| size.parse().ok());
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn checksum_matches(header: &tar::Header) -> bool {
    let bytes = header.as_bytes();
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = bytes[148..156].iter().map(|&byte| u32::from(byte)).sum();
    header
        .cksum()
        .is_ok_and(|said| said == sum - own + 8 * u32::from(b' '))
}

/// `name` without `.`, `..`, and slashes at its ends; never above the archive's top.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What a symbolic link at `name` to `target` means.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    if target.starts_with(b"/") {
        return normal(target);
    }
    let directory = match name.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => &name[..slash],
        None => b"",
    };
    normal(&[directory, b"/", target].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn archive(bytes: &[u8]) -> Result<Archive, SourceError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Archive::open(file.path())
    }

    fn content(archive: &Archive, name: &str) -> io::Result<Vec<u8>> {
        let part = archive.part(name.as_bytes())?;
        Ok(part.bytes(0, part.len as usize)?.to_vec())
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content).unwrap();
        };
        add("./blobs/a", b"first");
        add(&"long/".repeat(40), b"");
        add(&format!("{}x", "long/".repeat(40)), b"second");
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder
            .append_link(&mut link, "dir/link", "../blobs/a")
            .unwrap();
        builder.append_link(&mut link, "loop", "loop").unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn members_are_found_under_their_names_and_through_links() {
        let archive = archive(&sample()).unwrap();
        assert_eq!(content(&archive, "blobs/a").unwrap(), b"first");
        assert_eq!(content(&archive, "dir/link").unwrap(), b"first");
        let long = format!("{}x", "long/".repeat(40));
        assert_eq!(content(&archive, &long).unwrap(), b"second");
        assert!(content(&archive, "loop").is_err());
        assert!(content(&archive, "nothing").is_err());
    }

    #[test]
    fn a_compressed_archive_is_refused_by_name() {
        let error = archive(b"\x1f\x8b\x08\0\0\0\0\0").err().unwrap();
        assert!(error.to_string().contains("gzip"), "{error}");
        assert!(error.hint().unwrap().contains("gzip -d"));
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let whole = sample();
        for len in [0, 1, 511, 514, 1024 + 100] {
            assert!(archive(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_member_of_impossible_size_is_an_error() {
        let mut bytes = sample();
        let mut header = tar::Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_size(u64::MAX >> 1);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        assert!(archive(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_archive_never_panics(at in 0usize..4000, byte in any::<u8>()) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = archive(&bytes);
        }
    }
}
