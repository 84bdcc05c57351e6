//! One file as a layer tells it.

/// A file, directory, link, device or whiteout of one layer. `B` holds names and other bytes:
/// owned while a layer is read for the first time, borrowed when it comes from a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<B = Vec<u8>> {
    /// Components joined by single slashes, without a leading or trailing one, without `.` and `..`;
    /// empty for the root directory. Not necessarily UTF-8.
    pub path: B,
    /// What it is, with what only this kind has.
    pub kind: Kind<B>,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes with their full names (`user.foo`), in the order of the layer.
    pub xattrs: Vec<(B, B)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<B = Vec<u8>> {
    /// A directory.
    Directory,
    /// A regular file of `size` plain bytes.
    Regular {
        /// Length of the file as its reader sees it, holes included.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as written.
        target: B,
    },
    /// Another name of the file at `target`, which this layer or one below has.
    Hardlink {
        /// A path in the form of [`Entry::path`].
        target: B,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Hides what lower layers have at this path (the path is the hidden file's, without `.wh.`).
    Whiteout,
    /// Hides everything that lower layers have inside the directory at this path.
    Opaque,
    /// A regular file that only speaks to other programs and that no image shows; kept so that the layer can be rebuilt.
    Hidden {
        /// Its length.
        size: u64,
    },
}

/// Seconds and nanoseconds since 1970, possibly before it; `nanos` counts forward from `secs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// Below 1,000,000,000.
    pub nanos: u32,
}

/// Why a name cannot stand in an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// `..` could leave the image.
    #[error("name {:?}: a component is `..`", shown(.0))]
    Parent(Vec<u8>),
    /// No file system takes it.
    #[error("name {:?}: a component is longer than 255 bytes", shown(.0))]
    LongComponent(Vec<u8>),
    /// Longer than any archive needs.
    #[error("name {:?}: longer than {PATH_BYTES_LIMIT} bytes", shown(.0))]
    LongPath(Vec<u8>),
    /// The end of a C string.
    #[error("name {:?}: contains a NUL byte", shown(.0))]
    Nul(Vec<u8>),
    /// `.wh.`, `.wh..` and `.wh...` would hide a directory itself or its parent.
    #[error("name {:?}: a whiteout of no file", shown(.0))]
    Whiteout(Vec<u8>),
}

/// Bytes in a path at most: four times what Linux resolves at once, for trees that were packed in steps.
pub const PATH_BYTES_LIMIT: usize = 16 << 10;

/// Bytes in one component at most, as `NAME_MAX` of linux/limits.h.
pub const NAME_BYTES_LIMIT: usize = 255;

/// A name as a message shows it: shortened, and never raw bytes on a terminal.
pub fn shown(name: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
    if name.len() > 200 {
        text.push('…');
    }
    text
}

/// `raw`, as an archive writes it, in the form of [`Entry::path`]: leading `/` and `./`, doubled and
/// trailing slashes go; `..` is an error, because no layer that a builder wrote has it.
pub fn normalised(raw: &[u8]) -> Result<Vec<u8>, NameError> {
    if raw.len() > PATH_BYTES_LIMIT {
        return Err(NameError::LongPath(raw.to_vec()));
    }
    if raw.contains(&0) {
        return Err(NameError::Nul(raw.to_vec()));
    }
    // As nearly all are.
    let open = raw.strip_suffix(b"/").unwrap_or(raw);
    if is_normal(open) {
        return Ok(open.to_vec());
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(NameError::Parent(raw.to_vec())),
            long if long.len() > NAME_BYTES_LIMIT => {
                return Err(NameError::LongComponent(raw.to_vec()));
            }
            name => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
        }
    }
    Ok(path)
}

/// Whether all components of `path` are names that can stay as they are.
fn is_normal(path: &[u8]) -> bool {
    let mut from = 0;
    let is_name = |name: &[u8]| {
        let is_special = matches!(name, b"" | b"." | b"..");
        !is_special && name.len() <= NAME_BYTES_LIMIT
    };
    for (at, &byte) in path.iter().enumerate() {
        if byte == b'/' {
            if !is_name(&path[from..at]) {
                return false;
            }
            from = at + 1;
        }
    }
    is_name(&path[from..])
}

impl Entry {
    /// One whose kind says it all: whiteouts, opaque directories and hard links have nothing of their own.
    pub fn bare(path: Vec<u8>, kind: Kind) -> Self {
        Self {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }

    /// This entry with AUFS names understood, as tar layers write whiteouts (OCI image specification,
    /// layer.md, "Whiteouts"): `.wh.NAME` hides NAME, `.wh..wh..opq` hides what its directory had.
    /// `None` for the other `.wh..wh.` names, AUFS's own bookkeeping, which no image shows.
    pub fn with_whiteouts_understood(mut self) -> Result<Option<Self>, NameError> {
        let start = self
            .path
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1);
        let Some(hidden) = self.path[start..].strip_prefix(b".wh.") else {
            return Ok(Some(self));
        };
        match hidden {
            b".wh..opq" => {
                self.kind = Kind::Opaque;
                self.path.truncate(start.saturating_sub(1));
            }
            b"" | b"." | b".." => return Err(NameError::Whiteout(self.path)),
            aufs if aufs.starts_with(b".wh.") => return Ok(None),
            _ => {
                self.kind = Kind::Whiteout;
                self.path.drain(start..start + b".wh.".len());
            }
        }
        Ok(Some(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry {
            path: path.into(),
            kind: Kind::Regular { size: 0 },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn names_are_brought_to_one_form() {
        for (raw, path) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("/a/./b", "a/b"),
            ("...", "..."),
        ] {
            assert_eq!(
                normalised(raw.as_bytes()),
                Ok(path.as_bytes().to_vec()),
                "{raw}"
            );
        }
    }

    #[test]
    fn names_that_could_leave_the_image_or_no_file_system_takes_are_refused() {
        let long = "x".repeat(256);
        for raw in ["..", "../etc", "a/../../b", "a/..", long.as_str(), "a\0b"] {
            assert!(normalised(raw.as_bytes()).is_err(), "{raw}");
        }
        assert!(normalised(&vec![b'/'; PATH_BYTES_LIMIT + 1]).is_err());
    }

    #[test]
    fn aufs_names_are_understood_as_whiteouts() {
        let understood = |path: &str| {
            entry(path).with_whiteouts_understood().map(|entry| {
                entry.map(|entry| (String::from_utf8(entry.path).unwrap(), entry.kind))
            })
        };
        let regular = Kind::Regular { size: 0 };
        assert_eq!(understood("a/b"), Ok(Some(("a/b".into(), regular.clone()))));
        assert_eq!(
            understood("a/.wh.b"),
            Ok(Some(("a/b".into(), Kind::Whiteout)))
        );
        assert_eq!(understood(".wh.b"), Ok(Some(("b".into(), Kind::Whiteout))));
        assert_eq!(
            understood("a/b/.wh..wh..opq"),
            Ok(Some(("a/b".into(), Kind::Opaque)))
        );
        assert_eq!(
            understood(".wh..wh..opq"),
            Ok(Some(("".into(), Kind::Opaque)))
        );
        assert_eq!(understood(".wh..wh.plnk"), Ok(None));
        assert!(understood("a/.wh..").is_err());
        assert!(understood("a/.wh...").is_err());
        assert!(understood("a/.wh.").is_err());
        assert_eq!(understood("a.wh.b"), Ok(Some(("a.wh.b".into(), regular))));
    }
}
