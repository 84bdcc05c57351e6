//! A file system in a file, wherever that is: a bare squashfs, or the root file system of a SIF.
//!
//! The only layer of its made up manifest is the file, with the place of the file system in it as annotations.
//!
//! Nobody tells digests of a squashfs's blocks, so what is read is believed. What can be checked is that it stays the same
//! file. That is the registry's business for one in a registry, which has a digest, and for one at a web server. For one of
//! the user's own it is done here: its *identity*, inode, size and time of change with its beginning and its end, is
//! the layer's name, under which the store keeps what was read of it; and each read fails once the file was written to.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::file::{Part, Place, regular};
use super::made_up::{self, MadeUp};
use super::manifest::Descriptor;
use super::sif::{self, ObjectKind, Sif, SifError};
use super::{Origin, SourceError};
use crate::blob::{Blob, BlobError, Windows};
use crate::digest::{Digest, Hasher};
use crate::extent::PackedOffset;

/// The media type of the only layer.
const MEDIA_TYPE: &str = "application/vnd.sifon.file-system.v1";

/// Annotations of the only layer: where in it the file system is.
const BEGINS: &str = "org.sifon.file-system.begins";
const BYTES: &str = "org.sifon.file-system.bytes";

/// What a squashfs begins with.
const MAGIC: &[u8] = b"hsqs";

/// The line that Singularity 2 wrote before a squashfs.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";

/// Bytes of the file's beginning and the file system's end that count for the identity: the table of a SIF, the superblock,
/// and the tables that places in all others stand in.
const HEAD_BYTES: u64 = 64 << 10;
const TAIL_BYTES: u64 = 64 << 10;

/// What a SIF tells about itself is read in pieces of this size: the first holds nearly always all of it.
const WINDOW_BYTES: u64 = 128 << 10;
const WINDOWS: NonZeroUsize = NonZeroUsize::new(16).expect("it is not zero");

/// Bytes of an image configuration in a SIF at most.
const OCI_CONFIG_BYTES_LIMIT: u64 = 1 << 20;

/// A file with a file system, and the documents that it would have in a registry.
pub(super) struct FileSystem {
    blob: Arc<dyn Blob>,
    documents: MadeUp,
}

/// Where in a file a file system is, and what else the file tells.
struct Found {
    at: u64,
    len: u64,
    architecture: &'static str,
    config: Value,
}

/// Why there is none.
enum NotFound {
    Blob(BlobError),
    Format(String),
}

impl From<&str> for NotFound {
    fn from(problem: &str) -> Self {
        Self::Format(problem.into())
    }
}

impl From<BlobError> for NotFound {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

/// The place of the file system in a layer that such a file is. `None` for any other layer.
pub(crate) fn place_in(layer: &Descriptor) -> Option<(u64, u64)> {
    if layer.media_type != MEDIA_TYPE {
        return None;
    }
    let number = |name: &str| layer.annotations.get(name)?.parse::<u64>().ok();
    let (at, len) = (number(BEGINS)?, number(BYTES)?);
    (at.checked_add(len)? <= layer.size).then_some((at, len))
}

impl FileSystem {
    /// The file at `path`.
    pub(super) fn open(path: &Path, timeout: Duration) -> Result<Self, SourceError> {
        let failed = |source| SourceError::File {
            place: path.display().to_string(),
            problem: "the file cannot be read".into(),
            hint: None,
            source: Some(source),
        };
        let blob = Arc::new(LocalFile::open(path).map_err(failed)?);
        Self::of(path.display().to_string(), blob, Bytes::new(), timeout)
    }

    /// The file whose bytes are those of `blob`, which begins with `head`, as far as that is known, and is called `place`.
    pub(super) fn of(
        place: String,
        blob: Arc<dyn Blob>,
        head: Bytes,
        timeout: Duration,
    ) -> Result<Self, SourceError> {
        let windows = Windows::new(Arc::clone(&blob), WINDOW_BYTES, WINDOWS, timeout);
        let found = found(&windows.beginning_with(head)).map_err(|not_found| match not_found {
            NotFound::Blob(error) => SourceError::Blob(error),
            NotFound::Format(problem) => SourceError::File {
                place: place.clone(),
                problem,
                hint: Some("name a SIF or a squashfs file that is whole".into()),
                source: None,
            },
        })?;
        let digest = blob.digest();
        let config = made_up::config(found.architecture, found.config, &[digest]);
        let layer = Descriptor {
            annotations: BTreeMap::from([
                (BEGINS.into(), found.at.to_string()),
                (BYTES.into(), found.len.to_string()),
            ]),
            ..Descriptor::new(MEDIA_TYPE, digest, blob.size())
        };
        Ok(Self {
            blob,
            documents: MadeUp::new(place, config.to_string(), &[layer]),
        })
    }
}

/// Whether the file at `path` is a SIF, or begins like a squashfs.
pub fn is_image_file(path: &Path) -> bool {
    FileSystem::open(path, Duration::from_secs(60)).is_ok() || Place::sif(path).is_some()
}

/// The file system in a file.
fn found(file: &Windows) -> Result<Found, NotFound> {
    let size = file.blob_size();
    let bare = |at| Found {
        at,
        len: size - at,
        architecture: "unknown",
        config: json!({}),
    };
    let len = size.min((LAUNCH.len() + MAGIC.len()) as u64) as usize;
    let start = file.read(0, len)?;
    if start.starts_with(MAGIC) {
        return Ok(bare(0));
    }
    if start.starts_with(LAUNCH) && start.ends_with(MAGIC) {
        return Ok(bare(LAUNCH.len() as u64));
    }
    let sif = match Sif::open(Cursor { file, at: 0 }) {
        Ok(sif) => sif,
        Err(SifError::NotSif(_)) => return Err("it is neither a SIF nor a squashfs".into()),
        Err(SifError::Io(error)) => {
            return Err(match error.downcast::<BlobError>() {
                Ok(error) => error.into(),
                Err(error) => NotFound::Format(format!("it cannot be read: {error}")),
            });
        }
        Err(error) => return Err(NotFound::Format(error.to_string())),
    };
    let partition = sif
        .primary_partition()
        .or_else(|| sif.data_partition())
        .ok_or("the SIF has no root file system, and no other data")?;
    if !matches!(
        partition.kind,
        ObjectKind::Partition {
            format: sif::Format::Squashfs,
            ..
        }
    ) {
        return Err("the file system of the SIF is encrypted, or not a squashfs".into());
    }
    Ok(Found {
        at: partition.at,
        len: partition.len,
        architecture: sif.architecture.unwrap_or("unknown"),
        config: container_config(file, &sif),
    })
}

/// A file as those who parse it want it.
struct Cursor<'a> {
    file: &'a Windows,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.blob_size().saturating_sub(self.at);
        let len = left.min(buffer.len() as u64) as usize;
        let bytes = self.file.read(self.at.min(self.file.blob_size()), len);
        buffer[..len].copy_from_slice(&bytes.map_err(io::Error::other)?);
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(from) => self.file.blob_size().checked_add_signed(from),
            SeekFrom::Current(from) => self.at.checked_add_signed(from),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Environment and labels of the image that a SIF was made from, as its writer kept them. What is run is the SIF's own
/// script. A text that is no configuration is none.
fn container_config(file: &Windows, sif: &Sif) -> Value {
    let read = || {
        let object = sif.named(ObjectKind::GenericJson, "oci-config.json")?;
        let len = Some(object.len).filter(|&len| len <= OCI_CONFIG_BYTES_LIMIT)?;
        let bytes = file.read(object.at, len as usize).ok()?;
        let config: Map<String, Value> = serde_json::from_slice(&bytes).ok()?;
        // The whole document, or what stands in it under `config`.
        let inner = config.get("config").and_then(Value::as_object).cloned();
        Some(inner.unwrap_or(config))
    };
    let config = read().unwrap_or_default();
    let kept = ["Env", "Labels"].map(|name| (name.to_owned(), config.get(name).cloned()));
    kept.into_iter()
        .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_null())?)))
        .collect::<Map<_, _>>()
        .into()
}

impl Origin for FileSystem {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(self.documents.digest())
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.documents.manifest(digest)
    }

    fn config(&self, _: &Descriptor, _: Instant) -> Result<Bytes, SourceError> {
        Ok(self.documents.config())
    }

    fn blob(&self, _: &Descriptor) -> Arc<dyn Blob> {
        self.blob.clone()
    }
}

/// A file of the user's, as long as nobody writes to it.
struct LocalFile {
    path: PathBuf,
    part: Part,
    /// The end of the file system, as far as that is known without a look at it.
    end: u64,
    stamp: Stamp,
    /// When the file was written to last, of the times at which it was found to be the same.
    modified: Mutex<Time>,
    digest: Digest,
}

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

/// What changes when a file is replaced or written to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Unless programs write to another part of the file, so that it tells nothing of this one.
    modified: Option<Time>,
}

impl Stamp {
    fn of(metadata: &Metadata, is_shared: bool) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (!is_shared).then_some(modified(metadata)),
        }
    }
}

fn modified(metadata: &Metadata) -> Time {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// The name of the file with this stamp, whose file system ends at `end`.
fn identity(stamp: Stamp, part: &Part, end: u64) -> io::Result<Digest> {
    let (seconds, nanos) = stamp.modified.unwrap_or_default();
    let Stamp { inode, size, .. } = stamp;
    let mut hasher = Hasher::default();
    hasher.update(format!("a file: inode {inode}, {size} bytes, {seconds}.{nanos}\n").as_bytes());
    hasher.update(&part.bytes(0, part.len.min(HEAD_BYTES) as usize)?);
    let tail = end.min(TAIL_BYTES);
    hasher.update(&part.bytes(end - tail, tail as usize)?);
    Ok(hasher.finish())
}

impl LocalFile {
    fn open(path: &Path) -> io::Result<Self> {
        let (file, len) = regular(path)?;
        let sif = Sif::open(&file).ok();
        let overlay = sif.as_ref().and_then(Sif::writable_overlay);
        let system = sif.as_ref().and_then(Sif::primary_partition);
        // Without an overlay the time vouches for all of the file.
        let system = overlay.and(system);
        let end = system.map_or(len, |system| system.at + system.len);
        let is_shared = system.is_some();
        let metadata = file.metadata()?;
        let stamp = Stamp::of(&metadata, is_shared);
        let part = Part {
            file: Arc::new(file),
            at: 0,
            len,
        };
        Ok(Self {
            path: path.to_owned(),
            digest: identity(stamp, &part, end)?,
            part,
            end,
            stamp,
            modified: Mutex::new(modified(&metadata)),
        })
    }

    fn wrong(&self, problem: impl Into<String>) -> BlobError {
        BlobError::Wrong {
            object: self.path.display().to_string(),
            problem: problem.into(),
        }
    }

    /// Fails once somebody has written to the file, but for a part of it that is there for that.
    fn unchanged(&self) -> Result<(), BlobError> {
        let metadata = self.part.file.metadata();
        let now = metadata.map_err(|err| self.wrong(format!("cannot be read: {err}")))?;
        let stamp = Stamp::of(&now, self.stamp.modified.is_none());
        match stamp == self.stamp && self.is_the_same(modified(&now)) {
            true => Ok(()),
            false => Err(self.wrong("the file was changed while it was in use: mount it again")),
        }
    }

    /// Whether a file that was written to last at `time` is still the one that was opened, as far as its tables tell.
    fn is_the_same(&self, time: Time) -> bool {
        if *self.modified.lock() == time {
            return true;
        }
        let identity = identity(self.stamp, &self.part, self.end);
        let is_same = identity.is_ok_and(|identity| identity == self.digest);
        if is_same {
            *self.modified.lock() = time;
        }
        is_same
    }
}

impl Blob for LocalFile {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> u64 {
        self.part.len
    }

    /// The deadline cannot be kept on a file system that hangs.
    fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
        let end = at.0.checked_add(len as u64);
        if end.is_none_or(|end| end > self.part.len) {
            return Err(self.wrong(format!("{len} bytes at {} are not within it", at.0)));
        }
        let read = self.part.bytes(at.0, len);
        // Afterwards, so that what was read came before any change that this does not see.
        self.unchanged()?;
        read.map_err(|err| self.wrong(format!("cannot be read: {err}")))
    }

    fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
        self.unchanged()?;
        Ok(Box::new(self.part.reader(range)))
    }

    fn announce(&self, range: &Range<u64>) {
        self.part.announce(range);
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn is_named_by_its_bytes(&self) -> bool {
        false
    }
}
