//! A squashfs in a file of the user's: bare, or the root file system of a SIF.
//!
//! Nobody tells digests of its blocks, so what is read is believed as any of the user's files is. What can be checked is that
//! it stays the same file: its *identity*, inode, size and time of change with the superblock and the tables at the end,
//! is the layer's name, under which the store keeps what was read of it; and each read fails once the file was written to.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::file::{Part, regular};
use super::manifest::Descriptor;
use super::sif::{ObjectKind, Sif, SifError};
use super::{Origin, SourceError};
use crate::blob::{Blob, BlobError};
use crate::digest::{Digest, Hasher};
use crate::extent::PackedOffset;

/// The media type of the only layer.
const MEDIA_TYPE: &str = "application/vnd.sifon.file-system.v1";

/// What a squashfs begins with.
const MAGIC: &[u8] = b"hsqs";

/// The line that Singularity 2 wrote before a squashfs.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";

/// Bytes of the beginning and the end that count for the identity: superblock, and the tables that places in all others
/// stand in.
const HEAD_BYTES: u64 = 4 << 10;
const TAIL_BYTES: u64 = 64 << 10;

/// Bytes of an image configuration in a SIF at most.
const OCI_CONFIG_BYTES_LIMIT: u64 = 1 << 20;

pub(super) struct SquashfsFile {
    blob: Arc<FileSystem>,
    config: Bytes,
    manifest: Bytes,
}

/// The file system, as long as nobody writes to its file.
struct FileSystem {
    path: PathBuf,
    part: Part,
    stamp: Stamp,
    digest: Digest,
}

/// What changes when a file is replaced or written to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Where in a file a file system is, and what else the file tells.
struct Found {
    at: u64,
    len: u64,
    architecture: &'static str,
    config: Value,
}

impl SquashfsFile {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::File {
            place: path.display().to_string(),
            problem: "the file cannot be read".into(),
            hint: None,
            source: Some(source),
        };
        let (file, size) = regular(path).map_err(failed)?;
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        let found = found(&file, size).map_err(|problem| SourceError::File {
            place: path.display().to_string(),
            problem,
            hint: Some("name a SIF or a squashfs file that is whole".into()),
            source: None,
        })?;
        let part = Part {
            file: Arc::new(file),
            at: found.at,
            len: found.len,
        };
        let digest = identity(stamp, &part).map_err(failed)?;
        let blob = FileSystem {
            path: path.to_owned(),
            part,
            stamp,
            digest,
        };
        let config = json!({
            "os": "linux",
            "architecture": found.architecture,
            "config": found.config,
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config),
                "size": config.len(),
            },
            "layers": [{"mediaType": MEDIA_TYPE, "digest": digest, "size": found.len}],
        });
        Ok(Self {
            blob: Arc::new(blob),
            config,
            manifest: manifest.to_string().into(),
        })
    }
}

/// Whether the file at `path` is a SIF, or begins like a squashfs.
pub fn is_image_file(path: &Path) -> bool {
    regular(path).is_ok_and(|(file, size)| found(&file, size).is_ok())
}

/// The file system in a file of `size` bytes.
fn found(file: &File, size: u64) -> Result<Found, String> {
    let bare = |at| Found {
        at,
        len: size - at,
        architecture: "unknown",
        config: json!({}),
    };
    let mut start = [0; LAUNCH.len() + MAGIC.len()];
    let len = size.min(start.len() as u64) as usize;
    file.read_exact_at(&mut start[..len], 0)
        .map_err(|err| format!("it cannot be read: {err}"))?;
    if start.starts_with(MAGIC) {
        return Ok(bare(0));
    }
    if start.starts_with(LAUNCH) && start.ends_with(MAGIC) {
        return Ok(bare(LAUNCH.len() as u64));
    }
    let sif = match Sif::open(file) {
        Ok(sif) => sif,
        Err(SifError::NotSif(_)) => return Err("it is neither a SIF nor a squashfs".into()),
        Err(SifError::Io(err)) => return Err(format!("it cannot be read: {err}")),
        Err(err) => return Err(err.to_string()),
    };
    let partition = sif.primary_partition().ok_or(
        "the SIF has no root file system, as OCI-SIFs of SingularityCE 4 have none, which are not read",
    )?;
    if !matches!(
        partition.kind,
        ObjectKind::Partition {
            is_squashfs: true,
            ..
        }
    ) {
        return Err("the root file system of the SIF is encrypted, or not a squashfs".into());
    }
    Ok(Found {
        at: partition.at,
        len: partition.len,
        architecture: sif.architecture.unwrap_or("unknown"),
        config: container_config(file, &sif),
    })
}

/// Environment and labels of the image that a SIF was made from, as its writer kept them. What is run is the SIF's own
/// script. A text that is no configuration is none.
fn container_config(file: &File, sif: &Sif) -> Value {
    let read = || {
        let object = sif.named(ObjectKind::GenericJson, "oci-config.json")?;
        let len = Some(object.len).filter(|&len| len <= OCI_CONFIG_BYTES_LIMIT)?;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, object.at).ok()?;
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

fn identity(stamp: Stamp, part: &Part) -> io::Result<Digest> {
    let (seconds, nanos) = stamp.modified;
    let Stamp { inode, size, .. } = stamp;
    let (at, len) = (part.at, part.len);
    let mut hasher = Hasher::default();
    hasher.update(
        format!(
            "squashfs, bytes {at}+{len} of a file: inode {inode}, {size} bytes, {seconds}.{nanos}\n"
        )
        .as_bytes(),
    );
    hasher.update(&part.bytes(0, len.min(HEAD_BYTES) as usize)?);
    let tail = len.min(TAIL_BYTES);
    hasher.update(&part.bytes(len - tail, tail as usize)?);
    Ok(hasher.finish())
}

impl Origin for SquashfsFile {
    fn resolve(&self) -> Result<Digest, SourceError> {
        Ok(Digest::of(&self.manifest))
    }

    fn manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        match digest == Digest::of(&self.manifest) {
            true => Ok(self.manifest.clone()),
            false => Err(SourceError::file(
                &self.blob.path,
                format!("it is no longer the file that was named {digest}"),
            )),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        if descriptor.digest == Digest::of(&self.config) {
            return Arc::new(Text(self.config.clone()));
        }
        self.blob.clone()
    }
}

impl FileSystem {
    fn wrong(&self, problem: impl Into<String>) -> BlobError {
        BlobError::Wrong {
            object: self.path.display().to_string(),
            problem: problem.into(),
        }
    }

    /// Fails once somebody has written to the file.
    fn unchanged(&self) -> Result<(), BlobError> {
        let metadata = self.part.file.metadata();
        let now = metadata.map_err(|err| self.wrong(format!("cannot be read: {err}")))?;
        match Stamp::of(&now) == self.stamp {
            true => Ok(()),
            false => Err(self.wrong("the file was changed while it was in use: mount it again")),
        }
    }
}

impl Blob for FileSystem {
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

    fn stream(&self) -> Result<Box<dyn Read + Send>, BlobError> {
        self.unchanged()?;
        Ok(Box::new(self.part.reader()))
    }

    fn is_remote(&self) -> bool {
        false
    }
}

/// A document that was made here.
struct Text(Bytes);

impl Blob for Text {
    fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, at: PackedOffset, len: usize, _: Instant) -> Result<Bytes, BlobError> {
        let from = usize::try_from(at.0).ok();
        let part = from.and_then(|from| self.0.get(from..from.checked_add(len)?));
        let part = part.ok_or_else(|| BlobError::Wrong {
            object: format!("configuration {}", self.digest()),
            problem: format!("{len} bytes at {} are not within it", at.0),
        })?;
        Ok(self.0.slice_ref(part))
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>, BlobError> {
        Ok(Box::new(io::Cursor::new(self.0.clone())))
    }

    fn is_remote(&self) -> bool {
        false
    }
}
