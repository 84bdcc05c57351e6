//! One layer on its way to a table and a place for its chunks.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::documents::{Named, Opener};
use super::index::{self, Index, Unusable};
use super::open::{OnProgress, OpenError, Progress};
use super::ready::Readiness;
use crate::digest::Digest;
use crate::fetch::{LayerChunks, Marks, Origin, PackedCopy, Restream, Resumed};
use crate::layer::estargz;
use crate::layer::native::{Blueprint, Compressors, ConvertError, Footer, accepted, convert};
use crate::layer::soci;
use crate::layer::table::{self, ChunkIndex, Table, TableWriter};
use crate::source::manifest::Descriptor;
use crate::store::{Draft, Name};

/// A layer as the manifest and the config describe it.
pub(super) struct Layer<'a> {
    pub descriptor: &'a Descriptor,
    diff_id: DiffId<'a>,
    /// What makes it seekable; without one it is a tar stream, compressed or not, that is streamed once.
    index: Option<Index>,
    /// When its table is made, if others of the image wait for a core, too: lower ones first.
    pub rank: usize,
}

/// The digest of a layer's plain bytes.
#[derive(Clone, Copy)]
pub(super) enum DiffId<'a> {
    Known(Digest),
    /// The one at this place in a config that is still on its way; there are none if that does not come.
    Awaited(&'a OnceLock<Vec<Digest>>, usize),
}

impl DiffId<'_> {
    /// Waits for it.
    fn get(self) -> Option<Digest> {
        match self {
            Self::Known(digest) => Some(digest),
            Self::Awaited(all, place) => all.wait().get(place).copied(),
        }
    }
}

impl<'a> Layer<'a> {
    /// A layer with the index that was promised for it, if that can be used.
    pub fn new(
        descriptor: &'a Descriptor,
        diff_id: DiffId<'a>,
        promised: Result<Option<Index>, Unusable>,
    ) -> Result<Self, OpenError> {
        let layer = descriptor.digest;
        if let Some(problem) = unreadable(descriptor) {
            return Err(OpenError::Format { layer, problem });
        }
        let index = promised.unwrap_or_else(|err| {
            tracing::warn!(%layer, error = %err, "the layer is read whole");
            None
        });
        Ok(Self {
            descriptor,
            diff_id,
            index,
            rank: 0,
        })
    }

    fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// Whether an index is promised for it.
    pub fn is_seekable(&self) -> bool {
        self.index.is_some()
    }

    /// What it must be when all of it has come.
    pub fn blueprint(&self) -> Result<Blueprint, OpenError> {
        let layer = self.digest();
        let unknown = || OpenError::Format {
            layer,
            problem: "the image's configuration, which names its diffID, cannot be had".into(),
        };
        Ok(Blueprint {
            layer,
            packed_len: self.descriptor.size,
            diff_id: self.diff_id.get().ok_or_else(unknown)?,
        })
    }
}

/// The format of a layer that is not ours to read, if it is one that we know by name.
pub(super) fn foreign_format(descriptor: &Descriptor) -> Option<&'static str> {
    let media_type = descriptor.media_type.as_str();
    let has = |prefix: &str| {
        let mut keys = descriptor.annotations.keys();
        keys.any(|key| key.starts_with(prefix))
    };
    if media_type.ends_with("+encrypted") {
        Some("encrypted")
    } else if media_type.contains("nydus") || has("containerd.io/snapshot/nydus-") {
        Some("nydus")
    } else if has("containerd.io/snapshot/overlaybd/")
        || has("containerd.io/snapshot/turbo-oci/")
        || has("containerd.io/snapshot/fastoci/")
    {
        Some("overlaybd")
    } else if media_type.ends_with(".ext3") {
        Some("OCI-SIF")
    } else {
        None
    }
}

/// Why a layer in such a format cannot be read, and what to do about it.
pub(super) fn unreadable(descriptor: &Descriptor) -> Option<String> {
    let format = foreign_format(descriptor)?;
    Some(match format {
        "encrypted" => "it is encrypted, which sifon cannot read".into(),
        "OCI-SIF" => {
            let media_type = &descriptor.media_type;
            format!("it is the writable part of an OCI-SIF ({media_type}), which sifon cannot read")
        }
        format => format!(
            "it is in {format} format, which sifon cannot read: ask its publisher for the plain image, which most \
             registries keep beside it"
        ),
    })
}

impl Opener<'_> {
    /// Gives layers without an index of their own the one that a SOCI index has for them, if any of them needs it. Gives the
    /// digest of the SOCI index.
    pub(super) fn add_soci(&self, named: &Named, layers: &mut [Layer<'_>]) -> Option<Digest> {
        let may_have_one = soci::promised(&named.manifest).is_some() || self.options.soci_v1;
        let needs = |layer: &Layer<'_>| layer.index.is_none() && self.kept(layer).is_none();
        if !may_have_one || !layers.iter().any(needs) {
            return None;
        }
        let (digest, index, trust) = self.soci_index(named.digest, &named.manifest)?;
        for layer in layers.iter_mut().filter(|layer| layer.index.is_none()) {
            let part = soci::part(&index, layer.digest()).map(Box::new);
            layer.index = part.map(|part| Index::Soci { part, trust });
        }
        Some(digest)
    }

    /// Sees to it that the chunks of `layer` can be read.
    pub(super) fn make_ready(
        &self,
        layer: &Layer<'_>,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<(), OpenError> {
        let kept = self.kept(layer).or_else(|| self.accepted(layer));
        let (digest, is_new) = (layer.digest(), kept.is_none());
        let (table, native) = match (kept, &layer.index) {
            (Some(kept), _) => {
                tracing::debug!("layer {digest}: in the store");
                kept
            }
            (None, Some(index)) => match self.table_by(layer.descriptor, index, layer.rank)? {
                Some(table) => {
                    let index = index.description();
                    tracing::debug!("layer {digest}: read lazily, by the {index}");
                    (table, None)
                }
                None => self.streamed(layer, ready, progress)?,
            },
            (None, None) => self.streamed(layer, ready, progress)?,
        };
        let origin = match native {
            Some(file) => Origin::Native(file, self.restream(layer)?),
            None => self.seekable(layer)?,
        };
        let marks = match origin {
            Origin::Native(..) => None,
            Origin::Local(_) | Origin::Remote(..) => self.marks(&table),
        };
        let chunks = LayerChunks::new(Arc::new(table), origin);
        ready.add(chunks.with_marks(marks), is_new);
        Ok(())
    }

    /// What the store has of a layer, if that is all it needs: the layer as it was streamed, or else a table by which it
    /// is read lazily. Of promised indexes only this image's counts, because another image may promise another one for the
    /// same layer, and lie.
    fn kept(&self, layer: &Layer<'_>) -> Option<(Table, Option<File>)> {
        let digest = layer.digest();
        let streamed = || {
            let native = self.store.native(digest)?;
            let footer = Footer::of(&native).ok()??;
            let is_ours = layer.diff_id.get() == Some(footer.diff_id());
            Some((is_ours.then(|| self.store.table(digest))??, Some(native)))
        };
        let indexed = || {
            let index = layer.index.as_ref()?;
            let key = table::key(digest, Some(index.digest()));
            Some((self.store.table(key)?, None))
        };
        let own = || Some((self.store.index(digest)?, None));
        streamed().or_else(indexed).or_else(own)
    }

    /// A layer that somebody else streamed, checked here, with a table of our own.
    fn accepted(&self, layer: &Layer<'_>) -> Option<(Table, Option<File>)> {
        if layer.index.is_some() {
            return None;
        }
        let theirs = self.store.strangers_table(layer.digest())?;
        let native = self.store.native(layer.digest())?;
        let scratch = self.store.scratch();
        match accepted(layer.blueprint().ok()?, &theirs, &native, &scratch) {
            Ok(writer) => Some((self.sealed(layer.digest(), writer).ok()?, Some(native))),
            Err(err) => {
                tracing::warn!(layer = %layer.digest(), error = %err, "another user's layer is not used");
                None
            }
        }
    }

    /// How the layer is streamed again when its native file turns out to be damaged.
    fn restream(&self, layer: &Layer<'_>) -> Result<Restream, OpenError> {
        let blueprint = layer.blueprint()?;
        let blob = self.blob(layer.descriptor);
        let store = Arc::clone(self.store);
        Ok(Box::new(move || {
            let draft = store.draft()?;
            let compressors = Compressors::start();
            let mut table = convert(
                blueprint,
                blob.stream()?,
                draft.file()?,
                &store.scratch(),
                &compressors,
            )?;
            let layer = blueprint.layer;
            let native = store.seal(draft, Name::Native(layer))?;
            // It differs from the one that is in use if another version of this program wrote that: the next
            // mount should find two files that belong together.
            store.sealed_with(Name::Table(layer), |to| table.finish(layer, to))?;
            Ok(native)
        }))
    }

    fn seekable(&self, layer: &Layer<'_>) -> Result<Origin, OpenError> {
        let blob = self.blob(layer.descriptor);
        if !blob.is_remote() {
            return Ok(Origin::Local(blob));
        }
        let copy = match layer.index {
            // Its chunks have no digests by which what is kept could be checked.
            Some(Index::Squashfs { .. }) => PackedCopy::sealed(self.store, &*blob),
            _ => PackedCopy::of(self.store, &*blob),
        };
        let copy = copy.map_err(|source| self.unwritable(source))?;
        Ok(Origin::Remote(blob, copy))
    }

    /// For what is found right of the layer's chunks, if that saves anything.
    fn marks(&self, table: &Table) -> Option<Marks> {
        let first = table.chunk(ChunkIndex(0)).ok()?;
        let len = Marks::len(table.chunk_count());
        let file = Marks::help(&first.digest).then(|| self.store.marks(table.key(), len));
        file.flatten().map(Marks::of)
    }

    /// A layer that is streamed once; when the store has no room, into a file that ends with the process.
    fn streamed(
        &self,
        layer: &Layer<'_>,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<(Table, Option<File>), OpenError> {
        let (digest, size) = (layer.digest(), layer.descriptor.size);
        let is_in_vain = || ready.is_in_vain.load(Ordering::Relaxed);
        let turn = self.store.turn(digest, &is_in_vain);
        if let Some(kept) = self.kept(layer) {
            tracing::debug!("layer {digest}: in the store by now");
            return Ok(kept);
        }
        tracing::debug!("layer {digest}: streamed, all {size} bytes of it");
        let progress: OnProgress = {
            let progress = Arc::clone(progress);
            Arc::new(move |step| {
                turn.goes_on();
                progress(step);
            })
        };
        let streamed = self
            .store
            .draft()
            .map_err(|source| self.unwritable(source))
            .and_then(|draft| {
                let scratch = self.store.scratch();
                self.streamed_into(draft, &scratch, layer, ready, &progress)
            });
        match streamed {
            Err(
                OpenError::Convert(ConvertError::Write { source, .. })
                | OpenError::Store { source, .. },
            ) if self.store.keeps() => {
                tracing::warn!(
                    store = %self.store.directory().display(),
                    error = %source,
                    "the store cannot keep the layer: it is kept until the image is unmounted"
                );
                let draft = self.store.nameless_draft();
                let draft = draft.map_err(|source| self.unwritable(source))?;
                let scratch = std::env::temp_dir();
                self.streamed_into(draft, &scratch, layer, ready, &progress)
            }
            streamed => streamed,
        }
    }

    fn streamed_into(
        &self,
        draft: Draft,
        scratch: &Path,
        layer: &Layer<'_>,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<(Table, Option<File>), OpenError> {
        let digest = layer.digest();
        progress(Progress::Started {
            layer: digest,
            bytes: layer.descriptor.size,
        });
        let packed = self.counted(layer, ready, progress)?;
        let file = draft.file().map_err(|source| self.unwritable(source))?;
        let converted = convert(
            layer.blueprint()?,
            Box::new(packed),
            file,
            scratch,
            ready.compressors(),
        );
        let writer = converted.inspect_err(|err| self.forget_wrong(digest, err))?;
        let native = self
            .store
            .seal(draft, Name::Native(digest))
            .map_err(|err| self.unwritable(err))?;
        self.store.forget_packed(digest);
        let table = self.sealed(digest, writer)?;
        progress(Progress::Finished { layer: digest });
        Ok((table, Some(native)))
    }

    /// Removes what came of a layer that failed, but for what the next try goes on with: the source may be back then.
    pub(super) fn forget_wrong(&self, layer: Digest, error: &ConvertError) {
        if !matches!(error, ConvertError::Read { .. }) {
            self.store.forget_packed(layer);
        }
    }

    /// The layer's packed bytes, while they come; those that came to an earlier try are not asked for again.
    pub(super) fn counted(
        &self,
        layer: &Layer<'_>,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<Counted, OpenError> {
        let digest = layer.digest();
        let blob = self.blob(layer.descriptor);
        let stream = Resumed::new(blob, self.store).map_err(|source| OpenError::Blob {
            layer: digest,
            source,
        })?;
        let kept = stream.kept_bytes();
        if kept > 0 {
            let size = layer.descriptor.size;
            tracing::info!("layer {digest}: {kept} of {size} bytes are here already");
        }
        Ok(Counted {
            stream,
            layer: digest,
            progress: Arc::clone(progress),
            is_in_vain: Arc::clone(&ready.is_in_vain),
            is_promised: layer.index.is_some(),
            tail: Vec::new(),
        })
    }

    /// The finished table, in the store under its key.
    pub(super) fn sealed(
        &self,
        layer: Digest,
        mut writer: TableWriter,
    ) -> Result<Table, OpenError> {
        let name = Name::Table(writer.key(layer));
        let sealed = self.store.sealed_with(name, |to| writer.finish(layer, to));
        Ok(Table::open(
            sealed.map_err(|source| self.unwritable(source))?,
        )?)
    }

    pub(super) fn unwritable(&self, source: io::Error) -> OpenError {
        OpenError::Store {
            store: self.store.directory().display().to_string(),
            source,
        }
    }
}

/// A blob's stream that tells how much of it came, and ends when nobody needs it any more.
pub(super) struct Counted {
    stream: Resumed,
    layer: Digest,
    progress: OnProgress,
    is_in_vain: Arc<AtomicBool>,
    /// Its manifest promises an index, and somebody has been told why that is not used.
    is_promised: bool,
    /// What came last, at least as much as a footer has.
    tail: Vec<u8>,
}

impl Counted {
    /// Tells what the layer's footer says, which nothing vouches for: why a layer that seems made for it is not read lazily.
    fn tell_footer(&mut self) {
        let problem = match estargz::footer(&std::mem::take(&mut self.tail)) {
            None => return,
            Some(footer) => index::footer_problem(footer).unwrap_or(
                "it has a table of contents, but the manifest does not name its digest: push the image with the \
                 annotations that its converter gave it",
            ),
        };
        tracing::warn!("layer {}: not read lazily: {problem}", self.layer);
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_in_vain.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer of the image has failed"));
        }
        let len = self.stream.read(buffer)?;
        if len == 0 && !buffer.is_empty() && !self.is_promised {
            self.tell_footer();
        }
        let last = &buffer[len.saturating_sub(estargz::FOOTER_BYTES as usize)..len];
        self.tail.extend_from_slice(last);
        let excess = self
            .tail
            .len()
            .saturating_sub(estargz::FOOTER_BYTES as usize);
        self.tail.drain(..excess);
        (self.progress)(Progress::Received {
            layer: self.layer,
            bytes: len as u64,
        });
        Ok(len)
    }
}
