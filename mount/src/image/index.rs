//! What makes a layer seekable: the table of contents or the index that its image promises. It is fetched with one
//! request, checked, and becomes the layer's table; a layer whose index turns out not to be usable is streamed.

use std::error::Error;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::documents::Opener;
use super::open::OpenError;
use crate::blob::{Blob, Windows};
use crate::digest::Digest;
use crate::extent::PackedOffset;
use crate::fetch::PackedCopy;
use crate::layer::estargz::{self, EstargzError, Footer};
use crate::layer::soci::{self, Trust};
use crate::layer::squashfs;
use crate::layer::table::{Table, TableWriter};
use crate::layer::toc::Unpacked;
use crate::layer::zstd_chunked::{self, Dialect, Toc};
use crate::reference::Reference;
use crate::source::manifest::{Descriptor, Manifest};
use crate::source::{self, SourceError};

/// An index that an image promises for one of its layers.
#[derive(Clone, Debug)]
pub enum Index {
    /// The table of contents at a known place in the blob.
    ZstdChunked(Toc),
    /// The table of contents that the blob's end leads to, by its digest.
    Estargz(Digest),
    /// A zTOC.
    Soci {
        /// Its blob, and another that says what to fetch ahead.
        part: Box<soci::Part>,
        /// Whether the image names the index that names it, or somebody attached that.
        trust: Trust,
    },
    /// None: the layer is a file system, which tells all by itself.
    Squashfs {
        /// Where in the layer it begins.
        at: u64,
        /// Its bytes.
        len: u64,
        /// Who says that it is what it should be.
        voucher: Voucher,
    },
}

/// Who says that a file system's bytes are right. No one says it of single blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voucher {
    /// It is a file of the user's own.
    User,
    /// A web server, of its file's version.
    Server,
    /// A registry's manifest, of the SIF as a whole.
    Manifest,
    /// An image's manifest, of one of the image's layers as a whole.
    Image,
    /// The same, in a file of the user's own.
    ImageFile,
}

/// The squashfs layers of OCI-SIFs.
const SQUASHFS_LAYER: &str = "application/vnd.sylabs.image.layer.v1.squashfs";

/// Metadata of a squashfs is read in pieces of this size, so many of which are kept: inodes and names are read side by side.
const WINDOW_BYTES: u64 = 1 << 20;
const WINDOWS: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");

/// Longer than any table takes to be parsed.
const PATIENCE: Duration = Duration::from_secs(10);

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
            Self::Soci { part, trust } => match trust {
                Trust::Signed => part.ztoc.digest,
                // The tables differ: an unsigned one has the places of tar headers.
                Trust::Unsigned => Digest::of(format!("unsigned {}", part.ztoc.digest).as_bytes()),
            },
            // The layer's name is that of these contents already.
            Self::Squashfs { at, len, voucher } => {
                let marks = if voucher.is_of_an_image() {
                    ", hiding"
                } else {
                    ""
                };
                Digest::of(format!("squashfs 2, {len} bytes at {at}{marks}").as_bytes())
            }
        }
    }

    /// The layer's format, as people call it.
    pub fn format(&self) -> &'static str {
        match self {
            Self::ZstdChunked(_) => "zstd:chunked",
            Self::Estargz(_) => "eStargz",
            Self::Soci { .. } => "gzip",
            Self::Squashfs { .. } => "squashfs",
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
            Self::Soci { trust, .. } => match trust {
                Trust::Signed => "SOCI v2 index",
                Trust::Unsigned => "SOCI v1 index",
            },
            Self::Squashfs { .. } => "the file system's own tables",
        }
    }

    /// Why what is read by it is believed.
    pub fn trust(&self) -> &'static str {
        match self {
            Self::ZstdChunked(_) | Self::Estargz(_) => {
                "the manifest names the table's digest, the table each chunk's"
            }
            Self::Soci { trust, .. } => match trust {
                Trust::Signed => {
                    "the manifest names the index, that the zTOC, that each span's digest"
                }
                Trust::Unsigned => {
                    "nobody signs the index: files are compared with their tar headers"
                }
            },
            Self::Squashfs { voucher, .. } => match voucher {
                Voucher::User => {
                    "it is a file of yours: blocks have no digests, and reads fail once the file changes"
                }
                Voucher::Server => {
                    "the server is believed: blocks have no digests, and reads fail once the file changes there"
                }
                Voucher::Manifest => {
                    "the manifest names the digest of the whole, which `sifon complete` and `sifon pull` check; blocks have none, \
                     and are believed until then"
                }
                Voucher::Image => {
                    "the manifest names the digest of the whole, which `sifon complete` checks; blocks have none, and are \
                     believed until then"
                }
                Voucher::ImageFile => {
                    "it is in a file of yours: blocks have no digests, and are believed"
                }
            },
        }
    }
}

impl Voucher {
    fn is_of_an_image(self) -> bool {
        matches!(self, Self::Image | Self::ImageFile)
    }
}

impl Opener<'_> {
    /// What the layer's own annotations promise, or the kind of the reference.
    pub(super) fn promised(&self, layer: &Descriptor) -> Result<Option<Index>, Unusable> {
        // Only these have a manifest of our own, whose words on places can be believed.
        let place = match self.reference.is_file_system() {
            true => source::place_in(layer),
            false => None,
        };
        if let Some((at, len)) = place {
            let voucher = match self.reference {
                Reference::Oras(_) => Voucher::Manifest,
                Reference::Web(_) => Voucher::Server,
                _ => Voucher::User,
            };
            return Ok(Some(Index::Squashfs { at, len, voucher }));
        }
        if layer.media_type == SQUASHFS_LAYER {
            let (at, len) = (0, layer.size);
            let voucher = match self.reference.is_remote() {
                true => Voucher::Image,
                false => Voucher::ImageFile,
            };
            return Ok(Some(Index::Squashfs { at, len, voucher }));
        }
        Index::promised(layer)
    }

    /// The table of a layer that `index` makes seekable. `None` if the index is not usable, which is logged: the layer is
    /// still a tar stream.
    pub(super) fn table_by(
        &self,
        layer: &Descriptor,
        index: &Index,
        rank: usize,
    ) -> Result<Option<Table>, OpenError> {
        let mut writer = TableWriter::in_directory(&self.store.scratch());
        let read = match index {
            Index::ZstdChunked(toc) => {
                let packed = self.range(layer, toc.place())?;
                self.parsed(rank, |unpacked| {
                    zstd_chunked::table(toc, &packed, layer.size, unpacked, &mut writer)
                })
                .map_err(Unusable::from)
            }
            Index::Estargz(promised) => self.estargz(layer, *promised, rank, &mut writer)?,
            Index::Soci { part, trust } => self.soci(layer, part, *trust, rank, &mut writer)?,
            Index::Squashfs { at, len, voucher } => {
                self.squashfs(layer, *at..*at + *len, *voucher, &mut writer)?;
                Ok(())
            }
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

    /// What `parse` gives, when a core is free for it and nobody of a lower rank wants it. Who waits in vain goes ahead.
    fn parsed<T>(&self, rank: usize, parse: impl FnOnce(&mut Unpacked) -> T) -> T {
        let _place = self.cores.enter_as(rank, Instant::now() + PATIENCE);
        let mut unpacked = self.unpacked.lock().pop().unwrap_or_default();
        let parsed = parse(&mut unpacked);
        self.unpacked.lock().push(unpacked);
        parsed
    }

    /// By the end of the blob, in which nearly always the whole table of contents lies.
    fn estargz(
        &self,
        layer: &Descriptor,
        promised: Digest,
        rank: usize,
        writer: &mut TableWriter,
    ) -> Result<Result<(), Unusable>, OpenError> {
        let from = PackedCopy::block_start(layer.size - estargz::tail_bytes(layer.size));
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
            Some(at) => {
                self.keep_end(layer, &tail, at);
                tail.slice(at as usize..(place.end - from) as usize)
            }
            // Not what is here already once more.
            None if place.end > from => {
                let rest = self.range(layer, place.start..from)?;
                let here = &tail[..(place.end - from) as usize];
                [&rest, here].concat().into()
            }
            None => self.range(layer, place)?,
        };
        let table = self.parsed(rank, |unpacked| {
            estargz::table(promised, footer, &packed, unpacked, writer)
        });
        Ok(table.map_err(|err: EstargzError| err.into()))
    }

    /// Keeps what came of a layer's end with its table of contents: `before` bytes of it are ahead of that, and may be chunks.
    fn keep_end(&self, layer: &Descriptor, tail: &[u8], before: u64) {
        let blob = self.blob(layer);
        if before == 0 || !blob.is_remote() {
            return;
        }
        let kept = PackedCopy::of(self.store, &*blob).and_then(|copy| copy.keep_end(tail));
        if let Err(error) = kept {
            tracing::debug!(layer = %layer.digest, %error, "what came with the table is not kept");
        }
    }

    /// By a zTOC, which is a blob of its own.
    fn soci(
        &self,
        layer: &Descriptor,
        part: &soci::Part,
        trust: Trust,
        rank: usize,
        writer: &mut TableWriter,
    ) -> Result<Result<(), Unusable>, OpenError> {
        let ztoc = &part.ztoc;
        if ztoc.size > soci::ZTOC_BYTES_LIMIT {
            return Ok(Err(format!(
                "its zTOC of {} bytes is larger than we read",
                ztoc.size
            )
            .into()));
        }
        let (bytes, leads) = thread::scope(|scope| {
            let prefetch = part.prefetch.as_ref();
            let leads = prefetch.map(|prefetch| scope.spawn(|| self.prefetched(prefetch)));
            let bytes = self.range(ztoc, 0..ztoc.size);
            (bytes, leads.and_then(|leads| leads.join().ok()))
        });
        let bytes = bytes?;
        if self.parsed(rank, |_| Digest::of(&bytes)) != ztoc.digest {
            return Ok(Err(format!(
                "the bytes of zTOC {} do not match its digest",
                ztoc.digest
            )
            .into()));
        }
        for spans in leads.unwrap_or_default() {
            writer.lead(spans);
        }
        let table = self.parsed(rank, |_| soci::table(&bytes, layer.size, trust, writer));
        Ok(table.map_err(Unusable::from))
    }

    /// The spans that are worth fetching ahead; none, which is logged, if that cannot be found out.
    fn prefetched(&self, artifact: &Descriptor) -> Vec<Range<u32>> {
        let spans = || -> Result<_, Unusable> {
            if artifact.size > soci::PREFETCH_BYTES_LIMIT {
                return Err(format!("{} bytes are more than we read", artifact.size).into());
            }
            let bytes = self.range(artifact, 0..artifact.size)?;
            if Digest::of(&bytes) != artifact.digest {
                return Err("its bytes do not match its digest".into());
            }
            Ok(soci::prefetched(&bytes)?)
        };
        spans().unwrap_or_else(|err| {
            let error = &*err as &dyn Error;
            tracing::warn!(artifact = %artifact.digest, error, "nothing is fetched ahead by it");
            Vec::new()
        })
    }

    /// By its own tables, at `place` in the layer.
    fn squashfs(
        &self,
        layer: &Descriptor,
        place: Range<u64>,
        voucher: Voucher,
        writer: &mut TableWriter,
    ) -> Result<(), OpenError> {
        let timeout = self.options.registry.timeout;
        let windows = Windows::new(self.blob(layer), WINDOW_BYTES, WINDOWS, timeout);
        let read = |at, len| {
            windows
                .read(place.start.saturating_add(at), len)
                .map_err(io::Error::other)
        };
        let input = squashfs::Input {
            at: place.start,
            len: place.end - place.start,
            hides_lower: voucher.is_of_an_image(),
            read: &read,
        };
        squashfs::table(&input, writer).map_err(|source| OpenError::Squashfs {
            file: self.reference.to_string(),
            source,
        })
    }

    /// The SOCI index of an image: the one that it names, or, if the user wants that, the first that somebody attached. What
    /// cannot be had is logged, and is none: layers are then streamed.
    pub(super) fn soci_index(
        &self,
        manifest_digest: Digest,
        manifest: &Manifest,
    ) -> Option<(Digest, Manifest, Trust)> {
        let found = match soci::promised(manifest) {
            Some(index) => Ok(Some((index, Trust::Signed))),
            None if self.options.soci_v1 => self
                .attached_index(manifest_digest)
                .map(|index| Some((index?, Trust::Unsigned))),
            None => return None,
        };
        let index = found.and_then(|found| match found {
            None => Ok(None),
            Some((digest, trust)) => {
                let bytes = self.document(digest)?;
                let index = soci::index(&bytes);
                Ok(index.map(|index| (digest, index, trust)))
            }
        });
        index.unwrap_or_else(|err| {
            let error = &err as &dyn Error;
            tracing::warn!(image = %manifest_digest, error, "its SOCI index is not used");
            None
        })
    }

    /// The SOCI index that somebody attached to the image, asked for as often as what a tag means.
    fn attached_index(&self, manifest: Digest) -> Result<Option<Digest>, SourceError> {
        let name = format!("{} {} of {manifest}", self.repository(), soci::INDEX_V1);
        if let Some(known) = self.remembered(&name) {
            return Ok(Some(known));
        }
        if self.is_offline() {
            return Ok(None);
        }
        let referrers = self.source.referrers(manifest, soci::INDEX_V1)?;
        for index in referrers {
            if soci::index(&self.document(index)?).is_some() {
                self.store.remember_tag(&name, index);
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Bytes of a blob as they come: whoever takes them checks them.
    pub(super) fn range(&self, layer: &Descriptor, range: Range<u64>) -> Result<Bytes, OpenError> {
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
