//! Chunks of the image that are blocks, or bundles, of what is packed as they are.

use std::io;

use sifon_mount::fetch::{NativeBytes, WholeChunk};
use sifon_mount::layer::entry::Kind;
use sifon_mount::layer::table::{ChunkIndex, PieceRange, Stretch, Table, stretches};
use sifon_mount::tree::{NodeId, NodeKind};

use super::TreeSource;
use crate::pack::layout::{Bundler, Layout, Packing, Placed, Sized, Stored, Tail};

/// Where a part of a file is, if it is all in one place.
pub(super) enum Whereabouts {
    Hole,
    /// All of a chunk's plain bytes from one on.
    Chunk {
        layer: u16,
        chunk: ChunkIndex,
        from: usize,
    },
    /// In several.
    Parts,
}

impl TreeSource<'_> {
    /// Where `len` bytes of a file from `at` on are.
    pub(super) fn whereabouts(&self, file: u64, at: u64, len: usize) -> io::Result<Whereabouts> {
        let (table, layer, pieces) = self.pieces(file)?;
        let pieces = table.pieces(pieces).map_err(io::Error::other)?;
        let stretches = stretches(pieces, at, at + len as u64);
        Ok(match stretches.as_deref() {
            Some([Stretch { chunk: None, .. }]) => Whereabouts::Hole,
            Some(
                [
                    Stretch {
                        chunk: Some((chunk, from)),
                        ..
                    },
                ],
            ) => Whereabouts::Chunk {
                layer,
                chunk: *chunk,
                from: *from,
            },
            // Reading says what is wrong with a damaged table.
            _ => Whereabouts::Parts,
        })
    }

    pub(super) fn pieces(&self, file: u64) -> io::Result<(&Table, u16, PieceRange)> {
        let node = self.tree.node(NodeId(file)).map_err(io::Error::other)?;
        let NodeKind::Regular { layer, pieces } = node.kind else {
            return Err(io::Error::other("not a regular file"));
        };
        let table = self.image.tables().get(usize::from(layer));
        let table = table.ok_or_else(|| io::Error::other("its layer does not exist"))?;
        Ok((table, layer, pieces))
    }

    /// A chunk, if it has exactly `len` bytes.
    pub(super) fn chunk(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        len: usize,
    ) -> io::Result<Option<Stored>> {
        if !self.is_whole(layer, chunk, len) {
            return Ok(None);
        }
        let whole = self
            .image
            .chunks()
            .whole(layer, chunk, self.deadline())
            .map_err(io::Error::other)?;
        Ok(Some(stored(whole)))
    }

    /// How it is packed, if that is known without decoding it.
    pub(super) fn packed_chunk(
        &self,
        layer: u16,
        chunk: ChunkIndex,
        len: usize,
    ) -> io::Result<Option<Packing>> {
        if !self.is_whole(layer, chunk, len) {
            return Ok(None);
        }
        let packed = self
            .image
            .chunks()
            .packed(layer, chunk, self.deadline())
            .map_err(io::Error::other)?;
        Ok(packed.map(packing))
    }

    fn is_whole(&self, layer: u16, chunk: ChunkIndex, len: usize) -> bool {
        let table = self.image.tables().get(usize::from(layer));
        table
            .and_then(|table| table.chunk(chunk).ok())
            .is_some_and(|chunk| chunk.plain_len as usize == len)
    }

    /// The chunk that begins with these tails, one directly after another.
    pub(super) fn shared_chunk(&self, tails: &[Tail]) -> io::Result<Option<(u16, ChunkIndex)>> {
        let mut shared = None;
        let mut end = 0;
        for tail in tails {
            let Whereabouts::Chunk { layer, chunk, from } =
                self.whereabouts(tail.file, tail.at, tail.len)?
            else {
                return Ok(None);
            };
            if from != end || *shared.get_or_insert((layer, chunk)) != (layer, chunk) {
                return Ok(None);
            }
            end += tail.len;
        }
        Ok(shared)
    }
}

/// A chunk in the packer's words.
fn stored(whole: WholeChunk) -> Stored {
    Stored {
        packing: whole.native.map(packing),
        plain: whole.plain,
    }
}

fn packing(native: NativeBytes) -> Packing {
    Packing {
        compressed: native.frame,
        digest: native.digest.into(),
    }
}

/// Adds the files of one layer: `visible` has, sorted, the first piece of each and its place in `files`.
pub(super) fn lay_out(
    table: &Table,
    visible: &[(u16, u64, usize)],
    files: &[Sized],
    layout: &mut Layout,
) -> io::Result<()> {
    let mut bundler = Bundler::from(layout.is_whole.len() as u32);
    let mut rest = visible;
    for entry in table.entries() {
        let (entry, pieces) = entry.map_err(io::Error::other)?;
        let Kind::Regular { size } = entry.kind else {
            continue;
        };
        if size == 0 {
            continue;
        }
        let bundle = bundler.bundle_of(size);
        layout.is_whole.resize(bundler.count() as usize, true);
        match rest.split_first() {
            Some(((_, first, index), later))
                if *first == pieces.first && files[*index].size == size =>
            {
                let index = *index;
                layout.order.push(Placed { index, bundle });
                rest = later;
            }
            _ => {
                if let Some(bundle) = bundle {
                    layout.is_whole[bundle as usize] = false;
                }
            }
        }
    }
    // Nothing is left but where a table is damaged, and then reading fails, or its entries stand in an order of
    // their own, which costs nothing but room.
    for (_, _, index) in rest {
        let mut alone = Bundler::from(layout.is_whole.len() as u32);
        let bundle = alone.bundle_of(files[*index].size);
        layout.is_whole.resize(alone.count() as usize, false);
        layout.order.push(Placed {
            index: *index,
            bundle,
        });
    }
    Ok(())
}
