//! What a reference names: an image's documents, from the store or from where the image is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::open::{Description, OpenError, Options};
use crate::blob::{Blob, BlobError, MemoryBlob, OfflineBlob};
use crate::digest::Digest;
use crate::fetch::Room;
use crate::layer::toc::Unpacked;
use crate::reference::Reference;
use crate::source::config::ImageConfig;
use crate::source::manifest::{Descriptor, Manifest, ManifestError};
use crate::source::{self, Source, SourceError};
use crate::store::Store;

/// A tag is asked for again after this long.
const TAG_AGE: Duration = Duration::from_secs(600);

/// What a reference means.
pub(super) struct Named {
    /// What it names: an index or the manifest.
    pub top: Digest,
    /// The chosen manifest.
    pub digest: Digest,
    pub manifest: Manifest,
}

impl Named {
    pub fn with(self, config: ImageConfig) -> Description {
        Description {
            top: self.top,
            manifest_digest: self.digest,
            manifest: self.manifest,
            config,
        }
    }
}

/// Opens one image: what was asked for, and where it is.
pub(super) struct Opener<'a> {
    pub(super) reference: &'a Reference,
    pub(super) options: &'a Options,
    pub(super) store: &'a Arc<Store>,
    pub(super) source: Source,
    /// For those who parse tables, so that the largest is not the last.
    pub(super) cores: Room,
    /// What they unpack them in.
    pub(super) unpacked: Mutex<Vec<Unpacked>>,
    /// A layer that no manifest names.
    pub(super) on_top: Option<Arc<MemoryBlob>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(
        reference: &'a Reference,
        options: &'a Options,
        store: &'a Arc<Store>,
    ) -> Result<Self, OpenError> {
        let source = Source::open(reference, &options.registry)?;
        Ok(Self::at(source, reference, options, store))
    }

    pub(super) fn at(
        source: Source,
        reference: &'a Reference,
        options: &'a Options,
        store: &'a Arc<Store>,
    ) -> Self {
        Self {
            reference,
            options,
            store,
            source,
            cores: Room::of_cores(),
            unpacked: Mutex::default(),
            on_top: None,
        }
    }

    pub(super) fn description(&self) -> Result<Description, OpenError> {
        let named = self.named()?;
        let config = self.config_of(&named.manifest)?;
        Ok(named.with(config))
    }

    pub(super) fn named(&self) -> Result<Named, OpenError> {
        let top = self.resolved()?;
        let platform = &self.options.registry.platform;
        let chosen = source::image(top, platform, |digest| self.document(digest))?;
        Ok(Named {
            top,
            digest: chosen.digest,
            manifest: chosen.manifest,
        })
    }

    pub(super) fn config_of(&self, manifest: &Manifest) -> Result<ImageConfig, OpenError> {
        let config = ImageConfig::parse(self.config(&manifest.config)?)
            .map_err(|source| self.unusable(source))?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(self.unusable(ManifestError::Malformed {
                what: "the config",
                problem: format!("it names {diff_ids} layers, the manifest {layers}"),
            }));
        }
        Ok(config)
    }

    fn unusable(&self, source: ManifestError) -> OpenError {
        OpenError::Manifest {
            reference: self.reference.to_string(),
            source,
        }
    }

    /// What the reference names now, or named a moment ago.
    fn resolved(&self) -> Result<Digest, OpenError> {
        if !self.reference.is_remote() {
            return self.resolved_here();
        }
        if let Some(digest) = self.reference.digest() {
            return Ok(digest);
        }
        let name = self.reference.to_string();
        let is_asked_anyway = self.source.resolves_first() && !self.options.offline;
        if let Some(digest) = self.remembered(&name).filter(|_| !is_asked_anyway) {
            tracing::debug!("{name}: {digest}, as when it was last asked for");
            return Ok(digest);
        }
        if self.options.offline {
            let object = format!("what {name} means");
            return Err(SourceError::Blob(BlobError::Offline { object }).into());
        }
        let digest = match self.store.tag(&name, Duration::MAX) {
            Some(_) => self.source.resolve()?,
            None => return self.resolved_anew(&name),
        };
        tracing::debug!("{name}: {digest}");
        self.store.remember_tag(&name, digest);
        Ok(digest)
    }

    /// What was never heard of has to be fetched anyway; by one of many processes that want it at once.
    fn resolved_anew(&self, name: &str) -> Result<Digest, OpenError> {
        let _turn = self.store.turn(Digest::of(name.as_bytes()), &|| false);
        if let Some(digest) = self.remembered(name) {
            tracing::debug!("{name}: {digest}, as another process was told just now");
            return Ok(digest);
        }
        let digest = self.source.resolve_anew()?;
        tracing::debug!("{name}: {digest}");
        // It came along; those who find the name find it, too.
        self.document(digest)?;
        self.store.remember_tag(name, digest);
        Ok(digest)
    }

    /// What a reference to a place on this machine names.
    fn resolved_here(&self) -> Result<Digest, OpenError> {
        let Some(name) = self.source.exact_name()? else {
            return Ok(self.source.resolve()?);
        };
        let known = self.store.tag(&name, Duration::MAX);
        if let Some(known) = known.filter(|&known| self.store.manifest(known).is_some()) {
            return Ok(known);
        }
        let digest = self.source.resolve()?;
        self.store.remember_tag(&name, digest);
        Ok(digest)
    }

    /// What `name` meant a moment ago, or, offline, ever.
    pub(super) fn remembered(&self, name: &str) -> Option<Digest> {
        let age = match self.options.offline {
            true => Duration::MAX,
            false => TAG_AGE,
        };
        let asks_again = self.options.refresh && !self.options.offline;
        (!asks_again).then(|| self.store.tag(name, age))?
    }

    /// Where the image is, whatever its tag.
    pub(super) fn repository(&self) -> String {
        match self.reference {
            Reference::Registry(reference) | Reference::Oras(reference) => {
                format!("{}/{}", reference.host, reference.repository)
            }
            other => other.to_string(),
        }
    }

    pub(super) fn document(&self, digest: Digest) -> Result<Bytes, SourceError> {
        let ask = || self.source.manifest(digest);
        self.kept_or(digest, "manifest", ask)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        let ask = || self.source.config(descriptor);
        self.kept_or(descriptor.digest, "configuration", ask)
    }

    /// A document from the store, or from the source for next time.
    fn kept_or(
        &self,
        digest: Digest,
        what: &str,
        ask: impl FnOnce() -> Result<Bytes, SourceError>,
    ) -> Result<Bytes, SourceError> {
        if let Some(bytes) = self.store.manifest(digest) {
            return Ok(bytes.into());
        }
        if self.is_offline() {
            return Err(BlobError::Offline {
                object: format!("{what} {digest}"),
            }
            .into());
        }
        // Many processes that want the same image at once ask for each document once: registries count that.
        let _turn = self.store.turn(digest, &|| false);
        if let Some(bytes) = self.store.manifest(digest) {
            return Ok(bytes.into());
        }
        let bytes = ask()?;
        self.store.keep_manifest(digest, &bytes);
        Ok(bytes)
    }

    /// Whether nothing may be asked for that would have to be.
    pub(super) fn is_offline(&self) -> bool {
        self.options.offline && self.reference.is_remote()
    }

    /// A layer's blob; where no request may be made, one that says so.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Arc<dyn Blob> {
        if let Some(blob) = &self.on_top
            && blob.digest() == descriptor.digest
        {
            return Arc::clone(blob) as Arc<dyn Blob>;
        }
        if self.is_offline() {
            return Arc::new(OfflineBlob::new(descriptor.digest, descriptor.size));
        }
        self.source.blob(descriptor)
    }
}
