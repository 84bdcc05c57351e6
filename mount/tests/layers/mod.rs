//! Layers that tests make: their members, as tar archives and as what extracting them leaves.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    reason = "several test programs share it, none needs all; helpers of tests are tests too"
)]

pub mod archive;
pub mod model;

use bytes::Bytes;
use sifon_mount::layer::entry::{Entry, Kind, Timestamp};

/// One member of a layer.
#[derive(Clone)]
pub struct Member {
    pub entry: Entry,
    /// Of a regular file.
    pub content: Bytes,
    /// What an archive writes before the path: nothing, `./` or `/`.
    pub prefix: &'static str,
    /// Whether an archive leaves out runs of zeros.
    pub is_sparse: bool,
}

/// When files were modified, unless a test says otherwise.
pub const MTIME: i64 = 1_600_000_000;

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = &self.entry;
        write!(f, "{}{} ", self.prefix, shown(path))?;
        match kind {
            Kind::Symlink { target } => write!(f, "-> {}", shown(target))?,
            Kind::Hardlink { target } => write!(f, "= {}", shown(target))?,
            kind => write!(f, "{kind:?}")?,
        }
        write!(f, " {mode:o} {uid}:{gid} {}.{:09}", mtime.secs, mtime.nanos)?;
        for (name, value) in xattrs {
            write!(f, " {}={}", shown(name), shown(value))?;
        }
        f.write_str(if self.is_sparse { " sparse" } else { "" })
    }
}

impl Member {
    pub fn new(path: impl AsRef<[u8]>, kind: Kind) -> Self {
        let mode = match kind {
            Kind::Symlink { .. } => 0o777,
            Kind::Whiteout | Kind::Opaque => 0,
            _ => 0o755,
        };
        Self {
            entry: Entry {
                path: path.as_ref().to_vec(),
                kind,
                mode,
                uid: 0,
                gid: 0,
                mtime: Timestamp {
                    secs: MTIME,
                    nanos: 0,
                },
                xattrs: Vec::new(),
            },
            content: Bytes::new(),
            prefix: "",
            is_sparse: false,
        }
    }

    pub fn mode(mut self, mode: u16) -> Self {
        self.entry.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.entry.uid, self.entry.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, secs: i64, nanos: u32) -> Self {
        self.entry.mtime = Timestamp { secs, nanos };
        self
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.entry.xattrs.push((name.into(), value.to_vec()));
        self
    }

    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    pub fn sparse(mut self) -> Self {
        self.is_sparse = true;
        self
    }
}

pub fn directory(path: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::Directory)
}

pub fn file(path: impl AsRef<[u8]>, content: impl Into<Bytes>) -> Member {
    let content = content.into();
    let size = content.len() as u64;
    Member {
        content,
        ..Member::new(path, Kind::Regular { size })
    }
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let target = target.as_ref().to_vec();
    Member::new(path, Kind::Symlink { target })
}

pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let target = target.as_ref().to_vec();
    Member::new(path, Kind::Hardlink { target })
}

pub fn whiteout(path: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::Whiteout)
}

pub fn opaque(path: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::Opaque)
}

/// Bytes that nothing shrinks, others for each seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Bytes that shrink well.
pub fn text(len: usize) -> Vec<u8> {
    let line = b"all work and no play makes a dull boy\n";
    let mut text = line.repeat(len / line.len() + 1);
    text.truncate(len);
    text
}
