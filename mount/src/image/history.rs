//! The life of an opened image, from one mount to the next: what is read is recorded and kept in the store.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::Image;
use super::open::Opened;
use super::profile::{PROFILE_BYTES_LIMIT, Part, Profile};
use super::reads::Reads;
use super::stats::{STATS_BYTES_LIMIT, Stats, Subject};
use crate::digest::Digest;
use crate::fetch::{Chunks, Completion};
use crate::store::{Name, Store};
use crate::tree::NodeId;

/// What was read is kept for the first time after so long, so that little is lost when we are killed.
const FIRST_SAVE: Duration = Duration::from_secs(1);

/// Later it is kept so often.
const LAST_SAVE: Duration = Duration::from_secs(60);

/// What a mount does besides answering.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Record what is read now, for the next mount.
    pub records_profile: bool,
    /// Fetch the rest when nobody reads.
    pub completes: bool,
}

/// Records until it is dropped, and keeps the records then; nobody waits for the network.
pub struct History {
    shared: Arc<Shared>,
    /// Dropped at the end, which wakes the thread.
    going_on: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Answers what happened so far, from any thread.
#[derive(Clone)]
pub struct Teller(Arc<Shared>);

struct Shared {
    image: Arc<Image>,
    chunks: Arc<Chunks>,
    store: Arc<Store>,
    reads: Arc<Reads>,
    subject: Subject,
    since: Instant,
    records_profile: bool,
    is_over: AtomicBool,
    kept: Mutex<Kept>,
}

struct Kept {
    /// As many pieces were read when records were kept last.
    pieces: usize,
    is_first: bool,
}

impl History {
    /// Begins to record what is read of `opened`, and does what `plan` says.
    pub fn begin(opened: &Opened, reference: &str, store: &Arc<Store>, plan: Plan) -> Self {
        let reads = Arc::new(Reads::default());
        opened.image.remember(&reads);
        let manifest = opened.description.manifest_digest;
        let shared = Arc::new(Shared {
            image: Arc::clone(&opened.image),
            chunks: Arc::clone(&opened.chunks),
            store: Arc::clone(store),
            reads,
            subject: Subject {
                reference: reference.to_owned(),
                manifest,
            },
            since: Instant::now(),
            records_profile: plan.records_profile,
            is_over: AtomicBool::new(false),
            kept: Mutex::new(Kept {
                pieces: 0,
                is_first: true,
            }),
        });
        let (going_on, is_over) = bounded(0);
        let mut threads = Vec::new();
        let records = Arc::clone(&shared);
        threads.extend(started("history", move || {
            let mut pause = FIRST_SAVE;
            while is_over.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                records.keep(false);
                pause = (pause * 2).min(LAST_SAVE);
            }
        }));
        if plan.completes {
            let completes = Arc::clone(&shared);
            threads.extend(started("complete", move || completes.complete()));
        }
        Self {
            shared,
            going_on: Some(going_on),
            threads,
        }
    }

    /// One who can tell what happened.
    pub fn teller(&self) -> Teller {
        Teller(Arc::clone(&self.shared))
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.going_on = None;
        for thread in self.threads.drain(..) {
            // The one that completes may wait for the network; it ends with the process.
            if thread.thread().name() == Some("history") {
                let _ = thread.join();
            }
        }
        self.shared.keep(true);
    }
}

impl Teller {
    /// What happened so far, with the requests one by one.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}

fn started(name: &str, work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .inspect_err(|err| tracing::warn!(error = %err, "nothing will be recorded"))
        .ok()
}

/// What the store has of the mounts before this one.
pub fn stored(store: &Store, manifest: Digest) -> Option<Stats> {
    let bytes = store.hint(Name::Stats(manifest), STATS_BYTES_LIMIT)?;
    let stats: Stats = serde_json::from_slice(&bytes).ok()?;
    (stats.subject.manifest == manifest).then_some(stats)
}

/// The profile of the image of this manifest, if the store has a sound one.
pub fn profile(store: &Store, manifest: Digest) -> Option<Profile> {
    let text = store.hint(Name::Profile(manifest), PROFILE_BYTES_LIMIT)?;
    match Profile::parse(&text) {
        Ok(profile) => (profile.manifest == manifest).then_some(profile),
        Err(err) => {
            tracing::debug!(%manifest, error = %err, "profile not used");
            None
        }
    }
}

impl Shared {
    /// Keeps what was read, if there is something new; statistics, for which every name is looked at, at the end only.
    fn keep(&self, is_last: bool) {
        let pieces = self.reads.pieces();
        let mut kept = self.kept.lock();
        if pieces == 0 || (kept.pieces == pieces && !is_last) {
            return;
        }
        let saved = self.keep_profile(kept.is_first).and_then(|()| {
            if !is_last {
                return Ok(());
            }
            let mut stats = self.stats();
            stats.shorten();
            let bytes = serde_json::to_vec(&stats)?;
            self.store
                .keep_hint(Name::Stats(self.subject.manifest), &bytes)
        });
        match saved {
            Ok(()) => {
                kept.pieces = pieces;
                kept.is_first = false;
            }
            Err(err) => tracing::debug!(error = %err, "what was read is not recorded"),
        }
    }

    fn keep_profile(&self, is_first: bool) -> std::io::Result<()> {
        if !self.records_profile {
            return Ok(());
        }
        let manifest = self.subject.manifest;
        // Other mounts of the image may have written it since we read it.
        let before = profile(&self.store, manifest).unwrap_or_else(|| Profile::empty(manifest));
        let after = before.after(self.parts(), is_first);
        self.store
            .keep_hint(Name::Profile(manifest), after.text().as_bytes())
    }

    /// What was read, by path.
    fn parts(&self) -> Vec<Part> {
        let parts = self.reads.parts();
        let wanted: HashSet<NodeId> = parts.iter().map(|(id, _)| *id).collect();
        let paths = paths(&self.image, &wanted);
        let parts = parts.into_iter().filter_map(|(id, bytes)| {
            let size = self.image.node(id).ok()?.size;
            let bytes: Range<u64> = bytes.start..bytes.end.min(size);
            let path = paths.get(&id)?.clone();
            (!bytes.is_empty()).then_some(Part {
                path,
                bytes,
                age: 0,
            })
        });
        parts.collect()
    }

    /// What was recorded before is looked up now, not when the mount begins: that would keep whoever waits for it.
    fn stats(&self) -> Stats {
        let manifest = self.subject.manifest;
        let earlier = stored(&self.store, manifest);
        let profile = profile(&self.store, manifest);
        let ever = profile.map(|profile| profile.parts).unwrap_or_default();
        Stats::of(
            self.subject.clone(),
            self.since.elapsed(),
            &self.image,
            &self.chunks,
            &self.reads,
            (earlier.as_ref(), &ever),
        )
    }

    /// Fetches what is missing, layer by layer; tries again what fails, later and later.
    fn complete(&self) {
        let is_unwanted = || self.is_over.load(Ordering::Relaxed);
        for seekable in self.chunks.seekable() {
            let layer = seekable.layer;
            let mut pause = Duration::from_secs(1);
            loop {
                match self.chunks.complete(layer, &|_| {}, &is_unwanted) {
                    Ok(Completion::Whole) => break,
                    Ok(Completion::GivenUp) => return,
                    Err(err) => {
                        tracing::debug!(error = &err as &dyn std::error::Error, "not complete yet");
                    }
                }
                let until = Instant::now() + pause;
                while Instant::now() < until && !is_unwanted() {
                    thread::sleep(Duration::from_millis(100));
                }
                pause = (pause * 2).min(LAST_SAVE);
            }
        }
        tracing::info!(image = %self.subject.reference, "complete: it needs no network any more");
    }
}

/// The file at a path without links and dots.
pub(super) fn found(image: &Image, path: &[u8]) -> Option<NodeId> {
    path.split(|&byte| byte == b'/')
        .try_fold(NodeId::ROOT, |directory, name| {
            image.tree().lookup(directory, name).ok()?
        })
}

/// A path of each of these files.
pub(super) fn paths(image: &Image, wanted: &HashSet<NodeId>) -> HashMap<NodeId, Vec<u8>> {
    let mut paths = HashMap::new();
    if wanted.is_empty() {
        return paths;
    }
    for (path, id) in image.tree().walk().map_while(Result::ok) {
        if wanted.contains(&id) {
            paths.entry(id).or_insert(path);
            if paths.len() == wanted.len() {
                break;
            }
        }
    }
    paths
}
