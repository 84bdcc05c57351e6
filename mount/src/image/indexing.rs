//! Indexes of our own: each gzip layer that nobody indexed is streamed once, and is seekable from then on.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::documents::Opener;
use super::layers::{DiffId, Layer};
use super::open::{Description, OnProgress, OpenError, Options, Progress};
use super::ready::{LAYERS_AT_ONCE, Readiness};
use crate::digest::Digest;
use crate::layer::inflate::{Compression, sniffed};
use crate::layer::soci::{self, Indexed};
use crate::layer::table::Table;
use crate::reference::Reference;
use crate::source::manifest::Descriptor;
use crate::store::{ImageRecord, Name, Store, tree_key};

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has an index now.
    Made {
        /// How many bytes of the store that takes.
        index_bytes: u64,
        /// How many of them are windows of checkpoints.
        window_bytes: u64,
        /// The same for others, as a zTOC, if that was asked for and it can tell of all files.
        ztoc: Option<Vec<u8>>,
    },
    /// It has had one.
    Had,
    /// It is seekable by itself, or by an index that the image names.
    Seekable,
    /// It is packed in a way that has no checkpoints.
    NotGzip,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Plain bytes between two checkpoints.
    pub spacing: u64,
    /// Whether zTOCs are wanted, for others.
    pub shares: bool,
}

/// Indexes the layers, bottom first, of the image that `reference` names. `progress` is called from several threads.
pub fn index(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
    plan: Plan,
    progress: &OnProgress,
) -> Result<(Description, Vec<Outcome>), OpenError> {
    let opener = Opener::new(reference, options, store)?;
    let description = opener.description()?;
    let layers = &description.manifest.layers;
    let outcomes = Mutex::new(vec![None; layers.len()]);
    let next = Mutex::new(0..layers.len());
    let ready = Readiness::default();
    let work = || -> Result<(), OpenError> {
        loop {
            let Some(place) = next.lock().next() else {
                return Ok(());
            };
            let (descriptor, diff_id) = (&layers[place], description.config.diff_ids[place]);
            let layer = Layer::new(
                descriptor,
                DiffId::Known(diff_id),
                opener.promised(descriptor),
            )?;
            let outcome = opener.indexed(&layer, plan, &ready, progress)?;
            outcomes.lock()[place] = Some(outcome);
        }
    };
    let failure = thread::scope(|scope| {
        let count = LAYERS_AT_ONCE.min(layers.len());
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"));
        // All of them, so that none is left behind.
        joined.filter_map(Result::err).last()
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    opener.record(&description);
    let outcomes = outcomes.into_inner().into_iter();
    let outcomes = outcomes.map(|outcome| outcome.expect("every place was taken by a thread"));
    Ok((description, outcomes.collect()))
}

impl Opener<'_> {
    fn indexed(
        &self,
        layer: &Layer<'_>,
        plan: Plan,
        ready: &Readiness,
        progress: &OnProgress,
    ) -> Result<Outcome, OpenError> {
        let digest = layer.descriptor.digest;
        if layer.is_seekable() {
            return Ok(Outcome::Seekable);
        }
        if !plan.shares && self.store.index(digest).is_some() {
            return Ok(Outcome::Had);
        }
        let bytes = layer.descriptor.size;
        progress(Progress::Started {
            layer: digest,
            bytes,
        });
        let mut packed = self.counted(layer, ready, progress)?;
        let mut first = Vec::new();
        let magic = packed.by_ref().take(4).read_to_end(&mut first);
        magic.map_err(|source| self.unread(digest, source))?;
        if sniffed(&first) != Compression::Gzip {
            progress(Progress::Finished { layer: digest });
            return Ok(Outcome::NotGzip);
        }
        let packed = io::Cursor::new(first).chain(packed);
        let scratch = self.store.scratch();
        let indexed = soci::indexed(
            layer.blueprint()?,
            packed,
            plan.spacing,
            plan.shares,
            &scratch,
        );
        let Indexed {
            mut table,
            ztoc,
            window_bytes,
        } = indexed.inspect_err(|err| self.forget_wrong(digest, err))?;
        let sealed = self
            .store
            .sealed_with(Name::Index(digest), |to| table.finish(digest, to));
        let sealed = sealed.map_err(|source| self.unwritable(source))?;
        let index_bytes = sealed.len() as u64;
        Table::open(sealed)?;
        progress(Progress::Finished { layer: digest });
        Ok(Outcome::Made {
            index_bytes,
            window_bytes,
            ztoc,
        })
    }

    fn unread(&self, layer: Digest, source: io::Error) -> OpenError {
        crate::layer::native::ConvertError::Read { layer, source }.into()
    }

    /// Notes that the store's files are an image's, so that they are not taken for what nobody needs.
    fn record(&self, description: &Description) {
        let layers = &description.manifest.layers;
        let digests: Vec<Digest> = layers
            .iter()
            .map(|layer: &Descriptor| layer.digest)
            .collect();
        // Files that it needs are there or not; the next mount records those that it has.
        drop(self.store.lease(&ImageRecord {
            reference: self.reference.to_string(),
            manifest: description.manifest_digest,
            documents: [description.top, description.manifest.config.digest].into(),
            tree: tree_key(&digests),
            tree_below: None,
            top: None,
            tables: Vec::new(),
            layers: digests,
        }));
    }
}
