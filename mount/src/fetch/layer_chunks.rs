//! The chunks of one layer: from the store or from where its packed bytes are, decoded and verified.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::copy::PackedCopy;
use super::fetcher::Fetcher;
use super::marks::Marks;
use super::native::{Miss, Native, Restream};
use super::remote::{Came, Remote};
use super::room::Room;
use super::{ReadError, WholeChunk};
use crate::blob::{Blob, BlobError};
use crate::layer::decode::Decoder;
use crate::layer::decode::fine::{Cut, is_to_cut};
use crate::layer::table::{Chunk, ChunkIndex, Table, TableError};

/// Chunks of others' formats that are larger are decoded a few at a time: packed and plain they take megabytes each, and a
/// machine has few cores to decode them anyway.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_AT_ONCE: usize = 4;

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

/// A layer's table, and where its packed bytes are.
pub struct LayerChunks {
    pub(super) table: Arc<Table>,
    pub(super) packed: Packed,
    room: Room,
    marks: Option<Marks>,
}

pub(super) enum Packed {
    Native(Arc<Native>),
    Local(Arc<dyn Blob>),
    Remote(Arc<Remote>),
}

impl LayerChunks {
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

    /// How many plain bytes a chunk has, if there is such a chunk.
    pub(super) fn plain_len(&self, index: ChunkIndex) -> Option<usize> {
        let chunk = self.table.chunk(index).ok()?;
        Some(chunk.plain_len as usize)
    }

    /// Whether a chunk is to be cut: it is large, and alone in its member.
    pub(super) fn is_cut(&self, index: ChunkIndex) -> Result<bool, ReadError> {
        let is_native = matches!(self.packed, Packed::Native(_));
        let chunk = self.table.chunk(index)?;
        Ok(!is_native && is_to_cut(&chunk) && self.table.siblings(index).len() == 1)
    }

    /// What `decode` makes of the packed bytes of a chunk that is in no native file.
    pub(super) fn decoded<T>(
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
    pub(super) fn whole(
        &self,
        index: ChunkIndex,
        deadline: Instant,
    ) -> Result<Option<WholeChunk>, ReadError> {
        let Packed::Native(native) = &self.packed else {
            return Ok(None);
        };
        let chunk = self.table.chunk(index)?;
        let whole = native.whole(&chunk, deadline);
        whole.map(Some).map_err(|miss| self.missed(&miss, &chunk))
    }

    /// Whether all of the layer's packed bytes seem to be on this machine.
    pub(super) fn is_all_here(&self) -> bool {
        match &self.packed {
            Packed::Native(_) | Packed::Local(_) => true,
            Packed::Remote(remote) => remote.stored_bytes() >= remote.blob_size(),
        }
    }

    /// Whether the chunk's packed bytes seem to be on this machine.
    pub(super) fn has(&self, index: ChunkIndex) -> bool {
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
    pub(super) fn plain(
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

    pub(super) fn late(&self, chunk: &Chunk<'_>) -> ReadError {
        ReadError::Late {
            layer: self.table.layer(),
            at: chunk.packed_at,
        }
    }

    pub(super) fn missed(&self, miss: &Miss, chunk: &Chunk<'_>) -> ReadError {
        match miss {
            Miss::Corrupt => self.corrupt(chunk),
            Miss::Late => self.late(chunk),
        }
    }

    pub(super) fn corrupt(&self, chunk: &Chunk<'_>) -> ReadError {
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

/// A chunk's plain bytes, if they are right.
pub(super) fn decoded(chunk: &Chunk<'_>, packed: &[u8]) -> Option<Bytes> {
    DECODER
        .with_borrow_mut(|decoder| decoder.plain(chunk, packed))
        .ok()
}

/// The next pieces of a chunk that is cut, until the one with its plain byte `until - 1`; see [`Decoder::cut`].
pub(super) fn pieces(
    chunk: &Chunk<'_>,
    packed: &[u8],
    cut: &mut Cut,
    until: u32,
) -> Option<Vec<Bytes>> {
    DECODER
        .with_borrow_mut(|decoder| decoder.cut(chunk, packed, cut, until))
        .ok()
}
