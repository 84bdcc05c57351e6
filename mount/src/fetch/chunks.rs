//! The chunks of an opened image: from memory, from the store, from the source, always verified.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::activity::{Moved, Request};
use super::copy::PackedCopy;
use super::fetcher::{Fetcher, Limits};
use super::flights::Flights;
use super::marks::Marks;
use super::memory::Memory;
use super::native::{Miss, Native, Restream};
use super::remote::{Came, Remote};
use super::room::Room;
use super::{ChunkSource, NativeBytes, ReadError, WholeChunk, within};
use crate::blob::{Blob, BlobError};
use crate::layer::decode::Decoder;
use crate::layer::decode::fine::{Cut, is_to_cut};
use crate::layer::table::{Chunk, ChunkIndex, Table, TableError};

/// Plain bytes in memory at most, with what is known of them; the kernel's page cache does the rest.
const MEMORY_BYTES: usize = 56 << 20;

/// Chunks of others' formats that are larger are decoded a few at a time: packed and plain they take megabytes each, and a
/// machine has few cores to decode them anyway.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_AT_ONCE: usize = 4;

/// How long somebody who runs ahead of a reader waits: after that the reader is there.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// One decoder for each thread that reads: zstd's context is dear to make.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::default());
}

/// Where the packed bytes of one layer are.
pub enum Origin {
    /// In its native file; a wrong chunk there has the layer streamed again.
    Native(File, Restream),
    /// In a blob on this machine.
    Local(Arc<dyn Blob>),
    /// In a blob elsewhere, with its sparse copy in the store.
    Remote(Arc<dyn Blob>, PackedCopy),
}

/// The chunks of all layers of one image.
pub struct Chunks {
    pub(super) layers: Vec<Arc<LayerChunks>>,
    memory: Arc<Memory>,
    flights: Arc<Flights<(u16, ChunkIndex)>>,
    pub(super) fetcher: Arc<Fetcher>,
}

/// A layer's table, and where its packed bytes are.
pub struct LayerChunks {
    table: Arc<Table>,
    pub(super) packed: Packed,
    room: Room,
    marks: Option<Marks>,
}

pub(super) enum Packed {
    Native(Arc<Native>),
    Local(Arc<dyn Blob>),
    Remote(Arc<Remote>),
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
                let plains =
                    DECODER.with_borrow_mut(|decoder| decoder.cut(&chunk, packed, &mut cut, until));
                Some((plains.ok()?, cut))
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

impl LayerChunks {
    /// How many plain bytes a chunk has, if there is such a chunk.
    fn plain_len(&self, index: ChunkIndex) -> Option<usize> {
        let chunk = self.table.chunk(index).ok()?;
        Some(chunk.plain_len as usize)
    }

    /// Whether a chunk is to be cut: it is large, and alone in its member.
    fn is_cut(&self, index: ChunkIndex) -> Result<bool, ReadError> {
        let is_native = matches!(self.packed, Packed::Native(_));
        let chunk = self.table.chunk(index)?;
        Ok(!is_native && is_to_cut(&chunk) && self.table.siblings(index).len() == 1)
    }

    /// What `decode` makes of the packed bytes of a chunk that is in no native file.
    fn decoded<T>(
        &self,
        chunk: &Chunk<'_>,
        decode: impl Fn(&[u8]) -> Option<T>,
        deadline: Instant,
        fetcher: &Fetcher,
    ) -> Result<T, ReadError> {
        let len = chunk.packed_len as usize;
        match &self.packed {
            Packed::Remote(remote) => {
                let end = chunk.packed_at.0.checked_add(len as u64);
                if end.is_none_or(|end| end > remote.blob_size()) {
                    return Err(self.corrupt(chunk));
                }
                self.remote(remote, chunk, decode, deadline, fetcher)
            }
            Packed::Local(blob) => {
                let packed = blob.read(chunk.packed_at, len, deadline);
                let packed = packed.map_err(|err| self.failed(err))?;
                decode(&packed).ok_or_else(|| self.corrupt(chunk))
            }
            Packed::Native(_) => Err(self.corrupt(chunk)),
        }
    }

    /// A chunk past the memory; `None` where only [`ChunkSource::chunk`] has it.
    fn whole(&self, index: ChunkIndex, deadline: Instant) -> Result<Option<WholeChunk>, ReadError> {
        let Packed::Native(native) = &self.packed else {
            return Ok(None);
        };
        let chunk = self.table.chunk(index)?;
        let whole = native.whole(&chunk, deadline);
        whole.map(Some).map_err(|miss| self.missed(&miss, &chunk))
    }

    /// A layer whose chunks come from `origin`.
    pub fn new(table: Arc<Table>, origin: Origin) -> Self {
        let packed = match origin {
            Origin::Native(file, restream) => Packed::Native(Native::new(file, restream)),
            Origin::Local(blob) => Packed::Local(blob),
            Origin::Remote(blob, copy) => {
                let remote = Remote::new(blob, copy).with_chunks_in(table.packed_extent());
                Packed::Remote(Arc::new(remote))
            }
        };
        Self {
            table,
            packed,
            room: Room::with_places(LARGE_AT_ONCE),
            marks: None,
        }
    }

    /// The same, with the marks of its chunks.
    pub fn with_marks(self, marks: Option<Marks>) -> Self {
        Self { marks, ..self }
    }

    /// Its table.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Whether all of the layer's packed bytes seem to be on this machine.
    fn is_all_here(&self) -> bool {
        match &self.packed {
            Packed::Native(_) | Packed::Local(_) => true,
            Packed::Remote(remote) => remote.stored_bytes() >= remote.blob_size(),
        }
    }

    /// Whether the chunk's packed bytes seem to be on this machine.
    fn has(&self, index: ChunkIndex) -> bool {
        match (&self.packed, self.table.chunk(index)) {
            (Packed::Native(_) | Packed::Local(_), _) => true,
            (
                Packed::Remote(remote),
                Ok(Chunk {
                    packed_at,
                    packed_len,
                    ..
                }),
            ) => remote.has(&(packed_at.0..packed_at.0 + u64::from(packed_len))),
            (Packed::Remote(_), Err(_)) => false,
        }
    }

    /// The chunk's plain bytes; `keep` is given them too, and those of other chunks that came with them.
    fn plain(
        &self,
        index: ChunkIndex,
        deadline: Instant,
        fetcher: &Fetcher,
        keep: impl Fn(ChunkIndex, Bytes),
    ) -> Result<Bytes, ReadError> {
        let siblings = Siblings::of(&self.table, index)?;
        let chunk = siblings.wanted();
        match &self.packed {
            Packed::Native(native) => {
                let plain = native.plain(chunk, deadline);
                let plain = plain.map_err(|miss| self.missed(&miss, chunk))?;
                keep(index, plain.clone());
                Ok(plain)
            }
            Packed::Local(_) | Packed::Remote(_) => {
                let decode = |packed: &[u8]| siblings.decoded(packed, self.marks.as_ref(), &keep);
                self.decoded(chunk, decode, deadline, fetcher)
            }
        }
    }

    /// From the store if what it has is right, else from the source; if the bytes are wrong then, all of them are asked
    /// for once more.
    fn remote<T>(
        &self,
        remote: &Arc<Remote>,
        chunk: &Chunk<'_>,
        decode: impl Fn(&[u8]) -> Option<T>,
        deadline: Instant,
        fetcher: &Fetcher,
    ) -> Result<T, ReadError> {
        let len = chunk.packed_len as usize;
        let bytes = chunk.packed_at.0..chunk.packed_at.0 + len as u64;
        let activity = &fetcher.shared().activity;
        remote.read_ahead(&bytes, fetcher);
        let (mut waited, mut is_fresh) = (false, false);
        loop {
            let is_whole = remote.has(&bytes);
            let decoded = match len.max(chunk.plain_len as usize) > LARGE_BYTES {
                true => {
                    let place = self.room.enter(deadline);
                    let _place = place.ok_or_else(|| self.late(chunk))?;
                    let kept = remote.kept(chunk.packed_at, len);
                    kept.and_then(|packed| decode(&packed))
                }
                false => {
                    let kept = remote.kept(chunk.packed_at, len);
                    kept.and_then(|packed| decode(&packed))
                }
            };
            if let Some(plain) = decoded {
                let counter = match waited {
                    true => &activity.chunks_waited_for,
                    false => &activity.chunks_from_store,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                return Ok(plain);
            }
            if is_whole {
                if is_fresh {
                    return Err(self.corrupt(chunk));
                }
                let again = &activity.fetched_again;
                again.fetch_add(len as u64, Ordering::Relaxed);
                remote.forget(&bytes);
                if waited {
                    remote.doubt();
                }
                is_fresh = true;
            }
            waited = true;
            match remote.bring(&bytes, deadline, fetcher) {
                Ok(Came::InTime) => {}
                Ok(Came::Late) => return Err(self.late(chunk)),
                Err(err) => return Err(self.failed(err)),
            }
        }
    }

    fn late(&self, chunk: &Chunk<'_>) -> ReadError {
        ReadError::Late {
            layer: self.table.layer(),
            at: chunk.packed_at,
        }
    }

    fn missed(&self, miss: &Miss, chunk: &Chunk<'_>) -> ReadError {
        match miss {
            Miss::Corrupt => self.corrupt(chunk),
            Miss::Late => self.late(chunk),
        }
    }

    fn corrupt(&self, chunk: &Chunk<'_>) -> ReadError {
        ReadError::Corrupt {
            layer: self.table.layer(),
            at: chunk.packed_at,
        }
    }

    fn failed(&self, source: BlobError) -> ReadError {
        ReadError::Source {
            layer: self.table.layer(),
            source,
        }
    }
}

/// A chunk with those that share its frame or member.
struct Siblings<'a> {
    chunks: Vec<Chunk<'a>>,
    first: u32,
    wanted: usize,
}

impl<'a> Siblings<'a> {
    fn of(table: &'a Table, index: ChunkIndex) -> Result<Self, TableError> {
        let places = table.siblings(index);
        let (first, wanted) = (places.start, (index.0 - places.start) as usize);
        let chunks = places.map(|index| table.chunk(ChunkIndex(index)));
        Ok(Self {
            chunks: chunks.collect::<Result<_, _>>()?,
            first,
            wanted,
        })
    }

    fn wanted(&self) -> &Chunk<'a> {
        &self.chunks[self.wanted]
    }

    /// The wanted chunk's bytes, if they are right; all that are go to `keep`.
    fn decoded(
        &self,
        packed: &[u8],
        marks: Option<&Marks>,
        keep: impl Fn(ChunkIndex, Bytes),
    ) -> Option<Bytes> {
        let plains = DECODER.with_borrow_mut(|decoder| match (&self.chunks[..], marks) {
            ([alone], Some(marks)) => {
                let plain = marks.plain(decoder, ChunkIndex(self.first), alone, packed);
                plain.map(|plain| vec![Some(plain)])
            }
            ([alone], None) => decoder.plain(alone, packed).map(|plain| vec![Some(plain)]),
            (chunks, _) => decoder.siblings(chunks, self.wanted, packed),
        });
        let plains = plains.ok()?;
        for (index, plain) in (self.first..).zip(&plains) {
            if let Some(plain) = plain {
                keep(ChunkIndex(index), plain.clone());
            }
        }
        plains.into_iter().nth(self.wanted)?
    }
}

pub(super) fn decoded(chunk: &Chunk<'_>, packed: &[u8]) -> Option<Bytes> {
    DECODER
        .with_borrow_mut(|decoder| decoder.plain(chunk, packed))
        .ok()
}
