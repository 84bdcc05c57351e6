//! All layers of an image, made ready at once and merged as they come.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::documents::{Named, Opener};
use super::layers::{DiffId, Layer};
use super::open::{OnProgress, OpenError};
use crate::digest::Digest;
use crate::fetch::LayerChunks;
use crate::layer::native::Compressors;
use crate::layer::table::Table;
use crate::source::config::ImageConfig;
use crate::tree::{MergeError, Merger};

/// Layers that stream at once: enough to fill the network while two of them wait for a disk, few enough that
/// their buffers stay within the memory we promise.
pub(super) const LAYERS_AT_ONCE: usize = 6;

type ReadyLayers = (Vec<Arc<LayerChunks>>, Option<Digest>, Merged);

/// All that a tree is made of.
pub(super) struct Layers {
    /// Bottom first, readable.
    pub layers: Vec<Arc<LayerChunks>>,
    pub config: ImageConfig,
    /// The SOCI index by which some of the layers are read.
    pub soci_index: Option<Digest>,
    pub merged: Merged,
}

impl Opener<'_> {
    /// All layers, and the config, which comes meanwhile.
    pub(super) fn layers(&self, named: &Named, progress: &OnProgress) -> Result<Layers, OpenError> {
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
            let config = config
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))?;
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
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let sizes: Vec<u64> = layers.iter().map(|layer| layer.descriptor.size).collect();
        for (rank, place) in order(&sizes, cores).into_iter().enumerate() {
            layers[place].rank = rank;
        }
        let order: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
        let mut queue: Vec<&Layer<'_>> = layers.iter().collect();
        queue.sort_by_key(|layer| layer.descriptor.size);
        // The same layer twice in an image is one piece of work.
        let mut seen = BTreeSet::new();
        queue.retain(|layer| seen.insert(layer.descriptor.digest));
        let distinct = queue.len();

        // Tables come all at once, as far as connections reach; they are not to wait for a layer that streams.
        let (mut seekable, whole): (Vec<_>, Vec<_>) =
            queue.into_iter().partition(|layer| layer.is_seekable());
        seekable.sort_by_key(|layer| Reverse(layer.rank));
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
                merged.merger.make_room(ready.entry_count());
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
}

/// Whose table is made first where there are few cores, of layers of these sizes, the bottom one first: as many of the largest as
/// there are cores, so that none of these is the last; then the others from the bottom up, so that what is ready can be merged
/// meanwhile.
fn order(sizes: &[u64], cores: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&place| Reverse(sizes[place]));
    if let Some(others) = order.get_mut(cores..) {
        others.sort_unstable();
    }
    order
}

/// The layers of one image that are ready, and the threads that compress for those that are not yet.
#[derive(Default)]
pub(super) struct Readiness {
    layers: Mutex<Vec<Arc<LayerChunks>>>,
    changed: Condvar,
    compressors: OnceLock<Compressors>,
    /// Set when one layer has failed: the others need not go on.
    pub is_in_vain: Arc<AtomicBool>,
    /// Whether a table was made that the store did not have, so that it has no tree of it either.
    has_news: AtomicBool,
}

impl Readiness {
    pub fn add(&self, layer: LayerChunks, is_new: bool) {
        self.has_news.fetch_or(is_new, Ordering::Relaxed);
        self.layers.lock().push(Arc::new(layer));
        self.changed.notify_all();
    }

    /// How many entries the layers have that are ready.
    pub fn entry_count(&self) -> u64 {
        let layers = self.layers.lock();
        layers.iter().map(|layer| layer.table().entry_count()).sum()
    }

    /// The threads that compress for layers that stream, started by the first that does.
    pub fn compressors(&self) -> &Compressors {
        self.compressors.get_or_init(Compressors::start)
    }

    /// Wakes those who wait: nothing more will come.
    pub fn give_up(&self) {
        self.is_in_vain.store(true, Ordering::Relaxed);
        // So that nobody is between looking and waiting.
        drop(self.layers.lock());
        self.changed.notify_all();
    }

    /// Waits until the layer of this blob is ready and a table was made that is new; until then nothing is worth merging.
    /// `None` if nothing came of it, or nothing is new although all `of` layers are ready.
    pub fn awaited(&self, digest: Digest, of: usize) -> Option<Arc<LayerChunks>> {
        let mut layers = self.layers.lock();
        loop {
            let has_news = self.has_news.load(Ordering::Relaxed);
            let found = layers.iter().find(|layer| layer.table().layer() == digest);
            match found.cloned() {
                Some(layer) if has_news => return Some(layer),
                _ if self.is_in_vain.load(Ordering::Relaxed) || layers.len() >= of => return None,
                _ => self.changed.wait(&mut layers),
            }
        }
    }

    /// The layer of this blob, once [`Opener::make_ready`] has seen to it.
    pub fn layer(&self, digest: Digest) -> Option<Arc<LayerChunks>> {
        self.layers
            .lock()
            .iter()
            .find(|layer| layer.table().layer() == digest)
            .cloned()
    }
}

/// An image's layers as far as they are merged, bottom first.
#[derive(Default)]
pub(super) struct Merged {
    pub merger: Merger<Arc<Table>>,
    pub layers: usize,
    /// Why no more can be.
    pub refused: Option<MergeError>,
}

impl Merged {
    pub fn add(&mut self, table: &Arc<Table>) {
        if self.refused.is_none() {
            self.refused = self.merger.add(Arc::clone(table)).err();
        }
        self.layers += 1;
    }

    /// Adds those of all `layers`, bottom first, that are missing.
    pub fn add_all(&mut self, layers: &[Arc<LayerChunks>]) -> Result<(), MergeError> {
        for layer in layers.iter().skip(self.layers) {
            self.add(layer.table());
        }
        self.refused.take().map_or(Ok(()), Err)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_layers_come_first_and_then_all_others_from_the_bottom_up() {
        let sizes = [5, 2, 6, 20, 2, 45, 9, 33];
        assert_eq!(order(&sizes, 2), [5, 7, 0, 1, 2, 3, 4, 6]);
        assert_eq!(order(&sizes, 1), [5, 0, 1, 2, 3, 4, 6, 7]);
        assert_eq!(order(&sizes, 8), [5, 7, 3, 6, 2, 0, 1, 4]);
        assert_eq!(order(&sizes[..3], 8), [2, 0, 1]);
        assert!(order(&[], 2).is_empty());
    }
}
