//! The chunks of an opened image: from memory, from the store, from the source, always verified.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::activity::{Moved, Request};
use super::fetcher::{Fetcher, Limits};
use super::flights::Flights;
use super::layer_chunks::{LayerChunks, Packed, decoded, pieces};
use super::memory::Memory;
use super::{ChunkSource, NativeBytes, ReadError, WholeChunk, within};
use crate::layer::decode::fine::Cut;
use crate::layer::table::ChunkIndex;

/// Plain bytes in memory at most, with what is known of them; the kernel's page cache does the rest.
const MEMORY_BYTES: usize = 56 << 20;

/// How long somebody who runs ahead of a reader waits: after that the reader is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// The chunks of all layers of one image.
pub struct Chunks {
    pub(super) layers: Vec<Arc<LayerChunks>>,
    memory: Arc<Memory>,
    flights: Arc<Flights<(u16, ChunkIndex)>>,
    pub(super) fetcher: Arc<Fetcher>,
}

impl Chunks {
    /// The chunks of `layers`, bottom first. A layer that stands twice in an image can be given twice.
    pub fn new(layers: Vec<Arc<LayerChunks>>, limits: Limits) -> Self {
        Self {
            layers,
            memory: Arc::new(Memory::with_budget(MEMORY_BYTES)),
            flights: Arc::default(),
            fetcher: Arc::new(Fetcher::new(limits)),
        }
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> &[Arc<LayerChunks>] {
        &self.layers
    }

    /// The requests for ranges, oldest first; of very many only the latest.
    pub fn requests(&self) -> Vec<Request> {
        self.fetcher.shared().activity.requests()
    }

    /// What was fetched, and why.
    pub fn moved(&self) -> Moved {
        let shared = self.fetcher.shared();
        Moved {
            round_trip_us: shared.pace.round_trip().map(|time| time.as_micros() as u64),
            bytes_per_sec: shared.pace.rate(),
            ..shared.activity.moved()
        }
    }

    fn layer(&self, layer: u16) -> Result<&LayerChunks, ReadError> {
        let found = self.layers.get(usize::from(layer)).map(|layer| &**layer);
        found.ok_or_else(|| {
            ReadError::Tree(format!(
                "the tree names layer {layer} of {}",
                self.layers.len()
            ))
        })
    }
}

impl ChunkSource for Chunks {
    fn cached(&self, layer: u16, chunk: ChunkIndex) -> Option<Bytes> {
        self.memory.get((layer, chunk))
    }

    fn whole(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        deadline: Instant,
    ) -> Result<WholeChunk, ReadError> {
        if let Some(whole) = self.layer(layer)?.whole(chunk, deadline)? {
            return Ok(whole);
        }
        let plain = self.chunk(layer, chunk, deadline)?;
        Ok(WholeChunk {
            plain,
            native: None,
        })
    }

    fn packed(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        deadline: Instant,
    ) -> Result<Option<NativeBytes>, ReadError> {
        let source = self.layer(layer)?;
        let Packed::Native(native) = &source.packed else {
            return Ok(None);
        };
        let chunk = source.table.chunk(chunk)?;
        let packed = native.packed(&chunk, deadline);
        packed.map_err(|miss| source.missed(&miss, &chunk))
    }

    fn is_near(&self, layer: u16, chunk: ChunkIndex) -> bool {
        self.layer(layer).is_ok_and(|layer| layer.has(chunk))
    }

    fn announce(&self, chunks: &[(u16, ChunkIndex)], deadline: Instant) {
        let missing = chunks.iter().copied();
        let missing: Vec<_> = missing.filter(|&key| !self.memory.has(key)).collect();
        if missing.len() > 1 {
            self.fetch_together(&missing, deadline);
        }
    }

    fn cached_part(&self, layer: u16, chunk: ChunkIndex, bytes: &Range<usize>) -> Option<Bytes> {
        let key = (layer, chunk);
        if let Some(plain) = self.memory.get(key) {
            return Some(within(&plain, bytes));
        }
        let (from, piece) = self.memory.piece(key, bytes.start as u32)?;
        let from = from as usize;
        let is_in_it = bytes.end <= from + piece.len();
        is_in_it.then(|| piece.slice(bytes.start - from..bytes.end - from))
    }

    fn part(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        bytes: &Range<usize>,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let source = self.layer(layer)?;
        if !source.is_cut(chunk)? {
            let is_all = Some(bytes.end) == source.plain_len(chunk) && bytes.start == 0;
            let plain = match is_all {
                true => self.passing(source, (layer, chunk), deadline)?,
                false => self.chunk(layer, chunk, deadline)?,
            };
            return Ok(within(&plain, bytes));
        }
        let (mut parts, mut at) = (Vec::new(), bytes.start);
        while at < bytes.end {
            let (from, piece) = self.piece(source, (layer, chunk), at..bytes.end, deadline)?;
            let part = within(&piece, &(at - from..bytes.end - from));
            if part.is_empty() {
                break;
            }
            at += part.len();
            parts.push(part);
        }
        match &parts[..] {
            [only] => Ok(only.clone()),
            parts => Ok(parts.concat().into()),
        }
    }

    fn decode_ahead(&self, layer: u16, chunk: ChunkIndex, bytes: &Range<usize>) {
        // While some of the layer is elsewhere the readers themselves are to tell what is fetched ahead of them.
        if self.layer(layer).is_ok_and(LayerChunks::is_all_here) {
            self.decode_expected(layer, chunk, bytes);
        }
    }

    fn forget(&self, layer: u16, chunk: ChunkIndex, bytes: &Range<usize>) {
        let key = (layer, chunk);
        let Ok(source) = self.layer(layer) else {
            return;
        };
        if source.is_cut(chunk).unwrap_or(false) {
            self.memory.forget_pieces(key, bytes);
        } else if source.plain_len(chunk) == Some(bytes.end) && bytes.start == 0 {
            // Else there is more in it, which others may want.
            self.memory.forget(key);
        }
    }

    fn chunk(&self, layer: u16, chunk: ChunkIndex, deadline: Instant) -> Result<Bytes, ReadError> {
        let key = (layer, chunk);
        let source = self.layer(layer)?;
        loop {
            if let Some(plain) = self.memory.get(key) {
                return Ok(plain);
            }
            // Also before any work: one read may need thousands of chunks.
            if Instant::now() >= deadline {
                let at = source.table.chunk(chunk)?.packed_at;
                return Err(ReadError::Late {
                    layer: source.table.layer(),
                    at,
                });
            }
            if let Some(_leader) = self.flights.lead_or_wait(key, deadline) {
                // Somebody may have landed between the look and the lead.
                if let Some(plain) = self.memory.get(key) {
                    return Ok(plain);
                }
                let keep = |sibling, plain| self.memory.keep((layer, sibling), plain);
                return source.plain(chunk, deadline, &self.fetcher, keep);
            }
        }
    }
}

impl Chunks {
    /// Has bytes of a chunk in memory that programs are known to ask for, if they are here, and if nobody is about to have them
    /// anyway.
    pub fn decode_expected(&self, layer: u16, chunk: ChunkIndex, bytes: &Range<usize>) {
        let key = (layer, chunk);
        let Some(source) = self.layer(layer).ok().filter(|it| it.has(chunk)) else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        if source.is_cut(chunk).unwrap_or(false) {
            let mut at = bytes.start;
            while at < bytes.end {
                match self.piece(source, key, at..bytes.end, deadline) {
                    Ok((from, piece)) if from + piece.len() > at => at = from + piece.len(),
                    _ => return,
                }
            }
        } else if !self.memory.has(key)
            && let Some(_leader) = self.flights.lead(key)
        {
            let keep = |sibling, plain| self.memory.keep((layer, sibling), plain);
            // What does not come is of no use now; whoever needs it will say why.
            drop(source.plain(chunk, deadline, &self.fetcher, keep));
        }
    }

    /// A chunk for one who wants all of it, and so not again: who reads a file in order has it in the kernel's page cache then. It
    /// pushes nothing out of memory.
    fn passing(
        &self,
        source: &LayerChunks,
        key: (u16, ChunkIndex),
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let keep_others = |index, plain| {
            if index != key.1 {
                self.memory.keep((key.0, index), plain);
            }
        };
        loop {
            if let Some(plain) = self.memory.get(key) {
                return Ok(plain);
            }
            if Instant::now() >= deadline {
                return Err(source.late(&source.table.chunk(key.1)?));
            }
            // Somebody may be decoding it ahead.
            if let Some(_leader) = self.flights.lead_or_wait(key, deadline) {
                return match self.memory.get(key) {
                    Some(plain) => Ok(plain),
                    None => source.plain(key.1, deadline, &self.fetcher, keep_others),
                };
            }
        }
    }

    /// A piece of a chunk that is cut, the one with its plain byte `wanted.start`, and where in the chunk it begins. If need be
    /// the chunk is decoded until `wanted` ends.
    fn piece(
        &self,
        source: &LayerChunks,
        key: (u16, ChunkIndex),
        wanted: Range<usize>,
        deadline: Instant,
    ) -> Result<(usize, Bytes), ReadError> {
        let chunk = source.table.chunk(key.1)?;
        // Within one chunk, whose length has 32 bits.
        let (at, until) = (wanted.start as u32, wanted.end as u32);
        let found = || {
            let (from, piece) = self.memory.piece(key, at)?;
            Some((from as usize, piece))
        };
        loop {
            if let Some(found) = found() {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                return Err(source.late(&chunk));
            }
            let Some(_leader) = self.flights.lead_or_wait(key, deadline) else {
                continue;
            };
            // Somebody may have landed between the look and the lead.
            if let Some(found) = found() {
                return Ok(found);
            }
            let mut cut = self.memory.cut(key).unwrap_or_default();
            if let Some(place) = cut.place(at) {
                let piece = cut.piece(place, &chunk);
                let decode = |packed: &[u8]| decoded(&piece, packed);
                match source.decoded(&piece, decode, deadline, &self.fetcher) {
                    Ok(plain) => {
                        self.memory.keep_piece(key, place, plain.clone());
                        return Ok((cut.plain_at(place) as usize, plain));
                    }
                    Err(ReadError::Corrupt { .. }) => {
                        self.memory.forget_cut(key);
                        cut = Arc::default();
                    }
                    Err(err) => return Err(err),
                }
            }
            // Who goes on where the last one stopped reads all of it, as it seems.
            let until = if cut.is_empty() {
                until
            } else {
                chunk.plain_len
            };
            let decode = |packed: &[u8]| {
                let mut cut = Cut::clone(&cut);
                let plains = pieces(&chunk, packed, &mut cut, until)?;
                Some((plains, cut))
            };
            let first = cut.count();
            let (plains, cut) = source.decoded(&chunk, decode, deadline, &self.fetcher)?;
            let own = cut.place(at).ok_or_else(|| source.corrupt(&chunk))?;
            let plain = own.checked_sub(first).and_then(|own| plains.get(own));
            let plain = plain.ok_or_else(|| source.corrupt(&chunk))?.clone();
            let from = cut.plain_at(own) as usize;
            self.memory.keep_cut(key, Arc::new(cut));
            for (place, plain) in (first..).zip(plains) {
                self.memory.keep_piece(key, place, plain);
            }
            return Ok((from, plain));
        }
    }
}
