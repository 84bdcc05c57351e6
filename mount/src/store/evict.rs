//! What images need, and what goes when the store is over its budget: those unmounted longest.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::directory::disk_bytes;
use super::lease::{Lease, leased, touched};
use super::{Name, Store};
use crate::digest::Digest;

/// Without a budget of the user's the store takes this much at most.
const BUDGET_LIMIT: u64 = 10_000_000_000;

/// Files that no image needs are left alone for this long: somebody may be about to record the image.
const ORPHAN_AGE_LIMIT: Duration = Duration::from_secs(24 * 3600);

const RECORD_BYTES_LIMIT: u64 = 4 << 20;

/// What an image consists of in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// How it was last asked for.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
    /// Other documents: the index that named it, its config.
    pub documents: Vec<Digest>,
    /// Its layers, bottom first.
    pub layers: Vec<Digest>,
    /// The keys of the tables that it was read by.
    #[serde(default)]
    pub tables: Vec<Digest>,
    /// Its tree, as [`super::tree_key`] names it.
    pub tree: Digest,
    /// The tree without the topmost layer, if that was put there by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_below: Option<Digest>,
    /// What was put there, as [`Name::Top`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<Digest>,
}

impl ImageRecord {
    fn names(&self) -> impl Iterator<Item = Name> {
        let documents = self
            .documents
            .iter()
            .copied()
            .chain([self.manifest])
            .map(Name::Manifest);
        let layers = self.layers.iter().flat_map(|&layer| {
            [
                Name::Table(layer),
                Name::Index(layer),
                Name::Native(layer),
                Name::Packed(layer),
            ]
        });
        let tables = self.tables.iter().filter(|key| !self.layers.contains(key));
        let tables = tables.flat_map(|&key| [Name::Table(key), Name::Marks(key)]);
        documents
            .chain(layers)
            .chain(tables)
            .chain(
                [self.tree]
                    .into_iter()
                    .chain(self.tree_below)
                    .map(Name::Tree),
            )
            .chain(self.top.map(Name::Top))
            .chain([Name::Profile(self.manifest), Name::Stats(self.manifest)])
    }
}

/// An image in the store.
#[derive(Clone, Debug)]
pub struct ImageUse {
    /// What it consists of.
    pub record: ImageRecord,
    /// Bytes on the disk; what images share is counted for each.
    pub bytes: u64,
    /// When it was mounted or unmounted last.
    pub last_used: SystemTime,
    /// Whether it is mounted somewhere.
    pub is_in_use: bool,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// How many images.
    pub images: u64,
    /// How many bytes on the disk.
    pub bytes: u64,
}

impl Store {
    /// Records that an image is used now, and keeps it from eviction while the lease lives. `None` where the store cannot be written to.
    pub fn lease(&self, record: &ImageRecord) -> Option<Lease> {
        let leased = || {
            let bytes = serde_json::to_vec(record)?;
            if !self.own.is_writable() {
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            let path = Path::new("images").join(record.manifest.hex());
            let there = self.own.read(&path, RECORD_BYTES_LIMIT);
            // Nobody has to wait for a disk to learn what it knows.
            if there.is_none_or(|there| there != bytes) || !touched(&self.own.path().join(&path)) {
                let mut draft = self.draft()?;
                draft.write_all(&bytes)?;
                self.own.place_at(draft, &path)?;
            }
            Lease::take(self, record.manifest)
        };
        leased()
            .inspect_err(|err| tracing::debug!(error = %err, "no lease"))
            .ok()
    }

    /// The images in the user's own store, most recently used first.
    pub fn images(&self) -> Vec<ImageUse> {
        let leased = leased(&self.own);
        let entries = fs::read_dir(self.own.path().join("images"));
        let mut images: Vec<_> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                let path = Path::new("images").join(entry.file_name());
                let bytes = self.own.read(&path, RECORD_BYTES_LIMIT)?;
                let record: ImageRecord = serde_json::from_slice(&bytes).ok()?;
                let bytes = record.names().map(|name| self.bytes_at(&name.path())).sum();
                let is_in_use = leased.contains(&record.manifest.hex());
                Some(ImageUse {
                    bytes,
                    last_used: metadata.modified().ok()?,
                    is_in_use,
                    record,
                })
            })
            .collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.last_used));
        images
    }

    /// Bytes that the user's own store takes on the disk.
    pub fn used_bytes(&self) -> u64 {
        self.files().into_iter().map(|(_, bytes, _)| bytes).sum()
    }

    /// Bytes that the store may take.
    pub fn budget(&self) -> u64 {
        self.budget.unwrap_or_else(|| {
            let free = rustix::fs::statvfs(self.own.path())
                .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
            BUDGET_LIMIT.min(free.saturating_add(self.used_bytes()) / 4)
        })
    }

    /// Whether so many bytes more are within the budget, and would leave as many free on the disk.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let free = rustix::fs::statvfs(self.own.path())
            .map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        free / 2 >= bytes && self.used_bytes().saturating_add(bytes) <= self.budget()
    }

    /// Removes images that nobody uses, those unused longest first, until the store takes `to` bytes at most, and
    /// files that no image needs. Before an image goes altogether, the streamed layers of images go that have an index of
    /// ours, which is small and costs a pass over the layer to make. `dry_run` only counts.
    pub fn evict(&self, to: u64, dry_run: bool) -> Evicted {
        let mut eviction = Eviction::new(self, dry_run);
        for name in self.replaceable(&eviction.images) {
            if eviction.used > to {
                eviction.remove(name);
            }
        }
        while eviction.used > to {
            let oldest = eviction.images.iter().rposition(|image| !image.is_in_use);
            let Some(oldest) = oldest else { break };
            eviction.remove_image(oldest);
        }
        eviction.evicted
    }

    /// Removes images that nobody has used for `age`, and files that no image needs. `dry_run` only counts.
    pub fn evict_unused(&self, age: Duration, dry_run: bool) -> Evicted {
        let mut eviction = Eviction::new(self, dry_run);
        let is_old = |image: &ImageUse| {
            let unused = image.last_used.elapsed().unwrap_or_default();
            !image.is_in_use && unused >= age
        };
        while let Some(index) = eviction.images.iter().rposition(is_old) {
            eviction.remove_image(index);
        }
        eviction.evicted
    }

    /// The files of streamed layers that have an index: without them only what is read is fetched again. Those of images
    /// unused longest first, none of mounted ones.
    fn replaceable(&self, images: &[ImageUse]) -> Vec<Name> {
        let mounted = images.iter().filter(|image| image.is_in_use);
        let mounted: BTreeSet<Digest> = mounted
            .flat_map(|image| image.record.layers.clone())
            .collect();
        let is_replaceable = |layer: &&Digest| {
            let index = self.own.path().join(Name::Index(**layer).path());
            !mounted.contains(layer) && index.exists()
        };
        let layers = images.iter().rev().flat_map(|image| &image.record.layers);
        let names = layers.filter(is_replaceable);
        names
            .flat_map(|&layer| [Name::Native(layer), Name::Table(layer)])
            .collect()
    }

    fn bytes_at(&self, path: &Path) -> u64 {
        fs::metadata(self.own.path().join(path)).map_or(0, |metadata| disk_bytes(&metadata))
    }

    /// All files that images consist of, with their sizes on the disk and their ages.
    fn files(&self) -> Vec<(PathBuf, u64, Duration)> {
        let mut files = Vec::new();
        for part in ["manifests", "layers", "packed", "trees", "profiles"] {
            let entries = fs::read_dir(self.own.path().join(part));
            for entry in entries.into_iter().flatten().flatten() {
                if let Ok(metadata) = entry.metadata() {
                    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
                    files.push((entry.path(), disk_bytes(&metadata), age.unwrap_or_default()));
                }
            }
        }
        files
    }
}

/// Images and files that are being removed, or would be.
struct Eviction<'a> {
    store: &'a Store,
    dry_run: bool,
    /// Those that are left, most recently used first.
    images: Vec<ImageUse>,
    /// Bytes that are left.
    used: u64,
    evicted: Evicted,
}

impl<'a> Eviction<'a> {
    /// Begins with the files that no image needs.
    fn new(store: &'a Store, dry_run: bool) -> Self {
        let files = store.files();
        let mut eviction = Self {
            store,
            dry_run,
            images: store.images(),
            used: files.iter().map(|(_, bytes, _)| bytes).sum(),
            evicted: Evicted::default(),
        };
        let kept = eviction.needed();
        for (path, bytes, age) in &files {
            if !kept.contains(path) && *age > ORPHAN_AGE_LIMIT {
                eviction.remove_file(path, *bytes);
            }
        }
        eviction
    }

    /// The files of the images that are left.
    fn needed(&self) -> BTreeSet<PathBuf> {
        let names = self.images.iter().flat_map(|image| image.record.names());
        names
            .map(|name| self.store.own.path().join(name.path()))
            .collect()
    }

    fn remove_file(&mut self, path: &Path, bytes: u64) {
        if path.exists() && (self.dry_run || fs::remove_file(path).is_ok()) {
            self.used = self.used.saturating_sub(bytes);
            self.evicted.bytes += bytes;
        }
    }

    fn remove(&mut self, name: Name) {
        let path = self.store.own.path().join(name.path());
        let bytes = self.store.bytes_at(&name.path());
        self.remove_file(&path, bytes);
    }

    fn remove_image(&mut self, index: usize) {
        let image = self.images.remove(index);
        let kept = self.needed();
        // The record goes last: were we killed before, the next eviction would finish the work.
        for name in image.record.names() {
            if !kept.contains(&self.store.own.path().join(name.path())) {
                self.remove(name);
            }
        }
        let record = Path::new("images").join(image.record.manifest.hex());
        if !self.dry_run {
            let _ = fs::remove_file(self.store.own.path().join(record));
        }
        self.evicted.images += 1;
    }
}
