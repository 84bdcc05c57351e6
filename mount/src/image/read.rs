//! Bytes of files, put together from chunks.

use std::time::Instant;

use bytes::Bytes;

use super::Image;
use crate::fetch::ReadError;
use crate::layer::table::{ChunkIndex, Piece};
use crate::tree::{NodeId, NodeKind};

/// Zeros of holes: as many as the kernel asks for at once, so that they need not be made.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A part of what is read that lies in one chunk, from a byte of its plain bytes on, or in a hole.
struct Stretch {
    chunk: Option<(ChunkIndex, usize)>,
    len: usize,
}

impl Image {
    /// Up to `len` bytes of the file from `offset`, fewer only at its end; from memory, so `None` if any of its
    /// chunks is not there. Never blocks.
    pub fn read_cached(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
    ) -> Result<Option<Bytes>, ReadError> {
        self.assembled(id, offset, len, |layer, chunk| {
            Ok(self.chunks.cached(layer, chunk))
        })
    }

    /// The same, waiting for store and source until `deadline`.
    pub fn read(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        deadline: Instant,
    ) -> Result<Bytes, ReadError> {
        let read = self.assembled(id, offset, len, |layer, chunk| {
            self.chunks.chunk(layer, chunk, deadline).map(Some)
        })?;
        Ok(read.expect("every chunk was waited for"))
    }

    /// Asks `chunk` for what it needs and gives up at the first `None`.
    fn assembled(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        chunk: impl Fn(u16, ChunkIndex) -> Result<Option<Bytes>, ReadError>,
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
        let stretches = stretches(table.pieces(pieces)?, node.size, offset, end)
            .ok_or_else(|| wrong("its pieces do not cover it in order"))?;
        let bytes_of = |stretch: &Stretch| -> Result<Option<Bytes>, ReadError> {
            let Some((index, from)) = stretch.chunk else {
                return Ok(Some(zeros(stretch.len)));
            };
            let Some(plain) = chunk(layer, index)? else {
                return Ok(None);
            };
            if plain.len() < from.saturating_add(stretch.len) {
                return Err(wrong("a piece is longer than its chunk"));
            }
            Ok(Some(plain.slice(from..from + stretch.len)))
        };
        if let [only] = &stretches[..] {
            return bytes_of(only);
        }
        let mut read = Vec::with_capacity((end - offset) as usize);
        for stretch in &stretches {
            match bytes_of(stretch)? {
                Some(bytes) => read.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
        Ok(Some(read.into()))
    }
}

fn zeros(len: usize) -> Bytes {
    match ZEROS.get(..len) {
        Some(zeros) => Bytes::from_static(zeros),
        None => vec![0; len].into(),
    }
}

/// Where bytes `from..to` of a file of `size` bytes lie. `None` if the pieces do not tell, because the
/// table is damaged.
fn stretches(pieces: &[Piece], size: u64, from: u64, to: u64) -> Option<Vec<Stretch>> {
    let mut next = pieces.partition_point(|piece| piece.at() <= from);
    let mut at = from;
    let mut stretches = Vec::new();
    while at < to {
        let piece = pieces.get(next.checked_sub(1)?)?;
        let until = pieces.get(next).map_or(size, Piece::at).min(to);
        let len = usize::try_from(until.checked_sub(at)?).ok()?;
        let inside = usize::try_from(at.checked_sub(piece.at())?).ok();
        let chunk = match piece.chunk() {
            Some((chunk, skip)) => Some((chunk, inside?.checked_add(skip as usize)?)),
            None => None,
        };
        if len > 0 {
            stretches.push(Stretch { chunk, len });
        }
        at = until;
        next += 1;
        if next > pieces.len() && at < to {
            return None;
        }
    }
    Some(stretches)
}
