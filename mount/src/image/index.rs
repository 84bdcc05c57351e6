//! What makes a layer seekable: the table of contents or the index that its image promises. It is fetched with one
//! request, checked, and becomes the layer's table; a layer whose index turns out not to be usable is streamed.

use std::error::Error;
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::open::{OpenError, Opener};
use crate::blob::Blob;
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::layer::estargz::{self, EstargzError, Footer};
use crate::layer::table::{Table, TableWriter};
use crate::layer::zstd_chunked::{self, Dialect, Toc};
use crate::source::manifest::Descriptor;

/// An index that an image promises for one of its layers.
#[derive(Clone, Debug)]
pub enum Index {
    /// The table of contents at a known place in the blob.
    ZstdChunked(Toc),
    /// The table of contents that the blob's end leads to, by its digest.
    Estargz(Digest),
}

/// Why the index of a layer is not used.
pub(super) type Unusable = Box<dyn Error + Send + Sync>;

impl Index {
    /// The index that the layer's own annotations promise.
    pub fn promised(layer: &Descriptor) -> Result<Option<Self>, Unusable> {
        if let Some(toc) = zstd_chunked::promised(&layer.annotations)? {
            return Ok(Some(Self::ZstdChunked(toc)));
        }
        Ok(estargz::promised(&layer.annotations)?.map(Self::Estargz))
    }

    /// What tells it from other indexes of the same layer.
    pub fn digest(&self) -> Digest {
        match self {
            Self::ZstdChunked(toc) => toc.digest,
            Self::Estargz(digest) => *digest,
        }
    }

    /// The layer's format, as people call it.
    pub fn format(&self) -> &'static str {
        match self {
            Self::ZstdChunked(_) => "zstd:chunked",
            Self::Estargz(_) => "eStargz",
        }
    }

    /// What the index is, in a few words.
    pub fn description(&self) -> &'static str {
        match self {
            Self::ZstdChunked(toc) => match toc.dialect {
                Dialect::Containers => "table of contents in the layer (containers/storage)",
                Dialect::Stargz => "table of contents in the layer (stargz)",
            },
            Self::Estargz(_) => "table of contents in the layer (stargz)",
        }
    }

    /// Why what is read by it is believed.
    pub fn trust(&self) -> &'static str {
        match self {
            Self::ZstdChunked(_) | Self::Estargz(_) => {
                "the manifest names the table's digest, the table each chunk's"
            }
        }
    }
}

impl Opener<'_> {
    /// The table of a layer that `index` makes seekable. `None` if the index is not usable, which is logged: the layer is
    /// still a tar stream.
    pub(super) fn table_by(
        &self,
        layer: &Descriptor,
        index: &Index,
    ) -> Result<Option<Table>, OpenError> {
        let mut writer = TableWriter::in_directory(&self.store.scratch())
            .map_err(|source| self.unwritable(source))?;
        let read = match index {
            Index::ZstdChunked(toc) => {
                let packed = self.range(layer, toc.place())?;
                zstd_chunked::table(toc, &packed, layer.size, &mut writer).map_err(Unusable::from)
            }
            Index::Estargz(promised) => self.estargz(layer, *promised, &mut writer)?,
        };
        match read {
            Ok(()) => {
                writer.made_from(index.digest());
                self.sealed(layer.digest, writer).map(Some)
            }
            Err(err) => {
                let error = &*err as &dyn Error;
                tracing::warn!(layer = %layer.digest, error, "the layer is read whole");
                Ok(None)
            }
        }
    }

    /// By the end of the blob, in which nearly always the whole table of contents lies.
    fn estargz(
        &self,
        layer: &Descriptor,
        promised: Digest,
        writer: &mut TableWriter,
    ) -> Result<Result<(), Unusable>, OpenError> {
        let from = layer.size - estargz::tail_bytes(layer.size);
        let tail = self.range(layer, from..layer.size)?;
        let Some(footer) = estargz::footer(&tail) else {
            return Ok(Err(
                "it has no table of contents where its annotation says".into()
            ));
        };
        if let Some(problem) = footer_problem(footer) {
            return Ok(Err(problem.into()));
        }
        let Some(place) = estargz::place(footer, layer.size) else {
            return Ok(Err(
                "its table of contents lies outside of it, or is larger than we read".into(),
            ));
        };
        let packed = match place.start.checked_sub(from) {
            Some(at) => tail.slice(at as usize..(place.end - from) as usize),
            None => self.range(layer, place)?,
        };
        let table = estargz::table(promised, footer, &packed, writer);
        Ok(table.map_err(|err: EstargzError| err.into()))
    }

    fn range(&self, layer: &Descriptor, range: Range<u64>) -> Result<Bytes, OpenError> {
        let blob: std::sync::Arc<dyn Blob> = self.blob(layer);
        let deadline = Instant::now() + self.options.registry.timeout;
        let len = range.end.saturating_sub(range.start) as usize;
        blob.read(PackedOffset(range.start), len, deadline)
            .map_err(|source| OpenError::Blob {
                layer: layer.digest,
                source,
            })
    }
}

/// What keeps a blob with this footer from being read lazily, if anything does.
pub(super) fn footer_problem(footer: Footer) -> Option<&'static str> {
    match footer {
        Footer::Toc(_) | Footer::ZstdChunked { .. } => None,
        Footer::Legacy => Some(
            "it is in the stargz format of before eStargz, whose table of contents has no digests: \
             convert it, such as with `ctr-remote image optimize`",
        ),
        Footer::External => Some(
            "its table of contents (eStargz with an external one) is in another image, which sifon does not read",
        ),
    }
}
