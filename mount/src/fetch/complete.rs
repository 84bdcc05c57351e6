//! What is not asked for by a reader: chunks that will be read, and all that is missing of an image.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::ReadError;
use super::activity::Why;
use super::chunks::Chunks;
use super::fetcher::Fetcher;
use super::layer_chunks::Packed;
use super::remote::Remote;
use crate::blob::BlobError;
use crate::digest::Digest;
use crate::layer::table::ChunkIndex;

/// Chunks of a profile are sorted by their places in pieces of this many packed bytes: those that are needed first come first,
/// and few ranges bring them.
const BATCH_BYTES: u64 = 32 << 20;

/// Ranges that complete an image are begun so far ahead.
const PIECES_AHEAD: usize = 16;

/// Chunks that builders want fetched ahead at most: they may name the same ones again and again.
const LEADS_LIMIT: usize = 1 << 20;

/// A layer of which something is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// The layer's blob.
    pub layer: Digest,
    /// How many of its packed bytes are missing.
    pub bytes: u64,
    /// How many it has.
    pub of: u64,
}

/// A layer that is kept as it is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seekable {
    /// The layer's blob.
    pub layer: Digest,
    /// Its packed bytes.
    pub bytes: u64,
    /// Those that are here, as the disk counts them: quickly told, and not exact.
    pub stored_bytes: u64,
}

/// How the completion of one layer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// All of it is here, and matches the layer's digest.
    Whole,
    /// Nobody wants it any more.
    GivenUp,
}

impl Chunks {
    /// Has chunks brought that will be read in this order, for which reason `why` tells; returns at once. Unknown ones are
    /// passed over.
    pub fn prefetch(&self, wanted: &[(u16, ChunkIndex)], why: Why) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for &(layer, index) in wanted {
            let Some(place) = self.place(layer, index) else {
                continue;
            };
            bytes += place.end - place.start;
            batch.push((layer, place));
            if bytes >= BATCH_BYTES {
                self.prefetch_batch(std::mem::take(&mut batch), why);
                bytes = 0;
            }
        }
        self.prefetch_batch(batch, why);
    }

    /// How many packed bytes these chunks take.
    pub fn packed_bytes(&self, chunks: &[(u16, ChunkIndex)]) -> u64 {
        let places: HashSet<_> = chunks
            .iter()
            .filter_map(|&(layer, index)| Some((layer, self.place(layer, index)?)))
            .collect();
        places
            .iter()
            .map(|(_, place)| place.end - place.start)
            .sum()
    }

    /// Whether any of these chunks would have to come from elsewhere.
    pub fn lack(&self, chunks: &[(u16, ChunkIndex)]) -> bool {
        chunks.iter().any(|&(layer, index)| {
            let Some(place) = self.place(layer, index) else {
                return false;
            };
            match &self.layers[usize::from(layer)].packed {
                Packed::Remote(remote) => !remote.has(&place),
                Packed::Native(_) | Packed::Local(_) => false,
            }
        })
    }

    /// Waits until the packed bytes of a chunk that are on their way, or about to be, are here. Whether they are, by the deadline.
    pub fn await_packed(&self, (layer, index): (u16, ChunkIndex), deadline: Instant) -> bool {
        let Some(place) = self.place(layer, index) else {
            return false;
        };
        match &self.layers[usize::from(layer)].packed {
            Packed::Remote(remote) => remote.await_here(&place, deadline),
            Packed::Native(_) | Packed::Local(_) => true,
        }
    }

    /// The chunks that the builders of the layers want fetched at once.
    pub fn leads(&self) -> Vec<(u16, ChunkIndex)> {
        let layers = self.layers.iter().zip(0u16..);
        let leads = layers.flat_map(|(layer, number)| {
            let chunks = layer.table().leads().flatten();
            chunks.map(move |chunk| (number, ChunkIndex(chunk)))
        });
        leads.take(LEADS_LIMIT).collect()
    }

    fn place(&self, layer: u16, index: ChunkIndex) -> Option<Range<u64>> {
        let chunk = self
            .layers
            .get(usize::from(layer))?
            .table()
            .chunk(index)
            .ok()?;
        let end = chunk.packed_at.0.checked_add(chunk.packed_len.into())?;
        Some(chunk.packed_at.0..end)
    }

    fn prefetch_batch(&self, batch: Vec<(u16, Range<u64>)>, why: Why) {
        for (layer, range) in self.merged(batch) {
            match &self.layers[usize::from(layer)].packed {
                Packed::Remote(remote) => {
                    let until = range.end.min(remote.blob_size());
                    remote.fetch_ahead(range.start..until, why, &self.fetcher);
                }
                Packed::Native(native) => native.announce(&range),
                Packed::Local(blob) => blob.announce(&range),
            }
        }
    }

    /// Has chunks brought that one reader will wait for, each stretch of them with one request.
    pub(super) fn fetch_together(&self, chunks: &[(u16, ChunkIndex)], deadline: Instant) {
        let places = chunks
            .iter()
            .filter_map(|&(layer, index)| Some((layer, self.place(layer, index)?)));
        for (layer, range) in self.merged(places.collect()) {
            if let Packed::Remote(remote) = &self.layers[usize::from(layer)].packed {
                let until = range.end.min(remote.blob_size());
                remote.begin(range.start..until, deadline, &self.fetcher);
            }
        }
    }

    /// Places as few ranges: gaps are closed that cost less than another request.
    fn merged(&self, mut places: Vec<(u16, Range<u64>)>) -> Vec<(u16, Range<u64>)> {
        let gap = self.fetcher.shared().pace.worth_bytes();
        places.sort_by_key(|(layer, place)| (*layer, place.start));
        let mut ranges: Vec<(u16, Range<u64>)> = Vec::new();
        for (layer, place) in places {
            match ranges.last_mut() {
                Some((last, range))
                    if *last == layer && place.start <= range.end.saturating_add(gap) =>
                {
                    range.end = range.end.max(place.end);
                }
                _ => ranges.push((layer, place)),
            }
        }
        ranges
    }

    /// The layers of which something is missing, each once.
    pub fn lacking(&self) -> Vec<Lacking> {
        let lacking = self.remotes().into_iter().map(|remote| Lacking {
            layer: remote.layer(),
            bytes: remote.blob_size() - remote.kept_bytes(),
            of: remote.blob_size(),
        });
        lacking.filter(|lacking| lacking.bytes > 0).collect()
    }

    /// The layers that are not streamed, but kept as they are fetched.
    pub fn seekable(&self) -> Vec<Seekable> {
        let remotes = self.remotes().into_iter();
        remotes
            .map(|remote| Seekable {
                layer: remote.layer(),
                bytes: remote.blob_size(),
                stored_bytes: remote.stored_bytes(),
            })
            .collect()
    }

    fn remotes(&self) -> Vec<&Arc<Remote>> {
        let mut remotes: Vec<&Arc<Remote>> = Vec::new();
        for layer in &self.layers {
            if let Packed::Remote(remote) = &layer.packed
                && remotes.iter().all(|other| other.layer() != remote.layer())
            {
                remotes.push(remote);
            }
        }
        remotes
    }

    /// Fetches what is missing of a layer, yielding to readers, and compares all of it with its digest; if that does not
    /// match, all of it is fetched once more. `came` is told how many more bytes are here. Blocks until then.
    pub fn complete(
        &self,
        layer: Digest,
        came: &dyn Fn(u64),
        is_unwanted: &dyn Fn() -> bool,
    ) -> Result<Completion, ReadError> {
        let remotes = self.remotes();
        let Some(remote) = remotes.into_iter().find(|remote| remote.layer() == layer) else {
            return Ok(Completion::Whole);
        };
        let failed = |source| ReadError::Source { layer, source };
        let mut each = |_: &[u8], _| !is_unwanted();
        completed(remote, &self.fetcher, came, is_unwanted, &mut each).map_err(failed)
    }
}

/// Fetches what is missing of a blob, hands all of it, with its places, to `each` and compares it with its digest, if that is one of its bytes.
/// If it does not match, all of it is fetched, and handed over, once more.
pub(super) fn completed(
    remote: &Arc<Remote>,
    fetcher: &Fetcher,
    came: &dyn Fn(u64),
    is_unwanted: &dyn Fn() -> bool,
    each: &mut dyn FnMut(&[u8], u64) -> bool,
) -> Result<Completion, BlobError> {
    remote.want_whole();
    for _ in 0..2 {
        if filled(remote, fetcher, came, is_unwanted)? == Completion::GivenUp {
            return Ok(Completion::GivenUp);
        }
        match remote.kept_digest(each) {
            Some(digest) if digest == remote.layer() || !remote.is_named_by_its_bytes() => {
                return Ok(Completion::Whole);
            }
            None if is_unwanted() => return Ok(Completion::GivenUp),
            _ => remote.forget(&(0..remote.blob_size())),
        }
    }
    Err(BlobError::Wrong {
        object: format!("layer {}", remote.layer()),
        problem: "what was fetched does not match the layer's digest, also the second time".into(),
    })
}

fn filled(
    remote: &Arc<Remote>,
    fetcher: &Fetcher,
    came: &dyn Fn(u64),
    is_unwanted: &dyn Fn() -> bool,
) -> Result<Completion, BlobError> {
    let mut flying = VecDeque::new();
    let mut at = 0;
    while at < remote.blob_size() || !flying.is_empty() {
        if is_unwanted() {
            return Ok(Completion::GivenUp);
        }
        if at < remote.blob_size() && flying.len() < PIECES_AHEAD {
            let until = (at + (4 << 20)).min(remote.blob_size());
            let pieces = remote.pieces(at..until, Why::Background, fetcher);
            if pieces.is_empty() {
                came(until - at);
            } else {
                flying.push_back((at..until, pieces));
            }
            at = until;
            continue;
        }
        if let Some((bytes, pieces)) = flying.pop_front() {
            for piece in pieces {
                piece.wait()?;
            }
            // Somebody else may have begun it, and failed.
            if !remote.has(&bytes) {
                let pieces = remote.pieces(bytes.clone(), Why::Background, fetcher);
                if !pieces.is_empty() {
                    flying.push_back((bytes, pieces));
                    continue;
                }
                remote.await_flights(&bytes);
                if !remote.has(&bytes) {
                    remote.is_kept()?;
                    flying.push_back((bytes, Vec::new()));
                    continue;
                }
            }
            came(bytes.end - bytes.start);
        }
    }
    Ok(Completion::Whole)
}
