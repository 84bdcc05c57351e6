//! A native layer that somebody else wrote, checked so that it is as good as one of ours.
//!
//! Its tar stream is rebuilt and read as if it came from a registry: the diffID says that the stream is the image's,
//! and from the stream we make our own table, in which only the places of chunks are the other's. No
//! network is needed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};

use super::blocks::BLOCKS_WAITING;
use super::cut::{ChunkSink, Cutter};
use super::headers::{HeaderWriter, RebuildError, rebuild};
use super::stream::{Blueprint, ConvertError, PlainStream, cut_all};
use crate::digest::ChunkDigest;
use crate::layer::decode::Decoder;
use crate::layer::table::{Chunk, ChunkIndex, Table, TableWriter};

/// Checks the native file that `theirs` describes against the promised diffID; gives a table of our own for it.
pub fn accepted(
    blueprint: Blueprint,
    theirs: &Table,
    native: &File,
    scratch: &Path,
) -> Result<TableWriter, ConvertError> {
    let layer = blueprint.layer;
    let write = |source| ConvertError::unwritten(layer, source);
    let table = TableWriter::in_directory(scratch);
    let headers = HeaderWriter::in_directory(scratch).map_err(write)?;
    thread::scope(|scope| {
        let (blocks, rebuilt) = bounded(BLOCKS_WAITING);
        let rebuilding = scope.spawn(move || -> Result<(), RebuildError> {
            let mut to = io::BufWriter::with_capacity(256 << 10, BlockWriter(blocks));
            rebuild(theirs, native, &mut to)?;
            Ok(to.flush()?)
        });
        let mut plain = PlainStream::new(blueprint, rebuilt);
        let cut = cut_all(
            &mut plain,
            Cutter::new(table, Known::new(theirs, native)),
            headers,
            layer,
        );
        let found = plain.finish();
        let rebuilt = rebuilding.join().expect("rebuilding does not panic");
        rebuilt.map_err(|err| ConvertError::Read {
            layer,
            source: io::Error::other(err),
        })?;
        let (cutter, _) = cut?;
        if found != blueprint.diff_id {
            return Err(ConvertError::DiffId {
                layer,
                diff_id: blueprint.diff_id,
                found,
            });
        }
        cutter.finish().map(|(table, _)| table).map_err(write)
    })
}

/// Chunks that are in a native file already, if they are what was cut.
struct Known<'a> {
    theirs: &'a Table,
    native: &'a File,
    decoder: Decoder,
}

impl<'a> Known<'a> {
    fn new(theirs: &'a Table, native: &'a File) -> Self {
        let decoder = Decoder::default();
        Self {
            theirs,
            native,
            decoder,
        }
    }

    /// Whether what is in the file is `plain`, and whoever reads it later can tell that it still is.
    fn is(&mut self, known: &Chunk<'_>, plain: &[u8]) -> io::Result<bool> {
        let mut packed = vec![0; known.packed_len as usize];
        self.native.read_exact_at(&mut packed, known.packed_at.0)?;
        let is_whole = known.skip == 0 && known.digest == ChunkDigest::blake3_of(&packed);
        let has = is_whole.then(|| self.decoder.plain(known, &packed));
        Ok(matches!(has, Some(Ok(has)) if has == plain))
    }
}

impl ChunkSink for Known<'_> {
    fn put(
        &mut self,
        table: &mut TableWriter,
        place: ChunkIndex,
        plain: Vec<u8>,
    ) -> io::Result<()> {
        let known = self.theirs.chunk(place).map_err(io::Error::other)?;
        if !self.is(&known, &plain)? {
            return Err(io::Error::other("its chunks are cut otherwise"));
        }
        table.set_chunk(place, &known);
        Ok(())
    }
}

/// Passes what is written on to another thread.
struct BlockWriter(Sender<io::Result<Bytes>>);

impl Write for BlockWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
