//! Blobs in files: in a directory, in the members of an archive, or in the objects of a SIF.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::SourceError;
use super::archive::Archive;
use super::sif::{Object, ObjectKind, Sif};
use crate::blob::{Blob, BlobError};
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::registry::{MANIFEST_BYTES_LIMIT, Settings, engine_image};
use crate::scratch::Scratch;
use crate::sys::disk::begin_reading;

/// Files under names, such as `blobs/sha256/…`.
pub(super) enum Place {
    Directory(PathBuf),
    Archive(Archive),
    /// A SIF whose objects are an image's blobs, as SingularityCE 4 writes it.
    Sif {
        path: PathBuf,
        file: Arc<File>,
        objects: Vec<Object>,
    },
}

/// A stretch of a file: all of it, or one member of an archive.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) file: Arc<File>,
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Place {
    pub(super) fn directory(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }

    pub(super) fn archive(path: &Path) -> Result<Self, SourceError> {
        Archive::open(path).map(Self::Archive)
    }

    /// The archive in which the daemon on this machine hands out its image `name`; it has no name, and ends with the process.
    pub(super) fn daemon(name: &str, settings: &Settings) -> Result<Self, SourceError> {
        let file = tempfile::tempfile().map_err(|source| SourceError::File {
            place: std::env::temp_dir().display().to_string(),
            problem: format!("docker-daemon:{name} cannot be kept there while it is read"),
            hint: Some("name a directory with room in $TMPDIR".into()),
            source: Some(source),
        })?;
        let path = format!("docker-daemon:{name}");
        engine_image(name, settings, &file).map_err(SourceError::Daemon)?;
        Archive::of(file, Path::new(&path)).map(Self::Archive)
    }

    /// The SIF at `path`, if its objects are an image's blobs. Whatever else it is, others will tell.
    pub(super) fn sif(path: &Path) -> Option<Self> {
        let (file, _) = regular(path).ok()?;
        let objects = Sif::open(&file).ok()?.objects;
        let has_index = objects.iter().any(|it| it.kind == ObjectKind::OciIndex);
        has_index.then(|| Self::Sif {
            path: path.to_owned(),
            file: Arc::new(file),
            objects,
        })
    }

    /// The directory's or the archive's path, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Sif { path, .. } => path,
            Self::Archive(archive) => archive.path(),
        }
    }

    /// The file `name`.
    pub(super) fn part(&self, name: &str) -> io::Result<Part> {
        match self {
            Self::Directory(directory) => {
                let (file, len) = regular(&directory.join(name))?;
                Ok(Part {
                    len,
                    file: Arc::new(file),
                    at: 0,
                })
            }
            Self::Archive(archive) => archive.part(name.as_bytes()),
            Self::Sif { file, objects, .. } => {
                let is_meant = |object: &&Object| match object.kind {
                    ObjectKind::OciIndex => name == "index.json",
                    ObjectKind::OciBlob(digest) => {
                        name.strip_prefix("blobs/sha256/") == Some(&*digest.hex())
                    }
                    _ => false,
                };
                let object = objects.iter().find(is_meant);
                let object = object.ok_or_else(|| {
                    let problem = format!("the SIF has no object that is {name:.200}");
                    io::Error::new(io::ErrorKind::NotFound, problem)
                })?;
                Ok(Part {
                    file: Arc::clone(file),
                    at: object.at,
                    len: object.len,
                })
            }
        }
    }

    /// Whether somebody meant this to be a layout.
    pub(super) fn is_layout(&self) -> Result<(), SourceError> {
        match self {
            // Its version has always been 1.0.0; what counts is that it is there.
            Self::Directory(_) | Self::Archive(_) => {
                self.small("oci-layout", MANIFEST_BYTES_LIMIT).map(|_| ())
            }
            Self::Sif { .. } => Ok(()),
        }
    }

    /// All bytes of the file `name`, of which there may be at most `limit`.
    pub(super) fn small(&self, name: &str, limit: usize) -> Result<Bytes, SourceError> {
        let read = || {
            let part = self.part(name)?;
            match usize::try_from(part.len) {
                Ok(len) if len <= limit => part.bytes(0, len),
                _ => Err(io::Error::other(format!("it has more than {limit} bytes"))),
            }
        };
        read().map_err(|source| SourceError::File {
            place: self.path().display().to_string(),
            problem: format!("{name} cannot be read"),
            hint: None,
            source: Some(source),
        })
    }
}

/// The regular file at `path`, and its length. Does not wait for somebody to write to a named pipe.
pub(super) fn regular(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(io::Error::other("not a regular file")),
    }
}

impl Part {
    /// `len` bytes from `at`, which are within the part.
    pub(super) fn bytes(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let mut bytes = Scratch::of(len);
        self.file.read_exact_at(&mut bytes, self.at + at)?;
        Ok(bytes.into())
    }

    /// These bytes will be read soon.
    pub(super) fn announce(&self, range: &Range<u64>) {
        let within = |at: u64| at.min(self.len).saturating_add(self.at);
        begin_reading(&self.file, &(within(range.start)..within(range.end)));
    }

    /// Reads the bytes of `range`, as far as they are within the part.
    pub(super) fn reader(&self, range: Range<u64>) -> PartReader {
        PartReader {
            part: self.clone(),
            at: range.start,
            end: range.end.min(self.len),
        }
    }
}

/// Reads a part in order.
pub(super) struct PartReader {
    part: Part,
    at: u64,
    end: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at);
        let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if len == 0 {
            return Ok(0);
        }
        let read = self
            .part
            .file
            .read_at(&mut buffer[..len], self.part.at + self.at)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was cut short",
            ));
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// A blob whose file is opened when it is first read.
pub(super) struct FileBlob<F> {
    digest: Digest,
    size: u64,
    /// Path of the layout or archive, for messages.
    place: PathBuf,
    find: F,
    found: OnceLock<Part>,
}

impl<F: Fn() -> io::Result<Part>> FileBlob<F> {
    pub(super) fn new(digest: Digest, size: u64, place: PathBuf, find: F) -> Self {
        Self {
            digest,
            size,
            place,
            find,
            found: OnceLock::new(),
        }
    }

    fn part(&self) -> Result<&Part, BlobError> {
        if let Some(part) = self.found.get() {
            return Ok(part);
        }
        let part = (self.find)().map_err(|error| self.refused(&error))?;
        if part.len != self.size {
            let (len, size) = (part.len, self.size);
            return Err(self.wrong(format!(
                "its file has {len} bytes, the manifest says {size}"
            )));
        }
        Ok(self.found.get_or_init(|| part))
    }

    fn refused(&self, error: &io::Error) -> BlobError {
        self.wrong(format!("cannot be read: {error}"))
    }

    fn wrong(&self, problem: String) -> BlobError {
        BlobError::Wrong {
            object: format!("blob {} in {}", self.digest, self.place.display()),
            problem,
        }
    }
}

impl<F: Fn() -> io::Result<Part> + Send + Sync> Blob for FileBlob<F> {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// The deadline cannot be kept on a file system that hangs.
    fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
        let part = self.part()?;
        let end = at.0.checked_add(len as u64).filter(|&end| end <= part.len);
        if end.is_none() {
            return Err(self.wrong(format!("{len} bytes at {} are not within it", at.0)));
        }
        part.bytes(at.0, len).map_err(|error| self.refused(&error))
    }

    fn stream_of(&self, range: Range<u64>) -> Result<Box<dyn Read + Send>, BlobError> {
        Ok(Box::new(self.part()?.reader(range)))
    }

    fn announce(&self, range: &Range<u64>) {
        if let Ok(part) = self.part() {
            part.announce(range);
        }
    }

    fn is_remote(&self) -> bool {
        false
    }
}
