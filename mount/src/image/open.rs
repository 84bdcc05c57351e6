//! From a reference to an image that can be read: manifest, layers, tree.

use std::io;
use std::sync::Arc;
use std::thread;

use serde::{Deserialize, Serialize};

use super::Image;
use super::ahead::{self, Expected};
use super::documents::Opener;
use super::layers::{DiffId, Layer};
use super::ready::{Layers, Merged, Readiness};
use crate::blob::{Blob, BlobError, MemoryBlob};
use crate::digest::Digest;
use crate::fetch::{ChunkSource, Chunks, LayerChunks, Limits};
use crate::layer::native::ConvertError;
use crate::layer::soci;
use crate::layer::squashfs::SquashfsError;
use crate::layer::table::{Table, TableError};
use crate::reference::Reference;
use crate::registry;
use crate::source::config::ImageConfig;
use crate::source::manifest::{Descriptor, Manifest, ManifestError};
use crate::source::{Source, SourceError};
use crate::store::{self, ImageRecord, Lease, Name, Store};
use crate::tree::{MergeError, Merger, Tree, TreeError};

/// The media type of a layer that is a tar stream as it is.
const TAR_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where programs are looked for, whatever an image says.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// An image's own layers, merged, without a layer on top.
pub type Below = Merger<Arc<Table>>;

/// A layer of the caller's own for the top of an image.
pub struct OnTop<'a> {
    /// What the layer depends on beside the image, so that it is made once: of one name an image is given the same bytes.
    pub name: &'a str,
    /// Makes the layer, a tar stream, for what is below it; none if that needs none.
    pub layer: &'a dyn Fn(&Below, &Description) -> TarOrNone,
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
    let is_for_programs = programs.is_some();
    let is_fetched_ahead = is_for_programs && !options.no_profile && !options.offline;
    let (on_top, first) = programs.map_or((None, None), |it| (it.on_top, it.first));
    let first = first.map(|name| Expected {
        name,
        directories: directories_of(&description.config.env),
    });
    let on_top = on_top.map(|on_top| (on_top, on_top.name_above(&layers, manifest)));
    let kept = on_top.and_then(|(_, name)| store.top(name));
    let made = match (on_top, kept) {
        (None, _) => Ok(None),
        (Some(_), Some(kept)) => Ok(kept),
        (Some((on_top, name)), None) => {
            merged.add_all(&layers)?;
            let made = (on_top.layer)(&merged.merger, &description);
            if let Ok(made) = &made {
                store.keep_top(name, made.as_deref());
            }
            made
        }
    };
    let (mut top, mut tree_below) = (None, None);
    let has_layer_on_top = match made {
        Ok(tar) => {
            top = on_top.map(|(_, name)| name);
            let has_one = tar.is_some();
            if let Some(tar) = tar {
                tree_below = Some(tree_key_of(&layers));
                layers.push(opener.layer_on_top(tar)?);
            }
            Ok(has_one)
        }
        Err(err) => Err(err),
    };
    let (key, tree) = opener.tree(&layers, &mut merged)?;
    let chunks = opener.chunks(&layers);
    let image = readable(tree, &chunks);
    if is_fetched_ahead {
        ahead::begin(store, manifest, &image, &chunks, first);
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
    if is_for_programs {
        evict_meanwhile(store);
    } else {
        store.evict(store.budget(), false);
    }
    Ok(Opened {
        image,
        chunks,
        description,
        lease,
        has_layer_on_top,
    })
}

/// Keeps the store within its budget while programs start: looking at all of its files takes a while where they are many, or far.
fn evict_meanwhile(store: &Arc<Store>) {
    let evicting = Arc::clone(store);
    let evict = move || evicting.evict(evicting.budget(), false);
    let started = thread::Builder::new().name("evict".into()).spawn(evict);
    if let Err(err) = started {
        tracing::warn!(error = %err, "the store is not kept within its budget");
    }
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

impl Opener<'_> {
    /// A layer of which we have the tar stream.
    fn layer_on_top(&mut self, tar: Vec<u8>) -> Result<Arc<LayerChunks>, OpenError> {
        let blob = MemoryBlob::new(tar);
        let descriptor = Descriptor::new(TAR_LAYER, blob.digest(), blob.size());
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
        let digests: Vec<Digest> = layers.iter().map(|layer| layer.table().layer()).collect();
        let key = tree_key_of(layers);
        if let Some(tree) = self.store.tree(key)
            && tree.layers().is_ok_and(|layers| layers == digests)
        {
            tracing::debug!("tree of {} layers: in the store", digests.len());
            return Ok((key, tree));
        }
        tracing::debug!("tree of {} layers: merged now", digests.len());
        merged.add_all(layers)?;
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
