//! From a reference to an image that can be read: manifest, layers, tree.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Image;
use super::layers::{Layer, Readiness};
use crate::blob::{Blob, BlobError, MemoryBlob, OfflineBlob};
use crate::digest::Digest;
use crate::fetch::{ChunkSource, Chunks, LayerChunks, Limits};
use crate::layer::native::ConvertError;
use crate::layer::soci;
use crate::layer::squashfs::SquashfsError;
use crate::layer::table::{Table, TableError};
use crate::reference::Reference;
use crate::registry;
use crate::source::manifest::{Descriptor, ImageConfig, Manifest, ManifestError};
use crate::source::{self, Source, SourceError};
use crate::store::{self, ImageRecord, Lease, Name, Store};
use crate::tree::{self, MergeError, Tree, TreeError};

/// Layers that stream at once: enough to fill the network while two of them wait for a disk, few enough that
/// their buffers stay within the memory we promise.
pub(super) const LAYERS_AT_ONCE: usize = 6;

/// The media type of a layer that is a tar stream as it is.
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tag is asked for again after this long.
const TAG_AGE: Duration = Duration::from_secs(600);

/// What to ask, and what not.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Options {
    /// How to reach registries.
    pub registry: registry::Settings,
    /// Make no request at all.
    pub offline: bool,
    /// Ask what a tag names even if that was asked a moment ago.
    pub refresh: bool,
    /// Use SOCI indexes that anybody may have attached to an image.
    #[serde(default)]
    pub soci_v1: bool,
    /// Neither record what is read nor fetch ahead what was read before.
    #[serde(default)]
    pub no_profile: bool,
}

/// An image that can be read, and what it says of itself.
pub struct Opened {
    /// The file system.
    pub image: Arc<Image>,
    /// Its chunks, and how they are fetched.
    pub chunks: Arc<Chunks>,
    /// What the manifest and the config say.
    pub description: Description,
    /// Keeps the image in the store while it is open.
    pub lease: Option<Lease>,
    /// Whether the caller's own layer lies on top of it; or why not.
    pub has_layer_on_top: io::Result<bool>,
}

/// An image's documents.
#[derive(Clone, Debug)]
pub struct Description {
    /// What the reference named: an index or the manifest.
    pub top: Digest,
    /// The chosen manifest.
    pub manifest_digest: Digest,
    /// The chosen manifest.
    pub manifest: Manifest,
    /// The image's config.
    pub config: ImageConfig,
}

/// What happens while an image is opened; sizes in packed bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Progress {
    /// A layer has to be read whole.
    Started {
        /// The layer's blob.
        layer: Digest,
        /// Its size.
        bytes: u64,
    },
    /// More of it came.
    Received {
        /// The layer's blob.
        layer: Digest,
        /// How many bytes since the last time.
        bytes: u64,
    },
    /// It is in the store.
    Finished {
        /// The layer's blob.
        layer: Digest,
    },
}

/// Who is told; called from several threads.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A document or a blob cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document is not what it should be.
    #[error("{reference}: the image's description is not usable")]
    Manifest {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// A layer's blob cannot be read.
    #[error("layer {layer}: cannot be read")]
    Blob {
        /// The layer.
        layer: Digest,
        /// What the source said.
        #[source]
        source: BlobError,
    },
    /// A layer is in a format that is not ours to read.
    #[error("layer {layer}: {problem}")]
    Format {
        /// The layer.
        layer: Digest,
        /// Which format, and what to do instead.
        problem: String,
    },
    /// A layer cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A file system in a file cannot be shown.
    #[error("{file}: cannot be shown")]
    Squashfs {
        /// Its path.
        file: String,
        /// What is wrong with it.
        #[source]
        source: SquashfsError,
    },
    /// A table that was just written cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The layers contradict each other.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The tree is damaged.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The disk failed.
    #[error("store {store}: cannot be written to")]
    Store {
        /// Where it is.
        store: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Source(err) => err.hint(),
            Self::Blob { source, .. } => source.hint(),
            Self::Convert(err) => err.hint(),
            Self::Manifest { .. } | Self::Merge(_) => {
                Some("the image was built wrongly: ask its publisher, or name another tag".into())
            }
            Self::Table(_) | Self::Tree(_) | Self::Store { .. } => Some(
                "name a directory with room on a sound disk: --store DIR or SIFON_STORE".into(),
            ),
            Self::Squashfs { source, .. } => source.hint().map(Into::into),
            Self::Format { .. } => None,
        }
    }
}

/// Opens the image that `reference` names. Returns when all of it can be read: seekable layers at once, others when
/// they have streamed. `progress` is called from several threads.
pub fn open(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
    progress: &OnProgress,
) -> Result<Opened, OpenError> {
    open_with(reference, options, store, progress, None)
}

/// A layer's tar stream, or none if none is needed; or why it could not be made.
pub type TarOrNone = io::Result<Option<Vec<u8>>>;

/// A layer of the caller's own for the top of an image.
pub struct OnTop<'a> {
    /// What the layer depends on beside the image, so that it is made once: of one name an image is given the same bytes.
    pub name: &'a str,
    /// Makes the layer, a tar stream, and may look into the image for that; none if the image needs none.
    pub layer: &'a dyn Fn(&Image, &Description) -> TarOrNone,
}

/// The same as [`open`], with one more layer if `on_top` has one; the image is opened without it if it cannot be made.
pub fn open_with(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
    progress: &OnProgress,
    on_top: Option<&OnTop<'_>>,
) -> Result<Opened, OpenError> {
    tracing::debug!("store: {}", store.directory().display());
    let mut opener = Opener::new(reference, options, store)?;
    let description = opener.description()?;
    let (mut layers, soci_index) = opener.layers(&description, progress)?;
    let (top, made) = opener.on_top(on_top, &layers, &description)?;
    let tree_below = made.as_ref().is_ok_and(Option::is_some);
    let tree_below = tree_below.then(|| tree_key_of(&layers));
    let has_layer_on_top = match made {
        Ok(Some(tar)) => {
            layers.push(opener.layer_on_top(tar)?);
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(err) => Err(err),
    };
    let (key, tree) = opener.tree(&layers)?;
    let (image, chunks) = opener.readable(tree, &layers);
    let tables = image.tables();
    let record = ImageRecord {
        reference: reference.to_string(),
        manifest: description.manifest_digest,
        documents: [description.top, description.manifest.config.digest]
            .into_iter()
            .chain(soci_index.or_else(|| soci::promised(&description.manifest)))
            .collect(),
        layers: tables.iter().map(|table| table.layer()).collect(),
        tables: tables.iter().map(|table| table.key()).collect(),
        tree: key,
        tree_below,
        top,
    };
    let lease = store.lease(&record);
    store.evict(store.budget(), false);
    Ok(Opened {
        image,
        chunks,
        description,
        lease,
        has_layer_on_top,
    })
}

/// The documents of the image that `reference` names, and nothing else of it: enough to tell which image that is.
pub fn identify(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
) -> Result<Description, OpenError> {
    Opener::new(reference, options, store)?.description()
}

pub(super) struct Opener<'a> {
    reference: &'a Reference,
    pub(super) options: &'a Options,
    pub(super) store: &'a Arc<Store>,
    source: Source,
    /// A layer that no manifest names.
    on_top: Option<Arc<MemoryBlob>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(
        reference: &'a Reference,
        options: &'a Options,
        store: &'a Arc<Store>,
    ) -> Result<Self, OpenError> {
        let source = Source::open(reference, &options.registry)?;
        Ok(Self {
            reference,
            options,
            store,
            source,
            on_top: None,
        })
    }

    pub(super) fn description(&self) -> Result<Description, OpenError> {
        let top = self.resolved()?;
        let platform = &self.options.registry.platform;
        let chosen = source::image(top, platform, |digest| self.document(digest))?;
        let config = ImageConfig::parse(self.config(&chosen.manifest.config)?)
            .map_err(|source| self.unusable(source))?;
        let (layers, diff_ids) = (chosen.manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(self.unusable(ManifestError::Malformed {
                what: "the config",
                problem: format!("it names {diff_ids} layers, the manifest {layers}"),
            }));
        }
        Ok(Description {
            top,
            manifest_digest: chosen.digest,
            manifest: chosen.manifest,
            config,
        })
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
        let digest = self.source.resolve()?;
        tracing::debug!("{name}: {digest}");
        self.store.remember_tag(&name, digest);
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

    pub(super) fn reference(&self) -> &Reference {
        self.reference
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
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

    /// All layers, readable, and the digest of the SOCI index by which some of them are. Those that must be streamed start
    /// with the largest.
    fn layers(
        &self,
        description: &Description,
        progress: &OnProgress,
    ) -> Result<(Vec<Arc<LayerChunks>>, Option<Digest>), OpenError> {
        let mut layers: Vec<Layer<'_>> = description
            .manifest
            .layers
            .iter()
            .zip(&description.config.diff_ids)
            .map(|(descriptor, &diff_id)| {
                Layer::new(descriptor, diff_id, self.promised(descriptor))
            })
            .collect::<Result<_, _>>()?;
        let soci_index = self.add_soci(description, &mut layers);
        let mut queue: Vec<&Layer<'_>> = layers.iter().collect();
        queue.sort_by_key(|layer| layer.descriptor.size);
        // The same layer twice in an image is one piece of work.
        let mut seen = BTreeSet::new();
        queue.retain(|layer| seen.insert(layer.descriptor.digest));

        // Tables come all at once, as far as connections reach; they are not to wait for a layer that streams.
        let (seekable, whole): (Vec<_>, Vec<_>) =
            queue.into_iter().partition(|layer| layer.is_seekable());
        let connections = self.options.registry.connections.max(1);
        let queues = [(seekable, connections), (whole, LAYERS_AT_ONCE)]
            .map(|(queue, threads)| (threads.min(queue.len()), Mutex::new(queue)));
        let ready = Readiness::default();
        let failure = Mutex::new(None);
        let work = |queue: &Mutex<Vec<&Layer<'_>>>| {
            while failure.lock().is_none() {
                let Some(layer) = queue.lock().pop() else {
                    break;
                };
                if let Err(err) = self.make_ready(layer, &ready, progress) {
                    failure.lock().get_or_insert(err);
                    ready.is_in_vain.store(true, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for (threads, queue) in &queues {
                for _ in 0..*threads {
                    scope.spawn(|| work(queue));
                }
            }
        });
        match failure.into_inner() {
            Some(err) => Err(err),
            None => {
                let layers = layers
                    .iter()
                    .map(|layer| ready.layer(layer.descriptor.digest))
                    .map(|layer| layer.expect("no layer failed, so all are ready"));
                Ok((layers.collect(), soci_index))
            }
        }
    }

    /// The tar stream for the top of the image of `layers`, from the store or made now, and the name that the store has it by. Only to make
    /// it, the image is opened without it first.
    fn on_top(
        &self,
        on_top: Option<&OnTop<'_>>,
        layers: &[Arc<LayerChunks>],
        description: &Description,
    ) -> Result<(Option<Digest>, TarOrNone), OpenError> {
        let Some(on_top) = on_top else {
            return Ok((None, Ok(None)));
        };
        let (below, manifest) = (tree_key_of(layers), description.manifest_digest);
        let name = format!("on top of {below}, for {manifest}: {}\n", on_top.name);
        let name = Digest::of(name.as_bytes());
        // An image that needs none has a name for nothing.
        let stream = |bytes: Vec<u8>| (!bytes.is_empty()).then_some(bytes);
        if let Some(bytes) = self.store.top(name) {
            return Ok((Some(name), Ok(stream(bytes))));
        }
        let (_, tree) = self.tree(layers)?;
        let (image, _) = self.readable(tree, layers);
        let made = (on_top.layer)(&image, description);
        if let Ok(made) = &made {
            self.store
                .keep_top(name, made.as_deref().unwrap_or_default());
        }
        Ok((made.is_ok().then_some(name), made))
    }

    /// A layer of which we have the tar stream.
    fn layer_on_top(&mut self, tar: Vec<u8>) -> Result<Arc<LayerChunks>, OpenError> {
        let blob = MemoryBlob::new(tar);
        let descriptor = Descriptor {
            media_type: TAR_LAYER.into(),
            digest: blob.digest(),
            size: blob.size(),
            annotations: BTreeMap::new(),
            artifact_type: None,
            platform: None,
        };
        self.on_top = Some(Arc::new(blob));
        let layer = Layer::new(&descriptor, descriptor.digest, Ok(None))?;
        let ready = Readiness::default();
        let silence: OnProgress = Arc::new(|_| {});
        self.make_ready(&layer, &ready, &silence)?;
        Ok(ready
            .layer(descriptor.digest)
            .expect("it was made ready just now"))
    }

    fn readable(&self, tree: Tree, layers: &[Arc<LayerChunks>]) -> (Arc<Image>, Arc<Chunks>) {
        let limits = Limits {
            connections: self.options.registry.connections,
            timeout: self.options.registry.timeout,
        };
        let tables = layers
            .iter()
            .map(|layer| Arc::clone(layer.table()))
            .collect();
        let chunks = Arc::new(Chunks::new(layers.to_vec(), limits));
        let source = Arc::clone(&chunks) as Arc<dyn ChunkSource>;
        (Arc::new(Image::new(tree, tables, source)), chunks)
    }

    /// The merged tree and its name, from the store or made now.
    fn tree(&self, layers: &[Arc<LayerChunks>]) -> Result<(Digest, Tree), OpenError> {
        let tables: Vec<&Table> = layers.iter().map(|layer| &**layer.table()).collect();
        let digests: Vec<Digest> = tables.iter().map(|table| table.layer()).collect();
        let key = tree_key_of(layers);
        if let Some(tree) = self.store.tree(key)
            && tree.layers().is_ok_and(|layers| layers == digests)
        {
            tracing::debug!("tree of {} layers: in the store", digests.len());
            return Ok((key, tree));
        }
        tracing::debug!("tree of {} layers: merged now", digests.len());
        let mut refused = None;
        let sealed = self
            .store
            .sealed_with(Name::Tree(key), |to| match tree::merge(&tables, to) {
                Err(MergeError::Write(source)) => Err(source),
                Err(err) => {
                    refused = Some(err);
                    Err(io::Error::other("the layers cannot be merged"))
                }
                Ok(()) => Ok(()),
            });
        if let Some(refused) = refused {
            return Err(refused.into());
        }
        let tree = Tree::open(sealed.map_err(|source| self.unwritable(source))?)?;
        Ok((key, tree))
    }
}

/// What the store calls the tree of these layers.
fn tree_key_of(layers: &[Arc<LayerChunks>]) -> Digest {
    let keys: Vec<Digest> = layers.iter().map(|layer| layer.table().key()).collect();
    store::tree_key(&keys)
}
