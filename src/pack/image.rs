//! An opened image as the packer sees it.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sifon_mount::digest::ChunkDigest;
use sifon_mount::fetch::{NativeBytes, WholeChunk};
use sifon_mount::image::Image;
use sifon_mount::layer::entry::Kind;
use sifon_mount::layer::table::{ChunkIndex, PieceRange, Stretch, Table, stretches};
use sifon_mount::tree::{NodeId, NodeKind, Tree, TreeError};

use super::layout::{BLOCK_BYTES, Bundler, Layout, Packing, Placed, Sized, Stored, Tail};
use super::node::{Content, PackKind, PackNode, Source, Standing};

/// An image, and how long to wait for its bytes.
pub struct TreeSource<'a> {
    image: &'a Image,
    tree: &'a Tree,
    timeout: Duration,
}

/// Where a part of a file is, if it is all in one place.
enum Whereabouts {
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

    /// Where `len` bytes of a file from `at` on are.
    fn whereabouts(&self, file: u64, at: u64, len: usize) -> io::Result<Whereabouts> {
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

    fn pieces(&self, file: u64) -> io::Result<(&Table, u16, PieceRange)> {
        let node = self.tree.node(NodeId(file)).map_err(io::Error::other)?;
        let NodeKind::Regular { layer, pieces } = node.kind else {
            return Err(io::Error::other("not a regular file"));
        };
        let table = self.image.tables().get(usize::from(layer));
        let table = table.ok_or_else(|| io::Error::other("its layer does not exist"))?;
        Ok((table, layer, pieces))
    }

    /// A chunk, if it has exactly `len` bytes.
    fn chunk(&self, layer: u16, chunk: ChunkIndex, len: usize) -> io::Result<Option<Stored>> {
        let table = self.image.tables().get(usize::from(layer));
        let plain_len = table
            .and_then(|table| table.chunk(chunk).ok())
            .map(|chunk| chunk.plain_len as usize);
        if plain_len != Some(len) {
            return Ok(None);
        }
        let whole = self
            .image
            .chunks()
            .whole(layer, chunk, self.deadline())
            .map_err(io::Error::other)?;
        Ok(Some(stored(whole)))
    }

    fn bytes(&self, file: u64, at: u64, len: usize) -> io::Result<Stored> {
        Stored::read(len, |from, into| self.read(file, at + from, into))
    }
}

/// A chunk in the packer's words.
fn stored(whole: WholeChunk) -> Stored {
    Stored {
        digest: match whole.digest {
            Some(ChunkDigest::Blake3(digest)) => Some(digest.into()),
            _ => None,
        },
        packing: match whole.native {
            None => Packing::Unknown,
            Some(NativeBytes::Raw) => Packing::Stored,
            Some(NativeBytes::Frame(packed)) => Packing::Packed(packed),
        },
        plain: whole.plain,
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

impl TreeSource<'_> {
    /// The chunk that begins with these tails, one directly after another.
    fn shared_chunk(&self, tails: &[Tail]) -> io::Result<Option<(u16, ChunkIndex)>> {
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

/// Adds the files of one layer: `visible` has, sorted, the first piece of each and its place in `files`.
fn lay_out(
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sifon_mount::digest::Digest;
    use sifon_mount::extent::PackedOffset;
    use sifon_mount::fetch::{ChunkSource, ReadError};
    use sifon_mount::layer::entry::{Entry, Timestamp};
    use sifon_mount::layer::table::{Chunk, Codec, Piece, PieceRange, TableWriter, from_reader};
    use sifon_mount::sys::Sealed;

    use super::*;

    /// Chunks that are in memory, those of each layer.
    #[derive(Default)]
    struct InMemory(Vec<Vec<Bytes>>);

    impl ChunkSource for InMemory {
        fn cached(&self, _: u16, _: ChunkIndex) -> Option<Bytes> {
            None
        }

        fn chunk(&self, layer: u16, chunk: ChunkIndex, _: Instant) -> Result<Bytes, ReadError> {
            Ok(self.0[usize::from(layer)][chunk.0 as usize].clone())
        }

        fn whole(
            &self,
            layer: u16,
            chunk: ChunkIndex,
            deadline: Instant,
        ) -> Result<WholeChunk, ReadError> {
            Ok(WholeChunk {
                plain: self.chunk(layer, chunk, deadline)?,
                digest: None,
                native: Some(NativeBytes::Raw),
            })
        }
    }

    /// A file of one layer: its name, size, and where its pieces are: `None` in a hole.
    type Filed<'a> = (&'a str, u64, &'a [(u64, Option<(u32, u32)>)]);

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o640,
            uid: 7,
            gid: 8,
            mtime: Timestamp { secs: 9, nanos: 1 },
            xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
        }
    }

    fn table(chunks: &[Bytes], entries: &[(Entry, &[Piece])]) -> Table {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::in_directory(directory.path()).unwrap();
        for plain in chunks {
            let chunk = Chunk {
                packed_at: PackedOffset(0),
                skip: 0,
                packed_len: 0,
                plain_len: plain.len() as u32,
                codec: Codec::Raw,
                digest: ChunkDigest::blake3_of(plain),
            };
            writer.chunk(&chunk).unwrap();
        }
        for (entry, pieces) in entries {
            let pieces = match pieces {
                [] => PieceRange::default(),
                pieces => writer.pieces(pieces).unwrap(),
            };
            writer.entry(entry, pieces).unwrap();
        }
        let mut bytes = Vec::new();
        writer
            .finish(Digest::of(&(chunks.len() as u64).to_le_bytes()), &mut bytes)
            .unwrap();
        from_reader(&bytes[..]).unwrap()
    }

    fn image(layers: Vec<(Table, Vec<Bytes>)>) -> Image {
        let (tables, chunks): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let mut bytes = Vec::new();
        let merged: Vec<&Table> = tables.iter().collect();
        sifon_mount::tree::merge(&merged, &mut bytes).unwrap();
        let tree = Tree::open(Sealed::in_memory(bytes)).unwrap();
        let tables = tables.into_iter().map(Arc::new).collect();
        Image::new(tree, tables, Arc::new(InMemory(chunks)))
    }

    /// A layer of files whose chunks are `chunks`.
    fn layer(chunks: Vec<Bytes>, files: &[Filed<'_>]) -> (Table, Vec<Bytes>) {
        let pieces: Vec<Vec<Piece>> = files
            .iter()
            .map(|(_, _, pieces)| {
                let piece = |&(at, place): &(u64, Option<(u32, u32)>)| match place {
                    Some((chunk, skip)) => Piece::in_chunk(at, ChunkIndex(chunk), skip),
                    None => Piece::hole(at),
                };
                pieces.iter().map(piece).collect()
            })
            .collect();
        let entries: Vec<_> = files
            .iter()
            .zip(&pieces)
            .map(|((path, size, _), pieces)| {
                (entry(path, Kind::Regular { size: *size }), &pieces[..])
            })
            .collect();
        (table(&chunks, &entries), chunks)
    }

    fn source(image: &Image) -> TreeSource<'_> {
        TreeSource::new(image, Duration::from_secs(10))
    }

    fn number(source: &TreeSource<'_>, path: &str) -> u64 {
        source.found(path.as_bytes()).unwrap().unwrap().0
    }

    fn sample() -> Image {
        let target = |text: &str| text.as_bytes().to_vec();
        let hard = Kind::Hardlink {
            target: target("d/f"),
        };
        let soft = Kind::Symlink {
            target: target("d/f"),
        };
        let entries = [
            ("d", Kind::Directory),
            ("d/f", Kind::Regular { size: 300 }),
            ("d/g", hard),
            ("d-e", Kind::Fifo),
            ("l", soft),
            ("n", Kind::CharDevice { major: 1, minor: 3 }),
        ];
        let pieces = [Piece::in_chunk(0, ChunkIndex(0), 0)];
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(path, kind)| {
                let is_file = matches!(kind, Kind::Regular { .. });
                (entry(path, kind), &pieces[..usize::from(is_file)])
            })
            .collect();
        let chunks = vec![Bytes::from(vec![5; 300])];
        image(vec![(table(&chunks, &entries), chunks)])
    }

    #[test]
    fn a_tree_is_walked_with_everything_that_its_nodes_have() {
        let image = sample();
        let nodes: Vec<_> = source(&image).nodes().map(Result::unwrap).collect();
        let names: Vec<_> = nodes
            .iter()
            .map(|node| str::from_utf8(&node.path).unwrap())
            .collect();
        assert_eq!(names, ["", "d", "d/f", "d/g", "d-e", "l", "n"]);
        let f = &nodes[2];
        assert_eq!((f.mode, f.uid, f.gid), (0o640, 7, 8));
        assert_eq!(f.xattrs, [(b"user.x".to_vec(), b"y".to_vec())]);
        assert_eq!(f.mtime, Timestamp { secs: 9, nanos: 1 });
        assert!(f.linked.is_some() && f.linked == nodes[3].linked);
        assert_eq!((nodes[1].linked, nodes[4].linked), (None, None));
        assert!(matches!(f.kind, PackKind::Regular { size: 300, .. }));
        assert_eq!(nodes[4].kind, PackKind::Fifo);
        assert_eq!(
            nodes[5].kind,
            PackKind::Symlink {
                target: b"d/f".to_vec()
            }
        );
        assert_eq!(nodes[6].kind, PackKind::CharDevice { major: 1, minor: 3 });
    }

    #[test]
    fn what_stands_at_a_path_is_found_without_following_links() {
        let image = sample();
        let link = Standing::Symlink(b"d/f".to_vec());
        for (path, expected) in [
            ("d", Some(Standing::Directory)),
            ("d/f", Some(Standing::File)),
            ("l", Some(link)),
            ("l/x", None),
            ("d/f/x", None),
            ("nowhere", None),
        ] {
            let standing = source(&image).standing(path.as_bytes()).unwrap();
            assert_eq!(standing, expected, "{path}");
        }
    }

    #[test]
    fn bytes_come_from_the_image() {
        let image = sample();
        let source = source(&image);
        let mut into = [0; 8];
        let file = number(&source, "d/f");
        assert_eq!(source.read(file, 295, &mut into).unwrap(), 5);
        assert_eq!(into, [5, 5, 5, 5, 5, 0, 0, 0]);
    }

    /// Blocks and tails in the chunks that a streamed layer has.
    fn bundled() -> (Table, Vec<Bytes>) {
        let block = BLOCK_BYTES as u64;
        let chunks = [vec![1; BLOCK_BYTES], vec![2; 30], vec![3; BLOCK_BYTES - 5]];
        layer(
            chunks.map(Bytes::from).into(),
            &[
                (
                    "large",
                    3 * block + 10,
                    &[(0, Some((0, 0))), (block, None), (3 * block, Some((1, 0)))],
                ),
                ("small", 20, &[(0, Some((1, 10)))]),
                ("empty", 0, &[]),
                ("almost", block - 5, &[(0, Some((2, 0)))]),
            ],
        )
    }

    fn laid_out(image: &Image, paths: &[&str]) -> (Vec<(String, Option<u32>)>, Vec<bool>) {
        let source = source(image);
        let files: Vec<_> = paths
            .iter()
            .map(|path| {
                let file = number(&source, path);
                let size = image.tree().node(NodeId(file)).unwrap().size;
                Sized { file, size }
            })
            .collect();
        let layout = source.layout(&files).unwrap();
        let order = layout.order.iter();
        let order = order.map(|placed| (paths[placed.index].to_owned(), placed.bundle));
        (order.collect(), layout.is_whole)
    }

    #[test]
    fn contents_lie_as_their_layers_have_them() {
        let top = layer(vec![vec![9; 3].into()], &[("a", 3, &[(0, Some((0, 0)))])]);
        let image = image(vec![bundled(), top]);
        let (order, is_whole) = laid_out(&image, &["a", "almost", "large", "small"]);
        let expected = [("large", 0), ("small", 0), ("almost", 1), ("a", 2)];
        assert_eq!(
            order,
            expected.map(|(path, bundle)| (path.to_owned(), Some(bundle)))
        );
        assert_eq!(is_whole, [true, true, true]);
    }

    #[test]
    fn a_bundle_with_a_file_that_is_not_packed_is_not_whole() {
        let image = image(vec![bundled()]);
        let (order, is_whole) = laid_out(&image, &["large", "almost"]);
        assert_eq!(
            order,
            [("large".into(), Some(0)), ("almost".into(), Some(1))]
        );
        assert_eq!(is_whole, [false, true]);
    }

    #[test]
    fn whole_chunks_come_with_their_packing_and_parts_without() {
        let image = image(vec![bundled()]);
        let source = source(&image);
        let large = number(&source, "large");
        let block = source.block(large, 0).unwrap();
        assert_eq!(
            (block.plain.len(), block.packing),
            (BLOCK_BYTES, Packing::Stored)
        );
        assert_eq!(source.hole(large, 0).unwrap(), 0);
        assert_eq!(source.hole(large, BLOCK_BYTES as u64).unwrap(), 2 << 17);
        let tail = |path: &str, at: u64, len| Tail {
            file: number(&source, path),
            at,
            len,
        };
        let tails = [tail("large", 3 << 17, 10), tail("small", 0, 20)];
        let whole = source.bundle(&tails).unwrap();
        assert_eq!(
            (&whole.plain[..], whole.packing),
            (&[2; 30][..], Packing::Stored)
        );
        for (part, len) in [(&tails[..1], 10), (&tails[1..], 20)] {
            let part = source.bundle(part).unwrap();
            assert_eq!(
                (&part.plain[..], part.packing),
                (&vec![2; len][..], Packing::Unknown)
            );
        }
    }
}
