//! An opened image as the packer sees it.

mod chunks;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sifon_mount::image::Image;
use sifon_mount::tree::{NodeId, NodeKind, Tree, TreeError};

use chunks::{Whereabouts, lay_out};

use super::layout::{BLOCK_BYTES, Layout, Packing, Sized, Stored, Tail};
use super::node::{Content, PackKind, PackNode, Source, Standing};

/// More than a block of zeros takes, compressed.
const ZEROS_BYTES_LIMIT: usize = 256;

/// An image, and how long to wait for its bytes.
pub struct TreeSource<'a> {
    image: &'a Image,
    tree: &'a Tree,
    timeout: Duration,
}

impl<'a> TreeSource<'a> {
    /// Reads `image`; a read fails that takes longer than `timeout`.
    pub fn new(image: &'a Image, timeout: Duration) -> Self {
        Self {
            image,
            tree: image.tree(),
            timeout,
        }
    }

    fn node(&self, path: Vec<u8>, id: NodeId) -> Result<PackNode, TreeError> {
        let node = self.tree.node(id)?;
        let xattrs = if self.tree.has_xattrs() {
            self.tree.xattrs(id)?
        } else {
            Vec::new()
        };
        let kind = match node.kind {
            NodeKind::Directory => PackKind::Directory,
            NodeKind::Regular { .. } => PackKind::Regular {
                size: node.size,
                content: Content::InImage(id.0),
            },
            NodeKind::Symlink => PackKind::Symlink {
                target: self.tree.link_target(id)?.to_vec(),
            },
            NodeKind::CharDevice { major, minor } => PackKind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => PackKind::BlockDevice { major, minor },
            NodeKind::Fifo => PackKind::Fifo,
            NodeKind::Socket => PackKind::Socket,
        };
        let is_linked = node.nlink > 1 && kind != PackKind::Directory;
        Ok(PackNode {
            path,
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            linked: is_linked.then_some(id.0),
        })
    }

    /// The text of a regular file, if it is one of ordinary length; no symlink is followed.
    pub fn text(&self, path: &str) -> io::Result<Option<String>> {
        const TEXT_BYTES_LIMIT: u64 = 1 << 20;
        let found = self.found(path.as_bytes()).map_err(io::Error::other)?;
        let Some(id) = found else {
            return Ok(None);
        };
        let node = self.tree.node(id).map_err(io::Error::other)?;
        if !matches!(node.kind, NodeKind::Regular { .. }) || node.size > TEXT_BYTES_LIMIT {
            return Ok(None);
        }
        let mut bytes = vec![0; node.size as usize];
        let len = self.read(id.0, 0, &mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes[..len]).into_owned()))
    }

    fn found(&self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        let mut at = NodeId::ROOT;
        for name in path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if !matches!(self.tree.node(at)?.kind, NodeKind::Directory) {
                return Ok(None);
            }
            match self.tree.lookup(at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn standing_of(&self, id: NodeId) -> Result<Standing, TreeError> {
        Ok(match self.tree.node(id)?.kind {
            NodeKind::Directory => Standing::Directory,
            NodeKind::Symlink => Standing::Symlink(self.tree.link_target(id)?.to_vec()),
            _ => Standing::File,
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn bytes(&self, file: u64, at: u64, len: usize) -> io::Result<Stored> {
        Stored::read(len, |from, into| self.read(file, at + from, into))
    }
}

impl Source for TreeSource<'_> {
    fn nodes(&self) -> Box<dyn Iterator<Item = io::Result<PackNode>> + '_> {
        Box::new(self.tree.walk().map(|name| {
            name.and_then(|(path, id)| self.node(path, id))
                .map_err(io::Error::other)
        }))
    }

    fn standing(&self, path: &[u8]) -> io::Result<Option<Standing>> {
        self.found(path)
            .and_then(|found| found.map(|id| self.standing_of(id)).transpose())
            .map_err(io::Error::other)
    }

    fn read(&self, file: u64, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let len = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let bytes: Bytes = self
            .image
            .read(NodeId(file), offset, len, self.deadline())
            .map_err(io::Error::other)?;
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// Layer by layer, in the order of its entries; all of them, also those that are hidden, take part in bundling.
    fn layout(&self, files: &[Sized]) -> io::Result<Layout> {
        let mut visible = Vec::with_capacity(files.len());
        for (index, file) in files.iter().enumerate() {
            let (_, layer, pieces) = self.pieces(file.file)?;
            visible.push((layer, pieces.first, index));
        }
        visible.sort_unstable();
        let mut layout = Layout::default();
        for (layer, table) in self.image.tables().iter().enumerate() {
            let from = visible.partition_point(|(of, ..)| usize::from(*of) < layer);
            let to = visible.partition_point(|(of, ..)| usize::from(*of) <= layer);
            lay_out(table, &visible[from..to], files, &mut layout)?;
        }
        Ok(layout)
    }

    fn hole(&self, file: u64, offset: u64) -> io::Result<u64> {
        let (table, _, pieces) = self.pieces(file)?;
        let pieces = table.pieces(pieces).map_err(io::Error::other)?;
        let next = pieces.partition_point(|piece| piece.at() <= offset);
        let is_hole = |place: usize| {
            pieces
                .get(place)
                .is_some_and(|piece| piece.chunk().is_none())
        };
        if next == 0 || !is_hole(next - 1) {
            return Ok(0);
        }
        // Pieces are in order where the table is not damaged; a hole that ends before `offset` is none.
        Ok(match pieces.get(next) {
            Some(piece) => piece.at() - offset,
            None => u64::MAX - offset,
        })
    }

    fn block(&self, file: u64, offset: u64) -> io::Result<Stored> {
        if let Whereabouts::Chunk {
            layer,
            chunk,
            from: 0,
        } = self.whereabouts(file, offset, BLOCK_BYTES)?
            && let Some(stored) = self.chunk(layer, chunk, BLOCK_BYTES)?
        {
            return Ok(stored);
        }
        self.bytes(file, offset, BLOCK_BYTES)
    }

    fn packed_block(&self, file: u64, offset: u64) -> io::Result<Option<Packing>> {
        let place = self.whereabouts(file, offset, BLOCK_BYTES)?;
        let Whereabouts::Chunk {
            layer,
            chunk,
            from: 0,
        } = place
        else {
            return Ok(None);
        };
        let packing = self.packed_chunk(layer, chunk, BLOCK_BYTES)?;
        // Zeros are holes, whatever a layer has: decoding tells.
        let may_be_zeros = |packing: &Packing| {
            let frame = packing.compressed.as_ref();
            frame.is_none_or(|frame| frame.len() < ZEROS_BYTES_LIMIT)
        };
        Ok(packing.filter(|packing| !may_be_zeros(packing)))
    }

    fn bundle(&self, tails: &[Tail]) -> io::Result<Stored> {
        if let Some((layer, chunk)) = self.shared_chunk(tails)?
            && let Some(stored) =
                self.chunk(layer, chunk, tails.iter().map(|tail| tail.len).sum())?
        {
            return Ok(stored);
        }
        let mut plain = Vec::new();
        for tail in tails {
            plain.extend_from_slice(&self.bytes(tail.file, tail.at, tail.len)?.plain);
        }
        Ok(Stored::plain(plain))
    }
}
