//! From a reference to an image that can be read: manifest, layers, tree.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::ahead::{self, Expected};
use super::layers::{DiffId, Layer, Readiness};
use super::{Image, course};
use crate::blob::{Blob, BlobError, MemoryBlob, OfflineBlob};
use crate::digest::Digest;
use crate::fetch::{ChunkSource, Chunks, LayerChunks, Limits, Room};
use crate::layer::native::ConvertError;
use crate::layer::soci;
use crate::layer::squashfs::SquashfsError;
use crate::layer::table::{Table, TableError};
use crate::reference::Reference;
use crate::registry;
use crate::source::manifest::{Descriptor, ImageConfig, Manifest, ManifestError};
use crate::source::{self, Source, SourceError};
use crate::store::{self, ImageRecord, Lease, Name, Store};
use crate::tree::{MergeError, Merger, Tree, TreeError};

/// Layers that stream at once: enough to fill the network while two of them wait for a disk, few enough that
/// their buffers stay within the memory we promise.
pub(super) const LAYERS_AT_ONCE: usize = 6;

/// The media type of a layer that is a tar stream as it is.
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where programs are looked for, whatever an image says.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    opened(Opener::new(reference, options, store)?, progress, None)
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

/// What goes with an image that programs will see.
pub struct ForPrograms<'a> {
    /// One more layer; the image is opened without it if it cannot be made.
    pub on_top: Option<&'a OnTop<'a>>,
    /// Where the image is, if [`identify`] asked there.
    pub source: Option<Source>,
    /// How the user calls the program that is going to run, if that is known.
    pub program: Option<Vec<u8>>,
}

/// The same for an image that programs will see. What they will read is fetched ahead from the first moment on, unless `options`
/// say no.
pub fn open_for_programs(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
    progress: &OnProgress,
    with: ForPrograms<'_>,
) -> Result<Opened, OpenError> {
    let opener = match with.source {
        Some(source) => Opener::at(source, reference, options, store),
        None => Opener::new(reference, options, store)?,
    };
    let programs = Programs {
        on_top: with.on_top,
        first: with.program,
    };
    opened(opener, progress, Some(programs))
}

/// What is to be seen and done for programs.
struct Programs<'a> {
    on_top: Option<&'a OnTop<'a>>,
    first: Option<Vec<u8>>,
}

impl OnTop<'_> {
    /// What the store calls it, on top of the image of these layers.
    fn name_above(&self, layers: &[Arc<LayerChunks>], manifest: Digest) -> Digest {
        let below = tree_key_of(layers);
        let name = format!("on top of {below}, for {manifest}: {}\n", self.name);
        Digest::of(name.as_bytes())
    }
}

fn opened(
    mut opener: Opener<'_>,
    progress: &OnProgress,
    programs: Option<Programs<'_>>,
) -> Result<Opened, OpenError> {
    let (options, store) = (opener.options, opener.store);
    tracing::debug!("store: {}", store.directory().display());
    let named = opener.named()?;
    let Layers {
        mut layers,
        config,
        soci_index,
        mut merged,
    } = opener.layers(&named, progress)?;
    let description = named.with(config);
    let manifest = description.manifest_digest;
    let is_fetched_ahead = programs.is_some() && !options.no_profile && !options.offline;
    let (on_top, first) = programs.map_or((None, None), |it| (it.on_top, it.first));
    let first = first.map(|name| Expected {
        name,
        directories: directories_of(&description.config.env),
    });
    let begin_ahead = |image: &Arc<Image>, chunks: &Arc<Chunks>| {
        is_fetched_ahead.then(|| ahead::begin(store, manifest, image, chunks, first.clone()))
    };
    let on_top = on_top.map(|on_top| (on_top, on_top.name_above(&layers, manifest)));
    let kept = on_top.and_then(|(_, name)| store.top(name));
    // Only to make what lies on top, the image is opened without it first.
    let mut without = None;
    let made = match (on_top, kept) {
        (None, _) => Ok(None),
        (Some(_), Some(kept)) => Ok(kept),
        (Some((on_top, name)), None) => {
            let (_, tree) = opener.tree(&layers, &mut merged)?;
            let chunks = opener.chunks(&layers);
            let image = readable(tree, &chunks);
            // It goes on for the image with another layer.
            let begun = begin_ahead(&image, &chunks);
            let made = (on_top.layer)(&image, &description);
            if let Ok(made) = &made {
                store.keep_top(name, made.as_deref());
            }
            without = Some((chunks, begun));
            made
        }
    };
    let (mut top, mut tree_below) = (None, None);
    let mut layer_on_top = None;
    let has_layer_on_top = match made {
        Ok(tar) => {
            top = on_top.map(|(_, name)| name);
            if let Some(tar) = tar {
                let layer = opener.layer_on_top(tar)?;
                tree_below = Some(tree_key_of(&layers));
                layers.push(Arc::clone(&layer));
                layer_on_top = Some(layer);
            }
            Ok(layer_on_top.is_some())
        }
        Err(err) => Err(err),
    };
    let (key, tree) = opener.tree(&layers, &mut merged)?;
    let (chunks, begun) = match without {
        None => (opener.chunks(&layers), None),
        Some((chunks, begun)) => match layer_on_top {
            None => (chunks, Some(begun)),
            Some(layer) => (Arc::new(chunks.with_layer(layer)), Some(begun)),
        },
    };
    let image = readable(tree, &chunks);
    match begun.unwrap_or_else(|| begin_ahead(&image, &chunks)) {
        Some(Some(profile)) => course::accompany(&profile, &image, &chunks),
        Some(None) => ahead::watch(&image, &chunks),
        None => {}
    }
    let tables = image.tables();
    let record = ImageRecord {
        reference: opener.reference.to_string(),
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

/// Where programs of an image with this environment are looked for.
fn directories_of(environment: &[String]) -> Vec<u8> {
    let path = environment
        .iter()
        .find_map(|line| line.strip_prefix("PATH="));
    let own = path.map(|path| format!("{path}:")).unwrap_or_default();
    format!("{own}{USUAL_PATH}").into_bytes()
}

/// The digest of the manifest of the image that `reference` names; nothing else of the image is asked for. With the place that was
/// asked, if one was: who goes on to open the image need not connect again.
pub fn identify(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
) -> Result<(Digest, Option<Source>), OpenError> {
    let opener = Opener::new(reference, options, store)?;
    let digest = opener.named()?.digest;
    let asked = opener.source.is_connected().then_some(opener.source);
    Ok((digest, asked))
}

/// What a reference means.
pub(super) struct Named {
    /// What it names: an index or the manifest.
    pub top: Digest,
    /// The chosen manifest.
    pub digest: Digest,
    pub manifest: Manifest,
}

impl Named {
    fn with(self, config: ImageConfig) -> Description {
        Description {
            top: self.top,
            manifest_digest: self.digest,
            manifest: self.manifest,
            config,
        }
    }
}

type ReadyLayers = (Vec<Arc<LayerChunks>>, Option<Digest>, Merged);

/// All that a tree is made of.
struct Layers {
    /// Bottom first, readable.
    layers: Vec<Arc<LayerChunks>>,
    config: ImageConfig,
    /// The SOCI index by which some of the layers are read.
    soci_index: Option<Digest>,
    merged: Merged,
}

pub(super) struct Opener<'a> {
    reference: &'a Reference,
    pub(super) options: &'a Options,
    pub(super) store: &'a Arc<Store>,
    source: Source,
    /// For those who parse tables, so that the largest is not the last.
    pub(super) cores: Room,
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
        Ok(Self::at(source, reference, options, store))
    }

    fn at(
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

    fn config_of(&self, manifest: &Manifest) -> Result<ImageConfig, OpenError> {
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

    /// All layers, and the config, which comes meanwhile.
    fn layers(&self, named: &Named, progress: &OnProgress) -> Result<Layers, OpenError> {
        let (diff_ids, ready) = (OnceLock::new(), Readiness::default());
        let config = || {
            let tells = Tells(&diff_ids);
            let config = self.config_of(&named.manifest);
            if let Ok(config) = &config {
                let _ = diff_ids.set(config.diff_ids.clone());
            }
            drop(tells);
            config.inspect_err(|_| ready.give_up())
        };
        thread::scope(|scope| {
            let config = scope.spawn(config);
            let layers = self.layers_of(named, &diff_ids, &ready, progress);
            let config = config.join().expect("it does not panic")?;
            let (layers, soci_index, merged) = layers?;
            Ok(Layers {
                layers,
                config,
                soci_index,
                merged,
            })
        })
    }

    /// All layers, the SOCI index by which some of them are read, and what is merged of them. Those that must be streamed start
    /// with the largest.
    fn layers_of(
        &self,
        named: &Named,
        diff_ids: &OnceLock<Vec<Digest>>,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<ReadyLayers, OpenError> {
        let mut layers: Vec<Layer<'_>> = named
            .manifest
            .layers
            .iter()
            .enumerate()
            .map(|(place, descriptor)| {
                let diff_id = DiffId::Awaited(diff_ids, place);
                Layer::new(descriptor, diff_id, self.promised(descriptor))
            })
            .collect::<Result<_, _>>()?;
        let soci_index = self.add_soci(named, &mut layers);
        let order: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
        let mut queue: Vec<&Layer<'_>> = layers.iter().collect();
        queue.sort_by_key(|layer| layer.descriptor.size);
        // The same layer twice in an image is one piece of work.
        let mut seen = BTreeSet::new();
        queue.retain(|layer| seen.insert(layer.descriptor.digest));
        let distinct = queue.len();

        // Tables come all at once, as far as connections reach; they are not to wait for a layer that streams.
        let (seekable, whole): (Vec<_>, Vec<_>) =
            queue.into_iter().partition(|layer| layer.is_seekable());
        let connections = self.options.registry.connections.max(1);
        let queues = [(seekable, connections), (whole, LAYERS_AT_ONCE)]
            .map(|(queue, threads)| (threads.min(queue.len()), Mutex::new(queue)));
        let failure = Mutex::new(None);
        let work = |queue: &Mutex<Vec<&Layer<'_>>>| {
            while failure.lock().is_none() {
                let Some(layer) = queue.lock().pop() else {
                    break;
                };
                let vain = InVain(ready);
                match self.make_ready(layer, ready, progress) {
                    Ok(()) => std::mem::forget(vain),
                    Err(err) => {
                        failure.lock().get_or_insert(err);
                    }
                }
            }
        };
        let mut merged = Merged::default();
        thread::scope(|scope| {
            for (threads, queue) in &queues {
                for _ in 0..*threads {
                    scope.spawn(|| work(queue));
                }
            }
            // Meanwhile those that are ready are merged.
            for &layer in &order {
                let Some(layer) = ready.awaited(layer, distinct) else {
                    break;
                };
                merged.add(layer.table());
            }
        });
        if let Some(err) = failure.into_inner() {
            return Err(err);
        }
        let layers = layers
            .iter()
            .map(|layer| ready.layer(layer.descriptor.digest))
            .map(|layer| layer.expect("no layer failed, so all are ready"));
        Ok((layers.collect(), soci_index, merged))
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
        let diff_id = DiffId::Known(descriptor.digest);
        let layer = Layer::new(&descriptor, diff_id, Ok(None))?;
        let ready = Readiness::default();
        let silence: OnProgress = Arc::new(|_| {});
        self.make_ready(&layer, &ready, &silence)?;
        Ok(ready
            .layer(descriptor.digest)
            .expect("it was made ready just now"))
    }

    fn chunks(&self, layers: &[Arc<LayerChunks>]) -> Arc<Chunks> {
        let limits = Limits {
            connections: self.options.registry.connections,
            timeout: self.options.registry.timeout,
        };
        Arc::new(Chunks::new(layers.to_vec(), limits))
    }

    /// The merged tree and its name, from the store or made now; the first of the layers may be in `merged` already.
    fn tree(
        &self,
        layers: &[Arc<LayerChunks>],
        merged: &mut Merged,
    ) -> Result<(Digest, Tree), OpenError> {
        let tables: Vec<&Arc<Table>> = layers.iter().map(|layer| layer.table()).collect();
        let digests: Vec<Digest> = tables.iter().map(|table| table.layer()).collect();
        let key = tree_key_of(layers);
        if let Some(tree) = self.store.tree(key)
            && tree.layers().is_ok_and(|layers| layers == digests)
        {
            tracing::debug!("tree of {} layers: in the store", digests.len());
            return Ok((key, tree));
        }
        tracing::debug!("tree of {} layers: merged now", digests.len());
        for table in tables.into_iter().skip(merged.layers) {
            merged.add(table);
        }
        if let Some(refused) = merged.refused.take() {
            return Err(refused.into());
        }
        let mut refused = None;
        let sealed = self
            .store
            .sealed_with(Name::Tree(key), |to| match merged.merger.seal(to) {
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

fn readable(tree: Tree, chunks: &Arc<Chunks>) -> Arc<Image> {
    let layers = chunks.layers().iter();
    let tables = layers.map(|layer| Arc::clone(layer.table())).collect();
    let source = Arc::clone(chunks) as Arc<dyn ChunkSource>;
    Arc::new(Image::new(tree, tables, source))
}

/// An image's layers as far as they are merged, bottom first.
#[derive(Default)]
struct Merged {
    merger: Merger<Arc<Table>>,
    layers: usize,
    /// Why no more can be.
    refused: Option<MergeError>,
}

impl Merged {
    fn add(&mut self, table: &Arc<Table>) {
        if self.refused.is_none() {
            self.refused = self.merger.add(Arc::clone(table)).err();
        }
        self.layers += 1;
    }
}

/// Dropped, it tells all that one layer has failed, however that came about.
struct InVain<'a>(&'a Readiness);

impl Drop for InVain<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Dropped, it tells those who wait for the diffIDs that there are none, unless they have come.
struct Tells<'a>(&'a OnceLock<Vec<Digest>>);

impl Drop for Tells<'_> {
    fn drop(&mut self) {
        let _ = self.0.set(Vec::new());
    }
}
