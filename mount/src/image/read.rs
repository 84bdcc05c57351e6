//! Bytes of files, put together from chunks.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::Image;
use super::program;
use super::reads::Answered;
use super::sequence::{Ending, InChunk};
use crate::fetch::ReadError;
use crate::layer::table::{ChunkIndex, PieceRange, Stretch, Table, stretches};
use crate::tree::{NodeId, NodeKind};

/// Zeros of holes: as many as the kernel asks for at once, so that they need not be made.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

impl Image {
    /// Up to `len` bytes of the file from `offset`, fewer only at its end; from memory, so `None` if any of its
    /// chunks is not there. Never blocks.
    pub fn read_cached(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
    ) -> Result<Option<Bytes>, ReadError> {
        let read = self.assembled(id, offset, len, |layer, chunk, bytes| {
            Ok(self.chunks.cached_part(layer, chunk, bytes))
        });
        if let Ok(Some(bytes)) = &read {
            let bytes = offset..offset.saturating_add(bytes.len() as u64);
            self.reading(id, &bytes);
            if let Some(reads) = self.reads.get() {
                reads.read(id, bytes, Answered::AtOnce);
            }
        }
        read
    }

    /// Whether these bytes of the file can be read without waiting for a source, as far as that is known.
    pub fn is_near(&self, id: NodeId, offset: u64, len: u32) -> bool {
        let chunks = self.chunks_of(id, &(offset..offset.saturating_add(len.into())));
        let mut chunks = chunks.into_iter();
        !self.awaits_proof(id) && chunks.all(|(layer, chunk)| self.chunks.is_near(layer, chunk))
    }

    /// Whether the first read of the file reads its header, too, which may be elsewhere.
    fn awaits_proof(&self, id: NodeId) -> bool {
        let Ok(NodeKind::Regular { layer, pieces }) = self.node(id).map(|node| node.kind) else {
            return false;
        };
        let table = self.tables.get(usize::from(layer));
        let proof = table.and_then(|table| table.proof(pieces.first));
        proof.is_some_and(|proof| !self.proven.has(layer, proof.entry))
    }

    /// The same, waiting for store and source until `deadline`.
    pub fn read(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let since = Instant::now();
        self.reading(id, &(offset..offset.saturating_add(len.into())));
        let read = self.awaited(id, offset, len, deadline);
        if let (0, Some(programs), Ok(bytes)) = (offset, self.programs.get(), &read)
            && bytes.starts_with(&program::MAGIC)
        {
            // One that is not told of is only read more slowly.
            let _ = programs.try_send(id);
        }
        if let Some(reads) = self.reads.get() {
            let (answered, len) = match &read {
                Ok(bytes) => (Answered::After(since.elapsed()), bytes.len() as u64),
                Err(_) => (Answered::Failed(since.elapsed()), 0),
            };
            reads.read(id, offset..offset.saturating_add(len), answered);
        }
        read
    }

    /// Tells those who run ahead of readers.
    fn reading(&self, id: NodeId, bytes: &Range<u64>) {
        if let Some(course) = self.course.get() {
            course.read(id, bytes);
        }
        self.sequences
            .read(id, bytes, |bytes| self.parts_of(id, bytes));
    }

    /// The same, for ourselves: nobody counts it as a read.
    pub(super) fn awaited(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let until = offset.saturating_add(len.into());
        self.chunks
            .announce(&self.chunks_of(id, &(offset..until)), deadline);
        let read = self.assembled(id, offset, len, |layer, chunk, bytes| {
            self.chunks.part(layer, chunk, bytes, deadline).map(Some)
        });
        Ok(read?.expect("every chunk was waited for"))
    }

    /// The chunks that bytes `bytes` of the file consist of, with the places of their layers; none where that cannot be told.
    pub fn chunks_of(&self, id: NodeId, bytes: &Range<u64>) -> Vec<(u16, ChunkIndex)> {
        let stretches = self.stretches_of(id, bytes).into_iter();
        stretches.map(|(layer, index, _)| (layer, index)).collect()
    }

    /// The same, with the bytes of each chunk that are meant.
    pub(super) fn stretches_of(&self, id: NodeId, bytes: &Range<u64>) -> Vec<InChunk> {
        let parts = self.parts_of(id, bytes).into_iter();
        parts.map(|(_, part)| part).collect()
    }

    /// The same, with where each of them ends in the file.
    fn parts_of(&self, id: NodeId, bytes: &Range<u64>) -> Vec<Ending> {
        let found = || {
            let node = self.node(id).ok()?;
            let NodeKind::Regular { layer, pieces } = node.kind else {
                return None;
            };
            let table = self.tables.get(usize::from(layer))?;
            let until = bytes.end.min(node.size);
            let stretches = stretches(table.pieces(pieces).ok()?, bytes.start, until)?;
            let mut end = bytes.start;
            let parts = stretches.iter().filter_map(|stretch| {
                end += stretch.len;
                let (index, from) = stretch.chunk?;
                let len = usize::try_from(stretch.len).ok()?;
                Some((end, (layer, index, from..from.checked_add(len)?)))
            });
            Some(parts.collect())
        };
        found().unwrap_or_default()
    }

    /// Asks `part` for what it needs and gives up at the first `None`.
    fn assembled(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        part: impl Fn(u16, ChunkIndex, &Range<usize>) -> Result<Option<Bytes>, ReadError>,
    ) -> Result<Option<Bytes>, ReadError> {
        let wrong = |problem: &str| ReadError::Tree(format!("node {}: {problem}", id.0));
        let node = self
            .node(id)
            .map_err(|err| ReadError::Tree(err.to_string()))?;
        let NodeKind::Regular { layer, pieces } = node.kind else {
            return Err(wrong("not a regular file"));
        };
        let end = node.size.min(offset.saturating_add(len.into()));
        if offset >= end {
            return Ok(Some(Bytes::new()));
        }
        let table = self
            .tables
            .get(usize::from(layer))
            .ok_or_else(|| wrong("its layer does not exist"))?;
        if let Some(proof) = table.proof(pieces.first)
            && !self.proven.has(layer, proof.entry)
        {
            let header_len = proof.header_len.into();
            let header = gathered(table, proof.header, 0, header_len, |index, bytes| {
                part(layer, index, bytes)
            })?;
            match header {
                Some(header) => self.proven.prove(layer, table, &proof, &header)?,
                None => return Ok(None),
            }
        }
        gathered(table, pieces, offset, end, |index, bytes| {
            part(layer, index, bytes)
        })
    }
}

/// Bytes `from..to` of what consists of `pieces`, with the parts of chunks that `part` gives; `None` at the first that it does not.
fn gathered(
    table: &Table,
    pieces: PieceRange,
    from: u64,
    to: u64,
    part: impl Fn(ChunkIndex, &Range<usize>) -> Result<Option<Bytes>, ReadError>,
) -> Result<Option<Bytes>, ReadError> {
    let wrong = |problem: &str| {
        let (layer, first) = (table.layer(), pieces.first);
        ReadError::Tree(format!("layer {layer}, piece {first}: {problem}"))
    };
    let stretches = stretches(table.pieces(pieces)?, from, to)
        .ok_or_else(|| wrong("the pieces do not cover their file in order"))?;
    let bytes_of = |stretch: &Stretch| -> Result<Option<Bytes>, ReadError> {
        // It is part of what one read asks for, whose length has 32 bits.
        let len = stretch.len as usize;
        let Some((index, from)) = stretch.chunk else {
            return Ok(Some(zeros(len)));
        };
        let Some(plain) = part(index, &(from..from.saturating_add(len)))? else {
            return Ok(None);
        };
        if plain.len() < len {
            return Err(wrong("one is longer than its chunk"));
        }
        Ok(Some(plain))
    };
    if let [only] = &stretches[..] {
        return bytes_of(only);
    }
    let mut read = Vec::with_capacity((to - from) as usize);
    for stretch in &stretches {
        match bytes_of(stretch)? {
            Some(bytes) => read.extend_from_slice(&bytes),
            None => return Ok(None),
        }
    }
    Ok(Some(read.into()))
}

fn zeros(len: usize) -> Bytes {
    match ZEROS.get(..len) {
        Some(zeros) => Bytes::from_static(zeros),
        None => vec![0; len].into(),
    }
}
